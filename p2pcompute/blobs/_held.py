"""A blob that is here, or on its way here, piece by piece; served by `BlobServer` and filled by `BlobFetch`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from p2pcompute_protocols.blob import BlobWant, count_pieces, piece_span, root_of
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.merkle import leaf_hash

__all__ = ["BlobName", "Bytes", "Content", "HeldBlob", "digest_of", "leaves_of"]

_BETWEEN: Final = 4  # pieces that are hashed before others may run: a millisecond


class Content(Protocol):
    """Where the bytes of a blob lie. `write` is called before the blob is complete only."""

    def read(self, at: int, size: int) -> bytes: ...
    def write(self, at: int, data: bytes | memoryview) -> None: ...


class Bytes:
    """Content in memory: bytes that are there already, or room for `size` bytes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray | int) -> None:
        self.data = bytearray(data) if isinstance(data, int) else data

    def read(self, at: int, size: int) -> bytes:
        return bytes(self.data[at : at + size])

    def write(self, at: int, data: bytes | memoryview) -> None:
        assert isinstance(self.data, bytearray)  # what is complete is not written to
        self.data[at : at + len(data)] = data


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobName:
    """SHA-256 of a blob, its bytes, and the root of the tree over its pieces."""

    digest: bytes
    size: int
    root: bytes

    def want(self, ticket: bytes) -> BlobWant:
        """The question for it."""
        return BlobWant(digest=self.digest, size=self.size, root=self.root, ticket=ticket)


async def leaves_of(content: Content, size: int) -> tuple[bytes, ...]:
    """The leaf hash of each piece; lets others run meanwhile."""
    leaves: list[bytes] = []
    for index in range(count_pieces(size)):
        leaves.append(leaf_hash(content.read(*piece_span(index, size))))
        if index % _BETWEEN == 0:
            await trio.lowlevel.checkpoint()
    return tuple(leaves)


async def digest_of(content: Content, size: int) -> bytes:
    """SHA-256 of all bytes; lets others run meanwhile."""
    made = hashlib.sha256()
    for index in range(count_pieces(size)):
        made.update(content.read(*piece_span(index, size)))
        if index % _BETWEEN == 0:
            await trio.lowlevel.checkpoint()
    return made.digest()


class HeldBlob:
    """One blob, as far as it is here.

    Args:
        name: of it.
        content: where its bytes lie.
        complete: whether they all do.
        origin: whether it is our own task's: served while this node drains.

    Attributes:
        leaves: the leaf hash of each piece; None until they are known.
        pieces: those that are here, each of them checked.
        given: how often each piece was sent to each peer, or is to be; `sent`, to all of them.
    """

    def __init__(self, name: BlobName, content: Content, *, complete: bool = False, origin: bool = False) -> None:
        self.name = name
        self.content = content
        self.origin = origin
        self.count = count_pieces(name.size)
        self.leaves: tuple[bytes, ...] | None = None
        self.pieces: set[int] = set(range(self.count)) if complete else set()
        self.given: Counter[tuple[PeerId, int]] = Counter()
        self.sent: Counter[int] = Counter()
        self.changed = trio.Event()  # set, and replaced, with each piece and when the leaves are known
        self.watchers: set[Callable[[], None]] = set()  # called at the same times
        self._hashing = trio.Lock()

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here."""
        return len(self.pieces) == self.count

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        event, self.changed = self.changed, trio.Event()
        event.set()
        for watcher in tuple(self.watchers):
            watcher()

    def know(self, leaves: tuple[bytes, ...]) -> None:
        """The leaves have come, and are those of the root."""
        if self.leaves is None:
            self.leaves = leaves
            self.notify()

    def read(self, index: int) -> bytes:
        """A piece that is here."""
        return self.content.read(*piece_span(index, self.name.size))

    def put(self, index: int, data: bytes | memoryview) -> bool:
        """Take a piece that was checked; False where it is here already."""
        if index in self.pieces:
            return False
        self.content.write(piece_span(index, self.name.size)[0], data)
        self.pieces.add(index)
        self.notify()
        return True

    async def wait_leaves(self) -> tuple[bytes, ...] | None:
        """The leaves, once they are known: of what is complete they are made here. None where what is complete is not
        of its root."""
        while self.leaves is None and not self.is_complete:
            await self.changed.wait()
        async with self._hashing:
            if self.leaves is None:
                leaves = await leaves_of(self.content, self.name.size)
                if root_of(leaves) != self.name.root:
                    return None
                self.leaves = leaves
            return self.leaves
