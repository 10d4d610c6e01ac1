"""Measures the mathematical functions of the kernel language and prints the table that docs/strict.md holds.

    python benchmarks/strict_accuracy.py [--points 1000000] [function ...]

The error of a result is its distance from the true value in units in the last place of the true value's float. The
reference for float32 is the platform's float64 function, within 2**-28 of such a unit; for float64 the platform's
long double function where that has 64 bits of mantissa or more, within about 2**-10, and for erf and erfc mpmath with
100 bits on a twentieth of the points. Points: all bit patterns alike, intervals where the function is hardest, and
neighbours of powers of two and of multiples of pi/2. A minute or two for each function on one core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numba
import numpy as np

from p2pcompute.execution._strict_math import math_helpers

Array = np.ndarray[Any, Any]
Points = tuple[Array, ...]
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False}

# name -> NumPy's function and the intervals to look at, beside all bit patterns
ONE: dict[str, tuple[Callable[..., Any] | None, list[tuple[float, float]]]] = {
    "exp": (np.exp, [(-1, 1), (-104, 89), (-750, 710)]),
    "exp2": (np.exp2, [(-1, 1), (-150, 128), (-1080, 1024)]),
    "expm1": (np.expm1, [(-1, 1), (-45, 45)]),
    "log": (np.log, [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log2": (np.log2, [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log10": (np.log10, [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log1p": (np.log1p, [(-1, 1), (-0.01, 0.01), (0, 1000)]),
    "sin": (np.sin, [(-4, 4), (-1000, 1000), (-2e6, 2e6), (-1e12, 1e12)]),
    "cos": (np.cos, [(-4, 4), (-1000, 1000), (-2e6, 2e6), (-1e12, 1e12)]),
    "tan": (np.tan, [(-4, 4), (-1000, 1000), (-2e6, 2e6), (-1e12, 1e12)]),
    "asin": (np.arcsin, [(-1, 1), (0.49, 0.51), (0.999, 1)]),
    "acos": (np.arccos, [(-1, 1), (0.49, 0.51), (0.999, 1)]),
    "atan": (np.arctan, [(-1, 1), (-4, 4), (-100, 100)]),
    "sinh": (np.sinh, [(-1, 1), (-25, 25), (-89, 89), (-711, 711)]),
    "cosh": (np.cosh, [(-1, 1), (-25, 25), (-89, 89), (-711, 711)]),
    "tanh": (np.tanh, [(-1, 1), (-3, 3), (-25, 25)]),
    "cbrt": (np.cbrt, [(-8, 8)]),
    "erf": (None, [(-1, 1), (-6, 6)]),
    "erfc": (None, [(-1, 1), (0, 10.5), (-7, 28)]),
}
TWO: dict[str, tuple[Callable[..., Any], list[tuple[tuple[float, float], tuple[float, float]]]]] = {
    "pow": (
        np.power,
        [((0, 10), (-40, 40)), ((0.9, 1.1), (-700, 700)), ((0, 1e6), (-3, 3)), ((0.999, 1.001), (-5e5, 5e5))],
    ),
    "atan2": (np.arctan2, [((-1, 1), (-1, 1)), ((-1, 1), (-100, 100)), ((-100, 100), (-1, 1))]),
    "hypot": (np.hypot, [((-1, 1), (-1, 1)), ((-1, 1), (-10, 10))]),
    "fmod": (np.fmod, [((-1000, 1000), (-10, 10))]),
}  # fmt: skip


def edges(dtype: Any) -> Array:
    """Powers of two, multiples of pi/2, and their neighbours on both sides."""
    info = np.finfo(dtype)
    exponents = np.arange(info.minexp - info.nmant, info.maxexp)
    whole = np.arange(1, 20_001) * np.pi / 2
    far = np.pi / 2 * np.logspace(1, 15, 2_000).round()
    middle = np.concatenate([np.ldexp(1.0, exponents), np.ldexp(1.5, exponents[:-1]), whole, far]).astype(dtype)
    around = [middle, np.nextafter(middle, dtype(np.inf)), np.nextafter(middle, dtype(0))]
    special = np.array([0.0, np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal], dtype)
    positive = np.concatenate([*around, special])
    return np.concatenate([positive, -positive])


def samples(dtype: Any, intervals: list[Any], count: int, seed: int) -> Iterator[Points]:
    """Points for functions of one argument, or of two where intervals are pairs."""
    rng = np.random.default_rng(seed)
    two = isinstance(intervals[0][0], tuple)
    width, unsigned = (4, np.uint32) if dtype is np.float32 else (8, np.uint64)
    part = count // (len(intervals) + 1)
    for number in range(len(intervals) + 1):
        columns = []
        for column in range(2 if two else 1):
            if number == len(intervals):
                columns.append(rng.integers(0, 256**width, part, unsigned).view(dtype))
            else:
                low, high = intervals[number][column] if two else intervals[number]
                columns.append(rng.uniform(low, high, part).astype(dtype))
        yield tuple(columns)
    some = edges(dtype)
    yield (rng.permutation(some), rng.permutation(some)) if two else (some,)


def evaluate(function: Any, points: Points, dtype: Any) -> Array:
    """The helper over arrays, compiled as the CPU back end compiles it."""
    result = np.empty(points[0].shape, dtype)

    @numba.njit(**OPTIONS)
    def one(x: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    @numba.njit(**OPTIONS)
    def both(x: Any, y: Any, out: Any) -> None:
        for i in range(x.size):
            out[i] = function(x[i], y[i])

    (one if len(points) == 1 else both)(*points, result)
    return result


def true_value(name: str, numpy_function: Any, points: Points, wide: Any) -> Array:
    """The reference in a wider type."""
    with np.errstate(all="ignore"):
        if numpy_function is not None:
            return np.asarray(numpy_function(*(column.astype(wide) for column in points)))
        function, special = getattr(mpmath, name), {"erf": (1.0, -1.0), "erfc": (0.0, 2.0)}[name]
        found = []
        with mpmath.workprec(100):
            for x in points[0].tolist():
                if x != x or abs(x) > 30 or (x == 0 and name == "erf"):  # mpmath has one zero only
                    found.append(wide(x) if x != x or x == 0 else wide(special[0 if x > 0 else 1]))
                    continue
                value = function(mpmath.mpf(x))
                high = float(value)
                found.append(wide(high) + wide(float(value - high)))
        return np.array(found, wide)


def errors(
    found: np.ndarray[Any, Any], true: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Distances in units in the last place, infinite where a special value is wrong; and what is not the nearest."""
    with np.errstate(all="ignore"):
        nearest = true.astype(found.dtype)
        unit = np.spacing(np.abs(nearest)).astype(true.dtype)
        distance = np.abs(found.astype(true.dtype) - true) / unit
        alike = (np.isnan(found) & np.isnan(true)) | (np.isinf(found) & (found == nearest))
        wrong = np.isnan(distance) | ((true == 0) & (np.signbit(true) != np.signbit(found)))
        distance = np.where(alike, 0, np.where(wrong, np.inf, distance))
        return distance.astype(np.float64), (found != nearest) & ~alike


