"""A task that is cancelled in the middle of a chunk, with real workers: both sides keep theirs, and what they have
compiled, for the next task of the same requester."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution import SandboxPolicy, WorkerPool
from p2pcompute.node import Node
from p2pcompute.tasks import Paid
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain

pytestmark = pytest.mark.net

BLOCKS, THREADS = 1024, 32


@p2p.kernel
def steps(out: Any, rounds: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        x = np.uint64(i)
        for _ in range(rounds[i // 32]):
            x = x * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
        out[i] = x


def pool() -> WorkerPool:
    # However busy this machine is, a worker that stops is waited for.
    return WorkerPool(spare=0, keep=4, grace_s=60, policy=SandboxPolicy(bwrap="never"))


def waiting(workers: WorkerPool) -> list[int]:
    """The processes of workers that wait for their tenants."""
    return [kept.process.pid for kept in workers._kept]


async def run(node: Node, rounds: np.ndarray[Any, Any], on_event: Any = None) -> np.ndarray[Any, Any]:
    result = await node.run(
        steps[BLOCKS, THREADS], p2p.out(BLOCKS * THREADS, np.uint64), rounds, chunks=4, on_event=on_event
    )
    assert isinstance(result, np.ndarray)
    return result


def test_the_next_task_finds_the_workers_that_the_cancelled_one_had() -> None:
    cheap = np.full(BLOCKS, 10, np.int64)
    long = cheap.copy()
    long[BLOCKS // 4 :] = 1 << 18  # a quarter of a millisecond a thread: seconds for each chunk but the first
    due: list[bytes] = []

    async def main() -> None:
        network, chain = MemoryNetwork(), simulated_chain()
        ours, theirs = pool(), pool()
        async with (
            open_simulated_node(network, chain, workers=theirs) as provider,  # type: ignore[arg-type]
            open_simulated_node(network, chain, workers=ours) as node,  # type: ignore[arg-type]
            trio.open_nursery() as nursery,
        ):
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            due.append((await run(node, cheap)).tobytes())
            await settled(ours, theirs)
            before = waiting(ours), waiting(theirs)
            with trio.CancelScope() as scope:

                def paid(event: object) -> None:
                    if isinstance(event, Paid):
                        scope.cancel()

                await run(node, long, paid)
            assert scope.cancelled_caught
            await settled(ours, theirs)
            assert (waiting(ours), waiting(theirs)) == before
            due.append((await run(node, cheap)).tobytes())
            await settled(ours, theirs)
            assert (waiting(ours), waiting(theirs)) == before
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert due[0] == due[1]


async def settled(*pools: WorkerPool) -> None:
    """Wait until each has one worker that waits, and none in use."""
    with trio.fail_after(300):
        while any(workers._lent or len(workers._kept) != 1 for workers in pools):  # noqa: ASYNC110
            await trio.sleep(0.01)
