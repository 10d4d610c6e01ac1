"""The session of our Yamux: every cell of its table, every cut of what it reads, its windows and its bounds."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from p2pcompute.overlay import yamux
from p2pcompute.overlay.yamux import (
    CHEAP_FRAMES_BURST,
    GROW_WITHIN_S,
    GROWTH_BYTES,
    INITIAL_WINDOW,
    MAX_STREAMS,
    MAX_UNREAD_BYTES,
    MAX_WINDOW,
    TRANSITIONS,
    Action,
    LocalYamuxError,
    Session,
    StreamState,
    Violation,
    _session,
)

from .._mutants import MUTANTS, SEED
from ._yamux_parts import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE, data, frame, parse, plain, sent


def listener() -> Session:
    return Session(initiator=False, now=0)


def fed(session: Session, *wire: bytes, now: float = 0) -> list[tuple[Any, ...]]:
    return plain(session.receive_data(b"".join(wire), now))


def opened(state: StreamState = StreamState.OPEN) -> Session:
    """A session whose stream 1, opened by the peer, is in `state`."""
    session = listener()
    fed(session, frame(WINDOW_UPDATE, SYN, 1, 0))
    if state is StreamState.PEER_FINISHED:
        fed(session, frame(WINDOW_UPDATE, FIN, 1, 0))
    elif state is StreamState.WE_FINISHED:
        session.finish(1)
    elif state is StreamState.OVER:
        session.reset(1)
    sent(session)
    return session


# What may happen to a stream


OURS: dict[Action, Callable[[Session], object]] = {
    Action.SEND_DATA: lambda session: session.send_data(1, memoryview(b"x"), 10),
    Action.SEND_FIN: lambda session: session.finish(1),
}
THEIRS: dict[Action, bytes] = {
    Action.RECEIVE_DATA: data(1, b"x"),
    Action.RECEIVE_WINDOW: frame(WINDOW_UPDATE, 0, 1, 5),
    Action.RECEIVE_FIN: frame(WINDOW_UPDATE, FIN, 1, 0),
    Action.RECEIVE_RST: frame(WINDOW_UPDATE, RST, 1, 0),
}


@pytest.mark.parametrize("state", StreamState)
@pytest.mark.parametrize("action", [*OURS, *THEIRS])
def test_every_cell_of_the_table(state: StreamState, action: Action) -> None:
    session = opened(state)
    expected = TRANSITIONS[state].get(action)
    if action in OURS:
        if expected is None:
            with pytest.raises(LocalYamuxError):
                OURS[action](session)
            assert session.pending_bytes == 0
            return
        OURS[action](session)
        assert session.pending_bytes
    else:
        events = fed(session, THEIRS[action])
        if state is StreamState.OVER:
            assert events == []  # what crosses our end is ignored
            return
        if expected is None:
            assert events == [(yamux.SessionBroken(violation=Violation.DATA_AFTER_FIN),)]
            return
    assert session.state_of(1) is expected


@pytest.mark.parametrize("state", StreamState)
def test_a_reset_of_ours_is_said_once(state: StreamState) -> None:
    session = opened(state)
    session.reset(1)
    session.reset(1)
    assert (Action.SEND_RST in TRANSITIONS[state]) is bool(session.pending_bytes)
    assert session.state_of(1) is StreamState.OVER
    assert [found[:3] for found in parse(sent(session))] in ([], [(WINDOW_UPDATE, RST, 1)])


@pytest.mark.parametrize("state", StreamState)
def test_window_goes_back_only_where_something_may_come(state: StreamState) -> None:
    session = listener()
    fed(session, data(1, bytes(INITIAL_WINDOW), SYN))
    if state is StreamState.PEER_FINISHED:
        fed(session, frame(WINDOW_UPDATE, FIN, 1, 0))
    elif state is StreamState.WE_FINISHED:
        session.finish(1)
    elif state is StreamState.OVER:
        session.reset(1)
    sent(session)
    session.consumed(1, INITIAL_WINDOW, 0)
    assert bool(session.pending_bytes) is (Action.SEND_WINDOW in TRANSITIONS[state])
    assert session.unread_bytes == 0


@pytest.mark.parametrize(
    ("violation", "wire"),
    [
        (Violation.VERSION, frame(DATA, 0, 1, 0, version=1)),
        (Violation.FRAME_TYPE, frame(4, 0, 1, 0)),
        (Violation.NO_STREAM, data(0, b"x")),
        (Violation.NO_STREAM, frame(WINDOW_UPDATE, 0, 0, 0)),
        (Violation.STREAM_ID, frame(WINDOW_UPDATE, SYN, 2, 0)),
        (Violation.STREAM_ID, frame(WINDOW_UPDATE, SYN, 0, 0)),
        (Violation.STREAM_ID, frame(WINDOW_UPDATE, SYN, 1, 0) * 2),
        (Violation.DATA_AFTER_FIN, data(1, b"x", SYN | FIN) + data(1, b"x")),
        (Violation.BEYOND_WINDOW, frame(DATA, SYN, 1, INITIAL_WINDOW + 1)),
        (Violation.BEYOND_WINDOW, data(1, bytes(INITIAL_WINDOW), SYN) + data(1, b"x")),
        (Violation.BEYOND_WINDOW, frame(DATA, 0, 1, MAX_WINDOW + 1)),
        (Violation.WINDOW_OVERFLOW, frame(WINDOW_UPDATE, SYN, 1, 0xFFFF_FFFF)),
    ],
    ids=lambda value: value.name if isinstance(value, Violation) else "",
)
def test_each_violation_by_its_name(violation: Violation, wire: bytes) -> None:
    session = listener()
    assert fed(session, wire)[-1] == (yamux.SessionBroken(violation=violation),)
    assert parse(sent(session))[-1][:4] == (GO_AWAY, 0, 0, 1)
    assert fed(session, frame(PING, SYN, 0, 1)) == []  # nothing is read any more
    assert session.pending_bytes == 0
    with pytest.raises(LocalYamuxError):
        session.open_stream(0)


def test_a_frame_up_to_the_window_is_taken_however_long() -> None:
    session = listener()
    assert fed(session, data(1, bytes(INITIAL_WINDOW), SYN))[1:] == [("data", 1, bytes(INITIAL_WINDOW))]
    session.consumed(1, INITIAL_WINDOW, 0)
    session.receive_data(data(1, bytes(2 * INITIAL_WINDOW)), 0)
    session.consumed(1, 2 * INITIAL_WINDOW, 0)
    assert fed(session, data(1, bytes(1 << 20))) == [("data", 1, bytes(1 << 20))]


def test_flags_count_on_every_kind_of_frame() -> None:
    session = listener()
    assert fed(session, data(1, b"a", SYN | FIN)) == [
        (yamux.StreamOpened(stream_id=1),),
        ("data", 1, b"a"),
        (yamux.StreamFinished(stream_id=1),),
    ]
    assert fed(session, frame(WINDOW_UPDATE, SYN | FIN, 3, 7)) == [
        (yamux.StreamOpened(stream_id=3),),
        (yamux.WindowOpened(stream_id=3),),
        (yamux.StreamFinished(stream_id=3),),
    ]
    assert session.send_window(3) == INITIAL_WINDOW + 7
    assert fed(session, data(5, b"b", SYN | RST)) == [
        (yamux.StreamOpened(stream_id=5),),
        ("data", 5, b"b"),
        (yamux.StreamReset(stream_id=5, by_peer=True),),
    ]
    ours = session.open_stream(0)
    assert ours == 2
    assert session.unacknowledged == 1
    assert fed(session, data(2, b"c", ACK)) == [(yamux.StreamAcknowledged(stream_id=2),), ("data", 2, b"c")]
    assert session.unacknowledged == 0


def test_ids_are_by_role_and_acknowledged_at_once() -> None:
    dialler, answerer = Session(initiator=True, now=0), Session(initiator=False, now=0)
    assert [dialler.open_stream(0) for _ in range(3)] == [1, 3, 5]
    assert [answerer.open_stream(0) for _ in range(3)] == [2, 4, 6]
    answerer.receive_data(sent(dialler), 0)
    assert [f[:3] for f in parse(sent(answerer))][3:] == [(WINDOW_UPDATE, ACK, i) for i in (1, 3, 5)]


def test_pings_are_answered_and_pongs_told() -> None:
    session = listener()
    assert fed(session, frame(PING, SYN, 0, 77)) == []
    assert parse(sent(session)) == [(PING, ACK, 0, 77, b"")]
    session.ping(5)
    assert parse(sent(session)) == [(PING, SYN, 0, 5, b"")]
    assert fed(session, frame(PING, ACK, 0, 5)) == [(yamux.PongReceived(nonce=5),)]


@pytest.mark.parametrize("code", [0, 1, 2, 99])
def test_a_go_away_is_told_with_its_code(code: int) -> None:
    session = listener()
    assert fed(session, frame(GO_AWAY, 0, 0, code)) == [(yamux.GoneAway(code=code),)]
    with pytest.raises(LocalYamuxError, match="no more streams"):
        session.open_stream(0)
    assert not session.can_open()


def test_after_our_go_away_streams_are_refused_and_those_open_go_on() -> None:
    session = opened()
    session.go_away(0)
    sent(session)
    assert fed(session, frame(WINDOW_UPDATE, SYN, 3, 0), data(1, b"x")) == [("data", 1, b"x")]
    assert [f[:3] for f in parse(sent(session))] == [(WINDOW_UPDATE, RST, 3)]


def test_what_is_sent_is_a_view_of_what_was_given() -> None:
    session = opened()
    payload = bytearray(b"payload")
    assert session.send_data(1, memoryview(payload), 4) == 4
    assert session.send_data(1, memoryview(payload)[4:], 4) == 3
    parts = session.data_to_send()
    assert [part.obj is payload for part in parts if isinstance(part, memoryview)] == [True, True]
    assert parse(b"".join(parts)) == [(DATA, 0, 1, 4, b"payl"), (DATA, 0, 1, 3, b"oad")]


def test_nothing_is_sent_beyond_the_window() -> None:
    session = opened()
    payload = memoryview(bytes(2 * INITIAL_WINDOW))
    assert session.send_data(1, payload, len(payload)) == INITIAL_WINDOW
    assert session.send_data(1, payload, len(payload)) == 0
    fed(session, frame(WINDOW_UPDATE, 0, 1, 10))
    assert session.send_data(1, payload, len(payload)) == 10


# Windows


def pour(session: Session, stream_id: int, count: int, now: float) -> None:
    """Receive and consume `count` bytes, as a reader that keeps up does."""
    while count:
        piece = min(count, session.receive_window(stream_id), 1 << 20)
        events = session.receive_data(data(stream_id, bytes(piece)), now)
        assert len(events) == 1
        session.consumed(stream_id, piece, now)
        count -= piece


def test_a_window_doubles_up_to_its_bound_for_a_reader_that_keeps_up() -> None:
    session = opened()
    seen = []
    for _ in range(40):
        pour(session, 1, INITIAL_WINDOW, 0)
        seen.append(session.receive_window(1))
    assert max(seen) <= MAX_WINDOW
    assert session.receive_window(1) > MAX_WINDOW // 2
    deltas = [f[3] for f in parse(sent(session)) if f[0] == WINDOW_UPDATE]
    assert deltas[0] >= INITIAL_WINDOW  # credit, and as much again
    assert len(deltas) < 10  # nobody pays a frame a read


def test_a_window_stays_for_a_reader_that_is_slow() -> None:
    session = opened()
    for step in range(50):
        pour(session, 1, INITIAL_WINDOW // 2, (step + 1) * (GROW_WITHIN_S + 1))
    assert session.receive_window(1) <= INITIAL_WINDOW


def test_a_window_does_not_grow_for_what_is_thrown_away() -> None:
    session = opened()
    for _ in range(10):
        fed(session, data(1, bytes(INITIAL_WINDOW // 2)))
        session.consumed(1, INITIAL_WINDOW // 2, 0, grow=False)
    assert session.receive_window(1) == INITIAL_WINDOW


def test_credit_comes_at_half_a_window() -> None:
    session = opened()
    fed(session, data(1, bytes(INITIAL_WINDOW)))
    session.consumed(1, INITIAL_WINDOW // 2 - 1, 0)
    assert session.pending_bytes == 0
    session.consumed(1, 1, 0)
    assert session.pending_bytes == 12


def test_windows_of_all_streams_grow_from_one_purse() -> None:
    session = listener()
    ids = range(1, 41, 2)
    for stream_id in ids:
        fed(session, frame(WINDOW_UPDATE, SYN, stream_id, 0))
    for _ in range(40):
        for stream_id in ids:
            pour(session, stream_id, INITIAL_WINDOW, 0)
    windows = [session.receive_window(i) for i in ids]
    assert sum(windows) <= GROWTH_BYTES + len(ids) * INITIAL_WINDOW
    assert sum(windows) > GROWTH_BYTES // 2
    for stream_id in ids:  # what a stream took it gives back
        fed(session, frame(WINDOW_UPDATE, RST, stream_id, 0))
    fed(session, frame(WINDOW_UPDATE, SYN, 101, 0))
    for _ in range(40):
        pour(session, 101, INITIAL_WINDOW, 0)
    assert session.receive_window(101) > MAX_WINDOW // 2


def unread_of(streams: int, session: Session) -> int:
    """The peer fills the windows of so many streams that nobody reads; the most that was held."""
    most = 0
    for number in range(streams):
        stream_id = 2 * number + 1
        session.receive_data(data(stream_id, bytes(INITIAL_WINDOW), SYN), 0)
        most = max(most, session.unread_bytes)
    return most


def test_what_nobody_reads_is_bounded_over_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    session = listener()
    full = MAX_UNREAD_BYTES // INITIAL_WINDOW
    assert unread_of(2 * full, session) == MAX_UNREAD_BYTES
    resets = [f[2] for f in parse(sent(session)) if f[1] & RST]
    assert resets == [2 * number + 1 for number in range(full, 2 * full)]  # those that were too much, no others
    session.consumed(1, INITIAL_WINDOW, 0)
    assert fed(session, data(999, b"there is room again", SYN))[-1] == ("data", 999, b"there is room again")
    monkeypatch.setattr(_session, "MAX_UNREAD_BYTES", 1 << 40)
    assert unread_of(2 * full, listener()) == 2 * MAX_UNREAD_BYTES  # without the bound


def test_what_a_stream_held_is_free_once_it_is_over() -> None:
    for end in (frame(WINDOW_UPDATE, RST, 1, 0), frame(WINDOW_UPDATE, FIN, 1, 0)):
        session = listener()
        fed(session, data(1, bytes(1000), SYN))
        assert session.unread_bytes == 1000
        session.finish(1)
        fed(session, end)
        assert (session.unread_bytes, session.streams) == (0, 0)


# Floods


FLOODS = {
    "pings": frame(PING, SYN, 0, 1),
    "pongs": frame(PING, ACK, 0, 1),
    "empty data": frame(DATA, 0, 1, 0),
    "empty data for nobody": frame(DATA, 0, 99, 0),
    "window of nothing": frame(WINDOW_UPDATE, 0, 1, 0),
    "single bytes": data(1, b"x"),
    "go-aways": frame(GO_AWAY, 0, 0, 0),
}


def flood(session: Session, one: bytes, rounds: int, per_s: float) -> int:
    """Send `one` again and again, read everything, and say how many frames were taken."""
    taken = 0
    for number in range(rounds):
        events = session.receive_data(one * 100, number * 100 / per_s)
        session.data_to_send()
        for event in events:
            if isinstance(event, yamux.SessionBroken):
                assert event.violation is Violation.TOO_MANY_FRAMES
                return taken
            if isinstance(event, yamux.DataReceived):
                session.consumed(event.stream_id, len(event.data), number * 100 / per_s)
        taken += 100
    return taken


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_that_carry_nothing_ends_the_session(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 3 * CHEAP_FRAMES_BURST // 100
    assert flood(opened(), FLOODS[name], rounds, per_s=1e6) < 1.1 * CHEAP_FRAMES_BURST
    assert flood(opened(), FLOODS[name], rounds, per_s=5_000) == 100 * rounds  # what an honest peer may need
    monkeypatch.setattr(_session, "CHEAP_FRAMES_BURST", 1e12)
    assert flood(opened(), FLOODS[name], rounds, per_s=1e6) == 100 * rounds  # without the bound it goes on


def test_updates_for_what_we_send_are_no_flood() -> None:
    """A peer that gives window back with every 16 KiB that it reads."""
    session, payload = opened(), memoryview(bytes(16 * 1024))
    for _ in range(3 * CHEAP_FRAMES_BURST):
        assert session.send_data(1, payload, len(payload)) == len(payload)
        session.data_to_send()
        assert fed(session, frame(WINDOW_UPDATE, 0, 1, len(payload))) == [(yamux.WindowOpened(stream_id=1),)]


def reset_flood(session: Session, count: int) -> int:
    """Open and reset, as in CVE-2023-44487; how many streams were opened before the session ended."""
    for number in range(count):
        wire = frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0) + frame(WINDOW_UPDATE, RST, 2 * number + 1, 0)
        events = session.receive_data(wire, 0)
        session.data_to_send()
        if events[-1] == yamux.SessionBroken(violation=Violation.TOO_MANY_RESETS):
            return number
    return count


def test_streams_opened_and_reset_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reset_flood(listener(), 5_000) == yamux.RESETS_BURST
    monkeypatch.setattr(_session, "RESETS_BURST", 1e12)
    assert reset_flood(listener(), 5_000) == 5_000


def test_ten_thousand_streams_of_one_peer_are_refused_beyond_the_bound() -> None:
    session = listener()
    events = fed(session, *(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0) for number in range(10_000)))
    assert len(events) == session.streams == MAX_STREAMS
    flags = [f[1] for f in parse(sent(session))]
    assert flags == [ACK] * MAX_STREAMS + [RST] * (10_000 - MAX_STREAMS)


# Cuts and mutants


def transcripts() -> dict[str, bytes]:
    syn = frame(WINDOW_UPDATE, SYN, 1, 0)
    return {
        "dialogue": syn + data(1, b"hello") + frame(PING, SYN, 0, 9) + data(1, b"!", FIN),
        "two streams": syn + data(3, b"first", SYN) + data(1, b"one") + data(3, b"three") + frame(DATA, FIN, 1, 0),
        "resets": syn
        + data(1, b"half")
        + frame(WINDOW_UPDATE, RST, 1, 0)
        + data(1, b"late")
        + data(3, b"x", SYN | RST),
        "windows": syn + frame(WINDOW_UPDATE, 0, 1, 1000) + frame(WINDOW_UPDATE, FIN, 1, 5) + frame(PING, ACK, 0, 3),
        "for nobody": data(7, b"nobody", FIN) + frame(WINDOW_UPDATE, 0, 7, 1) + frame(WINDOW_UPDATE, ACK, 2, 0),
        "beyond": syn + data(1, b"in") + frame(DATA, 0, 1, INITIAL_WINDOW) + b"never read",
        "after the end": syn + data(1, b"end", FIN) + data(1, b"more") + frame(PING, SYN, 0, 1),
        "goes away": data(1, b"bye", SYN) + frame(GO_AWAY, 0, 0, 0) + data(1, b"still"),
        "cut off": syn + data(1, b"0123456789")[:17],
    }


def result(pieces: list[bytes], limit: int = 1 << 30) -> tuple[list[tuple[Any, ...]], bytes, int, bool]:
    """All that can be seen of a session that was given these pieces."""
    session = listener()
    events: list[tuple[Any, ...]] = []
    for piece in pieces:
        rest = piece
        while rest:
            events += [
                ("data", event.stream_id, bytes(event.data)) if isinstance(event, yamux.DataReceived) else (event,)
                for event in session.receive_data(rest, 0, limit=limit)
            ]
            rest = rest[session.taken :]
    return joined(events), sent(session), session.unread_bytes, session.mid_frame


def joined(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for event in events:
        if found and event[0] == found[-1][0] == "data" and event[1] == found[-1][1]:
            found[-1] = (*event[:2], found[-1][2] + event[2])
        else:
            found.append(event)
    return found


@pytest.mark.parametrize("name", transcripts())
def test_every_cut_gives_the_same_events(name: str) -> None:
    wire = transcripts()[name]
    whole = result([wire])
    assert len(whole[0]) > 1 or name == "for nobody"
    for limit in (1, 2, 3):
        assert result([wire], limit) == whole
    for cut in range(len(wire) + 1):
        assert result([wire[:cut], wire[cut:]]) == whole
    assert result([wire[i : i + 1] for i in range(len(wire))]) == whole


def mutate(rng: random.Random, wire: bytes) -> bytes:
    changed = bytearray(wire)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.randrange(1, 14))
        elif kind == 4:
            start = rng.randrange(len(wire))
            changed[at:at] = wire[start : start + 12]
        else:  # another frame on the same few streams
            header = (0, rng.randrange(5), rng.randrange(16), rng.randrange(8), rng.choice((0, 1, 9, 1 << 18, 1 << 31)))
            changed[at:at] = struct.pack("!BBHII", *header)
    return bytes(changed)


def check_sense(events: list[tuple[Any, ...]]) -> None:
    """Nothing is said of a stream before it is opened or after it is over, and nothing after the session broke."""
    known: set[int] = set()
    for number, event in enumerate(events):
        if event[0] == "data":
            assert event[1] in known
            assert event[2]
            continue
        (found,) = event
        if isinstance(found, yamux.StreamOpened):
            assert found.stream_id not in known
            assert found.stream_id % 2 == 1
            known.add(found.stream_id)
        elif isinstance(found, yamux.StreamReset):
            known.remove(found.stream_id)
        elif isinstance(found, yamux.StreamFinished | yamux.WindowOpened):
            assert found.stream_id in known
        elif isinstance(found, yamux.SessionBroken):
            assert number == len(events) - 1


def test_mutants_of_transcripts_break_nothing() -> None:
    rng = random.Random(SEED)
    bases = list(transcripts().values())
    broken = 0
    for number in range(MUTANTS):
        wire = mutate(rng, bases[number % len(bases)])
        cut = rng.randrange(len(wire) + 1)
        whole = result([wire])
        assert result([wire[:cut], wire[cut:]]) == whole
        check_sense(whole[0])
        broken += whole[0] != [] and isinstance(whole[0][-1][0], yamux.SessionBroken)
    assert MUTANTS // 20 < broken < MUTANTS  # it looked at both
