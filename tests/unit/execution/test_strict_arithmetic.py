"""Every operation on edge values against a model of docs/strict.md in plain Python and NumPy scalars."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Kernel, kernel, out

# The model


def kind(dtype: str) -> str:
    if dtype in ("bool", "uint64", "float32", "float64"):
        return dtype
    return "int64"


ORDER = ["bool", "int64", "uint64", "float32", "float64"]
RANGE = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)}


def wrap(value: int, dtype: str) -> int:
    bits = RANGE[dtype]
    value %= 2**bits
    return value - 2**bits if dtype[0] == "i" and value >= 2 ** (bits - 1) else value


def to_float(value: Any, dtype: str) -> Any:
    """One rounding, done with exact fractions and not with the machine's conversion."""
    if isinstance(value, float | np.floating):
        with np.errstate(over="ignore"):
            return np.dtype(dtype).type(value)
    digits = 24 if dtype == "float32" else 53
    value = int(value)
    size = abs(value)
    shift = max(0, size.bit_length() - digits)
    mantissa = Fraction(size, 2**shift)
    whole = round(mantissa)  # Python rounds fractions half to even
    return np.dtype(dtype).type(math.copysign(math.ldexp(whole, shift), value))


def to_int(value: Any, dtype: str) -> int:
    if not isinstance(value, float | np.floating):
        return wrap(int(value), dtype)
    if math.isnan(value):
        return 0
    bits = RANGE[dtype]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype[0] == "i" else (0, 2**bits - 1)
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(int(float(value)), low), high)


def convert(value: Any, dtype: str) -> Any:
    if dtype == "bool":
        return bool(value != 0)
    return to_float(value, dtype) if dtype.startswith("float") else to_int(value, dtype)


def floor(value: Any) -> Any:
    return value if not np.isfinite(value) or value == 0 else np.copysign(type(value)(math.floor(value)), value)


def ceil(value: Any) -> Any:
    return value if not np.isfinite(value) or value == 0 else np.copysign(type(value)(math.ceil(value)), value)


def floor_divide(a: Any, b: Any) -> Any:
    if isinstance(a, np.floating):
        return floor(a / b)
    return 0 if b == 0 else a // b


def modulo(a: Any, b: Any) -> Any:
    if isinstance(a, np.floating):
        return a - floor(a / b) * b
    return 0 if b == 0 else a % b


def shift_left(a: int, n: int, dtype: str) -> int:
    return wrap(a << n, dtype) if 0 <= n < 64 else 0


def shift_right(a: int, n: int) -> int:
    return a >> n if 0 <= n < 64 else -1 if a < 0 else 0


ARITHMETIC: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    floor_divide,
    modulo,
    lambda a, b: b if b < a else a,  # noqa: FURB136 - min() is the same, and the doc says it so
    lambda a, b: b if b > a else a,  # noqa: FURB136
    lambda a, b: a if b else b,
]
COMPARISONS: list[Callable[[Any, Any], Any]] = [
    lambda a, b: a < b,
    lambda a, b: a <= b,
    lambda a, b: a > b,
    lambda a, b: a >= b,
    lambda a, b: a == b,
    lambda a, b: a != b,
]


# Edge values

INTS = [0, 1, -1, 2, -2, 3, 7, -7, 31, 32, 63, 64, 65, 127, 128, 255, 256, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1]
INTS += [
    2**24 + 1,
    2**53 + 1,
    -(2**53) - 1,
    10**18,
    2**62,
    2**63 - 1,
    2**63 - 512,
    -(2**63),
    -(2**63) + 1,
    3_000_000_000,
]
UINTS = [0, 1, 2, 3, 63, 64, 255, 2**24 + 1, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
UINTS += [2**64 - 2**39, 2**64 - 2**39 - 1, 2**63 + 2**39, 2**63 + 2**39 + 1]
FLOATS = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    0.1,
    -0.1,
    3.0,
    7.0,
    1e-3,
    127.0,
    127.9,
    128.0,
    255.5,
    256.0,
    -128.5,
    -129.0,
]
FLOATS += [
    32767.5,
    65535.9,
    65536.0,
    2147483647.0,
    2147483648.0,
    -2147483648.0,
    -2147483904.0,
    3e9,
    4294967040.0,
    4294967296.0,
]
FLOATS += [
    9.2e18,
    2.0**63,
    -(2.0**63),
    -(2.0**63) - 2048,
    1.8446742974197924e19,
    2.0**64,
    1e30,
    -1e30,
    3.4e38,
    1e-45,
    -1e-45,
]
FLOATS += [1.1754944e-38, 5e-39, 16777217.0, math.inf, -math.inf, math.nan]
DOUBLES = [5e-324, 1e-310, 1.7976931348623157e308, 4294967295.5, 9007199254740993.0, 1e-60, 2147483647.5, 0.1 + 1e-12]


