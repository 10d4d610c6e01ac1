"""The loops that the CPU back end puts around a kernel: every shape of launch, whole blocks and parts of them."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_calls import COUNTERS, Entry
from p2pcompute.execution._cpu_crew import Crew, Pace, Work
from p2pcompute.execution._cpu_intrinsics import take
from p2pcompute.execution._cpu_loops import memory, program_text
from p2pcompute.execution._guard import admit
from p2pcompute.execution._lower import lower
from p2pcompute.kernel import Binding, kernel, out

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    with CpuBackend(request.param) as made:
        yield made


@kernel
def by_grid(result, x):
    i = cuda.grid(1)
    result[i] = 2 * x[i] + 1


@kernel
def by_block_and_thread(result):
    i = cuda.grid(1)
    result[i] = cuda.blockIdx.x * 1000 + cuda.threadIdx.x


@kernel
def flat_image(result, step):
    x, y = cuda.grid(2)
    result[y, x] = y * step + x


@kernel
def looped_image(result, step):
    x, y = cuda.grid(2)
    total = 0
    for k in range(y):
        total += step + k - k
    result[y, x] = total + x


@kernel
def volume(result, below):
    x, y, z = cuda.grid(3)
    result[z, y, x] = x + 100 * y + 10_000 * z + below[z, y, x - 1]


@kernel
def scratch(result, n):
    i = cuda.grid(1)
    mine = cuda.local.array(5, np.int64)
    for k in range(5):
        mine[k] += i * k
    result[i] = mine[n]


@kernel
def together(result, x):
    part = cuda.shared.array(64, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    part[tx] = x[i]
    cuda.syncthreads()
    result[i] = part[cuda.blockDim.x - 1 - tx]


def text(binding: Binding) -> str:
    return program_text(lower(admit(binding.source), binding.launch, binding.specs), binding.launch)


def check(backend: CpuBackend, binding: Binding, due: Array) -> None:
    """Whole, in parts that begin and end anywhere, and single items: rows in their places, nothing beside them."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    layout, blocks = binding.layout, binding.launch.blocks
    (row,), (spec,) = layout.row_shapes, layout.outputs
    for step in (blocks, 3, 1):
        (whole,) = binding.empty_outputs()
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            guarded = np.full((count * layout.items_per_block + 2, *row), 77, spec.dtype)
            guarded[1:-1] = 0
            compiled.run_blocks(first, count, binding.values, [guarded[1:-1]])
            assert np.all(guarded[0] == 77)
            assert np.all(guarded[-1] == 77)
            layout.scatter(0, first, count, guarded[1:-1], whole)
        assert np.array_equal(whole, due)
    ids = np.random.default_rng(1).permutation(blocks * layout.items_per_block)
    every = np.zeros((len(ids), *row), spec.dtype)
    compiled.run_threads(ids, binding.values, [every])
    rows = np.empty_like(every)
    rows[ids] = every
    (whole,) = binding.empty_outputs()
    layout.scatter(0, 0, blocks, rows, whole)
    assert np.array_equal(whole, due)


def test_one_axis(backend: CpuBackend) -> None:
    for size in (1, 127, 128, 1000):
        x = np.arange(size, dtype=np.int32)
        check(backend, by_grid.bind(out(size, np.int64), x), 2 * x.astype(np.int64) + 1)
        i = np.arange(size)
        check(backend, by_block_and_thread.bind(out(size, np.int64)), i // 128 * 1000 + i % 128)
    assert text(by_grid.bind(out(9, np.int64), np.zeros(9, np.int32))).count("for ") == 2  # one loop, and the items'
    assert "b_0 += m" in text(by_block_and_thread.bind(out(9, np.int64)))


@pytest.mark.parametrize("shape", [(16, 16), (16, 17), (15, 32), (40, 50), (1, 1)])
def test_two_axes(backend: CpuBackend, shape: tuple[int, int]) -> None:
    y, x = np.indices(shape)
    for one in (flat_image, looped_image):
        check(backend, one.bind(out(shape, np.int64), 1000), y * 1000 + x)


@kernel
def around(result, x):
    c, b = cuda.grid(2)
    result[b, c] = x[b - 1, c] + 10 * x[b + 1, c] + 100 * x[b, c - 2] + 1000 * x[b, c + 1]


@pytest.mark.parametrize(
    ("shape", "grid", "block"),
    [
        ((11, 103), (13, 3), (8, 4)),  # lines of eleven blocks that ask for nothing, and a part of a block
        ((8, 96), (12, 2), (8, 4)),
        ((3, 20), (6, 4), (8, 4)),  # more blocks than the output has
        ((9, 8 * 600 + 5), (601, 3), (8, 4)),  # longer than a run
        ((2, 9), (2, 1), (8, 4)),  # nothing within the border
        ((23, 40), (5, 3), (8, 10)),  # four lines of a block at a time, and what is left of them
        ((24, 40), (5, 1), (8, 24)),
        ((12, 40), (5, 3), (8, 5)),
    ],
)
def test_lines_of_blocks_and_what_is_left_at_the_border(
    backend: CpuBackend, shape: tuple[int, int], grid: tuple[int, int], block: tuple[int, int]
) -> None:
    x = np.random.default_rng(3).integers(1, 10, shape)
    wide = np.pad(x, 2)
    due = wide[1:-3, 2:-2] + 10 * wide[3:-1, 2:-2] + 100 * wide[2:-2, :-4] + 1000 * wide[2:-2, 3:-1]
    check(backend, around[grid, block].bind(out(shape, np.int64), x), due)


def test_no_load_leaves_an_array_between_forbidden_pages() -> None:
    program = Path(__file__).with_name("_edge_of_memory.py")
    ended = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "stayed inside\n"), ended.stderr


