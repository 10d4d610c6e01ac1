"""The CPU back end: whole launches, chunks and single threads give the same bits, and nothing leaves its array."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest

from p2pcompute import cuda, random
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cpu_crew import Crew
from p2pcompute.execution._rows import Layout, scatter_rows, thread_coordinates, threads_inside
from p2pcompute.kernel import Binding, Kernel, device, kernel, out

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    """A back end of one, two and five processor threads."""
    with CpuBackend(request.param) as made:
        yield made


def rows_of(binding: Binding, count: int) -> list[Array]:
    return [
        np.zeros((count, *row), spec.dtype)
        for row, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
    ]


def chunked(backend: CpuBackend, binding: Binding, sizes: list[int]) -> list[Array]:
    """Run the launch in chunks of `sizes` blocks, over and over, and scatter them."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    whole = binding.empty_outputs()
    first, turn = 0, 0
    while first < binding.launch.blocks:
        blocks = min(sizes[turn % len(sizes)], binding.launch.blocks - first)
        rows = rows_of(binding, blocks * binding.launch.threads_per_block)
        compiled.run_blocks(first, blocks, binding.values, rows)
        for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
            binding.layout.scatter(place, first, blocks, part, target)
        first, turn = first + blocks, turn + 1
    return whole


def once(backend: CpuBackend, binding: Binding) -> list[Array]:
    return chunked(backend, binding, [binding.launch.blocks])


def assert_same_everywhere(backend: CpuBackend, binding: Binding) -> list[Array]:
    """Whole, in chunks and by single threads: bit for bit."""
    whole = once(backend, binding)
    for sizes in ([1, 5, 2], [7]):
        for one, other in zip(whole, chunked(backend, binding, sizes), strict=True):
            assert one.tobytes() == other.tobytes()
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    all_rows = rows_of(binding, binding.launch.threads)
    compiled.run_blocks(0, binding.launch.blocks, binding.values, all_rows)
    picks = np.random.default_rng(7).integers(0, binding.launch.threads, 333)
    again = rows_of(binding, len(picks))
    compiled.run_threads(picks, binding.values, again)
    for one, other in zip(all_rows, again, strict=True):
        assert one[picks].tobytes() == other.tobytes()
    return whole


@kernel
def saxpy(result, a, x, y):
    i = cuda.grid(1)
    if i < result.size:
        result[i] = a * x[i] + y[i]


@kernel
def mandelbrot(result, x0, y0, step, limit):
    x, y = cuda.grid(2)
    cr = x0 + x * step
    ci = y0 + y * step
    zr, zi = 0.0, 0.0
    for n in range(limit):
        zr, zi = zr * zr - zi * zi + cr, 2.0 * zr * zi + ci
        if zr * zr + zi * zi > 4.0:
            result[y, x] = n
            return
    result[y, x] = limit


@kernel
def pi_paths(inside, mean, seed, steps):
    i = cuda.grid(1)
    hits = 0
    total = 0.0
    for k in range(steps):
        u = random.uniform(seed, i, 2 * k)
        v = random.uniform(seed, i, 2 * k + 1)
        if u * u + v * v <= 1.0:
            hits += 1
        total += math.sqrt(u) - v / 3.0
    inside[i] = hits
    mean[i] = total / steps


def test_saxpy(threads: CpuBackend) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 10_007), dtype=np.float32)
    (found,) = assert_same_everywhere(threads, saxpy.bind(out(x.shape, x.dtype), np.float32(2.5), x, y))
    assert found.tobytes() == (np.float32(2.5) * x + y).tobytes()


