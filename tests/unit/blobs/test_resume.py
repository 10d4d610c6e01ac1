"""A transfer that broke goes on where it was, also at a provider that was started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.payments import CreditBook
from p2pcompute.testing import InlineWorkers, MemoryNetwork, open_simulated_node, simulated_chain

from ._network import MIB, TICKET, a_fetch, a_peer, empty, held_bytes, some_bytes, virtually, whole
from .test_cache import a_cache, get, keep
from .test_tasks import a_table, arguments, expected


def test_what_is_on_disk_is_not_fetched_again(tmp_path: Path) -> None:
    data = some_bytes(2 * MIB + 9)

    async def main() -> None:
        await keep(await a_cache(tmp_path), data, pieces=[0, 3, 8])
        held = await get(await a_cache(tmp_path), data)
        assert held is not None
        network = MemoryNetwork()
        async with a_peer(network) as holder, a_peer(network) as getter:
            with holder.server.offer(whole(data), TICKET):
                fetch = a_fetch(getter, held, holder.source)
                await fetch.run()
            assert held_bytes(held) == data
            assert sum(fetch.received.values()) == len(data) - 2 * 256 * 1024 - 9

    virtually(main)


def test_what_is_whole_is_not_fetched_at_all() -> None:
    data = some_bytes(MIB)

    async def main() -> None:
        async with a_peer(MemoryNetwork()) as getter:
            held = empty(data)
            for index in range(held.count):
                held.put(index, whole(data).read(index))
            await a_fetch(getter, held).run()

    virtually(main)


@pytest.mark.parametrize("kept", [True, False])
def test_a_provider_that_was_started_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    table = a_table(8 * MIB)

    async def known(*_: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    monkeypatch.setattr(CreditBook, "is_known", known)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.01, bytes_per_s=50e6), simulated_chain()

        async def life(**options: Any) -> np.ndarray[Any, Any] | None:
            """One provider, for at most some seconds in which half of the input comes."""
            z: np.ndarray[Any, Any] | None = None
            workers = InlineWorkers(chunk_s=1.5)
            async with (
                open_simulated_node(network, chain, workers=workers, inputs=tmp_path / "inputs") as provider,
                trio.open_nursery() as nursery,
            ):
                await node.services.overlay.connect(provider.addresses[0])
                await nursery.start(provider.serve)
                with trio.move_on_after(options.get("for_s", 1e6)):
                    z = await node.run(*arguments(table), chunks=4)
                nursery.cancel_scope.cancel()
            return z

        async with open_simulated_node(network, chain) as node:
            network.uplink(node.peer_id, bytes_per_s=1e6)
            assert await life(for_s=6) is None
            first = node.services.blobs.sent_bytes
            assert MIB < first < table.nbytes - MIB
            if not kept:
                for path in (tmp_path / "inputs").iterdir():
                    path.unlink()
            z = await life()
            assert z is not None
            assert np.array_equal(z, expected(table))
            again = node.services.blobs.sent_bytes - first
            # What was on its way when it broke off comes again.
            assert again <= table.nbytes - first + MIB if kept else again == table.nbytes

    virtually(main)
