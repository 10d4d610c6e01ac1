"""What is particular to a requester's tasks with split inputs: chunks that suit them, windows for our own worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import trio

from p2pcompute._split import Split
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import InputSpec, OutputSpec
from p2pcompute.execution._split import blocks_box, window_box
from p2pcompute.tasks._splits import SplitInputs, TiledInput, along_rows, tile_shape
from p2pcompute.tasks._windows import array_pieces, tile_pieces, windowed
from p2pcompute.tasks._work import chunk_work, program_work, row_bytes
from p2pcompute_protocols._split import chunk_tiles
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.limits import MAX_CHUNK_TILES, MAX_CHUNKS, MAX_HELD_TILE_BYTES, MAX_WINDOW_BYTES
from p2pcompute_protocols.task import HeldTiles
from p2pcompute_protocols.work import ChunkWork, OutArg, ProgramWork, Work, WorkArg

if TYPE_CHECKING:
    from p2pcompute.kernel import Binding

__all__ = [
    "Cut",
    "block_output_bytes",
    "cut_with_splits",
    "has_splits",
    "some_items",
    "windowed_worker",
]

_CHUNKS_A_TURN: Final = 256
_REGION_BYTES: Final = 8 * 1024 * 1024  # of windows, where a calibration runs


@dataclass(frozen=True, slots=True)
class Cut:
    """Work, the blobs that it names, and its split inputs. `most_tile_bytes`: what a chunk's tiles come to at most."""

    work: Work
    blobs: dict[bytes, bytes] = field(repr=False)
    splits: SplitInputs | None = field(default=None, repr=False)
    most_tile_bytes: int = 0


def has_splits(binding: Binding) -> bool:
    """Whether an argument is split."""
    return any(isinstance(value, Split) for value in binding.values)


def block_output_bytes(binding: Binding) -> int:
    """Bytes that one block, or one item of a program, writes, over all outputs."""
    layout = binding.layout
    outs = [OutArg(dtype=spec.dtype, shape=spec.shape, reduce=spec.reduce) for spec in layout.outputs]
    return layout.items_per_block * row_bytes(outs, layout.row_shapes)


def _split_arguments(binding: Binding) -> dict[int, tuple[InputSpec, Split]]:
    found: dict[int, tuple[InputSpec, Split]] = {}
    values = iter(binding.values)
    for position, spec in enumerate(binding.specs):
        if isinstance(spec, OutputSpec):
            continue
        value = next(values)
        if isinstance(spec, InputSpec) and isinstance(value, Split):
            found[position] = (spec, value)
    return found


def windowed_worker(worker: Any, binding: Binding, cut: Cut | None = None) -> Any:
    """Our own worker, which has compiled the kernel, with windows from the arrays that we have whole. Once the work is
    cut, from their tiles, each of which is hashed again: an array that was written to meanwhile would make liars of
    honest providers."""
    arrays = {position: value.array for position, (_, value) in _split_arguments(binding).items()}
    if worker is None or not arrays:
        return worker
    pieces = array_pieces(arrays)
    if cut is not None and cut.splits is not None and isinstance(cut.work, ChunkWork | ProgramWork):
        pieces = tile_pieces(cut.work, HeldTiles(cut.work, cut.splits.manifests), cut.splits.tile)
    return windowed(worker, binding.launch, binding.specs, binding.layout.items_per_block, pieces)


