"""The ledger's part about roots over receipts: which receipts a voucher's memo stands for, and proofs of it.

A channel has one tree, `merkle.MerkleTree` over the envelopes of the receipts that the payer has accepted on it, in
the order in which it did. It is only ever appended to, so both sides keep its frontier and a voucher costs a hash or
two for each receipt that is new. The payee is told which those are (`VoucherFrame.receipts`), looks them up among the
receipts that it has issued, and arrives at the same root, or notes that it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from p2pcompute.errors import ConfigError, StorageError
from p2pcompute_protocols.ids import ChannelId, TaskId
from p2pcompute_protocols.limits import MAX_COVERED, MAX_LEAVES
from p2pcompute_protocols.merkle import Frontier, InclusionProof, PathFinder

from ._database import Transaction

__all__ = [
    "Covered",
    "IssuedTree",
    "Named",
    "ReceiptProof",
    "Reproduced",
    "RootsMixin",
    "forget_signed_tree",
    "next_tree",
    "reproduce",
]

_REF_BYTES: Final = 40
_LAST_LEAVES: Final = (
    "SELECT h.task, h.idx, h.envelope FROM receipts_held h JOIN agreements a ON a.task = h.task"
    " WHERE a.channel = :channel AND h.leaf IS NOT NULL ORDER BY h.rowid DESC LIMIT :count"
)
# Rows are in the order of leaves, so that none of what was read before is read again.
_NEXT_LEAVES: Final = (
    "SELECT h.rowid, h.envelope FROM receipts_held h CROSS JOIN agreements a ON a.task = h.task"
    " WHERE a.channel = :channel AND h.leaf IS NOT NULL AND h.rowid > :after ORDER BY h.rowid LIMIT :count"
)
_AT_ONCE: Final = 1_024  # leaves that are read in one go: others' turn comes between two

T = TypeVar("T")


class Named(Protocol):
    """Receipts that a payer names with a voucher; `Covered` is such."""

    @property
    def first(self) -> int: ...
    @property
    def receipts(self) -> tuple[tuple[TaskId, int], ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """Receipts that a voucher's root has come to cover: (task, index) of each, the first one number `first`."""

    first: int
    receipts: tuple[tuple[TaskId, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptProof:
    """That a receipt stands behind a voucher; `open_proven_receipt` checks it against the root on chain.

    Attributes:
        channel: on which it was paid.
        root: the voucher's memo, which the hub repeats in its event when it is claimed.
        envelope: the signed receipt.
        proof: its place in the tree.
    """

    channel: ChannelId
    root: bytes
    envelope: bytes
    proof: InclusionProof


def _untold(tx: Transaction, channel: ChannelId, told: int, leaves: int) -> list[tuple[bytes, int, bytes]]:
    """(task, index, envelope) of the accepted receipts from number `told` on, MAX_COVERED of them at most."""
    if told >= min(leaves, MAX_LEAVES):
        return []
    # Backwards from the newest, which costs no index: what is not told is nearly always what came last.
    rows = tx.all(_LAST_LEAVES, channel=channel, count=leaves - told)
    rows.reverse()
    return rows[: min(MAX_COVERED, MAX_LEAVES - told)]


def next_tree(tx: Transaction, channel: ChannelId, told: Frontier, leaves: int) -> tuple[Frontier, Covered | None]:
    """The tree that the next voucher's memo is the root of, and what of it the payee has to be told.

    Args:
        told: what the payee has acknowledged to know.
        leaves: how many receipts are accepted on the channel.
    """
    rows = _untold(tx, channel, told.leaves, leaves)
    return told.grown(envelope for _, _, envelope in rows), _covered(told.leaves, rows)


def _covered(first: int, rows: Sequence[tuple[bytes, int, bytes]]) -> Covered | None:
    return Covered(first=first, receipts=tuple((TaskId(row[0]), row[1]) for row in rows)) if rows else None


def forget_signed_tree(tx: Transaction, channel: ChannelId) -> None:
    """The last voucher is one of which this ledger knows no receipts: only what was told before it counts."""
    row = tx.one(
        "SELECT told_leaves, told_peaks FROM channels_out WHERE channel = :channel AND signed_leaves != told_leaves",
        channel=channel,
    )
    if row is not None:
        tx.emit("voucher_rooted", channel=channel, leaves=row[0], peaks=row[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduced:
    """What a memo is the root of: how many of our receipts (0: it is not reproduced), and what the event of its
    voucher then says of those that are new."""

    leaves: int
    grown: Mapping[str, bytes | int] = field(default_factory=dict[str, bytes | int])


class IssuedTree(NamedTuple):
    """What of a channel's tree its payee knows, and how many results it has receipted there."""

    channel: ChannelId
    known: Frontier
    issued: int


def reproduce(tx: Transaction, receipts: IssuedTree, memo: bytes, covered: Named | None) -> Reproduced:
    """Make the root ourselves, from receipts that we have issued."""
    known = receipts.known
    # What an earlier voucher named already may be named again: its ack was lost.
    new = () if covered is None else covered.receipts[max(0, known.leaves - covered.first) :]
    if not new:
        return Reproduced(leaves=known.leaves if known.leaves and known.root == memo else 0)
    if covered is None or covered.first > known.leaves or known.leaves + len(new) > MAX_LEAVES:
        return Reproduced(leaves=0)
    if len(set(new)) < len(new) or known.leaves + len(new) > receipts.issued:
        return Reproduced(leaves=0)  # each is accepted once; a payer that says otherwise would fill the disk
    envelopes = []
    for task, index in new:
        found = tx.one(
            "SELECT r.envelope FROM receipts_issued r JOIN agreements a ON a.task = r.task"
            " WHERE r.task = :task AND r.idx = :idx AND r.code = 0 AND a.channel = :channel",
            task=task,
            idx=index,
            channel=receipts.channel,
        )
        if found is None:
            return Reproduced(leaves=0)
        envelopes.append(found[0])
    tree = known.grown(envelopes)
    if tree.root != memo:
        return Reproduced(leaves=0)
    refs = b"".join(task + index.to_bytes(8, "big") for task, index in new)
    return Reproduced(
        leaves=tree.leaves, grown={"first": known.leaves, "refs": refs, "leaves": tree.leaves, "peaks": bytes(tree)}
    )


@dataclass(slots=True, kw_only=True)
class _Search:
    """Goes through the leaves of a channel's tree, a part at a time, until they have the root that is asked for.

    Attributes:
        channel, envelope, root: see `ReceiptProof`.
        we_pay: whether the leaves are those that we have accepted, or those that we have issued.
    """

    channel: ChannelId
    we_pay: bool
    envelope: bytes
    root: bytes
    _finder: PathFinder = field(default_factory=PathFinder)
    _after: int = -1  # the row that was read last

    def proof(self) -> InclusionProof:
        """The receipt's, once `read` has found it."""
        return self._finder.proof()

    def read(self, tx: Transaction) -> bool | None:
        """Take the next part. Whether the root was found, with the receipt below it; None where no leaves are left."""
        if self.we_pay:
            leaves = tx.all(_NEXT_LEAVES, channel=self.channel, after=self._after, count=_AT_ONCE)
        else:
            leaves = self._covered(tx)
        for self._after, envelope in leaves:
            if self._finder.leaves == MAX_LEAVES:
                return None
            self._finder.add(envelope, wanted=envelope == self.envelope)
            if self._finder.index is not None and self._finder.root == self.root:
                return True  # a root of fewer leaves does not cover the receipt
        return False if leaves else None

    def _covered(self, tx: Transaction) -> list[Any]:
        rows = tx.all(
            "SELECT first, refs FROM covers WHERE channel = :channel AND first > :after ORDER BY first LIMIT :count",
            channel=self.channel,
            after=self._after,
            count=max(1, _AT_ONCE // MAX_COVERED),
        )
        return [(first, _issued(tx, refs, at)) for first, refs in rows for at in range(0, len(refs), _REF_BYTES)]


def _issued(tx: Transaction, refs: bytes, at: int) -> bytes:
    row = tx.one(
        "SELECT envelope FROM receipts_issued WHERE task = :task AND idx = :idx AND code = 0",
        task=refs[at : at + 32],
        idx=int.from_bytes(refs[at + 32 : at + _REF_BYTES], "big"),
    )
    assert row is not None  # it was there when it was covered, and receipts are for good
    return bytes(row[0])


class RootsMixin:
    """Methods of `Ledger` about roots over receipts; see there for what holds for all of them."""

    _signed: dict[ChannelId, Covered]  # what the last voucher of each channel has come to cover, until it is acked

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _look(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def covered_by_voucher(self, channel: ChannelId, *, told_leaves: int, signed_leaves: int) -> Covered | None:
        """Payer: the receipts under our highest voucher that the payee has not acknowledged to know, at most
        MAX_COVERED; None where there are none.

        Args:
            told_leaves, signed_leaves: those of the channel's row. Leaves are only ever appended, so they say it all.
        """
        signed = self._signed.get(channel)
        if signed is not None and (signed.first, signed.first + len(signed.receipts)) == (told_leaves, signed_leaves):
            return signed

        def work(tx: Transaction) -> Covered | None:
            row = tx.one("SELECT leaves FROM channels_out WHERE channel = :channel", channel=channel)
            if row is None or signed_leaves <= told_leaves:
                return None
            return _covered(told_leaves, _untold(tx, channel, told_leaves, row[0])[: signed_leaves - told_leaves])

        return await self._look(work)

    async def task_named(self, digits: str) -> TaskId:
        """The one task whose ID begins with these hexadecimal digits, 8 or more.

        Raises:
            ConfigError: there is none, or more than one; says what to write.
        """
        if not 8 <= len(digits) <= 64 or not set(digits.lower()) <= set("0123456789abcdef"):
            raise ConfigError(f"{digits!r} names no task; write 8 digits of its ID or more")
        rows = await self._read(
            lambda tx: tx.all(
                "SELECT task FROM agreements WHERE lower(hex(task)) LIKE :digits || '%' LIMIT 2", digits=digits.lower()
            )
        )
        if len(rows) != 1:
            raise ConfigError(
                f"{'more than one task begins' if rows else 'no task begins'} with {digits}; "
                "`p2pcompute receipts --json` has whole IDs"
            )
        return TaskId(bytes(rows[0][0]))

    async def prove_receipt(self, task: TaskId, index: int, *, root: bytes | None = None) -> ReceiptProof:
        """The proof that the receipt with code 0 for a chunk stands behind a voucher, for a third party.

        Args:
            task, index: which receipt; we issued it, or hold it and have accepted it.
            root: the memo of the voucher to prove it against, such as the one that was claimed on chain; that of the
                newest voucher unless given.

        Raises:
            StorageError: no such receipt, or that voucher does not cover it.
        """

        def begin(tx: Transaction) -> _Search:
            found = tx.one("SELECT channel, role FROM agreements WHERE task = :task", task=task)
            if found is None:
                raise StorageError(
                    f"no task {task.hex()[:16]} in the ledger; `p2pcompute receipts` lists what there is"
                )
            channel, we_pay = ChannelId(found[0]), found[1] == "requester"
            if we_pay:
                mine = tx.one(
                    "SELECT envelope FROM receipts_held WHERE task = :task AND idx = :idx AND leaf IS NOT NULL",
                    task=task,
                    idx=index,
                )
                voucher = tx.one("SELECT memo FROM channels_out WHERE channel = :channel", channel=channel)
            else:
                mine = tx.one(
                    "SELECT envelope FROM receipts_issued WHERE task = :task AND idx = :idx AND code = 0",
                    task=task,
                    idx=index,
                )
                voucher = tx.one("SELECT memo FROM channels_in WHERE channel = :channel", channel=channel)
            if mine is None:
                raise StorageError(f"no paid receipt for chunk {index} of task {task.hex()[:16]}; check both")
            memo = root if root is not None else bytes(voucher[0]) if voucher and voucher[0] else bytes(32)
            return _Search(channel=channel, we_pay=we_pay, envelope=bytes(mine[0]), root=memo)

        search = await self._read(begin)
        covered: bool | None = False
        while covered is False:
            covered = await self._read(search.read)
        if covered is None:
            raise StorageError(
                f"the root {search.root.hex()[:16]} does not cover chunk {index} of task {task.hex()[:16]}, as far as "
                "this ledger knows; a later voucher may: try again when more is paid, or name another root"
            )
        return ReceiptProof(channel=search.channel, root=search.root, envelope=search.envelope, proof=search.proof())
