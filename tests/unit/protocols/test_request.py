"""Request streams without I/O: vectors, splits, mutants, and a model of two sessions."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pcompute_protocols import limits as bounds
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.request import (
    HEADER_BYTES,
    KINDS,
    TABLE,
    Ask,
    AskingSession,
    Cancel,
    Drain,
    Fault,
    Limits,
    Reply,
    RequestState,
    ServingSession,
    StreamOver,
)

from .._mutants import MUTANTS, SEED, mutants
from ._docs import ROOT, readme, table_after

VECTORS = json.loads((ROOT / "request" / "vectors.json").read_text(encoding="utf-8"))
Session = AskingSession | ServingSession


def named(group: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[group]]


def plain(frame: Any) -> dict[str, Any]:
    found = {"frame": type(frame).__name__, **dataclasses.asdict(frame)}
    return {key: value.hex() if isinstance(value, bytes) else value for key, value in found.items()}


def events_of(session: Session, events: list[Any] | None = None) -> list[Any]:
    events = [] if events is None else events  # given where those before an error count too
    while (event := session.next_event()) is not NEED_DATA:
        events.append(event)
        if isinstance(event, StreamOver):
            break
    return events


def sides(setup: dict[str, int]) -> dict[str, Session]:
    return {"requester": AskingSession(), "provider": ServingSession(Limits(**setup))}


# Vectors


@pytest.mark.parametrize("vector", named("accept"))
def test_frames(vector: dict[str, Any]) -> None:
    fields = dict(vector["expect"])
    name = fields.pop("frame")
    cls = next(kind for kind in KINDS.values() if kind.__name__ == name)
    if "body" in fields:
        fields["body"] = bytes.fromhex(fields["body"])
    assert cls(**fields).encode().hex() == vector["hex"]


def said(session: Session, data: bytes) -> None:
    """Our session of that side says exactly these bytes."""
    rest, made = data, b""
    while rest:
        word, number, value = (int.from_bytes(rest[at : at + 4], "big") for at in (0, 4, 8))
        end = HEADER_BYTES + (word & 0xFFFFFF)
        body, kind = rest[HEADER_BYTES:end], KINDS[word >> 24]
        rest = rest[end:]
        if isinstance(session, AskingSession):
            made += session.ask(body, value)[1] if kind is Ask else session.cancel(number)
        elif kind is Limits:
            made += session.begin()
        elif kind is Reply:
            made += session.reply(number, body)
        elif kind is Fault:
            made += session.fault(number, WireCode(value), body.decode())
        else:
            made += session.drain()
    assert made == data


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize("vector", named("transcripts"))
def test_transcripts(vector: dict[str, Any], pieces: str) -> None:
    both = sides(vector["setup"])
    coming: dict[str, list[bytes]] = {"requester": [], "provider": []}
    for step in vector["steps"]:
        if "say" in step:
            data = bytes.fromhex(step["hex"])
            if not step.get("forged"):
                said(both[step["say"]], data)
            coming[Role(step["say"]).other.value].append(data)
            continue
        session, waiting = both[step["hear"]], coming[step["hear"]]
        heard: list[Any] = []

        def feed(session: Session = session, waiting: list[bytes] = waiting, heard: list[Any] = heard) -> None:
            for data in waiting:
                for piece in [data] if pieces == "whole" or not data else [bytes([byte]) for byte in data]:
                    session.receive_data(piece)
                    events_of(session, heard)
            waiting.clear()

        if "code" in step:
            assert step is vector["steps"][-1]
            with pytest.raises(RemoteProtocolError) as refused:
                feed()
            assert refused.value.code.name == step["code"], refused.value
            with pytest.raises(RemoteProtocolError):
                session.next_event()  # broken for good
            session.receive_data(b"x" * 1000)
            assert session.buffered == 0
            return
        feed()
        assert [plain(event) for event in heard] == step["events"]


def test_there_is_a_transcript_for_each_cell_of_the_table() -> None:
    names = {
        frame["frame"]
        for vector in VECTORS["transcripts"]
        for step in vector["steps"]
        for frame in step.get("events", [])
    }
    assert names == {kind.__name__ for kind in KINDS.values()} | {"StreamOver"}
    assert len({vector["name"] for vector in VECTORS["transcripts"]}) == len(VECTORS["transcripts"]) >= 40


# The page


def test_the_page_has_the_table_and_the_frames() -> None:
    rows = [
        [state.name, role.value, kind.__name__, to.name]
        for state in RequestState
        for role in Role
        for kind, to in TABLE[role].get(state, {}).items()
    ]
    assert table_after(readme("request"), "States") == rows
    frames = table_after(readme("request"), "Frames")
    assert [(int(row[0]), row[1]) for row in frames] == [(kind, cls.__name__) for kind, cls in KINDS.items()]
    assert "| 1A | Working Draft | Active |" in readme("request")


# Splits and mutants


def transcript() -> tuple[bytes, bytes]:
    """What each side says in a busy life of a stream: (requester, provider)."""
    asking, serving = AskingSession(), ServingSession(Limits(requests=8, request_bytes=65_536))
    to_server, to_client = b"", serving.begin()
    for size in (0, 1, 200, 11, 300):
        to_server += asking.ask(bytes(range(256))[:size] + bytes(max(0, size - 256)), 1_000 + size)[1]
    to_server += asking.cancel(2)
    serving.receive_data(to_server)
    events_of(serving)
    to_client += serving.reply(3, b"c" * 90) + serving.fault(2, WireCode.CANCELLED, "as you say")
    to_client += serving.drain() + serving.reply(1, b"") + serving.reply(5, b"e") + serving.reply(4, bytes(33))
    return to_server, to_client


def fresh(role: Role) -> Session:
    if role is Role.PROVIDER:
        serving = ServingSession(Limits(requests=8, request_bytes=65_536))
        serving.begin()
        return serving
    asking = AskingSession()
    for size in (0, 1, 200, 11, 300):
        asking.ask(bytes(size), 1_000)
    asking.cancel(2)
    return asking


def outcome(role: Role, pieces: list[bytes]) -> list[Any]:
    session, found = fresh(role), []
    for piece in pieces:
        try:
            session.receive_data(piece)
            events_of(session, found)
        except RemoteProtocolError as exc:
            return [*found, exc.code]
        assert session.buffered <= len(piece) + HEADER_BYTES + bounds.MAX_REQUEST_BODY_BYTES
    return found


@pytest.mark.parametrize("role", list(Role))
def test_every_split_gives_the_same_events(role: Role) -> None:
    data = transcript()[0 if role is Role.PROVIDER else 1]
    whole = outcome(role, [data])
    assert len(whole) >= 6
    assert not isinstance(whole[-1], WireCode)
    assert outcome(role, [bytes([byte]) for byte in data]) == whole
    for at in range(1, len(data)):
        assert outcome(role, [data[:at], data[at:]]) == whole


@pytest.mark.parametrize("role", list(Role))
def test_mutants_are_refused_or_are_the_only_form_of_what_they_say(role: Role) -> None:
    data, chance = transcript()[0 if role is Role.PROVIDER else 1], random.Random(SEED)
    refused = 0
    for mutant in mutants([data], heads=bytes([*KINDS, 0, 0xFF])):
        cut = chance.randrange(len(mutant) + 1)
        found = outcome(role, [piece for piece in (mutant[:cut], mutant[cut:]) if piece])
        assert found == outcome(role, [mutant] if mutant else []), mutant.hex()
        events = [event for event in found if not isinstance(event, WireCode)]
        refused += len(events) != len(found)
        said = b"".join(event.encode() for event in events)
        assert mutant.startswith(said), "an event that is not what the bytes say"
    assert MUTANTS // 10 < refused < MUTANTS


@pytest.mark.parametrize("role", list(Role))
@given(data=st.binary(min_size=12, max_size=200))
@settings(max_examples=150, deadline=None)
def test_noise(role: Role, data: bytes) -> None:
    outcome(role, [data])


# What a session refuses of its own side


def test_the_asking_side_keeps_to_the_limits() -> None:
    asking = AskingSession()
    for _ in range(bounds.INITIAL_REQUESTS):
        asking.ask(b"", 1)
    with pytest.raises(LocalProtocolError) as full:
        asking.ask(b"", 1)
    assert full.value.code is WireCode.NO_CAPACITY
    assert (asking.last, asking.under_way) == (bounds.INITIAL_REQUESTS,) * 2
    asking.receive_data(Limits(requests=9, request_bytes=65_536).encode())
    events_of(asking)
    assert asking.has_room(65_536)
    assert not asking.has_room(65_537)
    asking.ask(bytes(65_000), 1)
    for body, timeout_ms in ((b"", 0), (b"", bounds.MAX_REQUEST_MS + 1), (bytes(bounds.MAX_REQUEST_BODY_BYTES + 1), 1)):
        with pytest.raises(LocalProtocolError):
            asking.ask(body, timeout_ms)
    assert asking.bytes_under_way == 65_000


def test_a_cancelled_request_counts_until_it_is_answered() -> None:
    asking = AskingSession()
    for _ in range(bounds.INITIAL_REQUESTS):
        asking.ask(b"", 1)
    assert asking.cancel(1)
    assert not asking.cancel(1)
    assert not asking.has_room(0)  # else a storm of cancels would pass the limits
    asking.receive_data(
        Limits(requests=8, request_bytes=65_536).encode() + Fault(number=1, code=23, detail="").encode()
    )
    events_of(asking)
    assert asking.has_room(0)


def test_what_a_drain_leaves_out_is_free_again() -> None:
    asking = AskingSession()
    for _ in range(4):
        asking.ask(b"12", 1)
    asking.receive_data(Limits(requests=8, request_bytes=65_536).encode() + Drain(number=1).encode())
    assert events_of(asking)[-1] == Drain(number=1)
    assert (asking.under_way, asking.bytes_under_way, asking.takes_more) == (1, 2, False)
    with pytest.raises(LocalProtocolError) as draining:
        asking.ask(b"", 1)
    assert draining.value.code is WireCode.DRAINING


def test_the_answering_side_answers_once_and_only_what_was_asked() -> None:
    serving = ServingSession(Limits(requests=8, request_bytes=65_536))
    with pytest.raises(LocalProtocolError):
        serving.reply(1, b"")
    serving.begin()
    with pytest.raises(LocalProtocolError):
        serving.begin()
    serving.receive_data(Ask(number=1, timeout_ms=1, body=b"").encode())
    events_of(serving)
    with pytest.raises(LocalProtocolError):
        serving.reply(1, bytes(bounds.MAX_REQUEST_BODY_BYTES + 1))
    with pytest.raises(LocalProtocolError):
        serving.fault(1, WireCode.OK, "no code")
    with pytest.raises(LocalProtocolError):
        serving.fault(1, WireCode.INTERNAL, "a\nb")
    assert serving.under_way == 1  # nothing of that was an answer
    serving.reply(1, b"")
    with pytest.raises(LocalProtocolError):
        serving.reply(1, b"")


def test_requests_after_a_drain_are_bounded() -> None:
    serving = ServingSession(Limits(requests=8, request_bytes=65_536))
    serving.begin()
    serving.drain()
    assert serving.drain() == b""
    for number in range(1, 9):
        serving.receive_data(Ask(number=number, timeout_ms=1, body=b"x").encode())
        assert events_of(serving) == []
    assert (serving.under_way, serving.buffered) == (0, 0)
    serving.receive_data(Ask(number=9, timeout_ms=1, body=b"").encode())
    with pytest.raises(RemoteProtocolError) as refused:
        serving.next_event()
    assert refused.value.code is WireCode.OVERSIZED


def test_a_long_body_byte_by_byte_is_not_copied_again_and_again() -> None:
    serving = ServingSession(Limits(requests=8, request_bytes=bounds.MAX_REQUEST_BYTES))
    serving.begin()
    data = Ask(number=1, timeout_ms=1, body=bytes(100_000)).encode()
    grown = []
    for at in range(0, len(data), 1_000):
        serving.receive_data(data[at : at + 1_000])
        grown.append(id(serving._data))
        if at + 1_000 < len(data):
            assert serving.next_event() is NEED_DATA
    assert len(set(grown[2:])) == 1  # one buffer that grows in place
    assert serving.next_event() == Ask(number=1, timeout_ms=1, body=bytes(100_000))


class TwoSessions(RuleBasedStateMachine):
    """Both sides on two queues of bytes, cut anywhere: whatever they do, they agree when all has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.asking = AskingSession()
        self.serving = ServingSession(Limits(requests=10, request_bytes=66_000))
        self.to_server: deque[int] = deque()
        self.to_client: deque[int] = deque(self.serving.begin())
        self.bodies: dict[int, bytes] = {}
        self.taken: dict[int, bytes] = {}
        self.open: set[int] = set()  # asked and not answered, as the server sees it
        self.answers: dict[int, Any] = {}
        self.drained: int | None = None

    @precondition(lambda self: self.asking.takes_more)
    @rule(body=st.binary(max_size=40), ms=st.integers(1, 600_000))
    def ask(self, body: bytes, ms: int) -> None:
        if self.asking.has_room(len(body)):
            number, data = self.asking.ask(body, ms)
            self.bodies[number] = body
            self.to_server.extend(data)
        else:
            with pytest.raises(LocalProtocolError):
                self.asking.ask(body, ms)

    @precondition(lambda self: self.asking.last)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.to_server.extend(self.asking.cancel(data.draw(st.integers(1, self.asking.last))))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), body=st.binary(max_size=40), fails=st.booleans())
    def answer(self, data: st.DataObject, body: bytes, fails: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        self.open.discard(number)
        if fails:
            self.answers[number] = Fault(number=number, code=13, detail="no")
            self.to_client.extend(self.serving.fault(number, WireCode.NO_CAPACITY, "no"))
        else:
            self.answers[number] = Reply(number=number, body=body)
            self.to_client.extend(self.serving.reply(number, body))

    @rule()
    def drain(self) -> None:
        if self.serving.last > 3:
            self.to_client.extend(self.serving.drain())

    @rule(size=st.integers(1, 100))
    def to_the_server(self, size: int) -> None:
        piece = bytes(self.to_server.popleft() for _ in range(min(size, len(self.to_server))))
        if not piece:
            return
        self.serving.receive_data(piece)
        for event in events_of(self.serving):
            if isinstance(event, Ask):
                self.open.add(event.number)
                self.taken[event.number] = event.body
            else:
                assert isinstance(event, Cancel)
                assert event.number in self.open

    @rule(size=st.integers(1, 100))
    def to_the_client(self, size: int) -> None:
        piece = bytes(self.to_client.popleft() for _ in range(min(size, len(self.to_client))))
        if not piece:
            return
        self.asking.receive_data(piece)
        for event in events_of(self.asking):
            if isinstance(event, Reply | Fault):
                assert self.answers.pop(event.number) == event
            elif isinstance(event, Drain):
                self.drained = event.number

    @invariant()
    def both_agree(self) -> None:
        assert self.serving.under_way == len(self.open)
        assert all(self.bodies[number] == body for number, body in self.taken.items())
        if not self.to_server and not self.to_client and not self.asking.buffered and not self.serving.buffered:
            assert self.asking.under_way == self.serving.under_way
            assert self.asking.bytes_under_way == self.serving.bytes_under_way
            assert not self.answers


TwoSessions.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestTwoSessions = TwoSessions.TestCase
