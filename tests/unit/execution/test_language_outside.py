"""Arrays and tuples of numbers from outside of a kernel, and variables that hold several values at once."""

from __future__ import annotations

import ast
import types
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda, random
from p2pcompute.errors import KernelError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import capture
from p2pcompute.execution._language_tuples import returned, spread
from p2pcompute.kernel import device, kernel, out

from .test_tutorials import backend, run, same

__all__ = ["backend"]

WEIGHTS = np.array([0.25, 0.5, -0.0, np.inf], np.float32)
GRID = np.arange(6, dtype=np.int32).reshape(2, 3)
FLAGS = np.array([True, False])
NUMBERS = (1.5, -2, np.float64(0.1))
CONFIG = types.ModuleType("config")
CONFIG.TABLE = np.array([7, 9], np.int64)  # type: ignore[attr-defined]
WHOLE = np.zeros(0)


@device
def weight(k):
    return WEIGHTS[k % 4] if FLAGS[k % 2] else np.float32(GRID[k % 2, 2])


@device
def pair(k):
    return weight(k) + GRID.shape[1], k * 2


@kernel
def reads_from_outside(result, x):
    i = cuda.grid(1)
    if i < result.shape[0]:
        both = pair(i)
        result[i, 0] = weight(i) if both[1] >= 0 else 0
        result[i, 1] = CONFIG.TABLE[i % 2] + len(WEIGHTS) + GRID.size
        result[i, 2] = x[i] + NUMBERS[0] + NUMBERS[-2] + len(NUMBERS)


def test_arrays_from_outside_are_constants_of_the_kernel(backend: CpuBackend) -> None:
    text = reads_from_outside.source.text
    assert text.count("cuda.const.array") == 4
    assert "outside" not in text.replace("reads_from_outside", "")
    x = np.arange(9, dtype=np.float32)
    found = run(backend, reads_from_outside.bind(out((9, 3), np.float32), x))
    for i in range(9):
        due = WEIGHTS[i % 4] if FLAGS[i % 2] else GRID[i % 2, 2]
        assert found[i].tolist() == [due, (7, 9)[i % 2] + 4 + 6, i + 1.5 - 2 + 3]


def test_their_content_is_a_part_of_the_digest() -> None:
    """And is that of the moment in which the kernel was written."""

    def make(table: Any) -> Any:
        @kernel
        def takes(result):
            result[cuda.grid(1)] = table[0]

        return takes

    one, same_again, other = (make(np.array(numbers)) for numbers in ([1, 2], [1, 2], [1, 3]))
    assert one.source.digest == same_again.source.digest != other.source.digest
    table = np.array([1, 2])
    written = make(table)
    table[1] = 3
    assert written.source.digest == one.source.digest
    assert make((1, 2)).source.digest != one.source.digest  # a tuple's number stands in the text by itself


def test_one_array_under_two_names_and_two_under_one(backend: CpuBackend) -> None:
    first, second = np.array([1, 2]), np.array([10, 20])

    def function(table: Any) -> Any:
        def value(k):
            return table[k]

        return device(value)

    one, other, again = function(first), function(second), function(first)
    table = second

    @kernel
    def takes(result):
        i = cuda.grid(1)
        if i < 2:
            result[i] = one(i) + other(i) * 100 + again(i) * 10_000 + table[i] * 1_000_000

    assert run(backend, takes.bind(out(2, np.int64))).tolist() == [10_011_001, 20_022_002]
    assert takes.source.text.count("cuda.const.array") == 2


def test_what_is_too_large_or_is_stored_into_is_refused() -> None:
    large = np.zeros(1025)

    def reads(result):
        result[cuda.grid(1)] = large[0]

    with pytest.raises(KernelError, match="an array from outside the kernel of 1025 elements; pass it as an argument"):
        kernel(reads)

    def reads_nothing(result):
        result[cuda.grid(1)] = WHOLE[0]

    with pytest.raises(KernelError, match="of 0 elements"):
        kernel(reads_nothing)

    def stores(result):
        GRID[0, 0] = 1
        result[cuda.grid(1)] = 1

    with pytest.raises(KernelError, match=r"GRID is constant; copy it into a cuda\.local\.array"):
        kernel(stores)


def test_variables_of_several_values(backend: CpuBackend) -> None:
    def takes(result, x):
        place = cuda.grid(2)
        size = cuda.gridsize(2)
        if place[0] < result.shape[0] and place[1] < result.shape[1]:
            both = (x[place], x[place[0], place[1]] * 2)
            kept = both
            both = (kept[1], both[0])
            words = random.philox(place[0], 0, 0, 0, 1, 2)
            a, b = both
            result[place] = a * 1000 + b + size[0] + (words[-1] < 0) + len(words)

    x = np.arange(12, dtype=np.int64).reshape(3, 4)
    found = run(backend, kernel(takes)[(1, 1), (4, 8)].bind(out((3, 4), np.int64), x))
    same(found, x * 2000 + x + 4 + 4)


def test_a_name_of_a_value_is_nobody_elses(backend: CpuBackend) -> None:
    def takes(result):
        t_0 = 5
        t = (1, 2)
        result[cuda.grid(1)] = t_0 * 100 + t[0] * 10 + t[1]

    assert run(backend, kernel(takes)[(1,), (1,)].bind(out(1, np.int64))).tolist() == [512]


