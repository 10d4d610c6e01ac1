"""Integer atomics on an output of all blocks: the text that a kernel becomes, and that it gives NumPy's integers for
every operation, shape and geometry, however its launch is cut."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language import ATOMIC_DTYPES
from p2pcompute.kernel import Binding, Kernel

from . import _windows
from .test_reduce import everywhere, results

Array = np.ndarray[Any, Any]
UFUNCS: dict[str, Any] = {
    "sum": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
BEGIN = {"sum": 0, "or": 0, "xor": 0, "and": -1}


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(2)


@p2p.kernel
def histogram(x, xmin, xmax, histogram_out):
    """numba's documentation has this one, and it is not changed."""
    nbins = histogram_out.shape[0]
    bin_width = (xmax - xmin) / nbins

    start = cuda.grid(1)
    stride = cuda.gridsize(1)
    for i in range(start, x.shape[0], stride):
        bin_number = np.int32((x[i] - xmin) / bin_width)
        if bin_number >= 0 and bin_number < histogram_out.shape[0]:
            cuda.atomic.add(histogram_out, bin_number, 1)


HISTOGRAM = """\
def histogram(x, xmin, xmax, histogram_out):
    part = cuda.shared.array(10, np.int64)
    nbins = 10
    bin_width = (xmax - xmin) / nbins
    start = cuda.grid(1)
    stride = cuda.gridsize(1)
    for i in range(start, x.shape[0], stride):
        bin_number = np.int32((x[i] - xmin) / bin_width)
        if bin_number >= 0 and bin_number < 10:
            cuda.atomic.add(part, bin_number, 1)
    cuda.syncthreads()
    for k in range(cuda.threadIdx.x, 10, cuda.blockDim.x):
        histogram_out[cuda.blockIdx.x, k] = part[k]
"""


def bins_of(x: Array, bins: int, low: float, high: float) -> Array:
    """What the kernel computes, in float32 and rounded towards zero."""
    width = np.float32(np.float32(high) - np.float32(low)) / np.float32(bins)
    found = ((x - np.float32(low)) / width).astype(np.int32)
    return np.bincount(found[(found >= 0) & (found < bins)], minlength=bins)


def test_a_tutorials_histogram_as_it_stands(backend: CpuBackend) -> None:
    x = np.random.default_rng(1).standard_normal(20_000, dtype=np.float32)
    binding = histogram[64, 64].bind(x, np.float32(-4), np.float32(4), p2p.reduce("sum", (10,), np.int64))
    assert binding.source.text == HISTOGRAM
    assert admit(binding.source).outputs == histogram.outputs == ("histogram_out",)
    [found] = everywhere(backend, binding)
    assert found.dtype == np.int64
    assert np.array_equal(found, bins_of(x, 10, -4, 4))


