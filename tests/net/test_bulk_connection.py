"""A second connection for what is large, over real sockets: what goes where, who opens it, and what if it is gone."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2pcompute.blobs import BlobFetch, BlobName, BlobServer, Bytes, HeldBlob, Source
from p2pcompute.control._peers import _row
from p2pcompute.errors import StreamError
from p2pcompute.overlay import Limits, _bulk
from p2pcompute.overlay._bulk import BULK_IDLE_S
from p2pcompute.overlay._libp2p import Libp2pOverlay, _to_id
from p2pcompute_protocols import blob

from ._attacked import ECHO, HOLD, a_node, run, wait_until

pytestmark = pytest.mark.net

SINK = "/sink/1"
MIB = 1024 * 1024
TICKET = bytes(32)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowded machine may take long for a handshake, and the tests are of what follows."""
    monkeypatch.setattr(_bulk, "DIAL_S", 100.0)


class Relay:
    """Hands bytes on between a node and whoever dials it here; one way of a connection can be held.

    Attributes:
        sent: of each connection, in the order in which they came, the bytes that went to the node.
        held: connections of which nothing goes to the node.
        cut_after: bytes after which the second connection is cut, once.
    """

    def __init__(self, node: Libp2pOverlay, nursery: trio.Nursery) -> None:
        self.sent: list[int] = []
        self.held: set[int] = set()
        self.cut_after: int | None = None
        self.cut = trio.Event()
        self.refuses = False
        self._changed = trio.Event()
        self._node = node
        self._nursery = nursery
        self.address = ""

    async def serve(self, task_status: Any) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        self.address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{self._node.peer_id}"
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    async def _relay(self, dialled: trio.SocketStream) -> None:
        if self.refuses:
            dialled.socket.close()
            return
        number = len(self.sent)
        self.sent.append(0)
        node = await trio.open_tcp_stream("127.0.0.1", int(self._node.addresses[0].split("/")[4]))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._to_node, number, dialled, node, nursery.cancel_scope)
                nursery.start_soon(self._back, number, node, dialled, nursery.cancel_scope)
        finally:
            for stream in (dialled, node):
                stream.socket.close()

    async def _to_node(self, number: int, source: Any, sink: Any, scope: trio.CancelScope) -> None:
        try:
            while data := await source.receive_some(16_384):
                while number in self.held:
                    await self._changed.wait()
                await sink.send_all(data)
                self.sent[number] += len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    async def _back(self, number: int, source: Any, sink: Any, scope: trio.CancelScope) -> None:
        came = 0
        try:
            while data := await source.receive_some(16_384):
                came += len(data)
                if number and self.cut_after is not None and came > self.cut_after and not self.cut.is_set():
                    self.cut.set()
                    break
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()

    def let_go(self) -> None:
        self.held.clear()
        changed, self._changed = self._changed, trio.Event()
        changed.set()


@asynccontextmanager
async def related(**options: Any) -> AsyncGenerator[tuple[Libp2pOverlay, Libp2pOverlay, Relay], None]:
    """A node that has dialled another through a relay."""
    async with a_node(**options) as near, a_node() as far, trio.open_nursery() as nursery:
        relay = Relay(far, nursery)
        await nursery.start(relay.serve)
        await near.connect(relay.address)
        yield near, far, relay
        nursery.cancel_scope.cancel()


async def ask(stream: Any) -> None:
    await stream.send_all(b"x" * 200)
    left = 200
    while left:
        left -= len(await stream.receive_some(left))


def connection_of(stream: Any) -> Any:
    return stream._muxed._conn


def bulks(node: Libp2pOverlay, peer: Libp2pOverlay) -> list[bool]:
    reports = [report for report in node.peer_reports() if report.peer_id == peer.peer_id]
    return [conn.bulk for report in reports for conn in report.connections]


