"""The kernels of `execution_kernels.py` written by hand for numba: what a good engineer writes who has no use for us.

One loop over rows in parallel, the inner one over what lies side by side, float32 throughout, no test that the loops
make needless. NumPy's error model, so that a division has no branch.

Mathematical functions come as an argument of `make`: those of the kernel language, or the platform's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numba
import numpy as np
from execution_kernels import TILE
from numba import prange

from p2pcompute.execution._strict import helpers

__all__ = ["OPTIONS", "libm_functions", "make", "strict_functions"]

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False, "nogil": True, "boundscheck": False}
F32 = np.float32
FAR = F32(1e30)
NEAR = F32(0.001)
TURN = F32(6.2831855)
ROOT_HALF = F32(0.70710677)
ZERO, QUARTER, HALF, ONE, TWO, FOUR = (F32(value) for value in (0, 0.25, 0.5, 1, 2, 4))


def strict_functions() -> Mapping[str, Any]:
    """exp, log, erfc, sin and cos of the kernel language for float32, and its random numbers."""
    made = helpers(numba.njit(forceinline=True, **OPTIONS), math_jit=numba.njit(**OPTIONS))
    return {name: made[f"{name}32"] for name in ("exp", "log", "erfc", "sin", "cos")} | {"uniform": made["uniform"]}


def libm_functions() -> Mapping[str, Any]:
    """The same from the platform's library, and the same random numbers: they are a definition."""
    functions = {name: getattr(math, name) for name in ("exp", "log", "erfc", "sin", "cos")}
    return functions | {"uniform": strict_functions()["uniform"]}


