"""The mathematical functions: one text gives one result everywhere, and the special cases are those of the page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution import _golden as golden
from p2pcompute.execution._api import InputSpec, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._language import MATH_CALLS, MATH_FUNCTIONS, NUMPY_SPELLINGS
from p2pcompute.execution._strict_math import math_helpers
from p2pcompute.kernel import Kernel, device, kernel, out

BACKEND = CpuBackend()
PLAIN = math_helpers(lambda function: function)  # the same text, run by Python itself
INF, NAN = math.inf, math.nan
DTYPES = ["float32", "float64"]


def execute(function: Kernel, *args: Any) -> list[np.ndarray[Any, Any]]:
    """Run a whole launch, one thread for each row of the outputs."""
    binding = function.bind(*args)
    compiled = BACKEND.compile(binding.source, binding.launch, binding.specs)
    rows = [
        np.zeros((binding.launch.threads, *shape), spec.dtype)
        for shape, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
    ]
    compiled.run_blocks(0, binding.launch.blocks, binding.values, rows)
    return [part[: spec.shape[0]] for part, spec in zip(rows, binding.layout.outputs, strict=True)]


def plain(name: str, *operands: Any) -> Any:
    """A function as Python evaluates it; its type is that of the operands."""
    width = "32" if isinstance(operands[0], np.float32) else "64"
    with np.errstate(all="ignore"):
        value = PLAIN[f"{name}{'_' if name[-1].isdigit() else ''}{width}"](*operands)
    assert type(value) is type(operands[0]) or width == "64", (name, type(value))
    return type(operands[0])(value)


def bits(values: Any) -> Any:
    """As integers, with one NaN."""
    array = np.array(values)
    array[np.isnan(array)] = np.nan
    return array.view(np.uint32 if array.dtype == np.float32 else np.uint64)


_GOLDEN: dict[str, np.ndarray[Any, Any]] = {}


def golden_output(dtype: str) -> np.ndarray[Any, Any]:
    """The compiled functions over the golden operands."""
    if dtype not in _GOLDEN:
        x, y = golden.golden_operands(dtype)
        shape = (golden.COUNT, len(golden.FUNCTIONS))
        specs = [OutputSpec(dtype=dtype, shape=shape), *(InputSpec(dtype=dtype, shape=x.shape) for _ in range(2))]
        launch = Launch(grid=(golden.COUNT // 128, 1, 1), block=(128, 1, 1), dims=1)
        result = np.zeros(shape, dtype)
        BACKEND.compile(golden.SOURCE, launch, specs).run_blocks(0, launch.blocks, [x, y], [result])
        _GOLDEN[dtype] = result
    return _GOLDEN[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_bit_has_changed(dtype: str) -> None:
    found = golden.column_digests(golden_output(dtype))
    assert {name for name in found if found[name] != golden.DIGESTS[dtype][name]} == set()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_changed_bit_is_found(dtype: str) -> None:
    changed = golden_output(dtype).copy()
    place = np.unravel_index(3 * 4096 + 7, changed.shape)
    changed[place] = np.nextafter(changed[place], np.inf)
    found = golden.column_digests(changed)
    assert [n for n in found if found[n] != golden.DIGESTS[dtype][n]] == [golden.FUNCTIONS[place[1]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", golden.FUNCTIONS)
def test_python_itself_gives_the_same_bits(name: str, dtype: str) -> None:
    """What a compiler made of the text is what the text says: Python's floats are IEEE's, one operation at a time."""
    x, y = golden.golden_operands(dtype)
    compiled = golden_output(dtype)[:, golden.FUNCTIONS.index(name)]
    chosen = [*range(256), *range(256, golden.COUNT, 19)]
    operands = (x, y) if MATH_CALLS.get(name, 1) == 2 else (x,)
    due = [plain(name, *(column[row] for column in operands)) for row in chosen]
    assert bits(compiled[chosen]).tolist() == bits(np.array(due, dtype)).tolist()


# Special cases: docs/strict.md has the same table.

PI, HALF, QUARTER, THREE = math.pi, math.pi / 2, math.pi / 4, 3 * math.pi / 4
SPECIAL: dict[str, list[tuple[float, ...]]] = {  # operands, and the value as the last
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1e4, INF), (-1e4, 0.0)],
    "exp2": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (10.0, 1024.0), (-3.0, 0.125), (1e4, INF), (-1e4, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (1e4, INF), (-1e4, -1.0)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (-INF, NAN)],
    "log2": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (8.0, 3.0), (0.25, -2.0)],
    "log10": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (1000.0, 3.0), (1e10, 10.0)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-2.0, NAN), (-INF, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "tan": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.0, HALF), (-1.0, -HALF), (1.5, NAN), (INF, NAN)],
    "acos": [(1.0, 0.0), (0.0, HALF), (-1.0, PI), (1.5, NAN), (-INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (1.0, QUARTER), (INF, HALF), (-INF, -HALF)],
    "atan2": [
        (0.0, 1.0, 0.0), (-0.0, 1.0, -0.0), (0.0, 0.0, 0.0), (-0.0, 0.0, -0.0), (0.0, -0.0, PI), (-0.0, -0.0, -PI),
        (0.0, -1.0, PI), (-0.0, -1.0, -PI), (1.0, 0.0, HALF), (-1.0, -0.0, -HALF), (INF, INF, QUARTER),
        (-INF, INF, -QUARTER), (INF, -INF, THREE), (-INF, -INF, -THREE), (1.0, INF, 0.0), (-1.0, INF, -0.0),
        (1.0, -INF, PI), (-1.0, -INF, -PI), (INF, 1.0, HALF), (-INF, -1.0, -HALF), (NAN, 1.0, NAN), (1.0, NAN, NAN),
    ],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (1e4, INF), (-1e4, -INF)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (1e4, INF)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (50.0, 1.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (10.0, 1.0)],
    "erfc": [(0.0, 1.0), (-0.0, 1.0), (INF, 0.0), (-INF, 2.0), (100.0, 0.0), (-10.0, 2.0)],
    "pow": [
        (2.0, 0.0, 1.0), (NAN, 0.0, 1.0), (NAN, -0.0, 1.0), (1.0, NAN, 1.0), (1.0, INF, 1.0), (-1.0, INF, 1.0),
        (-1.0, -INF, 1.0), (0.5, INF, 0.0), (0.5, -INF, INF), (2.0, INF, INF), (-2.0, -INF, 0.0), (0.0, INF, 0.0),
        (0.0, -INF, INF), (0.0, 3.0, 0.0), (-0.0, 3.0, -0.0), (-0.0, 2.0, 0.0), (-0.0, 0.5, 0.0), (0.0, -3.0, INF),
        (-0.0, -3.0, -INF), (-0.0, -2.0, INF), (-0.0, -0.5, INF), (INF, 2.0, INF), (INF, -2.0, 0.0),
        (-INF, 3.0, -INF), (-INF, 2.0, INF), (-INF, 0.5, INF), (-INF, -3.0, -0.0), (-INF, -2.0, 0.0),
        (-8.0, 1 / 3, NAN), (-2.0, 3.0, -8.0), (-2.0, -2.0, 0.25), (NAN, 2.0, NAN), (2.0, NAN, NAN),
        (10.0, 1e6, INF), (-10.0, 1_000_001.0, -INF), (10.0, -1e6, 0.0), (9.0, 0.5, 3.0),
    ],
    "hypot": [(3.0, 4.0, 5.0), (0.0, -0.0, 0.0), (INF, NAN, INF), (NAN, -INF, INF), (NAN, 1.0, NAN), (-0.0, -2.0, 2.0)],
    "cbrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (27.0, 3.0), (-0.125, -0.5)],
    "fmod": [
        (5.0, 3.0, 2.0), (-5.0, 3.0, -2.0), (5.0, -3.0, 2.0), (0.0, 3.0, 0.0), (-0.0, 3.0, -0.0), (6.0, 3.0, 0.0),
        (-6.0, 3.0, -0.0), (1.0, INF, 1.0), (INF, 1.0, NAN), (1.0, 0.0, NAN), (NAN, 1.0, NAN), (1.0, NAN, NAN),
        (2.0**100, 7.0, 2.0), (-(2.0**100), 2.0**24 - 1, -(2.0**4)),
    ],
    "copysign": [(3.0, -0.0, -3.0), (-3.0, 0.0, 3.0), (INF, -1.0, -INF), (-3.0, NAN, 3.0), (-3.0, -NAN, 3.0)],
    "trunc": [(2.7, 2.0), (-2.7, -2.0), (-0.5, -0.0), (0.0, 0.0), (-0.0, -0.0), (INF, INF), (1e30, 1e30)],
    "rint": [
        (0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, -0.0), (-1.5, -2.0), (-0.0, -0.0), (INF, INF),
        (8388609.0, 8388609.0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(SPECIAL))
def test_special_cases(name: str, dtype: str) -> None:
    kind: Any = np.dtype(dtype).type
    for *operands, due in SPECIAL[name]:
        found = plain(name, *(kind(operand) for operand in operands))
        assert bits(kind(found)) == bits(kind(due)), (name, operands, found, due)
    if MATH_CALLS.get(name, 1) == 1:
        assert math.isnan(plain(name, kind(NAN)))


def test_every_function_has_its_special_cases_here() -> None:
    assert set(SPECIAL) == MATH_FUNCTIONS


# Properties that hold to the bit

FLOATS32 = st.floats(width=32, allow_nan=False)
FLOATS64 = st.floats(allow_nan=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_and_even_functions(dtype: str) -> None:
    kind: Any = np.dtype(dtype).type

    @given(FLOATS32 if dtype == "float32" else FLOATS64)
    def holds(number: float) -> None:
        x = kind(number)
        for name in ("sin", "tan", "asin", "atan", "sinh", "tanh", "erf", "cbrt", "trunc", "rint"):
            assert bits(-plain(name, x)) == bits(plain(name, -x)) or math.isnan(plain(name, x)), name
        for name in ("cos", "cosh"):
            assert bits(plain(name, x)) == bits(plain(name, -x)), name
        assert bits(plain("trunc", x)) == bits(np.trunc(x))
        assert bits(plain("rint", x)) == bits(np.rint(x))

    holds()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_operands(dtype: str) -> None:
    kind: Any = np.dtype(dtype).type
    floats = FLOATS32 if dtype == "float32" else FLOATS64

    @given(floats, floats)
    def holds(one: float, other: float) -> None:
        x, y = kind(one), kind(other)
        assert bits(plain("hypot", x, y)) == bits(plain("hypot", y, -x))
        assert bits(plain("atan2", -x, y)) == bits(-plain("atan2", x, y))
        with np.errstate(all="ignore"):
            assert bits(plain("fmod", x, y)) == bits(np.fmod(x, y))  # exact, so C's own is the reference
        assert bits(plain("copysign", x, y)) == bits(np.copysign(x, y))

    holds()


def test_float32_functions_do_not_turn_around() -> None:
    """Between neighbours a function that rises does not fall; the rounding of nearly all results is the right one."""
    rng = np.random.default_rng(3)
    for name, low, high in (("exp", -80, 80), ("log", 1e-3, 1e3), ("atan", -9, 9), ("tanh", -9, 9), ("erf", -4, 4)):
        for start in rng.uniform(low, high, 40).astype(np.float32):
            last = plain(name, start)
            for _ in range(10):
                start = np.nextafter(start, np.float32(np.inf))
                value = plain(name, start)
                assert value >= last, (name, start)
                last = value


# Whole kernels

ROOT_TWO, GELU = math.sqrt(2.0), math.sqrt(2.0 / math.pi)


@device
def cumulative(x):
    return 0.5 * math.erfc(-x / ROOT_TWO)


@kernel
def black_scholes(call, put, spot, strike, years, rate, sigma):
    i = cuda.grid(1)
    root = sigma * math.sqrt(years[i])
    d1 = (np.log(spot[i] / strike[i]) + (rate + 0.5 * sigma * sigma) * years[i]) / root
    d2 = d1 - root
    discounted = strike[i] * np.exp(-rate * years[i])
    call[i] = spot[i] * cumulative(d1) - discounted * cumulative(d2)
    put[i] = discounted * cumulative(-d2) - spot[i] * cumulative(-d1)


@kernel
def layer(result, x, weights, bias):
    i = cuda.grid(1)
    total = bias[0]
    for k in range(weights.size):
        total += weights[k] * x[i, k]
    gelu = 0.5 * total * (1.0 + np.tanh(GELU * (total + 0.044715 * total**3)))
    result[i, 0] = gelu
    result[i, 1] = 1.0 / (1.0 + np.exp(-total))
    result[i, 2] = np.log1p(np.exp(total))


@pytest.mark.parametrize("dtype", DTYPES)
def test_black_scholes(dtype: str) -> None:
    kind: Any = np.dtype(dtype).type
    rng = np.random.default_rng(11)
    spot, strike, years = (rng.uniform(low, high, 64).astype(dtype) for low, high in ((5, 30), (1, 100), (0.25, 10)))
    rate, sigma = kind(0.02), kind(0.3)
    call, put = execute(black_scholes, out(64, dtype), out(64, dtype), spot, strike, years, rate, sigma)

    def phi(x: Any) -> Any:
        return kind(0.5) * plain("erfc", -x / kind(ROOT_TWO))

    for i in range(64):
        root = sigma * np.sqrt(years[i])
        d1 = (plain("log", spot[i] / strike[i]) + (rate + kind(0.5) * sigma * sigma) * years[i]) / root
        d2 = d1 - root
        discounted = strike[i] * plain("exp", -rate * years[i])
        assert bits(call[i]) == bits(spot[i] * phi(d1) - discounted * phi(d2))
        assert bits(put[i]) == bits(discounted * phi(-d2) - spot[i] * phi(-d1))
    # call - put is the forward: the formula is the right one
    wide = [column.astype(np.float64) for column in (call, put, spot, strike, years)]
    forward = wide[2] - wide[3] * np.exp(-float(rate) * wide[4])
    assert np.abs(wide[0] - wide[1] - forward).max() < (1e-4 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_neural_layer(dtype: str) -> None:
    kind: Any = np.dtype(dtype).type
    rng = np.random.default_rng(12)
    x, weights, bias = (rng.normal(size=shape).astype(dtype) for shape in ((32, 6), 6, 1))
    (found,) = execute(layer, out((32, 3), dtype), x, weights, bias)
    for i in range(32):
        total = bias[0]
        for k in range(6):
            total = total + weights[k] * x[i, k]
        cube = total * total * total
        inner = kind(GELU) * (total + kind(0.044715) * cube)
        due = [
            kind(0.5) * total * (kind(1) + plain("tanh", inner)),
            kind(1) / (kind(1) + plain("exp", -total)),
            plain("log1p", plain("exp", total)),
        ]
        assert bits(found[i]).tolist() == bits(np.array(due, dtype)).tolist()


# The language


@kernel
def spellings(result, x):
    i = cuda.grid(1)
    result[i] = np.arcsin(x[i]) + np.arctan2(x[i], 2.0) + np.power(x[i], 3.0) + np.rint(x[i]) + np.isfinite(x[i])


def test_numpy_spellings_are_one_text() -> None:
    text = spellings.source.text
    assert "math.asin(x[i]) + math.atan2(x[i], 2.0) + math.pow(x[i], 3.0) + np.rint(x[i]) + math.isfinite" in text
    assert set(NUMPY_SPELLINGS.values()) <= set(MATH_CALLS)
    assert all(hasattr(np, name) for name in NUMPY_SPELLINGS)
    assert all(hasattr(math, name) for name in MATH_CALLS)


@kernel
def powers(result, wide, x, y, n):
    i = cuda.grid(1)
    a = x[i]
    result[i, 0] = a**0.5
    result[i, 1] = a ** y[i]
    result[i, 2] = a ** n[i]
    result[i, 3] = 2 ** y[i]
    result[i, 4] = a**3
    a **= 1.5
    result[i, 5] = a
    result[i, 6] = math.pow(n[i], 2)
    wide[i] = x[i] ** np.float64(0.1)


def test_powers() -> None:
    x = np.array([0.3, 2.0, -2.0, 7.5, 0.0, 1e20], np.float32)
    y = np.array([0.5, -1.5, 3.0, 0.1, -1.0, 2.0], np.float32)
    n = np.array([3, -2, 5, 0, -3, 2], np.int64)
    result, wide = execute(powers, out((6, 7), "float32"), out(6, "float64"), x, y, n)
    for i in range(6):
        with np.errstate(all="ignore"):
            due = [
                plain("pow", x[i], np.float32(0.5)),
                plain("pow", x[i], y[i]),
                plain("pow", x[i], np.float32(n[i])),
                plain("pow", np.float32(2), y[i]),
                x[i] * x[i] * x[i],
                plain("pow", x[i], np.float32(1.5)),
                plain("pow", np.float32(n[i]), np.float32(2)),
            ]
        assert bits(result[i]).tolist() == bits(np.array(due, np.float32)).tolist()
        assert bits(wide[i]) == bits(plain("pow", np.float64(x[i]), np.float64(0.1)))


@kernel
def integer_power(result, n):
    i = cuda.grid(1)
    result[i] = n[i] ** n[i]


@kernel
def giant_power(result, n):
    i = cuda.grid(1)
    result[i] = 9**9**9 + n[i]


def test_a_power_of_integers_is_refused() -> None:
    for function in (integer_power, giant_power):
        with pytest.raises(KernelTypeError, match="between integers") as caught:
            execute(function, out(4, "int64"), np.arange(4))
        assert "float(x) ** n" in (caught.value.instead or "")


@kernel
def conversions(result, wide, whole, n, x):
    i = cuda.grid(1)
    result[i, 0] = math.exp(n[i])
    result[i, 1] = math.atan2(n[i], 2)
    result[i, 2] = np.minimum(x[i], 1.0)
    result[i, 3] = np.maximum(x[i], n[i])
    result[i, 4] = math.exp(0.1)
    wide[i] = math.atan2(np.float64(x[i]), n[i])
    whole[i, 0] = math.trunc(x[i])
    whole[i, 1] = math.trunc(n[i])
    whole[i, 2] = np.minimum(n[i], 3)


def test_types() -> None:
    n = np.array([1, -2, 5, 2**40, 0], np.int64)
    x = np.array([0.5, -7.9, NAN, 1e30, -0.0], np.float32)
    result, wide, whole = execute(conversions, out((5, 5), "float32"), out(5, "float64"), out((5, 3), "int64"), n, x)
    for i in range(5):
        as_float = np.float32(n[i])
        due = [
            plain("exp", as_float),
            plain("atan2", as_float, np.float32(2)),
            np.minimum(x[i], np.float32(1)),
            np.maximum(x[i], as_float) if as_float else x[i],  # the first of two zeros
            plain("exp", np.float32(0.1)),
        ]
        assert bits(result[i]).tolist() == bits(np.array(due, np.float32)).tolist()
        assert bits(wide[i]) == bits(plain("atan2", np.float64(x[i]), np.float64(n[i])))
    assert whole.tolist() == [[0, 1, 1], [-7, -2, -2], [0, 5, 3], [2**63 - 1, 2**40, 3], [0, 0, 0]]


@kernel
def lazily(result, x):
    i = cuda.grid(1)
    result[i] = (x[i] > 0 and math.log(x[i]) > 0) or x[i] ** 0.5 > 3


def test_operands_of_and() -> None:
    x = np.array([-1.0, 0.5, 2.0, 16.0, NAN], np.float32)
    (found,) = execute(lazily, out(5, "bool"), x)
    assert found.tolist() == [False, False, True, True, False]


def test_unknown_functions_say_which_exist() -> None:
    def special(result, x):
        result[cuda.grid(1)] = math.lgamma(x[0])

    with pytest.raises(KernelError, match=r"math\.lgamma") as caught:
        kernel(special)
    for name in ("atan2", "erf", "expm1", "rint", "tanh"):
        assert name in (caught.value.instead or "")
