"""A second connection to a peer, for what is large: so that small messages do not wait behind it.

Bytes of one connection arrive in the order in which they were sent, whatever stream they are of, and some megabytes may
be on their way. So streams that carry much are opened on a connection of their own, which whoever dialled the peer
dials once more, at the address that is known to work. Nothing on the wire says what it is for, and nothing need be
said: who is dialled a second time by the same peer may put its own large streams there as well. Where there is no
second connection, for whatever reason, the first one carries everything.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.rcmgr import Direction as Libp2pDirection
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._mends import MendedSwarm
from ._muxer import Yamux

__all__ = ["BULK_IDLE_S", "BulkSwarm"]

_log = logging.getLogger(__name__)

BULK_IDLE_S = 30.0  # a connection for bulk that has carried no stream for so long is closed by who dialled it
DIAL_S = 5.0  # what dialling it may take, before the stream goes on the first one
AGAIN_S = 60.0  # before it is dialled again where that failed, or where it broke
_SWEEP_S = 5.0


class BulkSwarm(MendedSwarm):
    """A swarm that keeps small streams and large ones apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own_bulk: dict[Any, float | None] = {}  # connections that we dialled for bulk; since when they are idle
        self._quiet: set[Any] = set()  # those that nobody was told of, since their peers were there already
        self._bulk_dials: dict[ID, trio.Lock] = {}
        self._no_bulk_until: dict[ID, float] = {}

    def _apart(self, peer_id: ID) -> tuple[Any, list[Any]]:
        """The connection for small streams, None where there is none, and those for bulk, our own first.

        The first is the oldest that was not dialled for bulk. A peer dials a second one for bulk only, so of those that
        it has dialled all but the oldest are. Two nodes that dial each other at once have one of each, and both of
        these are for small streams. Where the first ends, another takes its place.
        """
        live = [conn for conn in self.get_connections(peer_id) if not conn.is_closed]
        first = next((conn for conn in live if conn not in self._own_bulk), live[0] if live else None)
        theirs = [conn for conn in live if not _is_outbound(conn)]
        own = [conn for conn in live if conn in self._own_bulk]
        return first, [conn for conn in (*own, *theirs[1:]) if conn is not first]

    def is_bulk(self, conn: Any) -> bool:
        """Whether large streams are put there, and no small ones."""
        return conn in self._apart(conn.muxed_conn.peer_id)[1]

    def _select_connection(self, connections: list[INetConn], peer_id: ID) -> INetConn:
        """What all streams are opened on but those for bulk, libp2p's own included; its own rule takes the connection
        with the most streams, which may be any."""
        first, bulk = self._apart(peer_id)
        if first in connections:
            return connections[connections.index(first)]
        return next((conn for conn in connections if conn not in bulk), connections[0])

    async def new_bulk_stream(self, peer_id: ID) -> INetStream:
        """A stream for much, on a connection of its own where that can be had.

        Raises:
            SwarmException: the peer is not connected and can't be reached.
        """
        await self.dial_peer(peer_id)  # the first one; at once where there is one
        await self._dial_for_bulk(peer_id)
        _, bulk = self._apart(peer_id)
        for conn in bulk:
            try:
                stream: INetStream = await conn.new_stream()
            except Exception as exc:  # noqa: BLE001 - of whatever kind, libp2p's included: it has ended, or is full
                _log.debug("a connection for bulk to %s takes no stream: %r", peer_id, exc)
            else:
                return stream
        return await self.new_stream(peer_id)

    async def _dial_for_bulk(self, peer_id: ID) -> None:
        """See that there is one, if it is for us to dial it."""
        lock = self._bulk_dials.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                address = self._address_for_bulk(peer_id)
                if address is None:
                    return
                try:
                    with trio.fail_after(DIAL_S):
                        await self.dial_first(peer_id, [address])
                except (SwarmException, trio.TooSlowError) as exc:
                    _log.info("no second connection to %s: %r", peer_id, exc)
                    self._put_off(peer_id)
        finally:
            if not lock.statistics().tasks_waiting:
                self._bulk_dials.pop(peer_id, None)

    def _address_for_bulk(self, peer_id: ID) -> Multiaddr | None:
        """Where to dial it; None where that is not to be done now."""
        live = [conn for conn in self.get_connections(peer_id) if not conn.is_closed]
        if self._apart(peer_id)[1] or len(live) >= self.defence.limits.connections_per_peer:
            return None
        if self._no_bulk_until.get(peer_id, 0.0) > trio.current_time():
            return None
        for conn in live:  # we know that this address works; of a peer that dialled us we know none
            if _is_outbound(conn) and isinstance(conn.muxed_conn, Yamux):
                remote = conn.muxed_conn.get_remote_address()
                if remote is not None:
                    return Multiaddr(f"/ip{6 if ':' in remote[0] else 4}/{remote[0]}/tcp/{remote[1]}")
        return None

    def _put_off(self, peer_id: ID) -> None:
        now = trio.current_time()
        self._no_bulk_until = {peer: until for peer, until in self._no_bulk_until.items() if until > now}
        self._no_bulk_until[peer_id] = now + AGAIN_S

    async def watch_bulk(self) -> NoReturn:
        """Close connections for bulk that nobody uses. Runs until cancelled."""
        while True:
            await trio.sleep(_SWEEP_S)
            await self.close_idle(trio.current_time())

    async def close_idle(self, now: float) -> None:
        """Close those that we dialled and that have been without a stream since `BULK_IDLE_S` before `now`."""
        for conn, idle_since in list(self._own_bulk.items()):
            if conn.get_streams() or not self.is_bulk(conn):
                self._own_bulk[conn] = None
            elif idle_since is None:
                self._own_bulk[conn] = now
            elif now - idle_since >= BULK_IDLE_S:
                del self._own_bulk[conn]
                await conn.close()

    def comes_quietly(self, conn: INetConn) -> bool:
        """Whether a connection that has just come is one for bulk, so that its peer was there already."""
        peer_id = conn.muxed_conn.peer_id
        if peer_id in self._bulk_dials and _is_outbound(conn) and len(self.get_connections(peer_id)) > 1:
            self._own_bulk[conn] = None
        if self.is_bulk(conn):
            self._quiet.add(conn)
        return conn in self._quiet

    def goes_quietly(self, conn: INetConn) -> bool:
        """Whether nobody was told when it came."""
        return conn in self._quiet

    async def notify_connected(self, conn: INetConn) -> None:
        """Tell libp2p's services of a new connection, unless it is one for bulk: they know its peer."""
        if not self.comes_quietly(conn):
            await super().notify_connected(conn)

    async def notify_disconnected(self, conn: INetConn) -> None:
        if conn in self._own_bulk:  # not by us: the peer has no room for it, or the line is bad
            del self._own_bulk[conn]
            self._put_off(conn.muxed_conn.peer_id)
        quiet = self.goes_quietly(conn)
        self._quiet.discard(conn)
        if not quiet or self._apart(conn.muxed_conn.peer_id)[0] is None:
            await super().notify_disconnected(conn)


def _is_outbound(conn: Any) -> bool:
    return isinstance(conn, SwarmConn) and conn.direction == Libp2pDirection.OUTBOUND