def make(functions: Mapping[str, Any], *, parallel: bool = True) -> dict[str, Callable[..., None]]:
    """Each kernel as a function that takes outputs first, then inputs; compiled on the first call.

    Args:
        functions: `strict_functions` or `libm_functions`.
        parallel: whether the outer loop is numba's parallel one, on as many threads as numba is set to.
    """
    exp, log, erfc, sin, cos = (functions[name] for name in ("exp", "log", "erfc", "sin", "cos"))
    uniform = functions["uniform"]
    loop = numba.njit(parallel=parallel, **OPTIONS)
    inline = numba.njit(**OPTIONS)

    @loop
    def saxpy(out: Any, a: Any, x: Any, y: Any) -> None:
        for i in prange(out.size):
            out[i] = a * x[i] + y[i]

    @loop
    def mandelbrot(out: Any, left: Any, top: Any, step: Any, limit: Any) -> None:
        for y in prange(out.shape[0]):
            ci = top + F32(y) * step
            for x in range(out.shape[1]):
                cr = left + F32(x) * step
                zr = ZERO
                zi = ZERO
                n = 0
                while n < limit and zr * zr + zi * zi <= FOUR:
                    zr, zi = zr * zr - zi * zi + cr, TWO * zr * zi + ci
                    n += 1
                out[y, x] = n

    @inline
    def normal_share(x: Any) -> Any:
        return HALF * erfc(-x * ROOT_HALF)

    @loop
    def black_scholes(call: Any, put: Any, spot: Any, strike: Any, years: Any, rate: Any, volatility: Any) -> None:
        for i in prange(call.size):
            s = spot[i]
            k = strike[i]
            t = years[i]
            spread = volatility * math.sqrt(t)
            d1 = (log(s / k) + (rate + HALF * volatility * volatility) * t) / spread
            d2 = d1 - spread
            discounted = k * exp(-rate * t)
            value = s * normal_share(d1) - discounted * normal_share(d2)
            call[i] = value
            put[i] = value + discounted - s

    @loop
    def stencil(out: Any, x: Any) -> None:
        height, width = out.shape
        for i in prange(height):
            if i in (0, height - 1):
                for j in range(width):
                    out[i, j] = x[i, j]
            else:
                out[i, 0] = x[i, 0]
                for j in range(1, width - 1):
                    out[i, j] = QUARTER * (x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1])
                out[i, width - 1] = x[i, width - 1]

    @loop
    def blur(out: Any, x: Any) -> None:
        height, width = out.shape
        for i in prange(height):
            if i in (0, height - 1):
                for j in range(width):
                    above = x[i - 1, j] if i > 0 else ZERO
                    below = x[i + 1, j] if i < height - 1 else ZERO
                    before = x[i, j - 1] if j > 0 else ZERO
                    behind = x[i, j + 1] if j < width - 1 else ZERO
                    out[i, j] = QUARTER * (above + below + before + behind)
            else:
                last = width - 1
                out[i, 0] = QUARTER * (x[i - 1, 0] + x[i + 1, 0] + ZERO + x[i, 1])
                for j in range(1, last):
                    out[i, j] = QUARTER * (x[i - 1, j] + x[i + 1, j] + x[i, j - 1] + x[i, j + 1])
                out[i, last] = QUARTER * (x[i - 1, last] + x[i + 1, last] + x[i, last - 1] + ZERO)

    @loop
    def gather(out: Any, index: Any, x: Any) -> None:
        for i in prange(out.size):
            k = index[i]
            out[i] = x[k] + x[k + 1]

    @inline
    def add_product(total: Any, left: Any, right: Any) -> None:
        for y in range(TILE):
            for x in range(TILE):
                value = total[y, x]
                for k in range(TILE):
                    value += left[y, k] * right[k, x]
                total[y, x] = value

    @loop
    def gemm(out: Any, a: Any, b: Any) -> None:
        # Tiles are copied and filled up with zeros, so that the inner loops have lengths that stand here.
        rows, columns = out.shape
        depth = a.shape[1]
        down = (rows + TILE - 1) // TILE
        across = (columns + TILE - 1) // TILE
        for block in prange(down * across):
            y0 = block // across * TILE
            x0 = block % across * TILE
            height = min(TILE, rows - y0)
            width = min(TILE, columns - x0)
            total = np.zeros((TILE, TILE), np.float32)
            left = np.zeros((TILE, TILE), np.float32)
            right = np.zeros((TILE, TILE), np.float32)
            for k0 in range(0, depth, TILE):
                deep = min(TILE, depth - k0)
                if height == TILE and width == TILE and deep == TILE:
                    for i in range(TILE):
                        for j in range(TILE):
                            left[i, j] = a[y0 + i, k0 + j]
                            right[i, j] = b[k0 + i, x0 + j]
                else:
                    left[:] = ZERO
                    right[:] = ZERO
                    left[:height, :deep] = a[y0 : y0 + height, k0 : k0 + deep]
                    right[:deep, :width] = b[k0 : k0 + deep, x0 : x0 + width]
                add_product(total, left, right)
            for y in range(height):
                for x in range(width):
                    out[y0 + y, x0 + x] = total[y, x]

    @inline
    def distance(spheres: Any, i: Any, ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any) -> Any:
        px = spheres[i, 0] - ox
        py = spheres[i, 1] - oy
        pz = spheres[i, 2] - oz
        b = px * dx + py * dy + pz * dz
        d = b * b - (px * px + py * py + pz * pz) + spheres[i, 3] * spheres[i, 3]
        t = FAR
        if d > ZERO:
            root = math.sqrt(d)
            if b - root > NEAR:
                t = b - root
            elif b + root > NEAR:
                t = b + root
        return t

    @loop
    def path_trace(image: Any, spheres: Any, samples: Any, bounces: Any, seed: Any) -> None:
        height, width = image.shape
        for y in prange(height):
            for x in range(width):
                pixel = y * width + x
                total = ZERO
                for sample in range(samples):
                    dim = sample * 64
                    dx = (F32(x) + uniform(seed, pixel, dim)) / F32(width) * TWO - ONE
                    dy = ONE - (F32(y) + uniform(seed, pixel, dim + 1)) / F32(height) * TWO
                    dz = F32(1.5)
                    length = ONE / math.sqrt(dx * dx + dy * dy + dz * dz)
                    dx *= length
                    dy *= length
                    dz *= length
                    ox = ZERO
                    oy = ZERO
                    oz = F32(-4.0)
                    light = ONE
                    for bounce in range(bounces):
                        best = FAR
                        what = -1
                        for i in range(spheres.shape[0]):
                            t = distance(spheres, i, ox, oy, oz, dx, dy, dz)
                            if t < best:
                                best = t
                                what = i
                        if what < 0:
                            total += light * (F32(0.6) + F32(0.4) * dy)
                            break
                        ox += best * dx
                        oy += best * dy
                        oz += best * dz
                        nx = (ox - spheres[what, 0]) / spheres[what, 3]
                        ny = (oy - spheres[what, 1]) / spheres[what, 3]
                        nz = (oz - spheres[what, 2]) / spheres[what, 3]
                        light *= spheres[what, 4]
                        angle = TURN * uniform(seed, pixel, dim + 2 + 2 * bounce)
                        up = ONE - TWO * uniform(seed, pixel, dim + 3 + 2 * bounce)
                        flat = math.sqrt(max(ZERO, ONE - up * up))
                        dx = nx + flat * cos(angle)
                        dy = ny + flat * sin(angle)
                        dz = nz + up
                        length = ONE / math.sqrt(dx * dx + dy * dy + dz * dz)
                        dx *= length
                        dy *= length
                        dz *= length
                image[y, x] = total / F32(samples)

    return {
        "saxpy": saxpy,
        "mandelbrot": mandelbrot,
        "black_scholes": black_scholes,
        "stencil": stencil,
        "blur": blur,
        "gather": gather,
        "gemm": gemm,
        "path_trace": path_trace,
    }
