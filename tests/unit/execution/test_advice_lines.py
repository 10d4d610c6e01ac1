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
    assert refused.value.line == 25  # of the store
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
def histogram(x: Any, xmin: Any, xmax: Any, histogram_out: Any) -> None:
    part = cuda.shared.array(10, np.int64)
    bin_width = (xmax - xmin) / 10
    start = cuda.grid(1)
    stride = cuda.gridsize(1)
    for i in range(start, x.shape[0], stride):
        bin_number = np.int32((x[i] - xmin) / bin_width)
        if bin_number >= 0 and bin_number < 10:
            cuda.atomic.add(part, bin_number, 1)
    cuda.syncthreads()
    for k in range(cuda.threadIdx.x, 10, cuda.blockDim.x):
        histogram_out[cuda.blockIdx.x, k] = part[k]


def test_a_histogram() -> None:
    with pytest.raises(KernelError) as refused:

        @p2p.kernel
        def tutorial(x: Any, xmin: Any, xmax: Any, histogram_out: Any) -> None:
            bin_width = (xmax - xmin) / histogram_out.shape[0]
            for i in range(cuda.grid(1), x.shape[0], cuda.gridsize(1)):
                bin_number = np.int32((x[i] - xmin) / bin_width)
                if bin_number >= 0 and bin_number < histogram_out.shape[0]:
                    cuda.atomic.add(histogram_out, bin_number, 1)

    for line in (
        "part = cuda.shared.array(n, np.int64) at the top",
        "cuda.atomic.add(part, bin_number, 1) here",
        "cuda.syncthreads() and for k in range(cuda.threadIdx.x, n, cuda.blockDim.x): ",
        "histogram_out[cuda.blockIdx.x, k] = part[k]",
        "p2pcompute.out((blocks, n), np.int64)",
    ):
        assert line in str(refused.value)
    binding = histogram[4, 64].bind(X, np.float32(0), np.float32(64), p2p.out((4, 10), np.int64))
    parts = np.zeros((4, 10), np.int64)
    CpuBackend().compile(binding.source, binding.launch, binding.specs).run_blocks(0, 4, binding.values, [parts])
    assert np.array_equal(parts.sum(axis=0), np.histogram(X, 10, (0, 64))[0])


@p2p.kernel
def largest(result: Any, values: Any) -> None:
    i = cuda.grid(1)
    result[i] = values[i]


def test_one_value_of_all_threads() -> None:
    with pytest.raises(KernelError) as refused:

        @p2p.kernel
        def tutorial(result: Any, values: Any) -> None:
            cuda.atomic.max(result, 0, values[cuda.grid(1)])

    assert "result[i] = values[cuda.grid(1)] with i = cuda.grid(1)" in str(refused.value)
    assert 'p2pcompute.reduce("max", threads, dtype) for result' in str(refused.value)
    binding = largest[8, 125].bind(p2p.reduce("max", 1000, np.float32), X)  # which is combined in tests of its own
    assert binding.layout.outputs[0].reduce == "max"
