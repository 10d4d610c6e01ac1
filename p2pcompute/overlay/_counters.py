"""What an overlay counts of its own doing: plain integers that only its own thread touches.

Nothing a stranger says becomes a name here: protocols are those that this node handles or opens, reasons are
from a closed list. So neither memory nor what is read from here grows with who comes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import trio

from p2pcompute_protocols.ids import PeerId

__all__ = [
    "LATENCY_BOUNDS_S",
    "MAX_COUNTED_PEERS",
    "MAX_COUNTED_PROTOCOLS",
    "OTHER",
    "ConnectionReport",
    "Direction",
    "Histogram",
    "OverlayCounters",
    "PeerReport",
    "PeerTraffic",
    "ProtocolTraffic",
    "Question",
    "StreamCount",
    "StreamEnd",
]

Direction: TypeAlias = Literal["in", "out"]
StreamEnd: TypeAlias = Literal["closed", "reset", "broken"]
"""How a stream ended: closed politely, reset by us, or broken by the peer or with its connection."""

LATENCY_BOUNDS_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)
MAX_COUNTED_PROTOCOLS: Final = 64  # with names of their own; the rest are `OTHER` together
MAX_COUNTED_PEERS: Final = 1024  # more than can be connected; the one not heard of for longest makes room
OTHER: Final = "other"


class Histogram:
    """Times in seconds, by `LATENCY_BOUNDS_S`.

    Attributes:
        counts: how many were within each bound and over the one before it; the last of all is what was over all.
        total_s: their sum.
    """

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one time."""
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.counts)


class ProtocolTraffic:
    """What one protocol did.

    Attributes:
        opened: streams, by who opened them: "in" or "out".
        open: streams that have not ended.
        ended: streams, by how.
        bytes_in, bytes_out: read and written by its streams.
        first_reply: from when we asked for a stream to its first byte, negotiation and, if need be, a dial included.
        handling: how long streams that came in were served.
    """

    __slots__ = ("bytes_in", "bytes_out", "ended", "first_reply", "handling", "open", "opened")

    def __init__(self) -> None:
        self.opened: Counter[Direction] = Counter()
        self.open = 0
        self.ended: Counter[StreamEnd] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_reply = Histogram()
        self.handling = Histogram()


class PeerTraffic:
    """What one peer did while it is connected: streams that are open, and bytes over all that were."""

    __slots__ = ("bytes_in", "bytes_out", "streams")

    def __init__(self) -> None:
        self.streams = 0
        self.bytes_in = 0
        self.bytes_out = 0


class StreamCount:
    """The count of one stream. `sent` and `received` are for each write and read, and cost two additions."""

    __slots__ = ("_asked_s", "_clock", "_direction", "_ended", "_peer", "_protocol", "_started_s")

    def __init__(
        self,
        protocol: ProtocolTraffic,
        peer: PeerTraffic,
        clock: Callable[[], float],
        direction: Direction,
        asked_s: float | None,
    ) -> None:
        self._protocol = protocol
        self._peer = peer
        self._clock = clock
        self._direction = direction
        self._started_s = clock()
        self._asked_s = asked_s
        self._ended = False
        protocol.opened[direction] += 1
        protocol.open += 1
        peer.streams += 1

    def sent(self, count: int) -> None:
        """So many bytes were written."""
        self._protocol.bytes_out += count
        self._peer.bytes_out += count

    def received(self, count: int) -> None:
        """So many bytes were read."""
        self._protocol.bytes_in += count
        self._peer.bytes_in += count
        if self._asked_s is not None and count:
            self._protocol.first_reply.observe(self._clock() - self._asked_s)
            self._asked_s = None

    def ended(self, how: StreamEnd) -> None:
        """The stream is over; only the first word on it counts."""
        if self._ended:
            return
        self._ended = True
        self._protocol.open -= 1
        self._protocol.ended[how] += 1
        self._peer.streams -= 1
        if self._direction == "in":
            self._protocol.handling.observe(self._clock() - self._started_s)