def test_the_page_says_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (Path(__file__).parents[3] / "docs/strict.md").read_text().split("**Atomic operations on an output.**")[1]
    written, sent = section.split("```python\n")[1:3]
    written = written.split("\nhist = ")[0]
    (tmp_path / "page.py").write_text(
        f"import numpy as np\nimport p2pcompute as p2p\nfrom p2pcompute import cuda\n{written}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    page = importlib.import_module("page")
    monkeypatch.delitem(sys.modules, "page")
    binding = page.histogram[64, 64].bind(np.zeros(9, np.float32), 0.0, 1.0, p2p.reduce("sum", 10, np.int64))
    assert binding.source.text == sent.split("```")[0]


def test_an_output_that_begins_as_zeros_is_taken_for_a_sum(backend: CpuBackend) -> None:
    x = np.random.default_rng(2).standard_normal(3_000, dtype=np.float32)
    args = x, np.float32(-3), np.float32(3)
    [found] = everywhere(backend, histogram[5, 32].bind(*args, p2p.out(7, np.uint32)))
    assert found.dtype == np.uint32
    assert np.array_equal(found, bins_of(x, 7, -3, 3))


def test_a_kernel_is_rewritten_once_for_a_shape() -> None:
    args = np.zeros(8, np.float32), np.float32(0), np.float32(1)
    first = histogram[2, 8].bind(*args, p2p.out(5, np.int32))
    again = histogram[3, 16].bind(*args, p2p.reduce("sum", 5, np.int32))
    other = histogram[2, 8].bind(*args, p2p.out(6, np.int32))
    assert first.source is again.source
    assert first.source.digest != other.source.digest


# Each operation, on one to four axes, in launches of one to three


@p2p.kernel
def adds(h, at, value):
    i = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i = (i * cuda.blockDim.z + cuda.threadIdx.z) * cuda.blockDim.y + cuda.threadIdx.y
    i = i * cuda.blockDim.x + cuda.threadIdx.x
    step = cuda.gridDim.x * cuda.gridDim.y * cuda.gridDim.z * cuda.blockDim.x * cuda.blockDim.y * cuda.blockDim.z
    for j in range(i, len(value), step):
        cuda.atomic.add(h, at[j, 0], value[j])


@p2p.kernel
def maxima(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.max(h, at[j, 0], value[j])


@p2p.kernel
def minima(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.min(h, at[j, 0], value[j])


@p2p.kernel
def conjunctions(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.and_(h, at[j, 0], value[j])


@p2p.kernel
def disjunctions(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.or_(h, at[j, 0], value[j])


@p2p.kernel
def parities(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.xor(h, at[j, 0], value[j])


@p2p.kernel
def of_two(h, at, value):
    i = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i = (i * cuda.blockDim.z + cuda.threadIdx.z) * cuda.blockDim.y + cuda.threadIdx.y
    i = i * cuda.blockDim.x + cuda.threadIdx.x
    step = cuda.gridDim.x * cuda.gridDim.y * cuda.gridDim.z * cuda.blockDim.x * cuda.blockDim.y * cuda.blockDim.z
    for j in range(i, len(value), step):
        cuda.atomic.max(h, (at[j, 0], at[j, 1]), value[j])


@p2p.kernel
def of_three(h, at, value):
    i = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i = (i * cuda.blockDim.z + cuda.threadIdx.z) * cuda.blockDim.y + cuda.threadIdx.y
    i = i * cuda.blockDim.x + cuda.threadIdx.x
    step = cuda.gridDim.x * cuda.gridDim.y * cuda.gridDim.z * cuda.blockDim.x * cuda.blockDim.y * cuda.blockDim.z
    for j in range(i, len(value), step):
        place = at[j, 0], at[j, 1], at[j, 2]
        cuda.atomic.add(h, place, value[j])


@p2p.kernel
def of_four(h, at, value):
    for j in range(cuda.grid(1), len(value), cuda.gridsize(1)):
        cuda.atomic.and_(h, (at[j, 0], at[j, 1], at[j, 2], at[j, 3]), value[j])


KERNELS: dict[str, tuple[Kernel, str, int]] = {
    "add": (adds, "sum", 1),
    "max": (maxima, "max", 1),
    "min": (minima, "min", 1),
    "and_": (conjunctions, "and", 1),
    "or_": (disjunctions, "or", 1),
    "xor": (parities, "xor", 1),
    "two axes": (of_two, "max", 2),
    "three axes": (of_three, "sum", 3),
    "four axes": (of_four, "and", 4),
}


def by_numpy(operation: str, shape: tuple[int, ...], dtype: str, at: Array, value: Array) -> Array:
    """One after the other, without what is out of range: negative indices do not count from the end."""
    kind = np.dtype(dtype)
    limits = np.iinfo(kind)
    begin = {**BEGIN, "max": limits.min, "min": limits.max}[operation]
    due = np.full(shape, begin, np.int64).astype(kind) if begin == -1 else np.full(shape, begin, kind)
    inside = ((at[:, : len(shape)] >= 0) & (at[:, : len(shape)] < shape)).all(axis=1)
    UFUNCS[operation].at(due, tuple(at[inside, : len(shape)].T), value[inside].astype(kind))
    return due


def drawn(seed: int, count: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Places within and beyond an array, and integers of every size."""
    rng = np.random.default_rng(seed)
    at = np.stack([rng.integers(-2, length + 2, count) for length in (*shape, 1, 1, 1)[:4]], axis=1)
    value = rng.integers(-(2**63), 2**63, count) >> rng.integers(0, 64, count)
    if count > 4:
        at[:4, 0] = 2**62, -(2**63), 2**32, 2**31  # which no narrowing may bring back into the array
    return at, value


@pytest.mark.parametrize("dtype", ATOMIC_DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_every_operation_gives_what_numpy_gives(backend: CpuBackend, name: str, dtype: str) -> None:
    kernel, operation, axes = KERNELS[name]
    shape = (5, 3, 4, 2)[:axes]
    at, value = drawn(3, 700, shape)
    [found] = everywhere(backend, kernel[6, 16].bind(p2p.reduce(operation, shape, dtype), at, value))
    due = by_numpy(operation, shape, dtype, at, value)
    assert (found.shape, found.dtype) == (due.shape, due.dtype)
    assert found.tobytes() == due.tobytes()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_shapes_geometries_and_cuts(data: st.DataObject) -> None:
    kernel, operation, axes = KERNELS[data.draw(st.sampled_from(["add", "two axes", "three axes"]))]
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=axes, max_size=axes)))
    dtype = data.draw(st.sampled_from(ATOMIC_DTYPES))
    dims = data.draw(st.integers(1, 3))
    grid, block = (tuple(data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims))) for _ in range(2))
    at, value = drawn(data.draw(st.integers(0, 99)), data.draw(st.integers(0, 200)) + 1, shape)
    binding = kernel[grid, block].bind(p2p.reduce(operation, shape, dtype), at, value)
    due = by_numpy(operation, shape, dtype, at, value)
    assert due.shape == shape
    with CpuBackend(2) as backend:
        for size in {binding.launch.blocks, data.draw(st.integers(1, binding.launch.blocks))}:
            for by_items in (False, True):
                [found] = results(backend, binding, size, by_items=by_items)
                assert found.shape == due.shape
                assert found.tobytes() == due.tobytes()


# What else such a kernel may hold


@p2p.kernel
def leaves_early(counts, seen, x, limit):
    scale = cuda.local.array(2, np.int64)
    i = cuda.grid(1)
    if i >= x.size:
        return
    v = x[i]
    if v < 0:
        cuda.atomic.add(counts, 0, 1)
        return
    elif v == 7:  # noqa: RET505 - as tutorials may write it
        return
    if v > limit:
        cuda.atomic.add(counts, 1, 1)
    if v < 3:
        seen[i] = -v
    else:
        scale[0] = v
        seen[i] = scale[0] * 10
        return
    cuda.atomic.add(counts, 2, 1)
    return


def left_early(x: Array, limit: int) -> tuple[list[int], Array]:
    counts, seen = [0, 0, 0], np.zeros_like(x)
    for i, v in enumerate(x):
        if v < 0:
            counts[0] += 1
        elif v != 7:
            counts[1] += int(v > limit)
            seen[i] = -v if v < 3 else v * 10
            counts[2] += int(v < 3)
    return counts, seen


def test_threads_that_return_early(backend: CpuBackend) -> None:
    x = np.random.default_rng(4).integers(-3, 12, 300)
    binding = leaves_early[5, 64].bind(p2p.out(3, np.int64), p2p.out(300, np.int64), x, 9)
    assert "return" not in binding.source.text
    counts, seen = everywhere(backend, binding)
    due, stored = left_early(x, 9)
    assert counts.tolist() == due
    assert np.array_equal(seen, stored)


@p2p.kernel
def returns_in_both(h, x):
    i = cuda.grid(1)
    if i < x.size:
        if x[i] > 0:
            cuda.atomic.max(h, 0, x[i])
            return
        cuda.atomic.max(h, 1, -x[i])
        return
    else:  # noqa: RET505 - likewise
        return
    cuda.atomic.max(h, 0, 99)


def test_what_nobody_comes_to_is_gone(backend: CpuBackend) -> None:
    x = np.random.default_rng(5).integers(-50, 50, 100)
    binding = returns_in_both[4, 32].bind(p2p.reduce("max", 2, np.int32), x)
    assert "99" not in binding.source.text
    [found] = everywhere(backend, binding)
    assert found.tolist() == [x.max(), -x.min()]


@p2p.kernel
def of_several(part, k, part_2, x):
    """The names that the text would take; its own shared array and barriers; two targets, and an output of threads."""
    own = cuda.shared.array(32, np.int32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    own[tx] = x[i]
    cuda.syncthreads()
    cuda.atomic.add(part, own[31 - tx] % 5, 1)
    cuda.syncthreads()
    if i < x.size:
        cuda.atomic.min(part_2, (tx % 2, own[tx] % 3), own[tx])
        k[i] = own[(tx + 1) % 32] + len(part) * 1000 + part_2.size * 100 + part_2.shape[1] * 10 + part_2.ndim


def test_names_own_arrays_and_several_targets(backend: CpuBackend) -> None:
    x = np.random.default_rng(6).integers(0, 1000, 128)
    args = p2p.reduce("sum", 5, np.uint64), p2p.out(128, np.int64), p2p.reduce("min", (2, 3), np.int64), x
    binding = of_several[4, 32].bind(*args)
    assert "part_3 = cuda.shared.array(5, np.uint64)" in binding.source.text
    assert "part_4[k_2 // 3, k_2 % 3] = 9223372036854775807" in binding.source.text
    sums, rows, least = everywhere(backend, binding)
    assert sums.dtype == np.uint64
    assert sums.tolist() == np.bincount(x % 5, minlength=5).tolist()
    assert np.array_equal(rows, np.roll(x.reshape(4, 32), -1, axis=1).ravel() + 5632)
    due = np.full((2, 3), np.iinfo(np.int64).max)
    np.minimum.at(due, (np.arange(128) % 2, x % 3), x)
    assert np.array_equal(least, due)


@p2p.kernel
def near(h, out, x):
    i, j = cuda.grid(2)
    out[j, i] = x[j, i - 1] + x[j + 1, i]
    h_size, w_size = h.shape
    if i < x.shape[1] and j < x.shape[0]:
        cuda.atomic.add(h, (min(x[j, i], h_size - 1), x[j, i + 1] % w_size), 1)


def test_a_split_input_and_an_output_of_threads_on_a_grid_of_two_axes(backend: CpuBackend) -> None:
    x = np.random.default_rng(7).integers(0, 9, (12, 20))
    args = p2p.reduce("sum", (4, 3), np.int32), p2p.out((12, 20), np.int64)
    whole = near[(3, 2), (8, 8)].bind(*args, x)
    split = near[(3, 2), (8, 8)].bind(*args, p2p.split(x, halo=1))
    assert whole.source is split.source
    assert split.specs[2].split is not None
    counts, rows = everywhere(backend, whole)
    for size in (1, 4, 6):
        for one, other in zip(_windows.chunked(backend, split, size), (counts, rows), strict=True):
            assert one.tobytes() == other.tobytes()
    due = np.zeros((4, 3), np.int32)
    right = np.pad(x, ((0, 0), (0, 1)))[:, 1:]
    np.add.at(due, (np.minimum(x, 3).ravel(), (right % 3).ravel()), 1)
    assert np.array_equal(counts, due)


@p2p.kernel
def by_the_last_axis(h, x):
    i = cuda.grid(1)
    if i >= x.size:
        return None  # noqa: RET501 - as tutorials may write it
    cuda.atomic.add(h, (i % h.shape[-2], x[i] % h.shape[-1]), 1)


def test_axes_from_the_end_and_a_return_of_none(backend: CpuBackend) -> None:
    x = np.random.default_rng(9).integers(0, 99, 100)
    binding = by_the_last_axis[4, 32].bind(p2p.out((3, 5), np.int32), x)
    assert "i % 3, x[i] % 5" in binding.source.text
    [found] = everywhere(backend, binding)
    due = np.zeros((3, 5), np.int32)
    np.add.at(due, (np.arange(100) % 3, x % 5), 1)
    assert np.array_equal(found, due)


@p2p.kernel
def of_all(total, x):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        cuda.atomic.add(total, 0, x[i] * 2**40)


def test_one_element_for_all_threads_wraps_as_the_dtype_does(backend: CpuBackend) -> None:
    x = np.random.default_rng(8).integers(0, 2**40, 1000)
    with np.errstate(over="ignore"):
        due = np.array([(x * 2**40).sum()])
    for dtype in ATOMIC_DTYPES:
        [found] = everywhere(backend, of_all[7, 32].bind(p2p.reduce("sum", 1, dtype), x))
        assert np.array_equal(found, due.astype(dtype))


@pytest.mark.parametrize(("dtype", "bins", "threads"), [("int32", 12_288, 1), ("uint64", 6_144, 1024)])
def test_a_part_as_large_as_a_blocks_memory(backend: CpuBackend, dtype: str, bins: int, threads: int) -> None:
    x = np.random.default_rng(9).integers(0, bins + 5, (1500, 4))
    binding: Binding = adds[2, threads].bind(p2p.reduce("sum", bins, dtype), x, np.ones(1500, np.int64))
    [found] = results(backend, binding, 1)
    assert np.array_equal(found, np.bincount(x[:, 0], minlength=bins + 5)[:bins].astype(dtype))
