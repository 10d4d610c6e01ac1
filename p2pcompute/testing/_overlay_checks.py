"""What every implementation of `Overlay` must do, as checks that its tests run.

Each check takes a function that opens a fresh node and raises AssertionError, or whatever went wrong. Checks
wait for events only, so they run on real sockets as well as under virtual time.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from p2pcompute.errors import DialError, StreamError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import (
    MAX_INBOUND_STREAMS_PER_PEER,
    OverlayStream,
    StreamReset,
    UnknownProtocol,
)

from ._overlay_acts import ECHO, OpenNode, PrefixValidator, ask, echo, read_exactly
from ._overlay_public_checks import PUBLIC_CHECKS

__all__ = ["OVERLAY_CHECKS", "OpenNode", "PrefixValidator"]

Check: TypeAlias = Callable[[OpenNode], Awaitable[None]]

_OTHER = "/p2pcompute-check/other/1"
_MIB = 1024 * 1024


async def _expect_reset(stream: OverlayStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except StreamReset:
        return
    raise AssertionError("the stream ended politely instead of being reset")


async def check_echo(open_node: OpenNode) -> None:
    """Bytes come back, streams know their peers, connecting twice is one connection."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        seen: list[tuple[str, str]] = []

        async def handler(stream: OverlayStream) -> None:
            seen.append((stream.peer_id, stream.protocol))
            await echo(stream)

        b.handle(ECHO, handler)
        assert b.addresses[0].endswith(f"/p2p/{b.peer_id}")
        assert await a.connect(b.addresses[0]) == b.peer_id
        assert await a.connect(b.addresses[0]) == b.peer_id
        assert a.peers() == {b.peer_id}
        assert b.peers() == {a.peer_id}
        assert a.addresses_of(b.peer_id) == b.addresses
        stream = await a.open_stream(b.peer_id, ECHO)
        assert (stream.peer_id, stream.protocol) == (b.peer_id, ECHO)
        await stream.send_all(b"")
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 3) == b"hel"
        assert await stream.receive_some() == b"lo"
        await stream.aclose()
        assert seen == [(a.peer_id, ECHO)]


async def check_remote_address(open_node: OpenNode) -> None:
    """Both see where the other is, for as long as they are connected, and nobody else's place."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        assert a.remote_address(b.peer_id) is None
        await a.connect(b.addresses[0])
        for near, far in ((a, b), (b, a)):
            address = near.remote_address(far.peer_id)
            assert address is not None
            assert str(ipaddress.ip_address(address)) == far.addresses[0].split("/")[2]
        await a.disconnect(b.peer_id)
        assert a.remote_address(b.peer_id) is None
        assert a.remote_address(NodeKey.generate().peer_id) is None


async def check_both_ways(open_node: OpenNode) -> None:
    """The one who was dialled can open streams too."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        a.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        assert await ask(b, a, b"from the other side") == b"from the other side"


async def check_half_close(open_node: OpenNode) -> None:
    """After our end is closed we still receive, and the end is b"" as often as it is asked for."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:

        async def count(stream: OverlayStream) -> None:
            total = 0
            while data := await stream.receive_some():
                total += len(data)
            assert await stream.receive_some() == b""
            await stream.send_all(str(total).encode())

        b.handle(_OTHER, count)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        await stream.send_all(bytes(100_000))
        await stream.close_write()
        await stream.close_write()
        try:
            await stream.send_all(b"more")
        except StreamError:
            pass
        else:
            raise AssertionError("sent on a closed side")
        assert await read_exactly(stream, 6) == b"100000"
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
        await stream.aclose()
        await stream.aclose()


async def check_polite_close(open_node: OpenNode) -> None:
    """What was sent before `aclose` arrives, though the other side goes on sending meanwhile."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:

        async def answer_early(stream: OverlayStream) -> None:
            await stream.receive_some(1)
            await stream.send_all(b"enough")

        b.handle(_OTHER, answer_early)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        await stream.send_all(bytes(500_000))
        assert await read_exactly(stream, 6) == b"enough"
        assert await stream.receive_some() == b""
        await stream.aclose()


