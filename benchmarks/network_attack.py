"""What honest peers notice of a flood: requests to one node with and without strangers that misbehave, in one run.

    python benchmarks/network_attack.py [--rounds 6] [--requests 200] [--write FILE]

The node, the honest peer and the attacker are processes of their own, on loopback. Rounds with and without the attack
take turns, so that both see the same machine. Printed as JSON: p50 and p99 of an honest request of 200 bytes on a kept
stream, processor time of the node for each, the ratios, and what the node refused. Attackers come under new keys, or
they would be banned after a moment: what is measured is a flood of strangers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio

ECHO = "/echo/1"
REQUEST = bytes(200)


async def _serve() -> None:
    """The node: its address on a line, then a line of JSON for each line of input, until the end."""
    from p2pcompute.identity import NodeKey
    from p2pcompute.overlay import open_libp2p
    from p2pcompute.testing._overlay_checks import PrefixValidator

    async def echo(stream: Any) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node:
        node.handle(ECHO, echo)
        _say(node.addresses[0])
        while await trio.to_thread.run_sync(sys.stdin.readline):
            report = node.limits_report()
            _say(
                json.dumps(
                    {
                        "cpu_s": time.process_time(),
                        "connections": report.connections,
                        "streams": report.streams,
                        "memory_bytes": report.memory_bytes,
                        "refused": dict(report.refused),
                        "bans": len(report.bans),
                    }
                )
            )


async def _ask(address: str) -> None:
    """The honest peer: for each line of input, so many requests; their seconds on a line of JSON."""
    from p2pcompute.identity import NodeKey
    from p2pcompute.overlay import open_libp2p
    from p2pcompute.testing._overlay_checks import PrefixValidator

    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), listen=()) as node:
        peer = await node.connect(address)
        stream = await node.open_stream(peer, ECHO, timeout_s=60)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            took = []
            for _ in range(int(line)):
                start = time.perf_counter()
                await stream.send_all(REQUEST)
                left = len(REQUEST)
                while left:
                    left -= len(await stream.receive_some())
                took.append(time.perf_counter() - start)
            _say(json.dumps(took))


async def _attack(address: str) -> None:
    """Strangers without end: each opens a connection and as many streams as it is let, and leaves."""
    from p2pcompute.identity import NodeKey
    from p2pcompute.overlay import open_libp2p
    from p2pcompute.testing._overlay_checks import PrefixValidator

    while True:
        async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator(), listen=()) as node:
            try:
                peer = await node.connect(address)
                for _ in range(200):
                    await node.open_stream(peer, ECHO)
            except Exception:  # noqa: BLE001 - refused, one way or the other
                continue


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _Part:
    def __init__(self, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["serve", "ask", "attack"], help=argparse.SUPPRESS)
    parser.add_argument("address", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=6, help="of each kind, in turns")
    parser.add_argument("--requests", type=int, default=200, help="of a round")
    parser.add_argument("--write", type=Path, help="a file for the JSON")
    given = parser.parse_args()
    if given.part is not None:
        trio.run(*{"serve": (_serve,), "ask": (_ask, given.address), "attack": (_attack, given.address)}[given.part])
        return
    node = _Part("serve")
    address = node.read()
    honest = _Part("ask", address)
    took: dict[str, list[float]] = {"quiet": [], "attacked": []}
    cpu: dict[str, float] = {"quiet": 0.0, "attacked": 0.0}
    honest.ask(str(given.requests))  # warm
    try:
        for _ in range(given.rounds):
            for kind in took:
                attacker = _Part("attack", address) if kind == "attacked" else None
                try:
                    before = node.ask("")
                    while attacker is not None and node.ask("")["connections"] < 2:
                        time.sleep(0.05)
                    took[kind] += honest.ask(str(given.requests))
                    cpu[kind] += node.ask("")["cpu_s"] - before["cpu_s"]
                finally:
                    if attacker is not None:
                        attacker.stop()
                while node.ask("")["connections"] > 1:
                    time.sleep(0.05)
        last = node.ask("")
    finally:
        honest.stop()
        node.stop()
    result = {
        "request_bytes": len(REQUEST),
        "requests": len(took["quiet"]),
        "p50_ms": {kind: round(1e3 * _quantile(values, 0.5), 3) for kind, values in took.items()},
        "p99_ms": {kind: round(1e3 * _quantile(values, 0.99), 3) for kind, values in took.items()},
        "node_cpu_ms_per_request": {kind: round(1e3 * s / len(took[kind]), 3) for kind, s in cpu.items()},
        "p99_ratio": round(_quantile(took["attacked"], 0.99) / _quantile(took["quiet"], 0.99), 2),
        "afterwards": {key: last[key] for key in ("connections", "streams", "memory_bytes", "bans")},
        "refused": last["refused"],
    }
    text = json.dumps(result, indent=2)
    if given.write is not None:
        given.write.write_text(text + "\n")
    _say(text)


if __name__ == "__main__":
    main()