def edges(dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bool":
        return np.array([False, True])
    if dtype == "uint64":
        return np.array(UINTS, dtype=np.uint64)
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            values = FLOATS + (DOUBLES if dtype == "float64" else [])
            return np.array(values, dtype=np.float64).astype(dtype)
    return np.unique(np.array([wrap(value, dtype) for value in INTS], dtype=dtype))


def pairs(one: str, other: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    a, b = edges(one), edges(other)
    return np.repeat(a, len(b)), np.tile(b, len(a))


def scalars(values: np.ndarray[Any, Any]) -> list[Any]:
    """As the language sees them: floats of their dtype, Python ints, bools."""
    if values.dtype.kind == "f":
        return list(values)
    return [bool(value) if values.dtype.kind == "b" else int(value) for value in values]


def meet(a: Any, b: Any, one: str, other: str) -> tuple[Any, Any, str]:
    common = max(kind(one), kind(other), "int64", key=ORDER.index)
    return convert(a, common), convert(b, common), common


def bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view(f"u{values.dtype.itemsize}")


def model_array(values: list[Any], dtype: str) -> np.ndarray[Any, Any]:
    result = np.array([convert(value, dtype) for value in values], dtype=dtype)
    if result.dtype.kind == "f":
        result[np.isnan(result)] = np.nan  # the one NaN
    return result


BACKEND = CpuBackend()


def execute(function: Kernel, *args: Any) -> list[np.ndarray[Any, Any]]:
    """Run a whole launch of one-dimensional outputs and give them."""
    binding = function.bind(*args)
    compiled = BACKEND.compile(binding.source, binding.launch, binding.specs)
    size = binding.launch.threads
    rows = [
        np.zeros((size, *shape), spec.dtype)
        for shape, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
    ]
    compiled.run_blocks(0, binding.launch.blocks, binding.values, rows)
    whole = binding.empty_outputs()
    for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
        binding.layout.scatter(place, 0, binding.launch.blocks, part, target)
    return whole


def same(found: np.ndarray[Any, Any], due: np.ndarray[Any, Any], what: str, *inputs: np.ndarray[Any, Any]) -> None:
    wrong = np.flatnonzero(bits(np.ascontiguousarray(found)) != bits(due))
    if wrong.size:
        k = wrong[0]
        raise AssertionError(
            f"{what}{tuple(value[k] for value in inputs)} = {found[k]!r}, not {due[k]!r}; {wrong.size} wrong"
        )


# Operations between two values


@kernel
def arithmetic(result, x, y):
    i = cuda.grid(1)
    a = x[i]
    b = y[i]
    result[i, 0] = a + b
    result[i, 1] = a - b
    result[i, 2] = a * b
    result[i, 3] = a // b
    result[i, 4] = a % b
    result[i, 5] = min(a, b)
    result[i, 6] = max(a, b)
    result[i, 7] = a if b else b


@kernel
def comparisons(result, quotient, x, y):
    i = cuda.grid(1)
    a = x[i]
    b = y[i]
    result[i, 0] = a < b
    result[i, 1] = a <= b
    result[i, 2] = a > b
    result[i, 3] = a >= b
    result[i, 4] = a == b
    result[i, 5] = a != b
    result[i, 6] = b < a <= b + 1 < 5
    quotient[i] = a / b


PAIRS = [
    ("int64", "int64"), ("uint64", "uint64"), ("float32", "float32"), ("float64", "float64"), ("bool", "bool"),
    ("int64", "uint64"), ("uint64", "int64"), ("int64", "float32"), ("float32", "uint64"), ("int64", "float64"),
    ("float32", "float64"), ("int8", "uint32"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_arithmetic(one: str, other: str) -> None:
    x, y = pairs(one, other)
    common = meet(x[0], y[0], one, other)[2]
    (found,) = execute(arithmetic, out((len(x), 8), common), x, y)
    with np.errstate(all="ignore"):
        for column, operation in enumerate(ARITHMETIC):
            due = []
            for a, b in zip(scalars(x), scalars(y), strict=True):
                left, right, _ = meet(a, b, one, other)
                due.append(operation(left, right))
            same(found[:, column], model_array(due, common), f"arithmetic {column} of ", x, y)


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_comparisons_and_division(one: str, other: str) -> None:
    x, y = pairs(one, other)
    common = meet(x[0], y[0], one, other)[2]
    ratio = common if common.startswith("float") else "float32"
    found, quotient = execute(comparisons, out((len(x), 7), bool), out(len(x), ratio), x, y)
    with np.errstate(all="ignore"):
        for column, operation in enumerate(COMPARISONS):
            due = []
            for a, b in zip(scalars(x), scalars(y), strict=True):
                # Integers of either sign compare by value, which Python's own do.
                left, right, _ = meet(a, b, one, other) if common.startswith("float") else (int(a), int(b), "")
                due.append(bool(operation(left, right)))
            same(found[:, column], np.array(due), f"comparison {column} of ", x, y)
        chained, quotients = [], []
        for a, b in zip(scalars(x), scalars(y), strict=True):
            left, right, _ = meet(a, b, one, other)
            over = (left, right) if common.startswith("float") else (a, b)  # integers convert each by itself
            quotients.append(to_float(over[0], ratio) / to_float(over[1], ratio))
            b_kind = max(kind(other), "int64", key=ORDER.index)
            more = convert(b, b_kind) + (1 if not b_kind.startswith("float") else np.dtype(b_kind).type(1))
            more = more if b_kind.startswith("float") else wrap(more, b_kind)
            if common.startswith("float"):
                chained.append(bool(right < left <= convert(more, common) and more < 5))
            else:
                chained.append(int(b) < int(a) <= more < 5)
        same(found[:, 6], np.array(chained), "chain of ", x, y)
        same(quotient, model_array(quotients, ratio), "quotient of ", x, y)


@kernel
def bitwise(result, x, y):
    i = cuda.grid(1)
    a = x[i]
    b = y[i]
    result[i, 0] = a & b
    result[i, 1] = a | b
    result[i, 2] = a ^ b


@kernel
def shifts(result, x, y):
    i = cuda.grid(1)
    a = x[i]
    result[i, 0] = a << y[i]
    result[i, 1] = a >> y[i]
    result[i, 2] = ~a
    result[i, 3] = a << 31
    result[i, 4] = a >> 63
    result[i, 5] = a << 64
    result[i, 6] = a >> -1
    result[i, 7] = 1 << (1 << 40)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("int64", "int64"),
        ("uint64", "uint64"),
        ("int64", "uint64"),
        ("uint64", "int64"),
        ("bool", "bool"),
        ("uint8", "int16"),
    ],
)
def test_bits_and_shifts(one: str, other: str) -> None:
    x, y = pairs(one, other)
    common = "bool" if one == other == "bool" else meet(x[0], y[0], one, other)[2]
    (found,) = execute(bitwise, out((len(x), 3), common), x, y)
    operands = [
        (a, b) if common == "bool" else meet(a, b, one, other)[:2] for a, b in zip(scalars(x), scalars(y), strict=True)
    ]
    for column, operation in enumerate([lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b]):
        same(found[:, column], model_array([operation(*both) for both in operands], common), f"bits {column} of ", x, y)

    left = max(kind(one), "int64", key=ORDER.index)
    (found,) = execute(shifts, out((len(x), 8), left), x, y)
    values = [(convert(a, left), int(b)) for a, b in zip(scalars(x), scalars(y), strict=True)]
    columns: list[Callable[[int, int], int]] = [
        lambda a, n: shift_left(a, n, left),
        shift_right,
        lambda a, n: wrap(~a, left),
        lambda a, n: shift_left(a, 31, left),
        lambda a, n: shift_right(a, 63),
        lambda a, n: 0,
        lambda a, n: shift_right(a, -1),
        lambda a, n: 0,
    ]
    for column, operation in enumerate(columns):
        same(found[:, column], model_array([operation(*both) for both in values], left), f"shift {column} of ", x, y)


# Operations on one value


@kernel
def unary(result, whole, truths, x):
    i = cuda.grid(1)
    a = x[i]
    result[i, 0] = -a
    result[i, 1] = +a
    result[i, 2] = abs(a)
    result[i, 3] = a**0
    result[i, 4] = a**1
    result[i, 5] = a**2
    result[i, 6] = a**7
    result[i, 7] = a**64
    whole[i, 0] = math.floor(a)
    whole[i, 1] = math.ceil(a)
    truths[i, 0] = not a
    truths[i, 1] = math.isnan(a)
    truths[i, 2] = math.isinf(a)
    truths[i, 3] = math.isfinite(a)
    truths[i, 4] = a and a > 1
    truths[i, 5] = a > 1 or a < -1


@kernel
def roots(result, x):
    i = cuda.grid(1)
    a = x[i]
    result[i, 0] = math.sqrt(a)
    result[i, 1] = np.sqrt(a)
    result[i, 2] = math.fabs(a)
    result[i, 3] = np.floor(a)
    result[i, 4] = np.ceil(a)


def power(value: Any, n: int, dtype: str) -> Any:
    one = 1 if not dtype.startswith("float") else np.dtype(dtype).type(1)
    result = one
    for bit in f"{n:b}" if n else "":
        result = result * result if dtype.startswith("float") else wrap(result * result, dtype)
        if bit == "1":
            result = result * value if dtype.startswith("float") else wrap(result * value, dtype)
    return result


ALL = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"]


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "float32", "float64", "int16"])
def test_unary(dtype: str) -> None:
    x = edges(dtype)
    given = scalars(x)
    signed = max(kind(dtype), "int64", key=ORDER.index)
    exact = signed if signed == "uint64" else "int64"
    found, whole, truths = execute(unary, out((len(x), 8), signed), out((len(x), 2), exact), out((len(x), 6), bool), x)
    values = [convert(value, signed) for value in given]
    is_float = signed.startswith("float")
    with np.errstate(all="ignore"):
        columns: list[Callable[[Any], Any]] = [
            lambda a: -a,
            lambda a: a,
            lambda a: np.copysign(a, type(a)(1)) if is_float else abs(a),
            *(lambda a, n=n: power(a, n, signed) for n in (0, 1, 2, 7, 64)),
        ]
        for column, operation in enumerate(columns):
            same(found[:, column], model_array([operation(a) for a in values], signed), f"unary {column} of ", x)
        same(whole[:, 0], model_array([floor(a) if is_float else a for a in values], exact), "floor of ", x)
        same(whole[:, 1], model_array([ceil(a) if is_float else a for a in values], exact), "ceil of ", x)
        tests: list[Callable[[Any], bool]] = [
            lambda a: not a,
            lambda a: bool(np.isnan(float(a))),
            lambda a: bool(np.isinf(float(a))),
            lambda a: bool(np.isfinite(float(a))),
            lambda a: bool(a and a > 1),
            lambda a: bool(a > 1 or a < -1),
        ]
        for column, test in enumerate(tests):
            same(truths[:, column], np.array([test(a) for a in values]), f"truth {column} of ", x)
        ratio = signed if is_float else "float32"
        (found,) = execute(roots, out((len(x), 5), ratio), x)
        floats = [to_float(value, ratio) for value in values]
        rooted: list[Callable[[Any], Any]] = [np.sqrt, np.sqrt, np.fabs, floor, ceil]
        for column, operation in enumerate(rooted):
            same(found[:, column], model_array([operation(a) for a in floats], ratio), f"root {column} of ", x)


