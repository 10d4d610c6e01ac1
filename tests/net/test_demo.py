"""The demonstration broken off in the middle: by Ctrl-C in order, by SIGKILL without a word; nothing of it stays."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-c", "import sys; from p2pcompute_cli.main import main; sys.exit(main())", "demo")
SMALL = ("--width", "64", "--height", "36", "--side", "2", "--chunks", "6", "--providers", "3")

pytestmark = pytest.mark.net


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, in whatever session it is."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


@pytest.mark.parametrize(
    ("when", "how", "code"),
    [
        ("development chain at", signal.SIGINT, 130),
        ("agreed with", signal.SIGINT, 130),
        ("agreed with", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_is_left_of_a_demonstration_that_is_broken_off(
    tmp_path: Path, when: str, how: signal.Signals, code: int
) -> None:
    demo = subprocess.Popen([*COMMAND, "--out", str(tmp_path / "out"), *SMALL], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    watched: dict[int, int] = {}
    try:
        said: list[str] = []
        for line in demo.stdout:
            said.append(line)
            if when in line:
                break
        else:
            pytest.fail("it ended before that: " + "".join(said))
        for pid in descendants(demo.pid):
            try:
                watched[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        assert watched
        demo.send_signal(how)
        demo.stdout.read()
        assert demo.wait() == code
        for pid, fd in watched.items():
            gone = select.poll()
            gone.register(fd, select.POLLIN)
            assert gone.poll(300_000), f"process {pid} has stayed"
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
        demo.stdout.close()
        for fd in watched.values():
            os.close(fd)


def test_files_of_others_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "nodes").mkdir()
    done = subprocess.run([*COMMAND, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "holds other files" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nodes", "thesis.tex"]
