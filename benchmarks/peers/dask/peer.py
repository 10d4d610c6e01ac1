"""Dask's distributed with TLS: a scheduler and two workers of one thread each, processes of their own, and a client.

python peer.py serve wire|tasks | drive ADDRESS wire|tasks | cold ADDRESS tasks first|again
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

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


def _security() -> Any:
    from distributed.security import Security

    certificate, key = os.environ["P2PCOMPUTE_BENCHMARK_CERTIFICATE"], os.environ["P2PCOMPUTE_BENCHMARK_KEY"]
    sides = {
        f"tls_{role}_{what}": path
        for role in ("scheduler", "worker", "client")
        for what, path in (("cert", certificate), ("key", key))
    }
    return Security(tls_ca_file=certificate, require_encryption=True, **sides)


def _quiet() -> None:
    import dask

    # Memory is not what is looked at here, and a worker that spills or pauses would only spoil figures.
    dask.config.set(
        {
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.memory.terminate": False,
            "distributed.admin.tick.limit": "1h",
        }
    )


def _serve() -> None:
    from distributed import LocalCluster

    _quiet()
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        protocol="tls://",
        host="127.0.0.1",
        security=_security(),
        dashboard_address=None,
        memory_limit=0,
    ) as cluster:
        ready(cluster.scheduler_address)
        wait_for_end()


def _client(address: str) -> Any:
    from distributed import Client

    return Client(address, security=_security(), timeout=60)


def _nothing(number: int) -> int:
    return number


def _length_and_digest(data: bytes, hashed: bool) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest() if hashed else ""


def _drive(address: str) -> None:
    _quiet()
    with _client(address) as client:
        first = next(iter(client.scheduler_info()["workers"]))

        def bulk(*, nbytes: int, check: bool) -> dict[str, Any]:
            data = b"".join(blocks(nbytes)) if check else bytes(nbytes)
            began = time.perf_counter()
            there = client.scatter(data, workers=[first], direct=True, hash=False)
            spent = time.perf_counter() - began
            length, digest = client.submit(_length_and_digest, there, check, workers=[first], pure=False).result()
            if length != nbytes or (check and digest != digest_of(nbytes)):
                raise AssertionError("other bytes came than were sent")
            return {"s": spent, "units": nbytes / BLOCK}

        def task(*, seconds: float, most: int) -> dict[str, Any]:
            client.submit(_nothing, 0, pure=False).result()
            return sampled(lambda: client.submit(_nothing, 0, pure=False).result(), seconds=seconds, most=most)

        def crowd(*, count: int) -> dict[str, Any]:
            client.gather(client.map(_nothing, range(10), pure=False, workers=[first]))
            began = time.perf_counter()
            found = client.gather(client.map(_nothing, range(count), pure=False, workers=[first]))
            spent = time.perf_counter() - began
            if sum(found) != count * (count - 1) // 2:
                raise AssertionError("results are missing")
            return {"s": spent, "units": count}

        def over_two(*, count: int) -> dict[str, Any]:
            turns, chunk_ms = calibrated(spin, TURNS)
            client.gather(client.map(spin, [1] * 4, pure=False))
            began = time.perf_counter()
            client.gather(client.map(spin, [turns] * count, pure=False))
            return {"s": time.perf_counter() - began, "ideal_s": count * chunk_ms / 2000, "chunk_ms": chunk_ms}

        dispatch({"bulk": bulk, "task": task, "crowd": crowd, "map": over_two})


def _cold(address: str) -> None:
    with _client(address) as client:
        answer({"ready": client.submit(_nothing, 1, pure=False).result()})


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] == "serve":
        _serve()
    elif sys.argv[1] == "drive":
        _drive(sys.argv[2])
    else:
        _cold(sys.argv[2])
