"""A channel connection on a stream: bytes in, events out, with an end to every wait."""

from __future__ import annotations

from typing import Final

import trio

from p2pcompute.errors import OverlayError
from p2pcompute_protocols.channel import ChannelConnection
from p2pcompute_protocols.connection import NEED_DATA
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.wire import Record

from ._api import Stream

__all__ = ["FRAME_TIMEOUT_S", "STREAM_FAULTS", "next_message", "send_message"]

FRAME_TIMEOUT_S: Final = 10.0
"""How long a peer may take from the first byte of a message to its last, and to take one of ours."""

STREAM_FAULTS: Final = (OverlayError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream raises when it breaks; the last two come from streams in memory."""


async def next_message(connection: ChannelConnection, stream: Stream, *, timeout_s: float) -> Record:
    """The peer's next message, or `StreamEnded`.

    Args:
        connection: its state moves with what is received.
        stream: where the bytes come from.
        timeout_s: how long the peer may be silent before a message. Once a message has begun it has to be complete
            within `FRAME_TIMEOUT_S`, so dribbling bytes does not hold a stream open.

    Raises:
        RemoteProtocolError: the peer broke the protocol; STALLED where it was too slow.
        OverlayError: the stream broke.
    """
    deadline = trio.current_time() + timeout_s
    begun = False
    while True:
        event = connection.next_event()
        if event is not NEED_DATA:
            assert isinstance(event, Record)
            return event
        with trio.move_on_at(deadline) as scope:
            connection.receive_data(await stream.receive_some())
        if scope.cancelled_caught:
            raise RemoteProtocolError("nothing came in time", code=WireCode.STALLED)
        if not begun:
            begun = True
            deadline = min(deadline, trio.current_time() + FRAME_TIMEOUT_S)


async def send_message(connection: ChannelConnection, stream: Stream, message: Record) -> None:
    """Send one message; STALLED where the peer does not take it within `FRAME_TIMEOUT_S`."""
    data = connection.send(message)
    with trio.move_on_after(FRAME_TIMEOUT_S) as scope:
        await stream.send_all(data)
    if scope.cancelled_caught:
        raise RemoteProtocolError("the peer takes no bytes", code=WireCode.STALLED)
