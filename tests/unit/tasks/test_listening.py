"""Code of the user's that is called with events, and fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import BudgetError
from p2pcompute.tasks import ChunkDone, Compiling, Paid, TaskEvent

from ..market._harness import Market, Watch, X, Y, Z, axpy, compute, in_memory, until


class OwnError(Exception):
    """Of the user's code."""


def fails_at(kind: type, count: int = 1) -> tuple[list[TaskEvent], Any]:
    """What was heard, and a listener that fails at the `count`th event of a kind."""
    heard: list[TaskEvent] = []

    def listen(event: TaskEvent) -> None:
        heard.append(event)
        if sum(isinstance(one, kind) for one in heard) == count:
            raise OwnError("in the user's code")

    return heard, listen


@pytest.mark.parametrize(("kind", "count"), [(Compiling, 1), (ChunkDone, 1), (ChunkDone, 3), (Paid, 1)])
def test_an_error_of_on_event_comes_out_as_itself_and_the_task_has_ended(kind: type, count: int) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        heard, listen = fails_at(kind, count)
        with pytest.raises(OwnError, match="in the user's code"):
            await requester.run(
                axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=16, budget="0.10 USD", on_event=listen
            )
        assert isinstance(heard[-1], kind)  # nothing is heard after it
        role = provider.provider
        assert role is not None
        await until(lambda: not role.tasks.active)
        assert not await requester.services.ledger.open_agreements()
        assert np.array_equal(await compute(requester), Z)  # and the node goes on

    in_memory(scenario)


def test_an_error_of_on_event_ends_a_loop_over_chunks_as_itself() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        _, listen = fails_at(ChunkDone, 2)

        async def loop() -> None:
            async for _ in requester.map(
                axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=16, budget="0.10 USD", on_event=listen
            ):
                await trio.lowlevel.checkpoint()

        with pytest.raises(OwnError):
            await loop()

    in_memory(scenario)


def test_a_budget_of_nothing_is_refused_before_anything_is_compiled() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="0.05 USD")
        requester = await market.node(connect=(provider,))
        watch = Watch()
        with pytest.raises(BudgetError, match=r"task's budget is 0.000000 USD.* takes 0.0504 USD for an hour"):
            await compute(requester, watch=watch, budget=0)
        assert not watch.events

    in_memory(scenario)


def test_a_budget_of_nothing_is_enough_for_who_works_for_nothing() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="0 USD")
        requester = await market.node(connect=(provider,))
        assert np.array_equal(await compute(requester, budget=0), Z)

    in_memory(scenario)
