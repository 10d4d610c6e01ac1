"""Split inputs on CUDA: the PTX takes windows as the CPU does, and gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pcompute._split import split
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._split import Window
from p2pcompute.kernel import Binding, out, reduce

from .. import test_split as kernels
from .._windows import arguments, chunked, rows_of, single

EDGES = ("zero", "clamp", "wrap")


def assert_same_bits(cpu: CpuBackend, gpu: CudaBackend, binding: Binding, *sizes: int) -> None:
    due = chunked(cpu, binding, binding.launch.blocks)
    for size in sizes:
        for one, other in zip(chunked(gpu, binding, size), due, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    items = binding.launch.blocks * binding.layout.items_per_block
    ids = np.random.default_rng(4).integers(0, items, min(items, 12))
    found = single(gpu.compile(binding.source, binding.launch, binding.specs), binding, ids)
    expected = single(cpu.compile(binding.source, binding.launch, binding.specs), binding, ids)
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("edge", EDGES)
def test_one_axis(cpu: CpuBackend, gpu: CudaBackend, edge: str) -> None:
    x = np.random.default_rng(1).integers(-50, 50, 61)
    for halo, low, high in ((2, -2, 3), (70, -1, 2)):
        binding = kernels.along[9, 8].bind(out(67, np.int64), split(x, halo=halo, edge=edge), low, high)
        assert_same_bits(cpu, gpu, binding, 1, 4)


@pytest.mark.parametrize("edge", EDGES)
def test_indices_that_leave_the_window(cpu: CpuBackend, gpu: CudaBackend, edge: str) -> None:
    rng = np.random.default_rng(2)
    offsets = rng.integers(-4, 5, 40)
    offsets[:5] = kernels.FAR
    x = rng.integers(1, 100, 33).astype(np.int32)
    binding = kernels.by_data[5, 8].bind(out(40, np.int32), split(x, halo=2, edge=edge), offsets)
    assert_same_bits(cpu, gpu, binding, 1, 3)
    shape = (11, 13)
    binding = kernels.around_by_data[(4, 3), (4, 4)].bind(
        out(shape, np.float64),
        split(rng.standard_normal((9, 14)), halo=(1, 3), edge=edge),
        rng.integers(-5, 6, (*shape, 2)),
    )
    assert_same_bits(cpu, gpu, binding, 1, 5)


@pytest.mark.parametrize("edge", EDGES)
def test_several_axes(cpu: CpuBackend, gpu: CudaBackend, edge: str) -> None:
    x = np.random.default_rng(3).integers(0, 90, (12, 17))
    binding = kernels.around[(5, 4), (4, 4)].bind(out((13, 18), np.int64), split(x, halo=1, edge=edge), -1, 2)
    assert_same_bits(cpu, gpu, binding, 1, 7)
    y = np.random.default_rng(3).integers(0, 90, (5, 6, 7)).astype(np.uint16)
    binding = kernels.in_space[(3, 2, 2), (3, 3, 3)].bind(out((5, 6, 7), np.int64), split(y, halo=2, edge=edge), -2, 2)
    assert_same_bits(cpu, gpu, binding, 1, 4)
    z = np.random.default_rng(3).integers(0, 90, (11, 3))
    binding = kernels.colours[4, 3].bind(out((11, 5), np.int64), split(z, halo=1, edge=edge))
    assert_same_bits(cpu, gpu, binding, 1, 3)


@pytest.mark.parametrize("edge", EDGES)
def test_blocks(cpu: CpuBackend, gpu: CudaBackend, edge: str) -> None:
    x = np.arange(1, 38, dtype=np.int64) % 10
    binding = kernels.tiled_sum[6, 8].bind(out(41, np.int64), split(x, halo=8, edge=edge))
    assert_same_bits(cpu, gpu, binding, 1, 4)
    binding = kernels.along[7, 8].bind(reduce("sum", 50, np.int64), split(x, halo=2, edge=edge), -2, 3)
    assert_same_bits(cpu, gpu, binding, 2)


@pytest.mark.parametrize(
    "window",
    [Window((-1,), np.ones(9, np.int64)), Window((0,), np.ones(10, np.int64)), Window((-1,), np.ones(10, np.int32))],
)
def test_a_window_that_does_not_hold_what_is_loaded_is_refused(gpu: CudaBackend, window: Any) -> None:
    binding = kernels.along[2, 8].bind(out(16, np.int64), split(np.ones(16, np.int64), halo=1), -1, 2)
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    good = arguments(binding, ((0, 8), (0, 1), (0, 1)))
    compiled.run_blocks(0, 1, good, rows_of(binding, 8))
    for call in (
        lambda: compiled.run_blocks(0, 1, [window, *good[1:]], rows_of(binding, 8)),
        lambda: compiled.run_threads(np.arange(8), [window, *good[1:]], rows_of(binding, 8)),
        lambda: compiled.run_blocks(1, 1, good, rows_of(binding, 8)),
    ):
        with pytest.raises(ValueError, match="window"):
            call()
