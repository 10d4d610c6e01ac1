"""Calls of a standing agreement, made by hand at an honest provider, and answered by hand to an honest requester."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import ChunkFailed, TaskError
from p2pcompute.market import OrderRefused
from p2pcompute.node import Node
from p2pcompute.overlay import Offence
from p2pcompute.tasks import Agreed, ChunkDone, ProviderLost
from p2pcompute.testing import _memory_stream, virtual_clock_ms
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.task import (
    Assign,
    BlobData,
    BlobStart,
    Call,
    CallInputs,
    ChunkError,
    ReceiptPayload,
    ResultData,
    Results,
    ResultStart,
    open_receipt,
    seal_batch,
)
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import ArrayArg, ScalarArg, SplitArg

from ..market._harness import SIZE, Market, Watch, X, Y, axpy, in_memory
from ..market._rogues import CHUNKS, NETWORK, Rogue, RogueTask, axpy_work, chunk_output, ended, open_rogue
from ._attacks import Forgiven, Table, attacks_of, play, refused

ATTACKS: Table = {}
attack = attacks_of(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_provider_goes_on(name: str) -> None:
    play(*ATTACKS[name])


def standing(opened: RogueTask) -> RogueTask:
    """Let its connection know that calls are made."""
    conn = opened.connection
    conn.calls = conn.tiles = CallInputs(opened.work)
    conn.call_chunks, conn.chunks = CHUNKS, conn.calls.most * CHUNKS
    return opened


async def hired(rogue: Rogue, provider: Node) -> RogueTask:
    """A standing agreement, ready for calls."""
    opened = standing(await rogue.open_task(provider, standing=True))
    await opened.start()
    return opened


def a_call(number: int, x: Any = X) -> Call:
    arrays = [ArrayArg(dtype="float32", shape=(SIZE,), digest=digest_of(array)) for array in (x, Y)]
    return Call(call=number, args=(ScalarArg(dtype="float32", value=np.float32(2).tobytes()), *arrays))


def digest_of(array: Any) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()


async def receipts(provider: Node, opened: RogueTask) -> int:
    return len(await provider.services.ledger.receipts(opened.agreement.task_id))


async def is_ended_by(rogue: Rogue, provider: Node, *said: Record) -> None:
    """Who says so in a new hire is left at once, and has nothing computed."""
    opened = await hired(rogue, provider)
    await opened.say(*said)
    assert await ended(opened.stream) < 1
    assert await receipts(provider, opened) == 0


@attack(Forgiven.ALLOWED)
async def makes_a_call_by_hand(rogue: Rogue, provider: Node) -> None:
    """No attack: what the others begin with does work."""
    opened = await hired(rogue, provider)
    await opened.dialogue.send(a_call(0), Assign(index=3))
    begin = await opened.dialogue.expect(ResultStart)
    _, receipt = open_receipt(
        begin.receipt, network=NETWORK, provider=provider.peer_id, task=opened.agreement.task_id, index=3
    )
    assert receipt.call == hashlib.sha256(a_call(0).encode()).digest()
    assert (await opened.dialogue.expect(ResultData)).data == chunk_output(3)
    await opened.stream.reset()


@attack(Offence.VIOLATION)
async def makes_a_call_again(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    await opened.dialogue.send(a_call(0), Assign(index=0))
    await opened.result()
    await opened.say(a_call(0), Assign(index=1))
    assert await ended(opened.stream) < 1
    assert await receipts(provider, opened) == 1


@attack(Offence.VIOLATION)
async def leaves_a_call_out(rogue: Rogue, provider: Node) -> None:
    await is_ended_by(rogue, provider, a_call(1), Assign(index=CHUNKS))


@attack(Offence.VIOLATION)
async def makes_calls_and_has_nothing_computed(rogue: Rogue, provider: Node) -> None:
    await is_ended_by(rogue, provider, a_call(0), a_call(1), Assign(index=CHUNKS))


@attack(Offence.VIOLATION)
async def assigns_a_chunk_of_no_call(rogue: Rogue, provider: Node) -> None:
    await is_ended_by(rogue, provider, a_call(0), Assign(index=CHUNKS))


@attack(Offence.VIOLATION)
async def calls_in_a_task_that_is_none_of_calls(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.say(a_call(0))
    assert await ended(opened.stream) < 1


@attack(Offence.VIOLATION)
async def sends_an_array_that_the_call_does_not_have(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    await opened.say(a_call(0, X + 1), Assign(index=0), BlobStart(digest=digest_of(X + 2), size=4 * SIZE))
    assert await ended(opened.stream) < 1
    assert await receipts(provider, opened) == 0


@attack(Forgiven.MEMORY)
async def sends_other_bytes_than_the_call_names(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    await opened.say(a_call(0, X + 1), Assign(index=0), BlobStart(digest=digest_of(X + 1), size=4 * SIZE))
    await opened.say(BlobData(data=(X + 2).tobytes()))
    assert await ended(opened.stream) < 1
    assert await receipts(provider, opened) == 0


@attack(Forgiven.SLOW)
async def never_sends_the_array_of_a_call(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    await opened.dialogue.send(a_call(0, X + 1), Assign(index=0))
    assert await ended(opened.stream) < 60
    assert await receipts(provider, opened) == 0


@attack(Forgiven.SLOW)
async def holds_a_place_and_makes_no_call(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    began = trio.current_time()
    await refused(opened.dialogue, WireCode.STALLED)
    assert trio.current_time() - began < 31


@attack(Forgiven.UNPAID)
async def never_pays_for_its_calls(rogue: Rogue, provider: Node) -> None:
    opened = await hired(rogue, provider)
    began = trio.current_time()
    for number in range(3):
        await opened.dialogue.send(a_call(number), Assign(index=number * CHUNKS))
    await opened.result()
    await refused(opened.dialogue, WireCode.PAYMENT_REQUIRED)
    assert trio.current_time() - began < 130
    assert await receipts(provider, opened) == 1  # a stranger's window


@attack(Forgiven.ORDER)
async def wants_calls_of_what_can_not_be_called(rogue: Rogue, provider: Node) -> None:
    work, _ = axpy_work()
    split = SplitArg(
        dtype="float32", shape=(SIZE,), tile=(64,), axes=(0,), halo=(0,), edge="zero", manifest=digest_of(Y)
    )
    args = tuple(split if isinstance(arg, ArrayArg) else arg for arg in work.args)
    with pytest.raises(OrderRefused) as caught:
        await rogue.agree(provider, type(work)(**{**fields_of(work), "args": args}), standing=True)
    assert caught.value.code is WireCode.UNSUPPORTED


def fields_of(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for _, name, _, _ in record._plan}


# A provider by hand

Answer = Callable[[RogueTask, int], Awaitable[None]]


async def with_no_call(opened: RogueTask, index: int) -> None:
    await opened.dialogue.send(*opened.answer(index))


async def with_another_call(opened: RogueTask, index: int) -> None:
    await opened.dialogue.send(*opened.answer(index, call=bytes(32)))


async def of_another_chunk(opened: RogueTask, index: int) -> None:
    receipt = opened.receipt(index + 1, chunk_output(index), call=digest_of_call(opened))
    await opened.dialogue.send(ResultStart(index=index, receipt=receipt, size=len(chunk_output(index))))


async def twice(opened: RogueTask, index: int) -> None:
    answer = opened.answer(index, call=digest_of_call(opened))
    await opened.dialogue.send(*answer)
    await opened.say(*answer)


async def cancelled_by_nobody(opened: RogueTask, index: int) -> None:
    receipt = opened.receipt(
        index, b"", digest=bytes(32), units=0, code=WireCode.CANCELLED, call=digest_of_call(opened)
    )
    await opened.dialogue.send(ChunkError(index=index, receipt=receipt))


async def together_with_no_call(opened: RogueTask, index: int) -> None:
    await several(opened, index, None)


async def together_with_another_call(opened: RogueTask, index: int) -> None:
    await several(opened, index, bytes(32))


async def several(opened: RogueTask, index: int, call: bytes | None) -> None:
    """Two results in one message, whose receipts name `call`."""
    outputs = [chunk_output(index), chunk_output(index + 1)]
    payloads = [
        ReceiptPayload(
            task=opened.agreement.task_id,
            index=index + at,
            code=0,
            output=hashlib.sha256(output).digest(),
            fp="strict",
            units=opened.work.units_per_chunk,
            finished_ms=virtual_clock_ms(),
            call=call,
        )
        for at, output in enumerate(outputs)
    ]
    batch = seal_batch(payloads, network=NETWORK, signer=opened.rogue.key)
    finished_ms, data = payloads[0].finished_ms, b"".join(outputs)
    await opened.dialogue.send(
        Results(index=index, count=2, finished_ms=finished_ms, receipts=batch.envelope, data=data)
    )


async def together(opened: RogueTask, index: int) -> None:
    """No attack: as the two above, and right."""
    await several(opened, index, digest_of_call(opened))


def digest_of_call(opened: RogueTask) -> bytes:
    assert opened.connection.calls is not None
    return opened.connection.calls.of_chunk(0)[1]


FALSE: list[Answer] = [
    with_no_call,
    with_another_call,
    of_another_chunk,
    twice,
    cancelled_by_nobody,
    together_with_no_call,
    together_with_another_call,
]


@pytest.mark.parametrize("answer", [*FALSE, together])
def test_the_requester_pays_for_nothing(answer: Answer) -> None:
    async def scenario(market: Market) -> None:
        async with open_rogue(market) as rogue:

            async def serve(opened: RogueTask) -> None:
                standing(opened)
                await opened.ready()
                await opened.dialogue.expect(Call, stall_s=None)
                await answer(opened, await opened.assigned())
                await ended(opened.stream)

            rogue.sell(serve)
            node = await market.node()
            await node.services.overlay.connect(rogue.overlay.addresses[0])
            node.services.board.put(rogue.sealed_ad())
            watch = Watch()
            out = p2p.out((SIZE,), np.float32)
            chosen = {"chunks": CHUNKS, "budget": "0.10 USD", "on_event": watch, "check": "none"}
            async with node.hire(axpy, out, np.float32(2), X, Y, **chosen) as calls:
                with pytest.raises(TaskError, match="all providers are gone"):
                    await calls.run(np.float32(2), X, Y)
            assert len(watch.of(Agreed)) == 1
            assert len(watch.of(ProviderLost)) == 1
            # What the one that answers twice gave first was a result as good as any.
            assert await market.spent_uusd(node) <= (1 if answer in (twice, together) else 0)
            if answer is not twice:
                assert len(watch.of(ChunkDone)) == (2 if answer is together else 0)

    in_memory(scenario)


def test_an_answer_before_the_arrays_have_come_ends_nothing_but_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory_stream, "WINDOW_BYTES", 1024)  # so that arrays wait for who does not read
    answered: list[int] = []

    async def scenario(market: Market) -> None:
        async with open_rogue(market) as rogue:

            async def serve(opened: RogueTask) -> None:
                standing(opened)
                await opened.ready()
                await opened.dialogue.expect(Call, stall_s=None)
                await opened.assigned()
                assert len(opened.connection.needed) == 2
                for index in sorted(opened.connection.outstanding):
                    failed = opened.receipt(
                        index,
                        b"",
                        digest=bytes(32),
                        units=0,
                        code=WireCode.EXECUTION_FAILED,
                        call=digest_of_call(opened),
                    )
                    await opened.dialogue.send(ChunkError(index=index, receipt=failed))
                    answered.append(index)
                await trio.sleep(1)  # it is there before any array is
                await ended(opened.stream)

            rogue.sell(serve)
            node = await market.node()
            await node.services.overlay.connect(rogue.overlay.addresses[0])
            node.services.board.put(rogue.sealed_ad())
            out = p2p.out((SIZE,), np.float32)
            async with node.hire(axpy, out, np.float32(2), X, Y, chunks=CHUNKS, budget="0.10 USD") as calls:
                with pytest.raises(ChunkFailed, match="failed 2 times"):
                    await calls.run(np.float32(2), X + 1, Y + 1)
            assert answered == [0, 1]
            assert await market.spent_uusd(node) == 0

    in_memory(scenario)
