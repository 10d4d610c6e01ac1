"""CPU time of a request and its answer of 200 bytes on a kept stream; prints JSON.

Over libp2p on loopback asking and answering are two processes, and each side's time is its own. In memory both are in
one process, so that the sum of both sides is what is measured, without crypto, sockets and a kernel. `inline` answers
where the request is read; `task` has a task for each request. Beside them what a request costs that opens a stream for
itself.

CPU time is `time.process_time`, which holds on a busy machine; rates follow from the wall clock, which does not.

python benchmarks/network_requests.py [--count 4000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Overlay, OverlayStream, RequestLimits, Requests, open_libp2p, open_requests
from p2pcompute.testing import MemoryNetwork, open_memory_overlay
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols.ids import PeerId

INLINE = "/p2pcompute-bench/inline/1"
TASK = "/p2pcompute-bench/task/1"
CPU = "/p2pcompute-bench/cpu/1"
ALONE = "/p2pcompute-bench/alone/1"
BODY = bytes(200)
LIMIT_S = 500.0
Cpu = Callable[[], Awaitable[float]]


def answer(requests: Requests) -> None:
    """Answer the requests of this benchmark."""

    async def task(_: PeerId, body: bytes) -> bytes:
        return body

    async def alone(stream: OverlayStream) -> None:
        await stream.send_all(await stream.receive_some())

    limits = RequestLimits(requests=512)
    requests.serve_inline(INLINE, lambda _, body: body, limits=limits)
    requests.serve(TASK, task, limits=limits)
    requests.serve_inline(CPU, lambda _, __: repr(time.process_time()).encode())
    requests.overlay.handle(ALONE, alone)


async def provide() -> None:
    """Be the process that answers; prints its address and ends when its input closes."""
    async with (
        open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as overlay,
        open_requests(overlay) as requests,
    ):
        answer(requests)
        sys.stdout.write(overlay.addresses[0] + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def many(requests: Requests, peer: PeerId, protocol: str, count: int, at_once: int) -> None:
    """Ask `count` times, so many at once."""

    async def some(asks: int) -> None:
        for _ in range(asks):
            await requests.ask(peer, protocol, BODY)

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(some, count // at_once)


async def alone(overlay: Overlay, peer: PeerId, count: int) -> None:
    """The same, each on a stream of its own."""
    for _ in range(count):
        stream = await overlay.open_stream(peer, ALONE)
        await stream.send_all(BODY)
        await stream.receive_some()
        await stream.aclose()


async def measure(requests: Requests, peer: PeerId, cpu: Cpu | None, count: int, rounds: int) -> dict[str, Any]:
    """Medians over rounds of microseconds a request."""

    async def timed(run: Callable[[], Awaitable[None]], asks: int) -> dict[str, float]:
        await run()  # opens the stream
        ours: list[float] = []
        theirs: list[float] = []
        rates: list[float] = []
        for _ in range(rounds):
            there = 0.0 if cpu is None else await cpu()
            here, began = time.process_time(), time.perf_counter()
            await run()
            ours.append((time.process_time() - here) / asks * 1e6)
            rates.append(asks / (time.perf_counter() - began))
            theirs.append(0.0 if cpu is None else (await cpu() - there) / asks * 1e6)
        rate = round(statistics.median(rates))
        if cpu is None:
            return {"both_us": round(statistics.median(ours), 1), "per_s": rate}
        return {
            "asking_us": round(statistics.median(ours), 1),
            "answering_us": round(statistics.median(theirs), 1),
            "per_s": rate,
        }

    found: dict[str, Any] = {}
    for name, protocol in (("inline", INLINE), ("task", TASK)):
        for at_once in (1, 64):
            asks = max(at_once, (count if at_once > 1 else count // 4) // at_once * at_once)
            found[f"{name}_{at_once}"] = await timed(partial(many, requests, peer, protocol, asks, at_once), asks)
    asks = max(1, count // 40)
    found["stream_each"] = await timed(partial(alone, requests.overlay, peer, asks), asks)
    return found


async def in_memory(count: int, rounds: int) -> dict[str, Any]:
    """Both sides in this process."""
    network, validator = MemoryNetwork(latency_s=0.0), PrefixValidator()
    async with (
        open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as there,
        open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as here,
        open_requests(there) as answering,
        open_requests(here) as asking,
    ):
        answer(answering)
        await here.connect(there.addresses[0])
        return await measure(asking, there.peer_id, None, count, rounds)


async def over_libp2p(count: int, rounds: int) -> dict[str, Any]:
    """The answering side in a process of its own."""
    command = [sys.executable, __file__, "--provide"]
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond, before anything is measured
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = (await trio.to_thread.run_sync(process.stdout.readline)).strip()
        async with (
            open_libp2p(NodeKey.generate(), listen=(), record_validator=PrefixValidator()) as overlay,
            open_requests(overlay) as requests,
        ):
            peer = await overlay.connect(address)

            async def cpu() -> float:
                return float(await requests.ask(peer, CPU, b""))

            return await measure(requests, peer, cpu, count, rounds)
    finally:
        process.communicate(timeout=30)


async def run(count: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    with trio.fail_after(LIMIT_S):
        return {
            "count": count,
            "rounds": rounds,
            "memory": await in_memory(count, rounds),
            "libp2p": await over_libp2p(count, rounds),
        }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--provide", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.provide:
        trio.run(provide)
        return
    sys.stdout.write(json.dumps(trio.run(run, args.count, args.rounds), indent=1) + "\n")


if __name__ == "__main__":
    main()
