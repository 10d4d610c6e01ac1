"""Memory that node and workers share: memfds, sealed so that neither side can hurt the other with them.

An unsealed memfd is a weapon: who truncates it kills every process that touches its mapping (SIGBUS). The node
never maps them at all; it reads and writes them by `pread` and `pwrite`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import trio

from p2pcompute.errors import ExecutionError

__all__ = ["Arena", "SharedInput"]

_F_ADD_SEALS: Final = fcntl.F_ADD_SEALS
_SEAL_SIZE: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEAL_ALL: Final = _SEAL_SIZE | fcntl.F_SEAL_WRITE
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3
_IN_THREAD_BYTES: Final = 1 << 20
"""Above this many bytes a copy goes to a thread, so that the event loop stays at hand."""
_ONE_CALL_BYTES: Final = 1 << 30  # read and write move less than 2 GiB per call


def _memfd(name: str, size: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    fd = -1
    try:
        try:
            fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
        except OSError:  # EINVAL before 6.3
            fd = os.memfd_create(name, flags)
        os.ftruncate(fd, size)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise ExecutionError(
            f"the system gives no {size} bytes of shared memory: {error}; run less at a time"
        ) from error
    return fd


def _flat(content: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(content)
    return view.cast("B") if view.nbytes else memoryview(b"")  # a view of nothing can't be cast


class SharedInput:
    """An input array's bytes, copied once into sealed memory and mapped read-only by any number of workers.

    A context manager; leaving it (or `close`) gives the node's descriptor back, while workers that have it mapped
    keep the bytes until they end. Fill it either with `make`, or piece by piece with `write` and then `seal`.
    """

    __slots__ = ("_fd", "_sealed", "nbytes")

    def __init__(self, nbytes: int) -> None:
        """Room for exactly `nbytes` bytes, all zero. Raises `ExecutionError` where the system gives none."""
        self.nbytes: Final = nbytes
        self._fd = _memfd("p2pcompute-input", nbytes)
        self._sealed = False

    @classmethod
    async def make(cls, content: np.ndarray[Any, Any] | bytes | bytearray | memoryview) -> SharedInput:
        """A sealed copy of `content` (an array is taken in C order). Big ones are copied in a thread."""
        if isinstance(content, np.ndarray):
            flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
            view = flat.data
        else:
            view = _flat(content)
        shared = cls(view.nbytes)
        try:
            if view.nbytes > _IN_THREAD_BYTES:
                await trio.to_thread.run_sync(shared.write, 0, view)
            else:
                shared.write(0, view)
            shared.seal()
        except BaseException:
            shared.close()
            raise
        return shared

    def write(self, offset: int, piece: bytes | bytearray | memoryview) -> None:
        """Put `piece` at `offset`, before `seal`. Raises `ValueError` past the end or after `seal`, and
        `ExecutionError` where memory runs out."""
        view = _flat(piece)
        if self._sealed or self._fd < 0:
            raise ValueError("this input is sealed or closed")
        if offset < 0 or offset + view.nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + view.nbytes} lie outside an input of {self.nbytes}")
        while view.nbytes:
            try:
                done = os.pwrite(self._fd, view[:_ONE_CALL_BYTES], offset)
            except OSError as error:
                raise ExecutionError(f"an input of {self.nbytes} bytes can't be stored: {error}") from error
            offset += done
            view = view[done:]

    def seal(self) -> None:
        """Make the content final: nobody can change it from here on, not through any descriptor."""
        if not self._sealed:
            fcntl.fcntl(self._fd, _F_ADD_SEALS, _SEAL_ALL)
            self._sealed = True

    @property
    def sealed(self) -> bool:
        """Whether the content is final; only then a worker gets it."""
        return self._sealed

    def read(self) -> bytes:
        """A copy of the content. Raises `ValueError` for a closed input."""
        if self._fd < 0:
            raise ValueError("this input is closed")
        pieces = range(0, self.nbytes, _ONE_CALL_BYTES)
        return b"".join(os.pread(self._fd, min(_ONE_CALL_BYTES, self.nbytes - at), at) for at in pieces)

    def read_at(self, at: int, size: int) -> bytes:
        """A copy of `size` bytes from `at` on, fewer at the end. Raises `ValueError` for a closed input."""
        if self._fd < 0:
            raise ValueError("this input is closed")
        return os.pread(self._fd, size, at)

    def duplicate(self) -> int:
        """Another descriptor of the same memory, for whoever has to be sure of it while it is on its way.

        Raises `ValueError` for a closed input or one that is not sealed.
        """
        if self._fd < 0 or not self._sealed:
            raise ValueError("this input is closed or not sealed")
        return os.dup(self._fd)

    def close(self) -> None:
        """Give the descriptor back. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Arena:
    """Memory of fixed size that a worker writes its outputs into, and that the node copies out of."""

    __slots__ = ("_closing", "_fd", "_readers", "nbytes")

    def __init__(self, nbytes: int) -> None:
        """`nbytes` of zeroed memory. Raises `ExecutionError` where the system gives none."""
        self.nbytes: Final = nbytes
        self._readers = 0
        self._closing = False
        self._fd = _memfd("p2pcompute-arena", nbytes)
        try:
            fcntl.fcntl(self._fd, _F_ADD_SEALS, _SEAL_SIZE)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def put(self, content: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Write `content` at `offset`. Raises `ExecutionError` where memory runs out."""
        view = _flat(content)
        done = 0
        while done < view.nbytes:
            try:
                done += os.pwrite(self._fd, view[done : done + _ONE_CALL_BYTES], offset + done)
            except OSError as error:
                raise ExecutionError(f"{view.nbytes} bytes can't be given to a worker: {error}") from error

    async def fill(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Write pieces at their offsets. Many bytes go in a thread, which is not abandoned on cancellation."""

        def write() -> None:
            for offset, piece in pieces:
                self.put(piece, offset)

        if sum(piece.nbytes for _, piece in pieces) <= _IN_THREAD_BYTES:
            write()
            return
        self._readers += 1
        try:
            await trio.to_thread.run_sync(write)
        finally:
            self._readers -= 1
            if self._closing:
                self.close()

    async def copy_into(self, spans: Sequence[tuple[int, int]]) -> list[tuple[bytearray, bytes]]:
        """As `copy_out`, into buffers that can be overwritten, each with its SHA-256."""
        self._readers += 1
        try:
            if sum(size for _, size in spans) <= _IN_THREAD_BYTES:
                return self._read_into(spans)
            return await trio.to_thread.run_sync(self._read_into, spans)
        finally:
            self._readers -= 1
            if self._closing:
                self.close()

    def _read_into(self, spans: Sequence[tuple[int, int]]) -> list[tuple[bytearray, bytes]]:
        copies = [bytearray(size) for _, size in spans]
        for (offset, size), copy in zip(spans, copies, strict=True):
            view, done = memoryview(copy), 0
            while done < size:
                done += os.preadv(self._fd, [view[done : done + _ONE_CALL_BYTES]], offset + done)
        return [(copy, hashlib.sha256(copy).digest()) for copy in copies]

    async def copy_out(self, spans: tuple[tuple[int, int], ...]) -> tuple[bytes, ...]:
        """Private copies of `spans` (offset, bytes); what the worker writes afterwards does not reach them.

        A big copy runs in a thread and is not abandoned on cancellation.
        """
        if sum(size for _, size in spans) <= _IN_THREAD_BYTES:
            return self._read_all(spans)
        self._readers += 1
        try:
            return await trio.to_thread.run_sync(self._read_all, spans)
        finally:
            self._readers -= 1
            if self._closing:
                self.close()

    def _read_all(self, spans: tuple[tuple[int, int], ...]) -> tuple[bytes, ...]:
        return tuple(self._read(offset, size) for offset, size in spans)

    def _read(self, offset: int, size: int) -> bytes:
        if size <= _ONE_CALL_BYTES:
            return os.pread(self._fd, size, offset)
        pieces = range(0, size, _ONE_CALL_BYTES)
        return b"".join(os.pread(self._fd, min(_ONE_CALL_BYTES, size - at), offset + at) for at in pieces)

    def close(self) -> None:
        """Give the descriptor back, once the copies that are being made are done. Closing twice is fine."""
        self._closing = True
        if self._readers == 0 and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
