"""Which mathematical functions a program calls out of line.

They are long, and a compiler that copies one to each of many calls takes time that grows faster than the calls do: 240
of ``pow`` take minutes. Where there are many calls, with device functions counted as often as they are called, some
functions stay one function each. Operations and their order are the same, and so are the bits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from p2pcompute.execution._language import MATH_FUNCTIONS

__all__ = ["APART", "apart", "renamed"]

APART: Final = "_apart"  # behind the name of a function in the code: the same, and never copied into its caller
_FEW: Final = 8
_MOST_COPIES: Final = 128  # of all functions together, those of the few not counted
_SHORT: Final = frozenset({"rint", "trunc", "copysign"})


def _names(functions: frozenset[str], width: int) -> frozenset[str]:
    return frozenset(f"{name}{'_' if name[-1].isdigit() else ''}{width}" for name in functions)


# Their branches keep a compiler from doing several at once, so a copy is hardly faster than a call (measured: by a
# tenth at most). Of the others a copy may be up to nine times as fast, for a compiler makes vectors of it.
_BRANCHING: Final = _names(frozenset({"pow", "cbrt", "atan2"}), 32) | _names(
    frozenset({"pow", "cbrt", "atan2", "sin", "cos", "tan", "sinh", "cosh", "tanh", "expm1"}), 64
)
_LONG: Final = _names(MATH_FUNCTIONS - _SHORT, 32) | _names(MATH_FUNCTIONS - _SHORT, 64)
_CALL: Final = re.compile(r"\b([a-z]\w*)\(")


def apart(functions: Sequence[tuple[str, str]], entries: Sequence[str]) -> frozenset[str]:
    """Names of mathematical functions that are called in more places than are worth a copy each.

    Args:
        functions: (name, code) of device functions, callees first.
        entries: code that begins with the device functions at hand; the larger count of them is taken.
    """
    counts: dict[str, Counter[str]] = {}

    def count(code: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for name, times in Counter(_CALL.findall(code.split("\n", 1)[1])).items():  # behind its own def
            if name in _LONG:
                found[name] += times
            for inner, often in counts.get(name, {}).items():
                found[inner] += times * often
        return found

    for name, code in functions:
        counts[name] = count(code)
    most: Counter[str] = Counter()
    for code in entries:
        most |= count(code)
    found = {name for name, times in most.items() if name in _BRANCHING and times > _FEW}
    total = sum(times for name, times in most.items() if name not in _BRANCHING)
    for name, times in sorted(most.items(), key=lambda item: (-item[1], item[0])):
        if total > _MOST_COPIES and times > _FEW and name not in _BRANCHING:
            found.add(name)
            total -= times
    return frozenset(found)


def renamed(code: str, names: frozenset[str]) -> str:
    """The same code with calls of `names` out of line."""
    return _CALL.sub(lambda found: f"{found[1]}{APART}(" if found[1] in names else found[0], code)
