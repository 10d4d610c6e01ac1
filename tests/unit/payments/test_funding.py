"""Funding many channels at once: a bad one among them costs nobody else anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from p2pcompute._books import RequesterLedgerBooks
from p2pcompute.errors import DiskFull, TransactionFailed
from p2pcompute.identity import NodeKey
from p2pcompute.payments import ChannelNeed, ChannelUnfundable, Finalize, Fund, RequestClose
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute_protocols.ids import Address

Run = Callable[..., None]


def test_two_peers_that_name_one_payee_get_one_channel(run: Run) -> None:
    async def body(world: Any) -> None:
        other = NodeKey(b"o" * 32).peer_id
        needs = [*world.need(300), ChannelNeed(payee=world.account.address, peer=other, amount_uusd=200)]
        await world.payer.open_channels(needs)
        assert world.chain.channels[world.channel].deposit_uusd == 500

    run(body)


def test_a_batch_that_only_looks_as_if_it_had_failed_is_not_paid_in_twice(run: Run) -> None:
    async def body(world: Any) -> None:
        run_ = world.payer_outbox.run

        async def lose_sight(call: Any, **options: Any) -> Any:
            outcome = await run_(call, **options)
            if isinstance(call, Fund) and len(call.rows) > 1:
                raise TransactionFailed("another transaction has used this one's nonce")
            return outcome

        world.payer_outbox.run = lose_sight
        payee = Address(b"o" * 20)
        other = ChannelNeed(payee=payee, peer=NodeKey(b"o" * 32).peer_id, amount_uusd=200)
        await world.payer.open_channels([*world.need(300), other])
        for channel, uusd in ((world.channel, 300), (world.payer.channel_id(payee), 200)):
            assert world.chain.channels[channel].deposit_uusd == uusd
            world.payer.check_fundable(channel)

    run(body)


@pytest.mark.parametrize("at", [0, 1])
def test_a_payee_that_the_hub_refuses_leaves_the_others_their_money(run: Run, at: int) -> None:
    async def body(world: Any) -> None:
        zero = Address(bytes(20))
        needs = world.need(300)
        needs.insert(at, ChannelNeed(payee=zero, peer=NodeKey(b"o" * 32).peer_id, amount_uusd=200))
        task = await world.agree()
        await world.payer.open_channels(needs)
        await world.work(task, 0, units=5)
        assert await world.channel_out().pay() == 5
        with pytest.raises(ChannelUnfundable, match="other providers"):
            world.payer.check_fundable(world.payer.channel_id(zero))
        world.payer.check_fundable(world.channel)

    run(body)


def test_a_channel_that_cannot_be_funded_is_said_to_be_so_when_it_is_to_pay(run: Run) -> None:
    async def body(world: Any) -> None:
        run_ = world.payer_outbox.run
        task = await world.agree()

        async def refuse(call: Any, **options: Any) -> Any:
            return await run_(type(call)(rows=(*call.rows, zero)) if hasattr(call, "rows") else call, **options)

        from p2pcompute.payments import FundRow

        zero = FundRow(payee=Address(bytes(20)), signer=world.wallet.address, amount_uusd=0)
        world.payer_outbox.run = refuse
        await world.payer.open_channels(world.need(300))
        await world.work(task, 0, units=5)
        with pytest.raises(ChannelUnfundable):
            await world.channel_out().pay()
        world.payer_outbox.run = run_
        await world.payer.open_channels(world.need(300))
        assert await world.channel_out().pay() == 5

    run(body)


def test_a_full_disk_fails_a_round_and_not_the_books(run: Run) -> None:
    async def body(world: Any) -> None:
        books = RequesterLedgerBooks(world.payer_ledger, world.payer)
        set_chain_out = world.payer_ledger.set_chain_out

        async def full(*args: Any, **kwargs: Any) -> Any:
            raise DiskFull("no room")

        async with trio.open_nursery() as nursery:
            await nursery.start(books.serve)
            world.payer_ledger.set_chain_out = full
            task = await world.agree()
            agreement = world.last_agreement
            account = await books.open(agreement, TaskBudget())
            await account.funded()
            world.payer_ledger.set_chain_out = set_chain_out
            await world.work(task, 0, units=5)
            with pytest.raises(DiskFull):
                await account.pay()
            again = await books.open(agreement, TaskBudget())  # the next need tries again
            await again.funded()
            await again.pay()
            assert await world.payee.paid_uusd(world.channel) == 5
            nursery.cancel_scope.cancel()

    run(body)


def test_a_full_disk_does_not_end_the_settler(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree()
        await world.payer.open_channels(world.need(1_000))
        await world.work(task, 0, units=500)
        await world.channel_out().pay()
        queue = world.payee_ledger.queue_tx
        tries = 0

        async def full(*args: Any, **kwargs: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise DiskFull("no room")
            return await queue(*args, **kwargs)

        world.payee_ledger.queue_tx = full
        async with trio.open_nursery() as nursery:
            await nursery.start(world.settler.serve)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert (tries, world.chain.free[world.account.address]) == (2, 500)

    run(body)


async def brought_in(world: Any, ceiling_uusd: int = 1_000) -> Any:
    """The account of a new task, and its channel's money as it should be before anything is accepted."""
    await world.agree(ceiling_uusd=ceiling_uusd)
    account = await world.books.open(world.last_agreement, TaskBudget())
    await account.funded()
    return account


