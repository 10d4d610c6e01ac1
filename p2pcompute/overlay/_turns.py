"""Turns between connections that bring much, so that those that bring little, and new ones, wait behind none of them.

Trio runs whatever can run once in each round of its loop. Where many connections have a full socket, everybody waits in
each round until all of them were read, and whoever says a few bytes waits for two such rounds. So what a connection
brings is looked at in turns of a fraction of a millisecond, and what each took is counted.

- A connection whose turns took little of late passes at once, and so does every new one. Together those of one subnet
  pass at once for a part of the time only, and so do all of them, so that beginning anew helps nobody.
- The others wait, and one of them has its turn at a time: that of the subnet that had least so far, and of its
  connections the one that had least (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996). Whoever was quiet does
  not save up. So a crowd in one subnet has no more than one connection elsewhere, and nobody starves.
- The next turn comes once what the last one left to other tasks is done: streams that were opened, answers.
- A connection that has the node to itself is not held up, and a few that bring much go on as fast as the loop does:
  they are the bulk of honest peers, and who waits behind a few reads waits for little.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

import trio

__all__ = ["BEGINNING_S", "Turn", "Turns"]

BEGINNING_S: Final = 200e-6  # what is counted of a connection or a stream that begins, which is done in other tasks
LIGHT_S: Final = 600e-6  # who took less of late passes at once
LIGHT_SHARE: Final = 0.25  # of the time is forgiven: who takes less stays light
TOGETHER_SHARE: Final = 0.5  # the same for all that pass
TOGETHER_S: Final = 1e-3
FIRST_S: Final = 1e-3  # a new connection may take before it is one of many in its place
AHEAD_S: Final = 300e-6  # of others, at most: so much somebody who waits may have to wait for, in others' turns
MOST_COUNTED_S: Final = 300e-6  # of one turn: what is more is a collection of garbage, and nobody's
RECENT_S: Final = 10e-3  # for so long somebody who had a turn counts as there
FEW: Final = 4  # who wait are served together, without a pause, unless one begins something
CROWDED: Final = 5  # times as much is counted of who passes others of its own place
CALM: Final = 2.0  # times the shortest round of the loop that was seen: in such a one little was done
CALM_ROUNDS: Final = 2  # since trio shuffles each round: what is done in one may stand before and behind our step
CALM_FADES: Final = 1.001  # a round, so that a machine that has become slower is not for ever without calm
MOST_S: Final = 1e-3  # that a turn waits for calm
REST: Final = 1.0  # times what a turn took with all that it began, behind it, while somebody passes
REST_OF_BEGINNING: Final = 3.0  # the same where it began a stream or a connection: their objects cost later, too
STEP_S: Final = 400e-6  # from one piece of what connections begin with to the next, while others are there
STEPS: Final = 16  # that wait: of more, the next comes sooner, so that a crowd of newcomers keeps nobody out
MAX_PLACES: Final = 1024  # of more, those are forgotten that were quiet
QUIET_S: Final = 1.0


class _Debt:
    """Time that was taken of late: `share` of the time that passes is forgiven."""

    __slots__ = ("_at", "_s", "_share")

    def __init__(self, share: float = LIGHT_SHARE) -> None:
        self._s = self._at = 0.0
        self._share = share

    def now(self, now: float) -> float:
        return max(0.0, self._s - (now - self._at) * self._share)

    def add(self, cost_s: float, now: float) -> None:
        self._s = self.now(now) + cost_s
        self._at = now


class _Waiting:
    """Somebody who waits for a turn."""

    __slots__ = ("rest", "task", "turn")

    def __init__(self, turn: Turn, task: trio.lowlevel.Task, rest: float) -> None:
        self.turn = turn
        self.rest = rest
        self.task: trio.lowlevel.Task | None = task  # None once it waits no more


class _Place:
    """Connections that count together."""

    __slots__ = ("at", "had_s", "passed", "queue", "queued", "reached_s", "waiting")

    def __init__(self, now: float) -> None:
        self.at = now  # when it had something last, or came
        self.had_s = 0.0  # of virtual time
        self.reached_s = 0.0  # how far the turns of its connections are
        self.passed = _Debt()
        self.queue: list[tuple[float, int, _Waiting]] = []
        self.queued = False  # among those who wait
        self.waiting = 0


def _counted(had_s: float, reached_s: float, cost_s: float) -> float:
    """What somebody had who takes `cost_s`, where others have reached `reached_s`: it is never far ahead of them."""
    return min(max(had_s, reached_s) + cost_s, reached_s + AHEAD_S)


class _Pace:
    """When the next turn may come: once the last one's work is done, and, while somebody passes turns, so many times
    later as that took."""

    def __init__(self) -> None:
        self._shortest_s = math.inf  # round of the loop
        self._calm = 0  # rounds, one behind the other
        self._served_at = -math.inf
        self._free_at: float | None = -math.inf  # None until its work is done

    def is_time(self, began: float, now: float, *, at_rest: bool, rest: float, hurry: bool = False) -> bool:
        """After a round of the loop from `began` to `now`; whether the next turn comes, where the last one is followed
        by a pause of `rest` times what it took; by nothing at all, in a `hurry`."""
        self._shortest_s = min(self._shortest_s * CALM_FADES, now - began)
        if hurry:
            self._free_at = now
        elif self._free_at is None:
            self._calm = self._calm + 1 if at_rest and now - began <= CALM * self._shortest_s else 0
            if self._calm < CALM_ROUNDS and now - self._served_at < MOST_S:
                return False
            self._free_at = now + rest * min(now - self._served_at, MOST_S)  # nobody may have waited for long
        if now < self._free_at:
            return False
        self._served_at, self._free_at, self._calm = now, None, 0
        return True


class Turns:
    """The turns of one node. Without a task that does `run` everybody passes.

    Args:
        clock: seconds that do not go back, fine enough to measure steps of microseconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.waiting = 0
        self._places: dict[str, _Place] = {}
        self._room = MAX_PLACES
        self._queue: list[tuple[float, int, _Place]] = []  # places in which somebody waits
        self._numbers = itertools.count()
        self._reached_s = 0.0  # virtual time
        self._passed = _Debt(TOGETHER_SHARE)
        self._passes = 0
        self._passed_at = -math.inf
        self.running = False
        self._idle = trio.lowlevel.ParkingLot()
        self._served: Turn | None = None
        self._rest = REST
        self._stepping: dict[_Place, deque[trio.lowlevel.Task]] = {}  # who waits for a step; the next place first
        self._step_at = -math.inf
        self._steps_waiting = 0
        self._who: object = None  # had a turn last, and when; and when somebody else had
        self._at = self._other_at = -math.inf

    def turn(self, place: str) -> Turn:
        """What a connection from `place` takes turns with: a subnet, or whatever counts together."""
        known = self._places.get(place)
        if known is None:
            if len(self._places) >= self._room:
                self._forget()
            known = self._places[place] = _Place(self.clock())
        return Turn(self, known)

    def _forget(self) -> None:
        """Places that were quiet for a while are as new ones."""
        quiet = self.clock() - QUIET_S
        self._places = {name: place for name, place in self._places.items() if place.queued or place.at > quiet}
        self._room = max(MAX_PLACES, 2 * len(self._places))

    # Who passes

    def shared_by(self, turn: Turn, now: float) -> bool:
        """Whether others wait, or were here of late."""
        if not self.running:
            return False
        return self.waiting > 0 or now - (self._other_at if turn is self._who else self._at) < RECENT_S

    def passes(self, turn: Turn, now: float) -> bool:
        """Whether `turn` need not wait for those that wait."""
        place = turn.place
        light = turn.took.now(now) <= LIGHT_S and place.passed.now(now) <= LIGHT_S
        owed = not place.waiting and place.had_s < self._reached_s  # others had more than all that are here
        return (light or owed) and self._passed.now(now) <= TOGETHER_S

    def charge(self, turn: Turn, cost_s: float, now: float, *, passed: bool) -> None:
        """`turn` has taken `cost_s`, while others were there."""
        place = turn.place
        place.at = now
        turn.took.add(cost_s, now)
        turn.had_s = _counted(turn.had_s, place.reached_s, cost_s)
        turn.first_s = max(0.0, turn.first_s - cost_s)
        place.had_s = _counted(place.had_s, self._reached_s, cost_s)
        if passed:
            self._passes += 1
            self._passed_at = now
            place.passed.add(cost_s * CROWDED if place.waiting else cost_s, now)
            self._passed.add(min(cost_s, MOST_COUNTED_S), now)
        else:  # whoever comes now begins here, so that those who wait are reached however many come
            self._reached_s += cost_s / min(1 + len(self._queue), FEW)
        if self._served is turn:
            self._served = None

    def was_here(self, turn: Turn, now: float) -> None:
        """`turn` was had."""
        if turn is not self._who:
            self._who, self._other_at = turn, self._at
        self._at = now

    # Who waits

    async def wait(self, turn: Turn, *, rest: float = REST) -> None:
        """Until it is `turn`'s turn, with its pause behind it. Cancellation: it has had none."""
        place = turn.place
        waiting = _Waiting(turn, trio.lowlevel.current_task(), rest)
        reached_s = max(turn.had_s, place.reached_s) - turn.first_s
        heapq.heappush(place.queue, (reached_s, next(self._numbers), waiting))
        self._queue_up(place)
        self.waiting += 1
        place.waiting += 1
        self._idle.unpark()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            waiting.task = None
            self.waiting -= 1
            place.waiting -= 1
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def wait_for_step(self, turn: Turn) -> None:
        """See `Turn.step`."""
        now = self.clock()
        if not self._stepping and (now >= self._step_at or not self.shared_by(turn, now)):
            self._step_at = now + STEP_S
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        place, task = turn.place, trio.lowlevel.current_task()
        self._stepping.setdefault(place, deque()).append(task)
        self._steps_waiting += 1
        self._idle.unpark()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._steps_waiting -= 1
            self._stepping[place].remove(task)
            if not self._stepping[place]:
                del self._stepping[place]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._step_at = self.clock() + STEP_S * min(1.0, STEPS / max(1, self._steps_waiting))

    def _give_step(self) -> None:
        """To the place that had none for longest, and in it to whoever asked first."""
        self._step_at = math.inf  # until it runs
        self._steps_waiting -= 1
        place = next(iter(self._stepping))
        tasks = self._stepping.pop(place)
        trio.lowlevel.reschedule(tasks.popleft())
        if tasks:
            self._stepping[place] = tasks

    def _queue_up(self, place: _Place) -> None:
        if not place.queued:
            place.queued = True
            heapq.heappush(self._queue, (max(place.had_s, self._reached_s), next(self._numbers), place))

    def _next(self) -> _Waiting | None:
        """Who waits and had least; it waits no more."""
        while self._queue:
            at, _, place = heapq.heappop(self._queue)
            if at < place.had_s:  # it had more since it was put there
                heapq.heappush(self._queue, (place.had_s, next(self._numbers), place))
                continue
            place.queued = False
            while place.queue:
                reached_s, _, waiting = heapq.heappop(place.queue)
                if waiting.task is None:
                    continue
                place.reached_s = max(place.reached_s, reached_s)
                self._reached_s = max(self._reached_s, at)
                if place.queue:
                    self._queue_up(place)
                self.waiting -= 1
                place.waiting -= 1
                return waiting
        return None

    def _serve(self) -> None:
        waiting = self._next()
        if waiting is not None and waiting.task is not None:
            self._served, self._rest = waiting.turn, waiting.rest
            trio.lowlevel.reschedule(waiting.task)

    @property
    def _few(self) -> bool:
        """Whether few wait, and the last one served began nothing."""
        return self.waiting <= FEW and self._rest == REST

    async def run(self) -> NoReturn:
        """Give turns, until cancelled; then nobody waits any more."""
        self.running = True
        try:
            pace = _Pace()
            while True:
                if not self.waiting and not self._stepping:
                    await self._idle.park()
                passes, began = self._passes, self.clock()
                await trio.lowlevel.checkpoint()
                now = self.clock()
                if self._stepping and now >= self._step_at:
                    self._give_step()
                if not self.waiting:
                    continue
                at_rest = self._served is None and passes == self._passes
                rest = self._rest if now - self._passed_at < RECENT_S else 0.0
                hurry = self._few
                if pace.is_time(began, now, at_rest=at_rest, rest=rest, hurry=hurry):
                    self._serve()
                    while hurry and self.waiting and self._few:
                        self._serve()
        finally:
            self.running = False
            while self.waiting:
                self._serve()
            while self._stepping:
                self._give_step()
        raise AssertionError("unreachable")


