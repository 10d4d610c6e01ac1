"""What a stranger can make a provider compute, or compile, for nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute._books import _ProviderAccount
from p2pcompute._provider_events import WatchedBooks
from p2pcompute.errors import TaskError, WorkerDied
from p2pcompute.events import Agreed
from p2pcompute.payments import CreditBook, CreditPolicy
from p2pcompute.testing import InlineWorkers, WorkerFaults, virtual_clock_ms
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.task import (
    Assign,
    ChunkError,
    Closed,
    Finish,
    Ready,
    Refused,
    open_receipt,
)

from ..market._harness import Market, Watch, Z, compute, in_memory, until
from ..market._rogues import NETWORK, Rogue, RogueTask, open_rogue
from ._attacks import role_of


class _KeptCharges(CreditBook):
    """A credit book without the defence: what was charged at first is all, and whoever leaves has it back."""

    async def settle(self, peer: PeerId, *, subnet: str, charged_pusd: int, cost_pusd: int) -> None:
        if cost_pusd < 20_000_000:
            await self.release(peer, pusd=charged_pusd)


async def _times_out(opened: RogueTask) -> None:
    await opened.dialogue.expect(ChunkError, stall_s=None)


async def _finishes(opened: RogueTask) -> None:
    await trio.sleep(19)
    await opened.dialogue.send(Finish(code=0, detail=""))
    await opened.dialogue.expect(Closed)


async def _leaves(opened: RogueTask) -> None:
    await trio.sleep(19)


@pytest.mark.parametrize("end", [_times_out, _finishes, _leaves])
@pytest.mark.parametrize("defended", [False, True])
def test_a_stranger_has_so_much_time_and_no_more(end: Callable[[RogueTask], Awaitable[None]], defended: bool) -> None:
    """Chunks that never end are computed for their time limit, and each has a result of nothing."""

    async def scenario(market: Market) -> None:
        # 72 s of a reference core at 0.05 USD an hour
        faults = WorkerFaults(hangs_at=frozenset({0}))
        provider = await market.provider(credit=CreditPolicy(peer_uusd=1_000), workers=market.workers(faults=faults))
        role = role_of(provider)
        if not defended:
            books = role.tasks.books
            assert isinstance(books, WatchedBooks)
            books._books._credit = _KeptCharges(  # type: ignore[attr-defined]
                ledger=provider.services.ledger, policy=role.options.credit, clock_ms=virtual_clock_ms
            )
        used_s = 0.0
        async with open_rogue(market, connect=(provider,)) as rogue:
            for _ in range(16):
                opened = await rogue.open_task(provider)
                await opened.send_inputs()
                if isinstance(await opened.dialogue.expect(Ready, Refused), Refused):
                    break
                began = trio.current_time()
                await opened.dialogue.send(Assign(index=0))
                await end(opened)
                used_s += trio.current_time() - began
                await opened.stream.reset()
                await until(lambda: not role.tasks.active)
        assert (60 < used_s < 100) if defended else used_s > 300

    in_memory(scenario)


@pytest.mark.parametrize("defended", [False, True])
def test_compiling_is_neither_free_nor_beside_the_slots(defended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes long to compile, in each task that a stranger may have."""
    if not defended:

        async def nothing(*_args: Any, **_kwargs: Any) -> None:
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(_ProviderAccount, "begin_compile", nothing)
        monkeypatch.setattr(_ProviderAccount, "end_compile", nothing)

    async def scenario(market: Market) -> None:
        workers = _CountedWorkers(compile_s=50.0)
        provider = await market.provider(credit=CreditPolicy(peer_uusd=4_000), workers=workers)
        if not defended:
            role_of(provider).tasks.compilers.total = 1_000
            role_of(provider).tasks._compiling = _LocksForNobody()
        ends: list[bool] = []

        async def compile_once(rogue: Rogue) -> None:
            opened = await rogue.open_task(provider)
            await opened.send_inputs()
            message = await opened.dialogue.expect(Ready, Refused, stall_s=None)
            ends.append(isinstance(message, Ready))
            if isinstance(message, Refused):
                assert message.code == WireCode.CREDIT_EXHAUSTED
            await opened.stream.reset()
            await trio.sleep(0.1)

        async with open_rogue(market, connect=(provider,)) as rogue, trio.open_nursery() as nursery:

            async def again_and_again() -> None:
                for _ in range(5):
                    await compile_once(rogue)

            nursery.start_soon(again_and_again)
            nursery.start_soon(again_and_again)
        assert workers.most == (1 if defended else 2)
        # 695 micro-USD each; the last one is only charged two seconds before it begins
        assert ends.count(True) == (6 if defended else 10)

    in_memory(scenario)


