"""Split inputs on the CPU: chunks that have their windows give the bits of the whole array, and see nothing beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute import cuda
from p2pcompute._split import split
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import InputSpec, Launch, SplitSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_loops import program_text
from p2pcompute.execution._guard import admit
from p2pcompute.execution._lower import lower
from p2pcompute.execution._split import Window, fill_window, window_box
from p2pcompute.kernel import device, kernel, out, reduce

from ._windows import arguments, chunked, reference, rows_of, single

Array = np.ndarray[Any, Any]
EDGES = ("zero", "clamp", "wrap")
# What can't be reached by any place plus the offset, and wraps where it is added to one.
FAR = [-(2**63), 2**63 - 1, 2**62, -(2**40), 2**41]


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@kernel
def along(result, x, low, high):
    i = cuda.grid(1)
    if i < result.size:
        total = 0
        for k in range(low, high):
            total = total * 31 + x[i + k]
        result[i] = total


@kernel
def by_data(result, x, offsets):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i + offsets[i]]


@kernel
def around(result, x, low, high):
    c, r = cuda.grid(2)
    h, w = result.shape
    if r < h and c < w:
        total = 0
        for a in range(low, high):
            for b in range(low, high):
                total = total * 31 + x[r + a, c + b]
        result[r, c] = total


@kernel
def around_by_data(result, x, offsets):
    c, r = cuda.grid(2)
    h, w = result.shape
    if r < h and c < w:
        result[r, c] = x[r + offsets[r, c, 0], c + offsets[r, c, 1]]


@kernel
def in_space(result, x, low, high):
    a, b, c = cuda.grid(3)
    if a < result.shape[2] and b < result.shape[0] and c < result.shape[1]:
        total = 0
        for k in range(low, high):
            total = total * 31 + x[b + k, c - k, a] + 7 * x[b, c, a + k]
        result[b, c, a] = total


def geometry(data: st.DataObject, lengths: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks and threads, x first, that cover places of these lengths."""
    threads = tuple(data.draw(st.integers(1, 9)) for _ in lengths)
    return tuple(-(-n // t) + data.draw(st.integers(0, 1)) for n, t in zip(lengths, threads, strict=True)), threads


lengths = st.integers(1, 30)
halos = st.one_of(st.integers(0, 4), st.integers(5, 70))


@given(data=st.data(), edge=st.sampled_from(EDGES))
@settings(max_examples=25, deadline=None)
def test_one_axis(backend: CpuBackend, data: st.DataObject, edge: str) -> None:
    n, m, halo = data.draw(lengths), data.draw(lengths), data.draw(halos)
    x = np.random.default_rng(n * 31 + m).integers(1, 100, m)
    low = data.draw(st.integers(-halo, halo))
    high = data.draw(st.integers(low + 1, halo + 1))
    blocks, threads = geometry(data, (n,))
    binding = along[blocks, threads].bind(out(n, np.int64), split(x, halo=halo, edge=edge), low, high)
    (found,) = chunked(backend, binding, data.draw(st.integers(1, 5)))
    place = np.arange(n)
    total = np.zeros(n, np.int64)
    for k in range(low, high):
        total = total * 31 + reference(x, [place + k], [place], [halo], edge)
    assert found.tobytes() == total.tobytes()


@given(data=st.data(), edge=st.sampled_from(EDGES), halo=st.sampled_from([0, 2, 40]))
@settings(max_examples=25, deadline=None)
def test_an_index_beyond_the_halo_gives_zero_wherever_it_is_run(
    backend: CpuBackend, data: st.DataObject, edge: str, halo: int
) -> None:
    n, m = data.draw(lengths), data.draw(lengths)
    x = np.random.default_rng(n * 31 + m).integers(1, 100, m).astype(np.int32)
    offsets = np.array(
        data.draw(st.lists(st.one_of(st.integers(-45, 45), st.sampled_from(FAR)), min_size=n, max_size=n)), np.int64
    )
    blocks, threads = geometry(data, (n,))
    binding = by_data[blocks, threads].bind(out(n, np.int32), split(x, halo=halo, edge=edge), offsets)
    place = np.arange(n)
    with np.errstate(over="ignore"):
        due = reference(x, [place + offsets], [place], [halo], edge)
    for size in (1, data.draw(st.integers(2, 40))):
        (found,) = chunked(backend, binding, size)
        assert found.tobytes() == due.tobytes()
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    ids = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)), np.int64)
    assert single(compiled, binding, ids)[0].tobytes() == due[ids].tobytes()


