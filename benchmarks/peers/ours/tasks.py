"""Tasks on p2pcompute: a provider, a second one, the development chain, and a requester, a process each.

The serving side is the provider; the others are its children. `cold` is a requester of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import trio
from side import SPIN_MS, answer, calibrated, commands, ready, wait_for_end

import p2pcompute as p2p
from p2pcompute import cuda

__all__ = ["cold", "drive", "serve"]

HOME = Path(os.environ["P2PCOMPUTE_HOME"])
BUDGET = "1 USD"
WARM = 50  # calls until the window is what it will be
CHUNK_BLOCKS, BLOCK = 64, 256  # of the map: a chunk has 16,384 threads, so that samples are few beside it
NEW_KERNEL = """
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def new(out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = i * 3 + {number}
"""


@p2p.kernel
def nothing(out):
    """One number from one thread."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = 1


@p2p.kernel
def spin(out, turns):
    """Arithmetic that nobody can shorten."""
    i = cuda.grid(1)
    if i < out.size:
        x = np.int32(i)
        for _ in range(turns):
            x = x * np.int32(1664525) + np.int32(1013904223)
        out[i] = x


# Serving


@contextmanager
def _beside(*arguments: str) -> Generator[int]:
    """A process of this program, ready, as long as the context is open."""
    command = [sys.executable, str(Path(__file__).with_name("peer.py")), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"{' '.join(arguments)} did not start")
            yield process.pid
        finally:
            process.kill()


async def _chain() -> None:
    async with p2p.open_node(profile="chain", start_chain=True):
        ready()
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)


async def _provide(profile: str, *apart: int) -> None:
    async with p2p.open_node(profile=profile) as node, trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: node.serve(task_status=task_status, **PROVIDER))
        ready(node.addresses[0], apart)
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


PROVIDER: dict[str, Any] = {"threads": 1, "fp": "strict", "max_window": 64}


def serve(role: str = "first") -> None:
    """Be the chain, a provider, or both providers and the chain."""
    if role == "chain":
        trio.run(_chain)
    elif role == "second":
        trio.run(_provide, "second")
    else:
        # One after the other: the first provider of a machine measures it, and the others find the measurement.
        with _beside("serve", "tasks", "chain") as chain, _beside("serve", "tasks", "second") as second:
            trio.run(_provide, "first", chain, second)


# Driving


async def _once(node: p2p.Node) -> None:
    out = await node.run(nothing[1, 1], p2p.out((1,), np.int32), chunks=1, max_providers=1, check="none", budget=BUDGET)
    assert out[0] == 1


async def _task(node: p2p.Node, *, seconds: float, most: int) -> dict[str, Any]:
    times: list[float] = []
    asked = (nothing[1, 1], p2p.out((1,), np.int32))
    async with node.hire(*asked, chunks=1, check="none", budget=BUDGET) as hired:
        for _ in range(WARM):
            await hired.run()
        end = time.perf_counter() + seconds
        while len(times) < most:
            began = time.perf_counter()
            out = await hired.run()
            now = time.perf_counter()
            assert out[0] == 1
            times.append((now - began) * 1000)
            if now > end:
                break
    return {"times_ms": times, "units": len(times)}


async def _crowd(node: p2p.Node, *, count: int) -> dict[str, Any]:
    async def run(chunks: int) -> None:
        shape = p2p.out((chunks,), np.int32)
        out = await node.run(nothing[chunks, 1], shape, chunks=chunks, max_providers=1, check="none", budget=BUDGET)
        assert out.sum() == chunks

    await run(10)  # as the others' ten tasks before
    began = time.perf_counter()
    await run(count)
    return {"s": time.perf_counter() - began, "units": count}


def _spinning() -> tuple[int, float]:
    """How many turns a thread of a chunk takes so that the chunk takes 20 ms alone, and how long it does take."""
    from p2pcompute.execution._cpu import CpuBackend

    with CpuBackend(1) as backend:
        given = spin[CHUNK_BLOCKS, BLOCK].bind(p2p.out((CHUNK_BLOCKS * BLOCK,), np.int32), np.int32(1))
        compiled = backend.compile(given.source, given.launch, given.specs)
        rows = [np.zeros((CHUNK_BLOCKS * BLOCK,), np.int32)]

        def work(turns: int) -> None:
            values = [np.int32(turns) if isinstance(value, np.integer) else value for value in given.values]
            compiled.run_blocks(0, CHUNK_BLOCKS, values, rows)

        work(1)
        return calibrated(work, 1000)


async def _map(node: p2p.Node, *, count: int) -> dict[str, Any]:
    turns, chunk_ms = await trio.to_thread.run_sync(_spinning)
    size = count * CHUNK_BLOCKS * BLOCK

    from p2pcompute.events import ChunkDone

    who: set[str] = set()

    def note(event: object) -> None:
        if isinstance(event, ChunkDone):
            who.add(event.provider)

    async def run(chunks: int) -> np.ndarray[Any, Any]:
        threads = chunks * CHUNK_BLOCKS * BLOCK
        out: np.ndarray[Any, Any] = await node.run(
            spin[chunks * CHUNK_BLOCKS, BLOCK],
            p2p.out((threads,), np.int32),
            np.int32(turns),
            chunks=chunks,
            max_providers=2,
            budget=BUDGET,
            on_event=note,
        )
        return out

    for _ in range(WARM):
        await run(4)
        if len(who) == 2:  # both have compiled it: one that does long before the other has all four
            break
    began = time.perf_counter()
    out = await run(count)
    spent = time.perf_counter() - began
    assert out.shape == (size,)
    return {"s": spent, "ideal_s": count * chunk_ms / 2000, "chunk_ms": chunk_ms, "wanted_ms": SPIN_MS}


MEASURES: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {"task": _task, "crowd": _crowd, "map": _map}


async def _drive(address: str) -> None:
    async with p2p.open_node(profile="requester", bootstrap=address) as node:
        await _once(node)
        ready()
        lines = commands()
        while (order := await trio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)) is not None:
            answer(await MEASURES[order.pop("do")](node, **order))


def drive(address: str) -> None:
    """Measure what is asked for."""
    trio.run(_drive, address)


def cold(which: str) -> None:
    """A new profile and a kernel that nobody has seen; or, "again", those of the last time."""
    module, note = HOME / "new_kernel.py", HOME / "new_profile"
    if which != "again":
        number = int.from_bytes(os.urandom(3), "big")
        module.write_text(NEW_KERNEL.format(number=number))
        note.write_text(f"cold{number}")
    spec = importlib.util.spec_from_file_location("new_kernel", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    os.environ["P2PCOMPUTE_PROFILE"] = note.read_text()
    out = p2p.run(loaded.new, p2p.out((4096,), np.int32), budget=BUDGET)
    answer({"ready": int(out[1])})