async def accept(world: Any, account: Any, units: int, index: int = 0) -> None:
    """As a link does, with a chunk of so many micro-USD."""
    await account.funded()
    receipt = world.receipt(account._task, index, units=units)
    envelope = await world.payee_ledger.record_receipt(receipt, sign=world.sign_receipt)
    await account.accept([(envelope, receipt, 1)])
    await account.pay()


def funding(run: Run, body: Callable[[Any, list[str]], Any]) -> None:
    """Run `body` with books that fund, and the names of all calls that were sent."""

    async def inside(world: Any) -> None:
        calls: list[str] = []
        run_ = world.payer_outbox.run

        async def noted(call: Any, **options: Any) -> Any:
            calls.append(type(call).__name__)
            return await run_(call, **options)

        world.payer_outbox.run = noted
        world.books = RequesterLedgerBooks(world.payer_ledger, world.payer)
        async with trio.open_nursery() as nursery:
            await nursery.start(world.books.serve)
            await body(world, calls)
            nursery.cancel_scope.cancel()

    run(inside)


async def end(world: Any, account: Any) -> None:
    await world.payer_ledger.close_agreement(account._task, state="done")


def test_the_next_task_takes_no_transaction_where_the_channel_holds_half(run: Run) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        for units in (100, 100, 300, 100):
            account = await brought_in(world)
            await accept(world, account, units)
            await end(world, account)
        assert calls.count("Fund") == 1
        account = await brought_in(world)  # 400 are left, which is less
        assert calls.count("Fund") == 2
        assert world.chain.channels[world.channel].deposit_uusd == 600 + 1_000
        await end(world, account)

    funding(run, body)


def test_the_rest_is_brought_in_once_a_channel_runs_low(run: Run) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        account = await brought_in(world)
        await accept(world, account, 400)
        await end(world, account)
        await world.agree(ceiling_uusd=1_000)  # 600 are there, of 1,000
        account = await world.books.open(world.last_agreement, TaskBudget())
        spent, before = 0, trio.current_time()
        for index in range(50):
            await accept(world, account, 20, index)
            spent += 20
            if spent <= 460:  # 140 of the 540 that are left
                assert calls.count("Fund") == 1
            await trio.sleep(1)
        assert spent == 1_000
        assert trio.current_time() - before == 50  # nobody has waited for the chain
        assert calls.count("Fund") == 2
        assert world.chain.channels[world.channel].deposit_uusd == 400 + 1_000
        assert await world.payee.paid_uusd(world.channel) == 1_400

    funding(run, body)


def test_a_channel_that_is_short_at_once_is_waited_for(run: Run) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        account = await brought_in(world)
        await accept(world, account, 400)
        await end(world, account)
        account = await brought_in(world)
        await accept(world, account, 900)  # more than the 600 that are there
        assert calls.count("Fund") == 2
        assert await world.payee.paid_uusd(world.channel) == 1_300

    funding(run, body)


def test_two_tasks_that_run_at_once_are_both_covered(run: Run) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        first, second = await brought_in(world), await brought_in(world)
        assert calls.count("Fund") == 2
        assert world.chain.channels[world.channel].deposit_uusd == 2_000
        await accept(world, first, 1_000)
        await accept(world, second, 1_000)

    funding(run, body)


@pytest.mark.parametrize("how", ["time", "request", "never read"])
def test_what_is_known_of_a_channel_does_not_count_for_ever(run: Run, how: str) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        await end(world, await brought_in(world))
        assert await world.payer.has_room(world.need(1_000)[0])
        if how == "time":
            await trio.sleep(601)
        elif how == "request":
            await world.payer_outbox.run(RequestClose(payee=world.account.address, signer=world.wallet.address))
        else:
            world.payer._read.clear()
        assert not await world.payer.has_room(world.need(1_000)[0])
        await accept(world, await brought_in(world, 1_500), 1)
        assert calls.count("Fund") == 2

    funding(run, body)


def test_a_channel_that_was_closed_by_its_payee_is_funded_again(run: Run) -> None:
    async def body(world: Any, calls: list[str]) -> None:
        account = await brought_in(world)
        await accept(world, account, 100)
        await end(world, account)
        await world.settler.checkpoint()
        hub = world.payer.hub.account
        await world.payee_outbox.run(Finalize(payer=hub, payee=world.account.address, signer=world.wallet.address))
        assert world.chain.channels[world.channel].deposit_uusd < 1_000
        world.payee._forget_read(world.channel)  # the payee asks the chain anew
        await accept(world, await brought_in(world), 50)
        assert calls.count("Fund") == 2
        assert await world.payee.paid_uusd(world.channel) == 150

    funding(run, body)