@kernel
def conversions(ints, big, singles, doubles, truths, x):
    i = cuda.grid(1)
    a = x[i]
    ints[i, 0] = np.int8(a)
    ints[i, 1] = np.int16(a)
    ints[i, 2] = np.int32(a)
    ints[i, 3] = np.int64(a)
    ints[i, 4] = np.uint8(a)
    ints[i, 5] = np.uint16(a)
    ints[i, 6] = np.uint32(a)
    ints[i, 7] = int(a)
    big[i] = np.uint64(a)
    singles[i, 0] = np.float32(a)
    singles[i, 1] = float(a)
    doubles[i] = np.float64(a)
    truths[i, 0] = bool(a)
    truths[i, 1] = np.bool_(a)


@kernel
def stores(b, i1, i2, i4, i8, u1, u2, u4, u8, f4, f8, x):
    i = cuda.grid(1)
    a = x[i]
    b[i] = a
    i1[i] = a
    i2[i] = a
    i4[i] = a
    i8[i] = a
    u1[i] = a
    u2[i] = a
    u4[i] = a
    u8[i] = a
    f4[i] = a
    f8[i] = a


@pytest.mark.parametrize("dtype", ALL)
def test_stores_convert(dtype: str) -> None:
    x = edges(dtype)
    found = execute(stores, *(out(len(x), target) for target in ALL), x)
    for target, result in zip(ALL, found, strict=True):
        same(result, model_array(scalars(x), target), f"store to {target} of ", x)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint64", "float32", "float64"])
