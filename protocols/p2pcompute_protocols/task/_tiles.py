"""Which tiles of split inputs a provider holds."""

from __future__ import annotations

from collections.abc import Mapping

from .._split import chunk_tiles
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_ARGS, MAX_HELD_TILE_BYTES, MAX_TILES
from ..work import ChunkWork, ProgramWork
from ._held import Held

__all__ = ["HeldTiles"]


class HeldTiles(Held):
    """The tiles of one task's provider.

    Args:
        work: the work.
        manifests: SHA-256 of its tiles one behind the other, by position of the argument.

    Raises:
        LocalProtocolError: MALFORMED, a manifest of another length than the tiles have.
    """

    def __init__(self, work: ChunkWork | ProgramWork, manifests: Mapping[int, bytes]) -> None:
        super().__init__(MAX_HELD_TILE_BYTES, MAX_ARGS * MAX_TILES)
        for position, arg in work.splits.items():
            if len(manifests[position]) != arg.manifest_bytes:
                raise LocalProtocolError("a manifest of another length than the tiles have")
        self._work = work
        self._manifests = dict(manifests)

    def of_chunk(self, index: int) -> dict[tuple[int, int], bytes]:
        """(Position of the argument, number of the tile) to digest, of all tiles that a chunk needs.

        Raises:
            LocalProtocolError: OVERSIZED, they are more than may be held.
        """
        return {
            (position, number): self._manifests[position][32 * number : 32 * number + 32]
            for position, number in chunk_tiles(self._work, index)
        }

    def needs(self, index: int) -> dict[bytes, int]:
        splits = self._work.splits
        needs: dict[bytes, int] = {}
        for (position, number), digest in self.of_chunk(index).items():
            size = splits[position].tile_bytes(number)
            if needs.setdefault(digest, size) != size:
                raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        return needs
