"""The interpreter's arithmetic: vectors written by hand, and the same bits as an IEEE 754 machine on many more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from . import ptx_arith as arith
from .ptx_arith import F32, F64, Format, documented

ONE, TWO, HALF, MINUS = 0x3F800000, 0x40000000, 0x3F000000, 0x80000000
INF, NAN, LEAST, LARGEST = 0x7F800000, 0x7FFFFFFF, 1, 0x7F7FFFFF

ADD = [
    (ONE, ONE, TWO),
    (0, MINUS, 0),  # +0 + -0
    (MINUS, MINUS, MINUS),
    (ONE, ONE | MINUS, 0),  # an exact zero is +0
    (LEAST, LEAST, 2),
    (LARGEST, LARGEST, INF),
    (LARGEST, 0x73000000, INF),  # half a unit in the last place: a tie, to the even side, which is out of range
    (LARGEST, 0x72FFFFFF, LARGEST),  # a little less
    (ONE, 0x33800000, ONE),  # 1 + 2**-24: a tie, to even
    (ONE, 0x33800001, 0x3F800001),
    (0x3F800001, 0x33800000, 0x3F800002),  # a tie, to even: up
    (INF, INF, INF),
    (INF, INF | MINUS, NAN),
    (0x00800000, 0x80000001, 0x007FFFFF),  # into the subnormal numbers, which are kept
]
MUL = [
    (TWO, HALF, ONE),
    (ONE | MINUS, 0, MINUS),
    (INF, 0, NAN),
    (LEAST, HALF, 0),  # a tie between 0 and the least number: to even
    (LEAST, 0x3F000001, LEAST),
    (0x00000003, HALF, 2),  # 1.5 units: a tie, to even
    (0x7F000000, TWO, INF),
    (0x3F800001, 0x3F800001, 0x3F800002),
    (0x3FFFFFFF, 0x3FFFFFFF, 0x407FFFFE),
]
DIV = [
    (ONE, 0x40400000, 0x3EAAAAAB),  # 1/3
    (ONE, 0, INF),
    (ONE | MINUS, 0, INF | MINUS),
    (0, 0, NAN),
    (INF, INF, NAN),
    (ONE, INF, 0),
    (LEAST, TWO, 0),
    (0x00000003, TWO, 2),
    (0x00800000, TWO, 0x00400000),
    (0x3F800001, 0x3F800002, 0x3F7FFFFE),
]
SQRT = [
    (0x40800000, TWO),
    (TWO, 0x3FB504F3),
    (MINUS, MINUS),
    (ONE | MINUS, NAN),
    (INF, INF),
    (LEAST, 0x1A3504F3),  # sqrt(2**-149) = 2**-74.5
    (LARGEST, 0x5F7FFFFF),
]


@pytest.mark.parametrize(("a", "b", "due"), ADD)
def test_add(a: int, b: int, due: int) -> None:
    assert arith.add(F32, a, b, documented) == due
    assert arith.add(F32, b, a, documented) == due
    assert arith.sub(F32, a, b ^ MINUS, documented) == due


@pytest.mark.parametrize(("a", "b", "due"), MUL)
def test_mul(a: int, b: int, due: int) -> None:
    assert arith.mul(F32, a, b, documented) == due
    assert arith.mul(F32, b, a, documented) == due


@pytest.mark.parametrize(("a", "b", "due"), DIV)
def test_div(a: int, b: int, due: int) -> None:
    assert arith.div(F32, a, b, documented) == due


@pytest.mark.parametrize(("a", "due"), SQRT)
def test_sqrt(a: int, due: int) -> None:
    assert arith.sqrt(F32, a, documented) == due


def test_nans() -> None:
    assert arith.add(F32, 0x7FC00001, ONE, documented) == NAN
    assert arith.add(F64, 0x7FF8000000000123, 0x3FF0000000000000, documented) == 0x7FF8000000000123
    assert arith.mul(F64, 0x3FF0000000000000, 0x7FF0000000000123, documented) == 0x7FF8000000000123  # quiet
    assert [arith.compare(F32, a, b) for a, b in ((NAN, ONE), (ONE, NAN), (0, MINUS), (ONE | MINUS, 0))] == [
        None,
        None,
        0,
        -1,
    ]


def test_extremes() -> None:
    assert arith.extreme(F32, NAN, ONE, documented, greatest=True) == ONE
    assert arith.extreme(F32, ONE, NAN, documented, greatest=False) == ONE
    assert arith.extreme(F32, NAN, NAN, documented, greatest=True) == NAN
    assert arith.extreme(F32, ONE, TWO, documented, greatest=True) == TWO
    assert arith.extreme(F32, ONE, TWO, documented, greatest=False) == ONE
    assert {arith.extreme(F32, 0, MINUS, lambda _, k=k: k, greatest=True) for k in (0, 1)} == {0, MINUS}  # type: ignore[misc]


def test_conversions() -> None:
    big = 0x4F000000  # 2**31
    assert arith.to_integer(F32, big, "z", 32, signed=True) == 0x7FFFFFFF
    assert arith.to_integer(F32, big | MINUS, "z", 32, signed=True) == 0x80000000
    assert arith.to_integer(F32, big, "z", 32, signed=False) == 0x80000000
    assert arith.to_integer(F32, ONE | MINUS, "z", 64, signed=False) == 0
    assert arith.to_integer(F32, INF, "z", 64, signed=False) == 2**64 - 1
    assert arith.to_integer(F32, NAN, "z", 32, signed=True) == 0
    assert arith.to_integer(F32, NAN, "z", 64, signed=True) == 1 << 63
    assert arith.to_integer(F64, 0x7FF8000000000000, "z", 32, signed=True) == 1 << 31
    half_up = {"n": 2, "z": 1, "m": 1, "p": 2}
    assert {mode: arith.to_integer(F32, 0x3FC00000, mode, 32, signed=True) for mode in "nzmp"} == half_up
    down = {"n": 2, "z": 2, "m": 3, "p": 2}  # of -2.5
    assert {
        mode: -arith.signed(arith.to_integer(F32, 0xC0200000, mode, 32, signed=True), 32) for mode in "nzmp"
    } == down
    assert arith.to_whole_float(F32, 0xBE800000, "p", documented) == MINUS  # ceil(-0.25) is -0
    assert arith.to_whole_float(F32, 0xBE800000, "m", documented) == ONE | MINUS
    assert arith.from_integer(F32, 2**24 + 1) == 0x4B800000
    assert arith.from_integer(F32, -(2**63)) == 0xDF000000
    assert arith.from_integer(F64, 2**64 - 1) == 0x43F0000000000000
    assert arith.resize(F64, F32, 0x3FF0000010000000, documented) == ONE  # a tie
    assert arith.resize(F64, F32, 0x3FF0000010000001, documented) == 0x3F800001
    assert arith.resize(F64, F32, 0x36A0000000000000, documented) == LEAST  # 2**-149
    assert arith.resize(F32, F64, LEAST, documented) == 0x36A0000000000000


def test_integers() -> None:
    div: Callable[..., int] = arith.int_div
    assert div(-7 & 0xFF, 2, 8, documented, is_signed=True, rest=False) == -3 & 0xFF
    assert div(-7 & 0xFF, 2, 8, documented, is_signed=True, rest=True) == -1 & 0xFF
    assert div(0xF9, 2, 8, documented, is_signed=False, rest=False) == 0x7C
    assert div(5, 0, 32, lambda _: 77, is_signed=False, rest=False) == 77
    assert arith.shift_left(1, 63, 64) == 1 << 63
    assert arith.shift_left(1, 64, 64) == 0
    assert arith.shift_right(1 << 63, 200, 64, is_signed=True) == 2**64 - 1
    assert arith.shift_right(1 << 63, 200, 64, is_signed=False) == 0
    assert arith.extract(0xABCD1234, 8, 8, 32, is_signed=False) == 0x12
    assert arith.extract(0xABCDF234, 8, 8, 32, is_signed=True) == 0xFFFFFFF2
    assert arith.extract(0x80000000, 28, 8, 32, is_signed=True) == 0xFFFFFFF8  # past the top the sign goes on
    assert arith.insert(0xFF, 0, 4, 4, 32) == 0xF0
    assert arith.insert(0xFF, 0, 30, 8, 32) == 0xC0000000
    assert arith.permute(0x03020100, 0x07060504, 0x7531) == 0x07050301
    assert arith.permute(0x80, 0, 0x8) == 0x808080FF
    assert arith.logic3(0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA, 0x96) == 0x96969696
    assert arith.funnel(0x80000000, 1, 1, left=True, wrap=True) == 3
    assert arith.funnel(0, 0xFFFFFFFF, 33, left=False, wrap=True) == 0x80000000
    assert arith.funnel(0, 0xFFFFFFFF, 33, left=False, wrap=False) == 0xFFFFFFFF


def patterns(f: Format, count: int) -> list[int]:
    """Random bits, of which half have exponents near each other, and the edges."""
    rng = np.random.default_rng(f.width)
    words = [int(word) for word in rng.integers(0, 2**64, count, dtype=np.uint64)]
    low = f.digits - 1
    near = [(word & ~(f.infinity)) | (f.bias + word % 8 - 4) << low for word in words[::2]]
    edges = [0, 1, 2, (1 << low) - 1, 1 << low, f.infinity - 1, f.infinity, f.bias << low, f.infinity | 1 << (low - 1)]
    mask = (1 << f.width) - 1
    return [word & mask for word in near + words[1::2]] + edges + [edge | f.sign for edge in edges]


@pytest.mark.parametrize("f", [F32, F64], ids=["f32", "f64"])
def test_the_same_as_an_ieee_machine(f: Format) -> None:
    bits, kind = (np.uint32, np.float32) if f is F32 else (np.uint64, np.float64)
    a = patterns(f, 4000)
    b = a[1:] + a[:1]
    b[-40:] = b[-40:][::-1]
    x, y = (np.array(values, bits).view(kind) for values in (a, b))
    with np.errstate(all="ignore"):
        due: dict[str, np.ndarray[Any, Any]] = {
            "add": x + y, "sub": x - y, "mul": x * y, "div": x / y, "sqrt": np.sqrt(x), "floor": np.floor(x),
            "ceil": np.ceil(x), "rint": np.rint(x), "trunc": np.trunc(x),
        }  # fmt: skip
    found = {name: [getattr(arith, name)(f, p, q, documented) for p, q in zip(a, b, strict=True)]
             for name in ("add", "sub", "mul", "div")}  # fmt: skip
    found["sqrt"] = [arith.sqrt(f, p, documented) for p in a]
    for name, mode in (("floor", "m"), ("ceil", "p"), ("rint", "n"), ("trunc", "z")):
        found[name] = [arith.to_whole_float(f, p, mode, documented) for p in a]
    for name, values in due.items():
        for p, q, one, other in zip(a, b, found[name], values.view(bits).tolist(), strict=True):
            both = arith.is_nan(f, one) and arith.is_nan(f, other)
            assert both or one == other, f"{name}({p:#x}, {q:#x}) is {one:#x} and not {other:#x}"
    order = [arith.compare(f, p, q) for p, q in zip(a, b, strict=True)]
    assert [o == -1 for o in order] == (x < y).tolist()
    assert [o == 0 for o in order] == (x == y).tolist()
    other_format, narrow = (F64, np.float64) if f is F32 else (F32, np.float32)
    with np.errstate(all="ignore"):
        resized = x.astype(narrow)
    for p, value in zip(a, resized, strict=True):
        one = arith.resize(f, other_format, p, documented)
        assert one == int(value.view(np.uint64 if narrow is np.float64 else np.uint32)) or value != value


def test_integers_become_floats_as_on_an_ieee_machine() -> None:
    rng = np.random.default_rng(3)
    whole = rng.integers(-(2**63), 2**63, 2000, dtype=np.int64) >> rng.integers(0, 63, 2000)
    for f, kind, bits in ((F32, np.float32, np.uint32), (F64, np.float64, np.uint64)):
        assert [arith.from_integer(f, int(v)) for v in whole] == whole.astype(kind).view(bits).tolist()
    cut = [arith.to_integer(F64, arith.from_integer(F64, int(v)), "z", 64, signed=True) for v in whole >> 10]
    assert [arith.signed(v, 64) for v in cut] == (whole >> 10).tolist()
    # and a product that is rounded once is another number than one that is rounded twice
    third = 0x3EAAAAAB
    assert arith.fma(F32, third, third, 0xBDE38E39, documented) != arith.add(
        F32, arith.mul(F32, third, third, documented), 0xBDE38E39, documented
    )
