"""js-libp2p from npm against our overlay, dialling both ways: whatever else speaks libp2p can talk to a node.

Each test starts a js-libp2p host as a process and tells it what to do; our side runs here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2pcompute.errors import DialError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Overlay, OverlayStream, StreamReset, UnknownProtocol, open_libp2p
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols.ids import PeerId

from ._js import PATIENCE_S, JsError, JsProgram, needs_js, run_js

pytestmark = [pytest.mark.net, needs_js]

MIB = 1024 * 1024
BULK = "/interop/bulk/1"
ECHO = [f"/interop/echo/{number}" for number in (1, 2, 3, 4)]
HALF = "/interop/half/1"
HOLD = "/interop/hold/1"
RESET = "/interop/reset/1"
PING = "/ipfs/ping/1.0.0"
_BODY = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(2048))


# What both sides do: the same as in js/host.mjs


class Reader:
    def __init__(self, stream: OverlayStream) -> None:
        self._stream = stream
        self._held = b""

    async def some(self, at_most: int = MIB) -> bytes:
        if self._held:
            data, self._held = self._held[:at_most], self._held[at_most:]
            return data
        return await self._stream.receive_some(at_most)

    async def exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = await self.some(size)
            assert part, f"the stream ended {size} bytes early"
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    async def rest(self) -> bytes:
        parts: list[bytes] = []
        while part := await self.some():
            parts.append(part)
        return b"".join(parts)


def blocks(size: int) -> list[bytes]:
    count = -(-size // len(_BODY))
    whole = [number.to_bytes(4, "big") + _BODY[4:] for number in range(count)]
    whole[-1] = whole[-1][: size - (count - 1) * len(_BODY)]
    return whole


def digest_of_blocks(size: int) -> str:
    digest = hashlib.sha256()
    for block in blocks(size):
        digest.update(block)
    return digest.hexdigest()


async def send_blocks(stream: OverlayStream, size: int) -> None:
    for block in blocks(size):
        await stream.send_all(block)


async def serve_bulk(stream: OverlayStream) -> None:
    reader = Reader(stream)
    size = int.from_bytes(await reader.exactly(8), "big")
    digest = hashlib.sha256()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_blocks, stream, size)
        while part := await reader.some():
            digest.update(part)
    await stream.send_all(digest.digest())


async def serve_echo(stream: OverlayStream) -> None:
    while part := await stream.receive_some():
        await stream.send_all(part)


class Served:
    """Our side's protocols, and what its handlers have seen."""

    def __init__(self, overlay: Overlay) -> None:
        self._seen, self.seen = trio.open_memory_channel[Any](1000)
        overlay.handle(BULK, serve_bulk)
        for protocol in ECHO:
            overlay.handle(protocol, serve_echo)
        overlay.handle(HALF, self._half)
        overlay.handle(HOLD, self._hold)
        overlay.handle(RESET, self._reset)

    async def _half(self, stream: OverlayStream) -> None:
        await stream.send_all(b"that is all")
        await stream.close_write()
        self._seen.send_nowait(hashlib.sha256(await Reader(stream).rest()).hexdigest())

    async def _hold(self, stream: OverlayStream) -> None:
        await stream.send_all(b"!")
        try:
            end = await stream.receive_some()
        except StreamReset:
            self._seen.send_nowait("reset")
            raise
        self._seen.send_nowait(end)

    async def _reset(self, stream: OverlayStream) -> None:
        await Reader(stream).exactly(1)
        await stream.reset()


class Meeting:
    """Our node and theirs, connected by whoever was to dial."""

    def __init__(self, ours: Overlay, js: JsProgram, served: Served) -> None:
        self.ours = ours
        self.js = js
        self.served = served
        self.them = PeerId(js.peer)
        self.us = str(ours.peer_id)


@asynccontextmanager
async def met(dials: str, **options: Any) -> AsyncGenerator[Meeting, None]:
    async with (
        open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as ours,
        run_js("host.mjs", options) as js,
    ):
        meeting = Meeting(ours, js, Served(ours))
        if dials == "ours":
            assert await ours.connect(js.address) == js.peer
        else:
            assert (await js.call("dial", address=ours.addresses[0]))["peer"] == meeting.us
            # who dials is through a handshake first; there is no event for the other side
            while meeting.them not in ours.peers():  # noqa: ASYNC110
                await trio.sleep(0.005)
        yield meeting


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(PATIENCE_S):
            await main()

    trio.run(bounded)


async def their_view(meeting: Meeting) -> dict[str, Any]:
    """The connection to us as they see it."""
    connections = (await meeting.js.call("connections"))["connections"]
    (mine,) = [one for one in connections if one["peer"] == meeting.us]
    assert isinstance(mine, dict)
    return mine


