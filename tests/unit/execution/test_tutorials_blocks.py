"""Kernels as tutorials and courses of numba.cuda write them whose threads work together; see test_tutorials."""

# ruff: noqa: E741, SIM102 - as tutorials write

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int32

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import device, kernel, out, reduce

from .test_tutorials import backend, close, run, same

__all__ = ["backend"]

TPB = 16
N = 64
TILE_DIM = 16
BINS = 32
RADIUS = 2
EPS2 = 1e-4


@kernel
def fast_matmul(A, B, C):
    # Define an array in the shared memory; the size and type of the arrays must be known at compile time
    sA = cuda.shared.array(shape=(TPB, TPB), dtype=float32)
    sB = cuda.shared.array(shape=(TPB, TPB), dtype=float32)

    x, y = cuda.grid(2)

    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    bpg = cuda.gridDim.x  # blocks per grid

    # Each thread computes one element in the result matrix; the dot product is chunked into TPB-long vectors.
    tmp = float32(0.0)
    for i in range(bpg):
        # Preload data into shared memory
        sA[tx, ty] = A[x, ty + i * TPB]
        sB[tx, ty] = B[tx + i * TPB, y]

        # Wait until all threads finish preloading
        cuda.syncthreads()

        for j in range(TPB):
            tmp += sA[tx, j] * sB[j, ty]

        # Wait until all threads finish computing
        cuda.syncthreads()

    C[x, y] = tmp


def test_tiled_matrix_product(backend: CpuBackend) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 48, 48), dtype=np.float32)
    due = np.zeros((48, 48), np.float32)
    for k in range(48):
        due += a[:, k, None] * b[k]
    same(run(backend, fast_matmul[(3, 3), (TPB, TPB)].bind(a, b, out((48, 48), np.float32))), due)


@kernel
def array_sum(data, partial):
    tid = cuda.threadIdx.x
    size = len(data)
    i = cuda.grid(1)

    # Declare an array in shared memory
    shr = cuda.shared.array(N, int32)
    shr[tid] = 0
    if i < size:
        shr[tid] = data[i]

    # Ensure writes to shared memory are visible to all threads before reducing
    cuda.syncthreads()

    s = 1
    while s < cuda.blockDim.x:
        if tid % (2 * s) == 0:
            # Stride by `s` and add
            shr[tid] += shr[tid + s]
        s *= 2
        cuda.syncthreads()

    # After the loop, the zeroth  element contains the sum
    if tid == 0:
        partial[cuda.blockIdx.x] = shr[tid]


def test_reduction_by_blocks(backend: CpuBackend) -> None:
    data = np.random.default_rng(2).integers(-1000, 1000, 500).astype(np.int32)
    due = [data[at : at + N].sum() for at in range(0, 500, N)]
    same(run(backend, array_sum[8, N].bind(data, out(8, np.int32))), due)


@kernel
def dot(a, b, c):
    cache = cuda.shared.array(N, float32)
    tid = cuda.grid(1)
    cache_index = cuda.threadIdx.x
    temp = float32(0)
    while tid < a.size:
        temp += a[tid] * b[tid]
        tid += cuda.blockDim.x * cuda.gridDim.x
    cache[cache_index] = temp
    cuda.syncthreads()
    i = cuda.blockDim.x // 2
    while i != 0:
        if cache_index < i:
            cache[cache_index] += cache[cache_index + i]
        cuda.syncthreads()
        i //= 2
    if cache_index == 0:
        c[cuda.blockIdx.x] = cache[0]


def test_dot_product_with_shared_partials(backend: CpuBackend) -> None:
    a, b = np.random.default_rng(3).standard_normal((2, 1000), dtype=np.float32)
    wide = np.zeros(1024, np.float32)
    wide[:1000] = a * b
    parts = wide.reshape(4, 4, N)
    cache = np.zeros((4, N), np.float32)
    for turn in parts:
        cache += turn
    step = N // 2
    while step:
        cache[:, :step] += cache[:, step : 2 * step]
        step //= 2
    same(run(backend, dot[4, N].bind(a, b, out(4, np.float32))), cache[:, 0])


