"""Puts a sans-IO connection of `p2pcompute_protocols` on a byte stream."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar, overload

import trio

from p2pcompute_protocols.connection import NEED_DATA, Connection, StreamEnded
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.wire import Record

from .errors import StreamError

__all__ = ["STALL_S", "ByteStream", "Dialogue"]

STALL_S: Final = 15.0  # a peer that owes us an answer and says nothing for so long has stalled

M = TypeVar("M", bound=Record)
N = TypeVar("N", bound=Record)


class ByteStream(Protocol):
    """The part of `overlay.OverlayStream` that a dialogue needs."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int = ...) -> bytes: ...
    async def aclose(self) -> None: ...
    async def reset(self) -> None: ...


class Dialogue:
    """One dialogue over one stream. One task may send while another receives.

    Cancellation: a cancelled `receive` loses nothing; a cancelled `send` breaks the stream.
    """

    def __init__(self, connection: Connection[Any], stream: ByteStream) -> None:
        self.connection = connection
        self.stream = stream
        self._send_lock = trio.Lock()

    async def send(self, *messages: Record) -> None:
        """Say `messages`, in this order and without anything between them.

        Raises:
            LocalProtocolError: the protocol does not allow it now; nothing of that message was sent.
            StreamError: the stream broke.
        """
        async with self._send_lock:
            for message in messages:
                await self.stream.send_all(self.connection.send(message))

    async def receive(self, *, stall_s: float | None = None) -> Record:
        """The next message, or `StreamEnded`.

        Args:
            stall_s: how long to wait at most; None waits for ever.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or stalled (code STALLED).
            StreamError: the stream broke.
        """
        with trio.move_on_after(float("inf") if stall_s is None else stall_s):
            await trio.lowlevel.checkpoint()  # not after the event: nobody may act between it and the caller
            while True:
                event = self.connection.next_event()
                if event is not NEED_DATA:
                    assert isinstance(event, Record)
                    return event
                self.connection.receive_data(await self.stream.receive_some(65536))
        raise RemoteProtocolError(f"the peer said nothing for {stall_s:g} s", code=WireCode.STALLED)

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
        raise RemoteProtocolError(f"unexpected {type(message).__name__}", code=WireCode.OUT_OF_ORDER)
