"""Turns between connections that bring much, so that others wait for one of them only; what they leave behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio
import trio.testing

from p2pcompute.overlay._defence import ENDED_BEFORE_GIVING_BACK, GIVE_BACK_S, SWEEP_INTERVAL_S, Defence
from p2pcompute.overlay._memory import give_back
from p2pcompute.overlay._turns import PAUSE, RECENT_S, Turns


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("in_turns", [True, False])
def test_a_crowd_that_brings_much_does_one_thing_in_each_round(in_turns: bool) -> None:
    crowd, rounds = 32, 50
    done = 0

    async def floods(turns: Turns) -> None:
        nonlocal done
        while True:
            if in_turns:
                await turns.take(object())
            done += 1
            if in_turns:
                turns.give()
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        turns = Turns()
        async with trio.open_nursery() as nursery:
            for _ in range(crowd):
                nursery.start_soon(floods, turns)
            turns.said_little("somebody")
            await trio.lowlevel.checkpoint()
            seen = [done]
            for _ in range(rounds):
                await trio.lowlevel.checkpoint()  # as whoever waits for a few bytes
                turns.said_little("somebody")
                seen.append(done)
            nursery.cancel_scope.cancel()
        most = max(after - before for before, after in pairwise(seen))
        assert most <= 2 if in_turns else most >= crowd

    trio.run(main)


def test_it_is_first_come_first_served_and_who_leaves_the_queue_has_had_no_turn() -> None:
    order: list[int] = []

    async def main() -> None:
        turns = Turns()
        await turns.take(object())
        scopes = [trio.CancelScope() for _ in range(4)]

        async def one(number: int) -> None:
            with scopes[number]:
                await turns.take(object())
                order.append(number)
                turns.give()

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(one, number)
                await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()
            turns.give()
        assert order == [0, 2, 3]
        with trio.fail_after(1):
            await turns.take(object())

    virtually(main)


def test_who_says_little_has_as_much_time_between_turns_as_they_take() -> None:
    took = 0.25
    began: list[float] = []

    async def main() -> None:
        turns = Turns()

        async def much() -> None:
            for _ in range(3):
                await turns.take(object())
                began.append(trio.current_time())
                await trio.sleep(took)
                turns.said_little("somebody")
                turns.give()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(much)
            nursery.start_soon(much)
        pauses = [after - before - took for before, after in pairwise(began)]
        assert pauses[:3] == pytest.approx([PAUSE * took] * 3)

    virtually(main)


def test_a_turn_that_is_given_up_in_its_pause_is_the_next_ones() -> None:
    async def main() -> None:
        turns = Turns()
        await turns.take(object())
        async with trio.open_nursery() as nursery:

            async def leaves(scope: trio.CancelScope) -> None:
                with scope:
                    await turns.take(object())

            scope = trio.CancelScope()
            nursery.start_soon(leaves, scope)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(10)
            turns.said_little("somebody")
            turns.give()  # the one that waits has to wait for ten seconds more
            await trio.sleep(1)
            scope.cancel()
        with trio.fail_after(60):
            await turns.take(object())

    virtually(main)


def test_a_turn_is_shared_with_others_and_not_with_oneself() -> None:
    async def main() -> None:
        turns, one, other = Turns(), object(), object()
        assert not turns.shared_by(one)
        turns.said_little(one)
        assert not turns.shared_by(one)
        assert turns.shared_by(other)
        turns.said_little(other)
        assert turns.shared_by(one)
        assert turns.shared_by(other)
        await trio.sleep(2 * RECENT_S)
        assert not turns.shared_by(one)
        turns.said_little(one)
        assert not turns.shared_by(one)

    virtually(main)


# What connections have held


@pytest.mark.parametrize("ended", [ENDED_BEFORE_GIVING_BACK - 1, ENDED_BEFORE_GIVING_BACK])
def test_memory_is_given_back_once_connections_have_ended(ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr("p2pcompute.overlay._defence.give_back", lambda: given.append(0))

    async def inline(call: Callable[[], object]) -> object:  # a thread knows no virtual time
        return call()

    monkeypatch.setattr("trio.to_thread.run_sync", inline)

    async def main() -> None:
        defence = Defence()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(defence.watch)
            for _ in range(2):
                for number in range(ended):
                    visit = defence.arrive(f"192.0.{number}.1")
                    assert visit is not None
                    visit.leave()
                    visit.leave()
                await trio.sleep(GIVE_BACK_S + 2 * SWEEP_INTERVAL_S)
                await trio.sleep(3600)
            nursery.cancel_scope.cancel()
        assert len(given) == (2 if ended >= ENDED_BEFORE_GIVING_BACK else 1)

    virtually(main)


def test_giving_back_works_with_this_c_library() -> None:
    give_back()
