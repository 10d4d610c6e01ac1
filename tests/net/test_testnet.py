"""`p2pcompute testnet up`: real processes on loopback, ended by themselves or by us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

COMMAND = (sys.executable, "-c", "import sys; from p2pcompute_cli.main import main; sys.exit(main())")
SCRIPT = """
import numpy as np, p2pcompute as p2p
from p2pcompute import cuda

@p2p.kernel
def saxpy(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]

x = np.arange(5000, dtype=np.float32)
z = p2p.run(saxpy, p2p.out(x.shape, x.dtype), np.float32(2), x, x, budget="0.01 USD", chunks=4)
assert np.array_equal(z, 3 * x)
print("right")
"""

pytestmark = pytest.mark.net


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}
    return {**kept, "P2PCOMPUTE_HOME": str(home)}


def events(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


@contextmanager
def started(home: Path) -> Generator[subprocess.Popen[bytes]]:
    up = subprocess.Popen(
        [*COMMAND, "testnet", "up", "2", "--json"],
        stdout=subprocess.PIPE,
        env=environment(home),
        start_new_session=True,
    )
    try:
        yield up
    finally:
        if up.poll() is None:
            os.killpg(up.pid, signal.SIGKILL)
            up.wait()
        assert up.stdout is not None
        up.stdout.close()


def test_of_a_provider_that_dies_is_told_and_nobody_finds_it_any_more(home: Path) -> None:
    with started(home) as up:
        nodes: dict[str, dict[str, Any]] = {}
        for event in events(up):
            if event.get("event") == "ready":
                nodes[event["node"]] = event
            if event.get("event") == "testnet-ready":
                break
        found = home / "networks" / "local" / "nodes"
        assert {path.stem for path in found.iterdir()} == {event["peer_id"] for event in nodes.values()}
        os.kill(nodes["node-2"]["pid"], signal.SIGKILL)
        ended = next(event for event in events(up) if event.get("event") == "node-ended")
        assert (ended["node"], ended["exit_code"]) == ("node-2", -signal.SIGKILL)
        assert Path(ended["log"]).is_file()
        assert [path.stem for path in found.iterdir()] == [nodes["node-1"]["peer_id"]]
        up.send_signal(signal.SIGINT)
        assert [event["node"] for event in events(up) if event.get("event") == "stopped"] == ["node-1"]
        assert up.wait(timeout=500) == 130


def test_a_testnet_serves_a_plain_script_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "saxpy.py"
    script.write_text(SCRIPT)
    pids: list[int] = []
    with started(home) as up:
        for event in events(up):
            if event.get("event") == "ready":
                pids.append(event["pid"])
            if event.get("event") == "testnet-ready":
                break
        assert len(pids) == 2
        asked = subprocess.run(
            [sys.executable, str(script)], env=environment(home), capture_output=True, timeout=500, check=False
        )
        assert asked.stdout.decode().split() == ["right"], asked.stderr.decode()
        up.send_signal(signal.SIGINT)
        said = list(events(up))
        assert up.wait(timeout=500) == 130
        assert [event.get("event") for event in said].count("stopped") == 2
        assert sum(event.get("claimed_uusd", 0) for event in said) > 0  # the chain stays for so long
        assert not any(alive(pid) for pid in pids)
