"""The pool and its sessions, on real processes: the lock and the channel are real, the kernels are toys."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from p2pcompute.errors import (
    ConfigError,
    ExecutionError,
    KernelError,
    KernelTypeError,
    SandboxError,
    WorkerDied,
    WorkerTimeout,
)
from p2pcompute.execution import (
    InputSpec,
    KernelSource,
    Launch,
    OutputSpec,
    SandboxPolicy,
    ScalarSpec,
    SharedInput,
    WorkerLimits,
    WorkerPool,
    WorkerSession,
    _pool_process,
    _sandbox,
    open_pool,
)
from p2pcompute.execution._pool import LATE_S, REST_S
from p2pcompute.execution._pool_process import WorkerProgram
from p2pcompute.execution._sandbox_bwrap import probe_bwrap

from ..._leftovers import open_files

pytestmark = pytest.mark.net

HOSTILE = Path(__file__).parent / "hostile"
TOY = WorkerProgram(module="toy_worker", roots=(str(HOSTILE),))
LAUNCH = Launch(grid=(16, 1, 1), block=(64, 1, 1), dims=1)
OUT = OutputSpec(dtype="int64", shape=(1024,))
BARE = SandboxPolicy(bwrap="never")


@pytest.fixture(autouse=True, scope="module")
def the_rest_set_aside() -> None:
    """What other tests have left is none of ours: to go through it twice for each test took longer than the test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no child process that was not there before."""
    gc.collect()
    before = open_files()
    yield
    gc.collect()
    assert open_files() <= before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def kernel(name: str) -> KernelSource:
    return KernelSource(text="", entry=name, digest=bytes(32))


@asynccontextmanager
async def toy(name: str | None = None, **options: Any) -> AsyncGenerator[WorkerSession, None]:
    """A session in a pool without reserve, with a toy kernel compiled."""
    options = {"spare": 0, "policy": BARE, "program": TOY, **options}
    async with open_pool(**options) as pool, pool.session() as session:
        if name is not None:
            await session.compile(kernel(name), LAUNCH, [OUT], {})
        yield session


def reaped(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def int64s(raw: bytes) -> list[int]:
    return [int(x) for x in np.frombuffer(raw, dtype=np.int64)]


# -- compile and run ---------------------------------------------------------------------------------------------


def test_blocks_and_threads_come_back_in_order() -> None:
    async def main() -> None:
        async with toy() as session:
            out = OutputSpec(dtype="int64", shape=(1024, 2))
            info = await session.compile(kernel("Iota"), LAUNCH, [out], {})
            assert info.row_shapes == ((2,),)
            assert info.compile_ms > 0
            result = await session.run_blocks(3, 2, timeout_s=20)
            assert int64s(result.outputs[0]) == [n + 1 for n in range(192, 320) for _ in "xy"]
            assert result.wall_ns > 0
            assert result.cpu_ns > 0
            result = await session.run_threads(np.array([1023, 0, 77], dtype=np.int64), timeout_s=20)
            assert int64s(result.outputs[0]) == [1024, 1024, 1, 1, 78, 78]
            # A bigger run needs a bigger arena, a smaller one uses it again; rows are zeroed each time.
            result = await session.run_blocks(0, 16, timeout_s=20)
            assert len(result.outputs[0]) == 16 * 64 * 2 * 8
            result = await session.run_blocks(15, 1, timeout_s=20)
            assert int64s(result.outputs[0])[-1] == 1024

    trio.run(main)


def test_inputs_come_as_arrays_bytes_or_shared() -> None:
    async def main() -> None:
        content = np.arange(1024, dtype=np.float32).reshape(2, 512) ** 2
        args = [ScalarSpec(dtype="float32", value=np.float32(0.5)), InputSpec(dtype="float32", shape=(1024,))]
        async with open_pool(spare=1, policy=BARE, program=TOY) as pool:
            flat = content.reshape(-1)
            with await SharedInput.make(content) as shared:
                for given in (flat, flat.tobytes(), shared, shared):
                    async with pool.session() as session:
                        out = OutputSpec(dtype="float32", shape=(1024,))
                        await session.compile(kernel("AddInput"), LAUNCH, [*args, out], {1: given})
                        result = await session.run_blocks(0, 16, timeout_s=20)
                        assert result.outputs == ((flat + np.float32(0.5)).tobytes(),)

    trio.run(main)


def test_a_worker_keeps_an_input_that_its_owner_has_closed() -> None:
    async def main() -> None:
        async with toy() as session:
            args = [
                ScalarSpec(dtype="float32", value=np.float32(1)),
                InputSpec(dtype="float32", shape=(1024,)),
                OutputSpec(dtype="float32", shape=(1024,)),
            ]
            with await SharedInput.make(bytes(4096)) as shared:
                await session.compile(kernel("AddInput"), LAUNCH, args, {1: shared})
            result = await session.run_blocks(0, 1, timeout_s=20)
            assert result.outputs == (np.ones(64, dtype=np.float32).tobytes(),)

    trio.run(main)


def test_what_a_session_passes_over_its_life_is_bounded() -> None:
    """A worker that was taken over keeps every input's descriptor, mapped or not."""

    async def main() -> None:
        limits = WorkerLimits(input_bytes=4096, session_input_bytes=3 * 4096)
        args = [InputSpec(dtype="int8", shape=(4096,)), OUT]
        async with toy(limits=limits) as session:
            with await SharedInput.make(bytes(4096)) as shared:
                for _ in range(10):  # one and the same counts once
                    await session.compile(kernel("Iota"), LAUNCH, args, {0: shared})
            for _ in range(2):
                await session.compile(kernel("Iota"), LAUNCH, args, {0: bytes(4096)})
            with pytest.raises(ExecutionError, match="open another session"):
                await session.compile(kernel("Iota"), LAUNCH, args, {0: bytes(4096)})

    trio.run(main)