def some_items(binding: Binding, rng: np.random.Generator) -> tuple[int, int]:
    """Items among which a calibration draws some: the first one, and how many. All of them; where inputs are split, a
    run of blocks from anywhere, since its windows have to be made."""
    launch, items = binding.launch, binding.layout.items_per_block
    splits = [spec for spec, _ in _split_arguments(binding).values()]
    blocks = launch.blocks
    while splits and blocks > 1 and _window_bytes(binding, splits, blocks) > _REGION_BYTES:
        blocks = -(-blocks // 2)
    first = int(rng.integers(0, launch.blocks - blocks + 1))
    return first * items, blocks * items


def _window_bytes(binding: Binding, splits: list[InputSpec], blocks: int) -> int:
    places = blocks_box(binding.launch, 0, blocks)
    return sum(
        np.dtype(spec.dtype).itemsize * math.prod(high - low for low, high in window_box(spec, places))
        for spec in splits
    )


async def cut_with_splits(binding: Binding, blocks_per_chunk: int, block_units: float, *, exactly: bool) -> Cut:
    """The wire form of a launch, or of calls of a program, with split inputs.

    Args:
        binding: the kernel or program and its arguments.
        blocks_per_chunk: blocks of a chunk, or items; fewer where their windows and tiles would be over a bound.
        block_units: units of one block.
        exactly: not fewer only because they suit the split inputs better.

    Raises:
        KernelTypeError: what one block reads is over a bound.
        LocalProtocolError: the work is over another bound of the protocol (OVERSIZED).
    """
    launch, arguments = binding.launch, _split_arguments(binding)
    per_chunk = blocks_per_chunk if exactly else along_rows(blocks_per_chunk, launch.grid)
    work: ChunkWork | ProgramWork | None = None
    blobs: dict[bytes, bytes] = {}
    while True:
        tiled = {
            position: TiledInput.bare(
                f"argument {binding.argument(position) + 1}",
                value.array,
                spec,
                value.tile or tile_shape(spec, launch, per_chunk),
                position,
            )
            for position, (spec, value) in arguments.items()
        }
        units = max(1, math.ceil(block_units * per_chunk))
        if work is None and binding.program is not None:
            work, blobs = program_work(
                binding, items_per_chunk=per_chunk, units_per_chunk=units, splits=SplitInputs(tiled)
            )
        elif work is None:
            work, blobs = chunk_work(
                binding, blocks_per_chunk=per_chunk, units_per_chunk=units, splits=SplitInputs(tiled)
            )
        elif isinstance(work, ProgramWork):
            work = replace(work, items_per_chunk=per_chunk, units_per_chunk=units, args=_with_splits(work, tiled))
        else:
            work = replace(
                work,
                blocks_per_chunk=per_chunk,
                units_per_chunk=units,
                chunk_output_bytes=per_chunk * block_output_bytes(binding),
                args=_with_splits(work, tiled),
            )
        most, fault = await _most_tile_bytes(work)
        if fault is None:
            break
        if per_chunk == 1 or -(-launch.blocks // (per_chunk // 2)) > MAX_CHUNKS:
            raise KernelTypeError(
                f"what {'a block' if binding.program is None else 'an item'} reads of split inputs is over a bound of "
                f"the protocol: {fault}",
                instead="give it a smaller halo, blocks of fewer threads, or other tiles (tile=...)",
            )
        per_chunk //= 2
    names = {one.arg.manifest for one in tiled.values()}
    for one in tiled.values():
        await one.hash()
    work = replace(work, args=_with_splits(work, tiled))
    blobs = {digest: data for digest, data in blobs.items() if digest not in names}
    blobs.update({one.arg.manifest: one.manifest for one in tiled.values()})
    return Cut(work, blobs, SplitInputs(tiled), most)


def _with_splits(work: ChunkWork | ProgramWork, tiled: dict[int, TiledInput]) -> tuple[WorkArg, ...]:
    return tuple(tiled[position].arg if position in tiled else arg for position, arg in enumerate(work.args))


async def _most_tile_bytes(work: ChunkWork | ProgramWork) -> tuple[int, LocalProtocolError | None]:
    """What the tiles of a chunk come to at most, over all chunks; or why the first is over a bound."""
    if (bound := _bound(work)) is not None:
        return bound, None
    most, splits = 0, work.splits
    for index in range(work.chunks):
        if index % _CHUNKS_A_TURN == 0:
            await trio.lowlevel.checkpoint()
        try:
            found = chunk_tiles(work, index)
        except LocalProtocolError as exc:
            return most, exc
        most = max(most, sum(splits[position].tile_bytes(number) for position, number in found))
    return most, None


def _bound(work: ChunkWork | ProgramWork) -> int | None:
    """At most so many bytes of tiles a chunk, all within the bounds of the protocol; None where that is not seen
    without looking at each. Chunks that are a part of a row of blocks, whole rows or whole planes are all alike."""
    gx, gy, gz = work.launch.grid
    blocks = min(work.blocks_per_chunk, work.launch.blocks)
    if gx % blocks == 0 or gy * gz == 1:
        size = (blocks, 1, 1)
    elif blocks % gx == 0 and (gz == 1 or gy % (blocks // gx) == 0):
        size = (gx, blocks // gx, 1)
    elif blocks % (gx * gy) == 0:
        size = (gx, gy, blocks // (gx * gy))
    else:
        return None
    total = window = several = 0
    for arg in work.splits.values():
        tiles = 1
        read = arg.item_bytes
        for axis, (length, tile) in enumerate(zip(arg.shape, arg.tile, strict=True)):
            if axis < len(arg.axes):
                grid = arg.axes[axis]
                span = size[grid] * work.launch.block[grid] + 2 * arg.halo[axis]
                read *= span
                # It begins anywhere in a tile; where it wraps around, anywhere in the last one as well.
                tiles *= min(-(-length // tile), -(-(span - 1) // tile) + (2 if arg.edge == "wrap" else 1))
            else:
                read *= length
                tiles *= -(-length // tile)
        window += read
        several += tiles
        total += tiles * arg.tile_bytes(0)
    return total if several <= MAX_CHUNK_TILES and total <= MAX_HELD_TILE_BYTES and window <= MAX_WINDOW_BYTES else None
