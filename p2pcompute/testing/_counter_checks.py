"""What every implementation of `Overlay` must count, as checks that its tests run; see `_overlay_checks`."""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pcompute.overlay import (
    MAX_INBOUND_STREAMS_PER_PEER,
    PING_PROTOCOL,
    Overlay,
    OverlayStream,
    StreamReset,
    UnknownProtocol,
)
from p2pcompute.overlay._counters import MAX_COUNTED_PROTOCOLS, Direction

from ._overlay_checks import Check, OpenNode, PrefixValidator

__all__ = ["COUNTER_CHECKS"]

_ECHO = "/p2pcompute-check/echo/1"
_HOLD = "/p2pcompute-check/hold/1"
_LOOK_S = 0.01


async def _echo(stream: OverlayStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _until(holds: Callable[[], bool]) -> None:
    """The other end's books are closed soon after ours; nothing says when."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(_LOOK_S)


async def check_streams_are_counted(open_node: OpenNode) -> None:
    """Streams, bytes and times by protocol, at both ends; by peer as long as it is there."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        b.handle(_ECHO, _echo)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _ECHO)
        near = a.counters.protocol(_ECHO)
        assert (near.opened["out"], near.open, near.first_reply.count) == (1, 1, 0)
        await stream.send_all(b"x" * 1000)
        got = 0
        while got < 1000:
            got += len(await stream.receive_some(700))
        assert (near.bytes_out, near.bytes_in) == (1000, 1000)
        assert near.first_reply.count == 1, "only the first byte is a reply's first"
        await stream.aclose()
        await stream.reset()
        assert (near.open, dict(near.ended)) == (0, {"closed": 1})
        far = b.counters.protocol(_ECHO)
        await _until(lambda: far.handling.count == 1)
        assert (far.opened["in"], far.bytes_in, far.bytes_out, far.open) == (1, 1000, 1000, 0)
        assert far.first_reply.count == 0
        for node, other in ((a, b), (b, a)):
            (report,) = [report for report in node.peer_reports() if report.peer_id == other.peer_id]
            assert report.bytes_in >= 1000
            assert report.bytes_out >= 1000


async def check_broken_streams_are_counted(open_node: OpenNode) -> None:
    """Which end reset a stream, what was turned away, and what was never there."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        held = trio.Event()

        async def hold(stream: OverlayStream) -> None:
            await stream.send_all(b"!")
            await held.wait()

        b.handle(_HOLD, hold)
        await a.connect(b.addresses[0])
        stream = await a.open_stream(b.peer_id, _HOLD)
        await stream.receive_some()
        await stream.reset()
        assert a.counters.protocol(_HOLD).ended == {"reset": 1}
        streams: list[OverlayStream] = []
        broken = 0
        for _ in range(MAX_INBOUND_STREAMS_PER_PEER):
            try:
                streams.append(await a.open_stream(b.peer_id, _HOLD))
            except StreamReset:  # the news was here before the answer was read
                broken += 1
        # One has no place, since the handler of the first one still waits.
        await _until(lambda: b.counters.protocol(_HOLD).ended["reset"] == 1)
        held.set()
        for one in streams:  # the rest are closed politely
            try:
                while await one.receive_some():
                    pass
            except StreamReset:
                broken += 1
            await one.aclose()
        assert broken == 1
        assert a.counters.protocol(_HOLD).ended["broken"] == 1
        for number in range(2 * MAX_COUNTED_PROTOCOLS):
            try:
                await a.open_stream(b.peer_id, f"/p2pcompute-check/{number}/1")
            except UnknownProtocol:
                continue
            raise AssertionError("nobody handles that")
        assert len(a.counters.protocols) == MAX_COUNTED_PROTOCOLS + 1
        assert not any("/p2pcompute-check/1/1" in name for name in b.counters.protocols), "a stranger's word"
        assert len(b.counters.protocols) < MAX_COUNTED_PROTOCOLS


async def check_peers_are_reported(open_node: OpenNode) -> None:
    """Who is connected, which way, and how far away; nothing once it has gone."""
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        assert a.peer_reports() == []
        await a.connect(b.addresses[0])
        await _until(lambda: bool(b.peer_reports()))
        ways: tuple[tuple[Overlay, Overlay, Direction], ...] = ((a, b, "out"), (b, a, "in"))
        for node, other, direction in ways:
            (report,) = node.peer_reports()
            assert report.peer_id == other.peer_id
            (connection,) = report.connections
            assert connection.direction == direction
            assert connection.address.startswith(str(node.remote_address(other.peer_id)))
            assert connection.security
            assert connection.muxer
            assert connection.age_s >= 0
            assert node.counters.connected[direction, connection.security] == 1
        assert a.peer_reports()[0].rtt_s is None
        rtt_s = await a.ping(b.peer_id)
        assert 0 <= rtt_s < 60
        assert a.peer_reports()[0].rtt_s == rtt_s
        assert a.counters.protocol(PING_PROTOCOL).opened["out"] == 1
        far = b.counters.protocol(PING_PROTOCOL)
        await _until(lambda: not far.open)
        assert (far.opened["in"], far.bytes_in, far.bytes_out) == (1, 32, 32)
        await a.disconnect(b.peer_id)
        await _until(lambda: not a.peer_reports() and not b.peer_reports())
        await _until(lambda: not a.counters.counted_peers and not b.counters.counted_peers)


async def check_questions_are_counted(open_node: OpenNode) -> None:
    """What the DHT was asked, and gossip of others."""
    key = bytes(32)
    async with open_node(PrefixValidator()) as a, open_node(PrefixValidator()) as b:
        await a.connect(b.addresses[0])
        assert await a.dht_get(key) is None
        await a.dht_put(key, b"ok")
        assert await a.dht_get(key) == b"ok"
        assert a.counters.dht == {("get", "nothing"): 1, ("put", "found"): 1, ("get", "found"): 1}
        topic = "/p2pcompute-check/gossip/1"
        async with (
            b.subscribe(topic, lambda _, data: data != b"bad") as subscription,
            a.subscribe(topic, lambda *_: True),
        ):
            with trio.CancelScope() as publishing:
                async with trio.open_nursery() as nursery:

                    async def publish() -> None:
                        while True:  # a mesh takes its time, and nothing says when it stands
                            await a.publish(topic, b"bad")
                            await a.publish(topic, b"good")
                            await trio.sleep(0.1)

                    nursery.start_soon(publish)
                    await anext(subscription)
                    await _until(lambda: b.counters.gossip["refused"] > 0)
                    publishing.cancel()
            assert a.counters.gossip["published"] >= 2
            counted = b.counters.gossip
            assert counted["delivered"] >= 1
            assert counted["received"] >= counted["delivered"] + counted["refused"]


COUNTER_CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
