"""A worker that answers at once is waited for without a sleep; one that does not, and other tasks, never pay for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution import _pool_process as process
from p2pcompute.execution import open_pool
from p2pcompute.execution._pool_process import WorkerProcess
from p2pcompute.kernel import out

RUNS = 4 * (process._WITHOUT_TURN + 1)
EVER_NS = 10**12


@p2p.kernel
def ones(got):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < got.size:
        got[i] = 1


def looked_and_slept(monkeypatch: pytest.MonkeyPatch, *, quick_ns: int, spin_ns: int) -> tuple[int, int]:
    """Of `RUNS` short runs, how often the reply was looked for again without a sleep, and how often one came behind a
    sleep."""
    seen = {"looked": 0, "slept": 0}
    receive, give_way = WorkerProcess._receive, process.os.sched_yield

    async def slept(self: WorkerProcess, request: int) -> Any:
        seen["slept"] += 1
        return await receive(self, request)

    def looked() -> None:
        seen["looked"] += 1
        give_way()

    async def main() -> None:
        binding = ones.bind(out((1,), np.int32))
        async with open_pool(spare=0) as pool, pool.session() as session:
            await session.compile(binding.source, binding.launch, binding.specs, {})
            await session.run_blocks(0, 1, timeout_s=60)
            seen.update(looked=0, slept=0)
            for _ in range(RUNS):
                run = await session.run_blocks(0, 1, timeout_s=60)
                assert np.frombuffer(run.outputs[0], np.int32)[0] == 1

    monkeypatch.setattr(WorkerProcess, "_receive", slept)
    monkeypatch.setattr(process.os, "sched_yield", looked)
    monkeypatch.setattr(process, "_QUICK_NS", quick_ns)
    monkeypatch.setattr(process, "_SPIN_NS", spin_ns)
    trio.run(main)
    return seen["looked"], seen["slept"]


def test_a_quick_worker_is_looked_for_and_others_still_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    _, slept = looked_and_slept(monkeypatch, quick_ns=EVER_NS, spin_ns=EVER_NS)
    assert RUNS // (process._WITHOUT_TURN + 1) - 1 <= slept <= RUNS // (process._WITHOUT_TURN + 1) + 1


def test_one_that_was_slow_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_and_slept(monkeypatch, quick_ns=0, spin_ns=EVER_NS)[0] == 0


def test_where_a_look_was_in_vain_the_next_replies_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a worker whose replies all come soon, but later than a look lasts."""
    reply_at_once, take_frame = WorkerProcess._reply_at_once, WorkerProcess._take_frame
    seen = {"looking": 0, "looks": 0}

    async def at_once(self: WorkerProcess, request: int) -> Any:
        seen["looking"] = 1
        packet = await reply_at_once(self, request)
        seen["looks"] += seen["looking"] > 2  # the first one is no look
        seen["looking"] = 0
        return packet

    def take(self: WorkerProcess) -> Any:
        if not seen["looking"]:
            return take_frame(self)
        seen["looking"] += 1
        return None

    monkeypatch.setattr(WorkerProcess, "_reply_at_once", at_once)
    monkeypatch.setattr(WorkerProcess, "_take_frame", take)
    looked, slept = looked_and_slept(monkeypatch, quick_ns=EVER_NS, spin_ns=10**6)
    assert looked > 0
    assert slept == RUNS
    assert 1 <= seen["looks"] <= 2 + RUNS // process._UNLOOKED
