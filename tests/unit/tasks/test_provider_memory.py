"""What a provider holds of a task's inputs: large ones once, in memory that its workers share, and until its end."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from p2pcompute.errors import ChunkFailed
from p2pcompute.execution import SharedInput
from p2pcompute.identity import NodeKey
from p2pcompute.tasks import ChunkDone, ChunkRejected
from p2pcompute.tasks._inputs import KeptInputs, TaskInputs
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.task import DATA_BYTES

from ..market._harness import Market, Watch, Z, compute, in_memory, virtually
from ..market._rogues import CHUNKS, axpy_work

_MIB = 1024 * 1024
PEER = NodeKey.generate().peer_id
OTHER = NodeKey.generate().peer_id


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
    with TaskInputs(work, KeptInputs(), PEER, keep=lambda: True) as blobs:
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
    with TaskInputs(work, KeptInputs(), PEER, keep=lambda: True) as taken:
        assert set(taken.whole.values()) == {b""}
        taken.start(work.kernel.digest, 2 * _MIB)
        taken.add(bytes(2 * _MIB))
        assert taken.whole[work.kernel.digest] == bytes(2 * _MIB)
        assert set(taken.whole) == set(blobs)


@pytest.mark.parametrize("shared_bytes", [1, _MIB])
def test_the_successor_of_a_worker_that_died_has_the_inputs_too(
    shared_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcompute.tasks._inputs.SHARED_BYTES", shared_bytes)
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


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.tasks._inputs.SHARED_BYTES", 8)


def bring(kept: KeptInputs, peer: Any, *contents: bytes, keep: bool = True) -> set[bytes]:
    """One task with these inputs; the digests of those that were here."""
    work = SimpleNamespace(inputs=dict.fromkeys(contents), kernel=SimpleNamespace(digest=b"none"))
    with TaskInputs(work, kept, peer, keep=lambda: keep) as task:  # type: ignore[arg-type]
        for each in contents:
            if each not in task.had:
                task.start(each, len(each))
                task.add(each)
            else:
                held = task.whole[each]
                assert (held if isinstance(held, bytes) else content(held)) == each
        return task.had


def serving(kept: KeptInputs, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(kept.serve)
            await scenario()
            nursery.cancel_scope.cancel()

    virtually(main)
    assert memfds() == 0
    assert not kept.nbytes


@pytest.mark.usefixtures("small_bounds")
def test_inputs_stay_for_their_own_requester_and_for_a_while() -> None:
    kept = KeptInputs(keep_s=60)

    async def scenario() -> None:
        assert bring(kept, PEER, b"small", b"large enough") == set()
        assert bring(kept, PEER, b"large enough", b"new") == {b"large enough"}
        assert bring(kept, OTHER, b"small", b"large enough") == set()  # not even that they are here
        assert bring(kept, PEER, b"unpaid", keep=False) == set()
        assert bring(kept, PEER, b"unpaid", b"small") == {b"small"}
        await trio.sleep(59)
        assert bring(kept, PEER, b"small") == {b"small"}
        await trio.sleep(59)
        assert bring(kept, PEER, b"small", b"large enough") == {b"small"}
        await trio.sleep(61)
        assert not kept.nbytes

    serving(kept, scenario)


@pytest.mark.usefixtures("small_bounds")
def test_the_least_recently_used_go_first_and_none_that_is_used() -> None:
    kept = KeptInputs(peer_bytes=20, total_bytes=30)
    a, b, c, d, e = (letter * 10 for letter in (b"a", b"b", b"c", b"d", b"e"))

    def here(peer: Any, *contents: bytes) -> list[bytes]:
        found = []
        for each in contents:
            if kept.lend(peer, each) is not None:
                kept.give_back(peer, each)
                found.append(each)
        return found

    async def scenario() -> None:
        bring(kept, PEER, a)
        bring(kept, PEER, b)
        bring(kept, PEER, a)
        bring(kept, PEER, c)  # over the requester's bound
        assert here(PEER, a, b, c) == [a, c]
        used = kept.lend(PEER, a)
        assert isinstance(used, SharedInput)
        bring(kept, OTHER, d, e)
        assert here(PEER, c) == [c]  # three are idle
        bring(kept, OTHER, b)
        assert len(here(OTHER, b, d, e)) == 2  # over its bound again
        bring(kept, PEER, d)
        assert here(PEER, c, d) == [d]  # four were idle, over what all may have; c was the oldest
        assert content(used) == a
        kept.give_back(PEER, a)

    serving(kept, scenario)


@pytest.mark.usefixtures("small_bounds")
def test_the_end_of_service_leaves_nothing_behind() -> None:
    kept = KeptInputs()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(kept.serve)
            bring(kept, PEER, b"a" * 10, b"b" * 10)
            assert kept.lend(PEER, b"a" * 10) is not None
            nursery.cancel_scope.cancel()
        assert kept.nbytes == 10
        kept.give_back(PEER, b"a" * 10)  # a task that outlived the service by a moment
        bring(kept, PEER, b"c" * 10)

    virtually(main)
    assert memfds() == 0
    assert not kept.nbytes


def test_half_an_input_is_let_go() -> None:
    work, _ = axpy_work()
    with TaskInputs(work, KeptInputs(), PEER, keep=lambda: True) as task:
        task.start(b"large", 2 * _MIB)
        task.add(bytes(_MIB))
        assert memfds() == 1
    assert memfds() == 0


def test_a_customer_sends_an_input_once() -> None:
    sent: list[int] = []

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        kept = provider.provider.tasks.kept  # type: ignore[union-attr]
        lend = kept.lend

        def counted(peer: Any, digest: bytes) -> Any:
            found = lend(peer, digest)
            sent[-1] += found is None
            return found

        kept.lend = counted  # type: ignore[method-assign]
        for _ in range(2):
            sent.append(0)
            assert (await compute(requester) == Z).all()

    in_memory(scenario)
    assert sent == [3, 0]  # the kernel and two arrays; then nothing
