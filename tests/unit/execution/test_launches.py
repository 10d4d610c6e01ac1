"""A run in several launches: every item once and in order, lengths that follow the measured pace, and the same bits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution import SandboxPolicy, open_pool
from p2pcompute.execution._api import ArgSpec, CompiledKernel, InputSpec, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._pool_process import CPU_WORKER, WorkerProgram
from p2pcompute.execution._worker_launches import FIRST_NS, GROWTH, LONGEST_NS, TARGET_NS, Pace, Stopped, in_launches
from p2pcompute.kernel import Binding, kernel

from . import test_strict_arithmetic as strict
from .cuda.random_kernels import INPUTS, OUTPUTS, random_kernel

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuBackend]:
    with CpuBackend(2) as backend:
        yield backend


class Clock:
    """Time that passes only while a launch runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now_ns)


def run(
    clock: Clock, costs_ns: list[int] | int, total: int, pace: Pace, start_ns: int = 10_000
) -> list[tuple[int, int]]:
    """The launches of a run (items, nanoseconds) whose items cost so much each, and a launch `start_ns` more."""
    made: list[tuple[int, int]] = []
    due = 0

    def launch(start: int, count: int) -> None:
        nonlocal due
        assert start == due
        assert count >= 1
        due += count
        spent = costs_ns * count if isinstance(costs_ns, int) else sum(costs_ns[start : start + count])
        clock.now_ns += spent + start_ns
        made.append((count, spent + start_ns))

    in_launches(total, launch, pace, lambda done: done == due)
    assert due == total
    return made


