"""A network in memory: the same interface as libp2p's, no sockets, no threads, and virtual time.

Run it under ``trio.testing.MockClock(autojump_threshold=0)`` and an hour takes milliseconds. Nothing in it is
random, and everything that waits, waits for trio's clock or for somebody else in the same run.
"""

from __future__ import annotations

import functools
import heapq
import logging
import math
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from p2pcompute.errors import DialError, OverlayError, RecordRefused, StreamError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import (
    CONNECT_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_INBOUND_STREAMS_PER_PEER,
    MAX_PROVIDERS,
    STREAM_TIMEOUT_S,
    GossipValidator,
    Limits,
    LimitsReport,
    OverlayStream,
    PeerInfo,
    PeerUse,
    RecordValidator,
    StreamHandler,
    Subscription,
    UnknownProtocol,
)
from p2pcompute.overlay._bans import BanList, Subject
from p2pcompute.overlay._blame import offence_of
from p2pcompute.overlay._checks import check_gossip, check_key, check_protocol, check_record, check_topic
from p2pcompute.overlay._counters import ConnectionReport, Direction, OverlayCounters, PeerReport
from p2pcompute.overlay._ping import PING_PROTOCOL, ping
from p2pcompute.overlay._queue import SubscriptionQueue
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError
from p2pcompute_protocols.ids import PeerId

from ._memory_stream import Link, MemoryStream, stream_pair

__all__ = ["MemoryNetwork", "MemoryOverlay", "open_memory_overlay"]

_log = logging.getLogger(__name__)

DIAL_ROUND_TRIPS = 3  # TCP, Noise, Yamux
LOOKUP_ROUND_TRIPS = 2  # of a DHT look-up in a small network
MAX_SEEN = 16 * 1024
MAX_VALUES = 8  # under one DHT key, the newest: nodes look at all of them, and an ad is renewed every few minutes
_SECURITY = "memory"


async def _echo(stream: OverlayStream) -> None:
    """libp2p's ping."""
    while data := await stream.receive_some():
        await stream.send_all(data)