async def check_reset(open_node: OpenNode) -> None:
    """A reset breaks both directions at both ends, for whoever waits there and for later calls."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        outcome: list[str] = []
        done = trio.Event()

        async def wait_for_reset(stream: OverlayStream) -> None:
            await stream.send_all(b"ready")
            try:
                await stream.receive_some()
            except StreamReset:
                outcome.append("receive")
            try:
                await stream.send_all(b"x")
            except StreamReset:
                outcome.append("send")
            done.set()

        b.handle(_OTHER, wait_for_reset)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        assert await read_exactly(stream, 5) == b"ready"
        await stream.reset()
        await stream.reset()
        await stream.aclose()
        await _expect_reset(stream)
        await done.wait()
        assert outcome == ["receive", "send"]


async def check_cancelled_send(open_node: OpenNode) -> None:
    """A cancelled send breaks its own stream; the connection and its other streams stay whole."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        ends: trio.MemorySendChannel[str]
        ends, ended = trio.open_memory_channel[str](100)
        go_on = trio.Event()

        async def read_late(stream: OverlayStream) -> None:
            await go_on.wait()
            try:
                while await stream.receive_some():
                    pass
            except StreamReset:
                await ends.send("reset")
            else:
                await ends.send("end")

        b.handle(ECHO, echo)
        b.handle(_OTHER, read_late)
        await a.connect(b.addresses[0])
        kept = await a.open_stream(b.peer_id, ECHO)
        rounds = 8
        for turn in range(rounds):
            stream = await a.open_stream(b.peer_id, _OTHER)
            with trio.move_on_after(0.002 * (turn + 1)) as scope:
                await stream.send_all(bytes(8 * _MIB))
            assert scope.cancelled_caught
            try:
                await stream.send_all(b"x")
            except StreamReset:
                pass
            else:
                raise AssertionError("a stream whose send was cancelled can't be whole")
            await kept.send_all(b"still here")
            assert await read_exactly(kept, 10) == b"still here"
        go_on.set()
        assert [await ended.receive() for _ in range(rounds)] == ["reset"] * rounds
        assert await ask(a, b, b"and new streams open") == b"and new streams open"


async def check_cancelled_receive(open_node: OpenNode) -> None:
    """A cancelled receive loses nothing."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, ECHO)
        with trio.move_on_after(0.01) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        await stream.send_all(b"whole")
        assert await read_exactly(stream, 5) == b"whole"


async def check_receive_into(open_node: OpenNode) -> None:
    """Bytes go where they are wanted, as many as are asked for, in order with those of `receive_some`."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        data = hashlib.sha256(b"into").digest() * 20_000

        async def send(stream: OverlayStream) -> None:
            await stream.send_all(data)

        b.handle(_OTHER, send)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        for buffer, at_least in ((bytearray(), 1), (bytearray(4), 0), (bytearray(4), 5)):
            try:
                await stream.receive_into(buffer, at_least)
            except ValueError:
                continue
            raise AssertionError(f"received {at_least} bytes into {len(buffer)}")
        got = bytearray(len(data))
        assert await stream.receive_into(memoryview(got)[:100_000], 100_000) == 100_000
        at = 100_000 + await stream.receive_into(memoryview(got)[100_000:])
        part = await read_exactly(stream, 1000)
        got[at : at + 1000] = part
        at += 1000
        assert await stream.receive_into(memoryview(got)[at:-7], len(data) - 7 - at) == len(data) - 7 - at
        rest = bytearray(50)
        assert await stream.receive_into(rest, 50) == 7, "there is less only at the end"
        got[-7:] = rest[:7]
        assert got == data
        assert await stream.receive_into(rest) == 0
        assert await stream.receive_some() == b""
        await stream.aclose()


