"""For tests of what is built on p2pcompute: a network in memory and whole nodes on it, under virtual time.

async def main():
    network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
    async with (
        open_simulated_node(network, chain) as provider,
        open_simulated_node(network, chain) as node,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(provider.serve)
        await node.services.overlay.connect(provider.addresses[0])
        z = await node.run(saxpy, p2p.out(y.shape, y.dtype), np.float32(2), x, y, budget="0.01 USD")
        nursery.cancel_scope.cancel()

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._memory_overlay import (
    MemoryNetwork,
    MemoryOverlay,
    open_memory_overlay,
)

if TYPE_CHECKING:
    from ._simulation import (
        InlineWorkers,
        WorkerFaults,
        open_simulated_node,
        simulated_chain,
        virtual_clock_ms,
    )

__all__ = [
    "InlineWorkers",
    "MemoryNetwork",
    "MemoryOverlay",
    "WorkerFaults",
    "open_memory_overlay",
    "open_simulated_node",
    "simulated_chain",
    "virtual_clock_ms",
]

# Whole nodes need every part of the package; who only wants a network in memory does not wait for them.
_SIMULATION = frozenset({"InlineWorkers", "WorkerFaults", "open_simulated_node", "simulated_chain", "virtual_clock_ms"})


def __getattr__(name: str) -> Any:
    if name in _SIMULATION:
        return getattr(importlib.import_module("._simulation", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
