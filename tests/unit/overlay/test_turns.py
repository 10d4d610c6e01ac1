"""Turns between connections that bring much: what a crowd of them does to others, to newcomers and to each other.

Time stands still but for what turns take, and a microsecond for each look at the clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute._rates import Rate
from p2pcompute.overlay._defence import Defence, Refusal
from p2pcompute.overlay._limits import Limits
from p2pcompute.overlay._muxer import FRAMES_PER_LOOK
from p2pcompute.overlay._turns import (
    AHEAD_S,
    BEGINNING_S,
    LIGHT_S,
    MAX_PLACES,
    MOST_COUNTED_S,
    MOST_S,
    RECENT_S,
    STEP_S,
    STEPS,
    Turn,
    Turns,
)
from p2pcompute_protocols.ids import PeerId

from ._yamux_parts import RST, SYN, WINDOW_UPDATE, data, frame, run, settle, stranger

PEER = PeerId("12D3KooWTurns")
TURN_S = 100e-6
LOOK_S = 1e-6
CROWD = 32
ROUND_S = CROWD * TURN_S  # of the loop, where everybody passes


class Clock:
    def __init__(self, look_s: float = LOOK_S) -> None:
        self.now = 1000.0
        self._look_s = look_s

    def __call__(self) -> float:
        self.now += self._look_s
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class World:
    """Turns, their clock, and what goes on with them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)
        self.nursery = nursery
        self.had: Counter[str] = Counter()

    async def much(self, name: str, turn: Turn) -> None:
        """A connection that always has something to read."""
        while True:
            await self.one(turn, name)

    async def one(self, turn: Turn, name: str, took_s: float = TURN_S) -> None:
        await turn.take()
        self.clock.pass_by(took_s)
        self.had[name] += 1
        turn.done()
        await trio.lowlevel.checkpoint()

    async def arrives(self, place: str, name: str = "newcomer") -> Turn:
        """What a new connection comes to until its first answer."""
        turn = self.turns.turn(place)
        for _ in range(3):  # negotiation and handshake
            await self.one(turn, name)
        await turn.pay(BEGINNING_S)
        await turn.pay(BEGINNING_S)
        await self.one(turn, name)
        return turn

    async def begins_anew(self, place: str, name: str) -> None:
        """One that is another connection as soon as it was thrown out."""
        while True:
            await self.arrives(place, name)

    def crowd(self, place: str = "crowd", size: int = CROWD) -> None:
        for number in range(size):
            self.nursery.start_soon(self.much, f"{place} {number}", self.turns.turn(place))

    async def go_on(self, seconds: float) -> None:
        """While others are at it; this one wants nothing."""
        until = self.clock.now + seconds
        while self.clock() < until:
            await trio.lowlevel.checkpoint()


def among(main: Callable[[World], Awaitable[None]], *, in_turns: bool = True) -> None:
    async def whole() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            if in_turns:
                nursery.start_soon(world.turns.run)
                await trio.testing.wait_all_tasks_blocked()
            await main(world)
            nursery.cancel_scope.cancel()

    trio.run(whole)


# Who comes while others bring much


@pytest.mark.parametrize("in_turns", [True, False])
@pytest.mark.parametrize("crowd", ["floods", "begins anew"])
def test_a_new_connection_does_not_wait_behind_a_crowd(crowd: str, in_turns: bool) -> None:
    """Turns that are first come, first served kept new connections out: each of their steps came behind everybody."""

    async def main(world: World) -> None:
        if crowd == "floods":
            world.crowd()
        else:
            for number in range(CROWD):
                world.nursery.start_soon(world.begins_anew, "crowd", f"crowd {number}")
        await world.go_on(50 * ROUND_S)
        for number in range(20):
            began = world.clock.now
            await world.arrives(f"elsewhere {number}")
            took_s = world.clock.now - began
            assert took_s < ROUND_S if in_turns else took_s > 3 * ROUND_S
            await world.go_on(ROUND_S)

    among(main, in_turns=in_turns)


def test_a_new_connection_from_where_the_crowd_is_comes_before_those_that_had_turns() -> None:
    async def main(world: World) -> None:
        world.crowd()
        await world.go_on(50 * ROUND_S)
        before = sum(world.had.values())
        await world.arrives("crowd")
        turns_of_others = sum(world.had.values()) - before - world.had["newcomer"]
        assert turns_of_others < CROWD  # of four steps and two waits none came behind everybody

    among(main)


