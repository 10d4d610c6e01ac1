"""What `network.py` measures, how an answer becomes quantities, and what ours has to reach."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from _common import Figure, at_least, at_most

__all__ = ["MEASURES", "Line", "Measure", "Quantity", "Samples", "figures", "lines", "quantities"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A number of a measurement."""

    name: str
    unit: str
    more: bool = False  # whether more of it is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One kind of measurement.

    Attributes:
        title: as tables have it.
        unit: what processor time is told for one of; "" where it is not.
        order: what a driving side is asked for in a full run, and in a quick one.
        limit_s: when it is given up.
        main: the quantity that ratios and the picture are of.
    """

    name: str
    title: str
    unit: str
    main: Quantity
    order: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quick: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limit_s: float = 120.0


_FEW = 100  # of less than so many, one in a hundred says nothing
_P50 = Quantity(name="p50", unit="ms")
_ALL = (
    Measure(
        name="bulk",
        title="256 MiB one way",
        unit="MiB",
        main=Quantity(name="rate", unit="MB/s", more=True),
        order={"nbytes": 256 << 20, "check": False},
        quick={"nbytes": 4 << 20, "check": False},
    ),
    Measure(
        name="request",
        title="request and reply of 200 B on a kept stream",
        unit="request",
        main=_P50,
        order={"seconds": 1.0, "most": 2000},
        quick={"seconds": 0.1, "most": 10},
    ),
    Measure(
        name="stream",
        title="request and reply of 200 B on a new stream",
        unit="request",
        main=_P50,
        order={"seconds": 0.5, "most": 300},
        quick={"seconds": 0.1, "most": 3},
    ),
    Measure(
        name="flight",
        title="requests of 200 B, 64 in flight",
        unit="request",
        main=Quantity(name="rate", unit="requests/s", more=True),
        order={"seconds": 1.0, "flight": 64},
        quick={"seconds": 0.1, "flight": 64},
    ),
    Measure(
        name="connect",
        title="connect, and know who the other is",
        unit="connection",
        main=_P50,
        order={"count": 5},
        quick={"count": 1},
    ),
    Measure(
        name="task",
        title="one task that does nothing",
        unit="task",
        main=_P50,
        order={"seconds": 1.0, "most": 300},
        quick={"seconds": 0.1, "most": 2},
    ),
    Measure(
        name="crowd",
        title="10,000 tasks that do nothing, at once",
        unit="task",
        main=Quantity(name="rate", unit="tasks/s", more=True),
        order={"count": 10_000},
        quick={"count": 16},
        limit_s=400.0,
    ),
    Measure(
        name="map",
        title="200 chunks of 20 ms over two workers",
        unit="",
        main=Quantity(name="share", unit="ideal / wall", more=True),
        order={"count": 200},
        quick={"count": 4},
    ),
    Measure(
        name="cold",
        title="cold process to its first result",
        unit="",
        main=Quantity(name="s", unit="s"),
    ),
    Measure(
        name="warm",
        title="the same once more, by the same profile",
        unit="",
        main=Quantity(name="s", unit="s"),
    ),
    Measure(
        name="idle",
        title="memory of the serving side, idle",
        unit="",
        main=Quantity(name="alone", unit="MB"),
    ),
)
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _ALL}

Samples = dict[tuple[str, str], list[dict[str, float]]]
"""By measure and peer, the quantities of each round."""


def quantities(measure: Measure, answer: Mapping[str, Any], drive_s: float, serve_s: float) -> dict[str, float]:
    """The quantities of one answer, with what it cost both sides."""
    found: dict[str, float] = {}
    if "times_ms" in answer:
        times = sorted(answer["times_ms"])
        found["p50"] = statistics.median(times)
        if len(times) >= _FEW:
            found["p99"] = times[round(0.99 * (len(times) - 1))]
    elif measure.name == "bulk":
        found["rate"] = answer["units"] * 1.048576 / answer["s"]
    elif "ideal_s" in answer:
        found["share"] = answer["ideal_s"] / answer["s"]
    else:
        found["rate"] = answer["units"] / answer["s"]
    if measure.unit:
        found["drive"] = drive_s * 1000 / answer["units"]
        found["serve"] = serve_s * 1000 / answer["units"]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A peer in a measure's table: medians over rounds, the range of the main one, and ours over it (or it over ours,
    so that more than 1 is in favour of ours)."""

    peer: str
    rounds: int
    middle: Mapping[str, float]
    least: float
    most: float
    ratio: float | None


