"""Free credit for strangers: how much a crowd of fresh identities can get, with the budgets and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.identity import NodeKey
from p2pcompute.payments import (
    CreditBook,
    CreditExhausted,
    CreditPolicy,
    CreditWindow,
    max_loss,
    subnet_of,
)
from p2pcompute.payments._credit import Held
from p2pcompute.payments._debts import OLD_DEBT_MS, Debts
from p2pcompute.storage import InlineExecutor, Ledger, open_ledger

CHUNK_PUSD = 10_000 * 1_000_000  # a cent
LIMITS = ("peer_limit_pusd", "subnet_limit_pusd", "provider_limit_pusd")
HOUR_MS = 3_600_000
UNLIMITED = 2**40
PEERS = [NodeKey(number.to_bytes(32, "big")).peer_id for number in range(1_000)]


class Clock:
    """Hours that a test turns by hand."""

    def __init__(self) -> None:
        self.now_ms = 100 * HOUR_MS

    def __call__(self) -> int:
        return self.now_ms


def with_book(policy: CreditPolicy, body: Callable[[CreditBook, Ledger, Clock], Any]) -> None:
    async def main() -> None:
        clock = Clock()
        async with open_ledger(None, executor=InlineExecutor(), clock_ms=clock) as ledger:
            await body(CreditBook(ledger=ledger, policy=policy, clock_ms=clock), ledger, clock)
            await ledger.verify(full=True)

    trio.run(main)


async def attack(book: CreditBook, address: Callable[[int], str], peers: int = 1_000) -> int:
    """Fresh identities take all that they can get and never pay; gives the chunks that they got."""
    chunks = 0
    for number in range(peers):
        peer = PEERS[number]
        for _ in range(16):
            try:
                await book.charge(peer, subnet=subnet_of(address(number), peer), pusd=CHUNK_PUSD, unpaid_pusd=0)
            except CreditExhausted:
                break
            chunks += 1
    return chunks


def scattered(number: int) -> str:
    """Each identity in a subnet of its own."""
    return f"/ip4/10.{number // 256}.{number % 256}.7/tcp/4001"


def test_a_thousand_fresh_identities_get_the_hours_budget_and_no_more() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        assert await attack(book, scattered) == 100  # 1 USD at a cent a chunk, not 1 000 peers × 5
        events = (await ledger.verify()).events
        assert await attack(book, scattered) == 0
        assert (await ledger.verify()).events == events  # refused strangers write nothing
        clock.now_ms += HOUR_MS
        assert await attack(book, scattered) == 100

    with_book(CreditPolicy(), body)


def test_without_the_budgets_the_same_crowd_takes_everything() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        assert await attack(book, scattered) == 5_000

    with_book(CreditPolicy(provider_uusd=UNLIMITED, subnet_uusd=UNLIMITED), body)


def test_one_subnet_can_not_use_up_the_budget_of_all() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        assert await attack(book, lambda number: f"/ip4/10.0.0.{number % 256}/tcp/1") == 25
        assert await attack(book, lambda number: f"/ip6/2001:db8:1:{number:x}::1/tcp/1") == 25
        await book.charge(PEERS[999], subnet="192.0.2.0/24", pusd=CHUNK_PUSD, unpaid_pusd=0)

    with_book(CreditPolicy(), body)


async def pay(ledger: Ledger, peer: Any, amount_uusd: int, already: int = 0) -> None:
    """A peer pays on a channel of its own."""
    channel = peer.encode()[-32:]
    await ledger.open_channel_in(channel, payer=b"p" * 20, signer=b"s" * 20, peer=peer)
    await ledger.set_chain_in(channel, deposit_uusd=already + amount_uusd, claimed_uusd=0, close_at_s=0)
    await ledger.take_voucher(
        channel, amount_uusd=already + amount_uusd, memo=bytes(32), signature=b"s" * 65, peer=peer
    )


def test_what_is_held_pays_for_the_next_charge_or_comes_back_with_it() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        async def used() -> int:
            return await ledger.credit_used_pusd(clock() // HOUR_MS) // CHUNK_PUSD

        def held(chunks: int = 1) -> Held:
            return Held(pusd=chunks * CHUNK_PUSD, hour=clock() // HOUR_MS)

        for _ in range(5):
            await book.charge(PEERS[0], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)
        # What is enough is used, though nothing is left of the budget.
        two = held(2)
        for left in (1, 0):
            await book.charge(PEERS[0], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0, held=two)
            assert (await used(), two.pusd) == (5, left * CHUNK_PUSD)
        # What is not enough makes room for what goes with it, and comes back where that is refused as well.
        await book.charge(PEERS[0], subnet="a", pusd=2 * CHUNK_PUSD, unpaid_pusd=0, held=held(2))
        one = held()
        with pytest.raises(CreditExhausted, match="per peer"):
            await book.charge(PEERS[0], subnet="a", pusd=3 * CHUNK_PUSD, unpaid_pusd=0, held=one)
        assert (await used(), one.pusd) == (4, 0)
        # And where nothing is charged: of one that is known by now, or banned.
        await ledger.ban(PEERS[0], reason="x")
        with pytest.raises(CreditExhausted, match="banned"):
            await book.charge(PEERS[0], subnet="a", pusd=1, unpaid_pusd=0, held=held())
        assert await used() == 3
        await book.charge(PEERS[1], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)
        await pay(ledger, PEERS[1], 1_000_000)
        assert await used() == 3
        await book.charge(PEERS[1], subnet="a", pusd=1, unpaid_pusd=0, held=held())
        assert await used() == 3

    with_book(CreditPolicy(), body)


def test_short_work_is_charged_ahead_where_there_is_room_and_only_for_its_hour() -> None:
    least, short = CHUNK_PUSD, CHUNK_PUSD // 1000
    ahead = 64 * short

    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        async def charge(held: Held, *, pusd: int = short) -> int:
            await book.charge(PEERS[0], subnet="a", pusd=pusd, newcomer_pusd=least, unpaid_pusd=0, held=held)
            return await ledger.credit_used_pusd(clock() // HOUR_MS)

        held = Held()
        used = await charge(held)
        assert (used, held.pusd) == (least + ahead, ahead)
        for done in range(1, 65):
            held.pusd += least - short  # the one before has cost so much less
            assert await charge(held) == used
            assert held.pusd == ahead - done * short
        held.pusd += least - short
        assert await charge(held) == used + short + ahead, "what it has cost so far stays charged"
        # What was charged in one hour pays for nothing in the next.
        held.pusd += least
        clock.now_ms += HOUR_MS
        assert await charge(held) == least + ahead
        assert held.pusd == ahead
        # Nor is far more held than is needed.
        held.pusd += 3 * least
        await ledger.charge_credit(
            PEERS[0], subnet="a", hour=held.hour, pusd=3 * least, **dict.fromkeys(LIMITS, 5 * CHUNK_PUSD)
        )
        assert await charge(held) == 2 * least + ahead
        assert held.pusd == ahead
        await book.release(PEERS[0], pusd=least)
        # Work that costs the least charge or more is never charged ahead.
        assert await charge(Held(), pusd=least) == 2 * least + ahead
        # Where a budget has room for nothing else, it has for this.
        await charge(Held(), pusd=5 * CHUNK_PUSD - 3 * least - ahead)
        last = Held()
        assert await charge(last) == 5 * CHUNK_PUSD
        assert last.pusd == 0

    with_book(CreditPolicy(), body)


def test_what_a_newcomer_pays_comes_back_to_the_budget() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        for _ in range(5):
            await book.charge(PEERS[0], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)
        with pytest.raises(CreditExhausted, match="per peer"):
            await book.charge(PEERS[0], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)
        hour = clock() // HOUR_MS
        await pay(ledger, PEERS[0], 20_000)
        assert await ledger.credit_used_pusd(hour) == 3 * CHUNK_PUSD
        await book.release(PEERS[0], pusd=CHUNK_PUSD)
        assert await ledger.credit_used_pusd(hour) == 2 * CHUNK_PUSD
        await book.charge(PEERS[0], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)

    with_book(CreditPolicy(), body)


def test_paying_once_and_then_running_off_is_bounded_as_well() -> None:
    """Each identity pays for its first chunk and takes two more: with a budget only for those who never paid,
    every identity would gain two chunks for the price of one."""

    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        stolen = 0
        for number, peer in enumerate(PEERS):
            subnet = subnet_of(scattered(number), peer)
            try:
                await book.charge(peer, subnet=subnet, pusd=CHUNK_PUSD, unpaid_pusd=0)
            except CreditExhausted:
                break
            await pay(ledger, peer, CHUNK_PUSD // 1_000_000)
            try:
                for _ in range(2):
                    await book.charge(peer, subnet=subnet, pusd=CHUNK_PUSD, unpaid_pusd=0)
                    stolen += 1
            except CreditExhausted:
                continue
        assert stolen == 100

    with_book(CreditPolicy(), body)


def test_a_known_peer_has_a_larger_window_and_never_owes_more_than_it_paid() -> None:
    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        peer = PEERS[0]
        assert await book.first_window(peer, chunk_pusd=CHUNK_PUSD) == 1
        await pay(ledger, peer, 99_999)
        assert await book.first_window(peer, chunk_pusd=CHUNK_PUSD) == 1
        await pay(ledger, peer, 1, already=99_999)
        assert await book.first_window(peer, chunk_pusd=CHUNK_PUSD) == 5
        assert await book.first_window(peer, chunk_pusd=1) == 16
        unpaid = 0
        while True:
            try:
                await book.charge(peer, subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=unpaid)
            except CreditExhausted:
                break
            unpaid += CHUNK_PUSD
        assert unpaid == 5 * CHUNK_PUSD
        with pytest.raises(CreditExhausted):  # nor one huge chunk
            await book.charge(peer, subnet="a", pusd=100 * CHUNK_PUSD, unpaid_pusd=0)
        await ledger.ban(peer, reason="wrong results")
        assert await book.first_window(peer, chunk_pusd=1) == 1
        with pytest.raises(CreditExhausted, match="wrong results"):
            await book.charge(peer, subnet="a", pusd=1, unpaid_pusd=0)

    with_book(CreditPolicy(), body)


def test_work_without_a_result_takes_from_what_a_known_peer_may_owe() -> None:
    """It may waste half of what it has paid in an hour; without that, all of a provider's time."""

    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        peer = PEERS[0]
        await pay(ledger, peer, 200_000)
        wasted = 0
        while wasted < 100:
            try:
                charged = await book.charge(peer, subnet="a", pusd=1, unpaid_pusd=0)
            except CreditExhausted:
                break
            await book.settle(peer, subnet="a", charged_pusd=charged, cost_pusd=CHUNK_PUSD)
            wasted += 1
        assert wasted == 10
        await pay(ledger, PEERS[1], 200_000)
        await book.charge(PEERS[1], subnet="a", pusd=CHUNK_PUSD, unpaid_pusd=0)
        clock.now_ms += HOUR_MS
        await book.charge(peer, subnet="a", pusd=10 * CHUNK_PUSD, unpaid_pusd=0)

    with_book(CreditPolicy(), body)


