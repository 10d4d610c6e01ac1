"""What a market must do, whatever it runs on: each scenario is played in memory and on libp2p."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import BudgetError, ChunkFailed, NoProviderError, TaskError, TaskTimeout
from p2pcompute.tasks import (
    Agreed,
    ChunkDone,
    ChunkRejected,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    TaskStarted,
)
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.task import open_receipt

from ..market._harness import SIZE, Market, Watch, X, Y, Z, axpy, compute, until

__all__ = ["ONLY_IN_MEMORY", "SCENARIOS", "altered_rows"]

Scenario = Callable[[Market], Awaitable[None]]
SCENARIOS: Final[dict[str, Scenario]] = {}
ONLY_IN_MEMORY: Final[dict[str, Scenario]] = {}  # in real time they would take long


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def only_in_memory(function: Scenario) -> Scenario:
    ONLY_IN_MEMORY[function.__name__] = function
    return function


def altered_rows(output: bytes, index: int) -> bytes:
    """A lie in every row of float32: whatever a sample meets, it is wrong, so that no test waits for luck."""
    lie = bytearray(output)
    lie[::4] = bytes((byte + 1) % 256 for byte in lie[::4])
    return bytes(lie)


@scenario
async def one_provider_computes_and_is_paid(market: Market) -> None:
    provider = await market.provider()
    requester = await market.node(connect=(provider,))
    watch = Watch()
    assert np.array_equal(await compute(requester, watch=watch), Z)
    assert sorted(event.index for event in watch.of(ChunkDone)) == list(range(16))
    assert all(event.checked for event in watch.of(ChunkDone))
    paid = watch.of(Paid)[-1].paid_uusd
    assert paid > 0
    assert await market.spent_uusd(requester) == paid
    assert await market.claimed_uusd(provider) == paid


@scenario
async def the_window_of_a_payer_grows_by_doubling(market: Market) -> None:
    provider = await market.provider(max_window=8, price="5 USD")
    requester = await market.node(connect=(provider,))
    watch = Watch()
    assert np.array_equal(await compute(requester, watch=watch, chunks=64), Z)
    agreed = watch.of(Agreed)[0]
    assert agreed.credit_window == 1
    if market.network is not None:  # in real time chunks are so short here that more of them may be unpaid
        assert agreed.max_window == 8
    # Between two payments there are as many results as the requester lets add up: half of the window, at least one.
    between: list[int] = []
    done = 0
    for event in watch.events:
        if isinstance(event, ChunkDone):
            done += 1
        elif isinstance(event, Paid):
            between.append(done)
            done = 0
    assert between[0] == 1
    assert max(between) >= 4
    if market.network is not None:  # in real time a payment may come when more has added up
        assert between[:5] == sorted(between[:5])
        assert all(4 <= results <= 6 for results in between[5:-1])  # two of them may come together


@scenario
async def all_chunks_come_over_several_outputs_in_two_dimensions(market: Market) -> None:
    provider = await market.provider()
    requester = await market.node(connect=(provider,))
    height, width = 48, 80
    total, product = await requester.run(
        sum_and_product[(3, 5), (16, 16)],
        p2p.out((height, width), np.float32),
        p2p.out((height, width, 2), np.int32),
        np.arange(height * width, dtype=np.float32).reshape(height, width),
        chunks=4,
    )
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    assert np.array_equal(total, np.arange(height * width, dtype=np.float32).reshape(height, width) + 1)
    assert np.array_equal(product, np.stack([rows * columns, rows - columns], axis=-1).astype(np.int32))


@p2p.kernel
def sum_and_product(total, product, x):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i < total.shape[0] and j < total.shape[1]:
        total[i, j] = x[i, j] + 1.0
        product[i, j, 0] = i * j
        product[i, j, 1] = i - j


@scenario
async def an_input_goes_in_tiles_and_survives_a_worker(market: Market) -> None:
    """One provider's worker dies at a chunk, and both lose nothing of what they hold."""
    fragile = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({3}))))
    other = await market.provider()
    requester = await market.node(connect=(fragile, other))
    image = np.arange(48 * 80, dtype=np.float32).reshape(48, 80)
    found = await requester.run(
        below_and_right[(3, 5), (16, 16)],
        p2p.out(image.shape, np.float32),
        p2p.split(image, halo=1, edge="wrap", tile=(8, 16)),
        chunks=15,
    )
    assert np.array_equal(found, np.roll(image, -1, 0) + 2 * np.roll(image, -1, 1))


