"""What the mathematical functions of both float types are made of: exact sums and products, powers of two, argument
reduction. All of it in binary64 with `+ - * /`, comparisons, integers and reinterpreted bits, which docs/strict.md
defines; nothing here calls a library, and no operation may be contracted or reordered.

Sources: T. J. Dekker, A floating-point technique for extending the available precision (1971), for the exact product
and quotient; M. H. Payne and R. N. Hanek, Radian reduction for trigonometric functions (1983); W. J. Cody and
W. Waite, Software Manual for the Elementary Functions (1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float64, int64, uint64

from p2pcompute.execution._strict_tables import (
    HALF_PI_1,
    HALF_PI_2,
    HALF_PI_3,
    HALF_PI_4,
    HALF_PI_HI,
    HALF_PI_LO,
    LN2_HI,
    LN2_LO,
    LOG2_E,
    LOG_TAIL,
    TWO_OVER_PI,
    TWO_OVER_PI_WORDS,
    TWO_THIRDS_HI,
    TWO_THIRDS_LO,
)

__all__ = ["bits_of_float", "float_of_bits", "polynomial", "shared"]

_MAGIC = 1.5 * 2.0**52  # added and taken away: the nearest integer, ties to even, of what is below 2**51
_TWO52, _TWO53, _TWO54 = 2.0**52, 2.0**53, 2.0**54
_SPLITTER = 2.0**27 + 1.0
_NEAR_LIMIT = 2.0**20  # below it, Cody and Waite's three exact products reduce an angle
_QUARTER_PI = 0.7853981633974483
_LEAST_NORMAL = 2.0**-1022
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
_FRACTION_BITS = 0x000FFFFFFFFFFFFF
_LOW32 = np.uint64(0xFFFFFFFF)
_WORDS = np.array(TWO_OVER_PI_WORDS)
_WORDS.flags.writeable = False
_ONE, _TWO, _THIRTY_TWO, _SIXTY_TWO, _SIXTY_THREE = (np.uint64(n) for n in (1, 2, 32, 62, 63))
_HALF = np.uint64(1 << 63)
_P32, _P64, _P96, _P128 = 2.0**-32, 2.0**-64, 2.0**-96, 2.0**-128


def polynomial(jit: Callable[[Any], Any], coefficients: tuple[float, ...]) -> Any:
    """Horner's rule for `coefficients`, highest power first, written out without a loop."""
    text = repr(coefficients[0])
    for coefficient in coefficients[1:]:
        text = f"({text} * x + {coefficient!r})"
    names: dict[str, Any] = {}
    exec(compile(f"def horner(x):\n return {text}\n", "<polynomial>", "exec"), names)
    return jit(names["horner"])


def bits_of_float(x: Any) -> Any:
    """The bits of a binary64 as an int64."""
    return np.float64(x).view(np.int64)


def float_of_bits(n: Any) -> Any:
    """The binary64 that has the bits of an int64."""
    return np.int64(n).view(np.float64)