class MemoryNetwork:
    """The wires between memory overlays, and what can go wrong with them.

    Args:
        latency_s: one way, of each link that `link` does not set.
        bytes_per_s: likewise; infinite by default.
        bans: whether nodes keep out whom they ban, as they do over libp2p. Scores are kept in either case.
    """

    def __init__(self, *, latency_s: float = 0.001, bytes_per_s: float = math.inf, bans: bool = False) -> None:
        self.bans = bans
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._nodes: dict[PeerId, MemoryOverlay] = {}
        self._links: dict[tuple[PeerId, PeerId], Link] = {}
        self._uplinks: dict[PeerId, Link] = {}
        self._partitioned: set[PeerId] = set()
        self._places: dict[PeerId, str | None] = {}
        self._opened = 0
        self.gossip_lost = 0
        self.records: dict[bytes, list[bytes]] = {}
        self.providers: dict[bytes, dict[PeerId, PeerInfo]] = {}

    # What a test sets

    def link(self, a: PeerId, b: PeerId, *, latency_s: float | None = None, bytes_per_s: float | None = None) -> None:
        """Set latency and bandwidth between two nodes, in both directions, from now on."""
        for link in (self.link_of(a, b), self.link_of(b, a)):
            link.latency_s = link.latency_s if latency_s is None else latency_s
            link.bytes_per_s = link.bytes_per_s if bytes_per_s is None else bytes_per_s

    def uplink(self, peer: PeerId, *, bytes_per_s: float) -> None:
        """Let all that `peer` sends, to whomever, leave it at this rate together, from now on."""
        self._uplinks[peer] = Link(0.0, bytes_per_s)
        for (source, _), link in self._links.items():
            if source == peer:
                link.uplink = self._uplinks[peer]

    def sent_bytes(self, peer: PeerId) -> int:
        """How many bytes have left `peer`, to whomever."""
        return sum(link.sent_bytes for (source, _), link in self._links.items() if source == peer)

    def partition(self, peer: PeerId) -> None:
        """Cut `peer` off: streams hang, dials time out, gossip is lost. Nobody is told."""
        self._partitioned.add(peer)
        self._refresh_links(peer)

    def heal(self, peer: PeerId) -> None:
        """Undo `partition`; what hung goes on."""
        self._partitioned.discard(peer)
        self._refresh_links(peer)

    def reset_streams(self, peer: PeerId, protocol: str | None = None) -> int:
        """Reset the open streams of `peer`, or those that speak `protocol`. Returns how many."""
        streams = self._streams_of(peer, protocol)
        for stream in streams:
            stream.reset_nowait()
        return len(streams)

    def stall_streams(self, peer: PeerId, protocol: str | None = None) -> int:
        """Hold back the bytes of the open streams of `peer` until `resume_streams`. Returns how many."""
        return self._set_stalled(peer, protocol, True)

    def resume_streams(self, peer: PeerId, protocol: str | None = None) -> int:
        """Undo `stall_streams`."""
        return self._set_stalled(peer, protocol, False)

    def kill(self, peer: PeerId) -> None:
        """End `peer` as kill -9 would: its handlers are cancelled, its streams break, nobody hears goodbye.

        Its key may open a new overlay afterwards; the old one only raises.
        """
        self.node(peer).die()

    def node(self, peer: PeerId) -> MemoryOverlay:
        """The open overlay of `peer`."""
        if peer not in self._nodes:
            raise OverlayError(f"{peer} is not on this network")
        return self._nodes[peer]

    def place(self, peer: PeerId, ip: str | None) -> None:
        """Set the IP address that others see `peer` at from now on; None, and they see none, as behind a relay.

        Without it each node is where it listens, in a /24 of its own.
        """
        self._places[peer] = ip

    # What overlays use

    def add(self, node: MemoryOverlay) -> str:
        if node.peer_id in self._nodes:
            raise OverlayError(f"{node.peer_id} is on this network already")
        self._nodes[node.peer_id] = node
        self._opened += 1
        return f"/ip4/10.{self._opened >> 8 & 255}.{self._opened & 255}.1/tcp/{4001 + (self._opened >> 16)}"

    def place_of(self, node: MemoryOverlay) -> str | None:
        """The IP address that others see `node` at."""
        return self._places.get(node.peer_id, node.bare_address.split("/")[2])

    def remove(self, node: MemoryOverlay) -> None:
        if self._nodes.get(node.peer_id) is node:
            del self._nodes[node.peer_id]

    def find(self, address: str) -> MemoryOverlay | None:
        """Who listens at an address without peer ID."""
        return next((node for node in self._nodes.values() if node.bare_address == address), None)

    def link_of(self, source: PeerId, target: PeerId) -> Link:
        key = (source, target)
        if key not in self._links:
            self._links[key] = Link(self._latency_s, self._bytes_per_s)
            self._links[key].uplink = self._uplinks.get(source)
            self._links[key].up = not self._partitioned & {source, target}
        return self._links[key]

    def _refresh_links(self, peer: PeerId) -> None:
        for (source, target), link in self._links.items():
            if peer in (source, target):
                link.up = not self._partitioned & {source, target}
        for node in self._nodes.values():
            node.links_changed()

    def _streams_of(self, peer: PeerId, protocol: str | None) -> list[MemoryStream]:
        return [stream for stream in self.node(peer).streams if protocol in (None, stream.protocol)]

    def _set_stalled(self, peer: PeerId, protocol: str | None, stalled: bool) -> int:
        streams = self._streams_of(peer, protocol)
        for stream in streams:
            stream.set_stalled(stalled)
        return len(streams)


