"""The shape that every protocol shares: a transition table and a connection around it (h11's arrangement).

A protocol is a set of message types, two roles, and a table ``role -> state -> message type -> next state`` for
what that role may SEND. A cell that is missing is a message that is not allowed there. One table serves both
sides: what our side may receive is what the other role may send. Both roles' states move in step, because a
message moves sender and receiver alike: `state` is the state of the dialogue.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from .errors import EndedEarly, LocalProtocolError, RemoteProtocolError, WireCode, remote
from .framing import FrameBuffer, frame
from .limits import MAX_FRAME_BYTES
from .wire import Record, decode_message

__all__ = ["NEED_DATA", "Connection", "NeedData", "Role", "StreamEnded", "Table"]


class Role(enum.Enum):
    """Who opened the stream."""

    REQUESTER = "requester"
    PROVIDER = "provider"

    @property
    def other(self) -> Role:
        """The opposite role."""
        return Role.PROVIDER if self is Role.REQUESTER else Role.REQUESTER


class NeedData(enum.Enum):
    """What `next_event` gives when more bytes have to be received first."""

    NEED_DATA = "NEED_DATA"


NEED_DATA = NeedData.NEED_DATA


class StreamEnded(Record):
    """The peer closed its side of the stream in a state where the protocol lets it."""

    __slots__ = ()


S = TypeVar("S", bound=enum.Enum)
Table = Mapping[Role, Mapping[S, Mapping[type[Record], S]]]


class Connection(Generic[S]):
    """One dialogue over one stream, without I/O.

    Feed what arrives with `receive_data` (b"" for the end of the stream), take events with `next_event` until it
    gives `NEED_DATA`, and write what `send` returns. After an error the connection is broken and refuses
    everything; the error's `code` says what to tell the peer, or what the peer did.
    """

    messages: ClassVar[Mapping[int, type[Record]]]
    table: ClassVar[Mapping[Role, Mapping[Any, Mapping[type[Record], Any]]]]  # a class variable can't hold S
    start: ClassVar[Any]
    final: ClassVar[frozenset[Any]]
    max_frame_bytes: ClassVar[int] = MAX_FRAME_BYTES

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state: S = self.start
        self._buffer = FrameBuffer(max_bytes=self.max_frame_bytes)
        self._ended = False
        self._broken: tuple[type[RemoteProtocolError], str] | None = None  # not the error: it holds frames

    @property
    def is_done(self) -> bool:
        """Whether the dialogue has come to an end that the protocol names."""
        return self.state in self.final

    def _step(self, sender: Role, message: Record) -> None:
        """All messages, ours and theirs, go through here."""
        row = self.table[sender].get(self.state, {})
        to = row.get(type(message))
        if to is None:
            raise LocalProtocolError(
                f"{sender.value} may not send {type(message).__name__} in state {self.state.name}",
                code=WireCode.OUT_OF_ORDER,
            )
        self.check(sender, message)
        self.state = to

    def check(self, sender: Role, message: Record) -> None:
        """Checks that need memory of earlier messages; raises `LocalProtocolError` before the state moves."""

    def send(self, message: Record) -> bytes:
        """Bytes that say `message` to the peer.

        Raises:
            LocalProtocolError: the protocol does not allow it here; nothing changed.
        """
        if self._broken is not None:
            raise LocalProtocolError(f"the dialogue is broken: {self._broken[1]}", code=WireCode.OUT_OF_ORDER)
        data = frame(message.encode(), max_bytes=self.max_frame_bytes)
        self._step(self.role, message)
        return data

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; b"" says that it closed its side. A broken dialogue keeps none."""
        if self._broken is not None:
            return
        if data:
            if self._ended:
                raise LocalProtocolError("data after the end of the stream", code=WireCode.OUT_OF_ORDER)
            self._buffer.feed(data)
        else:
            self._ended = True

    def next_event(self) -> Record | NeedData:
        """The next message, `StreamEnded`, or `NEED_DATA`.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the connection is broken from now on. `EndedEarly`: it
                left in the middle.
        """
        if self._broken is not None:
            kind, text = self._broken
            raise kind(text, code=WireCode.OUT_OF_ORDER)
        try:
            with remote():
                return self._next()
        except RemoteProtocolError as exc:
            self._broken = (type(exc), str(exc))
            raise

    def _next(self) -> Record | NeedData:
        payload = self._buffer.pop()
        if payload is None:
            if not self._ended:
                return NEED_DATA
            if len(self._buffer) or not (self.is_done or self.state is self.start):
                raise EndedEarly(f"the stream ended in state {self.state.name}", code=WireCode.OUT_OF_ORDER)
            return StreamEnded()
        message = decode_message(payload, self.messages, max_bytes=self.max_frame_bytes)
        self._step(self.role.other, message)
        return message