@kernel
def reduce_unrolled(data, partial):
    sdata = cuda.shared.array(N, np.float64)
    tid = cuda.threadIdx.x
    i = cuda.blockIdx.x * (cuda.blockDim.x * 2) + tid
    sdata[tid] = data[i] + data[i + cuda.blockDim.x]
    cuda.syncthreads()
    if tid < 32:
        sdata[tid] += sdata[tid + 32]
    cuda.syncthreads()
    if tid < 16:
        sdata[tid] += sdata[tid + 16]
    cuda.syncthreads()
    for step in (8, 4, 2, 1):
        if tid < step:
            sdata[tid] += sdata[tid + step]
        cuda.syncthreads()
    if tid == 0:
        partial[cuda.blockIdx.x] = sdata[0]


def test_reduction_that_is_written_out(backend: CpuBackend) -> None:
    data = np.random.default_rng(4).standard_normal((3, 2, N))
    sums = data[:, 0] + data[:, 1]
    for step in (32, 16, 8, 4, 2, 1):
        sums[:, :step] += sums[:, step : 2 * step]
    same(run(backend, reduce_unrolled[3, N].bind(data.ravel(), out(3, np.float64))), sums[:, 0])


@kernel
def hillis_steele(x, result):
    temp = cuda.shared.array((2, N), float32)
    tid = cuda.threadIdx.x
    i = cuda.grid(1)
    pout, pin = 0, 1
    temp[pout, tid] = x[i]
    cuda.syncthreads()
    offset = 1
    while offset < N:
        pout = 1 - pout
        pin = 1 - pout
        if tid >= offset:
            temp[pout, tid] = temp[pin, tid] + temp[pin, tid - offset]
        else:
            temp[pout, tid] = temp[pin, tid]
        cuda.syncthreads()
        offset <<= 1
    result[i] = temp[pout, tid]


def test_scan_with_two_buffers(backend: CpuBackend) -> None:
    x = np.random.default_rng(5).standard_normal((3, N), dtype=np.float32)
    due, offset = x.copy(), 1
    while offset < N:
        due[:, offset:] = due[:, offset:] + due[:, :-offset]
        offset *= 2
    same(run(backend, hillis_steele[3, N].bind(x.ravel(), out(3 * N, np.float32))), due)


@kernel
def blelloch(x, result):
    temp = cuda.shared.array(2 * N, int32)
    thid = cuda.threadIdx.x
    base = cuda.blockIdx.x * 2 * N
    n = 2 * N
    offset = 1
    temp[2 * thid] = x[base + 2 * thid]
    temp[2 * thid + 1] = x[base + 2 * thid + 1]
    d = n >> 1
    while d > 0:  # build sum in place up the tree
        cuda.syncthreads()
        if thid < d:
            ai = offset * (2 * thid + 1) - 1
            bi = offset * (2 * thid + 2) - 1
            temp[bi] += temp[ai]
        offset *= 2
        d >>= 1
    if thid == 0:  # clear the last element
        temp[n - 1] = 0
    d = 1
    while d < n:  # traverse down tree & build scan
        offset >>= 1
        cuda.syncthreads()
        if thid < d:
            ai = offset * (2 * thid + 1) - 1
            bi = offset * (2 * thid + 2) - 1
            t = temp[ai]
            temp[ai] = temp[bi]
            temp[bi] += t
        d *= 2
    cuda.syncthreads()
    result[cuda.blockIdx.x, 2 * thid] = temp[2 * thid]  # was result[base + 2 * thid]
    result[cuda.blockIdx.x, 2 * thid + 1] = temp[2 * thid + 1]  # likewise


def test_scan_of_blelloch(backend: CpuBackend) -> None:
    x = np.random.default_rng(6).integers(-100, 100, (3, 2 * N))
    due = np.cumsum(x, axis=1) - x
    same(run(backend, blelloch[3, N].bind(x.ravel(), out((3, 2 * N), np.int64))), due)