def test_conversions(dtype: str) -> None:
    x = edges(dtype)
    n = len(x)
    ints, big, singles, doubles, truths = execute(
        conversions,
        out((n, 8), "int64"),
        out(n, "uint64"),
        out((n, 2), "float32"),
        out(n, "float64"),
        out((n, 2), bool),
        x,
    )
    given = scalars(x)
    for column, target in enumerate(["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"]):
        same(ints[:, column], model_array([convert(a, target) for a in given], "int64"), f"{target} of ", x)
    last = "uint64" if dtype == "uint64" else "int64"
    same(ints[:, 7], model_array([convert(a, last) for a in given], "int64"), "int of ", x)
    same(big, model_array(given, "uint64"), "uint64 of ", x)
    same(singles[:, 0], model_array(given, "float32"), "float32 of ", x)
    same(singles[:, 1], model_array(given, "float32"), "float of ", x)
    same(doubles, model_array(given, "float64"), "float64 of ", x)
    same(truths[:, 0], model_array(given, "bool"), "bool of ", x)
    same(truths[:, 1], model_array(given, "bool"), "bool_ of ", x)


def test_nans_of_any_payload_are_stored_as_one() -> None:
    singles = np.array([0x7FC00001, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000], dtype=np.uint32).view(np.float32)
    doubles = np.array([0x7FF8000000000001, 0xFFF8000000000000, 0x7FF0000000000001], dtype=np.uint64).view(np.float64)
    found = execute(stores, *(out(len(singles), target) for target in ALL), singles)
    assert [hex(value) for value in bits(found[9])] == ["0x7fc00000"] * 4 + ["0x7f800000"]
    found = execute(stores, *(out(len(doubles), target) for target in ALL), doubles)
    assert [hex(value) for value in bits(found[10])] == ["0x7ff8000000000000"] * 3
    assert [hex(value) for value in bits(found[9])] == ["0x7fc00000"] * 3


