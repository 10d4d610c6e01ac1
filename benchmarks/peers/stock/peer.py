"""py-libp2p as it comes: its own TCP, Noise and Yamux, none of our mends.

python peer.py serve | drive MULTIADDR
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import end_with_parent, ready, wait_for_end
from wire import ECHO, SINK, drive, echo, sink

LISTEN = [Multiaddr("/ip4/127.0.0.1/tcp/0")]


class Stream:
    """A stream of py-libp2p by the names that measurements use."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.send_all = stream.write
        self.close_write = stream.close_write
        self.aclose = stream.close

    async def receive_some(self) -> bytes:
        try:
            return bytes(await self._stream.read(1 << 16))
        except StreamEOF:
            return b""


@asynccontextmanager
async def _host(listen: list[Multiaddr]) -> AsyncGenerator[Any]:
    private = Ed25519PrivateKey.from_bytes(os.urandom(32))
    keys = KeyPair(private, private.get_public_key())
    host = new_host(
        key_pair=keys,
        listen_addrs=listen,
        sec_opt={NOISE: Noise(keys, noise_privkey=create_new_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
    )
    async with host.run(listen_addrs=listen):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True):
                await host.close()


async def _serve() -> None:
    async with _host(LISTEN) as host:
        for protocol, handler in ((SINK, sink), (ECHO, echo)):

            async def handle(stream: Any, handler: Callable[[Any], Awaitable[None]] = handler) -> None:
                try:
                    await handler(Stream(stream))
                    await stream.close()
                except Exception:  # noqa: BLE001  what a handler raises ends a host of py-libp2p
                    await stream.reset()

            host.set_stream_handler(TProtocol(protocol), handle)
        ready(str(host.get_addrs()[0]))
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)


class Client:
    """One host, connected once."""

    def __init__(self, host: Any, address: str) -> None:
        self._host = host
        self._peer = info_from_p2p_addr(Multiaddr(address))

    async def open(self, protocol: str) -> Stream:
        return Stream(await self._host.new_stream(self._peer.peer_id, [TProtocol(protocol)]))

    @asynccontextmanager
    async def connecting(self) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        async with _host([]) as host:

            async def connect() -> None:
                await host.connect(self._peer)  # identify is a part of it

            yield connect


async def _drive(address: str) -> None:
    async with _host([]) as host:
        client = Client(host, address)
        await host.connect(info_from_p2p_addr(Multiaddr(address)))
        await drive(client)


if __name__ == "__main__":
    end_with_parent()
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    if sys.argv[1] == "serve":
        trio.run(_serve)
    else:
        trio.run(_drive, sys.argv[2])
