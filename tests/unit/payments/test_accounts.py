"""The books that tasks see: what a task charges to credit, and how accounts share limits and the disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute._books import ProviderLedgerBooks, RequesterLedgerBooks
from p2pcompute.errors import BudgetError, DiskFull
from p2pcompute.payments import CreditBook, CreditPolicy, CreditWindow
from p2pcompute.payments._earlier import EarlierWork
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute_protocols import cbor
from p2pcompute_protocols.envelope import seal
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.negotiation import open_terms

Run = Callable[..., None]
NETWORK = "test"
FAR_MS = 10**13  # when agreements end
HOUR = 1_000_000 // 3_600_000


def provider_books(world: Any, **policy: int) -> ProviderLedgerBooks:
    credit = CreditBook(ledger=world.payee_ledger, policy=CreditPolicy(**policy), clock_ms=lambda: 1_000_000)
    return ProviderLedgerBooks(world.payee_ledger, world.payee, credit, lambda _: "10.0.0.0/24")


async def paid_before(world: Any, units: int) -> None:
    """The requester is known: so many micro-USD of work were done for it, and paid."""
    task = await world.agree(price_pusd=1_000_000)
    await world.payer.open_channels(world.need(10_000))
    await world.work(task, 0, units=units)
    await world.channel_out().pay()


async def three_accounts(world: Any) -> tuple[list[Any], list[Any]]:
    """Accounts and their tasks, with chunks of 100 micro-USD, of a requester that has paid 400 and may owe 200."""
    await paid_before(world, 400)
    books = provider_books(world, known_uusd=400, peer_uusd=0)
    accounts, tasks = list[Any](), list[Any]()
    for _ in range(3):
        tasks.append(await world.agree(price_pusd=1_000_000))
        accounts.append(await books.open(world.last_agreement))
        accounts[-1]._chunk_pusd = 100_000_000
    return accounts, tasks


async def begun(world: Any, **policy: int) -> Any:
    """The account of the last agreement, with a chunk that has begun."""
    account = await provider_books(world, **policy).open(world.last_agreement)
    await account.begin()
    return account


async def used(world: Any) -> int:
    return int(await world.payee_ledger.credit_used_pusd(HOUR))


def test_a_newcomer_is_charged_for_two_seconds_until_its_chunk_is_receipted(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        account = await begun(world)
        assert await used(world) == 28_000_000
        await account.issue(world.receipt(task, 0, units=1), world.sign_receipt)
        await account.close()
        assert await used(world) == 14

    run(body)


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(0, 0), (1, 14_000_000), (20, 280_000_000), (100_000, 50_000_000_000)],
    ids=["nothing", "less than was charged", "more", "beyond its budget"],
)
def test_a_chunk_without_a_result_costs_credit_what_it_used(run: Run, seconds: int, left: int) -> None:
    async def body(world: Any) -> None:
        await world.agree(price_pusd=14)
        account = await begun(world)
        await account.drop(used_units=seconds * 1_000_000)
        assert account.unpaid == 0
        await account.close()
        assert await used(world) == left

    run(body)


@pytest.mark.parametrize(("seconds", "left"), [(1, 28_000_000), (20, 280_000_000)])
def test_a_chunk_that_cost_more_than_its_units_is_charged_for_it(run: Run, seconds: int, left: int) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        account = await begun(world)
        await account.issue(world.receipt(task, 0, units=1), world.sign_receipt)
        await account.drop(used_units=seconds * 1_000_000)
        assert account.unpaid == 1  # it is owed all the same
        await account.close()
        assert await used(world) == left

    run(body)


@pytest.mark.parametrize(("seconds", "last_pusd"), [(0, 14), (1, 28_000_000), (20, 280_000_000)])
def test_short_chunks_are_charged_ahead_and_what_is_left_comes_back(run: Run, seconds: int, last_pusd: int) -> None:
    chunks = 40

    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        account = await provider_books(world).open(world.last_agreement)
        account._chunk_pusd = 14
        account._window = CreditWindow(size=chunks, maximum=chunks)
        for index in range(chunks):
            await account.begin()
            assert await used(world) == 28_000_000 + 64 * 14  # written once
            await account.issue(world.receipt(task, index, units=1), world.sign_receipt)
        if seconds:
            await account.drop(used_units=seconds * 1_000_000)  # the last one cost more than its units say
        await account.close()
        assert await used(world) == (chunks - 1) * 14 + last_pusd
        charged = "SELECT count(*) FROM events WHERE kind = 'credit_charged'"
        assert await world.payee_ledger._read(lambda tx: tx.one(charged)) == (1 + (seconds > 2),)

    run(body)


def test_work_without_a_result_ends_a_newcomers_credit_and_that_of_its_subnet(run: Run) -> None:
    async def body(world: Any) -> None:
        await world.agree(price_pusd=14)
        account = await begun(world, subnet_uusd=50_000)
        await account.drop(used_units=10**12)
        with pytest.raises(LocalProtocolError) as caught:
            await account.begin()
        assert caught.value.code == WireCode.CREDIT_EXHAUSTED
        await account.close()

    run(body)


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(0, 7_000_000), (4, 56_000_000), (60_000, 12_500_000_000)],
    ids=["a start of a worker", "what it took", "a quarter of the budget"],
)
def test_a_compilation_is_charged_to_a_newcomer(run: Run, seconds: int, left: int) -> None:
    async def body(world: Any) -> None:
        await world.agree(price_pusd=14)
        account = await provider_books(world).open(world.last_agreement)
        await account.begin_compile()
        assert await used(world) == 28_000_000  # before it begins
        await account.end_compile(used_units=seconds * 1_000_000)
        assert await used(world) == left
        await account.begin()  # there is credit for the first chunk
        await account.drop()
        await account.close()

    run(body)


def test_a_newcomer_without_credit_may_not_compile_and_a_known_peer_may(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=1_000_000)
        account = await provider_books(world, peer_uusd=0, known_uusd=400).open(world.last_agreement)
        with pytest.raises(LocalProtocolError) as caught:
            await account.begin_compile()
        assert caught.value.code == WireCode.CREDIT_EXHAUSTED
        await world.payer.open_channels(world.need(10_000))
        await world.work(task, 0, units=400)
        await world.channel_out().pay()
        await account.begin_compile()
        await account.end_compile(used_units=10**12)
        assert await used(world) == 0
        await account.close()

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
        accounts, tasks = await three_accounts(world)
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


def test_a_chunk_that_is_receipted_while_another_begins_is_counted(run: Run) -> None:
    async def body(world: Any) -> None:
        accounts, tasks = await three_accounts(world)
        await accounts[0].begin()
        await accounts[1].begin()
        is_known = accounts[2]._credit.is_known

        async def meanwhile(peer: Any) -> bool:  # what is owed has been read, and what is under way has not
            await accounts[0].issue(world.receipt(tasks[0], 0, units=100), world.sign_receipt)
            return bool(await is_known(peer))

        accounts[2]._credit.is_known = meanwhile
        with pytest.raises(LocalProtocolError) as caught:
            await accounts[2].begin()
        assert caught.value.code == WireCode.CREDIT_EXHAUSTED
        accounts[2]._credit.is_known = is_known
        for account in accounts:
            await account.close()

    run(body)


DAY_MS = 24 * 3_600_000


async def _leave_unpaid(world: Any, books: ProviderLedgerBooks, units: int) -> None:
    """A task that ends with so much receipted and not paid."""
    task = await world.agree(price_pusd=1_000_000)
    account = await books.open(world.last_agreement)
    account._chunk_pusd = units * 1_000_000
    await account.begin()
    await account.issue(world.receipt(task, 0, units=units), world.sign_receipt)
    await account.close()


async def _may_owe(world: Any, books: ProviderLedgerBooks, units: int) -> bool:
    await world.agree(price_pusd=1_000_000)
    account = await books.open(world.last_agreement)
    account._chunk_pusd = units * 1_000_000
    refused = False
    try:
        await account.begin()
    except LocalProtocolError as exc:
        refused = exc.code == WireCode.CREDIT_EXHAUSTED
    await account.close()
    return not refused


@pytest.mark.parametrize("restarted", [False, True])
def test_a_debt_of_a_day_ago_lowers_what_a_known_peer_may_owe_and_shuts_it_out_no_longer(
    run: Run, restarted: bool
) -> None:
    async def body(world: Any) -> None:
        now_ms = FAR_MS - DAY_MS // 2

        def opened() -> ProviderLedgerBooks:
            policy = CreditPolicy(known_uusd=400, peer_uusd=0)
            credit = CreditBook(ledger=world.payee_ledger, policy=policy, clock_ms=lambda: now_ms)
            return ProviderLedgerBooks(world.payee_ledger, world.payee, credit, lambda _: "10.0.0.0/24")

        await paid_before(world, 400)
        books = opened()  # 200 may be owed
        await _leave_unpaid(world, books, 200)
        assert not await _may_owe(world, books, 1)
        now_ms += DAY_MS - 1
        assert not await _may_owe(world, books, 1)
        now_ms += 1
        if restarted:
            assert not await _may_owe(world, opened(), 1)  # for all that it knows the work may be of this day
            now_ms += DAY_MS  # the agreements were over by then
            books = opened()
        assert not await _may_owe(world, books, 101)
        await _leave_unpaid(world, books, 100)
        assert not await _may_owe(world, books, 1)
        # However often it does this, it never gets more for nothing than it has paid.
        for _ in range(20):
            now_ms += DAY_MS
            left = 400 - (await world.payee_ledger.channel_in(world.channel)).unpaid_pusd // 1_000_000
            assert not await _may_owe(world, books, left // 2 + 1)
            if left >= 2:
                await _leave_unpaid(world, books, left // 2)
        assert left == 1

    run(body)


def test_a_window_is_no_larger_than_what_a_known_peer_may_owe_still(run: Run) -> None:
    """A requester waits for its window's results before it pays: those that can't begin would be waited for in vain."""

    async def body(world: Any) -> None:
        await paid_before(world, 400)
        books = provider_books(world, known_uusd=400, peer_uusd=0)  # 200 may be owed
        await _leave_unpaid(world, books, 150)
        task = await world.agree(price_pusd=1_000_000)
        account = await books.open(world.last_agreement)
        account._chunk_pusd = 20_000_000
        await account.look()
        assert account.window == 2
        for index in range(3):
            await account.begin()
            receipt = world.receipt(task, index, units=20)
            envelope = await account.issue(receipt, world.sign_receipt)
            await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
            await world.channel_out().pay()
            await account.wait_changed()
            assert account.window == (60 + 10 * index) // 20  # it may owe half of what it pays
        await account.close()

    run(body)


@pytest.mark.parametrize("mended", [True, False])
def test_a_voucher_for_earlier_work_pays_for_no_later_work(run: Run, mended: bool) -> None:
    async def body(world: Any) -> None:
        await world.payer.open_channels(world.need(10_000))
        books = provider_books(world)
        task = await world.agree(price_pusd=1_000_000)
        for index in range(5):  # receipted, accepted, and not paid when the link broke
            await world.work(task, index, units=10)
        task = await world.agree(price_pusd=1_000_000)
        account = await books.open(world.last_agreement)
        account._chunk_pusd = 10_000_000
        if not mended:
            account._note_paid_debt = trio.lowlevel.checkpoint
        await world.channel_out().pay()
        assert await world.payee_ledger.unpaid_pusd(world.requester.peer_id, world.channel) == 0
        await account.begin()
        receipt = world.receipt(task, 0, units=10)
        envelope = await account.issue(receipt, world.sign_receipt)
        with trio.move_on_after(0.1):
            await account.wait_changed()
        assert account.unpaid == (1 if mended else 0)
        await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        await world.channel_out().pay()
        if mended:
            await account.wait_changed()
        assert account.unpaid == 0
        await account.close()

    run(body)


def test_a_debt_that_stays_is_left_out_of_what_a_task_has_to_have_paid(run: Run) -> None:
    """A requester that lost results pays for what it gets from now on, and the task moves on."""

    async def body(world: Any) -> None:
        await world.payer.open_channels(world.need(10_000))
        books = provider_books(world)
        lost = await world.agree(price_pusd=1_000_000)
        for index in range(5):
            await world.payee_ledger.record_receipt(world.receipt(lost, index, units=10), sign=world.sign_receipt)
        task = await world.agree(price_pusd=1_000_000)
        account = await books.open(world.last_agreement)
        account._chunk_pusd = 10_000_000
        for index in range(8):
            await account.begin()
            receipt = world.receipt(task, index, units=10)
            envelope = await account.issue(receipt, world.sign_receipt)
            assert account.unpaid == 1
            await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
            await world.channel_out().pay()
            await account.wait_changed()
            assert account.unpaid == 0
        await account.close()

    run(body)


@pytest.mark.parametrize("mended", [True, False])
def test_a_lost_result_that_hides_in_a_rounded_voucher_is_not_waited_for(
    run: Run, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10.3 micro-USD are accepted and 11 paid; 0.4 more are receipted and lost, which is no debt to be seen. After a
    chunk of 6.5 the provider counts 17.2 and the requester 16.8, so its voucher says 17."""
    if not mended:
        monkeypatch.setattr(EarlierWork, "left_out_pusd", 0)

    async def body(world: Any) -> None:
        await world.payer.open_channels(world.need(10_000))
        books = provider_books(world)
        await world.work(await world.agree(price_pusd=1_000), 0, units=10_300)
        await world.channel_out().pay()
        lost = world.receipt(await world.agree(price_pusd=1_000), 0, units=400)
        await world.payee_ledger.record_receipt(lost, sign=world.sign_receipt)
        assert await world.payee_ledger.unpaid_pusd(world.requester.peer_id, world.channel) == 0
        task = await world.agree(price_pusd=1_000)
        account = await books.open(world.last_agreement)
        account._chunk_pusd = 6_500_000
        await account.begin()
        receipt = world.receipt(task, 0, units=6_500)
        envelope = await account.issue(receipt, world.sign_receipt)
        with trio.move_on_after(1):
            await account.wait_changed()
        assert account.unpaid == 1  # nothing of it is paid
        await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        await world.channel_out().pay()
        with trio.move_on_after(1):
            await account.wait_changed()
        assert account.unpaid == (0 if mended else 1)
        await account.close()

    run(body)


