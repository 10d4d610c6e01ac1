"""What honest uploads lose by taking turns: python benchmarks/network_uploads.py [--rounds 5] [--seconds 2] [--json]

One process takes what others send, each of them a process of its own on loopback: one that sends as much as goes, one
beside a peer that asks for an echo of 200 bytes each seven milliseconds, and two. With turns (`overlay/_turns.py`) and
without take turns; medians of all rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any, NoReturn

import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import OverlayStream, open_libp2p
from p2pcompute.overlay._turns import Turns
from p2pcompute.testing._overlay_checks import PrefixValidator

PROTOCOL = "/uploads/1"
MIB = 1 << 20
PAUSE_S = 0.007
LOADS = {
    "one upload": ("bulk",),
    "one, and a peer that says little": ("bulk", "light"),
    "two uploads": ("bulk", "bulk"),
}


async def send(address: str, kind: str) -> None:
    """A sender: until it is ended."""
    async with open_libp2p(NodeKey.generate(), listen=(), record_validator=PrefixValidator()) as overlay:
        stream = await overlay.open_stream(await overlay.connect(address), PROTOCOL)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.readline)
        while kind == "bulk":
            await stream.send_all(bytes(MIB))
        while True:
            await stream.send_all(b"?" * 200)
            left = 200
            while left:
                left -= len(await stream.receive_some(left))
            await trio.sleep(PAUSE_S)


async def never(_: Turns) -> NoReturn:
    """In place of `Turns.run`: nobody ever waits."""
    await trio.sleep_forever()


async def measure(kinds: tuple[str, ...], seconds: float) -> float:
    """MB/s that come in, of all uploads together."""
    came: Counter[str] = Counter()

    async def take(stream: OverlayStream) -> None:
        while data := await stream.receive_some(MIB):
            came[stream.peer_id] += len(data)
            if data[:1] == b"?":
                await stream.send_all(bytes(data))

    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as overlay:
        overlay.handle(PROTOCOL, take)
        with ExitStack() as stack:
            senders = [
                subprocess.Popen(  # noqa: ASYNC220 - nobody waits for it
                    [sys.executable, __file__, "--send", overlay.addresses[0], kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for kind in kinds
            ]
            for sender in senders:
                stack.enter_context(sender)
                stack.callback(sender.kill)
            for sender in senders:
                assert sender.stdout is not None
                await trio.to_thread.run_sync(sender.stdout.readline)
            for sender in senders:
                assert sender.stdin is not None
                sender.stdin.write("\n")
                sender.stdin.flush()
            await trio.sleep(seconds / 4)
            came.clear()
            began = time.perf_counter()
            await trio.sleep(seconds)
            return sum(came.values()) / (time.perf_counter() - began) / 1e6


def figures(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each load."""
    run = Turns.run
    found: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        for name, kinds in LOADS.items():
            for in_turns in (True, False) if number % 2 else (False, True):
                Turns.run = run if in_turns else never  # type: ignore[method-assign]
                found.setdefault((name, in_turns), []).append(trio.run(measure, kinds, seconds))
    Turns.run = run  # type: ignore[method-assign]
    rows: list[dict[str, Any]] = []
    for name in LOADS:
        taken, free = (statistics.median(found[name, in_turns]) for in_turns in (True, False))
        rows.append({"load": name, "mb_s": taken, "without_turns_mb_s": free, "share": taken / free})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", nargs=2, metavar=("ADDRESS", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        trio.run(send, *options.send)
        return
    rows = figures(options.rounds, options.seconds)
    if options.json:
        sys.stdout.write(json.dumps({row["load"]: row for row in rows}) + "\n")
        return
    for row in rows:
        sys.stdout.write(
            f"{row['load']:34} {row['mb_s']:6.0f} MB/s in turns, {row['without_turns_mb_s']:6.0f} without: "
            f"{row['share']:.2f}\n"
        )


if __name__ == "__main__":
    main()
