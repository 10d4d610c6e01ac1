"""The overlay on py-libp2p: TCP, Noise, Yamux, Kademlia and gossipsub."""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.tools.anyio_service import TrioManager
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from p2pcompute.errors import ConfigError, DialError, OverlayError, PortInUse, RecordRefused, StreamError
from p2pcompute.identity import NodeKey
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError
from p2pcompute_protocols.ids import PeerId, peer_id_from_bytes, peer_id_to_bytes

from ._api import (
    CLOSE_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    MAX_PROVIDERS,
    STREAM_TIMEOUT_S,
    GossipValidator,
    OverlayStream,
    PeerInfo,
    RecordValidator,
    StreamHandler,
    Subscription,
)
from ._blame import offence_of
from ._checks import check_gossip, check_key, check_protocol, check_record, check_topic
from ._counted import CountedPubsub, CountedStream, CountedSwarm
from ._counters import MAX_COUNTED_PROTOCOLS, OverlayCounters, PeerReport
from ._defence import Defence
from ._dht import KAD_ID, MendedDht, record_name
from ._host import OurHost
from ._limits import Limits
from ._limits_report import LimitsReport
from ._mends import (
    ADDRESS_TTL_S,
    Listener,
    MendedPeerStore,
    MendedUpgrader,
    gossip_router,
    tame_logging,
)
from ._muxer import Yamux
from ._ping import ping
from ._queue import SubscriptionQueue
from ._streams import Libp2pStream, negotiate

__all__ = ["Libp2pOverlay", "open_libp2p"]

_log = logging.getLogger(__name__)

_LISTEN_BACKLOG = 128
IDENTIFY_PATIENCE_S = 2.0  # a peer that does not say what it serves is connected all the same
TARGET_PEERS = 8  # with a bootstrap peer we look for so many; gossip spreads through connections
LOOK_FOR_PEERS_INTERVAL_S = 30.0


def _to_id(peer: PeerId) -> ID:
    try:
        return ID(peer_id_to_bytes(peer))
    except ProtocolError as exc:
        raise DialError(f"{peer!r} is not a peer ID; it starts with 12D3Koo") from exc


def _from_id(peer: ID) -> PeerId:
    return peer_id_from_bytes(peer.to_bytes())


