"""Mutated bytes are refused with a `ProtocolError`, or they are another valid message: never anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pcompute_protocols import cbor
from p2pcompute_protocols.connection import Connection, NeedData
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError
from p2pcompute_protocols.wire import EXTENSION_KEYS, Record, decode_message

from ._strategies import PAYLOADS, PROTOCOLS, nodes, records, rule_of
from .test_tables import CONNECTIONS, MESSAGES, arrange

CASES = [(name, cls) for name in PROTOCOLS for cls in (*PROTOCOLS[name].values(), *PAYLOADS[name])]
every_record = pytest.mark.parametrize(
    ("protocol", "cls"), CASES, ids=[f"{name}-{rule_of(cls)}" for name, cls in CASES]
)


@st.composite
def mutations(draw: Any, data: bytes) -> bytes:
    """One to four changes of bytes, half of them where CBOR has its heads."""
    mutant = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not mutant:
            break
        at = draw(st.integers(0, len(mutant) - 1) | st.integers(0, min(30, len(mutant) - 1)))
        match draw(st.sampled_from(["set", "flip", "insert", "delete", "cut", "twice", "head"])):
            case "set":
                mutant[at] = draw(st.integers(0, 255))
            case "flip":
                mutant[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                mutant[at:at] = draw(st.binary(min_size=1, max_size=4))
            case "delete":
                del mutant[at : at + draw(st.integers(1, 8))]
            case "cut":
                del mutant[at:]
            case "twice":
                mutant[at:at] = mutant[at : at + draw(st.integers(1, 12))]
            case _:
                heads = [0x18, 0x1B, 0x5B, 0x5F, 0x78, 0x80, 0x9B, 0x9F, 0xA0, 0xBF, 0xC2, 0xD8, 0xF4, 0xF6, 0xF9, 0xFB]
                mutant[at] = draw(st.sampled_from(heads))
    return bytes(mutant)


def without_extensions(cls: type[Record], data: bytes) -> bytes:
    raw = cbor.decode(data, max_bytes=1 << 20)
    for node in list(nodes(cls, raw)):
        if node.cls.extensible:
            for key in [k for k in node.raw if k >= EXTENSION_KEYS]:
                del node.raw[key]
    return cbor.encode(raw)


@every_record
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_mutated_records(protocol: str, cls: type[Record], data: st.DataObject) -> None:
    mutant = data.draw(mutations(data.draw(records(cls)).encode()))
    try:
        if cls.TYPE:
            got = decode_message(mutant, PROTOCOLS[protocol], max_bytes=1 << 20)
        else:
            got = cls.decode(mutant, max_bytes=1 << 20)
    except LocalProtocolError:
        return
    assert got.encode() == without_extensions(type(got), mutant)


@pytest.mark.parametrize("cls", CONNECTIONS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_streams(cls: type[Connection[Any]], data: st.DataObject) -> None:
    cells = [(role, state, kind) for role, rows in cls.table.items() for state, row in rows.items() for kind in row]
    role, state, kind = data.draw(st.sampled_from(cells))
    message = next(m for m in MESSAGES[cls] if type(m) is kind)
    sender, whole, slow = cls(role), cls(role.other), cls(role.other)
    for conn in (sender, whole, slow):
        arrange(conn, state, message)
    stream = data.draw(mutations(sender.send(message)))

    def outcome(conn: Connection[Any], pieces: list[bytes]) -> list[Any]:
        events: list[Any] = []
        for piece in pieces:
            try:
                conn.receive_data(piece)
                while not isinstance(event := conn.next_event(), NeedData):
                    events.append(event)
            except RemoteProtocolError as exc:
                return [*events, exc.code]
        return events

    # Split any way, a peer's bytes have the same outcome.
    assert outcome(whole, [stream] if stream else []) == outcome(slow, [bytes([b]) for b in stream])


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
