"""Leaving the overlay leaves nothing behind, however it is left; and peers that die are noticed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from multiaddr import Multiaddr

from p2pcompute.errors import DialError, OverlayError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import StreamReset, open_libp2p
from p2pcompute.testing._overlay_checks import PrefixValidator

from .._leftovers import open_files, tasks, threads

pytestmark = pytest.mark.net

ECHO = "/echo/1"


def our_node(**options: Any):
    return open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), **options)


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(300):
            await main()

    trio.run(bounded)


def living() -> dict[str, set[object]]:
    return {"files": open_files(), "threads": threads(), "tasks": tasks()}


def left_since(before: dict[str, set[object]]) -> dict[str, set[object]]:
    """What is there now and was not there before, by kind."""
    return {kind: now - before[kind] for kind, now in living().items()}


NOTHING: dict[str, set[object]] = {"files": set(), "threads": set(), "tasks": set()}


@asynccontextmanager
async def silent_server() -> AsyncGenerator[str, None]:
    """Accepts connections and says nothing."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:

        async def hold(_stream: trio.SocketStream) -> None:
            await trio.sleep_forever()

        nursery.start_soon(trio.serve_listeners, hold, [listener])
        port = listener.socket.getsockname()[1]
        yield f"/ip4/127.0.0.1/tcp/{port}/p2p/{NodeKey.generate().peer_id}"
        nursery.cancel_scope.cancel()


async def use_everything() -> None:
    async with our_node() as a, our_node() as b, our_node() as c:

        async def hold(stream: Any) -> None:
            await stream.send_all(b"ready")
            await trio.sleep_forever()

        b.handle("/hold/1", hold)
        b.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        await c.connect(b.addresses[0])
        for node in (a, c):
            stream = await node.open_stream(b.peer_id, "/hold/1")
            assert await stream.receive_some() == b"ready"
        async with a.subscribe("t", lambda _s, _d: True), b.subscribe("t", lambda _s, _d: True):
            await a.publish("t", b"x")
            await a.dht_put(bytes(32), b"ok")
            await a.dht_provide(bytes(32))


async def leave_by_an_error() -> None:
    async def body() -> None:
        async with our_node() as a, our_node() as b:
            await a.connect(b.addresses[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()


async def leave_by_cancellation() -> None:
    with trio.CancelScope() as scope:
        async with our_node() as a, our_node() as b:
            await a.connect(b.addresses[0])
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def leave_while_dialling() -> None:
    async with silent_server() as address, our_node() as a:
        with trio.move_on_after(0.3) as scope:
            await a.connect(address)
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.connect, address)
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def leave_while_being_dialled() -> None:
    async with our_node() as a:
        host, port = a.addresses[0].split("/")[2::2][:2]
        silent = await trio.open_tcp_stream(host, int(port))
        await trio.sleep(0.05)
    await silent.aclose()


async def fail_to_dial() -> None:
    async with our_node() as a, our_node() as b:
        bare = b.addresses[0].partition("/p2p/")[0]
        with pytest.raises(DialError, match=r"somebody else answers at /ip4/127\.0\.0\.1"):
            await a.connect(f"{bare}/p2p/{NodeKey.generate().peer_id}")
        with pytest.raises(DialError, match="refused"):
            await a.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{b.peer_id}")


@pytest.mark.parametrize(
    "scenario",
    [
        use_everything,
        leave_by_an_error,
        leave_by_cancellation,
        leave_while_dialling,
        leave_while_being_dialled,
        fail_to_dial,
    ],
)
def test_nothing_is_left(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with our_node():
            pass  # what is loaded and opened once per process
        before = living()
        await scenario()
        await trio.testing.wait_all_tasks_blocked()
        assert left_since(before) == NOTHING

    run(main)


def test_a_plain_host_leaves_its_port_tasks_and_a_thread() -> None:
    async def main() -> None:
        before = living()
        listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
        host = new_host(key_pair=create_new_key_pair(), listen_addrs=listen)
        pubsub = Pubsub(host, GossipSub([TProtocol("/meshsub/1.1.0")], 6, 4, 12))
        with trio.CancelScope() as scope:
            async with host.run(listen):
                address = host.get_transport_addrs()[0]
                scope.cancel()
                await trio.sleep_forever()
        try:
            port = int(str(address.value_for_protocol("tcp")))
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            assert all(left_since(before).values())
        finally:
            pubsub.seen_messages.stop()
            for listener in host.get_network().listeners.values():
                await listener.close()

    run(main)


def test_leaving_is_final() -> None:
    async def main() -> None:
        async with our_node() as b:
            b.handle(ECHO, echo)
            async with our_node() as a:
                await a.connect(b.addresses[0])
            assert a.peers() == frozenset()
            with pytest.raises(OverlayError):
                await a.open_stream(b.peer_id, ECHO)
            with pytest.raises(OverlayError):
                await a.connect(b.addresses[0])

    run(main)


_CHILD = """
import sys, trio
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import open_libp2p
from p2pcompute.testing._overlay_checks import PrefixValidator

async def echo(stream):
    while data := await stream.receive_some():
        await stream.send_all(data)

async def main():
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node:
        node.handle("/echo/1", echo)
        print(node.addresses[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@asynccontextmanager
async def child_node() -> AsyncGenerator[tuple[trio.Process, str], None]:
    """A node in a process of its own: (the process, its address)."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _CHILD], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = b""
        while not line.endswith(b"\n"):
            part = await process.stdout.receive_some()
            assert part, "the child ended early"
            line += part
        yield process, line.decode().strip()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()


def test_a_killed_peer_is_noticed() -> None:
    async def main() -> None:
        async with child_node() as (process, address), our_node() as a:
            peer = await a.connect(address)
            stream = await a.open_stream(peer, ECHO)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            process.send_signal(signal.SIGKILL)
            with pytest.raises(StreamReset):
                await stream.receive_some()
            with pytest.raises(OverlayError):
                await a.open_stream(peer, ECHO)

    run(main)


def test_leaving_does_not_wait_for_a_stopped_peer() -> None:
    async def main() -> None:
        async with child_node() as (process, address):
            async with our_node() as a:
                peer = await a.connect(address)
                streams = [await a.open_stream(peer, ECHO) for _ in range(32)]
                process.send_signal(signal.SIGSTOP)
                with trio.move_on_after(0.5):  # fills every window and the socket between us
                    async with trio.open_nursery() as nursery:
                        for stream in streams:
                            nursery.start_soon(stream.send_all, bytes(1 << 20))
                with trio.move_on_after(0.2) as scope:
                    await a.open_stream(peer, ECHO)
                assert scope.cancelled_caught
            process.send_signal(signal.SIGCONT)

    run(main)
