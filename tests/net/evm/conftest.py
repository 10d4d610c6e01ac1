"""Chains to play payments on: our development chain, and anvil, which a test can make hostile."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute.chain import (
    ChainClient,
    DevChainProcess,
    HubClient,
    HubPlace,
    contract_address,
    faucet,
    find_hub,
    sign_transaction,
)
from p2pcompute.chain._artifacts import hub_creation, token_creation
from p2pcompute.chain._hub import encode_transfer
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms

ROOT = Path(__file__).parents[3]
LISTENS = re.compile(rb"Listening on 127\.0\.0\.1:(\d+)")
HOW = "anvil is not here; `make anvil` gets it (P2PCOMPUTE_ANVIL names another one's program)"


def anvil_program() -> str | None:
    """Where anvil is; None where it isn't."""
    if named := os.environ.get("P2PCOMPUTE_ANVIL"):
        return named
    found = sorted((ROOT / ".anvil" / "node_modules" / "@foundry-rs").glob("anvil-*-*/bin/anvil"))
    return str(found[0]) if found else None


@dataclass
class Evm:
    """A chain with a hub on it, and the ways to give money."""

    url: str
    rpc: ChainClient
    place: HubPlace
    hub: HubClient
    give: Callable[..., Awaitable[None]]

    @property
    def terms(self) -> ChainTerms:
        place = self.place
        return ChainTerms(chain_id=place.chain_id, hub=bytes(place.hub), token=bytes(place.token), decimals=6)

    async def mine(self, blocks: int = 1) -> None:
        await self.rpc.call("anvil_mine", [hex(blocks)])

    async def mined(self, account: Address, count: int) -> None:
        """Wait until so many of an account's transactions are mined: anvil takes one, and mines it when it has answered
        already."""
        while await self.hub.nonce(account) < count:  # noqa: ASYNC110  there is no event to wait for
            await trio.sleep(0.02)

    async def reorg(self, depth: int) -> None:
        """Take blocks back and put as many empty ones into their place."""
        await self.rpc.call("anvil_reorg", [depth, []])

    async def base_fee(self, gwei: int) -> None:
        """Set what the next block asks for, and make one, so that everybody sees it."""
        await self.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(gwei * 10**9)])
        await self.mine()

    async def now_s(self) -> int:
        return (await self.hub.head()).timestamp_s

    async def pass_time(self, seconds: int) -> None:
        await self.rpc.call("evm_increaseTime", [hex(seconds)])
        await self.mine()


@asynccontextmanager
async def run_anvil(*options: str) -> AsyncGenerator[str]:
    """An anvil of its own, on loopback, that ends with the context; its URL."""
    program = anvil_program()
    if program is None:
        pytest.skip(HOW)
    with tempfile.TemporaryFile() as said:  # a file, since nobody would empty a pipe
        process = await trio.lowlevel.open_process(
            [program, "--host", "127.0.0.1", "--port", "0", "--threads", "1", *options],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.DEVNULL,
        )
        try:
            # It takes a port itself: one that was found free before might be another's by then.
            with trio.fail_after(300):
                while (found := LISTENS.search(os.pread(said.fileno(), 1 << 16, 0))) is None:
                    assert process.poll() is None, "anvil ended by itself"
                    await trio.sleep(0.02)
            yield f"http://127.0.0.1:{int(found[1])}"
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


BANK = coincurve.PrivateKey(keccak256(b"bank"))


async def deploy_hub(rpc: ChainClient) -> HubPlace:
    """A test token, all of it the bank's, and a hub of it."""
    bank = address_of(BANK.public_key)
    await rpc.call("anvil_setBalance", ["0x" + bank.hex(), hex(10**24)])
    client = HubClient(rpc, Address(bytes(20)), Address(bytes(20)))
    made = []
    for _ in range(2):
        code = hub_creation(made[0]) if made else token_creation(bank, 10**15)
        nonce = await client.nonce(bank)
        tx = await client.prepare(bank, None, code, nonce=nonce)
        await client.wait_receipt(await client.send_raw(sign_transaction(tx, BANK).raw), 60)
        made.append(contract_address(bank, nonce))
    return await find_hub(rpc, hub=made[1], token=made[0])


@asynccontextmanager
async def open_anvil(*options: str) -> AsyncGenerator[Evm]:
    """Anvil with a hub."""
    async with run_anvil(*options) as url, ChainClient(url) as rpc:
        place = await deploy_hub(rpc)
        hub = place.client(rpc)

        async def give(account: Address, tokens_uusd: int, wei: int = 10**18) -> None:
            await rpc.call("anvil_setBalance", ["0x" + account.hex(), hex(wei)])
            if tokens_uusd:
                await hub.transact(BANK, hub.token, encode_transfer(account, tokens_uusd))

        yield Evm(url=url, rpc=rpc, place=place, hub=hub, give=give)


@asynccontextmanager
async def open_devchain(directory: Path, block_time_s: float | None = None) -> AsyncGenerator[Evm]:
    """Our own development chain."""
    async with DevChainProcess(directory, block_time_s=block_time_s) as chain, ChainClient(chain.url) as rpc:
        place = await find_hub(rpc)

        async def give(account: Address, tokens_uusd: int, wei: int = 10**18) -> None:
            await faucet(rpc, account, wei=wei, token_uusd=tokens_uusd)

        yield Evm(url=chain.url, rpc=rpc, place=place, hub=place.client(rpc), give=give)


@pytest.fixture
def anvil() -> Callable[..., AbstractAsyncContextManager[Evm]]:
    """Opens an anvil with a hub."""
    if anvil_program() is None:
        pytest.skip(HOW)
    return open_anvil


@pytest.fixture
def bare_anvil() -> Callable[..., AbstractAsyncContextManager[str]]:
    """Opens an anvil without a hub."""
    if anvil_program() is None:
        pytest.skip(HOW)
    return run_anvil


@pytest.fixture(params=["devchain", "devchain by the clock", "anvil"])
def evm(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[Evm]]:
    """Opens a chain with a hub: the same test on either."""
    if request.param.startswith("devchain"):
        block_time_s = 0.2 if request.param.endswith("clock") else None
        return lambda: open_devchain(tmp_path / "chain", block_time_s)
    if anvil_program() is None:
        pytest.skip(HOW)
    return open_anvil


@pytest.fixture
def payments_world() -> Any:
    """The payer and the payee of the unit tests, as a module."""
    path = ROOT / "tests" / "unit" / "payments" / "conftest.py"
    spec = importlib.util.spec_from_file_location("payments_world_evm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
