"""What counts as right in fast mode: an element near the strict one, as near as the agreement says.

The strict result has one value on every machine, so that who compares, and where, makes no difference: x is right
where |x - s| <= max(atol, t) + rtol * |s|, with s strict and t the least normal number of the type. NaN goes with NaN
and each infinity with itself. Elements that are no floats have to be equal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from p2pcompute_protocols.negotiation import Tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pcompute.execution._api import OutputSpec

__all__ = ["DEFAULT_TOLERANCE", "alike", "outside", "outside_rows", "rows_of"]

Array: TypeAlias = np.ndarray[Any, Any]
Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

DEFAULT_TOLERANCE: Final = Tolerance.of(rtol32=1e-4, atol32=1e-6, rtol64=1e-9, atol64=1e-12)
"""Of `fp="fast"` where nothing is said: a thousand roundings of float32, several million of float64."""


def outside(theirs: Array, strict: Array, tolerance: Tolerance | None) -> Mask:
    """Which elements are not right.

    Args:
        theirs: what was delivered, of any shape.
        strict: the strict result, of the same shape and dtype.
        tolerance: of the agreement; None where bits have to be equal.
    """
    near = None if tolerance is None else tolerance.for_dtype(theirs.dtype.name)
    unlike: Mask = np.asarray(_bits(theirs) != _bits(strict))
    if near is None or not unlike.any():
        return unlike
    rtol, atol = near
    least = float(np.finfo(theirs.dtype).tiny)
    x, s = theirs[unlike].astype(np.float64), strict[unlike].astype(np.float64)
    with np.errstate(all="ignore"):
        # Two infinities: unlike ones, since the bits differ. One: the distance is infinite, and the bound is not.
        right = np.abs(x - s) <= np.minimum(max(atol, least) + rtol * np.abs(s), np.finfo(np.float64).max)
    right &= np.isfinite(x) & np.isfinite(s)
    right |= np.isnan(x) & np.isnan(s)
    unlike[unlike] = ~right
    return unlike


def alike(one: Array, other: Array, tolerance: Tolerance | None) -> bool:
    """Whether two results of providers may both be right: each is within the tolerance of a value that neither knows,
    so that they are within twice of it of each other."""
    near = None if tolerance is None else tolerance.for_dtype(one.dtype.name)
    unlike = _bits(one) != _bits(other)
    if near is None or not unlike.any():
        return not unlike.any()
    rtol, atol = near
    least = float(np.finfo(one.dtype).tiny)
    x, y = one[unlike].astype(np.float64), other[unlike].astype(np.float64)
    with np.errstate(all="ignore"):
        bound = 2 * (max(atol, least) + rtol * np.maximum(np.abs(x), np.abs(y)))
        right = np.abs(x - y) <= np.minimum(bound, np.finfo(np.float64).max)
    right &= np.isfinite(x) & np.isfinite(y)
    right |= np.isnan(x) & np.isnan(y)
    return bool(right.all())


def rows_of(
    output: bytes | memoryview, outputs: Sequence[OutputSpec], row_shapes: Sequence[tuple[int, ...]], items: int
) -> list[Array]:
    """The arrays of a chunk's output, each ``(items, elements of a row)``, without a copy."""
    found: list[Array] = []
    at = 0
    for spec, shape in zip(outputs, row_shapes, strict=True):
        width = math.prod(shape)
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        rows = np.frombuffer(output, dtype=dtype, count=items * width, offset=at).reshape(items, width)
        at += rows.nbytes
        found.append(rows)
    return found


def outside_rows(theirs: Array, strict: Array, own: Array | None, tolerance: Tolerance | None) -> tuple[Mask, Mask]:
    """Which rows are wrong, and of which others nobody can say it, of arrays ``(rows, elements)``.

    Args:
        own: what our own fast mode gives for the same rows. An element that it puts outside as well hangs on rounding
            by more than was agreed, so that nothing can be said of it. None where there is none.
    """
    bad = outside(theirs, strict, tolerance)
    none: Mask = np.zeros(len(bad), dtype=bool)
    if own is None:
        return np.asarray(bad.any(axis=1)), none
    loose = bad & outside(own, strict, tolerance)
    wrong = np.asarray((bad & ~loose).any(axis=1))
    return wrong, np.asarray(loose.any(axis=1)) & ~wrong


def _bits(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    return values.view(f"u{values.dtype.itemsize}")
