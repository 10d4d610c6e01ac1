"""Tasks whose kernels change arrays in place, end to end: sampled, paid, hired, and like any other to all others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelTypeError
from p2pcompute.tasks import ChunkDone, Compiling, LiarCaught, TaskEnded, TaskStarted
from p2pcompute.testing._output_faults import lie
from p2pcompute_protocols.work import ArrayArg, OutArg

from ..market._harness import SIZE, Market, Watch, X, in_memory


@p2p.kernel
def increment_by_one(an_array):  # type: ignore[no-untyped-def]
    pos = cuda.grid(1)
    if pos < an_array.size:
        an_array[pos] += 1


@p2p.kernel
def accumulate(total, gain, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < total.size and x[i] > 0:
        total[i] += gain * x[i]


@p2p.kernel
def incremented(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + 1


CHANGED = X + 1


def test_a_tutorials_kernel_is_run_sampled_and_paid() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        mine = X.copy()
        found = await node.run(increment_by_one[SIZE // 128, 128], p2p.inout(mine), chunks=4, on_event=watch)
        assert found.tobytes() == CHANGED.tobytes()
        assert mine.tobytes() == X.tobytes()
        assert len(watch.of(ChunkDone)) == 4
        assert all(event.checked for event in watch.of(ChunkDone))
        (ended,) = watch.of(TaskEnded)
        assert 0 < ended.paid_uusd == await market.spent_uusd(node) == await market.claimed_uusd(provider)

    in_memory(scenario)


@pytest.mark.parametrize("moment", [Compiling, TaskStarted, ChunkDone])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_array_that_is_written_to_meanwhile_changes_nothing(in_place: bool, moment: type) -> None:
    """A task takes its arrays when it begins: all chunks and samples are of the same bytes."""

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        mine = X.copy()

        def change(event: Any) -> None:
            if isinstance(event, moment):
                mine[:] = -1

        watch = Watch(change)
        call = [p2p.inout(mine)] if in_place else [p2p.out(SIZE, X.dtype), mine]
        found = await node.run(increment_by_one if in_place else incremented, *call, chunks=4, on_event=watch)
        assert found.tobytes() == CHANGED.tobytes()
        assert not watch.of(LiarCaught)
        assert (mine == -1).all()

    in_memory(scenario)


def test_a_lie_is_caught_and_computed_anew() -> None:
    async def scenario(market: Market) -> None:
        liar, honest = await market.provider(fault=lie(1, 8)), await market.provider()
        node = await market.node(connect=(liar, honest))
        watch = Watch()
        found = await node.run(increment_by_one, p2p.inout(X), chunks=16, on_event=watch)
        assert found.tobytes() == CHANGED.tobytes()
        assert [event.provider for event in watch.of(LiarCaught)] == [liar.peer_id]

    in_memory(scenario)


def test_chunks_split_arrays_and_other_outputs() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(), await market.provider()))
        found = np.zeros_like(X)
        async with node.map(increment_by_one, p2p.inout(p2p.split(X, tile=256)), chunks=8) as chunks:
            async for chunk in chunks:
                first = chunk.first_block * 128
                found[first : first + chunk.blocks * 128] = chunk.rows[0]
        assert found.tobytes() == CHANGED.tobytes()
        gain = np.float32(3)
        found = await node.run(accumulate, p2p.inout(CHANGED), gain, X, fp="fast")
        np.testing.assert_allclose(found, CHANGED + gain * X, rtol=1e-5)
        pair = await node.run(both, p2p.inout(X), p2p.reduce("sum", SIZE, np.float32), p2p.inout(X[::-1]))
        assert [np.shape(one) for one in pair] == [(SIZE,), (), (SIZE,)]
        assert pair[2].tobytes() == X[::-1].tobytes()

    in_memory(scenario)


LAUNCHED = [increment_by_one, increment_by_one[8, 128], increment_by_one[40, 64]]


@pytest.mark.parametrize("launched", LAUNCHED, ids=range(3))
def test_joined_chunks_are_as_long_as_the_array(launched: Any) -> None:
    assert np.array_equal(in_memory_joined(launched, p2p.inout(COUNT)), COUNT + 1)


def test_joined_chunks_are_as_long_as_the_array_where_threads_work_together() -> None:
    whole = np.append(COUNT, np.zeros(24, np.int64)).reshape(-1, 64)[:, ::-1].reshape(-1)[:1000]
    assert np.array_equal(in_memory_joined(turned[20, 64], p2p.inout(COUNT)), whole)
    rows = np.stack([COUNT, -COUNT], axis=1)
    assert np.array_equal(in_memory_joined(turned_pairs[20, 64], p2p.out(rows.shape, np.int64), COUNT), rows)
    beside = p2p.reduce("sum", COUNT.size, np.int64), p2p.inout(-COUNT)
    assert np.array_equal(in_memory_joined(both[20, 64], p2p.inout(COUNT), *beside), -COUNT)
    # Blocks give an element each, and are more than there are elements.
    assert np.array_equal(in_memory_joined(of_blocks[40, 64], p2p.inout(COUNT[:17])), COUNT[:17] + 64)


COUNT = np.arange(1000)


@p2p.kernel
def turned(a):  # type: ignore[no-untyped-def]
    part = cuda.shared.array(64, np.int64)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    part[t] = a[i]
    cuda.syncthreads()
    if i < a.size:
        a[i] = part[63 - t]


@p2p.kernel
def turned_pairs(o, a):  # type: ignore[no-untyped-def]
    part = cuda.shared.array(64, np.int64)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    part[t] = a[i]
    cuda.syncthreads()
    o[i, 0] = part[t]
    o[i, 1] = -part[t]


@p2p.kernel
def of_blocks(a):  # type: ignore[no-untyped-def]
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        a[cuda.blockIdx.x] += cuda.blockDim.x


def in_memory_joined(kernel: Any, *args: Any) -> Any:
    """The first output, as whoever iterates over chunks joins it."""
    found: list[Any] = []

    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(), await market.provider()))
        found.extend([(chunk.first_block, chunk.rows[0]) async for chunk in node.map(kernel, *args, chunks=7)])

    in_memory(scenario)
    assert len(found) > 1
    return np.concatenate([rows for _, rows in sorted(found, key=lambda one: one[0])])


@p2p.kernel
def both(a, s, b):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < a.size:
        a[i], b[i] = b[i], b[i]
        s[i] = a[i] - b[i]


def test_a_hire_takes_another_array_each_call() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(),))
        watch = Watch()
        async with node.hire(
            accumulate, p2p.inout(CHANGED), np.float32(1), X, budget="0.10 USD", chunks=2, on_event=watch
        ) as hired:
            total = X * 2
            for step in range(3):
                given: Any = p2p.inout(total) if step % 2 else total
                due = total + np.float32(step) * X
                total = await hired.run(given, np.float32(step), X)
                assert total.tobytes() == due.tobytes()
            with pytest.raises(KernelTypeError, match="2 inputs are given and the hired kernel takes 3"):
                await hired.run(np.float32(1), X)
            with pytest.raises(KernelTypeError, match=r"argument 1 was hired as float32\(4096,\) and float64"):
                await hired.run(total.astype(np.float64), np.float32(1), X)
            with pytest.raises(
                KernelTypeError, match=r"argument 3 was hired as float32\(4096,\), and no array is given"
            ):
                await hired.run(total, np.float32(1), p2p.inout(X))
            with pytest.raises(KernelTypeError, match="no array is given"):
                await hired.run(p2p.inout(p2p.split(total)), np.float32(1), X)
        assert len(watch.of(ChunkDone)) == 6
        assert all(event.checked for event in watch.of(ChunkDone))
        with pytest.raises(KernelTypeError, match="an input of a hire is not split"):
            node.hire(increment_by_one, p2p.inout(p2p.split(X)))

    in_memory(scenario)


def test_what_is_sent_is_an_output_and_an_input() -> None:
    from p2pcompute.tasks._work import chunk_work

    work, blobs = chunk_work(increment_by_one.bind(p2p.inout(X)), blocks_per_chunk=4, units_per_chunk=1)
    output, given = work.args
    assert output == OutArg(dtype="float32", shape=(SIZE,))
    assert isinstance(given, ArrayArg)
    assert blobs[given.digest] == X.tobytes()
    assert blobs[work.kernel.digest] == increment_by_one.bind(p2p.inout(X)).source.text.encode()


def test_programs_change_nothing_in_place() -> None:
    program = p2p.program("a:b", version="1", digest="00" * 32)
    for runnable in (program, program[4]):
        with pytest.raises(KernelTypeError, match=r"argument 2 is p2pcompute\.inout, and programs change nothing"):
            runnable.bind(1.0, p2p.inout(X))
