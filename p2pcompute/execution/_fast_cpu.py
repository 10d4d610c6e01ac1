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

from p2pcompute.execution._fast_math import fast_functions
from p2pcompute.execution._lower_apart import APART
from p2pcompute.execution._strict import helpers
from p2pcompute.execution._strict_math_shared import bits_of_float

__all__ = ["FAST", "fast_helpers"]

FAST: Final[dict[str, Any]] = {"fastmath": {"contract", "reassoc", "arcp", "afn", "nsz"}}
# Mathematical functions add a large number and take it away again to round: reordered, that would be nothing.
_FUSED: Final[dict[str, Any]] = {"fastmath": {"contract"}}


def fast_helpers(options: dict[str, Any], *, apart: Callable[[Any], Any]) -> dict[str, Any]:
    """The names that lowered code may use, for fast mode; see `helpers`. `options` are those of strict mode."""
    fused = numba.njit(**{**options, **_FUSED})
    names = helpers(numba.njit(forceinline=True, **{**options, **FAST}), math_jit=fused, apart=apart)
    own = fast_functions(fused, fused(bits_of_float))
    # Short enough for a copy at each call.
    return names | own | {f"{name}{APART}": function for name, function in own.items()}
