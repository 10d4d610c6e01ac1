"""The ledger's part about consents to close a channel: signed once nothing is under way, and then nothing more is.

The row of a consent is the line that a payee must not cross: while it is there, no voucher is taken on its channel and
no agreement is entered into that is paid over it. It is checked in the same transaction as either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from p2pcompute.errors import ChannelBusy, VoucherRefused
from p2pcompute_protocols.ids import ChannelId
from p2pcompute_protocols.money import usd

from ._channels import need_in, refuse_closing
from ._database import Transaction
from ._rows import ConsentRow

__all__ = ["ConsentsMixin"]

_CONSENTS = "SELECT channel, epoch, amount_uusd, deadline_s, signature FROM consents"

T = TypeVar("T")


def _consent(tx: Transaction, channel: ChannelId) -> ConsentRow | None:
    row = tx.one(f"{_CONSENTS} WHERE channel = :channel", channel=channel)
    return None if row is None else ConsentRow._make(row)


def _check(tx: Transaction, channel: ChannelId, amount_uusd: int, recent_ms: int) -> None:
    row = need_in(tx, channel)
    if tx.one(
        "SELECT 1 FROM agreements WHERE channel = :channel AND state = 'open' AND role = 'provider'", channel=channel
    ):
        raise ChannelBusy("work that is paid over the channel is under way; ask again when it has ended")
    if row.unpaid_pusd and tx.one(
        "SELECT 1 FROM agreements WHERE channel = :channel AND role = 'provider' AND total_pusd > 0"
        " AND deadline_ms >= :recent_ms",
        channel=channel,
        recent_ms=recent_ms,
    ):
        raise ChannelBusy(
            f"work of {usd(row.owed_uusd - row.paid_uusd)} is unpaid on the channel; pay it, or ask again a day "
            "after it"
        )
    if row.held_uusd > row.paid_uusd:
        # A deposit that comes to count meanwhile would pay for work, and go back to the payer with the closing.
        raise VoucherRefused(
            f"a voucher of {usd(row.held_uusd)} is held on the channel, and {usd(row.paid_uusd)} of it are covered; "
            "fund it, or ask the hub to close it"
        )
    if row.paid_uusd != amount_uusd:
        raise VoucherRefused(f"{usd(row.paid_uusd)} are paid on the channel, and not {usd(amount_uusd)}")


class ConsentsMixin:
    """Methods of `Ledger` about consents; see there for what holds for all of them.

    Attributes:
        closings: how many consents were seen to be over since the ledger was opened. What was read of the chain while
            it grew may be of a channel as it was before its closing.
    """

    closings: int

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _look(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def consent(self, channel: ChannelId) -> ConsentRow | None:
        """The consent that is out for a channel, if any."""
        return await self._look(lambda tx: _consent(tx, channel))

    async def consents(self) -> list[ConsentRow]:
        """All that are out, those that are over first."""
        return await self._read(
            lambda tx: [ConsentRow._make(row) for row in tx.all(f"{_CONSENTS} ORDER BY deadline_s, channel")]
        )

    async def check_consent(self, channel: ChannelId, *, amount_uusd: int, recent_ms: int = 0) -> None:
        """Raise what `give_consent` would for what lies on disk, before anything is asked of the chain.

        Raises:
            ChannelBusy, VoucherRefused: see there.
        """
        await self._look(lambda tx: _check(tx, channel, amount_uusd, recent_ms))

    async def give_consent(
        self,
        channel: ChannelId,
        *,
        epoch: int,
        amount_uusd: int,
        deadline_s: int,
        renew_before_s: int,
        recent_ms: int = 0,
        sign: Callable[[int, int, int], bytes],
    ) -> ConsentRow:
        """Sign that a channel on which we are paid may be closed, and store that before anybody sees it.

        `sign` gets epoch, amount and deadline and gives the signature; it is called inside of the transaction. One that
        is out already for the same epoch is given again, or signed anew where its deadline is before `renew_before_s`.
        Work that is unpaid stands against it where an agreement under which any was done ran at `recent_ms` (UNIX
        milliseconds) or later.

        Raises:
            ChannelBusy: an agreement over the channel is open, or recent work is unpaid; nothing was signed.
            VoucherRefused: what we are paid on it is not `amount_uusd`; nothing was signed.
            ChannelClosing: a consent of another epoch is out.
        """

        def work(tx: Transaction) -> ConsentRow:
            _check(tx, channel, amount_uusd, recent_ms)
            out = _consent(tx, channel)
            if out is not None:
                if out.epoch != epoch:
                    refuse_closing(tx, channel)
                if out.deadline_s >= renew_before_s:
                    return out
            latest_s = deadline_s if out is None else max(deadline_s, out.deadline_s)
            signature = sign(epoch, amount_uusd, latest_s)
            tx.emit(
                "consent_given",
                channel=channel,
                epoch=epoch,
                amount_uusd=amount_uusd,
                deadline_s=latest_s,
                signature=signature,
            )
            given = _consent(tx, channel)
            assert given is not None
            return given

        return await self._write(work)

    async def end_consent(self, channel: ChannelId, *, epoch: int) -> None:
        """The consent of this epoch can close nothing any more: the channel was closed, or it is too late for that.
        It counts as a closing from the call on."""
        self.closings += 1

        def work(tx: Transaction) -> None:
            out = _consent(tx, channel)
            if out is not None and out.epoch == epoch:
                tx.emit("consent_ended", channel=channel)

        await self._write(work)
