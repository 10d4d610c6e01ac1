"""Transactions that survive a crash: signed and stored, then sent, then settled; one account, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from p2pcompute.errors import TransactionFailed
from p2pcompute_protocols.ids import ChannelId

from ._api import Approve, Claim, Deposit, FeeRaiser, Fund, Hub, HubCall, Outcome, QueuedTx, SettlementPending, TxLedger

__all__ = ["Outbox"]

MINED_TIMEOUT_S: Final = 120.0
_POLL_FIRST_S: Final = 0.05
_POLL_MOST_S: Final = 2.0
_RESEND_S: Final = 15.0  # an endpoint may forget what waits, and says nothing when it does


class Outbox:
    """The only sender of an account's transactions, so that nonces never collide.

    The signed bytes are on disk before they are sent. After a crash the same bytes are sent again, which the chain
    takes at most once. Where fees have risen above what they pay, the same call is signed at a higher one for the same
    nonce: the chain takes one of the two. Nothing else is ever signed for a nonce that may still be mined.

    A transaction counts as settled once its block is `final`. Until then the chain can take it back, by a
    reorganisation: the same bytes are then sent again, by `look`, or by what comes next.

    Args:
        ledger: see `TxLedger`.
        hub: the account's view of the hub; one that is a `FeeRaiser` can outbid its own transactions.
        timeout_s: how long to wait for a transaction to be mined.

    Attributes:
        taken: grows with each call that may take something out of a channel on which we pay, before and behind it.
    """

    def __init__(self, *, ledger: TxLedger, hub: Hub, timeout_s: float = MINED_TIMEOUT_S) -> None:
        self._ledger = ledger
        self._hub = hub
        self._timeout_s = timeout_s
        self._lock = trio.Lock()
        self.taken = 0

    async def settle(self, *, raise_fees: bool = False) -> None:
        """Send again what was under way before, and wait for it. Call it once after a start.

        Args:
            raise_fees: outbid what pays too little to be mined now, in place of waiting for fees to come down.

        Raises:
            SettlementPending: something was not mined in time.
            ChainError: the endpoint.
        """
        async with self._lock:
            await self._settle(raise_fees=raise_fees)

    async def look(self) -> int:
        """See what became of what is under way, and send again what the chain has dropped or taken back; does not
        wait. How many transactions are not settled.

        Raises:
            ChainError: the endpoint.
        """
        async with self._lock:
            left = 0
            for queued in await self._ledger.unsettled(self._hub.account):
                outcome = await self._found(queued)
                if outcome is None:
                    outcome = await self._send(queued)
                if outcome is None or not await self._settled(queued, outcome):
                    left += 1
            return left

    async def channels_under_way(self) -> set[ChannelId]:
        """The channels of transactions that are not settled."""
        unsettled = await self._ledger.unsettled(self._hub.account)
        return {channel for queued in unsettled for channel, _ in queued.rows}

    async def _settle(self, *, raise_fees: bool) -> None:
        for queued in await self._ledger.unsettled(self._hub.account):
            await self._deliver(queued, raise_fees=raise_fees)

    async def run(self, call: HubCall, *, rows: Sequence[tuple[ChannelId, int]] = ()) -> Outcome:
        """Do `call` on chain and wait until it is mined; what was under way before goes first.

        Cancelled or crashed after the bytes are stored, the next `run` or `settle` brings it to its end.

        Args:
            call: what to do.
            rows: the channels concerned and their amounts, kept with the transaction.

        Raises:
            TransactionFailed: it was mined and reverted, or can never be mined.
            SettlementPending: not mined in time.
            ChainError: the endpoint.
        """
        takes = not isinstance(call, Approve | Deposit | Fund | Claim)
        self.taken += takes
        try:
            async with self._lock:
                await self._settle(raise_fees=True)
                sign = await self._hub.signing(call)
                queued = await self._ledger.queue_tx(
                    self._hub.account,
                    kind=type(call).__name__.lower(),
                    chain_nonce=await self._hub.nonce(),
                    sign=sign,
                    rows=rows,
                )
                outcome = await self._deliver(queued, raise_fees=False)
        finally:
            self.taken += takes
        if not outcome.ok:
            raise TransactionFailed(
                f"the {queued.kind} transaction 0x{queued.hash.hex()} had no effect; read the state again before "
                "another try"
            )
        return outcome

    async def deposit(self, amount_uusd: int) -> None:
        """Bring tokens of the account into the hub, as free balance; the hub is let take them first where it may not.

        Raises:
            as `run`.
        """
        if await self._hub.allowance_uusd() < amount_uusd:
            await self.run(Approve(amount_uusd=amount_uusd))
        await self.run(Deposit(amount_uusd=amount_uusd))

    async def _deliver(self, queued: QueuedTx, *, raise_fees: bool) -> Outcome:
        # It may have been mined before a crash.
        outcome = await self._found(queued)
        if outcome is None and raise_fees:
            queued = await self._outbid(queued)
        if outcome is None:
            outcome = await self._send(queued) or await self._wait(queued)
        await self._settled(queued, outcome)
        return outcome

    async def _found(self, queued: QueuedTx) -> Outcome | None:
        """What became of a transaction, or of one that it was to outbid."""
        outcome = await self._hub.outcome(queued.hash)
        if outcome is None:
            for tx_hash in await self._ledger.replaced_hashes(queued.id):
                outcome = await self._hub.outcome(tx_hash)
                if outcome is not None:
                    break
        return outcome

    async def _send(self, queued: QueuedTx) -> Outcome | None:
        """Send the stored bytes. An outcome where there is one already: its nonce may be used up."""
        try:
            await self._hub.send(queued.raw)
        except TransactionFailed:
            return await self._found(queued) or Outcome(ok=False)
        await self._ledger.tx_sent(queued.id)
        return None

    async def _outbid(self, queued: QueuedTx) -> QueuedTx:
        """Put one that pays more into its place, where it pays too little to be mined now."""
        if not isinstance(self._hub, FeeRaiser):
            return queued
        higher = await self._hub.raised(queued.raw)
        if higher is None:
            return queued
        tx_hash, raw = higher
        return await self._ledger.replace_tx(queued.id, tx_hash=tx_hash, raw=raw)

    async def _settled(self, queued: QueuedTx, outcome: Outcome) -> bool:
        """Write down what became of a transaction, once that can't change any more; whether it can't."""
        if not outcome.final:
            await self._ledger.tx_sent(queued.id)
            return False
        await self._ledger.tx_settled(
            queued.id,
            ok=outcome.ok,
            detail="" if outcome.ok else "reverted, or its nonce was used by another",
            claimed=outcome.claimed,
        )
        return True

    async def _wait(self, queued: QueuedTx) -> Outcome:
        pause_s = _POLL_FIRST_S
        send_at = trio.current_time() + _RESEND_S
        with trio.move_on_after(self._timeout_s):
            while True:
                outcome = await self._found(queued)
                if outcome is None and trio.current_time() >= send_at:
                    outcome = await self._send(queued)
                    send_at = trio.current_time() + _RESEND_S
                if outcome is not None:
                    return outcome
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_MOST_S)
        raise SettlementPending(
            f"the {queued.kind} transaction 0x{queued.hash.hex()} was not mined within {self._timeout_s:g} s; it is on "
            "disk and is sent again by the next payment or start"
        )
