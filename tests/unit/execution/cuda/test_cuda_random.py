"""Kernels written at random: CPU and PTX give the same bits, or one of two compilers took a liberty.

Such kernels found that numba tells LLVM that signed sums never overflow. To look at more of them than the tests do:
``PYTHONPATH=. python -m tests.unit.execution.cuda.test_cuda_random 100 200`` (seeds, about two a second).
"""

from __future__ import annotations

import sys
from random import Random

import numpy as np
import pytest

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend

from .. import test_strict_arithmetic as strict
from .ptx_arith import documented
from .ptx_machine import Machine
from .random_kernels import INPUTS, OUTPUTS, random_kernel

COUNT = 128


def compare(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, seed: int) -> str:
    """Where the bits of a seed's kernel differ, with its text; or "" ."""
    rng, chance = np.random.default_rng(seed), Random(seed)
    data = []
    for dtype in INPUTS:
        small = rng.integers(-50, 50, COUNT) if dtype == "int64" else rng.standard_normal(COUNT) * 10
        with np.errstate(over="ignore"):
            data.append(np.where(rng.random(COUNT) < 0.5, rng.choice(strict.edges(dtype), COUNT), small).astype(dtype))
    source = random_kernel(seed)
    specs: list[ArgSpec] = [OutputSpec(dtype=dtype, shape=(COUNT, *row)) for dtype, row in OUTPUTS]
    specs += [InputSpec(dtype=dtype, shape=(COUNT,)) for dtype in INPUTS]
    launch = Launch(grid=(COUNT // 32, 1, 1), block=(32, 1, 1), dims=1)
    due, found = ([np.zeros((COUNT, *row), dtype) for dtype, row in OUTPUTS] for _ in range(2))
    cpu.compile(source, launch, specs).run_blocks(0, launch.blocks, data, due)
    machine.open_value = chance.getrandbits
    try:
        gpu.compile(source, launch, specs).run_blocks(0, launch.blocks, data, found)
    finally:
        machine.open_value = documented
    for place, (one, other) in enumerate(zip(found, due, strict=True)):
        if one.tobytes() != other.tobytes():
            bits = f"V{one.itemsize}"
            at = tuple(np.argwhere(one.view(bits) != other.view(bits))[0])
            return f"seed {seed}, output {place} at {at}: {one[at]!r} and not {other[at]!r}\n{source.text}"
    return ""


@pytest.mark.parametrize("seed", range(8))
def test_random_kernels(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, seed: int) -> None:
    assert compare(cpu, gpu, machine, seed) == ""


if __name__ == "__main__":
    on = Machine()
    backends = CpuBackend(), CudaBackend(on)
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        if said := compare(*backends, on, number):
            sys.stdout.write(said + "\n")
