"""A day of virtual time in which nodes come, work, fail and go: at its end there is what there was at its start.

`P2PCOMPUTE_SOAK_DAYS` makes it longer (`make soak-nightly`).
"""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.node import Node
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute.testing._memory_stream import MemoryStream
from p2pcompute_protocols import ads, negotiation

HOUR_S = 3600.0
SETTLE_S = 600.0  # until idle things of a visit have ended by themselves


@p2p.kernel
def saxpy(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


X = np.arange(4096, dtype=np.float32)
Y = np.ones_like(X)


def held() -> Counter[str]:
    """What lives of the kinds that a visit makes."""
    gc.collect()
    kinds = (Node, MemoryStream, trio.lowlevel.Task, trio.CancelScope)  # by type: a weak proxy answers for what is gone
    return Counter(type(thing).__name__ for thing in gc.get_objects() if issubclass(type(thing), kinds))


@asynccontextmanager
async def serving(network: MemoryNetwork, chain: object) -> AsyncGenerator[Node, None]:
    async with open_simulated_node(network, chain) as node, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        await nursery.start(node.serve)
        yield node
        nursery.cancel_scope.cancel()


@pytest.fixture
def unlogged() -> Iterator[None]:
    """What pytest captures of a log holds the exceptions that it tells of, and they hold the nodes where they arose."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("unlogged")
def test_a_day_leaves_nothing_behind() -> None:
    hours = int(24 * float(os.environ.get("P2PCOMPUTE_SOAK_DAYS", "1")))

    async def an_hour(network: MemoryNetwork, chain: object, home: Node, hour: int) -> None:
        """A provider comes, works for `home`, which gives up in the middle at times, and goes, at times without a word.
        A stranger comes by and leaves streams open."""
        async with serving(network, chain) as provider, open_simulated_node(network, chain) as stranger:  # type: ignore[arg-type]
            await provider.services.overlay.connect(home.addresses[0])
            await stranger.services.overlay.connect(provider.addresses[0])
            for protocol in (ads.PROTOCOL_ID, negotiation.PROTOCOL_ID):
                await stranger.services.overlay.open_stream(provider.peer_id, protocol)
            given_up = hour % 6 == 5
            with trio.move_on_after(0.5 if given_up else 1000) as scope:
                result = await home.run(saxpy, p2p.out(X.shape, X.dtype), np.float32(hour), X, Y)
                assert np.array_equal(result, np.float32(hour) * X + Y)
            assert scope.cancelled_caught is given_up
            await trio.sleep(30)
            if hour % 4 == 3:
                network.kill(provider.peer_id)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with open_simulated_node(network, chain) as home:
            await an_hour(network, chain, home, 0)
            await trio.sleep(SETTLE_S)
            tasks, before = trio.lowlevel.current_statistics().tasks_living, held()
            start = trio.current_time()
            for hour in range(hours):
                await an_hour(network, chain, home, hour)
                await trio.sleep_until(start + (hour + 1) * HOUR_S)
            await trio.sleep(SETTLE_S)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            more = held() - before
            # Each provider had a wallet of its own, so that there is a channel to each, with its last stream at `home`.
            assert more.pop("MemoryStream", 0) <= 2 * hours
            assert not more
            report = home.services.overlay.limits_report()
            assert (report.connections, report.streams, report.memory_bytes) == (0, 0, 0)
            assert set(network._nodes) == {home.peer_id}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
