"""The checkpoint: vouchers turned into money on chain, many channels in one transaction, channels left open."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

import trio

from p2pcompute.errors import ChainError, DiskFull
from p2pcompute_protocols.ids import ChannelId

from ._api import MAX_BATCH, ChannelIn, Claim, ClaimRow, GasMeter, GasQuote, Hub, PayeeLedger, read_in
from ._outbox import Outbox
from ._settle_policy import SettlePolicy, rows_due, rows_worth_it

__all__ = ["Settler"]

CHECK_S: Final = 30.0  # between two looks at what is unclaimed
_MOST_CLOSING: Final = 64  # channels with a consent out that a round reads
_MOST_UNCOVERED: Final = 16  # channels with a voucher above a deposit that is claimed, likewise
_SEEN_S: Final = 600  # for so long is a closing looked for after the consent's deadline
_log = logging.getLogger("p2pcompute.payments")


class Settler:
    """Claims what vouchers are worth, at shutdown, before channels close, and when enough is unclaimed.

    Args:
        ledger: see `PayeeLedger`.
        hub: the payee's view of the hub; one that is a `GasMeter` has gas weighed against what a claim brings.
        outbox: of the same account.
        cap_uusd: unclaimed value above which a checkpoint is due; short for a policy with nothing else said.
        policy: when a checkpoint is due; takes the place of `cap_uusd`.
        clock_ms: UNIX time in milliseconds.

    Raises:
        ValueError: neither `cap_uusd` nor `policy` is given.
    """

    def __init__(
        self,
        *,
        ledger: PayeeLedger,
        hub: Hub,
        outbox: Outbox,
        cap_uusd: int | None = None,
        policy: SettlePolicy | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        if policy is None:
            if cap_uusd is None:
                raise ValueError("a settler needs a policy, or a cap at least")
            policy = SettlePolicy(cap_uusd=cap_uusd)
        self._ledger = ledger
        self._hub = hub
        self._outbox = outbox
        self._policy = policy
        self._clock_ms = clock_ms

    async def _unclaimed(self) -> list[ChannelIn]:
        return [row for row in await self._ledger.channels_in() if row.unclaimed_uusd > 0]

    async def _quote(self) -> GasQuote | None:
        return await self._hub.gas_quote() if isinstance(self._hub, GasMeter) else None

    async def exposure_uusd(self) -> int:
        """What a checkpoint would bring now."""
        return sum(row.unclaimed_uusd for row in await self._unclaimed())

    async def _due(self) -> list[ChannelIn]:
        rows = await self._unclaimed()
        quote = await self._quote() if rows else None
        return rows_due(rows, now_s=self._clock_ms() // 1000, policy=self._policy, quote=quote)

    async def is_due(self) -> bool:
        """Whether enough is unclaimed, or a channel with unclaimed value is closing; see `SettlePolicy`."""
        return bool(await self._due())

    async def checkpoint(self) -> dict[ChannelId, int]:
        """Claim every channel with unclaimed value, in batches of `MAX_BATCH`, whatever gas costs.

        A crash at any point loses nothing: the signed batch is on disk before it is sent, and a voucher that counted
        already brings nothing a second time.

        Returns:
            The total ever claimed on chain, in micro-USD, for each channel that was claimed.

        Raises:
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        await self._outbox.look()
        return await self._claim(await self._unclaimed())

    async def last_checkpoint(self) -> dict[ChannelId, int]:
        """The checkpoint of a node that stops: of the channels that bring more than their gas costs, and none while
        gas costs far more than usual and no channel's window is running out. Vouchers that are left are claimed by a
        later run. Gives and raises what `checkpoint` does."""
        await self._outbox.look()
        rows, quote = await self._unclaimed(), await self._quote()
        if self._policy.is_spike(quote):
            return await self._claim(rows_due(rows, now_s=self._clock_ms() // 1000, policy=self._policy, quote=quote))
        return await self._claim(rows_worth_it(rows, self._policy, quote))

    async def _claim(self, rows: Sequence[ChannelIn]) -> dict[ChannelId, int]:
        if rows:
            # A claim that is under way may be theirs already, and wait for fees to come down.
            await self._outbox.settle(raise_fees=True)
        claimed: dict[ChannelId, int] = {}
        for first in range(0, len(rows), MAX_BATCH):
            batch = rows[first : first + MAX_BATCH]
            # Somebody else may have claimed meanwhile: a stale row would cost gas for nothing.
            batch = [row for row in [await self._refresh(row) for row in batch] if row.unclaimed_uusd > 0]
            if not batch:
                continue
            outcome = await self._outbox.run(
                Claim(payee=self._hub.account, rows=tuple(map(_claim_row, batch))),
                rows=[(row.channel, row.best_uusd) for row in batch],
            )
            claimed.update(outcome.claimed)
        return claimed

    async def _refresh(self, row: ChannelIn) -> ChannelIn:
        return await read_in(self._ledger, self._hub, row.channel)

    async def round(self) -> dict[ChannelId, int]:
        """One look: send again what the chain has dropped or taken back, read the channels that a voucher is held
        for or that may be closed by our consent, and claim what is due. Gives and raises what `checkpoint` does.

        Of channels whose deposit is claimed, with a voucher above it, a few are read, by chance: their payers may never
        come back to say that more has come in, and anybody can have many of them.

        Channels of claims that are not settled are read as well: a reorganisation may have taken the claim back.
        """
        under_way = await self._outbox.channels_under_way()
        await self._outbox.look()
        closing = await self._closing()
        rows = await self._ledger.channels_in()
        uncovered = [row.channel for row in rows if row.held_uusd > row.paid_uusd and not row.unclaimed_uusd]
        looked = set(random.sample(uncovered, min(len(uncovered), _MOST_UNCOVERED)))
        for row in rows:
            # One that was closed holds nothing more, so it is not read again.
            may_close = row.channel in closing and row.deposit_uusd > row.claimed_uusd
            if row.unclaimed_uusd > 0 or row.channel in under_way or may_close or row.channel in looked:
                await self._refresh(row)  # sees requests to close in time
        return await self._claim(await self._due())

    async def _closing(self) -> set[ChannelId]:
        """Channels that may be closed by our consent now, those first that may be for the shortest time."""
        now_s = self._clock_ms() // 1000
        out = [one.channel for one in await self._ledger.consents() if one.deadline_s + _SEEN_S >= now_s]
        return set(out[:_MOST_CLOSING])

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """A round every 30 s, until cancelled. An endpoint or a disk that fails for now is tried again later."""
        task_status.started()
        while True:
            try:
                await self.round()
            except (ChainError, DiskFull) as exc:
                _log.warning("no checkpoint now, trying again in %g s: %s", CHECK_S, exc)
            await trio.sleep(CHECK_S)


def _claim_row(row: ChannelIn) -> ClaimRow:
    assert row.memo is not None
    assert row.signature is not None
    return ClaimRow(
        payer=row.payer, signer=row.signer, amount_uusd=row.best_uusd, memo=row.memo, signature=row.signature
    )
