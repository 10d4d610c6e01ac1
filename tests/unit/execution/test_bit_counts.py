"""``cuda.popc``, ``clz``, ``ffs``, ``brev`` and ``selp``: in as many bits as their argument has, as in numba.cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Binding, device, kernel, out

Array = np.ndarray[Any, Any]
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


def run(backend: CpuBackend, binding: Binding) -> Array:
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    (spec,) = binding.layout.outputs
    rows = np.zeros((binding.launch.threads, *binding.layout.row_shapes[0]), spec.dtype)
    compiled.run_blocks(0, binding.launch.blocks, binding.values, [rows])
    whole = np.zeros(spec.shape, spec.dtype)
    binding.layout.scatter(0, 0, binding.launch.blocks, rows, whole)
    return whole


def operands(dtype: str) -> Array:
    bits = np.dtype(dtype).itemsize * 8
    ones = [1 << k for k in range(bits)]
    patterns = [0, 0x5A5A5A5A5A5A5A5A, 0x0123456789ABCDEF, *ones, *(one - 1 for one in ones), *(~one for one in ones)]
    return np.array([pattern % (1 << bits) for pattern in patterns], f"uint{bits}").view(dtype)


def model(value: Any) -> list[int]:
    """popc, clz, ffs and brev of a NumPy integer, by its digits."""
    bits = 8 * value.itemsize
    digits = format(int(value) % (1 << bits), f"0{bits}b")
    wide = format(int(value) % (1 << max(bits, 32)), f"0{max(bits, 32)}b")
    last = digits.rfind("1")
    first = digits.find("1")
    return [
        digits.count("1"),
        bits if first < 0 else first,
        0 if last < 0 else bits - last,
        int(wide[::-1], 2),
    ]


@kernel
def counts(result, x):
    i = cuda.grid(1)
    if i < x.size:
        result[i, 0] = cuda.popc(x[i])
        result[i, 1] = cuda.clz(x[i])
        result[i, 2] = cuda.ffs(x[i])
        result[i, 3] = cuda.brev(x[i])


@pytest.mark.parametrize("dtype", INTS)
def test_counts_are_of_as_many_bits_as_an_element_has(backend: CpuBackend, dtype: str) -> None:
    x = operands(dtype)
    due = np.array([model(value) for value in x], np.uint64)
    assert np.array_equal(run(backend, counts.bind(out((len(x), 4), np.uint64), x)), due)


@device
def leading(value):
    return cuda.clz(value)


@device
def same(value, other):
    return value, other


@device
def through(values, k):
    one, other = same(values[k], k)
    return leading(one), leading(other), leading(one + 0)


@kernel
def widths(result, x, small, wide):
    """Where a width stays, and where an operator, or another dtype, makes it 64."""
    i = cuda.grid(1)
    v = x[i]
    if small == 3:
        v = x[0]
    mixed = x[i]
    if small != small:
        mixed = 1
    a, b = v, v + 0
    counted = x[i]
    counted += 0
    one, other, third = through(x, i)
    result[i, 0] = cuda.clz(v)
    result[i, 1] = cuda.clz(mixed)
    result[i, 2] = cuda.clz(a) + 100 * cuda.clz(b)
    result[i, 3] = cuda.clz(counted)
    result[i, 4] = one + 100 * other + 10000 * third
    result[i, 5] = cuda.clz(np.int32(v + 0))
    result[i, 6] = cuda.clz(x[0] if i else v) + 100 * cuda.clz(x[0] if i else i)
    result[i, 7] = cuda.clz(small) + 100 * cuda.clz(wide)
    result[i, 8] = leading(v) + 100 * leading(b) + 10000 * cuda.clz(1)
    result[i, 9] = cuda.popc(np.uint8(-1)) + 100 * cuda.popc(-1) + 10000 * cuda.popc(np.int16(-1))


def test_a_width_stays_with_values_and_operators_give_64(backend: CpuBackend) -> None:
    x = np.array([1, 2], np.int32)
    found = run(backend, widths.bind(out((2, 10), np.int64), x, np.int16(4), np.int64(4)))
    assert found[0].tolist() == [
        31,
        63,
        6331,
        63,
        31 + 6400 + 630000,
        31,
        31 + 6400,
        13 + 6100,
        636331,
        8 + 6400 + 160000,
    ]


@kernel
def selected(result, x, y):
    i = cuda.grid(1)
    result[i] = cuda.selp(x[i] < y[i], x[i], -y[i])


def test_selp_is_the_conditional(backend: CpuBackend) -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 50), dtype=np.float32)
    x[3] = np.nan
    found = run(backend, selected.bind(out(50, np.float32), x, y))
    assert found.tobytes() == np.where(x < y, x, -y).tobytes()
    assert "selp" not in selected.source.text


def test_what_has_no_bits_to_count() -> None:
    with pytest.raises(KernelTypeError, match=r"cuda.popc of a float32.*np.uint32"):
        counts.bind(out((3, 4), np.int64), np.zeros(3, np.float32))

    def two(result, x):
        result[cuda.grid(1)] = cuda.popc(x[0], x[1])

    with pytest.raises(KernelError, match="takes 1 argument,"):
        kernel(two)


@pytest.mark.parametrize("name", ["popc", "clz", "ffs", "brev"])
def test_outside_of_kernels_they_say_so(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"cuda.{name}"):
        getattr(cuda, name)(1)
    with pytest.raises(RuntimeError, match=r"cuda\.selp"):
        cuda.selp(True, 1, 2)
