"""Turns at what a provider has little of: slots to compute in, and compilations at a time. Who has paid goes first."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import trio

__all__ = ["LINGER_S", "Turns"]

LINGER_S: Final = 1.0
"""For how long after a known peer's turn newcomers wait for its next one: a result travels, a voucher comes back."""


class _Waiter:
    __slots__ = ("news",)

    def __init__(self) -> None:
        self.news = trio.Event()


class Turns:
    """So many at a time; known peers before newcomers, and each of both in the order in which they came.

    Peer IDs cost nothing, so a single queue is as long as somebody likes to make it.

    Args:
        total: how many turns there are at once.
        apart: newcomers' turns take none from known peers, who wait for each other only. There are up to twice `total`
            turns at once then.
        linger_s: newcomers get no turn for so long after a known peer's has ended.
    """

    def __init__(self, total: int, *, apart: bool = False, linger_s: float = 0.0) -> None:
        if total < 1:
            raise ValueError("at least one turn at a time")
        self.total = total
        self._apart = apart
        self._linger_s = linger_s
        self._quiet_until_s = -math.inf
        self._known_taken = 0
        self._others_taken = 0
        self._known: deque[_Waiter] = deque()
        self._others: deque[_Waiter] = deque()

    @property
    def borrowed_tokens(self) -> int:
        """Turns that are taken now, as a `trio.CapacityLimiter` has it."""
        return self._known_taken + self._others_taken

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._known) + len(self._others)

    @asynccontextmanager
    async def turn(self, *, known: bool) -> AsyncGenerator[None]:
        """Wait for a turn and have it for the length of a block. One that is free is taken at once.

        Cancellation: who leaves the queue leaves it at once, and takes nothing along.
        """
        await self._wait(known)
        try:
            yield
        finally:
            if known:
                self._known_taken -= 1
                self._quiet_until_s = trio.current_time() + self._linger_s
            else:
                self._others_taken -= 1
            self._tell()

    async def _wait(self, known: bool) -> None:
        queue = self._known if known else self._others
        await trio.lowlevel.checkpoint_if_cancelled()
        if not queue and self._is_free(known):
            self._take(known)
            return
        mine = _Waiter()
        queue.append(mine)
        try:
            await trio.lowlevel.checkpoint()
            while not (queue[0] is mine and self._is_free(known)):
                mine.news = trio.Event()
                quiet = not known and trio.current_time() < self._quiet_until_s
                with trio.move_on_at(self._quiet_until_s if quiet else math.inf):
                    await mine.news.wait()
            self._take(known)
        finally:
            queue.remove(mine)
            self._tell()

    def _take(self, known: bool) -> None:
        if known:
            self._known_taken += 1
        else:
            self._others_taken += 1

    def _is_free(self, known: bool) -> bool:
        if known:
            return self._known_taken + (0 if self._apart else self._others_taken) < self.total
        if self._apart:
            return self._others_taken < self.total
        return (
            not self._known
            and self._known_taken + self._others_taken < self.total
            and trio.current_time() >= self._quiet_until_s
        )

    def _tell(self) -> None:
        """The first of each queue looks again."""
        for queue in (self._known, self._others):
            if queue:
                queue[0].news.set()
