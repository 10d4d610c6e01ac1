"""Rates that strangers are held to, and the buckets that hold them there: for connections, questions and time.

Nothing here knows what is counted, or a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Buckets", "Rate", "TokenBucket"]

_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`per_s` in the long run, and `burst` at once."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not (self.per_s > 0 and self.burst >= 1):
            raise ValueError("a rate lets at least one through at once, and something in the long run")


class TokenBucket:
    """Lets through what keeps to a `Rate`. Times are seconds of any clock that does not go back."""

    __slots__ = ("_filled_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._filled_at = now

    def take(self, now: float, count: float = 1.0) -> bool:
        """Take `count` tokens where they are there; otherwise none, and False."""
        self._fill(now)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def has(self, now: float, count: float) -> bool:
        """Whether so many tokens are there."""
        self._fill(now)
        return self._tokens >= count

    def charge(self, now: float, count: float) -> None:
        """Take `count` tokens, there or not: what is missing has to come in before anything more is let through."""
        self._fill(now)
        self._tokens -= count

    def is_full(self, now: float) -> bool:
        """Whether forgetting this bucket would change nothing."""
        self._fill(now)
        return self._tokens >= self._rate.burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._rate.burst, self._tokens + max(0.0, now - self._filled_at) * self._rate.per_s)
        self._filled_at = max(self._filled_at, now)


class Buckets(Generic[_K]):
    """A bucket for each key, `capacity` at most.

    Keys that were quiet for long are forgotten, which changes nothing for them: their buckets are full. Where even
    that leaves too many, the one that was used least lately goes: it takes as many keys as there are places, each
    used since, to have a fresh bucket.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float], *, capacity: int = 4096) -> None:
        self._rate = rate
        self._clock = clock
        self._capacity = capacity
        self._buckets: OrderedDict[_K, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: _K, count: float = 1.0) -> bool:
        """Take `count` tokens of `key` where they are there; otherwise none, and False."""
        now = self._clock()
        return self._of(key, now).take(now, count)

    def has(self, key: _K, count: float = 1.0) -> bool:
        """Whether `key` has so many tokens."""
        now = self._clock()
        bucket = self._buckets.get(key)
        return count <= self._rate.burst if bucket is None else bucket.has(now, count)

    def charge(self, key: _K, count: float) -> None:
        """Take `count` tokens of `key`, there or not; see `TokenBucket.charge`."""
        now = self._clock()
        self._of(key, now).charge(now, count)

    def _of(self, key: _K, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def _make_room(self, now: float) -> None:
        for _ in range(2):  # two out for each one in, so that the table shrinks when a crowd has gone
            if not self._buckets:
                return
            key = next(iter(self._buckets))
            if len(self._buckets) < self._capacity and not self._buckets[key].is_full(now):
                return
            del self._buckets[key]