def test_one_piece_of_work_does_not_shut_a_known_peer_out() -> None:
    """A machine that slept in the middle of a chunk can say any cost of it."""

    async def body(book: CreditBook, ledger: Ledger, clock: Clock) -> None:
        peer = PEERS[0]
        await pay(ledger, peer, 200_000)
        await book.settle(peer, subnet="a", charged_pusd=0, cost_pusd=10**15)
        await book.charge(peer, subnet="a", pusd=5 * CHUNK_PUSD, unpaid_pusd=0)
        await book.settle(peer, subnet="a", charged_pusd=0, cost_pusd=10**15)
        with pytest.raises(CreditExhausted):
            await book.charge(peer, subnet="a", pusd=1, unpaid_pusd=0)

    with_book(CreditPolicy(), body)


def test_a_debt_is_as_old_as_the_least_that_was_owed_all_day() -> None:
    now_ms = 10 * OLD_DEBT_MS
    debts = Debts(lambda: now_ms)
    peer = PEERS[0]

    def old(unpaid_pusd: int, worked_pusd: int = 0) -> int:
        return debts.old_pusd(peer, unpaid_pusd=unpaid_pusd, worked_pusd=worked_pusd)

    assert old(100, worked_pusd=60) == 40  # what was owed before this day, at the least
    assert old(30) == 30
    assert old(50) == 30
    now_ms += OLD_DEBT_MS // 2
    assert old(90) == 30
    assert old(60) == 30
    now_ms += OLD_DEBT_MS // 2
    assert old(60) == 50
    now_ms += OLD_DEBT_MS // 2
    assert old(1_000) == 60
    assert old(0) == 0
    assert not debts.knows(peer)
    assert old(70, worked_pusd=1_000) == 0
    for hour in range(24):  # a window that is paid and owed again all day is never old
        now_ms += 3_600_000
        assert old(70 if hour % 2 else 10) == (10 if hour == 23 else 0)


