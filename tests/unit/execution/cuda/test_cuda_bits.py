"""Kernels of all kinds: the PTX that the CUDA back end makes, executed as the ISA describes, gives the CPU's bits."""

# ruff: noqa: B002, FURB136 - kernels say a thing in each way that there is

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda, random
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.kernel import Binding, device, kernel, out
from p2pcompute_testnet import _pathtracer as pathtracer
from p2pcompute_testnet._pathtracer_scene import Picture

from .. import test_strict_arithmetic as strict
from .ptx_arith import documented
from .ptx_machine import Machine

Array = np.ndarray[Any, Any]


def rows_of(binding: Binding, count: int) -> list[Array]:
    return [
        np.zeros((count, *row), spec.dtype)
        for row, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
    ]


def assert_same_bits(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine, binding: Binding, *, singles: bool = True
) -> list[Array]:
    """All blocks at once, a chunk that starts in the middle, and, unless that is left out, single threads. Values
    that the ISA leaves open are others in each run."""
    count, size = binding.launch.blocks, binding.launch.threads_per_block
    program = cpu.compile(binding.source, binding.launch, binding.specs)
    due = rows_of(binding, count * size)
    program.run_blocks(0, count, binding.values, due)
    compiled = gpu.compile(binding.source, binding.launch, binding.specs)
    whole = rows_of(binding, count * size)
    compiled.run_blocks(0, count, binding.values, whole)
    for place, (one, other) in enumerate(zip(whole, due, strict=True)):
        assert one.tobytes() == other.tobytes(), differences(place, one, other)
    opened = np.random.default_rng(99)
    machine.open_value = lambda width: int(opened.integers(0, 2**64, dtype=np.uint64)) & ((1 << width) - 1)
    try:
        first, blocks = count // 2, max(1, min(2, count - count // 2))
        part = rows_of(binding, blocks * size)
        compiled.run_blocks(first, blocks, binding.values, part)
        picks = np.random.default_rng(7).integers(0, count * size, min(count * size, 40))
        single = rows_of(binding, len(picks))
        if singles:  # another entry, and so another compilation
            compiled.run_threads(picks, binding.values, single)
    finally:
        machine.open_value = documented
    for place, (one, two, other) in enumerate(zip(part, single, due, strict=True)):
        chunk = other[first * size : (first + blocks) * size]
        assert one.tobytes() == chunk.tobytes(), differences(place, one, chunk)
        if singles:
            assert two.tobytes() == other[picks].tobytes(), differences(place, two, other[picks])
    assert machine.allocations == 0
    return due


def differences(output: int, found: Array, due: Array) -> str:
    bits = f"V{found.dtype.itemsize}"
    where = np.argwhere(found.view(bits) != due.view(bits))
    shown = [f"{tuple(at)}: {found[tuple(at)]!r} and not {due[tuple(at)]!r}" for at in where[:5]]
    return f"output {output}: {len(where)} of {found.size} differ: {shown}"


@kernel
def saxpy(result, a, x, y):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = a * x[i] + y[i]


def test_saxpy(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 300), dtype=np.float32)
    x[:6] = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-45]
    binding = saxpy[10, 32].bind(out(x.shape, x.dtype), np.float32(2.5), x, y)
    assert_same_bits(cpu, gpu, machine, binding)


@kernel
def mandelbrot(result, x0, y0, step, limit):
    x, y = cuda.grid(2)
    cr = x0 + x * step
    ci = y0 + y * step
    zr, zi = 0.0, 0.0
    for n in range(limit):
        zr, zi = zr * zr - zi * zi + cr, 2.0 * zr * zi + ci
        if zr * zr + zi * zi > 4.0:
            result[y, x] = n
            return
    result[y, x] = limit