def test_variables_that_take_from_each_other(backend: CpuBackend) -> None:
    def fibonacci(result):
        i = cuda.grid(1)
        a = (0, 1)
        b = a
        for _ in range(i):
            b = (a[1], a[0] + a[1])
            a = b
        result[i] = b[0]

    found = run(backend, kernel(fibonacci)[(1,), (8,)].bind(out(8, np.int64)))
    assert found.tolist() == [0, 1, 1, 2, 3, 5, 8, 13]

    def turns(result):
        i = cuda.grid(1)
        a = (1, 2)
        b = (3, 4)
        for _ in range(i):
            c = a
            a = b
            b = (c[1], c[0])
        result[i] = 1000 * a[0] + 100 * a[1] + 10 * b[0] + b[1]

    found = run(backend, kernel(turns)[(1,), (4,)].bind(out(4, np.int64)))
    assert found.tolist() == [1234, 3421, 2143, 4312]


PAIR = (np.arange(4.0), np.arange(4.0) * 10)


def test_arrays_in_a_tuple(backend: CpuBackend) -> None:
    def takes(result):
        i = cuda.grid(1)
        result[i] = PAIR[0][i] + PAIR[1][i] + PAIR[-1][0] + PAIR[-2].size

    taken = kernel(takes)[(1,), (4,)].bind(out(4, np.float64))
    assert "PAIR_0[i] + PAIR_1[i] + PAIR_1[0]" in taken.source.text
    assert run(backend, taken).tolist() == [4, 15, 26, 37]


def test_arrays_that_are_none_are_called_what_they_are() -> None:
    number, grid = np.array(3.0), np.array([[1.0]]).view(np.recarray)

    def reads(result):
        result[cuda.grid(1)] = number

    with pytest.raises(KernelError, match=r"number is an array without an axis; name a number"):
        kernel(reads)

    def reads_records(result):
        result[cuda.grid(1)] = grid[0, 0]

    with pytest.raises(KernelError, match=r"grid is a recarray; name a plain array"):
        kernel(reads_records)


@device
def w_0(a):
    return a + 1


@device
def doubled(a):
    w = (a, 2 * a)
    return w  # noqa: RET504


def test_names_that_are_made_are_nobodys(backend: CpuBackend) -> None:
    """Neither a variable's nor a function's, whichever comes first; and none begins with two underscores."""

    def first(result):
        w = doubled(3)
        t_1 = 5
        t = (w_0(w[0]), w[1])
        result[cuda.grid(1)] = 100 * t[0] + 10 * t[1] + t_1

    assert run(backend, kernel(first)[(1,), (1,)].bind(out(1, np.int64))).tolist() == [465]

    def then(result):
        total = w_0(0)
        for _ in (3, 4):
            w = doubled(_)
            total += w[1]
        result[cuda.grid(1)] = total

    assert run(backend, kernel(then)[(1,), (1,)].bind(out(1, np.int64))).tolist() == [15]

    def nameless(result):
        _ = doubled(4)
        result[cuda.grid(1)] = _[0] + _[1]

    assert run(backend, kernel(nameless)[(1,), (1,)].bind(out(1, np.int64))).tolist() == [12]


@pytest.mark.parametrize(
    "text",
    [
        "t = (1, 2)\n    t = 3\n    out[i] = t",
        "t = (1, 2)\n    for t in range(3): pass\n    out[i] = t",
        "t = (1, 2)\n    t += 1\n    out[i] = t",
        "t = (1, 2)\n    out[i] = t[n]",
        "t = (1, 2)\n    out[i] = t[2]",
        "t = (1, 2)\n    out[i] = t + 1",
        "t, s = (1, 2), 3\n    out[i] = t[0]",
        "u = t\n    t = u\n    out[i] = t[0]",
        "out[i] = n[0]\n    n = (1, 2)",
    ],
)
def test_what_is_no_such_variable_is_left_to_the_guard(text: str) -> None:
    tree = ast.parse(f"def k(out, n):\n    i = cuda.grid(1)\n    {text}\n")
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    spread(function, {"out", "n", "i", "t", "u", "s"}, lambda _: None)
    from p2pcompute.execution._guard import admit_tree

    with pytest.raises(KernelError) as caught:
        admit_tree(ast.fix_missing_locations(tree), "k", {})
    assert caught.value.line
    assert caught.value.instead


def test_how_many_values_a_function_returns() -> None:
    def of(text: str) -> int | None:
        function = ast.parse(text).body[0]
        assert isinstance(function, ast.FunctionDef)
        return returned(function)

    assert of("def f(a):\n    if a: return 1, 2\n    return a, a") == 2
    assert of("def f(a):\n    if a: return 1, 2\n    return a") is None
    assert of("def f(a):\n    return a") is None
    assert of("def f(a):\n    a[0] = 1") is None


def test_the_text_that_travels_says_it_all() -> None:
    """A provider reads no names from outside: it admits the text as it stands."""
    captured = capture(reads_from_outside.function, unwrap_device=lambda value: getattr(value, "function", None))
    assert admit(captured.source).entry.name == "reads_from_outside"
