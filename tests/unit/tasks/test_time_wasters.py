"""Fresh identities that cost a requester nothing but time, in virtual time: the honest provider gets the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.errors import NoProviderError, TaskError, TaskTimeout
from p2pcompute.node import Node
from p2pcompute.tasks import Agreed, ChunkDone, ProviderLost, ProviderReady, ProviderRefused, _link, _state
from p2pcompute.tasks._places import Guest, Place
from p2pcompute_protocols import negotiation, task
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId

from ..market._harness import Market, Watch, Z, compute, in_memory
from ..market._rogues import CHUNKS, Rogue, RogueTask, ended, open_rogue
from ..market.test_rogue_sellers import Negotiation
from ..market.test_rogue_sellers import refuses as refuses_for_want_of_room

MANY = 100

Wasting = Callable[[Market, Rogue], Awaitable[None]]


async def is_silent(market: Market, rogue: Rogue) -> None:
    """Takes connections and streams, and says nothing on them."""
    rogue.overlay.handle(negotiation.PROTOCOL_ID, ended)


async def cannot_be_reached(market: Market, rogue: Rogue) -> None:
    """Its address swallows packets."""
    market.memory.partition(rogue.key.peer_id)


async def bids_and_never_signs(market: Market, rogue: Rogue) -> None:
    """A good bid, and no answer to the proposal."""

    async def serve(stream: Any) -> None:
        it = Negotiation(rogue, stream)
        await it.order()
        await it.say(it.bid())
        await stream.receive_some()
        await trio.sleep(3_600)

    rogue.requests.serve_dialogues(negotiation.PROTOCOL_ID, serve)


async def agrees_and_is_silent(market: Market, rogue: Rogue) -> None:
    """An agreement, and nothing on the task stream."""

    async def handler(it: RogueTask) -> None:
        await ended(it.stream)

    rogue.sell(handler)


async def opens_and_is_never_ready(market: Market, rogue: Rogue) -> None:
    """An agreement, and a compilation without end."""

    async def handler(it: RogueTask) -> None:
        await it.dialogue.expect(task.Open)
        await it.dialogue.send(task.Opened(need=(), slots=1, window=1))
        await ended(it.stream)

    rogue.sell(handler)


async def is_ready_and_gives_nothing(market: Market, rogue: Rogue) -> None:
    """A set-up as it should be, and no result."""

    async def handler(it: RogueTask) -> None:
        await it.ready()
        await ended(it.stream)

    rogue.sell(handler)


async def pauses(market: Market, rogue: Rogue) -> None:
    """Ready, then a pause and an end of it, over and over."""

    async def handler(it: RogueTask) -> None:
        await it.ready()
        while True:
            await it.say(task.Notice(kind="pause"), task.Notice(kind="resume"))
            await trio.sleep(5)

    rogue.sell(handler)


async def never_lets_anybody_give_it_a_chunk(market: Market, rogue: Rogue) -> None:
    """Pauses before it is ready, and ends the pause for no longer than it takes to say so."""

    async def handler(it: RogueTask) -> None:
        await it.ready(task.Notice(kind="pause"))
        while True:
            await trio.sleep(5)
            await it.dialogue.send(task.Notice(kind="resume"), task.Notice(kind="pause"))

    rogue.sell(handler)


def refuses(code: WireCode, *, idle_s: float | None = None) -> Wasting:
    """An agreement, and a farewell as if it were our doing; after being ready and idle for a while, or at once."""

    async def wasting(market: Market, rogue: Rogue) -> None:
        async def handler(it: RogueTask) -> None:
            if idle_s is None:
                await it.dialogue.expect(task.Open)
            else:
                await it.ready()
                await trio.sleep(idle_s)
            await it.say(task.Refused(code=code, detail="come again"))
            await ended(it.stream)

        rogue.sell(handler)

    return wasting


# Who wastes time, and by when a task is done in spite of a hundred of them.
WASTING: dict[str, tuple[Wasting, float]] = {
    f.__name__: (f, deadline_s)
    for f, deadline_s in (
        (is_silent, 60),
        (cannot_be_reached, 60),
        (bids_and_never_signs, 60),
        (agrees_and_is_silent, 150),
        (opens_and_is_never_ready, 150),
        (is_ready_and_gives_nothing, 300),
        (pauses, 300),
        (never_lets_anybody_give_it_a_chunk, 300),
    )
}
for code in (WireCode.STALLED, WireCode.PAYMENT_REQUIRED, WireCode.NO_CAPACITY):
    WASTING[f"refuses {code.name}"] = refuses(code), 60
WASTING["refuses STALLED once it is idle"] = refuses(WireCode.STALLED, idle_s=0.5), 60


@asynccontextmanager
async def crowd(market: Market, requester: Node, wasting: Wasting, *, many: int = MANY) -> AsyncGenerator[list[Rogue]]:
    """Many rogues whose ads are better than any honest one's."""
    async with AsyncExitStack() as stack:
        rogues = [await stack.enter_async_context(open_rogue(market)) for _ in range(many)]
        for rogue in rogues:
            requester.services.board.put(rogue.sealed_ad())
            await wasting(market, rogue)
        yield rogues


