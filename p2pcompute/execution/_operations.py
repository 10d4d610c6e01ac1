"""The operations by which an output's values are combined (docs/strict.md, section 13), and the tree that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from p2pcompute.execution._api import Array

__all__ = ["OPERATIONS", "can_reduce", "defined_for", "fold", "identity"]

_CANONICAL: Final[dict[str, Any]] = {"float32": np.uint32(0x7FC00000), "float64": np.uint64(0x7FF8000000000000)}


def _lesser(a: Array, b: Array) -> Array:
    return _of_numbers(a, b, np.where(b < a, b, a))


def _greater(a: Array, b: Array) -> Array:
    return _of_numbers(a, b, np.where(b > a, b, a))


def _of_numbers(a: Array, b: Array, chosen: Array) -> Array:
    """NaN where one of the two is a NaN: a maximum that is silent about it would hide a fault."""
    if a.dtype.kind != "f":
        return chosen
    return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), chosen)


_COMBINE: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": _lesser,
    "max": _greater,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}
OPERATIONS: Final = tuple(_COMBINE)


def can_reduce(operation: str, dtype: str) -> bool:
    """Whether values of `dtype` can be combined so: bitwise operations take no floats, and bools take no others."""
    if operation not in _COMBINE:
        return False
    bitwise = operation in ("and", "or", "xor")
    return not dtype.startswith("float") if bitwise else dtype != "bool"


def defined_for(dtype: str) -> str:
    """What to write instead of an operation that `dtype` does not have."""
    return f"use one of {', '.join(name for name in OPERATIONS if can_reduce(name, dtype))}"


def identity(operation: str, dtype: str) -> Any:
    """The value that changes nothing, as a scalar of `dtype`: what a thread gives that stores nothing."""
    kind = np.dtype(dtype)
    if operation == "prod":
        return kind.type(1)
    if operation == "and":
        return kind.type(True) if kind.kind == "b" else ~kind.type(0)
    if operation in ("min", "max"):
        if kind.kind == "f":
            return kind.type(np.inf if operation == "min" else -np.inf)
        limits = np.iinfo(kind)
        return kind.type(limits.max if operation == "min" else limits.min)
    return kind.type(0)


def fold(operation: str, values: Array) -> Array:
    """Combine along axis 0 by the tree: while there are n > 1, value i becomes ``value[i] op value[i + h]`` with
    ``h = ceil(n / 2)``, for each i below n - h, and h remain.

    Args:
        operation: one of `OPERATIONS`, defined for the dtype.
        values: shape ``(n, *row)`` with n >= 1; not changed.

    Returns:
        An array of shape ``row`` and the same dtype. Integers wrap; each NaN is the canonical one.
    """
    combine = _COMBINE[operation]
    current = np.array(values)
    with np.errstate(all="ignore"):
        while (n := len(current)) > 1:
            half = (n + 1) // 2
            current[: n - half] = combine(current[: n - half], current[half:])
            current = current[:half]
    return _canonical(np.array(current[0]))


def _canonical(values: Array) -> Array:
    bits = _CANONICAL.get(values.dtype.name)
    if bits is not None:
        nan = np.isnan(values)
        if nan.any():
            values[nan] = bits.view(values.dtype)
    return values
