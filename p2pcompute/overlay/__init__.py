"""The network under a node: streams, gossip and a DHT between authenticated peers.

Importing this does not import libp2p; `open_libp2p` does when it is first looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pcompute._rates import Rate

from ._api import (
    BULK_BYTES,
    CONNECT_TIMEOUT_S,
    KEY_BYTES,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_PEER,
    MAX_GOSSIP_BYTES,
    MAX_INBOUND_STREAMS_PER_PEER,
    MAX_PROVIDERS,
    MAX_RECORD_BYTES,
    RECEIVE_BYTES,
    SEND_STALL_TIMEOUT_S,
    STREAM_TIMEOUT_S,
    SUBSCRIPTION_QUEUE,
    GossipTooLarge,
    GossipValidator,
    Overlay,
    OverlayStream,
    PeerInfo,
    RecordValidator,
    StreamHandler,
    StreamReset,
    Subscription,
    UnknownProtocol,
)
from ._bans import Ban, Offence, Subject
from ._counters import LATENCY_BOUNDS_S, ConnectionReport, Histogram, OverlayCounters, PeerReport, ProtocolTraffic
from ._limits import Limits, Place, ProtocolLimits
from ._limits_report import LimitsReport, PeerUse
from ._memory import MemoryAccount, MemoryPool
from ._ping import PING_PROTOCOL
from ._request_api import (
    REQUEST_TIMEOUT_S,
    InlineRequestHandler,
    RequestError,
    RequestHandler,
    RequestLimits,
    RequestLost,
    RequestRefused,
    RequestTimeout,
)
from ._request_dialogues import AskedDialogue, ServedDialogue
from ._requests import Requests, open_requests

if TYPE_CHECKING:
    from ._libp2p import open_libp2p

__all__ = [
    "BULK_BYTES",
    "CONNECT_TIMEOUT_S",
    "KEY_BYTES",
    "LATENCY_BOUNDS_S",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_PEER",
    "MAX_GOSSIP_BYTES",
    "MAX_INBOUND_STREAMS_PER_PEER",
    "MAX_PROVIDERS",
    "MAX_RECORD_BYTES",
    "PING_PROTOCOL",
    "RECEIVE_BYTES",
    "REQUEST_TIMEOUT_S",
    "SEND_STALL_TIMEOUT_S",
    "STREAM_TIMEOUT_S",
    "SUBSCRIPTION_QUEUE",
    "AskedDialogue",
    "Ban",
    "ConnectionReport",
    "GossipTooLarge",
    "GossipValidator",
    "Histogram",
    "InlineRequestHandler",
    "Limits",
    "LimitsReport",
    "MemoryAccount",
    "MemoryPool",
    "Offence",
    "Overlay",
    "OverlayCounters",
    "OverlayStream",
    "PeerInfo",
    "PeerReport",
    "PeerUse",
    "Place",
    "ProtocolLimits",
    "ProtocolTraffic",
    "Rate",
    "RecordValidator",
    "RequestError",
    "RequestHandler",
    "RequestLimits",
    "RequestLost",
    "RequestRefused",
    "RequestTimeout",
    "Requests",
    "ServedDialogue",
    "StreamHandler",
    "StreamReset",
    "Subject",
    "Subscription",
    "UnknownProtocol",
    "open_libp2p",
    "open_requests",
]


def __getattr__(name: str) -> Any:
    if name == "open_libp2p":
        from ._light_libp2p import import_lightly

        import_lightly()
        from ._libp2p import open_libp2p

        return open_libp2p
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
