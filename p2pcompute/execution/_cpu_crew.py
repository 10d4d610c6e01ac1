"""Threads that compute portions of a launch together, and how they share it.

Portions differ in cost, so there are several for each thread, and each takes the next when it has done one. Each has a
range of its own and takes from the others' when that is done: what it has in its caches of the last launch it mostly
needs for the next one. A range is a counter in memory and no word between threads: compiled code takes portions without
the interpreter's lock.

A thread that sleeps takes some tens of microseconds to wake, which is much of a short launch, and as much when the
interpreter's lock passes from thread to thread. So one that has done its share stays in compiled code and looks for a
tenth of a millisecond whether the next launch begins, which follows at once where a chunk is run in slices and where
work goes in rounds, and takes part in it there (`_cpu_calls`). What they say to each other is in the `_Board`. No more
of them look than there are cores beside the asking thread's, and one that has looked in vain some times sleeps at once,
until it is called so soon that a look would have found the launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np

from p2pcompute.execution._api import Array
from p2pcompute.execution._cpu_calls import COUNTERS
from p2pcompute.execution._cpu_intrinsics import take
from p2pcompute.execution._cpu_words import add, call_entry, compiled_words, load, store, swap, swap_if

__all__ = ["Crew", "Pace", "Part", "Work"]

Part: TypeAlias = Callable[[Array, int, int], None]

_ALONE_NS = 50_000  # after which other threads are woken
_LONG_NS = 4 * _ALONE_NS  # of a launch like the last one: others are woken at once
_WATCHED_NS = 20_000  # of a launch like the last one, for threads that look: they begin in no time
_PORTIONS = 16  # for each thread
_TURNS = 20_000  # of looking, some 5 ns each: whether the others are done, or the next launch has begun
_IN_VAIN = 4  # looks in a row that found no launch, after which a thread looks no more
_SOON_NS = 200_000  # what a look takes, and to wake: who is called within that looks again
_WAIT_S = 1.0  # after which a thread that waits for others looks itself whether they are done

# Words of the board, eight of which are a cache line: what several threads write lies far apart.
_GATE, _JOB, _AWAITED, _THREADS = 0, 16, 32, 48
_ENTRY, _RECORD, _STRIDE, _PORTION, _RANGES, _FAILED = range(_JOB, _JOB + 6)
_EACH = 32  # words of each thread, from `_THREADS` on, the asking one first; from `_TAKEN` on they are of its range
_STATE, _SEEN, _TAKEN, _STOP = 0, 1, 16, 17
_IDLE = 2  # looks so far: to add to it takes the same time everywhere
_VAIN = 3  # looks in vain, since the last one that found a launch
_AWAKE, _ASLEEP, _CALLED = range(3)  # states

# The gate: how many of the others are inside, whether it is open, and from this bit on the number of the launch.
_INSIDE, _OPEN, _NUMBER = (1 << 16) - 1, 1 << 16, 17

_PYTHON, _END = 0, 1  # entries that are no address
_DONE, _RAISED, _WAITED_FOR, _SLEEP, _IN_PYTHON, _ENDED = range(-6, 0)  # what compiled code ends with

_ENTRY_OF = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 4)  # without the interpreter's lock


class Work(NamedTuple):
    """What a launch calls: an entry and a record of its arguments for each thread, or one for all (`_cpu_calls`).

    Attributes:
        entry: its address.
        record: the address of the asking thread's.
        stride: bytes from one record to the next; 0 where all take the same.
    """

    entry: int
    record: int
    stride: int


class Pace:
    """How long one item took when a kernel ran last; says whether to wake others, and whether at once."""

    __slots__ = ("ns",)

    def __init__(self) -> None:
        self.ns = 0.0


class _Board:
    """Words that all threads of a crew see, and what they sleep on.

    A launch is in the words behind `_JOB`, and its items in as many ranges as threads may take part, before the gate is
    opened for it. Who comes in, by adding one to the gate while that is open, takes portions. When the asking thread
    finds no more of them it closes the gate and waits until nobody is inside: so nobody holds anything of a launch that
    has ended, and who comes too late finds the gate closed and is not waited for.

    A thread sleeps, after it has said so, if it finds then that nothing has changed that it waits for; who changes that
    looks afterwards whether it has said so. Words to wake are no more than a hint: who wakes looks again.
    """

    def __init__(self, others: int) -> None:
        self.words = np.zeros(_THREADS + _EACH * (others + 2), np.int64)
        self.address: int = -(-self.words.__array_interface__["data"][0] // 128) * 128
        self.start = (self.address - self.words.__array_interface__["data"][0]) // 8
        self.counters = self.words[self.start + _THREADS + _TAKEN :][:COUNTERS]
        self.states = self.words[self.start + _THREADS + _EACH + _STATE :: _EACH][:others]
        self.calls = [SimpleQueue[None]() for _ in range(others)]
        self.ended = SimpleQueue[None]()
        self.part: Part | None = None  # of a launch that is not compiled


class Crew:
    """Threads that compute together with the one that asks for it. `close` ends them.

    Args:
        threads: how many compute, the asking one among them; the others start here, for the process may be locked
            later.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._board = _Board(threads - 1)
        if threads > 1:
            _compiled()
        self._kept: object = None  # what others may still compute with
        self._is_asked = False  # whether a launch is under way
        self._others = [
            threading.Thread(target=_serve, args=(self._board, number, turns), name=f"kernel-{number}", daemon=True)
            for number, turns in enumerate(_turns_of(threads - 1))
        ]
        for other in self._others:
            other.start()

    def share(self, total: int, part: Callable[[int, int], None]) -> None:
        """Call ``part(start, count)`` for portions that cover ``range(total)``, in no order and several at once. What
        it raises is raised here when all have ended: unlike compiled code it may fail over what it has taken."""
        take_one = _take_one()
        failed: list[BaseException] = []

        def portions(counters: Array, portion: int, stop: int) -> None:
            while (at := int(take_one(counters, portion))) < stop:
                if not failed:
                    try:
                        part(at, min(portion, stop - at))
                    except BaseException as error:  # noqa: BLE001 - of any thread, for the one that asked
                        failed.append(error)

        self.run(total, portions)
        if failed:
            raise failed[0]

    def run(
        self, total: int, part: Part | Work, pace: Pace | None = None, *, alone_ns: int = 0, kept: object = None
    ) -> None:
        """Have all of ``range(total)`` computed by code that takes its portions itself.

        Args:
            total: how many items.
            part: ``part(counters, portion, stop)`` takes portions with `take` until that gives `stop` or more. Several
                threads call it at once.
            pace: of the same kernel's last run; is noted anew.
            alone_ns: what is expected to take no more processor time is left to the asking thread: it is in no hurry,
                and others would use some to look for it and for what follows. `pace` is of processor time then.
            kept: what the others compute with; it is kept for them if this thread does not wait until they are done,
                as it is interrupted.

        Raises what `part` raises in this thread; others that can't take part leave all of it to this one. Raises
        `RuntimeError` where it is called while it runs, from another thread or from `part`: counters are of one launch.
        """
        if self._is_asked:
            raise RuntimeError("one launch at a time: give each thread that asks a back end of its own")
        try:
            self._is_asked = True
            self._run(total, part, pace, alone_ns, kept)
        finally:
            self._is_asked = False

    def _run(self, total: int, part: Part | Work, pace: Pace | None, alone_ns: int, kept: object) -> None:
        if self.threads == 1 or total <= 1:
            self._call(part, 0, max(1, total), total)
            return
        clock = time.process_time_ns if alone_ns else time.perf_counter_ns
        began = clock()
        done = 0
        expected_ns = 0.0 if pace is None else pace.ns * total
        if 0 < expected_ns <= alone_ns:
            done = total
            self._call(part, 0, total, total)
        elif expected_ns < _LONG_NS and total >= 64 * self.threads and not self._at_once(expected_ns):
            # One of few items may take as long as it likes: the others are not to wait for it.
            done = self._alone(total, total // 8, int(_ALONE_NS / 2 * total / expected_ns) if expected_ns else 1, part)
        if done < total:
            self._together(done, total, part, kept)
        if pace is not None:
            pace.ns = (clock() - began) / total

    def _at_once(self, expected_ns: float) -> bool:
        """Whether others begin at once with so much of a launch, since none of them sleeps."""
        return expected_ns >= _WATCHED_NS and not any(self._board.states.tolist())

    def _call(self, part: Part | Work, start: int, portion: int, stop: int) -> None:
        """Have this thread compute from `start` to below `stop`."""
        if self._kept is not None:
            self._close_gate()
        self._board.counters[0] = start
        if not isinstance(part, Work):
            part(self._board.counters, portion, stop)
        elif _ENTRY_OF(part.entry)(self._board.address + 8 * (_THREADS + _TAKEN), portion, stop, part.record):
            raise RuntimeError("compiled code has raised")

    def _alone(self, total: int, most: int, size: int, part: Part | Work) -> int:
        """Begin without the others, with a portion of `size`: to wake them takes longer than all of a small launch. How
        much is done; what comes first says little of what follows, so no portion is larger than `most`."""
        done, size, end = 0, max(1, min(size, most)), time.perf_counter_ns() + _ALONE_NS
        while done < total and time.perf_counter_ns() < end:
            size = min(size, total - done)
            self._call(part, done, size, done + size)
            done += size
            size = min(2 * size, most)
        return done

    def _together(self, done: int, total: int, part: Part | Work, kept: object) -> None:
        if self._kept is not None:  # who was interrupted has not waited
            self._close_gate()
        portion = max(1, total // (_PORTIONS * self.threads))
        threads = min(self.threads, -(-(total - done) // portion))
        self._kept = (part, kept)
        if isinstance(part, Work):
            job = part.entry, part.record, part.stride
        else:
            self._board.part, job = part, (_PYTHON, 0, 0)
        ended = _compiled().launch(self._board.address, *job, done, portion, total, threads)
        if ended != _DONE:
            if ended >= 0:  # some sleep
                self._wake()
                ended = _compiled().work(self._board.address)
            try:
                if ended == _IN_PYTHON and not isinstance(part, Work):
                    part(self._board.counters, portion, total)
            finally:
                if ended != _DONE:
                    self._close_gate()
        self._kept = self._board.part = None

    def _wake(self) -> None:
        for call, state in zip(self._board.calls, self._board.states.tolist(), strict=True):
            if state == _CALLED:
                call.put(None)

    def _close_gate(self) -> None:
        """Let nobody in any more, and wait for those who are inside."""
        while (ended := _compiled().close(self._board.address)) == _WAITED_FOR:
            with contextlib.suppress(Empty):
                self._board.ended.get(timeout=_WAIT_S)
        self._kept = self._board.part = None
        if ended == _RAISED:
            raise RuntimeError("compiled code has raised")

    def close(self) -> None:
        """End the threads."""
        others, self._others = self._others, []
        if others:
            if self._kept is not None:
                self._close_gate()
            _compiled().launch(self._board.address, _END, 0, 0, 0, 1, 1, 1)
            for call in self._board.calls:
                call.put(None)
            for other in others:
                other.join()


def _turns_of(others: int) -> list[int]:
    """For how many turns each of the others looks: beyond the cores of this process it would only take time of those
    who compute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [_TURNS if number < cores - 1 else 1 for number in range(others)]


def _serve(board: _Board, number: int, turns: int) -> None:
    code = _compiled()
    while True:
        ended = code.attend(board.address, number + 1, turns)
        if ended == _ENDED:
            return
        if ended == _SLEEP:
            slept_ns = time.perf_counter_ns()
            board.calls[number].get()
            if time.perf_counter_ns() - slept_ns < _SOON_NS:
                _look_again(board, number + 1)
        elif ended == _IN_PYTHON:
            try:
                with contextlib.suppress(MemoryError):  # before it has taken anything: others do it all then
                    _in_python(board)
            finally:
                ended = code.leave(board.address)
        if ended == _WAITED_FOR:
            board.ended.put(None)


def _look_again(board: _Board, thread: int) -> None:
    """A launch has begun that a look would have found; a word of an older one says nothing."""
    own = board.start + _THREADS + _EACH * thread
    if int(board.words[board.start + _GATE]) >> _NUMBER != board.words[own + _SEEN]:
        board.words[own + _VAIN] = 0


def _in_python(board: _Board) -> None:
    if board.part is not None:
        portion, stop = (int(board.words[board.start + place]) for place in (_PORTION, _THREADS + _STOP))
        board.part(board.counters, portion, stop)


def _compute(board: int, thread: int) -> int:
    """Take portions of the thread's own range, and then of those of the others."""
    ranges = load(board, _RANGES)
    record = load(board, _RECORD) + thread * load(board, _STRIDE)
    turn = 0
    while turn < ranges:
        place = _THREADS + _EACH * ((thread + turn) % ranges)
        stop = load(board, place + _STOP)
        if load(board, place + _TAKEN) < stop:
            counters = board + 8 * (place + _TAKEN)
            if call_entry(load(board, _ENTRY), counters, load(board, _PORTION), stop, record):
                store(board, _FAILED, 1)
        turn += 1
    return 0


def _open(board: int, entry: int, record: int, stride: int, start: int, portion: int, stop: int, threads: int) -> int:
    """Open the gate for a launch; how many have to be woken for it."""
    ranges = threads
    if entry == _PYTHON:
        ranges = 1
    portions = (stop - start + portion - 1) // portion
    thread = 0
    while thread < ranges:
        place = _THREADS + _EACH * thread
        store(board, place + _TAKEN, start + portions * thread // ranges * portion)
        end = start + portions * (thread + 1) // ranges * portion
        if end > stop:
            end = stop
        store(board, place + _STOP, end)
        thread += 1
    store(board, _ENTRY, entry)
    store(board, _RECORD, record)
    store(board, _STRIDE, stride)
    store(board, _PORTION, portion)
    store(board, _RANGES, ranges)
    store(board, _FAILED, 0)
    store(board, _GATE, ((load(board, _GATE) >> _NUMBER) + 1 << _NUMBER) | _OPEN)
    called = 0
    thread = 1
    while thread < threads:
        if swap_if(board, _THREADS + _EACH * thread + _STATE, _ASLEEP, _CALLED) != _AWAKE:
            called += 1  # also one that was called before: that word may be lost
        thread += 1
    return called


def _close(board: int) -> int:
    """Close the gate, and look for a while whether nobody is inside; else the last one to leave says so."""
    if load(board, _GATE) & _OPEN:
        add(board, _GATE, -_OPEN)
    left = _TURNS
    while load(board, _GATE) & _INSIDE:
        left -= 1
        if left == 0:
            store(board, _AWAITED, 1)
            if load(board, _GATE) & _INSIDE:
                return _WAITED_FOR
            store(board, _AWAITED, 0)
            break
        add(board, _AWAITED + _IDLE, 0)
    if load(board, _FAILED):
        return _RAISED
    return _DONE


def _work(board: int) -> int:
    """Take part in the launch that is open, as the one who asks, and close the gate."""
    if load(board, _ENTRY) == _PYTHON:
        return _IN_PYTHON
    _compute(board, 0)
    return _close(board)


def _launch(board: int, entry: int, record: int, stride: int, start: int, portion: int, stop: int, threads: int) -> int:
    """Open the gate, and go on as `_work` does unless some have to be woken: gives how many."""
    called = _open(board, entry, record, stride, start, portion, stop, threads)
    if called or entry == _END:
        return called
    return _work(board)


def _leave(board: int) -> int:
    """One of the others has left."""
    if (add(board, _GATE, -1) - 1) & (_INSIDE | _OPEN) == 0 and swap(board, _AWAITED, 0) == 1:
        return _WAITED_FOR
    return _DONE


def _attend(board: int, thread: int, turns: int) -> int:
    """Take part in launches until none has begun for so many turns, or at once where looks were in vain. Gives what is
    to be done then, in Python."""
    own = _THREADS + _EACH * thread
    store(board, own + _STATE, _AWAKE)
    seen = load(board, own + _SEEN)
    if load(board, own + _VAIN) >= _IN_VAIN:
        turns = 1
    left = turns
    while True:
        gate = load(board, _GATE)
        if gate >> _NUMBER == seen:
            left -= 1
            if left > 0:
                add(board, own + _IDLE, 1)
                continue
            if turns > 1:
                add(board, own + _VAIN, 1)
            store(board, own + _STATE, _ASLEEP)
            if load(board, _GATE) >> _NUMBER == seen or swap_if(board, own + _STATE, _ASLEEP, _AWAKE) != _ASLEEP:
                return _SLEEP
            continue
        if left < turns:
            store(board, own + _VAIN, 0)
        if gate & _OPEN == 0:  # too late
            seen = gate >> _NUMBER
            store(board, own + _SEEN, seen)
            continue
        if swap_if(board, _GATE, gate, gate + 1) != gate:
            continue
        seen = gate >> _NUMBER
        store(board, own + _SEEN, seen)
        entry = load(board, _ENTRY)
        if entry == _END:
            return _ENDED
        if entry == _PYTHON:
            return _IN_PYTHON
        _compute(board, thread)
        if _leave(board) == _WAITED_FOR:
            return _WAITED_FOR
        left = turns


class _Compiled(NamedTuple):
    """The functions of words, compiled."""

    close: Callable[..., int]
    work: Callable[..., int]
    launch: Callable[..., int]
    leave: Callable[..., int]
    attend: Callable[..., int]


@functools.cache
def _compiled() -> _Compiled:
    return _Compiled(*compiled_words(_compute, _open, _close, _work, _launch, _leave, _attend)[2:])


@functools.cache
def _take_one() -> Any:
    """`take` for code that is not compiled."""

    def take_one(counters: Any, number: Any) -> Any:
        return take(counters, number)

    options: dict[str, Any] = {"nogil": True, "_nrt": False}
    made: Any = numba.njit(**options)(take_one)
    made.compile((numba.types.Array(numba.types.int64, 1, "C"), numba.types.int64))
    made.disable_compile()
    return made