def shared(jit: Callable[[Any], Any], bits: Any, from_bits: Any) -> dict[str, Any]:
    """The functions by name, each compiled by `jit` when it is first called; `bits` and `from_bits` are compiled."""
    log_tail = polynomial(jit, LOG_TAIL)

    @jit
    def signed(size: Any, sign: Any) -> Any:
        """`size` with the sign of `sign`; a NaN counts as positive, since its sign is the machine's choice."""
        if bits(sign) < 0 and sign == sign:
            return -size
        return size

    @jit
    def nearest(x: Any) -> Any:
        """The nearest integer, ties to even, for |x| below 2**51."""
        return (x + _MAGIC) - _MAGIC

    @jit
    def rint64(x: Any) -> Any:
        size = math.fabs(x)
        if size < _TWO52:
            return signed((size + _TWO52) - _TWO52, x)
        return x

    @jit
    def whole_part(size: Any) -> Any:
        """The integer that is not above `size`, which is not negative; an infinity and a NaN stay."""
        if size < _TWO52:
            whole = (size + _TWO52) - _TWO52
            return whole - 1.0 if whole > size else whole
        return size

    @jit
    def power_of_two(n: Any) -> Any:
        """2**n for n from -1022 to 1023."""
        return from_bits((n + 1023) << 52)

    @jit
    def scale(x: Any, n: Any) -> Any:
        """x * 2**n, rounded once, for x from 1/4 to 4 and n from -1100 to 1100."""
        half = n >> 1
        return (x * power_of_two(half)) * power_of_two(n - half)

    @jit
    def quick_sum(a: Any, b: Any) -> Any:
        """a + b and its rounding error, where |a| >= |b|."""
        total = a + b
        return total, b - (total - a)

    @jit
    def two_sum(a: Any, b: Any) -> Any:
        total = a + b
        part = total - a
        return total, (a - (total - part)) + (b - part)

    @jit
    def two_product(a: Any, b: Any) -> Any:
        """a * b and its rounding error, for operands below 2**970 and errors that are no subnormals."""
        wide = a * _SPLITTER
        a1 = wide - (wide - a)
        a2 = a - a1
        wide = b * _SPLITTER
        b1 = wide - (wide - b)
        b2 = b - b1
        product = a * b
        return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2

    @jit
    def reduce_exp(high: Any, low: Any) -> Any:
        """high + low = n ln 2 + r + rest, with |r| up to half of ln 2: r, rest, n."""
        n = nearest(high * LOG2_E)
        a = high - n * LN2_HI
        b = n * LN2_LO - low
        r = a - b
        return r, (a - r) - b, int64(n)

    @jit
    def split(x: Any) -> Any:
        """x = m * 2**k with m from sqrt(1/2) to sqrt(2), for finite x above zero: m, k."""
        shift = int64(0)
        if x < _LEAST_NORMAL:
            x = x * _TWO54
            shift = int64(-54)
        n = bits(x)
        k = (n - _ROOT_HALF_BITS) >> 52
        return from_bits(n - (k << 52)), k + shift

    @jit
    def log_pair(m: Any) -> Any:
        """log(m) for m from sqrt(1/2) to sqrt(2) as a sum of two, to 2**-63 of it."""
        f = m - 1.0
        d, dl = quick_sum(2.0, f)
        s = f / d
        p, pe = two_product(s, d)
        sl = (((f - p) - pe) - s * dl) / d
        z, zl = two_product(s, s)
        zl = zl + 2.0 * (s * sl)
        u, ul = quick_sum(TWO_THIRDS_HI, TWO_THIRDS_LO + z * log_tail(z))
        c, cl = two_product(s, z)
        cl = cl + (s * zl + sl * z)
        t, tl = two_product(c, u)
        tl = tl + (c * ul + cl * u)
        high, low = quick_sum(2.0 * s, t)
        return quick_sum(high, low + (tl + 2.0 * sl))

    @jit
    def high_product(a: Any, b: Any) -> Any:
        """The upper 64 bits of the product of two uint64."""
        a0, a1 = a & _LOW32, a >> _THIRTY_TWO
        b0, b1 = b & _LOW32, b >> _THIRTY_TWO
        middle = a1 * b0 + ((a0 * b0) >> _THIRTY_TWO)
        other = a0 * b1 + (middle & _LOW32)
        return a1 * b1 + (middle >> _THIRTY_TWO) + (other >> _THIRTY_TWO)

    @jit
    def window(start: Any, word: Any) -> Any:
        """64 bits of 2/pi, `word` words behind bit `start` of the table."""
        at = (start >> 6) + word
        count = uint64(start & 63)
        return (_WORDS[at] << count) | ((_WORDS[at + 1] >> _ONE) >> (_SIXTY_THREE - count))

    @jit
    def reduce_far(x: Any) -> Any:
        """As `reduce_angle`, for finite x from 2**20: x * 2/pi modulo 4 in 128-bit integers (Payne and Hanek)."""
        n = bits(x)
        start = (n >> 52) - 1075 + 62  # bits before it are multiples of 4 once they are multiplied
        m = uint64((n & _FRACTION_BITS) | (1 << 52))
        w1 = window(start, 1)
        low = w1 * m
        carried = low + high_product(window(start, 2), m)
        high = window(start, 0) * m + high_product(w1, m)
        if carried < low:
            high = high + _ONE
        quadrant = int64(high >> _SIXTY_TWO)
        high = (high << _TWO) | (carried >> _SIXTY_TWO)
        low = carried << _TWO
        sign = 1.0
        if high >= _HALF:
            quadrant = quadrant + 1
            sign = -1.0
            low = ~low + _ONE
            high = ~high
            if low == uint64(0):
                high = high + _ONE
        f, fl = quick_sum(
            float64(int64(high >> _THIRTY_TWO)) * _P32,
            float64(int64(high & _LOW32)) * _P64,
        )
        rest = float64(int64(low >> _THIRTY_TWO)) * _P96 + float64(int64(low & _LOW32)) * _P128
        f, fl = quick_sum(f, fl + rest)
        y, yl = two_product(f, HALF_PI_HI)
        y, yl = quick_sum(y, yl + (f * HALF_PI_LO + fl * HALF_PI_HI))
        return sign * y, sign * yl, quadrant

    @jit
    def reduce_angle(x: Any) -> Any:
        """x = n pi/2 + y + rest, with |y| up to a little over pi/4, for finite x: y, rest, n (whose low bits count)."""
        size = math.fabs(x)
        if size <= _QUARTER_PI:
            return x, 0.0, int64(0)
        if size < _NEAR_LIMIT:
            n = nearest(x * TWO_OVER_PI)
            a = x - n * HALF_PI_1
            b, e = two_sum(a, -(n * HALF_PI_2))
            c, g = two_sum(b, -(n * HALF_PI_3))
            tail = (e + g) - n * HALF_PI_4
            y = c + tail
            return y, (c - y) + tail, int64(n)
        y, rest, quadrant = reduce_far(size)
        if x < 0.0:
            return -y, -rest, -quadrant
        return y, rest, quadrant

    @jit
    def remainder(x: Any, y: Any) -> Any:
        """C's fmod for finite positive x and y: exact, by long division ten bits at a time."""
        if x < y:
            return x
        a, ka = split(x)
        b, kb = split(y)
        # As integers m * 2**(k - 53): below 2**54, so that ten bits more have room.
        divisor = uint64(int64(b * _TWO53))
        left = uint64(int64(a * _TWO53)) % divisor
        steps = ka - kb
        while steps > 0:
            count = steps if steps < 10 else int64(10)
            left = (left << uint64(count)) % divisor
            steps = steps - count
        value = float64(int64(left))
        n = kb - 53
        if n < -1022:
            return (value * _LEAST_NORMAL) * power_of_two(n + 1022)
        return value * power_of_two(n)

    return {name: value for name, value in locals().items() if name != "jit"}
