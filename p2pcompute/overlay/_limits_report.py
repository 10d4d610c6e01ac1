"""How near a node is to its limits, as plain data for whoever shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2pcompute_protocols.ids import PeerId

from ._bans import Ban
from ._limits import Limits

__all__ = ["LimitsReport", "PeerUse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerUse:
    """What one connected peer takes.

    Attributes:
        peer_id: the peer.
        connections: to it, in both directions.
        streams: that it opened and that are open.
        memory_bytes: that are held for it.
        score: of its offences; at `BAN_SCORE` it is banned.
    """

    peer_id: PeerId
    connections: int
    streams: int
    memory_bytes: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsReport:
    """How near a node is to its limits.

    Attributes:
        limits: what holds.
        connections: open, in both directions.
        handshakes: inbound connections that have not said yet who they are.
        streams: opened by peers and open.
        memory_bytes: held for peers.
        refused: how often something was refused since the start, by what was; the names are those of `Refusal`.
        bans: that stand, those that end first first.
        peers: that are connected, those that take most streams first.
    """

    limits: Limits
    connections: int = 0
    handshakes: int = 0
    streams: int = 0
    memory_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict[str, int])
    bans: tuple[Ban, ...] = ()
    peers: tuple[PeerUse, ...] = ()
