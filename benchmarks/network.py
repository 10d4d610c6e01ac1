"""The network side by side: bytes, requests and tasks, ours and what people use instead. Prints a table, or JSON.

    python benchmarks/network.py [--quick] [--peers raw,stock,ours] [--only bulk,request] [--json] [--write]

Each peer is two processes, or more where it has workers, on loopback; one peer runs at a time, and rounds go through
all of them in turn, so that a ratio is of the same minutes. What processes cost is read from the kernel's clocks, so it
holds on a busy machine, where times do not. `make peer-env PEER=dask` makes the environment of a peer that needs one;
peers without theirs are left out, and named.

Some six minutes on two idle cores, and fifteen at most; progress goes to standard error. `--write` puts the figures
into docs/benchmarks/network.md and benchmarks/results/network.json; `make bench-network` does that. `--quick` is for
tests: no figure of it means anything.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _common import arguments, cores, processor, report, say
from _network_figures import MEASURES, Measure, Samples, figures, quantities
from _network_page import page, picture
from _network_peers import PEERS, Peer, command_of, compile_ours, environment, missing
from _network_processes import PeerFailed, Side, adopt_orphans, end_all, opened

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "network.json"
PAGE = HERE.parent / "docs" / "benchmarks" / "network.md"
PICTURE = HERE.parent / "docs" / "benchmarks" / "network.svg"
ROUNDS = 3
TASK_ROUNDS = 2  # of tasks, which take longest to begin with
LIMIT_S = 900.0  # ends a run; a quiet machine takes less than half
READY_S = 400.0  # the first provider of a machine measures it, which takes longest
ONCE_S = 8.0  # what takes longer than this is measured in the first round only
QUICK_PEERS = ("raw", "stock", "ours")
QUICK_MEASURES = ("bulk", "request", "stream", "flight", "connect", "idle")


class Run:
    """One run: what was measured, and what went wrong."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.samples: Samples = {}
        self.failures: list[str] = []
        self.slow: set[tuple[str, str]] = set()
        self.cut = False
        self.ours_failed = False
        self._options = options
        self._folder = folder
        self._environment = environment(folder)
        self._end = time.monotonic() + options.limit

    def round(self, number: int, of: int, peers: list[Peer]) -> None:
        """Each peer once, beginning with another one each time."""
        for peer in [*peers[number % len(peers) :], *peers[: number % len(peers)]]:
            for kind, wanted, beside in self._pairs(peer):
                if kind == "tasks" and number >= TASK_ROUNDS and of == ROUNDS:
                    continue
                if time.monotonic() > self._end:
                    self.cut = True
                    return
                self._where = f"round {number + 1} of {of}, {peer.title}"
                try:
                    self._pair(peer, kind, wanted, beside, first=number == 0)
                except PeerFailed as failure:
                    say(f"{self._where}: {failure}")
                    self.ours_failed |= peer.program == "ours"
                    self.failures.append(f"{self._where}: {str(failure).splitlines()[0]}")

    def _pairs(self, peer: Peer) -> list[tuple[str, list[str], list[str]]]:
        """The pairs of processes that are opened: what is measured in each, and what beside it. Memory is that of the
        last pair, whose serving side has most in it."""

        def wanted(names: Sequence[str]) -> list[str]:
            return [name for name in names if name in self._options.only and (name, peer.name) not in self.slow]

        cold = wanted(("cold", "warm")) if peer.cold else []
        pairs = [("wire", wanted(peer.wire), list[str]()), ("tasks", wanted(peer.tasks), cold)]
        opened = [pair for pair in pairs if pair[1] or pair[2]]
        if peer.idle and wanted(("idle",)):
            if not opened:
                opened = [pairs[bool(peer.tasks)]]
            opened[-1][2].insert(0, "idle")
        return opened

    def _pair(self, peer: Peer, kind: str, wanted: list[str], beside: list[str], *, first: bool) -> None:
        program = command_of(peer)
        extra = [kind, *peer.arguments]
        began = time.monotonic()
        with opened(peer.title, program, self._environment, self._folder, READY_S, extra) as (server, client):
            say(f"{self._where}: ready after {time.monotonic() - began:.1f} s")
            if "idle" in beside:
                self._note("idle", peer, {"alone": server.rss_bytes(alone=True) / 1e6, "all": server.rss_bytes() / 1e6})
            for name in wanted:
                self._measure(MEASURES[name], peer, server, client, first=first)
            for name in ("cold", "warm"):
                if name in beside:
                    again = "first" if name == "cold" else "again"
                    self._cold(name, peer, [*program, "cold", server.address, *extra, again])

    def _measure(self, measure: Measure, peer: Peer, server: Side, client: Side, *, first: bool) -> None:
        order = dict(measure.quick if self._options.quick else measure.order)
        limit_s = READY_S if self._options.quick else measure.limit_s
        limit_s = min(limit_s, max(1.0, self._end - time.monotonic()))
        if measure.name == "bulk" and first:
            say(f"{self._where}: {measure.title}, with its digest")
            client.ask({"do": "bulk", **order, "check": True}, limit_s)
        say(f"{self._where}: {measure.title}")
        began, drive_s, serve_s = time.monotonic(), client.cpu_s(), server.cpu_s()
        answer = client.ask({"do": measure.name, **order}, limit_s)
        found = quantities(measure, answer, client.cpu_s() - drive_s, server.cpu_s() - serve_s)
        self._note(measure.name, peer, found)
        if time.monotonic() - began > ONCE_S:
            self.slow.add((measure.name, peer.name))

    def _cold(self, name: str, peer: Peer, command: list[str]) -> None:
        say(f"{self._where}: {MEASURES[name].title}")
        began = time.monotonic()
        side = Side(f"{peer.title} (cold)", command, self._environment, self._folder)
        try:
            side.read(READY_S)
            self._note(name, peer, {"s": time.monotonic() - began})
        finally:
            side.end()

    def _note(self, name: str, peer: Peer, found: dict[str, float]) -> None:
        self.samples.setdefault((name, peer.name), []).append(found)


