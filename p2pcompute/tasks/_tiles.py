"""A provider's tiles of split inputs: they come behind the chunk that needs them, and go when others need the room."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.execution._api import ArgSpec, Launch
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.task import BlobData, BlobStart, Held, HeldTiles, TaskConnection
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ChunkWork, ProgramWork, Work

from ._inputs import Input
from ._link import MIN_BYTES_PER_S
from ._windows import tile_pieces, windowed

__all__ = ["TaskTiles"]

_STALL_S: Final = 30.0  # between two pieces of a tile


class TaskTiles:
    """The tiles of one task, or the arrays of a standing agreement's calls. Which are held the connection knows; here
    are their bytes.

    Args:
        connection: the task's, in SETUP; it learns of the tiles here.
        work: the work.
        blobs: by digest, the blobs that it has, manifests among them.
        hold: told how many bytes more are held, or fewer where below 0; may refuse by an error of its own.

    Raises:
        LocalProtocolError: MALFORMED, a manifest is not as long as there are tiles.
    """

    def __init__(
        self, connection: TaskConnection, work: Work, blobs: Mapping[bytes, Input], *, hold: Callable[[int], None]
    ) -> None:
        self._connection = connection
        self._hold = hold
        self._content: dict[bytes, bytes] = {}
        self._digest = b""
        self._piece = bytearray()
        self._awaited: range | None = None
        self._until_s = math.inf
        self._work: ChunkWork | ProgramWork | None = None
        self._tiles: HeldTiles | None = None
        self._held: Held | None = connection.calls  # arrays of calls come and go as tiles do
        if isinstance(work, ChunkWork | ProgramWork) and work.splits:
            contents = {position: blobs[arg.manifest] for position, arg in work.splits.items()}
            manifests = {
                position: content if isinstance(content, bytes) else content.read()
                for position, content in contents.items()
            }
            self._work = work
            self._held = self._tiles = connection.tiles = HeldTiles(work, manifests)

    @property
    def awaited(self) -> bool:
        """Whether a chunk is assigned whose tiles have not all come."""
        return self._awaited is not None

    def content(self, digest: bytes) -> bytes:
        """The bytes of a tile that has come; KeyError where it has not."""
        return self._content[digest]

    async def receive(self, dialogue: Dialogue) -> Record:
        """The next message; where tiles are due, in the time that they may take.

        Raises:
            RemoteProtocolError: they came too slowly (STALLED); and as `Dialogue.receive`.
        """
        if self._awaited is None:
            return await dialogue.receive()
        with trio.move_on_at(self._until_s):
            return await dialogue.receive(stall_s=_STALL_S)
        raise RemoteProtocolError("the tiles of a chunk came too slowly", code=WireCode.STALLED)

    def assigned(self, chunks: range) -> bool:
        """Chunks were assigned; whether they can be computed at once. Tiles that had to make room are let go."""
        if self._held is None:
            return True
        held = self._held.held
        if len(self._content) + len(self._connection.needed) > len(held):
            gone = [digest for digest in self._content if digest not in held]
            self._hold(-sum(len(self._content.pop(digest)) for digest in gone))
        if not self._connection.needed:
            return True
        self._awaited = chunks
        size = sum(self._connection.blob_sizes.values())
        self._until_s = trio.current_time() + _STALL_S + size / MIN_BYTES_PER_S
        return False

    def take(self, message: BlobStart | BlobData) -> range | None:
        """A part of a tile; gives the chunks that can be computed now. The connection has checked what it is."""
        if isinstance(message, BlobStart):
            self._digest, self._piece = message.digest, bytearray()
            return None
        self._hold(len(message.data))
        self._piece += message.data
        if self._digest not in self._connection.needed:
            self._content[self._digest] = bytes(self._piece)
            self._piece = bytearray()
        if self._connection.needed:
            return None
        chunks, self._awaited = self._awaited, None
        return chunks

    def windowed(self, worker: Any, launch: Launch, specs: list[ArgSpec], items_per_block: int) -> Any:
        """`worker`, which has compiled the kernel, as one that gets its windows from these tiles."""
        if self._work is None or self._tiles is None:
            return worker
        pieces = tile_pieces(self._work, self._tiles, self._content.__getitem__)
        return windowed(worker, launch, specs, items_per_block, pieces)