class Turn:
    """Of one connection. Made by `Turns.turn`.

    Attributes:
        taken: whether it has its turn.
        shared: whether others wanted something when it was taken or asked for, so that it had better be short.
    """

    __slots__ = ("_began", "_passed", "first_s", "had_s", "place", "shared", "taken", "took", "turns")

    def __init__(self, turns: Turns, place: _Place) -> None:
        self.place = place
        self.had_s = 0.0
        self.first_s = FIRST_S
        self.took = _Debt()
        self.taken = self.shared = False
        self.turns = turns
        self._passed = False
        self._began = 0.0

    @property
    def short(self) -> bool:
        """Whether it had better be done in a tenth of a millisecond: it passes others, or is one of a crowd."""
        return self.shared and (self._passed or self.turns.waiting > FEW)

    def try_take(self) -> bool:
        """Have the turn now, if it need not be waited for. `done` follows, before anything else is waited for."""
        turns = self.turns
        self._began = now = turns.clock()
        self.shared = shared = turns.shared_by(self, now)
        self._passed = self.taken = not shared or turns.passes(self, now)
        return self.taken

    async def take(self) -> None:
        """Wait for the turn. `done` follows, before anything else is waited for. Cancellation: it has had none."""
        if not self.try_take():
            await self.turns.wait(self)
            self.taken = True
            self._began = self.turns.clock()

    def done(self) -> None:
        """The turn is over; nothing where there was none."""
        if self.taken:
            self.taken = False
            turns = self.turns
            now = turns.clock()
            if self.shared:
                turns.charge(self, min(now - self._began, MOST_COUNTED_S), now, passed=self._passed)
            turns.was_here(self, now)

    async def step(self) -> None:
        """Before each piece of what a connection begins with, some 0.1 ms that nobody can interrupt: while others are
        there such pieces are done one at a time, whoever's they are, and `STEP_S` apart, so that a request meets one of
        them. Places have theirs one after the other. Cancellation: it is not done."""
        if not self.turns.running:
            await trio.lowlevel.checkpoint()
            return
        await self.turns.wait_for_step(self)

    async def pay(self, cost_s: float) -> None:
        """Wait for a turn, beside the one that may be taken, for what takes `cost_s` in other tasks."""
        turns = self.turns
        now = turns.clock()
        if not turns.shared_by(self, now):
            turns.was_here(self, now)
            return
        passed = turns.passes(self, now)
        if not passed:
            await turns.wait(self, rest=REST_OF_BEGINNING)
        now = turns.clock()
        turns.charge(self, cost_s, now, passed=passed)
        turns.was_here(self, now)
