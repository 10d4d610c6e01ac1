"""Being paid: the payee's side of channel streams, and who is waiting for money."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from p2pcompute._dialogue import FRAME_TIMEOUT_S, STREAM_FAULTS, Dialogue
from p2pcompute._log import log_event
from p2pcompute.errors import ChainError, ChannelChanged, ChannelClosing, DiskFull, VoucherRefused
from p2pcompute_protocols._binding import SignerBinding, WalletSigner, verify_binding
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    CloseAsk,
    ConsentFrame,
    Domain,
    Voucher,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
    channel_id,
    recover_signer,
)
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.limits import MAX_FRAME_BYTES, MAX_TEXT
from p2pcompute_protocols.money import usd
from p2pcompute_protocols.wire import Record

from ._api import ChannelIn, Hub, PayeeLedger, Stream, payee_view
from ._consents import Consents, NoConsent

__all__ = ["Payee", "PayeeCounters"]

HELLO_TIMEOUT_S: Final = 10.0  # from the opening of a stream to its hello
_log = logging.getLogger("p2pcompute.payments")

IDLE_TIMEOUT_S: Final = 900.0  # between vouchers; a payer that needs longer connects again
MAX_REFUSALS: Final = 16  # on one stream, then it is closed
CHAIN_READ_S: Final = 0.5  # at most one read of the chain per channel in this time
CHAIN_TTL_S: Final = 600.0  # what was read of a channel counts for so long; closing one takes a day
CLOSING_MARGIN_S: Final = 3_600  # a channel that can be closed this soon takes no more vouchers
MAX_LEDGER_UUSD: Final = (2**63 - 1) // 1_000_000  # owed amounts are kept in pico-USD in 64 bits
_MAX_TRACKED_CHANNELS: Final = 4_096
_NO_MEMO: Final = bytes(32)

T = TypeVar("T")


class _Refuse(Exception):
    """A voucher or a hello is not taken; the dialogue may go on."""

    def __init__(self, code: WireCode, detail: str, *, best_uusd: int = 0, deposit_uusd: int | None = None) -> None:
        self.code = code
        self.detail = detail
        self.best_uusd = best_uusd
        self.deposit_uusd = deposit_uusd
        super().__init__(detail)

    def message(self) -> VoucherRefusal:
        return VoucherRefusal(
            code=int(self.code),
            detail=self.detail[:MAX_TEXT],
            best_uusd=self.best_uusd,
            deposit_uusd=self.deposit_uusd,
        )


class _Uncovered(_Refuse):
    """The chain has just said that the deposit does not cover the voucher; the channel's row as it is now."""

    def __init__(self, row: ChannelIn, detail: str) -> None:
        self.row = row
        super().__init__(WireCode.UNFUNDED, detail, best_uusd=row.paid_uusd, deposit_uusd=row.deposit_uusd)


@dataclass(slots=True)
class PayeeCounters:
    """What came in since the start. `refused` counts by wire code, protocol faults and stalls among them."""

    streams: int
    vouchers: int
    refused: Counter[WireCode]
    unrooted: int = 0  # vouchers taken whose memo is not the root of receipts that we issued


@dataclass(frozen=True, slots=True)
class _Covered:
    first: int
    receipts: tuple[tuple[TaskId, int], ...]


@dataclass(slots=True)
class _Session:
    peer: PeerId
    binding: SignerBinding
    channel: ChannelId
    row: ChannelIn | None  # None until there is an agreement or money behind the channel
    blamed: bool = False  # a failure of this stream is counted; more of them would only fill the disk
    uncovered_uusd: int = 0  # of a voucher of this stream that is kept above the deposit


