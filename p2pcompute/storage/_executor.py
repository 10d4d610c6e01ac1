"""Where the ledger's SQLite calls run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar, runtime_checkable

import trio

__all__ = ["BriefExecutor", "Executor", "InlineExecutor", "ThreadExecutor"]

BRIEF_S: Final = 0.002
"""What a call may hold up the event loop for: no longer than other things do there, such as checking a signature or
decoding a frame of 64 KiB a few times over."""
BRIEF_IN_A_ROW: Final = 32
"""How many calls have to have been brief before one is made in the event loop."""

T = TypeVar("T")


class Executor(Protocol):
    """Runs one function at a time, in the order of the calls.

    Once a function has begun, its result is delivered even if the caller is cancelled meanwhile: what was
    committed is always reported.
    """

    async def __call__(self, function: Callable[[], T]) -> T: ...


@runtime_checkable
class BriefExecutor(Protocol):
    """An executor that can do without a thread where the thread would take longer than the call."""

    async def brief(self, function: Callable[[], T]) -> T:
        """As the call itself, for a function that is short unless the disk is slow."""
        ...


class ThreadExecutor:
    """One worker thread at a time, so that a slow disk does not hold up the event loop.

    A thread takes some 0.1 ms to come and go, which is what a good disk takes to sync. So a `brief` call is made in
    the event loop itself where the last `BRIEF_IN_A_ROW` were over within `BRIEF_S`, and nobody else wants to run.
    The first one that takes longer sends those after it to the thread again: of a disk that becomes slow the event
    loop feels one call.

    Args:
        clock_s: what the time that calls take is read from.
    """

    def __init__(self, *, clock_s: Callable[[], float] = time.perf_counter) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._clock_s = clock_s
        self._in_a_row = 0

    async def __call__(self, function: Callable[[], T]) -> T:
        # abandon_on_cancel=False: trio waits for the thread and returns its result instead of Cancelled.
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=False)

    async def brief(self, function: Callable[[], T]) -> T:
        """As the call itself, without the thread where that is the quicker way."""

        def timed() -> T:
            began = self._clock_s()
            try:
                return function()
            finally:
                self._in_a_row = self._in_a_row + 1 if self._clock_s() - began < BRIEF_S else 0

        if self._in_a_row < BRIEF_IN_A_ROW or trio.lowlevel.current_statistics().tasks_runnable:
            return await self(timed)
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._limiter.acquire_nowait()
        except trio.WouldBlock:
            return await self(timed)
        try:
            return _uninterrupted(timed)
        finally:
            self._limiter.release()


@trio.lowlevel.enable_ki_protection
def _uninterrupted(function: Callable[[], T]) -> T:
    # Ctrl-C between the commit and the word of it would make a transaction look undone that is not.
    return function()


class InlineExecutor:
    """In the event loop itself: for tests and simulations in virtual time, where a thread would let the clock jump."""

    async def __call__(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function()
