"""The loops that the CPU back end puts around a kernel: every shape of launch, whole blocks and parts of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend, _Crew
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
    assert "b_0 += 1" in text(by_block_and_thread.bind(out(9, np.int64)))


@pytest.mark.parametrize("shape", [(16, 16), (16, 17), (15, 32), (40, 50), (1, 1)])
def test_two_axes(backend: CpuBackend, shape: tuple[int, int]) -> None:
    y, x = np.indices(shape)
    for one in (flat_image, looped_image):
        check(backend, one.bind(out(shape, np.int64), 1000), y * 1000 + x)


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
    crew = _Crew(threads)
    try:
        for total in (0, 1, 2, 31, 64 * threads - 1, 64 * threads, 5_000):
            taken: list[tuple[int, int]] = []
            crew.share(total, lambda start, count, taken=taken: taken.append((start, count)))
            assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(total))
    finally:
        crew.close()
