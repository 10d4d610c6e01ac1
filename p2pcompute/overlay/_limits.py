"""What strangers may take of a node's connections and streams: one table.

Nothing here knows libp2p or sockets. What a limit does where it is met stands in `_defence.py`; why each has its
value stands in docs/limits.md, and a test compares that page with this table.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute._rates import Rate

from ._api import (
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_HOST,
    MAX_CONNECTIONS_PER_PEER,
    MAX_HANDSHAKES,
    MAX_HANDSHAKES_PER_HOST,
    MAX_INBOUND_STREAMS_PER_PEER,
)

__all__ = ["PROTOCOL_LIMITS", "Limits", "Place", "ProtocolLimits"]

_HOUR_S = 3600.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolLimits:
    """What streams that peers open with one protocol may take.

    Attributes:
        streams_per_peer: at once; one more is reset.
        streams: at once, of all peers together; one more is reset.
        idle_s: a stream on which no byte moves for so long is reset and its handler cancelled.
        deadline_s: the same for a stream that is open for so long, whatever moves.
    """

    streams_per_peer: int = MAX_INBOUND_STREAMS_PER_PEER
    streams: int = 1024
    idle_s: float = 900.0
    deadline_s: float = math.inf

    def __post_init__(self) -> None:
        if min(self.streams_per_peer, self.streams) < 1 or not (self.idle_s > 0 and self.deadline_s > 0):
            raise ValueError("limits of a protocol are above zero")


# Ours end silence themselves, long before this: it is what stops a handler that forgot to. A task's stream is silent
# while a chunk is computed, which may take as long as its agreement says; one of a channel for the 900 s that a payee
# waits for a voucher. Of a request stream one is enough, and another follows one that drains; those over the bound of
# `_request_api.py` are reset without blame. libp2p's own handlers wait for a peer for ever, and its DHT serves twelve
# streams at once, so that twelve silent ones would end it.
PROTOCOL_LIMITS: Mapping[str, ProtocolLimits] = {
    "/p2pcompute/task/3": ProtocolLimits(idle_s=24 * _HOUR_S),
    "/p2pcompute/dispute/1": ProtocolLimits(idle_s=_HOUR_S),
    "/p2pcompute/channel/2": ProtocolLimits(idle_s=_HOUR_S),
    "/p2pcompute/ads/2": ProtocolLimits(streams_per_peer=16, idle_s=600.0),
    "/p2pcompute/negotiation/5": ProtocolLimits(streams_per_peer=16, idle_s=600.0),
    "/p2pcompute/blob/1": ProtocolLimits(idle_s=600.0),
    "/ipfs/id/1.0.0": ProtocolLimits(streams_per_peer=4, deadline_s=30.0),
    "/ipfs/id/push/1.0.0": ProtocolLimits(streams_per_peer=4, deadline_s=30.0),
    "/ipfs/ping/1.0.0": ProtocolLimits(streams_per_peer=4, deadline_s=_HOUR_S),
    "/ipfs/kad/1.0.0": ProtocolLimits(streams_per_peer=4, streams=64, deadline_s=30.0),
    "/meshsub/1.1.0": ProtocolLimits(streams_per_peer=4, idle_s=math.inf),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What strangers may take of one node. A host is an IPv4 address or a /64 of IPv6, a subnet a /24 or a /48.

    Loopback has no bounds by host or subnet, since many nodes of one machine share it; those by peer hold there too.

    Attributes:
        connections: inbound and outbound together.
        connections_per_host, connections_per_subnet: inbound, handshakes included.
        connections_per_peer: of one more, that with the fewest streams is closed.
        handshakes: inbound connections that have not said yet who they are; one more ends the oldest.
        handshakes_per_host, handshakes_per_subnet: likewise; one more is closed before a byte is read.
        handshake_rate_per_host, handshake_rate_per_subnet: inbound connections, however long they last.
        connection_rate_per_peer: inbound connections that finished their handshake.
        streams_per_peer: inbound at once, over all connections and protocols; one more is reset.
        stream_rate_per_peer: inbound; one more is reset.
        memory: bytes that peers' streams hold, over all; see `MemoryPool`.
        memory_per_peer: the most that one peer's may ever hold.
        memory_kept_per_peer: what one peer's may hold however full the rest is.
        gossip_rate_per_peer, gossip_bytes_per_peer: messages that one neighbour hands on; more are dropped.
        gossip_rate_own: those of them that it published itself; more are dropped, and count against it.
        gossip_control_per_peer: entries of control messages; the whole of an RPC that has more is dropped.
        gossip_asked_per_peer: messages that one neighbour may ask for again; more are not answered.
        protocols: what differs from `protocol`, by protocol ID.
        loopback_exempt: see above; a test that has only loopback sets it to False.
    """

    connections: int = MAX_CONNECTIONS
    connections_per_host: int = MAX_CONNECTIONS_PER_HOST
    connections_per_subnet: int = 128
    connections_per_peer: int = MAX_CONNECTIONS_PER_PEER
    handshakes: int = MAX_HANDSHAKES
    handshakes_per_host: int = MAX_HANDSHAKES_PER_HOST
    handshakes_per_subnet: int = 32
    handshake_rate_per_host: Rate = field(default=Rate(per_s=2, burst=64))
    handshake_rate_per_subnet: Rate = field(default=Rate(per_s=8, burst=192))
    connection_rate_per_peer: Rate = field(default=Rate(per_s=0.5, burst=32))
    streams_per_peer: int = 768
    stream_rate_per_peer: Rate = field(default=Rate(per_s=200, burst=1000))
    memory: int = 256 * _MIB
    memory_per_peer: int = 64 * _MIB
    memory_kept_per_peer: int = _MIB // 4
    gossip_rate_per_peer: Rate = field(default=Rate(per_s=50, burst=1000))
    gossip_bytes_per_peer: Rate = field(default=Rate(per_s=2 * _MIB, burst=64 * _MIB))
    gossip_rate_own: Rate = field(default=Rate(per_s=10, burst=500))
    gossip_control_per_peer: Rate = field(default=Rate(per_s=500, burst=10_000))
    gossip_asked_per_peer: Rate = field(default=Rate(per_s=20, burst=500))
    protocol: ProtocolLimits = field(default=ProtocolLimits())
    protocols: Mapping[str, ProtocolLimits] = field(default_factory=lambda: PROTOCOL_LIMITS)
    loopback_exempt: bool = True

    def of(self, protocol: str) -> ProtocolLimits:
        """The limits of a protocol."""
        return self.protocols.get(protocol, self.protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a connection comes from, as far as limits count together.

    Attributes:
        host: an IPv4 address, a /64 of IPv6, or "unknown" for what has no address.
        subnet: the /24 or /48 around it.
        exempt: whether the bounds of hosts and subnets are not for it.
    """

    host: str
    subnet: str
    exempt: bool

    @classmethod
    def of(cls, ip: str | None, *, loopback_exempt: bool = True) -> Place:
        """The place of an IP address, as a socket gives it. An IPv4 address in IPv6 counts as what it is."""
        return _place(ip, loopback_exempt)


@functools.lru_cache(maxsize=1024)  # it is asked for several times by each who comes, also by those who may not
def _place(ip: str | None, loopback_exempt: bool) -> Place:
    try:
        address = ipaddress.ip_address((ip or "").partition("%")[0])
    except ValueError:
        return Place(host="unknown", subnet="unknown", exempt=False)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    exempt = loopback_exempt and address.is_loopback
    host_bits, subnet_bits = (32, 24) if address.version == 4 else (64, 48)
    host = ipaddress.ip_network((address, host_bits), strict=False)
    subnet = ipaddress.ip_network((address, subnet_bits), strict=False)
    return Place(host=str(address) if address.version == 4 else str(host), subnet=str(subnet), exempt=exempt)