def test_blocks_of_several_sizes_in_one_back_end(backend: CpuBackend) -> None:
    y, x = np.indices((30, 45))
    for block, grid in (
        ((16, 16), (3, 2)),
        ((7, 3), (7, 10)),
        ((64, 1), (1, 30)),
        ((1, 32), (45, 1)),
        ((16, 8), (3, 4)),
    ):
        check(backend, flat_image[grid, block].bind(out((30, 45), np.int64), 5), y * 5 + x)


def test_three_axes(backend: CpuBackend) -> None:
    shape = (5, 9, 17)
    z, y, x = np.indices(shape)
    below = np.random.default_rng(2).integers(0, 9, shape)
    due = x + 100 * y + 10_000 * z
    due[:, :, 1:] += below[:, :, :-1]  # beyond the array is zero
    check(backend, volume.bind(out(shape, np.int64), below), due)


@kernel
def around_in_space(result, x):
    c, b, a = cuda.grid(3)
    result[a, b, c] = x[a, b - 1, c] + 10 * x[a, b + 1, c] + 100 * x[a - 1, b, c] + 1000 * x[a, b, c + 1]


@pytest.mark.parametrize("block", [(4, 4, 2), (4, 6, 3), (4, 9, 1), (2, 3, 4)])
def test_lines_of_blocks_in_space(backend: CpuBackend, block: tuple[int, int, int]) -> None:
    shape = (4, 11, 13)
    x = np.random.default_rng(4).integers(1, 10, shape)
    wide = np.pad(x, 1)
    due = wide[1:-1, :-2, 1:-1] + 10 * wide[1:-1, 2:, 1:-1] + 100 * wide[:-2, 1:-1, 1:-1] + 1000 * wide[1:-1, 1:-1, 2:]
    grid = tuple(-(-length // size) for length, size in zip(shape[::-1], block, strict=True))
    check(backend, around_in_space[grid, block].bind(out(shape, np.int64), x), due)


def test_arrays_to_work_in_begin_with_zeros_for_each_thread_and_block(backend: CpuBackend) -> None:
    i = np.arange(300)
    check(backend, scratch.bind(out(300, np.int64), 3), i * 3)
    x = np.arange(256, dtype=np.int64)
    binding = together[4, 64].bind(out(256, np.int64), x)
    check(backend, binding, x.reshape(4, 64)[:, ::-1].ravel())
    lowered = lower(admit(binding.source), binding.launch, binding.specs)
    assert [(array.name, array.size) for array in memory(lowered)] == [("m_part", 64)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_portions_cover_a_launch_once(threads: int) -> None:
    taken: list[tuple[int, int]] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        while (at := int(take_one(counters, portion))) < stop:
            taken.append((at, min(portion, stop - at)))

    def portion_of(start: int, count: int) -> None:
        taken.append((start, count))

    crew = Crew(threads)
    try:
        taken.clear()
        crew.share(1_000, portion_of)
        assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(1_000))
        for total in (0, 1, 2, 31, 64 * threads - 1, 64 * threads, 5_000):
            for pace in (None, Pace(), slow()):
                taken.clear()
                crew.run(total, part, pace)
                assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(total))
    finally:
        crew.close()


def test_launches_that_follow_each_other_are_each_covered_once() -> None:
    """Threads that look for the next launch find its portions, none of the last one's, and miss no word to end."""
    taken: list[tuple[int, int]] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        while (at := int(take_one(counters, portion))) < stop:
            taken.append((at, min(portion, stop - at)))

    crew = Crew(3)
    try:
        for total in [2, 3, 200, 1_000] * 100:
            taken.clear()
            crew.run(total, part, slow())
            assert sorted(at for start, count in taken for at in range(start, start + count)) == list(range(total))
    finally:
        crew.close()
    assert not [thread for thread in crew._others if thread.is_alive()]


def slow() -> Pace:
    """As of a kernel that took a second for each item: others are woken at once."""
    pace = Pace()
    pace.ns = 1e9
    return pace


@numba.njit
def take_one(counters, count):
    return take(counters, count)


def test_a_thread_that_fails_before_it_takes_leaves_all_to_the_others() -> None:
    caller = threading.get_ident()
    taken: list[int] = []

    def part(counters: Array, portion: int, stop: int) -> None:
        if threading.get_ident() != caller:
            raise MemoryError
        while (at := int(take_one(counters, portion))) < stop:
            taken.append(at)

    crew = Crew(3)
    try:
        for _ in range(3):
            taken.clear()
            crew.run(48, part, slow())
            assert taken == list(range(48))
    finally:
        crew.close()


@pytest.mark.parametrize("failing", [(0,), (30,), (0, 30)])
def test_what_a_portion_raises_is_raised_where_it_was_asked_for(failing: tuple[int, ...]) -> None:
    """Not lost with the thread that took it: rows would stay as they were."""

    def part(start: int, count: int) -> None:
        if any(start <= at < start + count for at in failing):
            raise MemoryError

    crew = Crew(3)
    try:
        for _ in range(3):
            with pytest.raises(MemoryError):
                crew.share(48, part)
        crew.share(48, lambda start, count: None)
    finally:
        crew.close()


def test_who_is_interrupted_leaves_no_thread_with_memory_that_is_gone() -> None:
    """What others compute with stays until they are done, and the next launch waits for them."""
    caller = threading.get_ident()
    inside, go_on = threading.Event(), threading.Event()

    def part(counters: Array, portion: int, stop: int) -> None:
        if threading.get_ident() != caller:
            inside.set()
            go_on.wait(60)
        elif not go_on.is_set():
            inside.wait(60)
            raise KeyboardInterrupt

    def interrupted() -> None:
        raise KeyboardInterrupt

    crew = Crew(2)
    close_gate = crew._close_gate
    try:
        crew._close_gate = interrupted  # type: ignore[method-assign] - as by a second Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            crew.run(48, part, slow(), kept=(kept := object(),))
        assert crew._kept is not None
        assert kept in crew._kept[1]
        crew._close_gate = close_gate  # type: ignore[method-assign]
        threading.Timer(0.01, go_on.set).start()
        seen: list[int] = []
        crew.share(48, lambda start, count: seen.extend(range(start, start + count)))
        assert sorted(seen) == list(range(48))
        assert crew._kept is None
    finally:
        go_on.set()
        crew.close()


def marking(failing: int) -> tuple[Work, Array, object]:
    """Compiled work that adds one to each item that it takes, and the items; it raises at one of them."""

    def mark(counters, portion, stop, items, failing):
        while True:
            at = take(counters, portion)
            if at >= stop:
                break
            for k in range(at, min(at + portion, stop)):
                if k == failing:
                    raise ValueError
                items[k] += 1

    i8 = numba.types.int64
    kinds = (i8[::1], i8, i8, i8[::1], i8)
    compiled = numba.njit(nogil=True)(mark)
    compiled.compile(kinds)
    entry = Entry(compiled, kinds)
    items = np.zeros(5_000, np.int64)
    records = entry.records([items, failing], [])
    return Work(entry.address, records.ctypes.data, 0), items, (entry, records, items)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_compiled_work_is_done_once_by_whoever_is_awake(threads: int) -> None:
    work, items, kept = marking(-1)
    crew = Crew(threads)
    try:
        for turn in range(1, 200):
            crew.run(len(items), work, slow() if turn % 3 else None, kept=kept)
            assert (items == turn).all()
    finally:
        crew.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_what_compiled_work_raises_is_not_lost(threads: int) -> None:
    work, _, kept = marking(4_999)
    crew = Crew(threads)
    try:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="raised"):
                crew.run(5_000, work, slow(), kept=kept)
        work, items, kept = marking(-1)
        crew.run(5_000, work, slow(), kept=kept)
        assert (items == 1).all()
    finally:
        crew.close()


