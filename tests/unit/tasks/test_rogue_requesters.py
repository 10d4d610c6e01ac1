"""A requester driven by hand against an honest provider: it loses a window at most, and serves others as before."""

from __future__ import annotations

import contextlib
import dataclasses
from contextlib import AsyncExitStack

import numpy as np
import pytest
import trio

from p2pcompute._provider_events import WatchedBooks
from p2pcompute.errors import NoProviderError, StreamError
from p2pcompute.market import OrderRefused
from p2pcompute.node import Node
from p2pcompute.overlay import Offence
from p2pcompute.payments import CreditPolicy, subnet_of
from p2pcompute.tasks import _provider_session as provider_module
from p2pcompute.tasks._places import Guest, Place, Places
from p2pcompute_protocols import task
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_INFLIGHT_CHUNKS
from p2pcompute_protocols.task import (
    Assign,
    BlobData,
    BlobStart,
    Cancel,
    ChunkError,
    Closed,
    Finish,
    Open,
    Opened,
    Ready,
    Refused,
    ResultStart,
)
from p2pcompute_protocols.work import ChunkWork

from ..market._harness import Market, Z, compute, in_memory, until
from ..market._rogues import CHUNKS, NETWORK, Rogue, RogueTask, axpy_work, ended, open_rogue
from ._attacks import Forgiven, Table, attacks_of, play, refused, role_of

ATTACKS: Table = {}
attack = attacks_of(ATTACKS)
_REQUESTER = Role.REQUESTER
WINDOW = 1  # what a stranger gets


@pytest.mark.parametrize("name", ATTACKS)
def test_the_provider_goes_on(name: str) -> None:
    play(*ATTACKS[name])


# Money: what a stranger can have for nothing