def test_mandelbrot(threads: CpuBackend) -> None:
    width, height, limit = 150, 101, 60
    step = np.float32(0.02)
    (found,) = assert_same_everywhere(
        threads, mandelbrot.bind(out((height, width), np.uint16), -2.0, -1.0, step, limit)
    )
    cr = np.float32(-2) + np.arange(width, dtype=np.float32)[None, :] * step
    ci = np.float32(-1) + np.arange(height, dtype=np.float32)[:, None] * step
    zr = zi = np.zeros((height, width), np.float32)
    due = np.full((height, width), limit, np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        for n in range(limit):
            zr, zi = zr * zr - zi * zi + cr, np.float32(2) * zr * zi + ci
            due[(due == limit) & (zr * zr + zi * zi > 4)] = n
    assert found.tobytes() == due.tobytes()


def test_monte_carlo(threads: CpuBackend) -> None:
    paths, steps, seed = 3_001, 16, 2**40 + 5
    inside, mean = assert_same_everywhere(
        threads, pi_paths.bind(out(paths, np.uint8), out(paths, np.float32), seed, steps)
    )
    path, step = np.arange(paths)[:, None], np.arange(steps)[None, :]
    u, v = random.uniform(seed, path, 2 * step), random.uniform(seed, path, 2 * step + 1)
    assert inside.tobytes() == (u * u + v * v <= 1).sum(axis=1).astype(np.uint8).tobytes()
    total = np.zeros(paths, np.float32)
    for k in range(steps):
        total = total + (np.sqrt(u[:, k]) - v[:, k] / np.float32(3))
    assert mean.tobytes() == (total / np.float32(steps)).tobytes()
    assert abs(4 * inside.mean() / steps - math.pi) < 0.05


# Control flow and functions


@device
def polar(x, y):
    length = math.sqrt(x * x + y * y)
    if length == 0:
        return 0.0, 0.0, 0
    return x / length, y / length, 1


@device
def both(x, y):
    return polar(y, x)


@device
def total(values, first, count):
    result = 0.0
    for k in range(first, first + count):
        result += values[k]
    return result


@device
def largest(values):
    best = -math.inf
    for k in range(len(values)):
        if values[k] > best:
            best = values[k]
    return best


@device
def collatz(n):
    steps = 0
    while n != 1:
        if steps > 1000:
            break
        steps += 1
        if n % 2 == 0:
            n //= 2
            continue
        n = 3 * n + 1
    return steps


@kernel
def flow(floats, ints, x):
    i = cuda.grid(1)
    a, b, known = both(x[i], i)
    floats[i, 0] = a
    floats[i, 1] = b
    floats[i, 2] = total(x, i - 1, 3)
    floats[i, 3] = largest(x)
    floats[i, 4] = max(min(x[i], 2.0, i), -1) if known and x[i] < 5 else -7
    ints[i, 0] = known
    ints[i, 1] = collatz(i + 1)
    p, q = i, i + 1
    p, q = q, p
    ints[i, 2] = p - q
    p = q = 9
    ints[i, 3] = p * q
    count = 0
    while count < 10 and collatz(count + 1) < 8:
        count += 1
    ints[i, 4] = count
    ints[i, 5] = x.size + len(x) + x.ndim + x.shape[0] + floats.shape[1] + len(ints)
    if i == 3:
        return
    elif i == 4:  # noqa: RET505 - the ladder is what is tested
        pass
    else:
        ints[i, 6] = 1
    ints[i, 6] += 10
    n, width = ints.shape
    ints[i, 7] = n * 100 + width


def test_control_flow(backend: CpuBackend) -> None:
    x = np.array([3.0, 0.0, -4.5, 7.0, 1.0, 2.25], dtype=np.float32)
    n = len(x)
    floats, ints = assert_same_everywhere(backend, flow.bind(out((n, 5), np.float32), out((n, 8), np.int32), x))
    padded = np.concatenate([[0], x, [0]]).astype(np.float32)

    def steps(value: int) -> int:
        count = 0
        while value != 1:
            value, count = (value // 2 if value % 2 == 0 else 3 * value + 1), count + 1
        return count

    for i in range(n):
        f = np.float32
        length = np.sqrt(f(i) * f(i) + x[i] * x[i])
        due = [f(i) / length, x[i] / length] if length else [0, 0]
        assert floats[i, :2].tolist() == [float(value) for value in due]
        assert floats[i, 2] == padded[i] + padded[i + 1] + padded[i + 2]
        assert floats[i, 3] == 7.0
        assert floats[i, 4] == (max(min(x[i], 2.0, i), -1) if length and x[i] < 5 else -7)
        assert ints[i].tolist() == [
            int(length != 0), steps(i + 1), 1, 81,
            next(k for k in range(11) if k == 10 or steps(k + 1) >= 8),
            6 + 6 + 1 + 6 + 5 + 6,
            {3: 0, 4: 10}.get(i, 11),
            0 if i == 3 else 608,
        ]  # fmt: skip


@kernel
def unassigned(result, x):
    i = cuda.grid(1)
    if x[i] > 10:
        never = 3.5
    result[i] = never + x[i]
    for k in range(0):
        never = k * 1.0
    result[i] += k


def test_locals_start_as_zero(backend: CpuBackend) -> None:
    x = np.array([1.0, 11.0], dtype=np.float32)
    (found,) = once(backend, unassigned.bind(out(2, "f4"), x))
    assert found.tolist() == [1.0, 14.5]


# Indices out of range


@kernel
def gather(result, x, index):
    i = cuda.grid(1)
    result[i] = x[index[i]]


@kernel
def gather_planes(result, x, index):
    i = cuda.grid(1)
    result[i, 0] = x[index[i], 0, 0, 0]
    result[i, 1] = x[0, index[i], 0, 0]
    result[i, 2] = x[0, 0, index[i], 0]
    result[i, 3] = x[0, 0, 0, index[i]]
    result[i, index[i]] = 5
    result[i, 4] = result[i, index[i]]


INDICES = np.array([0, 1, -1, 2, 3, -3, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**32, 2**61, -(2**61)])


def test_loads_out_of_range_are_zero(backend: CpuBackend) -> None:
    arena = np.arange(100, 200, dtype=np.float32)
    x = arena[50:53]
    (found,) = once(backend, gather.bind(out(len(INDICES), "f4"), x, INDICES))
    assert found.tolist() == [x[k] if 0 <= k < 3 else 0.0 for k in INDICES.tolist()]
    wide = INDICES.astype(np.uint64)
    (found,) = once(backend, gather.bind(out(len(wide), "f4"), x, wide))
    assert found.tolist() == [x[k] if 0 <= k < 3 else 0.0 for k in wide.tolist()]
    (found,) = once(backend, gather.bind(out(3, "f4"), x[:0], INDICES[:3]))
    assert found.tolist() == [0.0] * 3


def test_without_the_check_a_kernel_reads_what_lies_beside_its_array() -> None:
    """The attack that the check stops, on memory that is ours."""
    backend = CpuBackend()

    def unchecked(a: Any, i: Any) -> Any:
        return a[i]

    backend._namespace["load1"] = numba.njit(unchecked)
    arena = np.arange(100, 200, dtype=np.float32)
    (found,) = once(backend, gather.bind(out(3, "f4"), arena[50:53], np.array([-1, 3, 4])))
    assert found.tolist() == [149.0, 153.0, 154.0]


def test_each_axis_is_checked(backend: CpuBackend) -> None:
    x = np.arange(1, 2 * 3 * 2 * 4 + 1, dtype=np.int16).reshape(2, 3, 2, 4)
    (found,) = once(backend, gather_planes.bind(out((len(INDICES), 5), "i8"), x, INDICES))
    for row, k in zip(found.tolist(), INDICES.tolist(), strict=True):
        due = [
            int(x[tuple(k if axis == a else 0 for a in range(4))]) if 0 <= k < x.shape[axis] else 0 for axis in range(4)
        ]
        due.append(0)
        if 0 <= k < 5:
            due[k] = 5
            due[4] = 5
        assert row == due, k


@kernel
def shorter_input(result, x):
    i = cuda.grid(1)
    result[i] = x[i] + 1


def test_an_input_shorter_than_the_output(backend: CpuBackend) -> None:
    """The same kernel with and without the check that its shapes make needless."""
    x = np.arange(1, 11, dtype=np.int32)
    for length in (10, 9, 12, 200):
        (found,) = once(backend, shorter_input.bind(out(length, "i4"), x))
        assert found.tolist() == [k + 2 if k < 10 else 1 for k in range(length)]
    compiled = backend.compile(*_compile_args(shorter_input.bind(out(10, "i4"), x)))
    with pytest.raises(ValueError, match="x is"):
        compiled.run_blocks(0, 1, [x[:5]], [np.zeros(128, np.int32)])


def _compile_args(binding: Binding) -> tuple[KernelSource, Launch, Any]:
    return binding.source, binding.launch, binding.specs


@kernel
def outputs_of_two_lengths(a, b, x):
    i = cuda.grid(1)
    a[i] += x[i]
    a[i] += a[i]
    b[i, 0] = i + a[i]
    b[i, 1] = a.size


def test_outputs_of_different_lengths(backend: CpuBackend) -> None:
    x = np.arange(1, 301)
    for la, lb in ((300, 130), (130, 300), (1, 257), (0, 3), (3, 0)):
        binding = outputs_of_two_lengths.bind(out(la, "i8"), out((lb, 2), "i8"), x)
        a, b = assert_same_everywhere(backend, binding)
        assert a.tolist() == [2 * (k + 1) for k in range(la)]
        assert b.tolist() == [[k + (2 * (k + 1) if k < la else 0), la] for k in range(lb)]


# Geometry


@kernel
def where(place, size):
    x, y, z = cuda.grid(3)
    place[z, y, x, 0] = x + 100 * (y + 100 * z)
    place[z, y, x, 1] = cuda.threadIdx.x + 10 * (cuda.threadIdx.y + 10 * cuda.threadIdx.z)
    place[z, y, x, 2] = cuda.blockIdx.x + 10 * (cuda.blockIdx.y + 10 * cuda.blockIdx.z)
    gx, gy, gz = cuda.gridsize(3)
    size[z, x, y] = gx * gy * gz + cuda.blockDim.x + cuda.gridDim.y


@pytest.mark.parametrize(
    "geometry", [((3, 4, 2), (4, 3, 5)), ((1, 1, 1), (8, 8, 8)), ((5, 5, 5), (2, 2, 1)), ((2, 1, 3), (9, 2, 3))]
)
def test_three_axes(backend: CpuBackend, geometry: Any) -> None:
    shape = (7, 9, 10)  # z, y, x
    binding = where[geometry].bind(out((*shape, 3), "i4"), out((7, 10, 9), "i4"))
    place, size = assert_same_everywhere(backend, binding)
    (gx, gy, gz), (bx, by, bz) = geometry
    covered = np.zeros(shape, bool)
    covered[: gz * bz, : gy * by, : gx * bx] = True
    z, y, x = np.indices(shape)
    due = np.stack(
        [x + 100 * (y + 100 * z), x % bx + 10 * (y % by + 10 * (z % bz)), x // bx + 10 * (y // by + 10 * (z // bz))], -1
    )
    assert (place == due * covered[..., None]).all()
    assert (size.transpose(0, 2, 1) == (gx * gy * gz * bx * by * bz + bx + gy) * covered).all()


@kernel
def by_pattern(result):
    column = cuda.threadIdx.x + cuda.blockDim.x * cuda.blockIdx.x
    row = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    result[row, column] = 1000 * row + column


def test_index_written_out(backend: CpuBackend) -> None:
    (found,) = assert_same_everywhere(backend, by_pattern.bind(out((20, 37), "i4")))
    assert (found == 1000 * np.arange(20)[:, None] + np.arange(37)).all()


def test_rows_are_in_thread_order(backend: CpuBackend) -> None:
    binding = by_pattern[(3, 2), (4, 5)].bind(out((9, 11), "i4"))
    compiled = backend.compile(*_compile_args(binding))
    rows = np.zeros(binding.launch.threads, np.int32)
    compiled.run_blocks(0, binding.launch.blocks, [], [rows])
    ids = np.arange(binding.launch.threads)
    x, y, z = thread_coordinates(binding.launch, ids)
    inside = (y < 9) & (x < 11)
    assert not z.any()
    assert (rows == np.where(inside, 1000 * y + x, 0)).all()
    assert (binding.layout.inside(ids) == inside).all()
    assert (threads_inside(*_compile_args(binding), 1, 3) == ids[20:80][inside[20:80]]).all()
    assert backend.row_shapes(*_compile_args(binding)) == [()]
    target = np.zeros((9, 11), np.int32)
    scatter_rows(*_compile_args(binding), 0, 0, binding.launch.blocks, rows, target)
    assert (target == 1000 * np.arange(9)[:, None] + np.arange(11)).all()


@pytest.mark.parametrize(
    ("grid", "block", "shape"),
    [((3, 2), (4, 5), (9, 11)), ((3, 4), (4, 2), (8, 12)), ((2, 3), (5, 3), (9, 7)), ((2, 2), (2, 2), (50, 50))],
)
def test_a_chunk_whose_items_all_own_an_element_is_known_by_its_corners(
    grid: tuple[int, int], block: tuple[int, int], shape: tuple[int, int]
) -> None:
    layout: Layout = by_pattern[grid, block].bind(out(shape, "i4")).layout
    size = layout.launch.threads_per_block
    whole = set()
    for first in range(layout.launch.blocks):
        for blocks in range(1, layout.launch.blocks - first + 1):
            inside = layout.items_inside(first, blocks)
            whole.add(len(inside) == blocks * size)
            told = layout.items_sampled(first, blocks)
            if len(inside) == blocks * size:
                assert told is None
            else:
                assert told is not None
                assert (told == inside).all()
    assert True in whole
    with pytest.raises(ValueError, match="blocks"):
        layout.items_sampled(0, layout.launch.blocks + 1)


def test_few_threads_are_left_to_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples: nobody else is woken for them once it is known that they take no time."""
    shared: list[int] = []
    together = Crew._together

    def spied(self: Crew, done: int, total: int, part: Any, kept: object) -> None:
        shared.append(total)
        together(self, done, total, part, kept)

    monkeypatch.setattr(Crew, "_together", spied)
    with CpuBackend(3) as backend:
        binding = by_pattern[(30, 20), (16, 16)].bind(out((320, 480), "i4"))
        compiled = backend.compile(*_compile_args(binding))
        ids = np.arange(0, binding.launch.threads, 7, dtype=np.int64)
        x, y, _ = thread_coordinates(binding.launch, ids)
        # As the clock is asked: whatever the machine is busy with, these have taken a nanosecond each, or a second.
        for item_ns, helped in ((1.0, False), (1e9, True), (1.0, False)):
            compiled._thread_pace.ns = item_ns
            shared.clear()
            rows = np.zeros(len(ids), np.int32)
            compiled.run_threads(ids, [], [rows])
            assert (rows == 1000 * y + x).all()
            assert bool(shared) is helped


def test_scatter_refuses_what_does_not_fit() -> None:
    binding = by_pattern[(3, 2), (4, 5)].bind(out((9, 11), "i4"))
    layout: Layout = binding.layout
    rows, target = np.zeros(40, np.int32), np.zeros((9, 11), np.int32)
    layout.scatter(0, 0, 2, rows, target)
    with pytest.raises(ValueError, match="rows"):
        layout.scatter(0, 0, 3, rows, target)
    with pytest.raises(ValueError, match="rows"):
        layout.scatter(0, 0, 2, rows.astype(np.int64), target)
    with pytest.raises(ValueError, match="target"):
        layout.scatter(0, 0, 2, rows, target.T.copy())
    for first, blocks in ((-1, 2), (5, 2), (0, -1), (7, 0)):
        with pytest.raises(ValueError, match="blocks"):
            layout.scatter(0, first, blocks, rows, target)


# The seam


def test_run_checks_what_it_is_given(backend: CpuBackend) -> None:
    x = np.zeros(1000, np.float32)
    binding = saxpy.bind(out(1000, "f4"), np.float32(1), x, x)
    compiled = backend.compile(*_compile_args(binding))
    good = np.zeros(256, np.float32)
    values = [np.float32(1), x, x]
    compiled.run_blocks(0, 2, values, [good])
    read_only = np.zeros(256, np.float32)
    read_only.flags.writeable = False
    for outs in ([], [good[:-1]], [good.astype("f8")], [np.zeros(512, np.float32)[::2]], [read_only], [good, good]):
        with pytest.raises(ValueError, match=r"rows of|outputs"):
            compiled.run_blocks(0, 2, values, outs)
    for args in ([np.float32(1), x], [np.float32(1), x, x[:-1]], [np.float32(1), x, x.astype("f8")]):
        with pytest.raises(ValueError, match=r"arguments|is float"):
            compiled.run_blocks(0, 2, args, [good])
    for first, blocks in ((-1, 2), (0, 9), (8, 1)):
        with pytest.raises(ValueError, match="blocks"):
            compiled.run_blocks(first, blocks, values, [good])
    for ids in ([-1], [1024], [[1]]):
        with pytest.raises(ValueError, match="threads"):
            compiled.run_threads(np.array(ids), values, [np.zeros(1, np.float32)])
    compiled.run_threads(np.zeros(0, np.int64), values, [np.zeros(0, np.float32)])
    compiled.run_blocks(0, 0, values, [np.zeros(0, np.float32)])


def test_inputs_stay_as_they_are(backend: CpuBackend) -> None:
    x = np.arange(300, dtype=np.float32)
    x.flags.writeable = False
    strided = np.arange(600, dtype=np.float32)[::2]
    unaligned = np.frombuffer(bytearray(1201), np.uint8)[1:].view(np.float32)
    binding = saxpy.bind(out(300, "f4"), np.float32(1), x, strided)
    compiled = backend.compile(*_compile_args(binding))
    rows = np.zeros(384, np.float32)
    compiled.run_blocks(0, 3, [np.float32(1), x, unaligned], [rows])
    assert rows[:300].tolist() == x.tolist()
    compiled.run_blocks(0, 3, [np.float32(1), x, strided], [rows])
    assert rows[:300].tolist() == (x + strided).tolist()
    assert strided.flags.writeable


def test_one_compilation_serves_other_sizes() -> None:
    backend = CpuBackend()
    for length, geometry in ((100, (1, 128)), (5000, (50, 100)), (64, (2, 32))):
        x = np.ones(length, np.float32)
        once(backend, saxpy[geometry].bind(out(length, "f4"), np.float32(1), x, x))
    assert len(backend._programs) == 1
    x = np.ones(100)
    once(backend, saxpy.bind(out(100, "f8"), np.float64(1), x, x))
    assert len(backend._programs) == 2


def test_compile_admits_the_text_again(backend: CpuBackend) -> None:
    binding = saxpy.bind(out(3, "f4"), np.float32(1), np.zeros(3, "f4"), np.zeros(3, "f4"))
    once(backend, binding)
    text = "def saxpy(result, a, x, y):\n    result[cuda.grid(1)] = x.__class__\n"
    forged = KernelSource(text=text, entry="saxpy", digest=binding.source.digest)  # a known digest on another text
    with pytest.raises(KernelError, match="digest"):
        backend.compile(forged, binding.launch, binding.specs)
    with pytest.raises(KernelTypeError):
        backend.compile(binding.source, binding.launch, binding.specs[:-1])
    with pytest.raises(KernelTypeError):
        backend.compile(binding.source, binding.launch, [OutputSpec(dtype="float32", shape=(3,))] * 4)


@kernel
def every_dtype(b, i1, u4, x_b, x_i1, x_u2, x_u8, x_f8, s_b, s_i2, s_u8):
    i = cuda.grid(1)
    b[i] = x_b[i] and s_b
    i1[i] = x_i1[i] + x_u2[i] + s_i2
    u4[i] = x_u8[i] + x_f8[i] + s_u8


def test_every_kind_of_argument(backend: CpuBackend) -> None:
    n = 9
    args = (
        np.arange(n) % 2 == 0, np.arange(n, dtype="i1"), np.arange(n, dtype="u2"), np.arange(n, dtype="u8"),
        np.arange(n, dtype="f8"), True, np.int16(-3), 2**63,
    )  # fmt: skip
    b, i1, u4 = once(backend, every_dtype.bind(out(n, bool), out(n, "i1"), out(n, "u4"), *args))
    assert b.tolist() == args[0].tolist()
    assert i1.tolist() == [2 * k - 3 for k in range(n)]
    assert u4.tolist() == [2**32 - 1] * n  # a float64 of 2**63 and more saturates


def test_names_of_the_compiled_program_are_free(backend: CpuBackend) -> None:
    """Names that the lowered program uses itself may be a kernel's own."""
    binding = body.bind(out(5, "i8"), np.arange(5), 3)
    (found,) = once(backend, binding)
    assert found.tolist() == [3 + 2 * k + 7 for k in range(5)]


@device
def run_blocks(load1):
    prange = load1 + 7
    prange += 0
    return prange


@kernel
def body(r, first, t_0):
    uint64 = cuda.grid(1)
    t1 = first[uint64]
    g0 = t1 + uint64
    v_x = t_0
    r[uint64] = run_blocks(g0 + v_x)


def test_kernels_are_kernels() -> None:
    assert isinstance(saxpy, Kernel)
