"""The digests that every machine has to give, from PTX alone: no CPU computes anything here."""

from __future__ import annotations

import hashlib
from random import Random

import numpy as np
import pytest

from p2pcompute.execution import _golden as golden
from p2pcompute.execution import _selftest as selftest
from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import out

from .. import test_strict_math as strict_math
from .ptx_arith import documented
from .ptx_machine import Machine
from .test_cuda_bits import assert_same_bits


def test_the_self_test(gpu: CudaBackend, machine: Machine) -> None:
    floats = np.array([float.fromhex(text) for text in selftest.FLOATS])
    inputs = [floats.astype(np.float32), floats, np.array(selftest.INTEGERS, dtype=np.int64)]
    args: list[ArgSpec] = [*selftest.OUTPUTS, *(InputSpec(dtype=x.dtype.name, shape=x.shape) for x in inputs)]
    launch = Launch(grid=(8, 1, 1), block=(128, 1, 1), dims=1)
    rows = [np.zeros(spec.shape, spec.dtype) for spec in selftest.OUTPUTS]
    gpu.compile(selftest.SOURCE, launch, args).run_blocks(0, 8, inputs, rows)
    digest = hashlib.sha256(b"".join(row.astype(row.dtype.newbyteorder("<")).tobytes() for row in rows)).hexdigest()
    assert digest == selftest.DIGEST


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mathematical_functions(gpu: CudaBackend, machine: Machine, dtype: str) -> None:
    """All of them on 4096 operands: four million instructions, each in Python. What the ISA leaves open is another
    value each time."""
    x, y = golden.golden_operands(dtype)
    shape = (golden.COUNT, len(golden.FUNCTIONS))
    args = [OutputSpec(dtype=dtype, shape=shape), *(InputSpec(dtype=dtype, shape=x.shape) for _ in range(2))]
    launch = Launch(grid=(golden.COUNT // 128, 1, 1), block=(128, 1, 1), dims=1)
    rows = np.zeros(shape, dtype)
    compiled = gpu.compile(golden.SOURCE, launch, args)
    machine.open_value = Random(5).getrandbits
    try:
        compiled.run_blocks(0, launch.blocks, [x, y], [rows])
    finally:
        machine.open_value = documented
    found = golden.column_digests(rows)
    assert {name: found[name] for name in golden.FUNCTIONS if found[name] != golden.DIGESTS[dtype][name]} == {}


def test_black_scholes(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    """Exponentials, logarithms and error functions among other arithmetic."""
    rng = np.random.default_rng(6)
    spot, strike = (rng.uniform(50, 150, 48).astype(np.float32) for _ in range(2))
    years = rng.uniform(0.1, 3, 48).astype(np.float32)
    outs = (out(48, np.float32), out(48, np.float32))
    binding = strict_math.black_scholes[2, 32].bind(*outs, spot, strike, years, np.float32(0.03), np.float32(0.25))
    assert_same_bits(cpu, gpu, machine, binding)