@p2p.kernel
def below_and_right(result, x):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i < result.shape[0] and j < result.shape[1]:
        result[i, j] = x[i + 1, j] + 2.0 * x[i, j + 1]


@scenario
async def map_gives_every_chunk_once(market: Market) -> None:
    providers = [await market.provider() for _ in range(2)]
    requester = await market.node(connect=tuple(providers))
    result = np.zeros(SIZE, np.float32)
    seen: list[int] = []
    async with requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=16) as chunks:
        async for chunk in chunks:
            await trio.sleep(3 * market.chunk_s)  # slower than the providers together
            seen.append(chunk.index)
            threads = len(chunk.rows[0]) // chunk.blocks
            first = chunk.first_block * threads
            result[first : first + len(chunk.rows[0])] = chunk.rows[0][: SIZE - first]
    assert sorted(seen) == list(range(16))
    assert np.array_equal(result, Z)


@scenario
async def nobody_there_is_said_within_two_seconds(market: Market) -> None:
    requester = await market.node()
    other = await market.node()
    await requester.services.overlay.connect(other.addresses[0])
    started = trio.current_time()
    with pytest.raises(NoProviderError, match="No money has moved"):
        await compute(requester)
    if market.network is not None:  # virtual seconds; in real ones it would be a measurement
        assert trio.current_time() - started < 2
    assert market.chain.minted_uusd == 0
    assert await requester.services.ledger.channels_out() == []


@scenario
async def a_budget_too_small_is_said_before_money_moves(market: Market) -> None:
    provider = await market.provider(price="9 USD")
    requester = await market.node(connect=(provider,))
    with pytest.raises(BudgetError, match="Nothing was paid"):
        await compute(requester, budget="1 uusd", chunks=2)
    assert market.chain.minted_uusd == 0
    assert await requester.services.ledger.channels_out() == []


@scenario
async def a_lost_provider_is_replaced(market: Market) -> None:
    lost, stays = await market.provider(), await market.provider()
    requester = await market.node(connect=(lost, stays))
    done: list[int] = []

    def react(event: Any) -> None:
        if isinstance(event, ChunkDone) and event.provider == lost.peer_id:
            done.append(event.index)
            if len(done) == 3:
                market.kill(lost)

    watch = Watch(react)
    assert np.array_equal(await compute(requester, watch=watch, chunks=32), Z)
    losses = [event for event in watch.of(ProviderLost) if event.provider == lost.peer_id]
    assert losses
    assert losses[0].requeued
    redone = {event.index for event in watch.of(ChunkDone) if event.provider == stays.peer_id}
    assert set(losses[0].requeued) <= redone
    assert sorted(event.index for event in watch.of(ChunkDone)) == list(range(32))
    # What it did before is used, so it stays owed: each of those chunks has its receipt.
    held = [row for event in watch.of(Agreed) for row in await requester.services.ledger.receipts(event.task)]
    assert {row.index for row in held if row.verdict == "accepted"} == set(range(32))


