"""Integer atomics on an output of all blocks: what is refused, with the author's line and what to write; and that a
provider knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._guard import admit
from p2pcompute.execution._language_capture import source_digest

X = np.arange(16)


def stored_too(h, x):
    i = cuda.grid(1)
    h[i] = 0
    cuda.atomic.add(h, x[i], 1)


def loaded_too(h, x):
    i = cuda.grid(1)
    cuda.atomic.add(h, x[i], 1)
    if h[x[i]] > 3:
        cuda.atomic.add(h, 0, 1)


def result_used(h, x):
    cuda.atomic.add(h, 0, 1)
    old = cuda.atomic.add(h, 1, 1)
    cuda.atomic.add(h, old, 1)


def two_operations(h, x):
    cuda.atomic.add(h, 0, 1)
    cuda.atomic.max(h, 1, 1)


def unlike_indices(h, x):
    cuda.atomic.add(h, (0, 1), 1)
    cuda.atomic.add(h, 0, 1)


def five_axes(h, x):
    cuda.atomic.add(h, (0, 1, 2, 3, 4), 1)


def no_axes(h, x):
    cuda.atomic.add(h, (), 1)


def returns_a_value(h, x):
    cuda.atomic.add(h, 0, 1)
    return 5


def another_length(h, x):
    cuda.atomic.add(h, (0, 1), h.shape[2])


@p2p.device
def first(a):
    return a[0]


def passed(h, x):
    cuda.atomic.add(h, first(h), 1)


def assigned(h, x):
    cuda.atomic.add(h, 0, 1)
    h = x


def returns_in_a_loop(h, x):
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        if x[i] < 0:
            return
        cuda.atomic.add(h, x[i], 1)


def returns_within(h, x):
    i = cuda.grid(1)
    if i < x.size:
        if x[i] < 0:
            return
        cuda.atomic.add(h, x[i], 1)
    cuda.atomic.add(h, 0, 1)


def leaves_its_own_barrier(h, x):
    i = cuda.grid(1)
    if x[i] < 0:
        return
    cuda.syncthreads()
    cuda.atomic.add(h, x[i], 1)


def another_number_of_axes(h, out, x):
    i, j = cuda.grid(2)
    out[i] = x[j]
    cuda.atomic.add(h, x[i], 1)


def another_axis_of_data(h, x):
    cuda.atomic.add(h, x[h.shape[x[0]]], 1)


def no_such_axis_from_the_end(h, x):
    cuda.atomic.add(h, 0, h.shape[-2])


@p2p.device
def bump(h, i):
    cuda.atomic.add(h, i, 1)
    return i


def in_a_device_function(h, x):
    h[cuda.grid(1)] = bump(h, x[0])


@p2p.device
def lock(mutex):
    while cuda.atomic.compare_and_swap(mutex, 0, 1) != 0:
        pass
    return 0


def locks(h, mutex):
    taken = lock(mutex)
    h[cuda.grid(1)] = taken


def subtracts(h, x):
    cuda.atomic.sub(h, 0, x[0] + 1)


def compares_and_swaps(h, x):
    cuda.atomic.add(h, 0, 1)
    cuda.atomic.cas(h, 0, 1, 2)


def wraps_around(h, x):
    cuda.atomic.inc(h, 0, 9)


REFUSED: dict[Callable[..., None], tuple[int, str, str]] = {
    stored_too: (2, "stored into here", "begins as what changes nothing"),
    loaded_too: (3, "loaded here, where other blocks", "in another kernel, which is passed what this one gives for h"),
    result_used: (2, "depends on the order of threads", "as a statement"),
    two_operations: (2, "by cuda.atomic.max and by cuda.atomic.add", "an array of its own"),
    unlike_indices: (2, "1 indices here and 2 in line", "cuda.atomic.add(a, (i, j), 1)"),
    five_axes: (1, "has 5 indices", "arrays have 1 to 4 axes"),
    no_axes: (1, "has 0 indices", "arrays have 1 to 4 axes"),
    returns_a_value: (2, "a kernel returns nothing", "store into an output"),
    another_length: (1, "no axis 2", "an axis for each number of its index"),
    passed: (1, "used otherwise here", "before .shape and .size, and in len()"),
    assigned: (2, "used otherwise here", "stands in atomic operations"),
    returns_in_a_loop: (3, "returns in a loop", "by break"),
    returns_within: (4, "a thread returns here", "put what follows under an if"),
    leaves_its_own_barrier: (4, "threads of a block part", "take the barrier out of the if"),
    another_number_of_axes: (2, "different numbers of grid axes", "index each output by all axes"),
    another_axis_of_data: (1, "the index of shape is a literal axis", "write h.shape[0]"),
    no_such_axis_from_the_end: (1, "no axis -2", "an axis for each number of its index"),
    in_a_device_function: (-4, "cuda.atomic.add in a device function", "in the kernel's own text: there it is known"),
    locks: (-5, "cuda.atomic.compare_and_swap is not in", "no thread waits for another or sees whose turn it was"),
    subtracts: (1, "cuda.atomic.sub is not in", "write cuda.atomic.add(h, 0, -(x[0] + 1))"),
    compares_and_swaps: (2, "cuda.atomic.cas is not in", "no thread waits for another"),
    wraps_around: (1, "cuda.atomic.inc is not in", "there are add, max"),
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda function: function.__name__)
def test_it_is_refused_where_it_is_decorated_at_its_line(function: Callable[..., None]) -> None:
    line, reason, instead = REFUSED[function]
    with pytest.raises(KernelError) as caught:
        p2p.kernel(function)
    assert reason in caught.value.reason
    assert instead in caught.value.instead
    assert caught.value.line == function.__code__.co_firstlineno + line
    assert caught.value.filename == __file__


@p2p.kernel
def counts(h, x):
    i = cuda.grid(1)
    if i < x.size:
        cuda.atomic.add(h, x[i], 1)


@p2p.kernel
def greatest(h, x):
    own = cuda.shared.array(1000, np.int32)
    own[cuda.threadIdx.x] = x[cuda.grid(1)]
    cuda.syncthreads()
    cuda.atomic.max(h, (own[0], 0), own[cuda.threadIdx.x])


def refused(kernel: Any, *args: Any) -> KernelTypeError:
    with pytest.raises(KernelTypeError) as caught:
        kernel[2, 8].bind(*args)
    assert caught.value.filename == __file__
    return caught.value


@pytest.mark.parametrize(
    ("passed", "reason", "instead"),
    [
        (np.zeros(10, np.uint32), "inputs stay as they are", 'pass p2pcompute.reduce("sum", 10, np.uint32) for h'),
        (X, "inputs stay as they are", '"sum", 16, np.int64) for h, and behind the call take np.add(what it had, h)'),
        (p2p.inout(np.zeros(10, np.int32)), "any thread changes any element of h", '"sum", 10, np.int32) for h'),
        (p2p.inout(X), "and p2pcompute.inout is for", "for h, and behind the call take np.add(what it had, h)"),
        (p2p.inout(p2p.split(X)), "and p2pcompute.inout is for", '"sum", 16, np.int64) for h, and behind the call'),
        (p2p.split(np.zeros(10, np.int16)), "inputs stay", 'pass p2pcompute.reduce("sum", 10, np.int64)'),
        (
            np.ones((2, 3)),
            "of float64, and what cuda.atomic.add makes of floats",
            "count in integers: pass p2pcompute.re",
        ),
        (
            p2p.inout(X / 2),
            "of float64, and what cuda.atomic.add makes of floats",
            "count in integers: pass p2pcompute.",
        ),
        (3, "inputs stay as they are", 'pass p2pcompute.reduce("sum", shape, np.int64)'),
        (p2p.out(10, np.float64), "of floats depends on the order", "count in integers: pass p2pcompute.reduce"),
        (p2p.out(10, np.int16), "and is of int16", "int32, uint32, int64, uint64"),
        (p2p.out(10, np.bool_), "and is of bool", "int32, uint32, int64, uint64"),
        (p2p.reduce("xor", 10, np.int64), "combined by xor", 'pass p2pcompute.reduce("sum", 10, np.int64)'),
        (p2p.out((5, 2), np.int64), "an index of 1 number", "a length from 1 for each number"),
        (p2p.out(0, np.int64), "has the shape (0,)", "a length from 1 for each number"),
        (p2p.out(6_145, np.int64), "of 49160 bytes", "6144 elements at most and its range of indices"),
        (p2p.out(2**40, np.uint32), "of 4398046511104 bytes", "cuda.atomic.add(h, i - first, value)"),
    ],
    ids=str,
)
def test_what_is_passed_for_it_is_refused(passed: Any, reason: str, instead: str) -> None:
    error = refused(counts, passed, X)
    assert reason in error.reason
    assert instead in error.instead
    assert error.line == counts.function.__code__.co_firstlineno + 4


def test_zeros_are_no_beginning_of_a_greatest_value() -> None:
    error = refused(greatest, p2p.out((9, 1), np.int32), X)
    assert "begins as zeros" in error.reason
    assert 'pass p2pcompute.reduce("max", (9, 1), np.int32): elements that nobody' in error.instead
    assert "come back as -2147483648" in error.instead
    error = refused(greatest, np.zeros((9, 1), np.int32), X)
    assert "take np.maximum(what it had, h)" in error.instead
    least = np.full((9, 1), -(2**31), np.int32)
    assert refused(greatest, p2p.inout(least), X).instead == 'pass p2pcompute.reduce("max", (9, 1), np.int32) for h'


def test_its_own_shared_arrays_count() -> None:
    fits = 48 * 1024 // 4 - 1000
    assert greatest[2, 8].bind(p2p.reduce("max", (fits, 1), np.int32), X).specs[0].shape == (2, fits, 1)
    error = refused(greatest, p2p.reduce("max", (fits + 1, 1), np.int32), X)
    assert f"{fits * 4} are left for it" in error.reason
    assert f"each with {fits} elements at most" in error.instead


def test_its_geometry_is_given() -> None:
    with pytest.raises(KernelTypeError, match=r"start counts\[blocks, threads\]"):
        counts.bind(p2p.out(9, np.int32), X)
    with pytest.raises(KernelTypeError, match="indexes 1 grid axes and is started on 2"):
        counts[(2, 2), (4, 4)].bind(p2p.out(9, np.int32), X)


def test_a_float_is_no_value_of_it() -> None:
    error = refused(greatest_of_floats, p2p.reduce("max", 1, np.int64), X / 2)
    assert "write int(x[cuda.grid(1)]), which drops the fraction; for a fixed point" in error.instead
    assert "int(x[cuda.grid(1)] * 65536), divided by 65536 behind the call" in error.instead


@p2p.kernel
def greatest_of_floats(h, x):
    cuda.atomic.max(h, 0, x[cuda.grid(1)])


# What others see


def test_the_text_as_its_author_wrote_it_is_refused_by_whoever_is_sent_it() -> None:
    raw = counts.source
    assert "cuda.atomic.add(h, x[i], 1)" in raw.text
    with pytest.raises(KernelError, match="no shared array"):
        admit(raw)
    binding = counts[2, 8].bind(p2p.out(9, np.int64), X)
    assert binding.source.digest != raw.digest
    with CpuBackend() as backend, pytest.raises(KernelError, match="no shared array"):
        backend.compile(raw, binding.launch, binding.specs)
    assert admit(binding.source).entry.params == ("h", "x")


@pytest.mark.parametrize(
    "line",
    [
        "cuda.atomic.add(h, i, 1)",  # a parameter that is passed an output of threads, of blocks, or an input
        "h[cuda.blockIdx.x, 0] = 1\n    cuda.atomic.add(h, (cuda.blockIdx.x, 0), 1)",
        "h[i] = 1\n    cuda.atomic.add(x, i, 1)",
        "part = cuda.shared.array(8, np.int64)\n    h[i] = 1\n    cuda.atomic.add(h, i, 1)",
        "part = cuda.local.array(8, np.int64)\n    h[i] = 1\n    cuda.atomic.add(part, i, 1)",
    ],
)
def test_no_text_has_an_atomic_operation_outside_of_shared_memory(line: str) -> None:
    text = f"def k(h, x):\n    i = cuda.grid(1)\n    {line}\n"
    stranger = KernelSource(text=text, entry="k", digest=source_digest("k", text))
    launch = Launch(grid=(2, 1, 1), block=(8, 1, 1), dims=1)
    specs = [OutputSpec(dtype="int64", shape=(2, 8)), OutputSpec(dtype="int64", shape=(16,))]
    with CpuBackend() as backend, pytest.raises(KernelError, match="no shared array"):
        backend.compile(stranger, launch, specs)
