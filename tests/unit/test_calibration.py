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
    """A worker that takes so long for an item, and some time for each run."""

    item_ns: int
    items: list[int] = field(default_factory=list)

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        self.items.append(len(threads))
        assert EACH_RUN_NS + len(threads) * self.item_ns <= timeout_s * 1e9
        return SimpleNamespace(wall_ns=EACH_RUN_NS + len(threads) * self.item_ns)


async def half_a_reference_core() -> int:
    await trio.lowlevel.checkpoint()
    return 500


def calibrated(kernel: Any, item_ns: int) -> tuple[float, Model]:
    task = TaskRun(
        kernel=kernel,
        args=(),
        options=RunOptions(),
        coordinator=cast("Any", None),
        pool=cast("Any", None),
        score_milli=half_a_reference_core,
        fund=cast("Any", None),
        now_ms=cast("Any", None),
    )
    worker = Model(item_ns)
    binding = kernel.bind(p2p.out(kernel.launch.threads, np.float32), np.ones(1, np.float32))
    return trio.run(task._calibrate, cast("Any", worker), binding), worker


@pytest.mark.parametrize("item_ns", [1_000, 40_000, 3_000_000, 50_000_000, 2_000_000_000, 14_000_000_000])
@pytest.mark.parametrize("blocks", [1, 2, 5, 4_000])
@pytest.mark.parametrize(("kernel", "threads"), [(single, 1), (single, 128), (together, 64)])
def test_an_item_costs_what_it_takes(kernel: Any, threads: int, blocks: int, item_ns: int) -> None:
    units, worker = calibrated(kernel[blocks, threads], item_ns)
    # A launch of one item can't be told from what a run of it costs.
    alone = EACH_RUN_NS if blocks * (1 if kernel is together else threads) == 1 else 0
    # Where two runs are as good as equal, as of a microsecond each, it is a hundredth of a run at least.
    assert units == pytest.approx((item_ns + alone) / 1_000 / 2, rel=0.01, abs=EACH_RUN_NS / 1_000 / 100)
    assert sum(worker.items) * item_ns < 1e9 + 24 * item_ns
