"""Where the ledger's SQLite calls run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

__all__ = ["Executor", "InlineExecutor", "ThreadExecutor"]

T = TypeVar("T")


class Executor(Protocol):
    """Runs one function at a time, in the order of the calls.

    Once a function has begun, its result is delivered even if the caller is cancelled meanwhile: what was
    committed is always reported.
    """

    async def __call__(self, function: Callable[[], T]) -> T: ...


class ThreadExecutor:
    """One worker thread at a time, so that an fsync never holds up the event loop."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def __call__(self, function: Callable[[], T]) -> T:
        # abandon_on_cancel=False: trio waits for the thread and returns its result instead of Cancelled.
        return await trio.to_thread.run_sync(function, limiter=self._limiter, abandon_on_cancel=False)


class InlineExecutor:
    """In the event loop itself: for tests and simulations in virtual time, where a thread would let the clock jump."""

    async def __call__(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function()
