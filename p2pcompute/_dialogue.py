"""Puts a sans-IO connection of `p2pcompute_protocols` on a byte stream, with an end to every wait.

A bound on each read alone would let a peer hold a stream open with a byte now and then. So silence has a bound, which
the caller names, and a message has another one, from its first byte to its last.

What the peer does wrong is held against it here (`OverlayStream.blame`), so that no handler which answers it politely,
goes on or asks somebody else can forget to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar, overload

import trio

from p2pcompute_protocols.connection import NEED_DATA, Connection, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.wire import Record

from .errors import OverlayError, StreamError

__all__ = ["FRAME_TIMEOUT_S", "SEND_TIMEOUT_S", "STALL_S", "STREAM_FAULTS", "ByteStream", "Dialogue"]

STALL_S: Final = 15.0  # a peer that owes us an answer and says nothing for so long has stalled
FRAME_TIMEOUT_S: Final = 10.0
"""How long a peer may take from the first byte of a message to its last."""
SEND_TIMEOUT_S: Final = 60.0
"""How long a peer may take to take one message of ours; a task's may wait for a peer that is busy checking."""

_READ_BYTES: Final = 65_536
_AT_ONCE: Final = 4
"""So many messages that came together, or writes, are one step of the event loop at most: two or three belong
together."""
_SHORT_BYTES: Final = 4_096  # what is sent without a wait, where the connection takes it so
_AFTER_BULK_BYTES: Final = 512  # what comes behind bulk is more of it, to be received in its place but for its head

