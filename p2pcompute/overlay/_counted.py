"""Where libp2p's parts are counted: the swarm's connections and streams, and gossip.

Our own protocols are counted at their streams (`CountedStream`), libp2p's own at theirs, by what they read and
write. Nothing here changes what is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.rcmgr import Direction as Libp2pDirection
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure

from p2pcompute._log import log_event
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import PeerId, peer_id_from_bytes

from ._api import MAX_CONNECTIONS, RECEIVE_BYTES, StreamReset
from ._bulk import BulkSwarm
from ._counters import ConnectionReport, Direction, OverlayCounters, StreamCount
from ._mends import MendedPubsub
from ._muxer import Yamux
from ._streams import Libp2pStream
from .noise import NoiseError, WrongPeer

__all__ = ["CountedPubsub", "CountedStream", "CountedSwarm"]

_log = logging.getLogger("p2pcompute.overlay")

_UNKNOWN = "unknown"
_COUNT = "p2pcompute_count"


class CountedStream(Libp2pStream):
    """A stream of one of our protocols, counted."""

    def __init__(
        self,
        stream: INetStream,
        peer_id: PeerId,
        protocol: str,
        counters: OverlayCounters,
        direction: Direction,
        asked_s: float | None = None,
        on_blame: Callable[[PeerId, ProtocolError], None] = lambda _peer, _exc: None,
    ) -> None:
        super().__init__(stream, peer_id, protocol, on_blame)
        self._count = counters.stream(peer_id, protocol, direction, asked_s=asked_s)

    def never_was(self, why: BaseException) -> None:
        """It ended before it was agreed what it speaks."""
        self._count.ended("broken" if isinstance(why, StreamReset) else "reset")

    async def send_all(self, data: bytes) -> None:
        try:
            await super().send_all(data)
        except StreamReset:
            self._count.ended("broken")
            raise
        except trio.Cancelled:
            self._count.ended("reset")
            raise
        self._count.sent(len(data))

    def send_nowait(self, data: bytes) -> bool:
        try:
            sent = super().send_nowait(data)
        except StreamReset:
            self._count.ended("broken")
            raise
        if sent:
            self._count.sent(len(data))
        return sent

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        try:
            data = await super().receive_some(max_bytes)
        except StreamReset:
            self._count.ended("broken")
            raise
        self._count.received(len(data))
        return data

    async def receive_into(self, buffer: bytearray | memoryview, at_least: int = 1) -> int:
        try:
            size = await super().receive_into(buffer, at_least)
        except StreamReset:
            self._count.ended("broken")
            raise
        self._count.received(size)
        return size

    async def aclose(self) -> None:
        self._count.ended("closed")
        await super().aclose()

    async def reset(self) -> None:
        self._count.ended("reset")
        await super().reset()


class _NetStreamCount:
    """Counts what libp2p's own protocols do at a stream of theirs, once it is known which of them it is.

    Libp2p gives a stream its protocol after negotiation; streams of ours never read or write here after that.
    """

    def __init__(self, counters: OverlayCounters, stream: INetStream, direction: Direction, ours: set[str]) -> None:
        self._counters = counters
        self._stream = stream
        self._direction: Direction = direction
        self._ours = ours
        self._asked_s = counters.clock() if direction == "out" else None
        self._count: StreamCount | None = None
        read, write, reset = stream.read, stream.write, stream.reset

        async def counted_read(n: int | None = None) -> bytes:
            data = await read(n)
            if (count := self._find()) is not None:
                count.received(len(data))
            return data

        async def counted_write(data: bytes) -> None:
            await write(data)
            if (count := self._find()) is not None:
                count.sent(len(data))

        async def counted_reset() -> None:
            self.ended(reset=True)
            await reset()

        for name, method in (("read", counted_read), ("write", counted_write), ("reset", counted_reset)):
            setattr(stream, name, method)

    def _find(self) -> StreamCount | None:
        if self._count is None:
            protocol = self._stream.get_protocol()
            if protocol is None or protocol in self._ours:
                return None
            peer = _peer_of(self._stream.muxed_conn.peer_id)
            if peer is None:
                return None
            self._count = self._counters.stream(peer, protocol, self._direction, asked_s=self._asked_s)
        return self._count

    def ended(self, *, reset: bool = False) -> None:
        """The stream is over."""
        if self._count is not None:
            self._count.ended("reset" if reset else "closed")


class CountedSwarm(BulkSwarm):
    """A swarm that counts its connections, and those that did not come about."""

    def __init__(self, *args: Any, counters: OverlayCounters, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counters = counters
        self.ours: set[str] = set()  # protocols whose streams are counted elsewhere
        self._seen: dict[Any, tuple[PeerId, float]] = {}  # connections, who is there, and since when

    async def upgrade_inbound_raw_conn(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().upgrade_inbound_raw_conn(*args, **kwargs)
        except trio.Cancelled:
            self._counters.handshakes_failed["in", "displaced"] += 1  # or this node stops
            raise
        except Exception as exc:
            self._counters.handshakes_failed["in", _why(exc)] += 1
            raise

    async def _dial_addr_single_attempt(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._dial_addr_single_attempt(*args, **kwargs)
        except Exception as exc:
            self._counters.handshakes_failed["out", _why(exc)] += 1
            raise

    async def notify_connected(self, conn: INetConn) -> None:
        if isinstance(conn.muxed_conn, Yamux):
            await conn.muxed_conn.turn.step()
        peer = _peer_of(conn.muxed_conn.peer_id)
        if peer is not None and isinstance(conn, SwarmConn):
            if len(self._seen) > 2 * MAX_CONNECTIONS:  # of some nobody has said that they ended
                self._seen = {other: seen for other, seen in self._seen.items() if not other.is_closed}
            self._seen[conn] = peer, self._counters.clock()
            report = self.report(conn)
            self._counters.connected[report.direction, report.security or _UNKNOWN] += 1
            if not self.comes_quietly(conn):
                log_event(
                    _log,
                    "peer connected",
                    f"peer …{peer[-8:]} connected, {report.direction}bound, {report.address or 'address unknown'}",
                    peer=peer,
                    direction=report.direction,
                    address=report.address,
                    security=report.security,
                )
        await super().notify_connected(conn)

    async def notify_disconnected(self, conn: INetConn) -> None:
        peer, since_s = self._seen.pop(conn, (None, 0.0))
        if peer is not None:
            age_s = self._counters.clock() - since_s
            if not self.goes_quietly(conn):
                log_event(
                    _log,
                    "peer disconnected",
                    f"peer …{peer[-8:]} disconnected after {age_s:.0f} s",
                    peer=peer,
                    age_s=round(age_s, 3),
                )
            if not any(not other.is_closed for other in self.get_connections(conn.muxed_conn.peer_id)):
                self._counters.forget(peer)
        await super().notify_disconnected(conn)

    async def notify_opened_stream(self, stream: INetStream) -> None:
        initiator = stream.muxed_conn.is_initiator
        # Whose stream it is shows in its number: odd ones are of who dialled (Yamux).
        number = getattr(getattr(stream, "muxed_stream", None), "stream_id", None)
        mine = isinstance(number, int) and bool(number % 2) == bool(initiator)
        count = _NetStreamCount(self._counters, stream, "out" if mine else "in", self.ours)
        setattr(stream, _COUNT, count)  # with the stream, so that it goes with the stream
        await super().notify_opened_stream(stream)

    async def notify_closed_stream(self, stream: INetStream) -> None:
        count = getattr(stream, _COUNT, None)
        if isinstance(count, _NetStreamCount):
            count.ended()
        await super().notify_closed_stream(stream)

    def report(self, conn: SwarmConn) -> ConnectionReport:
        """A connection as it is now."""
        _, since_s = self._seen.get(conn, (None, self._counters.clock()))
        seen: Any = getattr(conn.muxed_conn, "get_remote_address", lambda: None)
        remote: tuple[str, int] | None = seen()
        host = "" if remote is None else f"[{remote[0]}]" if ":" in remote[0] else remote[0]
        return ConnectionReport(
            direction="out" if conn.direction == Libp2pDirection.OUTBOUND else "in",
            address="" if remote is None else f"{host}:{remote[1]}",
            security=conn.get_negotiated_security_protocol() or "",
            muxer=conn.get_negotiated_muxer_protocol() or YAMUX_ID,
            age_s=self._counters.clock() - since_s,
            streams=len(conn.get_streams()),
            bulk=self.is_bulk(conn),
        )

    def reports(self) -> dict[PeerId, list[ConnectionReport]]:
        """All live connections by peer, the oldest first."""
        found: dict[PeerId, list[ConnectionReport]] = {}
        for conn, (peer, _) in self._seen.items():
            if not conn.is_closed:
                found.setdefault(peer, []).append(self.report(conn))
        return found


class CountedPubsub(MendedPubsub):
    """Pubsub that counts messages of others, over which way they come."""

    def __init__(self, *args: Any, counters: OverlayCounters, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._counters = counters

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        self._counters.gossip["published" if msg_forwarder == self.my_id else "received"] += 1
        await super().push_msg(msg_forwarder, msg)


def _peer_of(raw: ID) -> PeerId | None:
    try:
        return peer_id_from_bytes(raw.to_bytes())
    except ProtocolError:
        return None  # no Ed25519 key, so it is about to go


def _why(exc: BaseException) -> str:
    """Why a connection did not come about, in a word out of six."""
    seen = 0
    kinds: list[BaseException] = []
    current: BaseException | None = exc
    while current is not None and seen < 16:
        kinds.append(current)
        current = current.exceptions[0] if isinstance(current, BaseExceptionGroup) else current.__cause__
        seen += 1
    if any(isinstance(kind, trio.TooSlowError | TimeoutError) for kind in kinds) or "timeout" in str(exc):
        return "timeout"
    if any(isinstance(kind, WrongPeer) for kind in kinds):
        return "another-peer"
    if any(isinstance(kind, SecurityUpgradeFailure | NoiseError) for kind in kinds):
        return "security"
    if any(isinstance(kind, MuxerUpgradeFailure) for kind in kinds):
        return "muxer"
    if any(isinstance(kind, OSError | trio.BrokenResourceError) for kind in kinds):
        return "unreachable"
    if isinstance(exc, SwarmException) and "limit" in str(exc):
        return "limit"
    return "other"
