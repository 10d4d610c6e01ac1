"""Merkle trees over bytes, and proofs that a leaf belongs to a root: `protocols/merkle/README.md` specifies them.

The tree and its inclusion proofs are those of RFC 9162 §2.1 (and RFC 6962 §2.1) with SHA-256: a leaf is hashed with a
zero byte before it and a node with a one byte, so that neither can be shown as the other; where the number of leaves
is no power of two, the left subtree is the largest power of two below it.

    tree = MerkleTree(receipts)                        # envelopes, chunk by chunk
    proof = tree.proof(7)                              # at most 20 digests, for a million leaves
    verify_inclusion(receipts[7], proof, tree.root)    # by whoever knows the root
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .errors import LocalProtocolError, WireCode
from .ids import Digest
from .limits import MAX_LEAVES, MAX_PROOF_DIGESTS
from .wire import Array, Bytes, Record, Uint, record, wire

__all__ = [
    "EMPTY_ROOT",
    "Frontier",
    "InclusionProof",
    "MerkleTree",
    "PathFinder",
    "leaf_hash",
    "node_hash",
    "verify_inclusion",
]

EMPTY_ROOT: Final = Digest(hashlib.sha256(b"").digest())
"""The root of a tree without leaves, as RFC 9162 has it."""


def leaf_hash(data: bytes | memoryview) -> bytes:
    """SHA-256 of a zero byte and the leaf's bytes."""
    made = hashlib.sha256(b"\x00")
    made.update(data)  # apart: a leaf may be long, and is not copied for its first byte
    return made.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of a one byte and the two hashes below."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def _path_length(index: int, leaves: int) -> int:
    """How many digests the path of a leaf has: none at levels where its node is the last and has no neighbour."""
    length, last = 0, leaves - 1
    while last:
        length += index != last or bool(index & 1)
        index, last = index >> 1, last >> 1
    return length


@record
class InclusionProof(Record):
    """That a leaf is number `index` of `leaves`: the neighbours of its node at each level, from the leaf up."""

    index: int = wire(1, Uint(0, MAX_LEAVES - 1))
    leaves: int = wire(2, Uint(1, MAX_LEAVES))
    path: tuple[bytes, ...] = wire(3, Array(Bytes(32), MAX_PROOF_DIGESTS))

    def validate(self) -> None:
        if self.index >= self.leaves:
            raise LocalProtocolError(f"leaf {self.index} of {self.leaves}")
        due = _path_length(self.index, self.leaves)
        if len(self.path) != due:
            raise LocalProtocolError(f"a path of {len(self.path)} digests where leaf and tree give {due}")


def verify_inclusion(leaf: bytes, proof: InclusionProof, root: bytes) -> None:
    """Check that `leaf` is where `proof` says, in the tree of this root (RFC 9162 §2.1.3.2).

    Raises:
        LocalProtocolError: BAD_DIGEST, it is not.
    """
    found, index, last = leaf_hash(leaf), proof.index, proof.leaves - 1
    path = iter(proof.path)
    while last:
        if index & 1:
            found = node_hash(next(path), found)
        elif index != last:
            found = node_hash(found, next(path))
        index, last = index >> 1, last >> 1
    if found != root:
        raise LocalProtocolError("the leaf does not belong to this root", code=WireCode.BAD_DIGEST)


