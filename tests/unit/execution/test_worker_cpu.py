"""The worker as it is shipped: the CPU back end inside the lock."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import KernelError, WorkerTimeout
from p2pcompute.execution import (
    ArgSpec,
    InputSpec,
    KernelSource,
    Launch,
    OutputSpec,
    SandboxPolicy,
    ScalarSpec,
    SharedInput,
    WorkerSession,
    open_pool,
)
from p2pcompute.execution._language_capture import source_digest
from p2pcompute.execution._pool_process import readable_paths
from p2pcompute.execution._sandbox_bwrap import probe_bwrap

pytestmark = pytest.mark.net

SAXPY = """def saxpy(a, x, y, out):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]
"""
# A tile of the largest block, with local arrays of all that a thread may have: the address space has to hold it.
TOGETHER = """def turned(x, out, sums):
    tile = cuda.shared.array((32, 32), np.float64)
    mine = cuda.local.array(1024, np.int32)
    c, r = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    tile[ty, tx] = x[cuda.blockIdx.x * 32 + ty, cuda.blockIdx.y * 32 + tx]
    mine[tx] = ty
    cuda.syncthreads()
    out[r, c] = tile[tx, ty] + mine[tx] - mine[1023]
    if tx == 0 and ty == 0:
        for k in range(32):
            sums[cuda.blockIdx.y, cuda.blockIdx.x] += tile[k, k]
"""
ENDLESS = """def endless(out):
    i = cuda.grid(1)
    total = np.uint64(1)
    for j in range(1000000000):
        for k in range(1000000000):
            total = total * np.uint64(6364136223846793005) + np.uint64(j ^ k)
    out[i] = total
"""
N = 10_000


def source(text: str) -> KernelSource:
    entry = text.removeprefix("def ").partition("(")[0]
    return KernelSource(text=text, entry=entry, digest=source_digest(entry, text))


def line(threads: int) -> Launch:
    return Launch(grid=(-(-threads // 128), 1, 1), block=(128, 1, 1), dims=1)


async def saxpy(session: WorkerSession, x: SharedInput, y: np.ndarray[Any, Any]) -> bytes:
    args: list[ArgSpec] = [
        ScalarSpec(dtype="float32", value=np.float32(1.1)),
        InputSpec(dtype="float32", shape=(N,)),
        InputSpec(dtype="float32", shape=(N,)),
        OutputSpec(dtype="float32", shape=(N,)),
    ]
    info = await session.compile(source(SAXPY), line(N), args, {1: x, 2: y})
    assert info.row_shapes == ((),)
    result = await session.run_blocks(0, line(N).blocks, timeout_s=60)
    picks = np.array([0, N - 1, 4711], dtype=np.int64)
    again = await session.run_threads(picks, timeout_s=60)
    assert np.array_equal(np.frombuffer(result.outputs[0], "u4")[picks], np.frombuffer(again.outputs[0], "u4"))
    return result.outputs[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_computes_inside_the_lock(threads: int) -> None:
    async def main() -> None:
        rng = np.random.default_rng(7)
        x, y = rng.random(N, dtype=np.float32), rng.random(N, dtype=np.float32)
        due = (np.float32(1.1) * x + y).tobytes()
        async with open_pool(threads=threads, policy=SandboxPolicy(bwrap="never")) as pool:
            with await SharedInput.make(x) as shared:
                for _ in range(2):  # two tenants, one input
                    async with pool.session() as session:
                        assert session.layers.seccomp
                        assert (await saxpy(session, shared, y))[: N * 4] == due

    trio.run(main)


def test_blocks_are_computed_inside_the_lock() -> None:
    async def main() -> None:
        x = np.random.default_rng(8).random((96, 64))
        launch = Launch(grid=(3, 2, 1), block=(32, 32, 1), dims=2)
        args: list[ArgSpec] = [
            InputSpec(dtype="float64", shape=x.shape),
            OutputSpec(dtype="float64", shape=(64, 96)),
            OutputSpec(dtype="float64", shape=(2, 3)),
        ]
        async with open_pool(threads=2, policy=SandboxPolicy(bwrap="never")) as pool, pool.session() as session:
            info = await session.compile(source(TOGETHER), launch, args, {0: x})
            assert (info.row_shapes, info.items_per_block) == (((1024,), ()), 1)
            whole = await session.run_blocks(0, 6, timeout_s=60)
            rows = np.frombuffer(whole.outputs[0]).reshape(2, 3, 32, 32)
            due = x.T.reshape(2, 32, 3, 32).transpose(0, 2, 1, 3) + np.arange(32.0)[:, None]
            assert (rows == due).all()
            again = await session.run_threads(np.array([4, 1], dtype=np.int64), timeout_s=60)
            for one, other, size in zip(whole.outputs, again.outputs, (1024, 1), strict=True):
                assert np.array_equal(
                    np.frombuffer(one).reshape(6, size)[[4, 1]], np.frombuffer(other).reshape(2, size)
                )
            with pytest.raises(ValueError, match="launch of 6"):
                await session.run_threads(np.array([6], dtype=np.int64), timeout_s=60)
            text = TOGETHER.replace("tile[ty, tx] =", "tile[ty, 0] =")
            with pytest.raises(KernelError, match="store to one element"):
                await session.compile(source(text), launch, args, {0: x})
            with pytest.raises(KernelError) as caught:
                await session.compile(source(TOGETHER + "import os\n"), launch, args, {0: x})
            assert caught.value.by_guard  # and not only the back end: the worker's answer says so

    trio.run(main)


def test_a_kernel_computes_behind_bubblewrap_too() -> None:
    bwrap, note = trio.run(probe_bwrap, sys.executable, readable_paths())
    if bwrap is None:
        pytest.skip(f"workers rely on Landlock and seccomp alone here: {note}")

    async def main() -> None:
        x = np.ones(N, dtype=np.float32)
        async with (
            open_pool(threads=2, spare=0, policy=SandboxPolicy(bwrap="require")) as pool,
            pool.session() as session,
        ):
            assert session.layers.bwrap
            with await SharedInput.make(x) as shared:
                assert await saxpy(session, shared, x)

    trio.run(main)


def test_refusals_and_endless_loops() -> None:
    async def refused(session: WorkerSession, text: str, match: str) -> None:
        with pytest.raises(KernelError, match=match) as caught:
            await session.compile(source(text), line(128), [OutputSpec(dtype="float32", shape=(128,))], {})
        assert type(caught.value) is KernelError

    async def main() -> None:
        async with open_pool(spare=0) as pool, pool.session() as session:
            await refused(
                session, "def f(out):\n    import os\n    out[cuda.grid(1)] = os.getpid()\n", "an import is not"
            )
            await refused(session, "def f(out):\n    out[cuda.grid(1)] = open('/etc/passwd')\n", "open")
            await refused(session, "def f(out:\n", "does not parse")
            await session.compile(source(ENDLESS), line(128), [OutputSpec(dtype="uint64", shape=(128,))], {})
            with pytest.raises(WorkerTimeout):
                await session.run_blocks(0, 1, timeout_s=0.2)

    trio.run(main)