STREAM_FAULTS: Final = (OverlayError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream raises when it breaks; the last two come from trio's own streams."""

M = TypeVar("M", bound=Record)
N = TypeVar("N", bound=Record)


class ByteStream(Protocol):
    """The part of `overlay.OverlayStream` that a dialogue needs. Where it has `receive_into` as well, bulk is received
    in its place; where it has `send_nowait`, what is short is sent by that."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int = ...) -> bytes: ...
    def blame(self, exc: ProtocolError) -> None: ...


class Dialogue:
    """One dialogue over one stream. One task may send while another receives.

    Cancellation: a cancelled `receive` loses nothing; a cancelled `send` breaks the stream.

    Args:
        connection: its state moves with what is said and heard.
        stream: where the bytes go and come from.
        send_s: how long the peer may take to take one message.
    """

    def __init__(self, connection: Connection[Any], stream: ByteStream, *, send_s: float = SEND_TIMEOUT_S) -> None:
        self.connection = connection
        self.stream = stream
        self._send_s = send_s
        self._send_lock = trio.Lock()
        self._send_nowait: Callable[[bytes], bool] | None = getattr(stream, "send_nowait", None)
        self._sent = 0  # writes with no turn of the event loop between them
        self._receive_into: Callable[[memoryview, int], Awaitable[int]] | None = getattr(stream, "receive_into", None)
        self._read_bytes = _READ_BYTES
        self._given = 0  # messages since others last had a turn
        self._begun_at: float | None = None  # when the first bytes came of a message that is not complete

    async def send(self, *messages: Record) -> None:
        """Say `messages`, in this order, without anything between them and in one write.

        Raises:
            LocalProtocolError: the protocol does not allow one of them now; it was not sent, nor what follows it.
            RemoteProtocolError: the peer takes no bytes (code STALLED); the stream is of no more use.
            StreamError: the stream broke.
        """
        try:
            self._send_lock.acquire_nowait()  # nearly always; what is sent lets others run
        except trio.WouldBlock:
            await self._send_lock.acquire()
        try:
            said: list[bytes] = []
            refused: LocalProtocolError | None = None
            for message in messages:
                try:
                    said.append(self.connection.send(message))
                except LocalProtocolError as exc:
                    refused = exc
                    break
            if said:
                await self._send(said[0] if len(said) == 1 else b"".join(said))
            if refused is not None:
                raise refused
        finally:
            self._send_lock.release()

    async def _send(self, data: bytes) -> None:
        if self._send_nowait is not None and len(data) <= _SHORT_BYTES:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._send_nowait(data):
                self._sent += 1
                if self._sent >= _AT_ONCE:
                    self._sent = 0
                    await trio.lowlevel.cancel_shielded_checkpoint()  # it has left
                return
        with trio.move_on_after(self._send_s) as scope:
            await self.stream.send_all(data)
        if scope.cancelled_caught:
            raise RemoteProtocolError(f"the peer did not take a message in {self._send_s:g} s", code=WireCode.STALLED)

    async def receive(self, *, stall_s: float | None = None) -> Record:
        """The next message, or `StreamEnded`.

        Args:
            stall_s: how long to wait for it at most; None waits for ever. One that has begun has to be complete
                within `FRAME_TIMEOUT_S` in either case, over cancelled calls too.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or stalled (code STALLED).
            StreamError: the stream broke.
        """
        deadline = float("inf") if stall_s is None else trio.current_time() + stall_s
        self._given += 1
        if self.connection.has_begun and self._given >= _AT_ONCE:
            self._given = 0
            await trio.lowlevel.checkpoint()  # not after the event: nobody may act between it and the caller
        else:
            await trio.lowlevel.checkpoint_if_cancelled()  # others get their turn where the stream is read
        while True:
            try:
                event = self.connection.next_event()
            except RemoteProtocolError as exc:
                self.stream.blame(exc)
                raise
            if event is not NEED_DATA:
                assert isinstance(event, Record)
                self._begun_at = None
                return event
            if self._begun_at is None and self.connection.has_begun:
                # It came behind another message. Its time runs from here on, where somebody waits for the rest.
                self._begun_at = trio.current_time()
            frame_deadline = float("inf") if self._begun_at is None else self._begun_at + FRAME_TIMEOUT_S
            until = min(deadline, frame_deadline)
            if until == float("inf"):
                await self._read()
            elif not await self._read_until(until):
                if frame_deadline < deadline:
                    text = f"the peer did not end a message in {FRAME_TIMEOUT_S:g} s"
                else:
                    text = f"the peer said nothing for {stall_s:g} s"
                raise RemoteProtocolError(text, code=WireCode.STALLED)
            if self._begun_at is None:
                self._begun_at = trio.current_time()

    async def _read_until(self, until: float) -> bool:
        """`_read`, and whether that was in time."""
        with trio.move_on_at(until) as scope:
            await self._read()
        return not scope.cancelled_caught

    async def _read(self) -> None:
        """Take what comes next, and of bulk as much as is still to come of its message, where it belongs."""
        self._given = 0
        room = self.connection.room()
        if room is None or self._receive_into is None:
            data = await self.stream.receive_some(self._read_bytes if room is None else _READ_BYTES)
            self._read_bytes = _READ_BYTES
            self.connection.receive_data(data)
            return
        count = await self._receive_into(room, len(room))
        if count:
            self.connection.filled(count)
            self._read_bytes = _AFTER_BULK_BYTES
        else:
            self.connection.receive_data(b"")

    @overload
    async def expect(self, kind: type[M], /, *, stall_s: float | None = ...) -> M: ...
    @overload
    async def expect(self, kind: type[M], other: type[N], /, *, stall_s: float | None = ...) -> M | N: ...
    async def expect(self, *kinds: type[Record], stall_s: float | None = STALL_S) -> Record:
        """The next message, which has to be one of `kinds`.

        Raises:
            StreamError: the peer closed the stream instead.
            RemoteProtocolError: as `receive`, or another message came.
        """
        message = await self.receive(stall_s=stall_s)
        if isinstance(message, kinds):
            return message
        if isinstance(message, StreamEnded):
            raise StreamError("the peer closed the stream in the middle of a dialogue")
        unexpected = RemoteProtocolError(f"unexpected {type(message).__name__}", code=WireCode.OUT_OF_ORDER)
        self.stream.blame(unexpected)
        raise unexpected
