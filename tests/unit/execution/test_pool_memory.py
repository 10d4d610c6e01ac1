"""Shared memory: seals hold, copies are private, and what an unsealed memfd would do."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import trio

from p2pcompute.errors import ExecutionError
from p2pcompute.execution import SharedInput
from p2pcompute.execution._pool_memory import Arena

PROGRAM = """
import mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
view = mmap.mmap(fd, size, prot=mmap.PROT_READ)
try:
    os.ftruncate(fd, 0)
except OSError:
    pass
sys.exit(view[size - 1])
"""


def touch_after_truncation(fd: int, size: int) -> int:
    """In a process of its own: map `fd`, truncate it as "the other side" would, touch the mapping. Its exit code."""
    argv = [sys.executable, "-I", "-c", PROGRAM, str(fd), str(size)]
    return subprocess.run(argv, pass_fds=[fd], check=False, timeout=500).returncode


def test_without_seals_a_truncation_kills_whoever_has_it_mapped() -> None:
    fd = os.memfd_create("unsealed")
    try:
        os.ftruncate(fd, 1 << 16)
        assert touch_after_truncation(fd, 1 << 16) == -signal.SIGBUS
    finally:
        os.close(fd)


def test_an_arena_keeps_its_size_and_takes_writes() -> None:
    async def main() -> None:
        arena = Arena(1 << 16)
        try:
            assert touch_after_truncation(arena.fileno(), 1 << 16) == 0
            for size in (0, 1 << 20):
                with pytest.raises(PermissionError):
                    os.ftruncate(arena.fileno(), size)
            with pytest.raises(PermissionError):
                os.pwrite(arena.fileno(), b"x", 1 << 16)
            arena.put(b"abcdef")
            assert await arena.copy_out(((0, 3), (3, 3), (10, 2), (5, 0))) == (b"abc", b"def", b"\0\0", b"")
        finally:
            arena.close()
            arena.close()

    trio.run(main)


def test_a_copy_is_private_and_large_ones_go_through_a_thread() -> None:
    async def main() -> None:
        arena = Arena(3 << 20)
        arena.put(b"\1" * (3 << 20))
        (copy,) = await arena.copy_out(((1 << 19, 2 << 20),))
        arena.put(bytes(3 << 20))
        assert copy == b"\1" * (2 << 20)
        arena.close()

    trio.run(main)


def test_closing_an_arena_waits_for_the_copy_that_is_being_made() -> None:
    """A descriptor that is given back under a reader may be another file by then."""

    async def main() -> None:
        arena = Arena(8 << 20)
        arena.put(b"\7" * (8 << 20))
        fd = arena.fileno()
        copies: list[bytes] = []

        async def copy() -> None:
            copies.extend(await arena.copy_out(((0, 8 << 20),)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy)
            while not arena._readers:
                await trio.lowlevel.checkpoint()
            arena.close()
            if not copies:
                os.fstat(fd)
        assert copies == [b"\7" * (8 << 20)]
        assert arena.fileno() == -1
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(fd)

    trio.run(main)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        bytearray(b"abc"),
        np.arange(12, dtype=np.float64).reshape(3, 4),
        np.arange(12, dtype=np.int16).reshape(3, 4).T,
        np.zeros((0, 3)),
        np.array(5.0),
        np.ones(1 << 19, dtype=np.float32),
    ],
    ids=["empty", "bytes", "bytearray", "array", "transposed", "empty array", "0-d", "2 MiB"],
)
def test_a_shared_input_holds_the_content_in_c_order_for_ever(content: np.ndarray | bytes | bytearray) -> None:  # type: ignore[type-arg]
    async def main() -> None:
        with await SharedInput.make(content) as shared:
            due = content.tobytes() if isinstance(content, np.ndarray) else bytes(content)
            assert shared.nbytes == len(due)
            other = shared.duplicate()
            try:
                assert os.pread(other, len(due) + 1, 0) == due
                with pytest.raises(PermissionError):
                    os.ftruncate(other, 0 if due else 1)
                with pytest.raises(PermissionError):
                    os.pwrite(other, b"x", 0)
                if due:
                    with pytest.raises(PermissionError):
                        mmap.mmap(other, len(due), flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE)
            finally:
                os.close(other)
        with pytest.raises(ValueError, match="closed"):
            shared.duplicate()

    trio.run(main)


def test_no_memory_is_a_typed_error() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        for make in (SharedInput, Arena):
            with pytest.raises(ExecutionError, match="shared memory"):
                make(1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_shared_input_can_be_filled_piece_by_piece() -> None:
    with SharedInput(8) as shared:
        shared.write(4, b"efgh")
        shared.write(0, memoryview(b"abcd"))
        for offset, piece in ((-1, b"x"), (8, b"x"), (0, b"123456789")):
            with pytest.raises(ValueError, match="outside an input of 8"):
                shared.write(offset, piece)
        with pytest.raises(ValueError, match="not sealed"):
            shared.duplicate()
        assert not shared.sealed
        shared.seal()
        shared.seal()
        assert shared.sealed
        with pytest.raises(ValueError, match="sealed or closed"):
            shared.write(0, b"x")
        fd = shared.duplicate()
        assert os.pread(fd, 100, 0) == b"abcdefgh"
        os.close(fd)
    shared.close()
