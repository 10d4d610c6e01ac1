"""Orders that do not fit, and bytes that are no dialogue: each is refused with its reason, and nothing else ends."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import trio

from p2pcompute._exchange import one_message
from p2pcompute.checking import DEFAULT_TOLERANCE
from p2pcompute.errors import StreamError
from p2pcompute.market import OrderRefused, negotiate
from p2pcompute.market._bidding import MAX_CEILING_UUSD
from p2pcompute.node import Node
from p2pcompute.overlay import Offence
from p2pcompute.testing import virtual_clock_ms
from p2pcompute_protocols import ads, channel, negotiation, request, task
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.negotiation import CheckPolicy, OrderPayload, Requirement
from p2pcompute_protocols.task import (
    Assign,
    Open,
    ResultStart,
)

from ..market._harness import Market, in_memory, until
from ..market._rogues import NETWORK, Rogue, axpy_work, ended, open_rogue, say
from ._attacks import Forgiven, play, refused

# Orders


FAST = CheckPolicy(kind="sample", per_chunk=256, tolerance=DEFAULT_TOLERANCE)
ORDERS: dict[str, tuple[dict[str, Any], WireCode]] = {
    "price": ({"max_price_pusd": 0}, WireCode.PRICE_TOO_LOW),
    "language": ({"language": "strict-9"}, WireCode.UNSUPPORTED),
    "mode": ({"fp": "fast", "check": FAST}, WireCode.UNSUPPORTED),
    "standing": ({"standing": True, "work": None}, WireCode.UNSUPPORTED),
    "deadline": ({"deadline_ms": 1}, WireCode.EXPIRED),
    "expired": ({"created_ms": 1_700_000_000_000, "expires_ms": 1_700_000_000_001}, WireCode.EXPIRED),
    "future": ({"created_ms": 1_900_000_000_000, "expires_ms": 1_900_000_000_001}, WireCode.EXPIRED),
    "device": ({"requirement": Requirement(kinds=("cuda",), memory_bytes=0, features=(), min_score_milli=0)}, 9),
    "memory": ({"requirement": Requirement(kinds=("cpu",), memory_bytes=2**50, features=(), min_score_milli=0)}, 9),
    "speed": ({"requirement": Requirement(kinds=("cpu",), memory_bytes=0, features=(), min_score_milli=10**9)}, 9),
    "features": ({"requirement": Requirement(kinds=("cpu",), memory_bytes=0, features=("f",), min_score_milli=0)}, 9),
    "ceiling": ({"ceiling_uusd": 2**64 - 1}, WireCode.OVERSIZED),
    "ceiling in pico-USD": ({"ceiling_uusd": MAX_CEILING_UUSD + 1}, WireCode.OVERSIZED),
    "units": (
        {"work": dataclasses.replace(axpy_work()[0], units_per_chunk=2**53), "max_price_pusd": 2**40},
        WireCode.OVERSIZED,
    ),
    "region": (
        {"requirement": Requirement(kinds=("cpu",), memory_bytes=0, features=(), min_score_milli=0, region="mars")},
        9,
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_does_not_fit_is_refused_with_its_reason(name: str) -> None:
    changes, code = ORDERS[name]

    async def order(rogue: Rogue, provider: Node) -> None:
        valid = rogue.order()
        chosen = {**{name: getattr(valid, name) for name in type(valid).__dataclass_fields__}, **changes}
        with pytest.raises(OrderRefused) as caught:
            await negotiate(
                rogue.requests,
                provider.peer_id,
                OrderPayload(**chosen),
                network=NETWORK,
                signer=rogue.key,
                now_ms=virtual_clock_ms,
            )
        assert caught.value.code == code

    play(
        order, Forgiven.ORDER, price="1 USD" if name != "units" else "9 USD", fp="strict" if name == "mode" else "both"
    )


@pytest.mark.parametrize("ceiling_uusd", [2**64 - 1, MAX_CEILING_UUSD])
def test_a_ceiling_that_is_taken_fits_the_ledger(ceiling_uusd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its bound a ceiling of 64 bits ends the task with INTERNAL, once its first chunk is to be stored."""
    monkeypatch.setattr("p2pcompute.market._bidding.MAX_CEILING_UUSD", 2**64)

    async def order(rogue: Rogue, provider: Node) -> None:
        opened = await rogue.open_task(provider, ceiling_uusd=ceiling_uusd)
        await opened.start()
        await opened.dialogue.send(Assign(index=0))
        if ceiling_uusd == MAX_CEILING_UUSD:
            await opened.result()
            await opened.stream.reset()
        else:
            await refused(opened.dialogue, WireCode.INTERNAL)

    play(order, Forgiven.ORDER)


