"""Slow, stuck, late and restarted: what a task makes of it, in virtual time."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import ChunkFailed, NoProviderError, TaskError, TaskTimeout
from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    LiarCaught,
    Paid,
    ProviderReady,
    TaskStarted,
    WaitingForProviders,
    _link,
)
from p2pcompute.tasks._link import LiarError
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.limits import MAX_CLOCK_SKEW_MS
from p2pcompute_protocols.task import ChunkError

from ..market._harness import Market, Watch, Z, compute, in_memory
from ..market._rogues import CHUNKS, RogueTask, ended, open_rogue
from ._scenarios import altered_rows


def test_a_chunk_that_hangs_is_computed_by_somebody_else() -> None:
    async def scenario(market: Market) -> None:
        stuck = await market.provider(workers=market.workers(faults=WorkerFaults(hangs_at=frozenset(range(8, 32)))))
        quick = await market.provider()
        requester = await market.node(connect=(stuck, quick))
        watch = Watch()
        began = trio.current_time()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
        assert trio.current_time() - began < 20  # the chunk's own limit, at 20 s, is not waited for
        twice = {e.index for e in watch.of(ChunkAssigned) if e.provider == stuck.peer_id} & {
            e.index for e in watch.of(ChunkDone) if e.provider == quick.peer_id
        }
        assert twice  # it was given out a second time
        done = [event.index for event in watch.of(ChunkDone)]
        assert sorted(done) == list(range(CHUNKS))

    in_memory(scenario)


def test_a_chunk_that_hangs_at_the_only_provider_fails_with_a_signed_time_out() -> None:
    async def scenario(market: Market) -> None:
        stuck = await market.provider(workers=market.workers(faults=WorkerFaults(hangs_at=frozenset({8}))))
        requester = await market.node(connect=(stuck,))
        watch = Watch()
        with pytest.raises(ChunkFailed, match="chunk 4 failed at 1 provider, last with timed_out"):
            await compute(requester, watch=watch, chunks=CHUNKS)
        (agreed,) = watch.of(Agreed)
        (failure,) = [row for row in await requester.services.ledger.receipts(agreed.task) if row.code]
        assert failure.index == 4
        assert failure.verdict == "rejected"
        assert "time" in failure.reason or "limit" in failure.reason
        # All others are done and paid; the failed one costs nothing.
        assert len(watch.of(ChunkDone)) == CHUNKS - 1
        assert await market.claimed_uusd(stuck) == watch.of(Paid)[-1].paid_uusd

    in_memory(scenario)


@pytest.mark.parametrize("third", [False, True])
def test_providers_that_were_stopped_and_go_on_fail_no_chunk(third: bool) -> None:
    """A process that is stopped and continued finds that its worker ran past its limit, and says so. Two of them are no
    reason to give up a chunk that computes: it is tried again, by whoever is there."""

    async def scenario(market: Market) -> None:
        workers = [market.workers(faults=WorkerFaults(hangs_at=frozenset({8}))) for _ in range(2)]
        stopped = [await market.provider(workers=each) for each in workers]
        requester = await market.node(connect=tuple(stopped))

        async def join() -> None:
            provider = await market.provider()
            await requester.services.overlay.connect(provider.addresses[0])

        def react(event: Any) -> None:
            if isinstance(event, ChunkRejected) and len(watch.of(ChunkRejected)) == 2:
                if third:
                    market.nursery.start_soon(join)
                else:
                    for each in workers:
                        each.faults = WorkerFaults()

        watch = Watch(react)
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
        assert {event.index for event in watch.of(ChunkRejected)} == {4}
        assert {event.provider for event in watch.of(ChunkRejected)} == {each.peer_id for each in stopped}

    in_memory(scenario)


@pytest.mark.parametrize("beside", [0, 1])
def test_saying_timed_out_to_everything_wins_nothing(beside: int) -> None:
    """What is forgiven is bounded: with others the work is done, alone they are found out."""

    async def scenario(market: Market) -> None:
        honest = [await market.provider() for _ in range(beside)]
        requester = await market.node(connect=tuple(honest))

        async def sleepy(it: RogueTask) -> None:
            await it.ready()
            while True:
                index = await it.assigned()
                await it.say(
                    ChunkError(
                        index=index, receipt=it.receipt(index, b"", code=WireCode.TIMED_OUT, digest=bytes(32), units=0)
                    )
                )

        async with AsyncExitStack() as stack:
            for _ in range(3):
                rogue = await stack.enter_async_context(open_rogue(market, connect=(requester,)))
                rogue.sell(sleepy)
                requester.services.board.put(rogue.sealed_ad())
            began = trio.current_time()
            watch = Watch()
            if honest:
                assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
            else:
                with pytest.raises(ChunkFailed, match="timed_out"):
                    await compute(requester, watch=watch, chunks=CHUNKS)
            assert trio.current_time() - began < 60
            said = Counter((event.provider, event.index) for event in watch.of(ChunkRejected))
            assert max(said.values()) <= 2

    in_memory(scenario)


def test_a_provider_that_stalls_does_not_hold_up_a_task_that_is_done() -> None:
    async def scenario(market: Market) -> None:
        quick = await market.provider()
        requester = await market.node(connect=(quick,))

        async def stall(task: RogueTask) -> None:
            await ended(task.stream)

        async with open_rogue(market, connect=(requester,)) as rogue:
            rogue.sell(stall)
            requester.services.board.put(rogue.sealed_ad())
            began = trio.current_time()
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
            assert len(watch.of(Agreed)) == 2
            assert trio.current_time() - began < 10

    in_memory(scenario)


def test_a_slow_consumer_gets_every_chunk_and_every_chunk_is_paid() -> None:
    """The last chunk is waiting to be handed over when another provider finds the task complete."""

    async def scenario(market: Market) -> None:
        import p2pcompute as p2p

        from ..market._harness import X, Y, axpy

        providers = [await market.provider(price="5 USD") for _ in range(3)]
        requester = await market.node(connect=tuple(providers))
        watch = Watch()
        indexes: list[int] = []
        async for chunk in requester.map(
            axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=CHUNKS, on_event=watch
        ):
            await trio.sleep(7)
            indexes.append(chunk.index)
        assert sorted(indexes) == list(range(CHUNKS))
        accepted = 0
        for agreed in watch.of(Agreed):
            rows = await requester.services.ledger.receipts(agreed.task)
            accepted += sum(row.verdict == "accepted" for row in rows)
        assert accepted == CHUNKS

    in_memory(scenario)


def test_leaving_the_iteration_ends_the_task() -> None:
    async def scenario(market: Market) -> None:
        import p2pcompute as p2p

        from ..market._harness import X, Y, axpy, until

        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        async with requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=64) as chunks:
            async for _ in chunks:
                break
        role = provider.provider
        assert role is not None
        await until(lambda: not role.tasks.active, within_s=2)
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_an_expensive_provider_does_not_use_up_a_budget_that_a_cheap_one_would_keep() -> None:
    async def scenario(market: Market) -> None:
        cheap = await market.provider(price="0.50 USD")
        dear = await market.provider(price="9 USD")
        requester = await market.node(connect=(cheap, dear))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, budget="60 uusd"), Z)
        (started,) = watch.of(TaskStarted)
        assert started.estimate_uusd <= 60
        assert {event.provider for event in watch.of(Agreed)} == {cheap.peer_id}
        assert await market.spent_uusd(requester) <= 60

    in_memory(scenario)


def test_a_requester_that_starts_again_goes_on_with_its_channel() -> None:
    """The same keys and ledger in a new node: the channel stands where it stood."""

    async def scenario(market: Market) -> None:
        from p2pcompute.market import AdRecordValidator
        from p2pcompute.node import compose_node
        from p2pcompute.testing import open_memory_overlay, virtual_clock_ms

        provider = await market.provider(price="5 USD")
        first = await market.node(connect=(provider,))
        assert np.array_equal(await compute(first, chunks=CHUNKS), Z)
        before = await market.spent_uusd(first)
        market.memory.kill(first.peer_id)
        services = first.services
        validator = AdRecordValidator(network="simulated", now_ms=virtual_clock_ms)
        async with open_memory_overlay(market.memory, services.key, record_validator=validator) as overlay:
            from p2pcompute._opening import wire_services

            again = wire_services(
                key=services.key,
                wallet=services.wallet,
                account=services.account,
                overlay=overlay,
                ledger=services.ledger,
                hub=services.hub,
                network="simulated",
                now_ms=virtual_clock_ms,
                open_pool=services.open_pool,
                measure=services.measure,
                known_device=services.known_device,
                guess_milli=services.guess_milli,
                fund_wallet=services.fund_wallet,
            )
            async with compose_node(again, network="simulated", now_ms=virtual_clock_ms) as node:
                await overlay.connect(provider.addresses[0])
                assert np.array_equal(await compute(node, chunks=CHUNKS), Z)
                (channel,) = await services.ledger.channels_out()
                assert channel.voucher_uusd > before
                assert await market.claimed_uusd(provider) == channel.voucher_uusd

    in_memory(scenario)


def test_a_provider_is_found_over_the_dht_when_it_is_not_connected() -> None:
    async def scenario(market: Market) -> None:
        hub = await market.node()
        provider = await market.provider(node={"connect": (hub,)})
        await trio.sleep(30)  # its records are in the DHT
        # Nobody else holds its ad: the hub forgets it, so only the DHT's hint leads there.
        hub.services.board.forget(provider.peer_id)
        requester = await market.node(connect=(hub,))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert {event.provider for event in watch.of(ProviderReady)} == {provider.peer_id}

    in_memory(scenario)


def test_the_ad_itself_is_in_the_dht() -> None:
    async def scenario(market: Market) -> None:
        hub = await market.node()
        provider = await market.provider(node={"connect": (hub,)})
        await trio.sleep(30)
        hub.services.board.forget(provider.peer_id)
        # It answers no queries for ads: what others know of it is in the DHT.
        from p2pcompute_protocols import ads

        async def deaf(stream: Any) -> None:
            await stream.reset()

        provider.services.overlay.handle(ads.PROTOCOL_ID, deaf)
        requester = await market.node(connect=(hub,))
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_a_requester_that_wants_another_chain_finds_nobody() -> None:
    async def scenario(market: Market) -> None:
        import dataclasses

        from p2pcompute.payments import ModelChain

        provider = await market.provider()
        other = ModelChain(dataclasses.replace(market.chain.terms, chain_id=5))
        requester = await market.node(connect=(provider,), chain=other)
        with pytest.raises(NoProviderError, match="another chain"):
            await compute(requester)
        assert other.total_uusd() == 0

    in_memory(scenario)


def test_nodes_of_another_network_do_not_meet() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(node={"network_id": "elsewhere"})
        requester = await market.node(connect=(provider,))
        with pytest.raises(NoProviderError):
            await compute(requester)

    in_memory(scenario)


def test_a_partition_that_heals_loses_nothing() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        done: list[int] = []

        async def cut() -> None:
            market.memory.partition(provider.peer_id)
            await trio.sleep(20)
            market.memory.heal(provider.peer_id)

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone):
                done.append(event.index)
                if len(done) == 4:
                    market.nursery.start_soon(cut)

        assert np.array_equal(await compute(requester, watch=Watch(react), chunks=CHUNKS), Z)
        assert sorted(done) == list(range(CHUNKS))

    in_memory(scenario)


def test_a_partition_that_stays_ends_the_task_with_what_to_do() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))

        waits: list[WaitingForProviders] = []

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone):
                market.memory.partition(provider.peer_id)
            if isinstance(event, WaitingForProviders):
                waits.append(event)

        began = trio.current_time()
        with pytest.raises(TaskError, match="run the task again"):
            await compute(requester, watch=Watch(react), chunks=CHUNKS)
        assert trio.current_time() - began < 600
        assert len(waits) == 1  # said once, and how long it takes
        assert 0 < waits[0].chunks < CHUNKS
        market.memory.heal(provider.peer_id)

    in_memory(scenario)


@pytest.mark.parametrize("deadline_s", [0.001, 0.03, 0.3, 0.6, 1.0, 1.5, 2.0])
def test_a_deadline_that_passes_before_anything_began_is_said(deadline_s: float) -> None:
    """While providers are looked for, while the kernel is compiled here, or between the two."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=5))
        requester = await market.node(connect=(provider,))
        requester.services.board.forget(provider.peer_id)
        with pytest.raises(TaskTimeout, match="deadline passed"):
            await compute(requester, deadline_s=deadline_s)

    in_memory(scenario)


