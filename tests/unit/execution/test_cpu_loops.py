"""The loops that the CPU back end puts around a kernel: every shape of launch, whole blocks and parts of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_crew import Crew, Pace
from p2pcompute.execution._cpu_intrinsics import finished, take
from p2pcompute.execution._cpu_loops import memory, program_text
from p2pcompute.execution._guard import admit
from p2pcompute.execution._lower import lower
from p2pcompute.kernel import Binding, kernel, out

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    with CpuBackend(request.param) as made:
        yield made


@kernel
def by_grid(result, x):
    i = cuda.grid(1)
    result[i] = 2 * x[i] + 1


@kernel
def by_block_and_thread(result):
    i = cuda.grid(1)
    result[i] = cuda.blockIdx.x * 1000 + cuda.threadIdx.x


@kernel
def flat_image(result, step):
    x, y = cuda.grid(2)
    result[y, x] = y * step + x


@kernel
def looped_image(result, step):
    x, y = cuda.grid(2)
    total = 0
    for k in range(y):
        total += step + k - k
    result[y, x] = total + x


@kernel
def volume(result, below):
    x, y, z = cuda.grid(3)
    result[z, y, x] = x + 100 * y + 10_000 * z + below[z, y, x - 1]


@kernel
def scratch(result, n):
    i = cuda.grid(1)
    mine = cuda.local.array(5, np.int64)
    for k in range(5):
        mine[k] += i * k
    result[i] = mine[n]


@kernel
def together(result, x):
    part = cuda.shared.array(64, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    part[tx] = x[i]
    cuda.syncthreads()
    result[i] = part[cuda.blockDim.x - 1 - tx]


def text(binding: Binding) -> str:
    return program_text(lower(admit(binding.source), binding.launch, binding.specs), binding.launch)


def check(backend: CpuBackend, binding: Binding, due: Array) -> None:
    """Whole, in parts that begin and end anywhere, and single items: rows in their places, nothing beside them."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    layout, blocks = binding.layout, binding.launch.blocks
    (row,), (spec,) = layout.row_shapes, layout.outputs
    for step in (blocks, 3, 1):
        (whole,) = binding.empty_outputs()
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            guarded = np.full((count * layout.items_per_block + 2, *row), 77, spec.dtype)
            guarded[1:-1] = 0
            compiled.run_blocks(first, count, binding.values, [guarded[1:-1]])
            assert np.all(guarded[0] == 77)
            assert np.all(guarded[-1] == 77)
            layout.scatter(0, first, count, guarded[1:-1], whole)
        assert np.array_equal(whole, due)
    ids = np.random.default_rng(1).permutation(blocks * layout.items_per_block)
    every = np.zeros((len(ids), *row), spec.dtype)
    compiled.run_threads(ids, binding.values, [every])
    rows = np.empty_like(every)
    rows[ids] = every
    (whole,) = binding.empty_outputs()
    layout.scatter(0, 0, blocks, rows, whole)
    assert np.array_equal(whole, due)


def test_one_axis(backend: CpuBackend) -> None:
    for size in (1, 127, 128, 1000):
        x = np.arange(size, dtype=np.int32)
        check(backend, by_grid.bind(out(size, np.int64), x), 2 * x.astype(np.int64) + 1)
        i = np.arange(size)
        check(backend, by_block_and_thread.bind(out(size, np.int64)), i // 128 * 1000 + i % 128)
    assert text(by_grid.bind(out(9, np.int64), np.zeros(9, np.int32))).count("for ") == 2  # one loop, and the items'
    assert "b_0 += m" in text(by_block_and_thread.bind(out(9, np.int64)))


@pytest.mark.parametrize("shape", [(16, 16), (16, 17), (15, 32), (40, 50), (1, 1)])
def test_two_axes(backend: CpuBackend, shape: tuple[int, int]) -> None:
    y, x = np.indices(shape)
    for one in (flat_image, looped_image):
        check(backend, one.bind(out(shape, np.int64), 1000), y * 1000 + x)


@kernel
def around(result, x):
    c, b = cuda.grid(2)
    result[b, c] = x[b - 1, c] + 10 * x[b + 1, c] + 100 * x[b, c - 2] + 1000 * x[b, c + 1]


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [
        ((11, 103), (13, 3), (8, 4)),  # lines of eleven blocks that ask for nothing, and a part of a block
        ((8, 96), (12, 2), (8, 4)),
        ((3, 20), (6, 4), (8, 4)),  # more blocks than the output has
        ((9, 8 * 600 + 5), (601, 3), (8, 4)),  # longer than a run
        ((2, 9), (2, 1), (8, 4)),  # nothing within the border
    ],
)
def test_lines_of_blocks_and_what_is_left_at_the_border(
    backend: CpuBackend, shape: tuple[int, int], grid: tuple[int, int], block: tuple[int, int]
) -> None:
    x = np.random.default_rng(3).integers(1, 10, shape)
    wide = np.pad(x, 2)
    due = wide[1:-3, 2:-2] + 10 * wide[3:-1, 2:-2] + 100 * wide[2:-2, :-4] + 1000 * wide[2:-2, 3:-1]
    check(backend, around[grid, block].bind(out(shape, np.int64), x), due)


