"""A run as launches: parts of it, one after the other, each long enough to be worth its start and short enough that
a worker which is asked to stop does so soon.

A launch is whole items, so that cutting changes no bit: a thread's row, and a block's partial of a combined output,
depend on nothing outside of the item. Items of one kernel may differ in cost by any factor, so each launch is measured
and the next one follows from it; a single item that takes long is as long as a launch can get.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["FIRST_NS", "GROWTH", "LONGEST_NS", "TARGET_NS", "Between", "Pace", "Stopped", "in_launches"]

TARGET_NS: Final = 100_000_000
"""What a launch is to take."""
LONGEST_NS: Final = 150_000_000
"""A launch may be planned as long as this where nothing would be left after it."""
FIRST_NS: Final = 12_500_000
"""What the first launch of a run is to take, where the run is not expected to be over within `TARGET_NS`: what was
measured is of other items."""
GROWTH: Final = 8
"""A launch has at most so many times the items of the one before, whose time may have been all start and no work."""

Between: TypeAlias = Callable[[int], bool]
"""Called between two launches with the items done so far; False ends the run."""


class Stopped(Exception):
    """A run was asked to stop, and has done so between two launches."""


class Pace:
    """How many items a launch should have, from what the ones before took. For one compiled kernel."""

    __slots__ = ("_item_ns",)

    def __init__(self) -> None:
        self._item_ns = 0.0  # not known

    def first(self, total: int) -> int:
        """Items of the first launch of `total`."""
        expected_ns = self._item_ns * total
        if total == 1 or 0 < expected_ns <= TARGET_NS:
            return total
        return max(1, int(FIRST_NS / self._item_ns)) if self._item_ns else 1

    def following(self, before: int, left: int) -> int:
        """Items of a launch that follows one of `before` items, with `left` to be done."""
        most = before * GROWTH
        if left <= most and left * self._item_ns <= LONGEST_NS:
            return left
        return max(1, min(left, most, int(TARGET_NS / self._item_ns)))

    def took(self, items: int, spent_ns: int) -> None:
        """A launch of so many items has taken so long."""
        self._item_ns = max(spent_ns, 1) / items


def in_launches(
    total: int, launch: Callable[[int, int], None], pace: Pace, between: Between, *, at_once: int = 1
) -> None:
    """Call ``launch(start, count)`` for parts that cover ``range(total)``, ascending.

    As many items as are computed `at_once` are one launch at least: they take no longer than one of them.
    Raises `Stopped` where `between` gives False.
    """
    done, count = 0, min(total, max(at_once, pace.first(total)))
    while True:
        began = time.perf_counter_ns()
        launch(done, count)
        pace.took(count, time.perf_counter_ns() - began)
        done += count
        if done >= total:
            return
        if not between(done):
            raise Stopped
        count = min(total - done, max(at_once, pace.following(count, total - done)))
