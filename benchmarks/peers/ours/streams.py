"""p2pcompute's overlay: the streams that nodes use, with nothing of tasks above them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from side import ready, wait_for_end
from wire import ECHO, SINK, drive, echo, sink

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Overlay, OverlayStream, open_libp2p

__all__ = ["drive_streams", "open_overlay", "serve_streams"]


class NoRecords:
    """The DHT holds nothing here."""

    def validate(self, _key: bytes, _value: bytes) -> bool:
        return False

    def select(self, _key: bytes, _values: Sequence[bytes]) -> int:
        return 0


@asynccontextmanager
async def open_overlay(*listen: str, as_stranger: bool = False) -> AsyncGenerator[Overlay]:
    """An overlay; one that dials `as_stranger` does so as any libp2p node does, by ``/noise``."""
    async with open_libp2p(NodeKey.generate(), listen=listen, record_validator=NoRecords()) as overlay:
        if as_stranger:
            from p2pcompute.overlay._upgrader import NOISE_AESGCM_ID

            overlay._swarm.upgrader._protocols.remove(NOISE_AESGCM_ID)
        yield overlay


async def serve_streams() -> None:
    async with open_overlay("/ip4/127.0.0.1/tcp/0") as overlay:
        overlay.handle(SINK, sink)
        overlay.handle(ECHO, echo)
        ready(overlay.addresses[0])
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)


class Client:
    """One overlay, connected once."""

    def __init__(self, overlay: Overlay, address: str, *, as_stranger: bool) -> None:
        self._overlay = overlay
        self._as_stranger = as_stranger
        self._address = address
        self._peer = None

    async def open(self, protocol: str) -> OverlayStream:
        if self._peer is None:
            self._peer = await self._overlay.connect(self._address)
        return await self._overlay.open_stream(self._peer, protocol)

    @asynccontextmanager
    async def connecting(self) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        async with open_overlay(as_stranger=self._as_stranger) as overlay:

            async def connect() -> None:
                await overlay.connect(self._address)  # identify is a part of it

            yield connect


async def drive_streams(address: str, *, as_stranger: bool) -> None:
    async with open_overlay(as_stranger=as_stranger) as overlay:
        await drive(Client(overlay, address, as_stranger=as_stranger))