def test_blocks_of_several_sizes_in_one_back_end(backend: CpuBackend) -> None:
    y, x = np.indices((30, 45))
    for block, grid in (
        ((16, 16), (3, 2)),
        ((7, 3), (7, 10)),
        ((64, 1), (1, 30)),
        ((1, 32), (45, 1)),
        ((16, 8), (3, 4)),
    ):
        check(backend, flat_image[grid, block].bind(out((30, 45), np.int64), 5), y * 5 + x)


def test_three_axes(backend: CpuBackend) -> None:
    shape = (5, 9, 17)
    z, y, x = np.indices(shape)
    below = np.random.default_rng(2).integers(0, 9, shape)
    due = x + 100 * y + 10_000 * z
    due[:, :, 1:] += below[:, :, :-1]  # beyond the array is zero
    check(backend, volume.bind(out(shape, np.int64), below), due)


def test_arrays_to_work_in_begin_with_zeros_for_each_thread_and_block(backend: CpuBackend) -> None:
    i = np.arange(300)
    check(backend, scratch.bind(out(300, np.int64), 3), i * 3)
    x = np.arange(256, dtype=np.int64)
    binding = together[4, 64].bind(out(256, np.int64), x)
    check(backend, binding, x.reshape(4, 64)[:, ::-1].ravel())
    lowered = lower(admit(binding.source), binding.launch, binding.specs)
    assert [(array.name, array.size) for array in memory(lowered)] == [("m_part", 64)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_portions_cover_a_launch_once(threads: int) -> None:
    taken: list[tuple[int, int]] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        while (at := int(take_one(counters, portion))) < stop:
            taken.append((at, min(portion, stop - at)))
            finish_one(counters, taken[-1][1])

    def portion_of(start: int, count: int) -> None:
        taken.append((start, count))

    crew = Crew(threads)
    try:
        taken.clear()
        crew.share(1_000, portion_of)
        assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(1_000))
        for total in (0, 1, 2, 31, 64 * threads - 1, 64 * threads, 5_000):
            for pace in (None, Pace(), slow()):
                taken.clear()
                crew.run(total, part, pace)
                assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(total))
    finally:
        crew.close()


def test_launches_that_follow_each_other_are_each_covered_once() -> None:
    """Threads that look for the next launch find its portions, none of the last one's, and miss no word to end."""
    taken: list[tuple[int, int]] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        while (at := int(take_one(counters, portion))) < stop:
            taken.append((at, min(portion, stop - at)))
            finish_one(counters, taken[-1][1])

    crew = Crew(3)
    try:
        for total in [2, 3, 200, 1_000] * 100:
            taken.clear()
            crew.run(total, part, slow())
            assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(total))
    finally:
        crew.close()
    assert not [thread for thread in crew._others if thread.is_alive()]


def slow() -> Pace:
    """As of a kernel that took a second for each item: others are woken at once."""
    pace = Pace()
    pace.ns = 1e9
    return pace


@numba.njit
def take_one(counters, count):
    return take(counters, count)


@numba.njit
def finish_one(counters, count):
    return finished(counters, count)


def test_a_thread_that_fails_before_it_takes_leaves_all_to_the_others() -> None:
    caller = threading.get_ident()
    taken: list[int] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        if threading.get_ident() != caller:
            raise MemoryError
        while (at := int(take_one(counters, portion))) < stop:
            taken.append(at)
            finish_one(counters, min(portion, stop - at))

    crew = Crew(3)
    try:
        for _ in range(3):
            taken.clear()
            crew.run(48, part, slow())
            assert taken == list(range(48))
    finally:
        crew.close()


@pytest.mark.parametrize("failing", [(0,), (30,), (0, 30)])
def test_what_a_portion_raises_is_raised_where_it_was_asked_for(failing: tuple[int, ...]) -> None:
    """Not lost with the thread that took it: rows would stay as they were."""

    def part(start: int, count: int) -> None:
        if any(start <= at < start + count for at in failing):
            raise MemoryError

    crew = Crew(3)
    try:
        for _ in range(3):
            with pytest.raises(MemoryError):
                crew.share(48, part)
        crew.share(48, lambda start, count: None)
    finally:
        crew.close()


def test_an_output_in_the_memory_of_another_array_is_refused(backend: CpuBackend) -> None:
    x = np.zeros(256, np.int64)
    binding = shifted.bind(out(128, np.int64), x[64:192])
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    with pytest.raises(ValueError, match="overlap"):
        compiled.run_blocks(0, 1, [x[64:192]], [x[:128]])
    compiled.run_blocks(0, 1, [x[128:]], [x[:128]])


@kernel
def shifted(result, x):
    i = cuda.grid(1)
    result[i] = x[i - 1] + 1
