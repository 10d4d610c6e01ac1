"""Who computes and compiles when several want to, and what becomes of the turn of somebody who has left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from p2pcompute.errors import DiskFull, P2PComputeError, StreamError, WorkerTimeout
from p2pcompute.identity import NodeKey
from p2pcompute.market import OrderRefused, _bidding
from p2pcompute.node import Node
from p2pcompute.payments import CreditPolicy
from p2pcompute.tasks import _provider, _provider_session
from p2pcompute.tasks._held_inputs import HeldInputs
from p2pcompute.tasks._inputs import SHARED_BYTES
from p2pcompute.tasks._places import Guest
from p2pcompute.tasks._refusing import RefuseError
from p2pcompute.tasks._turns import Turns
from p2pcompute.testing import InlineWorkers, virtual_clock_ms
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
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
)

from ..market._harness import Market, Z, compute, in_memory, until, virtually
from ..market._rogues import Rogue, RogueTask, axpy_work, open_rogue


class _FirstCome(Turns):
    """One queue for all, and no turn is kept for anybody."""

    def turn(self, *, known: bool) -> AbstractAsyncContextManager[None]:
        return super().turn(known=False)


class _SlowFor(InlineWorkers):
    """Chunks of some tenants never end, or their compilations take a minute."""

    tenants: frozenset[str] = frozenset()
    slow_compile_s = 0.0
    killed = 0

    @asynccontextmanager
    async def session(self, *, tenant: str | None = None, keep: Any = bool) -> Any:  # type: ignore[override]
        async with super().session(tenant=tenant) as session:
            if tenant in self.tenants:
                compile_ = session.compile

                async def hang(_first: int, _blocks: int, *, timeout_s: float, **_: Any) -> Any:
                    await trio.sleep(timeout_s)
                    raise WorkerTimeout("it ran past its limit")

                async def slow(*args: Any) -> Any:
                    try:
                        await trio.sleep(self.slow_compile_s)
                    except trio.Cancelled:
                        self.killed += 1
                        raise
                    return await compile_(*args)

                session.run_blocks = hang  # type: ignore[method-assign]
                session.compile = slow  # type: ignore[method-assign]
            yield session


def role_of(provider: Node) -> Any:
    assert provider.provider is not None
    return provider.provider


@asynccontextmanager
async def hogs(
    market: Market, provider: Node, workers: _SlowFor, many: int, *, chunks: bool
) -> AsyncGenerator[list[str]]:
    """Fresh identities that hold a slot, or a turn to compile, for as long as they get it, over and over."""
    refusals: list[str] = []

    async def hold(rogue: Rogue) -> None:
        while True:
            with suppress(RemoteProtocolError, StreamError):
                try:
                    work, blobs = axpy_work(units_per_chunk=75_000_000 if chunks else 10_000)
                    opened = await rogue.open_task(provider, work)
                except OrderRefused as exc:
                    refusals.append(str(exc))
                    work, blobs = axpy_work(units_per_chunk=10_000)
                    opened = await rogue.open_task(provider, work)
                opened.blobs = blobs
                await opened.send_inputs()
                if chunks and isinstance(await opened.dialogue.expect(Ready, Refused, stall_s=None), Ready):
                    await opened.dialogue.send(Assign(index=0))
                    await opened.dialogue.expect(ChunkError, Refused, stall_s=None)
                elif not chunks:
                    await opened.dialogue.expect(Ready, Refused, stall_s=None)
                await opened.stream.reset()
            await trio.sleep(0.3)

    async with AsyncExitStack() as stack:
        rogues = [
            await stack.enter_async_context(open_rogue(market, connect=(provider,), at=f"198.51.{number}.9"))
            for number in range(many)
        ]
        workers.tenants = frozenset(rogue.key.peer_id for rogue in rogues)
        async with trio.open_nursery() as nursery:
            for rogue in rogues:
                nursery.start_soon(hold, rogue)
            yield refusals
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["chunks", "compilations"])
@pytest.mark.parametrize("defended", [False, True])
def test_who_has_paid_does_not_wait_behind_fresh_identities(
    what: str, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = what == "chunks"
    if not defended:
        monkeypatch.setattr(_bidding, "_NEWCOMER_CHUNK_MS", _bidding._CHUNK_MAX_MS)

    async def scenario(market: Market) -> None:
        workers = _SlowFor(chunk_s=0.1, compile_s=0.5)
        provider = await market.provider(slots=1, workers=workers, credit=CreditPolicy(known_uusd=1))
        tasks = role_of(provider).tasks
        if not defended:
            tasks.slots, tasks.compilers = _FirstCome(1), _FirstCome(1)
        customer = await market.node(connect=(provider,))
        assert np.array_equal(await compute(customer), Z)
        assert await role_of(provider).credit.is_known(customer.peer_id)
        workers.slow_compile_s = 0.5 if chunks else 59.0
        async with hogs(market, provider, workers, 3, chunks=chunks) as refusals:
            await trio.sleep(5)
            took_s = []
            for _ in range(3):
                began = trio.current_time()
                with suppress(P2PComputeError):
                    assert np.array_equal(await compute(customer, deadline_s=900), Z)
                took_s.append(trio.current_time() - began)
        if defended:
            assert max(took_s) < (40 if chunks else 10)
            assert bool(refusals) == chunks
        else:
            assert max(took_s) > 100

    in_memory(scenario)


def test_a_newcomers_chunk_may_take_as_long_as_what_it_has_paid_for() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="3600 USD")  # 1,000 pico-USD a second and milli of the device
        async with open_rogue(market, connect=(provider,)) as rogue:

            async def limit_ms(units: int) -> int:
                work, _ = axpy_work(units_per_chunk=units)
                agreement = await rogue.agree(provider, work, max_price_pusd=10**6, ceiling_uusd=10**9)
                return agreement.terms.chunk_timeout_ms

            score = role_of(provider).device.score_milli
            assert await limit_ms(1) == 20_000
            assert await limit_ms(20_000 * score) == 30_000
            with pytest.raises(OrderRefused, match="use more chunks") as caught:
                await limit_ms(31_000 * score)
            assert caught.value.code == WireCode.OVERSIZED
            proven_ms: int | None = 10_000

            async def proven(_peer: PeerId) -> int | None:
                return proven_ms

            role_of(provider).negotiations.policy.proven_ms = proven
            assert await limit_ms(31_000 * score) == 40_000
            proven_ms = None
            assert await limit_ms(31_000 * score) == 248_000

    in_memory(scenario)


def test_time_is_proven_by_money() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        role = role_of(provider)
        customer = await market.node(connect=(provider,))
        assert await role._proven_ms(customer.peer_id) == 0
        assert np.array_equal(await compute(customer), Z)
        history = await provider.services.ledger.peer(customer.peer_id)
        assert history is not None
        proven_ms = await role._proven_ms(customer.peer_id)
        assert proven_ms is not None
        assert 0 <= proven_ms == history.paid_uusd * 10**6 // role.price_pusd // role.device.score_milli
        role.credit.policy = CreditPolicy(known_uusd=history.paid_uusd)
        assert await role._proven_ms(customer.peer_id) is None

    in_memory(scenario)


# Turns by themselves


def _order(turns: Turns, comers: str) -> str:
    """In which order those who come get their turns, of a second each; capital letters are known."""
    had = ""

    async def come(name: str) -> None:
        nonlocal had
        async with turns.turn(known=name.isupper()):
            had += name
            await trio.sleep(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for name in comers:
                nursery.start_soon(come, name)
                await trio.testing.wait_all_tasks_blocked()
        assert (turns.borrowed_tokens, turns.waiting) == (0, 0)

    virtually(main)
    return had


@pytest.mark.parametrize(
    ("turns", "comers", "order"),
    [
        (Turns(1), "abABc", "aABbc"),
        (Turns(1), "AabBc", "ABabc"),
        (Turns(2), "abcdAB", "abABcd"),
        (_FirstCome(1), "abABc", "abABc"),
    ],
)
def test_known_peers_are_first_in_the_order_in_which_they_came(turns: Turns, comers: str, order: str) -> None:
    assert _order(turns, comers) == order


def test_a_free_turn_is_taken_at_once_and_nobody_who_waits_is_passed() -> None:
    async def main() -> None:
        turns, had = Turns(1), ""

        async def come(name: str) -> None:
            nonlocal had
            async with turns.turn(known=False):
                had += name

        async with trio.open_nursery() as nursery:
            async with turns.turn(known=False):
                nursery.start_soon(come, "a")
                await trio.testing.wait_all_tasks_blocked()
            # It is free, and "a" has not run since: whoever comes now is behind it.
            async with turns.turn(known=False):
                had += "b"
        assert had == "ab"
        with trio.CancelScope() as scope:
            scope.cancel()
            async with turns.turn(known=True):
                raise AssertionError("it was cancelled")
        assert (turns.borrowed_tokens, turns.waiting) == (0, 0)

    virtually(main)


def test_turns_that_are_apart_are_not_waited_for() -> None:
    async def main() -> None:
        turns = Turns(1, apart=True)
        async with turns.turn(known=False), turns.turn(known=True):
            assert turns.borrowed_tokens == 2
            for known in (False, True):
                with trio.move_on_after(10) as scope:
                    async with turns.turn(known=known):
                        raise AssertionError("two of a kind")
                assert scope.cancelled_caught
            assert turns.waiting == 0

    virtually(main)


def test_newcomers_wait_a_little_for_a_known_peers_next_turn() -> None:
    async def main() -> None:
        turns = Turns(1, linger_s=1.0)
        async with turns.turn(known=True):
            pass
        began = trio.current_time()
        async with turns.turn(known=False):
            assert trio.current_time() - began == 1.0
            with trio.move_on_after(5):  # who leaves the queue is in nobody's way
                async with turns.turn(known=True):
                    raise AssertionError
        began = trio.current_time()
        async with turns.turn(known=False):
            assert trio.current_time() == began

    virtually(main)


# What is charged to whom


@pytest.mark.parametrize("capped", [True, False])
def test_who_asked_does_not_pay_for_a_machine_that_slept(capped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider stands still for ten minutes in the middle of a chunk."""

    async def sleeps(_first: int, _blocks: int, *, timeout_s: float, **_: Any) -> Any:
        with trio.CancelScope(shield=True):  # nothing in a stopped process runs
            await trio.sleep(600)
        raise WorkerTimeout("it did not answer in time")

    class Laptop(InlineWorkers):
        armed = False

        @asynccontextmanager
        async def session(self, *, tenant: str | None = None, keep: Any = bool) -> Any:  # type: ignore[override]
            async with super().session(tenant=tenant) as session:
                if self.armed:
                    self.armed = False
                    session.run_blocks = sleeps  # type: ignore[method-assign]
                yield session

    if not capped:
        real = _provider_session.Meter
        monkeypatch.setattr(_provider_session, "Meter", lambda score_milli, _limit_s: real(score_milli, 10**9))

    async def scenario(market: Market) -> None:
        workers = Laptop(chunk_s=0.1)
        provider = await market.provider(workers=workers, credit=CreditPolicy(known_uusd=1))
        customer = await market.node(connect=(provider,))
        assert np.array_equal(await compute(customer), Z)
        workers.armed = True
        role = role_of(provider)
        costs: list[int] = []
        settle = role.credit.settle

        async def watched(*args: Any, cost_pusd: int, **kwargs: Any) -> None:
            costs.append(cost_pusd)
            await settle(*args, cost_pusd=cost_pusd, **kwargs)

        role.credit.settle = watched
        with suppress(P2PComputeError):
            await compute(customer, deadline_s=60)
        await until(lambda: not role.tasks.active, within_s=700)
        second_pusd = 1_000 * role.device.score_milli * role.price_pusd
        assert max(costs) == (20 if capped else 600) * second_pusd

    in_memory(scenario)