both_ways = pytest.mark.parametrize("dials", ["ours", "theirs"])


@both_ways
def test_noise_yamux_identify_and_ping(dials: str) -> None:
    async def main() -> None:
        async with met(dials) as meeting:
            view = await their_view(meeting)
            assert (view["encryption"], view["muxer"]) == ("/noise", "/yamux/1.0.0")
            told = await meeting.js.call("identified", peer=meeting.us)
            assert {"/ipfs/id/1.0.0", PING, BULK} <= set(told["protocols"])
            assert (await meeting.js.call("ping", peer=meeting.us))["ms"] >= 0
            stream = await meeting.ours.open_stream(meeting.them, PING)
            for number in range(3):
                word = bytes([number]) * 32
                await stream.send_all(word)
                assert await Reader(stream).exactly(32) == word
            await stream.aclose()
            with pytest.raises(UnknownProtocol):
                await meeting.ours.open_stream(meeting.them, "/interop/nobody/1")
            assert meeting.them in meeting.ours.peers()

    run(main)


@both_ways
def test_tls_with_who_speaks_no_noise(dials: str) -> None:
    async def main() -> None:
        async with met(dials, encrypters=["tls"]) as meeting:
            view = await their_view(meeting)
            assert (view["encryption"], view["muxer"]) == ("/tls/1.0.0", "/yamux/1.0.0")
            assert (await meeting.js.call("ping", peer=meeting.us))["ms"] >= 0
            said = await meeting.js.call("bulk", peer=meeting.us, size=MIB + 7)
            assert said == {"arrived": True, "delivered": True, "ended": True}
            stream = await meeting.ours.open_stream(meeting.them, ECHO[0])
            await stream.send_all(b"over TLS")
            assert await Reader(stream).exactly(8) == b"over TLS"
            await stream.aclose()

    run(main)


@both_ways
def test_noise_comes_before_tls_where_both_speak_both(dials: str) -> None:
    async def main() -> None:
        async with met(dials, encrypters=["noise", "tls"]) as meeting:
            assert (await their_view(meeting))["encryption"] == "/noise"

    run(main)


@both_ways
def test_64_mib_each_way_on_one_stream_that_we_open(dials: str) -> None:
    size = 64 * MIB

    async def main() -> None:
        async with met(dials) as meeting:
            stream = await meeting.ours.open_stream(meeting.them, BULK)
            await stream.send_all(size.to_bytes(8, "big"))

            async def send() -> None:
                await send_blocks(stream, size)
                await stream.close_write()

            reader, digest, left = Reader(stream), hashlib.sha256(), size
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while left:
                    part = await reader.some(left)
                    assert part
                    digest.update(part)
                    left -= len(part)
            expected = digest_of_blocks(size)
            assert digest.hexdigest() == expected
            assert (await reader.rest()).hex() == expected
            await stream.aclose()

    run(main)


@both_ways
def test_64_mib_each_way_on_one_stream_that_they_open(dials: str) -> None:
    async def main() -> None:
        async with met(dials) as meeting:
            said = await meeting.js.call("bulk", peer=meeting.us, size=64 * MIB)
            assert said == {"arrived": True, "delivered": True, "ended": True}

    run(main)


@both_ways
def test_200_streams_at_once_that_we_open(dials: str) -> None:
    count = 200

    async def main() -> None:
        async with met(dials) as meeting:
            streams: dict[int, OverlayStream] = {}
            answered: set[int] = set()

            async def open_one(number: int) -> None:
                streams[number] = await meeting.ours.open_stream(meeting.them, ECHO[number % 4], timeout_s=PATIENCE_S)

            async def ask_one(number: int) -> None:
                word = f"stream number {number}".encode()
                await streams[number].send_all(word)
                assert await Reader(streams[number]).exactly(len(word)) == word
                answered.add(number)

            async def end_one(number: int) -> None:
                await streams[number].close_write()
                assert await streams[number].receive_some() == b""
                await streams[number].aclose()

            for step in (open_one, ask_one, end_one):  # each for all before the next for any
                async with trio.open_nursery() as nursery:
                    for number in range(count):
                        nursery.start_soon(step, number)
            assert len(answered) == count

    run(main)


@both_ways
def test_200_streams_at_once_that_they_open(dials: str) -> None:
    async def main() -> None:
        async with met(dials) as meeting:
            said = await meeting.js.call("many", peer=meeting.us, count=200)
            assert said == {"right": 200, "ended": 200}

    run(main)