async def check_cancelled_receive_into(open_node: OpenNode) -> None:
    """A cancelled `receive_into` loses nothing; what had come is what the next call of either kind gives."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:

        async def say_half(stream: OverlayStream) -> None:
            await stream.send_all(b"-half")
            assert await read_exactly(stream, 2) == b"go"
            await stream.send_all(b" and half" * 2)

        b.handle(ECHO, echo)
        b.handle(_OTHER, say_half)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        assert await stream.receive_some(1) == b"-"
        buffer = bytearray(9)
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.receive_into, buffer, 9)
                assert await ask(a, b, b"meanwhile") == b"meanwhile"
                nursery.cancel_scope.cancel()
        await stream.send_all(b"go")
        assert await read_exactly(stream, 2) == b"ha"
        assert await stream.receive_into(buffer, 9) == 9
        assert buffer == b"lf and ha"
        assert await read_exactly(stream, 11) == b"lf and half"
        await stream.aclose()


async def check_reset_receive_into(open_node: OpenNode) -> None:
    """A reset breaks a `receive_into` that waits."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:

        async def reset(stream: OverlayStream) -> None:
            await stream.send_all(b"some")
            await stream.receive_some(1)
            await stream.reset()

        b.handle(_OTHER, reset)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        await stream.send_all(b"x")
        for _ in range(2):
            try:
                await stream.receive_into(bytearray(100), 100)
            except StreamReset:
                continue
            raise AssertionError("received from a stream that was reset")
        await stream.aclose()


async def check_bulk(open_node: OpenNode) -> None:
    """4 MiB come back as they were, while they are still being sent."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, ECHO)
        block = hashlib.sha256(b"bulk").digest() * 2048
        data = b"".join(bytes([i]) + block[1:] for i in range(64))
        received = hashlib.sha256()

        async def send() -> None:
            await stream.send_all(data)
            await stream.close_write()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while part := await stream.receive_some():
                received.update(part)
        assert len(data) == 4 * _MIB
        assert received.digest() == hashlib.sha256(data).digest()


async def check_bulk_streams(open_node: OpenNode) -> None:
    """Streams for bulk are streams as others are, whichever side opens them, and both peers stay one."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        a.handle(ECHO, echo)
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        data = hashlib.sha256(b"much").digest() * 10_000
        for near, far in ((a, b), (b, a), (a, b)):
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            assert (stream.peer_id, stream.protocol) == (far.peer_id, ECHO)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                assert await read_exactly(stream, len(data)) == data
            await stream.aclose()
            assert await ask(near, far, b"a small one") == b"a small one"
        assert a.peers() == {b.peer_id}
        assert b.peers() == {a.peer_id}
        try:
            await a.open_stream(b.peer_id, _OTHER, bulk=True)
        except UnknownProtocol:
            pass
        else:
            raise AssertionError("opened a stream of a protocol that nobody handles")
        await a.disconnect(b.peer_id)
        assert a.peers() == frozenset()


async def check_many_streams(open_node: OpenNode) -> None:
    """32 streams at once on one connection, each with its own bytes."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        answers: dict[int, bytes] = {}

        async def one(number: int) -> None:
            answers[number] = await ask(a, b, bytes([number]) * 5000)

        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(one, number)
        assert answers == {number: bytes([number]) * 5000 for number in range(32)}


async def check_stalled_reader(open_node: OpenNode) -> None:
    """A stream that nobody reads holds up its own sender and no one else."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        stalled = trio.Event()

        async def never_read(_stream: OverlayStream) -> None:
            stalled.set()
            await trio.sleep_forever()

        b.handle(_OTHER, never_read)
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(8 * _MIB))
            await stalled.wait()
            for number in range(20):
                assert await ask(a, b, bytes([number]) * 10_000) == bytes([number]) * 10_000
            nursery.cancel_scope.cancel()


