"""One end of a Yamux connection, sans-IO."""

from __future__ import annotations

import sys

from ._events import (
    DataReceived,
    Event,
    GoneAway,
    PongReceived,
    SessionBroken,
    StreamAcknowledged,
    StreamFinished,
    StreamOpened,
    StreamReset,
    Violation,
    WindowOpened,
)
from ._frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    GO_AWAY_PROTOCOL_ERROR,
    HEADER,
    PING,
    RST,
    SYN,
    VERSION,
    WINDOW_UPDATE,
)
from ._limits import (
    ACK_BACKLOG,
    CHEAP_FRAMES_BURST,
    CHEAP_FRAMES_PER_S,
    GROW_WITHIN_S,
    GROWTH_BYTES,
    INITIAL_WINDOW,
    MAX_STREAM_ID,
    MAX_STREAMS,
    MAX_UNREAD_BYTES,
    MAX_WINDOW,
    PAID_PER_BYTE,
    RESETS_BURST,
    RESETS_PER_S,
    TINY_PAYLOAD,
)
from ._state import TRANSITIONS, Action, StreamState

__all__ = ["LocalYamuxError", "Session"]

_HEADER_BYTES = HEADER.size


class LocalYamuxError(Exception):
    """The caller asked for what the protocol or its limits do not allow; the message says what."""


class _BrokenError(Exception):
    def __init__(self, violation: Violation) -> None:
        super().__init__(violation.value)
        self.violation = violation