def test_loops_and_returns(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    step = np.float32(0.11)
    binding = mandelbrot[(4, 5), (8, 4)].bind(out((19, 30), np.uint16), -2.0, -1.0, step, 40)
    (found,) = assert_same_bits(cpu, gpu, machine, binding)
    assert len(np.unique(found)) > 8


@device
def turned(x, y, z, k):
    return x * k - y, y * k + z, z * x


@device
def nearest(points, x, y):
    best = math.inf
    which = -1
    for k in range(points.shape[0]):
        dx = points[k, 0] - x
        dy = points[k, 1] - y
        away = math.sqrt(dx * dx + dy * dy)
        if away < best:
            best = away
            which = k
    return best, which


@kernel
def cells(index, distance, mixed, points, k):
    x, y = cuda.grid(2)
    near, which = nearest(points, x * 0.37, y * 0.21)
    index[x, y] = which
    distance[y, x, 0] = near
    a, b, c = turned(near, which, 0.5, k)
    mixed[y, x, 0, 0] = a
    mixed[y, x, 0, 1] = b
    mixed[y, x, 1, which - 3] = c
    mixed[y, x, 2, -1] = a  # dropped
    mixed[y, x, 1, 0] = mixed[y, x, 0, 1] + mixed[y, x, 7, 0]
    distance[y, x, 1] = cuda.blockIdx.y * 100 + cuda.threadIdx.x + cuda.gridDim.x - cuda.blockDim.y


def test_device_functions_rows_and_outputs_of_unlike_shapes(
    cpu: CpuBackend, gpu: CudaBackend, machine: Machine
) -> None:
    points = np.random.default_rng(2).random((5, 2), dtype=np.float32) * 3
    binding = cells[(3, 3), (4, 4)].bind(
        out((9, 11), np.int8), out((11, 10, 2), np.float64), out((11, 9, 2, 2), np.float32), points, np.float64(1.7)
    )
    assert_same_bits(cpu, gpu, machine, binding)


@kernel
def stencil(result, x):
    i, j, k = cuda.grid(3)
    total = x[k, j, i] * 6.0
    total -= x[k - 1, j, i] + x[k + 1, j, i] + x[k, j - 1, i] + x[k, j + 1, i] + x[k, j, i - 1] + x[k, j, i + 1]
    result[k, j, i] = total


def test_three_axes_and_loads_out_of_range(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(3).standard_normal((5, 6, 7))
    assert_same_bits(cpu, gpu, machine, stencil[(2, 2, 3), (4, 4, 2)].bind(out(x.shape, x.dtype), x))


@kernel
def paths(inside, mean, words, seed, steps):
    i = cuda.grid(1)
    hits = 0
    total = 0.0
    for k in range(steps):
        u = random.uniform(seed, i, 2 * k)
        v = random.uniform(seed, i, 2 * k + 1)
        if u * u + v * v <= 1.0:
            hits += 1
        total += math.sqrt(u) - v / 3.0
    inside[i] = hits
    mean[i] = total / steps
    a, b, c, d = random.philox(i, -i, i << 40, 3, seed, 7)
    words[i, 0] = a ^ d
    words[i, 1] = b + c


def test_random_numbers(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    n = 70
    args = (out(n, np.int32), out(n, np.float32), out((n, 2), np.uint32), 2**63 + 5, 4)
    assert_same_bits(cpu, gpu, machine, paths[3, 32].bind(*args))


@kernel
def control(result, x):
    i = cuda.grid(1)
    total = 0
    n = x[i]
    while n != 1 and total < 50:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        total += 1
        if n > 10**12:
            break
    for k in range(10, -10, -3):
        if k % 2:
            continue
        total = total * 31 + k
    result[i, 0] = total
    result[i, 1] = n if total > 0 or n > 3 else -n


def test_control(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.arange(-20, 44, dtype=np.int64)
    assert_same_bits(cpu, gpu, machine, control[4, 16].bind(out((64, 2), np.int64), x))


@kernel
def flags(result, x, on, shift, few):
    i = cuda.grid(1)
    result[i] = (x[i] and on) or ((few > 2) and not x[i + shift])


def test_scalars_of_every_dtype(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x = np.random.default_rng(5).random(40) < 0.5
    for few in (np.int8(-3), np.uint16(40_000), np.float64(2.5), np.int64(-9), np.uint8(7)):
        binding = flags[2, 32].bind(out(40, bool), x, np.bool_(True), np.int16(-1), few)
        assert_same_bits(cpu, gpu, machine, binding)


@kernel
def zeros(singles, doubles, x, y):
    i = cuda.grid(1)
    a = x[i]
    b = y[i]
    singles[i, 0] = min(0.0, a + a)
    singles[i, 1] = min(a, 0.0)
    singles[i, 2] = max(0.0, a)
    singles[i, 3] = max(a, -0.0)
    singles[i, 4] = a if a > 0.0 else 0.0
    singles[i, 5] = a if a < 0.0 else 0.0
    singles[i, 6] = 0.0 if a < 0.0 else a
    singles[i, 7] = -a if a < 0.0 else a
    singles[i, 8] = a if a >= 0.0 else -a
    singles[i, 9] = min(max(a, 0.0), 1.0)
    singles[i, 10] = min(a, np.float32(i % 3))
    singles[i, 11] = 0.0 - a
    singles[i, 12] = a + 0.0
    singles[i, 13] = a * 0.0
    singles[i, 14] = a - a
    singles[i, 15] = -(-a) if a == 0.0 else a * 1.0
    doubles[i, 0] = min(b, 0.0)
    doubles[i, 1] = max(-0.0, b)
    doubles[i, 2] = b if b < 0.0 else 0.0
    doubles[i, 3] = 0.0 if b > 0.0 else b
    doubles[i, 4] = -b if b < 0.0 else b
    doubles[i, 5] = 0.0 - b


@pytest.mark.parametrize("capability", [(8, 0), (12, 0)])
def test_signs_of_zeros(cpu: CpuBackend, gpu: CudaBackend, capability: tuple[int, int]) -> None:
    """Choices that look like min, max and abs, which decide otherwise."""
    machine = Machine(capability=capability)
    x, y = strict.edges("float32"), strict.edges("float64")
    x = np.resize(x, len(y))
    binding = zeros.bind(out((len(y), 16), np.float32), out((len(y), 6), np.float64), x, y)
    assert_same_bits(cpu, CudaBackend(machine), machine, binding, singles=False)


def some(values: Array, *others: Array) -> list[Array]:
    """A sample where there are many."""
    picks = np.random.default_rng(len(values)).permutation(len(values))[:320]
    return [np.ascontiguousarray(v[picks]) for v in (values, *others)]


@pytest.mark.parametrize(("one", "other"), strict.PAIRS)
def test_arithmetic_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, one: str, other: str) -> None:
    x, y = some(*strict.pairs(one, other))
    common = strict.meet(x[0], y[0], one, other)[2]
    binding = strict.arithmetic[10, 32].bind(out((len(x), 8), common), x, y)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)


@pytest.mark.parametrize(("one", "other"), [("int64", "uint64"), ("float32", "float32"), ("int64", "float64")])
def test_comparisons_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, one: str, other: str) -> None:
    x, y = some(*strict.pairs(one, other))
    ratio = "float64" if "float64" in (one, other) else "float32"
    binding = strict.comparisons[10, 32].bind(out((len(x), 7), bool), out(len(x), ratio), x, y)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)


@pytest.mark.parametrize(("one", "other"), [("int64", "int64"), ("uint64", "int64"), ("uint8", "int16")])
def test_shifts_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, one: str, other: str) -> None:
    x, y = some(*strict.pairs(one, other))
    left = "uint64" if one == "uint64" else "int64"
    assert_same_bits(cpu, gpu, machine, strict.shifts[10, 32].bind(out((len(x), 8), left), x, y), singles=False)
    common = strict.meet(x[0], y[0], one, other)[2]
    assert_same_bits(cpu, gpu, machine, strict.bitwise[10, 32].bind(out((len(x), 3), common), x, y), singles=False)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float32", "float64"])
