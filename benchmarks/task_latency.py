"""Time of a whole task, the first and the next ones: order, agreement, channel, chunk, samples, voucher; prints JSON.

A provider in a process of its own (`p2pcompute up`, with its chain), a requester in this one, a SAXPY over 50,000
elements in 4 chunks. The first task compiles on both sides and opens the channel; the next ones find both there.

python benchmarks/task_latency.py [--count 20]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda

LIMIT_S = 180.0
UP = (sys.executable, "-c", "import sys; from p2pcompute_cli.main import main; sys.exit(main())", "up", "--json")


@p2p.kernel
def saxpy(out: Any, a: Any, x: Any, y: Any) -> None:
    """out = a x + y"""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


async def measure(count: int) -> dict[str, Any]:
    """Milliseconds of `1 + count` tasks, one after the other."""
    x = np.arange(50_000, dtype=np.float32)
    times: list[float] = []
    with trio.fail_after(LIMIT_S):
        async with p2p.open_node() as node:
            for _ in range(1 + count):
                began = time.perf_counter()
                z = await node.run(saxpy, p2p.out(x.shape, x.dtype), np.float32(2), x, x, chunks=4)
                times.append((time.perf_counter() - began) * 1000)
                assert np.array_equal(z, 3 * x)
    first, rest = times[0], sorted(times[1:])
    return {
        "count": count,
        "cores": len(os.sched_getaffinity(0)),
        "first_ms": round(first),
        "p50_ms": round(statistics.median(rest)),
        "min_ms": round(rest[0]),
        "max_ms": round(rest[-1]),
    }


def main() -> None:
    """Start the provider, measure, print, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    count = max(1, min(parser.parse_args().count, 200))
    with tempfile.TemporaryDirectory() as home:
        os.environ["P2PCOMPUTE_HOME"] = home
        with subprocess.Popen(UP, stdout=subprocess.PIPE, text=True) as provider:
            assert provider.stdout is not None
            try:
                for line in provider.stdout:
                    if json.loads(line).get("event") == "ready":
                        break
                sys.stdout.write(json.dumps(trio.run(measure, count)) + "\n")
            finally:
                provider.send_signal(signal.SIGINT)
                provider.stdout.read()


if __name__ == "__main__":
    main()