def test_a_chunk_whose_receipt_can_not_be_stored_is_charged() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=10.0))
        ledger = provider.services.ledger
        real = ledger.record_receipt

        async def full(*_args: Any, **_kwargs: Any) -> bytes:
            raise DiskFull("no room")

        ledger.record_receipt = full  # type: ignore[method-assign]
        async with open_rogue(market, connect=(provider,)) as rogue:
            work, blobs = axpy_work(units_per_chunk=2_000_000)
            opened = await rogue.open_task(provider, work)
            opened.blobs = blobs
            await opened.start()
            await opened.dialogue.send(Assign(index=0))
            assert (await opened.dialogue.expect(Refused)).code == WireCode.INTERNAL
            await until(lambda: not role_of(provider).tasks.active)
        ledger.record_receipt = real  # type: ignore[method-assign]
        used_pusd = await ledger.credit_used_pusd(virtual_clock_ms() // 3_600_000)
        role = role_of(provider)
        assert used_pusd >= 10_000 * role.device.score_milli * role.price_pusd

    in_memory(scenario)


def test_a_worker_is_kept_for_who_has_paid() -> None:
    kept: list[tuple[str | None, bool]] = []

    class Watched(InlineWorkers):
        @asynccontextmanager
        async def session(self, *, tenant: str | None = None, keep: Any = bool) -> Any:  # type: ignore[override]
            async with super().session(tenant=tenant) as session:
                yield session
            kept.append((tenant, keep()))

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=Watched(chunk_s=0.1))
        customer = await market.node(connect=(provider,))
        assert np.array_equal(await compute(customer), Z)
        async with open_rogue(market, connect=(provider,)) as rogue:
            opened = await rogue.open_task(provider)
            await opened.start()
            await opened.dialogue.send(Assign(index=0))
            await opened.result()
            await opened.dialogue.send(Finish(code=0, detail=""))
            await opened.dialogue.expect(Closed)
        assert kept == [(customer.peer_id, True), (rogue.key.peer_id, False)]

    in_memory(scenario)


