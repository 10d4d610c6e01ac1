"""Frames, identifiers, money, errors and limits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute_protocols import limits
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, WireCode, remote
from p2pcompute_protocols.framing import FrameBuffer, frame
from p2pcompute_protocols.ids import (
    PeerId,
    peer_id_from_bytes,
    peer_id_from_public_key,
    peer_id_to_bytes,
    public_key_of,
)
from p2pcompute_protocols.money import PUSD_PER_UUSD, owed_uusd

# Frames


@given(payloads=st.lists(st.binary(min_size=1, max_size=300), max_size=6), data=st.data())
def test_frames_survive_any_split(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(p, max_bytes=300) for p in payloads)
    buffer = FrameBuffer(max_bytes=300)
    got: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer.feed(stream[:size])
        stream = stream[size:]
        while (payload := buffer.pop()) is not None:
            got.append(payload)
    assert got == payloads
    assert len(buffer) == 0


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21])
def test_frame_lengths_at_the_edges_of_the_varint(size: int) -> None:
    data = frame(bytes(size), max_bytes=2**22)
    assert len(data) - size == max(1, -(-size.bit_length() // 7))
    buffer = FrameBuffer(max_bytes=2**22)
    for byte in data[:4]:
        buffer.feed(bytes([byte]))
    buffer.feed(data[4:])
    assert buffer.pop() == bytes(size)


@pytest.mark.parametrize("size", [0, 65])
def test_frames_outside_of_the_bound_are_not_sent(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        frame(bytes(size), max_bytes=64)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00", WireCode.OVERSIZED),
        (b"\x41", WireCode.OVERSIZED),
        (b"\x80\x00", WireCode.MALFORMED),
        (b"\x81\x00x", WireCode.MALFORMED),
        (b"\x80\x80\x80\x00", WireCode.MALFORMED),
        (b"\xff\xff\xff\x7f", WireCode.OVERSIZED),
        (b"\x80\x80\x80\x80", WireCode.OVERSIZED),
        (b"\x80\x80\x80\x80\x01", WireCode.OVERSIZED),
    ],
)
def test_frame_lengths_that_are_refused_before_the_frame_comes(data: bytes, code: WireCode) -> None:
    whole = FrameBuffer(max_bytes=64)
    whole.feed(data)
    with pytest.raises(LocalProtocolError) as refused:
        whole.pop()
    assert refused.value.code is code
    slow = FrameBuffer(max_bytes=64)
    refusals: list[WireCode] = []
    for byte in data:  # refused at the first byte that says so
        slow.feed(bytes([byte]))
        try:
            assert slow.pop() is None
        except LocalProtocolError as exc:
            refusals.append(exc.code)
            break
    assert refusals == [code]


# Identifiers


@given(key=st.binary(min_size=32, max_size=32))
def test_peer_ids_go_round(key: bytes) -> None:
    peer = peer_id_from_public_key(key)
    assert peer.startswith("12D3KooW")
    assert peer_id_from_bytes(peer_id_to_bytes(peer)) == peer
    assert public_key_of(peer) == key
    assert len(peer_id_to_bytes(peer)) == 38


# libp2p/specs, peer-ids: an Ed25519 key of the specification's test vectors.
def test_a_peer_id_of_libp2p() -> None:
    key = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    assert peer_id_to_bytes(peer_id_from_public_key(key)).hex() == "002408011220" + key.hex()


PEER = peer_id_from_public_key(bytes(32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        PEER[:-1],
        PEER + "1",
        "1" + PEER,
        PEER + " ",
        PEER + "\n",
        " " + PEER,
        PEER.replace("1", "0"),
        PEER + "²",
        "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "1" * 1_000_000,
    ],
    ids=lambda t: repr(t[:12]),
)
def test_text_that_is_no_peer_id(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        peer_id_to_bytes(PeerId(text))


@pytest.mark.parametrize(
    "raw", [b"", bytes(38), b"\x00\x24\x08\x02\x12\x20" + bytes(32), peer_id_to_bytes(PEER) + b"\0"]
)
def test_bytes_that_are_no_peer_id(raw: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        peer_id_from_bytes(raw)


# Money


@given(units=st.integers(0, 2**53), price=st.integers(0, 2**64 - 1))
def test_owed_is_rounded_up_once(units: int, price: int) -> None:
    exact = Fraction(units * price, PUSD_PER_UUSD)
    owed = owed_uusd(units, price)
    assert exact <= owed < exact + 1


@given(first=st.integers(0, 2**53), more=st.integers(0, 2**53), price=st.integers(0, 2**64 - 1))
def test_owed_never_falls_and_never_gains_by_splitting(first: int, more: int, price: int) -> None:
    whole = owed_uusd(first + more, price)
    assert whole >= owed_uusd(first, price)
    # Rounding the total once costs the payer at most as much as rounding each part would, and one unit less at most.
    parts = owed_uusd(first, price) + owed_uusd(more, price)
    assert parts - 1 <= whole <= parts


def test_owed_at_its_edges() -> None:
    assert owed_uusd(0, 10**12) == 0
    assert owed_uusd(10**6, 0) == 0
    assert owed_uusd(1, 1) == 1
    assert owed_uusd(10**6, 1) == 1
    assert owed_uusd(10**6 + 1, 1) == 2


# Errors


def test_somebody_broke_the_protocol() -> None:
    with pytest.raises(TypeError):
        ProtocolError("nobody")
    with pytest.raises(RemoteProtocolError) as caught, remote():
        raise LocalProtocolError("x", code=WireCode.EXPIRED)
    assert caught.value.code is WireCode.EXPIRED
    assert isinstance(caught.value.__cause__, LocalProtocolError)


def test_limits_fit_each_other() -> None:
    assert limits.MAX_ENVELOPE_BYTES + 64 <= limits.MAX_FRAME_BYTES
    assert limits.MAX_AD_BYTES <= limits.MAX_ENVELOPE_BYTES
    assert limits.MAX_CREDIT_WINDOW <= limits.MAX_INFLIGHT_CHUNKS
    assert limits.MAX_FRAME_BYTES < limits.MAX_DATA_FRAME_BYTES < 2**28
    assert set(limits.__all__) == {name for name in vars(limits) if name.isupper()}
