"""The command as people use it: real processes on loopback, ended in every way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
import trio

from p2pcompute._profile import NetworkDir, Profile
from p2pcompute.chain import ChainClient
from p2pcompute.storage import LedgerReport, open_ledger

pytestmark = [pytest.mark.net, pytest.mark.timeout(300)]

PATIENCE_S = 90.0  # bounds a hang; nothing is expected to take that long

SCRIPT = """
import sys
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def orbit(out, a, steps):
    i = cuda.grid(1)
    if i < out.size:
        x = np.float32(i % 997) * np.float32(0.001)
        for k in range(steps):
            x = a * x * (np.float32(1.0) - x)
        out[i] = x


if __name__ == "__main__":
    chunks, steps, threads = (int(value) for value in sys.argv[1:4])
    z = p2p.run(orbit, p2p.out((threads,), np.float32), np.float32(3.7), np.int32(steps), chunks=chunks)
    x = (np.arange(threads) % 997).astype(np.float32) * np.float32(0.001)
    for k in range(steps if threads < 100_000 else 0):
        x = np.float32(3.7) * x * (np.float32(1.0) - x)
    print("equal" if threads >= 100_000 or np.array_equal(x, z) else "DIFFERENT")
"""


def _plain_environment() -> dict[str, str]:
    """Ours, without settings of p2pcompute that whoever runs the tests may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}