def test_credit_outlives_a_restart_and_old_hours_are_forgotten(tmp_path: Any) -> None:
    async def main() -> None:
        clock = Clock()
        for expected in (100, 0):
            async with open_ledger(tmp_path, executor=InlineExecutor(), clock_ms=clock) as ledger:
                book = CreditBook(ledger=ledger, policy=CreditPolicy(), clock_ms=clock)
                assert await attack(book, scattered, peers=200) == expected
        clock.now_ms += 30 * HOUR_MS
        async with open_ledger(tmp_path, executor=InlineExecutor(), clock_ms=clock) as ledger:
            book = CreditBook(ledger=ledger, policy=CreditPolicy(), clock_ms=clock)
            await book.charge(PEERS[0], subnet="a", pusd=1, unpaid_pusd=0)
            assert ledger._database.connection.execute("SELECT count(*) FROM credit").fetchone() == (1,)
            await ledger.verify(full=True)

    trio.run(main)


@pytest.mark.parametrize(
    ("address", "subnet"),
    [
        ("/ip4/198.51.100.9/tcp/4001/p2p/x", "198.51.100.0/24"),
        ("198.51.100.77", "198.51.100.0/24"),
        ("/ip6/2001:db8:1:2::3/udp/1/quic-v1", "2001:db8:1::/48"),
        ("::ffff:198.51.100.9", "198.51.100.0/24"),
        ("/dns4/example.org/tcp/1", "unknown"),
        ("/p2p/x/p2p-circuit", "unknown"),
        ("", "unknown"),
    ],
)
def test_subnets(address: str, subnet: str) -> None:
    assert subnet_of(address, PEERS[0]) == subnet