def test_a_refused_kernel_says_what_and_where_and_leaves_the_worker() -> None:
    async def main() -> None:
        async with toy() as session:
            with pytest.raises(KernelError) as caught:
                await session.compile(kernel("Refuse"), LAUNCH, [OUT], {})
            assert (caught.value.reason, caught.value.line) == ("no such thing", 7)
            assert caught.value.instead == "write another"
            assert not caught.value.by_guard
            with pytest.raises(KernelTypeError, match="argument 1 is odd"):
                await session.compile(kernel("RefuseType"), LAUNCH, [OUT], {})
            with pytest.raises(ExecutionError, match="call compile first"):
                await session.run_blocks(0, 1, timeout_s=20)
            await session.compile(kernel("Iota"), LAUNCH, [OUT], {})
            await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


def test_work_that_raises_leaves_the_worker_and_can_not_steer_a_terminal() -> None:
    async def main() -> None:
        async with toy("Raise") as session:
            for _ in range(2):
                with pytest.raises(ExecutionError, match=r"ZeroDivisionError: evil \\x1b\[2J words"):
                    await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


def test_bad_calls_are_refused_before_the_worker_sees_them() -> None:
    async def main() -> None:
        limits = WorkerLimits(input_bytes=4096, output_bytes=4096)
        f32 = InputSpec(dtype="float32", shape=(4,))
        async with toy("Iota", limits=limits) as session:
            for first, blocks in ((-1, 1), (0, 0), (16, 1), (0, 17)):
                with pytest.raises(ValueError, match="outside a launch"):
                    await session.run_blocks(first, blocks, timeout_s=20)
            for ids in (np.array([1024]), np.array([-1]), np.array([], dtype=np.int64), np.array([1.0])):
                with pytest.raises(ValueError, match="thread"):
                    await session.run_threads(ids, timeout_s=20)
            with pytest.raises(ExecutionError, match="run fewer blocks"):
                await session.run_blocks(0, 16, timeout_s=20)
            for spec, content, match in (
                (f32, {}, "without content"),
                (f32, {0: bytes(15)}, "15 bytes of content for 16"),
                (f32, {0: np.zeros(4)}, "float64"),
                (f32, {0: bytes(16), 1: b""}, "no input arrays"),
                (InputSpec(dtype="object", shape=(1,)), {0: bytes(8)}, "unknown dtype"),
                (InputSpec(dtype="int8", shape=(1,) * 5), {0: bytes(1)}, "out of bounds"),
            ):
                with pytest.raises(KernelTypeError, match=match):
                    await session.compile(kernel("Iota"), LAUNCH, [spec], content)  # type: ignore[arg-type]
            with pytest.raises(ExecutionError, match="4104 bytes and a worker takes 4096"):
                await session.compile(
                    kernel("Iota"), LAUNCH, [InputSpec(dtype="int8", shape=(4104,))], {0: bytes(4104)}
                )
            with SharedInput(16) as unsealed, pytest.raises(KernelTypeError, match="not sealed"):
                await session.compile(kernel("Iota"), LAUNCH, [f32], {0: unsealed})
            big = KernelSource(text="x" * (1 << 20), entry="Iota", digest=bytes(32))
            with pytest.raises(KernelError, match="source is over"):
                await session.compile(big, LAUNCH, [OUT], {})
            await session.run_blocks(0, 8, timeout_s=20)

    trio.run(main)