class Libp2pOverlay:
    """Implements `Overlay`. Made by `open_libp2p`."""

    def __init__(
        self,
        key: NodeKey,
        nursery: trio.Nursery,
        listeners: Sequence[Listener],
        validator: RecordValidator,
        announce: Sequence[str],
        limits: Limits | None = None,
    ) -> None:
        private = Ed25519PrivateKey.from_bytes(key.reveal_seed())
        key_pair = KeyPair(private, private.get_public_key())
        self.peer_id = key.peer_id
        self._id = _to_id(key.peer_id)
        store = MendedPeerStore()
        store.add_key_pair(self._id, key_pair)
        self._defence = Defence(limits)
        self.counters = OverlayCounters()
        self._rtt_s: dict[PeerId, float] = {}
        self._upgrader = upgrader = MendedUpgrader(key_pair)
        self._swarm = CountedSwarm(self._id, store, upgrader, self._defence, counters=self.counters)
        for listener in listeners:
            self._swarm.listeners[str(listener.get_addrs()[0])] = listener
        announced = [Multiaddr(address) for address in announce]
        self._host = OurHost(self._swarm, self._defence, nursery, self._identified, announced or None)
        self._router = gossip_router(self._defence)
        self._pubsub = CountedPubsub(self._host, self._router, self._on_gossip, self._defence, counters=self.counters)
        self._dht = MendedDht(self._host, validator, self._defence.limits.of(KAD_ID).streams)
        self._validator = validator
        self._subscriptions: dict[str, SubscriptionQueue] = {}

    # Life

    async def run(self, nursery: trio.Nursery, listeners: Sequence[Listener]) -> None:
        """Start everything and return; `nursery` holds it."""
        for service in (self._swarm, self._router, self._pubsub, self._dht):
            manager = TrioManager(service)
            service._manager = manager
            nursery.start_soon(manager.run)
            await manager.wait_started()
        await self._swarm.event_background_nursery_created.wait()
        await self._pubsub.wait_until_ready()
        nursery.start_soon(self._upgrader.turns.run)
        nursery.start_soon(self._defence.watch)
        nursery.start_soon(self._swarm.watch_bulk)
        door = self._upgrader.turns.turn("the door")
        for listener in listeners:
            nursery.start_soon(listener.serve, self._swarm.admit, self._swarm.welcome, door.step)

    async def shut_down(self) -> None:
        """Say goodbye to everybody, all at once; bounded, and not to be cancelled."""
        for queue in self._subscriptions.values():
            queue.close()
        with trio.move_on_after(CLOSE_TIMEOUT_S + 0.2, shield=True):
            await self._swarm.close()

    async def look_for_peers(self) -> None:
        """Stay connected to `TARGET_PEERS` nodes, if there are so many. Runs until cancelled."""
        while True:
            if len(self.peers()) < TARGET_PEERS:
                await self._dht.refresh_routing_table()
            for peer in self._dht.routing_table.get_peer_ids():
                if len(self.peers()) >= TARGET_PEERS:
                    break
                try:
                    with trio.move_on_after(CONNECT_TIMEOUT_S):
                        await self._swarm.dial_peer(peer)
                except SwarmException as exc:
                    _log.info("looking for peers: %s", exc)
            await trio.sleep(LOOK_FOR_PEERS_INTERVAL_S)

    async def _identified(self, peer: ID) -> None:
        # Identify told us whether the peer serves the DHT; libp2p would add it at its first query only.
        await self._dht.add_peer(peer)

    # Peers

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(address) for address in self._host.get_addrs())

    def peers(self) -> frozenset[PeerId]:
        return frozenset(_from_id(peer) for peer in self._swarm.connections if self._is_connected(peer))

    def _is_connected(self, peer: ID) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(peer))

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        store = self._host.get_peerstore()
        raw = _to_id(peer)
        known = store.addrs(raw) if raw in store.peers_with_addrs() else []
        return _with_peer(known, peer)

    def remote_address(self, peer: PeerId) -> str | None:
        for conn in self._swarm.get_connections(_to_id(peer)):
            if conn.is_closed or not isinstance(conn.muxed_conn, Yamux):
                continue
            remote = conn.muxed_conn.get_remote_address()
            if remote is not None:
                return remote[0]
        return None

    async def connect(self, multiaddr: str) -> PeerId:
        peer, address = _parse_dialable(multiaddr)
        if peer == self.peer_id:
            raise DialError(f"{multiaddr} is this node itself")
        raw = _to_id(peer)
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                if not self._is_connected(raw):
                    await self._swarm.dial_first(raw, [address])
                self._host.get_peerstore().add_addrs(raw, [address], ADDRESS_TTL_S)
                with trio.move_on_after(IDENTIFY_PATIENCE_S):
                    await self._host.wait_identified(raw)
                await self._dht.add_peer(raw)
        except trio.TooSlowError:
            raise DialError(f"{multiaddr} did not answer within {CONNECT_TIMEOUT_S:g} s; is it up?") from None
        except SwarmException as exc:
            raise DialError(f"could not connect to {multiaddr}: {exc}") from exc
        return peer

    async def disconnect(self, peer: PeerId) -> None:
        raw = _to_id(peer)
        async with trio.open_nursery() as nursery:
            for conn in self._swarm.get_connections(raw):
                nursery.start_soon(conn.close)
        self._dht.routing_table.remove_peer(raw)

    def peer_reports(self) -> list[PeerReport]:
        store = self._host.get_peerstore()
        found: list[PeerReport] = []
        for peer, connections in self._swarm.reports().items():
            raw, traffic = _to_id(peer), self.counters.peer(peer)
            spoken = store.get_protocols(raw) if raw in store.peer_ids() else []
            found.append(
                PeerReport(
                    peer_id=peer,
                    connections=tuple(connections),
                    bytes_in=traffic.bytes_in,
                    bytes_out=traffic.bytes_out,
                    protocols=tuple(sorted(spoken))[:MAX_COUNTED_PROTOCOLS],
                    rtt_s=self._rtt_s.get(peer),
                )
            )
        self._rtt_s = {report.peer_id: report.rtt_s for report in found if report.rtt_s is not None}
        return found

    async def ping(self, peer: PeerId) -> float:
        rtt_s = self._rtt_s[peer] = await ping(self, peer)
        return rtt_s

    # Streams

    async def open_stream(
        self, peer: PeerId, protocol: str, *, bulk: bool = False, timeout_s: float = STREAM_TIMEOUT_S
    ) -> OverlayStream:
        check_protocol(protocol)
        if peer == self.peer_id:
            raise DialError("a node has no stream to itself")
        raw = _to_id(peer)
        asked_s = self.counters.clock()
        try:
            with trio.fail_after(timeout_s):
                try:
                    net = await (self._swarm.new_bulk_stream if bulk else self._swarm.new_stream)(raw)
                except SwarmException as exc:
                    raise DialError(f"could not reach {peer}: {exc}") from exc
                stream = CountedStream(net, peer, protocol, self.counters, "out", asked_s, self.blame)
                try:
                    await negotiate(net, protocol)
                except BaseException as exc:
                    stream.never_was(exc)
                    await stream.reset()
                    raise
        except trio.TooSlowError:
            raise StreamError(f"{peer} did not answer {protocol} within {timeout_s:g} s") from None
        return stream

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        check_protocol(protocol)
        self._swarm.ours.add(protocol)

        async def run(net: Any) -> None:
            peer = _from_id(net.muxed_conn.peer_id)
            stream = CountedStream(net, peer, protocol, self.counters, "in", on_blame=self.blame)
            with self._defence.serving(peer, protocol, lambda: stream.progress_at) as served:
                if served is not None:
                    with served.scope:
                        await serve(stream)
                        return
                    _log.info("a stream of %s with %s was cut off: %s", protocol, peer, served.expired)
                await stream.reset()

        async def serve(stream: Libp2pStream) -> None:
            try:
                await handler(stream)
            except RemoteProtocolError as exc:
                _log.info("%s broke %s: %s", stream.peer_id, protocol, exc)
                stream.blame(exc)
                await stream.reset()
            except StreamError as exc:
                _log.info("a stream of %s ended: %s", protocol, exc)
                await stream.reset()
            except Exception:  # noqa: BLE001 - whatever it is, only this stream comes to harm
                _log.warning("the handler of %s failed; its stream is reset", protocol, exc_info=True)
                await stream.reset()
            except BaseException:
                await stream.reset()
                raise
            else:
                await stream.aclose()

        self._host.serve(TProtocol(protocol), run)

    def blame(self, peer: PeerId, exc: ProtocolError) -> None:
        if (offence := offence_of(exc)) is not None:
            _log.info("%s %s: %s", peer, offence.value, exc)
            self._defence.accuse(peer, offence)

    def limits_report(self) -> LimitsReport:
        return self._defence.report()

    # Gossip

    async def publish(self, topic: str, data: bytes) -> None:
        check_gossip(topic, data)
        await self._pubsub.wait_for_room()
        await self._pubsub.publish(topic, data)

    @asynccontextmanager
    async def subscribe(self, topic: str, validator: GossipValidator) -> AsyncGenerator[Subscription, None]:
        check_topic(topic)
        if topic in self._subscriptions:
            raise OverlayError(f"already subscribed to {topic!r}; share the subscription")

        def accept(_forwarder: ID, message: rpc_pb2.Message) -> bool:
            try:
                accepted = validator(peer_id_from_bytes(message.from_id), message.data) is True
            except Exception:  # noqa: BLE001 - a validator that fails has not accepted
                _log.info("a gossip message on %s is refused", topic, exc_info=True)
                accepted = False
            if not accepted:
                self.counters.gossip["refused"] += 1
            return accepted

        queue = self._subscriptions[topic] = SubscriptionQueue()
        self._pubsub.set_topic_validator(topic, accept, is_async_validator=False)
        try:
            await self._pubsub.subscribe(topic)
            yield queue
        finally:
            del self._subscriptions[topic]
            queue.close()
            self._pubsub.remove_topic_validator(topic)
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._pubsub.unsubscribe(topic)

    def _on_gossip(self, message: rpc_pb2.Message) -> None:
        for topic in message.topicIDs:
            queue = self._subscriptions.get(topic)
            if queue is not None:
                before = queue.dropped
                queue.put(peer_id_from_bytes(message.from_id), message.data)
                self.counters.gossip["delivered"] += 1
                self.counters.gossip["dropped"] += queue.dropped - before

    # DHT

    async def dht_provide(self, key: bytes) -> None:
        with self.counters.asking("provide"):
            await self._dht.provider_store.provide(check_key(key))

    async def dht_find_providers(self, key: bytes, limit: int = 20) -> list[PeerInfo]:
        with self.counters.asking("find-providers") as question:
            found = await self._dht.provider_store.find_providers(check_key(key), min(limit, MAX_PROVIDERS) + 1)
            question.found = bool(found)
        providers: dict[PeerId, PeerInfo] = {}
        for info in found:
            try:
                peer = _from_id(info.peer_id)
            except ProtocolError:
                continue
            if peer != self.peer_id:
                self._host.get_peerstore().add_addrs(info.peer_id, info.addrs, ADDRESS_TTL_S)
                providers[peer] = PeerInfo(peer_id=peer, addresses=_with_peer(info.addrs, peer))
        return list(providers.values())[:limit]

    async def dht_put(self, key: bytes, value: bytes) -> None:
        check_record(self._validator, key, value)
        with self.counters.asking("put"):
            try:
                await self._dht.put_value(record_name(key), value)
            except ValueError as exc:
                raise RecordRefused(f"a better record is known: {exc}") from exc

    async def dht_get(self, key: bytes) -> bytes | None:
        with self.counters.asking("get") as question:
            record = await self._dht.find_record(check_key(key))
            question.found = record is not None
        return record


