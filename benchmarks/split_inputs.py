"""What a requester sends with and without `p2p.split`, and what a load costs: python benchmarks/split_inputs.py

Whole nodes on a network in memory; bytes are those that the requester puts into its streams to providers, all messages
counted. Speed is that of the CPU back end on one thread, chunk by chunk, windows made beforehand.
"""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._split import blocks_box, fill_window, window_box
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain

SHAPE = (4096, 8192)
MIB = 1 << 20


@p2p.kernel
def five_point(out, x):
    c, r = cuda.grid(2)
    if r < out.shape[0] and c < out.shape[1]:
        out[r, c] = x[r, c] + x[r - 1, c] + x[r + 1, c] + x[r, c - 1] + x[r, c + 1]


class _Counting:
    """A stream that counts what is sent."""

    def __init__(self, stream: Any, count: list[int]) -> None:
        self._stream = stream
        self._count = count

    async def send_all(self, data: bytes) -> None:
        self._count[0] += len(data)
        await self._stream.send_all(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def sent_bytes(image: Any, argument: Any, providers: int, chunks: int) -> int:
    """Bytes that the requester sends for one task."""
    network, chain, count = MemoryNetwork(latency_s=0.01), simulated_chain(), [0]
    async with AsyncExitStack() as stack:
        sellers = [
            await stack.enter_async_context(open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=0.05)))
            for _ in range(providers)
        ]
        node = await stack.enter_async_context(open_simulated_node(network, chain))
        overlay: Any = node.services.overlay
        open_stream = overlay.open_stream

        async def counting(*args: Any, **more: Any) -> Any:
            return _Counting(await open_stream(*args, **more), count)

        overlay.open_stream = counting
        async with trio.open_nursery() as nursery:
            for seller in sellers:
                await node.services.overlay.connect(seller.addresses[0])
                await nursery.start(seller.serve)
            await node.run(five_point, p2p.out(image.shape, image.dtype), argument, chunks=chunks, samples=8)
            nursery.cancel_scope.cancel()
    return count[0]


def kernel_speed(image: Any, split: bool) -> float:
    """Nanoseconds a pixel."""
    binding = five_point.bind(p2p.out(image.shape, image.dtype), p2p.split(image, halo=1) if split else image)
    with CpuBackend(1) as backend:
        compiled = backend.compile(binding.source, binding.launch, binding.specs)
        rows = [np.zeros((binding.launch.grid[0] * binding.launch.threads_per_block,), image.dtype)]
        best = float("inf")
        for _ in range(7):
            first = binding.launch.grid[0] * 3
            value: Any = image
            if split:
                spec: Any = binding.specs[1]
                box = window_box(spec, blocks_box(binding.launch, first, binding.launch.grid[0]))
                value = fill_window(spec, box, [((0, 0), image)])
            began = time.perf_counter_ns()
            compiled.run_blocks(first, binding.launch.grid[0], [value], rows)
            best = min(best, (time.perf_counter_ns() - began) / rows[0].size)
    return best


def main() -> None:
    """Print the tables."""
    image = np.random.default_rng(0).integers(0, 50, SHAPE, dtype=np.uint8)
    say = sys.stdout.write
    say(f"{image.nbytes // MIB} MiB, five points, uint8\n\n| providers | chunks | whole | split | a provider |\n")
    say("|---|---|---|---|---|\n")
    for providers in (1, 2, 4, 8):
        for chunks in (64,):

            def run(argument: Any, providers: int = providers, chunks: int = chunks) -> int:
                clock = trio.testing.MockClock(autojump_threshold=0)
                return trio.run(sent_bytes, image, argument, providers, chunks, clock=clock)

            whole, split = run(image), run(p2p.split(image, halo=1))
            say(f"| {providers} | {chunks} | {whole / MIB:.1f} MiB | {split / MIB:.1f} MiB | ")
            say(f"{split / providers / MIB:.1f} MiB |\n")
    floats = image.astype(np.float32)
    say("\n| input | whole | split |\n|---|---|---|\n")
    for name, values in (("float32", floats), ("uint8", image)):
        one, other = kernel_speed(values, split=False), kernel_speed(values, split=True)
        say(f"| {name} | {one:.2f} ns a pixel | {other:.2f} ns |\n")


if __name__ == "__main__":
    main()
