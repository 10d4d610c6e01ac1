"""Vouchers above the deposit: kept, counted up to it, and worth what the chain comes to say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from p2pcompute._dialogue import Dialogue
from p2pcompute.payments import FundRow
from p2pcompute.payments._payee import MAX_LEDGER_UUSD, MAX_REFUSALS
from p2pcompute.storage import ChannelInRow
from p2pcompute_protocols.channel import (
    ChannelConnection,
    ChannelHello,
    ChannelSync,
    CloseAsk,
    ConsentFrame,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import WireCode

from .conftest import TERMS, World

Run = Callable[..., None]


def fund(world: World, amount: int) -> None:
    """The payer brings so much more into the channel."""
    free = world.chain.free
    free[world.wallet.address] = free.get(world.wallet.address, 0) + amount
    row = FundRow(payee=world.account.address, signer=world.wallet.address, amount_uusd=amount)
    world.chain._fund(world.wallet.address, (row,))


def take_back(world: World, amount: int) -> None:
    """A reorganisation: so much of the funding never was."""
    state = world.chain.channels[world.channel]
    world.chain.channels[world.channel] = dataclasses.replace(state, deposit_uusd=state.deposit_uusd - amount)


async def greet(world: World) -> tuple[Dialogue, ChannelSync]:
    dialogue = Dialogue(ChannelConnection(Role.REQUESTER), world.connect())
    await dialogue.send(ChannelHello(chain=TERMS, payer=world.binding(), payee=bytes(world.account.address)))
    sync = await dialogue.expect(ChannelSync)
    assert isinstance(sync, ChannelSync)
    return dialogue, sync


async def say(world: World, dialogue: Dialogue, amount: int) -> VoucherAck | VoucherRefusal:
    """The answer to a voucher that is signed as it has to be; the chain may be asked about it."""
    await trio.sleep(1)
    await dialogue.send(VoucherFrame(amount_uusd=amount, memo=bytes(32), signature=world.voucher(amount)))
    return await dialogue.expect(VoucherAck, VoucherRefusal)


async def owe(world: World, uusd: int, *, deposit: int) -> None:
    """Work of so much, none of it paid, on a channel with such a deposit."""
    task = await world.agree()
    fund(world, deposit)
    payload = world.receipt(task, 0, units=uusd)
    await world.payee_ledger.record_receipt(payload, sign=world.sign_receipt)


async def row_of(world: World) -> ChannelInRow:
    row = await world.payee_ledger.channel_in(world.channel)
    assert row is not None
    return row


async def history(world: World) -> int:
    peer = await world.payee_ledger.peer(world.requester.peer_id)
    return 0 if peer is None else peer.paid_uusd


def is_unfunded(answer: VoucherAck | VoucherRefusal, *, best: int, deposit: int) -> bool:
    return answer == VoucherRefusal(
        code=int(WireCode.UNFUNDED),
        detail=f"the channel holds {deposit / 1e6:.6f} USD",
        best_uusd=best,
        deposit_uusd=deposit,
    )


@pytest.mark.parametrize("claimed_before", [False, True])
def test_a_payer_that_vanishes_has_paid_with_what_comes_to_count(
    run: Run, make_world: Callable[..., World], tmp_path: Path, claimed_before: bool
) -> None:
    """The attack: pay over a deposit of which little counts yet, and never come back."""

    async def vanish(world: World) -> None:
        await owe(world, 10, deposit=4)
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, 10), best=4, deposit=4)
        row = await row_of(world)
        assert (row.best_uusd, row.paid_uusd, row.unclaimed_uusd, row.unpaid_pusd) == (10, 4, 4, 6_000_000)
        assert await history(world) == 4
        if claimed_before:
            assert await world.settler.checkpoint() == {world.channel: 4}

    async def look(world: World) -> None:
        world.settler._policy = dataclasses.replace(world.settler._policy, cap_uusd=5)
        assert await world.settler.round() == {}
        fund(world, 6)
        assert await world.settler.round() == {world.channel: 10}
        assert world.chain.free[world.account.address] == 10
        row = await row_of(world)
        assert (row.paid_uusd, row.unpaid_pusd) == (10, 0)
        assert await history(world) == 10

    world = make_world(tmp_path)
    run(vanish, world=world)
    run(look, world=world)  # it is on disk


def test_the_same_voucher_counts_once_it_is_covered_and_only_once(run: Run) -> None:
    async def body(world: World) -> None:
        await owe(world, 10, deposit=4)
        await world.payee_ledger.charge_credit(
            world.requester.peer_id,
            subnet="a",
            hour=0,
            pusd=10_000_000,
            peer_limit_pusd=10**9,
            subnet_limit_pusd=10**9,
            provider_limit_pusd=10**9,
        )
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, 10), best=4, deposit=4)
        assert is_unfunded(await say(world, dialogue, 10), best=4, deposit=4)
        assert await world.payee_ledger.credit_used_pusd(0) == 6_000_000
        fund(world, 3)
        assert is_unfunded(await say(world, dialogue, 10), best=7, deposit=7)
        assert await world.payee_ledger.credit_used_pusd(0) == 3_000_000
        other, sync = await greet(world)
        assert sync == ChannelSync(amount_uusd=0)  # what is shown would not be sent again
        fund(world, 3)
        assert await say(world, other, 10) == VoucherAck(amount_uusd=10)
        assert await say(world, dialogue, 10) == VoucherAck(amount_uusd=10)  # it came on this stream as well
        assert await world.payee_ledger.credit_used_pusd(0) == 0
        assert await history(world) == 10
        assert world.payee.counters.vouchers == 1
        assert (await row_of(world)).paid_uusd == 10
        again, sync = await greet(world)
        assert sync.amount_uusd == 10
        assert await say(world, again, 11) != VoucherAck(amount_uusd=11)
        assert (await row_of(world)).owed_uusd == 10

    run(body)


def test_an_absurd_voucher_wedges_nothing_and_gives_no_credit(run: Run) -> None:
    """The attack: sign as much as there can be, first of all, and then pay as if nothing had been."""

    async def body(world: World) -> None:
        await owe(world, 2, deposit=5)
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, MAX_LEDGER_UUSD), best=5, deposit=5)
        row = await row_of(world)
        assert (row.best_uusd, row.paid_uusd, row.owed_uusd) == (MAX_LEDGER_UUSD, 5, 5)
        assert await world.settler.exposure_uusd() == 5
        # Lower ones are paid for by it, as far as there is money.
        for amount in (1, 3, 5):
            assert await say(world, dialogue, amount) == VoucherAck(amount_uusd=amount)
        assert is_unfunded(await say(world, dialogue, 6), best=5, deposit=5)
        fund(world, 3)
        assert await say(world, dialogue, 6) == VoucherAck(amount_uusd=6)
        row = await row_of(world)
        assert (row.best_uusd, row.paid_uusd, row.owed_uusd, row.unpaid_pusd) == (MAX_LEDGER_UUSD, 8, 8, 0)
        assert await history(world) == 8
        assert world.payee.counters.vouchers == 1
        # No work is paid by it but what the chain has money for.
        task = await world.agree()
        await world.payee_ledger.record_receipt(world.receipt(task, 0, units=2), sign=world.sign_receipt)
        assert (await row_of(world)).unpaid_pusd == 2_000_000
        assert await world.settler.checkpoint() == {world.channel: 8}
        assert world.chain.free[world.account.address] == 8

    run(body)


def test_rising_vouchers_without_money_fill_no_disk(run: Run) -> None:
    """The attack: signing costs nothing, and each voucher that is kept takes a place in the log for good."""

    async def body(world: World) -> None:
        await owe(world, 3, deposit=2)
        before = (await world.payee_ledger.verify()).events
        for stream in range(4):
            dialogue, _ = await greet(world)
            for number in range(MAX_REFUSALS):
                answer = await say(world, dialogue, 100 * (stream + 1) + number)
                assert is_unfunded(answer, best=2, deposit=2)
        assert (await row_of(world)).best_uusd == 100
        assert (await world.payee_ledger.verify()).events - before < 5

    run(body)


def test_it_is_replaced_while_more_is_owed_than_it_is_worth(run: Run) -> None:
    async def body(world: World) -> None:
        await owe(world, 10, deposit=2)
        dialogue, _ = await greet(world)
        for amount in (6, 10, 11):
            assert is_unfunded(await say(world, dialogue, amount), best=2, deposit=2)
        assert (await row_of(world)).best_uusd == 10

    run(body)


def test_what_is_taken_back_counts_no_more(run: Run) -> None:
    """The attack: a history out of one deposit that comes and goes."""

    async def body(world: World) -> None:
        await owe(world, 10, deposit=10)
        dialogue, _ = await greet(world)
        assert await say(world, dialogue, 10) == VoucherAck(amount_uusd=10)
        for _ in range(3):
            take_back(world, 7)
            await world.settler.round()
            row = await row_of(world)
            assert (row.best_uusd, row.paid_uusd, row.unpaid_pusd) == (10, 3, 7_000_000)
            assert await history(world) == 3
            _, sync = await greet(world)
            assert sync == ChannelSync(amount_uusd=0)
            fund(world, 7)
            await world.settler.round()
            assert (await row_of(world)).unpaid_pusd == 0
            assert await history(world) == 10

    run(body)


def test_no_closing_is_consented_to_below_what_is_held(run: Run) -> None:
    """The attack: a consent at what counts, then money that comes to count, and goes home with the closing."""

    async def body(world: World) -> None:
        await owe(world, 5, deposit=5)
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, 9), best=5, deposit=5)
        agreed = await world.payee_ledger.open_agreements()
        await world.payee_ledger.close_agreement(agreed[0].task, state="done")
        await dialogue.send(CloseAsk(amount_uusd=5))
        answer = await dialogue.expect(ConsentFrame, VoucherRefusal)
        assert isinstance(answer, VoucherRefusal)
        assert answer.code == WireCode.BAD_VOUCHER
        assert await world.payee_ledger.consents() == []
        fund(world, 4)
        assert await say(world, dialogue, 9) == VoucherAck(amount_uusd=9)
        await dialogue.send(CloseAsk(amount_uusd=9))
        assert isinstance(await dialogue.expect(ConsentFrame, VoucherRefusal), ConsentFrame)

    run(body)


def test_who_waits_hears_of_it_when_the_payer_is_shown_its_voucher(run: Run) -> None:
    """The checkpoint's look at the chain may be the first that finds it covered; then it is not sent again."""

    async def body(world: World) -> None:
        await owe(world, 10, deposit=4)
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, 10), best=4, deposit=4)
        paid: list[int] = []

        async def wait() -> None:
            paid.append(await world.payee.wait_paid(world.channel, 10))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                fund(world, 6)
                await world.settler.round()
                await trio.testing.wait_all_tasks_blocked()
                _, sync = await greet(world)
                assert sync.amount_uusd == 10
        assert paid == [10]

    run(body)


def test_a_claim_that_brings_more_than_was_known_to_count_is_booked_once(run: Run) -> None:
    """The hub pays out what of a deposit its payee does not count yet."""

    async def body(world: World) -> None:
        await owe(world, 7, deposit=5)
        dialogue, _ = await greet(world)
        assert is_unfunded(await say(world, dialogue, 10), best=5, deposit=5)
        ledger = world.payee_ledger
        sent = await ledger.queue_tx(
            world.account.address, kind="claim", chain_nonce=0, sign=lambda _: (b"h" * 32, b"raw")
        )
        await ledger.tx_settled(sent.id, ok=True, claimed=[(world.channel, 9)])
        await ledger.set_chain_in(world.channel, deposit_uusd=9, claimed_uusd=9, close_at_s=0)
        row = await row_of(world)
        assert (row.paid_uusd, row.owed_uusd, row.unpaid_pusd, row.unclaimed_uusd) == (9, 9, 0, 0)
        assert await history(world) == 9
        # Taken back with its block.
        await ledger.set_chain_in(world.channel, deposit_uusd=5, claimed_uusd=0, close_at_s=0)
        assert (await row_of(world)).unclaimed_uusd == 5
        assert await history(world) == 5

    run(body)
