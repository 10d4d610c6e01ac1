"""The network under a node: streams, gossip and a DHT between authenticated peers.

Importing this does not import libp2p; `open_libp2p` does when it is first looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._api import (
    CONNECT_TIMEOUT_S as CONNECT_TIMEOUT_S,
    KEY_BYTES as KEY_BYTES,
    MAX_CONNECTIONS as MAX_CONNECTIONS,
    MAX_CONNECTIONS_PER_PEER as MAX_CONNECTIONS_PER_PEER,
    MAX_GOSSIP_BYTES as MAX_GOSSIP_BYTES,
    MAX_INBOUND_STREAMS_PER_PEER as MAX_INBOUND_STREAMS_PER_PEER,
    MAX_PROVIDERS as MAX_PROVIDERS,
    MAX_RECORD_BYTES as MAX_RECORD_BYTES,
    RECEIVE_BYTES as RECEIVE_BYTES,
    SEND_STALL_TIMEOUT_S as SEND_STALL_TIMEOUT_S,
    STREAM_TIMEOUT_S as STREAM_TIMEOUT_S,
    SUBSCRIPTION_QUEUE as SUBSCRIPTION_QUEUE,
    GossipTooLarge as GossipTooLarge,
    GossipValidator as GossipValidator,
    Overlay as Overlay,
    OverlayStream as OverlayStream,
    PeerInfo as PeerInfo,
    RecordValidator as RecordValidator,
    StreamHandler as StreamHandler,
    StreamReset as StreamReset,
    Subscription as Subscription,
    UnknownProtocol as UnknownProtocol,
)

if TYPE_CHECKING:
    from ._libp2p import open_libp2p as open_libp2p

__all__ = [
    "CONNECT_TIMEOUT_S",
    "KEY_BYTES",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_PEER",
    "MAX_GOSSIP_BYTES",
    "MAX_INBOUND_STREAMS_PER_PEER",
    "MAX_PROVIDERS",
    "MAX_RECORD_BYTES",
    "RECEIVE_BYTES",
    "SEND_STALL_TIMEOUT_S",
    "STREAM_TIMEOUT_S",
    "SUBSCRIPTION_QUEUE",
    "GossipTooLarge",
    "GossipValidator",
    "Overlay",
    "OverlayStream",
    "PeerInfo",
    "RecordValidator",
    "StreamHandler",
    "StreamReset",
    "Subscription",
    "UnknownProtocol",
    "open_libp2p",
]


def __getattr__(name: str) -> Any:
    if name == "open_libp2p":
        from ._libp2p import open_libp2p

        return open_libp2p
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