@pytest.mark.parametrize("apart", [True, False])
def test_a_small_request_does_not_wait_behind_bulk(apart: bool) -> None:
    async def main() -> None:
        async with related() as (near, far, relay), trio.open_nursery() as nursery:
            taken = 0

            async def sink(stream: Any) -> None:
                nonlocal taken
                while data := await stream.receive_some():
                    taken += len(data)
                await stream.send_all(b"all")

            async def send() -> None:
                await large.send_all(bytes(4 * MIB))
                await large.close_write()

            far.handle(SINK, sink)
            small = await near.open_stream(far.peer_id, ECHO)
            await ask(small)
            large: Any = await near.open_stream(far.peer_id, SINK, bulk=apart)
            assert len(relay.sent) == (2 if apart else 1)
            held = len(relay.sent) - 1
            relay.held.add(held)
            nursery.start_soon(send)
            muxed = connection_of(large)
            # As much as the peer has granted is on its way, and nothing of it arrives.
            await wait_until(lambda: not muxed.session.send_window(large._muxed.stream_id))
            before = relay.sent[0]
            if not apart:
                relay.let_go()  # else the answer would never come
            await ask(small)
            behind = relay.sent[0] - before
            if apart:
                assert taken == 0
                assert behind < 64 * 1024
            else:
                assert behind >= 256 * 1024, "the attack works where both share a connection"
            relay.let_go()
            assert await large.receive_some() == b"all"
            assert taken == 4 * MIB

    run(main)


def test_each_side_puts_its_streams_where_they_belong() -> None:
    async def main() -> None:
        async with related() as (near, far, relay):
            near.handle(HOLD, _wait)
            for node, peer in ((near, far), (far, near)):
                assert bulks(node, peer) == [False]
            large = [await near.open_stream(far.peer_id, HOLD, bulk=True) for _ in range(3)]
            assert len(relay.sent) == 2
            large.append(await far.open_stream(near.peer_id, HOLD, bulk=True))  # it can't dial, and need not
            assert len(relay.sent) == 2
            small = [await near.open_stream(far.peer_id, HOLD), await far.open_stream(near.peer_id, HOLD)]
            for node, peer in ((near, far), (far, near)):
                assert bulks(node, peer) == [False, True]
                assert node.peers() == {peer.peer_id}
                swarm = node._swarm
                first, second = swarm.get_connections(_to_id(peer.peer_id))
                assert not swarm.is_bulk(first)
                assert swarm.is_bulk(second)
                mine = [stream for stream in [*large, *small] if stream.peer_id == peer.peer_id]
                for stream in mine:
                    assert connection_of(stream) is (second if stream in large else first).muxed_conn
                row = _row(next(iter(node.peer_reports())), None, None)
                assert [connection["bulk"] for connection in row["connections"]] == [False, True]
            assert near.limits_report().peers[0].connections == 2

    run(main)


