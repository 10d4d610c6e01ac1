"""Prints p2pcompute/execution/_strict_tables.py: the coefficients and constants of the mathematical functions.

Each polynomial is the Chebyshev interpolant of its function on its interval, computed with 70 digits and rounded to
binary64 term by term; the error beside it is the interpolant's own, before rounding. Needs mpmath.

    python benchmarks/strict_fit.py > tables.py && ruff check --fix tables.py && ruff format tables.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mpmath
from mpmath import mp, mpf

mp.dps = 70
HEAD = '''"""Coefficients and constants of the mathematical functions; printed by benchmarks/strict_fit.py.

Polynomials have their highest power first. `_HI` and `_LO` are two parts of one number, and where a product with a
small integer has to be exact the first part has few bits.
"""

from __future__ import annotations

from typing import Final

import numpy as np
'''


def away(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function with its limit in place of 0/0."""
    return lambda x: function(x if abs(x) > mpf(10) ** -18 else mpf(10) ** -18)


def odd(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """(f(x) - x) / x**3 as a function of x**2."""

    def series(z: Any) -> Any:
        x = mpmath.sqrt(z)
        return (function(x) - x) / x**3

    return away(series)


def logarithm(z: Any) -> Any:
    s = mpmath.sqrt(z)
    return (2 * mpmath.atanh(s) - 2 * s) / s**3


def logarithm_tail(z: Any) -> Any:
    return (logarithm(z) - mpf(2) / 3) / z


def cosine(z: Any) -> Any:
    return (mpmath.cos(mpmath.sqrt(z)) - 1 + z / 2) / z**2


def error_function(z: Any) -> Any:
    x = mpmath.sqrt(z)
    return mpmath.erf(x) / x - 1


def scaled_complement(t: Any) -> Any:
    if t > mpf(1) - mpf(10) ** -30:
        return 2 / mpmath.sqrt(mpmath.pi)
    x = 4 * (1 + t) / (1 - t)
    if x > 100:  # erfc underflows nowhere in mpmath, but the continued fraction is quicker
        total = mpf(0)
        for k in range(60, 0, -1):
            total = mpf(k) / 2 / (x + total)
        return (1 + 2 * x) / (mpmath.sqrt(mpmath.pi) * (x + total))
    return (1 + 2 * x) * mpmath.exp(x * x) * mpmath.erfc(x)


QUARTER_PI, HALF_LN2 = mpmath.pi / 4 * mpf("1.0001"), mpmath.ln(2) / 2 * mpf("1.001")
S = (mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1) * mpf("1.0001")
FITS: list[tuple[str, str, Callable[[Any], Any], Any, Any, int]] = [
    ("EXP", "(exp(r) - 1 - r) / r**2", away(lambda r: (mpmath.exp(r) - 1 - r) / r**2), -HALF_LN2, HALF_LN2, 11),
    ("LOG", "(log((1 + s) / (1 - s)) - 2*s) / s**3, of s**2", away(logarithm), 0, S * S, 8),
    ("LOG_TAIL", "the same less 2/3, over s**2", away(logarithm_tail), 0, S * S, 8),
    ("SIN", "(sin(x) - x) / x**3, of x**2", odd(mpmath.sin), 0, QUARTER_PI**2, 7),
    ("COS", "(cos(x) - 1 + x**2 / 2) / x**4, of x**2", away(cosine), 0, QUARTER_PI**2, 7),
    ("ATAN", "(atan(x) - x) / x**3, of x**2", odd(mpmath.atan), 0, mpf(7) ** 2 / 256, 12),
    ("ASIN", "(asin(x) - x) / x**3, of x**2", odd(mpmath.asin), 0, mpf(1) / 4, 14),
    ("ERF", "erf(x) / x - 1, of x**2", away(error_function), 0, mpf(9) / 16, 13),
    ("ERFC", "(1 + 2*x) * exp(x**2) * erfc(x), of (x - 4) / (x + 4)", scaled_complement, -1, 1, 26),
    ("EXP_SHORT", "as EXP, for float32", away(lambda r: (mpmath.exp(r) - 1 - r) / r**2), -HALF_LN2, HALF_LN2, 7),
    ("LOG_SHORT", "as LOG, for float32", away(logarithm), 0, S * S, 5),
    ("SIN_SHORT", "as SIN, for float32", odd(mpmath.sin), 0, QUARTER_PI**2, 4),
    ("COS_SHORT", "as COS, for float32", away(cosine), 0, QUARTER_PI**2, 4),
    ("ATAN_SHORT", "as ATAN, for float32", odd(mpmath.atan), 0, mpf(7) ** 2 / 256, 7),
    ("ASIN_SHORT", "as ASIN, for float32", odd(mpmath.asin), 0, mpf(1) / 4, 8),
    ("ERF_SHORT", "as ERF, for float32", away(error_function), 0, mpf(9) / 16, 8),
    ("ERFC_SHORT", "as ERFC, for float32", scaled_complement, -1, 1, 17),
]


def fitted(function: Callable[[Any], Any], low: Any, high: Any, terms: int) -> tuple[tuple[float, ...], Any]:
    """Coefficients, highest power first, and the interpolant's error."""
    coefficients, error = mpmath.chebyfit(function, [low, high], terms, error=True, asc=True)
    return tuple(float(value) for value in reversed(coefficients)), error


def short(value: Any, bits: int) -> Any:
    """`value` cut to `bits` significant bits."""
    exponent = mpmath.frexp(value)[1]
    return mpmath.floor(value * mpf(2) ** (bits - exponent)) * mpf(2) ** (exponent - bits)


def constants() -> list[tuple[str, float]]:
    """Numbers and the rests that they leave."""
    ln2, ln10, half_pi = mpmath.ln(2), mpmath.ln(10), mpmath.pi / 2
    rows: list[tuple[str, float]] = []

    def split(name: str, value: Any, *widths: int) -> None:
        labels = ("_HI", "_LO") if len(widths) == 1 else ("_1", "_2", "_3", "_4")
        for label, width in zip(labels, (*widths, 53), strict=False):
            part = short(value, width) if width < 53 else mpf(float(value))
            rows.append((name + label, float(part)))
            value -= part

    rows.append(("LOG2_E", float(1 / ln2)))
    split("LN2", ln2, 40)
    split("LN2_NEAR", ln2, 53)
    split("INV_LN2", 1 / ln2, 53)
    split("INV_LN10", 1 / ln10, 53)
    split("LOG10_2", ln2 / ln10, 40)
    split("TWO_THIRDS", mpf(2) / 3, 53)
    rows.append(("TWO_OVER_PI", float(1 / half_pi)))
    split("HALF_PI", half_pi, 53)
    split("HALF_PI", half_pi, 33, 33, 33)
    split("PI", mpmath.pi, 53)
    split("QUARTER_PI", half_pi / 2, 53)
    split("ATAN_HALF", mpmath.atan(mpf(1) / 2), 53)
    split("ATAN_3_2", mpmath.atan(mpf(3) / 2), 53)
    return rows


def words() -> list[int]:
    """64 zeros and the first 1280 bits of 2/pi, in words of 64 bits."""
    with mpmath.workdps(500):
        number = int(mpmath.floor(2 / mpmath.pi * mpf(2) ** 1280))
    return [0] + [number >> (1280 - 64 * (k + 1)) & (2**64 - 1) for k in range(20)]


def main() -> None:
    """Print the module."""
    out: list[str] = []
    names: list[str] = []
    for name, what, function, low, high, terms in FITS:
        coefficients, error = fitted(function, low, high, terms)
        names.append(name)
        out.append(f"# {what}; on {mpmath.nstr(low, 3)} to {mpmath.nstr(high, 3)} within {mpmath.nstr(error, 2)}")
        out.append(f"{name}: Final = (")
        out += [f"    {coefficient!r}," for coefficient in coefficients]
        out.append(")")
    out.append("")
    for name, value in constants():
        names.append(name)
        out.append(f"{name}: Final = {value!r}")
    names.append("TWO_OVER_PI_WORDS")
    out.append("\n# 64 zero bits and 1280 bits of 2/pi (Payne and Hanek, 1983)")
    out.append("TWO_OVER_PI_WORDS: Final = (")
    out += [f"    np.uint64(0x{word:016X})," for word in words()]
    out.append(")")
    exported = "".join(f'    "{name}",\n' for name in sorted(names))
    sys.stdout.write(f"{HEAD}\n__all__ = [\n{exported}]\n\n" + "\n".join(out) + "\n")


if __name__ == "__main__":
    main()
