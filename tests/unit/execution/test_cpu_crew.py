"""What the threads of a crew do: whose record each takes, who may ask, and who looks for the next launch."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba
import numpy as np
import pytest

from p2pcompute.execution import _cpu_crew
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


def attended(board: Any, turns: int = 1_000) -> int:
    """How often thread 1 looks for a launch until it sleeps."""
    own = board.words[board.start + _cpu_crew._THREADS + _cpu_crew._EACH :]
    before = int(own[_cpu_crew._IDLE])
    assert _cpu_crew._compiled().attend(board.address, 1, turns) == _cpu_crew._SLEEP
    return int(own[_cpu_crew._IDLE]) - before


def launched(board: Any) -> None:
    """A launch of which nobody but the asking thread sees anything."""
    code = _cpu_crew._compiled()
    code.launch(board.address, _cpu_crew._PYTHON, 0, 0, 0, 1, 1, 1)
    assert code.close(board.address) == _cpu_crew._DONE


def test_who_looked_in_vain_some_times_sleeps_at_once_until_it_is_called_soon() -> None:
    board = _cpu_crew._Board(1)
    for _ in range(2):
        assert [attended(board) for _ in range(6)] == [999] * _cpu_crew._IN_VAIN + [0] * 2
        _cpu_crew._look_again(board, 1)  # a word to wake that came late
        assert attended(board) == 0
        launched(board)
        _cpu_crew._look_again(board, 1)
    for _ in range(3 * _cpu_crew._IN_VAIN):  # looks that find launches are not in vain
        attend = _cpu_crew._compiled().attend
        attending = threading.Thread(target=attend, args=(board.address, 1, 1 << 62), daemon=True)
        found = board.words[board.start + _cpu_crew._THREADS + _cpu_crew._EACH :]
        before = int(found[_cpu_crew._IDLE])
        attending.start()
        while found[_cpu_crew._IDLE] == before:
            assert attending.is_alive()
        _cpu_crew._compiled().launch(board.address, _cpu_crew._END, 0, 0, 0, 1, 1, 1)
        attending.join()
        assert found[_cpu_crew._VAIN] == 0


@pytest.mark.parametrize(("cores", "looking"), [(1, 0), (2, 1), (3, 2), (64, 3)])
def test_no_more_look_than_there_are_other_cores(cores: int, looking: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert [turns > 1 for turns in _cpu_crew._turns_of(3)] == [True] * looking + [False] * (3 - looking)
    board = _cpu_crew._Board(1)
    assert attended(board, _cpu_crew._turns_of(1)[0]) == (_cpu_crew._TURNS - 1 if cores > 1 else 0)
