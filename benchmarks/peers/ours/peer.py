"""p2pcompute: its overlay, the streams that nodes use with nothing of tasks above them; and tasks (`tasks.py`)."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Overlay, OverlayStream, open_libp2p

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import end_with_parent, ready, wait_for_end
from wire import ECHO, SINK, drive, echo, sink


class NoRecords:
    """The DHT holds nothing here."""

    def validate(self, _key: bytes, _value: bytes) -> bool:
        return False

    def select(self, _key: bytes, _values: Sequence[bytes]) -> int:
        return 0


@asynccontextmanager
async def _overlay(*listen: str, as_stranger: bool = False) -> AsyncGenerator[Overlay]:
    """An overlay; one that dials `as_stranger` does so as any libp2p node does, by ``/noise``."""
    async with open_libp2p(NodeKey.generate(), listen=listen, record_validator=NoRecords()) as overlay:
        if as_stranger:
            from p2pcompute.overlay._upgrader import NOISE_AESGCM_ID

            overlay._swarm.upgrader._protocols.remove(NOISE_AESGCM_ID)
        yield overlay


async def _serve() -> None:
    async with _overlay("/ip4/127.0.0.1/tcp/0") as overlay:
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
        async with _overlay(as_stranger=self._as_stranger) as overlay:

            async def connect() -> None:
                await overlay.connect(self._address)  # identify is a part of it

            yield connect


async def _drive(address: str, *, as_stranger: bool) -> None:
    async with _overlay(as_stranger=as_stranger) as overlay:
        await drive(Client(overlay, address, as_stranger=as_stranger))


def main() -> None:
    """`serve wire [asked]`, `drive ADDRESS wire [noise|asked]`; `serve tasks`, `drive ADDRESS tasks`; and
    `cold ADDRESS tasks first|again`."""
    end_with_parent()
    what, *rest = sys.argv[1:]
    if "tasks" in rest:
        import tasks

        if what == "serve":
            tasks.serve(*rest[1:])
        elif what == "drive":
            tasks.drive(rest[0])
        else:
            tasks.cold(rest[-1])
    elif "asked" in rest:
        import asked

        trio.run(asked.serve, _overlay) if what == "serve" else trio.run(asked.drive, _overlay, rest[0])
    elif what == "serve":
        trio.run(_serve)
    else:
        trio.run(partial(_drive, rest[0], as_stranger="noise" in rest))


if __name__ == "__main__":
    main()