def test_clocks_may_differ_by_what_the_protocol_allows() -> None:
    from p2pcompute.testing import virtual_clock_ms

    async def scenario(market: Market) -> None:
        ahead = MAX_CLOCK_SKEW_MS - 1_000
        provider = await market.provider(node={"now_ms": lambda: virtual_clock_ms() + ahead})
        requester = await market.node(connect=(provider,))
        with pytest.raises(NoProviderError):  # its order has lapsed when it gets there: it lives for a minute
            await compute(requester)
        close = await market.provider(node={"now_ms": lambda: virtual_clock_ms() + 30_000})
        await requester.services.overlay.connect(close.addresses[0])
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_a_failed_chunk_is_not_given_to_the_same_provider_again() -> None:
    async def scenario(market: Market) -> None:
        weak = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({0}))))
        strong = await market.provider()
        requester = await market.node(connect=(weak, strong))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
        for rejected in watch.of(ChunkRejected):
            given = [e for e in watch.of(ChunkAssigned) if (e.provider, e.index) == (rejected.provider, rejected.index)]
            assert len(given) == 1

    in_memory(scenario)


@pytest.mark.parametrize("lie_at", [0, 7, CHUNKS - 1])
def test_a_lie_at_any_chunk_is_caught_and_paid_nothing(lie_at: int) -> None:
    """The last one as well, when everybody else has done all of theirs."""
    lied: list[int] = []

    def lie(output: bytes, index: int) -> bytes:
        if index != lie_at:
            return output
        lied.append(index)
        return altered_rows(output, index)

    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=lie, price="5 USD")
        requester = await market.node(connect=(liar,))
        watch = Watch()
        with trio.CancelScope() as scope:
            watch = Watch(lambda event: scope.cancel() if isinstance(event, LiarCaught) else None)
            await compute(requester, watch=watch, chunks=CHUNKS)
        assert scope.cancelled_caught
        (caught,) = watch.of(LiarCaught)
        assert caught.index == lie_at
        assert set(caught.revoked) == {event.index for event in watch.of(ChunkDone)}
        assert await market.claimed_uusd(liar) == caught.paid_uusd
        honest = await market.provider()
        await requester.services.overlay.connect(honest.addresses[0])
        assert np.array_equal(await compute(requester, chunks=CHUNKS), Z)
        assert len(lied) == 1

    in_memory(scenario)


