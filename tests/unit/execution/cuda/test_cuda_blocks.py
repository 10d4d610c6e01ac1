"""Kernels whose threads work together: the PTX that comes out, executed from barrier to barrier with the threads of a
block in another order each time, gives the CPU's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import Binding, kernel, out

from .. import test_blocks as blocks
from .. import test_global_atomics as everywhere
from .. import test_scratch as scratch
from .ptx_arith import documented
from .ptx_machine import Machine
from .test_cuda_bits import assert_same_bits as assert_same_threads
from .test_cuda_bits import differences, rows_of

Array = np.ndarray[Any, Any]
WEIGHTS = np.array([0.25, 0.5, 0.25], np.float32)


def assert_same_bits(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine, binding: Binding, *, singles: bool = True
) -> list[Array]:
    """All blocks, a chunk from the middle and, unless that is left out, single blocks, some twice. Values that the ISA
    leaves open are others in each run."""
    count = binding.launch.blocks
    due, whole = rows_of(binding, count), rows_of(binding, count)
    cpu.compile(binding.source, binding.launch, binding.specs).run_blocks(0, count, binding.values, due)
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    compiled.run_blocks(0, count, binding.values, whole)
    for place, (one, other) in enumerate(zip(whole, due, strict=True)):
        assert one.tobytes() == other.tobytes(), differences(place, one, other)
    machine.open_value = machine.order.getrandbits
    try:
        first, size = count // 2, max(1, min(2, count - count // 2))
        part = rows_of(binding, size)
        compiled.run_blocks(first, size, binding.values, part)
        picks = np.random.default_rng(7).integers(0, count, 3)
        single = rows_of(binding, len(picks))
        if singles:  # another entry, and so another compilation
            compiled.run_threads(picks, binding.values, single)
    finally:
        machine.open_value = documented
    for place, (one, two, other) in enumerate(zip(part, single, due, strict=True)):
        chunk = other[first : first + size]
        assert one.tobytes() == chunk.tobytes(), differences(place, one, chunk)
        if singles:
            assert two.tobytes() == other[picks].tobytes(), differences(place, two, other[picks])
    assert machine.allocations == 0
    return due


def test_block_sums(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(1).standard_normal(64 * 5 - 30, dtype=np.float32)
    (sums,) = assert_same_bits(cpu, gpu, machine, blocks.block_sum[5, 64].bind(out(5, np.float32), x))
    assert np.allclose(sums.sum(), x.sum(), rtol=1e-4)


def test_tiled_product(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((20, 18), dtype=np.float32), rng.standard_normal((18, 13), dtype=np.float32)
    args = (out((20, 13), np.float32), a, b)
    assert_same_bits(cpu, gpu, machine, blocks.fast_matmul[(1, 2), (16, 16)].bind(*args))


@pytest.mark.parametrize("which", [blocks.scan, blocks.scan_of_one_barrier])
def test_scans(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, which: Any) -> None:
    x = np.random.default_rng(3).standard_normal(150, dtype=np.float32)
    binding = which[5, 32].bind(out(150, np.float32), out(5, np.float32), x)
    assert_same_bits(cpu, gpu, machine, binding)


def test_histograms_by_atomic_operations(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(4).integers(-1000, 1000, 280)
    binding = blocks.histogram[3, 100].bind(out((3, blocks.BINS), np.int64), x)
    (found,) = assert_same_bits(cpu, gpu, machine, binding)
    assert found.sum() == 280


def test_every_atomic_operation(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(5).integers(-(2**31), 2**31, 96)
    assert_same_bits(cpu, gpu, machine, blocks.atomics[3, 32].bind(out((3, 6), np.int64), x))


@pytest.mark.parametrize("name", ["add", "two axes", "three axes", "and_"])
def test_atomic_operations_on_an_output_of_all_blocks(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine, name: str
) -> None:
    kernel, operation, axes = everywhere.KERNELS[name]
    shape = (5, 2, 3)[:axes]
    at, value = everywhere.drawn(18, 60, shape)
    launched = kernel[(2, 2), (4, 3)] if axes == 2 else kernel[3, 8]
    assert_same_bits(cpu, gpu, machine, launched.bind(p2p.reduce(operation, shape, np.uint32), at, value))


def test_a_tutorials_histogram(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(19).standard_normal(200, dtype=np.float32)
    args = x, np.float32(-2), np.float32(2), p2p.reduce("sum", 6, np.int64)
    [parts] = assert_same_bits(cpu, gpu, machine, everywhere.histogram[3, 16].bind(*args))
    assert np.array_equal(parts.sum(axis=0), everywhere.bins_of(x, 6, -2, 2))


def test_stencil_whose_threads_leave_one_by_one(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(6).standard_normal(100, dtype=np.float32)
    x[[3, 50]] = np.nan, -0.0
    assert_same_bits(cpu, gpu, machine, blocks.stencil[4, 32].bind(out(100, np.float32), x))


def test_transpose(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    a = np.random.default_rng(7).standard_normal((30, 25), dtype=np.float32)
    assert_same_bits(cpu, gpu, machine, blocks.transpose[(2, 2), (16, 16)].bind(out((25, 30), np.float32), a))


def test_outputs_of_blocks_with_two_axes(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    a = np.random.default_rng(8).standard_normal((12, 24))
    assert_same_bits(cpu, gpu, machine, blocks.tiles[(3, 3), (8, 4)].bind(out((2, 2), np.float64), a))


def test_three_axes(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    a = np.random.default_rng(9).standard_normal((5, 8, 11))
    args = (out((5, 8, 11, 2), np.float64), out((3, 3, 3), np.float64), a)
    assert_same_bits(cpu, gpu, machine, blocks.volume[(3, 3, 3), (4, 3, 2)].bind(*args))


@pytest.mark.parametrize("n", [-1, 2, 5, 9])
def test_what_threads_carry_over_barriers(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, n: int) -> None:
    x = np.random.default_rng(10).integers(-50, 50, 64)
    assert_same_bits(cpu, gpu, machine, blocks.carried[2, 32].bind(out((64, 3), np.int64), x, n), singles=n == 5)


def test_device_functions_and_returns(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(11).integers(-9, 12, 64)
    assert_same_bits(cpu, gpu, machine, blocks.early[2, 32].bind(out(64, np.int64), x, 8))


@pytest.mark.parametrize("at", [2, 3, -1, 2**40, -(2**63)])
def test_memory_begins_as_zeros_and_ends_at_its_bounds(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine, at: int
) -> None:
    binding = blocks.uninitialised[2, 8].bind(out(16, np.float32), at)
    assert_same_bits(cpu, gpu, machine, binding, singles=at == 2)


def test_many_barriers(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    assert_same_bits(cpu, gpu, machine, blocks.many_barriers[1, 4].bind(out(4, np.int64), 300))


@kernel
def ranges(result, x):
    """An output by blocks, with neither shared memory nor a barrier: one thread stores it, or each its part."""
    low = 0.0
    high = 0.0
    for k in range(cuda.blockDim.x):
        value = x[cuda.blockIdx.x * cuda.blockDim.x + k]
        low = min(low, value)
        high = max(high, value)
    tx = cuda.threadIdx.x
    result[cuda.blockIdx.x, tx + 2] = high - low if tx % 2 == 0 else low / high
    if tx == cuda.blockDim.x - 1:
        result[cuda.blockIdx.x, 0] = low
        result[cuda.blockIdx.x, 1] = high


def test_outputs_of_blocks_alone(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(17).standard_normal(40, dtype=np.float32)
    x[[1, 9, 17, 25, 26]] = np.inf, np.nan, -0.0, -np.inf, 1e-45
    assert_same_bits(cpu, gpu, machine, ranges[6, 8].bind(out((5, 9), np.float32), x))


@kernel
def every_dtype(result, flags, x):
    """Each thread's element of arrays of all dtypes, and its neighbour's as it was at the barrier."""
    a = cuda.shared.array(32, np.int8)
    b = cuda.shared.array(33, np.bool_)
    c = cuda.shared.array((2, 16), np.uint16)
    d = cuda.shared.array(32, np.float64)
    e = cuda.shared.array(32, np.float32)
    f = cuda.shared.array(32, np.uint64)
    g = cuda.shared.array(32, np.int16)
    h = cuda.shared.array(32, np.uint8)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    a[tx] = x[i]
    b[tx] = x[i] > 0.0
    c[tx // 16, tx % 16] = x[i] * 1000.0
    d[tx] = x[i] * 1e30
    e[tx] = x[i]
    f[tx] = x[i] * 1e18
    g[tx] = x[i] * -300.0
    h[tx] = x[i] + 100.0
    cuda.syncthreads()
    for k in range(3):
        a[tx] += a[(tx + 1) % 32]
        b[tx] = not b[(tx + 2) % 33]
        c[tx // 16, tx % 16] += c[1 - tx // 16, (tx + k) % 16]
        d[tx] -= d[31 - tx]
        e[tx] = e[tx ^ 1] / e[tx]
        f[tx] *= f[(tx + 31) % 32]
        g[tx] ^= g[31 - tx]
        h[tx] -= h[(tx + 5) % 32]
        cuda.syncthreads()
    result[i, 0] = a[tx]
    result[i, 1] = c[tx // 16, tx % 16]
    result[i, 2] = d[tx]
    result[i, 3] = e[tx]
    result[i, 4] = f[tx]
    result[i, 5] = g[tx]
    result[i, 6] = h[tx]
    flags[i] = b[tx]


def test_every_dtype(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(12).standard_normal(64, dtype=np.float32) * 40
    x[:8] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38]
    binding = every_dtype[2, 32].bind(out((64, 7), np.float64), out(64, bool), x)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)


@kernel
def smooth(result, x, rounds):
    """A constant array's weights over what the threads hold, in local arrays meanwhile."""
    weights = cuda.const.array_like(WEIGHTS)
    sm = cuda.shared.array(24, np.float32)
    mine = cuda.local.array(4, np.float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = x[i]
    cuda.syncthreads()
    for k in range(rounds):
        total = 0.0
        for j in range(weights.size):
            total += weights[j] * sm[tx + j - 1]
        mine[k & 3] = total
        cuda.syncthreads()
        sm[tx] = total
        cuda.syncthreads()
    for k in range(4):
        result[i, k] = mine[k]


def test_local_and_constant_arrays_beside_shared_ones(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(13).standard_normal(70, dtype=np.float32)
    assert_same_bits(cpu, gpu, machine, smooth[3, 24].bind(out((70, 4), np.float32), x, 6))


@kernel
def shuffled(result, x):
    """What a thread stores has no one distance to its place: vectors say which elements are its own."""
    sm = cuda.shared.array(64, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx * 5 % 16] = x[i]
    sm[16 + 47 - tx * 3] = -x[i]
    total = sm[tx] * 3 + sm[63 - tx] + sm[tx * 5 % 16] * 7 + sm[63 - tx * 3]
    cuda.syncthreads()
    if tx < 9:
        sm[tx * 7 % 64] = total
        total += sm[tx * tx % 64]
    cuda.syncthreads()
    result[i] = total + sm[tx] * 1000 + sm[tx * 3] * 100000


def test_elements_of_a_threads_own_that_no_formula_gives(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(14).integers(1, 100, 32)
    assert_same_bits(cpu, gpu, machine, shuffled[2, 16].bind(out(32, np.int64), x))


# Local and constant arrays of threads that run alone


def alone(name: str) -> Binding:
    rng = np.random.default_rng(15)
    if name == "convolve":
        x = rng.standard_normal((9, 12), dtype=np.float32)
        return scratch.convolve[(2, 2), (4, 4)].bind(out((7, 8), np.float32), x)
    if name == "neighbours":
        points, queries = rng.random((12, 3), dtype=np.float32), rng.random((10, 3), dtype=np.float32)
        return scratch.neighbours[2, 8].bind(out((10, scratch.NEIGHBOURS), np.int32), points, queries)
    if name == "edges":
        return scratch.edges[2, 8].bind(out((16, 3), np.int64), 1, 2**16 + 5)
    return scratch.every_dtype[1, 8].bind(out((6, 5), np.float64))


@pytest.mark.parametrize("name", ["convolve", "neighbours", "edges", "every dtype"])
def test_local_and_constant_arrays(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, name: str) -> None:
    assert_same_threads(cpu, gpu, machine, alone(name), singles=name == "convolve")
