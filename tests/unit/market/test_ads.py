"""What a node answers when it is asked for ads, and where its own is gossiped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing

from p2pcompute._exchange import one_message
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdBoard, AdRecordValidator, AdService
from p2pcompute.overlay import open_requests
from p2pcompute.testing import MemoryNetwork, MemoryOverlay, open_memory_overlay
from p2pcompute_protocols import ads
from p2pcompute_protocols.ads import AdBatch, AdQuery, AdsConnection, CapabilityAd
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.limits import MAX_ADS_PER_REPLY

from .test_board import CUDA, NETWORK, NOW, Seller

Scenario = Callable[[AdService, Seller, MemoryOverlay], Awaitable[None]]


def play(scenario: Scenario) -> None:
    """A node with a board, and somebody who is connected to it."""

    async def main() -> None:
        network, seller = MemoryNetwork(), Seller()
        validator = AdRecordValidator(network=NETWORK, now_ms=lambda: NOW)
        async with AsyncExitStack() as stack:
            opened = [
                await stack.enter_async_context(open_memory_overlay(network, key, record_validator=validator))
                for key in (seller.key, NodeKey.generate())
            ]
            node, asker = opened
            board = AdBoard(network=NETWORK, now_ms=lambda: NOW)
            requests = await stack.enter_async_context(open_requests(node))
            service = AdService(overlay=node, requests=requests, board=board, network=NETWORK, now_ms=lambda: NOW)
            await asker.connect(node.addresses[0])
            async with trio.open_nursery() as nursery:
                await nursery.start(service.serve)
                await scenario(service, seller, asker)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def ask(asker: MemoryOverlay, service: AdService, query: AdQuery) -> AdBatch:
    connection = AdsConnection(Role.REQUESTER)
    async with open_requests(asker) as requests:
        answer = await requests.ask(service.overlay.peer_id, ads.PROTOCOL_ID, connection.send(query))
    batch = one_message(connection, answer)
    assert isinstance(batch, AdBatch)
    return batch


def about(batch: AdBatch) -> list[str]:
    return [ads.open_ad(raw, network=NETWORK, now_ms=NOW)[1].peer_id for raw in batch.ads]


@pytest.mark.parametrize("limit", [1, 10, MAX_ADS_PER_REPLY])
def test_a_flood_of_ads_hides_neither_our_own_nor_any_other(limit: int) -> None:
    async def scenario(service: AdService, seller: Seller, asker: MemoryOverlay) -> None:
        flood = [Seller() for _ in range(100)]
        honest = Seller()
        for one in (*flood, honest, seller):
            service.board.put(one.raw())
        # In the order in which they came, the answer would be the flood's for ever.
        first = [entry.peer_id for entry in service.board.entries()][:MAX_ADS_PER_REPLY]
        assert honest.key.peer_id not in first
        assert seller.key.peer_id not in first
        told: set[str] = set()
        for _ in range(40):
            batch = await ask(asker, service, AdQuery(limit=limit))
            found = about(batch)
            assert found[0] == seller.key.peer_id
            assert len(found) == len(set(found)) == limit
            assert batch.more
            told.update(found)
        if limit == MAX_ADS_PER_REPLY:
            assert len(told) == 102  # one of them is missed in less than one of 10 million runs

    play(scenario)


def test_all_that_fit_are_told_and_nothing_else() -> None:
    async def scenario(service: AdService, seller: Seller, asker: MemoryOverlay) -> None:
        sellers = [Seller() for _ in range(5)]
        for one in sellers:
            service.board.put(one.raw())
        gpu = Seller()
        service.board.put(gpu.raw(devices=(CUDA,)))
        service.board.put(seller.raw())
        everybody = await ask(asker, service, AdQuery(limit=7))
        assert set(about(everybody)) == {one.key.peer_id for one in (*sellers, gpu, seller)}
        assert not everybody.more
        assert (await ask(asker, service, AdQuery(limit=6))).more
        assert about(await ask(asker, service, AdQuery(limit=7, kind="cuda"))) == [gpu.key.peer_id]  # not our own
        one_peer = AdQuery(limit=1, peer_id=sellers[0].key.peer_id)
        assert about(await ask(asker, service, one_peer)) == [sellers[0].key.peer_id]
        assert not (await ask(asker, service, one_peer)).more
        assert about(await ask(asker, service, AdQuery(limit=7, fp="fast"))) == []

    play(scenario)


def test_an_ad_is_gossiped_where_the_protocol_says_and_heard_wherever_that_is() -> None:
    async def scenario(service: AdService, seller: Seller, asker: MemoryOverlay) -> None:
        # Another implementation knows the protocol's shards and nothing of this node.
        by_shard: dict[int, Seller] = {}
        while len(by_shard) < ads.SHARDS:
            other = Seller()
            by_shard[ads.shard_of(other.key.peer_id)] = other
        for shard, other in by_shard.items():
            await asker.publish(ads.gossip_topic(NETWORK, shard), other.raw())
        await trio.sleep(1)
        for other in by_shard.values():
            assert service.board.get(other.key.peer_id) is not None

        def make_ad(sequence: int) -> tuple[CapabilityAd, bytes]:
            changes = {"sequence": sequence}
            return seller.ad(**changes), seller.raw(**changes)

        service.make_ad = make_ad
        topic = ads.gossip_topic(NETWORK, ads.shard_of(seller.key.peer_id))
        async with asker.subscribe(topic, lambda _, __: True) as messages, trio.open_nursery() as nursery:
            nursery.start_soon(partial(nursery.start, service.sell))
            with trio.fail_after(30):
                async for _ in messages:
                    break
            nursery.cancel_scope.cancel()

    play(scenario)