def know(requester: Node, provider: Node) -> None:
    """The requester has the provider's ad and no connection to it."""
    entry = provider.services.board.get(provider.peer_id)
    assert entry is not None
    requester.services.board.put(entry.raw)


@pytest.mark.parametrize("name", WASTING)
def test_ads_that_lead_nowhere_keep_no_honest_provider_away(name: str) -> None:
    async def scenario(market: Market) -> None:
        honest = await market.provider()
        requester = await market.node()
        know(requester, honest)
        wasting, deadline_s = WASTING[name]
        async with crowd(market, requester, wasting):
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, deadline_s=deadline_s), Z)
            assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}
            # No money waits in the channel of somebody who did nothing.
            rows = await requester.services.ledger.channels_out()
            assert {row.peer for row in rows if row.deposit_uusd} == {honest.peer_id}
            # An agreement is a row of the ledger: nobody gets more than a few.
            assert max(Counter(event.provider for event in watch.of(Agreed)).values()) <= 4

    in_memory(scenario)


@pytest.mark.parametrize("code", [WireCode.STALLED, WireCode.NO_CAPACITY])
@pytest.mark.parametrize("defended", [True, False])
def test_farewells_that_blame_us_are_forgiven_only_where_they_are_right(
    code: WireCode, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few who say so at once would be asked for ever."""
    if not defended:
        monkeypatch.setattr(_link.Link, "_kept_waiting", lambda *_: True)
        monkeypatch.setattr(_state.RunState, "forgives_wait", lambda *_: True)
        monkeypatch.setattr(_state.RunState, "had_no_room", lambda *_: None)

    async def scenario(market: Market) -> None:
        honest = await market.provider()
        requester = await market.node()
        know(requester, honest)
        async with crowd(market, requester, refuses(code), many=8):
            watch = Watch()
            if defended:
                assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, deadline_s=30), Z)
                assert len(watch.of(Agreed)) <= 1 + 8 * 2
            else:
                with pytest.raises(TaskTimeout):
                    await compute(requester, watch=watch, chunks=CHUNKS, deadline_s=30)
                assert len(watch.of(Agreed)) > 100

    in_memory(scenario)


@pytest.mark.parametrize("asked_again", [True, False])
def test_a_provider_without_room_is_asked_again(asked_again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its only place is another's for a few seconds; there is nobody else."""
    if not asked_again:
        monkeypatch.setattr(_state, "_REFUSALS", 1)

    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=1)
        requester = await market.node(connect=(provider,))
        async with AsyncExitStack() as held:
            places = provider.provider.tasks.places  # type: ignore[union-attr]
            taken: list[Place] = []
            while places.has_room(one := Guest(peer=PeerId(f"other {len(taken)}"), subnet=f"{len(taken)}", known=True)):
                taken.append(places.take(one))
                held.enter_context(taken[-1].working())

            async def leave() -> None:
                await trio.sleep(5)
                for place in taken:
                    places.leave(place)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(leave)
                watch = Watch()
                if asked_again:
                    assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
                    assert 1 <= len(watch.of(ProviderRefused)) <= 3
                else:
                    with pytest.raises(NoProviderError, match="no_capacity"):
                        await compute(requester, watch=watch, chunks=CHUNKS)

    in_memory(scenario)


