"""Providers that break what an ad or an agreement lets expect, several at once: honest ones finish the task."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import DialError
from p2pcompute.tasks import Agreed, ChunkDone, ProviderLost, ProviderRefused, _provider_session
from p2pcompute.testing import MemoryOverlay
from p2pcompute_protocols import ads
from p2pcompute_protocols.errors import WireCode

from ..market._harness import Market, Watch, X, Y, Z, axpy, compute, in_memory


@pytest.mark.parametrize("code", [WireCode.EXECUTION_FAILED, WireCode.TIMED_OUT, WireCode.CANCELLED])
def test_two_that_fail_every_chunk_do_not_fail_the_task(code: WireCode, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_chunk = _provider_session.Session._one
    answers = 0

    async def scenario(market: Market) -> None:
        bad = [await market.provider(price="0.01 USD") for _ in range(2)]

        async def one(self: Any, agreement: Any, work: Any, account: Any, worker: Any, index: int) -> bool:
            nonlocal answers
            if not any(self.service is node.provider.tasks for node in bad if node.provider is not None):
                return await compute_chunk(self, agreement, work, account, worker, index)
            answers += 1
            await self._fail(agreement, index, account, code, "no")
            return True

        monkeypatch.setattr(_provider_session.Session, "_one", one)
        good = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=(*bad, *good))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert {event.provider for event in watch.of(ChunkDone)} <= {node.peer_id for node in good}
        assert 0 < answers <= 8

    in_memory(scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"price_pusd": 2_778},  # 10 USD an hour, where the ad said one cent
        {"payee": bytes(20)},
        {"payee": b"\x07" * 20},
        {"max_window": 64},
    ],
)
def test_a_bid_that_is_not_what_the_ad_said_is_not_taken(change: dict[str, Any]) -> None:
    async def scenario(market: Market) -> None:
        honest = await market.provider(price="0.05 USD")
        bait = await market.provider(price="0.01 USD")
        assert bait.provider is not None
        for name, value in change.items():
            setattr(bait.provider.negotiations.policy, name, value)
        requester = await market.node(connect=(honest, bait))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert {event.provider for event in watch.of(Agreed)} == {honest.peer_id}
        assert bait.peer_id in {event.provider for event in watch.of(ProviderRefused)}

    in_memory(scenario)


def test_dead_addresses_beside_a_live_one_do_not_delay_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = MemoryOverlay.connect

    async def slow_where_dead(self: MemoryOverlay, multiaddr: str) -> Any:
        if "/10.9." in multiaddr:
            await trio.sleep(10)
            raise DialError("nobody there")
        return await connect(self, multiaddr)

    monkeypatch.setattr(MemoryOverlay, "connect", slow_where_dead)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node()
        entry = provider.services.board.get(provider.peer_id)
        assert entry is not None
        dead = tuple(f"/ip4/10.9.0.{last}/tcp/1/p2p/{provider.peer_id}" for last in range(7))
        ad = dataclasses.replace(entry.ad, addresses=dead + entry.ad.addresses[:1], sequence=entry.ad.sequence + 1)
        requester.services.board.put(ads.seal_ad(ad, network=provider.network, signer=provider.services.key))
        started = trio.current_time()
        assert np.array_equal(await compute(requester), Z)
        assert trio.current_time() - started < 10  # virtual seconds

    in_memory(scenario)


def test_a_loop_that_was_left_early_is_paid_and_does_not_stop_the_next_task() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        output = p2p.out(Y.shape, Y.dtype)
        async with requester.map(axpy, output, np.float32(2), X, Y, chunks=8, budget="0.10 USD") as chunks:
            async for _ in chunks:
                await trio.sleep(3)  # meanwhile more has come than was taken
                break
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        assert not watch.of(ProviderLost)

    in_memory(scenario)
