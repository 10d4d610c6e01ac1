"""Paying: channels are funded once, and then each payment is one signed total on its way to the provider."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from p2pcompute._dialogue import FRAME_TIMEOUT_S, STREAM_FAULTS, Dialogue
from p2pcompute.errors import (
    ChainError,
    InsufficientFunds,
    PaymentError,
    RpcError,
    StreamError,
    TransactionFailed,
    VoucherRefused,
)
from p2pcompute_protocols._binding import SignerBinding, WalletSigner
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    CloseAsk,
    CloseConsent,
    ConsentFrame,
    Domain,
    ReceiptRef,
    Voucher,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
    channel_id,
    recover_closer,
    recover_signer,
    voucher_digest,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import PUSD_PER_UUSD, usd
from p2pcompute_protocols.task import ReceiptPayload

from ._api import MAX_BATCH, ChannelOutView, Dial, Fund, FundRow, Hub, PayerLedger, Stream, payee_epoch, payee_view
from ._outbox import Outbox
from ._refusals import refused_error

__all__ = ["ChannelNeed", "ChannelOut", "ChannelUnfundable", "Payer"]

ANSWER_TIMEOUT_S: Final = 30.0  # for the answer to a hello or a voucher
FUNDING_TIMEOUT_S: Final = 120.0  # for a channel's money to be seen on chain
MAX_ATTEMPTS: Final = 8  # streams or vouchers that fail in a row
_RETRY_FIRST_S: Final = 0.5
_RETRY_MOST_S: Final = 5.0
_POLL_S: Final = 0.25
_CLOSE_S: Final = 1.0  # for closing a stream on which a payment was cancelled
_TRY_AGAIN: Final = frozenset({WireCode.UNFUNDED, WireCode.INTERNAL, WireCode.BAD_VOUCHER, WireCode.CLOSING})
_ASK_AGAIN: Final = frozenset({WireCode.UNFUNDED, WireCode.INTERNAL, WireCode.PAYMENT_REQUIRED})
_ROOM_S: Final = 600.0  # for so long it counts what the chain has said of a channel
_MAX_ASKS: Final = 4  # a provider notices the end of a task a moment after its requester


class ChannelUnfundable(PaymentError):
    """The hub refuses to fund this channel, as it does one to the zero address; other channels are not touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelNeed:
    """A channel that has to cover `amount_uusd` of new work by the provider `peer`, paid to `payee`."""

    payee: Address
    peer: PeerId
    amount_uusd: int


