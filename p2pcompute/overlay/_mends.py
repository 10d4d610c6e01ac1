"""What py-libp2p 0.8.1 does wrong for us, each mended in one place.

Everything here leans on private parts of exactly that release, which is why it is pinned. Each mend has a test
in `tests/net/test_libp2p_mends.py` that shows the fault without it.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import IHost, IMuxedConn, INetStream, IRawConnection
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from p2pcompute_protocols.ids import PeerId, peer_id_from_bytes, peer_id_to_bytes

from ._api import (
    CONNECT_TIMEOUT_S,
    MAX_GOSSIP_BYTES,
    STREAM_TIMEOUT_S,
)
from ._bans import Offence
from ._defence import Defence, Visit
from ._gossip import LimitedGossipSub
from ._limits import Limits
from ._listener import Listener, LocatedStream
from ._muxer import Yamux
from ._upgrader import MendedUpgrader
from .noise import WrongPeer

__all__ = [
    "ADDRESS_TTL_S",
    "Listener",
    "LocatedTcp",
    "MendedPeerStore",
    "MendedPubsub",
    "MendedSwarm",
    "MendedUpgrader",
    "SeenMessages",
    "connection_limits",
    "gossip_router",
    "tame_logging",
]

_log = logging.getLogger(__name__)

MAX_ADDRESSES_PER_PEER = 8
ADDRESS_TTL_S = 3600
NEXT_ADDRESS_DELAY_S = 0.25  # before the next address is tried beside the first (RFC 8305)
MAX_GOSSIP_RPC_BYTES = 4 * MAX_GOSSIP_BYTES
GOSSIP_QUEUE = 128  # messages that wait for one peer
PUBLISH_PATIENCE_S = 1.0
SEEN_TTL_S = 120.0
MAX_SEEN = 16 * 1024


class LocatedTcp(TCP):
    """The TCP transport for dialling. Listening is `Listener`'s."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        conn = await super().dial(maddr)
        assert isinstance(conn, RawConnection)
        assert isinstance(conn.stream, TrioTCPStream)
        conn.stream = LocatedStream(conn.stream.stream)
        return conn