def test_loopback_peers_are_told_apart_unless_asked_otherwise() -> None:
    first, second = (subnet_of("/ip4/127.0.0.1/tcp/1", peer) for peer in PEERS[:2])
    assert first != second
    assert subnet_of("127.0.0.1", PEERS[0], loopback_is_one_subnet=True) == "127.0.0.0/24"
    assert subnet_of("::1", PEERS[0]) == first


@given(
    maximum=st.integers(1, 64),
    steps=st.lists(st.tuples(st.sampled_from(["start", "drop", "paid"]), st.integers(1, 8)), max_size=200),
)
def test_a_window_never_lets_more_out_than_twice_what_was_paid(maximum: int, steps: list[tuple[str, int]]) -> None:
    window = CreditWindow(size=1, maximum=maximum)
    paid = 0
    for step, count in steps:
        if step == "start" and window.room:
            window.start()
        elif step == "drop":
            window.drop()
        elif step == "paid":
            paid += min(count, window.unpaid)
            window.paid(count)
        assert 0 <= window.unpaid <= window.size <= maximum
        assert window.size <= paid + 1


def test_a_window_doubles_with_each_fully_paid_window() -> None:
    window = CreditWindow(size=1, maximum=6)
    sizes = []
    for _ in range(4):
        chunks = window.room
        for _ in range(chunks):
            window.start()
        with pytest.raises(ValueError, match="full"):
            window.start()
        window.paid(chunks)
        sizes.append(window.size)
    assert sizes == [2, 4, 6, 6]


@pytest.mark.parametrize("bad", [{"known_percent": 101}, {"max_window": 0}, {"peer_uusd": -1}])
def test_policies_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CreditPolicy(**bad)


def test_the_most_that_can_be_lost_is_a_window() -> None:
    loss = max_loss(chunk_pusd=1_500_000, window=4, ceiling_uusd=100)
    assert (loss.requester_uusd, loss.provider_uusd, loss.locked_uusd) == (6, 6, 100)
    assert max_loss(chunk_pusd=10**9, window=4, ceiling_uusd=100).provider_uusd == 100
