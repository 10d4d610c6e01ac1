"""What a refusal of a store in place, or of an atomic operation on an output, says to write: those lines, in a kernel
that is admitted and gives what the tutorial's gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._cpu import CpuBackend

from .test_cpu import once
from .test_reduce import everywhere

X = np.arange(1000, dtype=np.float32) % 61


@p2p.kernel
def increment_by_one(an_array: Any) -> None:
    pos = cuda.grid(1)
    if pos < an_array.size:
        an_array[pos] += 1


def test_a_sum_in_place() -> None:
    with pytest.raises(KernelTypeError) as refused:
        increment_by_one[8, 128].bind(X)
    assert "pass p2pcompute.inout(an_array): the changed array comes back" in str(refused.value)
    assert refused.value.line == 26  # of the store
    (result,) = once(CpuBackend(), increment_by_one[8, 128].bind(p2p.inout(X)))
    assert np.array_equal(result, X + 1)


@p2p.kernel
def scale(a: Any, result: Any) -> None:
    x, y = cuda.grid(2)
    if x < a.shape[0] and y < a.shape[1]:
        result[x, y] = 0
        a[x, y] *= a[x, y] - 1
        a[x, y] = a[x, y] / 2


def test_several_stores() -> None:
    a = np.arange(32.0).reshape(8, 4)
    with pytest.raises(KernelTypeError, match=r"pass p2pcompute\.inout\(a\)") as refused:
        scale[(1, 1), (8, 8)].bind(a, p2p.out((8, 4), np.float64))
    assert refused.value.line == scale.function.__code__.co_firstlineno + 5
    changed, _ = once(CpuBackend(), scale[(1, 1), (8, 8)].bind(p2p.inout(a), p2p.out((8, 4), np.float64)))
    assert np.array_equal(changed, a * (a - 1) / 2)


def test_an_array_for_what_is_only_stored() -> None:
    with pytest.raises(KernelTypeError, match=r"or p2pcompute\.out\(shape, dtype\) for what is only stored"):
        scale[(1, 1), (8, 8)].bind(p2p.inout(np.zeros((8, 4))), np.zeros((8, 4)))


@p2p.kernel
def shifted(a: Any, given: Any) -> None:
    i = cuda.grid(1)
    if 0 < i < a.size:
        a[i] += given[i - 1]


def test_what_was_at_another_thread() -> None:
    with pytest.raises(KernelError) as refused:

        @p2p.kernel
        def tutorial(a: Any) -> None:
            i = cuda.grid(1)
            if 0 < i < a.size:
                a[i] += a[i - 1]

    assert "one more parameter, for which the array is passed as an input" in str(refused.value)
    assert "load it from there, given[i - 1]" in str(refused.value)
    (result,) = once(CpuBackend(), shifted[8, 128].bind(p2p.inout(X), X))
    assert np.array_equal(result, X + np.concatenate([X[:1] * 0, X[:-1]]))


@p2p.kernel
def weights(result: Any, places: Any, weight: Any) -> None:
    i = cuda.grid(1)
    cuda.atomic.add(result, places[i], weight[i])


@p2p.kernel
def weights_of_a_fixed_point(result: Any, places: Any, weight: Any) -> None:
    i = cuda.grid(1)
    cuda.atomic.add(result, places[i], int(weight[i] * 65536))


def test_sums_of_floats_at_places_by_data() -> None:
    places, weight = np.arange(100) % 7, np.arange(100, dtype=np.float32) / 16
    with pytest.raises(KernelTypeError) as refused:
        weights[4, 25].bind(p2p.out(7, np.float32), places, weight)
    assert "cuda.atomic.add(result, places[i], int(weight[i] * 65536))" in str(refused.value)
    assert 'p2pcompute.reduce("sum", shape, np.int64) for result, and divide by 65536' in str(refused.value)
    assert refused.value.line == 86
    binding = weights_of_a_fixed_point[4, 25].bind(p2p.reduce("sum", 7, np.int64), places, weight)
    [found] = everywhere(CpuBackend(), binding)
    assert np.array_equal(found / 65536, np.bincount(places, weight))


@p2p.kernel
def largest(result: Any, values: Any) -> None:
    i = cuda.grid(1)
    result[i] = values[i]


@p2p.kernel
def largest_at_once(result: Any, values: Any) -> None:
    cuda.atomic.max(result, 0, values[cuda.grid(1)])


def test_one_float_of_all_threads() -> None:
    with pytest.raises(KernelTypeError) as refused:
        largest_at_once[8, 125].bind(p2p.reduce("max", 1, np.float32), X)
    assert "result[i] = values[cuda.grid(1)] with i = cuda.grid(1)" in str(refused.value)
    assert 'p2pcompute.reduce("max", n, dtype) for result, n being how many values there are' in str(refused.value)
    below = X - 100  # threads behind the last value load zeros, which are none of them
    (result,) = everywhere(CpuBackend(), largest[8, 128].bind(p2p.reduce("max", 1000, np.float32), below))
    assert result == below.max()
