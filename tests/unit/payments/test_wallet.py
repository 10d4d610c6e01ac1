"""An account's money: where it lies, and the ways in and out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio

from p2pcompute.errors import ConfigError, InsufficientFunds
from p2pcompute.identity import WalletKey
from p2pcompute.payments import Balances, Wallet
from p2pcompute_protocols.ids import Address

from .conftest import TERMS, World

OWNER = WalletKey(b"O" * 32).address


async def earn(world: World, chunks: int) -> None:
    task = await world.agree()
    await world.payer.open_channels(world.need(1_000))
    for index in range(chunks):
        await world.work(task, index)
    await world.channel_out().pay()


def wallets(world: World) -> tuple[Wallet, Wallet]:
    return (
        Wallet(ledger=world.payer_ledger, hub=world.payer.hub, outbox=world.payer_outbox),
        Wallet(ledger=world.payee_ledger, hub=world.chain.hub(world.account.address), outbox=world.payee_outbox),
    )


def run(make_world: Callable[..., World], scenario: Callable[[World], Any]) -> None:
    async def main() -> None:
        async with make_world().open() as world:
            total = world.chain.total_uusd()
            await scenario(world)
            assert world.chain.total_uusd() == total
            for ledger in (world.payer_ledger, world.payee_ledger):
                await ledger.verify(full=True)

    trio.run(main)


def test_money_on_its_way_from_a_wallet_to_another(make_world: Callable[..., World]) -> None:
    async def scenario(world: World) -> None:
        payer, payee = wallets(world)
        assert await payer.fund(5_000) == Balances(
            tokens_uusd=9_995_000, free_uusd=5_000, reserved_uusd=0, promised_uusd=0, unclaimed_uusd=0
        )
        await earn(world, 7)
        assert await payer.balances() == Balances(
            tokens_uusd=9_995_000, free_uusd=4_000, reserved_uusd=1_000, promised_uusd=7, unclaimed_uusd=0
        )
        assert (await payee.balances()).unclaimed_uusd == 7
        assert await payee.settle() == 7
        assert await payee.settle() == 0
        assert (await payee.balances()).free_uusd == 7
        incoming, outgoing = await payee.channels()
        assert [row.claimed_uusd for row in incoming] == [7]
        assert outgoing == []
        assert await payee.withdraw(OWNER, 3) == 3
        assert await payee.withdraw(OWNER) == 4
        assert world.chain.tokens[OWNER] == 7
        assert (await payee.balances()).free_uusd == 0

    run(make_world, scenario)


@pytest.mark.parametrize("to", [bytes(20), TERMS.hub, TERMS.token, b"short"])
def test_tokens_are_not_sent_where_they_would_be_lost(to: bytes, make_world: Callable[..., World]) -> None:
    async def scenario(world: World) -> None:
        payer, _ = wallets(world)
        await payer.fund(10)
        with pytest.raises(ConfigError, match="would be lost"):
            await payer.withdraw(Address(to))
        assert (await payer.balances()).free_uusd == 10

    run(make_world, scenario)


def test_what_is_not_there_can_neither_be_brought_in_nor_taken_out(make_world: Callable[..., World]) -> None:
    async def scenario(world: World) -> None:
        payer, payee = wallets(world)
        nonces = dict(world.chain.nonces)
        with pytest.raises(InsufficientFunds, match="send tokens there first"):
            await payee.fund(1)
        with pytest.raises(InsufficientFunds, match="free after `p2pcompute settle`"):
            await payee.withdraw(OWNER)
        for amount in (0, -5):
            with pytest.raises(ConfigError, match=r"at least 0\.000001 USD"):
                await payer.fund(amount)
        assert world.chain.nonces == nonces  # nothing was sent
        await payer.fund(10)
        with pytest.raises(InsufficientFunds, match=r"0\.000010 USD are free at the hub and 0\.000011 USD were to be"):
            await payer.withdraw(OWNER, 11)
        for amount in (0, -5):
            with pytest.raises(ConfigError, match=r"at least 0\.000001 USD"):
                await payer.withdraw(OWNER, amount)
        wrong: Any = "1.50 USD"
        for call in (partial(payer.withdraw, OWNER), payer.fund):
            with pytest.raises(ConfigError, match=r"write 1_500_000 for 1\.50 USD"):
                await call(wrong)
        wrong = "0x" + OWNER.hex()
        with pytest.raises(ConfigError, match="parse_address"):
            await payer.withdraw(wrong)
        wrong = 5
        with pytest.raises(ConfigError, match="5 names no channel"):
            await payer.close(wrong)
        assert (await payer.balances()).free_uusd == 10

    run(make_world, scenario)


def test_the_log_of_receipts_has_both_sides_and_ends_where_it_is_told_to(make_world: Callable[..., World]) -> None:
    async def scenario(world: World) -> None:
        await earn(world, 5)
        sold = await world.payee_ledger.receipt_log()
        bought = await world.payer_ledger.receipt_log(limit=2)
        assert [(row.role, row.receipt.index, row.receipt.pusd) for row in sold] == [
            ("provider", index, 1_000_000) for index in range(5)
        ]
        assert {row.peer for row in sold} == {world.requester.peer_id}
        assert [(row.role, row.peer, row.receipt.verdict) for row in bought] == [
            ("requester", world.provider.peer_id, "accepted")
        ] * 2
        assert await world.payee_ledger.receipt_log(before_ms=0) == []

    run(make_world, scenario)