def test_nobody_is_told_of_a_peer_that_comes_once_more(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with related() as (near, far, _):
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            await ask(stream)
            await stream.aclose()
            now = trio.current_time()
            await near._swarm.close_idle(now)
            await near._swarm.close_idle(now + BULK_IDLE_S)
            await wait_until(lambda: bulks(near, far) == [False] == bulks(far, near))
            events = [getattr(record, "event", "") for record in caplog.records]
            assert events.count("peer connected") == 2, "one at each side"
            assert events.count("peer disconnected") == 0
            assert [each.counters.connected.total() for each in (near, far)] == [2, 2]

    with caplog.at_level("INFO", logger="p2pcompute"):
        run(main)


def test_two_that_dialled_each_other_keep_both_for_small_streams() -> None:
    async def main() -> None:
        async with a_node() as a, a_node() as b:
            near, far = a._swarm, b._swarm
            await a.connect(b.addresses[0])
            await far.dial_first(_to_id(a.peer_id), list(a._host.get_addrs()))
            await wait_until(lambda: bulks(a, b) == [False, False] == bulks(b, a))
            one = await a.open_stream(b.peer_id, HOLD, bulk=True)
            await wait_until(lambda: bulks(a, b) == [False, False, True] == bulks(b, a))
            two = await b.open_stream(a.peer_id, HOLD, bulk=True)  # three are as many as one peer may have
            assert bulks(b, a) == [False, False, True]
            for stream, swarm in ((one, near), (two, far)):
                (conn,) = (conn for conn in swarm.get_connections(_to_id(stream.peer_id)) if swarm.is_bulk(conn))
                assert connection_of(stream) is conn.muxed_conn

    run(main)


def test_without_room_for_a_second_connection_the_first_carries_everything() -> None:
    async def main() -> None:
        async with related(limits=Limits(connections_per_peer=1)) as (near, far, relay):
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            await ask(stream)
            assert len(relay.sent) == 1
        async with related() as (near, far, relay):
            relay.refuses = True
            for _ in range(2):
                stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
                await ask(stream)
            assert bulks(near, far) == [False]
            assert _to_id(far.peer_id) in near._swarm._no_bulk_until  # it was tried, and is not for a while

    run(main)


def test_it_is_closed_when_nobody_uses_it_and_opened_anew() -> None:
    async def main() -> None:
        async with related() as (near, far, relay):
            swarm, now = near._swarm, trio.current_time()
            kept = await near.open_stream(far.peer_id, ECHO)
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            await swarm.close_idle(now)
            await swarm.close_idle(now + 2 * BULK_IDLE_S)
            await ask(stream)
            await stream.aclose()
            await swarm.close_idle(now + 2 * BULK_IDLE_S)
            await swarm.close_idle(now + 3 * BULK_IDLE_S - 1)
            assert bulks(near, far) == [False, True]
            await swarm.close_idle(now + 3 * BULK_IDLE_S)
            assert bulks(near, far) == [False]
            await wait_until(lambda: bulks(far, near) == [False])
            await swarm.close_idle(now + 9 * BULK_IDLE_S)  # the first one is not for us to close
            await ask(kept)
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            await ask(stream)
            assert len(relay.sent) == 3
            assert bulks(near, far) == [False, True]

    run(main)


def test_a_blob_whose_connection_breaks_comes_on_the_other_one() -> None:
    content = hashlib.shake_128(b"a blob").digest(3 * MIB)
    leaves = blob.leaves_of(content)
    name = BlobName(digest=hashlib.sha256(content).digest(), size=len(content), root=blob.root_of(leaves))

    async def main() -> None:
        async with related() as (near, far, relay):
            server = BlobServer()
            server.register(far)
            kept = await near.open_stream(far.peer_id, ECHO)
            relay.cut_after = MIB
            place = Bytes(len(content))
            with server.offer(HeldBlob(name, Bytes(content), complete=True), TICKET):
                fetch = BlobFetch(near, HeldBlob(name, place), TICKET)
                fetch.add(Source(peer=far.peer_id, origin=True))
                await fetch.run()
            assert relay.cut.is_set()
            assert place.data == content
            assert not fetch.liars
            # What had come whole before the break did not come again.
            assert fetch.received[far.peer_id] == len(content)
            assert bulks(near, far) == [False]
            await ask(kept)

    run(main)


def test_streams_of_a_broken_connection_break_and_no_others() -> None:
    async def main() -> None:
        async with related() as (near, far, _):
            kept = await near.open_stream(far.peer_id, ECHO)
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            connection_of(stream).abort()
            with pytest.raises(StreamError):
                await ask(stream)
            await ask(kept)
            assert near.peers() == {far.peer_id}
            await wait_until(lambda: bulks(far, near) == [False])
            assert far.peers() == {near.peer_id}

    run(main)


def test_where_the_first_ends_the_second_takes_its_place() -> None:
    async def main() -> None:
        async with related() as (near, far, relay):
            stream = await near.open_stream(far.peer_id, ECHO, bulk=True)
            first: Any = near._swarm.get_connections(_to_id(far.peer_id))[0]
            first.muxed_conn.abort()
            await wait_until(lambda: bulks(near, far) == [False] == bulks(far, near))
            small = await near.open_stream(far.peer_id, ECHO)
            assert connection_of(small) is connection_of(stream)
            another = await near.open_stream(far.peer_id, ECHO, bulk=True)
            assert connection_of(another) is not connection_of(small)
            assert len(relay.sent) == 3
            for each in (stream, small, another):
                await ask(each)

    run(main)


async def _wait(_stream: Any) -> None:
    await trio.sleep_forever()
