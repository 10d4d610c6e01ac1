"""A hire, end to end on simulated nodes: many calls under one agreement, each with its own inputs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import BudgetError, ChunkFailed, ConfigError, KernelTypeError, TaskError, TaskTimeout
from p2pcompute.tasks import Agreed, ChunkDone, LiarCaught, Paid, ProviderLost, TaskEnded
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.task import ReceiptPayload, open_receipt

from ..market._harness import SIZE, Market, Watch, X, Y, axpy, in_memory, until
from ._scenarios import altered_rows

OUT = p2p.out((SIZE,), np.float32)
Array = np.ndarray[Any, Any]


def play(scenario: Callable[[Market], Awaitable[None]]) -> None:
    in_memory(scenario)


def hire(node: p2p.Node, watch: Watch | None = None, **options: Any) -> Any:
    """`axpy` with its usual arguments, in two chunks a call."""
    chosen = {"budget": "0.10 USD", "chunks": 2, "on_event": watch, **options}
    return node.hire(axpy, OUT, np.float32(2), X, Y, **chosen)


def due(number: int, y: Array = Y) -> Array:
    result: Array = np.float32(number) * X + y
    return result


async def many(hired: p2p.Hired, numbers: range) -> dict[int, Array]:
    """Calls from as many tasks."""
    found: dict[int, Array] = {}

    async def one(number: int) -> None:
        found[number] = await hired.run(np.float32(number), X, Y + number)

    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(one, number)
    return found


def all_right(found: dict[int, Array], numbers: range) -> bool:
    return sorted(found) == list(numbers) and all(np.array_equal(found[n], due(n, Y + n)) for n in numbers)


async def receipts(node: p2p.Node, agreed: Agreed) -> list[ReceiptPayload]:
    """What the provider has signed for, as the requester's ledger has it."""
    rows = await node.services.ledger.receipts(agreed.task)
    return [
        open_receipt(row.envelope, network=node.network, provider=agreed.provider, task=agreed.task, index=row.index)[1]
        for row in rows
    ]


def test_calls_one_after_the_other_have_one_agreement() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        async with hire(node, watch) as hired:
            for number in range(4):
                assert np.array_equal(await hired.run(np.float32(number), X, Y), due(number))
            assert np.array_equal(await hired.run(np.float32(3), X, Y * 5), due(3, Y * 5))
        (agreed,) = watch.of(Agreed)
        assert [event.index for event in watch.of(ChunkDone)] == list(range(10))
        assert all(event.checked for event in watch.of(ChunkDone))
        (ended,) = watch.of(TaskEnded)
        assert ended.done == 10
        assert 0 < ended.paid_uusd == watch.of(Paid)[-1].paid_uusd == await market.spent_uusd(node)
        assert await market.claimed_uusd(provider) == ended.paid_uusd
        signed = await receipts(node, agreed)
        assert [receipt.index for receipt in signed] == list(range(10))
        calls = [receipt.call for receipt in signed]
        assert None not in calls
        assert calls[::2] == calls[1::2]  # two chunks a call
        assert len(set(calls)) == 5

    play(scenario)


def test_calls_of_many_tasks_go_side_by_side() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        async with hire(node, watch) as hired:
            assert all_right(await many(hired, range(30)), range(30))
        assert len(watch.of(Agreed)) == 1
        # A voucher for half a window, not for each call.
        assert len(watch.of(Paid)) < 30

    play(scenario)


def test_a_call_that_is_cancelled_harms_no_other() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        async with hire(node, watch) as hired:
            await hired.run(np.float32(1), X, Y)
            found: dict[int, Array] = {}

            async def one(number: int, scope: trio.CancelScope) -> None:
                with scope:
                    found[number] = await hired.run(np.float32(number), X, Y + number)

            scopes = [trio.CancelScope() for _ in range(6)]
            async with trio.open_nursery() as nursery:
                for number, scope in enumerate(scopes):
                    nursery.start_soon(one, number, scope)
                    await trio.sleep(0.001)  # so that they come in this order
                await until(lambda: 0 in found)
                scopes[1].cancel()  # under way, or about to be
                scopes[4].cancel()  # waits here
            assert sorted(found) == [0, 2, 3, 5]
            assert all(np.array_equal(found[n], due(n, Y + n)) for n in found)
            assert np.array_equal(await hired.run(np.float32(7), X, Y), due(7))
        assert len(watch.of(Agreed)) == 1

    play(scenario)


def test_another_provider_follows_one_that_is_lost() -> None:
    async def scenario(market: Market) -> None:
        providers = {node.peer_id: node for node in [await market.provider() for _ in range(2)]}
        node = await market.node(connect=tuple(providers.values()))

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and len(watch.of(ChunkDone)) == 9:
                market.kill(providers[event.provider])

        watch = Watch(react)
        async with hire(node, watch) as hired:
            assert all_right(await many(hired, range(12)), range(12))
        assert len({event.provider for event in watch.of(Agreed)}) == 2
        assert len(watch.of(ProviderLost)) == 1

    play(scenario)


def test_a_liar_is_caught_and_its_calls_are_made_elsewhere() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows, price="0.01 USD")
        honest = await market.provider(price="0.05 USD")
        node = await market.node(connect=(liar, honest))
        watch = Watch()
        async with hire(node, watch) as hired:
            assert all_right(await many(hired, range(4)), range(4))
        (caught,) = watch.of(LiarCaught)
        assert (caught.provider, caught.paid_uusd) == (liar.peer_id, 0)
        assert caught.evidence is None  # the inputs of a call are in no agreement
        assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}

    play(scenario)