def _with_peer(addresses: Sequence[Multiaddr], peer: PeerId) -> tuple[str, ...]:
    texts = (str(address).partition("/p2p/")[0] for address in addresses)
    return tuple(dict.fromkeys(f"{text}/p2p/{peer}" for text in texts))


def _parse_dialable(text: str) -> tuple[PeerId, Multiaddr]:
    try:
        address = Multiaddr(text)
        named = address.value_for_protocol("p2p")
        names = [protocol.name for protocol in address.protocols()]
    except Exception as exc:
        raise DialError(f"{text!r} is not a multiaddr with a peer ID: /ip4/<address>/tcp/<port>/p2p/<peer ID>") from exc
    if len(names) != 3 or names[0] not in ("ip4", "ip6", "dns4", "dns6", "dns") or names[1:] != ["tcp", "p2p"]:
        raise DialError(f"{text!r} can't be dialled; it looks like /ip4/<address>/tcp/<port>/p2p/<peer ID>")
    peer = _from_id(_to_id(PeerId(str(named))))
    return peer, address.decapsulate(Multiaddr(f"/p2p/{peer}"))


def _bind(text: str) -> trio.SocketListener:
    """Bind and listen. SO_REUSEADDR, so that a restart finds its port; no SO_REUSEPORT, see `Listener`."""
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
        if len(names) != 2 or names[0] not in ("ip4", "ip6") or names[1] != "tcp":
            raise ValueError("not a TCP address")
        host = ipaddress.ip_address(str(address.value_for_protocol(names[0])))
        port = int(str(address.value_for_protocol("tcp")))
    except Exception as exc:
        raise ConfigError(f"can't listen on {text!r}; it looks like /ip4/192.0.2.7/tcp/4001") from exc
    family = trio.socket.AF_INET6 if host.version == 6 else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        if family == trio.socket.AF_INET6:
            sock.setsockopt(trio.socket.IPPROTO_IPV6, trio.socket.IPV6_V6ONLY, 1)
        sock._sock.bind((str(host), port))  # type: ignore[attr-defined] # a numeric address needs no resolver thread
        sock.listen(_LISTEN_BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is taken; is another node running? "
                f"Stop it, or listen on another port (0 takes a free one)"
            ) from exc
        raise ConfigError(f"can't listen on {text}: {exc.strerror}; is it an address of this machine?") from exc
    return trio.SocketListener(sock)


