"""The ledger's part about channels and vouchers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from p2pcompute.errors import ChannelChanged, ChannelClosing, InsufficientFunds, StorageError, VoucherRefused
from p2pcompute_protocols.ids import Address, ChannelId, PeerId
from p2pcompute_protocols.merkle import Frontier
from p2pcompute_protocols.money import PUSD_PER_UUSD, usd

from ._database import Transaction
from ._roots import Covered, IssuedTree, Named, forget_signed_tree, next_tree, reproduce
from ._rows import ChannelInRow, ChannelOutRow

__all__ = ["ChannelsMixin", "count_again", "refuse_closing", "release_credit"]

_IN_COLUMNS = (
    "channel, payer, signer, peer, owed_pusd, best_uusd, memo, signature, deposit_uusd, claimed_uusd,"
    " close_at_s, rooted_leaves, EXISTS (SELECT 1 FROM consents WHERE consents.channel = channels_in.channel)"
)
_IN = f"SELECT {_IN_COLUMNS} FROM channels_in"
# A channel must cover what is accepted on it and what its open agreements can still cost.
_OUT_COLUMNS = (
    "channel, payee, peer, accepted_pusd, voucher_uusd, memo, signature, acked_uusd, deposit_uusd,"
    " claimed_uusd, (SELECT coalesce(sum(ceiling_uusd * 1000000 - total_pusd), 0) FROM agreements a"
    " WHERE a.channel = c.channel AND a.state = 'open' AND a.role = 'requester'), signed_leaves, told_leaves"
)
_OUT = f"SELECT {_OUT_COLUMNS} FROM channels_out c"

T = TypeVar("T")


class Deposit(Protocol):
    """What of a channel says how far its vouchers are covered; `ChannelInRow` is such."""

    @property
    def deposit_uusd(self) -> int: ...
    @property
    def close_at_s(self) -> int: ...


def need_in(tx: Transaction, channel: ChannelId) -> ChannelInRow:
    """An incoming channel that must be there."""
    row = tx.one(f"{_IN} WHERE channel = :channel", channel=channel)
    if row is None:
        raise _no_channel_in(channel)
    return ChannelInRow._make(row)


def _need_in_and_tree(tx: Transaction, channel: ChannelId, peer: PeerId) -> tuple[ChannelInRow, IssuedTree, bool]:
    """An incoming channel, the tree over what was paid on it, and whether `peer` uses credit."""
    found = tx.one(
        f"SELECT {_IN_COLUMNS}, leaves, peaks, issued, EXISTS (SELECT 1 FROM credit WHERE peer = :peer AND pusd > 0)"
        " FROM channels_in WHERE channel = :channel",
        channel=channel,
        peer=peer,
    )
    if found is None:
        raise _no_channel_in(channel)
    *row, leaves, peaks, issued, uses_credit = found
    tree = IssuedTree(channel=channel, known=Frontier.of(leaves, peaks), issued=issued)
    return ChannelInRow._make(row), tree, bool(uses_credit)


def _no_channel_in(channel: ChannelId) -> StorageError:
    return StorageError(f"no incoming channel {channel.hex()[:16]} in the ledger")


def need_out(tx: Transaction, channel: ChannelId) -> ChannelOutRow:
    """An outgoing channel that must be there."""
    row = tx.one(f"{_OUT} WHERE channel = :channel", channel=channel)
    if row is None:
        raise _no_channel_out(channel)
    return ChannelOutRow._make(row)


def _need_out_and_tree(tx: Transaction, channel: ChannelId) -> tuple[ChannelOutRow, bytes, int]:
    """An outgoing channel, the peaks of what its payee was told, and how many receipts are accepted on it."""
    found = tx.one(
        f"SELECT {_OUT_COLUMNS}, told_peaks, leaves FROM channels_out c WHERE channel = :channel", channel=channel
    )
    if found is None:
        raise _no_channel_out(channel)
    return ChannelOutRow._make(found[:-2]), found[-2], found[-1]


def _no_channel_out(channel: ChannelId) -> StorageError:
    return StorageError(f"no outgoing channel {channel.hex()[:16]} in the ledger")


def refuse_closing(tx: Transaction, channel: ChannelId) -> None:
    """Raise `ChannelClosing` where our consent to close an incoming channel is out."""
    row = tx.one("SELECT amount_uusd FROM consents WHERE channel = :channel", channel=channel)
    if row is not None:
        raise ChannelClosing(
            f"we have signed that the channel {channel.hex()[:8]} may be closed at {usd(row[0])}; it is of use "
            "again once it is closed and funded anew"
        )


def release_credit(tx: Transaction, peer: str, pusd: int) -> None:
    """Take up to `pusd` off the credit that `peer` uses, the newest first."""
    for subnet, hour, used in tx.all(
        "SELECT subnet, hour, pusd FROM credit WHERE peer = :peer AND pusd > 0 ORDER BY hour DESC, subnet", peer=peer
    ):
        if pusd <= 0:
            return
        taken = min(used, pusd)
        pusd -= taken
        tx.emit("credit_set", peer=peer, subnet=subnet, hour=hour, pusd=used - taken)


def count_again(tx: Transaction, before: ChannelInRow) -> None:
    """The chain's side of an incoming channel was written: what its voucher counts for more or for less than it did in
    `before` goes into the payer's history, what it counts for more comes off the payer's credit, and none of it is
    credit for later work."""
    after = need_in(tx, before.channel)
    gained_uusd = after.by_voucher_uusd - before.by_voucher_uusd
    if gained_uusd > 0:
        tx.emit("voucher_counts_more", channel=after.channel, peer=after.peer, gained_uusd=gained_uusd)
        release_credit(tx, after.peer, gained_uusd * PUSD_PER_UUSD)
    elif gained_uusd < 0:
        tx.emit("voucher_counts_less", channel=after.channel, peer=after.peer, lost_uusd=-gained_uusd)
    _rebase_in(tx, after)


def _rebase_in(tx: Transaction, row: ChannelInRow) -> int:
    """Take what is paid above what is owed as payment for lost work; gives how much that is, in pico-USD."""
    if row.paid_uusd <= row.owed_uusd:
        return 0
    pusd = row.paid_uusd * PUSD_PER_UUSD - row.owed_pusd
    tx.emit("owed_rebased", channel=row.channel, pusd=pusd)
    return pusd


class ChannelsMixin:
    """Methods of `Ledger` about channels; see there for what holds for all of them."""

    _acks: dict[ChannelId, int]  # what payees said last; it may not be written yet
    _signed: dict[ChannelId, Covered]  # see `RootsMixin`

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _look(self, work: Callable[[Transaction], T], key: object = None) -> T:
        raise NotImplementedError

    def _ride(self, key: object, work: Callable[[Transaction], object]) -> None:
        raise NotImplementedError

    # Incoming: we are the payee

    def _open_in(self, tx: Transaction, channel: ChannelId, payer: Address, signer: Address, peer: PeerId) -> None:
        if tx.one("SELECT 1 FROM channels_in WHERE channel = :channel", channel=channel) is None:
            tx.emit("channel_in_opened", channel=channel, payer=payer, signer=signer, peer=peer)

    async def channel_in(self, channel: ChannelId) -> ChannelInRow | None:
        """One incoming channel."""

        def work(tx: Transaction) -> ChannelInRow | None:
            row = tx.one(f"{_IN} WHERE channel = :channel", channel=channel)
            return None if row is None else ChannelInRow._make(row)

        return await self._look(work, ("channel_in", channel))

    async def channels_in(self) -> list[ChannelInRow]:
        """All incoming channels."""
        return await self._read(lambda tx: [ChannelInRow._make(row) for row in tx.all(f"{_IN} ORDER BY channel")])

    async def unpaid_pusd(self, peer: PeerId, channel: ChannelId) -> int:
        """What is receipted and not paid on all channels of a peer, and on `channel` whoever opened it."""

        def work(tx: Transaction) -> int:
            rows = tx.all(f"{_IN} WHERE peer = :peer OR channel = :channel", peer=peer, channel=channel)
            return sum(ChannelInRow._make(row).unpaid_pusd for row in rows)

        return await self._look(work, ("unpaid_pusd", peer, channel))

    async def work_since_pusd(self, peer: PeerId, channel: ChannelId, *, since_ms: int) -> int:
        """What was receipted for a peer, and on `channel`, under agreements that ran at `since_ms` or later: no less
        than what has been since then."""

        def work(tx: Transaction) -> int:
            row = tx.one(
                "SELECT coalesce(sum(total_pusd), 0) FROM agreements WHERE role = 'provider'"
                " AND (peer = :peer OR channel = :channel) AND deadline_ms >= :since_ms",
                peer=peer,
                channel=channel,
                since_ms=since_ms,
            )
            return 0 if row is None else int(row[0])

        return await self._read(work)

    async def open_channel_in(
        self, channel: ChannelId, *, payer: Address, signer: Address, peer: PeerId
    ) -> ChannelInRow:
        """The channel's row, made where it is missing. Only for channels with an agreement or money behind them:
        a row for every stranger that says hello would let strangers fill the disk."""

        def work(tx: Transaction) -> ChannelInRow:
            self._open_in(tx, channel, payer, signer, peer)
            return need_in(tx, channel)

        return await self._write(work)

    async def take_voucher(
        self,
        channel: ChannelId,
        *,
        amount_uusd: int,
        memo: bytes,
        signature: bytes,
        peer: PeerId,
        covered: Named | None = None,
        checked: Deposit | None = None,
    ) -> ChannelInRow:
        """Store a voucher that the caller has verified, before it is acknowledged. One above the deposit is stored as
        well, and counts up to it.

        `checked` is the channel as the caller has found it; None where nobody looked.

        `covered` names the receipts that its memo has come to be the root of. Where the memo is not reproduced from
        them and from those named before, the voucher is taken all the same and `rooted_leaves` of the row is 0.

        In the same transaction the peer's history grows and its use of free credit shrinks by what counts of it.
        What counts above what is owed is taken as payment for work that this ledger has lost (a restored backup);
        it is not credit for later work.

        Raises:
            VoucherRefused: not above the best one, or not above what was claimed on chain.
            ChannelClosing: we have signed that the channel may be closed; what the voucher says could not be claimed.
            ChannelChanged: its deposit, or its closing, is not that of `checked`.
        """

        def work(tx: Transaction) -> ChannelInRow:
            row, receipts, uses_credit = _need_in_and_tree(tx, channel, peer)
            if row.is_closing:
                refuse_closing(tx, channel)
            if amount_uusd <= row.held_uusd:
                raise VoucherRefused(f"a voucher of {usd(amount_uusd)} where {usd(row.held_uusd)} are held already")
            if checked and (checked.deposit_uusd, checked.close_at_s) != (row.deposit_uusd, row.close_at_s):
                raise ChannelChanged(f"the channel {channel.hex()[:8]} has another deposit by now; look again")
            found = reproduce(tx, receipts, memo, covered)
            after = row._replace(
                best_uusd=amount_uusd, memo=memo, signature=signature, peer=peer, rooted_leaves=found.leaves
            )
            gained_uusd = after.paid_uusd - row.paid_uusd
            tx.emit(
                "voucher_covered" if found.grown else "voucher_taken",
                channel=channel,
                amount_uusd=amount_uusd,
                memo=memo,
                signature=signature,
                peer=peer,
                gained_uusd=gained_uusd,
                **found.grown,
            )
            if not found.grown and found.leaves != row.rooted_leaves:
                tx.emit("memo_rooted", channel=channel, leaves=found.leaves)
            rebased_pusd = _rebase_in(tx, after)
            if uses_credit:
                release_credit(tx, peer, gained_uusd * PUSD_PER_UUSD)
            return after._replace(owed_pusd=row.owed_pusd + rebased_pusd)

        return await self._write(work)

    async def set_chain_in(
        self, channel: ChannelId, *, deposit_uusd: int, claimed_uusd: int, close_at_s: int
    ) -> ChannelInRow:
        """What the chain says about an incoming channel. More claimed than this ledger knows of (a restored backup,
        a watchtower) counts as paid. With the deposit, up or down, goes what counts of a voucher above it: in the same
        transaction in the payer's history, and where it is more, off its use of free credit."""

        def work(tx: Transaction) -> ChannelInRow:
            row = need_in(tx, channel)
            if (row.deposit_uusd, row.claimed_uusd, row.close_at_s) != (deposit_uusd, claimed_uusd, close_at_s):
                tx.emit(
                    "chain_read_in",
                    channel=channel,
                    deposit_uusd=deposit_uusd,
                    claimed_uusd=claimed_uusd,
                    close_at_s=close_at_s,
                )
                count_again(tx, row)
            return need_in(tx, channel)

        return await self._write(work)

    # Outgoing: we are the payer

    def _open_out(self, tx: Transaction, channel: ChannelId, payee: Address, peer: PeerId) -> None:
        row = tx.one("SELECT peer FROM channels_out WHERE channel = :channel", channel=channel)
        if row is None:
            tx.emit("channel_out_opened", channel=channel, payee=payee, peer=peer)
        elif row[0] != peer:
            tx.emit("channel_out_peer", channel=channel, peer=peer)

    async def open_channel_out(self, channel: ChannelId, *, payee: Address, peer: PeerId) -> ChannelOutRow:
        """The channel's row, made where it is missing."""

        def work(tx: Transaction) -> ChannelOutRow:
            self._open_out(tx, channel, payee, peer)
            return need_out(tx, channel)

        return await self._write(work)

    async def channel_out(self, channel: ChannelId) -> ChannelOutRow | None:
        """One outgoing channel."""

        def work(tx: Transaction) -> ChannelOutRow | None:
            row = tx.one(f"{_OUT} WHERE channel = :channel", channel=channel)
            return None if row is None else ChannelOutRow._make(row)

        row = await self._look(work, ("channel_out", channel))
        return None if row is None else self._with_ack(row)

    async def channels_out(self) -> list[ChannelOutRow]:
        """All outgoing channels."""
        return await self._read(lambda tx: [ChannelOutRow._make(row) for row in tx.all(f"{_OUT} ORDER BY channel")])

    async def raise_voucher(
        self, channel: ChannelId, *, sign: Callable[[int, bytes], tuple[bytes, bytes]]
    ) -> ChannelOutRow:
        """Sign for all accepted work, and store the voucher before anybody sees it.

        `sign` gets the amount in micro-USD and the root over the accepted receipts, and gives memo and signature; it
        is called inside of the transaction, and only for an amount above the last one. The root covers at most
        MAX_COVERED receipts that the payee does not know of yet; the rest comes with the next vouchers.

        Raises:
            InsufficientFunds: the channel's deposit does not cover it; nothing was signed.
        """

        def work(tx: Transaction) -> tuple[ChannelOutRow, Covered | None]:
            row, told_peaks, leaves = _need_out_and_tree(tx, channel)
            amount_uusd = row.accepted_uusd
            if amount_uusd <= max(row.voucher_uusd, row.claimed_uusd):
                return row, None
            if amount_uusd > row.deposit_uusd:
                raise InsufficientFunds(
                    f"the channel to 0x{row.payee.hex()} holds {usd(row.deposit_uusd)} and {usd(amount_uusd)} are due; "
                    "wait for its funding or fund it again"
                )
            tree, new = next_tree(tx, channel, Frontier.of(row.told_leaves, told_peaks), leaves)
            memo, signature = sign(amount_uusd, tree.root if tree.leaves else bytes(32))
            tx.emit("voucher_signed", channel=channel, amount_uusd=amount_uusd, memo=memo, signature=signature)
            if tree.leaves != row.signed_leaves:
                tx.emit("voucher_rooted", channel=channel, leaves=tree.leaves, peaks=bytes(tree))
            row = row._replace(voucher_uusd=amount_uusd, memo=memo, signature=signature, signed_leaves=tree.leaves)
            tx.know(("channel_out", channel), row)
            return row, new

        row, new = await self._write(work)
        if new is not None:
            self._signed[channel] = new
        return row

    async def adopt_voucher(
        self, channel: ChannelId, *, amount_uusd: int, memo: bytes, signature: bytes
    ) -> ChannelOutRow:
        """Take back a voucher of our own, above what this ledger knows (a restored backup), shown by the payee and
        verified by the caller. What it paid for counts as accepted. Call it before anything new is signed."""

        def work(tx: Transaction) -> ChannelOutRow:
            row = need_out(tx, channel)
            if amount_uusd > row.voucher_uusd:
                tx.emit("voucher_signed", channel=channel, amount_uusd=amount_uusd, memo=memo, signature=signature)
                forget_signed_tree(tx, channel)
                self._rebase_out(tx, row, amount_uusd)
            return need_out(tx, channel)

        return await self._write(work)

    def _rebase_out(self, tx: Transaction, row: ChannelOutRow, paid_uusd: int) -> None:
        # What this ledger has lost was paid on top of the last voucher that it knows; work accepted since then is
        # not among it, and is still to be paid.
        lost_uusd = paid_uusd - max(row.voucher_uusd, row.claimed_uusd)
        if lost_uusd > 0:
            tx.emit("accepted_rebased", channel=row.channel, pusd=lost_uusd * PUSD_PER_UUSD)

    async def ack_voucher(self, channel: ChannelId, *, amount_uusd: int) -> ChannelOutRow:
        """The payee said that it holds a voucher of this amount; an amount above our highest is ignored.

        Nothing leaves on the strength of it, and after a crash the next sync says it again. So it is not waited for:
        the next transaction takes it along, at the latest when the channels are listed or the ledger is closed.
        """
        row = await self.channel_out(channel)
        if row is None:
            raise _no_channel_out(channel)
        if row.acked_uusd < amount_uusd <= row.voucher_uusd:
            self._acks[channel] = amount_uusd
            self._signed.pop(channel, None)
            self._ride(("ack", channel), lambda tx: self._write_ack(tx, channel, amount_uusd))
            row = self._with_ack(row)
        return row

    def _with_ack(self, row: ChannelOutRow) -> ChannelOutRow:
        acked_uusd = self._acks.get(row.channel, 0)
        if row.acked_uusd < acked_uusd <= row.voucher_uusd:
            return row._replace(acked_uusd=acked_uusd)
        return row

    def _write_ack(self, tx: Transaction, channel: ChannelId, amount_uusd: int) -> None:
        row = need_out(tx, channel)
        if row.acked_uusd < amount_uusd <= row.voucher_uusd:
            tx.emit(
                "voucher_acked",
                channel=channel,
                amount_uusd=amount_uusd,
                peer=row.peer,
                gained_uusd=amount_uusd - row.acked_uusd,
            )
            if amount_uusd == row.voucher_uusd and row.signed_leaves != row.told_leaves:
                tx.emit("receipts_told", channel=channel)

    async def set_chain_out(self, channel: ChannelId, *, deposit_uusd: int, claimed_uusd: int) -> ChannelOutRow:
        """What the chain says about an outgoing channel. More claimed than this ledger has signed for (a restored
        backup) was signed by us once, and what it paid for counts as accepted. So what is claimed never gets less
        here, whatever the chain takes back: the payee holds that voucher, and it would be counted twice."""

        def work(tx: Transaction) -> ChannelOutRow:
            row = need_out(tx, channel)
            most_uusd = max(row.claimed_uusd, claimed_uusd)
            if (row.deposit_uusd, row.claimed_uusd) != (deposit_uusd, most_uusd):
                tx.emit("chain_read_out", channel=channel, deposit_uusd=deposit_uusd, claimed_uusd=most_uusd)
                self._rebase_out(tx, row, most_uusd)
            return need_out(tx, channel)

        return await self._write(work)
