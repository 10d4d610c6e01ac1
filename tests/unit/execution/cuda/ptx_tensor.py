"""``mma.sync`` of whole warps, as NVIDIA's "Parallel Thread Execution ISA" spreads matrices over the lanes of one.

Its sums are exact here and rounded once towards zero, where the ISA leaves their order and rounding open; tf32 has the
upper 19 bits of a float32.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .ptx_code import PtxError, Thread

__all__ = ["multiply"]

Array = np.ndarray[Any, Any]
_SHAPES = {
    "sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": (16, 8, 8, "f", 0xFFFFE000),
    "sync.aligned.m8n8k4.row.col.f64.f64.f64.f64": (8, 8, 4, "d", (1 << 64) - 1),
}


def _places(rows: int, depth: int, lane: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Which elements of the left operand, the right one and the sums a lane has, in the order of its registers."""
    group, four = divmod(lane, 4)
    down = range(0, rows, 8)
    left = [(group + row, four + k) for k in range(0, depth, 4) for row in down]
    right = [(four + k, group) for k in range(0, depth, 4)]
    return left, right, [(group + row, 2 * four + at) for row in down for at in (0, 1)]


def multiply(threads: Sequence[Thread]) -> None:
    """All warps of a block stand at a product: give each lane its sums."""
    if len(threads) % 32:
        raise PtxError("a warp that is not whole")
    for first in range(0, len(threads), 32):
        _warp(threads[first : first + 32])


def _warp(threads: Sequence[Thread]) -> None:
    given = [thread.tensor for thread in threads]
    kinds = {one[0] if one is not None else "" for one in given}
    if len(kinds) != 1 or not kinds <= set(_SHAPES):
        raise PtxError(f"a warp at {kinds}")
    rows, columns, depth, form, mask = _SHAPES[kinds.pop()]
    size = struct.calcsize(form)

    def value(bits: int) -> float:
        return float(struct.unpack(f"<{form}", bits.to_bytes(size, "little"))[0])

    left, right, sums = np.zeros((rows, depth)), np.zeros((depth, columns)), np.zeros((rows, columns))
    for lane, one in enumerate(given):
        assert one is not None
        at_left, at_right, at_sums = _places(rows, depth, lane)
        for places, bits, into, kept in zip(
            (at_left, at_right, at_sums), one[1], (left, right, sums), (mask, mask, -1), strict=True
        ):
            for place, word in zip(places, bits, strict=True):
                into[place] = value(word & kept if kept != -1 else word)
    for lane, one in enumerate(given):
        assert one is not None
        for (row, column), register in zip(_places(rows, depth, lane)[2], one[2], strict=True):
            found = _sum(left[row], right[:, column], float(sums[row, column]), form)
            one[3][register] = int.from_bytes(struct.pack(f"<{form}", found), "little")
        threads[lane].tensor = None


def _sum(left: Array, right: Array, start: float, form: str) -> float:
    if not (np.isfinite(left).all() and np.isfinite(right).all() and np.isfinite(start)):
        with np.errstate(all="ignore"):
            return float((left * right).sum() + start)
    exact = Fraction(start) + sum(Fraction(a) * Fraction(b) for a, b in zip(left.tolist(), right.tolist(), strict=True))
    try:
        with np.errstate(over="ignore"):
            nearest: Any = np.float32(float(exact)) if form == "f" else float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")
    if np.isfinite(nearest) and abs(Fraction(float(nearest))) > abs(exact):
        nearest = np.nextafter(nearest, type(nearest)(0))
    return float(nearest)
