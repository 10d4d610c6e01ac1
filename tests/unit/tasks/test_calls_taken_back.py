"""Calls that nobody waits for any more: their provider is told, and is paid for what it had computed by then."""

from __future__ import annotations

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import TaskError
from p2pcompute.tasks import Agreed, ChunkAssigned, ChunkDone
from p2pcompute.tasks._standing_link import StandingLink
from p2pcompute_protocols.task import _calls

from ..market._harness import SIZE, Market, Watch, X, Y, axpy, in_memory, until
from .test_hire import OUT, due, hire
from .test_short_chunks import SHORT_S, WIDE, runs_of

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


@pytest.mark.parametrize(("chunks", "chunk_s"), [(3, 0.1), (64, SHORT_S)])
def test_a_call_that_is_cancelled_while_it_waits_for_room_is_not_given_out(
    chunks: int, chunk_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two calls with other arrays the second one waits until the first one's may go. Of short chunks there wait
    several."""
    monkeypatch.setattr(_calls, "MAX_HELD_INPUTS", 1)
    scope, hand_out, waited = trio.CancelScope(), StandingLink._hand_out, list[range]()

    async def spied(self: StandingLink, given: range) -> None:
        if given[0] // chunks == 2 and not scope.cancel_called:
            assert self.connection.outstanding
            assert not self._fits(given[0])
            waited.append(given)
            scope.cancel()
        await hand_out(self, given)

    monkeypatch.setattr(StandingLink, "_hand_out", spied)

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=chunk_s), **WIDE)
        node = await market.node(connect=(provider,))
        watch = Watch()
        launch = axpy[64, SIZE // 64]
        async with node.hire(
            launch, OUT, np.float32(2), X, Y, budget="0.10 USD", chunks=chunks, on_event=watch
        ) as hired:
            assert np.array_equal(await hired.run(np.float32(0), X, Y), due(0))  # it is paid, and lends more

            async def right(number: int) -> None:
                found = await hired.run(np.float32(number), X, Y + number)
                assert np.array_equal(found, due(number, Y + number))

            async def cancelled() -> None:
                with scope:
                    await right(2)

            with runs_of(monkeypatch) as runs:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(right, 1)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(cancelled)
                assert scope.cancelled_caught
                await right(3)
            assert sum(blocks for _, blocks in runs) == 2 * 64  # of 1 and 3
            link = hired._task.link
            assert link is not None
            assert not link.calls._under_way
            assert not link.calls._numbers
        assert len(waited) == 1
        assert len(watch.of(Agreed)) == 1
        # The next call has the number of the one that was never made.
        assert sorted(event.index for event in watch.of(ChunkAssigned)) == list(range(3 * chunks))
        assert sorted(event.index for event in watch.of(ChunkDone)) == list(range(3 * chunks))

    in_memory(scenario)
