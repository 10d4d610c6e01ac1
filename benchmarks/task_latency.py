"""Time of a whole task, the first and the next ones, and of a call of a hire; prints JSON.

A provider in a process of its own (`p2pcompute up`, with its chain), a requester in this one, a SAXPY over 50,000
elements in 4 chunks: order, agreement, channel, chunks, samples, voucher. The first task compiles on both sides and
opens the channel; the next ones find both there. Then a hire, whose calls are a chunk that stores one number: one after
the other, and many at once. Processor time of a call is of each process, ours and the
provider's, without its worker's.

python benchmarks/task_latency.py [--count 20] [--calls 500]
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
from pathlib import Path
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


@p2p.kernel
def nothing(out: Any) -> None:
    """One number from one thread."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = 1


def _used(provider: int) -> tuple[float, float]:
    """Processor time so far, of this process and of the provider's, in seconds."""
    fields = Path(f"/proc/{provider}/stat").read_text().rpartition(")")[2].split()
    return time.process_time(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _each(before: tuple[float, float], after: tuple[float, float], calls: int) -> dict[str, float]:
    names = ("requester", "provider")
    return {
        f"{name}_cpu_us": round((now - then) / calls * 1e6)
        for name, then, now in zip(names, before, after, strict=True)
    }


async def measure_calls(node: p2p.Node, provider: int, calls: int) -> dict[str, Any]:
    """Milliseconds and processor time of `calls` calls of one hire, one after the other, and then at once."""
    asked = (nothing[1, 1], p2p.out((1,), np.int32))
    async with node.hire(*asked, chunks=1, check="none", budget="10 USD") as hired:
        for _ in range(50):  # the window grows
            await hired.run()
        times: list[float] = []
        before = _used(provider)
        for _ in range(calls):
            began = time.perf_counter()
            await hired.run()
            times.append((time.perf_counter() - began) * 1000)
        one = _each(before, _used(provider), calls)
        before, began = _used(provider), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(calls):
                nursery.start_soon(hired.run)
        spent = time.perf_counter() - began
        many = _each(before, _used(provider), calls)
    times.sort()
    return {
        "calls": calls,
        "p50_ms": round(statistics.median(times), 3),
        "p99_ms": round(times[len(times) * 99 // 100], 3),
        **one,
        "at_once": {"calls_per_s": round(calls / spent), **many},
    }


async def measure(count: int, provider: int, calls: int) -> dict[str, Any]:
    """Milliseconds of `1 + count` tasks, one after the other, and what `measure_calls` finds."""
    x = np.arange(50_000, dtype=np.float32)
    times: list[float] = []
    with trio.fail_after(LIMIT_S):
        async with p2p.open_node() as node:
            for _ in range(1 + count):
                began = time.perf_counter()
                z = await node.run(saxpy, p2p.out(x.shape, x.dtype), np.float32(2), x, x, chunks=4)
                times.append((time.perf_counter() - began) * 1000)
                assert np.array_equal(z, 3 * x)
            hired = await measure_calls(node, provider, calls)
    first, rest = times[0], sorted(times[1:])
    return {
        "count": count,
        "cores": len(os.sched_getaffinity(0)),
        "first_ms": round(first),
        "p50_ms": round(statistics.median(rest)),
        "min_ms": round(rest[0]),
        "max_ms": round(rest[-1]),
        "hired": hired,
    }


def main() -> None:
    """Start the provider, measure, print, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--calls", type=int, default=500)
    given = parser.parse_args()
    count, calls = max(1, min(given.count, 200)), max(10, min(given.calls, 20_000))
    with tempfile.TemporaryDirectory() as home:
        os.environ["P2PCOMPUTE_HOME"] = home
        with subprocess.Popen(UP, stdout=subprocess.PIPE, text=True) as provider:
            assert provider.stdout is not None
            try:
                for line in provider.stdout:
                    if json.loads(line).get("event") == "ready":
                        break
                sys.stdout.write(json.dumps(trio.run(measure, count, provider.pid, calls)) + "\n")
            finally:
                provider.send_signal(signal.SIGINT)
                provider.stdout.read()


if __name__ == "__main__":
    main()
