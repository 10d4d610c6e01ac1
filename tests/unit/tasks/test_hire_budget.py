"""A hire whose budget is used up: the next call says so, whatever became of the providers meanwhile."""

from __future__ import annotations

import re

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute.errors import BudgetError
from p2pcompute.tasks import Agreed, TaskEnded

from ..market._harness import Market, Watch, X, Y, in_memory, until
from .test_hire import due, hire


async def price_uusd(node: p2p.Node) -> int:
    """What a call costs."""
    watch = Watch()
    async with hire(node, watch) as hired:
        await hired.run(np.float32(1), X, Y)
    price: int = watch.of(TaskEnded)[0].accepted_uusd
    return price


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("ends", ["no call came for long", "it is gone"])
def test_a_used_up_budget_is_not_taken_for_a_want_of_providers(ends: str, others: int) -> None:
    async def scenario(market: Market) -> None:
        providers = {node.peer_id: node for node in [await market.provider(price="5 USD") for _ in range(1 + others)]}
        node = await market.node(connect=tuple(providers.values()))
        budget_uusd = await price_uusd(node) * 5 // 4  # a call and half of a chunk
        watch = Watch()
        given = re.escape(f"{budget_uusd / 1e6:.6f} USD")
        async with hire(node, watch, budget=f"{budget_uusd} uusd") as hired:
            assert np.array_equal(await hired.run(np.float32(1), X, Y), due(1))
            with pytest.raises(BudgetError, match=f"{given}.*hire again"):
                await hired.run(np.float32(2), X, Y)
            if ends == "it is gone":
                market.kill(providers[watch.of(Agreed)[0].provider])
            await until(lambda: hired._task.link is None, within_s=700)
            for _ in range(2):
                with pytest.raises(BudgetError, match=f"another chunk.*{given}.*hire again"):
                    await hired.run(np.float32(2), X, Y)
        assert len(watch.of(Agreed)) == 1  # nothing is agreed on that nothing can be done with
        (ended,) = watch.of(TaskEnded)
        assert ended.done == 2
        assert 0 < ended.paid_uusd <= ended.accepted_uusd <= budget_uusd

    in_memory(scenario)
