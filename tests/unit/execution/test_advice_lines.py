"""What a refusal of a store in place, or of an atomic operation on an output, says to write: those lines, in a kernel
that is admitted and gives what the tutorial's gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._cpu import CpuBackend

from .test_cpu import once
from .test_reduce import everywhere

X = np.arange(1000, dtype=np.float32) % 61


@p2p.kernel
def increment_by_one(an_array: Any) -> None:
    pos = cuda.grid(1)
    if pos < an_array.size:
        an_array[pos] += 1


@p2p.kernel
def incremented_by_one(an_array: Any, result: Any) -> None:
    pos = cuda.grid(1)
    if pos < an_array.size:
        result[pos] = an_array[pos] + 1


def test_a_sum_in_place() -> None:
    with pytest.raises(KernelTypeError) as refused:
        increment_by_one[8, 128].bind(X)
    assert "write result[pos] = an_array[pos] + 1 in place of an_array[pos] += 1, with one more" in str(refused.value)
    assert "for which p2pcompute.out((1000,), np.float32) is passed" in str(refused.value)
    assert refused.value.line == 26  # of the store
    (result,) = once(CpuBackend(), incremented_by_one[8, 128].bind(X, p2p.out((1000,), np.float32)))
    assert np.array_equal(result, X + 1)


@p2p.kernel
def scale(a: Any, result: Any) -> None:
    x, y = cuda.grid(2)
    if x < a.shape[0] and y < a.shape[1]:
        result[x, y] = 0
        a[x, y] *= a[x, y] - 1
        a[x, y] = a[x, y] / 2


def test_several_stores_and_a_name_that_is_taken() -> None:
    with pytest.raises(KernelTypeError) as refused:
        scale[(1, 1), (8, 8)].bind(np.zeros((8, 4)), p2p.out((8, 4), np.float64))
    said = str(refused.value)
    assert "write changed[x, y] = a[x, y] * (a[x, y] - 1) in place of a[x, y] *= a[x, y] - 1, and so at its" in said
    assert "p2pcompute.out((8, 4), np.float64)" in said


def test_what_is_too_long_to_be_shown_is_said_in_general() -> None:
    @p2p.kernel
    def long(a: Any) -> None:
        i = cuda.grid(1)
        if i < a.size:
            a[i] = a[i] + 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15 + 16 + 17 + 18 + 19 + 20 + 21

    with pytest.raises(KernelTypeError, match="load what is changed in place from an input of another name"):
        long[1, 64].bind(X)


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
    assert refused.value.line == 77
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
    assert 'p2pcompute.reduce("max", threads, dtype) for result' in str(refused.value)
    binding = largest[8, 125].bind(p2p.reduce("max", 1000, np.float32), X)  # which is combined in tests of its own
    assert binding.layout.outputs[0].reduce == "max"
