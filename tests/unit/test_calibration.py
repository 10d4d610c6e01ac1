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
    """A worker that takes so long for an item, does some at once, and takes some time for each run. On a machine with
    a `load` of others it has a processor for a part of the time only, unlike from run to run."""

    item_ns: int
    threads: int
    load: tuple[float, ...] = (1.0,)
    items: list[int] = field(default_factory=list)

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        self.items.append(len(threads))
        wall_ns = EACH_RUN_NS + -(-len(threads) // self.threads) * self.item_ns
        assert wall_ns <= timeout_s * 1e9
        share = self.load[len(self.items) % len(self.load)]
        return SimpleNamespace(wall_ns=int(wall_ns * share), cpu_ns=EACH_RUN_NS + len(threads) * self.item_ns)


async def half_a_reference_core() -> int:
    await trio.lowlevel.checkpoint()
    return 500


def calibrated(kernel: Any, item_ns: int, cores: int, load: tuple[float, ...] = (1.0,)) -> tuple[float, Model]:
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
    worker = Model(item_ns, cores, load)
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


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("item_ns", [1_000, 40_000, 3_000_000, 50_000_000])
@pytest.mark.parametrize("load", [(3.0,), (1.0, 8.0), (9.0, 2.0, 5.0)])
def test_a_busy_machine_finds_the_same(item_ns: int, cores: int, load: tuple[float, ...]) -> None:
    quiet, _ = calibrated(single[4_000, 128], item_ns, cores)
    busy, _ = calibrated(single[4_000, 128], item_ns, cores, load)
    assert 0.95 * quiet <= busy <= 1.05 * quiet


def test_the_same_by_wall_time_would_follow_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute._requester.run_ns", lambda run, _: run.wall_ns)
    quiet, _ = calibrated(single[4_000, 128], 40_000, 2)
    busy, _ = calibrated(single[4_000, 128], 40_000, 2, (3.0,))
    assert busy > 2.5 * quiet