@pytest.mark.parametrize("item_ns", [100, 3_000, 500_000, 40_000_000, 90_000_000])
def test_launches_come_to_the_length_that_is_wanted(monkeypatch: pytest.MonkeyPatch, item_ns: int) -> None:
    clock, pace = Clock(monkeypatch), Pace()
    made = run(clock, item_ns, max(100, 3_000_000_000 // item_ns), pace)
    assert made[0][0] == 1  # nothing is known yet
    while made[0][1] < TARGET_NS / 2:
        made.pop(0)
    assert len(made) >= 10
    assert all(TARGET_NS / 2 <= spent <= 2 * TARGET_NS for _, spent in made)


def test_a_short_run_is_one_launch_once_the_pace_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace = Clock(monkeypatch), Pace()
    assert len(run(clock, 1_000, 4_000, pace)) <= 6
    assert [count for count, _ in run(clock, 1_000, 4_000, pace)] == [4_000]
    assert [count for count, _ in run(clock, 1_000, 1, pace)] == [1]


def test_a_long_run_begins_with_a_short_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known is of other items: those of this run may cost a thousand times as much."""
    clock, pace = Clock(monkeypatch), Pace()
    run(clock, 1_000, 10_000_000, pace)
    made = run(clock, 1_000, 10_000_000, pace)
    assert made[0][1] < 2 * FIRST_NS
    dear = run(clock, 1_000_000, 10_000, pace)
    assert dear[0][1] < 1_000 * 2 * FIRST_NS
    assert all(spent <= 2 * TARGET_NS for _, spent in dear[1:])


@given(
    costs=st.lists(st.integers(1, 300_000_000), min_size=1, max_size=60),
    known=st.one_of(st.none(), st.integers(1, 1_000_000_000)),
)
def test_whatever_items_cost_each_is_run_once(costs: list[int], known: int | None) -> None:
    with pytest.MonkeyPatch.context() as patched:
        clock, pace = Clock(patched), Pace()
        if known is not None:
            pace.took(1, known)
        made = run(clock, costs, len(costs), pace, start_ns=0)
        for (before, spent), (count, _) in itertools.pairwise(made):
            assert count <= before * GROWTH
            assert count == 1 or count * spent / before <= max(LONGEST_NS, TARGET_NS) * 1.001


def test_what_is_computed_at_once_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long items, one a launch, would leave all threads but one without work."""
    clock, made = Clock(monkeypatch), list[int]()

    def launch(_: int, count: int) -> None:
        made.append(count)
        clock.now_ns += 10 * TARGET_NS

    in_launches(11, launch, Pace(), lambda _: True, at_once=4)
    assert made == [4, 4, 3]


def test_a_run_stops_between_two_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pace, ran = Clock(monkeypatch), Pace(), []

    def launch(start: int, count: int) -> None:
        ran.append((start, count))
        clock.now_ns += count * TARGET_NS

    with pytest.raises(Stopped):
        in_launches(100, launch, pace, lambda done: done < 3)
    assert ran == [(0, 1), (1, 1), (2, 1)]


# -- the same bits -------------------------------------------------------------------------------------------------


def cut(compiled: CompiledKernel, layout: Any, launch: Launch, values: list[Any], random: Random) -> list[bytes]:
    """Outputs of a whole launch in pieces of random sizes, as a worker runs it."""
    items = layout.items_per_block
    outs = [
        np.zeros((launch.blocks * items, *row), spec.dtype)
        for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
    ]
    first = 0
    while first < launch.blocks:
        count = min(random.choice((1, 1, 2, 3, 5, 8)), launch.blocks - first)
        compiled.run_blocks(first, count, values, [out[first * items : (first + count) * items] for out in outs])
        first += count
    return [out.tobytes() for out in outs]


class _Plain:
    """The layout of outputs that threads own one row of."""

    def __init__(self, specs: list[ArgSpec], launch: Launch) -> None:
        self.outputs = [spec for spec in specs if isinstance(spec, OutputSpec)]
        self.row_shapes = [spec.shape[1:] for spec in self.outputs]
        self.items_per_block = launch.threads_per_block


@pytest.mark.parametrize("seed", range(12))
def test_random_kernels_in_random_launches(cpu: CpuBackend, seed: int) -> None:
    count, random = 480, Random(seed)
    rng = np.random.default_rng(seed)
    values: list[Any] = []
    for dtype in INPUTS:
        small = rng.integers(-50, 50, count) if dtype == "int64" else rng.standard_normal(count) * 10
        with np.errstate(over="ignore"):
            values.append(
                np.where(rng.random(count) < 0.5, rng.choice(strict.edges(dtype), count), small).astype(dtype)
            )
    source = random_kernel(seed)
    specs: list[ArgSpec] = [OutputSpec(dtype=dtype, shape=(count, *row)) for dtype, row in OUTPUTS]
    specs += [InputSpec(dtype=dtype, shape=(count,)) for dtype in INPUTS]
    launch = Launch(grid=(count // 32, 1, 1), block=(32, 1, 1), dims=1)
    compiled = cpu.compile(source, launch, specs)
    whole = [np.zeros((count, *row), dtype) for dtype, row in OUTPUTS]
    compiled.run_blocks(0, launch.blocks, values, whole)
    pieces = cut(compiled, _Plain(specs, launch), launch, values, random)
    assert pieces == [out.tobytes() for out in whole]


@kernel
def moments(total: Any, squares: Any, each: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < x.size:
        total[i] = x[i]
        squares[i] = x[i] * x[i]
        each[i] = x[i] + 1.0


@kernel
def together(acc: Any, out: Any, x: Any) -> None:
    tile = cuda.shared.array(64, np.float32)
    t, i = cuda.threadIdx.x, cuda.grid(1)
    tile[t] = x[i]
    cuda.syncthreads()
    acc[i] = tile[63 - t] * x[i]
    out[i] = tile[(t + 1) % 64]


def combined() -> list[Binding]:
    x = (np.random.default_rng(7).standard_normal(2_500) * 1e3).astype(np.float32)
    total, largest = p2p.reduce("sum", x.shape, x.dtype), p2p.reduce("max", x.shape, x.dtype)
    return [
        moments[40, 64].bind(total, largest, p2p.out(x.shape, x.dtype), x),
        together[40, 64].bind(p2p.reduce("sum", (2_560,), x.dtype), p2p.out(2_560, x.dtype), x),
    ]


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_combined_outputs_in_random_launches(cpu: CpuBackend, random: Random) -> None:
    for binding in combined():
        compiled = cpu.compile(binding.source, binding.launch, binding.specs)
        whole = [
            np.zeros((binding.launch.blocks * binding.layout.items_per_block, *row), spec.dtype)
            for row, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
        ]
        compiled.run_blocks(0, binding.launch.blocks, binding.values, whole)
        pieces = cut(compiled, binding.layout, binding.launch, list(binding.values), random)
        assert pieces == [out.tobytes() for out in whole]


@pytest.mark.net
def test_a_worker_gives_the_same_with_launches_of_one_item() -> None:
    """Chunks and single threads, through processes: one cuts as it likes, the other as often as it can."""
    hostile = str(Path(__file__).parent / "hostile")
    tiny = WorkerProgram(module="tiny_launches", roots=(hostile,))
    found: list[list[tuple[bytes, ...]]] = []

    async def main() -> None:
        for program in (CPU_WORKER, tiny):
            results: list[tuple[bytes, ...]] = []
            async with (
                open_pool(spare=0, policy=SandboxPolicy(bwrap="never"), program=program) as pool,
                pool.session() as session,
            ):
                for binding in combined():
                    places = [place for place, spec in enumerate(binding.specs) if isinstance(spec, InputSpec)]
                    arrays = [value for value in binding.values if isinstance(value, np.ndarray)]
                    inputs = dict(zip(places, arrays, strict=True))
                    await session.compile(binding.source, binding.launch, binding.specs, inputs)
                    items = binding.launch.blocks * binding.layout.items_per_block
                    picked = np.random.default_rng(2).integers(0, items, 30)
                    whole = await session.run_blocks(0, binding.launch.blocks, timeout_s=60)
                    part = await session.run_blocks(7, 11, timeout_s=60)
                    single = await session.run_threads(picked, timeout_s=60)
                    results += [whole.outputs, part.outputs, single.outputs]
            found.append(results)

    trio.run(main)
    assert len(found[0]) == 6
    assert found[0] == found[1]
