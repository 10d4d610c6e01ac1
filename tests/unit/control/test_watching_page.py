"""docs/watching.md names what there is: each metric, each event of the log, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from p2pcompute.control import metrics_text, node_status

from ..market._harness import Market, compute, in_memory

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "watching.md").read_text()


def table(title: str) -> list[list[str]]:
    """The rows of the table under a heading, as cells."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


def test_the_page_names_every_metric() -> None:
    found: dict[str, set[str]] = {}

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        await compute(requester, chunks=4)
        await provider.services.overlay.dht_get(bytes(32))
        status: dict[str, Any] = await node_status(provider)
        status["provider"]["used"].update(device_ns=1, energy_mj=1)
        text = metrics_text(status, provider.services.overlay) + metrics_text(
            {**status, "provider": None}, requester.services.overlay
        ).replace("p2pcompute_", "p2pcompute_again_")
        for family in text_string_to_metric_families(text):
            name = family.name.replace("_again", "").removeprefix("p2pcompute_")
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            written = name if name.endswith(suffix) else name + suffix
            found.setdefault(written, set()).update(labels)

    in_memory(scenario)
    named: dict[str, str] = {}
    for names, labels, _ in table("Metrics"):
        named |= dict.fromkeys(re.findall(r"`([a-z_]+)`", names), labels)
    assert set(named) == set(found)
    for name, labels in found.items():
        assert all(label in named[name] for label in labels), name


def test_the_page_names_every_event() -> None:
    call = re.compile(r'log_event\(\s*_log,\s*"([a-z ]+)"')
    spoken = re.compile(r'(?:voice|_voice)\.say\(\s*"([a-z ]+)"')
    in_show = re.compile(r'name(?:, old)? = (?:old = )?"([a-z ]+)"')
    found: set[str] = set()
    for folder in ("p2pcompute", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            found.update(call.findall(text), spoken.findall(text))
            if path.name == "_up_says.py":
                found.update(in_show.findall(text))
    assert {"peer connected", "task done", "checkpoint", "stopped", "starting"} <= found
    named = {name for names, _, _ in table("The log") for name in re.findall(r"`([a-z ]+)`", names)}
    assert named == found | {"log"}
