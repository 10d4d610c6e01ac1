"""Which piece is asked for next, and of whom. Time and luck are arguments.

Pieces that few hold come first. The requester's own link is the one that all providers share, so of the requester
only what no other holder has is asked for: one run of pieces that follow each other, from a random one on, so that
two who begin at the same time seldom want the same. What it has not sent when somebody else holds it is taken from
there. Who is slow loses what is under way to who is not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Picker", "SourceState"]

_PATIENCE_S: Final = 2.0  # without a new piece; then the requester is asked for what others hold as well
_QUEUED_S: Final = 0.1  # under way at the requester, and somebody else has it now
_SLOW_S: Final = 1.0  # the least time before a piece is asked for a second time elsewhere
_SLOWER: Final = 4.0  # times what it takes the one who takes it over
_MAX_COPIES: Final = 2  # of one piece under way


@dataclass(slots=True, eq=False)
class SourceState:
    """One holder as the picker knows it.

    Attributes:
        origin: the requester of the task, whose link is to be spared.
        held: the pieces that it has.
        piece_s: what a piece takes from there, of late.
        asked: pieces under way, and since when.
    """

    origin: bool
    held: set[int] = field(default_factory=set)
    piece_s: float = 0.5
    asked: dict[int, float] = field(default_factory=dict)
    last: int | None = None


class Picker:
    """Which of `count` pieces to ask for. `done` is shared with whoever puts them into place."""

    def __init__(self, count: int, done: set[int], *, rng: random.Random, now: float) -> None:
        self.count = count
        self.done = done
        self.sources: list[SourceState] = []
        self.progress_s = now  # when the last new piece came
        self._rng = rng

    def _under_way(self, index: int) -> list[SourceState]:
        return [source for source in self.sources if index in source.asked]

    def _others_hold(self, index: int, source: SourceState) -> bool:
        return any(other is not source and not other.origin and index in other.held for other in self.sources)

    def pick(self, source: SourceState, now: float) -> int | None:
        """The next piece to ask `source` for; None where there is none for it now. It is then under way there."""
        index = self._first(source, now)
        if index is None:
            index = self._second(source, now)
        if index is not None:
            source.asked[index] = now
            source.last = index
        return index

    def _first(self, source: SourceState, now: float) -> int | None:
        """A piece that nobody has been asked for."""
        under_way = {index for other in self.sources for index in other.asked}
        free = source.held - self.done - under_way
        if not free:
            return None
        if source.origin:
            rare = {index for index in free if not self._others_hold(index, source)}
            if not rare:
                return self._rng.choice(sorted(free)) if now - self.progress_s >= _PATIENCE_S else None
            following = None if source.last is None else source.last + 1
            return following if following in rare else self._rng.choice(sorted(rare))
        copies = {index: sum(index in other.held for other in self.sources) for index in free}
        fewest = min(copies.values())
        return self._rng.choice(sorted(index for index in free if copies[index] == fewest))

    def _second(self, source: SourceState, now: float) -> int | None:
        """A piece that is under way elsewhere, and takes long there."""
        oldest: tuple[float, int] | None = None
        for index in sorted(source.held - self.done):
            at = self._under_way(index)
            if source in at or not at or len(at) >= _MAX_COPIES:
                continue
            since = max(other.asked[index] for other in at)
            if now >= since + self._until(source, at) and (oldest is None or since < oldest[0]):
                oldest = (since, index)
        return None if oldest is None else oldest[1]

    def _until(self, source: SourceState, at: list[SourceState]) -> float:
        if source.origin:
            return max(_PATIENCE_S, _SLOWER * source.piece_s)
        if all(other.origin for other in at):
            return _QUEUED_S
        return max(_SLOW_S, _SLOWER * source.piece_s)

    def look_again_s(self, source: SourceState, now: float) -> float:
        """When `pick` may give `source` something although nothing else has happened."""
        times = [self.progress_s + _PATIENCE_S] if source.origin and source.held - self.done else []
        for index in source.held - self.done:
            at = self._under_way(index)
            if at and source not in at and len(at) < _MAX_COPIES:
                times.append(max(other.asked[index] for other in at) + self._until(source, at))
        return max(now + 0.01, min(times, default=float("inf")))

    def came(self, source: SourceState, index: int, now: float) -> None:
        """A piece has come from `source`, new or not."""
        since = source.asked.pop(index, None)
        if since is not None:
            source.piece_s = 0.7 * source.piece_s + 0.3 * (now - since)
        if index not in self.done:
            self.progress_s = now

    def drop(self, source: SourceState, index: int) -> None:
        """It does not come from there."""
        source.asked.pop(index, None)

    def lost(self, source: SourceState) -> None:
        """Nothing more comes from there."""
        source.asked.clear()
        if source in self.sources:
            self.sources.remove(source)
