"""Transactions that survive a crash: signed and stored, then sent, then settled; one account, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from p2pcompute.errors import TransactionFailed
from p2pcompute_protocols.ids import ChannelId

from ._api import Approve, Deposit, Hub, HubCall, Outcome, QueuedTx, SettlementPending, TxLedger

__all__ = ["Outbox"]

MINED_TIMEOUT_S: Final = 120.0
_POLL_FIRST_S: Final = 0.05
_POLL_MOST_S: Final = 2.0


class Outbox:
    """The only sender of an account's transactions, so that nonces never collide.

    The signed bytes are on disk before they are sent. After a crash the same bytes are sent again, which the chain
    takes at most once; a transaction is never signed anew for a nonce that may still be mined.

    Args:
        ledger: see `TxLedger`.
        hub: the account's view of the hub.
        timeout_s: how long to wait for a transaction to be mined.
    """

    def __init__(self, *, ledger: TxLedger, hub: Hub, timeout_s: float = MINED_TIMEOUT_S) -> None:
        self._ledger = ledger
        self._hub = hub
        self._timeout_s = timeout_s
        self._lock = trio.Lock()

    async def settle(self) -> None:
        """Send again what was under way before, and wait for it. Call it once after a start.

        Raises:
            SettlementPending: something was not mined in time.
            ChainError: the endpoint.
        """
        async with self._lock:
            await self._settle()

    async def _settle(self) -> None:
        for queued in await self._ledger.unsettled(self._hub.account):
            await self._deliver(queued)

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
        async with self._lock:
            await self._settle()
            sign = await self._hub.signing(call)
            queued = await self._ledger.queue_tx(
                self._hub.account,
                kind=type(call).__name__.lower(),
                chain_nonce=await self._hub.nonce(),
                sign=sign,
                rows=rows,
            )
            outcome = await self._deliver(queued)
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

    async def _deliver(self, queued: QueuedTx) -> Outcome:
        # It may have been mined before a crash.
        outcome = await self._hub.outcome(queued.hash)
        if outcome is None:
            try:
                await self._hub.send(queued.raw)
            except TransactionFailed as exc:
                outcome = await self._hub.outcome(queued.hash) or Outcome(ok=False)
                await self._ledger.tx_settled(
                    queued.id, ok=outcome.ok, detail="" if outcome.ok else str(exc), claimed=outcome.claimed
                )
                return outcome
            await self._ledger.tx_sent(queued.id)
            outcome = await self._wait(queued)
        await self._ledger.tx_settled(
            queued.id, ok=outcome.ok, detail="" if outcome.ok else "reverted", claimed=outcome.claimed
        )
        return outcome

    async def _wait(self, queued: QueuedTx) -> Outcome:
        pause_s = _POLL_FIRST_S
        with trio.move_on_after(self._timeout_s):
            while True:
                outcome = await self._hub.outcome(queued.hash)
                if outcome is not None:
                    return outcome
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_MOST_S)
        raise SettlementPending(
            f"the {queued.kind} transaction 0x{queued.hash.hex()} was not mined within {self._timeout_s:g} s; it is on "
            "disk and is sent again by the next payment or start"
        )
