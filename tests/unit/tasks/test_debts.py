"""Customers that owe something from before: the two sides wait for each other nowhere, and the debt gets paid."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute._books import _ProviderAccount, _RequesterAccount
from p2pcompute._requester import TaskRun
from p2pcompute.errors import TaskError
from p2pcompute.node import Node
from p2pcompute.payments import CreditPolicy
from p2pcompute.payments._earlier import EarlierWork
from p2pcompute.tasks import ChunkDone, Paid, ProviderLost, ProviderRefused, TaskStarted, _coordinator, _link
from p2pcompute_protocols import task
from p2pcompute_protocols.errors import LocalProtocolError, WireCode

from ..market._harness import Market, Watch, Z, compute, in_memory
from ..market._rogues import CHUNKS


async def customer(market: Market) -> tuple[Node, Node, int]:
    """A provider, a peer that it knows, and the price of a chunk in pico-USD."""
    provider = await market.provider(
        credit=CreditPolicy(known_uusd=1), price="5 USD", workers=market.workers(compile_s=0)
    )
    requester = await market.node(connect=(provider,))
    watch = Watch()
    assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, budget="1 USD"), Z)
    (started,) = watch.of(TaskStarted)
    role = provider.provider
    assert role is not None
    assert await role.credit.is_known(requester.peer_id)
    return provider, requester, started.units_per_chunk * role.price_pusd


def lends(provider: Node, chunks: float, chunk_pusd: int) -> None:
    """From now on it lends its customers so many chunks."""
    role = provider.provider
    assert role is not None
    role.credit.policy = CreditPolicy(known_uusd=1, known_percent=0, peer_uusd=int(chunks * chunk_pusd / 1e6))


@pytest.mark.parametrize("defended", [True, False])
def test_neither_waits_for_the_other_where_little_credit_is_left(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requester pays for half a window at a time, and older debts leave less than that: without a payment when
    nothing comes, the provider waits for money and the requester for a result, until it blames the provider."""
    if not defended:
        monkeypatch.setattr(_link, "_QUIET_S", float("inf"))

    async def scenario(market: Market) -> None:
        provider, requester, chunk_pusd = await customer(market)
        lends(provider, 8, chunk_pusd)
        ledger = provider.services.ledger
        unpaid = ledger.unpaid_pusd

        async def with_older_debt(*args: Any) -> int:
            return await unpaid(*args) + 24 * chunk_pusd // 5

        async def says_nothing_of_it(*_: Any, **__: Any) -> None:
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(ledger, "unpaid_pusd", with_older_debt)
        role = provider.provider
        assert role is not None
        monkeypatch.setattr(role.credit, "room_pusd", says_nothing_of_it)  # its window stays as large as ever
        watch = Watch()
        began = trio.current_time()
        if defended:
            assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, budget="1 USD"), Z)
            assert trio.current_time() - began < 30
        else:
            with suppress(TaskError):  # a second agreement may bring it to an end
                await compute(requester, watch=watch, chunks=CHUNKS, budget="1 USD")
            assert trio.current_time() - began > 60
        assert bool(watch.of(ProviderLost)) != defended

    in_memory(scenario)


