"""The checkpoint: vouchers turned into money on chain, many channels in one transaction, channels left open."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn

import trio

from p2pcompute.errors import ChainError, DiskFull
from p2pcompute_protocols.ids import ChannelId

from ._api import MAX_BATCH, ChannelIn, Claim, ClaimRow, Hub, PayeeLedger
from ._outbox import Outbox

__all__ = ["Settler"]

CHECK_S: Final = 30.0  # between two looks at what is unclaimed
CLOSING_S: Final = 12 * 3_600  # a channel that can be closed within this time is claimed at once
_log = logging.getLogger("p2pcompute.payments")


class Settler:
    """Claims what vouchers are worth, at shutdown, before channels close, and when too much is unclaimed.

    Args:
        ledger: see `PayeeLedger`.
        hub: the payee's view of the hub.
        outbox: of the same account.
        cap_uusd: unclaimed value above which a checkpoint is due.
        clock_ms: UNIX time in milliseconds.
    """

    def __init__(
        self,
        *,
        ledger: PayeeLedger,
        hub: Hub,
        outbox: Outbox,
        cap_uusd: int,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._outbox = outbox
        self._cap_uusd = cap_uusd
        self._clock_ms = clock_ms

    async def _unclaimed(self) -> list[ChannelIn]:
        return [row for row in await self._ledger.channels_in() if row.unclaimed_uusd > 0]

    async def exposure_uusd(self) -> int:
        """What a checkpoint would bring now."""
        return sum(row.unclaimed_uusd for row in await self._unclaimed())

    async def is_due(self) -> bool:
        """Whether the cap is passed, or a channel with unclaimed value is closing."""
        rows = await self._unclaimed()
        soon_s = self._clock_ms() // 1000 + CLOSING_S
        return sum(row.unclaimed_uusd for row in rows) > self._cap_uusd or any(
            0 < row.close_at_s < soon_s for row in rows
        )

    async def checkpoint(self) -> dict[ChannelId, int]:
        """Claim every channel with unclaimed value, in batches of `MAX_BATCH`.

        A crash at any point loses nothing: the signed batch is on disk before it is sent, and a voucher that counted
        already brings nothing a second time.

        Returns:
            The total ever claimed on chain, in micro-USD, for each channel that was claimed.

        Raises:
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        await self._outbox.settle()
        claimed: dict[ChannelId, int] = {}
        rows = await self._unclaimed()
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
        state = await self._hub.channel(row.channel)
        return await self._ledger.set_chain_in(
            row.channel,
            deposit_uusd=state.deposit_uusd,
            claimed_uusd=state.claimed_uusd,
            close_at_s=state.close_at_s,
        )

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Checkpoint whenever it is due, until cancelled. An endpoint or a disk that fails for now is tried again
        later."""
        task_status.started()
        while True:
            try:
                for row in await self._unclaimed():
                    await self._refresh(row)  # sees requests to close in time
                if await self.is_due():
                    await self.checkpoint()
            except (ChainError, DiskFull) as exc:
                _log.warning("no checkpoint now, trying again in %g s: %s", CHECK_S, exc)
            await trio.sleep(CHECK_S)


def _claim_row(row: ChannelIn) -> ClaimRow:
    assert row.memo is not None
    assert row.signature is not None
    return ClaimRow(
        payer=row.payer, signer=row.signer, amount_uusd=row.best_uusd, memo=row.memo, signature=row.signature
    )