def test_a_provider_that_never_has_room_is_not_waited_for_until_the_deadline() -> None:
    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with crowd(market, requester, never_has_room, many=3):
            began = trio.current_time()
            watch = Watch()
            with pytest.raises(NoProviderError, match="no_capacity"):
                await compute(requester, watch=watch, chunks=CHUNKS)
            assert trio.current_time() - began < 20
            assert not watch.of(Agreed)

    in_memory(scenario)


async def never_has_room(market: Market, rogue: Rogue) -> None:
    """Refuses each order for want of room."""

    async def serve(stream: Any) -> None:
        await refuses_for_want_of_room(Negotiation(rogue, stream))

    rogue.requests.serve_dialogues(negotiation.PROTOCOL_ID, serve)


@pytest.mark.parametrize("name", ["is_silent", "opens_and_is_never_ready"])
def test_without_the_defence_they_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where whoever was asked keeps its place until its own time-outs, the honest provider is never asked."""
    monkeypatch.setattr(_state, "PLACE_S", 10_000.0)
    monkeypatch.setattr(_state.RunState, "give_up_stalled", lambda *_: None)

    async def scenario(market: Market) -> None:
        honest = await market.provider()
        requester = await market.node()
        know(requester, honest)
        wasting, deadline_s = WASTING[name]
        async with crowd(market, requester, wasting):
            with pytest.raises(TaskTimeout):
                await compute(requester, chunks=CHUNKS, deadline_s=deadline_s)

    in_memory(scenario)


def test_a_provider_that_is_slow_to_agree_gets_work_all_the_same() -> None:
    """Its place goes to others meanwhile; there is none."""

    async def scenario(market: Market) -> None:
        far = await market.provider()
        requester = await market.node()
        know(requester, far)
        market.memory.link(requester.peer_id, far.peer_id, latency_s=0.6)
        assert np.array_equal(await compute(requester, chunks=CHUNKS), Z)

    in_memory(scenario)


def test_late_agreements_are_no_more_than_places() -> None:
    """All answer after more than a second, so all are asked; no more than the places are ever agreed with at once."""

    async def scenario(market: Market) -> None:
        requester = await market.node()
        for _ in range(10):
            far = await market.provider()
            know(requester, far)
            market.memory.link(requester.peer_id, far.peer_id, latency_s=0.6)
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=64, max_providers=3), Z)
        assert len({event.provider for event in watch.of(Agreed)}) == 3
        assert not watch.of(ProviderRefused)

    in_memory(scenario)


def test_a_slow_compilation_is_waited_for_where_nobody_else_is_left() -> None:
    """Everybody compiles for longer than is waited for while others are left: nobody is given up for good."""

    async def scenario(market: Market) -> None:
        requester = await market.node()
        for _ in range(4):
            know(requester, await market.provider(workers=market.workers(compile_s=50)))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, max_providers=2), Z)
        assert any("others are waiting" in event.reason for event in watch.of(ProviderLost))

    in_memory(scenario)


def test_a_place_is_a_newcomers_among_acquaintances() -> None:
    """Who was paid is asked first, whatever strangers' ads say; and a stranger that works gets a part."""

    async def scenario(market: Market) -> None:
        paid = await market.provider(price="5 USD")
        requester = await market.node(connect=(paid,))
        assert np.array_equal(await compute(requester, chunks=CHUNKS), Z)
        newcomer = await market.provider(price="1 USD")
        know(requester, newcomer)
        requester.services.coordinator.draw = lambda _: 1
        async with crowd(market, requester, cannot_be_reached, many=20) as rogues:
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, max_providers=1), Z)
            assert {event.provider for event in watch.of(Agreed)} == {paid.peer_id}
        for rogue in rogues:
            requester.services.board.forget(rogue.key.peer_id)
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS, max_providers=2), Z)
        assert {event.provider for event in watch.of(Agreed)} == {paid.peer_id, newcomer.peer_id}

    in_memory(scenario)


