"""What tests of the command share: its processes, their ledgers and a chain that outlives them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import trio

from p2pcompute.chain import ChainClient
from p2pcompute.storage import LedgerReport, open_ledger

PATIENCE_S = 500.0  # bounds a hang; nothing is expected to take that long

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

    def __init__(self, home: Path, *args: str, module: str = "p2pcompute_cli.main", **environment: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.said = ""
        self._queue: Queue[dict[str, Any] | None] = Queue()
        # A session of its own, as a shell would give it: signals of the test reach it and nobody else.
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
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