@scenario
async def a_lie_is_caught_and_everything_of_the_liar_computed_anew(market: Market) -> None:
    first_lie = 5
    lies: list[int] = []

    def lie(output: bytes, index: int) -> bytes:
        lies.append(index)
        return altered_rows(output, index) if len(lies) > first_lie else output

    liar = await market.provider(fault=lie, price="0.01 USD")
    honest = await market.provider(workers=market.workers(chunk_s=2 * market.chunk_s))
    requester = await market.node(connect=(liar, honest))
    watch = Watch()
    assert np.array_equal(await compute(requester, watch=watch, chunks=32), Z)
    (caught,) = watch.of(LiarCaught)
    assert caught.provider == liar.peer_id
    assert len(caught.revoked) == first_lie
    honest_of = {event.index for event in watch.of(ChunkDone) if event.provider == honest.peer_id}
    assert honest_of == set(range(32))
    # What was paid covers honest chunks only, and the liar holds no more than that.
    before = [event for event in watch.of(Paid) if event.provider == liar.peer_id]
    assert caught.paid_uusd == (before[-1].paid_uusd if before else 0)
    assert await market.claimed_uusd(liar) == caught.paid_uusd
    # The evidence is kept: a receipt that the liar signed over bytes that are wrong.
    ledger = requester.services.ledger
    (agreed,) = [event for event in watch.of(Agreed) if event.provider == liar.peer_id]
    rejected = [row for row in await ledger.receipts(agreed.task) if row.verdict == "rejected"]
    assert caught.index in {row.index for row in rejected}
    for row in rejected:
        _, payload = open_receipt(
            row.envelope, network="simulated", provider=liar.peer_id, task=agreed.task, index=row.index
        )
        assert payload.code == 0
    # It is banned: in the ledger, and so for every later run.
    known = await ledger.peer(liar.peer_id)
    assert known is not None
    assert known.banned
    again = Watch()
    assert np.array_equal(await compute(requester, watch=again), Z)
    assert liar.peer_id not in {event.provider for event in again.of(Agreed)}


@scenario
async def a_worker_that_dies_leaves_a_signed_failure(market: Market) -> None:
    # A chunk has two blocks: the fourth kills the worker of one provider only.
    weak = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({8}))))
    strong = await market.provider()
    requester = await market.node(connect=(weak, strong))
    await _with_one_failure(market, requester, weak, strong, "execution_failed")


@scenario
async def a_chunk_that_fails_everywhere_fails_the_task(market: Market) -> None:
    faults = WorkerFaults(dies_at=frozenset({8}))
    providers = [await market.provider(workers=market.workers(faults=faults)) for _ in range(2)]
    requester = await market.node(connect=tuple(providers))
    watch = Watch()
    with pytest.raises(ChunkFailed, match="chunk 4 failed"):
        await compute(requester, watch=watch)
    rejected = watch.of(ChunkRejected)
    assert {event.index for event in rejected} == {4}
    for event in rejected:
        (agreed,) = [a for a in watch.of(Agreed) if a.provider == event.provider]
        rows = [row for row in await requester.services.ledger.receipts(agreed.task) if row.code]
        assert [row.index for row in rows] == [4]


async def _with_one_failure(market: Market, requester: Any, weak: Any, strong: Any, reason: str) -> None:
    given: list[int] = []
    watch = Watch(lambda event: given.append(event.index) if isinstance(event, ChunkRejected) else None)
    for _ in range(8):  # which provider gets the chunk is up to timing; each run is a new one
        assert np.array_equal(await compute(requester, watch=watch), Z)
        if given:
            break
    (rejected, *_) = watch.of(ChunkRejected)
    assert rejected.index == 4
    assert rejected.provider == weak.peer_id
    assert rejected.reason.startswith(reason)
    tasks = [event.task for event in watch.of(Agreed) if event.provider == weak.peer_id]
    rows = [row for task in tasks for row in await requester.services.ledger.receipts(task) if row.code]
    assert [row.index for row in rows] == [4]
    issued = [row for task in tasks for row in await weak.services.ledger.receipts(task) if row.code]
    assert [row.envelope for row in issued] == [row.envelope for row in rows]
    redone = [event for event in watch.of(ChunkDone) if event.index == 4]
    assert redone[-1].provider == strong.peer_id


