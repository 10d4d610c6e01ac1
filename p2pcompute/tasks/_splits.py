"""A requester's split inputs: cut into tiles, named by their content, sent when a chunk needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import trio

from p2pcompute.errors import InputChanged, KernelTypeError
from p2pcompute.execution._api import InputSpec, Launch
from p2pcompute.execution._split import blocks_box
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.limits import MAX_SPLIT_BYTES, MAX_TILE_BYTES, MAX_TILES
from p2pcompute_protocols.work import SplitArg

__all__ = ["SplitInputs", "TiledInput", "along_rows", "tile_shape"]

_LEAST_BYTES: Final = 4 * 1024  # of a tile that we choose
_WANTED_BYTES: Final = 32 * 1024  # as far as a chunk is so large
_MOST_BYTES: Final = 512 * 1024
_PARTS: Final = 16  # tiles along each side of a chunk, at most
_IN_THREAD_BYTES: Final = 4 << 20


def tile_shape(spec: InputSpec, launch: Launch, blocks_per_chunk: int) -> tuple[int, ...]:
    """Lengths of tiles that suit chunks of so many blocks: flat ones, so that those beyond a chunk's sides are not much
    more than the halo, and long ones, so that there are not too many."""
    split = spec.split
    assert split is not None
    places = blocks_box(launch, 0, min(blocks_per_chunk, launch.blocks))
    tile, chunk = list(spec.shape), list(spec.shape)
    for axis, grid in enumerate(split.axes):
        low, high = places[grid]
        chunk[axis] = min(spec.shape[axis], high - low)
        tile[axis] = min(chunk[axis], -(-(high - low) // _PARTS))
    size = np.dtype(spec.dtype).itemsize

    def nbytes() -> int:
        return size * int(np.prod(tile, dtype=object))

    def tiles() -> int:
        return int(np.prod([-(-n // t) for n, t in zip(spec.shape, tile, strict=True)], dtype=object))

    for axis in range(len(tile)):
        while nbytes() > _MOST_BYTES and tile[axis] > 1:
            tile[axis] = -(-tile[axis] // 2)
    for least, lengths in ((_WANTED_BYTES, chunk), (_LEAST_BYTES, spec.shape)):
        for axis in reversed(range(len(tile))):
            while (nbytes() < least or tiles() > MAX_TILES) and tile[axis] < lengths[axis]:
                tile[axis] = min(lengths[axis], 2 * tile[axis])
    return tuple(tile)


def along_rows(blocks: int, grid: tuple[int, int, int]) -> int:
    """At most `blocks`, more than half as many, so that runs of as many keep to rows or planes of blocks where they
    can: a run from one row into the next reads both rows whole."""
    gx, gy, _ = grid
    if blocks < gx:
        return _divisor(gx, blocks)
    if blocks < gx * gy:
        return gx * _divisor(gy, blocks // gx)
    return blocks - blocks % (gx * gy)


def _divisor(of: int, most: int) -> int:
    return next((number for number in range(most, most // 2, -1) if of % number == 0), most)


class TiledInput:
    """One split argument in tiles.

    Attributes:
        arg: what goes over the wire; with a manifest that stands for none before `hash`.
        manifest: the tiles' digests one behind the other; none before `hash`.
    """

    def __init__(self, array: np.ndarray[Any, Any], arg: SplitArg) -> None:
        self.arg = arg
        self.manifest = b""
        self._array = array

    @classmethod
    def bare(
        cls, name: str, array: np.ndarray[Any, Any], spec: InputSpec, tile: tuple[int, ...], position: int
    ) -> TiledInput:
        """An argument whose tiles are not hashed yet; `position` keeps it apart from others.

        Raises:
            KernelTypeError: the array or its tiles are over a bound; says which.
        """
        split = spec.split
        assert split is not None
        try:
            arg = SplitArg(
                dtype=spec.dtype,
                shape=spec.shape,
                tile=tuple(min(t, n) for t, n in zip(tile, spec.shape, strict=True)),
                axes=split.axes,
                halo=split.halo,
                edge=split.edge,
                manifest=bytes([position]) * 32,
            )
        except LocalProtocolError as exc:
            raise KernelTypeError(
                f"{name} can't be split so: {exc}",
                instead=f"split at most {MAX_SPLIT_BYTES} bytes into at most {MAX_TILES} tiles of at most "
                f"{MAX_TILE_BYTES} bytes (tile=...)",
            ) from exc
        return cls(array, arg)

    async def hash(self) -> None:
        """Hash the tiles; of a large array in a thread, which is not abandoned on cancellation."""

        def digests() -> bytes:
            return b"".join(hashlib.sha256(self.tile(number)).digest() for number in range(self.arg.tiles))

        small = self._array.nbytes <= _IN_THREAD_BYTES
        self.manifest = digests() if small else await trio.to_thread.run_sync(digests)
        self.arg = replace(self.arg, manifest=hashlib.sha256(self.manifest).digest())

    def tile(self, number: int) -> bytes:
        """A tile's bytes."""
        part = self._array[tuple(slice(low, high) for low, high in self.arg.tile_box(number))]
        return part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()


class SplitInputs:
    """All split arguments of a task, by position, and their tiles by digest."""

    def __init__(self, inputs: Mapping[int, TiledInput]) -> None:
        self.inputs = dict(inputs)
        self._places: dict[bytes, tuple[int, int]] = {}
        for position, tiled in self.inputs.items():
            for number in range(len(tiled.manifest) // 32):
                self._places[tiled.manifest[32 * number : 32 * number + 32]] = (position, number)

    @property
    def manifests(self) -> dict[int, bytes]:
        """By position."""
        return {position: tiled.manifest for position, tiled in self.inputs.items()}

    def tile(self, digest: bytes) -> bytes:
        """The bytes of a tile; they are those of `digest`. Raises `KeyError` for what is no tile's digest.

        Raises:
            InputChanged: the array is not what it was.
        """
        position, number = self._places[digest]
        data = self.inputs[position].tile(number)
        if hashlib.sha256(data).digest() != digest:
            raise InputChanged(
                f"argument {position + 1} was written to while its task ran; leave a split array alone until the task "
                "has ended, or pass a copy"
            )
        return data
