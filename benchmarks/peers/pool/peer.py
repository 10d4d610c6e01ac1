"""multiprocessing.Pool: processes of one program on one machine, by pipes. There is no network in it.

python peer.py serve tasks | drive ADDRESS tasks
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import calibrated, dispatch, end_with_parent, ready, sampled, spin, wait_for_end

TURNS = 20_000


def _nothing(number: int) -> int:
    return number


def _drive() -> None:
    context = multiprocessing.get_context("forkserver")
    with context.Pool(1, end_with_parent) as one, context.Pool(2, end_with_parent) as two:

        def task(*, seconds: float, most: int) -> dict[str, Any]:
            one.apply(_nothing, (0,))
            return sampled(lambda: one.apply(_nothing, (0,)), seconds=seconds, most=most)

        def crowd(*, count: int) -> dict[str, Any]:
            began = time.perf_counter()
            found = one.map(_nothing, range(count), chunksize=1)
            spent = time.perf_counter() - began
            if sum(found) != count * (count - 1) // 2:
                raise AssertionError("results are missing")
            return {"s": spent, "units": count}

        def over_two(*, count: int) -> dict[str, Any]:
            turns, chunk_ms = calibrated(spin, TURNS)
            two.map(spin, [1] * 4, chunksize=1)
            began = time.perf_counter()
            two.map(spin, [turns] * count, chunksize=1)
            return {"s": time.perf_counter() - began, "ideal_s": count * chunk_ms / 2000, "chunk_ms": chunk_ms}

        dispatch({"task": task, "crowd": crowd, "map": over_two})


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] == "serve":
        ready("here")  # a pool is its program's own, so that its workers are on the driving side
        wait_for_end()
    else:
        _drive()
