"""For tests of what is built on p2pcompute: a network in memory, under virtual time.

async def main():
    network = MemoryNetwork(latency_s=0.02)
    async with (
        open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as a,
        open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as b,
    ):
        await a.connect(b.addresses[0])

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
"""

from __future__ import annotations

from ._memory_overlay import (
    MemoryNetwork,
    MemoryOverlay,
    open_memory_overlay,
)

__all__ = ["MemoryNetwork", "MemoryOverlay", "open_memory_overlay"]