def test_a_liar_is_not_caught_where_nothing_is_checked() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows)
        node = await market.node(connect=(liar,))
        watch = Watch()
        async with hire(node, watch, check="none") as hired:
            assert not np.array_equal(await hired.run(np.float32(1), X, Y), due(1))
        assert not watch.of(LiarCaught)
        assert watch.of(Agreed)[0].check == "none"

    play(scenario)


def test_a_call_that_could_pass_the_budget_is_not_made() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="5 USD")
        node = await market.node(connect=(provider,))
        watch = Watch()
        async with hire(node, watch) as hired:
            await hired.run(np.float32(1), X, Y)
        price_uusd = watch.of(TaskEnded)[0].accepted_uusd
        assert price_uusd > 1
        watch = Watch()
        made = 0
        # A calibration is never twice the same, so a call may cost a little more or less than the last one.
        async with hire(node, watch, budget=f"{5 * price_uusd} uusd") as hired:
            try:
                for _ in range(100):
                    await hired.run(np.float32(1), X, Y)
                    made += 1
            except BudgetError:
                pass
            with pytest.raises(BudgetError, match="hire again"):
                await hired.run(np.float32(1), X, Y)
        (ended,) = watch.of(TaskEnded)
        assert ended.done == 2 * made > 0
        assert ended.paid_uusd <= 5 * price_uusd

    play(scenario)


def test_a_hire_ends_at_its_deadline() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=30.0))
        node = await market.node(connect=(provider,))
        async with hire(node, deadline_s=40.0) as hired:
            with pytest.raises(TaskTimeout):
                await hired.run(np.float32(1), X, Y)
            with pytest.raises(TaskTimeout):
                await hired.run(np.float32(1), X, Y)

    play(scenario)


@pytest.mark.parametrize("calls", [0, 2])
def test_a_provider_that_was_not_called_for_long_is_asked_again(calls: int) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        watch = Watch()
        async with hire(node, watch) as hired:
            for number in range(calls):
                assert np.array_equal(await hired.run(np.float32(number), X, Y), due(number))
            assert provider.provider is not None
            assert provider.provider.tasks.active
            await trio.sleep(700)
            assert not provider.provider.tasks.active  # its place is others' again
            assert np.array_equal(await hired.run(np.float32(9), X, Y), due(9))
        assert len(watch.of(Agreed)) == 2

    play(scenario)


def test_a_call_that_fails_twice_is_given_up_and_others_go_on() -> None:
    async def scenario(market: Market) -> None:
        faults = WorkerFaults(dies_at=frozenset({16}))  # the second of two chunks of 16 blocks
        fragile = await market.provider(workers=market.workers(faults=faults), price="0.01 USD")
        sound = await market.provider(price="0.05 USD")
        node = await market.node(connect=(fragile, sound))
        async with hire(node) as hired:
            with pytest.raises(ChunkFailed, match="failed 2 times"):
                await hired.run(np.float32(1), X, Y)
            assert np.array_equal(await hired.run(np.float32(2), X, Y), due(2))

    play(scenario)


def test_calls_that_are_not_over_end_with_the_hire() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        errors: list[Exception] = []

        async def call(hired: p2p.Hired) -> None:
            try:
                await hired.run(np.float32(1), X, Y)
            except TaskError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery, hire(node) as hired:
            nursery.start_soon(call, hired)
            await trio.testing.wait_all_tasks_blocked()
        assert len(errors) == 1
        with pytest.raises(TaskError, match="hire again"):
            await hired.run(np.float32(1), X, Y)

    play(scenario)


def test_an_error_of_the_body_comes_out_as_it_is() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        with pytest.raises(ZeroDivisionError):
            async with hire(node):
                raise ZeroDivisionError
        assert provider.provider is not None
        tasks = provider.provider.tasks
        await until(lambda: not tasks.active)

    play(scenario)


@p2p.kernel
def total(out, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i]


@p2p.kernel
def constant(out):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < out.size:
        out[i] = i


def test_outputs_that_are_combined_and_calls_without_inputs() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        ones = np.ones(300, np.int64)
        async with node.hire(total, p2p.reduce("sum", 300, np.int64), ones, chunks=3) as hired:
            assert await hired.run(ones * 7) == 2100
            assert await hired.run(ones) == 300
        async with node.hire(constant, p2p.out(300, np.int32)) as hired:
            assert np.array_equal(await hired.run(), np.arange(300, dtype=np.int32))

    play(scenario)


WRONG: dict[str, tuple[Any, ...]] = {
    "too few": (np.float32(1), X),
    "an output": (OUT, np.float32(1), X, Y),
    "another dtype": (np.float64(1), X, Y),
    "another shape": (np.float32(1), X[1:], Y),
    "an array of another dtype": (np.float32(1), X.astype(np.float64), Y),
    "a number that it does not hold": ("1", X, Y),
    "a list": (np.float32(1), list(X), Y),
    "a masked array": (np.float32(1), np.ma.MaskedArray(X), Y),
}


def test_inputs_that_were_not_hired_for_are_refused() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        async with hire(node) as hired:
            for args in WRONG.values():
                with pytest.raises(KernelTypeError):
                    await hired.run(*args)
            assert np.array_equal(await hired.run(3, X, Y), due(3))  # an int that float32 holds

    play(scenario)


def test_what_can_not_be_hired_is_refused_at_once() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node()
        with pytest.raises(ConfigError, match="one provider at a time"):
            hire(node, check="quorum")
        with pytest.raises(ConfigError, match="no option"):
            hire(node, max_providers=2)
        with pytest.raises(KernelTypeError, match="not split"):
            node.hire(axpy, OUT, np.float32(2), p2p.split(X, halo=0), Y)

    play(partial(scenario))