def _chosen(text: str | None, known: Mapping[str, Any], parser: argparse.ArgumentParser, what: str) -> list[str]:
    names = [name for name in (text or "").split(",") if name]
    for name in names:
        if name not in known:
            parser.error(f"there is no {what} {name}; there are {', '.join(known)}")
    return names


def _options() -> argparse.Namespace:
    parser = arguments(__doc__, quick="one round of little")
    parser.add_argument("--peers", metavar="NAMES", help=f"of {', '.join(PEERS)}; all whose environment is there")
    parser.add_argument("--only", metavar="FIGURES", help=f"of {', '.join(MEASURES)}; all")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"through all peers [{ROUNDS}]")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help=f"seconds after which it ends [{LIMIT_S:.0f}]")
    options = parser.parse_args()
    part = options.quick or options.only or options.peers
    if options.write and part:
        parser.error("--write takes a full run: leave --quick, --only and --peers out")
    options.only = _chosen(options.only, MEASURES, parser, "figure") or list(
        QUICK_MEASURES if options.quick else MEASURES
    )
    options.peers = _chosen(options.peers, PEERS, parser, "peer") or list(QUICK_PEERS if options.quick else PEERS)
    options.rounds = 1 if options.quick else max(1, min(options.rounds, 100))
    return options


def _present(names: list[str]) -> Iterator[Peer]:
    for name in names:
        if (why := missing(PEERS[name])) is not None:
            say(f"{PEERS[name].title} is left out: {why}")
        else:
            yield PEERS[name]


def main() -> None:
    """Measure, print, and write where asked to."""
    options = _options()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell has it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = list(_present(options.peers))
    if not peers:
        sys.exit(1)
    began, load = time.perf_counter(), os.getloadavg()[0]
    compile_ours()
    with tempfile.TemporaryDirectory(prefix="p2pcompute-network-") as folder:
        try:
            run = Run(options, Path(folder))
            for number in range(options.rounds):
                run.round(number, options.rounds, peers)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            end_all()
    if run.cut:
        say(f"{options.limit:.0f} s are over: what is missing was not measured")
    if options.write and (run.cut or run.ours_failed):
        sys.exit("nothing is written: the run is not whole")
    machine = (
        f"{processor()}, {cores()} cores; Python {platform.python_version()}; load average at the start {load:.1f}, "
        f"{options.rounds} rounds, {time.perf_counter() - began:.0f} s"
    )
    titles = {name: peer.title for name, peer in PEERS.items()}
    absent = {peer.title: why for peer in PEERS.values() if (why := missing(peer)) is not None}
    found = list(figures(run.samples, titles))
    report(
        found,
        options,
        results=RESULTS,
        page_at=PAGE,
        page=partial(page, samples=run.samples, titles=titles, machine=machine, absent=absent, failures=run.failures),
    )
    if options.write:
        PICTURE.write_text(picture(run.samples, titles))
    if run.ours_failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
