"""The node against workers that were taken over: a typed error each time, the process dead, nothing leaked."""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import ExecutionError, SandboxError, WorkerDied, WorkerProtocolError, WorkerTimeout
from p2pcompute.execution import (
    KernelSource,
    Launch,
    OutputSpec,
    SandboxPolicy,
    WorkerSession,
    _pool_process,
    open_pool,
)
from p2pcompute.execution._pool_process import WorkerProgram

from ..._leftovers import open_files

pytestmark = pytest.mark.net

HOSTILE = Path(__file__).parent / "hostile"
SOURCE = KernelSource(text="", entry="any", digest=bytes(32))
LAUNCH = Launch(grid=(16, 1, 1), block=(64, 1, 1), dims=1)
OUTPUT = [OutputSpec(dtype="float32", shape=(1024, 3))]
Scenario = Callable[[WorkerSession], Coroutine[Any, Any, None]]


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


@pytest.fixture
def with_liar(tmp_path: Path) -> Callable[[str, Scenario], None]:
    """Give a session on a liar to a scenario."""

    # Only who never answers is waited for as long as this; a slow machine is not to look like one.
    def run(lie: str, scenario: Scenario) -> None:
        grace_s = 0.05 if lie == "cancel_ignored" else 60.0
        module = f"liar_{lie}"
        (tmp_path / f"{module}.py").write_text(f"from liar import run\ndef main(c): run(c, {lie!r})\n")
        program = WorkerProgram(module=module, roots=(str(HOSTILE), str(tmp_path)))

        async def main() -> None:
            async with (
                open_pool(spare=0, policy=SandboxPolicy(bwrap="never"), program=program, grace_s=grace_s) as pool,
                pool.session() as session,
            ):
                pid = session.pid
                await scenario(session)
            assert reaped(pid)

        trio.run(main)

    return run


