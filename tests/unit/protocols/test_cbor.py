"""Deterministic CBOR: cbor2 is the oracle for what is CBOR, and the proof of what a general decoder lets through."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2pcompute_protocols import cbor
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS, UINT64_MAX

from ._strategies import extension_values


def oracle(data: bytes) -> object:
    """The only safe use of cbor2: decode, walk over types and bounds, encode again, compare."""
    try:
        value = cbor2.loads(data, allow_indefinite=False, allow_duplicate_keys=False, max_depth=MAX_CBOR_DEPTH + 2)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError):
        raise ValueError from None
    items = 0

    def walk(value: object, depth: int) -> None:
        nonlocal items
        items += 1
        if depth > MAX_CBOR_DEPTH or items > MAX_CBOR_ITEMS:
            raise ValueError
        if type(value) is list:
            for item in value:
                walk(item, depth + 1)
        elif type(value) is dict:
            items += len(value)
            if list(value) != sorted(k for k in value if type(k) is int and 0 <= k <= UINT64_MAX):
                raise ValueError
            if any(type(k) is not int for k in value):
                raise ValueError
            for item in value.values():
                walk(item, depth + 1)
        elif type(value) is int:
            if not 0 <= value <= UINT64_MAX:
                raise ValueError
        elif type(value) not in (bool, bytes, str):
            raise ValueError

    walk(value, 0)
    if cbor2.dumps(value) != data:
        raise ValueError
    return value


def same_as_oracle(data: bytes) -> None:
    try:
        expected = oracle(data)
    except ValueError:
        with pytest.raises(LocalProtocolError):
            cbor.decode(data)
    else:
        got = cbor.decode(data)
        assert got == expected
        assert cbor.encode(got) == data


@given(value=extension_values)
def test_round_trip(value: Any) -> None:
    data = cbor.encode(value)
    assert cbor.decode(data) == value
    assert cbor2.loads(data) == value
    assert data == cbor2.dumps(value)
    same_as_oracle(data)


@given(data=st.binary(max_size=64))
@settings(max_examples=500)
@example(b"")
def test_random_bytes_against_the_oracle(data: bytes) -> None:
    same_as_oracle(data)


@given(value=extension_values, data=st.data())
@settings(max_examples=300)
def test_mutations_against_the_oracle(value: Any, data: st.DataObject) -> None:
    mutant = bytearray(cbor.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutant)))
        match data.draw(st.sampled_from(["set", "insert", "delete", "cut"])):
            case "set" if at < len(mutant):
                mutant[at] = data.draw(st.integers(0, 255))
            case "insert":
                mutant[at:at] = data.draw(st.binary(min_size=1, max_size=3))
            case "delete":
                del mutant[at : at + 1]
            case _:
                del mutant[at:]
    same_as_oracle(bytes(mutant))


# Each of these decodes without complaint in cbor2 with its defaults, to a value that means something.
TWINS = {
    "one byte for a small integer": "1800",
    "two bytes for a small integer": "190000",
    "four bytes for a small integer": "1a00000000",
    "eight bytes for a small integer": "1b0000000000000000",
    "a long length of a byte string": "580161",
    "a long length of text": "780161",
    "a long length of an array": "980100",
    "a long length of a map": "b8010000",
    "an indefinite byte string": "5f4161ff",
    "indefinite text": "7f6161ff",
    "an indefinite array": "9f00ff",
    "an indefinite map": "bf0000ff",
    "keys in falling order": "a201000000",
    "the same key twice": "a200000001",
    "the same key in two lengths": "a20000180001",
    "a negative integer": "20",
    "a negative key": "a12000",
    "a text key": "a1616100",
    "a byte string key": "a1416100",
    "true as a key": "a1f500",
    "1.0 as a key": "a1f93c0000",
    "NaN twice as a key": "a2f97e0000f97e0001",
    "an array as a key": "a18000",
    "a map as a key": "a1a000",
    "a half float": "f93c00",
    "a single float": "fa3f800000",
    "a double float": "fb3ff0000000000000",
    "NaN with a payload": "fb7ff8000000000001",
    "infinity": "f97c00",
    "null": "f6",
    "undefined": "f7",
    "a simple value": "e0",
    "a wide simple value": "f8ff",
    "a bignum for a small integer": "c24101",
    "a negative bignum": "c34101",
    "a bignum above uint64": "c249010000000000000000",
    "a decimal": "c4820001",
    "a decimal NaN": "c4821a3b9aca0001",
    "a bigfloat": "c5820001",
    "a date and time": "c0781a323032302d30312d30315430303a30303a30302e3030305a",
    "seconds since the epoch": "c100",
    "a rational": "d81e820102",
    "a regular expression": "d8236161",
    "a MIME message": "d82461",
    "a UUID": "d8255000000000000000000000000000000000",
    "a set": "d901028100",
    "a shareable value": "d81c00",
    "a list that holds itself": "d81c81d81d00",
    "a string reference": "d90100826561616161 61d81900".replace(" ", ""),
    "self-described CBOR": "d9d9f700",
    "an unknown tag": "d8ff00",
    "an embedded item": "d8184100",
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_refused(name: str) -> None:
    data = bytes.fromhex(TWINS[name])
    with pytest.raises(LocalProtocolError) as refused:
        cbor.decode(data)
    assert refused.value.code is WireCode.MALFORMED
    with pytest.raises(LocalProtocolError):
        cbor.decode(b"\x81" + data)
    with pytest.raises(LocalProtocolError):
        cbor.decode(b"\xa1\x01" + data)


def test_a_general_decoder_takes_most_twins() -> None:
    # The attack without the defence: whoever uses cbor2.loads alone has two encodings of one message.
    taken = 0
    for data in TWINS.values():
        try:
            cbor2.loads(bytes.fromhex(data))
        except cbor2.CBORDecodeError:
            continue
        taken += 1
    assert taken >= len(TWINS) - 3


@pytest.mark.parametrize("tail", [b"\x00", b"\xff", b"\x80", b"\xf6"])
def test_bytes_after_the_item_are_refused(tail: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="after the CBOR item"):
        cbor.decode(b"\x01" + tail)


@given(value=extension_values)
def test_every_truncation_is_refused(value: Any) -> None:
    data = cbor.encode(value)
    for size in range(len(data)):
        with pytest.raises(LocalProtocolError):
            cbor.decode(data[:size])


def nested(depth: int) -> bytes:
    return b"\x81" * depth + b"\x00"


def test_depth_has_an_edge() -> None:
    assert cbor.encode(cbor.decode(nested(MAX_CBOR_DEPTH))) == nested(MAX_CBOR_DEPTH)
    with pytest.raises(LocalProtocolError) as refused:
        cbor.decode(nested(MAX_CBOR_DEPTH + 1))
    assert refused.value.code is WireCode.OVERSIZED


def test_items_have_an_edge() -> None:
    most = cbor.encode([0] * (MAX_CBOR_ITEMS - 1))
    assert len(cbor.decode(most)) == MAX_CBOR_ITEMS - 1  # type: ignore[arg-type]
    for data in (cbor2.dumps([0] * MAX_CBOR_ITEMS), cbor2.dumps(dict.fromkeys(range(MAX_CBOR_ITEMS // 2), 0))):
        with pytest.raises(LocalProtocolError) as refused:
            cbor.decode(data)
        assert refused.value.code is WireCode.OVERSIZED
    with pytest.raises(LocalProtocolError):
        cbor.encode([0] * MAX_CBOR_ITEMS)


MIB_QUARTER = 256 * 1024
BOMBS = {
    "empty arrays": b"\x9a\x00\x04\x00\x00" + b"\x80" * MIB_QUARTER,
    "empty maps": b"\x9a\x00\x04\x00\x00" + b"\xa0" * MIB_QUARTER,
    "arrays of arrays": b"\x99\x40\x00" + (b"\x8f" + b"\x80" * 15) * 0x4000,
    "a depth of 100,000": b"\x81" * 100_000 + b"\x00",
    "maps in maps": b"\xa1\x00" * 100_000 + b"\x00",
    "tags in tags": b"\xc1" * 100_000 + b"\x00",
    "bytes of 2**62": b"\x5b\x40" + bytes(7),
    "text of 2**64-1": b"\x7b" + b"\xff" * 8,
    "an array of 2**63": b"\x9b\x80" + bytes(7),
    "a map of 2**63": b"\xbb\x80" + bytes(7),
    "a map of 2**64-1": b"\xbb" + b"\xff" * 8,
    "indefinite arrays": b"\x9f" * 100_000,
    "a bignum of 256 KiB": b"\xc2\x5a\x00\x04\x00\x00" + b"\xff" * MIB_QUARTER,
    "regular expressions": b"\x99\x10\x00" + b"\xd8\x23\x62a*" * 4096,
    "shared references": b"\x81" + b"\xd8\x1c\x82\xd8\x1d\x00" * 10_000,
    "a set of floats": b"\xd9\x01\x02\x99\x70\x00" + b"\xfa\x00\x00\x00\x01" * 0x7000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_anything_is_built(name: str) -> None:
    data = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(LocalProtocolError):
            cbor.decode(data, max_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 4,096 empty containers and what tracemalloc itself sees of a traceback; far below the bomb's own 256 KiB × 64
    assert peak < 700_000


def test_a_general_decoder_builds_the_bomb_first() -> None:
    tracemalloc.start()
    try:
        cbor2.loads(BOMBS["empty arrays"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak > 40 * MIB_QUARTER


def test_more_bytes_than_allowed_are_not_looked_at() -> None:
    with pytest.raises(LocalProtocolError) as refused:
        cbor.decode(b"\xff" * 65, max_bytes=64)
    assert refused.value.code is WireCode.OVERSIZED


@pytest.mark.parametrize(
    "value",
    [None, 1.0, -1, 2**64, {"a": 1}, {-1: 1}, {2: 1, 1: 1}, {True: 1}, {1.0: 1}, (1,), bytearray(b"x"), {1}, "\ud800"],
    ids=repr,
)
def test_encoding_refuses_what_is_not_of_the_subset(value: Any) -> None:
    with pytest.raises(LocalProtocolError):
        cbor.encode(value)
    with pytest.raises(LocalProtocolError):
        cbor.encode([value])


def test_encoding_a_list_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(LocalProtocolError):
        cbor.encode(loop)
