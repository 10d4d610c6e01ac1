"""The ways in which a kernel may compute its thread's place, and what some of them ask of a launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.kernel import Binding, kernel, out

from .test_tutorials import run, same

TILE = 8


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


def by_names(result, x):
    tx = cuda.threadIdx.x
    ty = cuda.blockIdx.x
    bw = cuda.blockDim.x
    pos = tx + ty * bw
    if pos < result.size:
        result[pos] = x[pos] + 1


def by_names_at_once(result, x):
    t, b = cuda.threadIdx.x, cuda.blockIdx.x
    n = cuda.blockDim.x
    i = n * b + t
    result[i] = x[i] + 1


def by_tiles(result, x):
    i = cuda.blockIdx.x * TILE + cuda.threadIdx.x
    result[i] = x[i] + 1


def by_tiles_and_names(result, x):
    b, t = cuda.blockIdx.x, cuda.threadIdx.x
    result[TILE * b + t] = x[t + b * TILE] + 1


def by_strides(result, x):
    start = cuda.grid(1)
    step = cuda.gridsize(1)
    for i in range(start, x.size, step):
        result[i] = x[i] + 1


def by_strides_of_products(result, x):
    step = cuda.blockDim.x * cuda.gridDim.x
    for i in range(cuda.grid(1), x.size, step):
        result[i] = x[i]
    for i in range(cuda.grid(1), x.size, step):
        result[i] += 1


def by_a_while(result, x):
    i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
    while i < x.size:
        result[i] = x[i] + 1
        i += cuda.blockDim.x * cuda.gridDim.x


ONE = [by_names, by_names_at_once, by_tiles, by_tiles_and_names, by_strides, by_strides_of_products, by_a_while]


@pytest.mark.parametrize("function", ONE, ids=[function.__name__ for function in ONE])
def test_every_way_gives_the_same(backend: CpuBackend, function: Callable[..., Any]) -> None:
    x = np.random.default_rng(1).integers(0, 100, 37)
    binding = kernel(function)[5, TILE].bind(out(37, np.int64), x)
    admit(binding.source)  # the text by itself too
    same(run(backend, binding), x + 1)


@kernel
def image(result, x):
    width, height = x.shape[1], x.shape[0]
    sx, sy = cuda.gridsize(2)
    startx, starty = cuda.grid(2)
    for col in range(startx, width, sx):
        for row in range(starty, height, sy):
            result[row, col, 0] = x[row, col]
            result[row, col, 1] = col


def test_strides_along_two_axes(backend: CpuBackend) -> None:
    x = np.random.default_rng(2).integers(0, 100, (11, 19))
    due = np.stack([x, np.broadcast_to(np.arange(19), x.shape)], axis=2)
    same(run(backend, image.bind(out((11, 19, 2), np.int64), x)), due)


@kernel
def later_turns(result, x):
    """A turn after the first has no element of this output: stores are dropped, and loads give zero."""
    step = cuda.gridsize(1)
    total = 0
    for i in range(cuda.grid(1), x.size, step):
        result[i] = x[i]
        total += result[i]
    result[cuda.grid(1)] += 1000 * total


def test_the_turns_of_a_loop_by_strides_that_have_no_element(backend: CpuBackend) -> None:
    x = np.arange(1, 25)
    same(run(backend, later_turns[2, 4].bind(out(8, np.int64), x)), x[:8] * 1001)


def refusal(function: Any, blocks: int, threads: int) -> KernelTypeError:
    with pytest.raises(KernelTypeError) as caught:
        kernel(function)[blocks, threads].bind(out(37, np.int64), np.zeros(37, np.int64))
    assert caught.value.line
    return caught.value


def test_a_thread_that_would_store_several_rows(backend: CpuBackend) -> None:
    for function in (by_strides, by_strides_of_products, by_a_while):
        error = refusal(function, 4, 8)
        assert "32 threads along x would store 37 rows of result" in error.reason
        assert "start it with 5 blocks" in error.instead
    bound: Binding = kernel(by_strides).bind(out(37, np.int64), np.zeros(37, np.int64))
    assert bound.launch.threads >= 37  # left out, the geometry covers the output


def test_tiles_of_another_size_than_blocks(backend: CpuBackend) -> None:
    for function in (by_tiles, by_tiles_and_names):
        error = refusal(function, 3, 16)
        assert "blocks of 8 threads along x, not of 16" in error.reason
        assert "8 threads a block" in error.instead