def test_unary_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, dtype: str) -> None:
    x = strict.edges(dtype)
    exact = dtype if dtype == "uint64" else "int64"
    args = (out((len(x), 8), dtype), out((len(x), 2), exact), out((len(x), 6), bool), x)
    assert_same_bits(cpu, gpu, machine, strict.unary.bind(*args), singles=False)
    ratio = dtype if dtype.startswith("float") else "float32"
    assert_same_bits(cpu, gpu, machine, strict.roots.bind(out((len(x), 5), ratio), x), singles=False)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "float32", "float64"])
def test_conversions_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine, dtype: str) -> None:
    x = strict.edges(dtype)
    n = len(x)
    outs = (out((n, 8), "int64"), out(n, "uint64"), out((n, 2), "float32"), out(n, "float64"), out((n, 2), bool))
    assert_same_bits(cpu, gpu, machine, strict.conversions.bind(*outs, x), singles=False)
    if dtype != "bool":
        assert_same_bits(
            cpu, gpu, machine, strict.stores.bind(*(out(n, target) for target in strict.ALL), x), singles=False
        )


def test_nans_of_any_payload(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    singles = np.array([0x7FC00001, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000], dtype=np.uint32).view(np.float32)
    assert_same_bits(
        cpu, gpu, machine, strict.stores.bind(*(out(5, target) for target in strict.ALL), singles), singles=False
    )


def test_ranges_on_edges(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    ends = [0, 1, -1, 5, -5, 17, 2**63 - 1, -(2**63), 2**63 - 3, -(2**63) + 3]
    steps = [1, -1, 0, 2, -7, 2**63 - 1, -(2**63)]
    triples = np.array([(a, b, s) for a in ends for b in ends for s in steps], dtype=np.int64)
    start, stop, step = some(*(np.ascontiguousarray(triples[:, k]) for k in range(3)))
    binding = strict.ranges[10, 32].bind(out((len(start), 5), "int64"), start, stop, step)
    assert_same_bits(cpu, gpu, machine, binding, singles=False)


def test_literals(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    x, y = np.array([3.3, -1e30], dtype=np.float32), np.array([7.7, 1e300])
    args = (out((2, 5), "float32"), out((2, 7), "float64"), x, y)
    assert_same_bits(cpu, gpu, machine, strict.literals.bind(*args), singles=False)


def test_the_path_tracer(cpu: CpuBackend, gpu: CudaBackend, machine: Machine) -> None:
    """The demonstration's kernel: a 48th part of the picture's width, so each pixel is another place."""
    made = pathtracer.scene(Picture(width=12, height=8, side=1, depth=5), linear=True)
    assert_same_bits(cpu, gpu, machine, made.kernel[(3, 2), (4, 4)].bind(*made.args))


def test_the_newest_generation(cpu: CpuBackend, gpu: CudaBackend) -> None:
    """NVVM uses another version of LLVM for it."""
    machine = Machine(capability=(12, 0))
    backend = CudaBackend(machine)
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((2, 40), dtype=np.float32)
    n = len(strict.edges("float64"))
    step = np.float32(0.11)
    outs = (out((n, 8), "int64"), out(n, "uint64"), out((n, 2), "float32"), out(n, "float64"), out((n, 2), bool))
    for binding in (
        saxpy[2, 32].bind(out(40, np.float32), np.float32(2.5), x, y),
        mandelbrot[(2, 3), (8, 4)].bind(out((12, 16), np.uint16), -2.0, -1.0, step, 40),
        paths[2, 16].bind(out(20, np.int32), out(20, np.float32), out((20, 2), np.uint32), 7, 2),
        strict.conversions.bind(*outs, strict.edges("float64")),
        strict.unary.bind(out((n, 8), "float64"), out((n, 2), "int64"), out((n, 6), bool), strict.edges("float64")),
    ):
        assert_same_bits(cpu, backend, machine, binding, singles=False)
