"""What honest peers notice of strangers that misbehave: their requests to one node with and without each attack.

    python benchmarks/network_attack.py [--rounds 4] [--seconds 2] [--only windows,resets] [--quick] [--json] [--write]

For each attack a new node, an honest peer and the attackers are processes of their own, on loopback. Rounds with and
without the attack take turns, so that both see the same machine. Attackers come from a new subnet and under new keys in
each round, so that no ban and no rate of the round before spares the node anything. The node has a core of its own
where there are two; honest peer and attackers share the other one, and the honest peer comes first there: what is
measured is what the node does, and not who gets the processor.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import trio
from _attackers import ATTACKS, ECHO, HOLD, Target, go_on
from _common import Figure, arguments, at_most, cores, plain, processor, say

from p2pcompute.errors import OverlayError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Limits, Requests, open_libp2p, open_requests
from p2pcompute.testing._overlay_checks import PrefixValidator

REQUEST = bytes(200)
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attack.json"
PAGE = ROOT / "docs" / "benchmarks" / "attack.md"
SETTLE_S = 20.0  # in which the node has to have got rid of all that attackers have left
GIVEN_BACK_S = 16.0  # then memory goes back to the system, at most so much later
MIB = 1 << 20
NEWCOMERS = 4  # in each round: from one address so many may come at once, and two more each second
POISON = "poison"
WHAT = {**{name: attack.what for name, attack in ATTACKS.items()}, POISON: "pieces of a blob with other bytes"}
RATIO, GROWTH_MIB = 2.0, 12.0  # what p99 may grow by, and what the node may keep


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _line() -> str:
    return await trio.to_thread.run_sync(sys.stdin.readline)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# The node


async def _echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _hold(stream: Any) -> None:
    """Reads a byte now and then, until the peer is gone."""
    while await stream.receive_some(1):  # noqa: ASYNC110 - not to wait for something, but to be slow
        await trio.sleep(0.5)


async def _serve() -> None:
    """Its address on a line, then a line of JSON for each line of input. "fetch ADDRESS" has it fetch from there."""
    limits = replace(Limits(), loopback_exempt=False)
    async with (
        open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), limits=limits) as node,
        open_requests(node) as requests,
        trio.open_nursery() as nursery,
    ):
        node.handle(ECHO, _echo)
        node.handle(HOLD, _hold)
        _serve_requests(requests)
        _say(node.addresses[0])
        fetching = trio.CancelScope()
        most = 0
        while line := await _line():
            word, _, address = line.strip().partition(" ")
            if word == "fetch":
                fetching = trio.CancelScope()
                nursery.start_soon(_fetch_again_and_again, node, address, fetching)
            elif word == "leave":
                fetching.cancel()
            elif word == "collect":
                gc.collect()
            most = max(most, _rss())
            seen = node.limits_report()
            _say(
                json.dumps(
                    {
                        "cpu_s": time.process_time(),
                        "rss": _rss(),
                        "held": [seen.connections, seen.handshakes, seen.streams, seen.memory_bytes],
                        "refused": dict(seen.refused),
                        "bans": len(seen.bans),
                    }
                )
            )
        nursery.cancel_scope.cancel()


def _serve_requests(requests: Requests) -> None:
    requests.serve_inline("/ask/1", lambda _peer, body: body)


def _blob(seed: int = 1) -> bytes:
    import random

    return random.Random(seed).randbytes(4 * MIB)


async def _fetch_again_and_again(node: Any, address: str, scope: trio.CancelScope) -> None:
    """As a provider does whose requesters name this holder for an input, four times a second."""
    import hashlib

    from p2pcompute.blobs import BlobFetch, BlobName, Bytes, FetchFailed, HeldBlob, Source
    from p2pcompute_protocols.blob import leaves_of, root_of
    from p2pcompute_protocols.ids import PeerId

    data = _blob()
    name = BlobName(digest=hashlib.sha256(data).digest(), size=len(data), root=root_of(leaves_of(data)))
    holder = Source(peer=PeerId(address.rpartition("/")[2]), addresses=(address,))
    with scope:
        while True:
            fetch = BlobFetch(node, HeldBlob(name, Bytes(len(data))), bytes(32))
            fetch.add(holder)
            try:
                await fetch.run()
            except (FetchFailed, OverlayError):
                await trio.sleep(0.25)


# The honest peer and the attackers


async def _ask(address: str) -> None:
    """The honest peer: for each line of input requests for so many seconds; what each took on a line of JSON."""
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), listen=()) as node:
        peer = await node.connect(address)
        stream = await node.open_stream(peer, ECHO, timeout_s=60)
        _say("here")
        while line := await _line():
            took = []
            until = time.perf_counter() + float(line)
            gc.collect()
            gc.disable()
            while (start := time.perf_counter()) < until:
                await stream.send_all(REQUEST)
                left = len(REQUEST)
                while left:
                    left -= len(await stream.receive_some())
                took.append(time.perf_counter() - start)
            gc.enable()
            _say(json.dumps(took))


async def _come(address: str) -> None:
    """For each line of input so many newcomers, one after the other, each under a new key; what each took until its
    first answer, on a line of JSON. Null for one that did not get in."""
    _say("here")
    while line := await _line():
        took: list[float | None] = []
        for _ in range(int(line)):
            async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), listen=()) as node:
                start = time.perf_counter()
                try:
                    peer = await node.connect(address)
                    stream = await node.open_stream(peer, ECHO)
                    await stream.send_all(REQUEST)
                    left = len(REQUEST)
                    while left:
                        left -= len(await stream.receive_some())
                    took.append(time.perf_counter() - start)
                except OverlayError:
                    took.append(None)
        _say(json.dumps(took))


async def _attack(address: str, name: str, subnet: str) -> None:
    """Until the end of input; then what was sent, on a line."""
    _, _, host, _, port, *_ = address.split("/")
    target = Target(host, int(port), subnet)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on, name, target)
        _say("here")
        await _line()
        nursery.cancel_scope.cancel()
    _say(json.dumps({"begun": target.begun, "bytes": target.bytes_sent}))


async def _poison() -> None:
    """A holder whose leaves are those of the blob, and whose pieces are not."""
    from p2pcompute._dialogue import STREAM_FAULTS, Dialogue
    from p2pcompute_protocols.blob import BlobConnection, BlobGet, BlobHave, BlobPiece, BlobWant, bitmap, leaves_of
    from p2pcompute_protocols.connection import Role
    from p2pcompute_protocols.errors import ProtocolError
    from p2pcompute_protocols.framing import frame

    data, begun, sent = _blob(), 0, 0
    leaves = leaves_of(data)

    async def serve(stream: Any) -> None:
        nonlocal begun, sent
        begun += 1
        connection = BlobConnection(Role.PROVIDER)
        dialogue = Dialogue(connection, stream)
        try:
            await dialogue.expect(BlobWant)
            await dialogue.send(BlobHave(leaves=leaves, held=bitmap(range(len(leaves)), len(leaves))))
            while True:
                index = (await dialogue.expect(BlobGet)).index
                wrong = BlobPiece(index=index, data=bytes(len(data) // len(leaves)))
                await stream.send_all(frame(wrong.encode(), max_bytes=connection.max_frame_bytes))
                sent += len(wrong.data)
        except (ProtocolError, *STREAM_FAULTS):
            pass

    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node:
        node.handle("/p2pcompute/blob/1", serve)
        _say(node.addresses[0])
        await _line()
    _say(json.dumps({"begun": begun, "bytes": sent}))


class _Part:
    """One of the processes: on `core`, where there is more than one, and behind others there if it is `meek`."""

    def __init__(self, *args: str, core: int, meek: bool = False) -> None:
        def place() -> None:
            mine = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {mine[core % len(mine)]})
            if meek:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # it makes room at once

        self._process = subprocess.Popen(
            [sys.executable, __file__, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=place,
        )

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a part of the benchmark has ended; its error stands above")
        return line.strip()

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return json.loads(self.read())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


# The measurement


@dataclass(slots=True)
class Row:
    """What was found of one attack; its page has a line for each. Milliseconds, MiB, shares of a core."""

    name: str
    machine: str
    p50_ms: tuple[float, float]  # quiet, attacked
    p99_ms: tuple[float, float]
    came_ms: tuple[float, float, float]  # newcomers: the median quiet and attacked, and the slowest attacked
    kept_out: int  # newcomers that did not get in, attacked
    begun_per_s: float
    sent_mib_per_s: float
    core: float  # the node's, under attack
    memory_mib: tuple[float, float, float]  # before, the most under attack, afterwards
    left: list[int]  # connections, handshakes, streams, bytes that stayed

    @property
    def times(self) -> float:
        """How much longer an honest request takes, at the 99th percentile."""
        return self.p99_ms[1] / self.p99_ms[0]

    def figures(self) -> list[Figure]:
        """Held against what they have to reach."""
        what = WHAT[self.name]
        grown = max(0.0, self.memory_mib[2] - self.memory_mib[0])
        return [
            at_most(f"{what}: p99 of an honest request, beside that of quiet rounds", self.times, "times", RATIO),
            at_most(f"{what}: newcomers that did not get in", self.kept_out, "things", 0),
            at_most(f"{what}: memory of the node afterwards, more than before", grown, "MiB", GROWTH_MIB),
            at_most(f"{what}: what attackers still hold afterwards", sum(map(abs, self.left)), "things", 0),
        ]


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def _settled(node: _Part, alone: list[int]) -> Any:
    """The node, once it holds no more than when it was `alone` with the honest peer, or `SETTLE_S` later."""
    until = time.monotonic() + SETTLE_S
    while (seen := node.ask("collect"))["held"] != alone and time.monotonic() < until:
        time.sleep(0.1)
    return seen


def measure(name: str, rounds: int, seconds: float, place: int, machine: str) -> Row:
    """One attack; `place` gives it addresses of its own."""
    quiet: list[float] = []
    attacked: list[float] = []
    came_quiet: list[float | None] = []
    came: list[float | None] = []
    took_s = cpu_s = 0.0
    begun = sent = most = 0
    node = _Part("serve", core=0)
    parts = [node]
    try:
        address = node.read()
        honest = _Part("ask", address, core=1)
        parts.append(honest)
        honest.read()
        honest.ask("1")  # warm
        newcomers = _Part("come", address, core=1)
        parts.append(newcomers)
        newcomers.read()
        newcomers.ask("1")
        first = node.ask("collect")
        for number in range(rounds):
            quiet += honest.ask(str(seconds))
            came_quiet += newcomers.ask(str(NEWCOMERS))
            if name == POISON:
                attackers = _Part("poison", core=1, meek=True)
                parts.append(attackers)
                node.ask(f"fetch {attackers.read()}")
            else:
                subnet = f"127.{100 + place}.{number}"
                attackers = _Part("attack", address, name, subnet, core=1, meek=True)
                parts.append(attackers)
                attackers.read()
            before, began = node.ask(""), time.monotonic()
            attacked += honest.ask(str(seconds))
            after = node.ask("")
            took_s += time.monotonic() - began
            cpu_s += after["cpu_s"] - before["cpu_s"]
            most = max(most, before["rss"], after["rss"])
            came += newcomers.ask(str(NEWCOMERS))
            node.ask("leave")
            said = attackers.ask("")
            begun += said["begun"]
            sent += said["bytes"]
            attackers.stop()
            _settled(node, first["held"])
        until = time.monotonic() + GIVEN_BACK_S
        while (last := node.ask("collect"))["rss"] - first["rss"] > GROWTH_MIB * MIB and time.monotonic() < until:
            time.sleep(0.5)
    finally:
        for part in parts:
            part.stop()
    say(f"{name}: {len(quiet)} + {len(attacked)} requests, refused: {last['refused']}")
    return Row(
        name=name,
        machine=machine,
        p50_ms=_pair(quiet, attacked, 0.5),
        p99_ms=_pair(quiet, attacked, 0.99),
        came_ms=_came(came_quiet, came),
        kept_out=came.count(None),
        begun_per_s=round(begun / took_s, 1),
        sent_mib_per_s=round(sent / took_s / MIB, 2),
        core=round(cpu_s / took_s, 2),
        memory_mib=(round(first["rss"] / MIB, 1), round(most / MIB, 1), round(last["rss"] / MIB, 1)),
        left=[now - then for now, then in zip(last["held"], first["held"], strict=True)],
    )


def _came(quiet: list[float | None], attacked: list[float | None]) -> tuple[float, float, float]:
    before, under = ([took for took in came if took is not None] or [float("nan")] for came in (quiet, attacked))
    return (
        round(1e3 * _quantile(before, 0.5), 1),
        round(1e3 * _quantile(under, 0.5), 1),
        round(1e3 * max(under), 1),
    )


def _pair(quiet: list[float], attacked: list[float], q: float) -> tuple[float, float]:
    return (round(1e3 * _quantile(quiet, q), 3), round(1e3 * _quantile(attacked, q), 3))


HEAD = """# Strangers that misbehave, and who notices

