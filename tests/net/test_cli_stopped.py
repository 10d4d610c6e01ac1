"""The command ended by signals, once, twice and at any moment: all its processes end, and the ledgers hold."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcompute.errors import StorageError

from ._programs import PATIENCE_S, Program, chain, gone, job, long_job, verified

pytestmark = pytest.mark.net


@pytest.mark.parametrize("seed", range(3))
def test_ctrl_c_at_a_random_moment(seed: int, start: Callable[..., Program], tmp_path: Path) -> None:
    """Whoever is stopped, whenever: it ends with all its processes, and both ledgers hold."""
    home = tmp_path / "home"
    rng = random.Random(seed)
    with chain(tmp_path) as url:
        provider = start("up", "--json", "--chain", url)
        provider.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *long_job(tmp_path))
        script.wait_event("agreed")
        for _ in range(rng.randrange(12)):
            script.next_event()
        both = [provider, script] if seed % 2 else [script, provider]
        families = provider.family() | script.family()
        first, other = both
        first.process.send_signal(rng.choice((signal.SIGINT, signal.SIGTERM)))
        code = first.end()
        assert code == (0 if first is provider else 130), first.said
        assert "Traceback" not in first.said
        other.process.send_signal(signal.SIGINT)
        assert other.end() in ((0,) if other is provider else (130, 7)), other.said
        gone(families)
        assert provider.events("stopping")
        assert [event["event"] for event in provider.lines[-2:]] == ["checkpoint", "stopped"]
    verified(home, "default")
    verified(home, "mine")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_in_the_background_of_another_is_ended_too(
    number: signal.Signals, start: Callable[..., Program], tmp_path: Path
) -> None:
    with chain(tmp_path) as url:
        start("up", "--json", "--chain", url).wait_event("ready")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as `p2pcompute run … &` in a shell script inherits it
        try:
            script = start("run", "--json", "--profile", "mine", "--chain", url, *long_job(tmp_path))
        finally:
            signal.signal(signal.SIGINT, before)
        script.wait_event("agreed")
        script.process.send_signal(number)
        assert script.end() == 130, script.said
    verified(tmp_path / "home", "mine")


def test_a_disk_that_fails_ends_the_provider(start: Callable[..., Program], tmp_path: Path) -> None:
    """The operating system refuses each write to a file, with another error than that there is no room."""
    with chain(tmp_path) as url:
        provider = start("up", "--json", "--chain", url)
        provider.wait_event("ready")
        family = provider.family()
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(provider.process.pid, resource.RLIMIT_FSIZE, (0, most))
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 2, 50, 600))
        assert provider.end() == StorageError.exit_code, provider.said
        script.process.send_signal(signal.SIGINT)
        script.end()
        gone(family)
    last = provider.lines[-1]
    assert (last["event"], last["error"]) == ("error", "LedgerFailed")
    assert "check it, then restart the node" in last["message"]
    assert "Traceback" not in provider.said
    verified(tmp_path / "home", "default")


@pytest.mark.parametrize("when", ["at once", "with a chain", "ready"])
def test_ctrl_c_while_it_starts(when: str, start: Callable[..., Program], tmp_path: Path) -> None:
    home = tmp_path / "home"
    provider = start("up", "--json")
    deadline = time.monotonic() + PATIENCE_S
    seen: dict[str, Callable[[], bool]] = {
        "at once": lambda: (home / "networks" / "local" / "chain.lock").exists(),
        "with a chain": lambda: (home / "networks" / "local" / "chain.json").exists(),
        "ready": lambda: (home / "profiles" / "default" / "control.sock").exists(),
    }
    while not seen[when]():
        assert time.monotonic() < deadline
        assert provider.process.poll() is None, provider.said
        time.sleep(0.005)
    family = provider.family()
    provider.process.send_signal(signal.SIGINT)
    assert provider.end() == 0, provider.said
    gone(family)
    assert provider.lines[-1] == {"event": "stopped"}
    assert "Traceback" not in provider.said
    assert not (home / "profiles" / "default" / "control.sock").exists()


def test_a_second_ctrl_c_does_not_wait_for_a_chain_that_hangs(start: Callable[..., Program], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        provider = start("up", "--json", "--chain", url)
        connection, _ = silent.accept()
        with connection:
            provider.process.send_signal(signal.SIGINT)
            assert provider.end() == 0, provider.said
    # A chain that hangs once there is something to claim: SIGSTOP it.
    with chain(tmp_path) as url:
        provider = start("up", "--json", "--profile", "two", "--chain", url)
        provider.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 2, 50, 600))
        assert script.end() == 0, script.said
        (pid,) = (
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and str(tmp_path / "chain").encode() in _command(entry)
        )
        family = provider.family()
        os.kill(pid, signal.SIGSTOP)
        try:
            provider.process.send_signal(signal.SIGINT)
            provider.wait_event("stopping")
            provider.process.send_signal(signal.SIGINT)
            assert provider.end() in (0, 130)  # 130 unless the checkpoint's patience was over first
            gone(family)
        finally:
            os.kill(pid, signal.SIGCONT)
    verified(tmp_path / "home", "two")


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
