"""Of several ways to say a thing one is left in the text; kernels of numba.cuda.jit are taken as they are; and what is
refused says what to write in its place."""

# ruff: noqa: T201 - what is refused

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import cuda
from numba.cuda.random import xoroshiro128p_uniform_float32

from p2pcompute.errors import KernelError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.kernel import kernel, out

from .test_tutorials import run, same


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend()


@cuda.jit(device=True)
def twice(value):
    return 2 * value


@cuda.jit
def tutorial(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = twice(a[i]) + b[i]


def test_a_kernel_that_numba_has_decorated(backend: CpuBackend) -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 100), dtype=np.float32)
    taken = kernel(tutorial)
    assert taken.name == "tutorial"
    same(run(backend, taken.bind(a, b, out(100, np.float32))), 2 * a + b)


def spelled(result, x, y):
    i = cuda.grid(1)
    total = 0.0
    for step in (4, 2, -1):
        if step == 2:
            continue
        total += x[i][step]
        last = step
    for w in [0.5, 0.25]:
        total += w * x[i, 0]
    total += pow(x[i, 1], 2) + np.abs(y[i]) + round(x[i, 2]) + round(y[i]) + last
    result[i][0] = total


def plain(result, x, y):
    i = cuda.grid(1)
    total = 0.0
    for step_ in range(3):
        step = 4 if step_ == 0 else 2 if step_ == 1 else -1
        if step == 2:
            continue
        total += x[i, step]
        last = step
    for w_ in range(2):
        w = 0.5 if w_ == 0 else 0.25
        total += w * x[i, 0]
    total += x[i, 1] ** 2 + abs(y[i]) + round(x[i, 2]) + round(y[i]) + last
    result[i, 0] = total


def test_ways_to_say_a_thing(backend: CpuBackend) -> None:
    x, y = np.random.default_rng(2).standard_normal((30, 5)) * 3, np.arange(-15, 15)
    x[:4, 2] = [0.5, 1.5, -0.5, -2.5]  # to the even one
    one, other = kernel(spelled).source, kernel(plain).source
    assert one.text.replace("spelled", "plain") == other.text
    admit(one)
    due = x[:, 4] + 0.5 * x[:, 0] + 0.25 * x[:, 0] + (x[:, 1] ** 2 + np.abs(y) + np.rint(x[:, 2]) + y + -1)
    np.testing.assert_allclose(
        run(backend, kernel(spelled).bind(out((30, 1), np.float64), x, y))[:, 0], due, rtol=1e-12
    )


def shuffles(result, x):
    result[cuda.grid(1)] = cuda.shfl_down_sync(0xFFFFFFFF, x[0], 1)


def fuses(result, x):
    result[cuda.grid(1)] = cuda.fma(x[0], x[1], x[2])


def counts(result, x):
    result[cuda.grid(1)] = cuda.syncthreads_count(x[0] > 0)


def waits_for_all(result, x):
    cuda.threadfence()
    result[cuda.grid(1)] = x[0]


def complex_number(result, x):
    z = complex(x[0], x[1])
    result[cuda.grid(1)] = z


def prints(result, x):
    print(x[0])
    result[cuda.grid(1)] = x[0]


def keeps_a_state(result, states):
    result[cuda.grid(1)] = xoroshiro128p_uniform_float32(states, cuda.grid(1))


def adds_up(result, x):
    result[cuda.grid(1)] = sum(x)


def rounds_to_places(result, x):
    result[cuda.grid(1)] = round(x[0], 2)


def loops_over_an_array(result, x):
    total = 0
    for value in x:
        total += value
    result[cuda.grid(1)] = total


def loops_over_variables(result, x):
    total = 0
    for value in (total, 2):
        total += value
    result[cuda.grid(1)] = total


def clips(result, x):
    result[cuda.grid(1)] = np.clip(x[0], 0, 1)


def turns_degrees(result, x):
    result[cuda.grid(1)] = math.radians(x[0])


def takes_a_logarithm_of_a_base(result, x):
    result[cuda.grid(1)] = math.log(x[0], 3)


def is_nobody(result, x):
    result[cuda.grid(1)] = 1 if x[0] is None else 0


def raises(result, x):
    if x[0] < 0:
        raise ValueError
    result[cuda.grid(1)] = x[0]


def has_half_of_a_place(result, x):
    result[cuda.grid(1)] = cuda.threadIdx


def asks_the_device_for_a_root(result, x):
    result[cuda.grid(1)] = cuda.rsqrt(x[0]) + cuda.cbrt(x[0])


REMEDIES: list[tuple[Callable[..., Any], str]] = [
    (shuffles, "cuda.shared.array"),
    (fuses, "a * b + c"),
    (counts, "cuda.atomic.add"),
    (waits_for_all, "start another kernel"),
    (complex_number, "two variables"),
    (prints, "into an output"),
    (keeps_a_state, "p2pcompute.random.uniform"),
    (adds_up, "for loop over range"),
    (rounds_to_places, "np.rint(a * 100) / 100"),
    (clips, "min(max(a, low), high)"),
    (turns_degrees, "a * 0.017453292519943295"),
    (takes_a_logarithm_of_a_base, "math.log2(a)"),
    (is_nobody, "== and <"),
    (raises, "a flag in an output"),
    (has_half_of_a_place, "cuda.threadIdx.x"),
    (asks_the_device_for_a_root, "1 / math.sqrt(a)"),
    (loops_over_an_array, "for k in range(n)"),
    (loops_over_variables, "for k in range(n)"),
]


@pytest.mark.parametrize(("function", "remedy"), REMEDIES, ids=[function.__name__ for function, _ in REMEDIES])
def test_what_to_write_instead(function: Callable[..., Any], remedy: str) -> None:
    with pytest.raises(KernelError) as caught:
        kernel(function)
    assert caught.value.line
    assert remedy in caught.value.instead
