"""Arrays that a kernel declares, in device functions: constant and shared ones are read, local ones stored too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import device, kernel, out

from .test_blocks import everywhere

TABLE = np.array([[3, 1, 4], [1, 5, 9]], np.int16)
WEIGHTS = np.array([0.5, -2.0, 0.25])


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@device
def at(values, i, j):
    return values[i, j] + 1000 * values.size + 100 * values.ndim + 10 * values.shape[1]


@device
def total(values):
    result = 0.0
    for k in range(len(values)):
        result += values[k]
    return result


@device
def push(stack, top, value):
    """A procedure: it is called for what it stores."""
    if value < 0:
        return
    stack[top, 0] = value
    stack[top, 1] = -value


@device
def pushed(stack, top, value):
    push(stack, top, value)
    stack[top, 0] += 1
    return top + 1


@kernel
def alone(result, sums, x):
    """Constant and local arrays of a thread by itself."""
    table = cuda.const.array_like(TABLE)
    weights = cuda.const.array_like(WEIGHTS)
    stack = cuda.local.array((4, 2), np.int32)
    few = cuda.local.array(3, np.float32)
    i = cuda.grid(1)
    top = 0
    for k in range(3):
        top = pushed(stack, top, x[i] + k)
        few[k] = x[i]
    push(stack, 9, 7)  # out of range: dropped
    push(stack, 3, 5)
    result[i, 0] = at(table, i, 2)  # zero out of range
    result[i, 1] = at(stack, 1, 1)
    for k in range(4):
        result[i, 2 + k] = stack[k, 0] * 100 + stack[k, 1]
    sums[i] = total(weights) + total(few)


def alone_as_in_python(x: Any) -> tuple[Any, Any]:
    result, sums = np.zeros((len(x), 6), np.int64), np.zeros(len(x))
    for i, value in enumerate(x.tolist()):
        stack = [[0, 0] for _ in range(4)]
        for k in range(3):
            if value + k >= 0:
                stack[k] = [value + k, -value - k]
            stack[k][0] += 1
        stack[3] = [5, -5]
        result[i, 0] = (TABLE[i, 2] if i < 2 else 0) + 6000 + 200 + 30
        result[i, 1] = stack[1][1] + 8000 + 200 + 20
        result[i, 2:] = [one * 100 + other for one, other in stack]
        sums[i] = np.float64(-1.25) + np.float32(3 * value)
    return result, sums


def test_a_thread_by_itself(backend: CpuBackend) -> None:
    x = np.arange(-4, 6)
    binding = alone[3, 4].bind(out((10, 6), np.int64), out(10, np.float64), x)
    for found, due in zip(everywhere(backend, binding), alone_as_in_python(x), strict=True):
        assert np.array_equal(found, due)


@device
def weighted(tile, weights, row):
    result = 0
    for k in range(tile.shape[1]):
        result += tile[row, k] * weights[k]
    return result


@kernel
def together(result, x):
    """Shared and local arrays of threads that lie behind each other on a processor."""
    tile = cuda.shared.array((8, 3), np.int64)
    stack = cuda.local.array((4, 2), np.int32)
    table = cuda.const.array_like(TABLE)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    push(stack, 0, tx)
    for k in range(3):
        tile[tx, k] = x[i] * (k + 1)
    cuda.syncthreads()
    top = pushed(stack, 1, tx)
    result[i, 0] = at(tile, 7 - tx, 1) + table[0, 0]
    result[i, 1] = top
    cuda.syncthreads()
    result[i, 2] = stack[0, 0] * 1000 + stack[1, 0] + at(stack, 1, 1)


def test_threads_that_work_together(backend: CpuBackend) -> None:
    x = np.random.default_rng(1).integers(-50, 50, 24)
    (found,) = everywhere(backend, together[3, 8].bind(out((24, 3), np.int64), x))
    tx = np.arange(24) % 8
    assert np.array_equal(found[:, 0], x.reshape(3, 8)[:, ::-1].ravel() * 2 + 24000 + 200 + 30 + 3)
    assert np.array_equal(found[:, 1], np.full(24, 2))
    assert np.array_equal(found[:, 2], tx * 1000 + tx + 1 - tx + 8000 + 200 + 20)


# What is refused


@device
def reset(values):
    values[0] = 0


@device
def first(values):
    values[0] += 1
    return values[0]


@device
def given(value):
    return value


@device
def sometimes(values, k):
    values[0] = k
    if k:
        return 1
    return  # noqa: RET502 - what is refused


def stores_into_a_constant(result, x):
    table = cuda.const.array_like(WEIGHTS)
    reset(table)
    result[cuda.grid(1)] = table[0]


def stores_into_a_shared_array(result, x):
    shared = cuda.shared.array(8, np.int64)
    reset(shared)
    result[cuda.grid(1)] = 1


def stores_into_an_input(result, x):
    reset(x)
    result[cuda.grid(1)] = 1


def stores_into_an_output(result, x):
    reset(result)
    result[cuda.grid(1)] = 1


def stores_within_a_sum(result, x):
    mine = cuda.local.array(8, np.int64)
    v = first(mine) + first(mine)
    result[cuda.grid(1)] = v


def stores_within_a_test(result, x):
    mine = cuda.local.array(8, np.int64)
    if first(mine):
        result[cuda.grid(1)] = 1


def stores_where_it_is_stored(result, x):
    mine = cuda.local.array(8, np.int64)
    mine[0] = first(mine)
    result[cuda.grid(1)] = 1


def takes_nothing_for_a_value(result, x):
    mine = cuda.local.array(8, np.int64)
    v = reset(mine)
    result[cuda.grid(1)] = v


def calls_for_nothing(result, x):
    given(x[0])
    result[cuda.grid(1)] = 1


def returns_now_and_then(result, x):
    mine = cuda.local.array(8, np.int64)
    v = sometimes(mine, x[0])
    result[cuda.grid(1)] = v


def passes_a_scalar(result, x):
    reset(x[0])
    result[cuda.grid(1)] = 1


def parts_by_a_local_array(result, x):
    mine = cuda.local.array(8, np.int64)
    v = first(mine)
    if v:
        cuda.syncthreads()
    result[cuda.grid(1)] = 1


REFUSED: list[tuple[Callable[..., Any], str]] = [
    (stores_into_a_constant, "reset stores into the const array table"),
    (stores_into_a_shared_array, "reset stores into the shared array shared"),
    (stores_into_an_input, "reset stores into the argument x"),
    (stores_into_an_output, "reset stores into the argument result"),
    (stores_within_a_sum, "within an expression"),
    (stores_within_a_test, "within an expression"),
    (stores_where_it_is_stored, "within an expression"),
    (takes_nothing_for_a_value, "reset gives no value"),
    (calls_for_nothing, "what given gives is not used"),
    (returns_now_and_then, "may end without a return"),
    (passes_a_scalar, "takes an array here"),
    (parts_by_a_local_array, "threads of a block part"),
]


@pytest.mark.parametrize(("function", "reason"), REFUSED, ids=[function.__name__ for function, _ in REFUSED])
def test_what_device_functions_may_not_do_with_arrays(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(KernelError, match=reason) as caught:
        kernel(function)
    assert caught.value.line
    assert caught.value.instead


def test_a_function_loads_from_a_shared_array_where_threads_store(backend: CpuBackend) -> None:
    """What it loads is not known, so a barrier has to lie between, on the way around a loop too."""

    def near(result, x):
        sm = cuda.shared.array(8, np.float64)
        sm[cuda.threadIdx.x] = x[cuda.grid(1)]
        result[cuda.grid(1)] = total(sm)

    def around(result, x):
        sm = cuda.shared.array(8, np.float64)
        for _ in range(3):
            sm[cuda.threadIdx.x] = x[cuda.grid(1)]
            cuda.syncthreads()
            result[cuda.grid(1)] = total(sm)

    def counted(result, x):
        sm = cuda.shared.array(8, np.int64)
        cuda.atomic.add(sm, 0, 1)
        result[cuda.grid(1)] = total(sm)

    for function in (near, around, counted):
        with pytest.raises(KernelTypeError, match="barrier between") as caught:
            kernel(function)[2, 8].bind(out(16, np.float64), np.zeros(16))
        assert caught.value.line
        assert "cuda.syncthreads()" in caught.value.instead
