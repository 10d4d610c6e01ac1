"""Deploying a hub from a profile's outbox: cut off at any point, the same command goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio

from p2pcompute._deploy import TEST_SUPPLY_UUSD, Deployer
from p2pcompute.chain import ChainClient, HubClient, NoGas, WrongHub
from p2pcompute.errors import ChainUnreachable, ConfigError
from p2pcompute.identity import WalletKey
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_protocols.ids import Address

pytestmark = pytest.mark.net

WALLET = WalletKey(b"D" * 32)
ACCOUNT = "0x" + WALLET.address.hex()
OpenBare = Callable[..., AbstractAsyncContextManager[str]]


class Line:
    """The way to an endpoint, which breaks once a transaction has got through."""

    def __init__(self, relay: ChainClient) -> None:
        self._relay = relay
        self.broken = False

    async def exchange(self, content: bytes) -> bytes:
        if self.broken:
            raise ChainUnreachable("the line is broken")
        self.broken = b"eth_sendRawTransaction" in content
        return await self._relay._send(content)


def test_it_goes_on_where_it_was_cut_off(bare_anvil: OpenBare) -> None:
    async def main() -> None:
        async with (
            bare_anvil("--no-mining") as url,
            ChainClient(url) as relay,
            open_ledger(None, executor=InlineExecutor()) as ledger,
        ):
            await relay.call("anvil_setBalance", [ACCOUNT, hex(10**18)])
            line = Line(relay)
            async with ChainClient(url, exchange=line.exchange) as rpc:
                deployer = Deployer(rpc, WALLET, ledger)
                assert (await deployer.plan(None)).account == WALLET.address
                for _ in range(2):  # the token is sent, and nobody has seen it mined; then the hub is
                    with pytest.raises(ChainUnreachable, match="line is broken"):
                        await deployer.deploy(None)
                    line.broken = False
                    await relay.call("anvil_mine", ["0x1"])
                place = await deployer.deploy(None)
            client = HubClient(relay, place.hub, place.token)
            assert await client.nonce(WALLET.address) == 2
            assert await client.token_balance_uusd(WALLET.address) == TEST_SUPPLY_UUSD
            assert (place.symbol, place.development) == ("tUSD", False)

    trio.run(main)


def test_what_is_said_before_anything_is_spent(bare_anvil: OpenBare) -> None:
    async def main() -> None:
        async with (
            bare_anvil() as url,
            ChainClient(url) as rpc,
            open_ledger(None, executor=InlineExecutor()) as ledger,
        ):
            deployer = Deployer(rpc, WALLET, ledger)
            with pytest.raises(NoGas, match=f"the account {ACCOUNT} has 0: send 0.0"):
                await deployer.plan(None)
            with pytest.raises(WrongHub, match="no ERC-20 token at 0x0505"):
                await deployer.plan(Address(b"\x05" * 20))
            await rpc.call("anvil_setBalance", [ACCOUNT, hex(10**18)])
            plan = await deployer.plan(None)
            place = await deployer.deploy(None)
            client = HubClient(rpc, place.hub, place.token)
            spent_wei = plan.balance_wei - await client.balance_wei(WALLET.address)
            assert 0 < spent_wei <= plan.most_wei
            assert (await deployer.plan(place.token)).symbol == "tUSD"
            nonce = await client.nonce(WALLET.address)
            assert await deployer.deploy(place.token) == place  # it is there
            assert await client.nonce(WALLET.address) == nonce

    trio.run(main)


def test_a_development_chain_has_its_hub(evm: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
    async def main() -> None:
        async with evm() as chain, open_ledger(None, executor=InlineExecutor()) as ledger:
            deployer = Deployer(chain.rpc, WALLET, ledger)
            if chain.place.development:
                with pytest.raises(ConfigError, match="nothing has to be deployed"):
                    await deployer.plan(None)
            else:
                with pytest.raises(NoGas):
                    await deployer.plan(None)

    trio.run(main)