@pytest.mark.parametrize("when", ["the lie is found", "the evidence is stored"])
def test_a_lie_that_is_found_while_the_task_is_cancelled_is_not_forgotten(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who lies to whoever leaves a loop over chunks early would lie to it for ever."""
    scope = trio.CancelScope()

    class Found(LiarError):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            scope.cancel()

    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows)
        requester = await market.node(connect=(liar,))
        ledger = requester.services.ledger
        reject = ledger.reject_work

        async def storing(*args: Any, **options: Any) -> None:
            scope.cancel()
            await reject(*args, **options)

        if when == "the lie is found":
            monkeypatch.setattr(_link, "LiarError", Found)
        else:
            monkeypatch.setattr(ledger, "reject_work", storing)
        watch = Watch()
        with scope:
            await compute(requester, watch=watch)
        assert scope.cancelled_caught
        assert liar.peer_id in requester.services.books.banned
        known = await ledger.peer(liar.peer_id)
        assert known is not None
        assert known.banned
        (agreed,) = watch.of(Agreed)
        assert [row.verdict for row in await ledger.receipts(agreed.task)] == ["rejected"]

    in_memory(scenario)


def test_where_everybody_lies_nothing_is_paid_and_nothing_is_given() -> None:
    async def scenario(market: Market) -> None:
        liars = [await market.provider(fault=altered_rows) for _ in range(3)]
        requester = await market.node(connect=tuple(liars))
        watch = Watch()
        with pytest.raises(TaskError, match="0 of 16 chunks"):
            await compute(requester, watch=watch, chunks=CHUNKS)
        assert {event.provider for event in watch.of(LiarCaught)} == {liar.peer_id for liar in liars}
        assert watch.of(ChunkDone) == []
        assert await market.spent_uusd(requester) == 0

    in_memory(scenario)


def test_two_liars_beside_an_honest_provider() -> None:
    async def scenario(market: Market) -> None:
        liars = [await market.provider(fault=altered_rows) for _ in range(2)]
        honest = await market.provider(workers=market.workers(chunk_s=1))
        requester = await market.node(connect=(*liars, honest))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
        assert len(watch.of(LiarCaught)) == 2
        assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}

    in_memory(scenario)


def test_without_samples_a_lie_goes_through() -> None:
    """What checking is worth: with it turned off, and said so in the agreement, the same lie is in the result."""

    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows)
        requester = await market.node(connect=(liar,))
        watch = Watch()
        result = await compute(requester, watch=watch, chunks=CHUNKS, samples=0)
        assert not np.array_equal(result, Z)
        assert watch.of(LiarCaught) == []
        assert watch.of(Paid)

    in_memory(scenario)