class Payer:
    """Pays from one account, with one signer.

    Args:
        ledger: see `PayerLedger`.
        hub: the account's view of the hub.
        outbox: of the same account.
        wallet: signs vouchers; its address is the channels' signer.
        binding: ties the wallet to this node; `binding.owner` must be the hub's account.
        dial: opens a stream of the channel protocol to a peer.
    """

    def __init__(
        self,
        *,
        ledger: PayerLedger,
        hub: Hub,
        outbox: Outbox,
        wallet: WalletSigner,
        binding: SignerBinding,
        dial: Dial,
    ) -> None:
        if binding.signer != wallet.address or binding.owner != hub.account:
            raise ValueError("the binding must name the wallet as signer and the hub's account as owner")
        self.ledger = ledger
        self.hub = hub
        self.wallet = wallet
        self.binding = binding
        self.dial = dial
        self.domain = Domain(chain_id=hub.terms.chain_id, contract=Address(hub.terms.hub))
        self._outbox = outbox
        self._channels: dict[ChannelId, ChannelOut] = {}
        self._funding_lock = trio.Lock()
        self._funding = 0
        self._unfundable: dict[ChannelId, ChannelUnfundable] = {}
        self._read: dict[ChannelId, tuple[float, int]] = {}  # when its state was read since the start, see `has_room`

    @property
    def is_funding(self) -> bool:
        """Whether `open_channels` is under way."""
        return self._funding > 0

    def channel_id(self, payee: Address) -> ChannelId:
        """The ID of our channel to `payee`."""
        return channel_id(self.hub.account, payee, self.wallet.address)

    def channel(self, payee: Address, peer: PeerId) -> ChannelOut:
        """The one object for our channel to `payee`, whose node is `peer`."""
        channel = self.channel_id(payee)
        found = self._channels.get(channel)
        if found is None or found.peer != peer:
            found = self._channels[channel] = ChannelOut(self, channel, payee, peer)
        return found

    async def aclose(self) -> None:
        """Close every channel stream."""
        for channel in list(self._channels.values()):
            await channel.aclose()

    async def has_room(self, need: ChannelNeed) -> bool:
        """Whether a channel holds enough for new work to begin without a transaction: half of what that may cost,
        beside all that other open agreements may. The rest is brought in once it is needed, which it is seldom.

        What the chain said of the channel counts for ten minutes, and until this account takes something out of one.
        The chain is not asked.
        """
        channel = self.channel_id(need.payee)
        read_at, taken = self._read.get(channel, (-math.inf, 0))
        row = await self.ledger.channel_out(channel)
        if row is None or taken != self._outbox.taken or trio.current_time() - read_at >= _ROOM_S:
            return False
        return 2 * _missing_uusd(row, need.amount_uusd) <= need.amount_uusd

    async def open_channels(self, needs: Sequence[ChannelNeed], *, deposit_uusd: int = 0) -> None:
        """Fund channels so that each covers its open agreements and at least `amount_uusd` of new work.

        Runs in the background of the first chunks; `ChannelOut.pay` waits for it. A channel that has room already
        costs nothing, and calling it again after a crash does not fund twice: what was under way is settled first,
        then the chain is asked what is there.

        Args:
            needs: the channels.
            deposit_uusd: bring at least this much into the hub where more has to come in at all, so that later
                channels need one transaction and not three.

        Raises:
            InsufficientFunds: the account has not enough tokens; nothing was sent.
            SettlementPending, ChainError: see `Outbox.run`. A channel that the hub refuses to fund raises nothing
                here: the others get their money, and `ChannelOut.pay` of that one raises `ChannelUnfundable`.
        """
        self._funding += 1
        try:
            async with self._funding_lock:
                await self._open_channels(needs, deposit_uusd)
        finally:
            self._funding -= 1

    async def _open_channels(self, needs: Sequence[ChannelNeed], deposit_uusd: int) -> None:
        await self._outbox.settle()
        rows: list[FundRow] = []
        due_uusd: dict[ChannelId, int] = {}  # what is to be deposited in all
        # Two peers may name one payee: that is one channel, and one row.
        wanted: dict[ChannelId, tuple[ChannelNeed, int]] = {}
        for need in needs:
            channel = self.channel_id(need.payee)
            wanted[channel] = (need, wanted[channel][1] + need.amount_uusd if channel in wanted else need.amount_uusd)
        for channel, (need, amount_uusd) in wanted.items():
            await self.ledger.open_channel_out(channel, payee=need.payee, peer=need.peer)
            row = await self.refresh(channel)
            missing = _missing_uusd(row, amount_uusd)
            if missing > 0:
                rows.append(FundRow(payee=need.payee, signer=self.wallet.address, amount_uusd=missing))
                due_uusd[channel] = row.deposit_uusd + missing
        if not rows:
            return
        total = sum(row.amount_uusd for row in rows)
        await self._bring_in(total, deposit_uusd)
        for first in range(0, len(rows), MAX_BATCH):
            batch = rows[first : first + MAX_BATCH]
            try:
                await self._fund(batch)
            except (TransactionFailed, RpcError) as exc:
                if not _reverted(exc):
                    raise
                if len(batch) == 1:
                    self._refused_funding(batch[0], exc)
                    continue
                # One row that the hub refuses (a payee is free in a bid) undoes all of them. But an endpoint may have
                # lost sight of what was mined, and then it only looks so.
                for row_ in batch:
                    channel = self.channel_id(row_.payee)
                    left_uusd = due_uusd[channel] - (await self.refresh(channel)).deposit_uusd
                    if left_uusd <= 0:
                        continue
                    try:
                        await self._fund([replace(row_, amount_uusd=min(row_.amount_uusd, left_uusd))])
                    except (TransactionFailed, RpcError) as alone:
                        if not _reverted(alone):
                            raise
                        self._refused_funding(row_, alone)

    async def _fund(self, rows: Sequence[FundRow]) -> None:
        amounts = [(self.channel_id(row.payee), row.amount_uusd) for row in rows]
        await self._outbox.run(Fund(rows=tuple(rows)), rows=amounts)
        for channel, _ in amounts:
            self._unfundable.pop(channel, None)
            await self.refresh(channel)

    def _refused_funding(self, row: FundRow, cause: ChainError) -> None:
        self._unfundable[self.channel_id(row.payee)] = ChannelUnfundable(
            f"the channel to 0x{row.payee.hex()} can't be funded ({cause}); deal with other providers"
        )

    def check_fundable(self, channel: ChannelId) -> None:
        """Raise `ChannelUnfundable` where the last try to fund a channel was refused."""
        error = self._unfundable.get(channel)
        if error is not None:
            raise ChannelUnfundable(str(error)) from error

    async def _bring_in(self, total_uusd: int, deposit_uusd: int) -> None:
        missing = total_uusd - await self.hub.free_uusd()
        if missing <= 0:
            return
        tokens = await self.hub.tokens_uusd()
        if tokens < missing:
            raise InsufficientFunds(
                f"0x{self.hub.account.hex()} has {usd(tokens)} and {usd(missing)} are needed; bring tokens there or "
                "lower the budget"
            )
        amount = max(missing, min(deposit_uusd, tokens))
        await self._outbox.deposit(amount)

    async def refresh(self, channel: ChannelId) -> ChannelOutView:
        """Read where a channel stands on chain, and keep it."""
        taken = self._outbox.taken  # before: what is taken meanwhile may not be seen
        state = await self.hub.channel(channel)
        row = await self.ledger.set_chain_out(channel, deposit_uusd=state.deposit_uusd, claimed_uusd=state.claimed_uusd)
        self._read[channel] = trio.current_time(), taken
        return row

    async def see_claims(self, channel: ChannelId) -> None:
        """Read the chain, unless that was done since the start: the ledger may be a restored backup, and then nothing
        may be signed below what was claimed since."""
        if channel not in self._read:
            await self.refresh(channel)