# -- the lock around real work -----------------------------------------------------------------------------------


def test_what_a_worker_sees_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_SECRET", "x")

    async def main() -> None:
        async with toy("Facts") as session:
            assert session.layers.seccomp
            assert session.layers.landlock_abi >= 1
            facts = int64s((await session.run_blocks(0, 1, timeout_s=20)).outputs[0])
            assert facts[0] == session.pid
            assert facts[1] == os.getpid()
            assert facts[2] < 12
            assert facts[3:6] == [1, 1, 0]
            assert os.getsid(session.pid) == session.pid  # so that Ctrl-C in our terminal does not reach it

    trio.run(main)


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("Segfault", WorkerDied, "SIGSEGV"),
        ("Abort", WorkerDied, "SIGABRT"),
        ("Exec", WorkerDied, "system call that only an attack makes"),
        ("ThreadBomb", WorkerDied, "system call that only an attack makes"),
        ("WriteInput", WorkerDied, "SIGSEGV"),
        ("Hog", ExecutionError, "memory limit"),
        ("ReadPasswd", ExecutionError, "Permission denied"),
    ],
)
def test_bad_work_ends_with_a_word(name: str, error: type[Exception], match: str) -> None:
    async def main() -> None:
        async with toy() as session:
            args = [InputSpec(dtype="int8", shape=(64,)), OUT] if name == "WriteInput" else [OUT]
            await session.compile(kernel(name), LAUNCH, args, {0: bytes(64)} if name == "WriteInput" else {})
            with pytest.raises(error, match=match):
                await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


@pytest.mark.parametrize("name", ["Truncate", "Forge"])
def test_descriptors_are_no_weapon(name: str) -> None:
    """From inside the lock the arena can't be resized, and no descriptor goes out over the channel."""

    async def main() -> None:
        async with toy(name) as session:
            result = await session.run_blocks(0, 1, timeout_s=20)
            assert set(int64s(result.outputs[0])) == {122 if name == "Truncate" else 0}

    trio.run(main)


def test_processor_time_is_limited() -> None:
    async def main() -> None:
        async with toy("Spin", limits=WorkerLimits(cpu_s=1)) as session:
            with pytest.raises(WorkerDied, match=r"SIGXCPU|processor time"):
                await session.run_blocks(0, 1, timeout_s=60)

    trio.run(main)


def test_bubblewrap_around_a_worker() -> None:
    bwrap, note = trio.run(probe_bwrap, sys.executable, _pool_process.readable_paths())
    if bwrap is None:
        pytest.skip(f"workers rely on Landlock and seccomp alone here: {note}")
    required = SandboxPolicy(bwrap="require")

    async def main() -> None:
        async with toy("Facts", policy=required) as session:
            assert session.layers.bwrap
            assert session.layers.seccomp
            facts = int64s((await session.run_blocks(0, 1, timeout_s=20)).outputs[0])
            assert facts[:2] == [1, 0]  # alone in its PID namespace
            assert session.pid > 1
            await session.compile(kernel("Spin"), LAUNCH, [OUT], {})
            with pytest.raises(WorkerTimeout):
                await session.run_blocks(0, 1, timeout_s=0.2)
        for name, match in (("Segfault", "SIGSEGV"), ("Exec", "only an attack")):
            async with toy(name, policy=required) as session:
                with pytest.raises(WorkerDied, match=match):
                    await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


