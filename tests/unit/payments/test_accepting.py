"""Checked chunks are accepted together, and where they are too dear together, as many as may be are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pcompute._books import RequesterLedgerBooks
from p2pcompute.errors import BudgetError, PaymentError
from p2pcompute.storage import CeilingReached
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute.tasks._link import Link, ReceivedChunk

Run = Callable[..., None]


async def checked(world: Any, *, budget_uusd: int, ceiling_uusd: int) -> tuple[Any, TaskBudget]:
    """A link with five chunks of 3 micro-USD that were found right; nothing of it but what accepts them."""
    task = await world.agree(price_pusd=1_000_000, ceiling_uusd=ceiling_uusd)
    budget = TaskBudget()
    budget.start(budget_uusd)
    books = RequesterLedgerBooks(world.payer_ledger, world.payer)
    link: Any = Link.__new__(Link)
    link.account = await books.open(world.last_agreement, budget)

    async def funded() -> None:
        await trio.lowlevel.checkpoint()

    link.account.funded = funded
    link._accepted, link._checked = 0, []
    for index in range(5):
        receipt = world.receipt(task, index, units=3)
        link._checked.append((ReceivedChunk(index, world.sign_receipt(receipt), receipt, memoryview(b"")), index))
    return link, budget


async def in_the_ledger(world: Any) -> list[tuple[int, int]]:
    return [(row.index, row.sampled) for row in await world.payer_ledger.receipts(world.last_agreement.task_id)]


def test_a_window_of_chunks_is_one_transaction(run: Run) -> None:
    async def body(world: Any) -> None:
        link, budget = await checked(world, budget_uusd=15, ceiling_uusd=15)
        before = world.payer_ledger._database._writes
        await link._accept()
        assert world.payer_ledger._database._writes == before + 2  # its begin and its end
        assert await in_the_ledger(world) == [(index, index) for index in range(5)]
        assert (link._accepted, link._checked, budget.accepted_pusd) == (5, [], 15_000_000)

    run(body)


@pytest.mark.parametrize(
    ("budget_uusd", "ceiling_uusd", "error"), [(10, 1_000, BudgetError), (1_000, 10, CeilingReached)]
)
def test_what_fits_is_accepted_where_all_of_it_is_too_dear(
    run: Run, budget_uusd: int, ceiling_uusd: int, error: type[Exception]
) -> None:
    async def body(world: Any) -> None:
        link, budget = await checked(world, budget_uusd=budget_uusd, ceiling_uusd=ceiling_uusd)
        with pytest.raises((BudgetError, PaymentError)) as caught:
            await link._accept()
        assert caught.type is error
        assert await in_the_ledger(world) == [(0, 0), (1, 1), (2, 2)]
        assert (link._accepted, [sampled for _, sampled in link._checked]) == (3, [3, 4])
        assert budget.accepted_pusd == 9_000_000

    run(body)


def test_a_lie_that_was_found_before_leaves_nothing_accepted(run: Run) -> None:
    async def body(world: Any) -> None:
        link, _ = await checked(world, budget_uusd=15, ceiling_uusd=15)
        with trio.CancelScope() as scope:
            scope.cancel()
            await link._accept()
        assert scope.cancelled_caught
        assert (await in_the_ledger(world), len(link._checked)) == ([], 5)

    run(body)
