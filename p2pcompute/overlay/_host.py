"""The host that libp2p's gossip, DHT, identify and ping stand on: which protocol a stream speaks, and who peers are.

libp2p's own, `BasicHost`, brings discovery by mDNS, UPnP, certificates by ACME and what those stand on, 10 MB that a
node never uses. Its identify tasks are system tasks besides: they outlive the host, and an exception of one is a
TrioInternalError. Here they live in a nursery of ours, and tell us when they are done.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import trio
from libp2p.abc import (
    IHost,
    IMuxedConn,
    INetConn,
    INetStream,
    INetwork,
    INetworkService,
    INotifee,
    IPeerStore,
    IRawConnection,
)
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.host.defaults import get_default_protocols
from libp2p.host.exceptions import StreamFailure
from libp2p.identity.identify.identify import ID as IDENTIFY_ID
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.identity.update import update_peerstore_from_identify
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import create_signed_peer_record
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils.varint import read_length_prefixed_protobuf
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from p2pcompute_protocols.ids import peer_id_from_bytes

from ._api import STREAM_TIMEOUT_S
from ._defence import Defence
from ._muxer import Yamux
from ._stream_lines import BoundedMultiselect, BoundedMultiselectClient

if TYPE_CHECKING:
    from libp2p.crypto.keys import PrivateKey, PublicKey
    from libp2p.network.tag_store import TagStore
    from libp2p.peer.peerinfo import PeerInfo

__all__ = ["OurHost"]

_log = logging.getLogger(__name__)

_STARTED_TIMEOUT_S = 5.0  # until a new connection can have streams
_IDENTIFY_TIMEOUT_S = 10.0
_CONNECT_TTL_S = 120
_NOT_HERE = "the overlay does this itself, or not at all"


class _Arrivals(INotifee):
    """Tells the host of connections."""

    def __init__(self, host: OurHost) -> None:
        self._host = host

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002 - their name
        with trio.move_on_after(_STARTED_TIMEOUT_S) as scope:
            await conn.event_started.wait()
        if not scope.cancelled_caught:
            self._host.identify(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002 - their name
        self._host.forget(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


class OurHost(IHost):
    """Implements what libp2p's protocols ask of a host. Connecting and closing are the overlay's.

    Args:
        swarm: its connections.
        defence: limits and scores of those who open streams.
        nursery: holds the identify tasks.
        on_identified: called when a peer has said what it serves.
        announce: addresses to tell others instead of those that the swarm listens on.
    """

    def __init__(
        self,
        swarm: Swarm,
        defence: Defence,
        nursery: trio.Nursery,
        on_identified: Callable[[ID], Awaitable[None]],
        announce: Sequence[Multiaddr] | None = None,
    ) -> None:
        self._swarm = swarm
        self._defence = defence
        self._nursery = nursery
        self._on_identified = on_identified
        # Observed addresses are what any stranger says that ours are, so there are none among ours.
        self._announce = None if announce is None else list(announce)
        self._suffix = Multiaddr(f"/p2p/{swarm.get_peer_id()}")
        self._identifying: dict[ID, trio.Event] = {}
        self._identified: set[ID] = set()
        self.multiselect = BoundedMultiselect()
        self.multiselect_client = BoundedMultiselectClient()
        for protocol, handler in get_default_protocols(self).items():
            self.set_stream_handler(protocol, handler)
        record = create_signed_peer_record(self.get_id(), self.get_addrs(), self.get_private_key())
        self.get_peerstore().set_local_record(record)
        swarm.set_stream_handler(self._accept)
        swarm.register_notifee(_Arrivals(self))

    # Who we are

    def get_id(self) -> ID:
        return self._swarm.get_peer_id()

    def get_public_key(self) -> PublicKey:
        return self._swarm.peerstore.pubkey(self.get_id())

    def get_private_key(self) -> PrivateKey:
        return self._swarm.peerstore.privkey(self.get_id())

    def get_network(self) -> INetworkService:
        return self._swarm

    def get_peerstore(self) -> IPeerStore:
        return self._swarm.peerstore

    def get_mux(self) -> BoundedMultiselect:
        return self.multiselect

    @property
    def conn_manager(self) -> TagStore:
        return self._swarm.tag_store

    def get_transport_addrs(self) -> list[Multiaddr]:
        return [address for listener in self._swarm.listeners.values() for address in listener.get_addrs()]

    def get_addrs(self) -> list[Multiaddr]:
        """What others are told to dial, each with our peer ID at its end."""
        plain = self.get_transport_addrs() if self._announce is None else self._announce
        return [_without_peer(address).encapsulate(self._suffix) for address in plain]

    # Who is connected

    def get_connected_peers(self) -> list[ID]:
        return list(self._swarm.connections)

    def get_live_peers(self) -> list[ID]:
        return list(self._swarm.connections)

    async def connect(self, peer_info: PeerInfo) -> None:
        """Be connected; gossip does so with peers that it is told of. Raises SwarmException."""
        self.get_peerstore().add_addrs(peer_info.peer_id, peer_info.addrs, _CONNECT_TTL_S)
        conn = (await self._swarm.dial_peer(peer_info.peer_id))[0]
        await conn.event_started.wait()
        self.identify(peer_info.peer_id)

    async def disconnect(self, peer_id: ID) -> None:
        await self._swarm.close_peer(peer_id)

    async def close(self) -> None:
        await self._swarm.close()

    # Streams

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        """Serve a protocol of libp2p's own within its limits: its handlers wait for a peer for ever.

        Its DHT serves twelve streams at once, so that twelve that say nothing would end it for everybody.
        """

        async def limited(stream: INetStream) -> None:
            peer = peer_id_from_bytes(stream.muxed_conn.peer_id.to_bytes())
            with self._defence.serving(peer, str(protocol_id)) as served:
                if served is not None:
                    with served.scope:
                        await stream_handler(stream)
                        return
                await stream.reset()

        self.multiselect.add_handler(protocol_id, limited)

    def serve(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        """Serve a protocol by a handler that keeps to its limits itself."""
        self.multiselect.add_handler(protocol_id, stream_handler)

    def remove_stream_handler(self, protocol_id: TProtocol) -> None:
        self.multiselect.remove_handler(protocol_id)

    async def _accept(self, stream: INetStream) -> None:
        """Find out what a stream speaks that a peer has opened, and serve it."""
        try:
            protocol, handler = await self.multiselect.negotiate(MultiselectCommunicator(stream), int(STREAM_TIMEOUT_S))
        except MultiselectError as exc:
            _log.debug("a stream of %s was not negotiated: %r", stream.muxed_conn.peer_id, exc)
            protocol = handler = None
        if protocol is None or handler is None:
            await stream.reset()
            return
        stream.set_protocol(protocol)
        await handler(stream)

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        """A stream to a peer that speaks the first of these protocols that it knows.

        Raises SwarmException where there is no connection, and StreamFailure where it speaks none of them. A stream
        that is cancelled on its way is reset.
        """
        for conn in self._swarm.get_connections(peer_id)[:1]:  # to each newcomer we open some
            if isinstance(conn.muxed_conn, Yamux):
                await conn.muxed_conn.turn.step()
        stream = await self._swarm.new_stream(peer_id)
        try:
            protocol = await self.multiselect_client.select_one_of(
                list(protocol_ids), MultiselectCommunicator(stream), int(STREAM_TIMEOUT_S)
            )
        except BaseException as exc:
            with trio.CancelScope(shield=True):
                await _reset(stream)
            if isinstance(exc, MultiselectClientError):
                raise StreamFailure(f"{peer_id} speaks none of {', '.join(map(str, protocol_ids))}") from exc
            raise
        stream.set_protocol(protocol)
        return stream

    # Identify

    def identify(self, peer_id: ID) -> None:
        """Ask a connected peer what it serves, where it was not asked on this connection."""
        if peer_id == self.get_id() or peer_id in self._identifying or peer_id in self._identified:
            return
        self._identifying[peer_id] = trio.Event()
        self._nursery.start_soon(self._identify_and_tell, peer_id)

    def forget(self, peer_id: ID) -> None:
        """A connection has ended: the peer may be another one when it comes back."""
        self._identified.discard(peer_id)

    async def wait_identified(self, peer_id: ID) -> None:
        """Return once a running identify of this peer has ended, however it ended."""
        event = self._identifying.get(peer_id)
        if event is not None:
            await event.wait()

    async def _identify_and_tell(self, peer_id: ID) -> None:
        try:
            await self._ask(peer_id)
            await self._on_identified(peer_id)
        except Exception:  # noqa: BLE001 - a peer that can't be identified is just not in our tables
            _log.info("identify of %s failed", peer_id, exc_info=True)
        finally:
            self._identifying.pop(peer_id).set()

    async def _ask(self, peer_id: ID) -> None:
        if not self._swarm.get_connections(peer_id):
            return
        try:
            stream = await self.new_stream(peer_id, [IDENTIFY_ID])
        except Exception as exc:  # noqa: BLE001 - libp2p raises many types here; all mean "not this peer"
            _log.debug("identify of %s: no stream: %r", peer_id, exc)
            return
        try:
            with trio.fail_after(_IDENTIFY_TIMEOUT_S):
                data = await read_length_prefixed_protobuf(stream, use_varint_format=True)
            said = Identify.FromString(data)
            await update_peerstore_from_identify(self.get_peerstore(), peer_id, said)
            if self._swarm.get_connections(peer_id):
                self._identified.add(peer_id)
        except Exception as exc:  # noqa: BLE001 - whatever it said
            _log.debug("identify of %s: %r", peer_id, exc)
            await _reset(stream)
        finally:
            await _close(stream)

    # What nobody asks of this host

    def get_metrics_recv_channel(self) -> trio.MemoryReceiveChannel[Any] | None:
        return None

    def run(
        self, listen_addrs: Sequence[Multiaddr], *, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> AbstractAsyncContextManager[None]:
        raise NotImplementedError(_NOT_HERE)

    async def initiate_autotls_procedure(self, public_ip: str | None = None) -> None:
        raise NotImplementedError(_NOT_HERE)

    async def upgrade_outbound_connection(self, raw_conn: IRawConnection, peer_id: ID) -> INetConn:
        raise NotImplementedError(_NOT_HERE)

    async def upgrade_inbound_connection(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        raise NotImplementedError(_NOT_HERE)

    def get_connection_health(self, peer_id: ID) -> dict[str, Any]:
        raise NotImplementedError(_NOT_HERE)

    def get_network_health_summary(self) -> dict[str, Any]:
        raise NotImplementedError(_NOT_HERE)

    def export_health_metrics(self, format: str = "json") -> str:  # noqa: A002 - their name
        raise NotImplementedError(_NOT_HERE)

    async def get_health_monitor_status(self) -> dict[str, Any]:
        raise NotImplementedError(_NOT_HERE)


def _without_peer(address: Multiaddr) -> Multiaddr:
    """An announced address may end with a peer ID, which need not be ours."""
    text = str(address)
    plain, found, _ = text.rpartition("/p2p/")
    return Multiaddr(plain) if found else address


async def _reset(stream: INetStream) -> None:
    try:
        await stream.reset()
    except Exception as exc:  # noqa: BLE001 - the connection under it is gone
        _log.debug("a stream was not reset: %r", exc)


async def _close(stream: INetStream) -> None:
    try:
        await stream.close()
    except Exception as exc:  # noqa: BLE001 - the connection under it is gone
        _log.debug("a stream was not closed: %r", exc)