def test_the_policy_decides_what_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(policy: SandboxPolicy) -> None:
        async with toy("Iota", policy=policy) as session:
            await session.run_blocks(0, 1, timeout_s=20)

    monkeypatch.setattr(_sandbox, "landlock_abi", lambda: 0)
    with pytest.raises(SandboxError, match="allow_unsandboxed"):
        trio.run(main, BARE)
    trio.run(main, SandboxPolicy(bwrap="never", allow_unsandboxed=True))
    monkeypatch.undo()
    monkeypatch.setattr(_sandbox, "seccomp_available", lambda: False)
    with pytest.raises(SandboxError, match="allow_unsandboxed"):
        trio.run(main, BARE)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxError, match="bubblewrap is not installed"):
        trio.run(main, SandboxPolicy(bwrap="require"))
    trio.run(main, SandboxPolicy(bwrap="auto"))


def test_a_python_that_would_open_the_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("/", os.path.expanduser("~")):
        monkeypatch.setattr(sys, "prefix", prefix)
        with pytest.raises(SandboxError, match="use a virtual environment"):
            _pool_process.readable_paths()


@pytest.mark.parametrize(
    "bad",
    [
        {"memory_bytes": 1 << 20},
        {"cpu_s": 0},
        {"input_bytes": 0},
        {"session_input_bytes": 1},
        {"output_bytes": 7 << 30},
        {"open_files": 3},
        {"nice": 20},
    ],
)
def test_odd_limits_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        WorkerLimits(**bad)


# -- time-outs, cancellation, death ------------------------------------------------------------------------------


def test_a_run_past_its_time_is_killed() -> None:
    async def main() -> None:
        async with toy("Spin") as session:
            with pytest.raises(WorkerTimeout, match=r"0\.2 s"):
                await session.run_blocks(0, 1, timeout_s=0.2)
            with pytest.raises(WorkerDied, match="did not answer within"):
                await session.run_blocks(0, 1, timeout_s=0.2)

    trio.run(main)


def test_an_endless_compilation_is_killed() -> None:
    async def main() -> None:
        async with toy() as session:
            with pytest.raises(WorkerTimeout):
                await session.compile(kernel("CompileForever"), LAUNCH, [OUT], {}, timeout_s=0.2)

    trio.run(main)


def test_cancelling_a_run_kills_the_worker() -> None:
    async def main() -> None:
        async with toy("Spin") as session:
            pid = session.pid
            with trio.move_on_after(0.2) as scope:
                await session.run_blocks(0, 1, timeout_s=60)
            assert scope.cancelled_caught
            with pytest.raises(WorkerDied, match="cancelled"):
                await session.run_blocks(0, 1, timeout_s=60)
        assert reaped(pid)

    trio.run(main)


def test_cancelling_a_call_that_queues_harms_nobody() -> None:
    async def main() -> None:
        async with toy("Gate") as session, trio.open_nursery() as nursery:
            doomed = trio.CancelScope()

            async def run() -> None:
                result = await session.run_blocks(0, 1, timeout_s=60)
                assert int64s(result.outputs[0])[::63] == [9, 1]

            async def queue() -> None:
                with doomed:
                    await run()

            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(queue)
            await trio.testing.wait_all_tasks_blocked()
            doomed.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert doomed.cancelled_caught
            arena = session._arena
            assert arena is not None
            with trio.fail_after(300):  # the run is at it: open its gate
                while (await arena.copy_out(((63 * 8, 1),)))[0] != b"\x01":
                    await trio.lowlevel.checkpoint()
            arena.put((9).to_bytes(8, "little"))

    trio.run(main)


def test_concurrent_calls_queue() -> None:
    async def main() -> None:
        async with toy("Iota") as session:
            got: dict[int, list[int]] = {}

            async def run(block: int) -> None:
                got[block] = int64s((await session.run_blocks(block, 1, timeout_s=60)).outputs[0])

            async with trio.open_nursery() as nursery:
                for block in range(16):
                    nursery.start_soon(run, block)
            assert got == {b: list(range(b * 64 + 1, b * 64 + 65)) for b in range(16)}

    trio.run(main)