def test_the_inputs_of_newcomers_are_bounded_together() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=2)
        tasks = role_of(provider).tasks
        async with AsyncExitStack() as stack:
            rogues = [await stack.enter_async_context(open_rogue(market, connect=(provider,))) for _ in range(3)]
            # Who only announces inputs takes nothing from others.
            idle = await rogues[2].open_task(provider)
            await idle.dialogue.send(Open(agreement=idle.agreement.raw))
            await idle.dialogue.expect(Opened)
            first = await rogues[0].open_task(provider)
            size = sum(first.connection.blob_sizes.values())
            tasks.newcomers_bytes = 2 * size - 1
            await first.start()
            assert tasks.newcomers_hold == size
            second = await rogues[1].open_task(provider)
            await second.dialogue.send(Open(agreement=second.agreement.raw))
            assert (await second.dialogue.expect(Refused)).code == WireCode.NO_CAPACITY
            with suppress(StreamError):
                for digest, data in idle.blobs.items():
                    await idle.dialogue.send(BlobStart(digest=digest, size=len(data)), BlobData(data=data))
            assert (await idle.dialogue.expect(Refused)).code == WireCode.NO_CAPACITY
            await first.dialogue.send(Finish(code=0, detail=""))
            await first.dialogue.expect(Closed)
            await until(lambda: not tasks.newcomers_hold)
            third = await rogues[1].open_task(provider)
            await third.start()
            await third.stream.reset()
            tasks.newcomers_bytes = size - 1
            large = await rogues[0].open_task(provider)
            await large.dialogue.send(Open(agreement=large.agreement.raw))
            assert (await large.dialogue.expect(Refused)).code == WireCode.OVERSIZED

    in_memory(scenario)


