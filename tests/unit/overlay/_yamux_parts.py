"""What tests of our Yamux are made of: frames, a link in memory, connections over it."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID

from p2pcompute.overlay import yamux
from p2pcompute.overlay._link import LinkBroken
from p2pcompute.overlay._muxer import Yamux
from p2pcompute.overlay._turns import Turn, Turns

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"", version: int = 0) -> bytes:
    return struct.pack("!BBHII", version, kind, flags, stream_id, length) + payload


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(payload), payload)


def parse(wire: bytes) -> list[tuple[int, int, int, int, bytes]]:
    """The frames in `wire`: kind, flags, stream ID, length, payload."""
    frames, position = [], 0
    while position < len(wire):
        _version, kind, flags, stream_id, length = struct.unpack_from("!BBHII", wire, position)
        position += 12
        size = length if kind == DATA else 0
        frames.append((kind, flags, stream_id, length, wire[position : position + size]))
        position += size
    return frames


def plain(events: Iterable[yamux.Event]) -> list[tuple[Any, ...]]:
    """Events to compare: pieces of data that follow each other are one, and nothing is a view."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        if isinstance(event, yamux.DataReceived):
            if found and found[-1][0] == "data" and found[-1][1] == event.stream_id:
                found[-1] = ("data", event.stream_id, found[-1][2] + bytes(event.data))
            else:
                found.append(("data", event.stream_id, bytes(event.data)))
        else:
            found.append((event,))
    return found


def sent(session: yamux.Session) -> bytes:
    return b"".join(session.data_to_send())


class MemoryLink:
    """One end of a link in memory, whose socket takes `capacity` bytes that the other end has not read."""

    def __init__(self, *, is_initiator: bool, capacity: int) -> None:
        self.is_initiator = is_initiator
        self.capacity = capacity
        self.bytes_sent = 0
        self.turn = Turns().turn("")
        self.other: MemoryLink
        self.sends: list[bytes] = []  # what `send_nowait` was given
        self.parts: list[Any] = []  # the same, as it was given, the last one only
        self.keeps_sends = True
        self.may_receive = 1 << 62
        self._inbox = bytearray()
        self._waiting = bytearray()
        self._lent = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = False

    @property
    def unsent(self) -> int:
        return len(self._waiting)

    async def receive(self) -> memoryview:
        self.turn.done()
        await trio.lowlevel.checkpoint()
        self._lent[:] = b"\xee" * len(self._lent)  # whoever looks at an old view sees it
        while not self._inbox or self.may_receive <= 0:
            if self._closed:
                raise LinkBroken("closed here")
            if self.other._closed and not self._inbox:
                return memoryview(b"")
            await self._changed.park()
        await self.turn.take()
        count = min(len(self._inbox), self.may_receive, 1 << 20)
        self.may_receive -= count
        self._lent = self._inbox[:count]
        del self._inbox[:count]
        self.other._push()
        return memoryview(self._lent)

    def allow(self, count: int = 1 << 62) -> None:
        self.may_receive = count
        self._changed.unpark_all()

    def send_nowait(self, parts: Sequence[bytes | bytearray | memoryview]) -> int:
        wire = b"".join(parts)
        self.parts = list(parts)
        if self.keeps_sends:
            self.sends.append(wire)
        if not self._closed:
            self._waiting += wire
            self._push()
        return len(self._waiting)

    def _push(self) -> None:
        count = min(len(self._waiting), self.capacity - len(self.other._inbox))
        if count > 0:
            self.other._inbox += self._waiting[:count]
            del self._waiting[:count]
            self.bytes_sent += count
            self.other._changed.unpark_all()
            self._changed.unpark_all()

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._waiting and not self._closed and not self.other._closed:
            await self._changed.park()
        if self._closed or self.other._closed:
            raise LinkBroken("closed")

    async def aclose(self) -> None:
        self._closed = True
        self._changed.unpark_all()
        self.other._changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def get_remote_peer(self) -> ID:
        return ID(b"peer")

    def get_remote_address(self) -> tuple[str, int] | None:
        return ("127.0.0.1", 1)

    def get_transport_addresses(self) -> list[Any]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def memory_links(capacity: int = 1 << 62) -> tuple[MemoryLink, MemoryLink]:
    a, b = MemoryLink(is_initiator=True, capacity=capacity), MemoryLink(is_initiator=False, capacity=capacity)
    a.other, b.other = b, a
    return a, b


@asynccontextmanager
async def two_ends(capacity: int = 1 << 62) -> AsyncGenerator[tuple[Any, Any, MemoryLink, MemoryLink], None]:
    """Two connections of ours with each other: (dialler, listener, and their links)."""
    left, right = memory_links(capacity)
    a, b = Yamux(left, ID(b"b")), Yamux(right, ID(b"a"))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        for mux in (a, b):
            nursery.start_soon(mux.start)
            await mux.event_started.wait()
        yield a, b, left, right
        nursery.cancel_scope.cancel()


class Stranger:
    """The other end of a connection of ours, which says what the test says."""

    def __init__(self, link: MemoryLink) -> None:
        self.link = link
        self.heard = bytearray()

    def say(self, *frames: bytes) -> None:
        self.link.send_nowait(frames)

    async def listen(self) -> None:
        try:
            while view := await self.link.receive():
                self.heard += view
        except LinkBroken:
            return

    def frames(self) -> list[tuple[int, int, int, int, bytes]]:
        return parse(bytes(self.heard))


@asynccontextmanager
async def stranger(
    *, listens: bool = True, capacity: int = 1 << 62, turn: Turn | None = None
) -> AsyncGenerator[tuple[Any, Stranger], None]:
    """A connection of ours that a stranger dialled."""
    far, near = memory_links(capacity)
    far.keeps_sends = False
    near.turn = turn or near.turn
    mux = Yamux(near, ID(b"peer"))  # type: ignore[arg-type]
    peer = Stranger(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        if listens:
            nursery.start_soon(peer.listen)
        await mux.event_started.wait()
        yield mux, peer
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Any]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def read_exactly(stream: Any, size: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < size:
        pieces += await stream.read(size - len(pieces))
    return bytes(pieces)