class _Bucket:
    """So many at once, and so many a second after that."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: float, per_s: float, now: float) -> None:
        self._left = self._burst = burst
        self._per_s = per_s
        self._at = now

    def take(self, now: float) -> bool:
        if self._left < 1:
            self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_s)
            self._at = now
        self._left -= 1
        return self._left >= 0

    def give(self, count: float) -> None:
        self._left = min(self._burst, self._left + count)


class _Stream:
    __slots__ = (
        "acknowledged",
        "credited_at",
        "inbound",
        "receive_window",
        "send_window",
        "state",
        "stream_id",
        "target",
        "unread",
    )

    def __init__(self, stream_id: int, *, inbound: bool, now: float) -> None:
        self.stream_id = stream_id
        self.inbound = inbound
        self.state = StreamState.OPEN
        self.acknowledged = inbound
        self.send_window = INITIAL_WINDOW
        self.receive_window = INITIAL_WINDOW  # what the peer may still send
        self.target = INITIAL_WINDOW  # what it may have sent and we not read
        self.unread = 0
        self.credited_at = now


class Session:
    """One end of a connection. `receive_data` gives events; everything else puts frames into `data_to_send`.

    Args:
        initiator: whether we dialled; then our streams have odd IDs.
        now: seconds of any clock that does not go back, here and in every other call.
    """

    def __init__(self, *, initiator: bool, now: float) -> None:
        self._initiator = initiator
        self._next_id = 1 if initiator else 2
        self._streams: dict[int, _Stream] = {}
        self._inbound = 0
        self._unacknowledged = 0
        self._unread = 0
        self._growth_left = GROWTH_BYTES
        self._broken = False
        self.taken = 0  # of what was received last
        self._gone_away = False
        self._cheap = _Bucket(CHEAP_FRAMES_BURST, CHEAP_FRAMES_PER_S, now)
        self._resets = _Bucket(RESETS_BURST, RESETS_PER_S, now)
        # Reading: a header that is not whole yet, or the payload that we are in
        self._head = bytearray()
        self._payload_of: _Stream | None = None
        self._payload_left = 0
        self._payload_flags = 0
        # Writing
        self._parts: list[bytearray | memoryview] = []
        self._tail: bytearray | None = None
        self._pending_bytes = 0

    # What there is

    @property
    def streams(self) -> int:
        """How many streams are open, in both directions together."""
        return len(self._streams)

    @property
    def unread_bytes(self) -> int:
        """What was received and not consumed, of all streams."""
        return self._unread

    @property
    def unacknowledged(self) -> int:
        """How many streams we opened that the peer has not answered."""
        return self._unacknowledged

    @property
    def pending_bytes(self) -> int:
        """How much `data_to_send` would give."""
        return self._pending_bytes

    @property
    def mid_frame(self) -> bool:
        """Whether the peer owes us the rest of a frame, so that an end here is no orderly one."""
        return bool(self._head) or self._payload_left > 0

    def state_of(self, stream_id: int) -> StreamState:
        stream = self._streams.get(stream_id)
        return StreamState.OVER if stream is None else stream.state

    def unread_of(self, stream_id: int) -> int:
        """What was received on the stream and not consumed; 0 for one that is over."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.unread

    def send_window(self, stream_id: int) -> int:
        """How many bytes may be sent on the stream now; 0 for one that is over."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.send_window

    def receive_window(self, stream_id: int) -> int:
        """How many bytes the peer may still send on the stream; 0 for one that is over."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.receive_window

    # Sending

    def data_to_send(self) -> list[bytearray | memoryview]:
        """All that waits to be sent, in order; it is the caller's then. Payloads are views of what was given."""
        parts = self._parts
        self._parts = []
        self._tail = None
        self._pending_bytes = 0
        return parts

    def can_open(self) -> bool:
        """Whether `open_stream` needs to wait for nothing but the peer's answers to streams before."""
        return not self._gone_away and len(self._streams) - self._inbound < MAX_STREAMS

    def open_stream(self, now: float) -> int:
        """Open a stream and give its ID.

        Raises:
            LocalYamuxError: too many are open or not answered, or one of the sides has gone away.
        """
        if self._gone_away or self._broken:
            raise LocalYamuxError("the peer opens and takes no more streams")
        if len(self._streams) - self._inbound >= MAX_STREAMS:
            raise LocalYamuxError("too many streams on this connection")
        if self._unacknowledged >= ACK_BACKLOG:
            raise LocalYamuxError("the peer has not answered the streams before this one")
        if self._next_id > MAX_STREAM_ID:
            raise LocalYamuxError("this connection has no stream IDs left")
        stream_id = self._next_id
        self._next_id += 2
        self._streams[stream_id] = _Stream(stream_id, inbound=False, now=now)
        self._unacknowledged += 1
        self._put(WINDOW_UPDATE, SYN, stream_id, 0)
        return stream_id

    def send_data(self, stream_id: int, data: memoryview, limit: int) -> int:
        """Put the beginning of `data` into one frame, as far as window and `limit` go, and give its length.

        Raises:
            LocalYamuxError: the stream is over, or we finished it.
        """
        stream = self._step(stream_id, Action.SEND_DATA)
        count = min(len(data), limit, stream.send_window)
        if count:
            stream.send_window -= count
            self._put(DATA, 0, stream_id, count)
            self._parts.append(data if count == len(data) else data[:count])
            self._tail = None
            self._pending_bytes += count
            self._cheap.give(count * PAID_PER_BYTE)
        return count

    def finish(self, stream_id: int) -> None:
        """Say that no more comes on the stream. Raises LocalYamuxError where that was said, or it is over."""
        stream = self._step(stream_id, Action.SEND_FIN)
        self._put(WINDOW_UPDATE, FIN, stream_id, 0)
        if stream.state is StreamState.OVER:
            self._forget(stream)

    def reset(self, stream_id: int) -> None:
        """Break the stream in both directions; nothing on one that is over."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.state = StreamState.OVER
            self._forget(stream)
            self._put(WINDOW_UPDATE, RST, stream_id, 0)

    def consumed(self, stream_id: int, count: int, now: float, *, grow: bool = True) -> None:
        """Say that `count` received bytes no longer take memory; gives window back once it is half used up.

        So a reader of single bytes costs no frame a byte. A window doubles, up to `MAX_WINDOW` and while
        `GROWTH_BYTES` last, where half of it was read within `GROW_WITHIN_S`, unless `grow` is False.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.unread -= count
        self._unread -= count
        if Action.SEND_WINDOW not in TRANSITIONS[stream.state]:
            return
        delta = stream.target - stream.receive_window - stream.unread
        if delta < stream.target // 2:
            return
        if grow and stream.target < MAX_WINDOW and now - stream.credited_at <= GROW_WITHIN_S:
            more = min(stream.target, MAX_WINDOW - stream.target)
            if more <= self._growth_left:
                self._growth_left -= more
                stream.target += more
                delta += more
        stream.credited_at = now
        stream.receive_window += delta
        self._put(WINDOW_UPDATE, 0, stream_id, delta)

    def ping(self, nonce: int) -> None:
        """Ask the peer for a sign of life; `PongReceived` has the same number (32 bits)."""
        self._put(PING, SYN, 0, nonce)

    def go_away(self, code: int) -> None:
        """Say that no more streams are opened or taken."""
        self._gone_away = True
        self._put(GO_AWAY, 0, 0, code)

    def _put(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        header = HEADER.pack(VERSION, kind, flags, stream_id, length)
        tail = self._tail
        if tail is None:
            self._tail = tail = bytearray(header)
            self._parts.append(tail)
        else:
            tail += header
        self._pending_bytes += _HEADER_BYTES

    def _step(self, stream_id: int, action: Action) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise LocalYamuxError("the stream is over")
        state = TRANSITIONS[stream.state].get(action)
        if state is None:
            raise LocalYamuxError("our side of the stream is finished")
        stream.state = state
        return stream

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.stream_id]
        self._inbound -= stream.inbound
        self._unread -= stream.unread
        self._growth_left += stream.target - INITIAL_WINDOW
        if not stream.acknowledged:
            self._unacknowledged -= 1

    # Receiving

    def receive_data(
        self, data: bytes | bytearray | memoryview, now: float, *, limit: int = sys.maxsize
    ) -> list[Event]:
        """What these bytes say, in order. Any pieces give the same events, but for where `DataReceived` is cut.

        After `limit` frames or parts of their payload it stops: `taken` bytes of `data` were looked at, and the rest is
        for the next call.

        The last one is `SessionBroken` where the peer broke the protocol; nothing comes after it.
        """
        events: list[Event] = []
        self.taken = len(data)
        if self._broken:
            return events
        try:
            self._parse(memoryview(data), now, events, limit)
        except _BrokenError as exc:
            self._broken = True
            self.go_away(GO_AWAY_PROTOCOL_ERROR)
            events.append(SessionBroken(violation=exc.violation))
        return events

    def _parse(self, view: memoryview, now: float, events: list[Event], limit: int) -> None:
        position, end, looked_at = 0, len(view), 0
        head = self._head
        while position < end:
            if looked_at >= limit:
                self.taken = position
                return
            looked_at += 1
            left = self._payload_left
            if left:
                count = min(left, end - position)
                self._payload_left = left - count
                stream = self._payload_of
                if stream is not None and stream.state is not StreamState.OVER:
                    self._on_payload(stream, view[position : position + count], events)
                    if left == count and self._payload_flags:
                        self._on_end_flags(stream, self._payload_flags, now, events)
                position += count
                continue
            if head or end - position < _HEADER_BYTES:
                count = min(_HEADER_BYTES - len(head), end - position)
                head += view[position : position + count]
                position += count
                if len(head) < _HEADER_BYTES:
                    return
                fields = HEADER.unpack(head)
                head.clear()
            else:
                fields = HEADER.unpack_from(view, position)
                position += _HEADER_BYTES
            self._on_header(fields, now, events)

    def _on_header(self, fields: tuple[int, int, int, int, int], now: float, events: list[Event]) -> None:
        version, kind, flags, stream_id, length = fields
        if version != VERSION:
            raise _BrokenError(Violation.VERSION)
        if (kind != DATA or length < TINY_PAYLOAD) and not self._cheap.take(now):
            raise _BrokenError(Violation.TOO_MANY_FRAMES)
        if kind == DATA:
            stream = self._stream_of(stream_id, flags, now, events)
            if not length:
                if stream is not None:
                    self._on_end_flags(stream, flags, now, events)
                return
            if stream is None:
                if length > MAX_WINDOW:
                    raise _BrokenError(Violation.BEYOND_WINDOW)
            elif Action.RECEIVE_DATA not in TRANSITIONS[stream.state]:
                raise _BrokenError(Violation.DATA_AFTER_FIN)
            elif length > stream.receive_window:
                raise _BrokenError(Violation.BEYOND_WINDOW)
            self._payload_of, self._payload_left, self._payload_flags = stream, length, flags & (FIN | RST)
        elif kind == WINDOW_UPDATE:
            stream = self._stream_of(stream_id, flags, now, events)
            if stream is not None:
                if length:
                    stream.send_window += length
                    if stream.send_window > 0xFFFF_FFFF:
                        raise _BrokenError(Violation.WINDOW_OVERFLOW)
                    events.append(WindowOpened(stream_id=stream_id))
                self._on_end_flags(stream, flags, now, events)
        elif kind == PING:
            if flags & SYN:
                self._put(PING, ACK, 0, length)
            elif flags & ACK:
                events.append(PongReceived(nonce=length))
        elif kind == GO_AWAY:
            self._gone_away = True
            events.append(GoneAway(code=length))
        else:
            raise _BrokenError(Violation.FRAME_TYPE)

    def _stream_of(self, stream_id: int, flags: int, now: float, events: list[Event]) -> _Stream | None:
        """The stream that a frame is for, opened by SYN; None for one that is over or refused."""
        if not flags & SYN:
            if not stream_id:
                raise _BrokenError(Violation.NO_STREAM)
            stream = self._streams.get(stream_id)
            if flags & ACK and stream is not None and not stream.acknowledged:
                stream.acknowledged = True
                self._unacknowledged -= 1
                events.append(StreamAcknowledged(stream_id=stream_id))
            return stream
        if not stream_id or stream_id % 2 == self._initiator or stream_id in self._streams:
            raise _BrokenError(Violation.STREAM_ID)
        if self._inbound >= MAX_STREAMS or self._gone_away:
            self._put(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = self._streams[stream_id] = _Stream(stream_id, inbound=True, now=now)
        self._inbound += 1
        self._put(WINDOW_UPDATE, ACK, stream_id, 0)
        events.append(StreamOpened(stream_id=stream_id))
        return stream

    def _on_payload(self, stream: _Stream, data: memoryview, events: list[Event]) -> None:
        count = len(data)
        stream.receive_window -= count
        if self._unread + count > MAX_UNREAD_BYTES:
            self.reset(stream.stream_id)
            events.append(StreamReset(stream_id=stream.stream_id, by_peer=False))
            return
        stream.unread += count
        self._unread += count
        self._cheap.give(count * PAID_PER_BYTE)
        events.append(DataReceived(stream_id=stream.stream_id, data=data))

    def _on_end_flags(self, stream: _Stream, flags: int, now: float, events: list[Event]) -> None:
        if stream.state is StreamState.OVER:
            return
        if flags & RST:
            if stream.inbound and not self._resets.take(now):
                raise _BrokenError(Violation.TOO_MANY_RESETS)
            stream.state = TRANSITIONS[stream.state][Action.RECEIVE_RST]
            self._forget(stream)
            events.append(StreamReset(stream_id=stream.stream_id, by_peer=True))
        elif flags & FIN:
            finished = stream.state is StreamState.PEER_FINISHED
            stream.state = TRANSITIONS[stream.state][Action.RECEIVE_FIN]
            if stream.state is StreamState.OVER:
                self._forget(stream)
            if not finished:
                events.append(StreamFinished(stream_id=stream.stream_id))
