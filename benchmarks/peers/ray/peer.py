"""Ray: for tasks one machine with two workers' places; for bytes two raylets, between which they travel by TCP.

python peer.py serve wire|tasks | drive ADDRESS wire|tasks | cold ADDRESS tasks first|again
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"  # it listens at this machine's address, where others may reach it
os.environ["RAY_AUTH_TOKEN"] = os.environ["P2PCOMPUTE_BENCHMARK_TOKEN"]
os.environ["RAY_raylet_start_wait_time_s"] = "120"  # noqa: SIM112  Ray writes it so
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "shared")  # of the workers

import numpy as np
import ray

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import (
    BLOCK,
    answer,
    blocks,
    calibrated,
    digest_of,
    dispatch,
    end_with_parent,
    ready,
    sampled,
    spin,
    wait_for_end,
)

TURNS = 20_000
STORE = 1 << 30
QUIET = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}


def _serve(kind: str) -> None:
    if kind == "tasks":
        context = ray.init(num_cpus=2, object_store_memory=1 << 28, **QUIET)
        ready(context.address_info["gcs_address"])
        wait_for_end()
        ray.shutdown()
        return
    from ray.cluster_utils import Cluster

    places = {"num_cpus": 1, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=places)
    cluster.add_node(resources={"far": 1}, **places)
    cluster.wait_for_nodes()
    ready(cluster.address)
    wait_for_end()
    cluster.shutdown()


@ray.remote
def _nothing(number: int) -> int:
    return number


@ray.remote
def _spin(turns: int) -> int:
    return spin(turns)


@ray.remote
class _Far:
    """A process at the other raylet."""

    def take(self, data: Any, hashed: bool) -> tuple[int, str]:
        return data.nbytes, hashlib.sha256(data).hexdigest() if hashed else ""


def _drive_wire() -> None:
    far = _Far.options(resources={"far": 1}, num_cpus=0).remote()
    ray.get(far.take.remote(np.zeros(1, np.uint8), False))

    def bulk(*, nbytes: int, check: bool) -> dict[str, Any]:
        data = np.frombuffer(b"".join(blocks(nbytes)), np.uint8) if check else np.zeros(nbytes, np.uint8)
        began = time.perf_counter()
        length, digest = ray.get(far.take.remote(ray.put(data), check))
        spent = time.perf_counter() - began
        if length != nbytes or (check and digest != digest_of(nbytes)):
            raise AssertionError("other bytes came than were sent")
        return {"s": spent, "units": nbytes / BLOCK}

    dispatch({"bulk": bulk})


def _drive_tasks() -> None:
    def task(*, seconds: float, most: int) -> dict[str, Any]:
        ray.get(_nothing.remote(0))
        return sampled(lambda: ray.get(_nothing.remote(0)), seconds=seconds, most=most)

    def crowd(*, count: int) -> dict[str, Any]:
        ray.get([_nothing.remote(number) for number in range(10)])
        began = time.perf_counter()
        found = ray.get([_nothing.remote(number) for number in range(count)])
        spent = time.perf_counter() - began
        if sum(found) != count * (count - 1) // 2:
            raise AssertionError("results are missing")
        return {"s": spent, "units": count}

    def over_two(*, count: int) -> dict[str, Any]:
        turns, chunk_ms = calibrated(spin, TURNS)
        ray.get([_spin.remote(1) for _ in range(4)])
        began = time.perf_counter()
        ray.get([_spin.remote(turns) for _ in range(count)])
        return {"s": time.perf_counter() - began, "ideal_s": count * chunk_ms / 2000, "chunk_ms": chunk_ms}

    dispatch({"task": task, "crowd": crowd, "map": over_two})


if __name__ == "__main__":
    end_with_parent()
    what, *rest = sys.argv[1:]
    if what == "serve":
        _serve(rest[0])
    else:
        ray.init(address=rest[0], **QUIET)
        if what == "cold":
            answer({"ready": ray.get(_nothing.remote(1))})
        elif rest[1] == "tasks":
            _drive_tasks()
        else:
            _drive_wire()
