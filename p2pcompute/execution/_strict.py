"""The helpers that lowered code calls: operations whose result the machine or the compiler would leave open.

Written as plain functions over sized types and handed to whichever just-in-time compiler the back end brings, so CPU
and GPU compile one text. What is not here (``+ - * /`` on floats, wrapping integer ``+ - *``, comparisons) is the
machine's own IEEE 754 or two's complement operation. docs/strict.md has the definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, float64, int8, int16, int32, int64, uint8, uint16, uint32, uint64

from p2pcompute.execution._lower_apart import APART
from p2pcompute.execution._strict_math import math_helpers

__all__ = ["helpers"]

_INT_MAX, _INT_MIN, _UINT_MAX = 2**63 - 1, -(2**63), 2**64 - 1
_NAN32, _NAN64 = np.float32(np.nan), np.float64(np.nan)
_SCALE = np.float32(2.0**-24)
# Powers of two, so exact as float32 and as float64: one text serves both types of argument.
_B7, _B8, _B15, _B16, _B31, _B32, _B63, _B64 = (np.float32(2.0**n) for n in (7, 8, 15, 16, 31, 32, 63, 64))
_LOW = np.uint64(0xFFFFFFFF)
# Every other bit, pair, four, eight and sixteen; and a one in each byte.
_ODD, _PAIRS, _NIBBLES, _EIGHTS, _SIXTEENTHS, _BYTES = (
    np.uint64(0xFFFFFFFFFFFFFFFF // divisor) for divisor in (0x3, 0x5, 0x11, 0x101, 0x10001, 0xFF)
)


def helpers(
    jit: Callable[[Any], Any],
    *,
    round_down: Callable[[Any], Any] = np.floor,
    round_up: Callable[[Any], Any] = np.ceil,
    math_jit: Callable[[Any], Any] | None = None,
    float_bits: Any = None,
    bits_float: Any = None,
    apart: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """The names that lowered code may use, each function compiled by `jit` when it is first called.

    Args:
        jit: makes a device function; it must neither contract nor reorder floating-point operations.
        round_down: what `jit` compiles to the float that is the largest integer not above a float.
        round_up: the same for the smallest integer not below it.
        math_jit: `jit` for the mathematical functions, which are long: a copy at each call is rarely wanted.
        float_bits: see `math_helpers`.
        bits_float: see `math_helpers`.
        apart: of a mathematical function that `math_jit` has compiled, one that `jit` can call and that stays out of
            line. Without it the function itself is called.
    """
    outer = frozenset(locals()) | {"outer"}

    @jit
    def idiv(a: Any, b: Any) -> Any:
        if b == 0:
            return int64(0)
        if b == -1:
            return -a  # the least integer stays itself, where the machine would trap
        return a // b

    @jit
    def imod(a: Any, b: Any) -> Any:
        if b == 0 or b == -1:
            return int64(0)
        return a % b

    @jit
    def udiv(a: Any, b: Any) -> Any:
        if b == uint64(0):
            return uint64(0)
        return a // b

    @jit
    def umod(a: Any, b: Any) -> Any:
        if b == uint64(0):
            return uint64(0)
        return a % b

    @jit
    def iabs(a: Any) -> Any:
        return -a if a < 0 else a

    @jit
    def minimum(a: Any, b: Any) -> Any:
        return b if b < a else a  # noqa: FURB136 - min() is another function of NaN

    @jit
    def maximum(a: Any, b: Any) -> Any:
        return b if b > a else a  # noqa: FURB136

    @jit
    def least(a: Any, b: Any) -> Any:
        return a if a != a else b if b < a or b != b else a

    @jit
    def greatest(a: Any, b: Any) -> Any:
        return a if a != a else b if b > a or b != b else a

    @jit
    def load1(a: Any, i: Any) -> Any:
        if i < uint64(a.shape[0]):
            return a[i]
        return a.dtype.type(0)

    @jit
    def load2(a: Any, i: Any, j: Any) -> Any:
        if i < uint64(a.shape[0]) and j < uint64(a.shape[1]):
            return a[i, j]
        return a.dtype.type(0)

    @jit
    def load3(a: Any, i: Any, j: Any, k: Any) -> Any:
        if i < uint64(a.shape[0]) and j < uint64(a.shape[1]) and k < uint64(a.shape[2]):
            return a[i, j, k]
        return a.dtype.type(0)

    @jit
    def load4(a: Any, i: Any, j: Any, k: Any, n: Any) -> Any:
        inside = i < uint64(a.shape[0]) and j < uint64(a.shape[1])
        if inside and k < uint64(a.shape[2]) and n < uint64(a.shape[3]):
            return a[i, j, k, n]
        return a.dtype.type(0)

    @jit
    def floor(x: Any) -> Any:
        return round_down(x)

    @jit
    def ceil(x: Any) -> Any:
        return round_up(x)

    @jit
    def sqrt(x: Any) -> Any:
        return math.sqrt(x)

    @jit
    def fabs(x: Any) -> Any:
        return math.fabs(x)

    @jit
    def fdiv(a: Any, b: Any) -> Any:
        return round_down(a / b)

    @jit
    def fmod(a: Any, b: Any) -> Any:
        return a - round_down(a / b) * b

    @jit
    def ishl(a: Any, n: Any) -> Any:
        return a << int64(n) if n < uint64(64) else int64(0)

    @jit
    def ushl(a: Any, n: Any) -> Any:
        return a << n if n < uint64(64) else uint64(0)

    @jit
    def ishr(a: Any, n: Any) -> Any:
        return a >> int64(n) if n < uint64(64) else a >> int64(63)

    @jit
    def ushr(a: Any, n: Any) -> Any:
        return a >> n if n < uint64(64) else uint64(0)

    @jit
    def popc(x: Any) -> Any:
        x = x - ((x >> uint64(1)) & _ODD)
        x = (x & _PAIRS) + ((x >> uint64(2)) & _PAIRS)
        x = (x + (x >> uint64(4))) & _NIBBLES
        return int64((x * _BYTES) >> uint64(56))

    @jit
    def clz(x: Any) -> Any:
        x = x | (x >> uint64(1))
        x = x | (x >> uint64(2))
        x = x | (x >> uint64(4))
        x = x | (x >> uint64(8))
        x = x | (x >> uint64(16))
        return popc(~(x | (x >> uint64(32))))

    @jit
    def ffs(x: Any) -> Any:
        return popc(x ^ (x - uint64(1))) if x != uint64(0) else int64(0)

    @jit
    def brev(x: Any) -> Any:
        x = ((x >> uint64(1)) & _ODD) | ((x & _ODD) << uint64(1))
        x = ((x >> uint64(2)) & _PAIRS) | ((x & _PAIRS) << uint64(2))
        x = ((x >> uint64(4)) & _NIBBLES) | ((x & _NIBBLES) << uint64(4))
        x = ((x >> uint64(8)) & _EIGHTS) | ((x & _EIGHTS) << uint64(8))
        x = ((x >> uint64(16)) & _SIXTEENTHS) | ((x & _SIXTEENTHS) << uint64(16))
        return (x >> uint64(32)) | (x << uint64(32))

    @jit
    def compare_iu(a: Any, b: Any) -> Any:
        if a < 0 or uint64(a) < b:
            return int64(-1)
        return int64(0) if uint64(a) == b else int64(1)

    @jit
    def count(start: Any, stop: Any, step: Any) -> Any:
        """Numbers in a range; 0 for a step of 0 and, by wrapping below 0, for 2**63 numbers and more."""
        if step > 0 and start < stop:
            return int64((uint64(stop) - uint64(start) - uint64(1)) // uint64(step) + uint64(1))
        if step < 0 and start > stop:
            size = uint64(0) - uint64(step)
            return int64((uint64(start) - uint64(stop) - uint64(1)) // size + uint64(1))
        return int64(0)

    @jit
    def nan32(x: Any) -> Any:
        return x if x == x else _NAN32

    @jit
    def nan64(x: Any) -> Any:
        return x if x == x else _NAN64

    @jit
    def to_int64(x: Any) -> Any:
        if x >= _B63:
            return int64(_INT_MAX)
        if x > -_B63:
            return int64(x)
        return int64(_INT_MIN) if x <= -_B63 else int64(0)  # 0 is for a NaN, which fails every test

    @jit
    def to_uint64(x: Any) -> Any:
        if x >= _B64:
            return uint64(_UINT_MAX)
        if x >= _B63:
            return uint64(int64(x - _B63)) + uint64(1 << 63)
        return uint64(int64(x)) if x > 0 else uint64(0)

    @jit
    def to_int32(x: Any) -> Any:
        if x >= _B31:
            return int64(2**31 - 1)
        if x > -_B31:
            return int64(x)
        return int64(-(2**31)) if x <= -_B31 else int64(0)

    @jit
    def to_int16(x: Any) -> Any:
        if x >= _B15:
            return int64(2**15 - 1)
        if x > -_B15:
            return int64(x)
        return int64(-(2**15)) if x <= -_B15 else int64(0)

    @jit
    def to_int8(x: Any) -> Any:
        if x >= _B7:
            return int64(2**7 - 1)
        if x > -_B7:
            return int64(x)
        return int64(-(2**7)) if x <= -_B7 else int64(0)

    @jit
    def to_uint32(x: Any) -> Any:
        if x >= _B32:
            return int64(2**32 - 1)
        return int64(x) if x > 0 else int64(0)

    @jit
    def to_uint16(x: Any) -> Any:
        if x >= _B16:
            return int64(2**16 - 1)
        return int64(x) if x > 0 else int64(0)

    @jit
    def to_uint8(x: Any) -> Any:
        if x >= _B8:
            return int64(2**8 - 1)
        return int64(x) if x > 0 else int64(0)

    @jit
    def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
        a, b, c, d = uint64(c0) & _LOW, uint64(c1) & _LOW, uint64(c2) & _LOW, uint64(c3) & _LOW
        key0, key1 = uint64(k0) & _LOW, uint64(k1) & _LOW
        for _ in range(10):
            p0, p1 = a * uint64(0xD2511F53), c * uint64(0xCD9E8D57)
            a, b, c, d = (p1 >> uint64(32)) ^ b ^ key0, p1 & _LOW, (p0 >> uint64(32)) ^ d ^ key1, p0 & _LOW
            key0 = (key0 + uint64(0x9E3779B9)) & _LOW
            key1 = (key1 + uint64(0xBB67AE85)) & _LOW
        return int64(a), int64(b), int64(c), int64(d)

    @jit
    def uniform(seed: Any, index: Any, dim: Any) -> Any:
        s, i, quad = uint64(seed), uint64(index), uint64(dim) >> uint64(2)
        high = uint64(32)
        w = philox(int64(i), int64(i >> high), int64(quad), int64(quad >> high), int64(s), int64(s >> high))
        lane = dim & 3
        word = w[0] if lane == 0 else w[1] if lane == 1 else w[2] if lane == 2 else w[3]
        return float32(word >> 8) * _SCALE

    functions = {name: value for name, value in locals().items() if name not in outer}
    sized = (int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64)
    constants = {"NAN32": _NAN32, "NAN64": _NAN64, "INF32": np.float32(np.inf), "INF64": np.float64(np.inf)}
    long = math_helpers(math_jit or jit, float_bits=float_bits, bits_float=bits_float)
    functions |= long | {f"{name}{APART}": apart(value) if apart else value for name, value in long.items()}
    return functions | {kind.name: kind for kind in sized} | constants