def test_a_request_waits_for_a_turn_or_two_and_not_for_all() -> None:
    longest: dict[bool, float] = {}

    async def main(world: World, in_turns: bool) -> None:
        world.crowd()
        light = world.turns.turn("elsewhere")
        await world.go_on(10 * ROUND_S)
        longest[in_turns] = 0.0
        for _ in range(200):
            began = world.clock.now
            await trio.lowlevel.checkpoint()  # it arrives in this round, is read in the next
            await world.one(light, "light", 20e-6)
            longest[in_turns] = max(longest[in_turns], world.clock.now - began)
            await world.go_on(100e-6)

    for in_turns in (True, False):
        among(partial(main, in_turns=in_turns), in_turns=in_turns)
    assert longest[True] < 4 * TURN_S
    assert longest[False] > ROUND_S


def test_who_says_little_passes_again_and_again() -> None:
    async def main(world: World) -> None:
        world.crowd()
        light = world.turns.turn("elsewhere")
        await world.go_on(ROUND_S)
        for _ in range(500):
            assert light.try_take()
            world.clock.pass_by(20e-6)
            light.done()
            await world.go_on(80e-6)

    among(main)


def test_a_crowd_that_begins_anew_does_not_pass_for_ever() -> None:
    async def main(world: World) -> None:
        world.crowd(size=2)
        await world.go_on(ROUND_S)
        passed = 0
        for _ in range(1000):
            turn = world.turns.turn("crowd")
            if turn.try_take():
                passed += 1
                world.clock.pass_by(TURN_S)
                turn.done()
        assert passed <= 2 + LIGHT_S / TURN_S

    among(main)


# Among those that bring much


