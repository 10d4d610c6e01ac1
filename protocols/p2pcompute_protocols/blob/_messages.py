"""What is said on a blob stream. Who wants the blob opens it and is the requester; who holds it is the provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..limits import MAX_BLOB_BYTES, MAX_PIECES, MAX_TEXT
from ..wire import Array, Bytes, Record, Text, Uint, record, wire
from ._pieces import PIECE_BYTES, from_bitmap

__all__ = [
    "MESSAGES",
    "PROTOCOL_ID",
    "BlobDone",
    "BlobDrop",
    "BlobDropped",
    "BlobGet",
    "BlobGone",
    "BlobHave",
    "BlobHeld",
    "BlobPiece",
    "BlobWant",
]

PROTOCOL_ID: Final = "/p2pcompute/blob/1"


@record
class BlobWant(Record):
    """Requester: this blob is wanted. The ticket says that its owner lets us have it from you."""

    TYPE = 1
    digest: bytes = wire(1, Bytes(32))
    size: int = wire(2, Uint(1, MAX_BLOB_BYTES))
    root: bytes = wire(3, Bytes(32))
    ticket: bytes = wire(4, Bytes(32))


@record
class BlobGet(Record):
    """Requester: send this piece, one of those that you hold."""

    TYPE = 2
    index: int = wire(1, Uint(0, MAX_PIECES - 1))


@record
class BlobDrop(Record):
    """Requester: this piece is not needed any more; it may be on its way already."""

    TYPE = 3
    index: int = wire(1, Uint(0, MAX_PIECES - 1))


@record
class BlobDone(Record):
    """Requester: nothing more is wanted. What crosses it is read and means nothing."""

    TYPE = 4


@record
class BlobHave(Record):
    """Provider: the leaf hash of each piece, and a bitmap of the pieces that are here."""

    TYPE = 17
    leaves: tuple[bytes, ...] = wire(1, Array(Bytes(32), MAX_PIECES, 1))
    held: bytes = wire(2, Bytes(1, MAX_PIECES // 8))

    def validate(self) -> None:
        from_bitmap(self.held, len(self.leaves))


@record
class BlobHeld(Record):
    """Provider: this piece is here now as well."""

    TYPE = 18
    index: int = wire(1, Uint(0, MAX_PIECES - 1))


@record
class BlobPiece(Record):
    """Provider: a piece that was asked for."""

    TYPE = 19
    index: int = wire(1, Uint(0, MAX_PIECES - 1))
    data: bytes | memoryview = wire(2, Bytes(1, PIECE_BYTES, bulk=True))


@record
class BlobDropped(Record):
    """Provider: this piece, which was asked for, is not sent: it was dropped (CANCELLED), or for another reason."""

    TYPE = 20
    index: int = wire(1, Uint(0, MAX_PIECES - 1))
    code: int = wire(2, Uint(1, 255))


@record
class BlobGone(Record):
    """Provider: nothing of this blob is to be had here with this ticket."""

    TYPE = 21
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls
    for cls in (BlobWant, BlobGet, BlobDrop, BlobDone, BlobHave, BlobHeld, BlobPiece, BlobDropped, BlobGone)
}
