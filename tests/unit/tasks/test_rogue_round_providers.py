"""A provider of rounds driven by hand: its rounds are computed elsewhere, it is paid nothing, and stands worse."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable

import pytest
import trio

from p2pcompute.errors import TaskError
from p2pcompute.overlay import Subject
from p2pcompute.tasks import Agreed, ProviderLost, ProviderRefused
from p2pcompute.tasks._round_work import StateBytes
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.task import (
    ChunkError,
    GetState,
    Notice,
    Open,
    ResultData,
    StateData,
    StateGone,
    StateStart,
)
from p2pcompute_protocols.wire import Record

from ..market._harness import Market, Watch, in_memory
from ..market._rogues import RogueTask, ended, open_rogue, registering
from ._rounds import expected, iterate, same

ROUNDS = 8  # of a chunk
Attack = Callable[[RogueTask], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, str]] = {}
attack = registering(ATTACKS)


def state_after(rounds: int) -> StateBytes:
    """The state that an honest provider has after so many rounds."""
    arrays = expected(rounds)
    return StateBytes.of([arrays["x"].tobytes(), arrays["v"].tobytes()])


def digests(index: int) -> bytes:
    """What an honest provider gives for a chunk."""
    return b"".join(state_after(number).digest for number in range(index * ROUNDS + 1, (index + 1) * ROUNDS + 1))


def given(state: StateBytes, number: int, arrays: tuple[bytes, ...] | None = None) -> list[Record]:
    """A state as it is sent; `arrays` in the place of its own."""
    start = StateStart(state=number, arrays=state.digests)
    return [start, *(StateData(data=bytes(data)) for data in (state.arrays if arrays is None else arrays))]


async def asked(task: RogueTask) -> int:
    """Answer the first chunk as an honest provider would; the state that is then asked for."""
    await task.ready()
    index = await task.assigned()
    await task.dialogue.send(*task.answer(index, digests(index)))
    return await question(task)


async def question(task: RogueTask) -> int:
    while True:
        message = await task.dialogue.receive()
        if isinstance(message, GetState):
            return message.state


# Chunks


@attack("has given no result|gave no result")
async def takes_a_chunk_and_says_nothing(task: RogueTask) -> None:
    await task.ready()
    await ended(task.stream)


@attack("has given no result|gave no result")
async def pauses_and_resumes_in_the_place_of_results(task: RogueTask) -> None:
    await task.ready()
    while True:
        await task.say(Notice(kind="pause"), Notice(kind="resume"))
        await trio.sleep(60)


@attack("was not ready in")
async def is_never_ready(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await ended(task.stream)


@attack("a result of 224 bytes")
async def leaves_out_a_digest(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), digests(0)[:-32]))
    await ended(task.stream)


@attack("a result of 288 bytes")
async def has_a_digest_too_many(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), digests(0) + bytes(32)))
    await ended(task.stream)


@attack("more result bytes than announced")
async def sends_digests_without_end(task: RogueTask) -> None:
    await task.ready()
    start, data = task.answer(await task.assigned(), digests(0))
    await task.say(start, data)
    while True:
        await task.say(ResultData(data=bytes(32)))
        await trio.sleep(0.001)


@attack("a result came too slowly")
async def drips_digests(task: RogueTask) -> None:
    await task.ready()
    start, data = task.answer(await task.assigned(), digests(0))
    await task.say(start)
    for byte in data.data:  # type: ignore[attr-defined]
        await task.say(ResultData(data=bytes((byte,))))
        await trio.sleep(5)


@attack("not what the receipt says")
async def signs_for_other_digests(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.say(*task.answer(index, digests(0), digest=hashlib.sha256(b"other").digest()))
    await ended(task.stream)


@attack("does not fit the agreement")
async def bills_more_than_was_agreed(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), digests(0), units=10 * task.work.units_per_chunk))
    await ended(task.stream)


@attack("rounds of chunk 1 before earlier ones")
async def answers_the_second_chunk_first(task: RogueTask) -> None:
    await task.ready()
    await task.assigned()
    second = await task.assigned()
    await task.say(*task.answer(second, digests(second)))
    await ended(task.stream)


@attack("execution_failed: no reason")
async def says_that_its_rounds_have_failed(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    changes = {"code": WireCode.EXECUTION_FAILED, "digest": bytes(32), "units": 0, "detail": "no reason"}
    await task.say(ChunkError(index=index, receipt=task.receipt(index, b"", **changes)))
    await ended(task.stream)


# States


@attack("not the one that was receipted")
async def makes_up_digests(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.dialogue.send(*task.answer(index, bytes(32 * ROUNDS)))
    number = await question(task)
    await task.say(*given(state_after(number), number))
    await ended(task.stream)


@attack("not what its digest says")
async def gives_other_arrays(task: RogueTask) -> None:
    number = await asked(task)
    state = state_after(number)
    await task.say(*given(state, number, tuple(bytes(len(array)) for array in state.arrays)))
    await ended(task.stream)


@attack("a state of 3 arrays")
async def gives_an_array_too_many(task: RogueTask) -> None:
    number = await asked(task)
    await task.say(StateStart(state=number, arrays=(bytes(32),) * 3))
    await ended(task.stream)


@attack("more bytes than the state has")
async def gives_arrays_without_end(task: RogueTask) -> None:
    number = await asked(task)
    await task.say(*given(state_after(number), number))
    while True:
        await task.say(StateData(data=bytes(1_000)))
        await trio.sleep(0.001)


@attack("a state's bytes come in one piece")
async def gives_arrays_that_are_too_short(task: RogueTask) -> None:
    number = await asked(task)
    state = state_after(number)
    await task.say(*given(state, number, tuple(bytes(array[:-4]) for array in state.arrays)), Notice(kind="pause"))
    await ended(task.stream)


@attack("said nothing for 10 s")
async def stops_in_the_middle_of_a_state(task: RogueTask) -> None:
    number = await asked(task)
    await task.say(*given(state_after(number), number)[:2])
    await ended(task.stream)


@attack("a state came too slowly")
async def drips_a_state(task: RogueTask) -> None:
    number = await asked(task)
    start, *data = given(state_after(number), number)
    await task.say(start)
    for byte in b"".join(bytes(one.data) for one in data):  # type: ignore[attr-defined]
        await task.say(StateData(data=bytes((byte,))))
        await trio.sleep(5)


@attack("state .* was not asked for now")
async def gives_another_state(task: RogueTask) -> None:
    number = await asked(task)
    other = number % ROUNDS + 1
    await task.say(*given(state_after(other), other))
    await ended(task.stream)


@attack("state .* was not asked for now")
async def gives_a_state_twice(task: RogueTask) -> None:
    number = await asked(task)
    await task.say(*given(state_after(number), number), *given(state_after(number), number))
    await ended(task.stream)


@attack("does not give state .*: I forgot")
async def has_let_go_of_a_state(task: RogueTask) -> None:
    number = await asked(task)
    await task.say(StateGone(state=number, code=WireCode.UNKNOWN_CHUNK, detail="I forgot"))
    await ended(task.stream)


@attack("did not come in|gave no result")
async def does_not_answer_a_question(task: RogueTask) -> None:
    await asked(task)
    await ended(task.stream)


@attack("did not come in|gave no result")
async def says_other_things_than_what_it_is_asked_for(task: RogueTask) -> None:
    await asked(task)
    while True:
        await task.say(Notice(kind="window", window=2))
        await trio.sleep(30)


@attack("did not come in|the stream|closed|reset")
async def leaves_when_it_is_asked(task: RogueTask) -> None:
    await asked(task)
    await task.stream.reset()


# What no honest provider does.
OFFENCES = {
    "leaves_out_a_digest",
    "has_a_digest_too_many",
    "sends_digests_without_end",
    "bills_more_than_was_agreed",
    "answers_the_second_chunk_first",
    "gives_an_array_too_many",
    "gives_arrays_without_end",
    "gives_arrays_that_are_too_short",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_rounds_are_computed_elsewhere(name: str) -> None:
    function, says = ATTACKS[name]

    async def scenario(market: Market) -> None:
        honest = await market.provider(price="0.05 USD")
        requester = await market.node(connect=(honest,))
        async with open_rogue(market, connect=(requester,)) as rogue:
            rogue.sell(function)
            requester.services.board.put(rogue.sealed_ad())
            watch, began = Watch(), trio.current_time()
            assert same(await iterate(requester, watch=watch, rounds_per_chunk=ROUNDS), expected(40))
            peer = PeerId(rogue.key.peer_id)
            assert [event.provider for event in watch.of(Agreed)] == [peer, honest.peer_id]
            assert trio.current_time() - began < 120  # it does not hold up the rounds while somebody else is there
            reasons = [
                event.reason
                for event in [*watch.of(ProviderLost), *watch.of(ProviderRefused)]
                if event.provider == peer
            ]
            assert any(re.search(says, reason) for reason in reasons), reasons
            books = requester.services.books
            assert books.standing(peer).failures == 1
            assert books.standing(honest.peer_id).failures == 0
            overlay = requester.services.overlay
            blamed = overlay.bans.score(Subject("peer", peer)) > 0  # type: ignore[attr-defined]
            assert blamed == (name in OFFENCES)
            assert all(
                row.voucher_uusd == 0 for row in await requester.services.ledger.channels_out() if row.peer == peer
            )
            # Who knows nothing against it asks it first; this requester asks it last from now on.
            requester.services.board.put(rogue.sealed_ad())
            watch = Watch()
            assert same(await iterate(requester, watch=watch), expected(40))
            assert [event.provider for event in watch.of(Agreed)] == [honest.peer_id]

    in_memory(scenario)


@pytest.mark.parametrize("name", ATTACKS)
def test_alone_it_ends_the_task_with_a_typed_error(name: str) -> None:
    function, _ = ATTACKS[name]

    async def scenario(market: Market) -> None:
        requester = await market.node()
        async with open_rogue(market, connect=(requester,)) as rogue:
            rogue.sell(function)
            requester.services.board.put(rogue.sealed_ad())
            began = trio.current_time()
            with pytest.raises(TaskError, match="all providers are gone with 0 of 40 rounds done"):
                await iterate(requester, rounds_per_chunk=ROUNDS)
            assert trio.current_time() - began < 600  # where nobody else is there it has as long as was agreed, twice
            assert await market.spent_uusd(requester) == 0

    in_memory(scenario)


@pytest.mark.parametrize("name", ATTACKS)
def test_in_a_quorum_the_other_one_goes_on(name: str) -> None:
    function, _ = ATTACKS[name]

    async def scenario(market: Market) -> None:
        honest = [await market.provider(price="0.05 USD") for _ in range(2)]
        requester = await market.node(connect=tuple(honest))
        async with open_rogue(market, connect=(requester,)) as rogue:
            rogue.sell(function)
            requester.services.board.put(rogue.sealed_ad())
            watch, began = Watch(), trio.current_time()
            found = await iterate(requester, watch=watch, rounds_per_chunk=ROUNDS, check="quorum")
            assert same(found, expected(40))
            assert rogue.key.peer_id in {event.provider for event in watch.of(Agreed)}
            assert trio.current_time() - began < 240
            books = requester.services.books
            standing = books.standing(PeerId(rogue.key.peer_id))
            assert (standing.paid_uusd, standing.failures) == (0, 1)
            assert not any(books.standing(one.peer_id).failures for one in honest)

    in_memory(scenario)