`make bench-attack` measures this and writes this page and `benchmarks/results/attack.json`. An honest peer asks a node
for an echo of 200 bytes, one request after the other on one stream; attackers do what the row says as fast as they
can, eight or more of them at a time, and begin anew under another key as soon as they are thrown out. Rounds with and
without them take turns.

"""

TAIL = """
## What is counted

- **p50, p99** are of all requests of the quiet rounds and of those under attack, and *times* is the second p99 over the
  first. It has to stay within 2.
- **Newcomers**, four a round, come one after the other under new keys, from the honest peer's address, at the end of
  each round, while it is silent: what they take to connect, open a stream and have an echo. The median in quiet rounds
  and under attack, and the slowest one under attack. All of them have to get in.
- **Its core** is the node's processor time, and *MiB/s* what attackers sent. **Begun** is how often one was begun,
  a connection each or more; most end at the door, or by being thrown out.
- **Memory** is the node's resident set before the first round, the most that was seen under attack, and after the last
  one, when every connection, stream and byte that attackers held is gone. It may keep 12 MiB: pages that Python has had
  once are seldom all given back. The most is what streams hold unread, which is counted against their peers and in all
  (`memory` in [limits.md](../limits.md)): each of eight attackers fills 64 windows with 224 KiB (*windows filled*,
  112 MiB), or asks on 32 until they are full (*reading nothing*, 64 MiB). A window is 256 KiB by Yamux, so it can't be
  less without fewer streams for each peer.
