"""Work that nobody wants any more: the worker stops after a launch, stays warm, and dies where it does not stop."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pcompute.errors import ConfigError, StreamError, WorkerDied
from p2pcompute.execution import KernelSource, Launch, OutputSpec, SandboxPolicy, WorkerPool, WorkerSession, open_pool
from p2pcompute.execution._pool_process import CANCEL_GRACE_S, WorkerProgram

from ..._leftovers import open_files

pytestmark = pytest.mark.net

TOY = WorkerProgram(module="toy_worker", roots=(str(Path(__file__).parent / "hostile"),))
LAUNCH = Launch(grid=(1024, 1, 1), block=(64, 1, 1), dims=1)
OUT = OutputSpec(dtype="int64", shape=(65_536,))
BARE = SandboxPolicy(bwrap="never")
NEVER_S = 60.0  # a grace period that does not end within a test


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no child process that was not there before."""
    before = open_files()
    yield
    assert open_files() <= before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@asynccontextmanager
async def toys(*, keep: int = 0, grace_s: float = NEVER_S) -> AsyncGenerator[WorkerPool]:
    async with open_pool(spare=0, keep=keep, grace_s=grace_s, policy=BARE, program=TOY) as pool:
        yield pool


async def compile_toy(session: WorkerSession, name: str) -> None:
    await session.compile(KernelSource(text="", entry=name, digest=bytes(32)), LAUNCH, [OUT], {})


async def begin_and_cancel(session: WorkerSession) -> list[int]:
    """Have `Steps` compute a chunk that takes twenty seconds, and cancel it once it has begun; what was told of it."""
    await compile_toy(session, "Steps")
    told: list[int] = []

    def progress(done: int) -> None:
        told.append(done)
        scope.cancel()

    with trio.CancelScope() as scope:
        await session.run_blocks(0, 1024, timeout_s=500, progress=progress)
    assert scope.cancelled_caught
    return told


