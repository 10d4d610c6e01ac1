"""A node's own rules: what its calls take, and one role at a time."""

from __future__ import annotations

import functools
import os
import resource
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute import ProviderOptions, RunOptions, cuda
from p2pcompute._ahead import open_pool
from p2pcompute._options import parse_usd
from p2pcompute.errors import ConfigError, KernelError
from p2pcompute.tasks import Agreed, ChunkDone, LiarCaught, ProviderRefused, TaskStarted
from p2pcompute.testing import virtual_clock_ms
from p2pcompute.testing._output_faults import lie

from .market._harness import Market, Watch, X, Y, Z, axpy, compute, in_memory


@pytest.mark.parametrize(
    ("text", "uusd"),
    [
        ("0.01 USD", 10_000),
        ("$0.01", 10_000),
        (0.5, 500_000),
        (3, 3_000_000),
        ("250 uusd", 250),
        ("7 micro-USD", 7),
        ("1,000 USD", 1_000_000_000),
        ("0", 0),
        ("0.000001", 1),
    ],
)
def test_amounts_are_micro_usd(text: Any, uusd: int) -> None:
    assert parse_usd(text) == uusd


@pytest.mark.parametrize("text", ["", "much", "-1 USD", "0.0000001", "nan", "inf", "1 EUR", "0.5 uusd"])
def test_what_is_no_amount_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="write it as"):
        parse_usd(text)


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "much"},
        {"max_price": "-1"},
        {"chunks": 0},
        {"max_providers": 0},
        {"deadline_s": 0},
        {"deadline_s": float("nan")},
        {"deadline_s": float("inf")},
        {"samples": -1},
        {"samples": 2**20 + 1},
        {"device": "gpu"},
        {"budget": 10**18},
        {"max_price": 10**9},
        {"chunks": 2**20 + 1},
        {"chunks": "8"},
        {"max_providers": 65},
        {"max_providers": True},
        {"deadline_s": 7 * 86_400 + 1},
        {"deadline_s": "3600"},
        {"samples": 1.5},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_before_anything_happens(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="write "):
        RunOptions(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"slots": 0},
        {"slots": 65},
        {"threads": 0},
        {"threads": 1_025},
        {"max_window": 0},
        {"max_window": 65},
        {"device": "gpu"},
        {"device": "cuda"},
        {"device": "cuda:01"},
        {"device": "cuda:100"},
        {"device": 0},
        {"region": ""},
        {"region": "x" * 65},
        {"region": "\u00e9" * 33},
        {"region": "two\nlines"},
        {"price": "-1"},
        {"price": "much"},
        {"price": 10**9},
        {"claim_above_uusd": -1},
    ],
    ids=str,
)
def test_provider_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="write "):
        ProviderOptions(**options)


def test_the_ends_of_each_range_are_taken() -> None:
    RunOptions(budget=0, chunks=2**20, max_providers=64, deadline_s=7 * 86_400, samples=2**20, device="cuda")
    options = RunOptions(chunks=np.int64(3), samples=np.uint8(0))  # type: ignore[arg-type]
    assert (type(options.chunks), type(options.samples)) == (int, int)
    ProviderOptions(price=0, slots=64, threads=1_024, max_window=64, region="x" * 64)
    ProviderOptions(slots=1, threads=1, max_window=1, region="x")
    ProviderOptions(device="cuda:0")
    ProviderOptions(device="cuda:99", slots=2)


@pytest.mark.parametrize("options", [{"threads": 2}, {"programs": ["infer"]}], ids=str)
def test_what_is_of_the_processor_is_not_asked_of_a_gpu(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="another node with device 'cpu'"):
        ProviderOptions(device="cuda:0", **options)


def test_an_unknown_option_is_named_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(**_: Any) -> Any:
        raise AssertionError("a node was opened")

    monkeypatch.setattr("p2pcompute.node.open_node", opened)
    with pytest.raises(ConfigError, match=r"no option sample; there are .*samples"):
        p2p.run(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, sample=1)
    with pytest.raises(ConfigError, match="samples is -1"):
        p2p.run(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, samples=-1)

    async def scenario(market: Market) -> None:
        node = await market.node()
        with pytest.raises(TypeError, match="max_window"):
            await node.serve(window=3)
        with pytest.raises(ConfigError, match="deadline_s"):
            node.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, deadline=3)
        assert market.chain.minted_uusd == 0

    in_memory(scenario)


class Boom(Exception):
    pass


def test_a_plain_error_in_a_stream_is_the_iterators_and_the_node_lives() -> None:
    def burst(_: object) -> None:
        raise Boom

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        with pytest.RaisesGroup(Boom, flatten_subgroups=True, allow_unwrapped=True):
            async for _ in requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, on_event=burst):
                pass
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_a_stream_left_with_break_ends_and_the_next_run_goes_on() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        async for _ in requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=8):
            break
        with trio.fail_after(60):
            assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)


