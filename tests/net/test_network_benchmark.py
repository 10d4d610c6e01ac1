"""The network's benchmark runs, ends when it is told to, and leaves no process behind. No figure is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "network.py"

pytestmark = pytest.mark.net


def test_it_prints_figures_of_each_peer_and_what_ours_has_to_reach() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--quick", "--json"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert all(set(one) == {"figure", "value", "unit", "reach", "ok"} for one in figures)
    assert all((one["reach"] is None) == (one["ok"] is None) for one in figures)
    names = [one["figure"] for one in figures]
    for peer in ("bare TCP, trio: ", "py-libp2p as it comes: ", "p2pcompute: "):
        for what in ("256 MiB one way", "connect, and know who the other is, p50"):
            assert peer + what in names, done.stderr
    assert all(one["value"] > 0 for one in figures if "processor time" in one["figure"])
    assert sum(one["reach"] is not None for one in figures) >= 5


def test_tasks_are_measured_too() -> None:
    options = ["--quick", "--only", "crowd,map,idle", "--peers", "ours,pool", "--json"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    names = {one["figure"] for one in json.loads(done.stdout)}
    for peer in ("p2pcompute", "multiprocessing.Pool"):
        assert f"{peer}: 10,000 tasks that do nothing, at once" in names, done.stderr
    assert "p2pcompute: memory of the serving side, idle, with its workers" in names


def test_a_peer_without_its_environment_is_left_out_and_named(tmp_path: Path) -> None:
    code = (
        "import pathlib, runpy, sys, _network_peers; "
        f"_network_peers.ENVIRONMENTS = pathlib.Path({str(tmp_path / 'none')!r}); "
        "sys.argv = ['network.py', '--quick', '--peers', 'dask']; "
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 1
    assert "make peer-env PEER=dask" in done.stderr


def test_what_is_written_is_of_a_full_run() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--quick", "--write"], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 2
    assert "full run" in done.stderr


def _group(mark: str) -> list[int]:
    """Processes that have `mark` in their environment, those that are dead and not waited for aside."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
            except OSError:
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_process_ends_with_it(number: signal.Signals) -> None:
    mark = f"BENCHMARK_TEST_MARK={os.urandom(8).hex()}"
    name, _, value = mark.partition("=")
    command = [sys.executable, str(PROGRAM), "--peers", "raw", "--only", "request,stream", "--rounds", "50"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, name: value}) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "request and reply" in line:
                break
        assert len(_group(mark)) == 3  # itself, and a process for each side
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(500) == 128 + number
    assert _group(mark) == []