@kernel
def bitonic_sort(x, result):
    shared = cuda.shared.array(N, np.int64)
    tid = cuda.threadIdx.x
    i = cuda.grid(1)
    shared[tid] = x[i]
    cuda.syncthreads()
    k = 2
    while k <= N:
        j = k // 2
        while j > 0:
            ixj = tid ^ j
            if ixj > tid:
                if (tid & k) == 0:
                    if shared[tid] > shared[ixj]:
                        shared[tid], shared[ixj] = shared[ixj], shared[tid]
                elif shared[tid] < shared[ixj]:
                    shared[tid], shared[ixj] = shared[ixj], shared[tid]
            cuda.syncthreads()
            j //= 2
        k *= 2
    result[i] = shared[tid]


def test_bitonic_sort_in_place(backend: CpuBackend) -> None:
    x = np.random.default_rng(7).integers(-1000, 1000, (3, N))
    same(run(backend, bitonic_sort[3, N].bind(x.ravel(), out(3 * N, np.int64))), np.sort(x, axis=1))


@kernel
def odd_even_sort(x, result):
    sh = cuda.shared.array(2 * N, float32)
    tid = cuda.threadIdx.x
    sh[tid] = x[cuda.blockIdx.x, tid]
    sh[tid + N] = x[cuda.blockIdx.x, tid + N]
    for phase in range(2 * N):
        cuda.syncthreads()
        left = 2 * tid + phase % 2
        if left + 1 < 2 * N and sh[left] > sh[left + 1]:
            tmp = sh[left]
            sh[left] = sh[left + 1]
            sh[left + 1] = tmp
    cuda.syncthreads()
    result[cuda.blockIdx.x, tid] = sh[tid]
    result[cuda.blockIdx.x, tid + N] = sh[tid + N]


def test_odd_even_sort(backend: CpuBackend) -> None:
    x = np.random.default_rng(8).standard_normal((2, 2 * N), dtype=np.float32)
    same(run(backend, odd_even_sort[2, N].bind(x, out((2, 2 * N), np.float32))), np.sort(x, axis=1))


@kernel
def histogram(x, xmin, xmax, histogram_out):
    h = cuda.shared.array(BINS, int32)
    tid = cuda.threadIdx.x
    if tid < BINS:
        h[tid] = 0
    cuda.syncthreads()

    start = cuda.grid(1)
    stride = cuda.gridsize(1)
    bin_width = (xmax - xmin) / BINS
    for i in range(start, x.shape[0], stride):
        bin_number = int32((x[i] - xmin) / bin_width)
        if bin_number >= 0 and bin_number < BINS:
            cuda.atomic.add(h, bin_number, 1)

    cuda.syncthreads()
    if tid < BINS:
        cuda.atomic.add(histogram_out, tid, h[tid])


def test_histogram_with_shared_atomics(backend: CpuBackend) -> None:
    x = np.random.default_rng(9).random(1000, dtype=np.float32)
    binding = histogram[4, N].bind(x, np.float32(0), np.float32(1), reduce("sum", BINS, np.int32))
    same(
        binding.results([run(backend, binding)])[0], np.bincount((x / np.float32(1 / BINS)).astype(int), minlength=BINS)
    )


@device
def body_body(ax, ay, az, xi, yi, zi, x, y, z, mass):
    rx, ry, rz = x - xi, y - yi, z - zi
    squared = rx * rx + ry * ry + rz * rz + EPS2
    inverse = 1.0 / math.sqrt(squared * squared * squared)
    s = mass * inverse
    return ax + rx * s, ay + ry * s, az + rz * s


@device
def tile_calculation(xi, yi, zi, ax, ay, az, tile):
    for k in range(tile.shape[0]):
        ax, ay, az = body_body(ax, ay, az, xi, yi, zi, tile[k, 0], tile[k, 1], tile[k, 2], tile[k, 3])
    return ax, ay, az