def test_a_newcomer_has_few_large_inputs_and_a_known_peer_as_many_as_it_likes() -> None:
    async def scenario(market: Market) -> None:
        tasks = role_of(await market.provider()).tasks
        peer = NodeKey.generate().peer_id
        newcomer, proven = [Guest(peer=peer, subnet="a", known=known) for known in (False, True)]
        sizes = [SHARED_BYTES] * 8 + [SHARED_BYTES - 1]
        with HeldInputs(tasks, newcomer, sizes) as held:
            held.add(5)
            assert tasks.newcomers_hold == 5
        assert tasks.newcomers_hold == 0
        sizes.append(SHARED_BYTES)
        with pytest.raises(RefuseError) as caught, HeldInputs(tasks, newcomer, sizes):
            pass
        assert caught.value.message.code == WireCode.OVERSIZED
        with HeldInputs(tasks, proven, sizes) as held:
            held.add(2**40)
            assert tasks.newcomers_hold == 0

    in_memory(scenario)


# Who has left


class _Blind(_provider_session.Session):
    """Looks at its requester only once it is ready, as if nobody ever left before."""

    async def _read(self) -> None:
        await self._ready()
        await super()._read()

    async def _watch_presence(self) -> None:
        await self._ready()
        await super()._watch_presence()

    async def _ready(self) -> None:
        while self.connection.state is _provider_session.TaskState.SETUP:  # noqa: ASYNC110
            await trio.sleep(0.1)