@given(data=st.data(), edge=st.sampled_from(EDGES))
@settings(max_examples=25, deadline=None)
def test_two_axes(backend: CpuBackend, data: st.DataObject, edge: str) -> None:
    shape, own = (data.draw(lengths), data.draw(lengths)), (data.draw(lengths), data.draw(lengths))
    halo = (data.draw(st.integers(0, 40)), data.draw(st.integers(0, 4)))
    x = np.random.default_rng(sum(shape)).integers(1, 100, own)
    low = data.draw(st.integers(-min(halo), min(halo)))
    high = data.draw(st.integers(low + 1, min(halo) + 1))
    blocks, threads = geometry(data, shape[::-1])
    binding = around[blocks, threads].bind(out(shape, np.int64), split(x, halo=halo, edge=edge), low, high)
    (found,) = chunked(backend, binding, data.draw(st.integers(1, 12)))
    r, c = np.indices(shape)
    total = np.zeros(shape, np.int64)
    for a in range(low, high):
        for b in range(low, high):
            total = total * 31 + reference(x, [r + a, c + b], [r, c], list(halo), edge)
    assert found.tobytes() == total.tobytes()


@given(data=st.data(), edge=st.sampled_from(EDGES), halo=st.sampled_from([(0, 0), (1, 3)]))
@settings(max_examples=20, deadline=None)
def test_two_axes_by_data(backend: CpuBackend, data: st.DataObject, edge: str, halo: tuple[int, int]) -> None:
    shape, own = (data.draw(lengths), data.draw(lengths)), (data.draw(lengths), data.draw(lengths))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, offsets = rng.standard_normal(own), rng.integers(-5, 6, (*shape, 2))
    blocks, threads = geometry(data, shape[::-1])
    binding = around_by_data[blocks, threads].bind(out(shape, x.dtype), split(x, halo=halo, edge=edge), offsets)
    (found,) = chunked(backend, binding, data.draw(st.integers(1, 12)))
    r, c = np.indices(shape)
    due = reference(x, [r + offsets[..., 0], c + offsets[..., 1]], [r, c], list(halo), edge)
    assert found.tobytes() == due.tobytes()


@given(data=st.data(), edge=st.sampled_from(EDGES))
@settings(max_examples=20, deadline=None)
def test_three_axes_in_another_order(backend: CpuBackend, data: st.DataObject, edge: str) -> None:
    few = st.integers(1, 9)
    shape, own = tuple(data.draw(few) for _ in range(3)), tuple(data.draw(few) for _ in range(3))
    halo = data.draw(st.integers(0, 6))
    x = np.random.default_rng(sum(own)).integers(1, 100, own).astype(np.uint16)
    low = data.draw(st.integers(-halo, halo))
    high = data.draw(st.integers(low + 1, halo + 1))
    blocks, threads = geometry(data, (shape[2], shape[0], shape[1]))
    binding = in_space[blocks, threads].bind(out(shape, np.int64), split(x, halo=halo, edge=edge), low, high)
    assert isinstance(binding.specs[1], InputSpec)
    assert binding.specs[1].split == SplitSpec(axes=(1, 2, 0), halo=(halo,) * 3, edge=edge)
    (found,) = chunked(backend, binding, data.draw(st.integers(1, 12)))
    b, c, a = np.indices(shape)
    total = np.zeros(shape, np.int64)
    for k in range(low, high):
        one = reference(x, [b + k, c - k, a], [b, c, a], [halo] * 3, edge).astype(np.int64)
        other = reference(x, [b, c, a + k], [b, c, a], [halo] * 3, edge).astype(np.int64)
        total = total * 31 + one + 7 * other
    assert found.tobytes() == total.tobytes()


@kernel
def colours(result, x):
    i = cuda.grid(1)
    if i < result.shape[0]:
        for c in range(5):
            result[i, c] = x[i - 1, c] + 10 * x[i + 1, c]


