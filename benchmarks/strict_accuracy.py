"""Measures the mathematical functions of the kernel language against mpmath and prints the table of docs/strict.md.

    python benchmarks/strict_accuracy.py [--points 1000000] [--write] [function ...]

The error of a result is its distance from the true value in units in the last place of the true value's float. The
true value is mpmath's with 106 bits, of each point by itself; NumPy's long double says it where it is a NaN, an
infinity or a zero, or where an operand is. Points: all bit patterns alike, intervals where the function is hardest, and
neighbours of powers of two and of multiples of pi/2, a third of a million. Ten seconds to a minute for each function on
one core, and four minutes for erf and erfc. Ends with 1 where a function is further off than docs/strict.md allows.
`--write` puts what was measured into benchmarks/results/strict_accuracy.json, beside other functions' rows there, each
with a digest of the functions' sources as they were measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import numba
import numpy as np
from mpmath import libmp

from p2pcompute import execution
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
}  # fmt: skip

BITS = 106
RESULTS = Path(__file__).parent / "results" / "strict_accuracy.json"
SOURCES = ("_strict_math.py", "_strict_math32.py", "_strict_math64.py", "_strict_math_shared.py", "_strict_tables.py")
"""All that the functions are made of, in p2pcompute/execution."""
BOUNDS = {  # docs/strict.md: of float64, and of float32 everywhere
    "exp": 1.0, "exp2": 1.0, "expm1": 1.5, "log": 1.0, "log2": 0.6, "log10": 0.6, "log1p": 1.0, "sin": 1.0, "cos": 1.0,
    "tan": 2.5, "asin": 1.0, "acos": 1.0, "atan": 1.0, "sinh": 2.0, "cosh": 1.5, "tanh": 1.5, "cbrt": 1.0, "erf": 1.5,
    "erfc": 4.0, "pow": 1.5, "atan2": 1.5, "hypot": 1.5,
}  # fmt: skip
FLOAT32 = 0.501
OF_MPMATH: dict[str, Callable[..., Any]] = {
    "exp2": lambda x: libmp.mpf_pow(libmp.ftwo, x, BITS, "n"),
    # what is left of the difference has its bits: e**x - 1 is about x where x is small
    "expm1": lambda x: libmp.mpf_sub(libmp.mpf_exp(x, BITS + max(0, -x[2] - x[3]), "n"), libmp.fone, BITS, "n"),
    "log2": lambda x: libmp.mpf_div(libmp.mpf_log(x, BITS + 8, "n"), libmp.mpf_ln2(BITS + 8), BITS, "n"),
    "log10": lambda x: libmp.mpf_div(libmp.mpf_log(x, BITS + 8, "n"), libmp.mpf_ln10(BITS + 8), BITS, "n"),
    # 1 + x in full, however small x is
    "log1p": lambda x: libmp.mpf_log(libmp.mpf_add(libmp.fone, x), BITS, "n"),
    "cbrt": lambda x: (
        libmp.mpf_neg(libmp.mpf_cbrt(libmp.mpf_neg(x), BITS, "n")) if x[0] else libmp.mpf_cbrt(x, BITS, "n")
    ),
}


def sources_digest(folder: Path = Path(execution.__file__).parent) -> str:
    """SHA-256 over the files of `SOURCES` in `folder`, each behind its name and its length, in hex."""
    whole = hashlib.sha256()
    for name in SOURCES:
        text = (folder / name).read_bytes()
        whole.update(f"{name} {len(text)}\n".encode() + text)
    return whole.hexdigest()


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


def true_value(name: str, numpy_function: Any, points: Points) -> Array:
    """mpmath's values as long doubles, which hold 64 bits of them and any exponent."""
    function = OF_MPMATH.get(name) or (lambda *x: getattr(libmp, f"mpf_{name}")(*x, BITS, "n"))
    with np.errstate(all="ignore"):
        if numpy_function is not None:
            true = np.asarray(numpy_function(*(column.astype(np.longdouble) for column in points)))
        else:  # erf and erfc: from 30 on they are their limits
            limits = {"erf": (-1, 1), "erfc": (2, 0)}[name]
            x = points[0]
            true = np.where(x < 0, *limits).astype(np.longdouble)
            true = np.where(np.isnan(x), x, np.where(x == 0, x if name == "erf" else 1, true))
        ordinary = np.isfinite(true) & (true != 0) if numpy_function is not None else np.abs(points[0]) <= 30
        for column in points:
            ordinary &= np.isfinite(column) & (column != 0)
    chosen = np.flatnonzero(ordinary)
    high, low = np.zeros((2, chosen.size), np.float64)
    powers = np.zeros(chosen.size, np.int64)
    columns = [map(libmp.from_float, column[chosen].tolist()) for column in points]
    for place, operands in enumerate(zip(*columns, strict=True)):
        sign, mantissa, exponent, bits = function(*operands)
        mantissa, exponent = mantissa << (BITS - bits), exponent - (BITS - bits)
        high[place], low[place] = mantissa >> 53, mantissa & (1 << 53) - 1
        powers[place] = exponent
        if sign:
            high[place], low[place] = -high[place], -low[place]
    with np.errstate(all="ignore"):
        wide = np.ldexp(high.astype(np.longdouble), 53) + low.astype(np.longdouble)
        true[chosen] = np.ldexp(wide, powers.astype(np.int32))
    return true


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
    numpy_function, intervals = ONE[name] if name in ONE else TWO[name]
    function = HELPERS[f"{name}{'_' if name[-1].isdigit() else ''}{width}"]
    worst, where, off, total = -1.0, [0.0], 0, 0
    for points in samples(dtype, intervals, count, seed=width):
        distance, inexact = errors(evaluate(function, points, dtype), true_value(name, numpy_function, points))
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
    parser.add_argument("--write", action="store_true")
    parser.add_argument("functions", nargs="*", default=[])
    options = parser.parse_args()
    if np.finfo(np.longdouble).nmant < 63:
        sys.exit("long double has no more bits than float64 here: there is nothing to hold mpmath's values in")
    kept = {row["function"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    far: list[str] = []
    sources = sources_digest()
    sys.stdout.write("| function | float32: worst, ulp | not the nearest | float64: worst, ulp | not the nearest |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for name in options.functions or [*ONE, *TWO]:
        line, row = f"| `{name}`", {"function": name, "reference": f"mpmath {mpmath.__version__}, {BITS} bits"}
        row["sources"] = sources
        for width in (32, 64):
            worst, off, where, total = measure(name, width, options.points)
            bound = FLOAT32 if width == 32 else BOUNDS[name]
            line += f" | {worst:.4f} | {off:.1e}" if width == 32 else f" | {worst:.2f} | {off:.0%}"
            row[f"float{width}"] = {
                "points": total,
                "worst_ulp": round(worst, 5),
                "at": where,
                "not_nearest": round(off, 8),
                "bound_ulp": bound,
            }
            if not worst <= bound:
                far.append(f"{name} of float{width}")
        kept[name] = row
        sys.stdout.write(line + " |\n")
        sys.stdout.flush()
        if options.write:
            rows = [kept[one] for one in [*ONE, *TWO] if one in kept]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if far:
        sys.exit(f"further off than docs/strict.md allows: {', '.join(far)}")


if __name__ == "__main__":
    main()
