"""The outbox and the checkpoint: each transaction counts once, whatever happens around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pcompute.errors import ChainUnreachable, ConfigError, TransactionFailed
from p2pcompute.payments import Approve, ChainHub, Deposit, Fund, FundRow, Outbox, SettlementPending
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.ids import Address

Run = Callable[..., None]


async def paid(world: Any, units: int = 5) -> None:
    task = await world.agree()
    await world.payer.open_channels(world.need(1_000))
    await world.work(task, 0, units=units)
    await world.channel_out().pay()


def test_a_transaction_that_is_not_mined_is_kept_and_sent_again(run: Run) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        world.chain.mines = False
        with pytest.raises(SettlementPending, match="sent again"):
            await world.settler.checkpoint()
        (waiting,) = await world.payee_ledger.unsettled(world.account.address)
        assert (waiting.state, waiting.rows) == ("sent", ((world.channel, 5),))
        world.chain._pool.clear()  # the endpoint forgot it
        world.chain.mines = True
        assert await world.settler.checkpoint() == {}  # settled by the start of the next one
        row = await world.payee_ledger.channel_in(world.channel)
        assert (row.claimed_uusd, row.unclaimed_uusd) == (5, 0)
        assert world.chain.nonces[world.account.address] == 1

    run(body)


def test_a_crash_after_mining_counts_once(run: Run) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        send = world.payee_outbox._hub.send

        async def crash(raw: bytes) -> None:
            await send(raw)
            raise ChainUnreachable("the answer was lost")

        world.payee_outbox._hub.send = crash
        with pytest.raises(ChainUnreachable):
            await world.settler.checkpoint()
        world.payee_outbox._hub.send = send
        again = Outbox(ledger=world.payee_ledger, hub=world.chain.hub(world.account.address))
        await again.settle()
        assert world.chain.free[world.account.address] == 5
        assert await world.payee_ledger.unsettled(world.account.address) == []
        assert await world.settler.exposure_uusd() == 0

    run(body)


def test_a_nonce_used_elsewhere_fails_the_transaction_and_frees_the_outbox(run: Run) -> None:
    async def body(world: Any) -> None:
        await paid(world)
        world.chain.mines = False
        with pytest.raises(SettlementPending):
            await world.settler.checkpoint()
        world.chain._pool.clear()
        world.chain.nonces[world.account.address] = 1  # the same key paid from another program
        world.chain.mines = True
        assert await world.settler.checkpoint() == {world.channel: 5}
        states = world.payee_ledger._database.connection.execute("SELECT state FROM outbox ORDER BY id").fetchall()
        assert states == [("failed",), ("mined",)]

    run(body)


def test_a_reverted_transaction_is_told(run: Run) -> None:
    async def body(world: Any) -> None:
        with pytest.raises(TransactionFailed, match="no effect"):
            await world.payer_outbox.run(Deposit(amount_uusd=5))
        await world.payer_outbox.run(Approve(amount_uusd=5))
        assert world.chain.allowances[world.wallet.address] == 5

    run(body)


def test_what_waits_goes_before_what_is_new(run: Run) -> None:
    """A transaction that the endpoint forgot would leave a gap in the nonces, and everything after it stuck."""

    async def body(world: Any) -> None:
        world.chain.mines = False
        with pytest.raises(SettlementPending):
            await world.payer_outbox.run(Approve(amount_uusd=1))
        world.chain._pool.clear()
        world.chain.mines = True
        await world.payer_outbox.run(Approve(amount_uusd=2))
        assert world.chain.nonces[world.wallet.address] == 2
        assert world.chain.allowances[world.wallet.address] == 2

    run(body)


def test_transactions_at_once_take_turns(run: Run) -> None:
    async def body(world: Any) -> None:
        async with trio.open_nursery() as nursery:
            for amount in range(10):
                nursery.start_soon(world.payer_outbox.run, Approve(amount_uusd=amount))
        assert world.chain.nonces[world.wallet.address] == 10

    run(body)


def test_a_checkpoint_by_somebody_else_is_noticed(run: Run) -> None:
    """Anyone may submit our vouchers; ours would then cost gas for nothing."""

    async def body(world: Any) -> None:
        await paid(world)
        state = world.chain.channels[world.channel]
        world.chain.channels[world.channel] = dataclasses.replace(state, claimed_uusd=5)
        assert await world.settler.checkpoint() == {}
        assert world.chain.nonces.get(world.account.address, 0) == 0

    run(body)


def test_a_checkpoint_is_due_above_the_cap(run: Run) -> None:
    async def body(world: Any) -> None:
        await paid(world, units=100)
        assert not await world.settler.is_due()
        task = await world.agree()
        await world.work(task, 0, units=1)
        await world.channel_out().pay()
        assert await world.settler.is_due()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.settler.serve)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert world.chain.free[world.account.address] == 101

    run(body)


def test_the_settler_outlives_an_endpoint_that_is_down(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: Any) -> None:
        await paid(world, units=200)
        hub = world.settler._hub
        channel = hub.channel

        async def down(_: Any) -> Any:
            raise ChainUnreachable("no answer")

        hub.channel = down
        async with trio.open_nursery() as nursery:
            await nursery.start(world.settler.serve)
            await trio.sleep(40)
            assert "no checkpoint now" in caplog.text
            hub.channel = channel
            await trio.sleep(40)
            nursery.cancel_scope.cancel()
        assert world.chain.free[world.account.address] == 200

    run(body)


def test_more_channels_than_fit_into_one_batch(run: Run) -> None:
    async def body(world: Any) -> None:
        wallet, payee = world.wallet, world.account.address
        hub = world.payer_outbox
        await hub.run(Approve(amount_uusd=10_000))
        await hub.run(Deposit(amount_uusd=10_000))
        signers = [world.wallet.__class__((number + 1).to_bytes(32, "big")) for number in range(300)]
        for first in (0, 200):
            rows = tuple(
                FundRow(payee=payee, signer=signer.address, amount_uusd=2) for signer in signers[first : first + 200]
            )
            await hub.run(Fund(rows=rows))
        for signer in signers:
            channel = channel_id(wallet.address, payee, signer.address)
            await world.payee_ledger.open_channel_in(
                channel, payer=wallet.address, signer=signer.address, peer=world.requester.peer_id
            )
            await world.payee_ledger.set_chain_in(channel, deposit_uusd=2, claimed_uusd=0, close_at_s=0)
            await world.payee_ledger.take_voucher(
                channel,
                amount_uusd=2,
                memo=bytes(32),
                signature=world.voucher(2, channel=channel, key=signer),
                peer=world.requester.peer_id,
            )
        claimed = await world.settler.checkpoint()
        assert len(claimed) == 300
        assert world.chain.free[payee] == 600
        assert world.chain.nonces[payee] == 2

    run(body)


def test_a_hub_client_of_another_hub_is_refused(make_world: Any) -> None:
    class Client:
        hub, token = Address(b"x" * 20), Address(b"t" * 20)

    with pytest.raises(ConfigError, match="another hub"):
        ChainHub(Client(), terms=make_world().chain.terms, private_key=b"k" * 32)  # type: ignore[arg-type]
