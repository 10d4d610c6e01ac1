"""What a provider holds of a task's inputs: large ones once, in memory that its workers share, and until its end."""

from __future__ import annotations

import os
import tracemalloc
from contextlib import ExitStack
from typing import Any

import pytest

from p2pcompute.errors import ChunkFailed
from p2pcompute.execution import SharedInput
from p2pcompute.tasks import ChunkDone, ChunkRejected
from p2pcompute.tasks._provider import _Blobs
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.task import DATA_BYTES

from ..market._harness import Market, Watch, compute, in_memory
from ..market._rogues import CHUNKS, axpy_work

_MIB = 1024 * 1024


def memfds() -> int:
    """Inputs in shared memory that this process has open."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            count += "memfd:p2pcompute-input" in os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
    return count


def content(shared: bytes | SharedInput) -> bytes:
    assert isinstance(shared, SharedInput)
    fd = shared.duplicate()
    try:
        return os.pread(fd, shared.nbytes, 0)
    finally:
        os.close(fd)


def test_a_large_input_is_not_on_the_heap() -> None:
    work, _ = axpy_work()
    size = 16 * _MIB + 5
    with ExitStack() as kept:
        blobs = _Blobs(work, kept)
        piece = bytes(range(256)) * (DATA_BYTES // 256)
        tracemalloc.start()
        try:
            blobs.start(b"large", size)
            for at in range(0, size, DATA_BYTES):
                blobs.add(piece[: min(DATA_BYTES, size - at)])
            assert tracemalloc.get_traced_memory()[1] < _MIB
        finally:
            tracemalloc.stop()
        blobs.start(b"small", 3)
        blobs.add(b"a")
        blobs.add(b"bc")
        assert blobs.whole[b"small"] == b"abc"
        large = content(blobs.whole[b"large"])
        assert len(large) == size
        assert large == (piece * (size // DATA_BYTES + 1))[:size]
        assert memfds() == 1
    assert memfds() == 0


def test_a_kernels_text_and_empty_arrays_are_bytes() -> None:
    work, blobs = axpy_work()
    with ExitStack() as kept:
        taken = _Blobs(work, kept)
        assert set(taken.whole.values()) == {b""}
        taken.start(work.kernel.digest, 2 * _MIB)
        taken.add(bytes(2 * _MIB))
        assert taken.whole[work.kernel.digest] == bytes(2 * _MIB)
        assert set(taken.whole) == set(blobs)


@pytest.mark.parametrize("shared_bytes", [1, _MIB])
def test_the_successor_of_a_worker_that_died_has_the_inputs_too(
    shared_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.tasks._provider._SHARED_BYTES", shared_bytes)
    most = 0

    async def scenario(market: Market) -> None:
        def look(_event: Any) -> None:
            nonlocal most
            most = max(most, memfds())

        unlucky = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({8}))))
        requester = await market.node(connect=(unlucky,))
        watch = Watch(look)
        with pytest.raises(ChunkFailed, match="chunk 4 failed"):
            await compute(requester, watch=watch, chunks=CHUNKS)
        events = [event for event in watch.events if isinstance(event, ChunkDone | ChunkRejected)]
        (death,) = [number for number, event in enumerate(events) if isinstance(event, ChunkRejected)]
        assert len(events[death + 1 :]) > 4  # with the next worker, which was given the same inputs

    in_memory(scenario)
    assert (most > 0) == (shared_bytes == 1)
    assert memfds() == 0
