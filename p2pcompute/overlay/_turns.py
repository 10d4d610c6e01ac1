"""Turns between connections that bring much, so that those that bring little do not wait behind all of them.

Trio runs whatever can run once in each round of its loop. Where many connections have a full socket, everybody waits in
each round until all of them were read, and whoever says a few bytes waits for a few such rounds: for eight connections
a fiftieth of a second. With turns it waits for one of them, however many there are, and for less of it.
"""

from __future__ import annotations

import math
from typing import Final

import trio

__all__ = ["SMALL_READ_BYTES", "Turns"]

SMALL_READ_BYTES: Final = 4096  # what brings more at once has to wait for its turn the next time
PAUSE: Final = 1.0  # times what a turn took, before the next one, where several wait and somebody says little
RECENT_S: Final = 0.02  # for so long somebody who said little counts as there


class Turns:
    """The turn of one node: first come, first served."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._taken_at = self._free_at = -math.inf
        self._who: object = None  # said little last, and when; and when somebody else did last
        self._at = self._other_at = -math.inf

    def said_little(self, who: object) -> None:
        """`who`, a connection, said a few bytes, and may wait for an answer."""
        if who is not self._who:
            self._who, self._other_at = who, self._at
        self._at = trio.current_time()

    def shared_by(self, who: object) -> bool:
        """Whether others than `who` wait, or are likely to: then its turn should be short."""
        at = self._other_at if who is self._who else self._at
        return bool(self._waiting) or trio.current_time() - at < RECENT_S

    async def take(self, who: object) -> None:
        """Wait until it is the turn of `who`; `give` follows. Cancellation: the turn is not taken."""
        if self._taken:
            await self._waiting.park()  # whoever gives it leaves it taken
        self._taken = True
        now = trio.current_time()
        if self.shared_by(who):
            try:  # in the next round at the earliest, so that what is begun and done in one round is done once
                await trio.sleep_until(max(self._free_at, now))
            except trio.Cancelled:
                self._give()
                raise
        self._taken_at = trio.current_time()

    def give(self) -> None:
        """To whoever waits longest, in the next round of the loop; or, where somebody says little meanwhile, once that
        one has had as much time."""
        if self._waiting:
            now = trio.current_time()
            if now - self._at < RECENT_S:
                self._free_at = now + PAUSE * (now - self._taken_at)
        self._give()

    def _give(self) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._taken = False
