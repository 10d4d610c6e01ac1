"""Outputs that are combined: the tree of docs/strict.md, section 13, whoever runs which part of the launch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._ipc import FrameError, decode_arguments, encode_arguments
from p2pcompute.execution._operations import OPERATIONS, can_reduce, fold, identity
from p2pcompute.kernel import Binding, kernel, out, reduce
from p2pcompute_protocols import work
from p2pcompute_protocols.work import DTYPES

Array = np.ndarray[Any, Any]
DEFINED = [(name, dtype) for name in OPERATIONS for dtype in DTYPES if can_reduce(name, dtype)]


@pytest.fixture(scope="module", params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Iterator[CpuBackend]:
    with CpuBackend(request.param) as made:
        yield made


def results(backend: CpuBackend, binding: Binding, size: int, *, by_items: bool = False) -> list[Any]:
    """What the call gives where chunks have `size` blocks, or each block is run by its ID."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    layout, placed = binding.layout, binding.empty_outputs()
    for first in reversed(range(0, binding.launch.blocks, size)):
        blocks = min(size, binding.launch.blocks - first)
        rows = [
            np.zeros((blocks * layout.items_per_block, *row), spec.dtype)
            for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
        ]
        if by_items:
            compiled.run_threads(np.arange(first, first + blocks), binding.values, rows)
        else:
            compiled.run_blocks(first, blocks, binding.values, rows)
        for place, (part, target) in enumerate(zip(rows, placed, strict=True)):
            layout.scatter(place, first, blocks, part, target)
    return binding.results(placed)


