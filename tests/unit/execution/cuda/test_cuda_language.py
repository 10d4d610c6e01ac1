"""What kernels say less often, from PTX: the CPU's bits, whatever instructions the compiler takes for it."""

from __future__ import annotations

import numpy as np

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import out

from ..test_bit_counts import counts, operands
from ..test_lower_apart import many
from ..test_places import image, later_turns
from ..test_scratch_passed import alone, alone_as_in_python
from .ptx_machine import Machine
from .test_cuda_bits import assert_same_bits


def test_counts_of_bits(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    for dtype in ("int16", "uint32", "int64"):
        x = operands(dtype)
        assert_same_bits(cpu, gpu, machine, counts[4, 64].bind(out((len(x), 4), np.uint64), x), singles=False)


def test_declared_arrays_in_device_functions(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.arange(-4, 6)
    binding = alone[3, 4].bind(out((10, 6), np.int64), out(10, np.float64), x)
    found, sums = assert_same_bits(cpu, gpu, machine, binding)
    due, due_sums = alone_as_in_python(x)
    assert np.array_equal(found[:10], due)
    assert np.array_equal(sums[:10], due_sums)


def test_functions_out_of_line(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    """Nine calls of each: those whose copies are worth little are calls in the PTX too, and give the same bits."""
    x, y = np.random.default_rng(1).standard_normal((2, 60)).astype(np.float32) * 3
    x[:4] = [0, -0.0, np.inf, np.nan]
    binding = many[2, 32].bind(out(60, np.float32), out(60, np.float64), x, y)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)
    text = gpu.ptx(binding.source, binding.launch, binding.specs).blocks_ptx
    calls = [line for line in text.splitlines() if "call" in line or "pow" in line]
    assert sum("call" in line for line in calls) >= 18


def test_loops_by_strides(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    binding = later_turns[2, 4].bind(out(8, np.int64), np.arange(1, 25))
    assert_same_bits(cpu, gpu, machine, binding, singles=False)
    binding = image[(4, 3), (5, 4)].bind(out((11, 19, 2), np.int64), np.arange(209).reshape(11, 19))
    assert_same_bits(cpu, gpu, machine, binding)
