"""What counting costs: `python benchmarks/counting.py`. Processor time; nothing hangs on it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import trio

from p2pcompute.control import metrics_text
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import OverlayCounters
from p2pcompute.testing import MemoryNetwork, open_memory_overlay

STATUS: dict[str, Any] = {
    "version": "0",
    "peer_id": "12D3Koo",
    "network": "local",
    "uptime_s": 1.0,
    "peer_count": 0,
    "ads": 0,
    "totals": dict.fromkeys(("earned_uusd", "owed_to_us_uusd", "claimed_uusd", "unclaimed_uusd", "spent_uusd"), 0),
    "provider": None,
}


class _NoRecords:
    def validate(self, key: bytes, value: bytes) -> bool:
        del key, value
        return False

    def select(self, key: bytes, values: Any) -> int:
        del key, values
        return 0


async def main(rounds: int) -> dict[str, float]:
    """Nanoseconds of a read and a write, microseconds of a stream, milliseconds of the text for 32 protocols."""
    counters = OverlayCounters()
    peer = NodeKey.generate().peer_id
    stream = counters.stream(peer, "/bench/1", "out", asked_s=counters.clock())
    begun = time.process_time_ns()
    for _ in range(rounds):
        stream.sent(200)
        stream.received(200)
    pair_ns = (time.process_time_ns() - begun) / rounds
    begun = time.process_time_ns()
    for _ in range(rounds // 10):
        one = counters.stream(peer, "/bench/1", "in")
        one.received(1)
        one.ended("closed")
    stream_us = (time.process_time_ns() - begun) / (rounds // 10) / 1e3
    async with open_memory_overlay(MemoryNetwork(), NodeKey.generate(), record_validator=_NoRecords()) as overlay:
        for number in range(32):
            for way in ("in", "out"):
                overlay.counters.stream(peer, f"/bench/{number}", way, asked_s=0.0).received(1)
        begun = time.process_time_ns()
        for _ in range(20):
            metrics_text(STATUS, overlay)
        text_ms = (time.process_time_ns() - begun) / 20 / 1e6
    return {"read_and_write_ns": round(pair_ns), "stream_us": round(stream_us, 2), "text_ms": round(text_ms, 2)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200_000)
    sys.stdout.write(json.dumps(trio.run(main, parser.parse_args().rounds)) + "\n")