def running(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def int64s(raw: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(raw, dtype=np.int64).tolist()
    return numbers


def test_a_cancelled_run_leaves_a_warm_worker() -> None:
    async def main() -> None:
        async with toys() as pool, pool.session() as session:
            pid = session.pid
            (told,) = await begin_and_cancel(session)
            assert 1 <= told < 1024
            assert session.usable
            # Nothing of what was computed is left, and what was compiled is there still.
            assert int64s((await session.run_blocks(5, 1, timeout_s=30)).outputs[0]) == list(range(321, 385))
            await begin_and_cancel(session)
            await compile_toy(session, "Peek")
            assert set(int64s((await session.run_blocks(0, 2, timeout_s=30)).outputs[0])) == {0}
            assert session.pid == pid

    trio.run(main)


def test_what_a_cancelled_run_had_written_is_gone_from_memory() -> None:
    async def main() -> None:
        async with toys() as pool, pool.session() as session:
            await begin_and_cancel(session)
            arena = session._arena
            assert arena is not None
            (content,) = await arena.copy_out(((0, arena.nbytes),))
            assert content == bytes(arena.nbytes)

    trio.run(main)


def test_progress_rises_and_is_told_to_who_asks() -> None:
    async def main() -> None:
        async with toys() as pool, pool.session() as session:
            await compile_toy(session, "Steps")
            told: list[int] = []
            result = await session.run_blocks(3, 40, timeout_s=500, progress=told.append)
            assert int64s(result.outputs[0]) == list(range(3 * 64 + 1, 43 * 64 + 1))
            assert told == sorted(set(told))
            assert told
            assert 0 < told[0] <= told[-1] < 40

    trio.run(main)


def test_another_task_s_calls_go_on_after_one_was_cancelled() -> None:
    async def main() -> None:
        async with toys() as pool, pool.session() as session:
            await compile_toy(session, "Steps")
            got: list[list[int]] = []

            async def other() -> None:
                got.append(int64s((await session.run_blocks(7, 1, timeout_s=500)).outputs[0]))

            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:

                    def progress(_: int) -> None:
                        if not scope.cancel_called:
                            nursery.start_soon(other)  # it queues behind the run
                        scope.cancel()

                    await session.run_blocks(0, 1024, timeout_s=500, progress=progress)
            assert got == [list(range(449, 513))]

    trio.run(main)


@pytest.mark.parametrize("name", ["Spin", "CompileForever"])
def test_one_that_does_not_stop_is_killed_after_the_grace_period(name: str) -> None:
    async def main() -> None:
        async with toys(grace_s=0.05) as pool, pool.session() as session:
            pid = session.pid
            if name == "Spin":
                await compile_toy(session, name)
            with trio.fail_after(300), trio.move_on_after(0.2) as scope:
                if name == "CompileForever":
                    await compile_toy(session, name)
                await session.run_blocks(0, 1, timeout_s=500)
            assert scope.cancelled_caught
            assert not session.usable
            with pytest.raises(WorkerDied, match=r"did not stop within 0\.05 s"):
                await compile_toy(session, "Iota")
        assert not running(pid)

    trio.run(main)


@pytest.mark.parametrize("first", ["the call", "the pool"])
def test_a_pool_that_closes_waits_for_no_kernel(first: str) -> None:
    """Neither for one that was asked to stop before, nor for one that is cancelled after that."""

    async def main() -> None:
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                running, stopping = trio.Event(), trio.Event()
                scope = trio.CancelScope()

                async def use(pool: WorkerPool) -> None:
                    async with pool.session() as session:
                        await compile_toy(session, "Spin")
                        with scope:
                            nursery.start_soon(watch, session)
                            await session.run_blocks(0, 1, timeout_s=500)
                        assert not session.usable

                async def watch(session: WorkerSession) -> None:
                    running.set()
                    while session._process._grace is None and session.usable:  # noqa: ASYNC110
                        await trio.sleep(0.001)
                    stopping.set()

                async with toys() as pool:
                    nursery.start_soon(use, pool)
                    await running.wait()
                    if first == "the call":
                        scope.cancel()
                        await stopping.wait()
                scope.cancel()

    trio.run(main)


def test_a_session_that_is_cancelled_leaves_its_worker_to_its_tenant() -> None:
    async def main() -> None:
        async with toys(keep=1) as pool:
            pids: list[int] = []
            with trio.CancelScope() as scope:
                async with pool.session(tenant="a") as session, trio.open_nursery():
                    pids.append(session.pid)
                    await compile_toy(session, "Steps")
                    await session.run_blocks(0, 1024, timeout_s=500, progress=lambda _: scope.cancel())
            assert scope.cancelled_caught
            assert pool.kept == 1
            async with pool.session(tenant="a") as session:
                assert session.pid == pids[0]
                await compile_toy(session, "Iota")
                assert int64s((await session.run_blocks(0, 1, timeout_s=30)).outputs[0]) == list(range(1, 65))

    trio.run(main)


def test_one_that_ends_for_another_reason_is_not_kept() -> None:
    async def main() -> None:
        async with toys(keep=1) as pool:
            with pytest.raises(StreamError):
                async with pool.session(tenant="a"):
                    raise StreamError("it broke")
            assert pool.kept == 0
            with trio.CancelScope() as scope:
                async with pool.session(tenant="a", keep=lambda: False) as session:
                    await compile_toy(session, "Steps")
                    await session.run_blocks(0, 1024, timeout_s=500, progress=lambda _: scope.cancel())
            assert pool.kept == 0

    trio.run(main)


def test_one_that_was_killed_is_not_kept() -> None:
    async def main() -> None:
        async with toys(keep=1, grace_s=0.05) as pool:
            scope = trio.CancelScope()
            with scope:
                async with pool.session(tenant="a") as session:
                    await compile_toy(session, "Spin")
                    scope.deadline = trio.current_time() + 0.2
                    await session.run_blocks(0, 1, timeout_s=500)
            assert scope.cancelled_caught
            assert pool.kept == 0

    trio.run(main)


def test_an_arena_that_never_reached_the_worker_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with toys() as pool, pool.session() as session:
            await compile_toy(session, "Iota")
            process = session._process
            send = type(process)._send

            async def never(*_: object, wait: bool) -> bool:
                if wait:
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                return False

            with trio.CancelScope() as scope:
                monkeypatch.setattr(type(process), "_send", never)
                await session.run_blocks(0, 1, timeout_s=30)
            assert scope.cancelled_caught
            assert session.usable
            monkeypatch.setattr(type(process), "_send", send)
            assert int64s((await session.run_blocks(0, 1, timeout_s=30)).outputs[0]) == list(range(1, 65))

    trio.run(main)


@pytest.mark.parametrize("grace_s", [-1.0, 61.0, float("nan")])
def test_odd_grace_periods_are_refused(grace_s: float) -> None:
    with pytest.raises(ConfigError, match="grace_s"):
        WorkerPool(grace_s=grace_s)


def test_the_default_is_what_is_said() -> None:
    assert CANCEL_GRACE_S == 0.25