def measure(name: str, width: int, count: int) -> tuple[float, float, list[float], int]:
    """The largest error, the part of results that are not the nearest float, where the largest is, and how many."""
    dtype: Any = np.float32 if width == 32 else np.float64
    wide: Any = np.float64 if width == 32 else np.longdouble
    numpy_function, intervals = ONE[name] if name in ONE else TWO[name]
    if numpy_function is None:
        count //= 20
        wide = np.longdouble
    function = HELPERS[f"{name}{'_' if name[-1].isdigit() else ''}{width}"]
    worst, where, off, total = -1.0, [0.0], 0, 0
    for points in samples(dtype, intervals, count, seed=width):
        if numpy_function is None and points[0].size > count:
            points = (points[0][:: 4 if width == 32 else 8],)
        distance, inexact = errors(evaluate(function, points, dtype), true_value(name, numpy_function, points, wide))
        place = int(distance.argmax())
        if distance[place] > worst:
            worst, where = float(distance[place]), [float(column[place]) for column in points]
        off, total = off + int(inexact.sum()), total + distance.size
    return worst, off / total, where, total


HELPERS = math_helpers(numba.njit(**OPTIONS))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("functions", nargs="*", default=[])
    options = parser.parse_args()
    if np.finfo(np.longdouble).nmant < 63:
        sys.exit("long double has no more bits than float64 here: there is nothing to measure against")
    sys.stdout.write("| function | float32: worst, ulp | not the nearest | float64: worst, ulp | not the nearest |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for name in options.functions or [*ONE, *TWO]:
        row = f"| `{name}`"
        for width in (32, 64):
            worst, off, where, total = measure(name, width, options.points)
            row += f" | {worst:.4f} | {off:.1e}" if width == 32 else f" | {worst:.2f} | {off:.0%}"
            sys.stderr.write(f"{name}{width}: {worst:.5f} at {where}, {total} points\n")
        sys.stdout.write(row + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
