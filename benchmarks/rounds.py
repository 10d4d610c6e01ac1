"""N-body steps as tasks of their own and as rounds of one task: seconds, bytes on the wire, receipts; prints JSON.

A provider in a process of its own (`p2pcompute up`, with its chain), a requester in this one, the kernel of
examples/nbody.py. Both ways give the same bits, which is checked. Bytes are those that the requester's streams carry,
both directions together, before encryption.

python benchmarks/rounds.py [--stars 2048] [--steps 60] [--chunk 20]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import events

LIMIT_S = 600.0
UP = (sys.executable, "-c", "import sys; from p2pcompute_cli.main import main; sys.exit(main())", "up", "--json")
Array = np.ndarray[Any, Any]


def _example(name: str) -> Any:
    path = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Counted:
    """A stream that counts its bytes."""

    def __init__(self, stream: Any, add: Callable[[int], None]) -> None:
        self._stream = stream
        self._add = add

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def send_all(self, data: bytes) -> None:
        self._add(len(data))
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int = 65_536) -> bytes:
        data: bytes = await self._stream.receive_some(max_bytes)
        self._add(len(data))
        return data


async def measure(stars: int, steps: int, chunk: int) -> dict[str, Any]:
    """Both ways, after one of each to compile; `chunk` rounds to a receipt."""
    nbody = _example("nbody")
    here, speed, mass = nbody.disc(stars)
    args = (mass, np.float32(0.01), np.float32(nbody.SOFTENING))
    carried = receipts = 0

    def add(count: int) -> None:
        nonlocal carried
        carried += count

    def watch(event: events.TaskEvent) -> None:
        nonlocal receipts
        receipts += isinstance(event, events.ChunkDone)

    async def by_tasks(node: p2p.Node, count: int) -> tuple[Array, Array]:
        place, move = here, speed
        shape = p2p.out(here.shape, here.dtype)
        for _ in range(count):
            place, move = await node.run(
                nbody.step, shape, shape, place, move, *args, budget="0.05 USD", on_event=watch
            )
        return place, move

    async def by_rounds(node: p2p.Node, count: int) -> tuple[Array, Array]:
        state = {"here": here, "speed": speed}
        last = await node.iterate(
            nbody.step, rounds=count, state=state, args=args, rounds_per_chunk=chunk, budget="1 USD", on_event=watch
        )
        return last["here"], last["speed"]

    async def timed(call: Callable[[p2p.Node, int], Awaitable[tuple[Array, Array]]], node: p2p.Node) -> tuple[Any, Any]:
        nonlocal carried, receipts
        await call(node, 2)
        carried = receipts = 0
        began = time.perf_counter()
        found = await call(node, steps)
        took_s = time.perf_counter() - began
        return found, {"s": round(took_s, 2), "mib": round(carried / 2**20, 2), "receipts": receipts}

    with trio.fail_after(LIMIT_S):
        async with p2p.open_node() as node:
            overlay: Any = node.services.overlay
            real = overlay.open_stream

            async def open_stream(*given: Any, **named: Any) -> Any:
                return _Counted(await real(*given, **named), add)

            overlay.open_stream = open_stream
            one, tasks = await timed(by_tasks, node)
            other, rounds = await timed(by_rounds, node)
    assert all(np.array_equal(mine, due) for mine, due in zip(one, other, strict=True))
    cores = len(os.sched_getaffinity(0))
    return {"stars": stars, "steps": steps, "chunk": chunk, "cores": cores, "tasks": tasks, "rounds": rounds}


def main() -> None:
    """Start the provider, measure, print, and end it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=2_048)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--chunk", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["P2PCOMPUTE_HOME"] = home
        with subprocess.Popen(UP, stdout=subprocess.PIPE, text=True) as provider:
            assert provider.stdout is not None
            try:
                for line in provider.stdout:
                    if json.loads(line).get("event") == "ready":
                        break
                sys.stdout.write(json.dumps(trio.run(measure, options.stars, options.steps, options.chunk)) + "\n")
            finally:
                provider.send_signal(signal.SIGINT)
                provider.stdout.read()


if __name__ == "__main__":
    main()
