"""Workers that wait for their tenants to come back: the same tenant's only, few, idle, and not for long."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from p2pcompute.errors import ConfigError, ExecutionError, WorkerTimeout
from p2pcompute.execution import InputSpec, KernelSource, Launch, OutputSpec, SandboxPolicy, WorkerPool, open_pool
from p2pcompute.execution import _pool_session as pool_session
from p2pcompute.execution._pool_process import WorkerProgram, readable_paths
from p2pcompute.execution._sandbox_bwrap import probe_bwrap

pytestmark = pytest.mark.net

TOY = WorkerProgram(module="toy_worker", roots=(str(Path(__file__).parent / "hostile"),))
LAUNCH = Launch(grid=(16, 1, 1), block=(64, 1, 1), dims=1)
OUT = OutputSpec(dtype="int64", shape=(1024,))
BARE = SandboxPolicy(bwrap="never")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No child process more than before."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def kernel(name: str) -> KernelSource:
    return KernelSource(text="", entry=name, digest=bytes(32))


def running(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def use(pool: WorkerPool, tenant: str | None, name: str = "Iota", timeout_s: float = 30) -> int:
    """One session of `tenant` that computes a little; its worker's process."""
    async with pool.session(tenant=tenant) as session:
        await session.compile(kernel(name), LAUNCH, [OUT], {})
        result = await session.run_blocks(0, 1, timeout_s=timeout_s)
        assert np.frombuffer(result.outputs[0], dtype=np.int64)[:3].tolist() == [1, 2, 3]
        return session.pid


def test_a_tenant_finds_its_worker_again_and_another_does_not() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=BARE, program=TOY) as pool:
            first = await use(pool, "a")
            assert pool.kept == 1
            assert await use(pool, "b") != first
            assert pool.kept == 2
            assert await use(pool, "a") == first
            assert await use(pool, None) != first
            assert pool.kept == 2

    trio.run(main)


def states(pid: int) -> set[str]:
    """The states of all threads of a process, as the kernel has them: T is stopped."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/stat") as stat:
            found.add(stat.read().rpartition(")")[2].split()[0])
    return found


async def stopped(pid: int) -> None:
    """Wait until the kernel has stopped all threads; who sent the signal does not."""
    with trio.fail_after(300):
        while states(pid) != {"T"}:  # noqa: ASYNC110
            await trio.sleep(0.001)


@pytest.mark.parametrize("layer", ["bare", "bubblewrap"])
def test_one_that_waits_gets_no_time(layer: str) -> None:
    policy = BARE
    if layer == "bubblewrap":
        bwrap, note = trio.run(probe_bwrap, sys.executable, readable_paths(TOY))
        if bwrap is None:
            pytest.skip(f"no bubblewrap here: {note}")
        policy = SandboxPolicy(bwrap="require")

    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=policy, program=TOY) as pool:
            pid = await use(pool, "a")
            await stopped(pid)
            other = await use(pool, "b")
            assert states(pid) == {"T"}
            assert await use(pool, "a") == pid  # it goes on
            await stopped(pid)
            await stopped(other)
        assert not running(pid)
        assert not running(other)

    trio.run(main)


def test_whether_one_is_kept_is_asked_at_the_end() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=BARE, program=TOY) as pool:
            for has_paid in (False, True):
                answer = not has_paid
                async with pool.session(tenant="a", keep=lambda: answer) as session:  # noqa: B023
                    await session.compile(kernel("Iota"), LAUNCH, [OUT], {})
                    answer = has_paid
                assert pool.kept == int(has_paid)

    trio.run(main)


def test_nobody_is_kept_unless_it_is_asked_for() -> None:
    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, program=TOY) as pool:
            await use(pool, "a")
            assert pool.kept == 0

    trio.run(main)


def test_two_sessions_of_one_tenant_have_two_workers() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=BARE, program=TOY) as pool:
            await use(pool, "a")
            async with pool.session(tenant="a") as one, pool.session(tenant="a") as two:
                assert one.pid != two.pid

    trio.run(main)


def test_what_was_compiled_before_has_to_be_named_again() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=1, policy=BARE, program=TOY) as pool:
            await use(pool, "a")
            async with pool.session(tenant="a") as session:
                with pytest.raises(ExecutionError, match="no compiled kernel"):
                    await session.run_blocks(0, 1, timeout_s=30)

    trio.run(main)


def test_the_oldest_goes_where_too_many_wait() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=BARE, program=TOY) as pool:
            pids = [await use(pool, tenant) for tenant in "abc"]
            assert pool.kept == 2
            assert not running(pids[0])
            assert [await use(pool, tenant) for tenant in "bc"] == pids[1:]

    trio.run(main)


def test_a_worker_that_waited_long_enough_is_ended() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=2, keep_s=0.5, policy=BARE, program=TOY) as pool:
            pid = await use(pool, "a")
            (kept,) = pool._kept
            ended = os.dup(kept.process._pidfds[0])
            with trio.fail_after(300):
                await trio.lowlevel.wait_readable(ended)
            os.close(ended)
            assert pool.kept == 0
            assert await use(pool, "a") != pid

    trio.run(main)


def test_one_that_was_killed_meanwhile_is_not_handed_out() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=1, policy=BARE, program=TOY) as pool:
            pid = await use(pool, "a")
            (kept,) = pool._kept
            os.kill(pid, signal.SIGKILL)
            await trio.lowlevel.wait_readable(kept.process._pidfds[0])
            assert await use(pool, "a") != pid

    trio.run(main)


def test_one_that_did_not_end_well_is_not_kept() -> None:
    async def main() -> None:
        async with open_pool(spare=0, keep=1, policy=BARE, program=TOY) as pool:
            with pytest.raises(WorkerTimeout):
                await use(pool, "a", "Spin", timeout_s=0.1)
            assert pool.kept == 0
            with pytest.raises(ExecutionError):  # the worker lives, and the block ends with an error
                await use(pool, "a", "AddInput")
            assert pool.kept == 0

    trio.run(main)


def test_one_that_holds_much_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_session, "_KEPT_BYTES", 100_000)

    async def main() -> None:
        async with open_pool(spare=0, keep=1, policy=BARE, program=TOY) as pool:
            async with pool.session(tenant="a") as session:
                big = np.zeros(20_000, dtype=np.int64)
                args = [OUT, InputSpec(dtype="int64", shape=big.shape)]
                await session.compile(kernel("Iota"), LAUNCH, args, {1: big})
            assert pool.kept == 0
            await use(pool, "a")
            assert pool.kept == 1

    trio.run(main)


def test_closing_the_pool_ends_those_that_wait() -> None:
    pids: list[int] = []

    async def main() -> None:
        async with open_pool(spare=0, keep=2, policy=BARE, program=TOY) as pool:
            pids.extend([await use(pool, "a"), await use(pool, "b")])

    trio.run(main)
    assert not any(running(pid) for pid in pids)


@pytest.mark.parametrize("bad", [{"keep": -1}, {"keep": 65}, {"keep_s": -1.0}, {"keep_s": float("nan")}])
def test_odd_numbers_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        WorkerPool(**bad)  # type: ignore[arg-type]
