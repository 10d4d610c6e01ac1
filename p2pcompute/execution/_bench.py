"""How fast the workers here are at what kernels mostly do: strict arithmetic, memory, matrix products, replies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio

from p2pcompute._groups import single_error
from p2pcompute.errors import P2PComputeError
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._pool import WorkerPool
from p2pcompute.execution._pool_memory import SharedInput
from p2pcompute.execution._pool_session import WorkerSession, WorkResult
from p2pcompute.execution._probe import compile_score, probe_devices, time_score

__all__ = [
    "REFERENCE_COPY_BYTES_PER_S", "REFERENCE_GEMM_FLOPS", "REFERENCE_MEMORY_BYTES_PER_S", "Benchmark", "benchmark"
]  # fmt: skip

REFERENCE_MEMORY_BYTES_PER_S: Final = 10_000_000_000
"""Memory traffic of 1000 in the ad's scores. A definition; it never changes."""

REFERENCE_GEMM_FLOPS: Final = 1_000_000_000
"""Strict float32 operations a second in a matrix product of 1000 in the ad's scores. A definition likewise."""

REFERENCE_COPY_BYTES_PER_S: Final = 1_000_000_000
"""Bytes of results a second from a device to the host of 1000 in the ad's scores. A definition likewise."""

_TRIAD: Final = 1 << 23  # elements: 32 MiB an array, beyond the caches of common machines
_SIDE: Final = 384
_ROUNDS: Final = 5
_LEAST_ROUNDS: Final = 2
_REPLIES: Final = 200
_LEAST_REPLIES: Final = 20
_TIMEOUT_S: Final = 60.0

_TRIAD_TEXT: Final = """def triad(out, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + np.float32(3.0) * y[i]
"""