def test_axes_beyond_the_grids_are_whole(backend: CpuBackend) -> None:
    x = np.arange(33, dtype=np.int64).reshape(11, 3) + 1
    binding = colours[4, 3].bind(out((11, 5), np.int64), split(x, halo=1, edge="wrap"))
    (found,) = chunked(backend, binding, 1)
    due = np.zeros((11, 5), np.int64)  # no edge rule there: an index beyond gives zero
    due[:, :3] = np.roll(x, 1, 0) + 10 * np.roll(x, -1, 0)
    assert np.array_equal(found, due)


@kernel
def lengths_of(result, x):
    i = cuda.grid(1)
    if i < result.shape[0]:
        h, w = x.shape
        result[i, 0], result[i, 1], result[i, 2], result[i, 3] = h, w, len(x), x.size + x.ndim
        result[i, 4] = x[i, 0]


def test_lengths_are_those_of_the_whole_array(backend: CpuBackend) -> None:
    binding = lengths_of[5, 2].bind(out((9, 5), np.int64), split(np.ones((7, 4), np.int8)))
    for row in chunked(backend, binding, 1)[0]:
        assert list(row[:4]) == [7, 4, 7, 30]


@kernel
def tiled_sum(result, x):
    tile = cuda.shared.array(12, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    tile[tx + 2] = x[i]
    if tx < 2:
        tile[tx] = x[i - 2]
        tile[tx + 10] = x[i + 8]
    cuda.syncthreads()
    if i < result.size:
        total = 0
        for k in range(5):
            total = total * 10 + tile[tx + k]
        result[i] = total


@pytest.mark.parametrize("edge", EDGES)
def test_threads_that_work_together(backend: CpuBackend, edge: str) -> None:
    x = np.arange(1, 38, dtype=np.int64) % 10
    binding = tiled_sum[6, 8].bind(out(41, np.int64), split(x, halo=8, edge=edge))
    place, total = np.arange(41), np.zeros(41, np.int64)
    for k in range(-2, 3):
        # Some threads load for others, so each load has its own place; none is further away than the halo.
        total = total * 10 + reference(x, [place + k], [place + k], [0], edge)
    for size in (1, 4, 6):
        assert np.array_equal(chunked(backend, binding, size)[0], total)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    assert np.array_equal(single(compiled, binding, np.array([2, 5]))[0][0], total[16:24])


def test_a_combined_output(backend: CpuBackend) -> None:
    x = np.random.default_rng(3).integers(0, 1000, 50)
    binding = along[7, 8].bind(reduce("sum", 50, np.int64), split(x, halo=2, edge="clamp"), -2, 3)
    padded = np.pad(x, 2, mode="edge")
    total = np.zeros(50, np.int64)
    for k in range(5):
        total = total * 31 + padded[k : k + 50]
    for size in (1, 3, 7):
        assert chunked(backend, binding, size)[0] == total.sum()


@kernel
def clamped_by_hand(result, x):
    i = cuda.grid(1)
    if i < result.size:
        before = max(i - 1, 0)
        after = i + 1
        after = min(after, x.size - 1)
        result[i] = x[before] + 100 * x[after] if i % 2 == 0 else x[i]


@kernel
def with_a_loop(result, x):
    i = cuda.grid(1)
    if i < result.size:
        total = 0
        for j in range(i - 3, i + 2):
            total += x[j]
        result[i] = total


@kernel
def in_steps(result, x):
    i = cuda.grid(1)
    if i < result.size:
        j = i - 2
        while j < i + 2:
            result[i] += x[j]
            j += 1


@pytest.mark.parametrize(
    ("which", "halo", "tested"), [(clamped_by_hand, 1, False), (with_a_loop, 3, False), (in_steps, 2, True)]
)
def test_where_an_index_is_proved_to_stay_near_nothing_is_tested(which: Any, halo: int, tested: bool) -> None:
    x = np.ones(40, np.int64)
    binding = which.bind(out(40, np.int64), split(x, halo=halo))
    body = lower(which._admitted, binding.launch, binding.specs).body
    assert (f"+ uint64({halo})) <= uint64({2 * halo})" in body) == tested


@pytest.mark.parametrize("which", [clamped_by_hand, with_a_loop, in_steps])
def test_what_is_proved_is_so(backend: CpuBackend, which: Any) -> None:
    x = np.random.default_rng(1).integers(1, 1000, 40)
    for edge in EDGES:
        binding = which[10, 4].bind(out(40, np.int64), split(x, halo=3, edge=edge))
        due = chunked(backend, which[10, 4].bind(out(40, np.int64), split(x, halo=45, edge=edge)), 10)[0]
        assert np.array_equal(chunked(backend, binding, 1)[0], due)


@kernel
def by_strides(result, x):
    for j in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        result[j] = x[j - 1] + 10 * x[j + 1]


@kernel
def by_strides_on(result, x):
    j = cuda.grid(1)
    while j < x.size:
        result[j] = x[j - 1] + 10 * x[j + 1]
        j += cuda.gridsize(1)


@pytest.mark.parametrize("which", [by_strides, by_strides_on])
@pytest.mark.parametrize("geometry", [(5, 8), (6, 8)])  # each thread has a turn; some have none
def test_loops_by_strides(backend: CpuBackend, which: Any, geometry: tuple[int, int]) -> None:
    x = np.random.default_rng(3).integers(1, 1000, 40)
    place = np.arange(40)
    for edge in EDGES:
        binding = which[geometry].bind(out(40, np.int64), split(x, halo=1, edge=edge))
        body = lower(which._admitted, binding.launch, binding.specs).body
        assert "for " not in body
        assert "while " not in body
        before, after = (reference(x, [place + k], [place], [1], edge) for k in (-1, 1))
        for size in (1, 2, 6):
            assert np.array_equal(chunked(backend, binding, size)[0], before + 10 * after)


@pytest.mark.parametrize("tested", [True, False])
def test_what_lies_beside_a_window_is_not_seen(tested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines have other tiles around those of a chunk. Without the test of the halo that shows."""
    if not tested:
        monkeypatch.setattr("p2pcompute.execution._lower_split.within", lambda reach, halo: True)
    x, offsets = np.arange(1, 33).astype(np.int32), np.full(32, 3)
    binding = by_data[4, 8].bind(out(32, np.int32), split(x, halo=1), offsets)
    found = []
    for around in (0, 7):
        values = np.full(32, around, np.int32)
        values[7:17] = x[7:17]  # all that the second block may load
        rows = rows_of(binding, 8)
        with CpuBackend() as fresh:
            compiled = fresh.compile(binding.source, binding.launch, binding.specs)
            compiled.run_blocks(1, 1, [Window((0,), values), offsets], rows)
        found.append(rows[0].tobytes())
    assert (found[0] == found[1]) == tested


@kernel
def unsigned(result, x, k):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[np.uint64(i) + k]


def test_the_greatest_unsigned_indices_are_no_negative_ones(backend: CpuBackend) -> None:
    x = np.arange(1, 9)
    for edge in EDGES:
        binding = unsigned[2, 4].bind(out(8, np.int64), split(x, halo=1, edge=edge), np.uint64(2**64 - 1))
        (found,) = chunked(backend, binding, 1)
        assert list(found) == [0, 1, 2, 3, 4, 5, 6, 7]  # of thread 0 it is 2**64 - 1


# What is refused


@kernel
def two_away(result, x):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i + 2]


@kernel
def five_point(result, x):
    i = cuda.grid(1)
    if i < result.size:
        for k in range(-2, 3):
            result[i] += x[i + k]


@kernel
def five_point_guarded(result, x):
    i = cuda.grid(1)
    if i < result.size:
        for k in range(-2, 3):
            if k < 2:
                result[i] += x[i + k]


@kernel
def five_point_left(result, x):
    i = cuda.grid(1)
    if i < result.size:
        for k in range(-2, 3):
            if k > 1:
                break
            result[i] += x[i + k]


@kernel
def five_point_passed_over(result, x):
    i = cuda.grid(1)
    if i < result.size:
        for k in range(-2, 3):
            for _j in range(min(1, 2 - k)):
                result[i] += x[i + k]


@device
def first(x):
    return x[0]


@kernel
def passes_it_on(result, x):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = first(x)


@kernel
def same_for_all(result, x):
    tile = cuda.shared.array(4, np.int64)
    i = cuda.grid(1)
    n = x[0]
    for k in range(n):
        tile[cuda.threadIdx.x] = k
        cuda.syncthreads()
    if i < result.size:
        result[i] = tile[0]


@kernel
def crossed(result, x):
    c, r = cuda.grid(2)
    if r < result.shape[0] and c < result.shape[1]:
        result[r, c] = x[r + c, c]


@kernel
def stored(result, x):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i]
        x[i] = 0


X = np.arange(8)


@pytest.mark.parametrize(
    ("which", "given", "words"),
    [
        (two_away, {"halo": 1}, "loaded 2 from the thread's own place along axis 0, and its halo is 1"),
        (five_point, {"halo": 1}, "loaded 2 from"),
        (five_point, {}, "halo=2"),
        (passes_it_on, {"halo": 1}, "passed to a function"),
        (same_for_all, {"halo": 1}, "not written from the thread's place"),
        (stored, {}, "which is an input"),
    ],
)
def test_refused_where_it_is_bound(which: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelTypeError) as error:
        which[2, 4].bind(out(8, np.int64), split(X, **given))
    assert words in str(error.value)
    assert error.value.line


def test_refused_for_its_axes() -> None:
    with pytest.raises(KernelTypeError, match="made from several places"):
        crossed.bind(out((4, 4), np.int64), split(np.ones((4, 4), np.int64)))
    with pytest.raises(KernelTypeError, match="has 1 axes and the grid 2"):
        around.bind(out((4, 4), np.int64), split(X), 0, 1)
    with pytest.raises(KernelTypeError, match="beyond the grid's a halo of 0"):
        colours.bind(out((11, 5), np.int64), split(np.ones((11, 3), np.int64), halo=(1, 1)))


@pytest.mark.parametrize("which", [five_point_guarded, five_point_left, five_point_passed_over])
def test_what_is_only_perhaps_too_far_is_not_refused(backend: CpuBackend, which: Any) -> None:
    binding = which[2, 4].bind(out(8, np.int64), split(X + 1, halo=1))
    place = np.arange(8)
    due = sum(reference(X + 1, [place + k], [place], [1], "zero") for k in range(-2, 3))
    due = due - (reference(X + 1, [place + 2], [place], [1], "zero"))
    assert np.array_equal(chunked(backend, binding, 1)[0], due)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"halo": -1}, "halo is -1"),
        ({"halo": 2**20 + 1}, "halo is"),
        ({"halo": True}, "halo is True"),
        ({"halo": 0.5}, "halo is 0.5"),
        ({"halo": (1, 1)}, "one for each axis"),
        ({"edge": "mirror"}, "edge is 'mirror'"),
        ({"tile": (0,)}, r"tile is \(0,\)"),
        ({"tile": (4, 4)}, "one for each axis"),
    ],
)
def test_refused_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(KernelTypeError, match=words):
        split(X, **given)
    for bad in ([1, 2], np.float32(1), np.ones(3, np.complex64), np.ones(3, ">f4")):
        with pytest.raises(KernelTypeError, match="can't be split"):
            split(bad)


def test_an_array_in_a_file_is_not_read_into_memory(tmp_path: Path) -> None:
    lies = np.memmap(tmp_path / "data", np.int64, "w+", shape=(100, 10))
    assert np.shares_memory(split(lies).array, lies)


# Attacks: what is compiled does not test what it has proved, so whoever runs it looks at the window first.


def test_an_output_in_the_memory_of_a_window_is_refused(backend: CpuBackend) -> None:
    binding = along[2, 8].bind(out(16, np.int64), split(np.ones(16, np.int64), halo=1), -1, 2)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    memory = np.ones(18, np.int64)
    scalars = arguments(binding, ((0, 8), (0, 1), (0, 1)))[1:]
    for at in (0, 9):
        with pytest.raises(ValueError, match="overlap"):
            compiled.run_blocks(0, 1, [Window((-1,), memory[:10]), *scalars], [memory[at : at + 8]])
    compiled.run_blocks(0, 1, [Window((-1,), memory[:10]), *scalars], [memory[10:]])


@kernel
def near(result, x):
    c, r = cuda.grid(2)
    result[r, c] = x[r - 1, c] + x[r + 1, c] if 0 < r < result.shape[0] - 1 else x[r, c]


def test_code_over_windows_has_plain_loops_and_no_border() -> None:
    x = np.arange(40 * 40).reshape(40, 40)
    for value, plain in ((x, False), (split(x, halo=1), True)):
        binding = near.bind(out((40, 40), np.int64), value)
        lowered = lower(admit(binding.source), binding.launch, binding.specs)
        assert (lowered.inner is None) == plain
        assert ("across(" not in program_text(lowered, binding.launch)) == plain


@pytest.mark.parametrize(
    "window",
    [
        Window((-1,), np.ones(9, np.int64)),  # one too few
        Window((0,), np.ones(10, np.int64)),  # one too far
        Window((-1,), np.ones(10, np.int32)),
        Window((-1, 0), np.ones((10, 1), np.int64)),
        Window((-(2**40),), np.ones(10, np.int64)),
        X,
    ],
)
def test_a_window_that_does_not_hold_what_is_loaded_is_refused(backend: CpuBackend, window: Any) -> None:
    binding = along[2, 8].bind(out(16, np.int64), split(np.ones(16, np.int64), halo=1), -1, 2)
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    good = arguments(binding, ((0, 8), (0, 1), (0, 1)))
    compiled.run_blocks(0, 1, good, rows_of(binding, 8))
    for call in (
        lambda: compiled.run_blocks(0, 1, [window, *good[1:]], rows_of(binding, 8)),
        lambda: compiled.run_threads(np.arange(8), [window, *good[1:]], rows_of(binding, 8)),
        lambda: compiled.run_blocks(1, 1, good, rows_of(binding, 8)),  # that of other blocks
        lambda: compiled.run_threads(np.array([3, 8]), good, rows_of(binding, 2)),
    ):
        with pytest.raises(ValueError, match=r"window|split"):
            call()


@pytest.mark.parametrize(
    "bad",
    [
        SplitSpec(axes=(0, 0), halo=(1, 1), edge="zero"),
        SplitSpec(axes=(1,), halo=(1,), edge="zero"),
        SplitSpec(axes=(0,), halo=(), edge="zero"),
        SplitSpec(axes=(0,), halo=(2**20 + 1,), edge="zero"),
        SplitSpec(axes=(0,), halo=(-1,), edge="zero"),
        SplitSpec(axes=(0,), halo=(1,), edge="mirror"),
    ],
)
def test_a_split_that_no_kernel_was_bound_to_is_refused_by_who_runs_it(backend: CpuBackend, bad: SplitSpec) -> None:
    binding = along[2, 4].bind(out(8, np.int64), split(X), 0, 1)
    specs = (binding.specs[0], InputSpec(dtype="int64", shape=(8,), split=bad), *binding.specs[2:])
    with pytest.raises(KernelTypeError, match="can't be split so"):
        backend.compile(binding.source, binding.launch, specs)


def test_a_huge_halo_around_a_small_array_is_filled_at_once() -> None:
    spec = InputSpec(dtype="int8", shape=(3,), split=SplitSpec(axes=(0,), halo=(2**20,), edge="wrap"))
    box = window_box(spec, ((0, 4), (0, 1), (0, 1)))
    window = fill_window(spec, box, [((0,), np.array([1, 2, 3], np.int8))])
    assert window.values.shape == (2**21 + 4,)
    assert np.array_equal(window.values, np.array([1, 2, 3], np.int8)[np.arange(-(2**20), 2**20 + 4) % 3])


def test_tiles_make_the_same_window_as_the_whole() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 100, (7, 5, 2))
    for edge in EDGES:
        for halo in (0, 2, 11):
            spec = InputSpec(dtype="int64", shape=x.shape, split=SplitSpec(axes=(1, 0), halo=(halo, halo), edge=edge))
            launch = Launch(grid=(2, 3, 1), block=(3, 3, 1), dims=2)
            places = ((0, launch.grid[0] * 3), (3, 9), (0, 1))
            pieces = [
                ((a, b, c), x[a : a + 3, b : b + 2, c : c + 1])
                for a in range(0, 7, 3)
                for b in range(0, 5, 2)
                for c in range(2)
            ]
            one = fill_window(spec, window_box(spec, places), [((0, 0, 0), x)])
            other = fill_window(spec, window_box(spec, places), pieces)
            assert np.array_equal(one.values, other.values)
