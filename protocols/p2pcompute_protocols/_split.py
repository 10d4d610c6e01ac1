"""Split inputs: cut into tiles, of which a chunk needs some. Which, follows from the agreement alone.

Tiles are numbered in C order. A thread at place g along a grid axis may read from g - halo to g + halo along the axis
of the array that runs with it, so the threads of a chunk read a box, its *window*; what lies beyond the array stands
for zeros, for the nearest element or for the other side, as the edge rule says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Final

from .errors import LocalProtocolError, WireCode
from .limits import MAX_CHUNK_TILES, MAX_HELD_TILE_BYTES, MAX_WINDOW_BYTES

if TYPE_CHECKING:
    from .work import ChunkWork, LaunchSpec, ProgramWork, SplitArg

__all__ = ["EDGES", "chunk_boxes", "chunk_tiles", "chunk_window_bytes", "launch_window_bytes"]

EDGES: Final = ("zero", "clamp", "wrap")

Box = tuple[tuple[int, int], ...]


def chunk_boxes(launch: LaunchSpec, first_block: int, blocks: int) -> Iterator[Box]:
    """Boxes of threads' places, (first, behind the last) along x, y and z, that a run of blocks is made of; at most
    five. Blocks are counted with x fastest."""
    gx, gy, _ = launch.grid
    while blocks:
        x, rest = first_block % gx, first_block // gx
        y, z = rest % gy, rest // gy
        if x or blocks < gx:
            size = (min(blocks, gx - x), 1, 1)
        elif y or blocks < gx * gy:
            size = (gx, min(blocks // gx, gy - y), 1)
        else:
            size = (gx, gy, blocks // (gx * gy))
        yield tuple(
            (at * width, (at + count) * width) for at, count, width in zip((x, y, z), size, launch.block, strict=True)
        )
        done = size[0] * size[1] * size[2]
        first_block += done
        blocks -= done


def chunk_window_bytes(work: ChunkWork | ProgramWork, index: int) -> int:
    """Bytes of the boxes around all that the chunk's threads may read, of all split inputs together."""
    found = list(chunk_boxes(work.launch, *work.chunk_range(index)))
    spans = [max(box[axis][1] for box in found) - min(box[axis][0] for box in found) for axis in range(3)]
    return sum(arg.item_bytes * _window_items(arg.shape, arg.axes, arg.halo, spans) for arg in work.splits.values())


def launch_window_bytes(
    launch: LaunchSpec, item_bytes: int, shape: Sequence[int], axes: Sequence[int], halo: Sequence[int]
) -> int:
    """Bytes of the box around all that the threads of a whole launch may read of one array."""
    spans = [count * width for count, width in zip(launch.grid, launch.block, strict=True)]
    return item_bytes * _window_items(shape, axes, halo, spans)


def _window_items(shape: Sequence[int], axes: Sequence[int], halo: Sequence[int], spans: Sequence[int]) -> int:
    """Elements of the box that threads read whose places cover `spans` along x, y and z."""
    size = 1
    for axis, length in enumerate(shape):
        size *= spans[axes[axis]] + 2 * halo[axis] if axis < len(axes) else length
    return size


def chunk_tiles(work: ChunkWork | ProgramWork, index: int) -> tuple[tuple[int, int], ...]:
    """The tiles that chunk `index` needs: (position of the argument, number of the tile), in ascending order.

    Raises:
        LocalProtocolError: OVERSIZED, more than `MAX_CHUNK_TILES`, `MAX_HELD_TILE_BYTES` or `MAX_WINDOW_BYTES`.
    """
    if (size := chunk_window_bytes(work, index)) > MAX_WINDOW_BYTES:
        raise LocalProtocolError(f"a chunk reads a window of {size} bytes", code=WireCode.OVERSIZED)
    found: list[tuple[int, int]] = []
    size = 0
    for position, arg in work.splits.items():
        numbers: set[int] = set()
        for box in chunk_boxes(work.launch, *work.chunk_range(index)):
            spans = [_spans(arg, axis, box) for axis in range(len(arg.shape))]
            several = 1
            for some in spans:
                several *= sum(map(len, some))
            if several > MAX_CHUNK_TILES:  # before any of them is named: there may be millions
                raise LocalProtocolError(f"a chunk needs {several} tiles", code=WireCode.OVERSIZED)
            for place in product(*({at for span in some for at in span} for some in spans)):
                numbers.add(arg.tile_number(place))
        found += [(position, number) for number in sorted(numbers)]
        size += sum(arg.tile_bytes(number) for number in numbers)
    if len(found) > MAX_CHUNK_TILES or size > MAX_HELD_TILE_BYTES:
        raise LocalProtocolError(f"a chunk needs {len(found)} tiles of {size} bytes", code=WireCode.OVERSIZED)
    return tuple(found)


def _spans(arg: SplitArg, axis: int, box: Box) -> Sequence[range]:
    """Tiles along an axis of the array that threads in a box may read."""
    length, tile = arg.shape[axis], arg.tile[axis]
    if axis >= len(arg.axes):
        return (range(-(-length // tile)),)
    low, high = box[arg.axes[axis]]
    low, high = low - arg.halo[axis], high + arg.halo[axis]
    if arg.edge == "clamp":
        low, high = min(max(low, 0), length - 1), min(max(high, 1), length)
    elif arg.edge == "zero":
        low, high = max(low, 0), min(high, length)
    elif high - low >= length:
        low, high = 0, length
    else:
        low, high = low % length, low % length + high - low
        if high > length:
            return range(low // tile, -(-length // tile)), range(-(-(high - length) // tile))
    return (range(low // tile, -(-high // tile)),) if low < high else ()
