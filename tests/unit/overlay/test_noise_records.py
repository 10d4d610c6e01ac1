"""Records of Noise: cut, sealed, opened, split at every byte, forged, replayed and mutated; and its payload."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.security.noise.messages import NoiseHandshakePayload
from libp2p.security.noise.pb import noise_pb2
from noise.backends.default import noise_backend
from noise.noise_protocol import NoiseProtocol
from noise.state import CipherState

from p2pcompute.overlay.noise import (
    AESGCM,
    CHACHAPOLY,
    LAST_NONCE,
    MAX_EMPTY_RECORDS,
    MAX_PLAINTEXT,
    BadIdentity,
    BadMessage,
    NoiseError,
    Opener,
    OutOfNonces,
    Payload,
    Sealer,
    Suite,
    cut,
    record_bytes,
)

from .._mutants import MUTANTS, SEED, mutants
from ._noise_parts import YAMUX, credentials, secret

SUITES = pytest.mark.parametrize("suite", [CHACHAPOLY, AESGCM], ids=lambda suite: suite.name.decode())
KEY = secret("a transport key")


def opened(opener: Opener, data: bytes) -> tuple[int, bytes]:
    out = memoryview(bytearray(len(data)))
    consumed, written = opener.open_into(memoryview(data), out)
    return consumed, bytes(out[:written])


def empty_record(sealer: Sealer) -> bytes:
    record = bytearray(record_bytes(0))
    sealer.seal_into(b"", memoryview(record))
    return bytes(record)


# Cutting


@given(st.lists(st.integers(0, 200_000), max_size=6))
def test_what_is_cut_is_whole(lengths: list[int]) -> None:
    chance = random.Random(str(lengths))
    parts = [memoryview(chance.randbytes(length)) for length in lengths]
    records = cut(parts)
    assert b"".join(records) == b"".join(parts)
    assert all(0 < len(record) <= MAX_PLAINTEXT for record in records)
    total = sum(lengths)
    if total <= MAX_PLAINTEXT:
        assert len(records) == (1 if total else 0)
    assert len(records) <= 2 * len(lengths) + total // MAX_PLAINTEXT


def test_bulk_is_cut_without_being_copied() -> None:
    """A frame's header, then 16 whole records that are the caller's memory."""
    payload = bytearray(16 * MAX_PLAINTEXT)
    header, *records = cut([b"twelve bytes", memoryview(payload)])
    assert header == b"twelve bytes"
    payload[:] = b"\x07" * len(payload)
    assert [len(record) for record in records] == [MAX_PLAINTEXT] * 16
    assert all(record[0] == record[-1] == 7 for record in records)


def test_small_things_share_a_record() -> None:
    assert cut([b"header", b"message", b"", b"header", b"message"]) == [b"headermessageheadermessage"]
    bulk = bytes(MAX_PLAINTEXT + 100)
    assert [len(record) for record in cut([b"h" * 12, b"m" * 200, bulk, b"h" * 12, b"m" * 200])] == [
        212,
        MAX_PLAINTEXT,
        100 + 212,
    ]


def test_arrays_are_cut_by_their_bytes() -> None:
    numbers = memoryview(bytearray(8 * 20_000)).cast("Q", (100, 200))
    assert b"".join(cut([b"x", numbers])) == b"x" + bytes(8 * 20_000)
    assert cut([memoryview(bytearray(16)).cast("Q")])[0].nbytes == 16  # type: ignore[union-attr]


# Sealing and opening


@SUITES
@pytest.mark.parametrize("length", [0, 1, 15, 16, 255, 256, 4096, MAX_PLAINTEXT - 1, MAX_PLAINTEXT])
def test_a_record_of_each_length(suite: Suite, length: int) -> None:
    sealer, opener = Sealer(suite, KEY), Opener(suite, KEY)
    plaintext = random.Random(length).randbytes(length)
    record = bytearray(record_bytes(length))
    assert sealer.seal_into(plaintext, memoryview(record)) == len(record)
    assert int.from_bytes(record[:2], "big") == length + 16
    assert plaintext not in record or length < 2
    assert opened(opener, bytes(record)) == (len(record), plaintext)
    with pytest.raises(ValueError, match="a record holds"):
        sealer.seal_into(bytes(MAX_PLAINTEXT + 1), memoryview(bytearray(70_000)))


@SUITES
def test_every_cut_of_records_gives_the_same_bytes(suite: Suite) -> None:
    sealer = Sealer(suite, KEY)
    stream = sealer.seal([b"first"]) + empty_record(sealer) + sealer.seal([b"second, and longer"]) + sealer.seal([b"3"])
    expected = b"firstsecond, and longer3"

    def piecewise(pieces: list[bytes]) -> bytes:
        opener, buffer, plaintext = Opener(suite, KEY), b"", b""
        for piece in pieces:
            buffer += piece
            consumed, some = opened(opener, buffer)
            missing = opener.missing(buffer[consumed:])
            assert 0 < missing <= 65_537  # what is left is no whole record
            buffer, plaintext = buffer[consumed:], plaintext + some
        assert not buffer
        assert opener.count == 4
        return plaintext

    assert piecewise([stream]) == expected
    for at in range(1, len(stream)):
        assert piecewise([stream[:at], stream[at:]]) == expected
    assert piecewise([stream[at : at + 1] for at in range(len(stream))]) == expected


# Attacks


@SUITES
def test_records_can_not_be_replayed_swapped_or_left_out(suite: Suite) -> None:
    sealer = Sealer(suite, KEY)
    first, second, third = (sealer.seal([word]) for word in (b"one", b"two", b"three"))
    for wrong in ([first, first], [second], [first, third], [second, first]):
        opener = Opener(suite, KEY)
        with pytest.raises(BadMessage, match="does not authenticate"):
            opened(opener, b"".join(wrong))
        with pytest.raises(BadMessage):  # and nothing more, not even what is right
            opened(opener, b"".join([first, second, third]))


@SUITES
def test_our_own_record_is_not_taken_back(suite: Suite) -> None:
    """The two directions have two keys, so a reflected record opens nothing."""
    with pytest.raises(BadMessage):
        opened(Opener(suite, secret("the other direction")), Sealer(suite, KEY).seal([b"x"]))


@pytest.mark.parametrize("length", range(16))
def test_a_record_without_a_whole_tag_is_refused_at_its_length(length: int) -> None:
    with pytest.raises(BadMessage, match="shorter than its tag"):
        opened(Opener(CHACHAPOLY, KEY), length.to_bytes(2, "big"))


@SUITES
def test_a_flood_of_empty_records_ends(suite: Suite) -> None:
    sealer, opener = Sealer(suite, KEY), Opener(suite, KEY)
    for _ in range(3):  # some are fine, and something between them forgives them
        stream = b"".join(empty_record(sealer) for _ in range(MAX_EMPTY_RECORDS)) + sealer.seal([b"x"])
        assert opened(opener, stream) == (len(stream), b"x")
    for _ in range(MAX_EMPTY_RECORDS):
        opened(opener, empty_record(sealer))
    with pytest.raises(BadMessage, match="empty records"):
        opened(opener, empty_record(sealer))


@SUITES
def test_the_last_nonce_is_the_last(suite: Suite) -> None:
    """At 2^64 - 1 a counter of 64 bits would soon begin again, and a nonce that comes twice gives the key away."""
    suite = replace(suite, rekey_records=None)
    sealer, opener = Sealer(suite, KEY), Opener(suite, KEY)
    sealer.count = opener.count = LAST_NONCE
    record = sealer.seal([b"last"])
    assert opened(opener, record) == (len(record), b"last")
    with pytest.raises(OutOfNonces):
        sealer.seal([b"one more"])
    another = Sealer(suite, KEY)
    with pytest.raises(OutOfNonces):
        opened(opener, another.seal([b"one more"]))
    assert sealer.count == opener.count == LAST_NONCE + 1 == 2**64 - 1


@SUITES
@pytest.mark.parametrize("every", [1, 3])
def test_keys_change_after_a_number_of_records(suite: Suite, every: int) -> None:
    """In step on both sides, as the package `noise` rekeys, and whatever is received at once."""
    turning = replace(suite, rekey_records=every)
    sealer, opener, first = Sealer(turning, KEY), Opener(turning, KEY), Opener(suite, KEY)
    cipher = CipherState(NoiseProtocol(suite.name, noise_backend))
    cipher.initialize_key(KEY)
    records = []
    for number in range(10):
        if number and number % every == 0:
            cipher.rekey()
        records.append(sealer.seal([b"%d" % number]))
        assert records[-1][2:] == cipher.encrypt_with_ad(None, b"%d" % number)
    stream = b"".join(records)
    assert opened(opener, stream) == (len(stream), b"0123456789")
    assert opener.count == sealer.count == 10
    with pytest.raises(BadMessage):  # who does not follow can't read on
        opened(first, stream)


def test_aes_changes_its_keys_after_a_tebibyte_and_chacha_never() -> None:
    assert AESGCM.rekey_records is not None
    assert AESGCM.rekey_records * MAX_PLAINTEXT <= 2**40
    assert CHACHAPOLY.rekey_records is None
    sealer, opener = Sealer(AESGCM, KEY), Opener(AESGCM, KEY)
    sealer.count = opener.count = AESGCM.rekey_records - 1
    before = sealer._aead
    stream = sealer.seal([b"last"])
    assert sealer._aead is before
    stream += sealer.seal([b"first"])
    assert sealer._aead is not before
    assert opened(opener, stream) == (len(stream), b"lastfirst")


@SUITES
def test_nonces_are_counted_and_never_come_twice(suite: Suite) -> None:
    sealer = Sealer(suite, KEY)
    seen: list[bytes] = []
    pack = sealer._pack

    def record(count: int) -> bytes:
        seen.append(pack(count))
        return seen[-1]

    sealer._pack = record
    sealer.seal([bytes(300_000)])
    sealer.seal([b"x"])
    assert len(seen) == 6
    assert seen == [b"\0" * 4 + number.to_bytes(8, "big" if suite is AESGCM else "little") for number in range(6)]


@SUITES
def test_no_mutants_of_records_open(suite: Suite) -> None:
    """What was altered is never given: at most the records before it are."""
    sealer = Sealer(suite, KEY)
    words = [b"first", b"", b"second, which is somewhat longer", b"third"]
    records = [sealer.seal([word]) if word else empty_record(sealer) for word in words]
    original = b"".join(records)
    whole = b"".join(words)
    chance = random.Random(f"{suite.name!r} {SEED}")
    refused = 0
    for _ in range(MUTANTS // 2):
        data = bytearray(original)
        for _ in range(chance.randrange(1, 3)):
            kind, at = chance.randrange(5), chance.randrange(len(data))
            if kind == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[at : at + chance.randrange(1, 30)] = chance.randbytes(chance.randrange(30))
            elif kind == 2:
                chosen = chance.sample(records, chance.randrange(1, 5))
                data = bytearray(b"".join(chosen))
            elif kind == 3:
                del data[at:]
            else:
                data += chance.randbytes(chance.randrange(1, 40))
            if not data:
                data = bytearray(original)
        opener = Opener(suite, KEY)
        try:
            consumed, plaintext = opened(opener, bytes(data))
        except NoiseError:
            refused += 1
        else:
            assert original.startswith(bytes(data[:consumed]))
            assert whole.startswith(plaintext)
    assert refused > MUTANTS // 8


# The payload


def test_a_payload_is_what_libp2p_reads_and_writes() -> None:
    mine = credentials("a", (YAMUX, "/mplex/6.7.0"))
    read = NoiseHandshakePayload.deserialize(mine.payload)
    assert isinstance(read.id_pubkey, Ed25519PublicKey)
    assert read.id_pubkey.to_bytes() == mine.identity
    assert read.extensions is not None
    assert read.extensions.stream_muxers == [YAMUX, "/mplex/6.7.0"]
    assert read.serialize() == mine.payload
    theirs = Payload.decode(read.serialize())
    assert (theirs.identity, theirs.muxers) == (mine.identity, (YAMUX, "/mplex/6.7.0"))
    assert theirs.encode() == mine.payload
    plain = Payload.decode(NoiseHandshakePayload(read.id_pubkey, read.id_sig).serialize())
    assert plain.muxers is None
    assert plain.encode() == NoiseHandshakePayload(read.id_pubkey, read.id_sig).serialize()


def test_what_others_may_add_is_passed_over() -> None:
    payload = noise_pb2.NoiseHandshakePayload.FromString(credentials("a").payload)
    payload.extensions.webtransport_certhashes.append(b"hash")
    more = payload.SerializeToString() + b"\xf8\x3f\x01" + b"\xfd\x3f1234" + b"\xf9\x3f12345678" + b"\xfa\x3f\x03abc"
    assert Payload.decode(more).muxers == (YAMUX,)


KEY_FIELD = b"\x0a\x24\x08\x01\x12\x20" + bytes(32)
SIGNATURE_FIELD = b"\x12\x40" + bytes(64)


@pytest.mark.parametrize(
    "data",
    [
        KEY_FIELD + SIGNATURE_FIELD + KEY_FIELD,
        KEY_FIELD + SIGNATURE_FIELD + SIGNATURE_FIELD,
        KEY_FIELD + SIGNATURE_FIELD + b"\x22\x00\x22\x00",
        KEY_FIELD + SIGNATURE_FIELD + b"\x20\x01",
        KEY_FIELD + SIGNATURE_FIELD + b"\x22\x02\x10\x01",
        KEY_FIELD + SIGNATURE_FIELD + b"\x22\x03\x12\x01\xff",
        KEY_FIELD + SIGNATURE_FIELD + b"\x22\x84\x01\x12\x81\x01" + bytes(129),
        KEY_FIELD + SIGNATURE_FIELD + b"\x22\x22" + b"\x12\x00" * 17,
        KEY_FIELD + SIGNATURE_FIELD[:-1],
        KEY_FIELD + SIGNATURE_FIELD + b"\x23",
        KEY_FIELD + SIGNATURE_FIELD + b"\x02\x00",
        KEY_FIELD + SIGNATURE_FIELD + b"\x80" * 10 + b"\x01",
        KEY_FIELD + SIGNATURE_FIELD + b"\x80",
    ],
)
def test_a_payload_that_is_none(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Payload.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_a_typed_error(data: bytes) -> None:
    for tail in (data, KEY_FIELD + SIGNATURE_FIELD + data):
        try:
            payload = Payload.decode(tail)
        except (BadMessage, BadIdentity):
            continue
        assert Payload.decode(payload.encode()) == payload


def test_mutants_of_payloads() -> None:
    """Refused by a typed error, or read as what says the same in our form: others may add fields that we pass over."""
    originals = [credentials("a").payload, credentials("b", (YAMUX, "/mplex/6.7.0")).payload]
    taken = 0
    for mutant in mutants(originals, heads=bytes.fromhex("00 0a 12 22 20 10 7f 80 ff")):
        try:
            payload = Payload.decode(mutant)
        except (BadMessage, BadIdentity):
            continue
        taken += 1
        assert Payload.decode(payload.encode()) == payload, mutant.hex()
    assert MUTANTS // 100 < taken < MUTANTS
