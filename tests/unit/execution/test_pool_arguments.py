"""Other arguments for a compiled kernel in locked workers: one compilation, and each run's own values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import ExecutionError
from p2pcompute.execution import WorkerSession, open_pool
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import ArgSpec, InputSpec, OutputSpec, ScalarSpec
from p2pcompute.execution._pool_arguments import SessionArguments
from p2pcompute.kernel import Binding, out

SIZE = 1_000
X = np.arange(SIZE, dtype=np.int64)


@p2p.kernel
def picked(got, x, at, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < got.size:
        got[i] = x[at] * 1000 + y[i]


def bound(at: int = 3) -> Binding:
    """Compiled so that nothing is proved from `at`."""
    binding = picked.bind(out(SIZE, np.int64), X, np.int64(at), X)
    return replace(binding, specs=tuple(map(varied, binding.specs)))


def varied(spec: ArgSpec) -> ArgSpec:
    return replace(spec, varies=True) if isinstance(spec, ScalarSpec) else spec


async def compiled(session: WorkerSession, binding: Binding) -> None:
    await session.compile(binding.source, binding.launch, binding.specs, {1: X, 3: X})


async def given(session: WorkerSession, binding: Binding) -> Any:
    run = await session.run_blocks(0, binding.launch.blocks, timeout_s=60)
    return np.frombuffer(run.outputs[0], np.int64)[:SIZE]


def with_worker(work: Callable[[WorkerSession], Awaitable[None]]) -> None:
    async def main() -> None:
        async with open_pool(spare=0) as pool, pool.session() as session:
            await work(session)

    trio.run(main)


def test_runs_have_the_arguments_that_were_set_last() -> None:
    async def work(session: WorkerSession) -> None:
        binding = bound()
        await compiled(session, binding)
        assert np.array_equal(await given(session, binding), X[3] * 1000 + X)
        await session.set_arguments({1: X + 7, 2: np.int64(5), 3: X * 2}, timeout_s=60)
        assert np.array_equal(await given(session, binding), (5 + 7) * 1000 + X * 2)
        single = await session.run_threads(np.array([9, 4], np.int64), timeout_s=60)
        assert np.frombuffer(single.outputs[0], np.int64).tolist() == [12_018, 12_008]
        # What is left out has the value that came with the kernel, and not that of the last time.
        await session.set_arguments({2: np.int64(5)}, timeout_s=60)
        assert np.array_equal(await given(session, binding), 5 * 1000 + X)
        await session.set_arguments({}, timeout_s=60)
        assert np.array_equal(await given(session, binding), 3 * 1000 + X)
        await session.set_arguments({3: X * 3}, timeout_s=60)
        await compiled(session, binding)  # as if nothing had been set
        assert np.array_equal(await given(session, binding), 3 * 1000 + X)

    with_worker(work)


def test_an_index_from_afar_reads_nothing() -> None:
    """Compiled for an `at` that it could trust, the load would have no test, and read where there is no array."""

    async def work(session: WorkerSession) -> None:
        binding = bound()
        await compiled(session, binding)
        for at in (SIZE, -SIZE - 1, 1 << 40, -(1 << 62)):
            await session.set_arguments({2: np.int64(at)}, timeout_s=60)
            assert np.array_equal(await given(session, binding), X)

    with_worker(work)


def test_a_scalar_from_which_something_was_proved_keeps_its_value() -> None:
    async def work(session: WorkerSession) -> None:
        binding = picked.bind(out(SIZE, np.int64), X, np.int64(3), X)
        await compiled(session, binding)
        with pytest.raises(ValueError, match="argument 2 has no other values"):
            await session.set_arguments({2: np.int64(1 << 40)}, timeout_s=60)
        # Nor would the worker take it from a node that forgot to look.
        with pytest.raises(ipc.FrameError, match="no other values"):
            ipc.take_arguments([[2, np.int64(1 << 40).tobytes()]], binding.specs)
        assert np.array_equal(await given(session, binding), 3 * 1000 + X)

    with_worker(work)


def test_wrong_arguments_are_refused_and_the_worker_lives() -> None:
    async def work(session: WorkerSession) -> None:
        binding = bound()
        with pytest.raises(ExecutionError, match="no compiled kernel"):
            await session.set_arguments({}, timeout_s=60)
        await compiled(session, binding)
        for bad in (
            {0: X},
            {4: X},
            {-1: X},
            {1: X[1:]},
            {1: X.astype(np.int32)},
            {2: np.int32(1)},
            {2: X},
        ):
            with pytest.raises(ValueError, match="argument"):
                await session.set_arguments(bad, timeout_s=60)
        assert np.array_equal(await given(session, binding), 3 * 1000 + X)

    with_worker(work)


SPECS: tuple[ArgSpec, ...] = (
    OutputSpec(dtype="int64", shape=(4,)),
    InputSpec(dtype="int64", shape=(4,)),
    ScalarSpec(dtype="int32", value=np.int32(1), varies=True),
)


@pytest.mark.parametrize(
    "packet",
    [
        [[0, 0]],
        [[3, 0]],
        [[1, 8]],
        [[1, -64]],
        [[1, b"12345678"]],
        [[2, b"123"]],
        [[2, 0]],
        [[2, b"1234"], [1, 0]],
        [[1, 0], [1, 64]],
        [[1]],
        [1, 0],
    ],
)
def test_a_worker_takes_nothing_else(packet: Any) -> None:
    with pytest.raises(ipc.FrameError):
        ipc.take_arguments(packet, SPECS)


def test_what_a_worker_takes() -> None:
    assert ipc.take_arguments([[1, 128], [2, b"\x07\0\0\0"]], SPECS) == [(1, 128), (2, np.int32(7))]
    assert ipc.take_arguments([], SPECS) == []


def test_memory_for_arguments_is_bounded() -> None:
    async def main() -> None:
        held = SessionArguments(4_096)
        held.expect([InputSpec(dtype="uint8", shape=(3_000,)), InputSpec(dtype="uint8", shape=(3_000,))])
        fields, fds = await held.put({0: np.ones(3_000, np.uint8)})
        assert fields[0] == [[0, 0]]
        assert fds
        assert held.nbytes == fields[1] >= 3_000
        assert await held.put({0: np.ones(3_000, np.uint8)}) == (fields, fds), "the worker may not have got it"
        held.taken()
        assert await held.put({1: np.ones(3_000, np.uint8)}) == ([[[1, 0]], 0], [])
        with pytest.raises(ExecutionError, match="4096"):
            await held.put({0: np.ones(3_000, np.uint8), 1: np.ones(3_000, np.uint8)})
        held.close()
        assert held.nbytes == 0
        assert await held.put({}) == ([[], 0], [])

    trio.run(main)
