"""The finished picture against the independent NumPy reference, pixel by pixel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import trio

from p2pcompute.testing._output_faults import parse_fault

from ._pathtracer import Scene
from ._pathtracer_reference import reference_pixels

__all__ = ["PictureCheck", "check_picture", "chunk_count", "places_of_chunks"]

Array: TypeAlias = np.ndarray[Any, Any]

_BATCH: Final = 256  # pixels between two looks at whether we are cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureCheck:
    """What was compared: pixels in all, those of suspect chunks among them, and how many differ."""

    checked: int
    suspect: int
    altered: int
    differ: int


def _blocks_per_chunk(scene: Scene, chunks: int) -> tuple[int, int]:
    blocks = scene.kernel.bind(*scene.args).launch.blocks
    return blocks, -(-blocks // chunks)


def chunk_count(scene: Scene, chunks: int) -> int:
    """How many chunks a call with ``chunks=…`` really makes: they are whole blocks, all of one size but the last."""
    blocks, per_chunk = _blocks_per_chunk(scene, chunks)
    return -(-blocks // per_chunk)


def places_of_chunks(scene: Scene, chunks: int, indexes: Collection[int], *, fault: str | None = None) -> Array:
    """The pixels of some chunks: int64 ``(n, 2)`` of row and column, in the picture's order.

    Args:
        scene: the scene.
        chunks: what the call was given as its number of chunks.
        indexes: which of them.
        fault: only the pixels that a provider with this fault alters.
    """
    picture = scene.picture
    marked = np.zeros((picture.height, picture.width, 3), np.uint8)
    binding = scene.kernel.bind(*scene.args)
    blocks, per_chunk = _blocks_per_chunk(scene, chunks)
    alter = parse_fault(fault) if fault is not None else None
    for index in indexes:
        first = index * per_chunk
        count = min(per_chunk, blocks - first)
        rows = np.ones((count * binding.launch.threads_per_block, 3), np.uint8)
        if alter is not None:
            rows -= 1
            rows = np.frombuffer(alter(rows.tobytes(), index), np.uint8).reshape(rows.shape)
        binding.layout.scatter(0, first, count, rows, marked)
    return np.argwhere(marked.any(axis=2))


async def check_picture(
    scene: Scene,
    picture: Array,
    *,
    pixels: int,
    chunks: int,
    suspect: Collection[int],
    lied: Collection[int] = (),
    fault: str | None = None,
) -> PictureCheck:
    """Compare pixels of a rendered picture with the reference, in a thread; cancellation ends it soon.

    Args:
        scene: what was rendered.
        picture: uint8 ``(height, width, 3)``.
        pixels: how many to take at random from all, and a quarter as many from the chunks in `suspect`.
        chunks: what the call was given as its number of chunks.
        suspect: chunks that a liar or a killed provider had to do with.
        lied: the chunks that a liar sent; every pixel that it altered is compared.
        fault: how it did that.
    """
    rng = np.random.default_rng()
    known = scene.picture
    everywhere = np.column_stack([rng.integers(0, known.height, pixels), rng.integers(0, known.width, pixels)])
    near = places_of_chunks(scene, chunks, suspect)
    near = near[rng.permutation(len(near))[: pixels // 4]]
    altered = places_of_chunks(scene, chunks, lied, fault=fault) if fault is not None else np.empty((0, 2), np.int64)
    places = np.unique(np.concatenate([everywhere, near, altered]), axis=0)
    differ = 0
    for at in range(0, len(places), _BATCH):
        ys, xs = places[at : at + _BATCH].T
        wanted = await trio.to_thread.run_sync(partial(reference_pixels, known, ys, xs))
        differ += int((picture[ys, xs] != wanted).any(axis=1).sum())
    return PictureCheck(checked=len(places), suspect=len(near), altered=len(altered), differ=differ)
