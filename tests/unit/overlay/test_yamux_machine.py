"""Two sessions of our Yamux back to back, against a model of what streams of bytes are."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from p2pcompute.overlay import yamux
from p2pcompute.overlay.yamux import INITIAL_WINDOW, MAX_UNREAD_BYTES, MAX_WINDOW, LocalYamuxError, Session, StreamState


@dataclass
class Half:
    """One direction of a stream, as its users see it."""

    sent: bytearray = field(default_factory=bytearray)
    finished: bool = False
    got: bytearray = field(default_factory=bytearray)
    unread: int = 0
    saw_end: bool = False


@dataclass
class Model:
    halves: tuple[Half, Half] = field(default_factory=lambda: (Half(), Half()))
    reset_by: set[int] = field(default_factory=set)
    saw_reset: set[int] = field(default_factory=set)
    known: set[int] = field(default_factory=set)


class BackToBack(RuleBasedStateMachine):
    """Side 0 dials. Bytes are in flight for as long as it pleases, and arrive in any pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sides = (Session(initiator=True, now=0), Session(initiator=False, now=0))
        self.wires = (bytearray(), bytearray())
        self.streams: dict[int, Model] = {}
        self.pings = (deque[int](), deque[int]())
        self.counter = 0

    def pick(self, number: int) -> int:
        return sorted(self.streams)[number % len(self.streams)]

    def flush(self, side: int) -> None:
        for part in self.sides[side].data_to_send():
            self.wires[side].extend(part)

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        stream_id = self.sides[side].open_stream(self.now)
        assert stream_id not in self.streams
        assert stream_id % 2 == (side == 0)
        self.streams[stream_id] = Model(known={side})

    @precondition(lambda self: self.streams)
    @rule(side=st.integers(0, 1), number=st.integers(0, 99), size=st.sampled_from([1, 100, 70_000, INITIAL_WINDOW + 5]))
    def send(self, side: int, number: int, size: int) -> None:
        stream_id = self.pick(number)
        model, session = self.streams[stream_id], self.sides[side]
        half = model.halves[side]
        if side not in model.known:
            return
        self.counter += 1
        payload = bytes([self.counter % 251]) * size
        window = session.send_window(stream_id)
        if half.finished or side in model.reset_by | model.saw_reset:
            with pytest.raises(LocalYamuxError):
                session.send_data(stream_id, memoryview(payload), size)
            return
        count = session.send_data(stream_id, memoryview(payload), size)
        assert count == min(size, window)
        half.sent += payload[:count]
        self.flush(side)

    @precondition(lambda self: self.streams)
    @rule(side=st.integers(0, 1), number=st.integers(0, 99))
    def finish(self, side: int, number: int) -> None:
        stream_id = self.pick(number)
        model = self.streams[stream_id]
        if side not in model.known or model.halves[side].finished or side in model.reset_by | model.saw_reset:
            return
        self.sides[side].finish(stream_id)
        model.halves[side].finished = True

    @precondition(lambda self: self.streams)
    @rule(side=st.integers(0, 1), number=st.integers(0, 99))
    def reset(self, side: int, number: int) -> None:
        stream_id = self.pick(number)
        model = self.streams[stream_id]
        if side in model.known and self.sides[side].state_of(stream_id) is not StreamState.OVER:
            self.sides[side].reset(stream_id)
            model.reset_by.add(side)
            model.halves[1 - side].unread = 0

    @precondition(lambda self: self.streams)
    @rule(side=st.integers(0, 1), number=st.integers(0, 99), share=st.sampled_from([0.1, 0.5, 1.0]))
    def read(self, side: int, number: int, share: float) -> None:
        stream_id = self.pick(number)
        half = self.streams[stream_id].halves[1 - side]
        count = int(half.unread * share)
        half.unread -= count
        self.sides[side].consumed(stream_id, count, self.now)

    @rule(side=st.integers(0, 1), nonce=st.integers(0, 0xFFFF_FFFF))
    def ping(self, side: int, nonce: int) -> None:
        self.sides[side].ping(nonce)
        self.pings[side].append(nonce)

    @rule(seconds=st.sampled_from([0.01, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(side=st.integers(0, 1), size=st.sampled_from([1, 11, 13, 65_519, 1 << 20]))
    def arrive(self, side: int, size: int) -> None:
        """Some of what `side` sent reaches the other."""
        self.flush(side)
        wire, other = self.wires[side], 1 - side
        piece = bytes(wire[:size])
        del wire[:size]
        for event in self.sides[other].receive_data(piece, self.now):
            self.on_event(other, event)

    def on_event(self, side: int, event: yamux.Event) -> None:
        if isinstance(event, yamux.PongReceived):
            assert event.nonce == self.pings[side].popleft()
            return
        assert not isinstance(event, yamux.SessionBroken | yamux.GoneAway), event
        model = self.streams[event.stream_id]
        half = model.halves[1 - side]
        if isinstance(event, yamux.StreamOpened):
            assert side not in model.known
            model.known.add(side)
            return
        assert side in model.known
        assert side not in model.reset_by | model.saw_reset  # nothing comes after the end
        if isinstance(event, yamux.DataReceived):
            assert not half.saw_end
            half.got += event.data
            half.unread += len(event.data)
        elif isinstance(event, yamux.StreamFinished):
            assert half.finished
            assert half.got == half.sent  # all of it came before its end
            half.saw_end = True
        elif isinstance(event, yamux.StreamReset):
            assert event.by_peer
            assert 1 - side in model.reset_by
            model.saw_reset.add(side)
            half.unread = 0

    @invariant()
    def what_came_is_what_was_sent(self) -> None:
        for model in self.streams.values():
            for half in model.halves:
                assert half.sent.startswith(half.got)

    @invariant()
    def memory_is_bounded(self) -> None:
        for side, session in enumerate(self.sides):
            assert 0 <= session.unread_bytes <= MAX_UNREAD_BYTES
            live = sum(
                model.halves[1 - side].unread
                for stream_id, model in self.streams.items()
                if session.state_of(stream_id) is not StreamState.OVER
            )
            assert session.unread_bytes == live
            for stream_id in self.streams:
                assert session.receive_window(stream_id) <= MAX_WINDOW

    def teardown(self) -> None:
        """All that is under way arrives, and all is read: then both sides know the same, and nothing is held."""
        for _ in range(4):
            for side in (0, 1):
                self.flush(side)
                while self.wires[side]:
                    self.arrive(side, 1 << 20)
        for stream_id, model in self.streams.items():
            for side, session in enumerate(self.sides):
                half = model.halves[1 - side]
                if not model.reset_by:
                    assert half.got == half.sent
                    assert half.saw_end is half.finished
                session.consumed(stream_id, half.unread, self.now)
                half.unread = 0
            states = {session.state_of(stream_id) is StreamState.OVER for session in self.sides}
            assert len(states) == 1
        assert all(session.unread_bytes == session.unacknowledged == 0 for session in self.sides)
        assert not any(self.pings)


BackToBack.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBackToBack = BackToBack.TestCase
