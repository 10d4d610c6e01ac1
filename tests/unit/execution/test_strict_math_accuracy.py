"""How far the mathematical functions are from the truth: the bounds of docs/strict.md on a seeded sample.

benchmarks/strict_accuracy.py (`make ulp-nightly`) holds each against mpmath on over a million points, and what it found
is held against the bounds here. The reference here is mpmath with 120 bits for
float64 on part of the sample and the platform's long double on all of it; for float32 it is the platform's float64.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import numba
import numpy as np
import pytest

from p2pcompute.execution import _strict_tables as tables
from p2pcompute.execution._language import MATH_CALLS, MATH_FUNCTIONS
from p2pcompute.execution._strict_math import math_helpers

Array = np.ndarray[Any, Any]
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False}
HELPERS = math_helpers(numba.njit(**OPTIONS))
COUNT = 4_000  # of each kind of point

# name -> the bound for float64 in units in the last place, NumPy's function, mpmath's, and the hard intervals
LIMITS: dict[str, tuple[float, Any, Any, list[Any]]] = {
    "exp": (1.0, np.exp, mpmath.exp, [(-1, 1), (-104, 89), (-746, 710)]),
    "exp2": (1.0, np.exp2, lambda x: mpmath.mpf(2) ** x, [(-1, 1), (-150, 128), (-1075, 1024)]),
    "expm1": (1.5, np.expm1, mpmath.expm1, [(-1, 1), (-45, 45)]),
    "log": (1.0, np.log, mpmath.log, [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log2": (0.6, np.log2, lambda x: mpmath.log(x, 2), [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log10": (0.6, np.log10, lambda x: mpmath.log(x, 10), [(0.5, 2), (0.99, 1.01), (0, 1000)]),
    "log1p": (1.0, np.log1p, mpmath.log1p, [(-1, 1), (-0.01, 0.01), (0, 1000)]),
    "sin": (1.0, np.sin, mpmath.sin, [(-4, 4), (-2e6, 2e6), (-1e12, 1e12)]),
    "cos": (1.0, np.cos, mpmath.cos, [(-4, 4), (-2e6, 2e6), (-1e12, 1e12)]),
    "tan": (2.5, np.tan, mpmath.tan, [(-4, 4), (-2e6, 2e6), (-1e12, 1e12)]),
    "asin": (1.0, np.arcsin, mpmath.asin, [(-1, 1), (0.49, 0.51), (0.999, 1)]),
    "acos": (1.0, np.arccos, mpmath.acos, [(-1, 1), (0.49, 0.51), (0.999, 1)]),
    "atan": (1.0, np.arctan, mpmath.atan, [(-1, 1), (-4, 4)]),
    "sinh": (2.0, np.sinh, mpmath.sinh, [(-1, 1), (-25, 25), (-711, 711)]),
    "cosh": (1.5, np.cosh, mpmath.cosh, [(-1, 1), (-25, 25), (-711, 711)]),
    "tanh": (1.5, np.tanh, mpmath.tanh, [(-1, 1), (-25, 25)]),
    "cbrt": (1.0, np.cbrt, lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), [(-8, 8)]),
    "erf": (1.5, None, mpmath.erf, [(-1, 1), (-6, 6)]),
    "erfc": (4.0, None, mpmath.erfc, [(-1, 1), (-6, 28)]),
    "pow": (1.5, np.power, mpmath.power, [((0, 10), (-40, 40)), ((0.9, 1.1), (-700, 700)), ((0, 1e6), (-3, 3))]),
    "atan2": (1.5, np.arctan2, mpmath.atan2, [((-1, 1), (-1, 1)), ((-1, 1), (-100, 100))]),
    "hypot": (1.5, np.hypot, mpmath.hypot, [((-1, 1), (-1, 1)), ((-1, 1), (-10, 10))]),
}
EXACT = {"fmod", "copysign", "trunc", "rint"}  # tested against C's own in test_strict_math
FLOAT32 = 0.501


def near(dtype: Any) -> Array:
    """Powers of two, multiples of pi/2, 1 and the thresholds of overflow, with their neighbours."""
    info = np.finfo(dtype)
    powers = np.ldexp(1.0, np.arange(info.minexp - info.nmant, info.maxexp))
    angles = np.pi / 2 * np.concatenate([np.arange(1, 301), np.logspace(3, 15, 200).round()])
    limits = np.array([88.72284, 103.97208, 709.782712893384, 745.1332191019412, 22.0, 0.75, 6.0, 27.226, 9.19, 10.05])
    middle = np.concatenate([powers, angles, limits, 1 + np.arange(-20, 21) / 64]).astype(dtype)
    found = np.concatenate([middle, np.nextafter(middle, dtype(np.inf)), np.nextafter(middle, dtype(0))])
    return np.concatenate([found, -found, np.array([0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max], dtype)])


def points(intervals: list[Any], dtype: Any) -> Iterator[tuple[Array, ...]]:
    """Columns of operands."""
    rng = np.random.default_rng(20)
    two = isinstance(intervals[0][0], tuple)
    unsigned: Any = np.uint32 if dtype is np.float32 else np.uint64
    for place in [*range(len(intervals)), -1]:
        columns = []
        for column in range(2 if two else 1):
            if place < 0:
                columns.append(rng.integers(0, np.iinfo(unsigned).max, COUNT, unsigned).view(dtype))
            else:
                columns.append(
                    rng.uniform(*(intervals[place][column] if two else intervals[place]), COUNT).astype(dtype)
                )
        yield tuple(columns)
    edges = near(dtype)
    yield (rng.permutation(edges), rng.permutation(edges)) if two else (edges,)


def compiled(name: str, width: int) -> Callable[..., Array]:
    """A helper over arrays, compiled as the CPU back end compiles it."""
    function = HELPERS[f"{name}{'_' if name[-1].isdigit() else ''}{width}"]

    @numba.njit(**OPTIONS)
    def one(x: Any, result: Any) -> None:
        for i in range(x.size):
            result[i] = function(x[i])

    @numba.njit(**OPTIONS)
    def both(x: Any, y: Any, result: Any) -> None:
        for i in range(x.size):
            result[i] = function(x[i], y[i])

    def over(*columns: Array) -> Array:
        result = np.empty_like(columns[0])
        (one if len(columns) == 1 else both)(*columns, result)
        return result

    return over


def errors(found: Array, true: Array) -> Array:
    """In units in the last place of the true value; infinite where a special value or a zero's sign is wrong."""
    with np.errstate(all="ignore"):
        nearest = true.astype(found.dtype)
        distance = np.abs(found.astype(true.dtype) - true) / np.spacing(np.abs(nearest)).astype(true.dtype)
        alike = (np.isnan(found) & np.isnan(true)) | (np.isinf(found) & (found == nearest))
        wrong = np.isnan(distance) | ((true == 0) & (np.signbit(true) != np.signbit(found)))
    return np.where(alike, 0, np.where(wrong, np.inf, distance)).astype(np.float64)