def test_a_worker_killed_from_outside_is_noticed() -> None:
    async def main() -> None:
        async with toy("Iota") as session:
            os.kill(session.pid, signal.SIGKILL)
            with pytest.raises(WorkerDied, match="was killed"):
                await session.run_blocks(0, 1, timeout_s=20)

    trio.run(main)


def test_leaving_a_session_kills_a_run_in_another_task() -> None:
    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, program=TOY) as pool, trio.open_nursery() as nursery:

            async def spin(session: WorkerSession) -> None:
                with pytest.raises(WorkerDied):
                    await session.run_blocks(0, 1, timeout_s=60)

            async with pool.session() as session:
                await session.compile(kernel("Spin"), LAUNCH, [OUT], {})
                nursery.start_soon(spin, session)
                await trio.testing.wait_all_tasks_blocked()

    trio.run(main)


def test_workers_die_with_their_node(tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(
        "import sys, trio\n"
        "from p2pcompute.execution import *\n"
        "from p2pcompute.execution._pool_process import WorkerProgram\n"
        "async def main():\n"
        f"    program = WorkerProgram(module='toy_worker', roots=({str(HOSTILE)!r},))\n"
        "    async with open_pool(policy=SandboxPolicy(bwrap=sys.argv[1]), program=program) as pool, "
        "pool.session() as s:\n"
        "        launch = Launch(grid=(1, 1, 1), block=(1, 1, 1), dims=1)\n"
        "        out = OutputSpec(dtype='int64', shape=(1,))\n"
        "        await s.compile(KernelSource(text='', entry='Spin', digest=bytes(32)), launch, [out], {})\n"
        "        print(s.pid, flush=True)\n"
        "        await s.run_blocks(0, 1, timeout_s=60)\n"
        "trio.run(main)\n"
    )
    for bwrap in ("never", "auto"):
        with subprocess.Popen([sys.executable, str(script), bwrap], stdout=subprocess.PIPE, text=True) as node:
            assert node.stdout is not None
            worker = os.pidfd_open(int(node.stdout.readline()))
            node.kill()

            async def gone(fd: int) -> None:
                with trio.fail_after(300):
                    await trio.lowlevel.wait_readable(fd)

            trio.run(gone, worker)
            os.close(worker)


def test_workers_are_forked_in_trio_s_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies with the thread that forked it, and trio's helper threads end when they have been idle."""
    threads: list[int] = []
    original = subprocess.Popen

    def popen(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return original(*args, **options)

    monkeypatch.setattr(_pool_process.subprocess, "Popen", popen)

    async def main() -> None:
        async with toy():
            pass

    trio.run(main)
    assert threads == [threading.get_ident()]


# -- the pool ----------------------------------------------------------------------------------------------------


def test_the_reserve_is_refilled_and_each_tenant_has_a_new_process() -> None:
    async def main() -> None:
        async with open_pool(spare=1, policy=BARE, program=TOY) as pool:
            pids = []
            for _ in range(3):
                async with pool.session() as session:
                    pids.append(session.pid)
                await pool.wait_warm()
                assert pool.warm == 1
            assert len(set(pids)) == 3

    trio.run(main)


def test_who_waits_for_the_reserve_of_a_pool_that_ends_is_told() -> None:
    """And whoever asks one that has ended, without going round and round meanwhile."""

    async def main() -> None:
        pool = WorkerPool(spare=1, policy=BARE, program=TOY)
        ends: list[str] = []

        async def wait() -> None:
            with pytest.raises(WorkerDied, match="closed"):
                await pool.wait_warm()
            ends.append("told")

        async with trio.open_nursery() as waiting, trio.open_nursery() as serving:
            await serving.start(pool.serve)
            async with pool.session():
                pool._hold_back = True  # nothing is started meanwhile
                waiting.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                assert not ends
            serving.cancel_scope.cancel()
        assert ends == ["told"]
        with pytest.raises(WorkerDied, match="closed"):
            await pool.wait_warm()

    trio.run(main)


def test_the_reserve_is_refilled_when_nobody_computes_or_after_some_time() -> None:
    clock = trio.testing.MockClock()

    async def starting(pool: WorkerPool, after_s: float) -> int:
        clock.jump(after_s)
        await trio.testing.wait_all_tasks_blocked()
        return pool._starting + pool.warm

    async def main() -> None:
        async with open_pool(spare=1, policy=BARE, program=TOY) as pool:
            async with pool.session():
                assert await starting(pool, LATE_S - 2 * REST_S) == 0
            async with pool.session():  # for which one was started, and none beside it
                assert await starting(pool, 0) == 0
            assert await starting(pool, REST_S / 2) == 0
            assert await starting(pool, REST_S / 2) == 1
            await pool.wait_warm()
            async with pool.session():
                assert await starting(pool, LATE_S - 1) == 0
                assert await starting(pool, 1) == 1
                await pool.wait_warm()
            async with pool.session():
                await pool.wait_warm()  # who waits for it does not wait for that

    trio.run(main, clock=clock)


def test_a_spare_that_died_is_not_handed_out() -> None:
    async def main() -> None:
        async with open_pool(spare=1, policy=BARE, program=TOY) as pool:
            (spare,) = pool._warm
            os.kill(spare.pid, signal.SIGKILL)
            await trio.lowlevel.wait_readable(spare._pidfds[0])
            async with pool.session() as session:
                assert session.pid != spare.pid
                await session.compile(kernel("Iota"), LAUNCH, [OUT], {})

    trio.run(main)


def test_sessions_over_the_limit_wait() -> None:
    async def main() -> None:
        async with open_pool(spare=0, max_sessions=1, policy=BARE, program=TOY) as pool:
            order: list[str] = []

            async def second() -> None:
                async with pool.session():
                    order.append("second")

            async with trio.open_nursery() as nursery, pool.session():
                nursery.start_soon(second)
                await trio.testing.wait_all_tasks_blocked()
                order.append("first")
            assert order == ["first", "second"]

    trio.run(main)


def test_cancelling_a_session_that_waits_for_its_worker() -> None:
    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, program=TOY) as pool:
            with trio.move_on_after(0):
                async with pool.session():
                    raise AssertionError("there can be no worker yet")
            async with pool.session() as session:  # gets the one that was started for the first
                await session.compile(kernel("Iota"), LAUNCH, [OUT], {})

    trio.run(main)


def test_cancelling_the_pool_ends_everything() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            pool = WorkerPool(spare=2, policy=BARE, program=TOY)
            await nursery.start(pool.serve)
            async with pool.session() as session:
                await session.compile(kernel("Iota"), LAUNCH, [OUT], {})
                nursery.cancel_scope.cancel()
                with pytest.raises(trio.Cancelled):
                    await session.run_blocks(0, 1, timeout_s=20)
        assert pool.warm == 0
        with pytest.raises(WorkerDied, match="not running"):
            async with pool.session():
                pass

    trio.run(main)


def test_a_program_that_can_not_start_fails_once_not_for_ever(tmp_path: Path) -> None:
    (tmp_path / "broken_worker.py").write_text("def main(c): raise RuntimeError('no luck')\n")
    broken = WorkerProgram(module="broken_worker", roots=(str(tmp_path),))

    async def with_reserve() -> None:
        async with open_pool(spare=1, policy=BARE, program=broken):
            raise AssertionError("there is no worker")

    async def without() -> None:
        async with open_pool(spare=0, policy=BARE, program=broken) as pool:
            for _ in range(2):
                with pytest.raises(WorkerDied, match="no luck"):
                    async with pool.session():
                        pass

    with pytest.raises(WorkerDied, match="no luck"):
        trio.run(with_reserve)
    trio.run(without)


def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    async def main() -> None:
        async with open_pool(spare=0, policy=BARE, program=TOY):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        trio.run(main)


@pytest.mark.parametrize("bad", [{"threads": 0}, {"spare": -1}, {"spare": 65}, {"max_sessions": 0}])
def test_odd_pools_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        WorkerPool(**bad)  # type: ignore[arg-type]
