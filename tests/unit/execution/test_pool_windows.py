"""Split inputs in locked workers: windows come with each run, in memory that the worker can't change the size of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute._split import split
from p2pcompute.errors import ExecutionError
from p2pcompute.execution import WorkerLimits, WorkerSession, open_pool
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import InputSpec, ScalarSpec, SplitSpec
from p2pcompute.execution._pool_windows import SessionWindows
from p2pcompute.execution._split import Window, blocks_box, fill_window, items_box, window_box
from p2pcompute.kernel import Binding, out

from .test_split import along, around

X = np.random.default_rng(6).integers(0, 1000, 4_000)
Y = np.random.default_rng(6).integers(0, 1000, (1_200, 900))


def with_worker(work: Callable[[WorkerSession], Awaitable[None]], limits: WorkerLimits | None = None) -> None:
    async def main() -> None:
        async with open_pool(spare=0, limits=limits or WorkerLimits()) as pool, pool.session() as session:
            await work(session)

    trio.run(main)


def windows(binding: Binding, places: Any, array: Any) -> dict[int, Window]:
    spec = binding.specs[1]
    assert isinstance(spec, InputSpec)
    return {1: fill_window(spec, window_box(spec, places), [((0,) * array.ndim, array)])}


def test_chunks_and_single_threads_get_their_windows() -> None:
    async def work(session: WorkerSession) -> None:
        binding = along.bind(out(X.size, np.int64), split(X, halo=2, edge="wrap"), -2, 3)
        await session.compile(binding.source, binding.launch, binding.specs, {})
        due = np.zeros(X.size, np.int64)
        for k in range(-2, 3):
            due = due * 31 + np.roll(X, -k)
        for first in range(0, binding.launch.blocks, 7):
            blocks = min(7, binding.launch.blocks - first)
            given = windows(binding, blocks_box(binding.launch, first, blocks), X)
            run = await session.run_blocks(first, blocks, timeout_s=60, windows=given)
            rows = np.frombuffer(run.outputs[0], np.int64)
            assert np.array_equal(rows[: X.size - 128 * first], due[128 * first : 128 * (first + blocks)])
        ids = np.array([700, 650, 799], np.int64)
        given = windows(binding, items_box(binding.launch, ids, 128), X)
        run = await session.run_threads(ids, timeout_s=60, windows=given)
        assert np.array_equal(np.frombuffer(run.outputs[0], np.int64), due[ids])
        # Another kernel, and windows of several megabytes: memory grows, and goes back with the session.
        binding = around.bind(out(Y.shape, np.int64), split(Y, halo=1), 0, 1)
        await session.compile(binding.source, binding.launch, binding.specs, {})
        count = binding.launch.blocks
        given = windows(binding, blocks_box(binding.launch, 0, count), Y)
        assert given[1].values.nbytes > 8 << 20
        run = await session.run_blocks(0, count, timeout_s=60, windows=given)
        whole = np.zeros(Y.shape, np.int64)
        rows = np.frombuffer(run.outputs[0], np.int64).reshape(-1)
        binding.layout.scatter(0, 0, count, rows, whole)
        assert np.array_equal(whole, Y)

    with_worker(work)


def test_wrong_windows_are_refused_and_the_worker_lives() -> None:
    async def work(session: WorkerSession) -> None:
        binding = along.bind(out(X.size, np.int64), split(X, halo=2), -2, 3)
        await session.compile(binding.source, binding.launch, binding.specs, {})
        good = windows(binding, blocks_box(binding.launch, 0, 1), X)
        for bad, error in (
            (None, ValueError),
            ({}, ValueError),
            ({1: good[1], 2: good[1]}, ValueError),
            ({1: Window((-2,), good[1].values.astype(np.int32))}, ValueError),
            ({1: Window((-2,), good[1].values[:0])}, ValueError),
            ({1: Window((-1,), good[1].values)}, ExecutionError),  # the worker sees that it does not reach far enough
            ({1: Window((-2,), good[1].values[:-1])}, ExecutionError),
        ):
            with pytest.raises(error, match="window"):
                await session.run_blocks(0, 1, timeout_s=60, windows=bad)
        run = await session.run_blocks(0, 1, timeout_s=60, windows=good)
        assert len(run.outputs[0]) == 128 * 8

    with_worker(work)


def test_memory_for_windows_is_bounded() -> None:
    async def main() -> None:
        held = SessionWindows(4_096)
        held.expect([InputSpec(dtype="uint8", shape=(9_000,), split=SplitSpec(axes=(0,), halo=(0,), edge="zero"))])
        packet = await held.put({0: Window((0,), np.ones(3_000, np.uint8))})
        assert packet is not None
        assert held.nbytes == packet[0][1] >= 3_000
        again = await held.put({0: Window((0,), np.ones(3_000, np.uint8))})
        assert again == packet, "the worker may not have got it"
        held.taken()
        assert await held.put({0: Window((9,), np.ones(2_000, np.uint8))}) == ([[[[9], [2_000]]], 0], [])
        with pytest.raises(ExecutionError, match="4096"):
            await held.put({0: Window((0,), np.ones(5_000, np.uint8))})
        held.close()
        held.expect([ScalarSpec(dtype="int64", value=np.int64(1))])
        assert await held.put({}) is None

    trio.run(main)


def test_what_stands_in_the_packets_is_checked() -> None:
    spec = InputSpec(dtype="int32", shape=(9, 5), split=SplitSpec(axes=(1, 0), halo=(3, 0), edge="clamp"))
    assert ipc.decode_arguments(ipc.encode_arguments([spec])) == [spec]
    (item,) = ipc.encode_arguments([spec])
    shape, axes, halo, edge = item[2]
    for bad in (
        [shape, axes, halo],
        [shape, [3], halo, edge],
        [shape, [], halo, edge],
        [shape, axes, [-1, 0], edge],
        [shape, axes, halo, 7],
        [shape, axes, [0] * 4, edge],
        [[9] * 5, axes, halo, edge],
    ):
        with pytest.raises(ipc.FrameError):
            ipc.decode_arguments([[4, "int32", bad]])
    assert ipc.take_windows([[[-3, 0], [10, 5]]], [spec]) == [((-3, 0), (10, 5), 0)]
    for bad_window in (
        [],
        [[[0, 0], [0, 5]]],
        [[[0], [1, 5]]],
        [[[0, 0], [1, 5, 1]]],
        [[[0, True], [1, 5]]],
        [[[0, 0]]],
    ):
        with pytest.raises(ipc.FrameError):
            ipc.take_windows(bad_window, [spec])


def test_a_run_that_is_cancelled_before_its_windows_reach_the_worker_spoils_no_later_one() -> None:
    async def work(session: WorkerSession) -> None:
        binding = around.bind(out(Y.shape, np.int64), split(Y, halo=1), 0, 1)
        await session.compile(binding.source, binding.launch, binding.specs, {})
        count = binding.launch.blocks

        async def run(first: int, blocks: int) -> bytes:
            given = windows(binding, blocks_box(binding.launch, first, blocks), Y)
            return (await session.run_blocks(first, blocks, timeout_s=60, windows=given)).outputs[0]

        due = await run(count // 2, 1)
        await run(0, 1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel, scope)  # runs where this task waits first: for the copy of large windows
                await run(0, count)
        assert scope.cancelled_caught
        assert session.usable
        assert await run(count // 2, 1) == due
        assert len(await run(0, count)) >= Y.nbytes

    with_worker(work)


async def cancel(scope: trio.CancelScope) -> None:
    await trio.lowlevel.cancel_shielded_checkpoint()
    scope.cancel()
