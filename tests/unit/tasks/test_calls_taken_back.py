"""Calls that nobody waits for any more: their provider is told, and is paid for what it had computed by then."""

from __future__ import annotations

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import TaskError
from p2pcompute.tasks import ChunkAssigned, ChunkDone

from ..market._harness import Market, Watch, X, Y, in_memory, until
from .test_hire import due, hire
from .test_short_chunks import runs_of

LEAVING = ["at the end", "by an error", "by a cancellation"]


class LeftError(Exception):
    """What the block of a hire may be left by."""


async def leave(how: str, scope: trio.CancelScope) -> None:
    """The end of the block of a hire; `scope` is around it."""
    if how == "by an error":
        raise LeftError
    if how == "by a cancellation":
        scope.cancel()
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("before", [0, 1])
def test_calls_under_way_are_taken_back_when_the_hire_is_left(
    how: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=10.0))
        node = await market.node(connect=(provider,), workers=market.workers(chunk_s=10.0))
        watch, errors = Watch(), list[str]()

        async def call(hired: p2p.Hired) -> None:
            try:
                await hired.run(np.float32(1), X, Y)
            except TaskError as error:
                errors.append(str(error))

        async with trio.open_nursery() as others:
            with trio.CancelScope() as scope:
                try:
                    async with hire(node, watch) as hired:
                        for _ in range(before):
                            assert np.array_equal(await hired.run(np.float32(2), X, Y), due(2))
                        given = len(watch.of(ChunkAssigned))
                        with runs_of(monkeypatch) as runs:
                            for _ in range(3):
                                others.start_soon(call, hired)
                            await until(lambda: len(watch.of(ChunkAssigned)) > given and runs)
                            assert not errors
                            await leave(how, scope)
                except LeftError:
                    assert how == "by an error"
            assert scope.cancelled_caught == (how == "by a cancellation")
        assert len(errors) == 3
        assert all("hold it open for all its calls" in error for error in errors)
        assert len(watch.of(ChunkDone)) == 2 * before  # none of those that were taken back was waited for
        assert provider.provider is not None
        tasks = provider.provider.tasks
        await until(lambda: not tasks.active)
        spent_uusd = await market.spent_uusd(node)
        assert (spent_uusd > 0) == bool(before)
        assert await market.claimed_uusd(provider) == spent_uusd

    in_memory(scenario)