@kernel
def n_body(acceleration, bodies):
    tile = cuda.shared.array((N, 4), float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    xi, yi, zi = bodies[i, 0], bodies[i, 1], bodies[i, 2]
    ax = ay = az = float32(0)
    for t in range(cuda.gridDim.x):
        for k in range(4):
            tile[tx, k] = bodies[t * N + tx, k]
        cuda.syncthreads()
        ax, ay, az = tile_calculation(xi, yi, zi, ax, ay, az, tile)
        cuda.syncthreads()
    acceleration[i, 0] = ax
    acceleration[i, 1] = ay
    acceleration[i, 2] = az


def test_n_body_with_a_tile_in_a_device_function(backend: CpuBackend) -> None:
    bodies = np.random.default_rng(10).random((2 * N, 4), dtype=np.float32)
    r = bodies[None, :, :3] - bodies[:, None, :3]
    squared = (r.astype(np.float64) ** 2).sum(axis=2) + EPS2
    due = (r * (bodies[:, 3] / squared**1.5)[..., None]).sum(axis=1)
    found = run(backend, n_body[2, N].bind(out((2 * N, 3), np.float32), bodies))
    np.testing.assert_allclose(found, due, rtol=1e-3, atol=1e-2)


@kernel
def transpose(odata, idata):
    tile = cuda.shared.array((TILE_DIM, TILE_DIM + 1), np.float64)

    x = cuda.blockIdx.x * TILE_DIM + cuda.threadIdx.x
    y = cuda.blockIdx.y * TILE_DIM + cuda.threadIdx.y
    # was tile[cuda.threadIdx.y, cuda.threadIdx.x] = idata[y, x], and behind the barrier the blocks' places exchanged:
    # a thread stores its own element, so they are exchanged where it loads
    tile[cuda.threadIdx.y, cuda.threadIdx.x] = idata[
        cuda.blockIdx.x * TILE_DIM + cuda.threadIdx.y, cuda.blockIdx.y * TILE_DIM + cuda.threadIdx.x
    ]

    cuda.syncthreads()

    if y < odata.shape[0] and x < odata.shape[1]:
        odata[y, x] = tile[cuda.threadIdx.x, cuda.threadIdx.y]


def test_transposition_with_a_padded_tile(backend: CpuBackend) -> None:
    a = np.random.default_rng(11).standard_normal((45, 60))
    same(run(backend, transpose[(3, 4), (TILE_DIM, TILE_DIM)].bind(out((60, 45), np.float64), a)), a.T)


@kernel
def softmax_rows(result, x):
    sh = cuda.shared.array(N, float32)
    row = cuda.blockIdx.x
    tid = cuda.threadIdx.x
    n = x.shape[1]
    biggest = -math.inf
    for j in range(tid, n, cuda.blockDim.x):
        biggest = max(biggest, x[row, j])
    sh[tid] = biggest
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tid < s:
            sh[tid] = max(sh[tid], sh[tid + s])
        cuda.syncthreads()
        s //= 2
    biggest = sh[0]
    cuda.syncthreads()
    total = float32(0)
    for j in range(tid, n, cuda.blockDim.x):
        total += math.exp(x[row, j] - biggest)
    sh[tid] = total
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tid < s:
            sh[tid] += sh[tid + s]
        cuda.syncthreads()
        s //= 2
    for j in range(tid, n, cuda.blockDim.x):
        result[row, j] = math.exp(x[row, j] - biggest) / sh[0]


def test_softmax_of_a_row_by_a_block(backend: CpuBackend) -> None:
    x = np.random.default_rng(12).standard_normal((5, 150), dtype=np.float32) * 5
    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    close(run(backend, softmax_rows[5, N].bind(out(x.shape, np.float32), x)), e / e.sum(axis=1, keepdims=True))


@kernel
def layer_norm(result, x, gamma, beta):
    sm = cuda.shared.array(N, np.float64)
    row, tid = cuda.blockIdx.x, cuda.threadIdx.x
    sm[tid] = x[row, tid]
    cuda.syncthreads()
    if tid == 0:
        mean = 0.0
        for k in range(N):
            mean += sm[k]
        sm[0] = mean / N
    cuda.syncthreads()
    mean = sm[0]
    cuda.syncthreads()
    sm[tid] = (x[row, tid] - mean) ** 2
    cuda.syncthreads()
    if tid == 0:
        var = 0.0
        for k in range(N):
            var += sm[k]
        sm[0] = var / N
    cuda.syncthreads()
    result[row, tid] = gamma[tid] * (x[row, tid] - mean) / math.sqrt(sm[0] + 1e-5) + beta[tid]


def test_layer_norm(backend: CpuBackend) -> None:
    rng = np.random.default_rng(13)
    x, gamma, beta = rng.standard_normal((4, N)), rng.standard_normal(N), rng.standard_normal(N)
    due = gamma * (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) + beta
    close(run(backend, layer_norm[4, N].bind(out(x.shape, np.float64), x, gamma, beta)), due)


@kernel
def convolution_1d(result, x, weights):
    tile = cuda.shared.array(N + 2 * RADIUS, float32)
    g = cuda.grid(1)
    l = cuda.threadIdx.x + RADIUS
    tile[l] = x[g] if g < x.size else 0
    if cuda.threadIdx.x < RADIUS:
        tile[l - RADIUS] = x[g - RADIUS] if g >= RADIUS else 0
        tile[l + N] = x[g + N] if g + N < x.size else 0
    cuda.syncthreads()
    acc = float32(0)
    for offset in range(-RADIUS, RADIUS + 1):
        acc += weights[offset + RADIUS] * tile[l + offset]
    if g < result.size:
        result[g] = acc


def test_convolution_with_a_halo(backend: CpuBackend) -> None:
    x, weights = (np.random.default_rng(14).standard_normal(n, dtype=np.float32) for n in (200, 5))
    wide = np.zeros(204, np.float32)
    wide[2:202] = x
    due = np.zeros(200, np.float32)
    for k in range(5):
        due += weights[k] * wide[k : k + 200]
    same(run(backend, convolution_1d[4, N].bind(out(200, np.float32), x, weights)), due)


@kernel
def compact(result, counts, x):
    places = cuda.shared.array(N, int32)
    kept = cuda.shared.array(N, int32)
    tid = cuda.threadIdx.x
    value = x[cuda.grid(1)]
    places[tid] = 1 if value > 0 else 0
    cuda.syncthreads()
    offset = 1
    while offset < N:
        v = 0
        if tid >= offset:
            v = places[tid - offset]
        cuda.syncthreads()
        places[tid] += v
        cuda.syncthreads()
        offset *= 2
    if value > 0:
        # was kept[places[tid] - 1] = value: that no two threads have one place can't be known from the text
        cuda.atomic.add(kept, places[tid] - 1, value)
    cuda.syncthreads()
    result[cuda.blockIdx.x, tid] = kept[tid]
    if tid == N - 1:
        counts[cuda.blockIdx.x] = places[tid]


def test_compaction(backend: CpuBackend) -> None:
    x = np.random.default_rng(15).integers(-100, 100, (3, N))
    due = np.zeros((3, N), np.int32)
    for row, values in zip(due, x, strict=True):
        row[: (values > 0).sum()] = values[values > 0]
    binding = compact[3, N].bind(out((3, N), np.int32), out(3, np.int32), x.ravel())
    result, counts = run(backend, binding)
    same(result, due)
    same(counts, (x > 0).sum(axis=1))


@kernel
def argmax(result, x):
    best = cuda.shared.array(N, float32)
    where = cuda.shared.array(N, int32)
    tid = cuda.threadIdx.x
    best[tid] = x[cuda.blockIdx.x, tid]
    where[tid] = tid
    cuda.syncthreads()
    s = N // 2
    while s >= 1:
        if tid < s:
            if best[tid + s] > best[tid]:
                best[tid] = best[tid + s]
                where[tid] = where[tid + s]
        cuda.syncthreads()
        s = s // 2
    if tid == 0:
        result[cuda.blockIdx.x] = where[0]


def test_argmax(backend: CpuBackend) -> None:
    x = np.random.default_rng(16).standard_normal((5, N), dtype=np.float32)
    same(run(backend, argmax[5, N].bind(out(5, np.int32), x)), x.argmax(axis=1))


@kernel
def fft_stages(re, im, x):
    """A radix-2 transform of a row by a block, in place: bits reversed, then stages of butterflies."""
    sr = cuda.shared.array(2 * N, np.float64)
    si = cuda.shared.array(2 * N, np.float64)
    tid, row = cuda.threadIdx.x, cuda.blockIdx.x
    for k in range(tid, 2 * N, N):
        sr[k] = x[row, cuda.brev(np.uint32(k)) >> 25]
        si[k] = 0.0
    cuda.syncthreads()
    half = 1
    while half < 2 * N:
        pos = tid % half
        i = 2 * half * (tid // half) + pos
        j = i + half
        angle = -np.float64(3.141592653589793) * pos / half
        wr, wi = math.cos(angle), math.sin(angle)
        tr = wr * sr[j] - wi * si[j]
        ti = wr * si[j] + wi * sr[j]
        sr[j], si[j] = sr[i] - tr, si[i] - ti
        sr[i], si[i] = sr[i] + tr, si[i] + ti
        cuda.syncthreads()
        half *= 2
    for k in range(tid, 2 * N, N):
        re[row, k] = sr[k]
        im[row, k] = si[k]


def test_fourier_transform_in_shared_memory(backend: CpuBackend) -> None:
    x = np.random.default_rng(17).standard_normal((2, 2 * N))
    re, im = run(backend, fft_stages[2, N].bind(out(x.shape, np.float64), out(x.shape, np.float64), x))
    np.testing.assert_allclose(re + 1j * im, np.fft.fft(x, axis=1), atol=1e-10)


@kernel
def edit_distances(result, words, lengths, other):
    """One pair of words for each thread, with a row of its own."""
    row = cuda.local.array(32, np.int32)
    t = cuda.grid(1)
    if t < words.shape[0]:
        m = other.size
        for j in range(m + 1):
            row[j] = j
        for i in range(1, lengths[t] + 1):
            previous, row[0] = row[0], i
            for j in range(1, m + 1):
                cost = 0 if words[t, i - 1] == other[j - 1] else 1
                previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + cost)
        result[t] = row[m]


def test_edit_distance(backend: CpuBackend) -> None:
    rng = np.random.default_rng(20)
    words, other = rng.integers(97, 101, (30, 12), dtype=np.uint8), rng.integers(97, 101, 10, dtype=np.uint8)
    lengths = rng.integers(0, 13, 30)

    def distance(a: list[int], b: list[int]) -> int:
        row = list(range(len(b) + 1))
        for i, one in enumerate(a, 1):
            new = [i]
            for j, two in enumerate(b, 1):
                new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (one != two)))
            row = new
        return row[-1]

    due = [distance(list(word[:n]), list(other)) for word, n in zip(words, lengths, strict=True)]
    same(run(backend, edit_distances.bind(out(30, np.int32), words, lengths, other)), due)


@kernel
def dot_product(c, a, b):
    partial = cuda.shared.array(N, np.int64)
    i = cuda.grid(1)
    tid = cuda.threadIdx.x
    stride = cuda.gridsize(1)
    own = 0
    while i < a.size:
        own += a[i] * b[i]
        i += stride
    partial[tid] = own
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tid < s:
            partial[tid] += partial[tid + s]
        cuda.syncthreads()
        s //= 2
    if tid == 0:
        cuda.atomic.add(c, 0, partial[0])


def test_dot_product_with_an_atomic_sum_of_blocks(backend: CpuBackend) -> None:
    a, b = np.random.default_rng(21).integers(-1000, 1000, (2, 1000))
    binding = dot_product[4, N].bind(reduce("sum", 1, np.int64), a, b)
    same(binding.results([run(backend, binding)])[0], [a @ b])
