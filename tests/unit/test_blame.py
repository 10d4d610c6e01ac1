"""Who breaks a protocol is banned after as many offences as docs/limits.md says, however it is answered; and who only
has bad luck, a bad clock or another's bad words is not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import DialError, OverlayError, StreamError
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdBoard, Discovery
from p2pcompute.market._negotiate import request_bid
from p2pcompute.node import Node
from p2pcompute.overlay import Offence, Subject, open_requests
from p2pcompute.payments import SettlePolicy, Watchtower
from p2pcompute.stake import StakeService
from p2pcompute.testing import MemoryNetwork, MemoryOverlay, open_memory_overlay, virtual_clock_ms
from p2pcompute.testing._overlay_checks import PrefixValidator
from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, request, stake, task, watch
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import NegotiationConnection, OrderFrame, ProposeFrame
from p2pcompute_protocols.task import Open

from .market._harness import Market, in_memory, virtually
from .market._rogues import NETWORK, Rogue, RogueTask, ended, open_rogue, say

PROTOCOLS = {part.__name__.split(".")[-1]: part.PROTOCOL_ID for part in (task, dispute, channel, blob, stake, watch)}
REQUESTS = {"ads": ads.PROTOCOL_ID, "negotiation": negotiation.PROTOCOL_ID}  # each message is a request there
GIANT = b"\xff\xff\xff\x7f"
NOISE = b"\x04\xff\xff\xff\xff"
LIMIT = 1 << 20


def framed(message: Any) -> bytes:
    return frame(message.encode(), max_bytes=LIMIT)


def asked(body: bytes) -> bytes:
    return request.Ask(number=1, timeout_ms=10_000, body=body).encode()


# What no honest peer says first, for each protocol.
WRONGS: dict[str, list[bytes]] = {name: [NOISE, GIANT] for name in PROTOCOLS}
WRONGS["task"].append(framed(task.Assign(index=0)))
WRONGS["channel"].append(framed(channel.VoucherFrame(amount_uusd=1, memo=bytes(32), signature=bytes(65))))
WRONGS["watch"].append(framed(watch.WatchFetch(after=None)))
WRONGS["ads"] = [b"\xff" * 64, asked(NOISE), asked(b""), asked(framed(ads.AdBatch(ads=(), more=False)))]
WRONGS["negotiation"] = [
    b"\xff" * 64,
    asked(b""),
    asked(bytes(9) + NOISE),
    asked(bytes(9) + framed(ProposeFrame(envelope=b"x"))),
]


async def a_provider(market: Market) -> Node:
    """A provider that speaks all protocols and keeps out whom it bans."""
    provider = await market.provider()
    services = provider.services
    market.memory.bans = True
    StakeService(overlay=services.overlay).register()
    nothing: Any = None
    tower = Watchtower(
        shelf=nothing,
        hub=services.hub,
        outbox=services.outbox,
        network=NETWORK,
        watch_for=(),
        policy=SettlePolicy(cap_uusd=0),
        clock_ms=virtual_clock_ms,
    )
    services.overlay.handle(watch.PROTOCOL_ID, tower.serve_watch)
    return provider


def score(node: Node | MemoryOverlay, peer: PeerId) -> float:
    overlay: Any = node.services.overlay if isinstance(node, Node) else node
    return float(overlay.bans.score(Subject("peer", peer)))


async def is_banned_at_the_second(provider: Node, rogue: Rogue, offend: Callable[[], Awaitable[object]]) -> None:
    """After one offence it may go on, as after a fault of an honest implementation; after two it is out."""
    peer = rogue.key.peer_id
    await offend()
    assert score(provider, peer) == pytest.approx(Offence.VIOLATION.points, rel=0.1)  # some time has passed
    assert provider.peer_id in rogue.overlay.peers()
    with contextlib.suppress(StreamError, RemoteProtocolError):  # its streams go with its connection
        await offend()
    bans = {ban.subject: ban.reason for ban in provider.services.overlay.limits_report().bans}
    assert bans.get(Subject("peer", peer)) == Offence.VIOLATION
    assert provider.peer_id not in rogue.overlay.peers()
    with pytest.raises(DialError, match="keeps"):
        await rogue.overlay.connect(provider.addresses[0])


@pytest.mark.parametrize("protocol", [*PROTOCOLS, *REQUESTS])
def test_who_breaks_a_protocol_twice_is_kept_out(protocol: str) -> None:
    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        overlay: Any = provider.services.overlay
        for data in WRONGS[protocol]:
            async with open_rogue(market, connect=(provider,)) as rogue:

                async def offend(data: bytes) -> None:
                    stream = await rogue.overlay.open_stream(provider.peer_id, (PROTOCOLS | REQUESTS)[protocol])
                    await say(stream, data)
                    await ended(stream)

                await is_banned_at_the_second(provider, rogue, partial(offend, data))
                overlay.bans.pardon(Subject("peer", rogue.key.peer_id))

    in_memory(scenario)


def test_who_leaves_dawdles_or_says_nothing_has_broken_nothing() -> None:
    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        async with open_rogue(market, connect=(provider,)) as peer:
            for name, protocol in (PROTOCOLS | REQUESTS).items():
                begun = b"\x00\x00" if name in REQUESTS else b"\x7f\x82"
                for data, end in ((b"", "close"), (begun, "close"), (begun, "reset"), (b"", ""), (begun, "")):
                    stream = await peer.overlay.open_stream(provider.peer_id, protocol)
                    await say(stream, data)
                    if end == "close":
                        await stream.close_write()
                    elif end == "reset":
                        await stream.reset()
                        continue
                    await ended(stream)
            assert score(provider, peer.key.peer_id) == 0
            assert provider.peer_id in peer.overlay.peers()

    in_memory(scenario)


# What is signed wrongly: by the peer itself, and by others


async def opens_a_task(rogue: Rogue, provider: Node, raw: bytes) -> None:
    stream = await rogue.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
    await say(stream, Open(agreement=raw))
    await ended(stream)


def test_an_agreement_that_nobody_signed_or_of_others_counts_and_one_that_has_lapsed_does_not() -> None:
    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        async with open_rogue(market, connect=(provider,)) as rogue:
            short = await rogue.agree(provider, deadline_ms=rogue.order().created_ms + 1_000)
            async with open_rogue(market, connect=(provider,)) as other:
                others = await other.agree(provider)
            await trio.sleep(2)
            await opens_a_task(rogue, provider, short.raw)
            assert score(provider, rogue.key.peer_id) == 0
            async with open_rogue(market, connect=(provider,)) as thief:
                await is_banned_at_the_second(provider, thief, lambda: opens_a_task(thief, provider, others.raw))
            agreement = await rogue.agree(provider)
            forged = agreement.raw[:-1] + bytes((agreement.raw[-1] ^ 1,))
            await is_banned_at_the_second(provider, rogue, lambda: opens_a_task(rogue, provider, forged))

    in_memory(scenario)


async def orders(
    rogue: Rogue, provider: Node, change: Callable[[bytes], bytes] = lambda raw: raw, **changes: Any
) -> None:
    """Order, with the envelope changed after it was signed."""
    stream = rogue.requests.dialogue(provider.peer_id, negotiation.PROTOCOL_ID)
    raw = negotiation.seal_order(rogue.order(**changes), network=NETWORK, signer=rogue.key, provider=provider.peer_id)
    dialogue = Dialogue(NegotiationConnection(Role.REQUESTER), stream)
    await dialogue.send(OrderFrame(envelope=change(raw)))
    answer = await dialogue.receive(stall_s=10)
    assert isinstance(answer, negotiation.RefusalFrame)
    stream.leave()


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes((raw[-1] ^ 1,))


def test_an_order_that_is_forged_counts_and_one_that_is_refused_does_not() -> None:
    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        async with open_rogue(market, connect=(provider,)) as rogue:
            now = virtual_clock_ms()
            stranger = WalletKey.generate()
            others = bind_signer(NETWORK, NodeKey.generate().peer_id, stranger, sequence=now, expires_ms=now + 10**6)
            stale = bind_signer(NETWORK, rogue.key.peer_id, stranger, sequence=now, expires_ms=max(1, now - 10**6))
            refused: list[dict[str, Any]] = [
                {"max_price_pusd": 0},
                {"created_ms": 0, "expires_ms": 1},
                {"deadline_ms": now + 10**12},
                {"payer": others},
                {"payer": stale},
                {"chain": dataclasses.replace(market.chain.terms, chain_id=9)},
            ]
            for changes in refused:
                with contextlib.suppress(OverlayError):
                    await orders(rogue, provider, **changes)
            assert score(provider, rogue.key.peer_id) == 0
            await is_banned_at_the_second(provider, rogue, lambda: orders(rogue, provider, flipped))
        async with open_rogue(market, connect=(provider,)) as rogue:
            forged = dataclasses.replace(rogue.binding, signer=bytes(WalletKey.generate().address))
            await is_banned_at_the_second(provider, rogue, lambda: orders(rogue, provider, payer=forged))

    in_memory(scenario)


def test_terms_that_are_forged_count() -> None:
    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        async with open_rogue(market, connect=(provider,)) as rogue:

            async def proposes() -> None:
                stream = rogue.requests.dialogue(provider.peer_id, negotiation.PROTOCOL_ID)
                dialogue = Dialogue(NegotiationConnection(Role.REQUESTER), stream)
                await request_bid(
                    dialogue,
                    rogue.order(),
                    network=NETWORK,
                    signer=rogue.key,
                    provider=provider.peer_id,
                    now_ms=virtual_clock_ms(),
                )
                await dialogue.send(ProposeFrame(envelope=b"terms"))
                await dialogue.receive(stall_s=10)
                stream.leave()

            await is_banned_at_the_second(provider, rogue, proposes)

    in_memory(scenario)


# The other way round: who answers wrongly


def between(body: Callable[[MemoryOverlay, MemoryOverlay], Awaitable[None]]) -> None:
    async def main() -> None:
        network, validator = MemoryNetwork(bans=True), PrefixValidator()
        async with (
            open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as ours,
            open_memory_overlay(network, NodeKey.generate(), record_validator=validator) as rogue,
        ):
            await ours.connect(rogue.addresses[0])
            await body(ours, rogue)

    virtually(main)


LIMITS = request.Limits(requests=8, request_bytes=65_536).encode()
ANSWERS = {
    "no frame": (b"\xff" * 64, True),
    "an answer to what was not asked": (LIMITS + request.Reply(number=7, body=b"").encode(), True),
    "no message of ads": (LIMITS + request.Reply(number=1, body=NOISE).encode(), True),
    "an order for an answer": (LIMITS + request.Reply(number=1, body=framed(ads.AdQuery(limit=1))).encode(), True),
    "a refusal": (LIMITS + request.Fault(number=1, code=WireCode.NO_CAPACITY, detail="").encode(), False),
    "an end": (LIMITS, False),
    "half an answer": (LIMITS + request.Reply(number=1, body=b"x" * 50).encode()[:-1], False),
    "somebody else's broken ad": (
        LIMITS + request.Reply(number=1, body=framed(ads.AdBatch(ads=(b"no ad",), more=False))).encode(),
        False,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_who_is_asked_for_ads_and_answers_wrongly_twice_is_kept_out(name: str) -> None:
    said, counts = ANSWERS[name]

    async def body(ours: MemoryOverlay, rogue: MemoryOverlay) -> None:
        async def answer(stream: Any) -> None:
            await stream.receive_some()
            await stream.send_all(said)
            await stream.close_write()
            await ended(stream)

        rogue.handle(ads.PROTOCOL_ID, answer)
        async with open_requests(ours) as requests:
            board = AdBoard(network=NETWORK, now_ms=virtual_clock_ms)
            found = Discovery(overlay=ours, requests=requests, board=board, network=NETWORK, now_ms=virtual_clock_ms)
            for offences in (1, 2):
                assert await found.ask(rogue.peer_id, ads.AdQuery(limit=1)) == 0
                await trio.testing.wait_all_tasks_blocked()
                expected = Offence.VIOLATION.points if counts and offences == 1 else 0  # a ban begins a new score
                assert score(ours, rogue.peer_id) == pytest.approx(expected, rel=0.1)
            assert bool(ours.limits_report().bans) == counts
            assert (rogue.peer_id in ours.peers()) != counts

    between(body)


def test_a_stream_counts_once_whoever_tells_of_it() -> None:
    async def body(ours: MemoryOverlay, rogue: MemoryOverlay) -> None:
        async def told(stream: Any) -> None:
            for _ in range(10):
                stream.blame(RemoteProtocolError("again", code=WireCode.MALFORMED))
            raise RemoteProtocolError("and again", code=WireCode.OVERSIZED)

        ours.handle("/told/1", told)
        for _ in range(10):
            ours.blame(rogue.peer_id, RemoteProtocolError("not its fault", code=WireCode.STALLED))
        assert score(ours, rogue.peer_id) == 0
        await ended(await rogue.open_stream(ours.peer_id, "/told/1"))
        assert score(ours, rogue.peer_id) == pytest.approx(Offence.VIOLATION.points, rel=0.1)

    between(body)


def test_a_task_stream_that_is_broken_late_counts() -> None:
    """The provider says why in a message of the protocol before it ends such a stream."""

    async def scenario(market: Market) -> None:
        provider = await a_provider(market)
        async with open_rogue(market, connect=(provider,)) as rogue:

            async def offend() -> None:
                opened: RogueTask = await rogue.open_task(provider)
                await opened.send_inputs()
                await opened.say(Open(agreement=opened.agreement.raw))
                await ended(opened.stream)

            await is_banned_at_the_second(provider, rogue, offend)

    in_memory(scenario)