@pytest.mark.parametrize("defended", [True, False])
def test_what_a_broken_link_left_unpaid_is_paid_before_the_next_task(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paid with a later chunk's voucher otherwise, and there is none: the provider lends no more."""

    async def nothing(_: _RequesterAccount) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(_coordinator, "_ATTEMPTS", 1)
    if not defended:
        monkeypatch.setattr(_RequesterAccount, "pay_earlier", nothing)

    async def scenario(market: Market) -> None:
        provider, requester, chunk_pusd = await customer(market)
        unpaid: list[int] = []

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone):
                unpaid.append(event.index)
                if len(unpaid) == 2:  # it pays for four at once
                    market.memory.reset_streams(provider.peer_id, task.PROTOCOL_ID)
            elif isinstance(event, Paid):
                unpaid.clear()

        with pytest.raises(TaskError):
            await compute(requester, watch=Watch(react), chunks=CHUNKS, budget="1 USD")
        (channel,) = await requester.services.ledger.channels_out()
        owed_uusd = channel.accepted_uusd - channel.acked_uusd
        assert owed_uusd > 0
        role = provider.provider
        assert role is not None
        debt_pusd = await provider.services.ledger.unpaid_pusd(requester.peer_id, channel.channel)
        assert debt_pusd > chunk_pusd
        spent_pusd = role.credit._spent_by(requester.peer_id)  # on the chunk that was under way
        lends(provider, (debt_pusd + spent_pusd) / chunk_pusd + 0.5, chunk_pusd)
        watch = Watch()
        if not defended:
            with pytest.raises(TaskError, match="gives no more credit"):
                await compute(requester, watch=watch, chunks=CHUNKS, budget="1 USD")
            return
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, budget="1 USD"), Z)
        assert not watch.of(ProviderRefused)
        (channel,) = await requester.services.ledger.channels_out()
        assert channel.accepted_uusd == channel.acked_uusd
        assert requester.services.books.standing(provider.peer_id).paid_uusd >= channel.acked_uusd - 2

    in_memory(scenario)


@pytest.mark.parametrize("mended", [True, False])
def test_a_result_that_was_lost_with_a_task_broken_off_stalls_no_later_task(
    mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cost less than a micro-USD, so it hides in a voucher that was rounded up. The next task's first chunk is paid
    in full then and not in the provider's eyes: it waits for money, and the requester for a result."""
    if not mended:
        monkeypatch.setattr(EarlierWork, "left_out_pusd", 0)
    units = 0.0

    async def costs(*_: Any) -> float:
        await trio.lowlevel.checkpoint()
        return units

    monkeypatch.setattr(TaskRun, "_calibrate", costs)
    issue = _ProviderAccount.issue
    broken_off: list[trio.CancelScope] = []

    async def and_breaks_off(account: _ProviderAccount, *args: Any) -> bytes:
        envelope = await issue(account, *args)
        for scope in broken_off:
            scope.cancel()
        return envelope

    monkeypatch.setattr(_ProviderAccount, "issue", and_breaks_off)

    async def scenario(market: Market) -> None:
        nonlocal units
        provider = await market.provider(price="3.6 USD")  # a unit costs 1,000 pico-USD
        requester = await market.node(connect=(provider,))
        units = 38 / 256  # of an item; a chunk has 256
        assert np.array_equal(await compute(requester, budget="1 USD"), Z)  # 0.608 micro-USD
        units = 300 / 256
        with trio.CancelScope() as scope:
            broken_off.append(scope)
            await compute(requester, budget="1 USD")
        assert scope.cancelled_caught
        broken_off.clear()
        (paid,) = await requester.services.ledger.channels_out()
        (owed,) = await provider.services.ledger.channels_in()
        assert (paid.accepted_pusd, owed.owed_pusd, owed.paid_uusd) == (608_000, 908_000, 1)
        assert not owed.unpaid_pusd
        units = 350 / 256
        watch = Watch()
        began = trio.current_time()
        with suppress(*(() if mended else (TaskError,))):  # a second agreement may bring it to an end
            assert np.array_equal(await compute(requester, watch=watch, budget="1 USD"), Z)
        assert bool(watch.of(ProviderLost)) != mended
        assert (trio.current_time() - began < 10) == mended

    in_memory(scenario)


def test_a_voucher_that_comes_while_credit_is_looked_at_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a peer owes is read before it is compared; the voucher for all of it may come in between."""
    begin = _ProviderAccount.begin
    refused: list[int] = []

    async def begins_late(account: _ProviderAccount) -> None:
        if account.unpaid and not refused:
            refused.append(account.unpaid)
            while account.unpaid:  # noqa: ASYNC110  nobody announces it
                await trio.sleep(0.01)
            raise LocalProtocolError("as things stood", code=WireCode.CREDIT_EXHAUSTED)
        await begin(account)

    monkeypatch.setattr(_ProviderAccount, "begin", begins_late)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert refused
        assert not watch.of(ProviderRefused)

    in_memory(scenario)
