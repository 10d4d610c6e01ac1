"""Who lies in ads, bids, agreements or about vouchers, against an honest requester: typed, unpaid, passed over."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import NegotiationService, OrderRefused, negotiate
from p2pcompute.market import _negotiate as negotiate_module
from p2pcompute.tasks import ChunkDone, ProviderLost, ProviderRefused
from p2pcompute.testing import virtual_clock_ms
from p2pcompute_protocols import channel, negotiation
from p2pcompute_protocols.ads import Availability, PricedOption, record_key
from p2pcompute_protocols.channel import ChannelHello, ChannelSync, VoucherAck, VoucherFrame, VoucherRefusal
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import (
    AcceptFrame,
    BidFrame,
    BidPayload,
    NegotiationConnection,
    OrderFrame,
    ProposeFrame,
    RefusalFrame,
    RefusalPayload,
)

from ._harness import Market, Watch, Z, compute, in_memory, until
from ._rogues import CHUNKS, NETWORK, Rogue, RogueTask, ended, open_rogue, registering, say

# Bids and agreements


class Negotiation:
    """One negotiation of a rogue provider."""

    def __init__(self, rogue: Rogue, stream: Any) -> None:
        self.rogue = rogue
        self.stream = stream
        self.dialogue = Dialogue(NegotiationConnection(Role.PROVIDER), stream)

    async def order(self) -> None:
        raw = (await self.dialogue.expect(OrderFrame)).envelope
        self.envelope, self.payload = negotiation.open_order(
            raw,
            network=NETWORK,
            requester=self.stream.peer_id,
            provider=self.rogue.key.peer_id,
            now_ms=virtual_clock_ms(),
        )

    def bid(self, *, signer: NodeKey | None = None, requester: str | None = None, **changes: Any) -> BidFrame:
        fields: dict[str, Any] = {
            "order_digest": self.envelope.digest,
            "price_pusd": 1,
            "slots": 1,
            "credit_window": 1,
            "max_window": 8,
            "payee": bytes(self.rogue.wallet.address),
            "score_milli": 1_000,
            "valid_until_ms": virtual_clock_ms() + 30_000,
            "chunk_timeout_ms": 20_000,
            "timeout_payer": "provider",
        }
        payload = BidPayload(**{**fields, **changes})
        return BidFrame(
            envelope=negotiation.seal_bid(
                payload,
                network=NETWORK,
                signer=signer or self.rogue.key,
                requester=requester or self.stream.peer_id,  # type: ignore[arg-type]
            )
        )

    async def say(self, *messages: Any) -> None:
        await say(self.stream, *messages)


Attack = Callable[[Negotiation], Awaitable[None]]
BIDS: dict[str, tuple[Attack, str]] = {}
attack = registering(BIDS)


@attack("above the order's price")
async def bids_above_the_price(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(price_pusd=it.payload.max_price_pusd + 1))
    await ended(it.stream)


@attack("for another order")
async def bids_for_another_order(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(order_digest=bytes(32)))
    await ended(it.stream)


@attack("lapsed")
async def bids_in_the_past(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(valid_until_ms=1))
    await ended(it.stream)


@attack("signed by")
async def shows_the_bid_of_somebody_else(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(signer=NodeKey.generate()))
    await ended(it.stream)


@attack("signature")
async def shows_a_bid_that_was_for_somebody_else(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(requester=NodeKey.generate().peer_id))
    await ended(it.stream)


@attack("did not take its bid")
async def wants_a_year_for_a_chunk(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid(chunk_timeout_ms=365 * 86_400_000))
    await ended(it.stream)


@attack("said nothing for 10 s")
async def does_not_answer(it: Negotiation) -> None:
    await it.order()
    await trio.sleep(3_600)


@attack("may not send AcceptFrame")
async def accepts_what_was_not_proposed(it: Negotiation) -> None:
    await it.order()
    await it.say(AcceptFrame(envelope=b"x"))
    await ended(it.stream)


@attack("no_capacity")
async def refuses(it: Negotiation) -> None:
    await it.order()
    refusal = RefusalPayload(order_digest=it.envelope.digest, code=WireCode.NO_CAPACITY, detail="full")
    sealed = negotiation.seal_refusal(refusal, network=NETWORK, signer=it.rogue.key, requester=it.stream.peer_id)
    await it.say(RefusalFrame(envelope=sealed))
    await ended(it.stream)


@attack("signed by")
async def shows_the_refusal_of_somebody_else(it: Negotiation) -> None:
    await it.order()
    refusal = RefusalPayload(order_digest=it.envelope.digest, code=WireCode.NO_CAPACITY, detail="full")
    sealed = negotiation.seal_refusal(refusal, network=NETWORK, signer=NodeKey.generate(), requester=it.stream.peer_id)
    await it.say(RefusalFrame(envelope=sealed))
    await ended(it.stream)


@attack("signed by|other terms|signature")
async def signs_other_terms(it: Negotiation) -> None:
    await it.order()
    await it.say(it.bid())
    it.dialogue.connection.state = negotiation.NegotiationState.BIDDEN
    raw = (await it.dialogue.expect(ProposeFrame)).envelope
    _, terms = negotiation.open_terms(raw, network=NETWORK, requester=it.stream.peer_id)
    other = dataclasses.replace(terms, price_pusd=terms.price_pusd + 1)
    sealed = negotiation.seal_terms(other, network=NETWORK, signer=it.rogue.key)
    await it.say(AcceptFrame(envelope=negotiation.accept_terms(sealed, network=NETWORK, signer=it.rogue.key)))
    await ended(it.stream)


@pytest.mark.parametrize("name", BIDS)
def test_a_false_bid_is_passed_over(name: str) -> None:
    function, says = BIDS[name]

    async def scenario(market: Market) -> None:
        # Slow enough for the slowest of these to be noticed while the task runs.
        honest = await market.provider(workers=market.workers(chunk_s=1))
        requester = await market.node(connect=(honest,))
        async with open_rogue(market, connect=(requester,)) as rogue:

            async def serve(stream: Any) -> None:
                await function(Negotiation(rogue, stream))

            rogue.requests.serve_dialogues(negotiation.PROTOCOL_ID, serve)
            requester.services.board.put(rogue.sealed_ad())
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
            of_rogue = [*watch.of(ProviderLost), *watch.of(ProviderRefused)]
            reasons = [event.reason for event in of_rogue if event.provider == rogue.key.peer_id]
            assert any(re.search(says, reason) for reason in reasons), reasons
            assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}

    in_memory(scenario)


# Vouchers


async def _sync_of_another_signer(rogue: Rogue, dialogue: Dialogue, hello: ChannelHello) -> None:
    from p2pcompute_protocols.channel import Domain, Voucher, channel_id, voucher_digest
    from p2pcompute_protocols.ids import Address

    thief = WalletKey.generate()
    domain = Domain(chain_id=hello.chain.chain_id, contract=Address(hello.chain.hub))
    which = channel_id(Address(hello.payer.owner), Address(hello.payee), Address(hello.payer.signer))
    voucher = Voucher(channel=which, amount_uusd=90_000)
    signature = thief.sign_digest(voucher_digest(domain, voucher))
    await say(dialogue.stream, ChannelSync(amount_uusd=90_000, memo=bytes(32), signature=signature))
    await ended(dialogue.stream)


async def _ack_of_another_amount(rogue: Rogue, dialogue: Dialogue, hello: ChannelHello) -> None:
    await dialogue.send(ChannelSync(amount_uusd=0))
    voucher = await dialogue.expect(VoucherFrame)
    await say(dialogue.stream, VoucherAck(amount_uusd=voucher.amount_uusd + 1_000))
    await ended(dialogue.stream)


async def _never_an_ack(rogue: Rogue, dialogue: Dialogue, hello: ChannelHello) -> None:
    await dialogue.send(ChannelSync(amount_uusd=0))
    await ended(dialogue.stream)


async def _always_a_refusal(rogue: Rogue, dialogue: Dialogue, hello: ChannelHello) -> None:
    await dialogue.send(ChannelSync(amount_uusd=0))
    while True:
        await dialogue.expect(VoucherFrame, stall_s=None)
        await dialogue.send(VoucherRefusal(code=WireCode.UNFUNDED, detail="more", best_uusd=0, deposit_uusd=0))


async def _a_refused_hello(rogue: Rogue, dialogue: Dialogue, hello: ChannelHello) -> None:
    await dialogue.send(VoucherRefusal(code=WireCode.WRONG_PEER, detail="not me", best_uusd=0))
    await ended(dialogue.stream)


PAYEES = {
    "a sync with a voucher that we never signed": _sync_of_another_signer,
    "an ack for another amount": _ack_of_another_amount,
    "no ack": _never_an_ack,
    "a refusal, again and again": _always_a_refusal,
    "a refused hello": _a_refused_hello,
}


@pytest.mark.parametrize("name", PAYEES)
def test_a_payee_that_cheats_gets_what_it_earned_at_most(name: str) -> None:
    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as rogue:

            async def work(task: RogueTask) -> None:
                await task.ready()
                while True:
                    await task.say(*task.answer(await task.assigned()))

            async def take(stream: Any) -> None:
                dialogue = Dialogue(channel.ChannelConnection(Role.PROVIDER), stream)
                hello = await dialogue.expect(ChannelHello)
                await PAYEES[name](rogue, dialogue, hello)

            rogue.sell(work)
            rogue.overlay.handle(channel.PROTOCOL_ID, take)
            requester.services.board.put(rogue.sealed_ad())
            began = trio.current_time()
            watch = Watch()
            with pytest.raises(Exception, match=r"all providers are gone|voucher|took the order"):
                await compute(requester, watch=watch, chunks=CHUNKS)
            assert trio.current_time() - began < 900
            done = len(watch.of(ChunkDone))
            assert 1 <= done <= CHUNKS
            (row,) = [c for c in await requester.services.ledger.channels_out() if c.peer == rogue.key.peer_id]
            assert row.voucher_uusd <= row.accepted_uusd
            assert row.acked_uusd <= row.voucher_uusd
            # With an honest provider the same node works as before.
            honest = await market.provider()
            await requester.services.overlay.connect(honest.addresses[0])
            requester.services.board.forget(rogue.key.peer_id)
            rogue.market.memory.kill(rogue.key.peer_id)
            assert np.array_equal(await compute(requester, chunks=CHUNKS), Z)

    in_memory(scenario)


# Ads


def test_an_ad_that_leads_to_somebody_else_is_not_followed() -> None:
    async def scenario(market: Market) -> None:
        bystander = await market.node()
        honest = await market.provider()
        requester = await market.node(connect=(honest,))
        async with open_rogue(market) as rogue:
            requester.services.board.put(rogue.sealed_ad(addresses=bystander.addresses))
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, chunks=64), Z)
            assert bystander.peer_id not in requester.services.overlay.peers()

    in_memory(scenario)


def test_gossip_that_is_no_valid_ad_reaches_no_board() -> None:
    async def scenario(market: Market) -> None:
        near = await market.node()
        far = await market.node(connect=(near,))
        async with open_rogue(market, connect=(near,)) as rogue, open_rogue(market) as absent:
            topic = near.services.ad_service.topic(rogue.key.peer_id)
            good = rogue.sealed_ad()
            for data in (b"noise", good[:-1], good + b"\0", bytes(8193), absent.sealed_ad()[:50]):
                await rogue.overlay.publish(topic, data)
            await trio.sleep(1)
            assert len(near.services.board) == 0
            await rogue.overlay.publish(topic, good)
            await until(lambda: far.services.board.get(rogue.key.peer_id) is not None)
            # The same bytes again are not worth passing on, and an older ad does not come back.
            for data in (good, rogue.sealed_ad(sequence=1)):
                await rogue.overlay.publish(topic, data)
            await trio.sleep(1)
            entry = far.services.board.get(rogue.key.peer_id)
            assert entry is not None
            assert entry.raw == good

    in_memory(scenario)


def test_a_peer_that_answers_queries_with_lies_adds_nothing() -> None:
    async def scenario(market: Market) -> None:
        from p2pcompute_protocols import ads
        from p2pcompute_protocols.framing import frame

        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as rogue:
            forged = bytearray(rogue.sealed_ad())
            forged[-3] ^= 1

            batch = ads.AdBatch(ads=(bytes(forged), b"noise"), more=False)
            asked: list[bytes] = []

            def answer(_: PeerId, body: bytes) -> bytes:
                asked.append(body)
                return frame(batch.encode(), max_bytes=2**20)

            rogue.requests.serve_inline(ads.PROTOCOL_ID, answer)
            began = trio.current_time()
            assert await requester.services.coordinator.discovery.ask(rogue.key.peer_id, ads.AdQuery(limit=64)) == 0
            assert len(requester.services.board) == 0
            assert len(asked) == 1
            for noise in (b"", b"\x00", b"\x01\xff", frame(batch.encode(), max_bytes=2**20) * 2):
                rogue.requests.serve_inline(ads.PROTOCOL_ID, lambda _, __, data=noise: data)
                await requester.services.overlay.disconnect(rogue.key.peer_id)
                await requester.services.overlay.connect(rogue.overlay.addresses[0])
                assert await requester.services.coordinator.discovery.ask(rogue.key.peer_id, ads.AdQuery(limit=64)) == 0

            async def silent(stream: Any) -> None:
                await ended(stream)

            rogue.overlay.handle(ads.PROTOCOL_ID, silent)
            await requester.services.overlay.disconnect(rogue.key.peer_id)  # the stream that is kept ends
            await requester.services.overlay.connect(rogue.overlay.addresses[0])
            assert await requester.services.coordinator.discovery.ask(rogue.key.peer_id, ads.AdQuery(limit=64)) == 0
            assert trio.current_time() - began < 8

    in_memory(scenario)


def test_a_record_in_the_dht_must_be_of_its_peer() -> None:
    async def scenario(market: Market) -> None:
        from p2pcompute.errors import RecordRefused

        node = await market.node()
        async with open_rogue(market, connect=(node,)) as rogue, open_rogue(market, connect=(node,)) as other:
            key = record_key(NETWORK, rogue.key.peer_id)
            for value in (b"noise", other.sealed_ad(), rogue.sealed_ad()[:-1]):
                with pytest.raises(RecordRefused):
                    await other.overlay.dht_put(key, value)
            await rogue.overlay.dht_put(key, rogue.sealed_ad())
            assert await node.services.overlay.dht_get(key) is not None

    in_memory(scenario)


def test_a_draining_provider_is_not_asked() -> None:
    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as rogue:
            requester.services.board.put(rogue.sealed_ad(availability=Availability(idle_only=False, draining=True)))
            with pytest.raises(Exception, match="draining"):
                await compute(requester)
            requester.services.board.put(
                rogue.sealed_ad(
                    sequence=rogue.ad().sequence + 1,
                    options=(PricedOption(work=1, fp="fast", price_pusd=1, max_window=1),),
                )
            )
            with pytest.raises(Exception, match="does not sell strict"):
                await compute(requester)

    in_memory(scenario)


# The provider's end of a negotiation


def test_a_negotiation_has_three_rounds() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        async with open_rogue(market, connect=(provider,)) as rogue:
            stream = rogue.requests.dialogue(provider.peer_id, negotiation.PROTOCOL_ID)
            for _ in range(4):
                sealed = negotiation.seal_order(
                    rogue.order(), network=NETWORK, signer=rogue.key, provider=provider.peer_id
                )
                await say(stream, OrderFrame(envelope=sealed))
            assert await ended(stream) < 1

    in_memory(scenario)


@pytest.mark.parametrize(
    "change",
    [
        {"price_pusd": 0},
        {"ceiling_uusd": 5},
        {"max_window": 256},
        {"credit_window": 4},
        {"payee": b"\x01" * 20},
        {"slots": 9},
        {"timeout_payer": "requester"},
        {"chunk_timeout_ms": 1},
        {"bid_digest": bytes(32)},
        {"order_digest": bytes(32)},
        {"deadline_ms": 2_000_000_000_000},
        {"group_id": bytes(16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_terms_that_differ_from_the_bid_are_not_signed(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    honest_terms = negotiate_module._terms

    def other_terms(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(honest_terms(*args, **kwargs), **change)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        async with open_rogue(market, connect=(provider,)) as rogue:
            with monkeypatch.context() as patch:
                patch.setattr(negotiate_module, "_terms", other_terms)
                with pytest.raises(OrderRefused, match=f"differ from order and bid in {next(iter(change))}"):
                    await rogue.agree(provider)
            await rogue.agree(provider)

    in_memory(scenario)


def test_an_order_for_somebody_else_can_not_be_passed_on() -> None:
    async def scenario(market: Market) -> None:
        first, second = await market.provider(), await market.provider()
        async with open_rogue(market, connect=(first, second)) as rogue:
            sealed = negotiation.seal_order(rogue.order(), network=NETWORK, signer=rogue.key, provider=first.peer_id)
            stream = rogue.requests.dialogue(second.peer_id, negotiation.PROTOCOL_ID)
            dialogue = Dialogue(NegotiationConnection(Role.REQUESTER), stream)
            await dialogue.send(OrderFrame(envelope=sealed))
            answer = await dialogue.expect(RefusalFrame)
            refusal = negotiation.open_refusal(
                answer.envelope, network=NETWORK, requester=rogue.key.peer_id, provider=second.peer_id
            )
            assert refusal.code == WireCode.BAD_SIGNATURE
            stream.leave()
            # Nor can somebody who overheard it order with it.
            async with open_rogue(market, connect=(first,)) as thief:
                stream = thief.requests.dialogue(first.peer_id, negotiation.PROTOCOL_ID)
                dialogue = Dialogue(NegotiationConnection(Role.REQUESTER), stream)
                await dialogue.send(OrderFrame(envelope=sealed))
                answer = await dialogue.expect(RefusalFrame)
                refusal = negotiation.open_refusal(
                    answer.envelope, network=NETWORK, requester=thief.key.peer_id, provider=first.peer_id
                )
                assert refusal.code == WireCode.WRONG_PEER
                stream.leave()

    in_memory(scenario)


def test_one_peers_flood_of_orders_does_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiate_module, "MAX_ORDERS_PER_PEER", 4)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        async with open_rogue(market, connect=(provider,)) as rogue:
            for _ in range(4):
                await rogue.agree(provider)
            with pytest.raises(OrderRefused, match="too often"):
                await rogue.agree(provider)
            requester = await market.node(connect=(provider,))
            assert np.array_equal(await compute(requester), Z)
            await trio.sleep(700)  # the orders have lapsed
            await rogue.agree(provider)

    in_memory(scenario)


def test_the_orders_that_a_provider_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiate_module, "MAX_SEEN_ORDERS", 8)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        role = provider.provider
        assert role is not None
        service: NegotiationService = role.negotiations
        for count in range(12):
            async with open_rogue(market, connect=(provider,)) as rogue:
                if count < 8:
                    await rogue.agree(provider)
                    continue
                with pytest.raises(OrderRefused, match="too many orders"):
                    await rogue.agree(provider)
        assert len(service._seen) == 8
        await trio.sleep(700)
        async with open_rogue(market, connect=(provider,)) as rogue:
            await rogue.agree(provider)
        assert len(service._seen) == 1

    in_memory(scenario)


def test_who_does_not_take_a_bid_says_so_and_owes_nothing() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        async with open_rogue(market, connect=(provider,)) as rogue:
            with pytest.raises(OrderRefused, match="did not take its bid"):
                await negotiate(
                    rogue.requests,
                    provider.peer_id,
                    rogue.order(),
                    network=NETWORK,
                    signer=rogue.key,
                    now_ms=virtual_clock_ms,
                    accept=lambda bid: False,
                )
            assert await provider.services.ledger.open_agreements() == []

    in_memory(scenario)
