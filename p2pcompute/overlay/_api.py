"""What the rest of p2pcompute knows of the network.

`Overlay` is implemented twice: over libp2p (`open_libp2p`) and in memory under virtual time
(`p2pcompute.testing`). One suite of tests holds both to what is written here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from p2pcompute.errors import OverlayError, StreamError
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import PeerId

from ._counters import OverlayCounters, PeerReport

if TYPE_CHECKING:
    from ._limits_report import LimitsReport

__all__ = [
    "BULK_BYTES",
    "CLOSE_TIMEOUT_S",
    "CONNECT_TIMEOUT_S",
    "KEY_BYTES",
    "MAX_CONNECTIONS",
    "MAX_CONNECTIONS_PER_HOST",
    "MAX_CONNECTIONS_PER_PEER",
    "MAX_GOSSIP_BYTES",
    "MAX_HANDSHAKES",
    "MAX_HANDSHAKES_PER_HOST",
    "MAX_INBOUND_STREAMS_PER_PEER",
    "MAX_PROTOCOL_ID_BYTES",
    "MAX_PROVIDERS",
    "MAX_RECORD_BYTES",
    "MAX_TOPIC_BYTES",
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
]

MAX_CONNECTIONS = 300  # in and out together; more are closed before their handshake
# A host is an IPv4 address or a /64 of IPv6, which is what one customer gets at least. Loopback has no such bounds.
MAX_CONNECTIONS_PER_HOST = 64  # inbound, handshakes included
MAX_HANDSHAKES_PER_HOST = 16  # inbound connections that have not said yet who they are
MAX_HANDSHAKES = 128  # the same over all hosts; one more ends the oldest of them
MAX_CONNECTIONS_PER_PEER = 3  # two nodes that dial each other at once make two; and one for bulk
MAX_INBOUND_STREAMS_PER_PEER = 64  # per protocol; one more is reset
MAX_PROTOCOL_ID_BYTES = 128
MAX_TOPIC_BYTES = 128
MAX_GOSSIP_BYTES = 64 * 1024  # data of one message
MAX_RECORD_BYTES = 16 * 1024  # value of one DHT record
MAX_PROVIDERS = 100  # the most that one look-up gives
KEY_BYTES = 32  # of every DHT key
SUBSCRIPTION_QUEUE = 256  # messages that wait for a slow reader; then the oldest is dropped and counted
RECEIVE_BYTES = 64 * 1024
BULK_BYTES = 1024 * 1024  # a stream that carries so much is one for bulk
CONNECT_TIMEOUT_S = 10.0
STREAM_TIMEOUT_S = 10.0
SEND_STALL_TIMEOUT_S = 60.0  # a send fails when the peer takes no byte for so long
CLOSE_TIMEOUT_S = 0.5  # what a polite close may take before it is cut short


class UnknownProtocol(StreamError):
    """The peer does not speak the protocol that was asked for."""


class StreamReset(StreamError):
    """The stream was reset by the peer or by us, or its connection broke."""


class GossipTooLarge(OverlayError):
    """A message is over `MAX_GOSSIP_BYTES`; publish a digest and serve the rest over a stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerInfo:
    """A peer and the multiaddrs (each ending in ``/p2p/<peer id>``) under which it may be dialled."""

    peer_id: PeerId
    addresses: tuple[str, ...]


class OverlayStream(Protocol):
    """One bidirectional byte stream to an authenticated peer.

    One task may send while another receives; two must not send, nor receive, at once.
    Attributes:
        peer_id: who is at the other end, proven by the handshake.
        protocol: what the stream speaks, such as "/p2pcompute/task/3".
    """

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def protocol(self) -> str: ...

    async def send_all(self, data: bytes) -> None:
        """Send every byte, waiting while the peer does not read.

        Raises:
            StreamError: reset, closed, or the peer took nothing for `SEND_STALL_TIMEOUT_S`.

        Cancellation: resets this stream, since how much was sent is unknown; others on the same connection
        go on.
        """
        ...

    def send_nowait(self, data: bytes) -> bool:
        """Send all of `data` in this step, or nothing: False where the peer's window has no room for it, where it is
        too long for that, or where something is being sent. Then `send_all` waits for what this does not.

        Raises:
            StreamError: reset, or closed.
        """
        ...

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        """1 to `max_bytes` bytes, or b"" once the peer closed its writing side and all was read.

        Raises:
            StreamReset: the peer reset the stream, or the connection broke.

        Cancellation: loses nothing; call again.
        """
        ...

    async def receive_into(self, buffer: bytearray | memoryview, at_least: int = 1) -> int:
        """Receive into `buffer`, and say how many bytes: `at_least`, and up to its length where more is there. Fewer
        than `at_least` only where the peer closed its writing side, and 0 once all was read.

        What comes while this waits is not copied on its way. What it writes to `buffer` before it is cancelled or
        raises means nothing.

        Args:
            buffer: writable bytes, not empty, which must not be resized meanwhile.
            at_least: 1 to ``len(buffer)``.

        Raises:
            StreamReset: the peer reset the stream, or the connection broke; what had come for this call is lost.

        Cancellation: loses nothing; what had come is what the next call gives, of whichever kind.
        """
        ...

    async def close_write(self) -> None:
        """Tell the peer that no more comes; receiving goes on. Does nothing on a broken stream."""
        ...

    async def aclose(self) -> None:
        """Close politely: what was sent is still delivered. Never raises and never waits for the peer."""
        ...

    async def reset(self) -> None:
        """Break the stream in both directions. Never raises."""
        ...

    def blame(self, exc: ProtocolError) -> None:
        """Hold against the peer what it did wrong on this stream: for those who answer it or go on instead of raising
        it out of their handler. `Overlay.blame` says what counts; of one stream only the first does.

        Never raises. A ban that follows breaks the stream.
        """
        ...


