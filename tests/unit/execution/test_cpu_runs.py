"""Runs of a kernel that are made again with arguments that are known: what of them may have changed, and what not."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_calls import COUNTERS
from p2pcompute.execution._cpu_crew import Work
from p2pcompute.kernel import kernel, out

Array = np.ndarray[Any, Any]
THREADS = 4
ENTRY_OF = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 4)


@kernel
def in_local_memory(result, n):
    own = cuda.local.array(64, np.int64)
    i = cuda.grid(1)
    for _ in range(n):
        for k in range(64):
            own[k] = own[k] * 3 + i + k
    total = 0
    for k in range(64):
        total = total * 5 + own[k]
    result[i] = total


@kernel
def scaled(result, x, a):
    i = cuda.grid(1)
    result[i] = a * x[i]


def halves(backend: CpuBackend, items: int, turns: int) -> list[Array]:
    """The rows of launches of the first half of the blocks and of the second one, in turn, into one array."""
    binding = in_local_memory.bind(out(items, np.int64), np.int32(turns))
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    half = binding.launch.blocks // 2
    rows, found = np.zeros(items // 2, np.int64), []
    for turn in range(20):
        compiled.run_blocks(turn % 2 * half, half, binding.values, [rows])
        found.append(rows.copy())
    return found


def test_launches_that_alternate_give_the_same_bits_with_any_number_of_threads() -> None:
    with CpuBackend(1) as alone, CpuBackend(THREADS) as together:
        for due, found in zip(halves(alone, 1 << 13, 40), halves(together, 1 << 13, 40), strict=True):
            assert np.array_equal(due, found)


@pytest.mark.parametrize("thread", range(THREADS))
def test_every_thread_is_moved_and_works_in_memory_of_its_own(thread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if that thread took all portions: which does what is luck otherwise."""
    with CpuBackend(1) as alone, CpuBackend(THREADS) as together:
        due = halves(alone, 1 << 10, 2)
        worked_in: list[list[int]] = []

        def run(total: int, part: Work, *_: object, kept: tuple[Any, ...]) -> None:
            (memory,) = kept[-1]._memory if hasattr(kept[-1], "_memory") else kept[-1].job._memory
            memory[:] = 0
            counters = np.zeros(COUNTERS, np.int64)
            assert ENTRY_OF(part.entry)(counters.ctypes.data, 1, total, part.record + thread * part.stride) == 0
            worked_in.append([place for place, row in enumerate(memory) if row.any()])

        monkeypatch.setattr(together._crew, "run", run)
        for wanted, found in zip(due, halves(together, 1 << 10, 2), strict=True):
            assert np.array_equal(wanted, found)
        assert worked_in == [[thread]] * len(due)


@pytest.mark.parametrize("number_of", [np.int64, np.float64, lambda value: 10**6 + int(value)])
def test_another_number_is_never_taken_for_one_that_is_gone(number_of: Callable[[int], Any]) -> None:
    """Arguments are known by their identity, which a later object may have again."""
    x, rows = np.arange(512), np.zeros(512, np.int64)
    with CpuBackend(1) as backend:
        binding = scaled.bind(out(512, np.int64), x, 3)
        compiled = backend.compile(binding.source, binding.launch, binding.specs)
        compiled.run_blocks(0, 4, [x, given := number_of(3)], [rows])
        gone = id(given)
        del given
        others: list[Any] = []
        while len(others) < 10_000:  # one of them would have its place
            others.append(number_of(7))
            if id(others[-1]) == gone:
                break
        compiled.run_blocks(0, 4, [x, others[-1]], [rows])
        assert (rows == int(number_of(7)) * x).all()


def test_an_output_that_may_not_be_written_any_more_is_refused() -> None:
    x, rows = np.arange(512), np.zeros(512, np.int64)
    with CpuBackend(2) as backend:
        binding = scaled.bind(out(512, np.int64), x, 3)
        compiled = backend.compile(binding.source, binding.launch, binding.specs)
        for _ in range(2):
            rows.flags.writeable = True
            compiled.run_blocks(0, 4, binding.values, [rows])
            rows.flags.writeable = False
            with pytest.raises(ValueError, match="writable"):
                compiled.run_blocks(0, 4, binding.values, [rows])


def test_the_same_arrays_with_another_one_for_the_output_are_refused() -> None:
    x, rows = np.arange(512), np.zeros(512, np.int64)
    with CpuBackend(2) as backend:
        binding = scaled.bind(out(512, np.int64), x, 3)
        compiled = backend.compile(binding.source, binding.launch, binding.specs)
        compiled.run_blocks(0, 4, [x, 3], [rows])
        given: list[Any] = [x, 3, rows]
        for args, outs in ((given[:1], given[1:]), ([], given), (given, [])):
            with pytest.raises(ValueError, match="are not what the kernel takes"):
                compiled.run_blocks(0, 4, args, outs)
        assert (rows == 3 * x).all()
