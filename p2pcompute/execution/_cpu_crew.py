"""Threads that compute portions of a launch together, and how they share it.

Portions differ in cost, so there are several for each thread, and each takes the next when it has done one. That is a
counter in memory and no word between threads: compiled code takes portions without the interpreter's lock.

A thread that sleeps takes some tens of microseconds to wake, which is much of a short launch. So one that has done its
share looks for as long as that whether the next launch begins: launches follow each other where a chunk is run in
slices and where work goes in rounds. It looks at that launch's own counter, which changes when the asking thread is in
compiled code: woken earlier, it would wait for the interpreter's lock, asleep.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias

import numba
import numpy as np

from p2pcompute.execution._api import Array
from p2pcompute.execution._cpu_intrinsics import finished, take

__all__ = ["Crew", "Pace", "Part", "new_counters"]

Part: TypeAlias = Callable[[Array, int, int], None]

_ALONE_NS = 50_000  # after which other threads are woken
_LONG_NS = 4 * _ALONE_NS  # of a launch like the last one: others are woken at once
_PORTIONS = 32  # for each thread
_TURNS = 50_000  # of looking whether the others are done, before sleeping: some tens of microseconds
_WATCHES = 25_000  # of looking whether the next launch has begun, before sleeping: a tenth of a millisecond
_WATCHED_NS = 40_000  # of a launch like the last one, for threads that look: they begin in no time


def new_counters() -> Array:
    """The counters of one sharing: of what is taken and of what is done, far enough from each other."""
    return np.zeros(16, np.int64)


class Pace:
    """How long one item took when a kernel ran last; says whether to wake others, and whether at once."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0.0