def test_nobody_starves() -> None:
    async def main(world: World) -> None:
        world.crowd()
        world.nursery.start_soon(world.begins_anew, "crowd", "anew")
        light = world.turns.turn("elsewhere")
        for _ in range(2000):
            await world.one(light, "light", 20e-6)
            await world.go_on(50e-6)
        turns = [world.had[f"crowd {number}"] for number in range(CROWD)]
        assert min(turns) > 0
        assert max(turns) - min(turns) <= max(2, max(turns) // 3)

    among(main)


def test_those_who_come_one_after_the_other_from_new_places_keep_nobody_waiting() -> None:
    """The attack: each connection from a subnet that nobody came from before, where one that brings much waits."""

    async def main(world: World) -> None:
        async def come_from_elsewhere(number: int) -> None:
            while True:
                number += 16
                await world.one(world.turns.turn(f"new {number}"), "new")

        world.nursery.start_soon(world.much, "bulk", world.turns.turn("bulk"))
        for number in range(16):
            world.nursery.start_soon(come_from_elsewhere, number)
        await world.go_on(0.5)
        before = world.had["bulk"]
        for _ in range(10):
            await world.go_on(0.2)
            assert world.had["bulk"] > before + 2
            before = world.had["bulk"]

    among(main)


@pytest.mark.parametrize("many", [2, 4])
def test_a_few_that_bring_much_have_nearly_all_of_the_time(many: int) -> None:
    async def main(world: World) -> None:
        for number in range(many):
            world.crowd(f"bulk {number}", 1)
        light = world.turns.turn("light")
        began = world.clock.now
        while world.clock.now < began + 1:
            await world.go_on(5e-3)
            await world.one(light, "light", 20e-6)
        had = [world.had[f"bulk {number} 0"] * TURN_S for number in range(many)]
        assert sum(had) > 0.8
        assert min(had) > 0.8 / many

    among(main)


def test_a_crowd_in_one_subnet_has_no_more_than_one_connection_elsewhere() -> None:
    async def main(world: World) -> None:
        world.crowd()
        world.crowd("alone", 1)
        await world.go_on(100 * ROUND_S)
        crowd = sum(count for name, count in world.had.items() if name.startswith("crowd"))
        assert 0.8 < world.had["alone 0"] / crowd < 1.25

    among(main)


def test_one_at_a_time_and_then_what_it_left_to_do() -> None:
    """A turn that leaves work to other tasks is the only one until that is done, within bounds."""
    begun: list[float] = []

    async def main(world: World) -> None:
        async def leaves_work(turn: Turn) -> None:
            while True:
                await turn.pay(BEGINNING_S)
                begun.append(world.clock.now)
                for _ in range(5):
                    world.clock.pass_by(50e-6)
                    await trio.lowlevel.checkpoint()

        for _ in range(4):
            turn = world.turns.turn("crowd")
            turn.took.add(1, world.clock.now)
            world.nursery.start_soon(leaves_work, turn)
        await world.go_on(0.1)
        rest = begun[len(begun) // 2 :]
        gaps = [after - before for before, after in pairwise(rest)]
        assert min(gaps) >= 5 * 50e-6
        assert max(gaps) <= 2 * MOST_S + 5 * 50e-6

    among(main)


def test_a_connection_that_is_alone_waits_for_nothing() -> None:
    async def main(world: World) -> None:
        turn = world.turns.turn("alone")
        for _ in range(1000):
            assert turn.try_take()
            assert not turn.shared
            world.clock.pass_by(3 * TURN_S)
            turn.done()
        other = world.turns.turn("other")
        await world.one(other, "other")
        turn.took.add(1, world.clock.now)
        assert not turn.try_take()
        assert turn.shared
        world.clock.pass_by(RECENT_S)
        assert turn.try_take()
        assert not turn.shared

    among(main)


def test_what_was_taken_while_nobody_else_wanted_anything_is_not_held_against_it() -> None:
    async def main(world: World) -> None:
        bulk, light = world.turns.turn("bulk"), world.turns.turn("light")
        for _ in range(500):
            await world.one(bulk, "bulk", MOST_COUNTED_S)
            await world.one(light, "light", LOOK_S)  # it is there, and waits for nothing
        world.crowd()
        await world.go_on(ROUND_S)
        began = world.clock.now
        await world.one(bulk, "bulk")
        assert world.clock.now - began < 4 * AHEAD_S + 2 * MOST_S

    among(main)


def test_a_pause_does_not_grow_while_nobody_waits() -> None:
    """The turn before was long ago; what came after it is no work of its own."""

    async def main(world: World) -> None:
        heavy, *lights = (world.turns.turn(name) for name in ("heavy", "one", "another"))
        for _ in range(3):
            heavy.took.add(1, world.clock.now)
            for light in lights:  # the second one passes beside the first
                await world.one(light, "light")
            began = world.clock.now
            await world.one(heavy, "heavy")
            assert world.clock.now - began < 5 * MOST_S
            world.clock.pass_by(10)  # nobody wants anything

    among(main)


def test_a_collection_of_garbage_in_a_turn_is_nobodys() -> None:
    async def main(world: World) -> None:
        world.crowd()
        light = world.turns.turn("elsewhere")
        await world.one(light, "light", 0.1)
        assert light.took.now(world.clock.now) <= MOST_COUNTED_S
        await world.go_on(ROUND_S)
        assert light.try_take()

    among(main)


def test_who_stops_waiting_has_had_no_turn_and_is_in_nobodys_way() -> None:
    async def main(world: World) -> None:
        busy, gone, next_ = (world.turns.turn("crowd") for _ in range(3))
        for turn in (busy, gone, next_):
            turn.took.add(1, world.clock.now)
        scope = trio.CancelScope()
        order: list[str] = []

        async def waits(turn: Turn, name: str, within: trio.CancelScope) -> None:
            with within:
                await turn.take()
                order.append(name)
                turn.done()

        await world.one(world.turns.turn("other"), "other")
        world.nursery.start_soon(waits, gone, "gone", scope)
        world.nursery.start_soon(waits, next_, "next", trio.CancelScope())
        scope.cancel()
        await world.go_on(2 * MOST_S)
        assert order == ["next"]
        assert world.turns.waiting == 0
        assert not gone.taken

    among(main)


def test_when_turns_end_everybody_goes_on() -> None:
    async def main() -> None:
        done = 0

        async def waits(turn: Turn) -> None:
            nonlocal done
            await turn.take()
            turn.done()
            done += 1

        async with trio.open_nursery() as nursery:
            clock = Clock()
            turns = Turns(clock)
            async with trio.open_nursery() as running:
                running.start_soon(turns.run)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(2):
                    turn = turns.turn("crowd")
                    turn.took.add(1, clock.now)
                    await turn.take()
                    turn.done()
                for _ in range(10):
                    turn = turns.turn("crowd")
                    turn.took.add(1, clock.now)
                    nursery.start_soon(waits, turn)
                running.cancel_scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert done == 10
            assert turns.turn("crowd").try_take()

    trio.run(main)


def test_places_are_forgotten_once_they_were_quiet() -> None:
    clock = Clock()
    turns = Turns(clock)
    busy = turns.turn("busy")
    for number in range(10 * MAX_PLACES):
        clock.pass_by(0.01)
        turns.charge(busy, TURN_S, clock.now, passed=True)
        turns.charge(turns.turn(str(number)), TURN_S, clock.now, passed=True)
    assert len(turns._places) <= MAX_PLACES
    assert turns.turn("busy").place is busy.place


# What the muxer does with its turn


class Beside:
    """A muxer whose node has somebody else who says a little in each round of the loop, or nobody."""

    def __init__(self, *, shared: bool) -> None:
        self.clock = Clock(look_s=20e-6)
        self.turns = Turns(self.clock)
        self.turn = self.turns.turn("crowd")
        self.shared = shared
        self.round = 0

    async def go_on(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.turns.run)
            other = self.turns.turn("elsewhere")
            while True:
                if self.shared:
                    await other.take()
                    other.done()
                self.round += 1
                await trio.lowlevel.checkpoint()


# What connections begin with


def test_what_connections_begin_with_is_done_piece_by_piece_and_apart() -> None:
    """Whoever's it is; who begins elsewhere waits for one of a crowd's pieces at most before each of its own."""
    pieces: list[tuple[float, str]] = []
    before: list[tuple[float, str]] = []

    async def begin(world: World, place: str, count: int) -> None:
        turn = world.turns.turn(place)
        for _ in range(count):
            await turn.step()
            pieces.append((world.clock.now, place))
            world.clock.pass_by(TURN_S)

    async def main(world: World) -> None:
        world.nursery.start_soon(world.much, "friend", world.turns.turn("friends"))
        await world.go_on(2 * TURN_S)
        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(begin, world, "crowd", 3)
            await world.go_on(5 * STEP_S)
            before.extend(pieces)
            nursery.start_soon(begin, world, "elsewhere", 4)

    among(main)
    assert len(pieces) == 3 * CROWD + 4
    # Of more than `STEPS` that wait, each comes a little sooner than that.
    assert all(later - sooner >= STEP_S * STEPS / CROWD for (sooner, _), (later, _) in pairwise(pieces[1:]))
    assert all(later - sooner >= STEP_S for (sooner, _), (later, _) in pairwise(pieces[-STEPS:]))
    came = len(before)
    assert 0 < came < CROWD
    assert [place for _, place in pieces[came : came + 10]].count("elsewhere") == 4


def test_who_begins_alone_does_so_without_a_pause() -> None:
    async def main(world: World) -> None:
        turn = world.turns.turn("somewhere")
        began = world.clock.now
        for _ in range(10):
            await turn.step()
            await world.one(turn, "newcomer", took_s=0.0)
        assert world.clock.now - began < STEP_S / 2

    among(main)


@pytest.mark.parametrize("in_turns", [True, False])
def test_a_piece_that_is_cancelled_holds_nobody_up(in_turns: bool) -> None:
    async def main(world: World) -> None:
        first, second = world.turns.turn("first"), world.turns.turn("second")
        await world.one(first, "first")
        done = 0
        async with trio.open_nursery() as nursery:

            async def piece(turn: Turn) -> None:
                nonlocal done
                await turn.step()
                done += 1

            given_up = trio.CancelScope()

            async def gives_up() -> None:
                with given_up:
                    await turns_of_second.step()

            turns_of_second = second
            await second.step()
            nursery.start_soon(gives_up)
            nursery.start_soon(piece, first)
            nursery.start_soon(piece, second)
            await trio.lowlevel.checkpoint()
            given_up.cancel()
        assert done == 2

    among(main, in_turns=in_turns)


def test_whoever_waits_for_a_step_has_it_when_nobody_gives_any_more() -> None:
    async def main() -> None:
        clock = Clock(look_s=0.0)
        turns = Turns(clock)
        done = 0

        async def piece(place: str) -> None:
            nonlocal done
            await turns.turn(place).step()
            done += 1

        async with trio.open_nursery() as nursery, trio.open_nursery() as giving:
            giving.start_soon(turns.run)
            await trio.testing.wait_all_tasks_blocked()
            turn = turns.turn("somewhere")
            await turn.take()
            turn.done()
            for number in range(5):
                nursery.start_soon(piece, str(number))
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert done == 1
            giving.cancel_scope.cancel()
        assert done == 5

    trio.run(main)


@pytest.mark.parametrize("shared", [True, False])
def test_a_flood_of_frames_is_cut_into_turns(shared: bool) -> None:
    frames = 600

    async def main() -> None:
        beside = Beside(shared=shared)
        in_round: Counter[int] = Counter()
        async with trio.open_nursery() as nursery, stranger(turn=beside.turn) as (mux, peer):
            nursery.start_soon(beside.go_on)
            seen = mux._on_event

            def on_event(event: Any) -> bool:
                in_round[beside.round] += 1
                return bool(seen(event))

            mux._on_event = on_event
            while beside.round < 3:
                await trio.lowlevel.checkpoint()
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0) + frame(WINDOW_UPDATE, 0, 1, 1) * frames)
            while in_round.total() < frames + 1:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert (max(in_round.values()) <= 12 * FRAMES_PER_LOOK) if shared else len(in_round) == 1, in_round

    trio.run(main)


