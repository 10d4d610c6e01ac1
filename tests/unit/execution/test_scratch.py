"""Local and constant arrays: zeroed, bounded, a part of the text, and the same bits however they are run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba import float32 as numba_float32
from numba import types as numba_types

from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.kernel import Binding, KernelSource, device, kernel, out

Array = np.ndarray[Any, Any]
MASK = (np.arange(15, dtype=np.float32).reshape(3, 5) - 7) / np.float32(10)
SIGNS = np.array([True, False, True])
WIDE = np.array([-(2**63), 2**63 - 1, 0])
FLOATS = np.array([-0.0, math.inf, -math.inf, math.nan, 5e-324, 0.1])
NEIGHBOURS = 5
SHAPE = (2, 3)


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


def once(backend: CpuBackend, binding: Binding) -> Array:
    """Run the launch by blocks and by threads; the one output, which has to be the same."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    (spec,), (row,) = binding.layout.outputs, binding.layout.row_shapes
    by_blocks, by_threads = (np.zeros((binding.launch.threads, *row), spec.dtype) for _ in range(2))
    compiled.run_blocks(0, binding.launch.blocks, binding.values, [by_blocks])
    compiled.run_threads(np.arange(binding.launch.threads), binding.values, [by_threads])
    assert by_blocks.tobytes() == by_threads.tobytes()
    (whole,) = binding.empty_outputs()
    binding.layout.scatter(0, 0, binding.launch.blocks, by_blocks, whole)
    return whole


@kernel
def convolve(result, x):
    i, j = cuda.grid(2)
    mask = cuda.const.array_like(MASK)
    total = 0.0
    for k in range(mask.shape[0]):
        for n in range(mask.shape[1]):
            total += mask[k, n] * x[j + k, i + n]
    result[j, i] = total


def test_a_convolution_with_a_constant_mask(backend: CpuBackend) -> None:
    x = np.random.default_rng(3).standard_normal((44, 70), dtype=np.float32)
    due = np.zeros((42, 66), np.float32)
    for k in range(3):
        for n in range(5):
            due += MASK[k, n] * x[k : k + 42, n : n + 66]
    assert once(backend, convolve.bind(out(due.shape, due.dtype), x)).tobytes() == due.tobytes()


@kernel
def neighbours(result, points, queries):
    i = cuda.grid(1)
    best = cuda.local.array(shape=NEIGHBOURS, dtype=numba_float32)
    which = cuda.local.array(NEIGHBOURS, numba_types.int32)
    for k in range(NEIGHBOURS):
        best[k] = math.inf
    for p in range(points.shape[0]):
        distance = 0.0
        for axis in range(points.shape[1]):
            step = points[p, axis] - queries[i, axis]
            distance += step * step
        if distance < best[NEIGHBOURS - 1]:
            k = NEIGHBOURS - 1
            while k > 0 and best[k - 1] > distance:
                best[k] = best[k - 1]
                which[k] = which[k - 1]
                k -= 1
            best[k] = distance
            which[k] = p
    for k in range(NEIGHBOURS):
        result[i, k] = which[k]


def test_nearest_neighbours_in_local_arrays(backend: CpuBackend) -> None:
    rng = np.random.default_rng(4)
    points, queries = rng.random((90, 3), dtype=np.float32), rng.random((300, 3), dtype=np.float32)
    distance = np.zeros((300, 90), np.float32)
    for axis in range(3):
        step = points[None, :, axis] - queries[:, None, axis]
        distance += step * step
    due = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
    assert (once(backend, neighbours.bind(out((300, NEIGHBOURS), np.int32), points, queries)) == due).all()


@kernel
def edges(result, at, value):
    i = cuda.grid(1)
    mine = cuda.local.array(SHAPE, np.int16)
    result[i, 0] = mine[1, 2] + mine[i, i]  # zeros, and zero beyond the end
    mine[at, i] = value
    mine[i, 7] = 9
    mine[-1, 0] = 9
    total = 0
    for j in range(-2, 5):
        for k in range(-2, 5):
            total += mine[j, k]
    result[i, 1] = total
    result[i, 2] = mine.size + len(mine) * 100 + mine.shape[1] * 1000 + mine.ndim * 10000


def test_local_arrays_start_as_zeros_and_drop_what_is_out_of_range(backend: CpuBackend) -> None:
    found = once(backend, edges.bind(out((200, 3), np.int64), 1, 2**16 + 5))
    due = np.zeros((200, 3), np.int64)
    due[:3, 1] = 5  # of each thread's own array, and only where its place lies inside
    due[:, 2] = 6 + 200 + 3000 + 20000
    assert (found == due).all()


@kernel
def every_dtype(result):
    i = cuda.grid(1)
    signs = cuda.const.array_like(SIGNS)
    wide = cuda.const.array_like(WIDE)
    floats = cuda.const.array_like(FLOATS)
    flags = cuda.local.array(2, np.bool_)
    big = cuda.local.array(1, np.uint64)
    flags[1] = 7
    big[0] = np.uint64(wide[1]) * 2 + 1
    result[i, 0] = floats[i]
    result[i, 1] = signs[i]
    result[i, 2] = wide[i]
    result[i, 3] = flags[i]
    result[i, 4] = big[0]


def test_every_dtype_of_declared_arrays(backend: CpuBackend) -> None:
    found = once(backend, every_dtype.bind(out((6, 5), np.float64)))
    due = np.zeros((6, 5))
    due[:, 0], due[:3, 1], due[:3, 2], due[:2, 3], due[:, 4] = FLOATS, SIGNS, WIDE, (0, 1), 2.0**64
    assert found.tobytes() == due.tobytes()


