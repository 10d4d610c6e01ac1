"""A provider's inputs: those of one task, and those that stay for the next task of the same requester.

Inputs are named by their content, so a requester that comes again, with the weights of a model or the points of a
data set, sends only what is new. What is kept is found by its own requester alone: else anybody could find out, by its
digest, what others compute on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Self, TypeAlias

import trio

from p2pcompute.execution import SharedInput
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.work import ChunkWork, ProgramWork, Work

__all__ = ["SHARED_BYTES", "Input", "InputContent", "KeptInputs", "TaskInputs"]

SHARED_BYTES: Final = 1024 * 1024  # inputs of this size and above lie in shared memory

_KEEP_S: Final = 600.0
_TOTAL_BYTES: Final = 512 * 1024 * 1024
_PEER_BYTES: Final = 128 * 1024 * 1024  # two tasks' full inputs
_PEER_INPUTS: Final = 64  # a descriptor for each large one
_TOTAL_INPUTS: Final = 256

Input: TypeAlias = bytes | SharedInput


@dataclass(slots=True)
class _Kept:
    content: Input
    users: int  # tasks that compute on it now
    until_s: float  # in trio's time; it counts when nobody uses it


def _size(content: Input) -> int:
    return len(content) if isinstance(content, bytes) else content.nbytes


class KeptInputs:
    """Inputs that stay when their task has ended, by requester and digest; the least recently used go first. None does
    but while `serve` runs, which lets go of them in the end.

    Args:
        total_bytes, peer_bytes: what all and what one requester's may have; of those that no task uses.
        keep_s: for how long after their last task.
    """

    def __init__(
        self, *, total_bytes: int = _TOTAL_BYTES, peer_bytes: int = _PEER_BYTES, keep_s: float = _KEEP_S
    ) -> None:
        self._total_bytes = total_bytes
        self._peer_bytes = peer_bytes
        self._keep_s = keep_s
        self._kept: OrderedDict[tuple[PeerId, bytes], _Kept] = OrderedDict()
        self._changed = trio.Event()
        self._serving = False

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, in use or not."""
        return sum(_size(kept.content) for kept in self._kept.values())

    def lend(self, peer: PeerId, digest: bytes) -> Input | None:
        """The input, if `peer` left it here; it stays until it is given back as often as it was lent."""
        kept = self._kept.get((peer, digest))
        if kept is None:
            return None
        kept.users += 1
        self._kept.move_to_end((peer, digest))
        return kept.content

    def give_back(self, peer: PeerId, digest: bytes) -> None:
        """A task that `lend` gave it to has ended."""
        kept = self._kept[peer, digest]
        kept.users -= 1
        kept.until_s = trio.current_time() + self._keep_s
        if self._serving:
            self._make_room(peer)
        elif not kept.users:
            _close(self._kept.pop((peer, digest)).content)

    def keep(self, peer: PeerId, digest: bytes, content: Input) -> None:
        """Take over an input that a task of `peer` has no more use for."""
        if not self._serving or (peer, digest) in self._kept:  # the latter: two of its tasks have brought it
            _close(content)
            return
        self._kept[peer, digest] = _Kept(content, users=0, until_s=trio.current_time() + self._keep_s)
        self._make_room(peer)
        self._changed.set()

    def _make_room(self, peer: PeerId) -> None:
        """Let go of what is over a bound, the least recently used first."""
        everybodys = [key for key, kept in self._kept.items() if not kept.users]
        its_own = [key for key in everybodys if key[0] == peer]
        self._shorten(its_own, self._peer_bytes, _PEER_INPUTS)
        self._shorten([key for key in everybodys if key in self._kept], self._total_bytes, _TOTAL_INPUTS)

    def _shorten(self, keys: list[tuple[PeerId, bytes]], most_bytes: int, most: int) -> None:
        size = sum(_size(self._kept[key].content) for key in keys)
        for gone, key in enumerate(keys):
            if size <= most_bytes and len(keys) - gone <= most:
                return
            size -= _size(self._kept[key].content)
            _close(self._kept.pop(key).content)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Let go of what was kept for long enough, until cancelled; then of everything that no task uses."""
        self._serving = True
        task_status.started()
        try:
            while True:
                self._changed = trio.Event()
                now = trio.current_time()
                self._let_go(now)
                # What is in use is kept for as long again afterwards: to look then is early enough.
                first_s = min((max(kept.until_s, now + 1) for kept in self._kept.values()), default=math.inf)
                with trio.move_on_at(first_s):
                    await self._changed.wait()
        finally:
            self._serving = False
            self._let_go(math.inf)

    def _let_go(self, now_s: float) -> None:
        for key in [key for key, kept in self._kept.items() if not kept.users and kept.until_s <= now_s]:
            _close(self._kept.pop(key).content)


def _close(content: Input) -> None:
    if isinstance(content, SharedInput):
        content.close()


class InputContent:
    """An input as what blobs are read from and written to."""

    __slots__ = ("made",)

    def __init__(self, made: bytes | bytearray | SharedInput) -> None:
        self.made = made

    def read(self, at: int, size: int) -> bytes:
        if isinstance(self.made, SharedInput):
            return self.made.read_at(at, size)
        return bytes(self.made[at : at + size])

    def write(self, at: int, data: bytes | memoryview) -> None:
        if isinstance(self.made, SharedInput):
            self.made.write(at, data)
        else:
            assert isinstance(self.made, bytearray)  # one that is complete is not written to
            self.made[at : at + len(data)] = data


class TaskInputs:
    """The inputs of one task, which a context holds. Large ones lie in memory that its workers share with this
    process, and so only once; they stay until the task ends, since a worker that dies has a successor.

    Attributes:
        whole: content by digest, of what has come or was here; nothing yet of the others.
        had: digests of those that were here.

    Args:
        kept: where they may have been left, and are left at the end if `keep` says so.
    """

    def __init__(self, work: Work, kept: KeptInputs, peer: PeerId, *, keep: Callable[[], bool]) -> None:
        self.whole: dict[bytes, Input] = dict.fromkeys(work.inputs, b"")
        self.had: set[bytes] = set()
        # What this process reads itself: the kernel and manifests.
        self._plain = set[bytes]()
        if isinstance(work, ChunkWork):
            self._plain.add(work.kernel.digest)
        if isinstance(work, ChunkWork | ProgramWork):
            self._plain |= {arg.manifest for arg in work.splits.values()}
        self._kept = kept
        self._peer = peer
        self._keep = keep
        self._came: set[bytes] = set()
        self._rooms: dict[bytes, InputContent] = {}  # of those that come in pieces, in any order
        self._digest = b""
        self._left = 0
        self._small = bytearray()
        self._large: SharedInput | None = None

    def __enter__(self) -> Self:
        for digest in self.whole:
            content = self._kept.lend(self._peer, digest)
            if content is not None:
                self.whole[digest] = content
                self.had.add(digest)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._large is not None:  # half of it has come
            self._large.close()
        for room in self._rooms.values():
            if isinstance(room.made, SharedInput):
                room.made.close()
        stays = self._keep()
        for digest in self._came:
            if stays:
                self._kept.keep(self._peer, digest, self.whole[digest])
            else:
                _close(self.whole[digest])
        for digest in self.had:
            self._kept.give_back(self._peer, digest)

    def room(self, digest: bytes, size: int) -> InputContent:
        """Room for an input that comes in pieces; `adopt` makes it one of the task's. Raises `ExecutionError` where
        memory runs out."""
        large = size >= SHARED_BYTES and digest not in self._plain
        room = self._rooms[digest] = InputContent(SharedInput(size) if large else bytearray(size))
        return room

    def adopt(self, digest: bytes) -> None:
        """All of it has come, and its hash is right."""
        made = self._rooms.pop(digest).made
        if isinstance(made, SharedInput):
            made.seal()
            self.whole[digest] = made
        else:
            self.whole[digest] = bytes(made)
        self._came.add(digest)

    def give_up(self, digest: bytes) -> None:
        """It is not what it was taken for."""
        made = self._rooms.pop(digest).made
        if isinstance(made, SharedInput):
            made.close()

    def start(self, digest: bytes, size: int) -> None:
        """An input begins; the connection has checked its size. Raises `ExecutionError` where memory runs out."""
        self._digest, self._left = digest, size
        self._small.clear()
        # Each large one holds a file descriptor, of which a process has about a thousand.
        self._large = SharedInput(size) if size >= SHARED_BYTES and digest not in self._plain else None

    def add(self, data: bytes | memoryview) -> None:
        """More of it; the connection has checked that it is no more than announced, and at its end the hash."""
        if self._large is None:
            self._small += data
        else:
            self._large.write(self._large.nbytes - self._left, data)
        self._left -= len(data)
        if self._left:
            return
        if self._large is not None:
            self._large.seal()
        self.whole[self._digest] = bytes(self._small) if self._large is None else self._large
        self._large = None
        self._came.add(self._digest)