@attack(Forgiven.UNPAID)
async def never_pays(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    began = trio.current_time()
    await opened.dialogue.send(*(Assign(index=index) for index in range(CHUNKS)))
    for _ in range(WINDOW):
        await opened.result()
    await refused(opened.dialogue, WireCode.PAYMENT_REQUIRED)
    assert trio.current_time() - began < 130
    receipts = await provider.services.ledger.receipts(opened.agreement.task_id)
    assert len(receipts) == WINDOW


@attack(Forgiven.LEAVES)
async def vanishes_with_chunks_under_way(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(*(Assign(index=index) for index in range(CHUNKS)))
    rogue.market.memory.kill(rogue.key.peer_id)
    await trio.sleep(1)
    receipts = await provider.services.ledger.receipts(opened.agreement.task_id)
    assert len(receipts) <= WINDOW


@attack(Forgiven.LEAVES)
async def is_cut_off_with_chunks_under_way(rogue: Rogue, provider: Node) -> None:
    """No goodbye and no reset: bytes just stop."""
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(*(Assign(index=index) for index in range(CHUNKS)))
    rogue.market.memory.partition(rogue.key.peer_id)
    assert provider.provider is not None
    await until(lambda: not provider.provider or not provider.provider.tasks.active, within_s=200)
    receipts = await provider.services.ledger.receipts(opened.agreement.task_id)
    assert len(receipts) <= WINDOW


@attack(Forgiven.CROSSED)
async def opens_a_task_again_after_it_ended(rogue: Rogue, provider: Node) -> None:
    """One agreement is one task: its chunks are computed on credit once."""
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(Assign(index=0))
    await opened.result()
    await opened.dialogue.send(Finish(code=0, detail=""))
    await opened.dialogue.expect(Closed)
    await refused((await opened.again(provider)).dialogue, WireCode.REPLAYED)


@attack(Forgiven.CROSSED)
async def opens_one_task_twice_at_once(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    await refused((await opened.again(provider)).dialogue, WireCode.REPLAYED)
    await opened.stream.reset()
    await until(lambda: provider.provider and not provider.provider.tasks.active)


@attack(Forgiven.ALLOWED)
async def cancels_to_stay(rogue: Rogue, provider: Node) -> None:
    """A task in which nothing is computed ends, whatever else is said in it."""
    opened = await rogue.open_task(provider)
    await opened.start()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def cancel_again_and_again() -> None:
            while True:
                await opened.say(Cancel(index=0))
                await trio.sleep(10)

        nursery.start_soon(cancel_again_and_again)
        await refused(opened.dialogue, WireCode.STALLED)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 140


@attack(Forgiven.ALLOWED)
async def finishes_while_a_chunk_is_computed(rogue: Rogue, provider: Node) -> None:
    """What is under way is cancelled and signed by nobody; what it has used so far is charged to credit."""
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(Assign(index=0))
    await trio.sleep(0.05)
    began = trio.current_time()
    await opened.dialogue.send(Finish(code=0, detail=""))
    assert (await opened.dialogue.expect(Closed)).chunks == 0
    assert trio.current_time() - began < 0.06
    assert await provider.services.ledger.receipts(opened.agreement.task_id) == []


@attack(Forgiven.ALLOWED)
async def cancels_what_is_computed(rogue: Rogue, provider: Node) -> None:
    """It stops, is signed at no cost, can be assigned again; and the worker goes on with what it has compiled."""
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(Assign(index=0))
    await trio.sleep(0.05)
    [entry] = role_of(provider).tasks.active.values()
    assert (entry.chunk, entry.stopped) == (0, 0)
    began = trio.current_time()
    await opened.dialogue.send(Cancel(index=0))
    error = await opened.dialogue.expect(ChunkError)
    assert trio.current_time() - began < 0.05
    _, payload = task.open_receipt(
        error.receipt, network="simulated", provider=provider.peer_id, task=opened.agreement.task_id, index=0
    )
    assert (payload.code, payload.units) == (WireCode.CANCELLED, 0)
    assert (entry.chunk, entry.stopped, entry.used.cpu_ns) == (None, 1, 0)
    await opened.dialogue.send(Assign(index=0))
    assert await opened.result() == 0
    assert entry.used.wall_ns > 0
    await opened.stream.reset()


@attack(Forgiven.ALLOWED)
async def cancels_all_that_it_assigns(rogue: Rogue, provider: Node) -> None:
    """It gets results instead, which count against what it may owe: no machine works for nothing."""
    opened = await rogue.open_task(provider)
    await opened.start()
    answers: list[type] = []
    while ResultStart not in answers:
        assert len(answers) < 20
        await opened.dialogue.send(Assign(index=0))
        await trio.sleep(0.05)
        await opened.dialogue.send(Cancel(index=0))
        answers.append(type(await opened.dialogue.expect(ChunkError, ResultStart)))
    assert answers == [ChunkError] * 8 + [ResultStart]
    await opened.stream.reset()


def test_without_a_bound_who_cancels_all_has_a_machine_work_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_module, "_STOPS", 1_000)

    async def cancels(rogue: Rogue, provider: Node) -> None:
        opened = await rogue.open_task(provider)
        await opened.start()
        for _ in range(20):
            await opened.dialogue.send(Assign(index=0))
            await trio.sleep(0.05)
            await opened.dialogue.send(Cancel(index=0))
            await opened.dialogue.expect(ChunkError)
        await opened.stream.reset()

    play(cancels, Forgiven.ALLOWED)


@pytest.mark.parametrize("believed", [False, True])
def test_a_subnet_is_where_peers_are_and_not_where_they_say(believed: bool) -> None:
    """Identities in one subnet that announce one each share its budget; believed, each would have one of its own."""

    async def scenario(market: Market) -> None:
        credit = CreditPolicy(provider_uusd=1_000, subnet_uusd=65, peer_uusd=40)
        provider = await market.provider(credit=credit)
        if believed:
            role = provider.provider
            assert role is not None
            books = role.tasks.books
            assert isinstance(books, WatchedBooks)
            books._books._subnet = lambda peer: subnet_of(provider.services.overlay.addresses_of(peer)[0], peer)  # type: ignore[attr-defined]
        work, blobs = axpy_work(units_per_chunk=1_000_000)  # 14 micro-USD, and 7 for compiling
        codes = []
        for number in range(6):
            announce = (f"/ip4/203.0.{number}.7/tcp/4001",)
            async with open_rogue(market, connect=(provider,), at="198.51.100.9", announce=announce) as rogue:
                opened = await rogue.open_task(provider, work)
                opened.blobs = blobs
                codes.append(await _one_chunk(opened))
        stolen = codes.count(WireCode.OK)
        assert stolen == (6 if believed else 3)
        assert set(codes[stolen:]) <= {WireCode.CREDIT_EXHAUSTED}

    in_memory(scenario)


async def _one_chunk(opened: RogueTask) -> WireCode:
    """Take one chunk and leave; what the provider said to it."""
    await opened.send_inputs()
    ready = await opened.dialogue.expect(Ready, Refused)
    if isinstance(ready, Refused):
        return WireCode(ready.code)
    await opened.dialogue.send(Assign(index=0))
    answer = await opened.dialogue.expect(ResultStart, ChunkError)
    await opened.stream.reset()
    if isinstance(answer, ResultStart):
        return WireCode.OK
    _, payload = task.open_receipt(
        answer.receipt,
        network=NETWORK,
        provider=PeerId(opened.agreement.terms.provider),
        task=opened.agreement.task_id,
        index=0,
    )
    return WireCode(payload.code)


# Places


class _AnyoneStays(Places):
    """Places as they are without the defence: whoever came first has them, for as long as a task may wait."""

    def _find(self, guest: Guest) -> Place | None:
        mine = sum(1 for place in self._taken if place.guest.peer == guest.peer)
        if self.taken >= self.total or mine >= self.total // 2:
            raise LocalProtocolError("too many tasks at once; try later", code=WireCode.NO_CAPACITY)
        return None


@pytest.mark.parametrize("defended", [False, True])
def test_idle_tasks_of_fresh_identities_do_not_hold_all_places(defended: bool) -> None:
    """Two peer IDs with two opened tasks each hold a provider of one slot, over and over, and compute nothing."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=1)
        role = provider.provider
        assert role is not None
        if not defended:
            role.tasks.places = _AnyoneStays(role.tasks.max_tasks)
        requester = await market.node(connect=(provider,))
        async with (
            open_rogue(market, connect=(provider,)) as first,
            open_rogue(market, connect=(provider,)) as second,
            trio.open_nursery() as nursery,
        ):

            async def hold(rogue: Rogue) -> None:
                while True:
                    with contextlib.suppress(RemoteProtocolError, StreamError, OrderRefused):
                        opened = await rogue.open_task(provider)
                        await opened.start()
                        await ended(opened.stream)
                    await trio.sleep(0.5)

            for rogue in (first, first, second, second):
                nursery.start_soon(hold, rogue)
            await trio.sleep(10)
            assert len(role.tasks.active) == (3 if defended else 4)
            if defended:
                assert np.array_equal(await compute(requester), Z)
            else:
                with pytest.raises(NoProviderError, match="no_capacity"):
                    await compute(requester)
            nursery.cancel_scope.cancel()

    in_memory(scenario)


def test_an_idle_newcomer_makes_room_for_another_and_may_come_again() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=1)
        async with open_rogue(market, connect=(provider,)) as rogue, open_rogue(market, connect=(provider,)) as other:
            # One that has a chunk done has half a minute for its payment, one that has none two seconds.
            done = await rogue.open_task(provider)
            await done.start()
            await done.dialogue.send(Assign(index=0))
            await done.result()
            idle = await rogue.open_task(provider)
            await idle.start()
            fast = await other.open_task(provider)
            await fast.start()
            with pytest.raises(OrderRefused, match="no place"):
                await other.agree(provider)
            await trio.sleep(2)
            await fast.dialogue.send(Assign(index=0))
            newcomer = await other.open_task(provider)
            await newcomer.start()
            await refused(idle.dialogue, WireCode.STALLED)
            await trio.sleep(2)
            with pytest.raises(OrderRefused, match="no place"):  # who held a place for nothing gets nobody else's
                await rogue.agree(provider)
            await newcomer.stream.reset()
            await until(lambda: role_of(provider).tasks.places.taken == 2)
            await rogue.agree(provider)  # but it may have a free one
            for opened in (done, fast):
                await opened.stream.reset()

    in_memory(scenario)


def test_a_quarter_of_the_places_is_for_those_who_have_paid() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(
            slots=1, credit=CreditPolicy(known_uusd=1), workers=market.workers(chunk_s=1.9)
        )
        requester, stranger = [await market.node(connect=(provider,)) for _ in range(2)]
        assert np.array_equal(await compute(requester, chunks=2), Z)
        async with AsyncExitStack() as stack:
            for _ in range(3):
                rogue = await stack.enter_async_context(open_rogue(market, connect=(provider,)))
                opened = await rogue.open_task(provider)
                await opened.start()
                await opened.dialogue.send(Assign(index=0))
            with pytest.raises(NoProviderError, match="no_capacity"):
                await compute(stranger)
            assert np.array_equal(await compute(requester, chunks=2), Z)

    in_memory(scenario)


@attack(Forgiven.UNPAID)
async def asks_for_chunks_without_credit_to_stay(rogue: Rogue, provider: Node) -> None:
    """Each is refused, and none is work."""
    opened = await rogue.open_task(provider)
    await opened.start()
    role_of(provider).credit.policy = CreditPolicy(peer_uusd=0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with contextlib.suppress(StreamError):
                while True:
                    await opened.dialogue.send(Assign(index=0))
                    await opened.dialogue.expect(ChunkError, stall_s=None)
                    await trio.sleep(5)

        nursery.start_soon(ask)
        await until(lambda: not role_of(provider).tasks.active, within_s=60)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 40
    role_of(provider).credit.policy = CreditPolicy()


# Inputs


async def _to_setup(rogue: Rogue, provider: Node) -> RogueTask:
    opened = await rogue.open_task(provider)
    await opened.dialogue.send(Open(agreement=opened.agreement.raw))
    await opened.dialogue.expect(Opened)
    return opened


@attack(Forgiven.MEMORY)
async def sends_other_bytes_than_it_named(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    digest, size = next(iter(opened.connection.blob_sizes.items()))
    await opened.say(BlobStart(digest=digest, size=size), BlobData(data=bytes(size)))
    assert await ended(opened.stream) < 1


@attack(Offence.VIOLATION)
async def sends_a_blob_of_another_size(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    await opened.say(BlobStart(digest=next(iter(opened.connection.blob_sizes)), size=2**26))
    assert await ended(opened.stream) < 1


@attack(Offence.VIOLATION)
async def sends_a_blob_that_was_not_asked_for(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    await opened.say(BlobStart(digest=bytes(32), size=1))
    assert await ended(opened.stream) < 1


@attack(Forgiven.SLOW)
async def sends_no_blob(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    assert await ended(opened.stream) < 32


@attack(Forgiven.SLOW)
async def drips_a_blob(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    digest, size = max(opened.connection.blob_sizes.items(), key=lambda item: item[1])
    began = trio.current_time()
    await opened.say(BlobStart(digest=digest, size=size))
    async with trio.open_nursery() as nursery:

        async def drip() -> None:
            with contextlib.suppress(StreamError):
                for _ in range(size):
                    await opened.say(BlobData(data=b"\0"))
                    await trio.sleep(5)

        nursery.start_soon(drip)
        await ended(opened.stream)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 60


@attack(Offence.VIOLATION)
async def assigns_before_the_inputs_are_there(rogue: Rogue, provider: Node) -> None:
    opened = await _to_setup(rogue, provider)
    await opened.say(Assign(index=0))
    assert await ended(opened.stream) < 1


# Chunks


@attack(Offence.VIOLATION)
async def floods_with_assigns(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider, axpy_work_in_many_chunks())
    opened.blobs = axpy_work()[1]
    await opened.start()
    await opened.say(*(Assign(index=index) for index in range(MAX_INFLIGHT_CHUNKS + 44)))
    assert await ended(opened.stream) < 2
    assert len(await provider.services.ledger.receipts(opened.agreement.task_id)) <= WINDOW


def axpy_work_in_many_chunks() -> ChunkWork:
    """The shared kernel over blocks of two threads, so that there are more chunks than may be under way."""

    from p2pcompute_protocols.work import LaunchSpec

    work, _ = axpy_work()
    return dataclasses.replace(
        work,
        launch=LaunchSpec(dims=1, grid=(2048, 1, 1), block=(2, 1, 1)),
        blocks_per_chunk=1,
        chunk_output_bytes=8,
        units_per_chunk=100,
    )


@attack(Offence.VIOLATION)
async def assigns_a_chunk_twice(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.say(Assign(index=3), Assign(index=3))
    assert await ended(opened.stream) < 2


@attack(Offence.VIOLATION)
async def assigns_a_chunk_that_is_not_there(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.say(Assign(index=CHUNKS))
    assert await ended(opened.stream) < 1


@attack(Forgiven.ALLOWED)
async def cancels_what_waits(rogue: Rogue, provider: Node) -> None:
    """The provider answers each chunk that was assigned, the cancelled ones with a receipt that costs nothing."""
    opened = await rogue.open_task(provider)
    await opened.start()
    await opened.dialogue.send(Assign(index=0), Assign(index=1), Cancel(index=1))
    assert await opened.result() == 0
    error = await opened.dialogue.expect(ChunkError)
    _, payload = task.open_receipt(
        error.receipt, network="simulated", provider=provider.peer_id, task=opened.agreement.task_id, index=1
    )
    assert payload.code == WireCode.CANCELLED
    assert payload.units == 0
    await opened.stream.reset()


@attack(Offence.UNFIT)
async def sends_a_kernel_that_the_guard_refuses(rogue: Rogue, provider: Node) -> None:
    import hashlib

    from p2pcompute_protocols.work import BlobRef

    text = b"def axpy(out, a, x, y):\n    import os\n    os.system('id')\n"
    work, blobs = axpy_work()
    digest = hashlib.sha256(text).digest()
    bad = dataclasses.replace(work, kernel=BlobRef(digest=digest, size=len(text)))
    opened = await rogue.open_task(provider, bad)
    opened.blobs = {**blobs, digest: text}
    with pytest.raises(RemoteProtocolError, match="Refused"):
        await opened.start()


@attack(Offence.UNFIT)
async def understates_what_a_chunk_writes(rogue: Rogue, provider: Node) -> None:

    work, blobs = axpy_work()
    opened = await rogue.open_task(provider, dataclasses.replace(work, chunk_output_bytes=8))
    opened.blobs = blobs
    with pytest.raises(RemoteProtocolError, match="Refused"):
        await opened.start()


# Agreements


@attack(Offence.VIOLATION)
async def opens_with_an_agreement_that_nobody_signed(rogue: Rogue, provider: Node) -> None:
    agreement = await rogue.agree(provider)
    stream = await rogue.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
    forged = bytearray(agreement.raw)
    forged[-1] ^= 1
    opened = RogueTask(rogue, agreement, stream, _REQUESTER, {})
    await opened.dialogue.send(Open(agreement=bytes(forged)))
    await refused(opened.dialogue, WireCode.BAD_SIGNATURE)


@attack(Offence.VIOLATION)
async def opens_with_an_agreement_of_somebody_else(rogue: Rogue, provider: Node) -> None:
    async with open_rogue(rogue.market, connect=(provider,)) as other:
        agreement = await other.agree(provider)
    stream = await rogue.overlay.open_stream(provider.peer_id, task.PROTOCOL_ID)
    opened = RogueTask(rogue, agreement, stream, _REQUESTER, {})
    await opened.dialogue.send(Open(agreement=agreement.raw))
    await refused(opened.dialogue, WireCode.WRONG_PEER)


@attack(Forgiven.ORDER)
async def opens_when_the_deadline_has_passed(rogue: Rogue, provider: Node) -> None:
    opened = await rogue.open_task(provider, deadline_ms=rogue.order().created_ms + 1_000)
    await trio.sleep(2)
    await opened.dialogue.send(Open(agreement=opened.agreement.raw))
    await refused(opened.dialogue, WireCode.EXPIRED)
