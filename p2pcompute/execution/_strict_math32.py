"""The mathematical functions of float32: computed in binary64 and rounded once at the end.

Binary64 holds every float32 and what a reduction leaves of it, so that short polynomials and no rests suffice, and
nearly every result is the correctly rounded one. Polynomials are fitted to about 2**-32 of the result. Sources are
those of the float64 functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float32, float64, int64, uint64

from p2pcompute.execution._strict_math_shared import polynomial
from p2pcompute.execution._strict_tables import (
    ASIN_SHORT,
    ATAN_3_2_HI,
    ATAN_HALF_HI,
    ATAN_SHORT,
    COS_SHORT,
    ERF_SHORT,
    ERFC_SHORT,
    EXP_SHORT,
    HALF_PI_1,
    HALF_PI_2,
    HALF_PI_3,
    HALF_PI_HI,
    INV_LN2_HI,
    INV_LN10_HI,
    LN2_NEAR_HI,
    LOG2_E,
    LOG_SHORT,
    PI_HI,
    QUARTER_PI_HI,
    SIN_SHORT,
    TWO_OVER_PI,
    TWO_OVER_PI_WORDS,
)

__all__ = ["functions32"]

_INF = np.float64(np.inf)
_INF32, _NAN32 = np.float32(np.inf), np.float32(np.nan)
_ONE32, _ZERO32 = np.float32(1.0), np.float32(0.0)
_LOG10_2 = 0.30102999566398120
_HALF_PI_REST = HALF_PI_2 + HALF_PI_3
_NEAR_LIMIT = 2.0**20  # below it, n * HALF_PI_1 is exact
_WORD_0, _WORD_1, _WORD_2, _WORD_3, _WORD_4 = TWO_OVER_PI_WORDS[:5]
_FRACTION_BITS, _LEADING, _DROPPED = 0x000FFFFFFFFFFFFF, np.uint64(1 << 23), np.uint64(29)
_ONE, _TWO, _THIRTY, _THIRTY_TWO, _SIXTY_TWO, _SIXTY_THREE = (np.uint64(n) for n in (1, 2, 30, 32, 62, 63))
_LOW32 = np.uint64(0xFFFFFFFF)
_P64 = 2.0**-64


def functions32(jit: Callable[[Any], Any], shared: dict[str, Any], functions64: dict[str, Any]) -> dict[str, Any]:
    """The functions by name, over float32; the other arguments are the functions that the same `jit` compiled."""
    bits, signed = shared["bits"], shared["signed"]
    nearest, power_of_two, split = shared["nearest"], shared["power_of_two"], shared["split"]
    remainder = shared["remainder"]
    whole_part = shared["whole_part"]
    log64, cbrt64 = functions64["log64"], functions64["cbrt64"]
    rint64, trunc64 = functions64["rint64"], functions64["trunc64"]
    exp_series, log_series, sin_series, cos_series, atan_series, asin_series, erf_series, erfc_series = (
        polynomial(jit, table)
        for table in (
            EXP_SHORT, LOG_SHORT, SIN_SHORT, COS_SHORT, ATAN_SHORT, ASIN_SHORT, ERF_SHORT, ERFC_SHORT,
        )
    )  # fmt: skip

    # Over float64, to float32's accuracy

    @jit
    def grow(x: Any) -> Any:
        """exp(x) for x from -700 to 700."""
        n = nearest(x * LOG2_E)
        r = x - n * LN2_NEAR_HI
        return (1.0 + (r + r * r * exp_series(r))) * power_of_two(int64(n))

    @jit
    def grow_less_one(x: Any) -> Any:
        """exp(x) - 1 for x from -700 to 700."""
        n = nearest(x * LOG2_E)
        r = x - n * LN2_NEAR_HI
        size = power_of_two(int64(n))
        return (size - 1.0) + size * (r + r * r * exp_series(r))

    @jit
    def near_log(f: Any) -> Any:
        """log(1 + f) for f from sqrt(1/2) - 1 to sqrt(2) - 1."""
        s = f / (2.0 + f)
        z = s * s
        return 2.0 * s + s * (z * log_series(z))

    @jit
    def sin_near(x: Any) -> Any:
        z = x * x
        return x + x * (z * sin_series(z))

    @jit
    def cos_near(x: Any) -> Any:
        z = x * x
        return (1.0 - 0.5 * z) + z * z * cos_series(z)

    @jit
    def reduce_far(x: Any) -> Any:
        """As `reduce_angle`, for finite x from 2**20: x * 2/pi modulo 4 in integers (Payne and Hanek)."""
        n = bits(x)
        start = (n >> 52) - 1046 + 62  # bits before it are multiples of 4 once they are multiplied
        m = (uint64(n & _FRACTION_BITS) >> _DROPPED) | _LEADING
        a, b, c = _WORD_0, _WORD_1, _WORD_2
        if start >= 128:
            a, b, c = _WORD_2, _WORD_3, _WORD_4
        elif start >= 64:
            a, b, c = _WORD_1, _WORD_2, _WORD_3
        count = uint64(start & 63)
        back = _SIXTY_THREE - count
        low = ((b << count) | ((c >> _ONE) >> back)) >> _THIRTY_TWO
        low = low * m
        high = ((a << count) | ((b >> _ONE) >> back)) * m + (low >> _THIRTY_TWO)
        part = (high << _TWO) | ((low & _LOW32) >> _THIRTY)
        quadrant = int64(high >> _SIXTY_TWO) + int64(part >> _SIXTY_THREE)
        return float64(int64(part)) * _P64 * HALF_PI_HI, quadrant  # the upper half stands for what is below zero

    @jit
    def reduce_angle(x: Any) -> Any:
        """x = n pi/2 + y, with |y| up to a little over pi/4, for a finite x that float32 holds: y, n."""
        size = math.fabs(x)
        if size < _NEAR_LIMIT:
            n = nearest(x * TWO_OVER_PI)
            return (x - n * HALF_PI_1) - n * _HALF_PI_REST, int64(n)
        y, quadrant = reduce_far(size)
        return (-y, -quadrant) if x < 0.0 else (y, quadrant)

    @jit
    def arctangent(x: Any) -> Any:
        """atan(x) for x >= 0, infinity too."""
        t, base = x, 0.0
        if x >= 0.4375:
            if x < 0.6875:
                t, base = (2.0 * x - 1.0) / (2.0 + x), ATAN_HALF_HI
            elif x < 1.1875:
                t, base = (x - 1.0) / (x + 1.0), QUARTER_PI_HI
            elif x < 2.4375:
                t, base = (x - 1.5) / (1.0 + 1.5 * x), ATAN_3_2_HI
            else:
                t, base = -1.0 / x, HALF_PI_HI
        z = t * t
        return base + (t + t * (z * atan_series(z)))

    @jit
    def arcsine(x: Any) -> Any:
        """asin(x) for |x| up to 1/2."""
        z = x * x
        return x + x * (z * asin_series(z))

    @jit
    def far_complement(x: Any) -> Any:
        """erfc(x) for x from 1/2 to 11."""
        return grow(-(x * x)) * (erfc_series((x - 4.0) / (x + 4.0)) / (1.0 + 2.0 * x))

    # Over float32

    @jit
    def exp32(x: Any) -> Any:
        if x > 89.0:
            return _INF32
        if x < -105.0:
            return _ZERO32
        return float32(grow(float64(x))) if x == x else x

    @jit
    def exp2_32(x: Any) -> Any:
        if x >= 128.0:
            return _INF32
        if x < -151.0:
            return _ZERO32
        if x != x:
            return x
        d = float64(x)
        n = nearest(d)
        r = (d - n) * LN2_NEAR_HI
        return float32((1.0 + (r + r * r * exp_series(r))) * power_of_two(int64(n)))

    @jit
    def expm1_32(x: Any) -> Any:
        if x > 89.0:
            return _INF32
        if x < -30.0:
            return -_ONE32
        if x != x or x == 0.0:
            return x
        return float32(grow_less_one(float64(x)))

    @jit
    def log32(x: Any) -> Any:
        if x <= 0.0:
            return -_INF32 if x == 0.0 else _NAN32
        if x != x or x == _INF32:
            return x
        m, k = split(float64(x))
        return float32(float64(k) * LN2_NEAR_HI + near_log(m - 1.0))

    @jit
    def log2_32(x: Any) -> Any:
        if x <= 0.0:
            return -_INF32 if x == 0.0 else _NAN32
        if x != x or x == _INF32:
            return x
        m, k = split(float64(x))
        return float32(float64(k) + near_log(m - 1.0) * INV_LN2_HI)

    @jit
    def log10_32(x: Any) -> Any:
        if x <= 0.0:
            return -_INF32 if x == 0.0 else _NAN32
        if x != x or x == _INF32:
            return x
        m, k = split(float64(x))
        return float32(float64(k) * _LOG10_2 + near_log(m - 1.0) * INV_LN10_HI)

    @jit
    def log1p32(x: Any) -> Any:
        if x <= -1.0:
            return -_INF32 if x == -1.0 else _NAN32
        if x != x or x == _INF32 or x == 0.0:
            return x
        d = float64(x)
        if -0.29 < d < 0.41:
            return float32(near_log(d))
        m, k = split(1.0 + d)
        return float32(float64(k) * LN2_NEAR_HI + near_log(m - 1.0))

    @jit
    def sin32(x: Any) -> Any:
        if x - x != 0.0 or x == 0.0:
            return x if x == 0.0 else _NAN32
        y, n = reduce_angle(float64(x))
        value = cos_near(y) if n & 1 else sin_near(y)
        return float32(-value if n & 2 else value)

    @jit
    def cos32(x: Any) -> Any:
        if x - x != 0.0:
            return _NAN32
        y, n = reduce_angle(float64(x))
        value = sin_near(y) if n & 1 else cos_near(y)
        return float32(-value if (n + 1) & 2 else value)

    @jit
    def tan32(x: Any) -> Any:
        if x - x != 0.0 or x == 0.0:
            return x if x == 0.0 else _NAN32
        y, n = reduce_angle(float64(x))
        s, c = sin_near(y), cos_near(y)
        return float32(-(c / s) if n & 1 else s / c)

    @jit
    def atan32(x: Any) -> Any:
        if x != x:
            return x
        d = float64(x)
        return float32(signed(arctangent(math.fabs(d)), d))

    @jit
    def atan2_32(y: Any, x: Any) -> Any:
        if x != x or y != y:
            return _NAN32
        top, base = float64(y), float64(x)
        up, right = math.fabs(top), math.fabs(base)
        if right == _INF and up == _INF:
            angle: Any = float64(QUARTER_PI_HI)
        elif up == 0.0:
            angle = up
        elif right == 0.0 or up == _INF:
            return float32(signed(float64(HALF_PI_HI), top))
        else:
            angle = arctangent(up / right)
        if bits(base) < 0:
            angle = PI_HI - angle
        return float32(signed(angle, top))

    @jit
    def asin32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if size < 0.5:
            return float32(arcsine(d)) if x != 0.0 else x
        if not size <= 1.0:
            return _NAN32
        return float32(signed(HALF_PI_HI - 2.0 * arcsine(math.sqrt(0.5 * (1.0 - size))), d))

    @jit
    def acos32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if size < 0.5:
            return float32(HALF_PI_HI - arcsine(d))
        if not size <= 1.0:
            return _NAN32
        twice = 2.0 * arcsine(math.sqrt(0.5 * (1.0 - size)))
        return float32(twice if d > 0.0 else PI_HI - twice)

    @jit
    def sinh32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if size > 100.0:
            return x * _INF32
        if x != x:
            return x
        e = grow_less_one(size)
        return float32(signed(0.5 * (e + e / (e + 1.0)), d))

    @jit
    def cosh32(x: Any) -> Any:
        size = math.fabs(float64(x))
        if size > 100.0:
            return _INF32
        if x != x:
            return x
        grows = grow(size)
        return float32(0.5 * grows + 0.5 / grows)

    @jit
    def tanh32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if x != x:
            return x
        e = grow_less_one(2.0 * size) if size < 20.0 else _INF
        return float32(signed(e / (e + 2.0) if size < 20.0 else 1.0, d))

    @jit
    def pow32(x: Any, y: Any) -> Any:
        if y == 0.0 or x == 1.0:
            return _ONE32
        if x != x or y != y:
            return _NAN32
        base, exponent = float64(x), float64(y)
        size, power = math.fabs(base), math.fabs(exponent)
        whole = whole_part(power) == power
        odd = whole and whole_part(0.5 * power) != 0.5 * power  # an infinity is whole and even
        if power == _INF:
            if size == 1.0:
                return _ONE32
            return _INF32 if (size > 1.0) == (y > 0.0) else _ZERO32
        if base < 0.0 and not whole and size != _INF:
            return _NAN32
        if size == 0.0 or size == _INF:
            value = _INF if (size == 0.0) == (exponent < 0.0) else 0.0
        else:
            product = exponent * log64(size)
            value = grow(product) if math.fabs(product) < 200.0 else _INF if product > 0.0 else 0.0
        return float32(-value if odd and bits(base) < 0 else value)

    @jit
    def hypot32(x: Any, y: Any) -> Any:
        a, b = float64(x), float64(y)
        if math.fabs(a) == _INF or math.fabs(b) == _INF:
            return _INF32
        return float32(math.sqrt(a * a + b * b))

    @jit
    def cbrt32(x: Any) -> Any:
        return float32(cbrt64(float64(x)))

    @jit
    def erf32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if size < 0.75:
            return float32(d + d * erf_series(d * d)) if x != 0.0 else x
        if size < 5.0:
            return float32(signed(1.0 - far_complement(size), d))
        return float32(signed(1.0, d)) if x == x else x

    @jit
    def erfc32(x: Any) -> Any:
        d = float64(x)
        size = math.fabs(d)
        if size < 0.75:
            return float32(1.0 - (d + d * erf_series(d * d)))
        if x != x:
            return x
        if size > 11.0:
            return _ZERO32 if d > 0.0 else float32(2.0)
        value = far_complement(size)
        return float32(2.0 - value if d < 0.0 else value)

    @jit
    def fmod32(x: Any, y: Any) -> Any:
        if y != y or y == 0.0 or x - x != 0.0:
            return _NAN32
        d = float64(x)
        size, divisor = math.fabs(d), math.fabs(float64(y))
        if divisor == _INF or size < divisor:
            return x
        return float32(signed(remainder(size, divisor), d))

    @jit
    def trunc32(x: Any) -> Any:
        return float32(trunc64(float64(x)))

    @jit
    def rint32(x: Any) -> Any:
        return float32(rint64(float64(x)))

    @jit
    def copysign32(x: Any, y: Any) -> Any:
        return float32(signed(math.fabs(float64(x)), float64(y)))

    return {name: value for name, value in locals().items() if name.endswith("32")}