def reaped(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


async def compile_kernel(session: WorkerSession, *, timeout_s: float = 20) -> None:
    await session.compile(SOURCE, LAUNCH, OUTPUT, {}, timeout_s=timeout_s)


async def fails(session: WorkerSession, error: type[Exception], match: str, *, timeout_s: float = 20) -> None:
    """The run ends with `error`, and the session says from then on that its worker is gone."""
    await compile_kernel(session)
    with pytest.raises(error, match=match):
        await session.run_blocks(0, 16, timeout_s=timeout_s)
    with pytest.raises(WorkerDied, match="open another session"):
        await session.run_blocks(0, 1, timeout_s=timeout_s)
    with pytest.raises(WorkerDied, match="open another session"):
        await compile_kernel(session)


def test_the_liar_s_own_machinery_works(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        for _ in range(3):
            result = await session.run_blocks(0, 2, timeout_s=20)
            assert result.outputs == (bytes(2 * 64 * 4),)

    with_liar("honest", scenario)


class Quick:
    """A channel to a worker that has always answered before the send returns."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def sendmsg(self, *packet: Any) -> int:
        sent = self._channel.sendmsg(*packet)
        select.select([self._channel], [], [])
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


def test_answers_that_are_there_at_once_cost_no_turn_each_and_leave_some_to_other_tasks(
    with_liar: Callable[[str, Scenario], None],
) -> None:
    async def scenario(session: WorkerSession) -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        await compile_kernel(session)
        process: Any = session._process
        process._raw_channel = Quick(process._raw_channel)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await trio.lowlevel.checkpoint()
            turns = 0
            for _ in range(360):  # a turn for 17 at the latest; one may still be due at either end
                await session.run_blocks(0, 2, timeout_s=20)
            assert 20 <= turns < 100
            nursery.cancel_scope.cancel()

    with_liar("honest", scenario)


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        ("wrong_id", "another request"),
        ("negative_id", "another request"),
        ("wrong_operation", "answered operation"),
        ("unknown_operation", "bad packet"),
        ("more_fields", "more than it should"),
        ("garbage", "bad packet"),
        ("not_canonical", "bad packet"),
        ("nested", "too deep"),
        ("giant_array", "bad packet"),
        ("giant_string", "bad packet"),
        ("giant_packet", "bad packet"),
        ("regex", "bad packet"),
        ("pickle", "bad packet"),
        ("flood", "another request"),
        ("descriptors", "descriptors"),
        ("closes_and_stays", "went on running"),
        ("progress_flood", "more often than it may"),
        ("progress_flood_of_one", "progress can't be"),
        ("progress_backwards", "progress can't be"),
        ("progress_of_nothing", "progress can't be"),
        ("progress_of_all", "progress can't be"),
        ("progress_of_more", "progress can't be"),
        ("progress_of_text", "progress can't be"),
        ("progress_bool", "progress can't be"),
        ("progress_twice_as_long", "progress can't be"),
        ("progress_empty", "progress can't be"),
        ("progress_of_another", "another request"),
        ("cancelled_unasked", "answered operation"),
        ("cancelled_unasked_after_progress", "answered operation"),
        ("done_in_the_past", "more than it should"),
        ("done_on_two_devices", "more than it should"),
    ],
)
def test_a_broken_rule_is_a_protocol_error(with_liar: Callable[[str, Scenario], None], lie: str, match: str) -> None:
    with_liar(lie, lambda session: fails(session, WorkerProtocolError, match))


def test_true_is_not_the_number_one(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        session._process._next_request = 0  # so that the run's request is number 1
        await fails(session, WorkerProtocolError, "another request")

    with_liar("id_true", scenario)


def test_a_flood_of_right_answers_is_found_at_the_next_request(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await compile_kernel(session)
        await session.run_blocks(0, 1, timeout_s=20)
        await trio.lowlevel.wait_readable(session._process._raw_channel)
        with pytest.raises(WorkerProtocolError, match="before it was asked"):
            await session.run_blocks(0, 1, timeout_s=20)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB

    with_liar("flood_of_right_answers", scenario)


def test_a_result_without_a_request(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        await trio.lowlevel.wait_readable(session._process._raw_channel)
        with pytest.raises(WorkerProtocolError, match="before it was asked"):
            await session.run_blocks(0, 1, timeout_s=20)

    with_liar("result_without_request", scenario)


@pytest.mark.parametrize("lie", ["progress_without_request", "progress_of_a_compilation"])
def test_progress_of_what_does_not_run(with_liar: Callable[[str, Scenario], None], lie: str) -> None:
    async def scenario(session: WorkerSession) -> None:
        async def use() -> None:
            await compile_kernel(session)
            await trio.lowlevel.wait_readable(session._process._raw_channel)
            await session.run_blocks(0, 1, timeout_s=20)

        with pytest.raises(WorkerProtocolError):
            await use()
        assert not session.usable

    with_liar(lie, scenario)


def test_progress_of_single_threads_is_none(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        with pytest.raises(WorkerProtocolError, match="progress can't be"):
            await session.run_threads(np.arange(8, dtype=np.int64), timeout_s=20)

    with_liar("done_early", scenario)


def test_a_result_before_all_blocks_are_done_is_a_wrong_result_and_no_more(
    with_liar: Callable[[str, Scenario], None],
) -> None:
    """The rest may have been one launch, so nobody can tell but who computes it again. What was not written is zero,
    and of the size that is due."""

    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        told: list[int] = []
        result = await session.run_blocks(0, 16, timeout_s=20, progress=told.append)
        assert told == [3]
        assert result.outputs == (bytes(16 * 64 * 4),)
        assert session.usable

    with_liar("done_early", scenario)


async def cancel_when_it_runs(session: WorkerSession) -> None:
    """Cancel a run once the worker has said that it is at it."""
    await compile_kernel(session)
    with trio.CancelScope() as scope:
        await session.run_blocks(0, 16, timeout_s=20, progress=lambda _: scope.cancel())
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    "lie",
    [
        "cancel_ignored",
        "cancel_flooded",
        "cancel_with_nonsense",
        "cancel_of_another",
        "cancel_as_a_start",
        "cancel_failed_oddly",
        "cancel_and_leave",
    ],
)
def test_who_does_not_stop_as_it_should_is_killed(with_liar: Callable[[str, Scenario], None], lie: str) -> None:
    async def scenario(session: WorkerSession) -> None:
        with trio.fail_after(300):
            await cancel_when_it_runs(session)
        assert not session.usable
        with pytest.raises(WorkerDied, match="did not stop"):
            await session.run_blocks(0, 1, timeout_s=20)

    with_liar(lie, scenario)


def test_a_second_word_that_it_has_stopped(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        await cancel_when_it_runs(session)
        await trio.lowlevel.wait_readable(session._process._raw_channel)
        with pytest.raises(WorkerProtocolError, match="before it was asked"):
            await session.run_blocks(0, 1, timeout_s=20)

    with_liar("cancel_twice", scenario)


@pytest.mark.parametrize(
    "lie",
    [
        "rows_too_many",
        "rows_none",
        "rows_not_a_tail",
        "rows_whole_and_more",
        "rows_negative",
        "rows_huge",
        "rows_of_text",
        "rows_bool",
        "rows_map",
        "rows_deep",
        "items_none",
        "items_two",
        "items_many",
        "items_text",
        "items_bool",
        "compile_failed_oddly",
        "compile_failed_unknown_kind",
        "compile_failed_at_length",
    ],
)
def test_lies_about_the_kernel(with_liar: Callable[[str, Scenario], None], lie: str) -> None:
    async def scenario(session: WorkerSession) -> None:
        with pytest.raises(WorkerProtocolError):
            await compile_kernel(session)
        with pytest.raises(WorkerDied):
            await session.run_blocks(0, 1, timeout_s=20)

    with_liar(lie, scenario)


@pytest.mark.parametrize("lie", ["stalls", "stops_itself", "empty_packet"])
def test_a_stalled_run_ends_in_time(with_liar: Callable[[str, Scenario], None], lie: str) -> None:
    error, match = (WorkerTimeout, "did not answer") if lie != "empty_packet" else (WorkerProtocolError, "closed")
    with_liar(lie, lambda session: fails(session, error, match, timeout_s=0.3 if lie != "empty_packet" else 20))


def test_a_stalled_compilation_ends_in_time(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        with pytest.raises(WorkerTimeout):
            await compile_kernel(session, timeout_s=0.3)

    with_liar("compile_stalls", scenario)


def test_a_worker_that_leaves(with_liar: Callable[[str, Scenario], None]) -> None:
    with_liar("exits", lambda session: fails(session, WorkerDied, "status 5"))


def test_the_arena_keeps_its_size(with_liar: Callable[[str, Scenario], None]) -> None:
    """Unsealed, a shorter arena would make a reader's mapping a trap, and a longer one eat memory."""

    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        assert (await session.run_blocks(0, 1, timeout_s=20)).outputs == (bytes(64 * 4),)

    with_liar("shrinks_the_arena", scenario)


def test_what_is_written_after_the_result_does_not_reach_it(with_liar: Callable[[str, Scenario], None]) -> None:
    async def scenario(session: WorkerSession) -> None:
        await compile_kernel(session)
        arena_bytes = (await session.run_blocks(0, 1, timeout_s=20)).outputs[0]
        kept = bytes(bytearray(arena_bytes))
        assert session._arena is not None
        with trio.fail_after(300):  # the worker overwrites its own side
            while (await session._arena.copy_out(((0, 1),)))[0] != b"\x02":
                await trio.lowlevel.checkpoint()
        assert arena_bytes == kept

    with_liar("writes_afterwards", scenario)


@pytest.mark.parametrize(
    ("lie", "error", "match"),
    [
        ("start_garbage", WorkerProtocolError, "bad packet"),
        ("start_wrong_packet", WorkerProtocolError, "nonsense"),
        ("start_odd_ready", WorkerProtocolError, "nonsense"),
        ("start_unlocked", SandboxError, "without its lock"),
        ("start_fail", SandboxError, r"no lock\\x1b\[2J to be had"),
        ("start_silent_death", WorkerDied, "status 3"),
        ("start_last_words", WorkerDied, r"ImportError: no \\x1b\]0;numba$"),
    ],
)
def test_a_bad_start(
    with_liar: Callable[[str, Scenario], None], lie: str, error: type[ExecutionError], match: str
) -> None:
    async def never(session: WorkerSession) -> None:
        raise AssertionError("there is no session")

    with pytest.raises(error, match=match):
        with_liar(lie, never)


def test_a_start_that_never_ends(with_liar: Callable[[str, Scenario], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(session: WorkerSession) -> None:
        raise AssertionError("there is no session")

    monkeypatch.setattr(_pool_process, "_START_TIMEOUT_S", 0.5)
    with pytest.raises(WorkerTimeout, match="not ready"):
        with_liar("start_never", never)