@scenario
async def the_deadline_ends_a_task(market: Market) -> None:
    provider = await market.provider(workers=market.workers(chunk_s=5 * market.chunk_s))
    requester = await market.node(connect=(provider,))
    with pytest.raises(TaskTimeout, match="deadline"):
        await compute(requester, chunks=64, deadline_s=100 * market.chunk_s)
    await _idle(market, provider)


@scenario
async def a_cancelled_run_stops_its_providers(market: Market) -> None:
    providers = [await market.provider() for _ in range(2)]
    requester = await market.node(connect=tuple(providers))
    with trio.CancelScope() as scope:
        watch = Watch(lambda event: scope.cancel() if isinstance(event, Paid) else None)
        await compute(requester, watch=watch, chunks=64)
    assert scope.cancelled_caught
    for provider in providers:
        await _idle(market, provider)
    assert await requester.services.ledger.open_agreements() == []  # nothing stays reserved for it
    before = len(watch.events)
    assert np.array_equal(await compute(requester), Z)
    assert len(watch.events) == before


async def _idle(market: Market, provider: Any, within_s: float = 5.0) -> None:
    """The provider has nothing under way soon."""
    await until(lambda: not provider.provider.tasks.active, within_s=within_s)


@scenario
async def tasks_in_sequence_share_one_channel(market: Market) -> None:
    provider = await market.provider(price="5 USD")
    requester = await market.node(connect=(provider,))
    totals: list[int] = []
    for _ in range(3):
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        (channel,) = await requester.services.ledger.channels_out()
        assert channel.voucher_uusd == channel.acked_uusd
        totals.append(channel.voucher_uusd)
    assert totals[0] < totals[1] < totals[2]
    assert await market.claimed_uusd(provider) == totals[2]


@scenario
async def two_requesters_are_served_beside_each_other(market: Market) -> None:
    provider = await market.provider(slots=2)
    requesters = [await market.node(connect=(provider,)) for _ in range(2)]
    results: list[Any] = []

    async def one(requester: Any) -> None:
        results.append(await compute(requester))

    async with trio.open_nursery() as nursery:
        for requester in requesters:
            nursery.start_soon(one, requester)
    assert [np.array_equal(result, Z) for result in results] == [True, True]
    spent = [await market.spent_uusd(requester) for requester in requesters]
    assert all(spent)
    assert await market.claimed_uusd(provider) == sum(spent)


@only_in_memory  # for it waits until nobody comes any more
async def the_budget_holds_when_it_runs_out_on_the_way(market: Market) -> None:
    """Chunks that are computed twice cost twice; no account of it passes the budget."""
    lies: list[int] = []

    def lie(output: bytes, index: int) -> bytes:
        lies.append(index)
        return altered_rows(output, index) if len(lies) > 30 else output

    liar = await market.provider(fault=lie, price="5 USD")
    requester = await market.node(connect=(liar,))
    watch = Watch()
    with pytest.raises(TaskError):
        await compute(requester, watch=watch, chunks=32)
    started = watch.of(TaskStarted)
    honest = await market.provider(price="5 USD")
    await requester.services.overlay.connect(honest.addresses[0])
    budget = started[0].estimate_uusd
    assert np.array_equal(await compute(requester, chunks=32, budget=f"{budget} uusd"), Z)
    (channel,) = [c for c in await requester.services.ledger.channels_out() if c.peer == honest.peer_id]
    assert channel.voucher_uusd <= budget


@scenario
async def a_provider_that_is_ready_takes_part(market: Market) -> None:
    """Ads come by gossip to who is connected already; who comes later asks its peers."""
    early = await market.node()
    provider = await market.provider(node={"connect": (early,)})
    await until(lambda: early.services.board.get(provider.peer_id) is not None)
    late = await market.node(connect=(provider,))  # gossip of the last seconds may still reach it, and need not
    for requester in (early, late):
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert {event.provider for event in watch.of(ProviderReady)} == {provider.peer_id}
