"""A bare TCP socket of trio: nobody is authenticated, nothing is encrypted. What the machine gives.

python peer.py serve | drive HOST:PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import end_with_parent, ready, wait_for_end
from wire import ECHO, SINK, drive, echo, sink

PIECE = 1 << 18
KINDS = {SINK: b"s", ECHO: b"e"}


class Stream:
    """A socket, read in larger pieces than trio's own 64 KiB."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self.send_all = socket.send_all
        self.close_write = socket.send_eof
        self.aclose = socket.aclose

    async def receive_some(self) -> bytes:
        return bytes(await self._socket.receive_some(PIECE))

    async def receive_into(self, buffer: memoryview) -> int:
        return await self._socket.socket.recv_into(buffer)


async def _handle(socket: trio.SocketStream) -> None:
    async with socket:
        kind = bytes(await socket.receive_some(1))
        try:
            if kind == KINDS[SINK]:
                await sink(Stream(socket))
            elif kind == KINDS[ECHO]:
                await echo(Stream(socket))
        except trio.BrokenResourceError:
            pass  # the other side closed with a reply on its way


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, _handle, [listener])
        host, port = listener.socket.getsockname()
        ready(f"{host}:{port}")
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


class Client:
    """A stream is a connection here."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._address = (host, int(port))

    async def open(self, protocol: str) -> Stream:
        socket = await trio.open_tcp_stream(*self._address)
        await socket.send_all(KINDS[protocol])
        return Stream(socket)

    @asynccontextmanager
    async def connecting(self) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        opened: list[trio.SocketStream] = []

        async def connect() -> None:
            opened.append(await trio.open_tcp_stream(*self._address))

        yield connect
        for socket in opened:
            await socket.aclose()


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] == "serve":
        trio.run(_serve)
    else:
        trio.run(drive, Client(sys.argv[2]))
