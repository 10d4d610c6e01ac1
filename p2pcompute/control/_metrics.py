"""The status as Prometheus metrics (text format 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["metrics_text"]


def metrics_text(status: Mapping[str, Any]) -> str:
    """Metrics of what `node_status` gave. Amounts are in micro-USD, as everywhere; none has a label but `info`."""
    lines: list[str] = []

    def add(name: str, kind: str, help_text: str, value: float, labels: str = "") -> None:
        lines.extend(
            (
                f"# HELP p2pcompute_{name} {help_text}",
                f"# TYPE p2pcompute_{name} {kind}",
                f"p2pcompute_{name}{labels} {value}",
            )
        )

    # Peer IDs are base58 and networks [a-z0-9-]: nothing in them needs escaping.
    labels = f'{{version="{status["version"]}",peer_id="{status["peer_id"]}",network="{status["network"]}"}}'
    add("info", "gauge", "Which node this is.", 1, labels)
    add("uptime_seconds", "gauge", "Time since the node was opened.", status["uptime_s"])
    add("peers", "gauge", "Connected peers.", status["peer_count"])
    add("ads", "gauge", "Ads on the board.", status["ads"])
    totals = status["totals"]
    add("earned_uusd", "counter", "Paid to this node by voucher or on chain.", totals["earned_uusd"])
    add("owed_uusd", "gauge", "Work done here that no voucher covers.", totals["owed_to_us_uusd"])
    add("claimed_uusd", "counter", "Claimed on chain.", totals["claimed_uusd"])
    add("unclaimed_uusd", "gauge", "What a checkpoint would bring now.", totals["unclaimed_uusd"])
    add("spent_uusd", "counter", "Vouchers signed by this node.", totals["spent_uusd"])
    provider = status["provider"]
    if provider is not None:
        tasks = provider["tasks"]
        add("provider_draining", "gauge", "Whether no more work is taken.", int(provider["draining"]))
        add("provider_slots", "gauge", "Chunks that can be computed at once.", provider["slots"])
        add("provider_busy_slots", "gauge", "Chunks being computed.", provider["busy_slots"])
        add("provider_tasks", "gauge", "Tasks under way.", len(tasks))
        used = provider["used"]
        add("provider_cpu_seconds_total", "counter", "Processor time of computed chunks.", used["cpu_ns"] / 1e9)
        add("provider_chunk_seconds_total", "counter", "Wall time of computed chunks.", used["wall_ns"] / 1e9)
        if used["device_ns"]:
            add("provider_device_seconds_total", "counter", "Device time of launches.", used["device_ns"] / 1e9)
        if used["energy_mj"] is not None:
            add("provider_device_joules_total", "counter", "Device energy over chunks.", used["energy_mj"] / 1e3)
        add("provider_score_milli", "gauge", "Measured score.", provider["device"]["score_milli"])
        add("provider_price_pusd", "gauge", "Price of a unit in pico-USD.", provider["price_pusd"])
    return "\n".join(lines) + "\n"
