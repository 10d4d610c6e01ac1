"""The processes of `network.py`: two sides of a peer, what they cost the processor, and that none of them is left.

A side is a process that takes a line of JSON and answers with one (`peers/shared/side.py`), with all that it starts.
What it costs is read from outside, so that it is the same thing for every language: the kernel's clock of each process
that lives, which is what `time.process_time` reads, and what the kernel has noted of those that ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["PeerFailed", "Side", "adopt_orphans", "end_all", "opened"]

_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_GRACE_S = 5.0
_MARK = "P2PCOMPUTE_BENCHMARK_SIDE"  # each side has its own
_TOLD = 1200  # characters of what a side said last


class PeerFailed(Exception):
    """A side has ended, takes too long, or says that it failed; has what it said last."""


def adopt_orphans() -> None:
    """Become the parent of all that a side leaves behind, so that it can be ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_all() -> None:
    """Kill every process that this one has started, and theirs, until there is none."""
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = _descendants([os.getpid()], _parents()) - {os.getpid()}
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _parents() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) is not None:
            found[int(entry)] = int(fields[1])
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on; the second may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _descendants(roots: Sequence[int], parents: Mapping[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ())
    return found


def _plain_environment() -> dict[str, str]:
    """Ours, without settings of p2pcompute that whoever measures may have."""
    return {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _clock_s(pid: int) -> float:
    """Processor time of a process, of all threads that it has or had, and of those of its children that ended."""
    fields = _stat(pid)
    if fields is None:
        return 0.0
    ended = (int(fields[13]) + int(fields[14])) * _TICK_S
    try:
        return time.clock_gettime((~pid << 3) | 2) + ended  # CPUCLOCK_SCHED of the process, see clock_getcpuclockid(3)
    except OSError:
        return ended


class Side:
    """One side of a peer: a process that measures or is measured, with all that it starts."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.address = ""
        self.apart: list[int] = []
        self._mark = f"{_MARK}={os.urandom(8).hex()}"
        self._said: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by `end`
        variable, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C is for whoever measures, who then ends all
            env={**_plain_environment(), **environment, variable: value},
        )
        self._line = b""

    def read(self, limit_s: float) -> dict[str, Any]:
        """The next line. Raises PeerFailed after `limit_s`, or where there is none."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._line:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise PeerFailed(f"{self.name} says nothing for {limit_s:.0f} s{self._last_words()}")
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise PeerFailed(f"{self.name} has ended{self._last_words()}")
                self._line += data
        line, _, self._line = self._line.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            raise PeerFailed(f"{self.name} says {line[:200]!r}{self._last_words()}") from None
        if "failed" in answer:
            raise PeerFailed(f"{self.name}: {answer['failed']}{self._last_words()}")
        return dict(answer)

    def ask(self, order: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Have something measured."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(f"{self.name} has ended{self._last_words()}") from None
        return self.read(limit_s)

    def _last_words(self) -> str:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - _TOLD))
        said = self._said.read().decode(errors="replace").strip()
        return f":\n{said}" if said else ""

    def processes(self) -> set[int]:
        """This side's processes: also those that have left their parents, by a mark in their environment."""
        parents = _parents()
        mark = self._mark.encode()
        roots = [pid for pid in _descendants([os.getpid()], parents) if _is_marked(pid, mark)]
        return _descendants([self.process.pid, *roots], parents)

    def cpu_s(self) -> float:
        """Processor time so far."""
        return sum(map(_clock_s, self.processes()))

    def rss_bytes(self, *, alone: bool = False) -> int:
        """Memory in use; `alone` without what this side has started, and never with what it says is apart."""
        found = 0
        own = {self.process.pid} if alone else self.processes() - _descendants(self.apart, _parents())
        for pid in own:
            with suppress(OSError):
                found += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
        return found

    def end(self) -> None:
        """Say that there is no more, and see that nothing is left."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        left = self.processes()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_S)
        for pid in (left & set(_descendants([os.getpid()], _parents()))) | self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self._said.close()


@contextmanager
def opened(
    name: str,
    program: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    limit_s: float,
    kind: Sequence[str] = (),
) -> Generator[tuple[Side, Side]]:
    """The serving side of a peer, ready to be driven, and the driving side, ready to be told what to measure.

    Args:
        name: the peer's.
        program: its command, which is given `serve`, or `drive` and an address, and `kind`.
        environment: what is added to ours.
        folder: for what they say beside their answers.
        limit_s: how long either may take to be ready.
        kind: what of the peer is to be measured, and its own arguments.
    """
    server = Side(f"{name} (serving)", [*program, "serve", *kind], environment, folder)
    try:
        said = server.read(limit_s)
        server.address, server.apart = str(said["ready"]), said.get("apart", [])
        client = Side(f"{name} (driving)", [*program, "drive", server.address, *kind], environment, folder)
        try:
            client.read(limit_s)
            yield server, client
        finally:
            client.end()
    finally:
        server.end()