def test_every_kind_of_argument_comes_out_of_a_record_as_it_went_in() -> None:
    kinds = [getattr(numba.types, name) for name in ("int8", "uint16", "int32", "uint64", "float32", "float64")]
    values = [-7, 65_535, -(2**31), 2**64 - 1, 0.1, -1e300]
    numbers = [np.dtype(kind.name).type(value) for kind, value in zip(kinds, values, strict=True)]

    def store(counters, portion, stop, yes, no, a, b, c, d, e, f, x, out, work):
        out[0] = yes and not no
        out[1] = a == -7 and b == 65_535 and c == -(2**31) and d == 2**64 - 1
        out[2] = e == np.float32(0.1) and f == -1e300
        out[3] = x.shape == (2, 3, 4) and x[1, 2, 3] == 23.0 and x[1, 0, 2] == 14.0 and x.size == 24
        out[4] = counters.size == 8 and counters[0] == 5 and portion == 6 and stop == 7
        out[5] = work.size == 9
        work[0] = stop

    array = numba.types.Array
    given = (array(numba.types.float64, 3, "C", readonly=True), array(numba.types.boolean, 1, "C"))
    i8 = numba.types.int64
    signature = (i8[::1], i8, i8, *[numba.types.boolean] * 2, *kinds, *given, i8[::1])
    compiled = numba.njit(store)
    compiled.compile(signature)
    entry = Entry(compiled, signature)
    x, found, work = np.arange(24.0).reshape(2, 3, 4), np.zeros(6, bool), np.zeros((3, 9), np.int64)
    records = entry.records([np.bool_(True), np.bool_(False), *numbers, x, found], [work])
    counters = np.full(COUNTERS, 5)
    call = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 4)(entry.address)
    assert len(records) == 3
    assert call(counters.ctypes.data, 6, 7, records[1].ctypes.data) == 0
    assert found.all()
    assert work[:, 0].tolist() == [0, 7, 0]