@pytest.mark.parametrize("mended", [True, False])
def test_a_result_that_is_lost_in_one_task_holds_up_no_other_on_the_channel(
    run: Run, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mended:
        monkeypatch.setattr(EarlierWork, "lose", lambda *_, **__: None)

    async def body(world: Any) -> None:
        await world.payer.open_channels(world.need(10_000))
        books = provider_books(world)
        task = await world.agree(price_pusd=1_000_000)
        first = await books.open(world.last_agreement)
        other_task = await world.agree(price_pusd=1_000_000)
        other = await books.open(world.last_agreement)
        first._chunk_pusd = other._chunk_pusd = 10_000_000
        await other.begin()
        await other.issue(world.receipt(other_task, 0, units=10), world.sign_receipt)
        await first.begin()
        receipt = world.receipt(task, 0, units=10)
        envelope = await first.issue(receipt, world.sign_receipt)
        await world.channel_out().accept(task, [(receipt, envelope)], sampled=1)
        await world.channel_out().pay()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 1
            nursery.start_soon(first.wait_changed)
            await trio.testing.wait_all_tasks_blocked()
            assert first.unpaid == 1  # the other task's chunk may still be paid
            await other.close()
        assert first.unpaid == (0 if mended else 1)
        await first.close()
        assert not books._accounts

    run(body)


def test_compiling_takes_from_what_a_known_peer_may_owe(run: Run) -> None:
    async def body(world: Any) -> None:
        task = await world.agree(price_pusd=14)
        await world.payer.open_channels(world.need(10_000))
        await world.work(task, 0, units=40_000_000)
        await world.channel_out().pay()
        books = provider_books(world, known_uusd=500, peer_uusd=400)  # may owe 400 micro-USD: 28 s of a core
        compiled = 0
        while True:
            await world.agree(price_pusd=14)
            account = await books.open(world.last_agreement)
            if compiled == 6:
                with pytest.raises(LocalProtocolError) as caught:
                    await account.begin_compile()
                assert caught.value.code == WireCode.CREDIT_EXHAUSTED
                await account.close()
                return
            await account.begin_compile()
            await account.end_compile(used_units=5_000_000)
            await account.close()
            compiled += 1

    run(body)


def test_what_is_issued_is_owed_whoever_cancels(run: Run) -> None:
    """Without its shield the entry for the voucher is lost with the cancellation, after the receipt is stored."""

    async def body(world: Any) -> None:
        task = await world.agree()
        account = await begun(world)
        with trio.CancelScope() as scope:
            scope.cancel()
            await account.issue(world.receipt(task, 0), world.sign_receipt)
        assert len(await world.payee_ledger.receipts(task)) == 1
        assert list(account._owed) == [(1_000_000, 1_000_000)]
        await account.close()
        assert (await world.payee_ledger.agreement(task)).state == "failed"

    run(body)


def test_accounts_that_accept_at_once_keep_to_one_budget(run: Run) -> None:
    async def body(world: Any) -> None:
        books = RequesterLedgerBooks(world.payer_ledger, world.payer)
        budget = TaskBudget()
        budget.start(10)
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
        accounts = [await books.open(world.last_agreement, budget) for _ in range(2)]
        refused = 0

        async def accept(account: Any) -> None:
            nonlocal refused
            try:
                await account.accept([(b"", world.receipt(task, 0, units=6), 1)])
            except BudgetError:
                refused += 1

        async with trio.open_nursery() as nursery:
            for account in accounts:
                nursery.start_soon(accept, account)
            await trio.testing.wait_all_tasks_blocked()
            inside.set()
        assert (refused, budget.accepted_pusd) == (1, 6_000_000)
        channel.fails = True
        with pytest.raises(OSError):
            await accounts[0].accept([(b"", world.receipt(task, 1, units=1), 1)])
        assert budget.accepted_pusd == 6_000_000

    run(body)


def test_a_stranger_leaves_nothing_on_disk_before_its_first_charged_chunk(run: Run) -> None:
    async def body(world: Any) -> None:
        def rows() -> int:
            return int(world.payee_ledger._database.connection.execute("SELECT count(*) FROM events").fetchone()[0])

        before = rows()
        books = provider_books(world)
        for _ in range(5):
            task = await world.agree(stored=False)
            await books.agreed(world.last_agreement)
            account = await books.open(world.last_agreement)
            cancelled = dataclasses.replace(
                world.receipt(task, 0, units=0), code=int(WireCode.CANCELLED), output=bytes(32), detail="cancelled"
            )
            assert await account.issue(cancelled, world.sign_receipt)
            await account.close()
        refusing = await provider_books(world, peer_uusd=0, subnet_uusd=0).open(world.last_agreement)
        refusing._chunk_pusd = 1
        with pytest.raises(LocalProtocolError):
            await refusing.begin()
        await refusing.close()
        assert rows() == before
        account = await books.open(world.last_agreement)  # it has not begun, so it may still be opened
        await account.begin()
        assert (await world.payee_ledger.agreement(task)).state == "open"
        await account.issue(world.receipt(task, 0), world.sign_receipt)
        await account.close()
        with pytest.raises(LocalProtocolError) as caught:
            await books.open(world.last_agreement)
        assert caught.value.code == WireCode.REPLAYED

    run(body)


def test_a_full_disk_at_the_first_chunk_gives_its_credit_back(run: Run) -> None:
    async def body(world: Any) -> None:
        await world.agree(stored=False)

        async def full(*args: Any, **kwargs: Any) -> Any:
            raise DiskFull("no room")

        account = await provider_books(world).open(world.last_agreement)
        world.payee_ledger.add_agreement = full
        with pytest.raises(DiskFull):
            await account.begin()
        assert (account.unpaid, await used(world)) == (0, 0)

    run(body)


@pytest.mark.parametrize("place", ["terms", "check"])
def test_terms_with_something_riding_along_are_refused(run: Run, place: str) -> None:
    async def body(world: Any) -> None:
        await world.agree(stored=False)
        fields = world.last_agreement.terms.to_map()
        if place == "terms":
            fields[1000] = bytes(50_000)
        else:
            (key,) = (key for key, value in fields.items() if value == world.last_agreement.terms.check.to_map())
            fields[key] = {**fields[key], 1000: bytes(50_000)}
        raw = seal("terms", NETWORK, world.requester, cbor.encode(fields))
        with pytest.raises(LocalProtocolError) as caught:
            open_terms(raw, network=NETWORK, requester=world.requester.peer_id)
        assert caught.value.code == WireCode.MALFORMED

    run(body)
