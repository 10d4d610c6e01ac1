"""Short chunks of calls: those of one call go together, and each names its call in what is signed for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import ChunkFailed
from p2pcompute.tasks import Agreed, ChunkDone, ChunkRejected, LiarCaught, Paid, TaskEnded
from p2pcompute.tasks._results import open_results
from p2pcompute.testing import WorkerFaults
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import (
    ReceiptPayload,
    Results,
    TaskConnection,
    open_receipt,
    seal_batch,
    stands_in_batch,
)

from ..market._harness import SIZE, Market, Watch, X, Y, axpy, in_memory, until
from ..protocols.vectors._material import NETWORK, NOW, PROVIDER, sha, work
from ..protocols.vectors._negotiation import agreement_bytes, bid_bytes, order_bytes, some_terms
from ._scenarios import altered_rows
from .test_short_chunks import WIDE, runs_of, short

CHUNKS = 64
OUT = p2p.out((SIZE,), np.float32)


def hire(node: p2p.Node, watch: Watch, **options: Any) -> Any:
    """`axpy`, of which each call has as many chunks as blocks."""
    chosen = {"budget": "0.10 USD", "chunks": CHUNKS, "on_event": watch, **options}
    return node.hire(axpy[CHUNKS, SIZE // CHUNKS], OUT, np.float32(2), X, Y, **chosen)


async def in_turn(hired: p2p.Hired, numbers: range) -> None:
    for number in numbers:
        await is_right(hired, number)


async def at_once(hired: p2p.Hired, numbers: range) -> None:
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(is_right, hired, number)


async def is_right(hired: p2p.Hired, number: int) -> None:
    given = Y + number
    found = await hired.run(np.float32(number), X, given)
    assert np.array_equal(found, np.float32(number) * X + given)


@pytest.mark.parametrize("make", [in_turn, at_once])
def test_chunks_of_a_call_go_together(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = range(6)

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), **WIDE)
        node = await market.node(connect=(provider,))
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            async with hire(node, watch) as hired:
                await make(hired, calls)
        assert sum(blocks for _, blocks in runs) == len(calls) * CHUNKS  # each of them once
        assert len(runs) < len(calls) * CHUNKS // 2
        (agreed,) = watch.of(Agreed)
        issued, held = [
            {row.index: row for row in await one.services.ledger.receipts(agreed.task)} for one in (provider, node)
        ]
        assert issued.keys() == held.keys() == set(range(len(calls) * CHUNKS))
        assert sum(stands_in_batch(row.envelope) for row in issued.values()) > len(issued) // 2
        named: dict[int, set[bytes | None]] = {}
        for index, row in issued.items():
            assert row.envelope == held[index].envelope
            _, receipt = open_receipt(
                row.envelope, network=node.network, provider=agreed.provider, task=agreed.task, index=index
            )
            named.setdefault(index // CHUNKS, set()).add(receipt.call)
        assert all(len(of_call) == 1 for of_call in named.values())
        assert len(set().union(*named.values()) - {None}) == len(calls)  # each has other inputs
        (end,) = watch.of(TaskEnded)
        assert end.done == len(calls) * CHUNKS
        assert 0 < end.paid_uusd == watch.of(Paid)[-1].paid_uusd == await market.claimed_uusd(provider)

    in_memory(scenario)


def test_a_chunk_that_breaks_its_group_fails_its_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = CHUNKS - 3

    async def scenario(market: Market) -> None:
        faults = WorkerFaults(dies_at=frozenset({bad}))
        fragile = await market.provider(workers=short(market, faults=faults), price="0.01 USD", **WIDE)
        sound = await market.provider(workers=short(market), price="0.05 USD", **WIDE)
        node = await market.node(connect=(fragile, sound))
        watch = Watch()
        with runs_of(monkeypatch) as runs:
            async with hire(node, watch) as hired:
                with pytest.raises(ChunkFailed, match="failed 2 times"):
                    await is_right(hired, 1)
                await is_right(hired, 2)
        together = [blocks for first, blocks in runs if blocks > 1 and bad in range(first, first + blocks)]
        assert together  # the fault was met in a group first
        assert {event.index for event in watch.of(ChunkRejected)} == {bad}

    in_memory(scenario)


def test_a_lie_among_them_is_found() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(workers=short(market), fault=altered_rows, price="0.01 USD", **WIDE)
        honest = await market.provider(workers=short(market), price="0.05 USD", **WIDE)
        node = await market.node(connect=(liar, honest))
        watch = Watch()
        async with hire(node, watch) as hired:
            await at_once(hired, range(3))
        (caught,) = watch.of(LiarCaught)
        assert (caught.provider, caught.paid_uusd) == (liar.peer_id, 0)
        assert await market.claimed_uusd(liar) == 0

    in_memory(scenario)


def test_a_call_that_is_cancelled_among_them_harms_no_other() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=short(market), **WIDE)
        node = await market.node(connect=(provider,))
        scope = trio.CancelScope()

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and event.index == 2 * CHUNKS + 1:  # call 2 is under way
                scope.cancel()

        watch = Watch(react)
        async with hire(node, watch) as hired:
            await in_turn(hired, range(2))
            async with trio.open_nursery() as nursery:
                begun = trio.Event()

                async def one() -> None:
                    with scope:
                        begun.set()
                        await is_right(hired, 2)

                nursery.start_soon(one)
                await begun.wait()
                await until(lambda: any(event.index >= 2 * CHUNKS for event in watch.of(ChunkDone)))
                await at_once(hired, range(3, 6))
            assert scope.cancelled_caught
            await is_right(hired, 6)
        assert len(watch.of(Agreed)) == 1

    in_memory(scenario)


def of_two_calls(named: tuple[bytes, bytes]) -> list[bytes]:
    """The outputs, by the requester's code, of a message with the last chunk of a call, which is shorter, and the first
    of the next one; its provider has signed for these calls."""
    agreement = Agreement(
        terms=some_terms(order_bytes(), bid_bytes(), standing=True), network=NETWORK, raw=agreement_bytes()
    )
    connection = TaskConnection(Role.REQUESTER)
    connection.chunks, connection.chunk_bytes, connection.call_chunks = 6, (8, 4), 3
    outputs = {2: b"last", 3: b"as whole"}
    payloads = [
        ReceiptPayload(
            task=agreement.task_id,
            index=index,
            code=0,
            output=sha(outputs[index]),
            fp="strict",
            units=500 * (2 if index == 3 else 1),  # 1,000 for two blocks
            finished_ms=NOW,
            call=call,
        )
        for index, call in zip(outputs, named, strict=True)
    ]
    batch = seal_batch(payloads, network=NETWORK, signer=PROVIDER)
    message = Results(index=2, count=2, finished_ms=NOW, receipts=batch.envelope, data=b"".join(outputs.values()))
    calls = (sha(b"first"), sha(b"second"))
    opened = open_results(agreement, work(), message, connection.size_of, lambda index: calls[index // 3])
    assert [one.receipt for one in opened] == list(batch.receipts)
    return [bytes(one.output) for one in opened]


def test_results_of_two_calls_in_one_message_name_their_own() -> None:
    """Our provider sends none; others may."""
    first, second = sha(b"first"), sha(b"second")
    assert of_two_calls((first, second)) == [b"last", b"as whole"]
    for named in ((first, first), (second, first), (second, second)):
        with pytest.raises(RemoteProtocolError) as refused:
            of_two_calls(named)
        assert refused.value.code is WireCode.BAD_DIGEST
