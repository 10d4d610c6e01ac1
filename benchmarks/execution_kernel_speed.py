"""The part of `execution.py` that times kernels: the CPU back end beside the same loops by hand and beside BLAS."""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from execution_hand import OPTIONS
from execution_kernels import TILE, black_scholes, blur, gather, gemm, mandelbrot, path_trace, saxpy, stencil

import p2pcompute as p2p
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import Binding

__all__ = ["Case", "alternate", "cases", "unchecked_backend"]

Array = np.ndarray[Any, Any]
_TURN_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kernel, what it is called with, and the arguments of the same by hand.

    Attributes:
        binding: kernel, geometry and arguments.
        outputs: the whole outputs by hand, as they are to be: `outputs_in` has them.
        hand: name of the same kernel by hand.
        indices: "affine" or "data": what its indices are made of.
        leaves: whether an index does leave its array, so that the tests can't be taken out.
        libm: whether it calls mathematical functions, so that libm's are worth a look.
        blas: the same by BLAS.
    """

    name: str
    hand: str
    binding: Binding
    outputs: tuple[Array, ...]
    arguments: tuple[Any, ...]
    indices: str = "affine"
    leaves: bool = False
    libm: bool = False
    blas: Callable[[], object] | None = None

    def rows(self) -> list[Array]:
        """Rows of all items, zeroed."""
        layout = self.binding.layout
        items = self.binding.launch.blocks * layout.items_per_block
        return [
            aligned((items, *row), np.dtype(spec.dtype))
            for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]

    def outputs_in(self, rows: list[Array]) -> tuple[Array, ...]:
        """The whole outputs by hand, in the memory of `rows`: how long memory takes depends on its pages."""
        return tuple(
            row.reshape(-1)[: out.size].reshape(out.shape) for row, out in zip(rows, self.outputs, strict=True)
        )

    def whole(self, rows: list[Array]) -> list[Array]:
        """Rows in their places."""
        whole = self.binding.empty_outputs()
        for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
            self.binding.layout.scatter(place, 0, self.binding.launch.blocks, part, target)
        return whole


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros from the start of a page on, as a worker's shared memory lies; NumPy's own begin 16 bytes behind one."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + mmap.PAGESIZE, np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return memory[start : start + size].view(dtype).reshape(shape)


def cases(scale: float) -> Iterator[Case]:
    """The kernels and their sizes; `scale` below 1 takes smaller ones."""
    rng = np.random.default_rng(1)
    f32 = np.float32
    flat = np.dtype(f32)

    def length(full: int, multiple: int = 1) -> int:
        return max(multiple, int(full * scale) // multiple * multiple)

    def random(*shape: int) -> Array:
        return rng.random(shape, dtype=np.float32)

    n = length(1 << 24)
    x, y = random(n), random(n)
    yield Case(
        name="SAXPY",
        hand="saxpy",
        binding=saxpy.bind(p2p.out(n, f32), f32(2.5), x, y),
        outputs=(np.zeros(n, f32),),
        arguments=(f32(2.5), x, y),
    )
    side = length(512, 16)
    step = f32(3.0 / side)
    yield Case(
        name="Mandelbrot",
        hand="mandelbrot",
        binding=mandelbrot.bind(p2p.out((side, side), np.int32), f32(-2.25), f32(-1.5), step, 256),
        outputs=(np.zeros((side, side), np.int32),),
        arguments=(f32(-2.25), f32(-1.5), step, 256),
    )
    height, width = length(180, 16), length(320, 16)
    spheres = np.array(
        [[0, -1001, 0, 1000, 0.6], [0, 0, 0, 1, 0.8], [-2.1, 0, 0.4, 1, 0.5], [2.1, 0, 0.4, 1, 0.7]], np.float32
    )
    yield Case(
        name="path tracing",
        hand="path_trace",
        binding=path_trace.bind(p2p.out((height, width), f32), spheres, 8, 4, 7),
        outputs=(np.zeros((height, width), f32),),
        arguments=(spheres, 8, 4, 7),
        indices="data",
        libm=True,
    )
    n = length(1 << 20)
    market = (50 + 100 * random(n), 50 + 100 * random(n), f32(0.1) + 2 * random(n), f32(0.03), f32(0.25))
    yield Case(
        name="Black-Scholes",
        hand="black_scholes",
        binding=black_scholes.bind(p2p.out(n, f32), p2p.out(n, f32), *market),
        outputs=(np.zeros(n, f32), np.zeros(n, f32)),
        arguments=market,
        libm=True,
    )
    side = length(2048, 16)
    grid = aligned((side, side), flat)
    grid[:] = random(side, side)
    yield Case(
        name="stencil",
        hand="stencil",
        binding=stencil.bind(p2p.out((side, side), f32), grid),
        outputs=(aligned((side, side), flat),),
        arguments=(grid,),
    )
    yield Case(
        name="stencil over the border",
        hand="blur",
        leaves=True,
        binding=blur.bind(p2p.out((side, side), f32), grid),
        outputs=(aligned((side, side), flat),),
        arguments=(grid,),
    )
    n = length(1 << 22)
    index = rng.integers(0, n - 1, n)
    x = random(n)
    yield Case(
        name="gather",
        hand="gather",
        binding=gather.bind(p2p.out(n, f32), index, x),
        outputs=(np.zeros(n, f32),),
        arguments=(index, x),
        indices="data",
    )
    side = length(1024, TILE)
    a, b = random(side, side), random(side, side)
    blocks = side // TILE
    yield Case(
        name="tiled GEMM",
        hand="gemm",
        binding=gemm[(blocks, blocks), (TILE, TILE)].bind(p2p.out((side, side), f32), a, b),
        outputs=(np.zeros((side, side), f32),),
        arguments=(a, b),
        blas=lambda: a @ b,
    )


@contextmanager
def unchecked_backend(threads: int) -> Iterator[CpuBackend]:
    """The back end as it would be if a load never left its array: what the index tests cost is the difference."""
    inline = numba.njit(forceinline=True, **OPTIONS)
    with CpuBackend(threads) as backend:
        backend._namespace |= {
            "load1": inline(lambda a, i: a[i]),
            "load2": inline(lambda a, i, j: a[i, j]),
            "load3": inline(lambda a, i, j, k: a[i, j, k]),
            "load4": inline(lambda a, i, j, k, n: a[i, j, k, n]),
        }
        yield backend


def alternate(variants: dict[str, Callable[[], object]], rounds: int, spend_s: float) -> dict[str, float]:
    """Run each once to warm up, then all in turn `rounds` times, and on until `spend_s` seconds are spent: a short
    one needs more rounds to be left alone once. The least time of each, in seconds.

    A turn is one run, or several in `_TURN_S`: OpenMP's threads, which numba's parallel loops take, go on looking for
    work for some milliseconds after a loop and hold the cores that the next variant's threads want.
    """
    for variant in variants.values():
        variant()
    best = dict.fromkeys(variants, float("inf"))
    order = list(variants)
    turn, end = 0, time.perf_counter() + spend_s
    while turn < rounds or time.perf_counter() < end:
        turn += 1
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            until = time.perf_counter() + _TURN_S
            while True:
                began = time.perf_counter_ns()
                variants[name]()
                best[name] = min(best[name], (time.perf_counter_ns() - began) / 1e9)
                if time.perf_counter() >= until:
                    break
    return best