def test_a_kernel_that_is_refused_leaves_the_network_alone() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node()
        with pytest.raises(KernelError):
            await node.run(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X)
        with pytest.raises(KernelError):
            node.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, object())
        assert market.chain.minted_uusd == 0

    in_memory(scenario)


def test_a_node_serves_once_at_a_time() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        with pytest.raises(ConfigError, match="serves already"):
            await provider.serve()

    in_memory(scenario)


def test_a_provider_may_stop_and_start_again() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.node()
        requester = await market.node(connect=(provider,))
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(provider.serve)
                assert np.array_equal(await compute(requester), Z)
                nursery.cancel_scope.cancel()
            assert provider.provider is None

    in_memory(scenario)


def test_runs_of_one_node_take_turns() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        results: list[Any] = []

        async def one() -> None:
            results.append(await compute(requester))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert [np.array_equal(result, Z) for result in results] == [True] * 3
        assert await market.claimed_uusd(provider) == await market.spent_uusd(requester)

    in_memory(scenario)


def test_a_node_can_sell_and_buy_at_once() -> None:
    async def scenario(market: Market) -> None:
        first, second = await market.provider(), await market.provider()
        await first.services.overlay.connect(second.addresses[0])
        results: list[Any] = []

        async def one(node: Any) -> None:
            results.append(await compute(node))

        async with trio.open_nursery() as nursery:
            for node in (first, second):
                nursery.start_soon(one, node)
        assert [np.array_equal(result, Z) for result in results] == [True, True]

    in_memory(scenario)