def everywhere(backend: CpuBackend, binding: Binding) -> list[Any]:
    whole = results(backend, binding, binding.launch.blocks)
    for other in (
        results(backend, binding, 3),
        results(backend, binding, 1),
        results(backend, binding, 4, by_items=True),
    ):
        for one, two in zip(whole, other, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    return whole


def tree(operation: str, values: list[Any], dtype: str) -> Any:
    """Section 13 by hand, one pair at a time."""
    kind = np.dtype(dtype).type

    def pair(a: Any, b: Any) -> Any:
        with np.errstate(all="ignore"):
            if operation in ("min", "max"):
                if a != a or b != b:
                    return kind(math.nan)
                return (min(a, b)) if operation == "min" else (max(a, b))
            return {
                "sum": lambda: a + b,
                "prod": lambda: a * b,
                "and": lambda: a & b,
                "or": lambda: a | b,
                "xor": lambda: a ^ b,
            }[operation]()

    while len(values) > 1:
        half = -(-len(values) // 2)
        values = [pair(values[i], values[i + half]) if i + half < len(values) else values[i] for i in range(half)]
    return kind(math.nan) if values[0] != values[0] else values[0]


def by_hand(operation: str, values: Array, blocks: int, threads: int) -> Any:
    dtype = values.dtype.name
    padded = [*values, *[identity(operation, dtype)] * (blocks * threads - len(values))]
    partials = [tree(operation, padded[b * threads : (b + 1) * threads], dtype) for b in range(blocks)]
    return tree(operation, partials, dtype)


@kernel
def copied(acc, x):
    i = cuda.grid(1)
    if i < x.size:
        acc[i] = x[i]


@pytest.mark.parametrize(("operation", "dtype"), DEFINED)
def test_every_operation_follows_the_tree(backend: CpuBackend, operation: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    n = 1_000
    if dtype == "bool":
        x = rng.integers(0, 2, n).astype(bool)
    elif dtype.startswith("float"):
        x = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)).astype(dtype)
    else:
        x = rng.integers(0, 2**63, n, dtype=np.uint64).astype(dtype)
    for threads in (1, 48, 128):
        blocks = -(-n // threads)
        [got] = everywhere(backend, copied[blocks, threads].bind(reduce(operation, n, dtype), x))
        due = by_hand(operation, x, blocks, threads)
        assert got.dtype == np.dtype(dtype)
        assert got.tobytes() == due.tobytes()


def test_integers_come_to_what_numpy_gives(backend: CpuBackend) -> None:
    x = np.random.default_rng(1).integers(-(2**40), 2**40, 10_001)
    [total] = everywhere(backend, copied.bind(reduce("sum", x.shape, x.dtype), x))
    assert total == x.sum()
    [least] = everywhere(backend, copied.bind(reduce("min", x.shape, x.dtype), x))
    assert least == x.min()


@kernel
def moments(total, squares, each, x):
    i = cuda.grid(1)
    if i < x.shape[0]:
        for k in range(x.shape[1]):
            v = x[i, k]
            total[i, k] = v
            squares[i, k] = v * v
        each[i] = x[i, 0] * 2


def test_rows_and_other_outputs_beside_them(backend: CpuBackend) -> None:
    x = np.random.default_rng(2).integers(-1000, 1000, (777, 3)).astype(np.float64)
    total, squares, each = everywhere(
        backend,
        moments.bind(reduce("sum", x.shape, x.dtype), reduce("max", x.shape, x.dtype), out(len(x), x.dtype), x),
    )
    assert (total == x.sum(axis=0)).all()
    assert (squares == (x * x).max(axis=0)).all()
    assert (each == x[:, 0] * 2).all()


@kernel
def plane(acc, x):
    i, j = cuda.grid(2)
    if i < acc.shape[0] and j < acc.shape[1]:
        acc[i, j] = x[i, j]


def test_two_axes(backend: CpuBackend) -> None:
    x = np.random.default_rng(3).integers(0, 255, (50, 33)).astype(np.uint32)
    [total] = everywhere(backend, plane.bind(reduce("sum", x.shape, x.dtype), x))
    assert total == x.sum()


@kernel
def dot(partial, x, y):
    sm = cuda.shared.array(64, np.float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = x[i] * y[i]
    cuda.syncthreads()
    s = cuda.blockDim.x // 2
    while s > 0:
        if tx < s:
            sm[tx] += sm[tx + s]
        cuda.syncthreads()
        s //= 2
    if tx == 0:
        partial[cuda.blockIdx.x] = sm[0]


def test_an_output_by_blocks_is_combined_over_blocks(backend: CpuBackend) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.integers(-9, 9, (2, 1000)).astype(np.float32)
    [total] = everywhere(backend, dot[16, 64].bind(reduce("sum", 16, np.float32), x, y))
    assert total == (x * y).sum()


@kernel
def together(acc, x):
    sm = cuda.shared.array(32, np.int64)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = x[i]
    cuda.syncthreads()
    acc[i] = sm[31 - tx]


def test_threads_that_work_together_and_lie_beyond_the_output(backend: CpuBackend) -> None:
    x = np.random.default_rng(5).integers(1, 100, 70)
    [least] = everywhere(backend, together[3, 32].bind(reduce("min", 70, np.int64), x))
    padded = np.concatenate([x, np.zeros(26, np.int64)]).reshape(3, 32)[:, ::-1].ravel()
    assert least == padded[:70].min()  # threads from 70 on give the identity, which no minimum is


@kernel
def some(acc, x):
    i = cuda.grid(1)
    if i < x.size and x[i] > 0:
        acc[i] = x[i]


@pytest.mark.parametrize(("operation", "due"), [("sum", 0), ("prod", 1), ("min", np.inf), ("max", -np.inf)])
def test_threads_that_store_nothing_give_the_identity(backend: CpuBackend, operation: str, due: float) -> None:
    x = np.full(300, -1, np.float32)
    [nothing] = everywhere(backend, some.bind(reduce(operation, x.shape, x.dtype), x))
    assert nothing == np.float32(due)
    x[170] = 5
    [one] = everywhere(backend, some.bind(reduce(operation, x.shape, x.dtype), x))
    assert one == 5


@given(
    values=arrays.arrays(
        np.float32, st.integers(1, 70), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    ),
    operation=st.sampled_from(["sum", "prod", "min", "max"]),
)
def test_edge_values_follow_the_tree_and_there_is_one_nan(values: Array, operation: str) -> None:
    got = fold(operation, values)
    due = tree(operation, list(values), "float32")
    if np.isnan(due):
        assert got.view(np.uint32) == 0x7FC00000
    else:
        assert got.tobytes() == due.tobytes()


def test_a_nan_shows(backend: CpuBackend) -> None:
    x = np.ones(500, np.float32)
    x[321] = np.nan
    for operation in ("min", "max", "sum"):
        [got] = everywhere(backend, copied.bind(reduce(operation, x.shape, x.dtype), x))
        assert got.view(np.uint32) == 0x7FC00000


def test_what_the_language_combines_is_what_the_wire_can_say() -> None:
    assert OPERATIONS == work.REDUCE
    for operation in (*OPERATIONS, "mean"):
        for dtype in DTYPES:
            assert can_reduce(operation, dtype) == work.can_reduce(operation, dtype)


def test_refusals_say_what_to_write() -> None:
    with pytest.raises(KernelTypeError, match="sum, prod, min, max") as caught:
        reduce("mean", 10, np.float32)
    assert "mean" in str(caught.value)
    with pytest.raises(KernelTypeError, match="and, or, xor"):
        reduce("sum", 10, bool)
    with pytest.raises(KernelTypeError, match="sum"):
        reduce("xor", 10, np.float64)
    assert p2p.reduce is reduce


def test_a_provider_refuses_what_the_requester_could_not_have_written(backend: CpuBackend) -> None:
    binding = copied.bind(out(10, np.float32), np.ones(10, np.float32))
    forged = [dataclasses.replace(binding.specs[0], reduce="xor"), *binding.specs[1:]]  # type: ignore[type-var]
    with pytest.raises(KernelTypeError, match="not combined by 'xor'"):
        backend.compile(binding.source, binding.launch, forged)


def test_the_worker_is_told_and_refuses_nonsense() -> None:
    x = np.ones((10, 2), np.int16)
    specs = list(moments.bind(reduce("max", x.shape, np.int16), out(x.shape, np.int16), out(10, np.int16), x).specs)
    assert decode_arguments(encode_arguments(specs)) == specs
    for bad in (
        [3, "int16", ["mean", 10]],
        [3, "int16", []],
        [3, "int16", [10, "sum"]],
        [3, "int16", ["sum", -1]],
        [3, "int16", ["sum", 1, 1, 1, 1, 1]],
        [4, "int16", [10]],
    ):
        with pytest.raises(FrameError):
            decode_arguments([bad])


def test_ids_outside_of_the_launch_are_refused(backend: CpuBackend) -> None:
    binding = copied.bind(reduce("sum", 1000, np.float32), np.ones(1000, np.float32))
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    for bad in (-1, binding.launch.blocks):
        with pytest.raises(ValueError, match="not all ids"):
            compiled.run_threads(np.array([bad]), binding.values, [np.zeros(1, np.float32)])