@asynccontextmanager
async def open_libp2p(
    key: NodeKey,
    *,
    listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    record_validator: RecordValidator,
    bootstrap: Sequence[str] = (),
    announce: Sequence[str] = (),
    limits: Limits | None = None,
) -> AsyncGenerator[Libp2pOverlay, None]:
    """Be on the network while the context is open.

    Args:
        key: who we are.
        listen: multiaddrs to listen on; port 0 takes a free one. May be empty: then nobody can dial us.
        record_validator: decides which DHT records we store, serve and believe.
        bootstrap: peers to connect to before the context opens; those that can't be reached are logged.
        announce: multiaddrs to tell others instead of those that we listen on, such as a router's.
        limits: what strangers may take.

    Raises:
        PortInUse: a port is taken; nothing was started.
        ConfigError: an address can't be listened on, or is none that can be dialled.
        OverlayError: libp2p itself failed while the context was open; the body is cancelled.

    Cancellation: leaving takes at most about a second, however it is left, and nothing remains.
    """
    tame_logging()
    for address in bootstrap:
        try:
            _parse_dialable(address)
        except DialError as exc:
            raise ConfigError(f"bootstrap: {exc}") from exc
    listeners: list[Listener] = []
    try:
        for address in listen:
            listeners.append(Listener(_bind(address)))  # noqa: PERF401 - those bound before one fails are closed
        async with _running(key, listeners, record_validator, bootstrap, announce, limits) as overlay:
            yield overlay
    finally:
        for listener in listeners:
            listener.close_socket()


@asynccontextmanager
async def _running(
    key: NodeKey,
    listeners: Sequence[Listener],
    record_validator: RecordValidator,
    bootstrap: Sequence[str],
    announce: Sequence[str],
    limits: Limits | None,
) -> AsyncGenerator[Libp2pOverlay, None]:
    body_error: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            overlay = Libp2pOverlay(key, nursery, listeners, record_validator, announce, limits)
            try:
                await overlay.run(nursery, listeners)
                for address in bootstrap:
                    try:
                        await overlay.connect(address)
                    except DialError as exc:
                        _log.warning("bootstrap: %s", exc)
                if bootstrap:
                    nursery.start_soon(overlay.look_for_peers)
                yield overlay
            except Exception as exc:  # noqa: BLE001 - it is the body's own and raised again, unwrapped, below
                body_error = exc
            finally:
                await overlay.shut_down()
                nursery.cancel_scope.cancel()
    except* Exception as group:
        if body_error is None:
            raise OverlayError(f"the network stopped: {_first(group)!r}; please report this") from group
    if body_error is not None:
        raise body_error


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