class Crew:
    """Threads that compute together with the one that asks for it. `close` ends them.

    Args:
        threads: how many compute, the asking one among them; the others start here, for the process may be locked
            later.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._look: Any = _look() if threads > 1 else None
        self._inboxes = [_Inbox(self._look) for _ in range(threads - 1)]
        self._next = new_counters()  # of the launch that comes
        self._others = [
            threading.Thread(target=_serve, args=(inbox,), name=f"kernel-{number}", daemon=True)
            for number, inbox in enumerate(self._inboxes)
        ]
        for other in self._others:
            other.start()
        self._take: Any = None
        self._finished: Any = None

    def share(self, total: int, part: Callable[[int, int], None]) -> None:
        """Call ``part(start, count)`` for portions that cover ``range(total)``, in no order and several at once. What
        it raises is raised here when all have ended: unlike compiled code it may fail over what it has taken."""
        if self._take is None:
            self._take, self._finished = _counting(take), _counting(finished)
        failed: list[BaseException] = []

        def portions(counters: Array, portion: int, stop: int) -> None:
            while (at := int(self._take(counters, portion))) < stop:
                count = min(portion, stop - at)
                if not failed:
                    try:
                        part(at, count)
                    except BaseException as error:  # noqa: BLE001 - of any thread, for the one that asked
                        failed.append(error)
                self._finished(counters, count)

        self.run(total, portions)
        if failed:
            raise failed[0]

    def run(self, total: int, part: Part, pace: Pace | None = None, *, alone_ns: int = 0) -> None:
        """Have all of ``range(total)`` computed by code that takes its portions itself.

        Args:
            total: how many items.
            part: ``part(counters, portion, stop)`` takes portions with `take` until that gives `stop` or more, and
                notes with `finished` how many items it has done. Several threads call it at once.
            pace: of the same kernel's last run; is noted anew.
            alone_ns: what is expected to take no more processor time is left to the asking thread: it is in no hurry,
                and others would use some to look for it and for what follows. `pace` is of processor time then.
        """
        threads = self.threads
        if threads == 1 or total <= 1:
            part(new_counters(), max(1, total), total)
            return
        clock = time.process_time_ns if alone_ns else time.perf_counter_ns
        began = clock()
        done = 0
        long_ns = _WATCHED_NS if all(inbox.watched for inbox in self._inboxes) else _LONG_NS
        if pace is not None and 0 < pace.ns * total <= alone_ns:
            done = total
            part(new_counters(), total, total)
        # One of few items may take as long as it likes: the others are not to wait for it.
        elif total >= 64 * threads and (pace is None or pace.ns * total < long_ns):
            done = _alone(total, total // 8, 1 if pace is None or not pace.ns else int(_ALONE_NS / 2 / pace.ns), part)
        if done < total:
            self._together(done, total, part)
        if pace is not None:
            pace.ns = (clock() - began) / total

    def _together(self, done: int, total: int, part: Part) -> None:
        counters, self._next = self._next, new_counters()
        counters[0] = done
        portion = max(1, total // (_PORTIONS * self.threads))
        ended: list[threading.Lock] = []
        for inbox in self._inboxes[: -(-(total - done) // portion) - 1]:
            lock = threading.Lock()
            lock.acquire()
            ended.append(lock)
            inbox.jobs.put(_Job(part, counters, portion, total, lock, self._next))
        try:
            part(counters, portion, total)
        finally:
            # One that wakes only now finds nothing to take, and is not waited for.
            if not self._look(counters, total - done, _TURNS):
                for lock in ended:
                    lock.acquire()

    def close(self) -> None:
        """End the threads."""
        for inbox in self._inboxes:
            inbox.jobs.put(None)
        for other in self._others:
            other.join()


class _Job:
    """A part for another thread. It may fail for want of memory before it takes anything: others do it all then."""

    __slots__ = ("_arguments", "_ended", "_part", "following")

    def __init__(
        self, part: Part, counters: Array, portion: int, total: int, ended: threading.Lock, following: Array
    ) -> None:
        self._part = part
        self._arguments = (counters, portion, total)
        self._ended = ended
        self.following = following  # the next launch's counters

    def __call__(self) -> None:
        try:
            with contextlib.suppress(MemoryError):
                self._part(*self._arguments)
        finally:
            self._ended.release()


class _Inbox:
    """What one of the other threads is to do.

    Attributes:
        jobs: None ends it.
        watched: whether it looks for the next launch without sleeping.
    """

    __slots__ = ("jobs", "look", "watched")

    def __init__(self, look: Any) -> None:
        self.jobs = SimpleQueue[_Job | None]()
        self.look = look
        self.watched = False


def _serve(inbox: _Inbox) -> None:
    while (job := inbox.jobs.get()) is not None:
        job()
        following = job.following
        del job  # it holds the arrays
        inbox.watched = True
        inbox.look(following, 1, _WATCHES)
        inbox.watched = False


def _alone(total: int, most: int, size: int, part: Part) -> int:
    """Begin without the others, with a portion of `size`: to wake them takes longer than all of a small launch. How
    much is done; what comes first says little of what follows, so no portion is larger than `most`."""
    done, size, end = 0, max(1, min(size, most)), time.perf_counter_ns() + _ALONE_NS
    counters = new_counters()
    while done < total and time.perf_counter_ns() < end:
        size = min(size, total - done)
        counters[0] = done
        part(counters, size, done + size)
        done += size
        size = min(2 * size, most)
    return done


def _look() -> Any:
    """``look(counters, done, turns)``: look whether so many items are done until they are or so many turns have
    passed."""

    def look(counters: Any, done: Any, turns: Any) -> Any:
        for _ in range(turns):  # noqa: SIM110 - numba compiles no generators
            if finished(counters, 0) >= done:
                return True
        return False

    counters = numba.types.Array(numba.types.int64, 1, "C")
    return _compiled(look, counters, numba.types.int64, numba.types.int64)


def _counting(function: Any) -> Any:
    """`take` or `finished` for code that is not compiled."""

    def count(counters: Any, number: Any) -> Any:
        return function(counters, number)

    return _compiled(count, numba.types.Array(numba.types.int64, 1, "C"), numba.types.int64)


def _compiled(function: Any, *kinds: Any) -> Any:
    options: dict[str, Any] = {"nogil": True, "_nrt": False}
    made: Any = numba.njit(**options)(function)
    made.compile(kinds)
    made.disable_compile()
    return made