_GEMM_TEXT: Final = """def gemm(out, x, y, n):
    i = cuda.grid(1)
    if i < out.size:
        row = i // n
        col = i % n
        total = np.float32(0.0)
        for k in range(n):
            total += x[row * n + k] * y[k * n + col]
        out[i] = total
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What was measured, in a sandboxed worker with all threads that it was given.

    Attributes:
        threads: of the worker.
        score_milli: thousandths of a reference core; what prices are per.
        strict_f32_ops_per_s: additions and multiplications of float32, each rounded by itself.
        memory_bytes_per_s: of ``out = x + 3 y``. A processor's counts the zeroing of the output that comes before, and
            a GPU's does not: its launch alone is timed, which reads two arrays and writes one.
        gemm_flops: multiplications and additions a second of a naive strict matrix product, side 384.
        reply_us: median time from an order to run one block until its result is here, in microseconds.
        copy_bytes_per_s: of a GPU's results on their way to the host, over PCIe or what is in its place; None of a
            processor. The time is that of a run without its launch and without what a run of one block takes beside
            its own. It includes the zeroing of the output on both sides, so the link itself is faster.
        gpu: the GPUs of this machine, as ``cuda:0 NAME, …``; None where no driver shows one.
        took_s: how long all of it took, compilations included, and a worker's start where none was warm.
    """

    threads: int
    score_milli: int
    strict_f32_ops_per_s: int
    memory_bytes_per_s: int
    gemm_flops: int
    reply_us: float
    copy_bytes_per_s: int | None
    gpu: str | None
    took_s: float

    @property
    def scores(self) -> tuple[tuple[int, int], ...]:
        """As an ad holds them, in thousandths of the reference: 1 strict float32, 2 memory, 3 strict matrix product,
        and, of what has to copy its results to the host, 4 that."""
        copies = self.copy_bytes_per_s
        return (
            (1, self.score_milli),
            (2, max(1, self.memory_bytes_per_s * 1000 // REFERENCE_MEMORY_BYTES_PER_S)),
            (3, max(1, self.gemm_flops * 1000 // REFERENCE_GEMM_FLOPS)),
            *([] if copies is None else [(4, max(1, copies * 1000 // REFERENCE_COPY_BYTES_PER_S))]),
        )


async def benchmark(
    pool: WorkerPool, *, progress: Callable[[str], None] = lambda _: None, budget_s: float = 2.0
) -> Benchmark:
    """Measure, in a session of `pool` at the same time as nothing else. With a warm worker that takes 1.3 s on two
    cores of a server, of which half is compiling; a worker's start is a second more.

    Args:
        pool: where workers come from.
        progress: gets what is measured next.
        budget_s: seconds of wall time from the call on, after which nothing is repeated beyond the least: one round of
            strict float32, two each of memory and matrix product, 20 replies. A worker's start, compiling and these
            are not bounded by it.

    Raises what a session raises, and `ExecutionError` where the machine computes different bits the second time.
    """
    started = time.perf_counter()
    until = started + budget_s
    progress("strict float32")
    # In one session: a second worker that starts meanwhile would take of what is measured.
    async with pool.session() as session:
        with ExitStack() as stack:
            with single_error(P2PComputeError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(compile_score, session)
                    ones = np.ones(_TRIAD, dtype=np.float32)
                    shared = stack.enter_context(await SharedInput.make(ones))
            score = await time_score(session, until=until)
            progress("memory and matrix product")
            triad = await _least(session, shared, "triad", _TRIAD_TEXT, _TRIAD, until=until)
            side = ScalarSpec(dtype="int64", value=np.int64(_SIDE))
            gemm = await _least(session, shared, "gemm", _GEMM_TEXT, _SIDE * _SIDE, side, until=until)
        progress("replies")
        replies: list[int] = []
        beside: list[int] = []
        while len(replies) < (_REPLIES if time.perf_counter() < until else _LEAST_REPLIES):
            begun = time.perf_counter_ns()
            run = await session.run_blocks(0, 1, timeout_s=_TIMEOUT_S)
            replies.append(time.perf_counter_ns() - begun)
            beside.append(run.wall_ns - run.device_ns)
    return Benchmark(
        threads=pool.threads,
        score_milli=score.score,
        strict_f32_ops_per_s=score.ops_per_s,
        memory_bytes_per_s=triad.triad_per_s(_TRIAD),
        gemm_flops=int(2 * _SIDE**3 * 1e9 / gemm.compute_ns),
        copy_bytes_per_s=triad.copied_per_s(4 * _TRIAD, beside_ns=min(beside)),
        reply_us=statistics.median(replies) / 1000,
        gpu=", ".join(f"{device.slot} {device.name}" for device in probe_devices() if device.kind == "cuda") or None,
        took_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The least of some runs, each figure by itself.

    Attributes:
        wall_ns: by the clock of who asked.
        device_ns: in a GPU's launches, by its events; 0 of a processor.
        rest_ns: wall time outside of the launches.
    """

    wall_ns: int
    device_ns: int
    rest_ns: int

    @classmethod
    def least(cls, runs: Sequence[WorkResult]) -> Timed:
        """Of runs of the same work."""
        return cls(
            wall_ns=min(run.wall_ns for run in runs),
            device_ns=min(run.device_ns for run in runs),
            rest_ns=min(run.wall_ns - run.device_ns for run in runs),
        )

    @property
    def compute_ns(self) -> int:
        """Of a GPU what its launches took, for what its results take on their way is another figure."""
        return max(1, self.device_ns or self.wall_ns)

    def triad_per_s(self, elements: int) -> int:
        """Bytes a second of a triad over float32: three move in it, and in its zeroing, where that is timed, one."""
        return int((3 if self.device_ns else 4) * 4 * elements * 1e9 / self.compute_ns)

    def copied_per_s(self, nbytes: int, *, beside_ns: int) -> int | None:
        """Bytes a second of an output of `nbytes` from a GPU; its inputs stay there from run to run."""
        return int(nbytes * 1e9 / max(1, self.rest_ns - beside_ns)) if self.device_ns else None


async def _least(
    session: WorkerSession, shared: SharedInput, entry: str, text: str, size: int, *scalars: ScalarSpec, until: float
) -> Timed:
    """The best times of a whole launch over `size` elements, in fewer rounds after `until` of `time.perf_counter`."""
    launch = Launch(grid=(-(-size // 128), 1, 1), block=(128, 1, 1), dims=1)
    values = InputSpec(dtype="float32", shape=(_TRIAD,))
    args: list[ArgSpec] = [OutputSpec(dtype="float32", shape=(size,)), values, values, *scalars]
    source = KernelSource(text=text, entry=entry, digest=source_digest(entry, text))
    await session.compile(source, launch, args, {1: shared, 2: shared})
    runs: list[WorkResult] = []
    while len(runs) < (_ROUNDS if time.perf_counter() < until else _LEAST_ROUNDS):
        runs.append(await session.run_blocks(0, launch.blocks, timeout_s=_TIMEOUT_S))
    return Timed.least(runs)
