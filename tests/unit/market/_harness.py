"""A market of simulated nodes for tests: on the network in memory under virtual time, or on libp2p in real time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.node import Node
from p2pcompute.payments import ModelChain
from p2pcompute.testing import (
    InlineWorkers,
    MemoryNetwork,
    open_simulated_node,
    simulated_chain,
    virtual_clock_ms,
)
from p2pcompute_protocols.ids import Address, PeerId

__all__ = [
    "SIZE",
    "Market",
    "Watch",
    "X",
    "Y",
    "Z",
    "axpy",
    "compute",
    "in_memory",
    "on_libp2p",
    "open_market",
    "until",
    "virtually",
]

SIZE = 4096


@p2p.kernel
def axpy(out, a, x, y):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


X = np.arange(SIZE, dtype=np.float32)
Y = np.ones(SIZE, np.float32)
Z = 2 * X + Y


class Watch:
    """Collects the events of one run, and calls back on them."""

    def __init__(self, react: Callable[[Any], None] | None = None) -> None:
        self.events: list[Any] = []
        self._react = react

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        if self._react is not None:
            self._react(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class _CountedChain(ModelChain):
    """Counts what was ever made, so that a test can tell that nothing else was made or lost."""

    minted_uusd = 0

    def mint(self, account: Address, amount_uusd: int) -> None:
        self.minted_uusd += amount_uusd
        super().mint(account, amount_uusd)


@dataclass(slots=True, kw_only=True)
class Market:
    """Nodes on one network and one chain. `network` is None on libp2p."""

    nursery: trio.Nursery
    chain: _CountedChain
    network: MemoryNetwork | None
    chunk_s: float
    compile_s: float
    nodes: dict[PeerId, Node] = field(default_factory=dict)
    _nurseries: dict[PeerId, trio.Nursery] = field(default_factory=dict)

    @property
    def memory(self) -> MemoryNetwork:
        assert self.network is not None
        return self.network

    def workers(self, **options: Any) -> InlineWorkers:
        return InlineWorkers(**{"chunk_s": self.chunk_s, "compile_s": self.compile_s, **options})

    async def node(
        self, *, connect: tuple[Node, ...] = (), workers: InlineWorkers | None = None, chain: Any = None, **options: Any
    ) -> Node:
        """Open a node that stays until the market closes, with connections to `connect`."""
        node: Node = await self.nursery.start(self._host, workers or self.workers(), chain or self.chain, options)
        self.nodes[node.peer_id] = node
        for other in connect:
            await node.services.overlay.connect(other.addresses[0])
        return node

    async def provider(
        self, *, workers: InlineWorkers | None = None, node: dict[str, Any] | None = None, **options: Any
    ) -> Node:
        """Open a node that serves; `options` are `ProviderOptions`, `node` those of `node`."""
        opened = await self.node(workers=workers, **(node or {}))
        await self._nurseries[opened.peer_id].start(self._serve, opened, options)
        return opened

    async def _host(self, workers: InlineWorkers, chain: Any, options: Any, *, task_status: Any) -> None:
        key = options.pop("key", None) or NodeKey.generate()
        async with AsyncExitStack() as stack:
            if self.network is not None:
                opening = open_simulated_node(self.network, chain, key=key, workers=workers, **options)
            else:
                from p2pcompute.overlay import open_libp2p

                validator = AdRecordValidator(network=options.get("network_id", "simulated"), now_ms=virtual_clock_ms)
                overlay = await stack.enter_async_context(open_libp2p(key, record_validator=validator))
                opening = open_simulated_node(overlay, chain, key=key, workers=workers, **options)
            node = await stack.enter_async_context(opening)
            async with trio.open_nursery() as nursery:
                self._nurseries[key.peer_id] = nursery
                task_status.started(node)
                await trio.sleep_forever()

    async def _serve(self, node: Node, options: dict[str, Any], *, task_status: Any) -> None:
        await node.serve(task_status=task_status, **options)

    def kill(self, node: Node) -> None:
        """End a node: without a word on the network in memory, by stopping it on libp2p."""
        if self.network is not None:
            self.network.kill(node.peer_id)
        else:
            del self.nodes[node.peer_id]  # its ledger closes with it
            self._nurseries[node.peer_id].cancel_scope.cancel()

    async def audit(self) -> None:
        """Nothing is lost or made up in any ledger or on the chain."""
        for node in self.nodes.values():
            await node.services.ledger.verify(full=True)
        assert self.chain.total_uusd() == self.chain.minted_uusd

    async def claimed_uusd(self, provider: Node) -> int:
        """What a provider can turn into money: it claims all that it holds."""
        return sum((await provider.checkpoint()).values())

    async def spent_uusd(self, requester: Node) -> int:
        """What a requester has signed away in total."""
        return sum(row.voucher_uusd for row in await requester.services.ledger.channels_out())


async def until(condition: Callable[[], Any], *, within_s: float = 10.0) -> None:
    """Wait for something that nobody announces."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  there is no event to wait for
            await trio.sleep(0.01)


async def compute(requester: Node, *, watch: Watch | None = None, **options: Any) -> Any:
    """Run `axpy` over the shared arrays; the result should be `Z`."""
    chosen = {"budget": "0.10 USD", "chunks": 16, "on_event": watch, **options}
    return await requester.run(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, **chosen)


@asynccontextmanager
async def open_market(network: MemoryNetwork | None) -> AsyncGenerator[Market]:
    terms = simulated_chain().terms
    real = network is None
    async with trio.open_nursery() as nursery:
        market = Market(
            nursery=nursery,
            chain=_CountedChain(terms),
            network=network,
            chunk_s=0.01 if real else 0.1,
            compile_s=0.02 if real else 0.5,
        )
        yield market
        await market.audit()
        nursery.cancel_scope.cancel()


def virtually(main: Callable[[], Awaitable[Any]], *, limit_s: float = 4 * 3600) -> None:
    """Run under virtual time; `limit_s` of it at most."""

    async def limited() -> None:
        with trio.fail_after(limit_s):
            await main()

    trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


def in_memory(scenario: Callable[[Market], Awaitable[None]], *, latency_s: float = 0.02) -> None:
    """Play a scenario on the network in memory."""

    async def main() -> None:
        async with open_market(MemoryNetwork(latency_s=latency_s)) as market:
            await scenario(market)

    virtually(main)


def on_libp2p(scenario: Callable[[Market], Awaitable[None]]) -> None:
    """Play the same scenario on libp2p over loopback, in real time."""

    async def main() -> None:
        with trio.fail_after(300):
            async with open_market(None) as market:
                await scenario(market)

    trio.run(main)
