"""The blob stream's transition table, and what its connection remembers: which pieces are there, and which are due."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_DATA_FRAME_BYTES, MAX_PIECES_ASKED
from ..merkle import leaf_hash
from ..wire import Record
from ._messages import (
    MESSAGES,
    BlobDone,
    BlobDrop,
    BlobDropped,
    BlobGet,
    BlobGone,
    BlobHave,
    BlobHeld,
    BlobPiece,
    BlobWant,
)
from ._pieces import count_pieces, from_bitmap, piece_span, root_of

__all__ = ["TABLE", "BlobConnection", "BlobState"]


class BlobState(enum.Enum):
    """Where the dialogue stands. Who wants the blob is the requester, who holds it the provider."""

    IDLE = "idle"
    ASKED = "asked"  # the provider owes what it has
    OPEN = "open"
    DONE = "done"  # the requester wants nothing more; the provider's messages may have crossed that
    GONE = "gone"  # there was nothing


_S = BlobState
TABLE: Final[Table[BlobState]] = {
    Role.REQUESTER: {
        _S.IDLE: {BlobWant: _S.ASKED},
        _S.OPEN: {BlobGet: _S.OPEN, BlobDrop: _S.OPEN, BlobDone: _S.DONE},
    },
    Role.PROVIDER: {
        _S.ASKED: {BlobHave: _S.OPEN, BlobGone: _S.GONE},
        _S.OPEN: {BlobHeld: _S.OPEN, BlobPiece: _S.OPEN, BlobDropped: _S.OPEN},
        _S.DONE: {BlobHeld: _S.DONE, BlobPiece: _S.DONE, BlobDropped: _S.DONE},
    },
}


class BlobConnection(Connection[BlobState]):
    """One blob over one stream, as far as the provider has it.

    Besides the table it holds: the leaves are those of the root that was asked for; only pieces that the provider
    holds are asked for, each answered once, and no other is; a piece has its size, and its bytes hash to its leaf. So
    whoever sends something else has broken the protocol with that very piece, and what came before it is right.

    Attributes:
        want: what was asked for, once it was.
        leaves: the leaf hash of each piece, once they came.
        held: pieces that the provider has said it has.
        asked: pieces that were asked for and not answered.
    """

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.DONE, _S.GONE})
    max_frame_bytes = MAX_DATA_FRAME_BYTES

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.want: BlobWant | None = None
        self.leaves: tuple[bytes, ...] = ()
        self.held: set[int] = set()
        self.asked: set[int] = set()

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the base passes the sender
        match message:
            case BlobWant():
                self.want = message
            case BlobHave():
                self._have(message)
            case BlobHeld():
                self._check_index(message.index)
                if message.index in self.held:
                    raise LocalProtocolError(f"piece {message.index} was there already", code=WireCode.REPLAYED)
                self.held.add(message.index)
            case BlobGet():
                self._get(message.index)
            case BlobDrop():  # it may cross the piece, so the provider can't refuse it
                self._check_index(message.index)
            case BlobPiece():
                self._take(message)
            case BlobDropped():
                self._answer(message.index)
            case _:
                pass

    def _check_index(self, index: int) -> None:
        if index >= len(self.leaves):
            raise LocalProtocolError(f"piece {index} of {len(self.leaves)}", code=WireCode.UNKNOWN_CHUNK)

    def _have(self, message: BlobHave) -> None:
        assert self.want is not None  # the table lets nothing come before it
        if len(message.leaves) != count_pieces(self.want.size):
            raise LocalProtocolError(f"{len(message.leaves)} pieces of a blob of {self.want.size} bytes")
        if root_of(message.leaves) != self.want.root:
            raise LocalProtocolError("the pieces' hashes are not those of the root", code=WireCode.BAD_DIGEST)
        self.held = from_bitmap(message.held, len(message.leaves))
        self.leaves = message.leaves

    def _get(self, index: int) -> None:
        if index not in self.held:
            raise LocalProtocolError(f"piece {index} is not there", code=WireCode.UNKNOWN_CHUNK)
        if index in self.asked:
            raise LocalProtocolError(f"piece {index} was asked for already", code=WireCode.REPLAYED)
        if len(self.asked) >= MAX_PIECES_ASKED:
            raise LocalProtocolError("too many pieces under way", code=WireCode.OVERSIZED)
        self.asked.add(index)

    def _take(self, message: BlobPiece) -> None:
        if message.index not in self.asked:
            raise LocalProtocolError(f"piece {message.index} was not asked for", code=WireCode.UNKNOWN_CHUNK)
        assert self.want is not None
        if len(message.data) != piece_span(message.index, self.want.size)[1]:
            raise LocalProtocolError(f"a piece of {len(message.data)} bytes", code=WireCode.OVERSIZED)
        if leaf_hash(message.data) != self.leaves[message.index]:
            raise LocalProtocolError(f"piece {message.index} does not hash to its leaf", code=WireCode.BAD_DIGEST)
        self._answer(message.index)

    def _answer(self, index: int) -> None:
        if index not in self.asked:
            raise LocalProtocolError(f"piece {index} was not asked for", code=WireCode.UNKNOWN_CHUNK)
        self.asked.remove(index)