class Question:
    """A question to the DHT under way; `found` says whether there was an answer."""

    __slots__ = ("found",)

    def __init__(self) -> None:
        self.found = True


class OverlayCounters:
    """All counts of one overlay, since it was opened.

    Attributes:
        protocols: by protocol ID, `MAX_COUNTED_PROTOCOLS` at most, and `OTHER`.
        connected: connections that were made, by direction and by what secures them.
        handshakes_failed: connections that did not come about, by direction and reason.
        gossip: messages, by what became of them: "published" by us; "received" from others, again and again included;
            "delivered" to this node; "refused" by our validator; "dropped" since nobody here read fast enough;
            "broken".
        dht: questions of ours, by operation and outcome: "found", "nothing" or "failed".
    """

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self.clock = clock
        self.protocols: dict[str, ProtocolTraffic] = {}
        self.connected: Counter[tuple[Direction, str]] = Counter()
        self.handshakes_failed: Counter[tuple[Direction, str]] = Counter()
        self.gossip: Counter[str] = Counter()
        self.dht: Counter[tuple[str, str]] = Counter()
        self._peers: dict[PeerId, PeerTraffic] = {}

    def stream(self, peer: PeerId, protocol: str, direction: Direction, *, asked_s: float | None = None) -> StreamCount:
        """Count a stream that is open from now on.

        Args:
            protocol: one that this node handles or opens, and no word of a stranger's.
            asked_s: when it was asked for, by `clock`; then the time to its first byte counts.
        """
        return StreamCount(self.protocol(protocol), self.peer(peer), self.clock, direction, asked_s)

    def protocol(self, name: str) -> ProtocolTraffic:
        """The count of a protocol, or of all others where it is one too many."""
        found = self.protocols.get(name)
        if found is None:
            if len(self.protocols) >= MAX_COUNTED_PROTOCOLS:
                name = OTHER
            found = self.protocols.setdefault(name, ProtocolTraffic())
        return found

    def peer(self, peer: PeerId) -> PeerTraffic:
        """The count of a peer."""
        found = self._peers.get(peer)
        if found is None:
            if len(self._peers) >= MAX_COUNTED_PEERS:
                del self._peers[next(iter(self._peers))]
            found = self._peers[peer] = PeerTraffic()
        return found

    @contextmanager
    def asking(self, operation: str) -> Generator[Question]:
        """Count a question to the DHT by how the body ends and what it notes in `Question.found`."""
        question = Question()
        try:
            yield question
        except BaseException:
            self.dht[operation, "failed"] += 1
            raise
        self.dht[operation, "found" if question.found else "nothing"] += 1

    def forget(self, peer: PeerId) -> None:
        """`peer` has gone; what comes later begins at nothing."""
        self._peers.pop(peer, None)

    @property
    def counted_peers(self) -> int:
        """How many peers have a count of their own."""
        return len(self._peers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReport:
    """One connection as it is now.

    Attributes:
        direction: "in" where the peer dialled us, "out" where we did.
        address: the other end's socket, such as "192.0.2.7:4001"; "" where none is seen.
        security, muxer: protocol IDs that were agreed; "" where that is not known.
        age_s: how long it has been there.
        streams: open ones, libp2p's own included.
        bulk: whether it is a second one, for what is large.
    """

    direction: Direction
    address: str
    security: str
    muxer: str
    age_s: float
    streams: int
    bulk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """A peer that is connected.

    Attributes:
        connections: at least one; the oldest first.
        bytes_in, bytes_out: of its streams, since it connected.
        protocols: what it says that it speaks; at most `MAX_COUNTED_PROTOCOLS`, and none before it has said so.
        rtt_s: of the last ping; None before the first.
    """

    peer_id: PeerId
    connections: tuple[ConnectionReport, ...]
    bytes_in: int
    bytes_out: int
    protocols: tuple[str, ...]
    rtt_s: float | None
