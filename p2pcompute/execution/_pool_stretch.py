"""One stretch of memory that a session shares with its worker, written anew for each packet that speaks of it."""

from __future__ import annotations

from collections.abc import Sequence

from p2pcompute.errors import ExecutionError
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._pool_memory import Arena

__all__ = ["SharedStretch", "aligned"]


def aligned(nbytes: int) -> int:
    """So many bytes, up to where the next piece may begin."""
    return -(-nbytes // ipc.ALIGNMENT) * ipc.ALIGNMENT


class SharedStretch:
    """An arena that grows with what is written, `most_bytes` at most."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._arena: Arena | None = None
        self._mapped = False  # whether the worker has the arena

    @property
    def nbytes(self) -> int:
        """Memory that is held."""
        return 0 if self._arena is None else self._arena.nbytes

    async def write(self, pieces: Sequence[tuple[int, memoryview]], total: int, what: str) -> tuple[int, list[int]]:
        """Write pieces, each at its place, into `total` bytes. Gives the size and the descriptor that go along in the
        packet that says so, until `taken` says that the worker has the memory; after that 0 and none.

        Raises:
            ExecutionError: `what` is over the worker's limit.
        """
        if total > self._most_bytes:
            raise ExecutionError(f"{what} have {total} bytes and a worker takes {self._most_bytes}")
        if self._arena is None or self._arena.nbytes < total:
            # At least double: a hostile worker that keeps the old ones holds no more than the last one's size.
            size = min(max(total, 2 * self.nbytes, ipc.ALIGNMENT), max(self._most_bytes, total))
            self.close()
            self._arena = Arena(size)
        arena = self._arena
        await arena.fill(pieces)
        return (0, []) if self._mapped else (arena.nbytes, [arena.fileno()])

    def taken(self) -> None:
        """The packet of the last `write` has reached the worker, which answered."""
        self._mapped = self._arena is not None

    def close(self) -> None:
        """Give the memory back."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        self._mapped = False