def test_a_single_place_is_a_newcomers_now_and_then() -> None:
    """A task of one place, or of one chunk: whoever is first there for good needs no good price."""

    async def scenario(market: Market) -> None:
        dear = await market.provider(price="5 USD")
        requester = await market.node(connect=(dear,))
        assert np.array_equal(await compute(requester, chunks=CHUNKS), Z)
        cheap = await market.provider(price="0.05 USD")
        know(requester, cheap)
        draws = iter([3, 0, 3])
        drawn: list[int] = []

        def draw(many: int) -> int:
            drawn.append(many)
            return next(draws)

        requester.services.coordinator.draw = draw
        for options, expected in (
            ({"max_providers": 1}, dear),
            ({"chunks": 1}, cheap),
            ({"chunks": 1}, cheap),  # proven now, and by far the better offer
        ):
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch, **options), Z)
            assert {event.provider for event in watch.of(Agreed)} == {expected.peer_id}
        assert drawn == [4, 4, 4]

    in_memory(scenario)


def test_a_newcomers_place_that_becomes_free_is_the_next_newcomers() -> None:
    async def scenario(market: Market) -> None:
        paid = [await market.provider(price="5 USD") for _ in range(4)]
        requester = await market.node(connect=tuple(paid))
        for _ in range(4):  # until each has had its part
            assert np.array_equal(await compute(requester, chunks=64, max_providers=4), Z)
        standing = requester.services.books.standing
        assert all(standing(provider.peer_id).paid_uusd for provider in paid)
        newcomers = [await market.provider(price=price) for price in ("1 USD", "1.1 USD")]
        for newcomer in newcomers:
            know(requester, newcomer)

        def react(event: Any) -> None:
            if isinstance(event, ProviderReady) and event.provider == newcomers[0].peer_id:
                market.kill(newcomers[0])

        watch = Watch(react)
        assert np.array_equal(await compute(requester, watch=watch, chunks=64, max_providers=3), Z)
        agreed = [event.provider for event in watch.of(Agreed)]
        assert agreed.index(newcomers[0].peer_id) < 3
        assert agreed[3] == newcomers[1].peer_id

    in_memory(scenario)


@pytest.mark.parametrize(("idle_s", "forgiven"), [(1.5, 2), (0.0, 0)])  # we look every 1.2 s, and must see it
def test_a_provider_that_really_waited_for_us_is_asked_again(idle_s: float, forgiven: int) -> None:
    """Its place was needed while it had nothing to do here; a later agreement with it brings the work to an end."""

    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as provider:
            began: list[float] = []

            async def handler(it: RogueTask) -> None:
                began.append(trio.current_time())
                if len(began) <= 1 + forgiven:
                    await it.ready(task.Notice(kind="pause"))
                    await trio.sleep(idle_s)
                    await it.say(task.Refused(code=WireCode.STALLED, detail="the place was needed"))
                else:
                    await it.ready()
                    while True:
                        await it.dialogue.send(*it.answer(await it.assigned()))
                await ended(it.stream)

            provider.sell(handler)
            requester.services.board.put(provider.sealed_ad())
            watch = Watch()
            with pytest.raises(TaskError, match="takes no voucher"):  # which only the last agreement comes to
                await compute(requester, watch=watch, chunks=CHUNKS)
            assert watch.of(ChunkDone)
            assert len(began) == 2 + forgiven
            assert all(later - earlier >= 2 for earlier, later in pairwise(began))

    in_memory(scenario)


def test_without_a_wait_there_are_two_agreements() -> None:
    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as rogue:
            await refuses(WireCode.STALLED, idle_s=0.0)(market, rogue)
            requester.services.board.put(rogue.sealed_ad())
            watch = Watch()
            with pytest.raises(TaskError, match="all providers are gone"):
                await compute(requester, watch=watch, chunks=CHUNKS)
            assert len(watch.of(Agreed)) == 2

    in_memory(scenario)
