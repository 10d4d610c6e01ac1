"""Windows of split inputs for whoever runs a kernel: from whole arrays at a requester, from tiles everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import trio

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch
from p2pcompute.execution._split import Box, Window, blocks_box, fill_window, items_box, window_box
from p2pcompute_protocols.task import HeldTiles
from p2pcompute_protocols.work import ChunkWork, ProgramWork, SplitArg

from ._api import ChunkRun, TaskWorker

__all__ = ["Pieces", "WindowedWorker", "array_pieces", "tile_pieces", "windowed"]

Array: TypeAlias = np.ndarray[Any, Any]
Pieces: TypeAlias = Callable[[int, int], Iterable[tuple[Sequence[int], Array]]]
"""(Position of a split argument, first block of a run) to parts of the array that hold what the run may load."""

_IN_THREAD_BYTES: Final = 8 << 20


def array_pieces(arrays: Mapping[int, Array]) -> Pieces:
    """Of whole arrays, by position."""
    return lambda position, _first: [((0,) * arrays[position].ndim, arrays[position])]


def tile_pieces(work: ChunkWork | ProgramWork, tiles: HeldTiles, content: Callable[[bytes], bytes]) -> Pieces:
    """Of tiles by digest, those that the chunk has in which a run lies."""
    splits = work.splits

    def pieces(position: int, first_block: int) -> list[tuple[Sequence[int], Array]]:
        arg = splits[position]
        return [
            _tile(arg, number, content(digest))
            for (place, number), digest in tiles.of_chunk(first_block // work.blocks_per_chunk).items()
            if place == position
        ]

    return pieces


def _tile(arg: SplitArg, number: int, data: bytes) -> tuple[Sequence[int], Array]:
    box = arg.tile_box(number)
    values = np.frombuffer(data, dtype=np.dtype(arg.dtype).newbyteorder("<"))
    return tuple(low for low, _ in box), values.reshape([high - low for low, high in box])


def windowed(worker: Any, launch: Launch, specs: Sequence[ArgSpec], items_per_block: int, pieces: Pieces) -> Any:
    """`worker`, which has compiled a kernel for these arguments; where some are split, one that gets its windows."""
    splits = {
        position: spec for position, spec in enumerate(specs) if isinstance(spec, InputSpec) and spec.split is not None
    }
    return WindowedWorker(worker, launch, splits, items_per_block, pieces) if splits else worker


class WindowedWorker:
    """A worker that is given what a run may load of split inputs before it runs. Made by `windowed`."""

    def __init__(
        self, worker: TaskWorker, launch: Launch, splits: Mapping[int, InputSpec], items_per_block: int, pieces: Pieces
    ) -> None:
        self._worker: Any = worker
        self._launch = launch
        self._splits = splits
        self._items_per_block = items_per_block
        self._pieces = pieces

    @property
    def usable(self) -> bool:
        """As `WorkerSession.usable`."""
        return bool(self._worker.usable)

    async def run_blocks(
        self, first_block: int, blocks: int, *, timeout_s: float, progress: Callable[[int], None] | None = None
    ) -> ChunkRun:
        """As `WorkerSession.run_blocks`."""
        windows = await self._windows(blocks_box(self._launch, first_block, blocks), first_block)
        run: ChunkRun = await self._worker.run_blocks(
            first_block, blocks, timeout_s=timeout_s, progress=progress, windows=windows
        )
        return run

    async def run_threads(self, threads: Any, *, timeout_s: float) -> ChunkRun:
        """As `WorkerSession.run_threads`."""
        first = int(threads.min()) // self._items_per_block
        windows = await self._windows(items_box(self._launch, threads, self._items_per_block), first)
        run: ChunkRun = await self._worker.run_threads(threads, timeout_s=timeout_s, windows=windows)
        return run

    async def _windows(self, places: Box, first_block: int) -> dict[int, Window]:
        found: dict[int, Window] = {}
        for position, spec in self._splits.items():
            box = window_box(spec, places)
            size = np.dtype(spec.dtype).itemsize
            for low, high in box:
                size *= high - low
            fill = partial(self._fill, position, spec, box, first_block)
            found[position] = fill() if size <= _IN_THREAD_BYTES else await trio.to_thread.run_sync(fill)
        return found

    def _fill(self, position: int, spec: InputSpec, box: Box, first_block: int) -> Window:
        return fill_window(spec, box, self._pieces(position, first_block))
