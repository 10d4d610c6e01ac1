"""A provider, an honest peer and an attacker in memory, for attacks on request streams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
import trio.testing

from p2pcompute.errors import StreamError
from p2pcompute.identity import NodeKey
from p2pcompute.overlay import (
    OverlayStream,
    RequestLimits,
    Requests,
    open_requests,
)
from p2pcompute.testing import MemoryNetwork, MemoryOverlay, open_memory_overlay
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols import request
from p2pcompute_protocols.ids import PeerId

PROTOCOL = "/p2pcompute-test/requests/1"
LATENCY_S = 0.01
WORK_S = 0.05


@dataclass(slots=True)
class World:
    """A provider, an honest peer and an attacker; `peak` and `begun` count what the provider's handlers do."""

    network: MemoryNetwork
    provider: MemoryOverlay
    honest: MemoryOverlay
    rogue: MemoryOverlay
    serving: Requests
    asking: Requests
    at_work: dict[PeerId, int] = field(default_factory=dict)
    peak: dict[PeerId, int] = field(default_factory=dict)
    begun: int = 0

    async def handle(self, peer: PeerId, body: bytes) -> bytes:
        self.begun += 1
        self.at_work[peer] = self.at_work.get(peer, 0) + 1
        self.peak[peer] = max(self.peak.get(peer, 0), self.at_work[peer])
        try:
            await trio.sleep(float(body or WORK_S))
        finally:
            self.at_work[peer] -= 1
        return body

    def serve(self, **limits: Any) -> None:
        self.serving.serve(PROTOCOL, self.handle, limits=RequestLimits(**limits))

    async def raw(self) -> OverlayStream:
        return await self.rogue.open_stream(self.provider.peer_id, PROTOCOL)

    async def honest_latencies(self, count: int = 20) -> list[float]:
        """How long an honest peer waits for each of its answers, in virtual time."""
        found = []
        for _ in range(count):
            began = trio.current_time()
            await self.asking.ask(self.provider.peer_id, PROTOCOL, b"")
            found.append(round(trio.current_time() - began, 9))
        return found

    @asynccontextmanager
    async def another(self) -> AsyncGenerator[Requests]:
        """One more peer, which knows the provider."""
        opening = open_memory_overlay(self.network, NodeKey.generate(), record_validator=PrefixValidator())
        async with opening as peer, open_requests(peer) as asking:
            await peer.connect(self.provider.addresses[0])
            yield asking

    def streams_of_rogue(self) -> int:
        return self.serving._streams[self.rogue.peer_id, PROTOCOL]


@asynccontextmanager
async def a_world() -> AsyncGenerator[World]:
    network, validator = MemoryNetwork(latency_s=LATENCY_S), PrefixValidator()
    opening = partial(open_memory_overlay, network, record_validator=validator)
    async with (
        opening(NodeKey.generate()) as provider,
        opening(NodeKey.generate()) as honest,
        opening(NodeKey.generate()) as rogue,
        open_requests(provider) as serving,
        open_requests(honest) as asking,
    ):
        for peer in (honest, rogue):
            await peer.connect(provider.addresses[0])
        yield World(network, provider, honest, rogue, serving, asking)


def play(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with a_world() as world:
            with trio.fail_after(3 * 3600):
                await scenario(world)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def ask(number: int, body: bytes = b"", ms: int = 1_000) -> bytes:
    return request.Ask(number=number, timeout_ms=ms, body=body).encode()


async def read_to_end(stream: OverlayStream) -> tuple[bytes, bool]:
    """(what came, whether the stream was reset)."""
    data = b""
    try:
        while part := await stream.receive_some():
            data += part
    except StreamError:
        return data, True
    return data, False


def baseline(scenario: Callable[[World, list[float]], Awaitable[None]], **limits: Any) -> None:
    """Play with the honest peer's latencies as they are while nobody attacks; the first one opens its stream."""

    async def measured(world: World) -> None:
        world.serve(**limits)
        await world.honest_latencies(1)
        await scenario(world, await world.honest_latencies())

    play(measured)