def test_arrays_that_come_again_are_read_and_written_anew(backend: CpuBackend) -> None:
    """What is known of a run's arguments is of the same arrays, of other ones never."""
    x, rows = np.arange(512), np.zeros(512, np.int64)
    binding = by_grid.bind(out(512, np.int64), x.astype(np.int32))
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    for turn in range(50):
        x = x.astype(np.int32) + 1 if turn % 3 else x  # a new array, often where the last one was
        args = [x if x.dtype == np.int32 else x.astype(np.int32)]
        compiled.run_blocks(0, 4, args, [rows])
        assert (rows == 2 * x.astype(np.int64) + 1).all()
        args[0][:] += 7
        for first in (0, 2, 3, 1, 0):
            compiled.run_blocks(first, 1, args, [rows[:128]])
            assert (rows[:128] == 2 * args[0].astype(np.int64)[first * 128 :][:128] + 1).all()
        part = rows[128:256]
        for first in (3, 0, 0, 2):
            compiled.run_blocks(first, 1, args, [part])
            assert (part == 2 * args[0].astype(np.int64)[first * 128 :][:128] + 1).all()
        with pytest.raises(ValueError, match="blocks"):
            compiled.run_blocks(4, 1, args, [part])
        with pytest.raises(ValueError, match="wanted"):
            compiled.run_blocks(0, 2, args, [part])
    strided = np.arange(1024, dtype=np.int32)[::2]
    for turn in range(3):
        strided[:] += turn
        compiled.run_blocks(0, 4, [strided], [rows])
        assert (rows == 2 * strided.astype(np.int64) + 1).all()


@kernel
def scaled(result, x, a):
    i = cuda.grid(1)
    result[i] = a * x[i]


def test_numbers_that_come_again_are_read_anew(backend: CpuBackend) -> None:
    x, rows = np.arange(512), np.zeros(512, np.int64)
    binding = scaled.bind(out(512, np.int64), x, 3)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    changing = np.array(5)
    for factor in (np.int64(2), np.int64(2), 3, 3, np.int64(2), changing, changing):
        compiled.run_blocks(0, 4, [x, factor], [rows])
        assert (rows == int(factor) * x).all()
        changing += 1
    numbers = [*range(512)]  # is copied
    for turn in range(3):
        numbers[7] = turn
        compiled.run_blocks(0, 4, [numbers, 3], [rows])
        assert rows.tolist() == [3 * number for number in numbers]


def test_arguments_that_are_known_keep_no_array(backend: CpuBackend) -> None:
    """A worker's memory is given back when its last view goes."""
    binding = by_grid.bind(out(512, np.int64), np.zeros(512, np.int32))
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    x, rows = np.ones(512, np.int32), np.zeros(512, np.int64)
    for _ in range(2):
        compiled.run_blocks(0, 4, [x], [rows])
    gone = weakref.ref(x), weakref.ref(rows)
    del x, rows
    assert [array() for array in gone] == [None, None]


def test_an_output_in_the_memory_of_another_array_is_refused(backend: CpuBackend) -> None:
    x = np.zeros(256, np.int64)
    binding = shifted.bind(out(128, np.int64), x[64:192])
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    with pytest.raises(ValueError, match="overlap"):
        compiled.run_blocks(0, 1, [x[64:192]], [x[:128]])
    compiled.run_blocks(0, 1, [x[128:]], [x[:128]])


@kernel
def shifted(result, x):
    i = cuda.grid(1)
    result[i] = x[i - 1] + 1
