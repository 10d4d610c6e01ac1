"""A sans-IO connection of `p2pcompute_protocols` in the bodies of requests: each body is one frame of its dialogue."""

from __future__ import annotations

from typing import Any

from p2pcompute_protocols.connection import NEED_DATA, Connection
from p2pcompute_protocols.errors import RemoteProtocolError
from p2pcompute_protocols.wire import Record

__all__ = ["one_message"]


def one_message(connection: Connection[Any], body: bytes) -> Record:
    """The message that `body`, a question or an answer, brings to `connection`.

    Raises:
        RemoteProtocolError: it is not exactly one frame, no message of the protocol, or not allowed here.
    """
    if body:
        connection.receive_data(body)
    message = connection.next_event()
    if message is NEED_DATA or len(connection._buffer):
        raise RemoteProtocolError("a body holds one frame, whole and with nothing behind it")
    assert isinstance(message, Record)
    return message
