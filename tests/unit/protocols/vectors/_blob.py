"""The blob stream: who holds which pieces, and the pieces."""

from __future__ import annotations

import hashlib
from typing import Final

from p2pcompute_protocols import blob

from ._material import Json, bad_message, edited, message, transcript

__all__ = ["ANOTHER", "LEAVES", "PIECES", "ROOT", "SIZE", "TICKET", "blob_vectors", "want"]

PIECE: Final = 256 * 1024
SIZE: Final = 2 * PIECE + 5
PIECES: Final = (bytes(PIECE), bytes(PIECE - 1) + b"\x01", b"hello")
TICKET: Final = hashlib.sha256(b"ticket").digest()
# By hand, from the text of the specification.
LEAVES: Final = tuple(hashlib.sha256(b"\x00" + piece).digest() for piece in PIECES)
ROOT: Final = hashlib.sha256(b"\x01" + hashlib.sha256(b"\x01" + LEAVES[0] + LEAVES[1]).digest() + LEAVES[2]).digest()
ANOTHER: Final = hashlib.sha256(b"another").digest()


def want(**changes: object) -> blob.BlobWant:
    values: dict[str, object] = {
        "digest": hashlib.sha256(b"".join(PIECES)).digest(),
        "size": SIZE,
        "root": ROOT,
        "ticket": TICKET,
    }
    return blob.BlobWant(**{**values, **changes})  # type: ignore[arg-type]


def blob_vectors() -> Json:
    asked = want()
    have = blob.BlobHave(leaves=LEAVES, held=b"\x05")
    get, last = blob.BlobGet(index=0), blob.BlobPiece(index=2, data=PIECES[2])
    accept = [
        message("want", asked),
        message("get", get),
        message("the last piece that a blob can have", blob.BlobGet(index=255)),
        message("drop", blob.BlobDrop(index=2)),
        message("done", blob.BlobDone()),
        message("two pieces of three are here", have),
        message("nothing is here yet", blob.BlobHave(leaves=LEAVES, held=b"\x00")),
        message("nine pieces take two bytes", blob.BlobHave(leaves=LEAVES * 3, held=b"\xff\x01")),
        message("one more is here", blob.BlobHeld(index=1)),
        message("the rest", last),
        message("a piece that is not sent", blob.BlobDropped(index=0, code=23)),
        message("nothing is to be had", blob.BlobGone(code=12, detail="")),
    ]
    reject = [
        bad_message("a want without a ticket", edited(asked, k4=None), "MALFORMED"),
        bad_message("a digest of 31 bytes", edited(asked, k1=bytes(31)), "OVERSIZED"),
        bad_message("a blob of no bytes", edited(asked, k2=0), "OVERSIZED"),
        bad_message("a blob above 64 MiB", edited(asked, k2=64 * 1024 * 1024 + 1), "OVERSIZED"),
        bad_message("a digest as text", edited(asked, k1="../../etc/passwd"), "MALFORMED"),
        bad_message("piece 256", edited(get, k1=256), "OVERSIZED"),
        bad_message("a piece of no bytes", edited(last, k2=b""), "OVERSIZED"),
        bad_message("a piece of 256 KiB and a byte", edited(last, k2=bytes(PIECE + 1)), "OVERSIZED"),
        bad_message("no leaves", edited(have, k1=[], k2=b"\x00"), "OVERSIZED"),
        bad_message("a bitmap of two bytes for three pieces", edited(have, k2=b"\x05\x00"), "MALFORMED"),
        bad_message("a bitmap of one byte for nine pieces", edited(have, k1=list(LEAVES * 3)), "MALFORMED"),
        bad_message("a bit behind the last piece", edited(have, k2=b"\x0d"), "MALFORMED"),
        bad_message("not sent for no reason", edited(blob.BlobDropped(index=0, code=23), k2=0), "OVERSIZED"),
        bad_message("an extension where there are none", edited(get, k1000=1), "MALFORMED"),
    ]
    r, v = "requester", "provider"
    opened = [(r, asked), (v, have)]
    transcripts = [
        transcript(
            "pieces, one of which comes later",
            [
                *opened,
                (r, get),
                (r, blob.BlobGet(index=2)),
                (v, last),
                (v, blob.BlobHeld(index=1)),
                (r, blob.BlobGet(index=1)),
                (v, blob.BlobDropped(index=0, code=13)),
                (r, blob.BlobDone()),
                (v, blob.BlobDropped(index=1, code=24)),
            ],
        ),
        transcript(
            "one is dropped and asked for again",
            [
                *opened,
                (r, blob.BlobGet(index=2)),
                (r, blob.BlobDrop(index=2)),
                (v, blob.BlobDropped(index=2, code=23)),
                (r, blob.BlobGet(index=2)),
                (v, last),
                (r, blob.BlobDone()),
            ],
        ),
        transcript(
            "a drop that crosses its piece",
            [*opened, (r, blob.BlobGet(index=2)), (v, last), (r, blob.BlobDrop(index=2)), (r, blob.BlobDone())],
        ),
        transcript("what crosses done", [*opened, (r, blob.BlobGet(index=2)), (r, blob.BlobDone()), (v, last)]),
        transcript("nothing", [(r, asked), (v, blob.BlobGone(code=12, detail=""))]),
        transcript("leaves of another root", [(r, want(root=ANOTHER)), (v, have, "BAD_DIGEST")]),
        transcript(
            "a leaf too few",
            [(r, asked), (v, blob.BlobHave(leaves=LEAVES[:2], held=b"\x01"), "MALFORMED")],
        ),
        transcript("a piece that is not there", [*opened, (r, blob.BlobGet(index=1), "UNKNOWN_CHUNK")]),
        transcript("a piece twice", [*opened, (r, get), (r, get, "REPLAYED")]),
        transcript("a drop beyond the last piece", [*opened, (r, blob.BlobDrop(index=3), "UNKNOWN_CHUNK")]),
        transcript("a piece that nobody asked for", [*opened, (v, last, "UNKNOWN_CHUNK")]),
        transcript(
            "a piece of other bytes",
            [*opened, (r, blob.BlobGet(index=2)), (v, blob.BlobPiece(index=2, data=b"jello"), "BAD_DIGEST")],
        ),
        transcript(
            "a short piece",
            [*opened, (r, get), (v, blob.BlobPiece(index=0, data=b"hello"), "OVERSIZED")],
        ),
        transcript("held already", [*opened, (v, blob.BlobHeld(index=0), "REPLAYED")]),
        transcript("held beyond the last", [*opened, (v, blob.BlobHeld(index=3), "UNKNOWN_CHUNK")]),
        transcript("a piece before the want", [(r, get, "OUT_OF_ORDER")]),
        transcript("gone in the middle", [*opened, (v, blob.BlobGone(code=24, detail=""), "OUT_OF_ORDER")]),
        transcript("a get behind done", [*opened, (r, blob.BlobDone()), (r, get, "OUT_OF_ORDER")]),
        transcript("a frame above the bound", [(r, b"\xc1\x80\x10", "OVERSIZED")]),
    ]
    return {"accept": accept, "reject": reject, "transcripts": transcripts}
