"""Whole nodes with a watchtower between them, in virtual time."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._serving import ProviderOptions
from p2pcompute.errors import ChainUnreachable
from p2pcompute.storage import InlineExecutor, open_watch_store
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain
from p2pcompute_protocols.ids import peer_id_from_public_key


@p2p.kernel
def double(out: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + x[i]


async def unreachable(_: Any) -> Any:
    raise ChainUnreachable("no answer")


def test_a_tower_claims_what_a_provider_that_has_gone_was_owed(tmp_path: Path) -> None:
    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        x = np.arange(64, dtype=np.float32)
        async with (
            open_simulated_node(network, chain) as tower,
            open_simulated_node(network, chain) as buyer,
            open_simulated_node(network, chain) as provider,
        ):
            account = provider.services.wallet.address
            tower.services.watch_store = partial(open_watch_store, tmp_path, executor=InlineExecutor())
            lend = partial(provider.serve, watchtowers=[tower.addresses[0]], claim_above_uusd=10**12)
            async with trio.open_nursery() as towers, trio.open_nursery() as providers:
                await towers.start(partial(tower.serve, watch_for=[provider.peer_id]))
                await providers.start(lend)
                await buyer.services.overlay.connect(provider.addresses[0])
                got = await buyer.run(double, p2p.out(x.shape, x.dtype), x, chunks=2, max_providers=1)
                assert np.array_equal(got, x + x)
                (row,) = [row for row in await provider.services.ledger.channels_in() if row.best_uusd]
                await trio.sleep(60)  # what is new goes to the tower every half minute
                # The provider's way to the chain is cut, and it goes: no last checkpoint.
                provider.services.hub.signing = unreachable  # type: ignore[method-assign]
                towers.cancel_scope.cancel()
            assert chain.free.get(account, 0) == 0
            state = chain.channels[row.channel]
            chain.channels[row.channel] = dataclasses.replace(state, close_at_s=tower.now_ms() // 1000 + 10_000)
            async with trio.open_nursery() as towers:
                # The tower as well was started anew meanwhile: what it keeps is in a file.
                await towers.start(partial(tower.serve, watch_for=[provider.peer_id]))
                await trio.sleep(5)
                towers.cancel_scope.cancel()
            assert chain.free[account] == row.best_uusd

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


PEER = peer_id_from_public_key(bytes(32))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"watch_for": PEER}, "write a list of at most 64"),
        ({"watch_for": [5]}, "write a list"),
        ({"watch_for": [PEER] * 65}, "write a list"),
        ({"watch_for": ["12D3KooWnobody"]}, "write a peer ID"),
        ({"watch_for": ["0x12"]}, "write a peer ID"),
        ({"watch_for": ["0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"]}, "checksum"),
        ({"watchtowers": [PEER]}, "write a multiaddr"),
        ({"watchtowers": ["/ip4/127.0.0.1/tcp/1/p2p/abc"]}, "write a multiaddr with its peer"),
        ({"watchtowers": [f"/ip4/127.0.0.1/tcp/1{PEER}"]}, "write a multiaddr with its peer"),
        ({"watchtowers": "/ip4/127.0.0.1/tcp/1"}, "write a list"),
        ({"coin_price_uusd": -1}, "coin_price_uusd"),
    ],
)
def test_what_cannot_be_watched(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProviderOptions(**options)


def test_what_can() -> None:
    account = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    options = ProviderOptions(watch_for=[PEER, account, PEER], watchtowers=[f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"])
    assert options.watch_for == (PEER, account.lower())
    assert options.watchtowers == (f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",)
