"""Workers that start while a node is being opened.

A worker takes a second of processor time until it is warm and locked, in a process of its own, and so does what a node
imports and opens; neither needs the other. Whoever knows that a node will compute starts both at once.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._groups import nursery_beside
from p2pcompute.errors import P2PComputeError

if TYPE_CHECKING:
    from p2pcompute.execution import WorkerPool

__all__ = ["KEPT_WORKERS", "WorkersAhead", "open_pool", "workers_ahead"]

KEPT_WORKERS: Final = 4  # wait two minutes for the next task of the same requester, which then compiles nothing


def open_pool(threads: int, allow_unsandboxed: bool, *, refill: bool = True) -> WorkerPool:
    """The workers of a node's processor, not served yet; 0 threads are all cores.

    `refill`: whether one that is taken is replaced, for the next task.
    """
    from p2pcompute.execution import SandboxPolicy, WorkerPool
    from p2pcompute.execution._pool import MAX_WORKERS

    return WorkerPool(
        threads=threads or len(os.sched_getaffinity(0)),
        spare=1,
        keep=KEPT_WORKERS,
        max_sessions=MAX_WORKERS,  # tasks at once are bounded by the provider's slots
        policy=SandboxPolicy(allow_unsandboxed=allow_unsandboxed),
        refill=refill,
    )


class WorkersAhead:
    """A pool that is being served for a node which is not open yet. Made by `workers_ahead`."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._settled = trio.Event()
        self._ended = trio.Event()
        self._warm = False
        self._scope = trio.CancelScope()

    async def serve(self) -> None:
        """Serve the pool until cancelled. Where it can't be had, whoever opens another one is told why."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    try:
                        await nursery.start(self._pool.serve)
                    except P2PComputeError:
                        return
                    self._warm = True
                    self._settled.set()
        finally:
            self._warm = False
            self._settled.set()
            self._ended.set()

    async def take(self, threads: int, allow_unsandboxed: bool) -> WorkerPool | None:
        """The pool, once its first worker is warm; None where there is none, or where other settings
        are asked for: then these workers have ended."""
        threads = threads or len(os.sched_getaffinity(0))
        if (threads, allow_unsandboxed) != (self._pool.threads, self._pool.policy.allow_unsandboxed):
            self._scope.cancel()
            await self._ended.wait()
            return None
        await self._settled.wait()
        return self._pool if self._warm else None


@asynccontextmanager
async def workers_ahead(pool: WorkerPool | None) -> AsyncGenerator[WorkersAhead | None]:
    """Begin to serve `pool`, and do so as long as the context is open, within which the node has to lie that takes it.

    An error of the block comes out as it is, not in an exception group.
    """
    if pool is None:
        yield None
        return
    ahead = WorkersAhead(pool)
    async with nursery_beside() as nursery:
        nursery.start_soon(ahead.serve)
        yield ahead