def test_the_content_of_a_constant_is_a_part_of_the_source() -> None:
    def make(table: Array) -> KernelSource:
        def look_up(result):
            i = cuda.grid(1)
            values = cuda.const.array_like(table)
            result[i] = values[i]

        return kernel(look_up).source

    one, other = make(np.array([1.0, 2.0])), make(np.array([1.0, 3.0]))
    assert one.text.replace("2.0", "3.0") == other.text
    assert one.digest != other.digest
    assert "cuda.const.array((2,), np.float64, (1.0, 2.0))" in one.text


def test_two_constants_under_one_name_are_compiled_apart(backend: CpuBackend) -> None:
    for number in (3, 4):
        table = np.full(4, number)

        def look_up(result):
            i = cuda.grid(1)
            values = cuda.const.array_like(table)  # noqa: B023 - captured when it is decorated
            result[i] = values[i & 3]

        assert (once(backend, kernel(look_up).bind(out(9, np.int64))) == number).all()


HEAD = "def k(out, n, x):\n    i = cuda.grid(1)\n"
REFUSED = {
    "a shape of an argument": ("a = cuda.local.array(n, np.float32)", "shape"),
    "a shape of a variable": ("m = 4; a = cuda.local.array(m, np.float32)", "shape"),
    "a shape of a float": ("a = cuda.local.array(4.0, np.float32)", "shape"),
    "no elements": ("a = cuda.local.array(0, np.float32)", "length 0"),
    "negative": ("a = cuda.local.array(1 - 3, np.float32)", "length -2"),
    "five axes": ("a = cuda.local.array((1, 1, 1, 1, 1), np.float32)", "axes"),
    "too much": ("a = cuda.local.array((32, 33), np.float32)", "4224 bytes"),
    "too much together": ("a = cuda.local.array(1024, np.float32); b = cuda.local.array(1, np.int8)", "4097 bytes"),
    "2^40": ("a = cuda.local.array(2 ** 40, np.float32)", "shape"),
    "2^40 by products": ("a = cuda.local.array((1048576, 1048576), np.float64)", "bytes"),
    "10^300": ("a = cuda.local.array(" + "*".join(["1000000"] * 50) + ", np.float32)", "shape"),
    "a dtype by text": ("a = cuda.local.array(4, 'float32')", "dtype"),
    "a dtype of two words": ("a = cuda.local.array(4, np.complex64)", "dtype"),
    "keywords in normal text": ("a = cuda.local.array(shape=4, dtype=np.float32)", "cuda.local.array"),
    "in a block": ("if n: a = cuda.local.array(4, np.float32)", "declared"),
    "in an expression": ("v = cuda.local.array(4, np.float32)[0]", "declared"),
    "two names": ("a = b = cuda.local.array(4, np.float32)", "declared"),
    "twice": ("a = cuda.local.array(4, np.float32); a = cuda.local.array(4, np.float32)", "already"),
    "a parameter": ("x = cuda.local.array(4, np.float32)", "already"),
    "before it is there": ("v = a[0]; a = cuda.local.array(4, np.float32)", "before"),
    "assigned": ("a = cuda.local.array(4, np.float32); a = n", "array"),
    "as a number": ("a = cuda.local.array(4, np.float32); v = a + 1", "alone"),
    "a constant stored": ("a = cuda.const.array((1,), np.int8, (1,)); a[0] = 1", "constant"),
    "a constant too short": ("a = cuda.const.array((2,), np.int8, (1,))", "values"),
    "a constant out of range": ("a = cuda.const.array((1,), np.int8, (128,))", "value"),
    "a constant of a name": ("a = cuda.const.array((1,), np.int8, (n,))", "value"),
    "a constant float as int": ("a = cuda.const.array((1,), np.int8, (1.0,))", "value"),
    "a large constant": ("a = cuda.const.array((1025,), np.int8, (" + "0, " * 1025 + "))", "1025"),
    "large constants": (
        "".join(f"{c} = cuda.const.array((600,), np.int8, ({'0, ' * 600})); " for c in "ab") + "pass",
        "1200",
    ),
    "array_like in normal text": ("a = cuda.const.array_like(x)", "cuda.const.array_like"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_declaration_may_not_say(name: str) -> None:
    line, word = REFUSED[name]
    text = HEAD + f"    {line}\n    out[i] = x[0]\n"
    with pytest.raises(KernelError, match=r".") as caught:
        admit(KernelSource(text=text, entry="k", digest=source_digest("k", text)))
    assert word in str(caught.value)
    assert caught.value.line in (1, 3)


def test_declared_arrays_stay_in_the_kernel() -> None:
    @device
    def declares(a):
        mine = cuda.local.array(4, np.float32)
        return mine[0] + a

    def calls(result):
        i = cuda.grid(1)
        result[i] = declares(i)

    with pytest.raises(KernelError, match="declared in a device function"):
        kernel(calls)


def test_the_wrong_number_of_indices_is_the_authors_line() -> None:
    def flat(result):
        i = cuda.grid(1)
        mine = cuda.local.array((2, 2), np.float32)
        result[i] = mine[0]

    with pytest.raises(KernelTypeError, match="2 axes"):
        kernel(flat).bind(out(3, np.float32))


def test_what_array_like_takes() -> None:
    large = np.zeros(1025)
    text = np.array(["a"])

    def of_an_argument(result, x):
        i = cuda.grid(1)
        table = cuda.const.array_like(x)
        result[i] = table[0]

    def of_a_large_one(result):
        i = cuda.grid(1)
        table = cuda.const.array_like(large)
        result[i] = table[0]

    def of_text(result):
        i = cuda.grid(1)
        table = cuda.const.array_like(text)
        result[i] = table[0]

    for function, word in ((of_an_argument, "outside"), (of_a_large_one, "1025"), (of_text, "no constant")):
        with pytest.raises(KernelError, match=word):
            kernel(function)
