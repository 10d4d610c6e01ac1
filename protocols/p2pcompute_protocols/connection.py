"""The shape that every protocol shares: a transition table and a connection around it (h11's arrangement).

A protocol is a set of message types, two roles, and a table ``role -> state -> message type -> next state`` for
what that role may SEND. A cell that is missing is a message that is not allowed there. One table serves both
sides: what our side may receive is what the other role may send. Both roles' states move in step, because a
message moves sender and receiver alike: `state` is the state of the dialogue.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar, cast

from . import cbor
from .errors import EndedEarly, LocalProtocolError, RemoteProtocolError, WireCode
from .framing import FrameBuffer, frame
from .limits import MAX_FRAME_BYTES
from .wire import Record, decode_message

__all__ = ["NEED_DATA", "Connection", "NeedData", "Role", "StreamEnded", "Table"]


_BULK_BYTES: Final = 4_096  # what comes in bulk and is no shorter is taken where it is wanted
_HEAD_BYTES: Final = 32  # of such a message, before its bytes; none has more
_ON_TRUST: Final = 8  # memory for a message that has begun, at most so many times what its sender has sent so far


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


@dataclass(slots=True, eq=False)
class _Tail:
    """A message of which all has come but its bulk, or the rest of that."""

    cls: type[Record]
    values: dict[int, cbor.CborValue]
    key: int
    place: memoryview
    filled: int = 0


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
        self._tail: _Tail | None = None
        self._landing: memoryview | None = None

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
        head, bulk = message.encode_parts()
        data = frame(head, max_bytes=self.max_frame_bytes, bulk=bulk)
        self._step(self.role, message)
        return data

    def receive_data(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer; b"" says that it closed its side. A broken dialogue keeps none."""
        if self._broken is not None:
            return
        if data:
            if self._ended:
                raise LocalProtocolError("data after the end of the stream", code=WireCode.OUT_OF_ORDER)
            rest = memoryview(data)
            if self._tail is not None:
                tail = self._tail
                part = rest[: len(tail.place) - tail.filled]
                tail.place[tail.filled : tail.filled + len(part)] = part
                self.filled(len(part))
                rest = rest[len(part) :]
            if rest:
                self._buffer.feed(rest)
        else:
            self._ended = True

    @property
    def has_begun(self) -> bool:
        """Whether a part of a message is here that is not complete, or was not looked at yet."""
        return self._tail is not None or len(self._buffer) > 0

    def land_in(self, place: memoryview | None) -> None:
        """Have the bulk of the following messages put into `place`, one behind the other as far as there is room: their
        fields are then views of it. None for memory of their own."""
        self._landing = place

    def room(self) -> memoryview | None:
        """Where the peer's next bytes belong, once `next_event` gave NEED_DATA: they may be received there instead of
        being given to `receive_data`, and `filled` says how many were. None where all have to go through that.

        What is bulk of a large message has a place as soon as the message has begun. No memory is lent for it to a peer
        that has not sent an eighth of so much on this stream.
        """
        tail = self._tail
        return None if self._broken or tail is None else tail.place[tail.filled :] or None

    def filled(self, count: int) -> None:
        """The first `count` bytes of `room` are received."""
        assert self._tail is not None
        self._tail.filled += count
        self._buffer.heard += count

    def _begin_tail(self) -> None:
        """Where a large message has begun that has a bulk: a place for it. Whatever is not as it should be is left to
        be read as a whole, and refused there."""
        begun = self._buffer.begun(_HEAD_BYTES)
        if begun is None or not _BULK_BYTES <= begun[0] <= self._buffer.heard * _ON_TRUST:
            return
        found = cbor.decode_up_to_tail(begun[1])
        if found is None:
            return
        values, key, at, size = found
        cls = self.messages.get(cast("int", values.get(0, 0)))
        allowed = self.table[self.role.other].get(self.state, {})
        if cls is None or cls not in allowed or cls.bulk_key() != key or at + size != begun[0]:
            return
        start = self._buffer.take_begun()[at:]
        place = self._land(size)
        place[: len(start)] = start
        self._tail = _Tail(cls, values, key, place, len(start))

    def _land(self, size: int) -> memoryview:
        if self._landing is None or len(self._landing) < size:
            return memoryview(bytearray(size))
        place, self._landing = self._landing[:size], self._landing[size:]
        return place

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
            return self._next()
        except LocalProtocolError as exc:  # without `remote`: this is asked twice for each message
            self._broken = (RemoteProtocolError, str(exc))
            raise RemoteProtocolError(str(exc), code=exc.code, certain=exc.certain) from exc
        except RemoteProtocolError as exc:
            self._broken = (type(exc), str(exc))
            raise

    def _next(self) -> Record | NeedData:
        message = self._whole()
        if message is None:
            if not self._ended:
                return NEED_DATA
            if self.has_begun or not (self.is_done or self.state is self.start):
                raise EndedEarly(f"the stream ended in state {self.state.name}", code=WireCode.OUT_OF_ORDER)
            return StreamEnded()
        self._step(self.role.other, message)
        return message

    def _whole(self) -> Record | None:
        """The next message, not looked at yet."""
        if self._tail is None:
            payload = self._buffer.pop()
            if payload is not None:
                return self._landed(decode_message(payload, self.messages, max_bytes=self.max_frame_bytes))
            self._begin_tail()
        tail = self._tail
        if tail is None or tail.filled < len(tail.place):
            return None
        self._tail = None
        return tail.cls.from_map({**tail.values, tail.key: cast("bytes", tail.place.toreadonly())})

    def _landed(self, message: Record) -> Record:
        """A message that came whole, with its bulk where it is wanted."""
        bulk = message.bulk
        if self._landing is not None and 0 < len(bulk) <= len(self._landing):
            self._land(len(bulk))[:] = bulk
        return message
