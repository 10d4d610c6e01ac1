"""Who a running node is connected to, and what it knows of them. Amounts are integers of micro-USD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from p2pcompute.errors import OverlayError
from p2pcompute_protocols import task

if TYPE_CHECKING:
    from p2pcompute.node import Node
    from p2pcompute.overlay import PeerReport
    from p2pcompute.storage import PeerRow
    from p2pcompute_protocols.ads import CapabilityAd
    from p2pcompute_protocols.ids import PeerId

__all__ = ["PeerWatch", "peer_rows"]

MOST_PEERS: Final = 512
FRESH_S: Final = 10.0  # a round trip that was measured so lately is not measured again
PINGS_AT_ONCE: Final = 16
PINGS_S: Final = 1.5  # all pings of one answer together


class PeerWatch:
    """Answers who is there, and remembers when it last asked how far away they are."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pinged_s: dict[PeerId, float] = {}

    async def peers(self, *, ping: bool = True) -> dict[str, Any]:
        """The peers of the node, as JSON-ready values; see `peer_rows`."""
        if ping:
            await self._ping()
        return await peer_rows(self._node)

    async def _ping(self) -> None:
        """Ping those that were not lately; who doesn't answer in time is left out this time."""
        overlay, now_s = self._node.services.overlay, trio.current_time()
        self._pinged_s = {peer: at_s for peer, at_s in self._pinged_s.items() if now_s - at_s < FRESH_S}
        turns = trio.CapacityLimiter(PINGS_AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with turns:
                self._pinged_s[peer] = now_s
                try:
                    await overlay.ping(peer)
                except OverlayError:
                    return  # its round trip stays as it was, or unknown

        with trio.move_on_after(PINGS_S):
            async with trio.open_nursery() as nursery:
                for peer in sorted(overlay.peers())[:MOST_PEERS]:
                    if peer not in self._pinged_s:
                        nursery.start_soon(one, peer)


async def peer_rows(node: Node) -> dict[str, Any]:
    """The connected peers, at most `MOST_PEERS`, and those that this node deals with no more.

    ``peers`` are sorted by how long they have been there. Of each: ``peer``, ``address``, ``direction`` and
    ``security``, ``muxer``, ``age_s`` of its oldest connection, ``connections`` with all of them (one that is ``bulk``
    is for what is large), ``rtt_ms`` or null, ``streams``, ``bytes_in``, ``bytes_out``, ``protocols`` that it speaks,
    ``roles``, ``price_pusd`` where it sells, and ``standing`` with what was paid both ways, or null for a stranger.
    ``banned`` have ``kind`` (peer, host or subnet), ``name``, ``reason`` and ``left_s``: null where it is for good, as
    of who cheated.
    """
    services = node.services
    dealt = {row.peer: row for row in await services.ledger.peers()}
    reports = sorted(services.overlay.peer_reports(), key=lambda report: (-report.connections[0].age_s, report.peer_id))
    ads = {entry.peer_id: entry.ad for entry in services.board.entries()}
    banned: list[dict[str, Any]] = [
        {"kind": "peer", "name": row.peer, "reason": row.banned, "left_s": None}
        for row in dealt.values()
        if row.banned is not None
    ]
    banned += [
        {"kind": ban.subject.kind, "name": ban.subject.name, "reason": ban.reason.value, "left_s": round(ban.left_s)}
        for ban in services.overlay.limits_report().bans
    ]
    return {
        "network": node.network,
        "peer_id": node.peer_id,
        "uptime_s": max(0, node.now_ms() - node.started_ms) / 1000,
        "peer_count": len(reports),
        "peers": [_row(report, ads.get(report.peer_id), dealt.get(report.peer_id)) for report in reports[:MOST_PEERS]],
        "banned": banned[:MOST_PEERS],
    }


def _row(report: PeerReport, ad: CapabilityAd | None, dealt: PeerRow | None) -> dict[str, Any]:
    oldest = report.connections[0]
    options = () if ad is None else ad.options
    roles = ["provider"] if ad is not None or task.PROTOCOL_ID in report.protocols else []
    if dealt is not None and dealt.paid_uusd:
        roles.append("customer")
    return {
        "peer": report.peer_id,
        "address": oldest.address,
        "direction": oldest.direction,
        "security": oldest.security,
        "muxer": oldest.muxer,
        "age_s": round(oldest.age_s, 3),
        "connections": [
            {
                "address": connection.address,
                "direction": connection.direction,
                "security": connection.security,
                "muxer": connection.muxer,
                "age_s": round(connection.age_s, 3),
                "streams": connection.streams,
                "bulk": connection.bulk,
            }
            for connection in report.connections
        ],
        "rtt_ms": None if report.rtt_s is None else round(report.rtt_s * 1000, 3),
        "streams": sum(connection.streams for connection in report.connections),
        "bytes_in": report.bytes_in,
        "bytes_out": report.bytes_out,
        "protocols": list(report.protocols),
        "roles": roles,
        "price_pusd": min((option.price_pusd for option in options), default=None),
        "draining": ad is not None and ad.availability.draining,
        "standing": None
        if dealt is None
        else {
            "paid_us_uusd": dealt.paid_uusd,
            "earned_from_us_uusd": dealt.earned_uusd,
            "failures": dealt.failures,
            "banned": dealt.banned,
        },
    }