class _NoAutoConnector:
    """libp2p's own dials every peer that it has heard of, up to half of the connection limit, whatever is asked
    of it. Whom to be connected to is for the market to say."""

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run_background_task(self, _nursery: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()

    async def maybe_connect(self) -> None:
        await trio.lowlevel.checkpoint()

    def record_disconnect(self, _peer_id: ID) -> None:
        """Nothing is dialled again, so nothing backs off."""


def connection_limits(limits: Limits) -> ConnectionConfig:
    """Our limits in libp2p's form."""
    return ConnectionConfig(
        max_connections=limits.connections,
        high_watermark=limits.connections,
        min_connections=0,
        low_watermark=0,
        max_connections_per_peer=limits.connections_per_peer,
        grace_period=0.0,  # by default connections of 30 s and less don't count against the bound for their peer
        inbound_upgrade_timeout=CONNECT_TIMEOUT_S,
        outbound_upgrade_timeout=CONNECT_TIMEOUT_S,
        inbound_stream_protocol_negotiation_timeout=STREAM_TIMEOUT_S,
        outbound_stream_protocol_negotiation_timeout=STREAM_TIMEOUT_S,
    )


class MendedSwarm(Swarm):
    """A swarm that survives its peers, dials without delay and closes at once."""

    def __init__(
        self, peer_id: ID, peerstore: PeerStore, upgrader: TransportUpgrader, defence: Defence | None = None
    ) -> None:
        self.defence = defence or Defence()
        super().__init__(
            peer_id,
            peerstore,
            upgrader,
            [LocatedTcp()],
            retry_config=RetryConfig(max_retries=0),
            connection_config=connection_limits(self.defence.limits),
        )
        self.defence.on_ban = self._end_connections
        self._visits: dict[trio.lowlevel.Task, Visit] = {}
        self._counted: dict[Any, tuple[PeerId, str | None]] = {}  # open connections, as the defence knows them
        self._dials: dict[ID, trio.Lock] = {}
        self.auto_connector: Any = _NoAutoConnector()
        self._from_host: Counter[str] = Counter()
        self._handshakes: dict[Visit, trio.CancelScope] = {}  # inbound, unfinished; the oldest first

    def set_stream_handler(self, stream_handler: StreamHandlerFn) -> None:
        """Keep what a stream does to its handler away from the node.

        Handlers run as tasks of the swarm's service, and any exception of one (a pubsub message that is no
        protobuf, a protocol name that is not UTF-8, a bug in an application's handler) stops the whole host.
        """

        async def guarded(stream: INetStream) -> None:
            try:
                with self.defence.inbound_stream(peer_id_from_bytes(stream.muxed_conn.peer_id.to_bytes())) as admitted:
                    await (stream_handler(stream) if admitted else stream.reset())
            except Exception:  # noqa: BLE001 - whatever it is, only this stream comes to harm
                peer = stream.muxed_conn.peer_id
                _log.info("resetting a stream of %s (%s)", peer, stream.get_protocol(), exc_info=True)
                try:
                    await stream.reset()
                except Exception:  # noqa: BLE001 - the connection under it is gone
                    return

        super().set_stream_handler(guarded)

    async def _notify(self, method: str, *args: Any) -> None:
        """Tell of streams without a task for each who is told: none of them waits, and that was a fifth of what a
        stream took."""
        if method not in ("opened_stream", "closed_stream"):
            await super()._notify(method, *args)
            return
        for notifee in tuple(self.notifees):
            try:
                await getattr(notifee, method)(self, *args)
            except Exception:  # noqa: BLE001 - as libp2p's own
                _log.info("%s of %s failed", method, type(notifee).__name__, exc_info=True)

    async def dial_peer(self, peer_id: ID) -> list[Any]:
        """Connections to a peer, dialling the addresses that the peer store has.

        libp2p's own waits 250 ms after each dial, also one that succeeded; tries one address per kind of
        transport, so that a dead address hides a live one; and after a failure refuses the peer for 60 s.
        """
        lock = self._dials.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                live = [conn for conn in self.get_connections(peer_id) if not conn.is_closed]
                if live:
                    return live
                try:
                    addresses = self.peerstore.addrs(peer_id)
                except PeerStoreError:
                    addresses = []
                if not addresses:
                    raise SwarmException(f"no address is known for {peer_id}")
                return [await self.dial_first(peer_id, addresses[-MAX_ADDRESSES_PER_PEER:])]
        finally:
            if not lock.statistics().tasks_waiting:
                self._dials.pop(peer_id, None)

    async def dial_first(self, peer_id: ID, addresses: Sequence[Multiaddr]) -> Any:
        """Dial addresses, one more each 250 ms or when one failed; the first connection wins."""
        won: list[Any] = []
        failures: dict[str, Exception] = {}

        async def attempt(address: Multiaddr, done: trio.Event) -> None:
            try:
                won.append(await self._dial_addr_single_attempt(address, peer_id))
                nursery.cancel_scope.cancel()
            except Exception as exc:  # noqa: BLE001 - libp2p raises many types here; all mean "not this address"
                failures[_reason(exc, address)] = exc
            finally:
                done.set()

        async with trio.open_nursery() as nursery:
            for address in addresses:
                done = trio.Event()
                nursery.start_soon(attempt, address, done)
                with trio.move_on_after(NEXT_ADDRESS_DELAY_S):
                    await done.wait()
                if won:
                    break
        if won:
            return won[0]
        raise SwarmException("; ".join(failures)) from next(iter(failures.values()))

    def admit(self, ip: str | None) -> Visit | None:
        """Whether somebody from `ip` may come in; asked before anything is made for the connection. `welcome` follows
        where this gives a visit."""
        visit = self.defence.arrive(ip)
        if visit is None:
            return None
        if not self._admit(visit):
            visit.leave()
            return None
        self._from_host[visit.place.host] += 1
        self._handshakes[visit] = trio.CancelScope()
        return visit

    async def welcome(self, stream: LocatedStream, visit: Visit, maddr: Multiaddr) -> None:
        """Upgrade an accepted connection and hold its slot until it ends.

        libp2p's own (`_handle_inbound_connection`) holds the slot until the swarm ends, so that after
        `max_connections` peers have come and gone a node accepts nobody any more.
        """
        raw = RawConnection(stream, False)
        host, scope = visit.place.host, self._handshakes.get(visit)
        self._visits[trio.lowlevel.current_task()] = visit
        try:
            if scope is None:  # another one had its place before it began
                await raw.close()
                return
            with scope:
                muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
                if isinstance(muxed, Yamux):
                    await muxed.event_closed.wait()
            if scope.cancelled_caught:  # another one has its place
                await raw.close()
        except Exception as exc:  # noqa: BLE001 - whatever a stranger sent, only its own connection suffers
            _log.debug("an inbound connection was not upgraded: %r", exc)
            visit.failed(stalled=is_timeout(exc))
            await raw.close()
        finally:
            visit.leave()
            self._visits.pop(trio.lowlevel.current_task(), None)
            self._handshakes.pop(visit, None)
            if scope is not None and not scope.cancel_called:
                self._inbound_limiter.release_on_behalf_of(visit)
            self._from_host[host] -= 1
            if not self._from_host[host]:
                del self._from_host[host]

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> Any:
        """Take a connection whose handshake is done; from here on nobody gets its place."""
        await trio.lowlevel.checkpoint_if_cancelled()
        visit = self._visits.get(trio.lowlevel.current_task())
        if visit is not None:
            self._handshakes.pop(visit, None)
            visit.authenticated()
        peer, where = peer_id_from_bytes(muxed_conn.peer_id.to_bytes()), _ip_of(muxed_conn)
        refusal = self.defence.check_peer(peer, inbound=visit is not None)
        if refusal is not None:
            await muxed_conn.close()
            raise SwarmException(f"{refusal}; try again in {max(1.0, self.defence.wait_s(peer)):.0f} s")
        if isinstance(muxed_conn, Yamux):
            muxed_conn.held.charge_to(self.defence.memory.open(peer))
            muxed_conn.refuses = functools.partial(self.defence.refuses_stream, peer)
        try:
            conn = await super().add_conn(muxed_conn, direction=direction)
        except SwarmException:
            self._hold_against(peer, muxed_conn)
            raise
        if conn.is_closed:  # what came with the end of the handshake was enough, before there was anything to remove
            self._hold_against(peer, muxed_conn)
        else:
            self._counted[conn] = (peer, where)
            self.defence.connected(peer, where)
        return conn

    def _hold_against(self, peer: PeerId, muxed_conn: IMuxedConn) -> None:
        """How a connection ended, where the peer broke its protocol; once for each connection."""
        if isinstance(muxed_conn, Yamux) and muxed_conn.violation is not None:
            _log.info("%s broke the protocol of a connection: %s", peer, muxed_conn.violation)
            self.defence.accuse(peer, Offence.VIOLATION)

    def remove_conn(self, swarm_conn: Any) -> None:
        """A connection has ended: libp2p calls this once for each, whoever ended it."""
        super().remove_conn(swarm_conn)
        counted = self._counted.pop(swarm_conn, None)
        if counted is None:
            return
        peer, where = counted
        self._hold_against(peer, swarm_conn.muxed_conn)
        self.defence.disconnected(peer, where)

    def _end_connections(self, peer: PeerId) -> None:
        for conn in self.get_connections(ID(peer_id_to_bytes(peer))):
            if isinstance(conn.muxed_conn, Yamux):
                conn.muxed_conn.abort()

    def _admit(self, visit: Visit) -> bool:
        """Take a slot for a connection, from the oldest unfinished handshake where there is no other.

        A handshake that is not finished has cost its sender nothing, and an honest one needs only a few round trips,
        so whoever holds some open makes room before anybody who comes has to go.
        """
        limits, place = self.defence.limits, visit.place
        if not place.exempt:
            shaking = sum(1 for other in self._handshakes if other.place.host == place.host)
            if self._from_host[place.host] >= limits.connections_per_host or shaking >= limits.handshakes_per_host:
                return False
        if len(self._handshakes) >= limits.handshakes or self._inbound_limiter.available_tokens < 1:
            if not self._handshakes:
                return False
            oldest = next(iter(self._handshakes))
            self._handshakes.pop(oldest).cancel()
            self._inbound_limiter.release_on_behalf_of(oldest)
        self._inbound_limiter.acquire_on_behalf_of_nowait(visit)
        return True

    async def close(self) -> None:
        """Close every connection at once; libp2p's own takes 0.2 s for each, one after the other."""
        self._closing = True
        for listener in list(self.listeners.values()):
            await listener.close()
        async with trio.open_nursery() as nursery:
            for conn in self.get_connections():
                nursery.start_soon(conn.muxed_conn.close)


def _ip_of(muxed: IMuxedConn) -> str | None:
    """The IP address at the other end, as the socket says."""
    remote = muxed.get_remote_address() if isinstance(muxed, Yamux) else None
    return remote[0] if remote is not None else None


def is_timeout(exc: BaseException | None) -> bool:
    """Whether what libp2p raised comes from a time-out at its bottom."""
    while exc is not None:
        if isinstance(exc, trio.TooSlowError | TimeoutError):
            return True
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc.__context__
    return False


def _reason(exc: BaseException, address: Multiaddr) -> str:
    """What went wrong at the bottom: libp2p wraps an OSError four times."""
    text = str(exc)
    while True:
        if isinstance(exc, BaseExceptionGroup):
            inner: BaseException | None = exc.exceptions[0]
        else:
            inner = exc.__cause__
        if inner is None:
            break
        exc = inner
        text = str(exc) or text
    if isinstance(exc, ConnectionRefusedError):
        return f"{address} refused: nobody listens there; is the peer up?"
    if isinstance(exc, WrongPeer):
        return f"somebody else answers at {address}; has the peer moved, or made a new key?"
    return text


class MendedPeerStore(PeerStore):
    """A peer store that strangers can't fill.

    libp2p's takes any number of addresses per peer; forgets the addresses of a connected peer after 120 s; and
    when it is full throws out first the peers without addresses, of which the node itself, with its private
    key, is one.
    """

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        known = self.peer_data_map[peer_id].get_addrs() if peer_id in self.peer_data_map else []
        new = [addr for addr in dict.fromkeys(addrs) if addr not in known]
        if len(known) + len(new) > MAX_ADDRESSES_PER_PEER:
            self.peer_data_map[peer_id].clear_addrs() if known else None
            new = [*known, *new][-MAX_ADDRESSES_PER_PEER:]
        super().add_addrs(peer_id, new, max(ttl, ADDRESS_TTL_S))

    def _enforce_peer_limit(self) -> None:
        keep = {peer: data for peer, data in self.peer_data_map.items() if data.privkey is not None}
        super()._enforce_peer_limit()
        self.peer_data_map.update(keep)


class SeenMessages:
    """Message IDs seen of late; libp2p's own keeps a thread per host that nothing stops, and has no bound."""

    def __init__(self) -> None:
        self._expiry: dict[bytes, float] = {}

    def has(self, key: bytes) -> bool:
        expiry = self._expiry.get(key)
        return expiry is not None and expiry > time.monotonic()

    def add(self, key: bytes) -> bool:
        new = not self.has(key)
        now = time.monotonic()
        self._expiry.pop(key, None)
        self._expiry[key] = now + SEEN_TTL_S  # insertion order is order of expiry
        while self._expiry:
            oldest = next(iter(self._expiry))
            if self._expiry[oldest] > now and len(self._expiry) <= MAX_SEEN:
                break
            del self._expiry[oldest]
        return new

    def length(self) -> int:
        return len(self._expiry)

    def stop(self) -> None:
        """There is nothing to stop."""


def tame_logging() -> None:
    """Keep libp2p's log out of stderr, unless the application asks for it, and out of the root logger.

    On import libp2p cuts its logger off from the root and gives it no handler, so that Python's last resort
    prints its warnings, several lines for each odd thing that a peer does. And its `SwarmConn` logs by
    ``logging.debug``, which gives the root logger a handler to stderr as soon as there is a connection, so that
    the whole application's log changes. The module's `logging` becomes the logger that it should have used.
    """
    logger = logging.getLogger("libp2p")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    setattr(swarm_connection, "logging", logging.getLogger(swarm_connection.__name__))  # noqa: B010 - not its type


def gossip_router(defence: Defence | None = None) -> GossipSub:
    """Gossipsub that works at our scale.

    libp2p's defaults are a heartbeat of 120 s, without which no mesh forms, and 10 messages a second per peer
    and topic, our own included, beyond which messages vanish. Version 1.1 costs half the CPU of 1.2.
    """
    return LimitedGossipSub(
        defence or Defence(),
        [TProtocol("/meshsub/1.1.0")],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_initial_delay=0.1,
        heartbeat_interval=1,
        spam_protection_enabled=False,
        adaptive_gossip_enabled=False,
    )


class _PeerQueues(dict[ID, RpcQueue]):
    """Queues for what goes to each peer, of a size that fits us.

    By default a queue holds 32 messages, so that what a burst publishes beyond that vanishes, and puts up to
    1 MiB into one RPC, which a peer with our own lower bound takes for an attack.
    """

    def __setitem__(self, peer_id: ID, queue: RpcQueue) -> None:
        queue.max_message_size = MAX_GOSSIP_RPC_BYTES
        queue._queue.max_size = GOSSIP_QUEUE
        super().__setitem__(peer_id, queue)


class MendedPubsub(Pubsub):
    """Pubsub that a message can't stop.

    A message whose key does not parse makes libp2p's signature check raise inside a task of the service, which
    ends the service and the node with it. Its sequence numbers start at the time in seconds, so that a node
    that restarts after a burst repeats some, and what carries them is dropped as seen.
    """

    def __init__(
        self,
        host: IHost,
        router: GossipSub,
        deliver: Callable[[rpc_pb2.Message], None],
        defence: Defence | None = None,
    ) -> None:
        super().__init__(host, router, strict_signing=True, max_inbound_rpc_size=MAX_GOSSIP_RPC_BYTES)
        self.seen_messages.stop()
        self.seen_messages: Any = SeenMessages()
        self.counter = time.time_ns()
        self.peer_queues: dict[ID, RpcQueue] = _PeerQueues()
        self._deliver = deliver
        self._defence = defence or Defence()

    async def wait_for_room(self) -> None:
        """Before we publish, let our peers' queues drain, but don't let one slow peer hold us up for long.

        And let others run, since libp2p's `publish` waits for nothing where no peer is there yet: whoever publishes
        in a loop would keep them from coming.
        """
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(PUBLISH_PATIENCE_S):
            # libp2p's queue has no event for "shorter"
            while any(len(queue) > GOSSIP_QUEUE // 2 for queue in self.peer_queues.values()):  # noqa: ASYNC110
                await trio.sleep(0.005)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        if len(msg.data) > MAX_GOSSIP_BYTES:
            return
        if msg_forwarder != self.my_id and not self._is_welcome(msg_forwarder, msg):
            return
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception:
            if msg_forwarder == self.my_id:
                raise
            _log.info("dropping a gossip message from %s", msg_forwarder, exc_info=True)

    def _is_welcome(self, neighbour: ID, msg: rpc_pb2.Message) -> bool:
        """Before a message costs anything: libp2p's own checks of signatures tell nobody who failed them."""
        peer = peer_id_from_bytes(neighbour.to_bytes())
        if not self._defence.may_gossip(peer, own=msg.from_id == neighbour.to_bytes(), size=len(msg.data)):
            return False
        if self._is_msg_seen(msg):
            return False
        try:
            signed = signature_validator(msg)
        except Exception:  # noqa: BLE001 - a key that is none, or of a kind that libp2p does not know
            signed = False
        if not signed:
            _log.info("%s handed on a message that is not its author's", neighbour)
            self._defence.forged_gossip(peer)
        return signed

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        if publish_message.from_id != self.my_id.to_bytes():
            self._deliver(publish_message)