class MemoryOverlay:
    """Implements `Overlay`. Made by `open_memory_overlay`."""

    def __init__(
        self, network: MemoryNetwork, key: NodeKey, validator: RecordValidator, announce: Sequence[str] = ()
    ) -> None:
        self.peer_id = key.peer_id
        self._announce = tuple(announce)
        self._network = network
        self._nursery: trio.Nursery  # set by `serve`
        self._validator = validator
        self._alive = True
        self.streams: dict[MemoryStream, None] = {}  # in order of opening
        self._connected: dict[PeerId, MemoryOverlay] = {}
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._handlers: dict[str, StreamHandler] = {PING_PROTOCOL: _echo}
        self.counters = OverlayCounters()
        self._since: dict[PeerId, tuple[bool, float]] = {}  # who dialled us, and when
        self._rtt_s: dict[PeerId, float] = {}
        self.bans = BanList(trio.current_time)
        self._inbound: Counter[tuple[PeerId, str]] = Counter()
        self._subscriptions: dict[str, tuple[SubscriptionQueue, GossipValidator]] = {}
        self._seen: dict[tuple[PeerId, int], None] = {}
        self._published = 0
        self._post: list[tuple[float, int, Link, Callable[[], None]]] = []  # a heap of what is on its way to us
        self._held: list[tuple[Link, Callable[[], None]]] = []  # it would have arrived, but the link is down
        self._posted = 0
        self._mail = trio.Event()
        self._local_records: dict[bytes, list[bytes]] = {}
        self.bare_address = network.add(self)

    # Life

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver what arrives and run its handlers, until `die`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery  # of our own, so that dying does not cancel whoever opened us
            task_status.started()
            await self._deliver_post()

    async def _deliver_post(self) -> None:
        while True:
            while self._post and self._post[0][0] <= trio.current_time():
                _, _, link, action = heapq.heappop(self._post)
                if link.up:
                    action()
                else:
                    self._held.append((link, action))
            self._mail = trio.Event()
            with trio.move_on_at(self._post[0][0] if self._post else math.inf):
                await self._mail.wait()

    def links_changed(self) -> None:
        """Let go of what was held back on links that are up again."""
        held, self._held = self._held, []
        for link, action in held:
            self.deliver(trio.current_time(), link, action)
        for stream in self.streams:
            stream.poke()

    def deliver(self, at: float, link: Link, action: Callable[[], None]) -> None:
        """Run `action` at this node when it arrives over `link` at time `at`."""
        self._posted += 1
        heapq.heappush(self._post, (at, self._posted, link, action))
        self._mail.set()

    def die(self) -> None:
        """Leave the network without a word. Idempotent."""
        if not self._alive:
            return
        self._alive = False
        self._network.remove(self)
        for peer in list(self._connected):
            self._drop_connection(peer)
        for queue, _ in self._subscriptions.values():
            queue.close()
        self._nursery.cancel_scope.cancel()

    def _drop_connection(self, peer: PeerId) -> None:
        other = self._connected.pop(peer)
        other._connected.pop(self.peer_id, None)
        self._forget(peer)
        other._forget(self.peer_id)
        now = trio.current_time()
        for end in list(self.streams):
            if end.peer_id == peer:
                end.lose(now)
        arrives = self._network.link_of(self.peer_id, peer).arrival(0)
        for end in list(other.streams):
            if end.peer_id == self.peer_id:
                end.lose(arrives)

    def _forget(self, peer: PeerId) -> None:
        self._since.pop(peer, None)
        self._rtt_s.pop(peer, None)
        self.counters.forget(peer)

    def _check_alive(self) -> None:
        if not self._alive:
            raise OverlayError("this node has left the network")

    # Peers

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"{address}/p2p/{self.peer_id}" for address in self._announce or (self.bare_address,))

    def peers(self) -> frozenset[PeerId]:
        return frozenset(self._connected)

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        return self._known.get(peer, ())

    def remote_address(self, peer: PeerId) -> str | None:
        return self._network.place_of(self._connected[peer]) if peer in self._connected else None

    async def connect(self, multiaddr: str) -> PeerId:
        await trio.lowlevel.checkpoint()
        self._check_alive()
        bare, mark, named = multiaddr.partition("/p2p/")
        peer = PeerId(named)
        if not mark or not bare.startswith("/") or not named:
            raise DialError(f"{multiaddr!r} is not a multiaddr with a peer ID: /ip4/…/tcp/…/p2p/<peer ID>")
        if peer == self.peer_id:
            raise DialError(f"{multiaddr} is this node itself")
        if peer not in self._connected:
            target = self._network.find(bare)
            if target is None:
                raise DialError(f"could not connect to {multiaddr}: nobody listens there")
            await self._handshake(target, multiaddr)
            if target.peer_id != peer:
                raise DialError(f"could not connect to {multiaddr}: {target.peer_id} answered")
            self._join(target, multiaddr)
        return peer

    async def _handshake(self, target: MemoryOverlay, multiaddr: str) -> None:
        there = self._network.link_of(self.peer_id, target.peer_id)
        back = self._network.link_of(target.peer_id, self.peer_id)
        if there.up and back.up:
            await trio.sleep(DIAL_ROUND_TRIPS * (there.latency_s + back.latency_s))
        if not there.up or not back.up:
            await trio.sleep(CONNECT_TIMEOUT_S)
            raise DialError(f"{multiaddr} did not answer within {CONNECT_TIMEOUT_S:g} s; is it up?")
        self._check_alive()
        if not target._alive:
            raise DialError(f"could not connect to {multiaddr}: it went away")

    def _join(self, target: MemoryOverlay, multiaddr: str) -> None:
        if target.peer_id in self._connected:
            return
        for node, other in ((self, target), (target, self)):
            if self._network.bans and node.bans.is_banned(Subject("peer", other.peer_id)):
                raise DialError(f"could not connect to {multiaddr}: {node.peer_id} keeps {other.peer_id} out")
            if len(node._connected) >= MAX_CONNECTIONS:
                raise DialError(f"could not connect to {multiaddr}: {node.peer_id} has too many connections")
        self._connected[target.peer_id] = target
        target._connected[self.peer_id] = self
        self._known[target.peer_id] = target.addresses
        target._known[self.peer_id] = self.addresses
        now = trio.current_time()
        self._since[target.peer_id], target._since[self.peer_id] = (False, now), (True, now)
        self.counters.connected["out", _SECURITY] += 1
        target.counters.connected["in", _SECURITY] += 1

    def peer_reports(self) -> list[PeerReport]:
        return [self._report(node) for node in self._connected.values()]

    def _report(self, node: MemoryOverlay) -> PeerReport:
        dialled_us, since_s = self._since[node.peer_id]
        traffic, place = self.counters.peer(node.peer_id), self._network.place_of(node)
        connection = ConnectionReport(
            direction="in" if dialled_us else "out",
            address="" if place is None else f"{place}:{node.bare_address.rpartition('/')[2]}",
            security=_SECURITY,
            muxer=_SECURITY,
            age_s=trio.current_time() - since_s,
            streams=traffic.streams,
        )
        return PeerReport(
            peer_id=node.peer_id,
            connections=(connection,),
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
            protocols=tuple(sorted(node._handlers)),
            rtt_s=self._rtt_s.get(node.peer_id),
        )

    async def ping(self, peer: PeerId) -> float:
        rtt_s = self._rtt_s[peer] = await ping(self, peer)
        return rtt_s

    async def disconnect(self, peer: PeerId) -> None:
        if peer in self._connected:
            self._drop_connection(peer)
        await trio.lowlevel.checkpoint()

    # Streams

    async def open_stream(
        self,
        peer: PeerId,
        protocol: str,
        *,
        bulk: bool = False,  # noqa: ARG002 - two nodes have one link between them here
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> OverlayStream:
        check_protocol(protocol)
        self._check_alive()
        if peer == self.peer_id:
            raise DialError("a node has no stream to itself")
        asked_s = trio.current_time()
        try:
            with trio.fail_after(timeout_s):
                if peer not in self._connected:
                    await self._dial_known(peer)
                return await self._negotiate(self._connected[peer], protocol, asked_s)
        except trio.TooSlowError:
            raise StreamError(f"{peer} did not answer {protocol} within {timeout_s:g} s") from None

    async def _dial_known(self, peer: PeerId) -> None:
        failure = DialError(f"could not reach {peer}: no address is known")
        for address in self.addresses_of(peer):
            try:
                await self.connect(address)
            except DialError as exc:
                failure = exc
            else:
                return
        raise failure

    async def _negotiate(self, target: MemoryOverlay, protocol: str, asked_s: float) -> MemoryStream:
        there = self._network.link_of(self.peer_id, target.peer_id)
        back = self._network.link_of(target.peer_id, self.peer_id)
        near, far = stream_pair(self.peer_id, target.peer_id, protocol, there, back)
        self._adopt(near, "out", asked_s)
        target._adopt(far, "in", None)
        answer: list[bool] = []
        answered = trio.Event()

        def request() -> None:
            answer.append(target._accept(far))
            self.deliver(back.arrival(0), back, answered.set)

        target.deliver(there.arrival(0), there, request)
        try:
            while not answered.is_set():
                if near._is_broken():
                    raise StreamError(f"the connection to {target.peer_id} broke")
                with trio.move_on_at(near._next_news()):
                    await self._first_of(answered, near)
            if not answer[0]:
                raise UnknownProtocol(f"the peer does not speak {protocol}; is it another version, or not a provider?")
        except BaseException:
            near.reset_nowait()
            raise
        return near

    @staticmethod
    async def _first_of(answered: trio.Event, stream: MemoryStream) -> None:
        changed = stream._changed
        async with trio.open_nursery() as nursery:

            async def other() -> None:
                await changed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(other)
            await answered.wait()
            nursery.cancel_scope.cancel()

    def _adopt(self, stream: MemoryStream, direction: Direction, asked_s: float | None) -> None:
        if direction == "out" or stream.protocol in self._handlers:  # a stranger's words are not counted by name
            stream.count = self.counters.stream(stream.peer_id, stream.protocol, direction, asked_s=asked_s)
        self.streams[stream] = None
        stream.on_over(lambda: self.streams.pop(stream, None))
        mine = weakref.WeakMethod(self.blame)  # whoever keeps the other end of a stream keeps no node by it

        def blame(peer: PeerId, exc: ProtocolError) -> None:
            if (told := mine()) is not None:
                told(peer, exc)

        stream.on_blame = blame

    def _accept(self, stream: MemoryStream) -> bool:
        handler = self._handlers.get(stream.protocol)
        if handler is None or not self._alive:
            stream.reset_nowait()
            return False
        slot = (stream.peer_id, stream.protocol)
        if self._inbound[slot] >= MAX_INBOUND_STREAMS_PER_PEER:
            stream.reset_nowait()
            return True  # negotiated, then reset: so does libp2p
        self._inbound[slot] += 1
        self._nursery.start_soon(self._handle, handler, stream)
        return True

    async def _handle(self, handler: StreamHandler, stream: MemoryStream) -> None:
        try:
            await handler(stream)
        except RemoteProtocolError as exc:
            _log.info("%s broke %s: %s", stream.peer_id, stream.protocol, exc)
            stream.blame(exc)
            stream.reset_nowait()
        except StreamError as exc:
            _log.info("a stream of %s ended: %s", stream.protocol, exc)
            stream.reset_nowait()
        except Exception:  # noqa: BLE001 - whatever it is, only this stream comes to harm
            _log.warning("the handler of %s failed; its stream is reset", stream.protocol, exc_info=True)
            stream.reset_nowait()
        except BaseException:
            stream.reset_nowait()
            raise
        else:
            await stream.aclose()
        finally:
            self._inbound[(stream.peer_id, stream.protocol)] -= 1

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        check_protocol(protocol)
        self._handlers[protocol] = handler

    def blame(self, peer: PeerId, exc: ProtocolError) -> None:
        offence = offence_of(exc)
        banned = offence is not None and self.bans.offend(Subject("peer", peer), offence)
        if banned and self._network.bans and peer in self._connected:
            self._drop_connection(peer)

    def limits_report(self) -> LimitsReport:
        opened = Counter[PeerId]()
        for (peer, _protocol), count in self._inbound.items():
            opened[peer] += count
        peers = [
            PeerUse(
                peer_id=peer,
                connections=1,
                streams=opened[peer],
                memory_bytes=0,
                score=self.bans.score(Subject("peer", peer)),
            )
            for peer in self._connected
        ]
        return LimitsReport(
            limits=Limits(),
            connections=len(peers),
            streams=opened.total(),
            bans=self.bans.bans(),
            peers=tuple(sorted(peers, key=lambda peer: (-peer.streams, peer.peer_id))),
        )

    # Gossip

    async def publish(self, topic: str, data: bytes) -> None:
        check_gossip(topic, data)
        self._check_alive()
        self._published += 1
        self.counters.gossip["published"] += 1
        message = (self.peer_id, self._published)
        self._seen[message] = None
        self._spread(topic, message, data, came_from=self.peer_id)
        await trio.lowlevel.checkpoint()

    def _spread(self, topic: str, message: tuple[PeerId, int], data: bytes, came_from: PeerId) -> None:
        for peer, node in self._connected.items():
            if peer == came_from or topic not in node._subscriptions:
                continue
            link = self._network.link_of(self.peer_id, peer)
            if link.up:
                arrived = functools.partial(node._on_gossip, topic, message, data, self.peer_id)
                node.deliver(link.arrival(len(data)), link, arrived)
            else:
                self._network.gossip_lost += 1

    def _on_gossip(self, topic: str, message: tuple[PeerId, int], data: bytes, forwarder: PeerId) -> None:
        self.counters.gossip["received"] += 1
        if topic not in self._subscriptions or message in self._seen or not self._alive:
            return
        self._seen[message] = None
        if len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        queue, validator = self._subscriptions[topic]
        try:
            accepted = validator(message[0], data) is True
        except Exception:  # noqa: BLE001 - a validator that fails has not accepted
            _log.info("a gossip message on %s is refused", topic, exc_info=True)
            accepted = False
        self.counters.gossip["delivered" if accepted else "refused"] += 1
        if accepted:
            before = queue.dropped
            queue.put(message[0], data)
            self.counters.gossip["dropped"] += queue.dropped - before
            self._spread(topic, message, data, came_from=forwarder)

    @asynccontextmanager
    async def subscribe(self, topic: str, validator: GossipValidator) -> AsyncGenerator[Subscription, None]:
        check_topic(topic)
        if topic in self._subscriptions:
            raise OverlayError(f"already subscribed to {topic!r}; share the subscription")
        queue = SubscriptionQueue()
        self._subscriptions[topic] = (queue, validator)
        try:
            yield queue
        finally:
            del self._subscriptions[topic]
            queue.close()

    # DHT: one store that whoever has a connection reaches; every reader believes only its own validator

    def _reaches_others(self) -> bool:
        links = self._network.link_of
        return any(links(self.peer_id, p).up and links(p, self.peer_id).up for p in self._connected)

    async def _look_up(self) -> bool:
        self._check_alive()
        reaches = self._reaches_others()
        slowest = max((self._network.link_of(self.peer_id, p).latency_s for p in self._connected), default=0.0)
        await trio.sleep(2 * LOOKUP_ROUND_TRIPS * slowest)
        return reaches and self._reaches_others()

    async def dht_provide(self, key: bytes) -> None:
        check_key(key)
        with self.counters.asking("provide") as question:
            question.found = await self._look_up()
        if question.found:
            info = PeerInfo(peer_id=self.peer_id, addresses=self.addresses)
            self._network.providers.setdefault(key, {})[self.peer_id] = info

    async def dht_find_providers(self, key: bytes, limit: int = 20) -> list[PeerInfo]:
        check_key(key)
        with self.counters.asking("find-providers") as question:
            reached = await self._look_up()
            known = self._network.providers.get(key, {}).values() if reached else ()
            found = [info for info in known if info.peer_id != self.peer_id][: min(limit, MAX_PROVIDERS)]
            question.found = bool(found)
        for info in found:
            self._known.setdefault(info.peer_id, info.addresses)
        return found

    async def dht_put(self, key: bytes, value: bytes) -> None:
        check_record(self._validator, key, value)
        with self.counters.asking("put") as question:
            shared = question.found = await self._look_up()
        best = self._best(key, shared)
        if best is not None and best != value and self._validator.select(key, [value, best]) != 0:
            raise RecordRefused("a better record is known")
        for store in (self._local_records, *([self._network.records] if shared else [])):
            values = store.setdefault(key, [])
            if value not in values:
                values.append(value)
                del values[:-MAX_VALUES]

    async def dht_get(self, key: bytes) -> bytes | None:
        check_key(key)
        with self.counters.asking("get") as question:
            best = self._best(key, await self._look_up())
            question.found = best is not None
        return best

    def _best(self, key: bytes, shared: bool) -> bytes | None:
        values = [*self._local_records.get(key, []), *(self._network.records.get(key, []) if shared else [])]
        valid = [value for value in dict.fromkeys(values) if self._is_valid(key, value)]
        return valid[self._validator.select(key, valid)] if valid else None

    def _is_valid(self, key: bytes, value: bytes) -> bool:
        try:
            check_record(self._validator, key, value)
        except RecordRefused:
            return False
        return True


@asynccontextmanager
async def open_memory_overlay(
    network: MemoryNetwork,
    key: NodeKey,
    *,
    record_validator: RecordValidator,
    bootstrap: Sequence[str] = (),
    announce: Sequence[str] = (),
) -> AsyncGenerator[MemoryOverlay, None]:
    """Be on `network` while the context is open. See `open_libp2p`, whose arguments these are.

    The body is not cancelled when the node is killed; its calls raise `OverlayError` or `StreamReset`.
    """
    body_error: Exception | None = None
    node = MemoryOverlay(network, key, record_validator, announce)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.serve)
        try:
            for address in bootstrap:
                try:
                    await node.connect(address)
                except DialError as exc:
                    _log.warning("bootstrap: %s", exc)
            yield node
        except Exception as exc:  # noqa: BLE001 - it is the body's own and raised again, unwrapped, below
            body_error = exc
        finally:
            node.die()
            nursery.cancel_scope.cancel()
    if body_error is not None:
        raise body_error
