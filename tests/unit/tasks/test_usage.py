"""What a provider says of chunks under way, and of what they have used."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from p2pcompute.control import node_status
from p2pcompute.events import ServedTaskEnded
from p2pcompute.tasks import Usage

from ..market._harness import Market, compute, in_memory, until


def test_a_provider_says_what_it_computes_and_what_that_has_used() -> None:
    async def scenario(market: Market) -> None:
        heard: list[Any] = []
        provider = await market.provider(on_event=heard.append)
        requester = await market.node(connect=(provider,))
        before = (await node_status(provider))["provider"]
        assert before["used"] == {"cpu_ns": 0, "wall_ns": 0, "device_ns": 0, "energy_mj": None}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(compute, requester, chunks=16))
            while not before["tasks"] or before["tasks"][0]["computing"] is None:
                await trio.sleep(0.01)
                before = (await node_status(provider))["provider"]
            assert before["tasks"][0]["computing"]["blocks_done"] == 0
            assert before["tasks"][0]["computing"]["blocks"] >= 1
        await until(lambda: any(isinstance(event, ServedTaskEnded) for event in heard))
        [ended] = [event for event in heard if isinstance(event, ServedTaskEnded)]
        chunk_ns = int(market.chunk_s * 1e9)
        busy_ns = chunk_ns // 10  # a chunk has a tenth of the items that keep a processor busy for as long
        assert (ended.chunks, ended.used) == (16, Usage(cpu_ns=16 * busy_ns, wall_ns=16 * chunk_ns))
        after = (await node_status(provider))["provider"]
        assert after["used"]["cpu_ns"] == 16 * busy_ns
        assert after["tasks"] == []

    in_memory(scenario)


def test_what_two_devices_say_is_added_up() -> None:
    total = Usage()
    total.add(Usage(cpu_ns=1, wall_ns=2))
    assert total.energy_mj is None
    total.add(Usage(cpu_ns=10, wall_ns=20, device_ns=15, energy_mj=500))
    total.add(Usage(energy_mj=70))
    assert total == Usage(cpu_ns=11, wall_ns=22, device_ns=15, energy_mj=570)
