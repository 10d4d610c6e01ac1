"""Fast mode on a processor: floats may be near, and everything else is what it is in strict mode."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numba
import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._matmul import product
from p2pcompute.execution import OutputSpec, SandboxPolicy, open_pool
from p2pcompute.execution import _fast_cpu as fast_cpu
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.random import philox, uniform

Array = np.ndarray[Any, Any]
SIZE = 1_000
GUARD = 64


@functools.cache
def kept(threads: int) -> CpuBackend:
    """What it has compiled serves several tests."""
    return CpuBackend(threads)


def compute(
    binding: Any, fp: str, *, by_item: bool = False, threads: int = 1, backend: CpuBackend | None = None
) -> list[Array]:
    """Rows of all items, in arrays that lie between guards which have to stay as they are."""
    source = dataclasses.replace(binding.source, fp=fp)
    layout = binding.layout
    items = binding.launch.blocks * layout.items_per_block
    outs: list[Array] = []
    whole: list[Array] = []
    for spec, row in zip(layout.outputs, layout.row_shapes, strict=True):
        count = items * math.prod(row)
        memory = np.full((count + 2 * GUARD) * np.dtype(spec.dtype).itemsize, 0xA5, np.uint8).view(spec.dtype)
        memory[GUARD : GUARD + count] = 0
        whole.append(memory)
        outs.append(memory[GUARD : GUARD + count].reshape((items, *row)))
    compiled = (backend or kept(threads)).compile(source, binding.launch, binding.specs)
    if by_item:
        compiled.run_threads(np.arange(items, dtype=np.int64), binding.values, outs)
    else:
        compiled.run_blocks(0, binding.launch.blocks, binding.values, outs)
    for memory in whole:
        edges = np.concatenate([memory[:GUARD], memory[-GUARD:]]).view(np.uint8)
        assert (edges == 0xA5).all(), "a store outside of the output"
    return outs


@p2p.kernel
def wild(out, hits, x, far):
    i = cuda.grid(1)
    if i < far.size:
        # Indices from floats of any kind, and far outside of every array.
        j = int(far[i])
        out[i, j] = np.float32(1.0)
        out[i, -j] = np.float32(2.0)
        out[i, j % 4] += x[j] + x[j * j] + x[~j]
        hits[i] = 1 if math.isnan(far[i]) else 2 if math.isinf(far[i]) else 3 if far[i] > np.float32(1e30) else 0


FAR = np.array(
    [math.nan, math.inf, -math.inf, 1e38, -1e38, 0.0, -0.0, 3.9, -3.9, 1e-45, 2**31, 2**63, -(2**63), 5, 999.0, 1000.0],
    np.float32,
)


@pytest.mark.parametrize("by_item", [False, True])
def test_indices_are_tested_as_ever(by_item: bool) -> None:
    far = np.tile(FAR, 20)
    x = np.arange(SIZE, dtype=np.float32)
    binding = wild[10, 32].bind(p2p.out((320, 4), np.float32), p2p.out(320, np.int32), x, far)
    strict, fast = (compute(binding, fp, by_item=by_item) for fp in ("strict", "fast"))
    assert np.array_equal(strict[0], fast[0])
    assert np.array_equal(strict[1], fast[1])
    assert set(fast[1][:, ...].ravel()) == {0, 1, 2, 3}


def test_what_a_compiler_would_do_that_may_forget_nans(monkeypatch: pytest.MonkeyPatch) -> None:
    # The attack on ourselves: with the usual "fast math" a test for NaN is gone, and so would be one for an index.
    monkeypatch.setitem(fast_cpu.FAST, "fastmath", True)
    binding = wild[1, 16].bind(p2p.out((16, 4), np.float32), p2p.out(16, np.int32), np.zeros(4, np.float32), FAR)
    hits = compute(binding, "fast", backend=CpuBackend())[1]
    assert hits[0] != 1
    monkeypatch.undo()
    assert compute(binding, "fast")[1][0] == 1
    assert {"nnan", "ninf", "fast"}.isdisjoint(fast_cpu.FAST["fastmath"])


@p2p.kernel
def integers(out, counts, x, n):
    i = cuda.grid(1)
    if i < out.shape[0]:
        a, b, c, d = philox(i, 1, 2, 3, 4, 5)
        out[i, 0] = a * b + (c << (i % 70)) - (d >> 3)
        out[i, 1] = x[i] // n + x[i] % n
        out[i, 2] = (x[i] * x[i]) ^ (~x[i] & 0xFF)
        out[i, 3] = int(uniform(7, i, 0) * np.float32(1 << 24))
        counts[i] = cuda.popc(x[i]) + cuda.clz(x[i])


@pytest.mark.parametrize("n", [0, -1, 3])
def test_integers_have_one_result(n: int) -> None:
    x = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, SIZE)
    binding = integers[8, 128].bind(p2p.out((SIZE, 4), np.int64), p2p.out(SIZE, np.int32), x, n)
    strict = compute(binding, "strict")
    for threads in (1, 2):
        for mine, theirs in zip(strict, compute(binding, "fast", threads=threads), strict=True):
            assert mine.tobytes() == theirs.tobytes()


@p2p.kernel
def together(out, x):
    sm = cuda.shared.array(64, np.float32)
    i = cuda.grid(1)
    tx = cuda.threadIdx.x
    sm[tx] = x[i] * x[i] + np.float32(0.5)
    cuda.syncthreads()
    s = 32
    while s > 0:
        if tx < s:
            sm[tx] += sm[tx + s]
        cuda.syncthreads()
        s //= 2
    if tx == 0:
        out[cuda.blockIdx.x] = sm[0]


@p2p.kernel
def functions(out, x):
    i = cuda.grid(1)
    if i < out.shape[0]:
        v = x[i]
        out[i, 0] = math.exp(v) + math.log(v) + math.sin(v) * math.cos(v)
        out[i, 1] = math.tan(v) + math.tanh(v) + math.sinh(v) - math.cosh(v)
        out[i, 2] = math.erf(v) + math.sqrt(v) / (v + np.float32(1.0))
        out[i, 3] = v ** np.float32(1.7) + math.exp2(v) * math.log2(v)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: together[SIZE // 64, 64].bind(p2p.out(SIZE // 64, x.dtype), x),
        lambda x: functions[8, 128].bind(p2p.out((SIZE, 4), x.dtype), x),
    ],
    ids=["blocks", "functions"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_come_near(make: Any, dtype: str) -> None:
    binding = make(np.random.default_rng(3).uniform(0.1, 3, SIZE).astype(dtype))
    near = {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-13}
    for by_item in (False, True) if binding.layout.together else (False,):
        strict, fast = (compute(binding, fp, by_item=by_item)[0] for fp in ("strict", "fast"))
        assert np.allclose(strict, fast, **near)


@p2p.kernel
def smooth(out, x):
    c, r = cuda.grid(2)
    if 0 < r < out.shape[0] - 1:
        out[r, c] = (x[r - 1, c] + x[r + 1, c] + x[r, c - 1] + x[r, c + 1]) / np.float32(4.0)
    else:
        out[r, c] = math.sqrt(x[r, c])


@pytest.mark.parametrize("threads", [1, 2])
def test_lines_and_borders_have_what_they_have_in_strict_mode(threads: int) -> None:
    x = np.random.default_rng(5).random((45, 70), dtype=np.float32)
    binding = smooth.bind(p2p.out(x.shape, np.float32), x)
    strict, fast = (compute(binding, fp, threads=threads)[0] for fp in ("strict", "fast"))
    assert np.allclose(strict, fast, rtol=2e-6, atol=0)
    assert np.array_equal(strict == 0, fast == 0)


@p2p.kernel
def remains(out, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = (x[i] + y[i]) - x[i] - y[i]


def test_sums_are_taken_in_any_order() -> None:
    rng = np.random.default_rng(2)
    x, y = (rng.random(SIZE, dtype=np.float32) for _ in range(2))
    binding = remains[8, 128].bind(p2p.out(SIZE, np.float32), x, y)
    assert compute(binding, "strict")[0].any()
    assert not compute(binding, "fast")[0].any()
    # One back end keeps both apart.
    with CpuBackend() as backend:
        for fp, has_any in (("fast", False), ("strict", True), ("fast", False)):
            source = dataclasses.replace(binding.source, fp=fp)
            rows = np.zeros(1_024, np.float32)
            backend.compile(source, binding.launch, binding.specs).run_blocks(0, 8, binding.values, [rows])
            assert rows.any() == has_any


def test_a_lowering_of_numba_has_the_flags_that_are_named() -> None:
    assert fast_cpu.FAST["fastmath"] == {"contract", "reassoc", "arcp", "afn", "nsz"}

    @numba.njit(error_model="numpy", **fast_cpu.FAST)
    def add(a: Any, b: Any) -> Any:
        return a + b

    add(1.5, 2.5)
    (text,) = add.inspect_llvm().values()
    flags = next(line for line in text.splitlines() if " fadd " in line)
    assert "reassoc nsz arcp contract afn" in flags
    assert "nnan" not in flags


@pytest.mark.net
def test_fast_mode_inside_the_lock() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random((200, 200), dtype=np.float32) for _ in range(2))
    x = rng.random(SIZE, dtype=np.float32)
    y = rng.random(SIZE, dtype=np.float32)

    async def main() -> tuple[Array, Array]:
        async with open_pool(threads=2, policy=SandboxPolicy(bwrap="never")) as pool, pool.session() as session:
            binding = product[200, 1].bind(p2p.out((200, 200), np.float32), a, b)
            source = dataclasses.replace(binding.source, fp="fast")
            inputs = {1: a, 2: b}
            await session.compile(source, binding.launch, binding.specs, inputs)
            first = await session.run_blocks(0, 200, timeout_s=60)
            small = remains[8, 128].bind(p2p.out(SIZE, np.float32), x, y)
            source = dataclasses.replace(small.source, fp="fast")
            await session.compile(source, small.launch, small.specs, {1: x, 2: y})
            second = await session.run_blocks(0, 8, timeout_s=60)
            return (
                np.frombuffer(first.outputs[0], np.float32).reshape(200, 200),
                np.frombuffer(second.outputs[0], np.float32),
            )

    c, rest = trio.run(main)
    assert np.allclose(c, a @ b, rtol=1e-4)
    assert not rest.any()


def test_a_mode_that_is_none_ends_the_worker_and_nothing_else() -> None:
    from p2pcompute.errors import ExecutionError

    binding = remains[8, 128].bind(p2p.out(SIZE, np.float32), np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32))
    source = dataclasses.replace(binding.source, fp="faster")

    async def main() -> None:
        async with open_pool(spare=1, policy=SandboxPolicy(bwrap="never")) as pool:
            async with pool.session() as session:
                with pytest.raises(ExecutionError):
                    await session.compile(
                        source, binding.launch, binding.specs, {1: binding.values[0], 2: binding.values[1]}
                    )
            async with pool.session() as session:
                out = [spec for spec in binding.specs if isinstance(spec, OutputSpec)]
                assert len(out) == 1
                assert session.pid

    trio.run(main)


@p2p.kernel
def angles(out, x):
    i = cuda.grid(1)
    if i < out.shape[0]:
        out[i, 0] = math.sin(x[i])
        out[i, 1] = math.cos(x[i])
        out[i, 2] = math.tan(x[i])


def test_angles() -> None:
    rng = np.random.default_rng(8)
    x = np.concatenate([rng.uniform(-size, size, 300) for size in (1e-30, 1, 100, 1e6, 1e9)]).astype(np.float32)
    x[:6] = (math.nan, math.inf, -math.inf, 0.0, 3e38, -3e38)
    binding = angles[12, 128].bind(p2p.out((x.size, 3), np.float32), x)
    strict, fast = (compute(binding, fp)[0][: x.size] for fp in ("strict", "fast"))
    assert np.isnan(fast[:3]).all()
    assert np.isnan(strict[:3]).all()
    assert np.allclose(strict[3], fast[3])
    assert np.allclose(strict[6:], fast[6:], rtol=1e-6, atol=1e-9)
