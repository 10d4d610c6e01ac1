"""A hundred thousand mutants of what is said on blob streams: refused, or another message in its only form."""

from __future__ import annotations

import random

import pytest

from p2pcompute_protocols import blob
from p2pcompute_protocols.blob import BlobConnection, bitmap, count_pieces, from_bitmap, leaves_of, root_of
from p2pcompute_protocols.connection import NEED_DATA, Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.limits import MAX_BLOB_BYTES, MAX_PIECES
from p2pcompute_protocols.merkle import MerkleTree
from p2pcompute_protocols.wire import decode_message

from .._mutants import MUTANTS, SEED, mutants
from ._network import TICKET, name_of, some_bytes

PIECE = blob.PIECE_BYTES
SHORT = some_bytes(300)
MESSAGES = [
    name_of(SHORT).want(TICKET),
    blob.BlobGet(index=0),
    blob.BlobDrop(index=255),
    blob.BlobDone(),
    blob.BlobHave(leaves=leaves_of(SHORT), held=b"\x01"),
    blob.BlobHave(leaves=leaves_of(some_bytes(9 * PIECE)), held=b"\xff\x01"),
    blob.BlobHeld(index=3),
    blob.BlobPiece(index=0, data=SHORT),
    blob.BlobDropped(index=0, code=23),
    blob.BlobGone(code=12, detail="not to be had here"),
]


def test_mutants_of_messages() -> None:
    taken = 0
    for data in mutants([message.encode() for message in MESSAGES]):
        try:
            message = decode_message(data, blob.MESSAGES, max_bytes=BlobConnection.max_frame_bytes)
        except LocalProtocolError:
            continue
        taken += 1
        assert message.encode() == data, data.hex()
    assert taken > MUTANTS // 100  # they are not so broken that nothing is tried


def test_mutants_of_streams() -> None:
    """Mutants of a whole dialogue give the same events however they are split, and never anything but a fault of the
    peer's."""
    chance = random.Random(SEED)
    said = [
        (Role.PROVIDER, blob.BlobHave(leaves=leaves_of(SHORT), held=b"\x00")),
        (Role.PROVIDER, blob.BlobHeld(index=0)),
        (Role.PROVIDER, blob.BlobPiece(index=0, data=SHORT)),
    ]
    stream = b"".join(frame(message.encode(), max_bytes=1 << 20) for _, message in said)

    def events(data: bytes, cuts: list[int]) -> list[object]:
        connection = BlobConnection(Role.REQUESTER)
        connection.send(name_of(SHORT).want(TICKET))
        heard: list[object] = []
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            try:
                if begin < end:
                    connection.receive_data(data[begin:end])
                while (event := connection.next_event()) is not NEED_DATA:
                    heard.append(event)
                    if isinstance(event, blob.BlobHeld) and 0 not in connection.asked:
                        connection.send(blob.BlobGet(index=0))
            except RemoteProtocolError as exc:
                return [*heard, exc.code]
        return heard

    assert len(events(stream, [])) == 3
    for cut in range(1, len(stream)):
        assert events(stream, [cut]) == events(stream, [])
    for data in mutants([stream], MUTANTS // 20):
        cuts = sorted(chance.choices(range(len(data) + 1), k=3))
        whole = events(data, [])
        assert events(data, cuts) == whole


def test_an_end_in_the_middle_is_a_fault_and_an_end_at_the_end_is_none() -> None:
    connection = BlobConnection(Role.PROVIDER)
    connection.receive_data(frame(name_of(SHORT).want(TICKET).encode(), max_bytes=1 << 20))
    connection.next_event()
    connection.receive_data(b"")
    with pytest.raises(ProtocolError):
        connection.next_event()
    fresh = BlobConnection(Role.PROVIDER)
    fresh.receive_data(b"")
    assert isinstance(fresh.next_event(), StreamEnded)


@pytest.mark.parametrize("size", [1, 2, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 7])
def test_roots_are_those_of_the_merkle_tree(size: int) -> None:
    data = some_bytes(size)
    pieces = [data[at : at + PIECE] for at in range(0, size, PIECE)]
    assert count_pieces(size) == len(pieces)
    assert root_of(leaves_of(data)) == MerkleTree(pieces).root


def test_the_largest_blob_has_as_many_pieces_as_there_may_be() -> None:
    assert count_pieces(MAX_BLOB_BYTES) == MAX_PIECES


@pytest.mark.parametrize("count", [1, 7, 8, 9, 255, 256])
def test_bitmaps(count: int) -> None:
    rng = random.Random(count)
    for _ in range(20):
        held = set(rng.sample(range(count), rng.randint(0, count)))
        assert from_bitmap(bitmap(held, count), count) == held
    with pytest.raises(LocalProtocolError):
        from_bitmap(bitmap(range(count), count) + b"\0", count)
    if count % 8:
        with pytest.raises(LocalProtocolError):
            from_bitmap(bytes(count // 8) + b"\x80", count)
