"""What a running node says about itself. Amounts are integers of micro-USD; the keys are part of the API."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import p2pcompute
from p2pcompute.storage import ChannelInRow, ChannelOutRow
from p2pcompute.tasks import Usage
from p2pcompute_protocols.money import PUSD_PER_UUSD

if TYPE_CHECKING:
    from p2pcompute.node import Node
    from p2pcompute.overlay import Overlay

__all__ = ["node_status"]

_MOST_PEERS: Final = 200
_TRAFFIC: Final = ("streams", "opened", "bytes_in", "bytes_out")


async def node_status(node: Node) -> dict[str, Any]:
    """The node, its tasks and its money, as JSON-ready values.

    ``earnings`` are per peer that pays us, ``spending`` per peer that we pay, the largest first and at most 200 of
    each; ``totals`` are over all of them.
    """
    services = node.services
    ledger, now_ms = services.ledger, node.now_ms()
    channels_in, channels_out = await ledger.channels_in(), await ledger.channels_out()
    exposed = sum(row.unclaimed_uusd for row in channels_in)
    earnings, spending = _by_peer(channels_in, _earned), _by_peer(channels_out, _spent)
    terms = services.hub.terms
    return {
        "version": p2pcompute.__version__,
        "pid": os.getpid(),
        "network": node.network,
        "peer_id": node.peer_id,
        "addresses": list(node.addresses),
        "uptime_s": max(0, now_ms - node.started_ms) / 1000,
        "peers": sorted(services.overlay.peers())[:_MOST_PEERS],
        "peer_count": len(services.overlay.peers()),
        "traffic": _traffic(services.overlay),
        "ads": sum(1 for _ in services.board.entries()),
        "wallet": "0x" + services.account.address.hex(),
        "chain": {"url": services.chain_url, "chain_id": terms.chain_id, "hub": "0x" + bytes(terms.hub).hex()},
        "provider": _provider(node, now_ms),
        "totals": {
            "earned_uusd": sum(row.paid_uusd for row in channels_in),
            "owed_to_us_uusd": _ceil(sum(row.unpaid_pusd for row in channels_in)),
            "claimed_uusd": sum(row.claimed_uusd for row in channels_in),
            "unclaimed_uusd": exposed,
            "spent_uusd": sum(row.voucher_uusd for row in channels_out),
            "reserved_uusd": sum(row.deposit_uusd for row in channels_out),
            "channels_in": len(channels_in),
            "channels_out": len(channels_out),
        },
        "earnings": earnings,
        "spending": spending,
        "ledger": str(ledger.path) if ledger.path is not None else None,
    }


def _ceil(pusd: int) -> int:
    return -(-pusd // PUSD_PER_UUSD)


def _provider(node: Node, now_ms: int) -> dict[str, Any] | None:
    role = node.provider
    if role is None:
        return None
    return {
        "device": {
            "kind": role.device.kind,
            "name": role.device.name,
            "score_milli": role.device.score_milli,
            "memory_bytes": role.device.memory_bytes,
        },
        "slots": role.device.slots,
        "busy_slots": role.tasks.slots.borrowed_tokens,
        "price_pusd": role.price_pusd,
        "draining": role.tasks.draining,
        "used": _used(role.tasks.used),
        "served": asdict(role.served),
        "programs": [
            {
                "name": program.name,
                "distribution": program.distribution,
                "version": program.version,
                "digest": program.digest.hex(),
                "data": allowed.data,
            }
            for program, allowed in role.programs.items()
        ],
        "tasks": [
            {
                "task": entry.task_id.hex(),
                "requester": entry.requester,
                "chunks_done": entry.chunks_done,
                "chunks_failed": entry.chunks_failed,
                "chunks_stopped": entry.stopped,
                "computing": None
                if entry.chunk is None
                else {"chunk": entry.chunk, "blocks": entry.chunk_blocks, "blocks_done": entry.chunk_blocks_done},
                "used": _used(entry.used),
                "age_s": max(0, now_ms - entry.started_ms) / 1000,
            }
            for entry in role.tasks.active.values()
        ],
    }


def _traffic(overlay: Overlay) -> dict[str, Any]:
    """What went over the network since the node was opened, by protocol and in all."""
    protocols = {
        name: {
            "streams": traffic.open,
            "opened": traffic.opened.total(),
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
        }
        for name, traffic in sorted(overlay.counters.protocols.items())
    }
    total = {name: sum(one[name] for one in protocols.values()) for name in _TRAFFIC}
    return {**total, "protocols": protocols}


def _used(usage: Usage) -> dict[str, Any]:
    return {
        "cpu_ns": usage.cpu_ns,
        "wall_ns": usage.wall_ns,
        "device_ns": usage.device_ns,
        "energy_mj": usage.energy_mj,
    }


def _earned(row: ChannelInRow) -> dict[str, int]:
    return {
        "earned_uusd": row.paid_uusd,
        "owed_uusd": _ceil(row.unpaid_pusd),
        "claimed_uusd": row.claimed_uusd,
        "deposit_uusd": row.deposit_uusd,
    }


def _spent(row: ChannelOutRow) -> dict[str, int]:
    return {
        "paid_uusd": row.voucher_uusd,
        "accepted_uusd": row.accepted_uusd,
        "claimed_uusd": row.claimed_uusd,
        "deposit_uusd": row.deposit_uusd,
    }


def _by_peer(rows: list[Any], amounts: Any) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        total = found.setdefault(row.peer, {"peer": row.peer})
        for name, amount in amounts(row).items():
            total[name] = total.get(name, 0) + amount
    ranked = sorted(
        found.values(), key=lambda total: (-next(v for k, v in total.items() if k != "peer"), total["peer"])
    )
    return ranked[:_MOST_PEERS]
