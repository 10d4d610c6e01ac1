"""Requests of 200 bytes over the request streams that nodes keep to each other: correlated, with deadlines, in limits.

Each request in flight is a task of trio that asks, gets its answer and asks again, as in a node.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
from side import MESSAGE, answer, commands, ready, wait_for_end

from p2pcompute.overlay import Overlay, open_requests
from p2pcompute_protocols.ids import PeerId

__all__ = ["drive", "serve"]

PROTOCOL = "/p2pcompute-benchmark/asked/1"
OpenOverlay = Callable[..., AbstractAsyncContextManager[Overlay]]


def _echo(_peer: PeerId, body: bytes) -> bytes:
    return body


async def serve(opened: OpenOverlay) -> None:
    """Answer, until there is nobody left to answer for."""
    async with opened("/ip4/127.0.0.1/tcp/0") as overlay, open_requests(overlay) as requests:
        requests.serve_inline(PROTOCOL, _echo)
        ready(overlay.addresses[0])
        await trio.to_thread.run_sync(wait_for_end, abandon_on_cancel=True)


async def drive(opened: OpenOverlay, address: str) -> None:
    """Measure what is asked for."""
    async with opened() as overlay, open_requests(overlay) as requests:
        peer = await overlay.connect(address)
        body = bytes(MESSAGE)

        async def request(*, seconds: float, most: int) -> dict[str, Any]:
            for _ in range(20):
                await requests.ask(peer, PROTOCOL, body)
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < most:
                began = time.perf_counter()
                await requests.ask(peer, PROTOCOL, body)
                now = time.perf_counter()
                times.append((now - began) * 1000)
                if now > end:
                    break
            return {"times_ms": times, "units": len(times)}

        async def flight(*, seconds: float, flight: int) -> dict[str, Any]:
            await requests.ask(peer, PROTOCOL, body)
            counts = [0] * flight
            began = time.perf_counter()

            async def again_and_again(which: int) -> None:
                while time.perf_counter() - began < seconds:
                    await requests.ask(peer, PROTOCOL, body)
                    counts[which] += 1

            async with trio.open_nursery() as nursery:
                for which in range(flight):
                    nursery.start_soon(again_and_again, which)
            return {"s": time.perf_counter() - began, "units": sum(counts)}

        measures: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {"request": request, "flight": flight}
        ready()
        lines = commands()
        while (order := await trio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)) is not None:
            answer(await measures[order.pop("do")](**order))
