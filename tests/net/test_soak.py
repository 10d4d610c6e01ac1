"""Nodes that come and go over real sockets, strangers among them: at the end there is what there was at the start.

A few rounds run with the tests; `make soak-nightly` goes on for `P2PCOMPUTE_SOAK_S` seconds.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import open_libp2p
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.testing._overlay_checks import PrefixValidator

from ._attackers import DATA, SYN, WINDOW, frame, handshake, tcp

pytestmark = pytest.mark.net

ECHO = "/echo/1"
ROUNDS = 6
MOST_GROWTH = 48 * 1024 * 1024  # of resident memory: generous, since Python gives pages back late


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def settle(tasks: int, sockets: int, victim: Libp2pOverlay) -> None:
    """For what has no event: look every 20 ms."""
    while True:
        report = victim.limits_report()
        held = (report.connections, report.handshakes, report.streams, report.memory_bytes)
        if held == (0, 0, 0, 0) and trio.lowlevel.current_statistics().tasks_living <= tasks and files() <= sockets:
            return
        await trio.sleep(0.02)


async def honest(victim: Libp2pOverlay) -> None:
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as visitor:
        peer = await visitor.connect(victim.addresses[0])
        stream = await visitor.open_stream(peer, ECHO)
        data = os.urandom(100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            got = b""
            while len(got) < len(data):
                got += await stream.receive_some()
        assert got == data
        await stream.aclose()


async def cut_off(victim: Libp2pOverlay) -> None:
    """A peer that goes in the middle of a frame, with streams open."""
    async with await tcp(victim.addresses[0]) as stream:
        secure = await handshake(stream, victim.addresses[0])
        await secure.write(frame(WINDOW, SYN, 1, 0) + frame(DATA, SYN, 3, 5000, bytes(100)))


async def nonsense(victim: Libp2pOverlay) -> None:
    async with await tcp(victim.addresses[0]) as stream:
        await stream.send_all(b"\xff" * 64)


def test_rounds_of_visits_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest keeps all that is logged until a test has ended: 60 KB for each round.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)

    async def echo(stream: Any) -> None:
        while data := await stream.receive_some():
            await stream.send_all(data)

    async def main() -> None:
        async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as victim:
            victim.handle(ECHO, echo)

            async def a_round() -> None:
                async with trio.open_nursery() as nursery:
                    for visit in (honest, cut_off, nonsense):
                        nursery.start_soon(visit, victim)

            await trio.testing.wait_all_tasks_blocked()  # the listener has begun
            tasks, sockets = trio.lowlevel.current_statistics().tasks_living, files()
            await a_round()
            await settle(tasks, sockets, victim)
            gc.collect()
            threads, memory = threading.active_count(), resident_bytes()
            until = trio.current_time() + float(os.environ.get("P2PCOMPUTE_SOAK_S", "0"))
            done = 0
            while done < ROUNDS or trio.current_time() < until:
                await a_round()
                done += 1
            await settle(tasks, sockets, victim)
            gc.collect()
            assert threading.active_count() <= threads + 1  # trio keeps one that it may use again
            assert resident_bytes() - memory < MOST_GROWTH

    trio.run(main)
