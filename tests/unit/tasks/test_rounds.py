"""Tasks in rounds: the state stays at its provider, rounds are sampled and paid, and go on elsewhere."""

from __future__ import annotations

import pytest

from p2pcompute.tasks import ChunkDone, Paid

from ..market._harness import Market, Watch, in_memory
from ._rounds import ROUND_SCENARIOS, expected, iterate, same


def test_rounds_are_computed_sampled_and_paid() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        assert same(await iterate(node, watch=watch), expected(40))
        done = watch.of(ChunkDone)
        assert [event.index for event in done] == list(range(5))
        assert all(event.checked == 256 for event in done)
        paid = watch.of(Paid)[-1].paid_uusd
        assert paid > 0
        assert await market.spent_uusd(node) == paid
        assert await market.claimed_uusd(provider) == paid

    in_memory(scenario)


@pytest.mark.parametrize("name", ROUND_SCENARIOS)
def test_in_memory(name: str) -> None:
    in_memory(ROUND_SCENARIOS[name])
