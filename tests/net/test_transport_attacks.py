"""Strangers against what carries everything: negotiation on streams, frames, TLS behind its handshake."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.protocol_muxer.multiselect import Multiselect

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import open_libp2p
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.overlay._stream_lines import MAX_STREAM_LINE_BYTES, MAX_STREAM_LINES
from p2pcompute.testing._overlay_checks import PrefixValidator

from ._attackers import DATA, MULTISTREAM, RST, SYN, WINDOW, frame, handshake, line, tcp

pytestmark = pytest.mark.net

ENDLESS = b"\xff\xff\xff\xff\x0f"  # a line of 4 GiB is about to come
STREAMS = 8
PIECE = b"a" * 60_000
PIECES = 20


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(500):
            await main()

    trio.run(bounded)


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def a_node() -> AsyncGenerator[Libp2pOverlay, None]:
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node:
        node.handle("/echo/1", echo)
        yield node


class Frames:
    """What a stranger hears, frame by frame."""

    def __init__(self, secure: Any) -> None:
        self._secure = secure
        self._buffer = bytearray()

    async def _bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._secure.read()
            assert data
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def next(self) -> tuple[int, int, int, int, bytes]:
        """Kind, flags, stream, length, payload."""
        _version, kind, flags, stream_id, length = struct.unpack("!BBHII", await self._bytes(12))
        return kind, flags, stream_id, length, await self._bytes(length) if kind == DATA else b""


def say(stream_id: int, data: bytes) -> bytes:
    return frame(DATA, 0, stream_id, len(data), data)


async def lines_without_end(node: Libp2pOverlay, grown: Callable[[int], bool]) -> int:
    """Open streams and send each a line that has no end; how many were reset before `grown` was true of what the node
    took of one of them, which it shows by giving window back."""
    stream = await tcp(node.addresses[0])
    async with stream:
        secure = await handshake(stream, node.addresses[0])
        for number in range(STREAMS):
            await secure.write(frame(WINDOW, SYN, 2 * number + 1, 0) + say(2 * number + 1, MULTISTREAM + ENDLESS))
        reset: set[int] = set()
        given: dict[int, int] = {}

        async def flood() -> None:
            for _ in range(PIECES):
                for number in range(STREAMS):
                    stream_id = 2 * number + 1
                    if stream_id not in reset:
                        await secure.write(say(stream_id, PIECE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            frames = Frames(secure)
            while len(reset) < STREAMS:
                kind, flags, stream_id, length, _ = await frames.next()
                if stream_id % 2 == 1 and flags & RST:
                    reset.add(stream_id)
                elif stream_id % 2 == 1 and kind == WINDOW and length:
                    given[stream_id] = given.get(stream_id, 0) + length
                    if grown(sum(given.values())):
                        break
            nursery.cancel_scope.cancel()
        return len(reset)


def test_a_line_of_negotiation_that_has_no_end_ends_its_stream() -> None:
    """Its bytes would have been read, so they would count nowhere, and be kept."""

    async def main() -> None:
        async with a_node() as node:
            assert await lines_without_end(node, lambda window: window > 0) == STREAMS

    run(main)


def test_libp2ps_own_negotiation_keeps_what_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._mends.BoundedMultiselect", Multiselect)

    async def main() -> None:
        async with a_node() as node:
            assert await lines_without_end(node, lambda window: window > 2_000_000) == 0

    run(main)


def test_who_proposes_without_end_loses_the_stream() -> None:
    async def main() -> None:
        async with a_node() as node, await tcp(node.addresses[0]) as stream:
            secure = await handshake(stream, node.addresses[0])
            await secure.write(frame(WINDOW, SYN, 1, 0) + say(1, MULTISTREAM))
            await secure.write(say(1, line("/nobody/speaks/this") * (MAX_STREAM_LINES + 1)))
            frames = Frames(secure)
            answers = b""
            while True:
                _, flags, stream_id, _, payload = await frames.next()
                if stream_id == 1:
                    answers += payload
                    if flags & RST:
                        break
            assert answers.count(b"\x03na\n") == MAX_STREAM_LINES - 1  # one line was the greeting

    run(main)


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x00",
        struct.pack("B", MAX_STREAM_LINE_BYTES & 127 | 128) + b"\x09" + b"x" * 10,
        b"\x80\x80\x80\x80\x01",
        b"\x05\xff\xff\xff\xff\n",
        b"\x13/multistream/1.0.0x",
    ],
)
def test_lines_that_are_none_end_their_stream_and_nothing_else(greeting: bytes) -> None:
    async def main() -> None:
        async with a_node() as node, await tcp(node.addresses[0]) as stream:
            secure = await handshake(stream, node.addresses[0])
            await secure.write(frame(WINDOW, SYN, 1, 0) + say(1, greeting))
            frames = Frames(secure)
            while True:
                _, flags, stream_id, _, _ = await frames.next()
                if stream_id == 1 and flags & RST:
                    break
            ask = MULTISTREAM + line("/echo/1")
            await secure.write(frame(WINDOW, SYN, 3, 0) + say(3, ask + b"hello"))
            heard = b""
            while heard != ask + b"hello":
                _, flags, stream_id, _, payload = await frames.next()
                if stream_id == 3:
                    assert not flags & RST
                    heard += payload

    run(main)