class ChannelOut:
    """Our channel to one provider. Made by `Payer.channel`.

    Attributes:
        id: the channel's ID.
        payee: the account that is paid.
        peer: the provider's node.
    """

    def __init__(self, payer: Payer, channel: ChannelId, payee: Address, peer: PeerId) -> None:
        self.id = channel
        self.payee = payee
        self.peer = peer
        self._payer = payer
        self._lock = trio.Lock()
        self._stream: Stream | None = None
        self._dialogue: Dialogue | None = None  # of the stream, as long as it is in use
        self._connection = ChannelConnection(Role.REQUESTER)

    async def accept(
        self, task: TaskId, receipts: Sequence[tuple[ReceiptPayload, bytes]], *, sampled: int | Sequence[int]
    ) -> int:
        """Accept checked work, durably; see `Ledger.accept_work`. `pay` then pays for it."""
        return await self._payer.ledger.accept_work(task, receipts, sampled=sampled)

    async def aclose(self) -> None:
        """Close the stream; the channel stays open on chain. Payments open a new one."""
        stream, self._stream, self._dialogue = self._stream, None, None
        if stream is not None:
            await stream.aclose()

    async def pay(self) -> int:
        """Pay for all accepted work and wait until the provider holds the voucher.

        The voucher is on disk before it is sent. It is never above the accepted work, which no agreement lets pass its
        ceiling, nor above the channel's deposit; where that does not cover it yet, this waits for `open_channels`.
        Its memo is the root over the receipts accepted on the channel, which the provider is told of with it.
        Cancelled, the voucher may or may not have reached the provider; the next call finds out.

        Returns:
            The total that the provider holds, in micro-USD.

        Raises:
            InsufficientFunds: the deposit does not cover it and no funding is under way.
            ChannelUnfundable: nor can it be funded.
            VoucherRefused: the provider does not take our voucher.
            StreamError: the provider can't be reached.
            ChainError: the endpoint.
        """
        try:
            self._lock.acquire_nowait()  # nearly always; what is sent lets others run
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            pause_s = _RETRY_FIRST_S
            attempt = 0
            known: ChannelOutView | None = None  # as of the last ack
            while attempt < MAX_ATTEMPTS:
                attempt += 1
                row, known = (await self._due() if known is None else known), None
                held = max(row.acked_uusd, row.claimed_uusd)
                if max(row.accepted_uusd, row.voucher_uusd) <= held:
                    return held
                try:
                    # The sync comes before the signature: it may show a voucher that a restored backup has lost.
                    dialogue = self._dialogue
                    if dialogue is None:
                        dialogue = await self._open()
                        row = await self._row()
                    row = await self._sign(row)
                    refusal = await self._offer(dialogue, row)
                    if refusal is None:
                        known = await self._payer.ledger.ack_voucher(self.id, amount_uusd=row.voucher_uusd)
                except trio.Cancelled:
                    # The answer may still come on this stream; the next payment opens a new one and syncs.
                    with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                        await self.aclose()
                    raise
                except (RemoteProtocolError, *STREAM_FAULTS) as exc:
                    await self.aclose()
                    if attempt == MAX_ATTEMPTS:
                        raise StreamError(
                            f"the provider {self.peer} takes no voucher ({exc}); the voucher is kept and sent when it "
                            "is back"
                        ) from exc
                else:
                    if refusal is None:
                        continue  # held; the loop's head decides whether more was accepted meanwhile
                    if await self._refused(refusal, row):
                        attempt -= 1  # it only waits for blocks, as we would
                    if attempt == MAX_ATTEMPTS:
                        await self.aclose()
                        raise refused_error(refusal)
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MOST_S)
            row = await self._row()
            return max(row.acked_uusd, row.claimed_uusd)
        finally:
            self._lock.release()

    async def ask_close(self) -> tuple[CloseConsent, bytes]:
        """Ask the provider to let the channel be closed at once, at all that was accepted on it; that is paid first.

        Nothing is stored: a consent that is lost is given again, and asking binds nobody here. What is signed on the
        channel afterwards is refused until it was closed.

        Returns:
            What the provider has signed, and its signature, which is verified.

        Raises:
            VoucherRefused: it does not consent, says why, or signs something else.
            StreamError, OverlayError: it can't be reached. InsufficientFunds, ChainError: as `pay`.
        """
        await self.pay()
        async with self._lock:
            pause_s = _RETRY_FIRST_S
            for asked in range(1, _MAX_ASKS + 1):
                try:
                    amount_uusd, answer = await self._ask_close()
                except (RemoteProtocolError, *STREAM_FAULTS) as exc:
                    raise StreamError(f"the provider {self.peer} does not answer ({exc}); ask again later") from exc
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                        await self.aclose()
                if isinstance(answer, ConsentFrame):
                    return self._verified(amount_uusd, answer)
                if answer.code not in _ASK_AGAIN or asked == _MAX_ASKS:
                    raise VoucherRefused(
                        f"the provider {self.peer} does not consent to close the channel: "
                        f"{answer.detail or 'no reason given'}"
                    )
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_MOST_S)
            raise AssertionError("the last try ends in an answer")

    async def _ask_close(self) -> tuple[int, ConsentFrame | VoucherRefusal]:
        # A stream of its own: one that was kept may hold a farewell.
        await self.aclose()
        dialogue = await self._open()
        row = await self._row()  # the sync may have brought back a voucher
        amount_uusd = max(row.voucher_uusd, row.claimed_uusd)
        if row.voucher_uusd == amount_uusd and amount_uusd > 0:
            refusal = await self._offer(dialogue, row)
            if refusal is not None:
                return amount_uusd, refusal
        await dialogue.send(CloseAsk(amount_uusd=amount_uusd))
        return amount_uusd, await dialogue.expect(ConsentFrame, VoucherRefusal, stall_s=ANSWER_TIMEOUT_S)

    def _verified(self, amount_uusd: int, answer: ConsentFrame) -> tuple[CloseConsent, bytes]:
        consent = CloseConsent(
            channel=self.id, epoch=answer.epoch, amount_uusd=amount_uusd, deadline_s=answer.deadline_s
        )
        try:
            closer = recover_closer(self._payer.domain, consent, answer.signature)
        except LocalProtocolError:
            closer = None
        if closer != self.payee:
            raise VoucherRefused(f"the provider {self.peer} has signed something else than this closing")
        return consent, answer.signature

    async def _row(self) -> ChannelOutView:
        ledger = self._payer.ledger
        row = await ledger.channel_out(self.id)
        return row if row is not None else await ledger.open_channel_out(self.id, payee=self.payee, peer=self.peer)

    async def _due(self) -> ChannelOutView:
        """The channel's row; with a voucher for all that is accepted, where we are in sync with the payee and the
        deposit covers it: that is mostly why we are asked to pay."""
        if self._dialogue is not None:
            with suppress(InsufficientFunds):
                return await self._payer.ledger.raise_voucher(self.id, sign=self._voucher)
        return await self._row()

    def _voucher(self, amount_uusd: int, root: bytes) -> tuple[bytes, bytes]:
        voucher = Voucher(channel=self.id, amount_uusd=amount_uusd, memo=root)
        return root, self._payer.wallet.sign_digest(voucher_digest(self._payer.domain, voucher))

    async def _sign(self, row: ChannelOutView) -> ChannelOutView:
        payer = self._payer
        if row.accepted_uusd <= max(row.voucher_uusd, row.claimed_uusd):
            return row
        if row.accepted_uusd > max(row.voucher_uusd, row.deposit_uusd):
            await self._wait_funded(row.accepted_uusd)
            row = await self._row()
            if row.accepted_uusd > max(row.voucher_uusd, row.deposit_uusd):
                payer.check_fundable(self.id)
        return await payer.ledger.raise_voucher(self.id, sign=self._voucher)

    async def _wait_funded(self, amount_uusd: int) -> None:
        """Wait for the deposit while funding is under way; `raise_voucher` has the last word."""
        with trio.move_on_after(FUNDING_TIMEOUT_S):
            while True:
                funding = self._payer.is_funding
                row = await self._payer.refresh(self.id)
                if row.deposit_uusd >= amount_uusd or not funding:
                    return
                await trio.sleep(_POLL_S)

    async def _offer(self, dialogue: Dialogue, row: ChannelOutView) -> VoucherRefusal | None:
        """Offer the voucher, unless the provider holds it already; None once it does."""
        if self._connection.best_uusd < row.voucher_uusd:
            assert row.memo is not None
            assert row.signature is not None
            new = None
            if row.signed_leaves > row.told_leaves:
                new = await self._payer.ledger.covered_by_voucher(
                    self.id, told_leaves=row.told_leaves, signed_leaves=row.signed_leaves
                )
            offer = VoucherFrame(
                amount_uusd=row.voucher_uusd,
                memo=row.memo,
                signature=row.signature,
                first=None if new is None else new.first,
                receipts=None
                if new is None
                else tuple(ReceiptRef(task=task, index=index) for task, index in new.receipts),
            )
            await dialogue.send(offer)
            answer = await dialogue.receive(stall_s=ANSWER_TIMEOUT_S)
            if isinstance(answer, VoucherRefusal):
                return answer
            if not isinstance(answer, VoucherAck):
                raise RemoteProtocolError("the stream ended", code=WireCode.OUT_OF_ORDER)
        return None

    async def _open(self) -> Dialogue:
        """Open the stream and sync: the provider shows the best voucher that it holds."""
        payer = self._payer
        await payer.see_claims(self.id)
        self._connection = ChannelConnection(Role.REQUESTER)
        stream = await payer.dial(self.peer)
        self._stream = stream
        dialogue = Dialogue(self._connection, stream, send_s=FRAME_TIMEOUT_S)
        try:
            await dialogue.send(ChannelHello(chain=payer.hub.terms, payer=payer.binding, payee=self.payee))
            answer = await dialogue.receive(stall_s=ANSWER_TIMEOUT_S)
            if isinstance(answer, VoucherRefusal):
                raise refused_error(answer)
            if not isinstance(answer, ChannelSync):
                raise RemoteProtocolError("the stream ended", code=WireCode.OUT_OF_ORDER)
            await self._sync(answer)
        except BaseException:
            # Half in sync is not in sync: the voucher that was shown may not be on this disk.
            with trio.CancelScope(shield=True), trio.move_on_after(_CLOSE_S):
                await self.aclose()
            raise
        self._dialogue = dialogue
        return dialogue

    async def _sync(self, sync: ChannelSync) -> None:
        row = await self._payer.ledger.channel_out(self.id)
        known = 0 if row is None else row.voucher_uusd
        if sync.memo is None or sync.signature is None or sync.amount_uusd <= known:
            return
        # More than this ledger knows: ours, from before a backup was restored, or made up.
        try:
            voucher = Voucher(channel=self.id, amount_uusd=sync.amount_uusd, memo=sync.memo)
            signer = recover_signer(self._payer.domain, voucher, sync.signature)
        except LocalProtocolError:
            signer = None
        if signer != self._payer.wallet.address:
            raise VoucherRefused(
                f"the provider {self.peer} shows a voucher of {usd(sync.amount_uusd)} that is not ours; "
                "do not deal with it"
            )
        await self._payer.ledger.adopt_voucher(
            self.id, amount_uusd=sync.amount_uusd, memo=sync.memo, signature=sync.signature
        )

    async def _refused(self, refusal: VoucherRefusal, row: ChannelOutView) -> bool:
        """Do what can be done about a refusal before the next try; raises where nothing can. Whether the deposit is
        there and just not deep enough in the chain yet, which is no fault of the payee's."""
        if refusal.code == WireCode.STALLED:
            # A farewell that lay unread on a stream kept between two tasks: it says nothing about this voucher.
            await self.aclose()
            return False
        if refusal.code not in _TRY_AGAIN:
            await self.aclose()
            raise refused_error(refusal)
        if refusal.code == WireCode.BAD_VOUCHER:
            # The provider holds, or the chain has claimed, more than we know of. Only what we signed counts: the
            # next sync shows it, and what the chain has claimed can only have been ours.
            await self.aclose()
            await self._payer.refresh(self.id)
        elif refusal.code == WireCode.CLOSING:
            # A closing has to lie as deep in the chain as a deposit. Where none is under way, the tries end.
            hub = self._payer.hub
            return await payee_epoch(hub, self.id) < await hub.epoch(self.id)
        elif refusal.code == WireCode.UNFUNDED:
            fresh = await self._payer.refresh(self.id)
            if fresh.deposit_uusd < row.voucher_uusd:
                await self._wait_funded(row.voucher_uusd)
                fresh = await self._payer.refresh(self.id)
                if fresh.deposit_uusd < row.voucher_uusd:
                    raise InsufficientFunds(
                        f"the channel to 0x{self.payee.hex()} holds {usd(fresh.deposit_uusd)} and "
                        f"{usd(row.voucher_uusd)} are signed; fund it again"
                    )
            return (await payee_view(self._payer.hub, self.id)).deposit_uusd < row.voucher_uusd
        return False


def _missing_uusd(row: ChannelOutView, amount_uusd: int) -> int:
    """What a channel lacks to cover its open agreements, and so much of new work at least."""
    reserved_uusd = -(-(row.accepted_pusd + row.reserved_pusd) // PUSD_PER_UUSD)
    return max(row.accepted_uusd + amount_uusd, reserved_uusd) - row.deposit_uusd


def _reverted(exc: ChainError) -> bool:
    """Whether the hub refuses a call, be it when its gas is estimated; anything else is no fault of its rows."""
    return isinstance(exc, TransactionFailed) or (
        isinstance(exc, RpcError) and (exc.code == 3 or "revert" in str(exc).lower())
    )
