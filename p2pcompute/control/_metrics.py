"""The status and the network's counters as Prometheus metrics (text format 0.0.4).

What is counted is counted elsewhere as plain integers, so that counting costs next to nothing; prometheus_client only
writes it down when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from p2pcompute.overlay import LATENCY_BOUNDS_S, Histogram

if TYPE_CHECKING:
    from p2pcompute.overlay import LimitsReport, Overlay

__all__ = ["metrics_text"]


class _Written(Collector):
    """What is to be written, in the shape of something that is asked for it."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def metrics_text(status: Mapping[str, Any], overlay: Overlay | None = None) -> str:
    """Metrics of what `node_status` gave, and of `overlay`. Amounts are in micro-USD, as everywhere.

    Labels are bounded, whatever strangers do: protocols are those of this node, the rest are words of the code.
    """
    families = [*_node(status), *_provider(status["provider"])]
    if overlay is not None:
        families += [*_connections(overlay), *_streams(overlay), *_questions(overlay)]
    return generate_latest(_Written(families)).decode()


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"p2pcompute_{name}", help_text, value=value)


def _counter(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"p2pcompute_{name}", help_text, value=value)


def _by(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    help_text: str,
    labels: tuple[str, ...],
    values: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = kind(f"p2pcompute_{name}", help_text, labels=labels)
    for names, value in values:
        family.add_metric(names, value)
    return family


def _node(status: Mapping[str, Any]) -> list[Metric]:
    totals = status["totals"]
    info = {name: str(status[name]) for name in ("version", "peer_id", "network")}
    return [
        InfoMetricFamily("p2pcompute_node", "Which node this is.", value=info),
        _gauge("uptime_seconds", "Time since the node was opened.", status["uptime_s"]),
        _gauge("peers", "Connected peers.", status["peer_count"]),
        _gauge("ads", "Ads on the board.", status["ads"]),
        _gauge("earned_uusd", "Paid to this node by voucher or on chain.", totals["earned_uusd"]),
        _gauge("owed_uusd", "Work done here that no voucher covers.", totals["owed_to_us_uusd"]),
        _gauge("claimed_uusd", "Claimed on chain.", totals["claimed_uusd"]),
        _gauge("unclaimed_uusd", "What a checkpoint would bring now.", totals["unclaimed_uusd"]),
        _gauge("spent_uusd", "Vouchers signed by this node.", totals["spent_uusd"]),
    ]


def _provider(provider: Mapping[str, Any] | None) -> list[Metric]:
    if provider is None:
        return []
    used, served = provider["used"], provider["served"]
    found = [
        _gauge("provider_draining", "Whether no more work is taken.", int(provider["draining"])),
        _gauge("provider_slots", "Chunks that can be computed at once.", provider["slots"]),
        _gauge("provider_busy_slots", "Chunks being computed.", provider["busy_slots"]),
        _gauge("provider_tasks", "Tasks under way.", len(provider["tasks"])),
        _counter("provider_tasks_served", "Tasks that were opened here.", served["tasks"]),
        _by(
            CounterMetricFamily,
            "provider_chunks",
            "Receipts for chunks, over results and over failures.",
            ("result",),
            [(("done",), served["chunks"]), (("failed",), served["failed"])],
        ),
        _counter("provider_cpu_seconds", "Processor time of computed chunks.", used["cpu_ns"] / 1e9),
        _counter("provider_chunk_seconds", "Wall time of computed chunks.", used["wall_ns"] / 1e9),
        _gauge("provider_score_milli", "Measured score.", provider["device"]["score_milli"]),
        _gauge("provider_price_pusd", "Price of a unit in pico-USD.", provider["price_pusd"]),
    ]
    if used["device_ns"]:
        found.append(_counter("provider_device_seconds", "Device time of launches.", used["device_ns"] / 1e9))
    if used["energy_mj"] is not None:
        found.append(_counter("provider_device_joules", "Device energy over chunks.", used["energy_mj"] / 1e3))
    return found


def _connections(overlay: Overlay) -> list[Metric]:
    counters = overlay.counters
    live = Counter(
        (connection.direction, connection.security or "unknown")
        for report in overlay.peer_reports()
        for connection in report.connections
    )
    return [
        _by(GaugeMetricFamily, "connections", "Live connections.", ("direction", "security"), live.items()),
        _by(
            CounterMetricFamily,
            "connections_made",
            "Connections whose handshake was done.",
            ("direction", "security"),
            counters.connected.items(),
        ),
        _by(
            CounterMetricFamily,
            "handshakes_failed",
            "Connections that did not come about.",
            ("direction", "reason"),
            counters.handshakes_failed.items(),
        ),
        *_limits(overlay.limits_report()),
    ]


def _limits(report: LimitsReport) -> list[Metric]:
    banned = Counter(ban.subject.kind for ban in report.bans)
    return [
        _gauge("handshakes", "Inbound connections that have not said yet who they are.", report.handshakes),
        _gauge("held_bytes", "Memory that is held for peers.", report.memory_bytes),
        _by(
            GaugeMetricFamily,
            "bans",
            "Bans of the network that stand.",
            ("kind",),
            (((kind,), banned[kind]) for kind in ("peer", "host", "subnet")),
        ),
        _by(
            CounterMetricFamily,
            "refused",
            "What a limit or a ban turned away.",
            ("what",),
            (((str(what),), value) for what, value in sorted(report.refused.items())),
        ),
    ]


def _streams(overlay: Overlay) -> list[Metric]:
    protocols = sorted(overlay.counters.protocols.items())
    replies = HistogramMetricFamily(
        "p2pcompute_first_reply_seconds",
        "From asking for a stream to the first byte on it; negotiation, and a dial where there was one, included.",
        labels=("protocol",),
    )
    handling = HistogramMetricFamily(
        "p2pcompute_handler_seconds", "How long streams that peers opened were served.", labels=("protocol",)
    )
    for name, traffic in protocols:
        for family, histogram in ((replies, traffic.first_reply), (handling, traffic.handling)):
            if histogram.count:
                family.add_metric((name,), _buckets(histogram), histogram.total_s)
    return [
        _by(
            GaugeMetricFamily,
            "streams",
            "Open streams.",
            ("protocol",),
            (((name,), traffic.open) for name, traffic in protocols),
        ),
        _by(
            CounterMetricFamily,
            "streams_opened",
            "Streams, by who opened them.",
            ("protocol", "direction"),
            (((name, way), value) for name, traffic in protocols for way, value in sorted(traffic.opened.items())),
        ),
        _by(
            CounterMetricFamily,
            "streams_ended",
            "Streams that were closed, reset by us, or broken by the peer or with the connection.",
            ("protocol", "end"),
            (((name, end), value) for name, traffic in protocols for end, value in sorted(traffic.ended.items())),
        ),
        _by(
            CounterMetricFamily,
            "received_bytes",
            "Bytes read from streams.",
            ("protocol",),
            (((name,), traffic.bytes_in) for name, traffic in protocols),
        ),
        _by(
            CounterMetricFamily,
            "sent_bytes",
            "Bytes written to streams.",
            ("protocol",),
            (((name,), traffic.bytes_out) for name, traffic in protocols),
        ),
        replies,
        handling,
    ]


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, list[tuple[str, float]]()
    for bound, value in zip((*map(str, LATENCY_BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += value
        buckets.append((bound, total))
    return buckets


def _questions(overlay: Overlay) -> list[Metric]:
    counters = overlay.counters
    return [
        _by(
            CounterMetricFamily,
            "gossip_messages",
            "Gossip: what we published, and what became of what others did.",
            ("outcome",),
            (((outcome,), value) for outcome, value in sorted(counters.gossip.items())),
        ),
        _by(
            CounterMetricFamily,
            "dht_questions",
            "Questions to the DHT.",
            ("operation", "outcome"),
            sorted(counters.dht.items()),
        ),
    ]
