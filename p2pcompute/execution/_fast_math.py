"""Mathematical functions of float32 in fast mode, where those of strict mode have branches that keep a compiler from
doing several at once.

They take binary64 in between, as the strict ones do, so that they are about as accurate. What is left out are angles
of any size: beyond 2**30 `sin`, `cos` and `tan` promise nothing, where a float32 is further from the next one than a
turn is long. A NaN gives a NaN, and nothing here converts a float to an integer that may not hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, float64

from p2pcompute.execution._strict_math_shared import polynomial
from p2pcompute.execution._strict_tables import (
    COS_SHORT,
    HALF_PI_1,
    HALF_PI_2,
    HALF_PI_3,
    SIN_SHORT,
    TWO_OVER_PI,
)

__all__ = ["fast_functions"]

_MAGIC = 1.5 * 2.0**52  # added: the nearest integer stands in the lowest bits
_REST = HALF_PI_2 + HALF_PI_3


def fast_functions(jit: Callable[[Any], Any], float_bits: Callable[[Any], Any]) -> dict[str, Any]:
    """The functions that take the place of strict ones, under the names that lowered code calls.

    Args:
        jit: makes a device function; it may fuse, and must not reorder.
        float_bits: a function that it can call, from a float64 to the int64 with its bits.
    """
    sin_series, cos_series = polynomial(jit, SIN_SHORT), polynomial(jit, COS_SHORT)

    @jit
    def turned(x: Any) -> Any:
        """sin and cos of what a quarter turn leaves of x, and the bits of how many quarters those were."""
        held = x * TWO_OVER_PI + _MAGIC
        n = held - _MAGIC
        r = (x - n * HALF_PI_1) - n * _REST
        z = r * r
        return r + r * (z * sin_series(z)), (1.0 - 0.5 * z) + z * z * cos_series(z), float_bits(held)

    @jit
    def sin32(x: Any) -> Any:
        s, c, quarter = turned(float64(x))
        value = c if quarter & 1 else s
        return float32(-value if quarter & 2 else value)

    @jit
    def cos32(x: Any) -> Any:
        s, c, quarter = turned(float64(x))
        value = s if quarter & 1 else c
        return float32(-value if (quarter + 1) & 2 else value)

    @jit
    def tan32(x: Any) -> Any:
        s, c, quarter = turned(float64(x))
        return float32((-c if quarter & 1 else s) / (s if quarter & 1 else c))

    return {"sin32": sin32, "cos32": cos32, "tan32": tan32}
