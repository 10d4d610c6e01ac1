"""What is left of a task that fails, what it has cost, and what checking it may cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import NoProviderError, P2PComputeError, TaskError
from p2pcompute.tasks import Agreed, ChunkDone, Paid, TaskEnded, TaskStarted
from p2pcompute.testing import WorkerFaults

from ..market._harness import Market, Watch, Z, compute, in_memory

CHUNKS = 16


def stop_after(market: Market, provider: p2p.Node, chunks: int, seen: list[Any]) -> Watch:
    """The provider's network ends once so many chunks are done."""

    def react(event: Any) -> None:
        seen.append(event)
        if sum(isinstance(one, ChunkDone) for one in seen) >= chunks:
            market.memory.partition(provider.peer_id)

    return Watch(react)


def test_the_error_of_a_failed_task_has_what_was_accepted_and_paid() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        watch = stop_after(market, provider, 5, [])
        with pytest.raises(TaskError, match="`partial`") as caught:
            await compute(requester, watch=watch, chunks=CHUNKS)
        partial = caught.value.partial
        assert partial is not None
        (output,) = partial.outputs
        assert (partial.done, partial.chunks) == (len(watch.of(ChunkDone)), CHUNKS)
        assert 5 <= partial.done < CHUNKS
        assert output.shape == Z.shape
        assert output.count() == partial.done * Z.size // CHUNKS
        assert np.array_equal(output.compressed(), Z[~output.mask])
        assert not output.data[output.mask].any()
        (ended,) = watch.of(TaskEnded)
        assert watch.events[-1] is ended
        assert (ended.done, ended.chunks) == (partial.done, CHUNKS)
        assert (ended.accepted_uusd, ended.paid_uusd) == (partial.accepted_uusd, partial.paid_uusd)
        assert ended.paid_uusd == max(event.paid_uusd for event in watch.of(Paid))
        assert 0 < ended.paid_uusd <= ended.accepted_uusd
        market.memory.heal(provider.peer_id)

    in_memory(scenario)


def test_what_a_liar_gave_is_not_in_it() -> None:
    """It is in the outputs: it came, passed for right, and was taken back when a sample found the lie."""

    async def scenario(market: Market) -> None:
        def lie_later(output: bytes, index: int) -> bytes:
            return output if index < 8 else bytes(len(output))

        liar = await market.provider(fault=lie_later)
        requester = await market.node(connect=(liar,))
        watch = Watch()
        with pytest.raises(TaskError) as caught:
            await compute(requester, watch=watch, chunks=CHUNKS)
        assert len(watch.of(ChunkDone)) == 8
        assert caught.value.partial is not None
        assert caught.value.partial.done == 0
        assert caught.value.partial.outputs[0].count() == 0
        assert caught.value.partial.paid_uusd > 0

    in_memory(scenario)


@p2p.kernel
def sums(total, each, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < each.size:
        total[i] = x[i]
        each[i] = 2 * x[i]


def test_a_combined_output_takes_all_blocks() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({12}))))
        requester = await market.node(connect=(provider,))
        x = np.arange(16 * 128, dtype=np.int64)
        with pytest.raises(P2PComputeError) as caught:
            await requester.run(
                sums, p2p.reduce("sum", x.shape, np.int64), p2p.out(x.shape, x.dtype), x, chunks=8, budget="0.10 USD"
            )
        partial = caught.value.partial
        assert partial is not None
        total, each = partial.outputs
        assert total.mask.all()
        assert 0 < partial.done < 8
        assert np.array_equal(each.compressed(), 2 * x[~each.mask])

    in_memory(scenario)


def test_a_task_that_succeeds_says_what_it_cost_and_one_that_did_not_start_has_nothing() -> None:
    async def scenario(market: Market) -> None:
        requester = await market.node()
        nobody = Watch()
        with pytest.raises(NoProviderError) as caught:
            await compute(requester, watch=nobody)
        assert caught.value.partial is None
        assert not nobody.of(TaskEnded)
        provider = await market.provider()
        await requester.services.overlay.connect(provider.addresses[0])
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
        (ended,) = watch.of(TaskEnded)
        assert watch.events[-1] is ended
        assert (ended.done, ended.chunks) == (CHUNKS, CHUNKS)
        assert ended.paid_uusd == ended.accepted_uusd == await market.spent_uusd(requester)
        (started,) = watch.of(TaskStarted)
        assert 0 < ended.accepted_uusd <= started.ceiling_uusd

    in_memory(scenario)


@p2p.kernel
def long_thread(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] * 3


@pytest.mark.parametrize(("threads", "most"), [(1, 0.5), (64, 0.13), (1024, 0.13)])
def test_checking_costs_a_share_of_computing(threads: int, most: float) -> None:
    """With one thread a chunk, as long as a provider may have one unpaid, each has to be looked at."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(max_window=32)
        requester = await market.node(connect=(provider,))
        x = np.arange(64 * threads, dtype=np.int64)
        for last in (False, False, True):  # windows grow with paid history
            watch = Watch()
            result = await requester.run(
                long_thread[64, threads], p2p.out(x.shape, x.dtype), x, chunks=64, budget="1 USD", on_event=watch
            )
            assert np.array_equal(result, x * 3)
            if last:
                assert 0 < sum(event.checked for event in watch.of(ChunkDone)) <= most * x.size

    in_memory(scenario)


def test_who_asks_for_more_gets_all_of_it() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(max_window=32)
        requester = await market.node(connect=(provider,))
        for samples, due in ((255, 128), (1_000, 128), (256, 16), (3, 3)):
            watch = Watch()
            x = np.arange(16 * 128, dtype=np.int64)
            options = {"chunks": 16, "samples": samples, "budget": "0.10 USD", "on_event": watch}
            await requester.run(long_thread, p2p.out(x.shape, x.dtype), x, **options)
            assert {event.checked for event in watch.of(ChunkDone)} == {due}

    in_memory(scenario)


@pytest.mark.parametrize("samples", [0, 3])
def test_what_a_lie_can_cost_under_a_quorum_hangs_on_samples(samples: int) -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=tuple(providers))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=samples), Z)
        (started,) = watch.of(TaskStarted)
        for agreed in watch.of(Agreed):
            assert (agreed.requester_max_loss_uusd == started.ceiling_uusd) == (samples == 0)

    in_memory(scenario)
