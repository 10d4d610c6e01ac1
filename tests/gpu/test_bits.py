"""Strict kernels on silicon give the processor's bits."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import product_tolerance
from p2pcompute.execution import _golden as golden
from p2pcompute.execution import open_pool, self_test
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._pool_process import WorkerProgram
from p2pcompute.kernel import Binding, kernel

from ..unit.execution import test_strict_arithmetic as strict
from ..unit.execution.cuda import test_cuda_product as products
from ..unit.execution.cuda import test_cuda_rounds as rounds
from ..unit.execution.cuda.random_kernels import INPUTS, OUTPUTS, random_kernel

pytestmark = pytest.mark.gpu

COUNT = 1 << 14
Array = np.ndarray[Any, Any]


def both(cpu: CpuBackend, gpu: CudaBackend, binding: Binding) -> None:
    """The same bits of all blocks at once, of a part, and of single items."""
    layout, launch = binding.layout, binding.launch
    compiled = [backend.compile(binding.source, launch, binding.specs) for backend in (cpu, gpu)]

    def rows(items: int) -> list[Array]:
        return [
            np.zeros((items, *row), spec.dtype) for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]

    size = layout.items_per_block
    some = np.unique(np.random.default_rng(3).integers(0, launch.blocks * size, 200))
    for first, blocks in ((0, launch.blocks), (launch.blocks // 3, max(1, launch.blocks // 4))):
        due, found = rows(blocks * size), rows(blocks * size)
        compiled[0].run_blocks(first, blocks, binding.values, due)
        compiled[1].run_blocks(first, blocks, binding.values, found)
        assert [out.tobytes() for out in found] == [out.tobytes() for out in due]
    due, found = rows(len(some)), rows(len(some))
    compiled[0].run_threads(some, binding.values, due)
    compiled[1].run_threads(some, binding.values, found)
    assert [out.tobytes() for out in found] == [out.tobytes() for out in due]


@kernel
def saxpy(out: Any, a: Any, x: Any, y: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


@kernel
def mandelbrot(out: Any, rounds: Any) -> None:
    x, y = cuda.grid(2)
    if x < out.shape[1] and y < out.shape[0]:
        c_re = np.float32(x) / np.float32(out.shape[1]) * np.float32(3.0) - np.float32(2.0)
        c_im = np.float32(y) / np.float32(out.shape[0]) * np.float32(2.0) - np.float32(1.0)
        re = np.float32(0.0)
        im = np.float32(0.0)
        count = 0
        for _ in range(rounds):
            if re * re + im * im > np.float32(4.0):
                break
            re, im = re * re - im * im + c_re, np.float32(2.0) * re * im + c_im
            count += 1
        out[y, x] = count


@kernel
def tiled(out: Any, a: Any, b: Any) -> None:
    left = cuda.shared.array((16, 16), np.float32)
    right = cuda.shared.array((16, 16), np.float32)
    column, row = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = np.float32(0.0)
    for k in range(8):
        left[ty, tx] = a[row, k * 16 + tx]
        right[ty, tx] = b[k * 16 + ty, column]
        cuda.syncthreads()
        for i in range(16):
            total += left[ty, i] * right[i, tx]
        cuda.syncthreads()
    if row < out.shape[0] and column < out.shape[1]:
        out[row, column] = total


@kernel
def moments(total: Any, largest: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < x.size:
        total[i] = x[i]
        largest[i] = x[i]


@kernel
def mirrored(x: Any, sums: Any) -> None:
    part = cuda.shared.array(64, np.float32)
    i = cuda.grid(1)
    t = cuda.threadIdx.x
    part[t] = x[i]
    cuda.syncthreads()
    if i % 3:
        x[i] += part[63 - t]
    if t == 0:
        sums[cuda.blockIdx.x] += part[0]


def named() -> dict[str, Binding]:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, COUNT), dtype=np.float32)
    a, b = rng.standard_normal((2, 128, 128), dtype=np.float32)
    return {
        "saxpy": saxpy.bind(p2p.out(COUNT, np.float32), np.float32(1.1), x, y),
        "mandelbrot": mandelbrot[(16, 16), (16, 16)].bind(p2p.out((256, 256), np.int32), 200),
        "tiled": tiled[(8, 8), (16, 16)].bind(p2p.out((128, 128), np.float32), a, b),
        "moments": moments[COUNT // 64, 64].bind(
            p2p.reduce("sum", (COUNT,), np.float32), p2p.reduce("max", (COUNT,), np.float32), x
        ),
        "mirrored": mirrored[COUNT // 64, 64].bind(p2p.inout(x), p2p.inout(y[: COUNT // 64])),
    }


@pytest.mark.parametrize("name", ["saxpy", "mandelbrot", "tiled", "moments", "mirrored"])
def test_kernels_of_common_kinds(cpu: CpuBackend, gpu: CudaBackend, name: str) -> None:
    both(cpu, gpu, named()[name])


@pytest.mark.parametrize("name", rounds.BOUND)
def test_rounds_whose_states_stay_on_the_device(cpu: CpuBackend, gpu: CudaBackend, name: str) -> None:
    bound = rounds.BOUND[name]()
    ours, theirs = rounds.engine_of(cpu, bound), rounds.engine_of(gpu, bound)
    due = found = rounds.start(bound)
    for number in range(20):
        due, found = rounds.advanced(ours, number, due), rounds.advanced(theirs, number, found)
        assert rounds.bits(found) == rounds.bits(due)


@pytest.mark.parametrize("seed", range(40))
def test_random_kernels(cpu: CpuBackend, gpu: CudaBackend, seed: int) -> None:
    rng, count = np.random.default_rng(seed), 4096
    data: list[Array] = []
    for dtype in INPUTS:
        small = rng.integers(-50, 50, count) if dtype == "int64" else rng.standard_normal(count) * 10
        with np.errstate(over="ignore"):
            data.append(np.where(rng.random(count) < 0.5, rng.choice(strict.edges(dtype), count), small).astype(dtype))
    source: KernelSource = random_kernel(seed)
    specs: list[ArgSpec] = [OutputSpec(dtype=dtype, shape=(count, *row)) for dtype, row in OUTPUTS]
    specs += [InputSpec(dtype=dtype, shape=(count,)) for dtype in INPUTS]
    block = Random(seed).choice((32, 64, 128, 256))
    launch = Launch(grid=(count // block, 1, 1), block=(block, 1, 1), dims=1)
    due, found = ([np.zeros((count, *row), dtype) for dtype, row in OUTPUTS] for _ in range(2))
    cpu.compile(source, launch, specs).run_blocks(0, launch.blocks, data, due)
    gpu.compile(source, launch, specs).run_blocks(0, launch.blocks, data, found)
    for place, (one, other) in enumerate(zip(found, due, strict=True)):
        assert one.tobytes() == other.tobytes(), f"output {place} of\n{source.text}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", [1, 65, 700])
def test_products_on_tensor_cores_are_near(cpu: CpuBackend, gpu: CudaBackend, dtype: str, side: int) -> None:
    rng = np.random.default_rng(side)
    a, b = (rng.standard_normal((side, side)).astype(dtype) for _ in range(2))
    strict = products.times(cpu, a, b, "strict")
    assert products.near(products.times(gpu, a, b), strict, *product_tolerance(a, b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mathematical_functions_have_their_digests(gpu: CudaBackend, dtype: str) -> None:
    x, y = golden.golden_operands(dtype)
    shape = (golden.COUNT, len(golden.FUNCTIONS))
    args: list[ArgSpec] = [OutputSpec(dtype=dtype, shape=shape)]
    args += [InputSpec(dtype=dtype, shape=x.shape) for _ in range(2)]
    launch = Launch(grid=(golden.COUNT // 128, 1, 1), block=(128, 1, 1), dims=1)
    rows = np.zeros(shape, dtype)
    gpu.compile(golden.SOURCE, launch, args).run_blocks(0, launch.blocks, [x, y], [rows])
    found = golden.column_digests(rows)
    assert {name: found[name] for name in golden.FUNCTIONS if found[name] != golden.DIGESTS[dtype][name]} == {}


def test_the_self_test_passes_in_a_locked_worker(program: WorkerProgram) -> None:
    async def main() -> None:
        async with open_pool(spare=0, program=program) as pool:
            await self_test(pool)

    trio.run(main)
