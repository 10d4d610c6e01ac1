"""The part of `execution.py` that times workers: a small chunk, a large one, the guard, the end of what never ends."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from execution_hand import OPTIONS

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import WorkerTimeout
from p2pcompute.execution import KernelSource, SharedInput, WorkerPool, open_pool
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest

__all__ = ["LargeChunk", "SmallChunk", "guard_ms", "measure_workers"]

Array = np.ndarray[Any, Any]
TIMEOUT_S = 60.0
GRACE_S = 0.25


@p2p.kernel
def nothing(out: Any) -> None:
    """The least that a kernel can do."""
    out[cuda.grid(1)] = 1.0


@p2p.kernel
def add_one(out: Any, x: Any) -> None:
    """Reads and writes every element once."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + 1.0


@p2p.kernel
def endless(out: Any) -> None:
    """It does not end."""
    i = cuda.grid(1)
    n = 1
    while n > 0:
        n = n % 7 + 1
    out[i] = n


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallChunk:
    """A chunk that does nothing, from the call to the result, in microseconds."""

    median_us: float
    best_us: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeChunk:
    """Seconds, least of several: what a worker takes with `nbytes` in and out, and what there is no way around."""

    nbytes: int
    worker_s: float
    copies_s: float


async def measure_workers(
    threads: int, *, small_rounds: int, large_rounds: int, nbytes: int, kills: int, progress: Callable[[str], None]
) -> tuple[SmallChunk, LargeChunk, float]:
    """The two chunks, and milliseconds from the end of the grace period until an endless kernel's process is gone,
    the median of `kills`."""
    async with open_pool(threads=threads, spare=1) as pool:
        progress("a chunk that does nothing")
        small = await _small(pool, small_rounds)
        progress(f"{nbytes >> 20} MiB in and out")
        large = await _large(pool, large_rounds, nbytes)
        ends: list[float] = []
        for _ in range(kills):
            progress("the end of an endless kernel")
            ends.append(await _kill(pool))
    return small, large, statistics.median(ends)


async def _small(pool: WorkerPool, rounds: int) -> SmallChunk:
    times: list[int] = []
    async with pool.session() as session:
        await pool.wait_warm()  # another worker starts in reserve, and is not to be in the way
        binding = nothing[4, 32].bind(p2p.out(128, np.float32))
        await session.compile(binding.source, binding.launch, binding.specs, {})
        for _ in range(rounds + 100):
            began = time.perf_counter_ns()
            await session.run_blocks(0, 1, timeout_s=TIMEOUT_S)
            times.append(time.perf_counter_ns() - began)
    times = times[100:]
    return SmallChunk(median_us=statistics.median(times) / 1000, best_us=min(times) / 1000, rounds=rounds)


async def _large(pool: WorkerPool, rounds: int, nbytes: int) -> LargeChunk:
    size = nbytes // 4
    x = np.ones(size, np.float32)
    loop = _by_hand()
    ours: list[float] = []
    theirs: list[float] = []
    async with pool.session() as session:
        await pool.wait_warm()  # another worker starts in reserve, and is not to be in the way
        binding = add_one.bind(p2p.out(size, np.float32), x)
        for _ in range(1 + rounds):
            theirs.append(_copies(x, loop))
            began = time.perf_counter()
            # An input that a worker has seen before costs nothing: each round brings a new one.
            with await SharedInput.make(x) as shared:
                await session.compile(binding.source, binding.launch, binding.specs, {1: shared})
                result = await session.run_blocks(0, binding.launch.blocks, timeout_s=TIMEOUT_S)
            ours.append(time.perf_counter() - began)
            if result.outputs[0][-4:] != np.float32(2).tobytes():
                raise AssertionError("the worker has computed something else")
            del result
    return LargeChunk(nbytes=nbytes, worker_s=min(ours[1:]), copies_s=min(theirs[1:]))


def _by_hand() -> Callable[[Array, Array], None]:
    @numba.njit(parallel=True, **OPTIONS)
    def loop(out: Any, x: Any) -> None:
        for i in numba.prange(out.size):
            out[i] = x[i] + np.float32(1)

    made: Callable[[Array, Array], None] = loop
    return made


def _copies(x: Array, loop: Callable[[Array, Array], None]) -> float:
    """What no other way of doing it is spared: the input is copied into memory that nobody can change any more, so
    into new pages; the loop runs; the result is copied to where only the node can change it, and is the caller's."""
    began = time.perf_counter()
    given = os.memfd_create("input")
    view, done = memoryview(x).cast("B"), 0
    while done < x.nbytes:
        done += os.pwrite(given, view[done:], done)
    spent = time.perf_counter() - began
    made = os.memfd_create("output")  # reused from chunk to chunk, so its pages are there
    os.ftruncate(made, x.nbytes)
    source = mmap.mmap(given, x.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    target = mmap.mmap(made, x.nbytes)
    out = np.frombuffer(target, np.float32)
    out[:] = 0
    began = time.perf_counter()
    loop(out, np.frombuffer(source, np.float32))
    copied = os.pread(made, x.nbytes, 0)
    spent += time.perf_counter() - began
    os.close(given)
    os.close(made)
    if len(copied) != x.nbytes:
        raise AssertionError("a short read")
    return spent


async def _kill(pool: WorkerPool) -> float:
    async with pool.session() as session:
        await pool.wait_warm()  # another worker starts in reserve, and is not to be in the way
        binding = endless[4, 32].bind(p2p.out(128, np.int64))
        await session.compile(binding.source, binding.launch, binding.specs, {})
        began = time.perf_counter()
        try:
            await session.run_blocks(0, 1, timeout_s=GRACE_S)
        except WorkerTimeout:
            pass
        else:
            raise AssertionError("an endless kernel has ended")
    gone = time.perf_counter()  # the session is left when its process is reaped
    return (gone - began - GRACE_S) * 1000


def guard_ms(rounds: int) -> float:
    """Milliseconds of processor time that the guard takes for a kernel of 100 lines, the least of `rounds`."""
    source = hundred_lines()
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time_ns()
        admit(source)
        best = min(best, (time.thread_time_ns() - began) / 1e6)
    return best


def hundred_lines() -> KernelSource:
    """A kernel of 100 lines of the usual kind: loads, arithmetic, functions, loops and branches."""
    lines = [
        "def long_one(out, x, weights, n, scale):",
        "    i = cuda.grid(1)",
        "    total = 0.0",
        "    count = 0",
    ]
    for part in range(9):
        lines += [
            f"    a{part} = x[i, {part}] * scale + {part}.5",
            f"    for k{part} in range(n):",
            f"        w{part} = weights[k{part}, {part}]",
            f"        if w{part} > 0.0 and a{part} < 1000.0:",
            f"            a{part} = a{part} * 0.5 + math.exp(-w{part} * w{part})",
            f"            count += 1 + (k{part} & 3)",
            f"        elif w{part} < -1.0:",
            f"            a{part} += math.sqrt(w{part} * w{part} + {part}.25) / (1.0 + abs(a{part}))",
            "        else:",
            f"            a{part} = max(a{part}, min(w{part}, 2.0 * scale))",
        ]
    lines += [
        "    for j in range(9):",
        "        total += weights[j, 0] * scale",
        "    total += " + " + ".join(f"a{part}" for part in range(9)),
        "    if i < out.shape[0]:",
        "        out[i] = total / (1 + count)",
        "    return",
    ]
    assert len(lines) == 100
    text = "\n".join(lines) + "\n"
    return KernelSource(text=text, entry="long_one", digest=source_digest("long_one", text))
