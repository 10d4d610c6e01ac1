"""A provider driven by hand against an honest requester: the task is computed, and the rogue is paid nothing."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import Subject
from p2pcompute.payments import Settler
from p2pcompute.payments._closing import close_channel
from p2pcompute.tasks import ChunkDone, LiarCaught, Paid, ProviderLost, ProviderRefused
from p2pcompute.testing import virtual_clock_ms
from p2pcompute_protocols.task import (
    BlobStart,
    ChunkError,
    Notice,
    Open,
    Opened,
    Ready,
    ResultData,
    ResultStart,
)

from ..market._harness import Market, Watch, Z, compute, in_memory
from ..market._rogues import CHUNKS, RogueTask, chunk_output, ended, open_rogue, registering

Attack = Callable[[RogueTask], Awaitable[None]]
ATTACKS: dict[str, tuple[Attack, str]] = {}
attack = registering(ATTACKS)


# Before any chunk


@attack("said nothing for 15 s")
async def says_nothing(task: RogueTask) -> None:
    await ended(task.stream)


@attack("was not ready in time|said nothing for 120 s")
async def opens_and_never_is_ready(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await task.dialogue.send(Opened(need=(), slots=1, window=1))
    await ended(task.stream)


@attack("was not ready in time")
async def sends_notices_instead_of_being_ready(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await task.dialogue.send(Opened(need=(), slots=1, window=1))
    for _ in range(20):
        await task.say(Notice(kind="pause"))
        await trio.sleep(10)
    await ended(task.stream)


@attack("a blob that the work does not name")
async def asks_for_a_blob_of_nobody(task: RogueTask) -> None:
    await task.say(Opened(need=(bytes(32),), slots=1, window=1))
    await ended(task.stream)


@attack("ready before all blobs came|has given no result")  # it may cross them on the wire
async def is_ready_before_the_inputs_came(task: RogueTask) -> None:
    need = tuple(task.connection.blob_sizes)
    await task.say(Opened(need=need, slots=1, window=1), Ready(compile_ms=1))
    await ended(task.stream)


@attack("may not send Ready")
async def is_ready_before_it_has_opened(task: RogueTask) -> None:
    await task.say(Ready(compile_ms=1))
    await ended(task.stream)


@attack("may not send BlobStart")
async def speaks_in_the_requesters_role(task: RogueTask) -> None:
    await task.say(BlobStart(digest=bytes(32), size=1))
    await ended(task.stream)


@attack("99")
async def says_what_no_protocol_has(task: RogueTask) -> None:
    await task.say(b"\x04\xa1\x00\x18\x63")  # {0: 99}
    await ended(task.stream)


@attack("a frame of")
async def announces_a_frame_of_256_mib(task: RogueTask) -> None:
    await task.say(b"\xff\xff\xff\x7f" + bytes(1000))
    await ended(task.stream)


@attack("CBOR|message|decode|malformed")
async def says_noise(task: RogueTask) -> None:
    await task.say(b"\x10" + bytes(range(0xF0, 0x100)))
    await ended(task.stream)


@attack("the stream ended in state")
async def leaves_in_the_middle_of_a_frame(task: RogueTask) -> None:
    await task.say(b"\x7f\x82")
    await task.stream.close_write()
    await ended(task.stream)


@attack("a failure with the receipt of a success")
async def fails_to_compile_with_the_receipt_of_a_success(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await task.dialogue.send(Opened(need=(), slots=1, window=1))
    await task.say(ChunkError(index=0, receipt=task.receipt(0, chunk_output(0))))
    await ended(task.stream)


@attack("a receipt for another chunk")
async def fails_to_compile_with_the_receipt_of_another_task(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await task.dialogue.send(Opened(need=(), slots=1, window=1))
    receipt = task.receipt(0, b"", code=21, digest=bytes(32), units=0, task=bytes(32))
    await task.say(ChunkError(index=0, receipt=receipt))
    await ended(task.stream)


@attack("that has not compiled")
async def fails_to_compile_again_and_again(task: RogueTask) -> None:
    await task.dialogue.expect(Open)
    await task.dialogue.send(Opened(need=(), slots=1, window=1))
    receipt = task.receipt(0, b"", code=21, digest=bytes(32), units=0)
    await task.say(*[ChunkError(index=0, receipt=receipt)] * 100)
    await ended(task.stream)


# With a chunk


@attack("has given no result")
async def takes_a_chunk_and_says_nothing(task: RogueTask) -> None:
    await task.ready()
    await task.assigned()
    await ended(task.stream)


@attack("notices and no results")
async def sends_notices_without_end(task: RogueTask) -> None:
    await task.ready()
    await task.assigned()
    while True:
        await task.say(Notice(kind="window", window=2))
        await trio.sleep(0.001)


@attack("has given no result")
async def sends_a_notice_now_and_then(task: RogueTask) -> None:
    await task.ready()
    await task.assigned()
    while True:
        await task.say(Notice(kind="window", window=2))
        await trio.sleep(20)


@attack("has given no result")
async def pauses_and_resumes(task: RogueTask) -> None:
    await task.ready()
    await task.assigned()
    while True:
        await task.say(Notice(kind="pause"), Notice(kind="resume"))
        await trio.sleep(40)


@attack("has paused for")
async def pauses_for_ever(task: RogueTask) -> None:
    await task.ready(Notice(kind="pause"))
    await ended(task.stream)


@attack("chunk .* was not asked for")
async def answers_a_chunk_of_somebody_else(task: RogueTask) -> None:
    await task.ready()
    index = (await task.assigned() + 5) % CHUNKS
    await task.say(*task.answer(index))
    await ended(task.stream)


@attack("chunk .* was not asked for")
async def answers_twice(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.say(*task.answer(index), *task.answer(index))
    await ended(task.stream)


@attack("a result of 8 bytes")
async def sends_a_short_result(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.say(*task.answer(index, bytes(8)))
    await ended(task.stream)


@attack("more result bytes than announced")
async def sends_more_than_it_announced(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    start, _ = task.answer(index)
    await task.say(start, ResultData(data=chunk_output(index) + b"more"))
    await ended(task.stream)


@attack("not what the receipt says")
async def signs_for_other_bytes_than_it_sends(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    start, _ = task.answer(index)
    await task.say(start, ResultData(data=bytes(len(chunk_output(index)))))
    await ended(task.stream)


@attack("signed by")
async def shows_a_receipt_of_somebody_else(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), signer=NodeKey.generate()))
    await ended(task.stream)


@attack("a receipt for another chunk")
async def shows_a_receipt_of_another_task(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), task=bytes(32)))
    await ended(task.stream)


@attack("a receipt for another chunk")
async def shows_a_receipt_of_another_chunk(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    output = chunk_output(index)
    receipt = task.receipt((index + 1) % CHUNKS, output)
    await task.say(ResultStart(index=index, receipt=receipt, size=len(output)), ResultData(data=output))
    await ended(task.stream)


@attack("does not fit the agreement")
async def bills_more_than_was_agreed(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), units=10 * task.work.units_per_chunk))
    await ended(task.stream)


@attack("does not fit the agreement")
async def computes_in_another_mode(task: RogueTask) -> None:
    await task.ready()
    await task.say(*task.answer(await task.assigned(), fp="fast"))
    await ended(task.stream)


@attack("does not fit the agreement")
async def sends_a_result_with_the_receipt_of_a_failure(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    receipt = task.receipt(index, b"", code=21, digest=bytes(32), units=0)
    await task.say(ResultStart(index=index, receipt=receipt, size=len(chunk_output(index))))
    await ended(task.stream)


@attack("a failure with the receipt of a success")
async def fails_with_the_receipt_of_a_success(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.say(ChunkError(index=index, receipt=task.receipt(index, chunk_output(index))))
    await ended(task.stream)


@attack("one piece")
async def talks_inside_of_a_result(task: RogueTask) -> None:
    await task.ready()
    start, data = task.answer(await task.assigned())
    await task.say(start, Notice(kind="pause"), data)
    await ended(task.stream)


@attack("a result came too slowly")
async def drips_a_result_byte_by_byte(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    start, _ = task.answer(index)
    await task.say(start)
    for byte in chunk_output(index):
        await task.say(ResultData(data=bytes((byte,))))
        await trio.sleep(5)


@attack("samples of chunk .* differ")
async def sends_zeros(task: RogueTask) -> None:
    await task.ready()
    index = await task.assigned()
    await task.say(*task.answer(index, bytes(len(chunk_output(index)))))
    await ended(task.stream)


# These only take time: with an honest provider beside it, a rogue may be let go before that is up.
SLOW = [
    "says_nothing",
    "opens_and_never_is_ready",
    "is_ready_before_the_inputs_came",
    "sends_notices_instead_of_being_ready",
    "takes_a_chunk_and_says_nothing",
    "sends_notices_without_end",
    "sends_a_notice_now_and_then",
    "pauses_for_ever",
    "pauses_and_resumes",
    "drips_a_result_byte_by_byte",
]


# What no honest provider does. The rest may be a slow line, another version or memory that errs; what
# `is_ready_before_the_inputs_came` gets as an answer hangs on what crosses what.
OFFENCES = {
    "is_ready_before_it_has_opened",
    "speaks_in_the_requesters_role",
    "announces_a_frame_of_256_mib",
    "says_noise",
    "sends_a_short_result",
    "sends_more_than_it_announced",
    "bills_more_than_was_agreed",
    "computes_in_another_mode",
    "sends_a_result_with_the_receipt_of_a_failure",
    "fails_with_the_receipt_of_a_success",
    "fails_to_compile_with_the_receipt_of_a_success",
    "fails_to_compile_again_and_again",
    "talks_inside_of_a_result",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_rogue_is_left_and_the_task_done(name: str) -> None:
    _play(name, with_honest=True)


@pytest.mark.parametrize("name", SLOW)
def test_the_rogue_alone_is_found_out_in_time(name: str) -> None:
    """Without anybody who takes over its chunks, a task must not hang on a rogue until its deadline."""
    _play(name, with_honest=False)


def _play(name: str, *, with_honest: bool) -> None:
    function, says = ATTACKS[name]

    async def scenario(market: Market) -> None:
        honest = await market.provider(workers=market.workers(chunk_s=1, compile_s=2)) if with_honest else None
        requester = await market.node(connect=(honest,) if honest else ())
        async with open_rogue(market, connect=(requester,)) as rogue:
            served: list[RogueTask] = []

            async def handler(task: RogueTask) -> None:
                served.append(task)
                await function(task)

            rogue.sell(handler)
            requester.services.board.put(rogue.sealed_ad())
            watch = Watch()
            if honest:
                assert np.array_equal(await compute(requester, watch=watch, chunks=CHUNKS), Z)
                honest_of = {e.index for e in watch.of(ChunkDone) if e.provider == honest.peer_id}
                assert len(honest_of) >= CHUNKS - 2
            else:
                began = trio.current_time()
                with pytest.raises(Exception, match="all providers are gone"):
                    await compute(requester, watch=watch, chunks=CHUNKS)
                assert trio.current_time() - began < 600
            assert served
            reasons = [
                e.reason
                for e in [*watch.of(ProviderLost), *watch.of(ProviderRefused)]
                if e.provider == rogue.key.peer_id
            ] + [f"{e.mismatched} samples of chunk {e.index} differ" for e in watch.of(LiarCaught)]
            if not (honest and name in SLOW):
                assert any(re.search(says, reason) for reason in reasons), reasons
                overlay: Any = requester.services.overlay
                blamed = overlay.bans.score(Subject("peer", rogue.key.peer_id)) > 0
                assert blamed == (name in OFFENCES) or name == "is_ready_before_the_inputs_came"
                # Whatever it was, it ranks lower from now on, unless it paused, as it may; nobody else does.
                standing = requester.services.books.standing
                assert standing(rogue.key.peer_id).failures == (name != "pauses_for_ever")
                assert honest is None or standing(honest.peer_id).failures == 0
            channels = [c for c in await requester.services.ledger.channels_out() if c.peer == rogue.key.peer_id]
            assert all(c.voucher_uusd == 0 for c in channels)

    in_memory(scenario)


def test_a_provider_that_closes_its_channel_ends_its_own_part_and_no_more() -> None:
    async def scenario(market: Market) -> None:
        closing, other = await market.provider(price="5 USD"), await market.provider(price="6 USD")
        requester = await market.node(connect=(closing, other))
        gone: list[bool] = []

        def react(event: object) -> None:
            if isinstance(event, Paid) and event.provider == closing.peer_id and not gone:
                gone.append(True)
                market.nursery.start_soon(close)

        async def close() -> None:
            services = closing.services
            (row,) = await services.ledger.channels_in()
            settler = Settler(ledger=services.ledger, hub=services.hub, outbox=services.outbox, cap_uusd=0)
            await close_channel(
                row.channel.hex(),
                ledger=services.ledger,
                hub=services.hub,
                outbox=services.outbox,
                settler=settler,
                clock_ms=virtual_clock_ms,
            )

        watch = Watch(react)
        assert np.array_equal(await compute(requester, watch=watch, chunks=64, max_price="9 USD"), Z)
        assert any(lost.provider == closing.peer_id for lost in watch.of(ProviderLost))
        assert {done.provider for done in watch.of(ChunkDone)} == {closing.peer_id, other.peer_id}

    in_memory(scenario)
