"""Warm workers in reserve, one tenant each, and none left behind."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from p2pcompute.errors import ConfigError, ExecutionError, SandboxError, WorkerDied
from p2pcompute.execution._pool_guard import GroupGuard
from p2pcompute.execution._pool_process import CANCEL_GRACE_S, CPU_WORKER, WorkerProcess, WorkerProgram, readable_paths
from p2pcompute.execution._pool_session import WorkerSession
from p2pcompute.execution._sandbox import SandboxPolicy, WorkerLimits, require_sandbox
from p2pcompute.execution._sandbox_bwrap import Bwrap, probe_bwrap

__all__ = ["MAX_WORKERS", "WorkerPool", "open_pool"]

MAX_WORKERS: Final = 64
"""The most sessions that one pool will hold at a time, whatever it is asked for."""
REST_S: Final = 1.0
"""After the last session has ended, before a worker that was taken is replaced: its tenant may come back at once."""
LATE_S: Final = 30.0
"""After a worker was taken, before it is replaced where sessions go on and on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A worker that waits for its tenant to come back."""

    tenant: str
    session: WorkerSession
    process: WorkerProcess
    until_s: float

    async def aclose(self) -> None:
        # In this order: a descriptor that is being sent must not be given back, and taken by another file.
        await self.process.aclose()
        self.session.close()


class _Waiter:
    """A session that waits for its worker."""

    __slots__ = ("outcome", "ready")

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.outcome: WorkerProcess | ExecutionError | None = None


class WorkerPool:
    """Starts workers ahead of need and hands each to one session.

    A start takes half a second of a core, which whoever computes now would miss: one that is taken is replaced when
    nobody has computed for `REST_S`, or after `LATE_S`. Who finds no worker in reserve has one started at once.

    Run `serve` in a nursery (or use `open_pool`), then open sessions. When `serve` is cancelled every spare is
    killed and reaped; sessions that are open then keep their worker until they are left, and none can be opened.

    A worker never serves two tenants. It may wait for the same one to come back, so that what it has compiled need
    not be compiled again: see `session`.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        spare: int = 1,
        max_sessions: int = 8,
        limits: WorkerLimits | None = None,
        policy: SandboxPolicy | None = None,
        program: WorkerProgram = CPU_WORKER,
        keep: int = 0,
        keep_s: float = 120.0,
        grace_s: float = CANCEL_GRACE_S,
        refill: bool = True,
    ) -> None:
        """
        Args:
            threads: processor threads of each worker.
            spare: warm workers kept in reserve; with 0 each session waits for its own to start (about 2 s).
            refill: whether one that is taken is ever replaced; where not, `spare` is what there is at first.
            max_sessions: sessions at a time; further ones wait.
            limits: what one worker may use.
            policy: the sandbox that it must have.
            program: what runs in the process; other back ends and tests of the pool have theirs.
            keep: workers that wait for their tenants to come back, over all tenants; the oldest goes first.
            keep_s: how long each of them waits.
            grace_s: how long a worker whose call is cancelled has to stop by itself before it is killed.
        """
        if not 1 <= threads <= 1024:
            raise ConfigError("threads must be 1 to 1024")
        if not 0 <= spare <= MAX_WORKERS or not 1 <= max_sessions <= MAX_WORKERS:
            raise ConfigError(f"spare must be 0 to {MAX_WORKERS} and max_sessions 1 to {MAX_WORKERS}")
        if not 0 <= keep <= MAX_WORKERS or not keep_s >= 0:
            raise ConfigError(f"keep must be 0 to {MAX_WORKERS} and keep_s 0 or more")
        if not 0 <= grace_s <= 60:
            raise ConfigError("grace_s must be 0 to 60")
        self.limits: Final = limits or WorkerLimits()
        self.policy: Final = policy or SandboxPolicy()
        self.threads: Final = threads
        self._spare = spare
        self._refill = refill
        self._keep = keep
        self._keep_s = keep_s
        self._grace_s = grace_s
        self._lent: set[WorkerProcess] = set()
        self._kept: deque[_Kept] = deque()  # oldest first, so by `until_s` too
        self._kept_changed = trio.Event()
        self._program = program
        self._slots = trio.Semaphore(max_sessions)
        self._bwrap: Bwrap | None = None
        self._group: int | None = None  # of the guard, where there is bubblewrap
        self._bwrap_note = "not looked for yet"
        self._warm: deque[WorkerProcess] = deque()
        self._waiting: deque[_Waiter] = deque()
        self._starting = 0
        self._hold_back = False
        self._taken_s = self._left_s = -math.inf  # when the reserve was last full, and when a session last ended
        self._changed = trio.Event()
        self._filled = trio.lowlevel.ParkingLot()  # of who waits for the reserve
        self._serving = False
        self._closed = False

    @property
    def bwrap_note(self) -> str:
        """Bubblewrap's version, or why it is not used."""
        return self._bwrap_note

    @property
    def warm(self) -> int:
        """Workers in reserve at this moment."""
        return len(self._warm)

    @property
    def kept(self) -> int:
        """Workers that wait for their tenants at this moment."""
        return len(self._kept)

    async def wait_warm(self) -> None:
        """Have the reserve filled now, and return once it is full.

        Raises `WorkerDied` where `serve` has ended, or ends meanwhile.
        """
        self._taken_s = -math.inf
        self._changed.set()
        while len(self._warm) < self._spare:
            if self._closed:
                raise WorkerDied("the worker pool is closed")
            await self._filled.park()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Keep the reserve filled until cancelled; reports started once the first spare is warm.

        Raises `SandboxError` or another `ExecutionError` where not even the first worker can be had. A later
        failure goes to the session that waits; the next session tries again.
        """
        if self._serving:
            raise RuntimeError("this pool is served already")
        require_sandbox(self.policy)
        await self._find_bwrap()
        if self._bwrap is None:
            await self._fill(task_status)
        with GroupGuard() as guard:
            self._group = guard.group
            await self._fill(task_status)
        raise AssertionError("unreachable")

    async def _fill(self, task_status: trio.TaskStatus[None]) -> NoReturn:
        self._serving, self._closed = True, False
        try:
            if self._spare:
                self._warm.append(await self._start_one())
                self._filled.unpark_all()  # who has waited since before
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_kept)
                while True:
                    self._changed = trio.Event()
                    due_s = self._refill_due_s()
                    is_due = due_s <= trio.current_time()
                    reserve = self._spare if is_due else 0
                    missing = len(self._waiting) + reserve - len(self._warm) - self._starting
                    for _ in range(missing):
                        self._starting += 1
                        nursery.start_soon(self._start_and_hand_over)
                    with trio.move_on_at(math.inf if is_due else due_s):
                        await self._changed.wait()
        finally:
            self._serving, self._closed = False, True
            self._filled.unpark_all()
            for process in self._lent:
                process.hurry()  # nobody comes back to them
            for waiter in self._waiting:
                waiter.outcome = WorkerDied("the worker pool is closed")
                waiter.ready.set()
            self._waiting.clear()
            while self._warm:
                await self._warm.popleft().aclose()
            while self._kept:
                await self._kept.popleft().aclose()
        raise AssertionError("unreachable")

    def _refill_due_s(self) -> float:
        """When what was taken from the reserve is replaced, as things stand."""
        if self._hold_back or not self._refill:
            return math.inf
        late_s = self._taken_s + LATE_S
        return late_s if self._lent else min(late_s, self._left_s + REST_S)

    async def _end_kept(self) -> NoReturn:
        """End the workers whose tenants did not come back in time."""
        while True:
            self._kept_changed = trio.Event()
            with trio.move_on_at(self._kept[0].until_s if self._kept else math.inf):
                await self._kept_changed.wait()
            while self._kept and self._kept[0].until_s <= trio.current_time():
                await self._kept.popleft().aclose()

    async def _find_bwrap(self) -> None:
        if self.policy.bwrap == "never":
            self._bwrap_note = "switched off by the policy"
            return
        self._bwrap, self._bwrap_note = await probe_bwrap(
            sys.executable, readable_paths(self._program), self._program.devices
        )
        if self._bwrap is None and self.policy.bwrap == "require":
            raise SandboxError(f"the policy requires bubblewrap: {self._bwrap_note}")

    async def _start_one(self) -> WorkerProcess:
        return await WorkerProcess.start(
            program=self._program,
            threads=self.threads,
            limits=self.limits,
            policy=self.policy,
            bwrap=self._bwrap,
            group=self._group,
        )

    async def _start_and_hand_over(self) -> None:
        outcome: WorkerProcess | ExecutionError
        try:
            outcome = await self._start_one()
            self._hold_back = False
        except ExecutionError as error:
            outcome = error
            self._hold_back = True  # no loop of failing starts: wait until somebody asks again
        finally:
            self._starting -= 1
            self._changed.set()
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.outcome = outcome
            waiter.ready.set()
        elif isinstance(outcome, WorkerProcess):
            self._warm.append(outcome)
            self._filled.unpark_all()

    @asynccontextmanager
    async def session(
        self, *, tenant: str | None = None, keep: Callable[[], bool] = lambda: True
    ) -> AsyncGenerator[WorkerSession]:
        """A warm worker for one tenant; on leaving it is killed and reaped, or kept.

        Waits while `max_sessions` are open. Raises `WorkerDied` where the pool is not being served, and what
        starting a worker raises where none can be had.

        Args:
            tenant: whose kernels it is for. Where the pool keeps workers (`keep`), one that is idle and sound when
                the session is left, or cancelled, waits for the next session of the same tenant and has its kernels
                compiled still; `None` is never kept. It is stopped while it waits: whatever has got hold of it gets no
                time.
            keep: asked when the session is left whether its worker may wait at all.
        """
        async with self._slots:
            session, process = await self._take_kept(tenant) or await self._take_new()
            self._lent.add(process)
            orderly = False
            try:
                yield session
                orderly = True
            except BaseException as error:
                orderly = _only_cancelled(error)
                raise
            finally:
                self._lent.discard(process)
                self._left_s = trio.current_time()
                self._changed.set()
                waits = orderly and tenant is not None and keep() and session.rest()
                kept = _Kept(
                    tenant=tenant or "", session=session, process=process, until_s=trio.current_time() + self._keep_s
                )
                if waits and self._keep and self._serving and process.stop():
                    self._kept.append(kept)
                    self._kept_changed.set()
                    if len(self._kept) > self._keep:
                        await self._kept.popleft().aclose()
                else:
                    await kept.aclose()

    async def _take_kept(self, tenant: str | None) -> tuple[WorkerSession, WorkerProcess] | None:
        while tenant is not None:
            # The youngest: what it has compiled is the likeliest to be asked for again.
            kept = next((kept for kept in reversed(self._kept) if kept.tenant == tenant), None)
            if kept is None:
                return None
            self._kept.remove(kept)
            if kept.process.alive and kept.process.go_on():
                return kept.session, kept.process
            await kept.aclose()
        return None

    async def _take_new(self) -> tuple[WorkerSession, WorkerProcess]:
        process = await self._take()
        return WorkerSession(process, self.limits, grace_s=self._grace_s, energy=self._program.energy), process

    async def _take(self) -> WorkerProcess:
        while self._warm:
            if len(self._warm) >= self._spare:
                self._taken_s = trio.current_time()
            process = self._warm.popleft()
            self._changed.set()
            if process.alive:
                return process
            await process.aclose()  # died in reserve: the system took it for memory, or somebody killed it
        if not self._serving:
            raise WorkerDied("the worker pool is not running; run serve() in a nursery first")
        waiter = _Waiter()
        self._waiting.append(waiter)
        self._hold_back = False
        self._changed.set()
        try:
            await waiter.ready.wait()
        except trio.Cancelled:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif isinstance(waiter.outcome, WorkerProcess):
                await self._put_back(waiter.outcome)
            raise
        if isinstance(waiter.outcome, WorkerProcess):
            return waiter.outcome
        raise waiter.outcome or WorkerDied("no worker came")

    async def _put_back(self, process: WorkerProcess) -> None:
        """A worker that nobody has used yet and whose session was cancelled."""
        if self._serving and len(self._warm) < max(1, self._spare):
            self._warm.append(process)
            self._filled.unpark_all()
        else:
            await process.aclose()


def _only_cancelled(error: BaseException) -> bool:
    """Whether a session ends because nobody wants its work any more, and not because something went wrong."""
    if isinstance(error, BaseExceptionGroup):
        return all(_only_cancelled(one) for one in error.exceptions)
    return isinstance(error, trio.Cancelled)


@asynccontextmanager
async def open_pool(
    *,
    threads: int = 1,
    spare: int = 1,
    max_sessions: int = 8,
    limits: WorkerLimits | None = None,
    policy: SandboxPolicy | None = None,
    program: WorkerProgram = CPU_WORKER,
    keep: int = 0,
    keep_s: float = 120.0,
    grace_s: float = CANCEL_GRACE_S,
) -> AsyncGenerator[WorkerPool]:
    """A served pool for the length of a block; arguments as for `WorkerPool`. An error of the block comes out as
    it is, not in an exception group."""
    pool = WorkerPool(
        threads=threads,
        spare=spare,
        max_sessions=max_sessions,
        limits=limits,
        policy=policy,
        program=program,
        keep=keep,
        keep_s=keep_s,
        grace_s=grace_s,
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(pool.serve)
            yield pool
        except Exception as error:  # noqa: BLE001  (raised again below, outside the nursery)
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
