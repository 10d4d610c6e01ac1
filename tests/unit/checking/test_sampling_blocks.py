"""Samples of kernels whose threads work together are blocks; what the requester puts in place is the whole array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.checking import Sampler, block_samples
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain


@p2p.kernel
def sums(result, total, x):
    sm = cuda.shared.array(32, np.float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = x[i]
    cuda.syncthreads()
    s = 16
    while s:
        if tx < s:
            sm[tx] += sm[tx + s]
        cuda.syncthreads()
        s //= 2
    result[i] = x[i] / sm[0]
    if tx == 0:
        total[cuda.blockIdx.x] = sm[0]


X = np.random.default_rng(1).random(64 * 32 - 5, dtype=np.float32)
BLOCKS = 70  # the last ones lie outside
ARGS = (p2p.out(X.shape, X.dtype), p2p.out(64, np.float32), X)


def due() -> tuple[Any, Any]:
    parts = np.zeros((64, 32), np.float32)
    parts.ravel()[: X.size] = X
    s, total = 16, parts.copy()
    while s:
        total[:, :s] += total[:, s : 2 * s]
        s //= 2
    return (parts / total[:, :1]).ravel()[: X.size], total[:, 0]


class _Worker:
    """Runs items in this process."""

    def __init__(self) -> None:
        self.binding = sums[BLOCKS, 32].bind(*ARGS)
        backend = CpuBackend()
        self.kernel = backend.compile(self.binding.source, self.binding.launch, self.binding.specs)
        self.blocks = 0

    def rows(self, items: int) -> list[Any]:
        layout = self.binding.layout
        return [np.zeros((items, *row), out.dtype) for row, out in zip(layout.row_shapes, layout.outputs, strict=True)]

    def output(self) -> bytearray:
        rows = self.rows(BLOCKS)
        self.kernel.run_blocks(0, BLOCKS, self.binding.values, rows)
        return bytearray(b"".join(part.tobytes() for part in rows))

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any:
        self.blocks += len(threads)
        rows = self.rows(len(threads))
        self.kernel.run_threads(threads, self.binding.values, rows)
        return type("Run", (), {"outputs": tuple(part.tobytes() for part in rows)})


def sampler(worker: _Worker, blocks: int) -> Sampler:
    layout = worker.binding.layout
    return Sampler(worker, layout.outputs, layout.row_shapes, per_chunk=blocks, per_probe=blocks)


def test_a_block_is_run_again_as_a_whole() -> None:
    worker = _Worker()
    inside = worker.binding.layout.items_inside(0, BLOCKS)
    assert len(inside) == 64
    output = worker.output()
    assert trio.run(lambda: sampler(worker, 8).check(0, BLOCKS, bytes(output), inside=inside)).ok
    assert worker.blocks == 8
    for place in (0, 31 * 4, 63 * 32 * 4, BLOCKS * 32 * 4, (BLOCKS * 32 + 63) * 4):  # of a thread's rows, of a block's
        changed = output.copy()
        changed[place] ^= 1
        report = trio.run(lambda altered=changed: sampler(worker, 64).check(0, BLOCKS, bytes(altered), inside=inside))
        assert report.mismatched == 1
        assert report.thread == (place // 4 - BLOCKS * 32 if place >= BLOCKS * 128 else place // 128)
    changed = output.copy()
    changed[(64 * 32 + 1) * 4] = 1  # a row of a block that owns nothing
    assert trio.run(lambda: sampler(worker, 8).check(0, BLOCKS, bytes(changed), inside=inside)).thread == 64


@pytest.mark.parametrize(
    ("samples", "threads", "due"),
    [(256, 32, 32), (256, 1024, 32), (256, 4, 64), (256, 1, 256), (16, 64, 8), (3, 64, 3)],
)
def test_so_many_blocks_stand_for_threads(samples: int, threads: int, due: int) -> None:
    assert block_samples(samples, threads) == due
    assert block_samples(samples, threads) * threads >= samples


def test_half_of_the_blocks_made_up_is_found() -> None:
    worker = _Worker()
    inside = worker.binding.layout.items_inside(0, BLOCKS)
    output = worker.output()
    rows = np.frombuffer(output, np.float32, BLOCKS * 32).reshape(BLOCKS, 32)
    rows[::2] += 1
    assert not trio.run(
        lambda: sampler(worker, block_samples(256, 32)).check(0, BLOCKS, bytes(output), inside=inside)
    ).ok


@pytest.mark.parametrize("chunks", [None, 1, 9])
def test_a_node_runs_them_like_any_other(chunks: int | None) -> None:
    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain) as provider,
            open_simulated_node(network, chain) as node,
            trio.open_nursery() as nursery,
        ):
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            found = await node.run(sums[BLOCKS, 32], *ARGS, chunks=chunks)
            for one, other in zip(found, due(), strict=True):
                assert one.tobytes() == other.tobytes()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