class Program:
    """A `p2pcompute` process whose JSON lines can be waited for."""

    def __init__(self, home: Path, *args: str, **environment: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.said = ""
        self._queue: Queue[dict[str, Any] | None] = Queue()
        # A session of its own, as a shell would give it: signals of the test reach it and nobody else.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "p2pcompute_cli.main", *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**_plain_environment(), "P2PCOMPUTE_HOME": str(home), **environment},
        )
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.said = self.process.stderr.read()

    def wait_event(self, name: str, which: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """The next event of that name; fails where the process ends, or says nothing for long, before it."""
        while True:
            event = self.next_event()
            if event["event"] == name and which(event):
                return event

    def next_event(self) -> dict[str, Any]:
        try:
            event = self._queue.get(timeout=PATIENCE_S)
        except Empty:
            raise AssertionError(f"nothing for {PATIENCE_S} s after {self.lines}") from None
        if event is None:
            self.end()
            raise AssertionError(f"ended with {self.process.returncode} after {self.lines}: {self.said}")
        self.lines.append(event)
        return event

    def family(self) -> set[int]:
        """This process and all its descendants."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def end(self) -> int:
        """Wait for its end; the exit code. The rest of its events are in `lines` then."""
        code = self.process.wait(timeout=PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        while not self._queue.empty():
            event = self._queue.get()
            if event is not None:
                self.lines.append(event)
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.lines if event["event"] == name]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the measurement of this machine is kept, so that one test makes it for all."""
    return tmp_path_factory.mktemp("measured") / "device.json"


@pytest.fixture
def start(tmp_path: Path, measured: Path) -> Generator[Callable[..., Program]]:
    programs: list[Program] = []

    def make(*args: str, **environment: str) -> Program:
        programs.append(Program(tmp_path / "home", *args, **environment))
        return programs[-1]

    (tmp_path / "orbit.py").write_text(SCRIPT)
    (tmp_path / "home").mkdir(mode=0o700)
    if measured.exists():
        shutil.copy(measured, tmp_path / "home")
    yield make
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.end()
    if (tmp_path / "home" / "device.json").exists():
        shutil.copy(tmp_path / "home" / "device.json", measured)


def gone(pids: set[int]) -> None:
    """Wait until none of them lives."""
    deadline = time.monotonic() + PATIENCE_S
    while alive := {pid for pid in pids if _lives(pid)}:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def verified(home: Path, profile: str, *, killed: bool = False) -> LedgerReport:
    """The ledger of a profile after a full check; raises where a rule is broken, or where a node that was stopped
    in order has left an agreement open."""

    async def main() -> LedgerReport:
        async with open_ledger(home / "profiles" / profile) as ledger:
            report = await ledger.verify(full=True)
            assert killed or await ledger.open_agreements() == []
            return report

    return trio.run(main)


def job(tmp_path: Path, chunks: int, steps: int, threads: int) -> list[str]:
    return [str(tmp_path / "orbit.py"), str(chunks), str(steps), str(threads)]


def long_job(tmp_path: Path) -> list[str]:
    """Minutes of work in chunks of a moment, to be broken off: it is never over before that, however slow we are."""
    return job(tmp_path, 240, 20_000, 4_000_000)


def test_two_lend_one_asks(start: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(home))
    first = start("up", "--json", "--price", "0.36 USD")
    ready = first.wait_event("ready")
    second = start("up", "--json", "--profile", "second", "--region", "attic")
    ready_2 = second.wait_event("ready")
    assert ready_2["chain"] == ready["chain"]  # it joined the chain that the first one runs
    assert ready_2["peer_id"] != ready["peer_id"]
    assert ready["sandbox"]["seccomp"] is True
    assert ready["price_pusd"] == 100

    again = start("up", "--json")
    assert again.end() == 3
    assert [event["error"] for event in again.events("error")] == ["ProfileInUse"]
    assert "`p2pcompute up --profile default-2`" in again.said

    port = ready["addresses"][0].partition("/p2p/")[0]
    busy = start("up", "--json", "--profile", "third", "--listen", port)
    assert busy.end() == 3
    assert [event["error"] for event in busy.events("error")] == ["PortInUse"]

    script = start("run", "--json", "--profile", "mine", "--budget", "0.02 USD", *job(tmp_path, 6, 50, 6_000))
    assert script.end() == 0, script.said
    assert script.said == "equal\n"
    (summary,) = script.events("summary")
    assert (summary["chunks"], summary["tasks"], summary["exit_code"]) == (6, 1, 0)
    assert script.events("task-started")[0]["ceiling_uusd"] == 20_000
    assert {event["index"] for event in script.events("chunk-done")} == set(range(6))

    asked = [start("status", "--json", "--profile", profile) for profile in ("default", "second")]
    assert [program.end() for program in asked] == [0, 0]
    totals = [program.lines[0]["totals"] for program in asked]
    assert sum(total["earned_uusd"] for total in totals) >= summary["paid_uusd"] > 0
    assert asked[0].lines[0]["pid"] == first.process.pid
    assert asked[0].lines[0]["peer_id"] == ready["peer_id"]

    owner = "0x" + "5a" * 20
    earned = asked[1].lines[0]["totals"]["earned_uusd"]
    money = [start(*words, "--json", "--profile", "second") for words in (["wallet"], ["channels"], ["receipts"])]
    assert [program.end() for program in money] == [0, 0, 0]
    wallet, channels, receipts = (program.lines[0] for program in money)
    assert wallet["unclaimed_uusd"] == earned
    assert sum(row["voucher_uusd"] for row in channels["channels"]) == earned
    assert len(receipts["receipts"]) == sum(
        event["provider"] == ready_2["peer_id"] for event in script.events("chunk-done")
    )
    settle = start("settle", "--json", "--profile", "second")
    assert settle.end() == 0
    assert (settle.lines[0]["settled_uusd"], settle.lines[0]["free_uusd"]) == (earned, earned)
    unasked = start("withdraw", "all", "--to", owner, "--json", "--profile", "second")
    assert unasked.end() == 2  # nobody there to say yes
    assert "add --yes" in unasked.said

    drain = start("drain", "--json", "--profile", "second")
    assert drain.end() == 0
    assert drain.lines == [{"draining": True, "active_tasks": 0}]
    refused = start("run", "--json", "--profile", "mine", *job(tmp_path, 2, 50, 600))
    assert refused.end() == 0, refused.said
    assert {event["provider"] for event in refused.events("chunk-done")} == {ready["peer_id"]}

    # The first one ends, and its chain with it: the second one takes it over, where it was.
    last = start("status", "--json")
    assert last.end() == 0
    family = first.family()
    assert len(family) >= 3  # itself, the chain, a worker in reserve
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 0, first.said
    gone(family)
    assert [event["event"] for event in first.lines[-3:]] == ["stopping", "checkpoint", "stopped"]
    assert first.events("checkpoint")[0]["claimed_uusd"] == last.lines[0]["totals"]["earned_uusd"] > 0
    assert not Profile.named("default").control_socket.exists()
    assert NetworkDir.named("local").chain_url() in (None, ready["chain"]["url"])
    wait_for_chain(ready["chain"]["url"])

    family = second.family()
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 0, second.said
    gone(family)
    # Its money is there without it, and the chain with the money.
    if earned:
        out = start("withdraw", "all", "--to", owner, "--yes", "--json", "--profile", "second")
        assert out.end() == 0, out.said
        assert (out.lines[0]["withdrawn_uusd"], out.lines[0]["free_uusd"]) == (earned, 0)
    empty = start("withdraw", "all", "--to", owner, "--yes", "--json", "--profile", "second")
    assert empty.end() != 0
    assert empty.events("error")[0]["error"] == "InsufficientFunds"

    # What is left on a channel: who pays asks for it, who is paid gives it back at once.
    listed = start("channels", "--json")
    assert listed.end() == 0
    (paid,) = listed.lines[0]["channels"]
    name = paid["channel"][:8]
    unasked = start("close", name, "--profile", "mine")
    assert unasked.end() == 2
    assert "add --yes" in unasked.said
    asked_back = start("close", name, "--yes", "--json", "--profile", "mine")
    assert asked_back.end() == 0, asked_back.said
    (answer,) = asked_back.lines
    assert (answer["direction"], answer["state"], answer["refund_uusd"]) == ("out", "closing", 0)
    assert answer["close_at_s"] > 0
    closed = start("close", name, "--yes", "--json")
    assert closed.end() == 0, closed.said
    (answer,) = closed.lines
    assert (answer["direction"], answer["state"], answer["channel"]) == ("in", "closed", paid["channel"])
    assert answer["refund_uusd"] == paid["deposit_uusd"] - answer["claimed_uusd"] > 0
    nothing = start("close", name, "--yes", "--json", "--profile", "mine")
    assert nothing.end() != 0
    assert "nothing is reserved" in nothing.events("error")[0]["message"]

    for profile in ("default", "second", "mine"):
        verified(home, profile)


def test_a_requester_closes_a_channel_at_once(start: Callable[..., Program], tmp_path: Path) -> None:
    """Its script has ended, so the command itself asks the provider, which agrees; then the two go on."""
    provider = start("up", "--json", "--threads", "1")
    provider.wait_event("ready")
    for times in (1, 2):
        ran = start("run", "--json", "--profile", "mine", *job(tmp_path, 2, 50, 600))
        assert ran.end() == 0, ran.said
        listed = start("channels", "--json", "--profile", "mine")
        assert listed.end() == 0
        (channel,) = listed.lines[0]["channels"]
        closed = start("close", channel["channel"][:8], "--yes", "--json", "--profile", "mine")
        assert closed.end() == 0, closed.said
        (answer,) = closed.lines
        assert (answer["direction"], answer["state"]) == ("out", "closed"), times
        assert answer["claimed_uusd"] == channel["voucher_uusd"] > 0
        assert answer["refund_uusd"] == channel["deposit_uusd"] - channel["voucher_uusd"] > 0
        assert answer["reserved_uusd"] == 0
    provider.process.send_signal(signal.SIGINT)
    assert provider.end() == 0, provider.said
    for profile in ("default", "mine"):
        verified(tmp_path / "home", profile)


def wait_for_chain(url: str) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            while True:
                try:
                    async with ChainClient(url) as client:
                        await client.chain_id()
                        return
                except Exception:  # noqa: BLE001  not yet
                    await trio.sleep(0.1)

    trio.run(main)


@contextmanager
def chain(tmp_path: Path) -> Generator[str]:
    """A chain of the test's own, so that it outlives every node."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "p2pcompute.chain.devchain", "--data-dir", str(tmp_path / "chain")),
            "--until-stdin-closes",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


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


def test_what_a_stopped_node_could_not_claim_is_claimed_next_time(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    with chain(tmp_path) as url:
        provider = start("up", "--json", "--chain", url)
        provider.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 2, 50, 600))
        assert script.end() == 0, script.said
        family = provider.family()
        provider.process.kill()
        provider.end()
        gone(family)  # the worker and the rest see the node's end
        verified(tmp_path / "home", "default", killed=True)
        again = start("up", "--json", "--chain", url)
        again.wait_event("ready")
        again.process.send_signal(signal.SIGINT)
        assert again.end() == 0, again.said
        assert again.events("checkpoint")[0]["claimed_uusd"] == script.events("summary")[0]["paid_uusd"]


def test_a_provider_that_is_killed_is_replaced(start: Callable[..., Program], tmp_path: Path) -> None:
    home = tmp_path / "home"
    with chain(tmp_path) as url:
        lenders: dict[str, Program] = {}
        profiles: dict[str, str] = {}
        for profile in ("one", "two"):
            lender = start("up", "--json", "--profile", profile, "--chain", url, "--threads", "1")
            peer = lender.wait_event("ready")["peer_id"]
            lenders[peer], profiles[peer] = lender, profile
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 16, 10_000, 200_000))
        victim = script.wait_event("chunk-done")["provider"]
        lenders[victim].process.kill()
        assert script.end() == 0, script.said
        assert [event["provider"] for event in script.events("provider-lost")] == [victim]
        assert script.events("summary")[0]["chunks"] == 16
        (other,) = lenders.keys() - {victim}
        assert script.events("task-ended")[0]["providers"][other]["chunks"] > 0
        lenders[victim].end()
    verified(home, profiles[victim], killed=True)
    verified(home, "mine")


def test_the_only_provider_is_killed(start: Callable[..., Program], tmp_path: Path) -> None:
    with chain(tmp_path) as url:
        lender = start("up", "--json", "--chain", url)
        lender.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *long_job(tmp_path))
        script.wait_event("chunk-done")
        family = lender.family()
        lender.process.kill()
        lender.end()
        gone(family)
        assert script.end() == 7, script.said
        assert [event["error"] for event in script.events("error")] == ["TaskError"]
        assert script.events("provider-lost")
        assert "Traceback" not in script.said
        assert script.said.splitlines()[-1].startswith("error: all providers are gone")
    verified(tmp_path / "home", "mine")


def test_a_liar_by_fault_is_caught_and_gets_nothing(start: Callable[..., Program], tmp_path: Path) -> None:
    with chain(tmp_path) as url:
        liar = start("up", "--json", "--profile", "liar", "--fault", "lie:0.5:4", "--chain", url)
        honest = start("up", "--json", "--profile", "honest", "--chain", url)
        peer = liar.wait_event("ready")["peer_id"]
        honest.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 8, 2_000, 40_000))
        assert script.end() == 0, script.said
        assert script.said == "equal\n"
        caught = script.events("liar-caught")
        assert [event["provider"] for event in caught] == [peer]
        assert caught[0]["paid_uusd"] == 0
        liar.process.send_signal(signal.SIGINT)
        assert liar.end() == 0, liar.said
        assert liar.events("checkpoint")[0]["claimed_uusd"] == 0


def test_scripts_that_fail(start: Callable[..., Program], tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    cases = {
        "import sys\nprint('out')\nsys.exit(5)\n": (5, "out\n"),
        "import sys\nsys.exit('no')\n": (1, "error: no\n"),
        "raise ValueError('mine')\n": (1, "ValueError: mine\n"),
        (tmp_path / "orbit.py").read_text(): (1, "ValueError: not enough values to unpack"),
    }
    for text, (code, says) in cases.items():
        file.write_text(text)
        program = start("run", "--json", str(file))
        assert program.end() == code
        assert says in program.said
        assert "p2pcompute_cli" not in program.said  # our frames are not the script's business
        assert program.lines[-1]["event"] == "summary"
        assert program.lines[-1]["exit_code"] == program.process.returncode
    nobody = start("run", "--json", *job(tmp_path, 1, 1, 10))
    assert nobody.end() == 5
    assert nobody.events("error")[0]["error"] == "NoProviderError"
    assert nobody.said.splitlines()[-1].startswith("error: No provider fits")
