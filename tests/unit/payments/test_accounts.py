"""The books that tasks see: what a task charges to credit, and how accounts share limits and the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute._books import ProviderLedgerBooks, RequesterLedgerBooks
from p2pcompute.errors import BudgetError
from p2pcompute.payments import CreditBook, CreditPolicy
from p2pcompute_protocols.errors import LocalProtocolError, WireCode

Run = Callable[..., None]
HOUR = 1_000_000 // 3_600_000


def provider_books(world: Any, **policy: int) -> ProviderLedgerBooks:
    credit = CreditBook(ledger=world.payee_ledger, policy=CreditPolicy(**policy), clock_ms=lambda: 1_000_000)
    return ProviderLedgerBooks(world.payee_ledger, world.payee, credit, lambda _: "10.0.0.0/24")


async def used(world: Any) -> int:
    return int(await world.payee_ledger.credit_used_pusd(HOUR))


def test_a_newcomer_is_charged_for_two_seconds_until_its_chunk_is_receipted(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        account = await provider_books(world).open(world.last_agreement)
        await account.begin()
        assert await used(world) == 28_000_000
        await account.issue(world.receipt(task, 0, units=1), world.sign_receipt)
        await account.close()
        assert await used(world) == 14

    run(body)


@pytest.mark.parametrize(("wasted", "left"), [(False, 0), (True, 28_000_000)])
def test_credit_for_a_wasted_chunk_stays_used(run: Run, wasted: bool, left: int) -> None:
    async def body(world: Any) -> None:
        await world.agree(price_pusd=14)
        account = await provider_books(world).open(world.last_agreement)
        await account.begin()
        await account.drop(wasted=wasted)
        assert account.unpaid == 0
        await account.close()
        assert await used(world) == left

    run(body)


def test_a_chunk_that_cost_more_than_its_units_keeps_its_charge(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        account = await provider_books(world).open(world.last_agreement)
        await account.begin()
        await account.issue(world.receipt(task, 0, units=1), world.sign_receipt)
        await account.drop(wasted=True)
        assert account.unpaid == 1  # it is owed all the same
        await account.close()
        assert await used(world) == 28_000_000

    run(body)


def test_cheap_chunks_of_a_dear_node_do_not_starve_a_newcomer(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=1_000_000)
        account = await provider_books(world).open(world.last_agreement)
        for index in range(50):  # 2 s of this node are 40 times a newcomer's budget
            await account.begin()
            await account.issue(world.receipt(task, index, units=1), world.sign_receipt)
            account._window.paid(1)
        await account.close()
        assert await used(world) == 50_000_000

    run(body)


def test_what_a_known_peer_may_owe_counts_over_all_its_tasks(run: Run) -> None:
    async def body(world: Any) -> None:
        first = await world.agree(price_pusd=1_000_000)
        await world.payer.open_channels(world.need(10_000))
        await world.work(first, 0, units=400)
        await world.channel_out().pay()
        books = provider_books(world, known_uusd=400, peer_uusd=0)  # may owe 200
        accounts, tasks = [], []
        for _ in range(3):
            tasks.append(await world.agree(price_pusd=1_000_000))
            accounts.append(await books.open(world.last_agreement))
            accounts[-1]._chunk_pusd = 100_000_000
        await accounts[0].begin()
        await accounts[0].issue(world.receipt(tasks[0], 0, units=100), world.sign_receipt)
        await accounts[1].begin()
        with pytest.raises(LocalProtocolError) as caught:
            await accounts[2].begin()
        assert caught.value.code == WireCode.CREDIT_EXHAUSTED
        await accounts[1].drop()
        await accounts[2].begin()
        for account in accounts:
            await account.close()

    run(body)


def test_accounts_that_accept_at_once_keep_to_one_budget(run: Run) -> None:
    async def body(world: Any) -> None:
        books = RequesterLedgerBooks(world.payer_ledger, world.payer)
        books.start_budget(10)
        inside = trio.Event()

        class Channel:
            fails = False

            async def accept(self, *args: Any, **kwargs: Any) -> None:
                await inside.wait()
                if self.fails:
                    raise OSError

        task = await world.agree(price_pusd=1_000_000)
        channel = Channel()
        world.payer.channel = lambda *_: channel
        accounts = [await books.open(world.last_agreement) for _ in range(2)]
        refused = 0

        async def accept(account: Any) -> None:
            nonlocal refused
            try:
                await account.accept(b"", world.receipt(task, 0, units=6), sampled=1)
            except BudgetError:
                refused += 1

        async with trio.open_nursery() as nursery:
            for account in accounts:
                nursery.start_soon(accept, account)
            await trio.testing.wait_all_tasks_blocked()
            inside.set()
        assert (refused, books.accepted_pusd) == (1, 6_000_000)
        channel.fails = True
        with pytest.raises(OSError):
            await accounts[0].accept(b"", world.receipt(task, 1, units=1), sampled=1)
        assert books.accepted_pusd == 6_000_000

    run(body)
