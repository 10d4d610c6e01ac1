"""Kernels as tutorials and courses of numba.cuda write them, each thread by itself: they run as they stand, or with
the one line changed that a comment names, and give what plain NumPy or Python gives.

What differs everywhere is the call: ``p2p.run(kernel, p2p.out(shape, dtype), ...)`` in place of copies and a launch,
with `p2p.inout(array)` for what a kernel changes in place.
"""

# ruff: noqa: E741, RUF046, SIM108 - as tutorials write

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba import cuda, float32

from p2pcompute import random
from p2pcompute._inout import inout
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Binding, device, kernel, out

Array = np.ndarray[Any, Any]
MASK = np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], np.float32)
WEIGHTS = np.array([0.1, -0.2, 0.4, -0.2, 0.1])
RATE = 0.25
RSQRT2PI = 0.3989422804014327


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


def run(backend: CpuBackend, binding: Binding) -> Any:
    """The outputs, computed in two chunks."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    layout, whole, half = binding.layout, binding.empty_outputs(), -(-binding.launch.blocks // 2)
    for first in range(0, binding.launch.blocks, half):
        blocks = min(half, binding.launch.blocks - first)
        rows = [
            np.zeros((blocks * layout.items_per_block, *row), spec.dtype)
            for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]
        compiled.run_blocks(first, blocks, binding.values, rows)
        for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
            layout.scatter(place, first, blocks, part, target)
    return whole[0] if len(whole) == 1 else whole


def same(found: Array, due: Any) -> None:
    """Bit for bit."""
    assert found.tobytes() == np.ascontiguousarray(due, found.dtype).tobytes()


def close(found: Array, due: Any) -> None:
    """Where the reference is rounded otherwise, being computed in float64 or by another library."""
    np.testing.assert_allclose(found, due, rtol=2e-5, atol=1e-6)


# The first lessons


@kernel
def vector_add(a, b, c):
    i = cuda.threadIdx.x + cuda.blockIdx.x * cuda.blockDim.x
    if i < c.size:
        c[i] = a[i] + b[i]


def test_vector_add(backend: CpuBackend) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 1000), dtype=np.float32)
    same(run(backend, vector_add[(8,), (128,)].bind(a, b, out(1000, np.float32))), a + b)


@kernel
def saxpy(a, x, y, result):
    start = cuda.grid(1)
    stride = cuda.gridsize(1)
    for i in range(start, x.shape[0], stride):
        result[i] = a * x[i] + y[i]


def test_saxpy_with_a_grid_stride_loop(backend: CpuBackend) -> None:
    x, y = np.random.default_rng(2).standard_normal((2, 1000), dtype=np.float32)
    same(run(backend, saxpy.bind(2.5, x, y, out(1000, np.float32))), np.float32(2.5) * x + y)


@kernel
def increment_by_one(an_array):
    # Thread id in a 1D block
    tx = cuda.threadIdx.x
    # Block id in a 1D grid
    ty = cuda.blockIdx.x
    # Block width, i.e. number of threads per block
    bw = cuda.blockDim.x
    # Compute flattened index inside the array
    pos = tx + ty * bw
    if pos < an_array.size:  # Check array boundaries
        an_array[pos] += 1


def test_in_place(backend: CpuBackend) -> None:
    a = np.arange(1000, dtype=np.float32)
    threadsperblock = 32
    blockspergrid = (a.size + (threadsperblock - 1)) // threadsperblock
    same(run(backend, increment_by_one[blockspergrid, threadsperblock].bind(inout(a))), a + 1)


@kernel
def increment_a_2D_array(an_array):
    x, y = cuda.grid(2)
    if x < an_array.shape[0] and y < an_array.shape[1]:
        an_array[x, y] += 1


def test_two_axes(backend: CpuBackend) -> None:
    a = np.arange(35.0).reshape(5, 7)
    same(run(backend, increment_a_2D_array[(2, 2), (4, 4)].bind(inout(a))), a + 1)


@kernel
def scale_and_clip(result, x, low, high):
    i = cuda.grid(1)
    if i >= result.size:
        return
    value = x[i] * 2.0 - 1.0
    result[i] = min(max(value, low), high)


def test_early_return(backend: CpuBackend) -> None:
    x = np.random.default_rng(3).random(300, dtype=np.float32)
    due = np.clip(x * np.float32(2) - np.float32(1), np.float32(-0.5), np.float32(0.5))
    same(run(backend, scale_and_clip.bind(out(300, np.float32), x, -0.5, 0.5)), due)


@kernel
def matmul(A, B, C):
    """Perform square matrix multiplication of C = A * B"""
    i, j = cuda.grid(2)
    if i < C.shape[0] and j < C.shape[1]:
        tmp = 0.0
        for k in range(A.shape[1]):
            tmp += A[i, k] * B[k, j]
        C[i, j] = tmp


def test_matrix_product(backend: CpuBackend) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((20, 30)), rng.standard_normal((30, 10))
    due = np.zeros((20, 10))
    for k in range(30):
        due += a[:, k, None] * b[k]
    same(run(backend, matmul[(2, 1), (16, 16)].bind(a, b, out((20, 10), np.float64))), due)


@kernel
def matvec(A, x, y):
    row = cuda.grid(1)
    if row < A.shape[0]:
        y[row] = 0  # sums in place
        for col in range(A.shape[1]):
            y[row] += A[row, col] * x[col]


def test_matrix_times_vector(backend: CpuBackend) -> None:
    rng = np.random.default_rng(5)
    a, x = rng.standard_normal((40, 9)), rng.standard_normal(9)
    due = np.zeros(40)
    for k in range(9):
        due += a[:, k] * x[k]
    same(run(backend, matvec[2, 32].bind(a, x, out(40, np.float64))), due)


# Images


@kernel
def gray(result, rgb):
    x, y = cuda.grid(2)
    height, width, _ = rgb.shape
    if x < width and y < height:
        r, g, b = rgb[y, x, 0], rgb[y, x, 1], rgb[y, x, 2]
        result[y, x] = np.uint8(0.299 * r + 0.587 * g + 0.114 * b)


def test_gray_scale(backend: CpuBackend) -> None:
    rgb = np.random.default_rng(6).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    f = rgb.astype(np.float32)
    due = np.float32(0.299) * f[..., 0] + np.float32(0.587) * f[..., 1] + np.float32(0.114) * f[..., 2]
    same(run(backend, gray[(2, 2), (16, 16)].bind(out((17, 23), np.uint8), rgb)), due.astype(np.uint8))


@kernel
def sobel(result, image):
    mask = cuda.const.array_like(MASK)
    i, j = cuda.grid(2)
    rows, cols = image.shape
    if 1 <= i < rows - 1 and 1 <= j < cols - 1:
        gx = gy = float32(0)
        for di in range(-1, 2):
            for dj in range(-1, 2):
                pixel = image[i + di, j + dj]
                gy += mask[di + 1, dj + 1] * pixel
                gx += mask[dj + 1, di + 1] * pixel
        result[i, j] = math.sqrt(gx**2 + gy**2)


def test_sobel_with_a_constant_mask(backend: CpuBackend) -> None:
    image = np.random.default_rng(7).random((19, 21), dtype=np.float32)
    due = np.zeros_like(image)
    gx, gy = np.zeros((17, 19), np.float32), np.zeros((17, 19), np.float32)
    for di in range(3):
        for dj in range(3):
            part = image[di : di + 17, dj : dj + 19]
            gy += MASK[di, dj] * part
            gx += MASK[dj, di] * part
    due[1:-1, 1:-1] = np.sqrt(gx**2 + gy**2)
    same(run(backend, sobel[(2, 2), (16, 16)].bind(out(image.shape, np.float32), image)), due)


@kernel
def convolve(result, data, mask):
    # expands the bounds of the array by zeros, from the numba examples
    i, j = cuda.grid(2)
    image_rows, image_cols = data.shape
    if (i >= image_rows) or (j >= image_cols):
        return
    delta_rows = mask.shape[0] // 2
    delta_cols = mask.shape[1] // 2
    s = 0
    for k in range(mask.shape[0]):
        for l in range(mask.shape[1]):
            i_k = i - k + delta_rows
            j_l = j - l + delta_cols
            if (i_k >= 0) and (i_k < image_rows) and (j_l >= 0) and (j_l < image_cols):
                s += mask[k, l] * data[i_k, j_l]
    result[i, j] = s


def test_convolution(backend: CpuBackend) -> None:
    rng = np.random.default_rng(8)
    data, mask = rng.standard_normal((12, 14)), rng.standard_normal((3, 5))
    wide = np.zeros((14, 18))
    wide[1:13, 2:16] = data
    due = np.zeros_like(data)
    for k in range(3):
        for l in range(5):
            due += mask[k, l] * wide[2 - k : 14 - k, 4 - l : 18 - l]
    same(run(backend, convolve[(1, 1), (16, 16)].bind(out(data.shape, np.float64), data, mask)), due)


@kernel
def life(result, board):
    x, y = cuda.grid(2)
    n, m = board.shape
    if x >= n or y >= m:
        return
    alive = 0
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            if not (dx == 0 and dy == 0):
                alive += board[(x + dx) % n, (y + dy) % m]
    result[x, y] = 1 if alive == 3 or (board[x, y] and alive == 2) else 0


def test_game_of_life(backend: CpuBackend) -> None:
    board = np.random.default_rng(9).integers(0, 2, (13, 20), dtype=np.int32)
    alive = sum(np.roll(board, (dx, dy), (0, 1)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)) - board
    due = (alive == 3) | ((board == 1) & (alive == 2))
    same(run(backend, life[(1, 2), (16, 16)].bind(out(board.shape, np.int32), board)), due)


@kernel
def rotate(result, image, angle):
    x, y = cuda.grid(2)
    h, w = image.shape
    c, s = math.cos(angle), math.sin(angle)
    u = c * (x - w / 2) - s * (y - h / 2) + w / 2
    v = s * (x - w / 2) + c * (y - h / 2) + h / 2
    u0, v0 = int(math.floor(u)), int(math.floor(v))
    if 0 <= u0 < w - 1 and 0 <= v0 < h - 1:
        a, b = u - u0, v - v0
        top = (1 - a) * image[v0, u0] + a * image[v0, u0 + 1]
        low = (1 - a) * image[v0 + 1, u0] + a * image[v0 + 1, u0 + 1]
        result[y, x] = (1 - b) * top + b * low


def test_rotation_with_bilinear_interpolation(backend: CpuBackend) -> None:
    image = np.random.default_rng(10).random((20, 24))
    angle = np.float64(0.3)
    y, x = np.mgrid[:20, :24]
    u = np.cos(angle) * (x - 12) - np.sin(angle) * (y - 10) + 12
    v = np.sin(angle) * (x - 12) + np.cos(angle) * (y - 10) + 10
    u0, v0 = np.floor(u).astype(int), np.floor(v).astype(int)
    inside = (u0 >= 0) & (u0 < 23) & (v0 >= 0) & (v0 < 19)
    a, b, u0, v0 = u - u0, v - v0, np.clip(u0, 0, 22), np.clip(v0, 0, 18)
    top = (1 - a) * image[v0, u0] + a * image[v0, u0 + 1]
    low = (1 - a) * image[v0 + 1, u0] + a * image[v0 + 1, u0 + 1]
    close(
        run(backend, rotate.bind(out(image.shape, np.float64), image, angle)),
        np.where(inside, (1 - b) * top + b * low, 0),
    )


@device
def mandel(x, y, max_iters):
    zr = zi = 0.0
    for i in range(max_iters):
        zr, zi = zr * zr - zi * zi + x, 2 * zr * zi + y
        if zr * zr + zi * zi >= 4:
            return i
    return max_iters


@kernel
def mandel_kernel(min_x, max_x, min_y, max_y, image, iters):
    height = image.shape[0]
    width = image.shape[1]

    pixel_size_x = (max_x - min_x) / width
    pixel_size_y = (max_y - min_y) / height

    startX, startY = cuda.grid(2)
    gridX = cuda.gridDim.x * cuda.blockDim.x
    gridY = cuda.gridDim.y * cuda.blockDim.y

    for x in range(startX, width, gridX):
        real = min_x + x * pixel_size_x
        for y in range(startY, height, gridY):
            imag = min_y + y * pixel_size_y
            image[y, x] = mandel(real, imag, iters)


def test_mandelbrot_with_a_device_function(backend: CpuBackend) -> None:
    corners = [np.float64(value) for value in (-2.0, 1.0, -1.0, 1.0)]
    due = np.zeros((20, 30), np.uint8)
    for y in range(20):
        for x in range(30):
            c, z, n = complex(-2.0 + x * 0.1, -1.0 + y * 0.1), 0j, 0
            while n < 20:
                z = complex(z.real * z.real - z.imag * z.imag + c.real, 2 * z.real * z.imag + c.imag)
                if z.real * z.real + z.imag * z.imag >= 4:
                    break
                n += 1
            due[y, x] = n
    same(run(backend, mandel_kernel.bind(*corners, out((20, 30), np.uint8), 20)), due)


# Numbers


@device
def cnd(d):
    A1 = 0.31938153
    A2 = -0.356563782
    A3 = 1.781477937
    A4 = -1.821255978
    A5 = 1.330274429
    K = 1.0 / (1.0 + 0.2316419 * math.fabs(d))
    ret_val = RSQRT2PI * math.exp(-0.5 * d * d) * (K * (A1 + K * (A2 + K * (A3 + K * (A4 + K * A5)))))
    if d > 0:
        ret_val = 1.0 - ret_val
    return ret_val


@kernel
def black_scholes_cuda(callResult, putResult, S, X, T, R, V):
    i = cuda.threadIdx.x + cuda.blockIdx.x * cuda.blockDim.x
    if i >= S.shape[0]:
        return
    sqrtT = math.sqrt(T[i])
    d1 = (math.log(S[i] / X[i]) + (R + 0.5 * V * V) * T[i]) / (V * sqrtT)
    d2 = d1 - V * sqrtT
    cndd1 = cnd(d1)
    cndd2 = cnd(d2)

    expRT = math.exp((-1.0 * R) * T[i])
    callResult[i] = S[i] * cndd1 - X[i] * expRT * cndd2
    putResult[i] = X[i] * expRT * (1.0 - cndd2) - S[i] * (1.0 - cndd1)


def test_black_scholes(backend: CpuBackend) -> None:
    rng = np.random.default_rng(11)
    s, x, t = rng.uniform(5, 30, 200), rng.uniform(1, 100, 200), rng.uniform(0.25, 10, 200)
    r, v = np.float64(0.02), np.float64(0.3)
    call, put = run(backend, black_scholes_cuda.bind(out(200, np.float64), out(200, np.float64), s, x, t, r, v))
    d1 = (np.log(s / x) + (r + v * v / 2) * t) / (v * np.sqrt(t))
    normal = np.vectorize(lambda d: math.erfc(-d / math.sqrt(2)) / 2)
    due = s * normal(d1) - x * np.exp(-r * t) * normal(d1 - v * np.sqrt(t))
    np.testing.assert_allclose(call, due, atol=1e-4)  # the polynomial has six digits
    np.testing.assert_allclose(put, due - s + x * np.exp(-r * t), atol=1e-4)


@kernel
def collatz(steps, start):
    i = cuda.grid(1)
    if i < steps.size:
        n = start + i
        count = 0
        while n != 1:
            if n % 2 == 0:
                n = n // 2
            else:
                n = 3 * n + 1
            count += 1
        steps[i] = count


def test_collatz(backend: CpuBackend) -> None:
    def length(n: int) -> int:
        count = 0
        while n != 1:
            n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
        return count

    same(run(backend, collatz.bind(out(500, np.int32), 1)), [length(n) for n in range(1, 501)])


@device
def xorshift(state):
    state ^= (state << 13) & 0xFFFFFFFF
    state ^= state >> 17
    state ^= (state << 5) & 0xFFFFFFFF
    return state & 0xFFFFFFFF


@device
def lcg(state):
    return (1664525 * state + 1013904223) % 2**32


@kernel
def generators(result, seed, n):
    i = cuda.grid(1)
    if i < result.shape[0]:
        one = two = np.uint32(seed + i + 1)
        for _ in range(n):
            one, two = xorshift(one), lcg(two)
        result[i, 0] = one
        result[i, 1] = two


def test_xorshift_and_a_linear_generator(backend: CpuBackend) -> None:
    due = []
    for i in range(50):
        one = two = 7 + i + 1
        for _ in range(9):
            one ^= one << 13 & 0xFFFFFFFF
            one ^= one >> 17
            one ^= one << 5 & 0xFFFFFFFF
            two = (1664525 * two + 1013904223) % 2**32
        due.append((one, two))
    same(run(backend, generators.bind(out((50, 2), np.uint32), 7, 9)), due)


@kernel
def compute_pi(seed, iterations, result):
    """Find the maximum value in values and store in result[0]"""
    thread_id = cuda.grid(1)

    inside = 0
    for i in range(iterations):
        x = random.uniform(seed, thread_id, 2 * i)  # was xoroshiro128p_uniform_float32(rng_states, thread_id)
        y = random.uniform(seed, thread_id, 2 * i + 1)  # likewise
        if x**2 + y**2 <= 1.0:
            inside += 1

    result[thread_id] = 4.0 * inside / iterations


def test_monte_carlo_pi(backend: CpuBackend) -> None:
    thread, dim = np.mgrid[:64, :400]
    numbers = random.uniform(3, thread, dim)
    inside = (numbers[:, ::2] ** 2 + numbers[:, 1::2] ** 2 <= 1).sum(axis=1).astype(np.float32)
    same(run(backend, compute_pi[1, 64].bind(3, 200, out(64, np.float32))), np.float32(4) * inside / np.float32(200))


@kernel
def is_prime(flags, first):
    i = cuda.grid(1)
    if i < flags.size:
        n = first + i
        prime = n > 1
        d = 2
        while d * d <= n and prime:
            if not n % d:
                prime = False
                break
            d += 1 if d == 2 else 2
        flags[i] = prime


def test_primes(backend: CpuBackend) -> None:
    due = [n > 1 and all(n % d for d in range(2, n)) for n in range(300)]
    same(run(backend, is_prime.bind(out(300, np.bool_), 0)), due)


@kernel
def lower_bound(positions, haystack, needles):
    i = cuda.grid(1)
    if i >= needles.size:
        return
    lo, hi = 0, haystack.size
    while lo < hi:
        mid = (lo + hi) >> 1
        if haystack[mid] < needles[i]:
            lo = mid + 1
        else:
            hi = mid
    positions[i] = lo


def test_binary_search(backend: CpuBackend) -> None:
    rng = np.random.default_rng(12)
    haystack, needles = np.sort(rng.integers(0, 1000, 300)), rng.integers(-10, 1010, 200)
    same(run(backend, lower_bound.bind(out(200, np.int64), haystack, needles)), np.searchsorted(haystack, needles))


@device
def horner(coefficients, x):
    total = 0.0
    for k in range(len(coefficients) - 1, -1, -1):
        total = total * x + coefficients[k]
    return total


@kernel
def polynomial(result, x):
    weights = cuda.const.array_like(WEIGHTS)
    i = cuda.grid(1)
    if i < result.size:
        result[i] = horner(weights, x[i])


def test_a_constant_array_in_a_device_function(backend: CpuBackend) -> None:
    x = np.random.default_rng(13).standard_normal(100)
    due = np.zeros(100)
    for weight in WEIGHTS[::-1]:
        due = due * x + weight
    same(run(backend, polynomial.bind(out(100, np.float64), x)), due)


@device
def insert(best, count, value):
    """Keeps the smallest values, in order."""
    k = count - 1
    if value < best[k]:
        while k > 0 and best[k - 1] > value:
            best[k] = best[k - 1]
            k -= 1
        best[k] = value


@kernel
def nearest(result, points):
    best = cuda.local.array(3, float32)
    i = cuda.grid(1)
    n = points.shape[0]
    if i < n:
        for k in range(3):
            best[k] = math.inf
        for j in range(n):
            if j != i:
                dx = points[i, 0] - points[j, 0]
                dy = points[i, 1] - points[j, 1]
                insert(best, 3, math.sqrt(dx * dx + dy * dy))
        for k in range(3):
            result[i, k] = best[k]


def test_a_local_array_that_a_device_function_fills(backend: CpuBackend) -> None:
    points = np.random.default_rng(14).random((60, 2), dtype=np.float32)
    d = points[:, None] - points
    away = np.sqrt(d[..., 0] * d[..., 0] + d[..., 1] * d[..., 1])
    np.fill_diagonal(away, np.inf)
    same(run(backend, nearest.bind(out((60, 3), np.float32), points)), np.sort(away, axis=1)[:, :3])


@kernel
def heat(result, u, alpha, dt):
    i, j = cuda.grid(2)
    if 0 < i < u.shape[0] - 1 and 0 < j < u.shape[1] - 1:
        laplacian = u[i + 1, j] + u[i - 1, j] + u[i, j + 1] + u[i, j - 1] - 4.0 * u[i, j]
        result[i, j] = u[i, j] + alpha * dt * laplacian
    elif i < u.shape[0] and j < u.shape[1]:
        result[i, j] = u[i, j]


def test_heat_equation(backend: CpuBackend) -> None:
    u = np.random.default_rng(15).random((15, 18))
    due = u.copy()
    laplacian = u[2:, 1:-1] + u[:-2, 1:-1] + u[1:-1, 2:] + u[1:-1, :-2] - 4.0 * u[1:-1, 1:-1]
    due[1:-1, 1:-1] += 0.5 * 0.25 * laplacian
    same(run(backend, heat.bind(out(u.shape, np.float64), u, np.float64(0.5), np.float64(0.25))), due)


@kernel
def dft(re, im, x):
    k = cuda.grid(1)
    n = x.size
    if k < n:
        a = b = np.float64(0)
        for t in range(n):
            phi = -2 * math.pi * k * t / n
            a += x[t] * math.cos(phi)
            b += x[t] * math.sin(phi)
        re[k], im[k] = a, b


def test_discrete_fourier_transform(backend: CpuBackend) -> None:
    x = np.random.default_rng(16).standard_normal(32)
    re, im = run(backend, dft.bind(out(32, np.float64), out(32, np.float64), x))
    np.testing.assert_allclose(re + 1j * im, np.fft.fft(x), atol=1e-4)  # math.pi is a float32 beside integers


@kernel
def distances(D, A):
    i, j = cuda.grid(2)
    if i < D.shape[0] and j < D.shape[1]:
        total = float32(0)
        for k in range(A.shape[1]):
            total += abs(A[i, k] - A[j, k]) ** 2
        D[i, j] = total**0.5


def test_pairwise_distances(backend: CpuBackend) -> None:
    a = np.random.default_rng(17).random((20, 6), dtype=np.float32)
    due = np.zeros((20, 20), np.float32)
    for k in range(6):
        due += np.abs(a[:, None, k] - a[None, :, k]) ** 2
    close(run(backend, distances.bind(out((20, 20), np.float32), a)), np.sqrt(due))


@kernel
def assign(labels, points, centroids):
    i = cuda.grid(1)
    if i < points.shape[0]:
        best, which = 1e30, -1
        for c in range(centroids.shape[0]):
            d = 0.0
            for k in range(points.shape[1]):
                diff = points[i, k] - centroids[c, k]
                d += diff * diff
            if d < best:
                best, which = d, c
        labels[i] = which


def test_k_means_assignment(backend: CpuBackend) -> None:
    rng = np.random.default_rng(18)
    points, centroids = rng.standard_normal((100, 3)), rng.standard_normal((5, 3))
    due = ((points[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    same(run(backend, assign.bind(out(100, np.int32), points, centroids)), due)


@kernel
def sad(best, block, image):
    x, y = cuda.grid(2)
    bh, bw = block.shape
    if y + bh <= image.shape[0] and x + bw <= image.shape[1]:
        acc = 0
        for j in range(bh):
            for i in range(bw):
                acc += abs(int(image[y + j, x + i]) - int(block[j, i]))
        best[y, x] = acc


def test_sums_of_absolute_differences(backend: CpuBackend) -> None:
    image = np.random.default_rng(19).integers(0, 256, (20, 20), dtype=np.uint8)
    block = image[5:9, 6:10]
    due = np.array(
        [[np.abs(image[y : y + 4, x : x + 4].astype(int) - block).sum() for x in range(17)] for y in range(17)]
    )
    same(run(backend, sad.bind(out((17, 17), np.int32), block, image)), due)