async def check_handler_exception(open_node: OpenNode) -> None:
    """A handler that raises costs its stream; the node serves on."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:

        async def fail(stream: OverlayStream) -> None:
            await stream.receive_some(1)
            raise RuntimeError("a fault in a handler")

        b.handle(_OTHER, fail)
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        for _ in range(3):
            stream = await a.open_stream(b.peer_id, _OTHER)
            await stream.send_all(b"x")
            await _expect_reset(stream)
        assert await ask(a, b, b"alive") == b"alive"


async def check_unknown_protocol(open_node: OpenNode) -> None:
    """A protocol that the peer does not speak is a typed error; so is one that is no protocol ID."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        try:
            await a.open_stream(b.peer_id, "/p2pcompute-check/nowhere/1")
        except UnknownProtocol:
            pass
        else:
            raise AssertionError("opened a stream of an unknown protocol")
        for bad in ("no-slash", "/with\nnewline", "/" + "x" * 200):
            try:
                await a.open_stream(b.peer_id, bad)
            except ValueError:
                continue
            raise AssertionError(f"{bad!r} passed as a protocol ID")
        assert await ask(a, b, b"alive") == b"alive"


async def check_too_many_streams(open_node: OpenNode) -> None:
    """One stream more than the bound is reset, and the slots come back."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        streams = [await a.open_stream(b.peer_id, ECHO) for _ in range(MAX_INBOUND_STREAMS_PER_PEER)]
        for stream in streams:
            await stream.send_all(b"x")
            assert await read_exactly(stream, 1) == b"x"
        with contextlib.suppress(StreamReset):  # the reset may overtake the answer of the negotiation
            await _expect_reset(await a.open_stream(b.peer_id, ECHO))
        for stream in streams:
            await stream.close_write()
            assert await stream.receive_some() == b""
        assert await ask(a, b, b"alive") == b"alive"


async def check_dial_errors(open_node: OpenNode) -> None:
    """Whoever can't be reached, or is not who was asked for, is a DialError, and a good address still works."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(ECHO, echo)
        stranger = NodeKey.generate().peer_id
        bare = b.addresses[0].partition("/p2p/")[0]
        closed = bare.rpartition("/")[0] + "/1"
        for address in (
            "",
            "not an address",
            bare,
            f"{bare}/p2p/nonsense",
            f"{bare}/p2p/{stranger}",
            f"{closed}/p2p/{b.peer_id}",
            a.addresses[0],
        ):
            try:
                await a.connect(address)
            except DialError:
                continue
            raise AssertionError(f"connected to {address!r}")
        for peer in (stranger, a.peer_id):
            try:
                await a.open_stream(peer, ECHO)
            except DialError:
                continue
            raise AssertionError("opened a stream to nobody")
        assert a.peers() == frozenset()
        assert await a.connect(b.addresses[0]) == b.peer_id
        assert await ask(a, b, b"after all") == b"after all"


async def check_disconnect(open_node: OpenNode) -> None:
    """Disconnecting breaks the streams at both ends; opening a stream dials again."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        broke = trio.Event()

        async def hold(stream: OverlayStream) -> None:
            await stream.send_all(b"ready")
            try:
                await stream.receive_some()
            except StreamReset:
                broke.set()

        b.handle(_OTHER, hold)
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _OTHER)
        assert await read_exactly(stream, 5) == b"ready"
        await a.disconnect(b.peer_id)
        await a.disconnect(b.peer_id)
        assert a.peers() == frozenset()
        await _expect_reset(stream)
        await broke.wait()
        assert await ask(a, b, b"again") == b"again"
        assert a.peers() == {b.peer_id}


async def check_peer_leaves(open_node: OpenNode) -> None:
    """When a node closes, its peers see broken streams, then no peer, then a DialError."""
    async with open_node(PrefixValidator()) as a:
        async with open_node(PrefixValidator()) as b:
            b.handle(ECHO, echo)
            await a.connect(b.addresses[0])
            stream = await a.open_stream(b.peer_id, ECHO)
            await stream.send_all(b"x")
            assert await read_exactly(stream, 1) == b"x"
        await _expect_reset(stream)
        try:
            await a.open_stream(b.peer_id, ECHO)
        except (DialError, StreamError):
            pass
        else:
            raise AssertionError("opened a stream to a node that left")
        assert a.peers() == frozenset()


OVERLAY_CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
} | PUBLIC_CHECKS
