"""Yamux without sockets, clocks or tasks: bytes in, events out (github.com/hashicorp/yamux, spec.md).

`Session` is one end of a connection. What it is told and what it finds are plain calls and values, so that every
transcript can be replayed, split and mutated in tests; `p2pcompute.overlay._muxer` gives it a link and a clock.
"""

from __future__ import annotations

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
    GO_AWAY_INTERNAL_ERROR,
    GO_AWAY_NORMAL,
    GO_AWAY_PROTOCOL_ERROR,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from ._limits import (
    ACK_BACKLOG,
    CHEAP_FRAMES_BURST,
    CHEAP_FRAMES_PER_S,
    GROW_WITHIN_S,
    GROWTH_BYTES,
    INITIAL_WINDOW,
    MAX_STREAMS,
    MAX_UNREAD_BYTES,
    MAX_WINDOW,
    RESETS_BURST,
    RESETS_PER_S,
    TINY_PAYLOAD,
)
from ._session import LocalYamuxError, Session
from ._state import TRANSITIONS, Action, StreamState

__all__ = [
    "ACK",
    "ACK_BACKLOG",
    "CHEAP_FRAMES_BURST",
    "CHEAP_FRAMES_PER_S",
    "DATA",
    "FIN",
    "GO_AWAY",
    "GO_AWAY_INTERNAL_ERROR",
    "GO_AWAY_NORMAL",
    "GO_AWAY_PROTOCOL_ERROR",
    "GROWTH_BYTES",
    "GROW_WITHIN_S",
    "HEADER",
    "INITIAL_WINDOW",
    "MAX_STREAMS",
    "MAX_UNREAD_BYTES",
    "MAX_WINDOW",
    "PING",
    "RESETS_BURST",
    "RESETS_PER_S",
    "RST",
    "SYN",
    "TINY_PAYLOAD",
    "TRANSITIONS",
    "WINDOW_UPDATE",
    "Action",
    "DataReceived",
    "Event",
    "GoneAway",
    "LocalYamuxError",
    "PongReceived",
    "Session",
    "SessionBroken",
    "StreamAcknowledged",
    "StreamFinished",
    "StreamOpened",
    "StreamReset",
    "StreamState",
    "Violation",
    "WindowOpened",
]