StreamHandler: TypeAlias = Callable[[OverlayStream], Awaitable[None]]
GossipValidator: TypeAlias = Callable[[PeerId, bytes], bool]


class Subscription(Protocol):
    """An async iterator over (who published it, data). `dropped` counts what the bounded queue pushed out."""

    @property
    def dropped(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[tuple[PeerId, bytes]]: ...
    async def __anext__(self) -> tuple[PeerId, bytes]: ...


class RecordValidator(Protocol):
    """Decides which DHT records exist. Records prove themselves: the signature is inside the value."""

    def validate(self, key: bytes, value: bytes) -> bool:
        """Whether `value` (up to `MAX_RECORD_BYTES`) may stand under `key` (32 bytes). An exception means no."""
        ...

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The index of the best of `values`, all valid: usually the one with the highest sequence."""
        ...


class Overlay(Protocol):
    """A node on the network. Opened by `open_libp2p` or `p2pcompute.testing.open_memory_overlay`.

    Attributes:
        peer_id: this node.
        addresses: the multiaddrs that it listens on, each ending in ``/p2p/<peer id>``.
        counters: what it has done since it was opened.
    """

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def counters(self) -> OverlayCounters: ...

    async def connect(self, multiaddr: str) -> PeerId:
        """Connect to the peer named at the end of `multiaddr`; at once where there is a connection.

        Afterwards the peer is in the DHT's routing table and among the gossip peers.

        Raises:
            DialError: no such address, nobody there, or somebody else there.
        """
        ...

    async def open_stream(
        self, peer: PeerId, protocol: str, *, bulk: bool = False, timeout_s: float = STREAM_TIMEOUT_S
    ) -> OverlayStream:
        """Open a stream, dialling the peer's known addresses where there is no connection.

        Args:
            peer: whom to speak with.
            protocol: what it is to speak.
            bulk: it will carry `BULK_BYTES` and more: it gets a connection where small messages do not wait behind it,
                if there is one to be had.
            timeout_s: for all of it.

        Raises:
            DialError: not connected and not reachable.
            UnknownProtocol: the peer does not speak it.
            StreamError: it took longer than `timeout_s`, or broke meanwhile.
        """
        ...

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Run `handler` for each stream that a peer opens with `protocol`; replaces an earlier one.

        When it returns the stream is closed. When it raises, that is logged and the stream reset; nothing else
        comes to harm. A `RemoteProtocolError` goes to the stream's `blame`. It is cancelled when the overlay closes.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip `data` to whoever subscribes to `topic`. Our own subscription does not get it.

        Raises:
            GossipTooLarge: `data` is over `MAX_GOSSIP_BYTES`.
        """
        ...

    def subscribe(self, topic: str, validator: GossipValidator) -> AbstractAsyncContextManager[Subscription]:
        """Join `topic` while the context is open. One subscription per topic.

        What `validator` (publisher, data) does not accept is neither delivered nor passed on; an exception in
        it counts as no. The queue holds `SUBSCRIPTION_QUEUE` messages.

        Raises:
            OverlayError: this overlay is subscribed to the topic already.
        """
        ...

    async def dht_provide(self, key: bytes) -> None:
        """Announce that we serve `key` (32 bytes). A hint for others: nothing about it is proven."""
        ...

    async def dht_find_providers(self, key: bytes, limit: int = 20) -> list[PeerInfo]:
        """Up to `limit` peers that say they serve `key`, without ourselves, in no order."""
        ...

    async def dht_put(self, key: bytes, value: bytes) -> None:
        """Store `value` at the peers nearest to `key` (32 bytes).

        Raises:
            RecordRefused: the validator refuses it, it is too large, or a better one is known.
        """
        ...

    async def dht_get(self, key: bytes) -> bytes | None:
        """The best valid value that can be found, or None."""
        ...

    def peers(self) -> frozenset[PeerId]:
        """The peers that we are connected to."""
        ...

    def addresses_of(self, peer: PeerId) -> tuple[str, ...]:
        """Multiaddrs known for `peer`, each ending in ``/p2p/<peer id>``; empty when none is known."""
        ...

    def remote_address(self, peer: PeerId) -> str | None:
        """The IP address at the other end of a live connection to `peer`, of the oldest where there are several.

        It is the socket's, whoever opened the connection, and nothing that the peer says; so it tells where a peer
        is, which `addresses_of` does not. None where we are not connected, or no IP address is seen.
        """
        ...

    def peer_reports(self) -> list[PeerReport]:
        """The peers that we are connected to, with what is known of their connections, in no order."""
        ...

    async def ping(self, peer: PeerId) -> float:
        """How long 32 bytes take to go to `peer` and come back, in seconds; the next `peer_reports` has it too.

        Raises:
            DialError: not connected and not reachable.
            StreamError: it doesn't answer within 5 s, or not as it should.
        """
        ...

    def blame(self, peer: PeerId, exc: ProtocolError) -> None:
        """Hold an error against `peer`, where only a peer that breaks a protocol itself can have caused it: what is
        malformed, oversized, out of order or signed wrongly, or `certain`. An early end, a late answer and all other
        errors count nothing. Whoever calls this has seen to it that `peer` itself said it, and not somebody whose
        words it brings.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`; its streams break. Does nothing when there is none."""
        ...

    def limits_report(self) -> LimitsReport:
        """What strangers take of this node, what was refused to them, and who is banned."""
        ...
