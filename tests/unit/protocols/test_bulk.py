"""What comes in bulk: the same bytes on the wire and the same events as ever, and no copy on the way to its place."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from p2pcompute_protocols import blob, cbor, connection, task
from p2pcompute_protocols.blob import BlobConnection, BlobGet, BlobHave, BlobPiece, BlobWant
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.limits import MAX_DATA_FRAME_BYTES
from p2pcompute_protocols.wire import Record

SIZE = blob.PIECE_BYTES * 2 + 70_000
CONTENT = hashlib.shake_128(b"a blob").digest(SIZE)
LEAVES = blob.leaves_of(CONTENT)
WANT = BlobWant(digest=hashlib.sha256(CONTENT).digest(), size=SIZE, root=blob.root_of(LEAVES), ticket=bytes(32))
HAVE = BlobHave(leaves=LEAVES, held=blob.bitmap(range(3), 3))


def piece(index: int) -> BlobPiece:
    at, size = blob.piece_span(index, SIZE)
    return BlobPiece(index=index, data=memoryview(CONTENT)[at : at + size])


def asking() -> BlobConnection:
    """A requester that has asked for all pieces, and what its provider says then."""
    conn = BlobConnection(Role.REQUESTER)
    conn.send(WANT)
    conn.receive_data(frame(HAVE.encode(), max_bytes=MAX_DATA_FRAME_BYTES))
    assert conn.next_event() == HAVE
    for index in range(3):
        conn.send(BlobGet(index=index))
    return conn


def said(*messages: Record) -> bytes:
    return b"".join(frame(message.encode(), max_bytes=MAX_DATA_FRAME_BYTES) for message in messages)


def events(conn: Any) -> list[Any]:
    found = []
    while (event := conn.next_event()) is not NEED_DATA:
        found.append(event)
    return found


@pytest.mark.parametrize("size", [1, 23, 24, 255, 256, 4_095, 4_096, 65_535, 65_536, 256 * 1024])
def test_parts_are_what_was_sent_ever(size: int) -> None:
    data = CONTENT[:size]
    for message in (
        task.BlobData(data=data),
        task.ResultData(data=memoryview(data)),
        task.StateData(data=data),
        BlobPiece(index=63, data=memoryview(data)),
        BlobPiece(index=0, data=data),
    ):
        head, bulk = message.encode_parts()
        assert bulk is message.data
        assert head + bytes(bulk) == message.encode() == cbor.encode(message.to_map())
        found = cbor.decode_up_to_tail(head)
        assert found is not None
        assert found[2:] == (len(head), size)
    assert WANT.encode_parts() == (WANT.encode(), b"")


@pytest.mark.parametrize("seed", range(12))
def test_the_same_events_whichever_way_the_bytes_come(seed: int) -> None:
    rng = random.Random(seed)
    messages = [piece(2), piece(0), blob.BlobDropped(index=1, code=WireCode.CANCELLED)]
    stream = memoryview(said(*messages))
    shares = rng.sample([1, 5, 40, 1_000, 60_000, 300_000], 2)
    conn, got, placed = asking(), list[Any](), 0
    while stream:
        room = conn.room()
        count = min(rng.choice([*shares, 5_000]), len(stream))
        if room is not None and rng.random() < 0.7:
            count = min(count, len(room))
            room[:count] = stream[:count]
            conn.filled(count)
            placed += count
        else:
            conn.receive_data(stream[:count])
        stream = stream[count:]
        got += events(conn)
    assert got == messages
    assert placed or 300_000 in shares


def test_what_lands_in_a_place_is_not_copied() -> None:
    conn = asking()
    place = bytearray(SIZE)
    conn.land_in(memoryview(place))
    stream = memoryview(said(piece(0), piece(1)))
    conn.receive_data(stream[:40_000])
    assert conn.next_event() is NEED_DATA
    room = conn.room()
    assert room is not None
    count = len(room)
    assert count == blob.PIECE_BYTES - 40_000 + (len(stream) // 2 - blob.PIECE_BYTES)
    room[:] = stream[40_000 : 40_000 + count]
    assert place[: blob.PIECE_BYTES] == CONTENT[: blob.PIECE_BYTES]
    conn.filled(count)
    assert conn.room() is None
    conn.receive_data(stream[40_000 + count :])  # whole, so it is copied to its place
    first, second = events(conn)
    assert isinstance(first.data, memoryview)
    assert first.data.obj is place
    assert first.data.readonly
    assert second == piece(1)
    assert place[: 2 * blob.PIECE_BYTES] == CONTENT[: 2 * blob.PIECE_BYTES]


def test_what_finds_no_room_is_not_put_there() -> None:
    conn = asking()
    place = bytearray(1_000)
    conn.land_in(memoryview(place))
    conn.receive_data(said(piece(2))[:50_000])
    assert conn.next_event() is NEED_DATA
    conn.receive_data(said(piece(2))[50_000:])
    assert conn.next_event() == piece(2)
    assert place == bytes(1_000)


def test_a_wrong_piece_is_refused_where_it_lands() -> None:
    conn = asking()
    wrong = bytearray(said(piece(0)))
    wrong[-1] ^= 1
    conn.receive_data(bytes(wrong[:60_000]))
    assert conn.next_event() is NEED_DATA
    room = conn.room()
    assert room is not None
    room[:] = wrong[60_000:]
    conn.filled(len(room))
    with pytest.raises(RemoteProtocolError) as refused:
        conn.next_event()
    assert refused.value.code is WireCode.BAD_DIGEST
    assert conn.room() is None


def heads() -> list[bytes]:
    """Frames that begin as a large message does, and are none."""
    good = piece(0).encode()
    at = len(good) - blob.PIECE_BYTES
    body = good[at:]
    return [
        b"\xa3\x00\x18\x13" + good[3:],  # a type that is not the shortest
        good[:at] + body[:-1],  # one byte less than the string says
        good + b"x",  # one more
        b"\xa3\x00\x12" + good[3:],  # another message, with a piece behind it
        b"\xa3\x00\x01" + good[3:],  # what a requester says
        b"\xa4" + good[1:],  # a pair more than come
        b"\xa3\x00\x13\x02" + good[4:],  # keys that do not ascend
        b"\xa2\x00\x13\x02" + good[6:],  # no index
        b"\xbf" + good[1:],  # indefinite
    ]


@pytest.mark.parametrize("payload", heads())
def test_what_is_not_as_it_should_be_is_refused_as_a_whole(payload: bytes) -> None:
    stream = frame(payload, max_bytes=MAX_DATA_FRAME_BYTES)
    outcomes = []
    for parts in ([stream], [stream[:50_000], stream[50_000:]], [stream[:20], stream[20:60_000], stream[60_000:]]):
        conn = asking()
        for part in parts[:-1]:
            conn.receive_data(part)
            assert conn.next_event() is NEED_DATA
        conn.receive_data(parts[-1])
        with pytest.raises(RemoteProtocolError) as refused:
            conn.next_event()
        outcomes.append((str(refused.value), refused.value.code))
    assert len(set(outcomes)) == 1


def test_an_end_in_the_middle_of_bulk_is_an_error() -> None:
    conn = asking()
    conn.receive_data(said(piece(0))[:100_000])
    assert conn.next_event() is NEED_DATA
    assert conn.has_begun
    conn.receive_data(b"")
    with pytest.raises(RemoteProtocolError, match="ended"):
        conn.next_event()


def test_whoever_announces_much_and_sends_little_gets_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = said(piece(0))[:20]
    conn = asking()
    conn.receive_data(begun)
    assert conn.next_event() is NEED_DATA
    assert conn.room() is None

    monkeypatch.setattr(connection, "_ON_TRUST", 1_000_000)  # the attack, where nobody looks at what has come
    conn = asking()
    conn.receive_data(begun)
    assert conn.next_event() is NEED_DATA
    room = conn.room()
    assert room is not None
    assert len(room) > 250_000


def test_only_bulk_may_be_a_view_and_only_a_flat_one() -> None:
    for wrong in (memoryview(bytes(8)).cast("I"), memoryview(bytes(8))[::2], memoryview(bytes(8)).cast("B", (2, 4))):
        with pytest.raises(LocalProtocolError):
            task.ResultData(data=wrong)
    with pytest.raises(LocalProtocolError):
        BlobWant(digest=memoryview(bytes(32)), size=1, root=bytes(32), ticket=bytes(32))  # type: ignore[arg-type]