@both_ways
def test_a_side_that_is_closed_leaves_the_other_open(dials: str) -> None:
    size = MIB + 7

    async def main() -> None:
        async with met(dials) as meeting:
            stream = await meeting.ours.open_stream(meeting.them, HALF)
            assert await Reader(stream).rest() == b"that is all"
            await send_blocks(stream, size)
            await stream.close_write()
            assert (await meeting.js.event("half"))["digest"] == digest_of_blocks(size)
            await stream.aclose()

            said = await meeting.js.call("half", peer=meeting.us, size=size)
            assert said == {"heard": "that is all", "digest": digest_of_blocks(size)}
            assert await meeting.served.seen.receive() == digest_of_blocks(size)

    run(main)


@both_ways
def test_a_reset_is_seen_and_hurts_nothing_else(dials: str) -> None:
    async def main() -> None:
        async with met(dials) as meeting:
            beside = await meeting.ours.open_stream(meeting.them, ECHO[0])

            stream = await meeting.ours.open_stream(meeting.them, HOLD)  # we reset what we opened
            await Reader(stream).exactly(1)
            await stream.reset()
            assert (await meeting.js.event("hold"))["end"] == "StreamResetError"

            stream = await meeting.ours.open_stream(meeting.them, RESET)  # they reset what we opened
            await stream.send_all(b"!")
            with pytest.raises(StreamReset):
                await stream.receive_some()
            await stream.reset()

            said = await meeting.js.call("hold", peer=meeting.us)  # they reset what they opened
            assert said["status"] == "aborted"
            assert await meeting.served.seen.receive() == "reset"

            said = await meeting.js.call("reset", peer=meeting.us)  # we reset what they opened
            assert said == {"error": "StreamResetError"}

            await beside.send_all(b"still here")
            assert await Reader(beside).exactly(10) == b"still here"
            await beside.aclose()

    run(main)


@both_ways
def test_records_of_the_dht(dials: str) -> None:
    ours_key, theirs_key = hashlib.sha256(b"ours").digest(), hashlib.sha256(b"theirs").digest()

    async def main() -> None:
        async with met(dials, dht=True) as meeting:
            await meeting.js.call("identified", peer=meeting.us)
            await meeting.ours.connect(meeting.js.address)  # whoever dialled: now it is in our routing table
            await meeting.ours.dht_put(ours_key, b"ok, says Python")
            assert await meeting.js.call("get", key=f"/p2pcompute/{ours_key.hex()}") == {"value": "ok, says Python"}
            await meeting.js.call("put", key=f"/p2pcompute/{theirs_key.hex()}", value="ok, says JavaScript")
            assert await meeting.ours.dht_get(theirs_key) == b"ok, says JavaScript"

    run(main)


@both_ways
def test_signed_gossip(dials: str) -> None:
    topic = "p2pcompute/interop/ads/1/0"

    async def main() -> None:
        async with met(dials, gossip=True) as meeting, meeting.ours.subscribe(topic, lambda _, __: True) as heard:
            await meeting.js.call("subscribe", topic=topic)
            await meeting.js.call("subscriber", topic=topic, peer=meeting.us)

            # Neither side says when its stream for gossip to the other is there, and what is said before is lost.
            async def repeat(say: Callable[[int], Awaitable[object]]) -> None:
                for number in itertools.count():
                    await say(number)
                    await trio.sleep(0.05)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(repeat, lambda n: meeting.js.call("publish", topic=topic, data=f"from JS {n}"))
                publisher, data = await anext(heard)
                assert (publisher, data[:7]) == (meeting.them, b"from JS")
                nursery.start_soon(repeat, lambda n: meeting.ours.publish(topic, b"from Python %d" % n))
                event = await meeting.js.event("gossip")
                assert (event["type"], event["from"], event["data"][:11]) == ("signed", meeting.us, "from Python")
                nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    "options",
    [{"encrypters": ["plaintext"]}, {"muxers": ["mplex"]}],
    ids=["plaintext", "mplex"],
)
def test_what_we_do_not_speak_is_refused_and_we_go_on(options: dict[str, Any]) -> None:
    async def main() -> None:
        async with (
            open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as ours,
            run_js("host.mjs", options) as other,
            run_js("host.mjs") as js,
        ):
            Served(ours)
            with pytest.raises(JsError):
                await other.call("dial", address=ours.addresses[0])
            with pytest.raises(DialError):
                await ours.connect(other.address)
            assert other.peer not in ours.peers()
            await js.call("dial", address=ours.addresses[0])
            assert await js.call("many", peer=str(ours.peer_id), count=3) == {"right": 3, "ended": 3}

    run(main)