# Ranges


@kernel
def ranges(numbers, start, stop, step):
    i = cuda.grid(1)
    count = 0
    total = 0
    last = -77
    for k in range(start[i], stop[i], step[i]):
        count += 1
        total += k
        last = k
        k = 5  # changes nothing
        if count == 20:
            break
    numbers[i, 0] = count
    numbers[i, 1] = total
    numbers[i, 2] = last
    short = 0
    for _ in range(start[i]):
        short += 1
        if short == 20:
            break
    numbers[i, 3] = short
    pair = 0
    for _ in range(start[i], stop[i]):
        pair += 1
        if pair == 20:
            break
    numbers[i, 4] = pair


def test_ranges() -> None:
    ends = [0, 1, -1, 5, -5, 17, 2**63 - 1, -(2**63), 2**63 - 3, -(2**63) + 3]
    steps = [1, -1, 0, 2, -2, 3, -7, 2**63 - 1, -(2**63), 2**62]
    triples = np.array([(a, b, s) for a in ends for b in ends for s in steps], dtype=np.int64)
    start, stop, step = (np.ascontiguousarray(triples[:, k]) for k in range(3))
    (found,) = execute(ranges, out((len(triples), 5), "int64"), start, stop, step)
    for row, (a, b, s) in zip(found.tolist(), triples.tolist(), strict=True):
        numbers = range(a, b, s) if s else range(0)
        first = list(numbers[:20]) if _length(numbers) < 2**63 else []
        assert row[:3] == [len(first), wrap(sum(first), "int64"), first[-1] if first else -77], (a, b, s)
        assert row[3] == min(max(a, 0), 20), a
        assert row[4] == (min(max(b - a, 0), 20) if b - a < 2**63 else 0), (a, b)


