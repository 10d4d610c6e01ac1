"""The kernels that `execution.py` times, as a user writes them. `execution_hand.py` has the same by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import p2pcompute as p2p
from p2pcompute import cuda, random

__all__ = ["TILE", "black_scholes", "blur", "gather", "gemm", "mandelbrot", "path_trace", "saxpy", "stencil"]

TILE = 32
FAR = 1e30
TURN = np.float32(6.2831855)
ROOT_HALF = np.float32(0.70710677)


@p2p.kernel
def saxpy(out: Any, a: Any, x: Any, y: Any) -> None:
    """out = a x + y"""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


@p2p.kernel
def mandelbrot(out: Any, left: Any, top: Any, step: Any, limit: Any) -> None:
    """Iterations until a point has escaped."""
    x, y = cuda.grid(2)
    cr = left + x * step
    ci = top + y * step
    zr = 0.0
    zi = 0.0
    n = 0
    while n < limit and zr * zr + zi * zi <= 4.0:
        zr, zi = zr * zr - zi * zi + cr, 2.0 * zr * zi + ci
        n += 1
    if y < out.shape[0] and x < out.shape[1]:
        out[y, x] = n


@p2p.device
def normal_share(x: Any) -> Any:
    """The normal distribution function."""
    return 0.5 * math.erfc(-x * ROOT_HALF)


@p2p.kernel
def black_scholes(call: Any, put: Any, spot: Any, strike: Any, years: Any, rate: Any, volatility: Any) -> None:
    """Prices of European options (Black and Scholes, 1973)."""
    i = cuda.grid(1)
    if i < call.size:
        s = spot[i]
        k = strike[i]
        t = years[i]
        spread = volatility * math.sqrt(t)
        d1 = (math.log(s / k) + (rate + 0.5 * volatility * volatility) * t) / spread
        d2 = d1 - spread
        discounted = k * math.exp(-rate * t)
        value = s * normal_share(d1) - discounted * normal_share(d2)
        call[i] = value
        put[i] = value + discounted - s


@p2p.kernel
def stencil(out: Any, x: Any) -> None:
    """The mean of the four neighbours; the border stays."""
    j, i = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        if i > 0 and i < out.shape[0] - 1 and j > 0 and j < out.shape[1] - 1:
            out[i, j] = 0.25 * (x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1])
        else:
            out[i, j] = x[i, j]


@p2p.kernel
def blur(out: Any, x: Any) -> None:
    """The mean of the four neighbours, zero beyond the border."""
    j, i = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        out[i, j] = 0.25 * (x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1])


@p2p.kernel
def gather(out: Any, index: Any, x: Any) -> None:
    """out = x[index] + x[index + 1]"""
    i = cuda.grid(1)
    if i < out.size:
        k = index[i]
        out[i] = x[k] + x[k + 1]


@p2p.kernel
def gemm(out: Any, a: Any, b: Any) -> None:
    """The product of two matrices by tiles in shared memory, as in the CUDA programming guide."""
    sa = cuda.shared.array((TILE, TILE), np.float32)
    sb = cuda.shared.array((TILE, TILE), np.float32)
    x, y = cuda.grid(2)
    tx = cuda.threadIdx.x
    ty = cuda.threadIdx.y
    total = 0.0
    for tile in range((a.shape[1] + TILE - 1) // TILE):
        sa[ty, tx] = a[y, tile * TILE + tx]
        sb[ty, tx] = b[tile * TILE + ty, x]
        cuda.syncthreads()
        for k in range(TILE):
            total += sa[ty, k] * sb[k, tx]
        cuda.syncthreads()
    if y < out.shape[0] and x < out.shape[1]:
        out[y, x] = total


@p2p.device
def distance(spheres: Any, i: Any, ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """How far sphere `i` is along a unit direction."""
    px = spheres[i, 0] - ox
    py = spheres[i, 1] - oy
    pz = spheres[i, 2] - oz
    b = px * dx + py * dy + pz * dz
    d = b * b - (px * px + py * py + pz * pz) + spheres[i, 3] * spheres[i, 3]
    t = FAR
    if d > 0.0:
        root = math.sqrt(d)
        if b - root > 0.001:
            t = b - root
        elif b + root > 0.001:
            t = b + root
    return t


@p2p.kernel
def path_trace(image: Any, spheres: Any, samples: Any, bounces: Any, seed: Any) -> None:
    """Diffuse spheres under a white sky: light that a pixel gets, by paths with cosine-weighted bounces."""
    x, y = cuda.grid(2)
    if y < image.shape[0] and x < image.shape[1]:
        pixel = y * image.shape[1] + x
        total = 0.0
        for sample in range(samples):
            dim = sample * 64
            dx = (x + random.uniform(seed, pixel, dim)) / image.shape[1] * 2.0 - 1.0
            dy = 1.0 - (y + random.uniform(seed, pixel, dim + 1)) / image.shape[0] * 2.0
            dz = 1.5
            length = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
            dx *= length
            dy *= length
            dz *= length
            ox = 0.0
            oy = 0.0
            oz = -4.0
            light = 1.0
            for bounce in range(bounces):
                best = FAR
                what = -1
                for i in range(spheres.shape[0]):
                    t = distance(spheres, i, ox, oy, oz, dx, dy, dz)
                    if t < best:
                        best = t
                        what = i
                if what < 0:
                    total += light * (0.6 + 0.4 * dy)
                    break
                ox += best * dx
                oy += best * dy
                oz += best * dz
                nx = (ox - spheres[what, 0]) / spheres[what, 3]
                ny = (oy - spheres[what, 1]) / spheres[what, 3]
                nz = (oz - spheres[what, 2]) / spheres[what, 3]
                light *= spheres[what, 4]
                angle = TURN * random.uniform(seed, pixel, dim + 2 + 2 * bounce)
                up = 1.0 - 2.0 * random.uniform(seed, pixel, dim + 3 + 2 * bounce)
                flat = math.sqrt(max(0.0, 1.0 - up * up))
                dx = nx + flat * math.cos(angle)
                dy = ny + flat * math.sin(angle)
                dz = nz + up
                length = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
                dx *= length
                dy *= length
                dz *= length
        image[y, x] = total / samples