def lines(measure: Measure, samples: Samples, peers: Sequence[str], ours: str = "ours") -> list[Line]:
    """The table of a measure, peers in their order."""

    def middle(peer: str) -> dict[str, float]:
        rounds = samples.get((measure.name, peer), [])
        names = dict.fromkeys(name for one in rounds for name in one)
        return {name: statistics.median(one[name] for one in rounds if name in one) for name in names}

    own = middle(ours).get(measure.main.name)
    found = []
    for peer in peers:
        values = middle(peer)
        if not values:
            continue
        main = [one[measure.main.name] for one in samples[measure.name, peer]]
        theirs = values[measure.main.name]
        ratio = None
        if own and theirs and peer != ours:
            ratio = own / theirs if measure.main.more else theirs / own
        found.append(Line(peer=peer, rounds=len(main), middle=values, least=min(main), most=max(main), ratio=ratio))
    return found


_REACH: Mapping[tuple[str, str], float] = {
    ("bulk", "rate"): 1000.0,
    ("request", "p50"): 0.30,
    ("request", "p99"): 1.0,
    ("stream", "p50"): 1.5,
    ("flight", "rate"): 30_000.0,
    ("connect", "p50"): 20.0,
    ("task", "p50"): 1.0,
    ("crowd", "rate"): 6_000.0,
    ("map", "share"): 0.93,
    ("cold", "s"): 5.0,
    ("warm", "s"): 2.5,
    ("idle", "alone"): 95.0,
}
_NOISE_REACH: Mapping[tuple[str, str], float] = {
    ("bulk", "rate"): 600.0,
    ("bulk", "drive"): 1.6,
    ("bulk", "serve"): 1.6,
}
_ASKED_REACH: Mapping[tuple[str, str], float] = {
    ("request", "p50"): 0.30,
    ("request", "p99"): 1.0,
    ("flight", "rate"): 30_000.0,
}
_RATIO_REACH: Mapping[tuple[str, str], float] = {
    ("crowd", "ray"): 9.0,
    ("crowd", "dask"): 20.0,
    ("crowd", "hivemind"): 1.5,
}


_NOISE_ABOVE = ("js", "grpc", "dask", "hivemind")


def figures(samples: Samples, titles: Mapping[str, str]) -> Iterator[Figure]:
    """Everything as lines of `network.json`: medians of each peer, and how ours compares."""
    for measure in _ALL:
        for line in lines(measure, samples, list(titles)):
            reaches = {"ours": _REACH, "noise": _NOISE_REACH, "asked": _ASKED_REACH}.get(line.peer, {})
            for name, value in line.middle.items():
                if not value and name in ("drive", "serve"):
                    continue  # it has no such side: all is on the other
                title, unit, more = _told(measure, name)
                make = at_least if more else at_most
                reach = reaches.get((measure.name, name))
                yield make(f"{titles[line.peer]}: {title}", value, unit, reach)
            if line.ratio is not None and line.peer not in ("noise", "asked"):
                yield at_least(
                    f"p2pcompute beside {titles[line.peer]}: {measure.title}",
                    line.ratio,
                    "ratio",
                    _RATIO_REACH.get((measure.name, line.peer)),
                )

    bulk = MEASURES["bulk"]
    for line in lines(bulk, samples, _NOISE_ABOVE, "noise"):
        if line.ratio is not None:
            yield at_least(f"{titles['noise']} beside {titles[line.peer]}: {bulk.title}", line.ratio, "ratio", 1.0)


def _told(measure: Measure, name: str) -> tuple[str, str, bool]:
    if measure.name == "warm":
        return f"cold process to its first result: {measure.title}", "s", False
    if name == measure.main.name:
        what = f"{measure.title}, p50" if name == "p50" else measure.title
        return what, measure.main.unit, measure.main.more
    if name == "p99":
        return f"{measure.title}, p99", "ms", False
    if name == "all":
        return f"{measure.title}, with its workers", "MB", False
    side = {"drive": "driving", "serve": "serving"}[name]
    return f"{measure.title}, processor time of the {side} side", f"ms/{measure.unit}", False
