"""Work in rounds for tests: kernels, what they give, and the scenarios that are played in memory and on libp2p."""

from __future__ import annotations

from typing import Any

import numpy as np

import p2pcompute as p2p
from p2pcompute import cuda

from ..market._harness import Watch

__all__ = ["SIZE", "START", "drift", "expected", "iterate"]

SIZE = 500
Array = np.ndarray[Any, Any]


@p2p.kernel
def drift(new_x, new_v, x, v, dt, round_number):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new_x.size:
        j = (i + 1) % new_x.size
        new_v[i] = v[i] + dt * (x[j] - x[i])
        new_x[i] = x[i] + dt * v[i] + np.float32(round_number)


START = {
    "x": np.linspace(-1, 1, SIZE, dtype=np.float32),
    "v": np.linspace(2, 0, SIZE, dtype=np.float32),
}
DT = np.float32(0.125)


def expected(rounds: int, start: dict[str, Array] | None = None, first: int = 0) -> dict[str, Array]:
    x, v = (start or START)["x"], (start or START)["v"]
    for number in range(first, rounds):
        x, v = x + DT * v + np.float32(number), v + DT * (np.roll(x, -1) - x)
    return {"x": x, "v": v}


async def iterate(node: p2p.Node, rounds: int = 40, watch: Watch | None = None, **options: Any) -> dict[str, Array]:
    chosen = {"rounds_per_chunk": 8, "on_event": watch, "budget": "0.50 USD", **options}
    return await node.iterate(drift, rounds=rounds, state=START, args=(DT,), **chosen)