def _root(peaks: Sequence[bytes]) -> Digest:
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in peaks[-2::-1]:
        root = node_hash(peak, root)
    return Digest(root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """What of a tree is needed to append to it: the roots of its complete subtrees, the largest first.

    There is one for each bit of `leaves`, so a tree of a million leaves is 20 digests, and a leaf more costs two
    hashes on average. Its root is that of `MerkleTree` over the same leaves.

    Raises:
        LocalProtocolError: the number of digests is not the one that `leaves` gives, or OVERSIZED above MAX_LEAVES.
    """

    leaves: int = 0
    peaks: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.leaves <= MAX_LEAVES:
            raise LocalProtocolError(f"a tree of more than {MAX_LEAVES} leaves", code=WireCode.OVERSIZED)
        if len(self.peaks) != self.leaves.bit_count() or any(len(peak) != 32 for peak in self.peaks):
            raise LocalProtocolError(f"{len(self.peaks)} digests where {self.leaves} leaves give another number")

    @classmethod
    def of(cls, leaves: int, raw: bytes) -> Frontier:
        """The frontier that `bytes(...)` wrote."""
        return cls(leaves=leaves, peaks=tuple(raw[at : at + 32] for at in range(0, len(raw), 32)))

    def __bytes__(self) -> bytes:
        return b"".join(self.peaks)

    def grown(self, leaves: Iterable[bytes]) -> Frontier:
        """With `leaves` appended, in their order."""
        count, peaks = self.leaves, list(self.peaks)
        for leaf in leaves:
            node, rest = leaf_hash(leaf), count
            while rest & 1:
                node, rest = node_hash(peaks.pop(), node), rest >> 1
            peaks.append(node)
            count += 1
        return Frontier(leaves=count, peaks=tuple(peaks))

    @property
    def root(self) -> Digest:
        """32 bytes; `EMPTY_ROOT` without leaves."""
        return _root(self.peaks)


class PathFinder:
    """The proof for one leaf, from leaves that come one by one and are not kept: 40 digests, however many they are.

    Attributes:
        leaves: how many have come.
        index: which of them the proof is for; None until it has come.
    """

    __slots__ = ("_path", "_peaks", "index", "leaves")

    def __init__(self) -> None:
        self.leaves = 0
        self.index: int | None = None
        self._peaks: list[bytes] = []  # as of `Frontier`
        self._path: list[bytes] = []  # within the complete subtree that holds the leaf

    def add(self, leaf: bytes, *, wanted: bool = False) -> None:
        """The next leaf. The proof is for the first one that is `wanted`.

        Raises:
            LocalProtocolError: OVERSIZED, more than MAX_LEAVES.
        """
        if self.leaves == MAX_LEAVES:
            raise LocalProtocolError(f"a tree of more than {MAX_LEAVES} leaves", code=WireCode.OVERSIZED)
        if wanted and self.index is None:
            self.index = self.leaves
        node, first, size = leaf_hash(leaf), self.leaves, 1  # the node stands for `size` leaves from `first` on
        while self.leaves & size:
            left = self._peaks.pop()
            self._pass(left, node, first - size, first, first + size)
            node, first, size = node_hash(left, node), first - size, 2 * size
        self._peaks.append(node)
        self.leaves += 1

    def _pass(self, left: bytes, right: bytes, start: int, middle: int, end: int) -> None:
        """Two nodes become one; where the leaf lies under one of them the other one is on its path."""
        if self.index is not None and start <= self.index < end:
            self._path.append(right if self.index < middle else left)

    @property
    def root(self) -> Digest:
        """Of the leaves that have come; see `Frontier.root`."""
        return _root(self._peaks)

    def proof(self) -> InclusionProof:
        """That the leaf is one of those that have come, as `MerkleTree.proof` has it. No more leaves can be added.

        Raises:
            LocalProtocolError: it has not come.
        """
        if self.index is None:
            raise LocalProtocolError("no such leaf")
        node, middle, end = self._peaks.pop(), self.leaves & (self.leaves - 1), self.leaves
        while self._peaks:
            left = self._peaks.pop()
            start = middle & (middle - 1)
            self._pass(left, node, start, middle, end)
            node, middle = node_hash(left, node), start
        return InclusionProof(index=self.index, leaves=self.leaves, path=tuple(self._path))


class MerkleTree:
    """All levels of a tree, so that every proof is a look-up: 64 bytes a leaf.

    Args:
        leaves: the bytes of each leaf, in order.

    Raises:
        LocalProtocolError: OVERSIZED, more than MAX_LEAVES.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaves: Iterable[bytes]) -> None:
        level: list[bytes] = []
        for leaf in leaves:
            if len(level) == MAX_LEAVES:
                raise LocalProtocolError(f"a tree of more than {MAX_LEAVES} leaves", code=WireCode.OVERSIZED)
            level.append(leaf_hash(leaf))
        self._levels = [level]
        while len(level) > 1:
            above = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
            if len(level) & 1:
                above.append(level[-1])  # without a neighbour: it stands for the subtree as it is
            self._levels.append(above)
            level = above

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> Digest:
        """32 bytes; `EMPTY_ROOT` without leaves."""
        return Digest(self._levels[-1][0]) if self._levels[0] else EMPTY_ROOT

    def proof(self, index: int) -> InclusionProof:
        """The proof for leaf `index`.

        Raises:
            LocalProtocolError: there is no such leaf.
        """
        return InclusionProof(index=index, leaves=len(self), path=tuple(self.path(index)))

    def path(self, index: int) -> list[bytes]:
        """The digests of that proof, from the leaf up.

        Raises:
            LocalProtocolError: there is no such leaf.
        """
        if not 0 <= index < len(self):
            raise LocalProtocolError(f"no leaf {index} in a tree of {len(self)}")
        path: list[bytes] = []
        at = index
        for level in self._levels[:-1]:
            neighbour = at ^ 1
            if neighbour < len(level):
                path.append(level[neighbour])
            at >>= 1
        return path

    def joined_paths(self, head: bytes) -> list[tuple[int, bytes]]:
        """For each leaf how many digests its `path` has, and these one behind the other, each behind `head`.

        What the paths of neighbours have in common is joined once, so that all of them cost less than a few of `path`.
        """
        paths = [(0, b"")]
        for level in reversed(self._levels[:-1]):
            below: list[tuple[int, bytes]] = []
            for at in range(0, len(level) - 1, 2):
                digests, rest = paths[at >> 1]
                below.append((digests + 1, head + level[at + 1] + rest))
                below.append((digests + 1, head + level[at] + rest))
            if len(level) & 1:  # without a neighbour
                below.append(paths[-1])
            paths = below
        return paths if self._levels[0] else []
