"""A hire: calls over a standing agreement with one provider at a time, and with another one where that is lost."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from p2pcompute.checking import SampleReport
from p2pcompute.errors import (
    BudgetError,
    ChainError,
    InsufficientFunds,
    NoProviderError,
    OverlayError,
    P2PComputeError,
    PaymentError,
    StorageError,
    TaskError,
    TaskRefused,
    TaskTimeout,
)
from p2pcompute.market import Candidate, OrderRefused
from p2pcompute.market._reasons import Reason, what_to_do
from p2pcompute_protocols.errors import ProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import owed_uusd

from ._coordinator import DISCOVERY_S, Coordinator
from ._events import (
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    TaskEvent,
    WaitingForProviders,
)
from ._link import LiarError, NoRoomNow, WaitedTooLong
from ._link_hooks import CheckedOutput, LinkHooks, one_by_one
from ._meter import units_of
from ._standing import CallQueue, PendingCall
from ._standing_link import StandingLink
from ._state import TaskRequest

__all__ = ["StandingTask"]

_log = logging.getLogger("p2pcompute.tasks")

_ATTEMPTS: Final = 2  # agreements with one provider in which nothing was done
_NOBODY_S: Final = 15.0  # without any provider, before the calls are given up
_AGAIN_S: Final = 2.0  # before somebody that had no room is asked again

Check = Callable[[PendingCall, int, memoryview], Awaitable[SampleReport]]
"""(call, number of the chunk in it, output) -> what samples said."""


@dataclass(slots=True, kw_only=True)
class StandingTask:
    """Runs the calls of one hire for this node.

    Attributes:
        request: what is hired for; its work is what each call repeats.
        check: looks at a chunk before it counts.
        emit: gets every `TaskEvent`. Chunks have the numbers of their agreement.
        ready: set when a provider is ready, or never will be.
        failure: why no more calls are made; None as long as they are.
    """

    coordinator: Coordinator
    request: TaskRequest
    check: Check
    emit: Callable[[TaskEvent], None]
    queue: CallQueue = field(default_factory=CallQueue)
    ready: trio.Event = field(default_factory=trio.Event)
    failure: P2PComputeError | None = None
    link: StandingLink | None = None
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _excluded: set[PeerId] = field(default_factory=set)
    _attempts: dict[PeerId, int] = field(default_factory=dict)
    _ask_at: dict[PeerId, float] = field(default_factory=dict)
    _reasons: dict[PeerId, str] = field(default_factory=dict)
    _last_price_pusd: tuple[int, ...] = ()  # of the last agreement, where there was one
    _agreed: int = 0
    _done: int = 0

    async def run(self) -> None:
        """Serve calls until `close`. Never raises for what providers do: calls and `failure` have it.

        Cancellation: streams close, providers stop and bill nothing more.
        """
        request = self.request
        seconds = max(0.0, (request.deadline_ms - self.coordinator.now_ms()) / 1000)
        try:
            with trio.move_on_after(seconds) as deadline:
                await self._legs()
            if deadline.cancelled_caught:
                self.fail(TaskTimeout("the deadline of this hire has passed; give more time (deadline_s=…)"))
        except P2PComputeError as error:
            self.fail(error)
        finally:
            self.ready.set()

    def fail(self, error: P2PComputeError) -> None:
        """No more calls are made, and those that are not over come to nothing."""
        self.failure = self.failure or error
        self.queue.closed = True
        self.queue.fail(error)
        self.queue.wake()

    def close(self) -> None:
        """No more calls come. Those that are not over are taken back at the provider by whoever has made them, which is
        told here; what was computed is still checked and paid."""
        self.queue.closed = True
        self.queue.fail(TaskError("the hire has ended, and this call with it; hold it open for all its calls"))
        self.queue.wake()

    @property
    def agreed(self) -> bool:
        """Whether there was an agreement."""
        return self._agreed > 0

    @property
    def done(self) -> int:
        """How many chunks were checked and handed over."""
        return self._done

    async def call(self, call: PendingCall) -> None:
        """Have a call computed.

        Raises:
            BudgetError: it could cost more than is left, and was not made.
            ChunkFailed: it failed at providers.
            TaskTimeout, TaskError, NoProviderError, PaymentError: no more calls are made.

        Cancellation: the provider is told; other calls go on.
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if self.queue.closed:
            raise TaskError("this hire has ended; hire again")
        self.queue.put(call)
        if self.link is None:
            self.queue.wake()
        else:
            self.link.nudge()
        try:
            await call.over.wait()
        except trio.Cancelled:
            call.withdraw()
            self.queue.end(call)
            await self._take_back(call)
            raise
        if call.failure is not None:
            await self._take_back(call)
            raise call.failure.with_traceback(None)

    async def _take_back(self, call: PendingCall) -> None:
        """Nobody waits for a call any more: what a provider has of it is not needed."""
        if self.link is not None:
            await self.link.withdraw(call)

    async def _legs(self) -> None:
        while not self.queue.closed:
            # The first agreement is made before the first call; one that ended is followed when there is a call for it.
            while self._agreed and self.queue.first() is None and not self.queue.closed:
                await self.queue.changed.wait()
            if not self.queue.closed:
                await self._leg(await self._candidate())

    async def _candidate(self) -> Candidate:
        """The best provider that may be asked now; waits for one."""
        since = trio.current_time()
        while True:
            found = self._affordable(self._ranked())
            if found:
                return found[0]
            now = trio.current_time()
            may_come = [at for peer, at in self._ask_at.items() if peer not in self._excluded]
            if now - since > _NOBODY_S or not (self._agreed or may_come):
                raise self._nobody()
            self.emit(WaitingForProviders(chunks=len(self.queue.open), patience_s=_NOBODY_S))
            await self.coordinator.discovery.refresh(
                kinds=self.request.requirement.kinds,
                fp=self.request.fp,
                enough=lambda: bool(self._ranked()),
                timeout_s=DISCOVERY_S,
            )
            if not self._ranked():
                await trio.sleep(min(1.0, max(0.05, min(may_come, default=now + 1.0) - now)))

    def _ranked(self) -> list[Candidate]:
        request, now = self.request, trio.current_time()
        found, reasons = self.coordinator._rank(
            request.requirement,
            units=request.work.units_per_chunk,
            fp=request.fp,
            language=request.language,
            max_price_pusd=request.max_price_pusd,
            excluded=lambda peer: (
                peer in self._excluded or self._attempts.get(peer, 0) >= _ATTEMPTS or self._ask_at.get(peer, 0.0) > now
            ),
        )
        self._reasons.update(reasons)
        return sorted(found, key=lambda candidate: candidate.peer_id in self._ask_at)

    def _affordable(self, found: list[Candidate]) -> list[Candidate]:
        """Those of whose chunks what is left of the budget pays for one at least.

        Raises:
            BudgetError: of none of them, nor of the last provider where there are none: to wait for others is no use.
        """
        left_uusd, work = self.request.budget.left_uusd, self.request.work
        if left_uusd is None:
            return found
        units = units_of(work, work.chunk_range(work.chunks - 1)[1])  # of the last chunk, which is the shortest
        prices = [candidate.option.price_pusd for candidate in found] or self._last_price_pusd
        if prices and owed_uusd(units, min(prices)) > left_uusd:
            raise BudgetError(
                f"what is left does not pay for another chunk, which takes {owed_uusd(units, min(prices)) / 1e6:.6f} "
                f"USD: {self.request.budget.shortage()} and hire again. What was paid is covered by receipts."
            )
        return [candidate for candidate in found if owed_uusd(units, candidate.option.price_pusd) <= left_uusd]

    def _nobody(self) -> TaskError | NoProviderError:
        why = "; ".join(f"…{peer[-8:]}: {reason}" for peer, reason in list(self._reasons.items())[:4])
        if not self._agreed:
            todo = what_to_do(self._reasons.values(), self.coordinator.advice())
            return NoProviderError(f"No provider took the order ({why}). {todo}")
        return TaskError(
            f"all providers are gone ({why}); what was paid is covered by receipts. Hire again when providers are back"
        )

    async def _leg(self, candidate: Candidate) -> None:
        """One agreement, from the order to its end."""
        provider = candidate.peer_id
        self._attempts[provider] = self._attempts.get(provider, 0) + 1
        try:
            await self._work_with(candidate)
            self._attempts[provider] -= 1
        except LiarError:
            pass  # below, since it may come beside another end
        except (InsufficientFunds, BudgetError, StorageError):
            raise
        except (OrderRefused, TaskRefused) as refused:
            self._reasons[provider] = Reason(str(refused), getattr(refused, "code", None))
            no_room = isinstance(refused, OrderRefused) and refused.code is WireCode.NO_CAPACITY
            if no_room or isinstance(refused, NoRoomNow):
                self._ask_at[provider] = trio.current_time() + _AGAIN_S
            else:
                self._excluded.add(provider)
            if isinstance(refused, WaitedTooLong):  # no call came for long: it may be asked as if nothing had been
                self._attempts[provider] -= 1
                self._ask_at.pop(provider, None)
            self.emit(ProviderRefused(provider=provider, reason=str(refused)))
        except (OverlayError, ProtocolError, PaymentError, ChainError) as exc:
            self._reasons[provider] = str(exc)
            if isinstance(exc, ProtocolError):
                self._excluded.add(provider)
            if not isinstance(exc, ChainError):  # that is our own endpoint
                await self.coordinator.books.failed(provider, str(exc), ban=False)
            self.coordinator.board.forget(provider)
            requeued = () if self.link is None else tuple(self.link.calls.lost(provider))
            self.emit(ProviderLost(provider=provider, reason=str(exc), requeued=requeued))
        finally:
            link, self.link = self.link, None
            if link is not None:
                if link.lie is not None:
                    with trio.CancelScope(shield=True):
                        await self._caught(link, link.lie)
                link.calls.lost(provider)
                if link.calls.done:
                    self._attempts[provider] = 0

    async def _work_with(self, candidate: Candidate) -> None:
        coordinator, request = self.coordinator, self.request
        left_uusd = request.budget.left_uusd  # earlier agreements may have used some of it
        order = replace(request, ceiling_uusd=min(request.ceiling_uusd, left_uusd or 0))
        agreement, seconds = await coordinator._dialler.agree(order, candidate, is_full=lambda: False)
        coordinator.announce(self.emit, agreement, seconds)
        reason = "cancelled"
        account = await coordinator.books.open(agreement, request.budget)
        self._agreed += 1
        self._last_price_pusd = (agreement.terms.price_pusd,)
        try:
            link = self.link = StandingLink(
                coordinator.overlay,
                agreement,
                account,
                self.queue,
                request.blobs,
                self._hooks(),
                given_uusd=request.ceiling_uusd,
            )
            await link.run()
            reason = ""
        except Exception as exc:
            reason = str(exc) or type(exc).__name__
            raise
        finally:
            with trio.CancelScope(shield=True):
                await coordinator.books.close(agreement, reason=reason)

    def _hooks(self) -> LinkHooks:
        def linked() -> StandingLink:
            assert self.link is not None  # it is what calls these
            return self.link

        def ready(provider: PeerId, ms: int) -> None:
            self.emit(ProviderReady(provider=provider, compile_ms=ms))
            self.ready.set()

        async def check(index: int, output: memoryview) -> SampleReport:
            call, chunk = linked().calls.call_of(index)
            return await self.check(call, chunk, output)

        async def done(provider: PeerId, chunks: Sequence[CheckedOutput]) -> None:
            for index, output, report in chunks:
                linked().calls.give(index, output, provider)
                self._done += 1
                self.emit(ChunkDone(provider=provider, index=index, checked=report.checked))

        def failed(provider: PeerId, index: int, code: WireCode, detail: str) -> None:
            calls = linked().calls
            if code is not WireCode.CANCELLED:
                reason = f"{code.name.lower()}: {detail}"
                self.emit(ChunkRejected(provider=provider, index=index, reason=reason))
                calls.failed(index, reason)
            calls.fail(index, provider, for_good=False)

        def paid(provider: PeerId, amount_uusd: int) -> None:
            self.request.outcome.paid(linked().agreement.task_id, amount_uusd)
            self.emit(Paid(provider=provider, paid_uusd=amount_uusd))

        return LinkHooks(
            ready=ready,
            assigned=lambda provider, index: self.emit(ChunkAssigned(provider=provider, index=index)),
            check=one_by_one(check) if self.request.check.per_chunk else None,
            done=done,
            failed=failed,
            paid=paid,
            changed=lambda: self.queue.changed,
            sample_every=self.request.sample_every,
        )

    async def _caught(self, link: StandingLink, lie: LiarError) -> None:
        """Nothing of a liar is kept in calls that are not over; those that are were given away."""
        provider = lie.provider
        self._excluded.add(provider)
        self._reasons[provider] = str(lie)
        self.coordinator.board.forget(provider)
        revoked = link.calls.revoke(provider)
        await self.coordinator.books.failed(provider, str(lie), ban=True)
        for received in link.rejected:
            await link.account.reject(received.receipt, received.payload, str(lie))
        self.emit(
            LiarCaught(
                provider=provider,
                index=lie.index,
                mismatched=lie.report.mismatched,
                revoked=tuple(revoked),
                paid_uusd=link.account.paid_uusd,
                evidence=None,
            )
        )