class _FailsToCompile(InlineWorkers):
    """Compiles nothing any more once `fails` is set."""

    fails = False

    @asynccontextmanager
    async def session(self, *, tenant: str | None = None, keep: Any = bool) -> Any:  # type: ignore[override]
        async with super().session(tenant=tenant) as session:
            compile_ = session.compile

            async def failing(*args: Any) -> Any:
                if self.fails:
                    raise WorkerDied("the worker crashed with SIGSEGV")
                return await compile_(*args)

            session.compile = failing  # type: ignore[method-assign]
            yield session


_BOMBS: dict[str, tuple[Callable[[Market], InlineWorkers], WireCode, str, float]] = {
    "no end": (lambda market: market.workers(compile_s=1e6), WireCode.TIMED_OUT, "over 60 s to compile", 60),
    "a crash": (lambda _: _FailsToCompile(), WireCode.EXECUTION_FAILED, "crashed with SIGSEGV", 0),
}


@pytest.mark.parametrize("kind", _BOMBS)
def test_a_compilation_that_fails_leaves_a_receipt_on_both_sides(kind: str) -> None:
    """It says why, that nobody pays, and it is the same bytes at both; the node compiles for others as before."""
    make, code, words, at_s = _BOMBS[kind]

    async def scenario(market: Market) -> None:
        workers = make(market)
        if isinstance(workers, _FailsToCompile):
            workers.fails = True
        provider = await market.provider(workers=workers)
        requester = await market.node(connect=(provider,))
        watch, began = Watch(), trio.current_time()
        with pytest.raises(TaskError, match=words):
            await compute(requester, on_event=watch)
        assert at_s <= trio.current_time() - began < at_s + 30  # and then nobody else is found
        (agreed,) = watch.of(Agreed)
        rows = [await node.services.ledger.receipts(agreed.task) for node in (requester, provider)]
        for (row,) in rows:
            assert (row.index, row.code, row.units, row.pusd) == (0, code, 0, 0)
            _, payload = open_receipt(
                row.envelope, network=NETWORK, provider=provider.peer_id, task=agreed.task, index=0
            )
            assert words in str(payload.detail)
        assert rows[0][0].envelope == rows[1][0].envelope
        # The time is the requester's, out of what a newcomer may use; and the next one's work is done.
        assert await provider.services.ledger.credit_used_pusd(virtual_clock_ms() // 3_600_000) > 0
        workers.compile_s, workers.chunk_s = 0.5, 0.1
        if isinstance(workers, _FailsToCompile):
            workers.fails = False
        assert np.array_equal(await compute(await market.node(connect=(provider,))), Z)

    in_memory(scenario)


def test_a_worker_that_is_lost_and_can_not_be_had_back_leaves_a_receipt_for_the_next_chunk() -> None:
    async def scenario(market: Market) -> None:
        workers = _FailsToCompile(faults=WorkerFaults(dies_at=frozenset({0})))
        provider = await market.provider(workers=workers)
        async with open_rogue(market, connect=(provider,)) as rogue:
            opened = await rogue.open_task(provider)
            await opened.send_inputs()
            await opened.dialogue.expect(Ready)
            workers.fails = True
            await opened.dialogue.send(Assign(index=0), Assign(index=5))
            assert [(await opened.dialogue.expect(ChunkError)).index for _ in range(2)] == [0, 5]
            refused = await opened.dialogue.expect(Refused)
            assert refused.code == WireCode.EXECUTION_FAILED
            rows = await provider.services.ledger.receipts(opened.agreement.task_id)
            assert [(row.index, row.code) for row in rows] == [(0, 21), (5, 21)]

    in_memory(scenario)


class _LocksForNobody(dict[PeerId, trio.Lock]):
    """Gives each who asks a lock of its own."""

    def setdefault(self, _peer: PeerId, default: Any = None) -> trio.Lock:
        assert isinstance(default, trio.Lock)
        return default


class _CountedWorkers(InlineWorkers):
    """Counts how many compile at once."""

    now = 0
    most = 0

    @asynccontextmanager
    async def session(self, *, tenant: str | None = None, keep: Any = bool) -> Any:  # type: ignore[override]
        async with super().session(tenant=tenant) as session:
            compile_ = session.compile

            async def counted(*args: Any) -> Any:
                self.now += 1
                self.most = max(self.most, self.now)
                try:
                    return await compile_(*args)
                finally:
                    self.now -= 1

            session.compile = counted  # type: ignore[method-assign]
            yield session
