"""Kernels whose threads work together: the usual ones of tutorials, bit for bit as NumPy has them, however they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numba import float32, int32

from p2pcompute import cuda
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Binding, device, kernel, out

Array = np.ndarray[Any, Any]
TPB = 16
RADIUS = 3
BINS = 64


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    with CpuBackend(request.param) as made:
        yield made


def chunked(backend: CpuBackend, binding: Binding, size: int, *, by_items: bool = False) -> list[Array]:
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    layout, whole = binding.layout, binding.empty_outputs()
    for first in range(0, binding.launch.blocks, size):
        blocks = min(size, binding.launch.blocks - first)
        items = blocks * layout.items_per_block
        rows = [
            np.zeros((items, *row), spec.dtype) for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]
        if by_items:
            start = first * layout.items_per_block
            compiled.run_threads(np.arange(start, start + items), binding.values, rows)
        else:
            compiled.run_blocks(first, blocks, binding.values, rows)
        for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
            layout.scatter(place, first, blocks, part, target)
    return whole


def everywhere(backend: CpuBackend, binding: Binding) -> list[Array]:
    """Whole, in chunks and by single blocks in another order: bit for bit."""
    whole = chunked(backend, binding, binding.launch.blocks)
    for other in (
        chunked(backend, binding, 3),
        chunked(backend, binding, 1),
        chunked(backend, binding, 5, by_items=True),
    ):
        for one, two in zip(whole, other, strict=True):
            assert one.tobytes() == two.tobytes()
    return whole


def check(backend: CpuBackend, binding: Binding, *due: Array) -> None:
    for found, wanted in zip(everywhere(backend, binding), due, strict=True):
        assert found.tobytes() == np.ascontiguousarray(wanted.astype(found.dtype)).tobytes()


@kernel
def fast_matmul(C, A, B):
    sA = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    sB = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    x, y = cuda.grid(2)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    bpg = (A.shape[1] + TPB - 1) // TPB
    tmp = float32(0.0)
    for i in range(bpg):
        sA[ty, tx] = 0
        sB[ty, tx] = 0
        if y < A.shape[0] and (tx + i * TPB) < A.shape[1]:
            sA[ty, tx] = A[y, tx + i * TPB]
        if x < B.shape[1] and (ty + i * TPB) < B.shape[0]:
            sB[ty, tx] = B[ty + i * TPB, x]
        cuda.syncthreads()
        for j in range(TPB):
            tmp += sA[ty, j] * sB[j, tx]
        cuda.syncthreads()
    if y < C.shape[0] and x < C.shape[1]:
        C[y, x] = tmp


def test_tiled_matrix_product(backend: CpuBackend) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((50, 70), dtype=np.float32), rng.standard_normal((70, 37), dtype=np.float32)
    due = np.zeros((50, 37), np.float32)
    for j in range(70):
        due += a[:, j, None] * b[j]
    # the last tile adds zeros, which changes no bit but that of a zero's sign
    check(backend, fast_matmul[(3, 4), (TPB, TPB)].bind(out(due.shape, due.dtype), a, b), due + np.float32(0))


@kernel
def block_sum(result, x):
    sm = cuda.shared.array(256, float32)
    tx = cuda.threadIdx.x
    i = cuda.grid(1)
    sm[tx] = x[i] if i < x.size else 0
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tx < s:
            sm[tx] += sm[tx + s]
        cuda.syncthreads()
        s //= 2
    if tx == 0:
        result[cuda.blockIdx.x] = sm[0]


def test_block_reduction(backend: CpuBackend) -> None:
    x = np.random.default_rng(2).standard_normal(256 * 7 - 30, dtype=np.float32)
    parts = np.zeros((7, 256), np.float32)
    parts.ravel()[: x.size] = x
    s = 128
    while s:
        parts[:, :s] += parts[:, s : 2 * s]
        s //= 2
    check(backend, block_sum[7, 256].bind(out(7, np.float32), x), parts[:, 0])


@kernel
def stencil(result, x):
    sm = cuda.shared.array(128 + 2 * RADIUS, float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx + RADIUS] = x[i]
    if tx < RADIUS:
        sm[tx] = x[i - RADIUS]
        sm[tx + cuda.blockDim.x + RADIUS] = x[i + cuda.blockDim.x]
    cuda.syncthreads()
    total = 0.0
    for k in range(-RADIUS, RADIUS + 1):
        total += sm[tx + RADIUS + k]
    if i >= result.size:
        return
    result[i] = total


def test_stencil_with_halo(backend: CpuBackend) -> None:
    x = np.random.default_rng(3).standard_normal(1000, dtype=np.float32)
    wide = np.zeros(1100, np.float32)
    wide[50:1050] = x
    due = np.zeros(1000, np.float32)
    for k in range(-RADIUS, RADIUS + 1):
        due += wide[50 + k : 1050 + k]
    check(backend, stencil[8, 128].bind(out(1000, np.float32), x), due)


@kernel
def transpose(result, a):
    tile = cuda.shared.array((16, 17), float32)
    x, y = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    tile[ty, tx] = a[cuda.blockIdx.x * 16 + ty, cuda.blockIdx.y * 16 + tx]
    cuda.syncthreads()
    result[y, x] = tile[tx, ty]


def test_transpose(backend: CpuBackend) -> None:
    a = np.random.default_rng(4).standard_normal((60, 45), dtype=np.float32)
    check(backend, transpose[(4, 3), (16, 16)].bind(out((45, 60), np.float32), a), a.T)


@kernel
def scan(result, sums, x):
    sm = cuda.shared.array(128, float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    if i < x.size:
        sm[tx] = x[i]
    cuda.syncthreads()
    offset = 1
    while offset < cuda.blockDim.x:
        v = float32(0)
        if tx >= offset:
            v = sm[tx - offset]
        cuda.syncthreads()
        sm[tx] += v
        cuda.syncthreads()
        offset *= 2
    if i < result.size:
        result[i] = sm[tx]
    if tx == cuda.blockDim.x - 1:
        sums[cuda.blockIdx.x] = sm[tx]


@kernel
def scan_of_one_barrier(result, sums, x):
    sm = cuda.shared.array(128, float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    if i < x.size:
        sm[tx] = x[i]
    offset = 1
    cuda.syncthreads()
    while offset < cuda.blockDim.x:
        if tx >= offset:
            sm[tx] += sm[tx - offset]  # a race in CUDA; here others' elements are as they were at the barrier
        cuda.syncthreads()
        offset *= 2
    result[i] = sm[tx]
    if tx == cuda.blockDim.x - 1:
        sums[cuda.blockIdx.x] = sm[tx]


@pytest.mark.parametrize("which", [scan, scan_of_one_barrier])
def test_inclusive_scan_and_the_blocks_sums(backend: CpuBackend, which: Any) -> None:
    x = np.random.default_rng(5).standard_normal(1000, dtype=np.float32)
    parts = np.zeros((8, 128), np.float32)
    parts.ravel()[:1000] = x
    offset = 1
    while offset < 128:
        moved = np.zeros_like(parts)
        moved[:, offset:] = parts[:, :-offset]
        parts = parts + moved
        offset *= 2
    binding = which[8, 128].bind(out(1000, np.float32), out(8, np.float32), x)
    check(backend, binding, parts.ravel()[:1000], parts[:, -1])


@kernel
def histogram(result, x):
    h = cuda.shared.array(BINS, int32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    for k in range(tx, BINS, cuda.blockDim.x):
        h[k] = 0
    cuda.syncthreads()
    if i < x.size:
        cuda.atomic.add(h, x[i] % BINS, 1)
    cuda.syncthreads()
    for k in range(tx, BINS, cuda.blockDim.x):
        result[cuda.blockIdx.x, k] = h[k]


def test_histogram_of_each_block(backend: CpuBackend) -> None:
    x = np.random.default_rng(6).integers(-1000, 1000, 4970)
    due = np.array([np.bincount(x[at : at + 100] % BINS, minlength=BINS) for at in range(0, 5000, 100)])
    check(backend, histogram[50, 100].bind(out((50, BINS), np.int64), x), due)


@kernel
def atomics(result, x):
    most = cuda.shared.array(1, int32)
    least = cuda.shared.array((1, 1), np.int64)
    wide = cuda.shared.array(4, np.uint32)
    if cuda.threadIdx.x == 0:
        most[0] = -(2**31)
        least[0, 0] = 2**63 - 1
        wide[2] = 2**32 - 1
    cuda.syncthreads()
    i = cuda.grid(1)
    cuda.atomic.max(most, 0, x[i])
    cuda.atomic.min(least, (0, 0), x[i])
    cuda.atomic.add(wide, 7, 1)  # out of range: dropped
    cuda.atomic.add(wide, 0, x[i] * 2**20)  # modulo 2^32
    cuda.syncthreads()
    cuda.atomic.or_(wide, 1, x[i])
    cuda.syncthreads()
    cuda.atomic.and_(wide, 2, x[i] | 3)
    cuda.syncthreads()
    cuda.atomic.xor(wide, 3, x[i])
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        result[cuda.blockIdx.x, 0] = most[0]
        result[cuda.blockIdx.x, 1] = least[0, 0]
        for k in range(4):
            result[cuda.blockIdx.x, 2 + k] = wide[k]


def test_every_atomic_operation(backend: CpuBackend) -> None:
    x = np.random.default_rng(7).integers(-(2**31), 2**31, 320)
    parts = x.reshape(5, 64)
    low = parts.astype(np.uint32)
    due = np.stack(
        [
            parts.max(1),
            parts.min(1),
            (parts * 2**20).sum(1) % 2**32,
            np.bitwise_or.reduce(low, axis=1),
            np.bitwise_and.reduce(low | np.uint32(3), axis=1),
            np.bitwise_xor.reduce(low, axis=1),
        ],
        axis=1,
    )
    check(backend, atomics[5, 64].bind(out((5, 6), np.int64), x), due)


@kernel
def tiles(result, a):
    """A row of tiles, each summed by its block, in an output by blocks of two axes."""
    sm = cuda.shared.array((4, 8), np.float64)
    x, y = cuda.grid(2)
    bx, by = cuda.blockIdx.x, cuda.blockIdx.y
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    sm[ty, tx] = a[y, x]
    cuda.syncthreads()
    if tx == 0 and ty == 0:
        for j in range(4):
            for k in range(8):
                result[by, bx] += sm[j, k]


def test_an_output_of_blocks_with_two_axes_that_the_grid_overlaps(backend: CpuBackend) -> None:
    a = np.random.default_rng(8).standard_normal((12, 24))
    due = np.zeros((2, 2))
    for j in range(4):
        for k in range(8):
            due += a[j : 8 + j : 4, k : 16 + k : 8]
    check(backend, tiles[(3, 3), (8, 4)].bind(out((2, 2), np.float64), a), due)


@kernel
def carried(result, x, n):
    """Variables, local arrays and uniform values that live from one segment to the next."""
    sm = cuda.shared.array(32, np.int64)
    last = cuda.local.array(3, np.int32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    rounds = 0
    if n > 2:
        for k in range(n):
            rounds += k
    count = 0
    unset = unset_too = 0
    while rounds > 0:
        sm[tx] = x[i] + count
        cuda.syncthreads()
        last[rounds % 3] = sm[31 - tx]
        if tx & 1:
            count += last[0]
            unset = rounds
        n = n - 1  # a parameter that is the block's
        if n == 1:
            break
        if rounds % 2 == 0:
            rounds -= 3
            cuda.syncthreads()
            continue
        cuda.syncthreads()
        rounds -= 1
    if n < 0:
        return
    result[i, 0] = count + unset_too
    result[i, 1] = last[0] + 1000 * last[1] - last[2]
    result[i, 2] = unset * 100 + rounds + n * 10000


def test_what_threads_carry_over_barriers(backend: CpuBackend) -> None:
    x = np.random.default_rng(9).integers(-50, 50, 96)
    for n in (-1, 2, 4, 5, 9):
        due = np.zeros((96, 3), np.int64)
        for block in range(3):
            mine, count = x[block * 32 : block * 32 + 32], np.zeros(32, np.int64)
            last, unset = np.zeros((3, 32), np.int64), np.zeros(32, np.int64)
            rounds, m, odd = sum(range(n)) if n > 2 else 0, n, np.arange(32) & 1 == 1
            while rounds > 0:
                last[rounds % 3] = (mine + count)[::-1]
                count[odd] += last[0][odd]
                unset[odd] = rounds
                m -= 1
                if m == 1:
                    break
                rounds -= 3 if rounds % 2 == 0 else 1
            if m >= 0:
                rows = due[block * 32 : block * 32 + 32]
                rows[:, 0], rows[:, 1] = count, last[0] + 1000 * last[1] - last[2]
                rows[:, 2] = unset * 100 + rounds + m * 10000
        check(backend, carried[3, 32].bind(out((96, 3), np.int64), x, n), due)


@device
def clamp(value, low, high):
    return min(max(value, low), high)


@kernel
def early(result, x, limit):
    """Threads return one by one behind the last barrier, and device functions are called around it."""
    sm = cuda.shared.array(64, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = clamp(x[i], -limit, limit)
    cuda.syncthreads()
    if sm[63 - tx] < 0:
        return
    for k in range(64):
        result[i] += sm[k]
        if result[i] > limit:
            return
    result[i] = clamp(result[i], 0, 7)


def test_threads_that_return_behind_the_last_barrier(backend: CpuBackend) -> None:
    x = np.random.default_rng(10).integers(-9, 12, 256)
    due = np.zeros(256, np.int64)
    for i in range(256):
        mine = np.clip(x[i // 64 * 64 : i // 64 * 64 + 64], -8, 8)
        if mine[63 - i % 64] < 0:
            continue
        for value in mine:
            due[i] += value
            if due[i] > 8:
                break
        else:
            due[i] = np.clip(due[i], 0, 7)
    check(backend, early[4, 64].bind(out(256, np.int64), x, 8), due)


@kernel
def volume(result, tops, a):
    """Three axes; threads of blocks that overlap the array return behind the barrier."""
    sm = cuda.shared.array((2, 3, 4), np.float64)
    x, y, z = cuda.grid(3)
    tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
    sm[tz, ty, tx] = a[z, y, x]
    cuda.syncthreads()
    top = sm[0, 0, 0]
    for k in range(2):
        for j in range(3):
            for i in range(4):
                top = max(top, sm[k, j, i])
    if tx + ty + tz == 0:
        tops[cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x] = top
    if sm[1 - tz, 2 - ty, 3 - tx] < 0:
        return
    result[z, y, x, 0] = top
    result[z, y, x, 1] = sm[1 - tz, 2 - ty, 3 - tx]


def test_three_axes(backend: CpuBackend) -> None:
    a = np.random.default_rng(11).standard_normal((5, 8, 11))
    wide = np.zeros((6, 9, 12))
    wide[:5, :8, :11] = a
    parts = wide.reshape(3, 2, 3, 3, 3, 4)
    tops = parts.max(axis=(1, 3, 5))
    turned = parts[:, ::-1, :, ::-1, :, ::-1].reshape(wide.shape)
    largest = np.broadcast_to(tops[:, None, :, None, :, None], parts.shape).reshape(wide.shape)
    due = np.stack([np.where(turned < 0, 0, largest), np.where(turned < 0, 0, turned)], axis=-1)
    binding = volume[(3, 3, 3), (4, 3, 2)].bind(out((5, 8, 11, 2), np.float64), out((3, 3, 3), np.float64), a)
    check(backend, binding, due[:5, :8, :11], tops)


@kernel
def many_barriers(result, n):
    sm = cuda.shared.array(4, np.int64)
    tx = cuda.threadIdx.x
    for k in range(n):
        sm[tx] += sm[(tx + 1) % 4] + k
        cuda.syncthreads()
    result[cuda.grid(1)] = sm[tx]


def test_a_hundred_thousand_barriers(backend: CpuBackend) -> None:
    sm = [0, 0, 0, 0]
    for k in range(100_000):
        sm = [(sm[t] + sm[(t + 1) % 4] + k) % 2**64 for t in range(4)]
    due = np.array(sm, np.uint64).astype(np.int64)
    (found,) = chunked(backend, many_barriers[1, 4].bind(out(4, np.int64), 100_000), 1)
    assert (found == due).all()


@kernel
def uninitialised(result, at):
    sm = cuda.shared.array((2, 3), np.int32)
    mine = cuda.local.array(1024, np.float32)
    i = cuda.grid(1)
    before = sm[1, 1] + mine[i]
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        sm[1, 2] = 7
        sm[at, 0] = 9
        sm[0, at] = 9
    mine[i] = i
    cuda.syncthreads()
    result[i] = before + sm[1, 2] + sm[at, 0] + sm[0, at] + sm[-1, 2] + mine[i + 1] + mine[i]


def test_memory_begins_as_zeros_and_ends_at_its_bounds(backend: CpuBackend) -> None:
    """1024 threads of 4 KiB each; indices far out touch nothing."""
    for at in (2, 3, -1, 2**40, -(2**63)):
        due = np.arange(2048.0, dtype=np.float64) * (np.arange(2048) < 1024) + 7
        if at == 2:  # the one that lies inside one of the axes
            due += 9
        check(backend, uninitialised[2, 1024].bind(out(2048, np.float32), at), due)


def test_blocks_that_own_nothing_are_no_items() -> None:
    x = np.zeros(1000, np.float32)
    layout = block_sum[9, 128].bind(out(4, np.float32), x).layout
    assert layout.items_per_block == 1
    assert layout.items_inside(2, 7).tolist() == [2, 3]
    assert layout.items_sampled(0, 4) is None
    assert layout.items_sampled(2, 2) is None
    for first, blocks in ((0, 5), (2, 7), (4, 1)):
        told = layout.items_sampled(first, blocks)
        assert told is not None
        assert told.tolist() == layout.items_inside(first, blocks).tolist()
    layout = stencil[9, 128].bind(out(300, np.float32), x).layout
    assert layout.items_inside(0, 9).tolist() == [0, 1, 2]
    assert layout.items_sampled(0, 3) is None  # of the last block some threads own nothing, and it is an item
    assert layout.items_sampled(0, 4) is not None
    assert layout.row_shapes == [(128,)]


def test_the_geometry_is_the_authors_to_say() -> None:
    with pytest.raises(KernelTypeError, match="work together"):
        block_sum.bind(out(3, np.float32), np.zeros(5, np.float32))
    with pytest.raises(KernelTypeError, match="work together"):
        block_sum.launch_for((3,))
