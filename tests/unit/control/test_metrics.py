"""What `/metrics` says can be read by Prometheus, is true, and has no more labels than this node's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import trio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from p2pcompute.control import metrics_text, node_status
from p2pcompute.errors import StreamError
from p2pcompute.overlay import LATENCY_BOUNDS_S, OverlayStream
from p2pcompute_protocols import negotiation, task

from ..market._harness import Market, compute, in_memory


def parsed(text: str) -> dict[str, Metric]:
    assert text.endswith("\n")
    return {family.name.removeprefix("p2pcompute_"): family for family in text_string_to_metric_families(text)}


def value(families: Mapping[str, Metric], sample: str, **labels: str) -> float:
    found = [
        one.value
        for family in families.values()
        for one in family.samples
        if one.name == f"p2pcompute_{sample}" and one.labels == labels
    ]
    assert len(found) == 1, (sample, labels, found)
    return found[0]


def labels(families: Mapping[str, Metric], family: str, label: str) -> set[str]:
    return {sample.labels[label] for sample in families[family].samples}


def a_status(provider: Mapping[str, Any] | None) -> dict[str, Any]:
    totals = dict.fromkeys(
        ("earned_uusd", "owed_to_us_uusd", "claimed_uusd", "unclaimed_uusd", "spent_uusd", "reserved_uusd"), 7
    )
    return {
        "version": "0.1.0",
        "peer_id": "12D3",
        "network": 'lo"cal',
        "uptime_s": 1.5,
        "peer_count": 2,
        "ads": 3,
        "totals": totals,
        "provider": provider,
    }


PROVIDER = {
    "draining": True,
    "slots": 2,
    "busy_slots": 1,
    "tasks": [{}],
    "served": {"tasks": 5, "chunks": 40, "failed": 1, "billed_uusd": 9},
    "device": {"score_milli": 2944},
    "price_pusd": 13,
    "used": {"cpu_ns": 2_500_000_000, "wall_ns": 2_000_000_000, "device_ns": 0, "energy_mj": None},
}


def test_the_status_is_prometheus_text() -> None:
    plain = parsed(metrics_text(a_status(None)))
    full = parsed(metrics_text(json.loads(json.dumps(a_status(PROVIDER)))))
    assert plain.keys() < full.keys()
    assert full["earned_uusd"].type == "gauge"  # a deposit that the chain takes back takes it along
    assert value(full, "earned_uusd") == 7
    assert value(full, "owed_uusd") == 7
    assert value(full, "node_info", version="0.1.0", peer_id="12D3", network='lo"cal') == 1
    assert value(full, "provider_draining") == 1
    assert value(full, "provider_tasks") == 1
    assert value(full, "provider_tasks_served_total") == 5
    assert value(full, "provider_chunks_total", result="done") == 40
    assert value(full, "provider_cpu_seconds_total") == 2.5
    assert "provider_device_joules" not in full
    used = {"cpu_ns": 0, "wall_ns": 0, "device_ns": 1_500_000_000, "energy_mj": 7_250}
    on_device = parsed(metrics_text(a_status({**PROVIDER, "used": used})))
    assert value(on_device, "provider_device_seconds_total") == 1.5
    assert value(on_device, "provider_device_joules_total") == 7.25


def test_the_network_is_in_it_as_it_was() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        await compute(requester, chunks=4)
        overlay = requester.services.overlay
        found = parsed(metrics_text(await node_status(requester), overlay))
        assert value(found, "connections", direction="out", security="memory") == 1
        assert value(found, "connections_made_total", direction="out", security="memory") == 1
        assert labels(found, "streams", "protocol") >= {negotiation.PROTOCOL_ID, task.PROTOCOL_ID}
        traffic = overlay.counters.protocols[task.PROTOCOL_ID]
        assert value(found, "sent_bytes_total", protocol=task.PROTOCOL_ID) == traffic.bytes_out > 0
        assert value(found, "received_bytes_total", protocol=task.PROTOCOL_ID) == traffic.bytes_in > 0
        assert value(found, "streams_opened_total", protocol=task.PROTOCOL_ID, direction="out") == 1
        replies = found["first_reply_seconds"]
        assert replies.type == "histogram"
        buckets = [
            (float(one.labels["le"]), one.value)
            for one in replies.samples
            if one.name.endswith("_bucket") and one.labels["protocol"] == task.PROTOCOL_ID
        ]
        assert [bound for bound, _ in buckets] == [*LATENCY_BOUNDS_S, float("inf")]
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert counts[-1] == 1
        assert value(found, "first_reply_seconds_count", protocol=task.PROTOCOL_ID) == 1
        assert value(found, "first_reply_seconds_sum", protocol=task.PROTOCOL_ID) == traffic.first_reply.total_s > 0
        there = parsed(metrics_text(await node_status(provider), provider.services.overlay))
        assert value(there, "received_bytes_total", protocol=task.PROTOCOL_ID) == traffic.bytes_out
        assert value(there, "provider_tasks_served_total") == 1
        assert value(there, "provider_chunks_total", result="done") == 4
        assert sum(one.value for one in there["gossip_messages"].samples) > 0

    in_memory(scenario)


def test_strangers_add_no_labels() -> None:
    """Protocols are a stranger's words until somebody here handles them."""

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        stranger = await market.node(connect=(provider,))
        before = metrics_text(await node_status(provider), provider.services.overlay)

        async def hold(stream: OverlayStream) -> None:
            await stream.receive_some()

        for number in range(300):
            try:
                await stranger.services.overlay.open_stream(provider.peer_id, f"/mine/{number}/1")
            except StreamError:
                continue
            raise AssertionError("nobody handles that")
        stranger.services.overlay.handle("/mine/1", hold)
        after = metrics_text(await node_status(provider), provider.services.overlay)
        assert labels(parsed(after), "streams", "protocol") == labels(parsed(before), "streams", "protocol")
        assert "/mine/" not in after
        assert len(provider.services.overlay.counters.protocols) < 64

    in_memory(scenario)


def test_a_node_without_traffic_says_so_too() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node()
        found = parsed(metrics_text(await node_status(node), node.services.overlay))
        assert found["connections"].samples == []
        assert value(found, "peers") == 0
        await trio.lowlevel.checkpoint()

    in_memory(scenario)
