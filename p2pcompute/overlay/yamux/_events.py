"""What a session finds in the bytes that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = [
    "DataReceived",
    "Event",
    "GoneAway",
    "PongReceived",
    "SessionBroken",
    "StreamAcknowledged",
    "StreamFinished",
    "StreamOpened",
    "StreamReset",
    "Violation",
    "WindowOpened",
]


class Violation(Enum):
    """How a peer broke the protocol. Each ends the session."""

    VERSION = "a version other than 0"
    FRAME_TYPE = "an unknown frame type"
    NO_STREAM = "a stream's frame for stream 0"
    STREAM_ID = "a stream ID that the peer may not open"
    DATA_AFTER_FIN = "data after FIN"
    BEYOND_WINDOW = "data beyond the window"
    WINDOW_OVERFLOW = "a window over 4 GiB"
    TOO_MANY_FRAMES = "a flood of frames that carry nothing"
    TOO_MANY_RESETS = "a flood of streams opened and reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOpened:
    """The peer opened a stream; it was acknowledged."""

    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamAcknowledged:
    """The peer knows of a stream that we opened."""

    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReceived:
    """Bytes of a stream: a view into what `receive_data` was given, so take them before you give it more.

    They count as unread until `consumed` says otherwise.
    """

    stream_id: int
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOpened:
    """The peer gave window back: more may be sent on the stream."""

    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFinished:
    """The peer sends nothing more on the stream."""

    stream_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReset:
    """The stream is over in both directions; what was not read is to be thrown away.

    Attributes:
        by_peer: whether the peer broke it; otherwise the session did, to stay within `MAX_UNREAD_BYTES`.
    """

    stream_id: int
    by_peer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PongReceived:
    """The peer answered `ping`."""

    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoneAway:
    """The peer takes and opens no more streams. 0 is a normal end, 1 our violation, 2 an error of its own."""

    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBroken:
    """The peer broke the protocol. A go-away for it is in `data_to_send`; nothing is read any more."""

    violation: Violation


Event: TypeAlias = (
    StreamOpened
    | StreamAcknowledged
    | DataReceived
    | WindowOpened
    | StreamFinished
    | StreamReset
    | PongReceived
    | GoneAway
    | SessionBroken
)