def test_tasks_within_a_loop_over_chunks_are_computed() -> None:
    """One in the body, one in a loop of its own, one in a nursery of the body."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=2)
        requester = await market.node(connect=(provider,))

        def chunks() -> Any:
            return requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=2)

        indexes: list[tuple[int, int]] = []
        with trio.fail_after(600):
            async for outer in chunks():
                assert np.array_equal(await compute(requester), Z)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(compute, requester)
                indexes += [(outer.index, inner.index) async for inner in chunks()]
        assert sorted(indexes) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert await market.claimed_uusd(provider) == await market.spent_uusd(requester)

    in_memory(scenario)


def test_a_task_within_a_loop_has_its_own_budget_and_its_own_events() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="5 USD", slots=2)
        requester = await market.node(connect=(provider,))
        outer, inner = Watch(), Watch()

        def chunks(**options: Any) -> Any:
            return requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=8, **options)

        # Together they cost more than either may.
        count = 0
        async for _ in chunks(on_event=outer, budget="300 uusd"):
            count += 1
            if count == 4:
                assert np.array_equal(await compute(requester, watch=inner, chunks=8, budget="300 uusd"), Z)
        assert count == 8
        for watch in (outer, inner):
            (started,) = watch.of(TaskStarted)
            assert 150 < started.estimate_uusd <= 300
            assert sorted(event.index for event in watch.of(ChunkDone)) == list(range(8))
        assert not {event.task for event in outer.of(Agreed)} & {event.task for event in inner.of(Agreed)}
        assert 300 < await market.spent_uusd(requester) <= 600

    in_memory(scenario)


def test_tasks_beside_a_loop_over_chunks_wait_for_their_turn() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        beside: list[Any] = []

        async def one() -> None:
            beside.append(await compute(requester))

        count = 0
        async with trio.open_nursery() as nursery:
            async for _ in requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=8):
                if not count:
                    nursery.start_soon(one)
                count += 1
                await trio.sleep(1)
        assert count == 8
        assert np.array_equal(beside[0], Z)

    in_memory(scenario)


def test_a_task_of_another_node_may_be_within_a_loop_over_chunks() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        another = await market.node(connect=(provider,))
        async for chunk in requester.map(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, chunks=4):
            if chunk.index == 0:
                assert np.array_equal(await compute(another, chunks=2), Z)

    in_memory(scenario)


def test_a_clock_that_is_set_back_does_not_end_a_provider() -> None:
    shift_ms = 0

    async def scenario(market: Market) -> None:
        nonlocal shift_ms
        provider = await market.provider(node={"now_ms": lambda: virtual_clock_ms() + shift_ms})
        own = provider.services.board
        await trio.sleep(100)
        before = own.get(provider.peer_id)
        shift_ms = -200_000
        await trio.sleep(500)
        after = own.get(provider.peer_id)
        assert before is not None
        assert after is not None
        assert after.ad.sequence > before.ad.sequence
        assert after.ad.issued_ms > before.ad.issued_ms

    in_memory(scenario)


def test_a_node_outlives_its_binding() -> None:
    """A binding of wallet and node lasts 30 days; a node that runs for longer makes new ones, to sell and to buy."""
    days = 0

    def now_ms() -> int:
        return virtual_clock_ms() + days * 86_400_000

    async def scenario(market: Market) -> None:
        nonlocal days
        provider = await market.provider(node={"now_ms": now_ms})
        requester = await market.node(connect=(provider,), now_ms=now_ms)
        first = requester.services.binding()
        days = 22
        assert requester.services.binding() is first
        days = 31
        await trio.sleep(150)  # the ad is made anew
        assert first.expires_ms < now_ms()
        with trio.fail_after(600):
            assert np.array_equal(await compute(requester), Z)
        assert requester.services.payer.binding.expires_ms > now_ms() + 7 * 86_400_000
        assert provider.provider is not None
        assert await market.claimed_uusd(provider) > 0

    in_memory(scenario)


def test_workers_that_are_open_are_not_quietly_served_with() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        await compute(node)
        refused: tuple[dict[str, Any], ...] = ({"threads": 3}, {"allow_unsandboxed": True})
        for options in refused:
            with pytest.raises(ConfigError, match="open already"):
                await node.serve(**options)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.serve)
            nursery.cancel_scope.cancel()
        again = await market.node()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(again.serve, threads=3, allow_unsandboxed=True))
                nursery.cancel_scope.cancel()

    in_memory(scenario)


def test_workers_with_all_cores_each_are_not_shared_by_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        await compute(node)  # its worker has all cores
        with pytest.raises(ConfigError, match="2 slots would share"):
            await node.serve(slots=2)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.serve)
            nursery.cancel_scope.cancel()
        fresh = await market.node()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(functools.partial(fresh.serve, slots=2))
                nursery.cancel_scope.cancel()

    in_memory(scenario)


def test_a_provider_takes_the_descriptors_that_it_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(256, before[0])

    async def scenario(market: Market) -> None:
        await market.provider()

    resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
    try:
        in_memory(scenario)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert hard == before[1]
        assert soft == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_provider_of_many_slots_has_workers_for_its_tasks() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=64)
        assert provider.provider is not None
        pool = open_pool(1, True)
        assert 10 < provider.provider.tasks.max_tasks < pool._slots.value

    in_memory(scenario)


@p2p.kernel
def terms(acc, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < x.size:
        acc[i] = x[i] * x[i]


def test_a_combined_output_has_the_same_bits_for_any_number_of_chunks_and_providers() -> None:
    x = np.random.default_rng(11).standard_normal(50_000).astype(np.float32)

    async def scenario(market: Market) -> None:
        first, second = await market.provider(), await market.provider()
        node = await market.node(connect=(first, second))
        found = {
            (await node.run(terms, p2p.reduce("sum", x.size, np.float32), x, chunks=chunks)).tobytes()
            for chunks in (1, 7, 50)
        }
        assert len(found) == 1
        got = np.frombuffer(found.pop(), np.float32)[0]
        assert abs(got - (x.astype(np.float64) ** 2).sum()) < 1e-6 * got * np.log2(x.size)
        rows = 0
        async with node.map(terms, p2p.reduce("sum", x.size, np.float32), x, chunks=7) as chunks:
            async for chunk in chunks:
                assert chunk.rows[0].shape == (chunk.blocks,)
                rows += chunk.blocks
        assert rows == -(-x.size // 128)

    in_memory(scenario)


def test_a_lie_about_a_partial_is_caught_and_computed_anew() -> None:
    x = np.arange(100_000, dtype=np.int64)

    async def scenario(market: Market) -> None:
        liar, honest = await market.provider(fault=lie(1, 8)), await market.provider()
        node = await market.node(connect=(liar, honest))
        watch = Watch()
        total = await node.run(terms, p2p.reduce("sum", x.size, np.int64), x, chunks=16, on_event=watch)
        assert total == (x * x).sum()
        assert [event.provider for event in watch.of(LiarCaught)] == [liar.peer_id]

    in_memory(scenario)


def test_a_provider_that_is_stopped_says_so_and_the_others_go_on() -> None:
    async def scenario(market: Market) -> None:
        leaver, stayer = await market.provider(), await market.provider()
        node = await market.node(connect=(leaver, stayer))

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and event.provider == leaver.peer_id:
                market._nurseries[leaver.peer_id].cancel_scope.cancel()
                market.nodes.pop(leaver.peer_id, None)  # its ledger closes with it

        watch = Watch(react)
        assert (await compute(node, watch=watch) == Z).all()
        (refused,) = watch.of(ProviderRefused)
        assert refused.provider == leaver.peer_id
        assert "draining" in refused.reason
        assert "being stopped" in refused.reason

    in_memory(scenario)
