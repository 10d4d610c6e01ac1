"""The mathematical functions of float64, from the operations that docs/strict.md defines.

The reductions and the way their rests are carried follow fdlibm (Sun Microsystems, 1993) for exp, expm1, log, log1p,
sin, cos, atan, asin and acos, and FreeBSD's cbrt; erfc has one polynomial over all of its range in the variable of
M. M. Shepherd and J. G. Laframboise, Chebyshev approximation of (1 + 2x)exp(x^2)erfc x (1981). Coefficients are
our own. Special cases are those of C's Annex F.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import float64, int64

from p2pcompute.execution._strict_math_shared import polynomial
from p2pcompute.execution._strict_tables import (
    ASIN,
    ATAN,
    ATAN_3_2_HI,
    ATAN_3_2_LO,
    ATAN_HALF_HI,
    ATAN_HALF_LO,
    COS,
    ERF,
    ERFC,
    EXP,
    HALF_PI_HI,
    HALF_PI_LO,
    INV_LN2_HI,
    INV_LN2_LO,
    INV_LN10_HI,
    INV_LN10_LO,
    LN2_HI,
    LN2_LO,
    LN2_NEAR_HI,
    LN2_NEAR_LO,
    LOG,
    LOG10_2_HI,
    LOG10_2_LO,
    PI_HI,
    PI_LO,
    QUARTER_PI_HI,
    QUARTER_PI_LO,
    SIN,
)

__all__ = ["functions64"]

_INF, _NAN = np.float64(np.inf), np.float64(np.nan)
_TINY = 2.0**-54
_HIGH_WORD = -(1 << 32)
_CBRT_BITS = 715094163 << 32  # a third of the exponent, less what makes the first guess best


def functions64(jit: Callable[[Any], Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The functions by name, over float64; `shared` is what `_strict_math_shared.shared` gives for the same `jit`."""
    bits, from_bits, signed = shared["bits"], shared["from_bits"], shared["signed"]
    nearest, power_of_two, scale = shared["nearest"], shared["power_of_two"], shared["scale"]
    quick_sum, two_sum, two_product = shared["quick_sum"], shared["two_sum"], shared["two_product"]
    reduce_exp, reduce_angle, remainder = shared["reduce_exp"], shared["reduce_angle"], shared["remainder"]
    split, log_pair, rint64 = shared["split"], shared["log_pair"], shared["rint64"]
    whole_part = shared["whole_part"]
    outer = frozenset(locals())
    exp_series, log_series, sin_series, cos_series, atan_series, asin_series, erf_series, erfc_series = (
        polynomial(jit, table) for table in (EXP, LOG, SIN, COS, ATAN, ASIN, ERF, ERFC)
    )

    @jit
    def grown(r: Any, rest: Any) -> Any:
        """exp(r + rest) - 1 less r, for |r| up to half of ln 2."""
        return r * r * exp_series(r) + rest

    @jit
    def exp64(x: Any) -> Any:
        if x > 710.0:
            return _INF
        if x < -746.0:
            return float64(0.0)
        if x != x:
            return x
        r, rest, n = reduce_exp(x, 0.0)
        return scale(1.0 + (r + grown(r, rest)), n)

    @jit
    def exp2_64(x: Any) -> Any:
        if x >= 1024.0:
            return _INF
        if x < -1076.0:
            return float64(0.0)
        if x != x:
            return x
        n = nearest(x)
        f = x - n
        r, rest = two_product(f, LN2_NEAR_HI)
        return scale(1.0 + (r + grown(r, rest + f * LN2_NEAR_LO)), int64(n))

    @jit
    def expm1_pair(x: Any) -> Any:
        """exp(x) - 1 for x from -40 to 40 as a sum of two."""
        r, rest, n = reduce_exp(x, 0.0)
        more = grown(r, rest)
        size = power_of_two(n)
        total, error = two_sum(size - 1.0, size * r)
        return quick_sum(total, error + size * more)

    @jit
    def expm1_64(x: Any) -> Any:
        if x > 40.0:
            return exp64(x)
        if x < -40.0:
            return float64(-1.0)
        if x != x or math.fabs(x) < _TINY:
            return x
        total, _ = expm1_pair(x)
        return total

    @jit
    def log64(x: Any) -> Any:
        if x <= 0.0:
            return -_INF if x == 0.0 else _NAN
        if x != x or x == _INF:
            return x
        m, k = split(x)
        f, n = m - 1.0, float64(k)
        s, square = f / (2.0 + f), 0.5 * f * f
        z = s * s
        return n * LN2_HI - ((square - (s * (square + z * log_series(z)) + n * LN2_LO)) - f)

    @jit
    def log1p64(x: Any) -> Any:
        if x <= -1.0:
            return -_INF if x == -1.0 else _NAN
        if x != x or x == _INF or math.fabs(x) < _TINY:
            return x
        f, n, c = x, 0.0, 0.0
        if x < -0.29 or x > 0.41:
            u = 1.0 + x
            c = (1.0 - (u - x) if x > 1.0 else x - (u - 1.0)) / u
            m, k = split(u)
            f, n = m - 1.0, float64(k)
        s, square = f / (2.0 + f), 0.5 * f * f
        z = s * s
        return n * LN2_HI - ((square - (s * (square + z * log_series(z)) + (n * LN2_LO + c))) - f)

    @jit
    def log2_64(x: Any) -> Any:
        if x <= 0.0:
            return -_INF if x == 0.0 else _NAN
        if x != x or x == _INF:
            return x
        m, k = split(x)
        high, low = log_pair(m)
        p, error = two_product(high, INV_LN2_HI)
        total, rest = quick_sum(float64(k), p) if k != 0 else (p, 0.0)
        return total + (rest + (error + (high * INV_LN2_LO + low * INV_LN2_HI)))

    @jit
    def log10_64(x: Any) -> Any:
        if x <= 0.0:
            return -_INF if x == 0.0 else _NAN
        if x != x or x == _INF:
            return x
        m, k = split(x)
        n = float64(k)
        high, low = log_pair(m)
        p, error = two_product(high, INV_LN10_HI)
        total, rest = two_sum(n * LOG10_2_HI, p)
        return total + (rest + (error + (high * INV_LN10_LO + low * INV_LN10_HI + n * LOG10_2_LO)))

    @jit
    def sin_near(x: Any, rest: Any) -> Any:
        z = x * x
        cube = z * x
        return x + (rest + (cube * sin_series(z) - 0.5 * z * rest))

    @jit
    def cos_near(x: Any, rest: Any) -> Any:
        z = x * x
        half = 0.5 * z
        w = 1.0 - half
        return w + (((1.0 - w) - half) + (z * z * cos_series(z) - x * rest))

    @jit
    def sin64(x: Any) -> Any:
        if x - x != 0.0 or x == 0.0:
            return x if x == 0.0 else _NAN
        y, rest, n = reduce_angle(x)
        value = cos_near(y, rest) if n & 1 else sin_near(y, rest)
        return -value if n & 2 else value

    @jit
    def cos64(x: Any) -> Any:
        if x - x != 0.0:
            return _NAN
        y, rest, n = reduce_angle(x)
        value = sin_near(y, rest) if n & 1 else cos_near(y, rest)
        return -value if (n + 1) & 2 else value

    @jit
    def tan64(x: Any) -> Any:
        if x - x != 0.0 or x == 0.0:
            return x if x == 0.0 else _NAN
        y, rest, n = reduce_angle(x)
        s, c = sin_near(y, rest), cos_near(y, rest)
        return -(c / s) if n & 1 else s / c

    @jit
    def atan64(x: Any) -> Any:
        size = math.fabs(x)
        t, high, low = size, 0.0, 0.0
        if size >= 0.4375:
            if size < 0.6875:
                t, high, low = (2.0 * size - 1.0) / (2.0 + size), ATAN_HALF_HI, ATAN_HALF_LO
            elif size < 1.1875:
                t, high, low = (size - 1.0) / (size + 1.0), QUARTER_PI_HI, QUARTER_PI_LO
            elif size < 2.4375:
                t, high, low = (size - 1.5) / (1.0 + 1.5 * size), ATAN_3_2_HI, ATAN_3_2_LO
            else:
                t, high, low = -1.0 / size, HALF_PI_HI, HALF_PI_LO
        z = t * t
        return signed(high + (t + (low + t * (z * atan_series(z)))), x)

    @jit
    def atan2_64(y: Any, x: Any) -> Any:
        if x != x or y != y:
            return _NAN
        up, right = math.fabs(y), math.fabs(x)
        if right == _INF and up == _INF:
            angle: Any = float64(QUARTER_PI_HI)
        elif up == 0.0:
            angle = up
        elif right == 0.0 or up == _INF:
            return signed(float64(HALF_PI_HI), y)
        else:
            angle = atan64(up / right)
        if bits(x) < 0:
            angle = PI_HI - (angle - PI_LO)
        return signed(angle, y)

    @jit
    def arcsine(z: Any) -> Any:
        """(asin(x) - x) / x for z = x * x up to 1/4."""
        return z * asin_series(z)

    @jit
    def half_angle(x: Any) -> Any:
        """asin(sqrt((1 - x) / 2)) for x from 1/2 to 1, as a short number and a rest."""
        z = 0.5 * (1.0 - x)
        s = math.sqrt(z)
        short = from_bits(bits(s) & _HIGH_WORD)
        rest = (z - short * short) / (s + short) if s > 0.0 else 0.0
        return short, s * arcsine(z) + rest

    @jit
    def asin64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 0.5:
            return x + x * arcsine(x * x)
        if not size <= 1.0:
            return _NAN
        short, rest = half_angle(size)
        return signed(QUARTER_PI_HI - ((2.0 * rest - HALF_PI_LO) - (QUARTER_PI_HI - 2.0 * short)), x)

    @jit
    def acos64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 0.5:
            return HALF_PI_HI - (x - (HALF_PI_LO - x * arcsine(x * x)))
        if not size <= 1.0:
            return _NAN
        short, rest = half_angle(size)
        if x > 0.0:
            return 2.0 * (short + rest)
        return PI_HI - 2.0 * (short + (rest - HALF_PI_LO))

    @jit
    def sinh64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 22.0:
            e = expm1_64(size)
            value = 0.5 * (2.0 * e - e * e / (e + 1.0)) if size < 1.0 else 0.5 * (e + e / (e + 1.0))
        elif size <= 711.0:
            r, rest, n = reduce_exp(size, 0.0)
            value = scale(1.0 + (r + grown(r, rest)), n - 1)
        else:
            value = size * _INF
        return signed(value, x)

    @jit
    def cosh64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 0.34657:
            e = expm1_64(size)
            return 1.0 + e * e / (2.0 * (1.0 + e))
        if size < 22.0:
            grows = exp64(size)
            return 0.5 * grows + 0.5 / grows
        if size <= 711.0:
            r, rest, n = reduce_exp(size, 0.0)
            return scale(1.0 + (r + grown(r, rest)), n - 1)
        return size * _INF

    @jit
    def tanh64(x: Any) -> Any:
        size = math.fabs(x)
        if size < _TINY or x != x:
            value = size
        elif size >= 22.0:
            value = float64(1.0)
        elif size >= 1.0:
            value = 1.0 - 2.0 / (expm1_64(2.0 * size) + 2.0)
        else:
            e, el = expm1_pair(-2.0 * size)
            d, dl = quick_sum(2.0, e)
            q = e / d
            p, error = two_product(q, d)
            value = -(q + (((e - p) - error) + (el - q * (dl + el))) / d)
        return signed(value, x)

    @jit
    def pow64(x: Any, y: Any) -> Any:
        if y == 0.0 or x == 1.0:
            return float64(1.0)
        if x != x or y != y:
            return _NAN
        size, power = math.fabs(x), math.fabs(y)
        whole = whole_part(power) == power
        odd = whole and whole_part(0.5 * power) != 0.5 * power  # an infinity is whole and even
        sign = -1.0 if odd and bits(x) < 0 else 1.0
        if power == _INF:
            if size == 1.0:
                return float64(1.0)
            return _INF if (size > 1.0) == (y > 0.0) else float64(0.0)
        if size == 0.0 or size == _INF:
            return sign * (_INF if (size == 0.0) == (y < 0.0) else 0.0)
        if x < 0.0 and not whole:
            return _NAN
        m, k = split(size)
        n = float64(k)
        high, low = log_pair(m)
        high, error = two_sum(n * LN2_HI, high)
        high, low = quick_sum(high, error + (low + n * LN2_LO))
        about = y * high
        if about > 720.0:
            return sign * _INF
        if about < -760.0:
            return sign * 0.0
        p, error = two_product(y, high)
        r, rest, n2 = reduce_exp(p, error + y * low)
        return sign * scale(1.0 + (r + grown(r, rest)), n2)

    @jit
    def hypot64(x: Any, y: Any) -> Any:
        a, b = math.fabs(x), math.fabs(y)
        if a == _INF or b == _INF:
            return _INF
        if a != a or b != b:
            return _NAN
        up, down = 1.0, 1.0
        if a > 2.0**500 or b > 2.0**500:
            up, down = 2.0**-600, 2.0**600
        elif a < 2.0**-450 and b < 2.0**-450:
            up, down = 2.0**600, 2.0**-600
        a, b = a * up, b * up
        return math.sqrt(a * a + b * b) * down

    @jit
    def cbrt64(x: Any) -> Any:
        size = math.fabs(x)
        if size == 0.0 or size - size != 0.0:
            return x
        m, k = split(size)
        third = (k + 1200) // 3 - 400  # the sum is positive, so that no rounding of // matters
        a = scale(m, k - 3 * third)  # from sqrt(1/2) to 4 * sqrt(2)
        t = from_bits(bits(a) // 3 + _CBRT_BITS)
        t = t * (t * t * t + 2.0 * a) / (2.0 * (t * t * t) + a)  # Halley: 5 bits to 15
        t = t * (t * t * t + 2.0 * a) / (2.0 * (t * t * t) + a)
        t = from_bits((bits(t) + (1 << 30)) & _HIGH_WORD)  # short, so that its square is exact enough
        r = a / (t * t)
        return signed((t + t * ((r - t) / (2.0 * t + r))) * power_of_two(third), x)

    @jit
    def far_complement(x: Any) -> Any:
        """erfc(x) for x from 1/2 to 28."""
        square, error = two_product(x, x)
        r, rest, n = reduce_exp(-square, -error)
        scaled = erfc_series((x - 4.0) / (x + 4.0)) / (1.0 + 2.0 * x)
        value = (1.0 + (r + grown(r, rest))) * scaled
        return scale(value * 64.0, n - 6)  # the quotient is small, and scale wants what is near 1

    @jit
    def erf64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 0.75:
            return x + x * erf_series(x * x)
        if size < 6.0:
            return signed(1.0 - far_complement(size), x)
        return signed(float64(1.0), x) if x == x else x

    @jit
    def erfc64(x: Any) -> Any:
        size = math.fabs(x)
        if size < 0.75:
            return 1.0 - (x + x * erf_series(x * x))
        if x < -6.0:
            return float64(2.0)
        if x > 28.0:
            return float64(0.0)
        if x != x:
            return x
        value = far_complement(size)
        return 2.0 - value if x < 0.0 else value

    @jit
    def fmod64(x: Any, y: Any) -> Any:
        if y != y or y == 0.0 or x - x != 0.0:
            return _NAN
        size, divisor = math.fabs(x), math.fabs(y)
        if divisor == _INF or size < divisor:
            return x
        return signed(remainder(size, divisor), x)

    @jit
    def trunc64(x: Any) -> Any:
        return signed(whole_part(math.fabs(x)), x)

    @jit
    def copysign64(x: Any, y: Any) -> Any:
        return signed(math.fabs(x), y)

    made = {name: value for name, value in locals().items() if name.endswith("64") and name not in outer}
    return made | {"rint64": rint64}
