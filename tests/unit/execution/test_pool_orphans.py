"""Nothing is left of a worker that was broken off while it started, nor of a node's workers when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import trio

from p2pcompute.execution import SandboxPolicy, WorkerLimits, _pool_process
from p2pcompute.execution._pool_guard import GroupGuard
from p2pcompute.execution._pool_process import WorkerProcess, WorkerProgram, readable_paths
from p2pcompute.execution._sandbox_bwrap import Bwrap, probe_bwrap

pytestmark = pytest.mark.net

HOSTILE = Path(__file__).parent / "hostile"
BOUND_S = 300.0  # what a loaded machine may take for what takes milliseconds

# What matters of bubblewrap: a child that waits for a word from its parent, and a parent that may be killed before it
# has given it. This one takes its time, and gives none.
SLOW_BWRAP = """#!/bin/sh
while [ "$1" != -- ]; do
  if [ "$1" = --info-fd ]; then info=$2; fi
  shift
done
sleep 1000 &
echo $! > {pid_file}.new && mv {pid_file}.new {pid_file}
sleep {delay_s}
echo "{{\\"child-pid\\": $!}}" > /proc/self/fd/$info
wait
"""

NODE = """
import sys, trio
from p2pcompute.execution import SandboxPolicy, WorkerLimits, open_pool
from p2pcompute.execution._pool_guard import GroupGuard
from p2pcompute.execution._pool_process import WorkerProcess, WorkerProgram
from p2pcompute.execution._sandbox_bwrap import Bwrap

what, bwrap, *roots = sys.argv[1:]
program = WorkerProgram(module="toy_worker", roots=tuple(roots))

async def main():
    if what == "pool":
        async with open_pool(policy=SandboxPolicy(bwrap="require"), program=program) as pool:
            await pool.wait_warm()
            print("warm", flush=True)
            await trio.sleep_forever()
    guard = GroupGuard() if what == "guarded" else None
    print("starting", flush=True)
    await WorkerProcess.start(
        program=program, threads=1, limits=WorkerLimits(), policy=SandboxPolicy(),
        bwrap=Bwrap(path=bwrap, version="", disable_userns=False), group=guard and guard.group,
    )

trio.run(main)
"""


@pytest.fixture
def marked(tmp_path: Path) -> Generator[Path]:
    """A directory whose name all processes of a test carry; what is left of them ends with the test."""
    root = tmp_path / "marked-root"
    root.mkdir()
    yield root
    for pid in left(root):
        os.kill(pid, signal.SIGKILL)


def left(root: Path) -> list[int]:
    """Processes with `root` in their command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(root).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def runs(pid: int) -> bool:
    """Whether it does anything still; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do."""
    end = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def slow_bwrap(tmp_path: Path, *, delay_s: float) -> tuple[Bwrap, Path]:
    pid_file, script = tmp_path / "child.pid", tmp_path / "bwrap"
    script.write_text(SLOW_BWRAP.format(pid_file=pid_file, delay_s=delay_s))
    script.chmod(0o700)
    return Bwrap(path=str(script), version="", disable_userns=False), pid_file


def child_of(pid_file: Path) -> int:
    until(pid_file.exists)
    return int(pid_file.read_text())


async def start(bwrap: Bwrap, root: Path, group: int | None = None) -> None:
    await WorkerProcess.start(
        program=WorkerProgram(module="toy_worker", roots=(str(root), str(HOSTILE))),
        threads=1,
        limits=WorkerLimits(),
        policy=SandboxPolicy(),
        bwrap=bwrap,
        group=group,
    )


def real_bwrap() -> Bwrap:
    bwrap, note = trio.run(probe_bwrap, sys.executable, readable_paths())
    if bwrap is None:
        pytest.skip(f"no bubblewrap here: {note}")
    return bwrap


@pytest.mark.parametrize("defended", [True, False])
def test_a_start_that_is_cancelled_ends_the_child_that_it_does_not_know_yet(
    tmp_path: Path, marked: Path, monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    bwrap, pid_file = slow_bwrap(tmp_path, delay_s=0.5)
    if not defended:
        monkeypatch.setattr(_pool_process, "_INFO_TIMEOUT_S", 0)

    async def main() -> int:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(start, bwrap, marked)
            child = await trio.to_thread.run_sync(child_of, pid_file)
            nursery.cancel_scope.cancel()
        return child

    child = trio.run(main)
    try:
        assert runs(child) != defended
    finally:
        if not defended:
            os.kill(child, signal.SIGKILL)


def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(marked: Path) -> None:
    bwrap = real_bwrap()

    async def main() -> None:
        with GroupGuard() as guard:
            for step in range(40):  # a start takes some 10 ms until bubblewrap is through
                with trio.move_on_after(step * 0.0003):
                    await start(bwrap, marked, guard.group)
                assert left(marked) == []

    trio.run(main)


@pytest.mark.parametrize("defended", [True, False])
def test_a_node_that_is_killed_in_a_start_takes_the_child_with_it(tmp_path: Path, marked: Path, defended: bool) -> None:
    bwrap, pid_file = slow_bwrap(tmp_path, delay_s=1000)
    argv = [sys.executable, "-c", NODE, "guarded" if defended else "alone", bwrap.path, str(marked), str(HOSTILE)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as node:
        child = child_of(pid_file)
        assert runs(child)
        node.kill()
    try:
        if defended:
            until(lambda: not runs(child) and left(marked) == [])
        else:
            assert runs(child)  # and will: there is nobody to end it
    finally:
        if not defended:
            os.kill(child, signal.SIGKILL)


def test_a_node_that_is_killed_at_any_moment_of_a_start_leaves_nothing(marked: Path) -> None:
    bwrap = real_bwrap()
    argv = [sys.executable, "-c", NODE, "guarded", bwrap.path, str(marked), str(HOSTILE)]
    for step in range(8):
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as node:
            assert node.stdout is not None
            assert node.stdout.readline() == b"starting\n"
            time.sleep(step * 0.001)
            node.kill()
    until(lambda: left(marked) == [])


def test_a_node_that_is_killed_beside_a_warm_worker_leaves_nothing(marked: Path) -> None:
    real_bwrap()
    argv = [sys.executable, "-c", NODE, "pool", "", str(marked), str(HOSTILE)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"warm\n"
        assert len(left(marked)) >= 3  # the node, bubblewrap and the worker
        node.kill()
    until(lambda: left(marked) == [])


def test_the_guard_ends_with_its_block_and_takes_its_group_along() -> None:
    with GroupGuard() as guard:
        member = subprocess.Popen(["sleep", "1000"], process_group=guard.group)
        assert os.getpgid(member.pid) == guard.group
    assert member.wait(BOUND_S) == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.killpg(guard.group, 0)