- **Where they come from**: each round from another subnet of loopback, with the limits that subnets have
  ([limits.md](../limits.md)), which loopback is not held to otherwise. So each round begins with all that a subnet may
  do at once.
- **The node has a core, the others share one**, on which the honest peer goes before the attackers. So attackers have
  what it leaves of one core, which is what this machine has; from more machines they could send more than is
  shown here, up to the limits. A flood of packets that fills the line is beyond what a node can see to.
- **Who waits for whom**: what connections bring is looked at in turns of a fraction of a millisecond, and who brought
  little, or is new, waits behind one of them at most (`overlay/_turns.py`). Without that it was everybody's whole read
  in each round of the loop: 45 ms for windows, 60 for frames, 77 for resets.
- **Where quiet rounds have a p99 of milliseconds**, other work had the processor meanwhile. Then *times* says nothing,
  and whether it is reached has to be measured again; the quiet machine has 0.3 to 0.4 ms.
- **Who comes**: refused at the door before there is a task; else what it begins and ends with is done piece by piece,
  0.4 ms apart while others are there. Without that p99 was 0.71 ms when handshakes were played again.
- **What is left** are steps that nobody can interrupt: the arithmetic of a handshake, and Python's collector of
  garbage, which looks at streams that were opened and stay for some milliseconds at a time.
