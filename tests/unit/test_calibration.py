"""What a call costs is found by running a part of it here, and not more of it than one would have done elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._requester import RunOptions, TaskRun

EACH_RUN_NS = 300_000


@p2p.kernel
def single(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[0]


@p2p.kernel
def together(out, x):  # type: ignore[no-untyped-def]
    some = cuda.shared.array(64, np.float32)
    i = cuda.grid(1)
    some[cuda.threadIdx.x] = x[0]
    cuda.syncthreads()
    out[i] = some[63 - cuda.threadIdx.x]


@dataclass
class Model:
    """A worker that takes so long for an item, does some at once, and takes some time for each run."""

    item_ns: int
    threads: int
    items: list[int] = field(default_factory=list)

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        self.items.append(len(threads))
        wall_ns = EACH_RUN_NS + -(-len(threads) // self.threads) * self.item_ns
        assert wall_ns <= timeout_s * 1e9
        return SimpleNamespace(wall_ns=wall_ns)


async def half_a_reference_core() -> int:
    await trio.lowlevel.checkpoint()
    return 500


def calibrated(kernel: Any, item_ns: int, cores: int) -> tuple[float, Model]:
    async def pool() -> Any:
        await trio.lowlevel.checkpoint()
        return SimpleNamespace(threads=cores)

    task = TaskRun(
        kernel=kernel,
        args=(),
        options=RunOptions(),
        coordinator=cast("Any", None),
        pool=pool,
        score_milli=half_a_reference_core,
        fund=cast("Any", None),
        now_ms=cast("Any", None),
    )
    worker = Model(item_ns, cores)
    binding = kernel.bind(p2p.out(kernel.launch.threads, np.float32), np.ones(1, np.float32))
    return trio.run(task._calibrate, cast("Any", worker), binding), worker


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("item_ns", [1_000, 40_000, 3_000_000, 50_000_000, 2_000_000_000, 14_000_000_000])
@pytest.mark.parametrize("blocks", [1, 2, 5, 4_000])
@pytest.mark.parametrize(("kernel", "threads"), [(single, 1), (single, 128), (together, 64)])
def test_an_item_costs_what_it_takes(kernel: Any, threads: int, blocks: int, item_ns: int, cores: int) -> None:
    units, worker = calibrated(kernel[blocks, threads], item_ns, cores)
    total = blocks * (1 if kernel is together else threads)
    # Some items do not fill all cores alike, and of few of them it can't be told what a run costs beside them.
    share = -(-total // cores) / total
    least, most = item_ns / cores, item_ns * share + EACH_RUN_NS / min(total, 16 * cores)
    assert 0.9 * least <= units * 1_000 * 2 <= 1.1 * most
    # And nobody waits long for it: but for a run of the longest, a second or two.
    runs_ns = sum(EACH_RUN_NS + -(-count // cores) * item_ns for count in worker.items)
    assert runs_ns < 1.5e9 + 12 * item_ns
