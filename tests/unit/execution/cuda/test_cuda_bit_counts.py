"""Counts of bits from PTX: the CPU's bits, whatever instructions the compiler takes for them."""

from __future__ import annotations

import numpy as np

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import out

from ..test_bit_counts import counts, operands
from .ptx_machine import Machine
from .test_cuda_bits import assert_same_bits


def test_counts_of_bits(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    for dtype in ("int16", "uint32", "int64"):
        x = operands(dtype)
        assert_same_bits(cpu, gpu, machine, counts[4, 64].bind(out((len(x), 4), np.uint64), x), singles=False)
