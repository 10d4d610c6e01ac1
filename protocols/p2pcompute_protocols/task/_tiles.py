"""Which tiles of split inputs a provider holds: both sides know it, without a word about it.

What is held follows from the chunks that were assigned and their order, which both sides have seen: a chunk's tiles
come behind its Assign, those that are not held, and the least recently used make room. So no tile is asked for, none is
sent twice while it is needed, and none can come that nobody needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from .._split import chunk_tiles
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_HELD_TILE_BYTES
from ..work import ChunkWork, ProgramWork

__all__ = ["HeldTiles"]


class HeldTiles:
    """The tiles of one task's provider.

    Args:
        work: the work.
        manifests: SHA-256 of its tiles one behind the other, by position of the argument.

    Raises:
        LocalProtocolError: MALFORMED, a manifest of another length than the tiles have.
    """

    def __init__(self, work: ChunkWork | ProgramWork, manifests: Mapping[int, bytes]) -> None:
        for position, arg in work.splits.items():
            if len(manifests[position]) != arg.manifest_bytes:
                raise LocalProtocolError("a manifest of another length than the tiles have")
        self._work = work
        self._manifests = dict(manifests)
        self._held: OrderedDict[bytes, int] = OrderedDict()  # digest -> size, the least recently used first
        self._used: dict[int, frozenset[bytes]] = {}  # by the chunks that are under way

    @property
    def held(self) -> Mapping[bytes, int]:
        """Digest to size of the tiles that are held, or are to come."""
        return self._held

    def of_chunk(self, index: int) -> dict[tuple[int, int], bytes]:
        """(Position of the argument, number of the tile) to digest, of all tiles that a chunk needs.

        Raises:
            LocalProtocolError: OVERSIZED, they are more than may be held.
        """
        return {
            (position, number): self._manifests[position][32 * number : 32 * number + 32]
            for position, number in chunk_tiles(self._work, index)
        }

    def fits(self, index: int) -> bool:
        """Whether the chunk may be assigned: its tiles leave room for those of the chunks that are under way."""
        try:
            self._plan(index)
        except LocalProtocolError:
            return False
        return True

    def assign(self, index: int) -> dict[bytes, int]:
        """The chunk is assigned: digest to size of the tiles that come now.

        Raises:
            LocalProtocolError: OVERSIZED, they can't be held beside those of the chunks that are under way; nothing has
                changed.
        """
        needs, missing, gone = self._plan(index)
        for digest in gone:
            del self._held[digest]
        for digest, size in needs.items():
            self._held[digest] = size
            self._held.move_to_end(digest)
        self._used[index] = frozenset(needs)
        return missing

    def answered(self, index: int) -> None:
        """The chunk is not under way any more."""
        self._used.pop(index, None)

    def _plan(self, index: int) -> tuple[dict[bytes, int], dict[bytes, int], list[bytes]]:
        splits = self._work.splits
        needs: dict[bytes, int] = {}
        for (position, number), digest in self.of_chunk(index).items():
            size = splits[position].tile_bytes(number)
            if needs.setdefault(digest, size) != size or self._held.get(digest, size) != size:
                raise LocalProtocolError("one digest with two sizes", code=WireCode.BAD_DIGEST)
        missing = {digest: size for digest, size in needs.items() if digest not in self._held}
        over = sum(self._held.values()) + sum(missing.values()) - MAX_HELD_TILE_BYTES
        used = frozenset[bytes]().union(*self._used.values())
        gone: list[bytes] = []
        for digest, size in self._held.items():
            if over <= 0:
                break
            if digest in needs:
                continue
            if digest in used:
                raise LocalProtocolError("tiles of a chunk that is under way would have to go", code=WireCode.OVERSIZED)
            gone.append(digest)
            over -= size
        return needs, missing, gone
