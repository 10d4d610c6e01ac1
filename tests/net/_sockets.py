"""Pairs of TCP sockets on loopback for tests, closed when the test ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import trio
import trio.testing

_OPENED: ContextVar[list[trio.SocketStream]] = ContextVar("sockets of the running test")


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test, bounded, and close its sockets."""

    async def bounded() -> None:
        _OPENED.set([])
        try:
            with trio.fail_after(300):
                await main()
        finally:
            for stream in _OPENED.get():
                stream.socket.close()

    trio.run(bounded)


async def socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a TCP connection: the one that dialled, and the other."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        ends = await trio.testing.open_stream_to_socket_listener(listener), await listener.accept()
    _OPENED.get().extend(ends)
    return ends
