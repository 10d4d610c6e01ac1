"""Mutated bytes are refused with a `ProtocolError`, or they are another valid message: never anything else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from p2pcompute_protocols import cbor
from p2pcompute_protocols.connection import NEED_DATA, Connection, NeedData
from p2pcompute_protocols.envelope import open_envelope, seal
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import FrameBuffer, frame
from p2pcompute_protocols.wire import EXTENSION_KEYS, Record, decode_message

from .._mutants import MUTANTS, SEED, mutants
from ._strategies import PAYLOADS, PROTOCOLS, nodes, records, rule_of
from .test_tables import CONNECTIONS, MESSAGES, arrange
from .vectors._material import NETWORK, PROVIDER, REQUESTER

EXAMPLES = 12  # of each kind of record
Decode = Callable[[bytes], Record]


def examples(cls: type[Record]) -> list[bytes]:
    """The encodings of some records of a kind, the same for the same seed."""
    found: list[bytes] = []

    @seed(SEED)
    @settings(max_examples=EXAMPLES, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(record=records(cls))
    def collect(record: Record) -> None:
        found.append(record.encode())

    collect()
    return found


def message_decoder(types: dict[int, type[Record]]) -> Decode:
    return lambda data: decode_message(data, types, max_bytes=1 << 20)


def record_decoder(cls: type[Record]) -> Decode:
    return lambda data: cls.decode(data, max_bytes=1 << 20)


# Whatever bytes of a peer, an envelope or a file are handed to, and the kinds of records that it knows.
DECODERS: dict[str, tuple[Decode, list[type[Record]]]] = {
    **{name: (message_decoder(types), list(types.values())) for name, types in PROTOCOLS.items() if types},
    **{rule_of(cls): (record_decoder(cls), [cls]) for payloads in PAYLOADS.values() for cls in payloads},
}


def without_extensions(cls: type[Record], data: bytes) -> bytes:
    raw = cbor.decode(data, max_bytes=1 << 20)
    for node in list(nodes(cls, raw)):
        if node.cls.extensible:
            for key in [k for k in node.raw if k >= EXTENSION_KEYS]:
                del node.raw[key]
    return cbor.encode(raw)


@pytest.mark.parametrize("name", DECODERS)
def test_mutants_of_records(name: str) -> None:
    decode, kinds = DECODERS[name]
    found = [examples(cls) for cls in kinds]
    originals = [of_kind[n % len(of_kind)] for n in range(EXAMPLES) for of_kind in found]
    taken = 0
    for mutant in mutants(originals):
        try:
            got = decode(mutant)
        except LocalProtocolError:
            continue
        taken += 1
        if got.encode() != mutant:
            assert got.encode() == without_extensions(type(got), mutant), mutant.hex()
    assert MUTANTS // 100 < taken < MUTANTS  # they are neither so broken that nothing is tried, nor the same


def test_mutants_of_cbor() -> None:
    """Every kind of record, read as bare items."""
    originals = [example for types in PROTOCOLS.values() for cls in types.values() for example in examples(cls)[:2]]
    taken = 0
    for mutant in mutants(originals):
        try:
            value = cbor.decode(mutant, max_bytes=1 << 20)
        except LocalProtocolError:
            continue
        taken += 1
        assert cbor.encode(value) == mutant, mutant.hex()
    assert MUTANTS // 100 < taken < MUTANTS


def test_mutants_of_frames() -> None:
    originals = [frame(bytes(size), max_bytes=1 << 20) * 2 for size in (1, 2, 127, 128, 200)]
    chance, whole = random.Random(SEED), 0
    for mutant in mutants(originals):
        cut = chance.randrange(len(mutant) + 1)
        found = []
        for pieces in ([mutant], [mutant[:cut], mutant[cut:]]):
            buffer, said, code = FrameBuffer(max_bytes=150), b"", None
            try:
                for piece in pieces:
                    buffer.feed(piece)
                    while (body := buffer.pop()) is not None:
                        said += frame(body, max_bytes=150)
                        whole += 1
            except LocalProtocolError as exc:
                code = exc.code
            found.append((said, code))
            assert mutant.startswith(said), mutant.hex()
        assert found[0] == found[1], mutant.hex()
    assert whole > MUTANTS // 100


def test_mutants_of_envelopes() -> None:
    """None is taken: what is not signed has one form, and what is signed no other."""
    originals = [
        seal("note", NETWORK, signer, payload) for signer in (PROVIDER, REQUESTER) for payload in (b"", b"hello")
    ]
    codes: Counter[WireCode] = Counter()
    for mutant in mutants(originals):
        if mutant in originals:
            continue
        with pytest.raises(LocalProtocolError) as refused:
            open_envelope(mutant, kind="note", network=NETWORK)
        codes[refused.value.code] += 1
    assert codes[WireCode.BAD_SIGNATURE] > MUTANTS // 100


@pytest.mark.parametrize("cls", CONNECTIONS)
def test_mutants_of_streams(cls: type[Connection[Any]]) -> None:
    """Split any way, a peer's bytes have the same outcome, and no other fault than the peer's."""
    cells = [(role, state, kind) for role, rows in cls.table.items() for state, row in rows.items() for kind in row]

    def arranged(number: int, *, sends: bool) -> tuple[Connection[Any], Record]:
        role, state, kind = cells[number % len(cells)]
        message = next(m for m in MESSAGES[cls] if type(m) is kind)
        conn = cls(role if sends else role.other)
        arrange(conn, state, message)
        return conn, message

    def outcome(number: int, pieces: list[bytes]) -> list[Any]:
        conn, events = arranged(number, sends=False)[0], []
        for piece in pieces:
            try:
                if piece:
                    conn.receive_data(piece)
                while (event := conn.next_event()) is not NEED_DATA:
                    events.append(event)
            except RemoteProtocolError as exc:
                return [*events, exc.code]
        return events

    chance = random.Random(SEED)
    originals = []
    for number in range(len(cells)):
        sender, message = arranged(number, sends=True)
        originals.append(sender.send(message))
    for number, mutant in enumerate(mutants(originals, MUTANTS // 5)):
        cut = chance.randrange(len(mutant) + 1)
        whole = outcome(number, [mutant])
        assert outcome(number, [mutant[:cut], mutant[cut:]]) == whole, mutant.hex()
        if not number % 20:
            assert outcome(number, [bytes([byte]) for byte in mutant]) == whole, mutant.hex()


@pytest.mark.parametrize("cls", CONNECTIONS)
@given(stream=st.binary(min_size=1, max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise(cls: type[Connection[Any]], stream: bytes) -> None:
    for role in cls.table:
        conn = cls(role)
        conn.receive_data(stream)
        try:
            while not isinstance(conn.next_event(), NeedData):
                pass
        except RemoteProtocolError:
            pass