async def _resets(_market: Market, opened: RogueTask) -> None:
    await opened.stream.reset()


async def _vanishes(market: Market, opened: RogueTask) -> None:
    market.memory.kill(opened.rogue.key.peer_id)


async def _finishes(_market: Market, opened: RogueTask) -> None:
    await opened.dialogue.send(Finish(code=0, detail=""))
    await opened.dialogue.expect(Closed)


@pytest.mark.parametrize("leave", [_resets, _vanishes, _finishes])
@pytest.mark.parametrize("defended", [False, True])
def test_nobody_compiles_for_who_has_left(leave: Any, defended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not defended:
        monkeypatch.setattr(_provider, "Session", _Blind)

    async def scenario(market: Market) -> None:
        workers = _SlowFor(compile_s=0.5)
        workers.slow_compile_s = 59.0
        provider = await market.provider(slots=1, workers=workers)
        tasks = role_of(provider).tasks
        async with AsyncExitStack() as stack:
            opened = []
            for _ in range(3):
                rogue = await stack.enter_async_context(open_rogue(market, connect=(provider,)))
                workers.tenants |= {rogue.key.peer_id}
                opened.append(await rogue.open_task(provider))
                await opened[-1].send_inputs()
            await until(lambda: tasks.compilers.waiting == 2)
            async with trio.open_nursery() as nursery:
                for one in opened:
                    nursery.start_soon(leave, market, one)
                await trio.sleep(3)
                held = tasks.places.taken
                nursery.cancel_scope.cancel()
            if defended:
                assert (held, tasks.compilers.borrowed_tokens, tasks.compilers.waiting) == (0, 0, 0)
                assert workers.killed == 1
            else:
                assert (held, workers.killed) == (3, 0)
                await trio.sleep(200)

    in_memory(scenario)


# Chunks that are cancelled before they begin


def test_answers_that_cost_nobody_anything_are_not_kept_and_not_without_end() -> None:
    """A newcomer with one unpaid chunk assigns and cancels, over and over."""

    async def scenario(market: Market) -> None:
        provider = await market.provider(slots=1)
        connection = provider.services.ledger._database.connection

        def rows() -> int:
            return int(connection.execute("SELECT count(*) FROM events").fetchone()[0])

        async with open_rogue(market, connect=(provider,)) as rogue:
            opened = await rogue.open_task(provider)
            await opened.start()
            await opened.dialogue.send(Assign(index=0))
            await opened.result()
            await until(lambda: role_of(provider).tasks.places.taken == 1)
            before, answers = rows(), 0
            while answers < 1_000:
                await opened.dialogue.send(*(m for i in range(1, 16) for m in (Assign(index=i), Cancel(index=i))))
                for _ in range(15):
                    answer = await opened.dialogue.expect(ChunkError, Refused)
                    if isinstance(answer, Refused):
                        break
                    answers += 1
                if isinstance(answer, Refused):
                    assert answer.code == WireCode.STALLED
                    break
            assert answers == 256 + 8
            assert rows() <= before + 2  # the agreement's end, and what its chunk was charged too much

    in_memory(scenario)
