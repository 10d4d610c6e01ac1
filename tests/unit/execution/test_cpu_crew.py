"""What the threads of a crew do: whose record each takes, who may ask, and who looks for the next launch."""

from __future__ import annotations

import threading
from typing import Any

import numba
import numpy as np
import pytest

from p2pcompute.execution._cpu_calls import Entry
from p2pcompute.execution._cpu_crew import Crew, Pace, Work
from p2pcompute.execution._cpu_intrinsics import take

Array = np.ndarray[Any, Any]


def slow() -> Pace:
    """As of a kernel that took a second for each item: others are woken at once."""
    pace = Pace()
    pace.ns = 1e9
    return pace


def test_each_thread_takes_its_own_record() -> None:
    """None goes on before all have come."""
    threads = 3

    def meet(counters, portion, stop, come, all_of_them, own):
        own[0] = 1
        take(come, 1)
        turns = 0
        while take(come, 0) < all_of_them and turns < 4_000_000_000:  # some twenty seconds
            turns += 1
        take(counters, stop)  # this range is done

    i8 = numba.types.int64
    kinds = (i8[::1], i8, i8, i8[::1], i8, i8[::1])
    compiled = numba.njit(nogil=True)(meet)
    compiled.compile(kinds)
    entry, come, own = Entry(compiled, kinds), np.zeros(1, np.int64), np.zeros((threads, 16), np.int64)
    records = entry.records([come, threads], [own])
    crew = Crew(threads)
    try:
        work = Work(entry.address, records.ctypes.data, records.strides[0])
        crew.run(48, work, slow(), kept=(entry, records, come, own))
        assert come[0] >= threads
        assert own[:, 0].all()
    finally:
        crew.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_crew_that_is_asked_again_meanwhile_refuses(threads: int) -> None:
    """Its counters are of one launch: with two some items would not be computed, and nobody would know."""
    caller = threading.get_ident()
    crew = Crew(threads)
    refused: list[BaseException] = []
    seen: list[int] = []

    def ask() -> None:
        try:
            crew.share(48, lambda start, count: None)
        except RuntimeError as error:
            refused.append(error)

    def part(start: int, count: int) -> None:
        if threading.get_ident() == caller and start == 0:
            ask()  # from the same thread
            other = threading.Thread(target=ask)
            other.start()
            other.join()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        for turn in range(1, 4):
            crew.run(1, lambda *_: part(0, 1))
            assert len(refused) == 2 * turn
            assert all("one launch at a time" in str(error) for error in refused)
            with pytest.raises(KeyboardInterrupt):
                crew.run(1, interrupted)
            with pytest.raises(KeyboardInterrupt):
                crew.share(48, interrupted)
            seen.clear()
            crew.share(48, lambda start, count: seen.extend(range(start, start + count)))
            assert sorted(seen) == list(range(48))
    finally:
        crew.close()
