"""How many chunks a provider is given at once: it always has the next ones, and nobody waits long for its last."""

from __future__ import annotations

import math
from typing import Final

from p2pcompute_protocols.limits import MAX_INFLIGHT_CHUNKS

__all__ = ["Pace"]

_AHEAD_S: Final = 0.4  # of work that lies at a provider beside what is on its way to and fro: two groups of chunks
_SMOOTH: Final = 0.5  # what the newest answers count


class Pace:
    """By Little's law: what is under way is how fast answers come times how long one takes that waits for nothing; and
    twice as many, once a round trip, while chunks do wait for nothing, as TCP begins (RFC 5681, 3.1).

    Chunks that were computed together come at once, in several messages perhaps: how long they took counts for all of
    them. A chunk that takes long counts as `least`, which is what computes and one that waits. Times are seconds of
    any clock that does not go back.
    """

    __slots__ = (
        "_chunks",
        "_doubled",
        "_earlier_s",
        "_finished_ms",
        "_interval_s",
        "_least",
        "_since",
        "_took_s",
        "_trip_s",
        "depth",
    )

    def __init__(self, least: int) -> None:
        self._least = least
        self.depth = least
        self._interval_s = math.inf  # between two answers
        self._earlier_s = math.inf  # the same before the newest answers,
        self._chunks = 0  # of which there are so many,
        self._took_s = 0.0  # so long after those before them,
        self._finished_ms = -1  # and the provider says that it had them then
        self._trip_s = math.inf  # from an assignment to its answer, at best
        self._doubled = -math.inf  # when; what was given out before says nothing yet
        self._since = 0.0  # when the last answer came, or when the first chunk was given out after that

    @property
    def portion(self) -> int:
        """How many chunks to give out at a time, where the provider has so many already: half of what is to lie there
        beside what is on its way. Those that lie side by side it computes together."""
        return max(1, min(self.depth // 2, int(_AHEAD_S / 2 / self._interval_s)))

    def began(self, now: float) -> None:
        """A chunk was given out, and nothing else is under way."""
        self._since = now

    def answered(self, chunks: int, now: float, took_s: float, *, finished_ms: int) -> None:
        """So many answers came in a message, the newest of them `took_s` after its chunk was given out. The provider
        says that it has finished them then, which is one time for all that it has computed together."""
        waited_s = max(now - self._since, 1e-6)
        self._since = now
        if finished_ms != self._finished_ms:
            self._earlier_s, self._chunks, self._took_s = self._interval_s, 0, 0.0
            self._finished_ms = finished_ms
        self._chunks += chunks
        self._took_s += waited_s
        interval_s = self._took_s / self._chunks
        if self._earlier_s < math.inf:
            interval_s = _SMOOTH * interval_s + (1 - _SMOOTH) * self._earlier_s
        self._interval_s = interval_s
        self._trip_s = min(self._trip_s, took_s)
        wanted = math.ceil((self._trip_s + _AHEAD_S) / interval_s)
        if now - took_s >= self._doubled and took_s - self._trip_s < _AHEAD_S / 2:
            # It lay behind no other: the provider waits for its chunks, and answers as slowly as they are given to it.
            wanted, self._doubled = 2 * self.depth, now
        self.depth = max(self._least, min(wanted, 2 * self.depth, MAX_INFLIGHT_CHUNKS))
