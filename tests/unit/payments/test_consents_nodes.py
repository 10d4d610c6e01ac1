"""Two whole nodes, in virtual time: one buys, closes the channel with the other's consent, and buys again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import TaskError
from p2pcompute.identity import WalletKey
from p2pcompute.testing import MemoryNetwork, open_simulated_node, simulated_chain


@p2p.kernel
def doubled(out: Any, x: Any) -> None:
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + x[i]


def in_virtual_time(body: Any, *, owners: bool = False) -> None:
    selling, buying = (WalletKey.generate(), WalletKey.generate()) if owners else (None, None)

    async def main() -> None:
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with (
            open_simulated_node(network, chain, owner=selling) as provider,
            open_simulated_node(network, chain, owner=buying) as node,
            trio.open_nursery() as nursery,
        ):
            await node.services.overlay.connect(provider.addresses[0])
            await nursery.start(provider.serve)
            await body(node, provider, chain)
            for other in (node, provider):
                await other.services.ledger.verify(full=True)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def buy(node: Any) -> None:
    x = np.arange(64, dtype=np.float32)
    assert (await node.run(doubled, p2p.out(x.shape, x.dtype), x) == 2 * x).all()


@pytest.mark.parametrize("owners", [False, True])
def test_bought_closed_and_bought_again(owners: bool) -> None:
    """With owners of their own on both sides, too: the money is theirs, and other keys sign for it."""

    async def body(node: Any, provider: Any, chain: Any) -> None:
        for times in (1, 2):
            await buy(node)
            (row,) = await node.services.ledger.channels_out()
            reserved = chain.channels[row.channel]
            closed = await node.money.close(row.channel.hex())
            assert (closed.state, closed.direction) == ("closed", "out")
            assert closed.refund_uusd == reserved.deposit_uusd - row.voucher_uusd > 0
            assert chain.epochs[row.channel] == times
            assert chain.free[provider.services.account.address] == row.voucher_uusd
        # The payee took part without a transaction of its own, and hot keys hold no money and send nothing.
        assert provider.services.account.address not in chain.nonces
        for other in (node, provider):
            services = other.services
            assert (services.account.address != services.wallet.address) == owners
            if owners:
                hot = services.wallet.address
                assert hot not in chain.nonces
                assert not chain.free.get(hot, 0) + chain.tokens.get(hot, 0)

    in_virtual_time(body, owners=owners)


def test_what_an_owner_has_earned_is_claimed_for_it() -> None:
    async def body(node: Any, provider: Any, chain: Any) -> None:
        await buy(node)
        (row,) = await node.services.ledger.channels_out()
        earned = await provider.money.settle()
        assert earned == row.voucher_uusd > 0
        to = WalletKey.generate().address
        assert await provider.money.withdraw(to) == earned == chain.tokens[to]

    in_virtual_time(body, owners=True)


def test_a_channel_with_a_consent_takes_no_task() -> None:
    """The requester has the provider's consent and keeps it; its next task is refused before anything is computed."""

    async def body(node: Any, provider: Any, chain: Any) -> None:
        await buy(node)
        (row,) = await node.services.ledger.channels_out()
        channel = node.services.payer.channel(row.payee, row.peer)
        consent, _ = await channel.ask_close()
        issued = len(await provider.services.ledger.receipt_log(limit=1_000))
        with pytest.raises(TaskError, match="closing"):
            await buy(node)
        assert len(await provider.services.ledger.receipt_log(limit=1_000)) == issued
        # Closed after all, and all is well again.
        assert (await node.money.close(row.channel.hex())).refund_uusd > 0
        assert chain.epochs[row.channel] == consent.epoch + 1
        await buy(node)

    in_virtual_time(body)