def test_an_order_for_another_chain_is_refused() -> None:

    async def order(rogue: Rogue, provider: Node) -> None:
        for change in ({"chain_id": 5}, {"hub": b"\x33" * 20}, {"token": b"\x33" * 20}, {"decimals": 18}):
            with pytest.raises(OrderRefused) as caught:
                await rogue.agree(provider, chain=dataclasses.replace(rogue.market.chain.terms, **change))
            assert caught.value.code == WireCode.CHAIN_MISMATCH

    play(order, Forgiven.ORDER)


def test_an_order_paid_by_somebody_else_is_refused() -> None:
    async def order(rogue: Rogue, provider: Node) -> None:
        async with open_rogue(rogue.market) as other:
            with pytest.raises(OrderRefused) as caught:
                await rogue.agree(provider, payer=other.binding)
            assert caught.value.code == WireCode.WRONG_PEER

    play(order, Forgiven.ORDER)


def test_an_order_counts_once() -> None:
    async def order(rogue: Rogue, provider: Node) -> None:
        same = bytes(16)
        await rogue.agree(provider, order_id=same)
        with pytest.raises(OrderRefused) as caught:
            await rogue.agree(provider, order_id=same)
        assert caught.value.code == WireCode.REPLAYED

    play(order, Forgiven.ORDER)


def test_a_draining_or_full_provider_says_so() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=1)
        role = provider.provider
        assert role is not None
        async with (
            open_rogue(market, connect=(provider,)) as rogue,
            open_rogue(market, connect=(provider,)) as other,
        ):
            tasks = [await rogue.open_task(provider) for _ in range(2)]
            greedy = await rogue.open_task(provider)
            tasks.append(await other.open_task(provider))
            late = await other.open_task(provider)
            for opened in tasks[:2]:
                await opened.start()
            await greedy.dialogue.send(Open(agreement=greedy.agreement.raw))
            await refused(greedy.dialogue, WireCode.NO_CAPACITY)  # half of the places are all that one peer gets
            with pytest.raises(OrderRefused) as caught:
                await rogue.agree(provider)
            assert caught.value.code == WireCode.NO_CAPACITY  # and a bid would be for nothing
            await tasks[2].start()
            for opened in tasks:
                await opened.dialogue.send(Assign(index=0))
            with pytest.raises(OrderRefused) as caught:
                await other.agree(provider)
            assert caught.value.code == WireCode.NO_CAPACITY  # all that newcomers get is in use
            await late.dialogue.send(Open(agreement=late.agreement.raw))
            await refused(late.dialogue, WireCode.NO_CAPACITY)
            for opened in tasks:
                await opened.stream.reset()
            await until(lambda: not role.tasks.active)
            last = await rogue.open_task(provider)
            role.drain(provider.services.ad_service.changed)
            await last.dialogue.send(Open(agreement=last.agreement.raw))
            await refused(last.dialogue, WireCode.DRAINING)
            with pytest.raises(OrderRefused) as caught:
                await rogue.agree(provider)
            assert caught.value.code in (WireCode.DRAINING, WireCode.NO_CAPACITY)

    in_memory(scenario)


# Bytes that are no dialogue, on every protocol that a provider serves

PROTOCOLS = {
    "negotiation": negotiation.PROTOCOL_ID,
    "task": task.PROTOCOL_ID,
    "ads": ads.PROTOCOL_ID,
    "channel": channel.PROTOCOL_ID,
}
NOISE: dict[str, bytes] = {
    "noise": b"\x10" + bytes(range(0xF0, 0x100)),
    "an unknown type": b"\x04\xa1\x00\x18\x63",
    "an empty frame": b"\x00",
    "a length in five bytes": b"\xff\xff\xff\xff\x01",
    "a huge frame": b"\xff\xff\xff\x7f" + bytes(4096),
    "a length that is not the shortest": b"\x81\x00\xa0",
    "deep nesting": b"\x40" + b"\x81" * 64,
    "a message of the other role": b"",  # made below
}
OTHER_ROLE = {
    "negotiation": negotiation.BidFrame(envelope=b"x"),
    "task": task.Ready(compile_ms=1),
    "ads": ads.AdBatch(ads=(), more=False),
    "channel": channel.VoucherAck(amount_uusd=1),
}
TOO_EARLY = {
    "negotiation": negotiation.ProposeFrame(envelope=b"x"),
    "task": Assign(index=0),
    "channel": channel.VoucherFrame(amount_uusd=1, memo=bytes(32), signature=bytes(65)),
}


