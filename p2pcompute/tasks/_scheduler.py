"""Which provider computes which chunk: a plain object without I/O or clock.

A chunk is pending, running at one or more providers, or done. Each is given out in order; when none is pending,
the chunk that has run longest at somebody else is given out a second time (a hedge against a slow provider), and
the first answer counts. Chunks of a provider that is lost go back; those of one that lied all go back, done ones
included, because samples bound how much it can have altered but do not say where.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from p2pcompute_protocols.ids import PeerId

__all__ = ["ChunkScheduler", "Running"]

_HEDGE_FACTOR: Final = 3.0  # a chunk is late when it runs so many times as long as the median
_HEDGE_MIN_S: Final = 1.0
_UNKNOWN_S: Final = 30.0  # while no chunk has been timed
_MAX_COPIES: Final = 8  # each further one only after twice the wait, so that two that sit on a chunk hold up nobody


@dataclass(slots=True)
class Running:
    """Who has a chunk, and since when; `inf` where the result is here."""

    since: dict[PeerId, float] = field(default_factory=dict)


class ChunkScheduler:
    """The state of all chunks of one task. Times are seconds of any clock that does not go back."""

    def __init__(self, chunks: int) -> None:
        self.chunks = chunks
        self.requeued = 0
        self._pending = list(range(chunks))
        heapq.heapify(self._pending)
        self._running: dict[int, Running] = {}
        self._done: dict[int, PeerId] = {}
        self._refused: dict[int, set[PeerId]] = {}
        self._durations: deque[float] = deque(maxlen=64)

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is done."""
        return len(self._done) == self.chunks

    def cut(self) -> None:
        """Leave it at what was given out: the chunks that are pending, the last ones, are not wanted any more."""
        self.chunks -= len(self._pending)
        self._pending.clear()

    @property
    def done(self) -> int:
        """How many chunks are done."""
        return len(self._done)

    @property
    def finished(self) -> frozenset[int]:
        """The chunks that are done."""
        return frozenset(self._done)

    @property
    def running(self) -> int:
        """How many chunks are under way."""
        return len(self._running)

    def share(self, provider: PeerId, under_way: int) -> int:
        """How many chunks more `provider` may have at most, beside so many that it has: as many as each other that
        computes now of those that are pending, and of all that are not done, so that nobody waits long for the last
        ones of one (guided self-scheduling; Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987)."""
        computing = len({provider}.union(*(run.since for run in self._running.values())))
        share = -(-(self.chunks - len(self._done)) // computing) - under_way
        return min(share, -(-len(self._pending) // computing)) if self._pending else share

    def done_by(self, provider: PeerId) -> list[int]:
        """The chunks that `provider` has done."""
        return sorted(index for index, who in self._done.items() if who == provider)

    def failures(self, index: int) -> int:
        """At how many providers the chunk has failed."""
        return len(self._refused.get(index, ()))

    def ran(self, index: int, provider: PeerId, now: float) -> float:
        """For how many seconds `provider` has had the chunk; 0 where it does not have it."""
        run = self._running.get(index)
        return max(0.0, now - run.since[provider]) if run is not None and provider in run.since else 0.0

    def ran_at(self, index: int, provider: PeerId) -> bool:
        """Whether `provider` has the chunk now."""
        run = self._running.get(index)
        return run is not None and provider in run.since

    def refused_at(self, index: int) -> set[PeerId]:
        """The providers that may not have the chunk."""
        return set(self._refused.get(index, ()))

    def _is_kept_from(self, provider: PeerId, index: int) -> bool:
        """Whether the chunk is not for this provider."""
        return provider in self._refused.get(index, ())

    def orphans(self, providers: Iterable[PeerId]) -> list[int]:
        """The pending chunks that failed for good at every one of `providers`."""
        known = set(providers)
        if not known:
            return sorted(self._pending)
        refused = [index for index, where in self._refused.items() if known <= where]
        pending = set(self._pending) if refused else set[int]()
        return sorted(index for index in refused if index in pending)

    def forgive(self, index: int) -> set[PeerId]:
        """The chunk is not to blame for its failures: whoever remains may have it. Gives at whom it failed."""
        return self._refused.pop(index, set())

    def take(self, provider: PeerId, now: float) -> int | None:
        """The next chunk for `provider`, or None where there is nothing for it to do now."""
        skipped: list[int] = []
        chosen = None
        while self._pending:
            index = heapq.heappop(self._pending)
            if self._is_kept_from(provider, index):
                skipped.append(index)
                continue
            chosen = index
            break
        for index in skipped:
            heapq.heappush(self._pending, index)
        if chosen is None:
            chosen = self._late(provider, now)
        if chosen is not None:
            self._running.setdefault(chosen, Running()).since[provider] = now
        return chosen

    def hedge_at(self, provider: PeerId) -> float | None:
        """When the next chunk of somebody else becomes late enough for `provider` to compute too."""
        times = [max(run.since.values()) + self._patience(run) for _, run in self._hedgeable(provider)]
        return min((time for time in times if time < math.inf), default=None)

    def _patience(self, run: Running) -> float:
        once = _UNKNOWN_S if not self._durations else _HEDGE_FACTOR * statistics.median(self._durations)
        return max(_HEDGE_MIN_S, once) * 2.0 ** (len(run.since) - 1)

    def _hedgeable(self, provider: PeerId) -> list[tuple[int, Running]]:
        return [
            (index, run)
            for index, run in self._running.items()
            if provider not in run.since and len(run.since) < _MAX_COPIES and not self._is_kept_from(provider, index)
        ]

    def _late(self, provider: PeerId, now: float) -> int | None:
        late = [
            (min(run.since.values()), index)
            for index, run in self._hedgeable(provider)
            if now - max(run.since.values()) >= self._patience(run)
        ]
        if not late:
            return None
        self.requeued += 1
        return min(late)[1]

    def came(self, index: int, provider: PeerId, now: float) -> None:
        """A result is here and waits to be checked and handed over: `provider` is not late with it, we are."""
        run = self._running.get(index)
        if run is not None and run.since.get(provider, math.inf) < math.inf:
            self._durations.append(now - run.since[provider])
            run.since[provider] = math.inf

    def finish(self, index: int, provider: PeerId, now: float) -> list[PeerId] | None:
        """A checked result came. The providers to cancel it at, or None where it was done already."""
        if index in self._done:
            return None
        run = self._running.pop(index, Running())
        if provider in run.since:
            if run.since[provider] < math.inf:
                self._durations.append(now - run.since[provider])
        elif index in self._pending:  # it was given up here, or its first copy revoked, before this one came
            self._pending.remove(index)
            heapq.heapify(self._pending)
        self._done[index] = provider
        return [other for other in run.since if other != provider]

    def fail(self, index: int, provider: PeerId, *, for_good: bool) -> None:
        """A chunk came back without a result; `for_good` keeps it from that provider."""
        if for_good:
            self._refused.setdefault(index, set()).add(provider)
        run = self._running.get(index)
        if run is None or provider not in run.since:
            return
        del run.since[provider]
        if not run.since:
            del self._running[index]
            if index not in self._done:
                heapq.heappush(self._pending, index)
                self.requeued += 1

    def lost(self, provider: PeerId) -> list[int]:
        """A provider is gone: what it was computing goes back. Gives the chunks."""
        mine = [index for index, run in self._running.items() if provider in run.since]
        for index in mine:
            self.fail(index, provider, for_good=False)
        return mine

    def revoke(self, provider: PeerId) -> list[int]:
        """A provider lied: everything of it goes back. Gives the chunks that were done."""
        self.lost(provider)
        mine = self.done_by(provider)
        for index in mine:
            del self._done[index]
            heapq.heappush(self._pending, index)
            self.requeued += 1
        return mine