class Payee:
    """Takes vouchers for one account.

    A voucher is on disk before its ack is sent. One that is forged, not above the best one, or of another channel,
    chain or hub is refused with a typed code and changes nothing. One above the channel's deposit is refused as well,
    but kept as the best one, and counts up to the deposit: its payer may not come back when more of that counts. It
    is not kept where one above the deposit is held already that would pay for all that is owed.

    Args:
        ledger: see `PayeeLedger`.
        hub: for the deposits of channels.
        payee: the account that is paid.
        network: the overlay network's ID, part of every binding.
        signer: the payee's own key, to consent to closings; None consents to none.
        clock_ms: UNIX time in milliseconds.
    """

    def __init__(
        self,
        *,
        ledger: PayeeLedger,
        hub: Hub,
        payee: Address,
        network: str,
        signer: WalletSigner | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._payee = payee
        self._network = network
        self._clock_ms = clock_ms
        self._domain = Domain(chain_id=hub.terms.chain_id, contract=Address(hub.terms.hub))
        self._waiting: dict[ChannelId, trio.Event] = {}
        self._read_at: dict[ChannelId, float] = {}  # since when what the ledger has of a channel's chain counts
        self._asked_at: dict[ChannelId, float] = {}  # when the chain was last asked about it, successful or not
        self._kept: dict[ChannelId, ChannelIn] = {}  # as of the last voucher of each; the ledger has the last word
        self._consents = Consents(
            ledger=ledger,
            hub=hub,
            signer=signer,
            domain=self._domain,
            clock_ms=clock_ms,
            forget=self._forget_read,
        )
        self.counters = PayeeCounters(streams=0, vouchers=0, refused=Counter())

    async def paid_uusd(self, channel: ChannelId) -> int:
        """What is paid on a channel; 0 for one that is not known."""
        row = await self._ledger.channel_in(channel)
        return 0 if row is None else row.paid_uusd

    async def unpaid_pusd(self, channel: ChannelId) -> int:
        """Work receipted on a channel and not paid, in pico-USD."""
        row = await self._ledger.channel_in(channel)
        return 0 if row is None else row.unpaid_pusd

    async def check_open(self, channel: ChannelId) -> None:
        """Raise `ChannelClosing` where we have consented to close a channel, so that no work may begin that is to be
        paid over it."""
        await self._consents.check(channel)

    async def wait_paid(self, channel: ChannelId, at_least_uusd: int) -> int:
        """Wait until at least this much is paid on a channel, and give what is. Cancel it to stop waiting."""
        while True:
            # The event is taken before the amount is read, so a voucher in between is not missed.
            event = self._waiting.setdefault(channel, trio.Event())
            paid = await self.paid_uusd(channel)
            if paid >= at_least_uusd:
                return paid
            await event.wait()

    async def wait_settled(self, channel: ChannelId) -> int:
        """Wait until everything receipted on a channel up to now is paid, and give what is."""
        row = await self._ledger.channel_in(channel)
        return await self.wait_paid(channel, 0 if row is None else row.owed_uusd)

    def _wake(self, channel: ChannelId) -> None:
        event = self._waiting.pop(channel, None)
        if event is not None:
            event.set()

    async def serve_channel(self, stream: Stream) -> None:
        """The handler of the channel protocol: serves one stream to its end, and does not raise for what a peer does.

        Raises:
            StorageError: the ledger failed or is damaged. A full disk is no such case: vouchers are refused until
                there is room.
        """
        self.counters.streams += 1
        connection = ChannelConnection(Role.PROVIDER)
        try:
            await self._serve(connection, stream)
        except RemoteProtocolError as exc:
            self.counters.refused[exc.code] += 1
            await self._note_failure(stream.peer_id)
            await _farewell(stream, _Refuse(exc.code, str(exc), best_uusd=connection.best_uusd))
        except STREAM_FAULTS:
            pass  # whoever pays comes back and syncs

    async def _note_failure(self, peer: PeerId) -> None:
        with suppress(DiskFull):  # the count matters less than the answer
            await self._ledger.note_failure(peer)

    async def _blame(self, session: _Session) -> None:
        if not session.blamed:
            session.blamed = True
            await self._note_failure(session.peer)

    async def _serve(self, connection: ChannelConnection, stream: Stream) -> None:
        dialogue = Dialogue(connection, stream, send_s=FRAME_TIMEOUT_S)
        hello = await dialogue.receive(stall_s=HELLO_TIMEOUT_S)
        if isinstance(hello, StreamEnded):
            return
        assert isinstance(hello, ChannelHello)
        try:
            session = await self._greet(stream.peer_id, hello)
        except _Refuse as refusal:
            self.counters.refused[refusal.code] += 1
            _blame(stream, refusal)
            await dialogue.send(refusal.message())
            return
        await dialogue.send(_sync(session.row))
        self._wake(session.channel)  # a payer that was shown its voucher does not send it, and it may count by now
        refusals = 0
        while refusals < MAX_REFUSALS:
            message = await dialogue.receive(stall_s=IDLE_TIMEOUT_S)
            if isinstance(message, StreamEnded):
                return
            try:
                try:
                    answer = await self._answer(session, message)
                except DiskFull as exc:
                    _log.warning("a voucher is refused: %s", exc)
                    raise _Refuse(
                        WireCode.INTERNAL,
                        "no room to store it; try again later",
                        best_uusd=connection.best_uusd,
                    ) from exc
            except _Refuse as refusal:
                refusals += 1
                self.counters.refused[refusal.code] += 1
                _blame(stream, refusal)
                await dialogue.send(refusal.message())
            else:
                await dialogue.send(answer)
                if isinstance(answer, ConsentFrame):
                    return

    async def _answer(self, session: _Session, message: Record) -> VoucherAck | ConsentFrame:
        if isinstance(message, CloseAsk):
            return await self._consent(session, message)
        assert isinstance(message, VoucherFrame)
        await self._take(session, message)
        return VoucherAck(amount_uusd=message.amount_uusd)

    async def _consent(self, session: _Session, ask: CloseAsk) -> ConsentFrame:
        """Consent to close the session's channel, on disk before it is sent; raises `_Refuse`."""
        channel = session.channel
        row = await self._ledger.channel_in(channel)
        best = row.paid_uusd if row is not None else 0
        if ask.amount_uusd > MAX_LEDGER_UUSD:
            raise _Refuse(WireCode.OVERSIZED, "above what this node keeps account of", best_uusd=best)
        if row is None or row.paid_uusd < ask.amount_uusd:
            # The chain may know of more than we do; a stranger's channel gets its row where there is money behind it.
            try:
                self._consents.admit(channel, known=row is not None)
            except NoConsent as exc:
                raise _Refuse(exc.code, str(exc), best_uusd=best) from exc
            row = await self._cover(session, None, ask.amount_uusd)
            best = row.paid_uusd
        try:
            given = await self._consents.give(channel, amount_uusd=ask.amount_uusd)
        except NoConsent as exc:
            raise _Refuse(exc.code, str(exc), best_uusd=best, deposit_uusd=row.deposit_uusd) from exc
        return ConsentFrame(epoch=given.epoch, deadline_s=given.deadline_s, signature=given.signature)

    async def _greet(self, peer: PeerId, hello: ChannelHello) -> _Session:
        if hello.chain != self._hub.terms:
            raise _Refuse(WireCode.CHAIN_MISMATCH, "another chain, hub or token")
        if hello.payee != self._payee:
            raise _Refuse(WireCode.WRONG_PEER, "the channel is to another account")
        binding = hello.payer
        try:
            verify_binding(binding, network=self._network, peer_id=peer, now_ms=self._clock_ms())
        except LocalProtocolError as exc:
            raise _Refuse(exc.code, str(exc)) from exc
        channel = channel_id(Address(binding.owner), self._payee, Address(binding.signer))
        row = await self._ledger.channel_in(channel)
        return _Session(peer=peer, binding=binding, channel=channel, row=row)

    async def _take(self, session: _Session, frame_: VoucherFrame) -> None:
        """Verify a voucher and store it; raises `_Refuse`. Cheap checks first, the chain last."""
        amount, channel = frame_.amount_uusd, session.channel
        kept = self._kept.get(channel)
        if kept is not None and not self._is_covered(kept, amount):
            kept = None
        row = kept if kept is not None else await self._ledger.channel_in(channel)
        best = row.paid_uusd if row is not None else 0
        held = row.held_uusd if row is not None else 0
        if amount > MAX_LEDGER_UUSD:
            raise _Refuse(WireCode.OVERSIZED, "above what this node keeps account of", best_uusd=best)
        try:
            voucher = Voucher(channel=channel, amount_uusd=amount, memo=frame_.memo)
            signer = recover_signer(self._domain, voucher, frame_.signature)
        except LocalProtocolError as exc:
            await self._blame(session)
            raise _Refuse(WireCode.BAD_SIGNATURE, str(exc), best_uusd=best) from exc
        if signer != session.binding.signer:
            await self._blame(session)
            raise _Refuse(WireCode.BAD_SIGNATURE, "not signed by the channel's signer", best_uusd=best)
        if amount <= held:
            if best == held and amount != session.uncovered_uusd:
                raise _Refuse(WireCode.BAD_VOUCHER, f"not above the {usd(best)} held", best_uusd=best)
            # The one held is worth no less on chain: it pays for this one, as far as the deposit covers it.
            if amount > best:
                await self._covered_row(session, row, amount)
            return
        stored, short = None, None
        if kept is not None:
            with suppress(ChannelChanged, ChannelClosing):  # the look below says what has become of the channel
                stored = await self._store(session, frame_, kept)
        if stored is None:
            if kept is not None:
                row = await self._ledger.channel_in(channel)
            try:
                row = await self._covered_row(session, row, amount)
            except _Uncovered as exc:
                row, short = exc.row, exc
                if row.paid_uusd < row.held_uusd and row.owed_uusd <= row.held_uusd:
                    raise  # signing costs nothing, the disk does: the one above the deposit that is held is enough
            try:
                stored = await self._store(session, frame_, row)
            except ChannelChanged as exc:
                raise _Refuse(WireCode.INTERNAL, "the deposit changes now; try again", best_uusd=best) from exc
            except ChannelClosing as exc:
                raise _Refuse(WireCode.CLOSING, str(exc), best_uusd=row.paid_uusd) from exc
        # Money is not refused for a memo: what it proves is of use to the payee, and the payer loses nothing by it.
        self.counters.unrooted += frame_.memo != _NO_MEMO and not stored.rooted_leaves
        self._wake(channel)
        if _log.isEnabledFor(logging.DEBUG):
            so_far = f"{usd(stored.paid_uusd)} on channel {channel.hex()[:8]} so far"
            log_event(
                _log,
                "voucher",
                f"voucher of …{session.peer[-8:]}: {so_far}",
                level=logging.DEBUG,
                peer=session.peer,
                channel=channel.hex(),
                paid_uusd=stored.paid_uusd,
            )
        if short is not None:
            session.uncovered_uusd = amount
            raise _Uncovered(stored, short.detail)

    def _is_covered(self, row: ChannelIn, amount_uusd: int) -> bool:
        """Whether a row says by itself that a voucher would be taken; `_cover` finds out where it does not."""
        return self._is_fresh(row.channel) and row.held_uusd < amount_uusd <= row.deposit_uusd and not row.close_at_s

    def _is_fresh(self, channel: ChannelId) -> bool:
        """Whether what the ledger has of a channel's chain counts."""
        read_at = self._read_at.get(channel)
        return read_at is not None and trio.current_time() - read_at < CHAIN_TTL_S

    async def _store(self, session: _Session, frame_: VoucherFrame, row: ChannelIn) -> ChannelIn:
        """Store a voucher, which counts as far as `row` covers it; raises `_Refuse`, and what `take_voucher` raises
        where the channel is not as `row` says."""
        channel = session.channel
        self._kept.pop(channel, None)
        try:
            stored = await self._ledger.take_voucher(
                channel,
                amount_uusd=frame_.amount_uusd,
                memo=frame_.memo,
                signature=frame_.signature,
                peer=session.peer,
                covered=_covered(frame_),
                checked=row,
            )
        except VoucherRefused as exc:
            # Another stream of the same payer was faster, or the chain knows of more than we did.
            raise _Refuse(WireCode.BAD_VOUCHER, str(exc), best_uusd=row.paid_uusd) from exc
        _remember(self._kept, channel, stored)
        self.counters.vouchers += 1
        return stored

    async def _covered_row(self, session: _Session, row: ChannelIn | None, amount_uusd: int) -> ChannelIn:
        """As `_cover`, where no consent to close the channel is out."""
        if row is not None and row.is_closing:
            try:
                await self._consents.check(session.channel)
            except ChannelClosing as exc:
                raise _Refuse(WireCode.CLOSING, str(exc), best_uusd=row.paid_uusd) from exc
        return await self._cover(session, row, amount_uusd)

    async def _cover(self, session: _Session, row: ChannelIn | None, amount_uusd: int) -> ChannelIn:
        """The channel's row, with a deposit that covers `amount_uusd`; raises `_Refuse` with UNFUNDED, `_Uncovered`
        where only the deposit is too low."""
        channel = session.channel
        now = trio.current_time()
        if row is None or not self._is_fresh(channel) or amount_uusd > row.deposit_uusd:
            asked_at = self._asked_at.get(channel)
            if asked_at is not None and now - asked_at < CHAIN_READ_S:
                raise _unfunded(row, "the deposit was looked up a moment ago; try again shortly")
            _remember(self._asked_at, channel, now)
            closings = self._ledger.closings
            try:
                state = await payee_view(self._hub, channel)
            except ChainError as exc:
                self._asked_at.pop(channel, None)
                raise _Refuse(WireCode.INTERNAL, "the chain can't be asked now; try again later") from exc
            self._check_closings(closings, row)
            if row is None:
                if state.deposit_uusd <= state.claimed_uusd:
                    raise _unfunded(None, "the channel holds no money")
                # Only now: a row for every stranger's hello would let strangers fill the disk.
                row = await self._ledger.open_channel_in(
                    channel,
                    payer=Address(session.binding.owner),
                    signer=Address(session.binding.signer),
                    peer=session.peer,
                )
            row = await self._ledger.set_chain_in(
                channel,
                deposit_uusd=state.deposit_uusd,
                claimed_uusd=state.claimed_uusd,
                close_at_s=state.close_at_s,
            )
            self._check_closings(closings, row)
            _remember(self._read_at, channel, now)  # not before: another stream would take the old row for a new one
            self._wake(channel)  # the chain may know of more than we did
        if row.close_at_s and row.close_at_s - self._clock_ms() // 1000 < CLOSING_MARGIN_S:
            raise _unfunded(row, "the channel is about to close; fund it again to keep it open")
        if amount_uusd > row.deposit_uusd:
            raise _Uncovered(row, f"the channel holds {usd(row.deposit_uusd)}")
        return row

    def _check_closings(self, closings: int, row: ChannelIn | None) -> None:
        """Refuse where a channel was seen to be closed since there were so many closings: what was being read of the
        chain may be older than that, and say of a deposit that its payer has taken home."""
        if self._ledger.closings != closings:
            best = row.paid_uusd if row is not None else 0
            raise _Refuse(WireCode.INTERNAL, "a channel was closed meanwhile; try again shortly", best_uusd=best)

    def _forget_read(self, channel: ChannelId) -> None:
        self._read_at.pop(channel, None)
        self._asked_at.pop(channel, None)


def _remember(what: dict[ChannelId, T], channel: ChannelId, value: T) -> None:
    """Note something of a channel. Forgetting the oldest costs one more look at the ledger, or read of the chain."""
    what.pop(channel, None)
    if len(what) >= _MAX_TRACKED_CHANNELS:
        what.pop(next(iter(what)))
    what[channel] = value


def _unfunded(row: ChannelIn | None, detail: str) -> _Refuse:
    best, deposit = (0, 0) if row is None else (row.paid_uusd, row.deposit_uusd)
    return _Refuse(WireCode.UNFUNDED, detail, best_uusd=best, deposit_uusd=deposit)


def _sync(row: ChannelIn | None) -> ChannelSync:
    """The best voucher that counts in whole. One above the deposit is not shown: what is shown is not sent again, and
    it is by sending it again that its payer has the deposit looked up."""
    if row is None or not 0 < row.best_uusd <= row.paid_uusd:
        return ChannelSync(amount_uusd=0, memo=None, signature=None)
    return ChannelSync(amount_uusd=row.best_uusd, memo=row.memo, signature=row.signature)


def _covered(frame_: VoucherFrame) -> _Covered | None:
    if frame_.first is None or frame_.receipts is None:
        return None
    return _Covered(frame_.first, tuple((TaskId(one.task), one.index) for one in frame_.receipts))


def _blame(stream: Stream, refusal: _Refuse) -> None:
    """A signature that does not verify is the peer's own, of its binding or its voucher; all else can be honest."""
    if refusal.code is WireCode.BAD_SIGNATURE:
        stream.blame(RemoteProtocolError(refusal.detail, code=refusal.code))


async def _farewell(stream: Stream, refusal: _Refuse) -> None:
    """Say why, to a peer that broke the protocol; it may not be listening any more."""
    with trio.move_on_after(FRAME_TIMEOUT_S):
        try:
            await stream.send_all(frame(refusal.message().encode(), max_bytes=MAX_FRAME_BYTES))
        except STREAM_FAULTS:
            return