REQUESTS = {"ads": b"", "negotiation": bytes(9)}  # what is before the message in the body of a request


def framed(message: Any) -> bytes:
    return frame(message.encode(), max_bytes=1 << 20)


def asked(protocol: str, data: bytes) -> list[bytes]:
    """`data` as the protocol carries it."""
    if protocol not in REQUESTS:
        return [data]
    return [request.Ask(number=1, timeout_ms=10_000, body=REQUESTS[protocol] + data).encode()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_noise_ends_its_stream_and_nothing_else(protocol: str) -> None:
    async def noise(rogue: Rogue, provider: Node) -> None:
        for name, data in NOISE.items():
            stream = await rogue.overlay.open_stream(provider.peer_id, PROTOCOLS[protocol])
            await say(stream, *asked(protocol, data or framed(OTHER_ROLE[protocol])))
            assert await ended(stream) < 1, name
        if protocol in TOO_EARLY:
            stream = await rogue.overlay.open_stream(provider.peer_id, PROTOCOLS[protocol])
            await say(stream, *asked(protocol, framed(TOO_EARLY[protocol])))
            assert await ended(stream) < 1
        # A frame that is cut off.
        stream = await rogue.overlay.open_stream(provider.peer_id, PROTOCOLS[protocol])
        await say(stream, *asked(protocol, b"\x7f\x82"))
        await stream.close_write()
        assert await ended(stream) < 1

    play(noise, Offence.VIOLATION)


STALLS_S = {"negotiation": 30, "task": 10, "ads": 30, "channel": 10}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_says_nothing_or_drips_is_cut_off(protocol: str) -> None:
    async def stall(rogue: Rogue, provider: Node) -> None:
        stream = await rogue.overlay.open_stream(provider.peer_id, PROTOCOLS[protocol])
        assert STALLS_S[protocol] <= await ended(stream) < STALLS_S[protocol] + 11
        stream = await rogue.overlay.open_stream(provider.peer_id, PROTOCOLS[protocol])
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                with contextlib.suppress(StreamError):
                    for byte in b"\xff\xff\x03" + bytes(60_000):
                        await say(stream, bytes((byte,)))
                        await trio.sleep(0.5)

            nursery.start_soon(drip)
            await ended(stream)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < STALLS_S[protocol] + 11

    # What drips there is no frame of requests, and is found out before it is whole.
    play(stall, Offence.VIOLATION if protocol in {"negotiation", "ads"} else Forgiven.SLOW)


def test_a_valid_dialogue_may_come_byte_by_byte() -> None:
    async def drip(rogue: Rogue, provider: Node) -> None:
        stream = await rogue.overlay.open_stream(provider.peer_id, ads.PROTOCOL_ID)
        connection, session = ads.AdsConnection(Role.REQUESTER), request.AskingSession()
        for byte in session.ask(connection.send(ads.AdQuery(limit=1)), 10_000)[1]:
            await say(stream, bytes((byte,)))
        while not isinstance(answer := session.next_event(), request.Reply):
            if answer is NEED_DATA:
                session.receive_data(await stream.receive_some())
        batch = one_message(connection, answer.body)
        assert isinstance(batch, ads.AdBatch)
        assert len(batch.ads) == 1
        await stream.aclose()

    play(drip, Forgiven.ALLOWED)


def test_the_receipt_of_a_result_is_what_the_ledger_holds() -> None:
    async def honest(rogue: Rogue, provider: Node) -> None:
        opened = await rogue.open_task(provider)
        await opened.start()
        await opened.dialogue.send(Assign(index=7))
        begin = await opened.dialogue.expect(ResultStart)
        (row,) = await provider.services.ledger.receipts(opened.agreement.task_id)
        assert row.envelope == begin.receipt
        assert (row.index, row.code) == (7, 0)
        await opened.stream.reset()
        await until(lambda: provider.provider and not provider.provider.tasks.active)

    play(honest, Forgiven.ALLOWED)
