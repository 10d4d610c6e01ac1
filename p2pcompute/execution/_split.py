"""Split inputs: of which part of an array a run of blocks takes hold, and how that part is put together. NumPy only.

A thread at place g along a grid axis may load from g - halo to g + halo along the array's axis that runs with it. So
what a run of blocks may load is a box, its *window*, which may reach beyond the array: the window is filled by the edge
rule there, when it is made, and compiled code knows of no edges. docs/strict.md, section 14, defines it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from p2pcompute.execution._api import Array, InputSpec, Launch, SplitSpec
from p2pcompute.execution._rows import boxes

__all__ = [
    "EDGES",
    "MAX_HALO",
    "Box",
    "Window",
    "axis_runs",
    "blocks_box",
    "check_window",
    "fill_window",
    "items_box",
    "run_boxes",
    "split_fault",
    "window_box",
]

EDGES: Final = ("zero", "clamp", "wrap")
MAX_HALO: Final = 2**20

Box = tuple[tuple[int, int], ...]
"""For each axis, the first place and the one behind the last."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a run is given of a split input. `origin`: the array's index of the window's first element, for each of the
    array's axes, below 0 where the window begins before the array. `values`: C-contiguous, of the array's dtype and as
    many axes."""

    origin: tuple[int, ...]
    values: Array


def split_fault(spec: InputSpec, dims: int) -> str | None:
    """What is wrong with the split of an input of a launch of `dims` axes, in words; None where nothing is."""
    split = spec.split
    assert split is not None
    if sorted(split.axes) != list(range(dims)):
        return f"it runs along the grid axes {split.axes}, not along each of {dims} once"
    if len(spec.shape) < dims:
        return f"it has {len(spec.shape)} axes and the grid {dims}"
    if len(split.halo) != dims or not all(0 <= halo <= MAX_HALO for halo in split.halo):
        return f"its halo is {split.halo}, not {dims} numbers from 0 to {MAX_HALO}"
    if split.edge not in EDGES:
        return f"its edge rule is {split.edge!r}, not one of {', '.join(EDGES)}"
    return None


def run_boxes(launch: Launch, first_block: int, blocks: int) -> Iterator[Box]:
    """Boxes of threads' places (x, y, z) that a run of blocks is made of; at most five."""
    for low, size in boxes(launch.grid, first_block, blocks):
        yield tuple(
            (at * width, (at + count) * width) for at, count, width in zip(low, size, launch.block, strict=True)
        )


def blocks_box(launch: Launch, first_block: int, blocks: int) -> Box:
    """The box around the places of a run of one block or more."""
    return _around(list(run_boxes(launch, first_block, blocks)))


def items_box(launch: Launch, ids: Array, items_per_block: int) -> Box:
    """The box around the places of the blocks that items by linear id (int64, one or more) are of."""
    rest = np.asarray(ids, dtype=np.int64) // items_per_block
    found: list[tuple[int, int]] = []
    for count, width in zip(launch.grid, launch.block, strict=True):
        rest, at = np.divmod(rest, count)
        found.append((int(at.min()) * width, (int(at.max()) + 1) * width))
    return tuple(found)


def _around(found: Sequence[Box]) -> Box:
    return tuple(
        (min(box[axis][0] for box in found), max(box[axis][1] for box in found)) for axis in range(len(found[0]))
    )


def window_box(spec: InputSpec, places: Box) -> Box:
    """The part of the array, and of what lies beyond its edges, that threads at `places` may load."""
    split = _split(spec)
    leading = [
        (places[axis][0] - halo, places[axis][1] + halo) for axis, halo in zip(split.axes, split.halo, strict=True)
    ]
    return (*leading, *((0, length) for length in spec.shape[len(leading) :]))


def check_window(name: str, spec: InputSpec, window: Window, places: Box) -> None:
    """Compiled code tests no index that was proved to stay inside: so a window has to hold all that it may load.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(window, Window) or window.values.dtype != np.dtype(spec.dtype):
        raise ValueError(f"{name} is split: a window of {spec.dtype} is wanted")
    shape = window.values.shape
    if len(shape) != len(spec.shape) or len(window.origin) != len(shape):
        raise ValueError(f"the window of {name} has {len(shape)} axes, not {len(spec.shape)}")
    due = window_box(spec, places)
    leading = len(_split(spec).axes)
    for axis, ((low, high), start, length) in enumerate(zip(due, window.origin, shape, strict=True)):
        if start > low or start + length < high or (axis >= leading and (start or length != spec.shape[axis])):
            raise ValueError(f"the window of {name} has {start} to {start + length} along axis {axis} for {low}-{high}")


def axis_runs(low: int, high: int, length: int, edge: str) -> Iterator[tuple[int, int, int, int]]:
    """How an axis of a window from `low` to `high` is filled from an array's axis of `length`, in order: (place in the
    window, how many, the array's index, its step). A step of 0 says that one element fills them all; what is left out
    is zero, or with "wrap" the same again. There are three at most."""
    if edge == "wrap":
        at, high = low, min(high, low + length)
        while at < high:
            index = at % length
            count = min(high - at, length - index)
            yield at - low, count, index, 1
            at += count
        return
    inside = (max(low, 0), min(high, length))
    if edge == "clamp" and low < 0:
        yield 0, min(high, 0) - low, 0, 0
    if inside[0] < inside[1]:
        yield inside[0] - low, inside[1] - inside[0], inside[0], 1
    if edge == "clamp" and high > length:
        start = max(low, length)
        yield start - low, high - start, length - 1, 0


def fill_window(spec: InputSpec, box: Box, pieces: Iterable[tuple[Sequence[int], Array]]) -> Window:
    """Put a window together.

    Args:
        spec: the split input.
        box: as `window_box` gives it.
        pieces: parts of the array, each with its first element's index; what none of them has stays zero.
    """
    split = _split(spec)
    values = np.zeros([high - low for low, high in box], np.dtype(spec.dtype))
    runs: list[list[tuple[int, int, int, int]]] = []
    for axis, ((low, high), length) in enumerate(zip(box, spec.shape, strict=True)):
        edge = split.edge if axis < len(split.axes) else "zero"
        runs.append(list(axis_runs(low, high, length, edge)))
    for first, piece in pieces:
        parts = [
            [part for run in runs[axis] if (part := _overlap(run, first[axis], piece.shape[axis])) is not None]
            for axis in range(piece.ndim)
        ]
        for chosen in product(*parts):
            into = tuple(to for to, _ in chosen)
            values[into] = piece[tuple(source for _, source in chosen)]
    if split.edge == "wrap":
        for axis in range(len(split.axes)):
            _repeat(np.moveaxis(values, axis, 0), spec.shape[axis])
    return Window(origin=tuple(low for low, _ in box), values=values)


def _repeat(values: Array, period: int) -> None:
    """Fill an axis from its first `period` elements, twice as many each time: not one by one, they may be millions."""
    done, width = period, values.shape[0]
    while done < width:
        count = min(done, width - done)
        values[done : done + count] = values[:count]
        done += count


def _overlap(run: tuple[int, int, int, int], first: int, length: int) -> tuple[slice, slice] | None:
    """Where a run of an axis meets a piece: in the window, and in the piece; one element there spreads by itself."""
    at, count, index, step = run
    if step == 0:
        inside = first <= index < first + length
        return (slice(at, at + count), slice(index - first, index - first + 1)) if inside else None
    low, high = max(index, first), min(index + count, first + length)
    if low >= high:
        return None
    return slice(at + low - index, at + high - index), slice(low - first, high - first)


def _split(spec: InputSpec) -> SplitSpec:
    assert spec.split is not None
    return spec.split
