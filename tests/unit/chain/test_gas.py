"""Gas is what it was, to the unit; and within what it may be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .gas import hub_gas, lives, registry_gas

SNAPSHOT = Path(__file__).with_name("gas.json")
CHUNKS = 10_000  # paid on one channel


@pytest.fixture(scope="module")
def snapshot() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(SNAPSHOT.read_text())
    return found


def test_gas_is_that_of_the_snapshot(bench_type: Any) -> None:
    hub = hub_gas(bench_type())
    measured = {"hub": hub, "life of a channel": lives(hub), "registry": registry_gas(bench_type())}
    if os.environ.get("P2PCOMPUTE_WRITE_GAS"):
        SNAPSHOT.write_text(json.dumps(measured, indent=1) + "\n")
    assert measured == json.loads(SNAPSHOT.read_text()), "if that is meant: P2PCOMPUTE_WRITE_GAS=1, and commit gas.json"


@pytest.mark.parametrize(
    ("name", "rows", "most"),
    [
        ("claim 1", 1, 52_000),
        ("claim 10", 10, 18_500),
        ("claim 100", 100, 15_000),
        ("open 100", 100, 26_500),
        ("top up 100", 100, 9_200),
    ],
)
def test_a_channel_of_a_batch_costs_what_it_may(
    snapshot: dict[str, dict[str, int]], name: str, rows: int, most: int
) -> None:
    assert snapshot["hub"][name] <= rows * most


def test_the_life_of_a_channel_costs_what_it_may(snapshot: dict[str, dict[str, int]]) -> None:
    life = snapshot["life of a channel"]
    assert life["alone"] <= 26 * CHUNKS
    assert life["in batches of 100, used up"] <= 4.2 * CHUNKS


def test_the_largest_batches_fit_into_a_transaction(snapshot: dict[str, dict[str, int]]) -> None:
    """EIP-7825 bounds a transaction to 2**24 gas. A batch of forgeries is no dearer than an honest one."""
    hub = snapshot["hub"]
    assert hub["claim 256"] < 2**24 // 2
    assert max(hub["claim 256, all forged"], hub["claim 256, all stale"]) < hub["claim 256"]


def test_the_page_says_what_the_snapshot_says(snapshot: dict[str, dict[str, int]]) -> None:
    page = (Path(__file__).parents[3] / "docs/contracts.md").read_text()
    hub, life = snapshot["hub"], snapshot["life of a channel"]
    rows = {"claim": (1, 10, 100, 256), "open": (1, 10, 100), "top up": (1, 10, 100)}
    for verb, batches in rows.items():
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {verb}") and "each channel" in line)
        said = [int(cell.replace(",", "")) for cell in line.split("|")[2:] if cell.strip().replace(",", "").isdigit()]
        assert said == [round(hub[f"{verb} {rows}"] / rows) for rows in batches]
    for gas in life.values():
        assert f" {gas:,} " in page
        assert f" {gas / CHUNKS:.1f} " in page
