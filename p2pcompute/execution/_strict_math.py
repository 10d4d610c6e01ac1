"""The mathematical functions of the language, by name and by how many arguments they take; docs/strict.md says how
accurate they are. None of them calls a library: the text here is the definition, on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2pcompute.execution._strict_math32 import functions32
from p2pcompute.execution._strict_math64 import functions64
from p2pcompute.execution._strict_math_shared import bits_of_float, float_of_bits, shared

__all__ = ["math_helpers"]


def math_helpers(jit: Callable[[Any], Any], *, float_bits: Any = None, bits_float: Any = None) -> dict[str, Any]:
    """The functions under the names that lowered code calls: ``exp32``, ``exp64``, ``atan2_32`` and so on.

    Args:
        jit: makes a device function; it must neither contract nor reorder floating-point operations. Each function
            is compiled when it is first called, so a kernel pays for what it uses. With the identity they are plain
            Python over NumPy scalars, which gives the same bits.
        float_bits: a function that `jit` can call, from a float64 to the int64 with its bits; without it `jit` has
            to compile a scalar's ``view``.
        bits_float: the same from an int64 to a float64.
    """
    parts = shared(jit, float_bits or jit(bits_of_float), bits_float or jit(float_of_bits))
    double = functions64(jit, parts)
    return functions32(jit, parts, double) | double