def exactly(function: Any, columns: tuple[Array, ...], wide: Any) -> Array:
    """mpmath's value, to the width of `wide`."""
    found = []
    with mpmath.workprec(120):
        for operands in zip(*(column.tolist() for column in columns), strict=True):
            value = function(*(mpmath.mpf(operand) for operand in operands))
            high = float(value)
            rest = float(value - mpmath.mpf(high)) if math.isfinite(high) else 0.0
            found.append(wide(high) + wide(rest))
    return np.array(found, wide)


def ordinary(columns: tuple[Array, ...], true: Array) -> Array:
    """Where mpmath can be asked: finite operands that are no zeros, and results that are neither special nor tiny."""
    with np.errstate(all="ignore"):
        sizes = np.abs(np.stack([column.astype(np.float64) for column in columns]))
        fine = (sizes > 1e-300).all(axis=0) & (sizes < 1e300).all(axis=0)
        return np.asarray(fine & np.isfinite(true) & (np.abs(true) < 1e300) & (np.abs(true) > 1e-300))


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("name", LIMITS)
def test_error(name: str, width: int) -> None:
    bound, of_numpy, of_mpmath, intervals = LIMITS[name]
    bound = FLOAT32 if width == 32 else bound
    dtype: Any = np.float32 if width == 32 else np.float64
    wide: Any = np.float64 if width == 32 else np.longdouble
    function = compiled(name, width)
    for columns in points(intervals, dtype):
        found = function(*columns)
        with np.errstate(all="ignore"):
            if of_numpy is not None:
                true = np.asarray(of_numpy(*(column.astype(wide) for column in columns)))
            else:
                assert len(columns) == 1
                true = np.array([getattr(math, name)(x) for x in columns[0].tolist()], np.float64)
        if of_numpy is not None or width == 32:
            distance = errors(found, true.astype(wide))
            place = int(distance.argmax())
            assert distance[place] <= bound, [float(column[place]) for column in columns]
        chosen = np.flatnonzero(ordinary(columns, true))[:: 1 if of_numpy is None else 20]
        some = tuple(column[chosen] for column in columns)
        distance = errors(found[chosen], exactly(of_mpmath, some, np.longdouble))
        place = int(distance.argmax())
        assert distance[place] <= bound, [float(column[place]) for column in some]