@pytest.mark.parametrize("shared", [True, False])
def test_streams_that_are_opened_together_are_begun_one_by_one(shared: bool) -> None:
    streams = 64

    async def main() -> None:
        beside = Beside(shared=shared)
        in_round: Counter[int] = Counter()
        async with trio.open_nursery() as nursery, stranger(turn=beside.turn) as (mux, peer):
            nursery.start_soon(beside.go_on)
            while beside.round < 3:
                await trio.lowlevel.checkpoint()
            for number in range(streams):
                peer.say(data(2 * number + 1, b"hello", SYN))
            for _ in range(streams):
                await mux.accept_stream()
                in_round[beside.round] += 1
            nursery.cancel_scope.cancel()
        assert max(in_round.values()) <= 2
        assert beside.round > streams if shared else beside.round <= streams + 8

    trio.run(main)


def test_a_stream_that_is_reset_while_it_waits_for_its_turn_is_begun_no_more() -> None:
    async def main() -> None:
        beside = Beside(shared=True)
        async with trio.open_nursery() as nursery, stranger(turn=beside.turn) as (mux, peer):
            beside.turn.took.add(1, beside.clock.now)
            nursery.start_soon(beside.go_on)
            await trio.lowlevel.checkpoint()
            peer.say(data(1, b"hello", SYN), frame(WINDOW_UPDATE, RST, 1, 0), data(3, b"hello", SYN))
            assert (await mux.accept_stream()).stream_id == 3
            nursery.cancel_scope.cancel()

    trio.run(main)


# Streams that are refused


def test_streams_over_the_limits_are_refused_before_anything_is_done_for_them() -> None:
    async def main() -> None:
        defence = Defence(Limits(streams_per_peer=2))
        async with stranger() as (mux, peer):
            mux.refuses = lambda others: defence.refuses_stream(PEER, others)
            for number in range(5):
                peer.say(data(2 * number + 1, b"hello", SYN))
            await settle()
            assert sorted(mux._unaccepted) == [1, 3]
            assert mux.streams == mux.session.streams == 2
            assert defence.refused == {Refusal.STREAMS_OF_PEER: 3}
            assert [sent[2] for sent in peer.frames() if sent[1] & RST] == [5, 7, 9]

    run(main)


def test_a_peer_that_goes_on_opening_streams_is_banned_and_cut_off() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            defence = Defence(Limits(stream_rate_per_peer=Rate(per_s=1, burst=1)), on_ban=lambda _peer: mux.abort())
            mux.refuses = lambda others: defence.refuses_stream(PEER, others)
            for number in range(2000):
                peer.say(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0))
            await settle()
            assert mux.is_closed
            assert 0 < defence.refused[Refusal.STREAM_RATE] < 1100

    run(main)
