"""Fast mode on a processor: which liberties the compiler gets, and which it does not.

Sums and products may be reordered and fused, divisions become products with a reciprocal, and signs of zeros are lost.
What is left out is that there were no NaNs and no infinities: then a comparison with one would be undefined, and what
is undefined is a weapon, since it might be the test of an index. So every index is tested as in strict mode, integers
are what they are there, and a NaN is a NaN. docs/fast.md says what is promised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba

from p2pcompute.execution._strict import helpers

__all__ = ["FAST", "fast_helpers"]

FAST: Final[dict[str, Any]] = {"fastmath": {"contract", "reassoc", "arcp", "afn", "nsz"}}
# Mathematical functions add a large number and take it away again to round: reordered, that would be nothing.
_FUSED: Final[dict[str, Any]] = {"fastmath": {"contract"}}


def fast_helpers(options: dict[str, Any], *, apart: Callable[[Any], Any]) -> dict[str, Any]:
    """The names that lowered code may use, for fast mode; see `helpers`. `options` are those of strict mode."""
    return helpers(
        numba.njit(forceinline=True, **{**options, **FAST}),
        math_jit=numba.njit(**{**options, **_FUSED}),
        apart=apart,
    )