def test_every_function_is_measured() -> None:
    assert set(LIMITS) | EXACT == MATH_FUNCTIONS
    assert all(MATH_CALLS[name] == (2 if isinstance(LIMITS[name][3][0][0], tuple) else 1) for name in LIMITS)


BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def script(name: str) -> Any:
    """A module of benchmarks/, not run yet, and what runs it."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    return module, spec.loader.exec_module


def measured() -> dict[str, Any]:
    rows = json.loads((BENCHMARKS / "results" / "strict_accuracy.json").read_text())
    return {row["function"]: row for row in rows}


def other_sources(rows: dict[str, Any], digest: str) -> list[str]:
    return [name for name, row in rows.items() if row.get("sources") != digest]


def test_what_was_measured_is_what_the_functions_are_now() -> None:
    accuracy, run = script("strict_accuracy")
    run(accuracy)
    stale = other_sources(measured(), accuracy.sources_digest())
    assert not stale, f"measured before the functions' sources changed: {stale}; `make ulp-nightly` measures them anew"


def test_a_change_of_any_source_of_the_functions_is_seen(tmp_path: Path) -> None:
    accuracy, run = script("strict_accuracy")
    run(accuracy)
    folder = Path(tables.__file__).parent
    assert set(accuracy.SOURCES) == {
        path.name for pattern in ("_strict_math*.py", "_strict_tables.py") for path in folder.glob(pattern)
    }
    for name in accuracy.SOURCES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert not other_sources(measured(), accuracy.sources_digest(tmp_path))
    for name in accuracy.SOURCES:
        right = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(right + b"\n")
        assert set(other_sources(measured(), accuracy.sources_digest(tmp_path))) == set(LIMITS), name
        (tmp_path / name).write_bytes(right)


def test_what_was_measured_on_a_million_points_is_within_the_bounds() -> None:
    rows = measured()
    assert set(rows) == set(LIMITS)
    for name, row in rows.items():
        assert "mpmath" in row["reference"]
        for width, bound in ((32, FLOAT32), (64, LIMITS[name][0])):
            found = row[f"float{width}"]
            assert found["points"] >= 1_000_000
            assert found["worst_ulp"] <= bound
            assert found["bound_ulp"] == bound


def test_the_measure_sees_an_error() -> None:
    """The platform's float32 functions are good, and still not these: one unit more is one unit of error."""
    x = np.linspace(0.1, 3, 1000, dtype=np.float32)
    true = np.exp(x.astype(np.float64))
    right = compiled("exp", 32)(x)
    assert errors(right, true).max() <= FLOAT32
    assert errors(np.nextafter(right, np.float32(np.inf)), true).max() > FLOAT32
    assert np.isinf(errors(np.array([0.0, 1.0]), np.array([-0.0, np.nan], np.longdouble))).all()


ANGLES = [  # the hardest arguments of an angle's reduction (Kahan; Muller), with sin and cos to 60 digits by mpmath
    5.319372648326541e255,
    6381956970095103.0 * 2.0**797,
    1.5707963267948966,
    22.0,
    355.0,
    103993.0,
    2.0**1023,
    1.7976931348623157e308,
]


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_angles_near_multiples_of_half_pi(name: str) -> None:
    x = np.array([*ANGLES, *(-angle for angle in ANGLES)])
    with mpmath.workprec(1300):
        due = [getattr(mpmath, name)(mpmath.mpf(angle)) for angle in x.tolist()]
        wide = [np.longdouble(float(value)) + np.longdouble(float(value - mpmath.mpf(float(value)))) for value in due]
    assert errors(compiled(name, 64)(x), np.array(wide)).max() <= LIMITS[name][0]


def test_the_coefficients_are_those_that_the_script_computes() -> None:
    fit, run = script("strict_fit")
    with mpmath.workdps(70):
        run(fit)
        for name, _, function, low, high, terms in fit.FITS:
            assert fit.fitted(function, low, high, terms)[0] == getattr(tables, name), name
        for name, value in fit.constants():
            assert getattr(tables, name) == value, name
    assert [int(word) for word in tables.TWO_OVER_PI_WORDS] == fit.words()