- *Pieces of a blob with other bytes*: there the node asks. It fetches an input of 4 MiB, four times a second, from a
  holder that sends other bytes than it says.
"""


def _newcomers(row: Row) -> str:
    took = ", ".join(f"{ms:.0f}" for ms in row.came_ms)
    return took + (f"; {row.kept_out} not" if row.kept_out else "")


def page(rows: Sequence[Row]) -> str:
    """Markdown of what was found."""
    lines = [
        (
            "| attack | p50 quiet, attacked | p99 quiet, attacked | times | newcomers, ms | begun /s | MiB/s "
            "| its core | memory, MiB | |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ok = all(figure.ok for figure in row.figures())
        memory = ", ".join(f"{size:.0f}" for size in row.memory_mib)
        lines.append(
            f"| {WHAT[row.name]} | {row.p50_ms[0]:.2f}, {row.p50_ms[1]:.2f} ms | "
            f"{row.p99_ms[0]:.2f}, {row.p99_ms[1]:.2f} ms | {row.times:.2f} | {_newcomers(row)} | "
            f"{row.begun_per_s:.0f} | {row.sent_mib_per_s:.1f} | {row.core:.0%} | {memory} | "
            f"{'reached' if ok else '**missed**'} |"
        )
    machines = "; ".join(dict.fromkeys(row.machine for row in rows))
    return f"{HEAD}{machines}.\n\n" + "\n".join(lines) + "\n" + TAIL


def _write(new: Sequence[Row]) -> None:
    """The rows and the page; what was not measured now stays as it was."""
    known = {row["name"]: Row(**row) for row in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
    known.update({row.name: row for row in new})
    rows = [known[name] for name in WHAT if name in known]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    PAGE.write_text(page(rows))


def main() -> None:
    """Measure, print, write."""
    parser: argparse.ArgumentParser = arguments(__doc__, quick="two attacks, half a second each")
    parser.add_argument("part", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=4, help="of each kind, in turns")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--only", default=",".join(WHAT), help="attacks, with commas between: " + ", ".join(WHAT))
    given = parser.parse_args()
    match given.part:
        case []:
            pass
        case [name, *args]:
            trio.run({"serve": _serve, "ask": _ask, "attack": _attack, "come": _come, "poison": _poison}[name], *args)
            return
    names = given.only.split(",")
    if given.quick:
        given.rounds, given.seconds, names = 1, 0.5, ["frames", "garbage"]
    if unknown := set(names) - set(WHAT):
        raise SystemExit(f"no attack is called {', '.join(sorted(unknown))}; there are {', '.join(WHAT)}")
    machine = (
        f"{processor()}, {cores()} cores; Python {platform.python_version()}; {given.rounds} rounds of "
        f"{given.seconds:g} s of each kind"
    )
    rows = []
    for place, name in enumerate(names):
        rows.append(measure(name, given.rounds, given.seconds, place, machine))
        if given.write:
            _write(rows[-1:])
    figures = [figure for row in rows for figure in row.figures()]
    if given.json:
        _say(json.dumps([plain(figure) for figure in figures], ensure_ascii=False))
        return
    for figure in figures:
        _say(f"{figure.value:10g} {figure.unit:7} {figure.figure}  ({figure.reach:g}: {'yes' if figure.ok else 'NO'})")


if __name__ == "__main__":
    main()