def _length(numbers: range) -> int:
    if numbers.step > 0:
        return max(0, -(-(numbers.stop - numbers.start) // numbers.step))
    return max(0, -(-(numbers.start - numbers.stop) // -numbers.step))


# Types of variables and literals


@kernel
def literals(singles, doubles, x, y):
    i = cuda.grid(1)
    a = x[i]
    b = y[i]
    singles[i, 0] = a * 0.1
    singles[i, 1] = 1.1
    singles[i, 2] = 1.1 + 2.2
    singles[i, 3] = 1 / 3
    singles[i, 4] = a * -0.1
    doubles[i, 0] = b * 0.1
    doubles[i, 1] = 1.1  # asked for as a float64
    doubles[i, 2] = np.float64(0.1) * a
    doubles[i, 3] = 1.1 + 2.2
    doubles[i, 4] = a * b
    total = 0.1
    total += b
    doubles[i, 5] = total
    widened = 0
    widened += 16777217
    widened = widened + a
    doubles[i, 6] = widened


def test_literals_and_variables_have_one_type() -> None:
    f = np.float32
    x, y = np.array([3.3], dtype=np.float32), np.array([7.7])
    singles, doubles = execute(literals, out((1, 5), "float32"), out((1, 7), "float64"), x, y)
    assert list(singles[0]) == [x[0] * f(0.1), f(1.1), f(1.1) + f(2.2), f(1) / f(3), x[0] * f(-0.1)]
    assert list(doubles[0]) == [
        y[0] * 0.1,
        1.1,
        0.1 * np.float64(x[0]),
        np.float64(f(1.1) + f(2.2)),
        np.float64(x[0]) * y[0],
        0.1 + y[0],
        np.float64((f(0) + f(16777217)) + x[0]),
    ]


@kernel
def contraction(result, x, y, z):
    i = cuda.grid(1)
    result[i] = x[i] * y[i] + z[i]


def test_products_are_rounded_before_they_are_added() -> None:
    x = np.float32(1) + np.arange(1, 2000, dtype=np.float32) * np.float32(2.0**-23)
    z = -(x * x)
    (found,) = execute(contraction, out(len(x), "float32"), x, x, z)
    assert not found.any()  # a fused multiply-add gives the rounding error of the square, which is not 0 for these
    fused = x.astype(np.float64) ** 2 + z.astype(np.float64)
    assert np.count_nonzero(fused) > 1900


def test_machine_code_holds_no_fused_or_approximate_operation() -> None:
    binding = contraction.bind(out(1000, "float32"), *(np.zeros(1000, np.float32) for _ in range(3)))
    backend = CpuBackend()
    backend.compile(binding.source, binding.launch, binding.specs)
    (program,) = backend._programs.values()
    function, *_ = program.blocks._code
    code = "\n".join(function.inspect_asm().values())
    assert "mulps" in code or "mulss" in code or "fmul" in code
    for word in ("vfmadd", "vfmsub", "vfnmadd", "fmadd", "rsqrtps", "rcpps"):
        assert word not in code
    for text in function.inspect_llvm().values():
        assert "llvm.fma" not in text
        assert "fast " not in text
        assert " contract " not in text
        assert "reassoc" not in text
