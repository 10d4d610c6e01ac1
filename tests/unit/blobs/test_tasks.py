"""Inputs of tasks that spread from provider to provider: whole nodes in virtual time."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain

from ._network import MIB, virtually


@p2p.kernel
def look_up(out, table):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = table[(i * 4099) % table.size]


def a_table(size: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, 2**31, size // 4, dtype=np.int32)


@pytest.mark.parametrize("share", [None, False])
def test_four_providers_take_little_more_than_one_copy(share: bool | None) -> None:
    table = a_table(8 * MIB)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.01, bytes_per_s=50e6), simulated_chain()
        async with AsyncExitStack() as stack:
            node = await stack.enter_async_context(open_simulated_node(network, chain))
            network.uplink(node.peer_id, bytes_per_s=4e6)
            providers = [
                await stack.enter_async_context(open_simulated_node(network, chain, workers=InlineWorkers(chunk_s=1.5)))
                for _ in range(4)
            ]
            async with trio.open_nursery() as nursery:
                for provider in providers:
                    await node.services.overlay.connect(provider.addresses[0])
                    await nursery.start(provider.serve)
                ready: list[Any] = []

                def watch(event: Any) -> None:
                    if isinstance(event, p2p.events.ProviderReady):
                        ready.append(event.provider)

                out = await node.run(
                    look_up, p2p.out((4096,), np.int32), table, chunks=16, share_inputs=share, on_event=watch
                )
                nursery.cancel_scope.cancel()
            expected = table[(np.arange(4096) * 4099) % table.size]
            assert np.array_equal(out, expected)
            assert len(set(ready)) == 4
            if share is False:
                assert network.sent_bytes(node.peer_id) > 4 * table.nbytes
            else:
                assert network.sent_bytes(node.peer_id) < 2 * table.nbytes

    virtually(main)
