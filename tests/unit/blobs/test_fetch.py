"""Blobs between peers in memory, in virtual time."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from p2pcompute.blobs import FetchFailed
from p2pcompute.testing import MemoryNetwork

from ._network import MIB, TICKET, a_fetch, a_peer, empty, held_bytes, some_bytes, virtually, whole


@pytest.mark.parametrize("size", [1, 256 * 1024, 256 * 1024 + 1, 3 * MIB + 17])
def test_from_one_holder(size: int) -> None:
    data = some_bytes(size)

    async def main() -> None:
        network = MemoryNetwork()
        async with a_peer(network) as holder, a_peer(network) as getter:
            held = empty(data)
            with holder.server.offer(whole(data), TICKET):
                await a_fetch(getter, held, holder.source).run()
            assert held_bytes(held) == data
            assert holder.server.sent_bytes == size

    virtually(main)


def test_eight_at_once_take_little_more_than_one_copy_from_the_origin() -> None:
    data = some_bytes(8 * MIB)

    async def main() -> None:
        network = MemoryNetwork(latency_s=0.01, bytes_per_s=50e6)
        async with AsyncExitStack() as stack:
            origin = await stack.enter_async_context(a_peer(network))
            network.uplink(origin.overlay.peer_id, bytes_per_s=2e6)
            getters = [await stack.enter_async_context(a_peer(network)) for _ in range(8)]
            stack.enter_context(origin.server.offer(whole(data, origin=True), TICKET))
            blobs = [empty(data) for _ in getters]
            for getter, held in zip(getters, blobs, strict=True):
                stack.enter_context(getter.server.offer(held, TICKET))
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for seed, (getter, held) in enumerate(zip(getters, blobs, strict=True)):
                    others = [other.source for other in getters if other is not getter]
                    nursery.start_soon(a_fetch(getter, held, origin.origin, *others, seed=seed).run)
            assert all(held_bytes(held) == data for held in blobs)
            assert origin.server.sent_bytes <= 1.5 * len(data)
            assert trio.current_time() - began < 1.6 * len(data) / 2e6

    virtually(main)


def test_nobody_has_it() -> None:
    data = some_bytes(MIB)

    async def main() -> None:
        network = MemoryNetwork()
        async with a_peer(network) as stranger, a_peer(network) as getter:
            with pytest.raises(FetchFailed, match="0 of 4 pieces"):
                await a_fetch(getter, empty(data), stranger.source).run()

    virtually(main)
