"""The part of a launch where a kernel at its border is not: code for it asks less.

A stencil tests its neighbours for lying in the array, or asks whether it is at the border at all. For all threads but
those of a narrow border the answers are the same. How wide that border is, is guessed from what `_index_ranges` found
for the whole launch; what holds inside of it is proved by asking it again about the inner threads alone. A wrong guess
proves nothing, and then there is no code apart.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute.execution._index_ranges import IndexRanges, Interval, index_ranges

__all__ = ["Interior", "find_interior"]

_MOST_MARGIN = 64  # threads: a border that is wider is no border


@dataclass(frozen=True, slots=True, kw_only=True)
class Interior:
    """Threads whose place along each grid axis is from `low` to below `high`, and what is known of them."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    ranges: IndexRanges


def find_interior(
    admitted: Admitted,
    launch: Launch,
    args: Sequence[ArgSpec],
    extents: tuple[int, int, int],
    integers: Collection[str],
    ranges: IndexRanges,
) -> Interior | None:
    """The inner part of a launch, if more is known of it than of the whole.

    Args:
        admitted, launch, args, extents, integers: as for `index_ranges`.
        ranges: what that gave for the whole launch.
    """
    margins = [0, 0, 0]
    for axes, wish in _wishes(admitted, args, ranges):
        for axis in axes or range(launch.dims):
            if 0 < wish <= min(_MOST_MARGIN, (extents[axis] - 1) // 2):
                margins[axis] = max(margins[axis], wish)
    low, high = [0, 0, 0], [1, 1, 1]
    for axis in range(launch.dims):
        low[axis], high[axis] = margins[axis], extents[axis] - margins[axis]
    if not any(margins):
        return None
    within = [(one, other - 1) for one, other in zip(low, high, strict=True)]
    inner = index_ranges(admitted, launch, args, extents, integers, within)
    if not _proved(admitted, args, inner) - _proved(admitted, args, ranges):
        return None
    return Interior(low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2]), ranges=inner)


def _wishes(admitted: Admitted, args: Sequence[ArgSpec], ranges: IndexRanges) -> Iterator[tuple[set[int], int]]:
    """By how much places along which axes had to be less, or more, for one test to be needless. No axes: it does not
    say which."""
    for part, length, interval in _indices(admitted, args, ranges):
        axes = _axes(admitted, part)
        yield axes, -interval[0]
        yield axes, interval[1] - (length - 1)
    for node in ast.walk(admitted.entry.node):
        if isinstance(node, ast.Compare):
            operands = ranges.compared.get(id(node), ())
            for op, one, other in zip(node.ops, operands, operands[1:], strict=False):
                if one is not None and other is not None and (one[0] != one[1] or other[0] != other[1]):
                    yield _axes(admitted, node), _least(op, one, other)


def _least(op: ast.cmpop, one: Interval, other: Interval) -> int:
    """The least shift of one of two intervals by which a comparison has one outcome; 0 where it has."""
    apart = max(0, min(one[1] - other[0] + 1, other[1] - one[0] + 1))  # so that they have no number in common
    match op:
        case ast.Lt() | ast.GtE():
            return max(0, min(one[1] - other[0] + 1, other[1] - one[0]))
        case ast.LtE() | ast.Gt():
            return max(0, min(one[1] - other[0], other[1] - one[0] + 1))
        case _:
            return apart


def _indices(
    admitted: Admitted, args: Sequence[ArgSpec], ranges: IndexRanges
) -> Iterator[tuple[ast.expr, int, Interval]]:
    """Indices of inputs: the expression, the length of its axis, its interval."""
    specs = dict(zip(admitted.entry.params, args, strict=True))
    for node in ast.walk(admitted.entry.node):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=index):
                spec = specs.get(name)
                found = ranges.sites.get(id(index))
                if not isinstance(spec, InputSpec) or found is None:
                    continue
                parts = index.elts if isinstance(index, ast.Tuple) else [index]
                for part, length, interval in zip(parts, spec.shape, found, strict=False):
                    if interval is not None:
                        yield part, length, interval
            case _:
                pass


def _axes(admitted: Admitted, node: ast.AST) -> set[int]:
    found = {grid_axis(inner, admitted.grid.variables) for inner in ast.walk(node) if isinstance(inner, ast.expr)}
    return {axis for axis in found if axis is not None}


def _proved(admitted: Admitted, args: Sequence[ArgSpec], ranges: IndexRanges) -> set[int]:
    """Ids of the indices and comparisons whose outcome is known."""
    found = {
        id(part)
        for part, length, interval in _indices(admitted, args, ranges)
        if interval[0] >= 0 and interval[1] < length
    }
    for node in ast.walk(admitted.entry.node):
        if isinstance(node, ast.Compare) and (ranges.holds(node) or ranges.fails(node)):
            found.add(id(node))
    return found
