"""Kernels that change arrays in place, on CUDA: the PTX gives the CPU's bits."""

from __future__ import annotations

import numpy as np

from p2pcompute._inout import inout
from p2pcompute._split import split
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import out

from .. import test_inout as kernels
from .test_cuda_split import assert_same_bits


def test_each_thread_its_own(cpu: CpuBackend, gpu: CudaBackend) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(50, dtype=np.float32)
    x.view(np.uint32)[7] = 0xFFC12345
    assert_same_bits(cpu, gpu, kernels.increment_by_one[4, 16].bind(inout(x)), 1, 4)
    assert_same_bits(cpu, gpu, kernels.strided[4, 16].bind(inout(x), 5), 3)
    assert_same_bits(cpu, gpu, kernels.bend[4, 16].bind(inout(split(x)), np.float32(1.5)), 3)
    a = rng.integers(-50, 50, (5, 7))
    assert_same_bits(cpu, gpu, kernels.across[(2, 2), (4, 4)].bind(inout(a)), 1, 3)
    assert_same_bits(cpu, gpu, kernels.down[(2, 2), (4, 4)].bind(inout(split(a))), 3)
    rows = rng.integers(0, 9, (9, 2, 3))
    assert_same_bits(cpu, gpu, kernels.running[2, 8].bind(inout(rows)), 1)
    low, high, y = rng.standard_normal((3, 20))
    assert_same_bits(cpu, gpu, kernels.several[2, 16].bind(inout(low), y, inout(high), out(20, np.float64)), 1)


def test_blocks(cpu: CpuBackend, gpu: CudaBackend) -> None:
    x = np.arange(60, dtype=np.int32) + 1
    assert_same_bits(cpu, gpu, kernels.reverse_in_tiles[4, 16].bind(inout(x)), 1, 3)
    sums = np.array([5, -3, 2**40, 0])
    assert_same_bits(cpu, gpu, kernels.add_up[4, 16].bind(inout(sums), np.arange(64)), 1, 3)
    a = np.random.default_rng(2).integers(0, 99, (2, 3, 11, 2))
    assert_same_bits(cpu, gpu, kernels.reverse_rows[(3, 2), (4, 2)].bind(inout(a), 7), 2)
