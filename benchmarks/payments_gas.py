"""What settling costs in gas, from the snapshot that the contracts' tests hold to the unit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["gas"]

SNAPSHOT = Path(__file__).parents[1] / "tests" / "unit" / "chain" / "gas.json"
CHUNKS = 10_000  # paid over one channel in its life
# Name on the page, of the snapshot's entry, what it is shared by, and what each may cost.
ROWS = (
    ("claim of 1 channel", "hub", "claim 1", 1, 52_000.0),
    ("claim of 10 channels, each", "hub", "claim 10", 10, 18_500.0),
    ("claim of 100 channels, each", "hub", "claim 100", 100, 15_000.0),
    ("opening 100 channels at once, each", "hub", "open 100", 100, 26_500.0),
    ("topping up 100 channels at once, each", "hub", "top up 100", 100, 9_200.0),
    ("a channel's life, alone, per chunk paid", "life of a channel", "alone", CHUNKS, 26.0),
    (
        "a channel's life in batches of 100, per chunk paid",
        "life of a channel",
        "in batches of 100, used up",
        CHUNKS,
        4.2,
    ),
)


def gas(say: Callable[[str], None]) -> Iterator[tuple[str, float, float]]:
    """Name, gas, and the most that it may be; nothing where there is no snapshot."""
    if not SNAPSHOT.exists():
        say(f"no {SNAPSHOT.name}: no figures of gas")
        return
    found = json.loads(SNAPSHOT.read_text())
    for name, part, entry, shared, most in ROWS:
        yield name, found[part][entry] / shared, most
