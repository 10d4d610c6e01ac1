"""What the network in memory adds: virtual time, latency, bandwidth and faults, the same in every run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.errors import DialError, OverlayError, StreamError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import CONNECT_TIMEOUT_S, SUBSCRIPTION_QUEUE, StreamReset
from p2pcompute.overlay._queue import SubscriptionQueue
from p2pcompute.testing import MemoryNetwork, MemoryOverlay, open_memory_overlay
from p2pcompute.testing._overlay_checks import PrefixValidator

ECHO, HOLD = "/echo/1", "/hold/1"


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def node(network: MemoryNetwork, key: NodeKey | None = None) -> Any:
    return open_memory_overlay(network, key or NodeKey.generate(), record_validator=PrefixValidator())


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def pair(network: MemoryNetwork) -> AsyncGenerator[tuple[MemoryOverlay, MemoryOverlay], None]:
    async with node(network) as a, node(network) as b:
        for one in (a, b):
            one.handle(ECHO, echo)
        await a.connect(b.addresses[0])
        yield a, b


def test_a_round_trip_takes_two_latencies() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.05)
        async with pair(network) as (a, b):
            stream = await a.open_stream(b.peer_id, ECHO)
            start = trio.current_time()
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            assert trio.current_time() - start == pytest.approx(0.1)
            network.link(a.peer_id, b.peer_id, latency_s=1.0)
            start = trio.current_time()
            await a.open_stream(b.peer_id, ECHO)
            assert trio.current_time() - start == pytest.approx(2.0)

    run(main)


def test_streams_share_the_bandwidth_of_a_link() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.0)
        async with pair(network) as (a, b):
            network.link(a.peer_id, b.peer_id, bytes_per_s=100_000)
            done: list[float] = []

            async def swallow(stream: Any) -> None:
                while await stream.receive_some():
                    pass
                done.append(trio.current_time())

            b.handle("/swallow/1", swallow)
            start = trio.current_time()
            for _ in range(2):
                stream = await a.open_stream(b.peer_id, "/swallow/1")
                await stream.send_all(bytes(100_000))
                await stream.close_write()
            await trio.sleep(10)
            assert done[-1] - start == pytest.approx(2.0)

    run(main)


def test_a_partition_hangs_and_heals() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01)
        async with pair(network) as (a, b):
            stream = await a.open_stream(b.peer_id, ECHO)
            network.partition(b.peer_id)
            await stream.send_all(b"delayed")
            with trio.move_on_after(100) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
            with pytest.raises(StreamError, match="did not answer"):
                await a.open_stream(b.peer_id, ECHO)
            assert await a.dht_get(bytes(32)) is None
            async with node(network) as c:
                start = trio.current_time()
                with pytest.raises(DialError, match="did not answer"):
                    await c.connect(b.addresses[0])
                assert trio.current_time() - start == pytest.approx(CONNECT_TIMEOUT_S)
            network.heal(b.peer_id)
            assert await stream.receive_some() == b"delayed"

    run(main)


def test_gossip_into_a_partition_is_lost_and_counted() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01)
        async with pair(network) as (a, b), b.subscribe("t", lambda _s, _d: True) as subscription:
            network.partition(b.peer_id)
            await a.publish("t", b"lost")
            network.heal(b.peer_id)
            await a.publish("t", b"heard")
            assert await subscription.__anext__() == (a.peer_id, b"heard")
            assert network.gossip_lost == 1

    run(main)


def test_a_killed_peer_breaks_its_streams_and_can_come_back() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01)
        key = NodeKey.generate()
        cancelled = trio.Event()

        async def hold(stream: Any) -> None:
            await stream.send_all(b"ready")
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        async with node(network) as a, node(network, key) as b:
            b.handle(HOLD, hold)
            await a.connect(b.addresses[0])
            stream = await a.open_stream(b.peer_id, HOLD)
            assert await stream.receive_some() == b"ready"
            network.kill(b.peer_id)
            await cancelled.wait()
            with pytest.raises(StreamReset):
                await stream.receive_some()
            assert a.peers() == frozenset()
            with pytest.raises(DialError):
                await a.open_stream(b.peer_id, HOLD)
            with pytest.raises(OverlayError):
                await b.open_stream(a.peer_id, HOLD)
            with pytest.raises(OverlayError):
                network.kill(b.peer_id)
            async with node(network, key) as again:
                again.handle(ECHO, echo)
                await a.connect(again.addresses[0])
                stream = await a.open_stream(key.peer_id, ECHO)
                await stream.send_all(b"back")
                assert await stream.receive_some() == b"back"

    run(main)


def test_streams_can_be_stalled_and_reset() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01)
        async with pair(network) as (a, b):
            stream = await a.open_stream(b.peer_id, ECHO)
            assert network.stall_streams(b.peer_id, ECHO) == 1
            assert network.stall_streams(b.peer_id, "/nothing/1") == 0
            await stream.send_all(b"x")
            with trio.move_on_after(1000) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
            other = await a.open_stream(b.peer_id, ECHO)  # only those open at the time are stalled
            await other.send_all(b"y")
            assert await other.receive_some() == b"y"
            network.resume_streams(b.peer_id)
            assert await stream.receive_some() == b"x"
            assert network.reset_streams(a.peer_id) == 2
            for broken in (stream, other):
                with pytest.raises(StreamReset):
                    await broken.send_all(b"z")

    run(main)


def test_a_stalled_sender_gives_up_in_the_end() -> None:
    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01)
        async with pair(network) as (a, b):
            stream = await a.open_stream(b.peer_id, ECHO)
            network.stall_streams(b.peer_id)
            with pytest.raises(StreamReset, match="read nothing for 60 s"):
                await stream.send_all(bytes(1 << 20))

    run(main)


def test_errors_of_the_body_come_out_as_they_are() -> None:
    async def main() -> None:
        async with node(MemoryNetwork()):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_one_key_is_on_the_network_once() -> None:
    async def main() -> None:
        network, key = MemoryNetwork(), NodeKey.generate()
        async with node(network, key), node(network, key):
            pass

    with pytest.raises(OverlayError, match="already"):
        run(main)


def test_two_runs_are_the_same_to_the_tick() -> None:
    def trace() -> list[tuple[float, str]]:
        events: list[tuple[float, str]] = []

        async def main() -> None:
            network = MemoryNetwork(latency_s=0.013, bytes_per_s=1e6)
            keys = [NodeKey(bytes([number]) * 32) for number in range(1, 6)]
            async with trio.open_nursery() as nursery:

                async def one(index: int) -> None:
                    async with node(network, keys[index]) as me:
                        me.handle(ECHO, echo)
                        await trio.sleep(1 + index * 0.001)
                        for other in keys[:index]:
                            await me.connect(network.node(other.peer_id).addresses[0])
                            stream = await me.open_stream(other.peer_id, ECHO)
                            await stream.send_all(bytes(10_000 * index))
                            size = 0
                            while size < 10_000 * index:
                                size += len(await stream.receive_some())
                                events.append((trio.current_time(), f"{index} {size}"))
                        await trio.sleep(100)

                for index in range(5):
                    nursery.start_soon(one, index)

        run(main)
        start = events[0][0]
        return sorted((round(at - start, 9), what) for at, what in events)

    assert trace() == trace()


def test_a_full_queue_drops_its_oldest() -> None:
    async def main() -> None:
        queue = SubscriptionQueue()
        peer = NodeKey.generate().peer_id
        for number in range(SUBSCRIPTION_QUEUE + 10):
            queue.put(peer, b"%d" % number)
        assert queue.dropped == 10
        queue.close()
        queue.put(peer, b"too late")
        received = [data async for _, data in queue]
        assert received == [b"%d" % number for number in range(10, SUBSCRIPTION_QUEUE + 10)]

    run(main)


def test_a_cancelled_wait_loses_no_message() -> None:
    async def main() -> None:
        queue = SubscriptionQueue()
        peer = NodeKey.generate().peer_id
        with trio.move_on_after(1) as scope:
            await queue.__anext__()
        assert scope.cancelled_caught
        queue.put(peer, b"kept")
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await queue.__anext__()
        assert await queue.__anext__() == (peer, b"kept")

    run(main)


def test_the_interface_does_not_import_libp2p() -> None:
    program = (
        "import sys, p2pcompute.overlay, p2pcompute.testing, p2pcompute.identity;"
        "sys.exit(any(name in sys.modules for name in ('libp2p', 'multiaddr', 'numba', 'httpx')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
