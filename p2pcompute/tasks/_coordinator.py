"""The requester's coordinator: agrees with the best few providers, spreads chunks, replaces who fails."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.checking import SampleReport
from p2pcompute.errors import (
    BudgetError,
    ChainError,
    ChunkFailed,
    DialError,
    ExecutionError,
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
from p2pcompute.market import AdBoard, Candidate, Discovery, OrderRefused, negotiate, rank
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import ProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms, owed_uusd
from p2pcompute_protocols.negotiation import Agreement, BidPayload, CheckPolicy, OrderPayload, Requirement
from p2pcompute_protocols.work import ChunkWork

from ._api import RequesterBooks
from ._events import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    TaskEvent,
)
from ._link import LiarError, Link, LinkHooks, WaitedTooLong
from ._scheduler import ChunkScheduler
from ._work import chunk_bytes

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["DISCOVERY_S", "HOW_TO_GET_ONE", "Coordinator", "Deliver", "TaskRequest"]

_log = logging.getLogger("p2pcompute.tasks")

DISCOVERY_S: Final = 1.5
_ORDER_LIFETIME_MS: Final = 60_000
_ATTEMPTS: Final = 2  # agreements with one provider, when the earlier one broke
_NOBODY_S: Final = 15.0  # without any provider, before the task is given up
_FAILING_S: Final = 2.0  # the same where a chunk has failed at several: others are hardly going to come for it
_CHUNK_FAILURES: Final = 2  # providers at which a chunk may fail before the task does
_DIAL_S: Final = 10.0
_BUSY_S: Final = 1.0
_CHUNK_MOST_MS: Final = 30 * 60_000  # that a bid may ask for one chunk

HOW_TO_GET_ONE: Final = (
    "Start one here with `p2pcompute up`, or point at a network with a provider: p2p.open_node(bootstrap=[…]) or "
    "P2PCOMPUTE_BOOTSTRAP. No money has moved."
)

Deliver = Callable[[int, bytes, PeerId], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What is to be done and what it may cost."""

    work: ChunkWork
    blobs: Mapping[bytes, bytes]
    requirement: Requirement
    max_price_pusd: int
    ceiling_uusd: int
    check: CheckPolicy
    fp: str
    language: str
    deadline_ms: int
    max_providers: int = 8


@dataclass(slots=True, kw_only=True)
class _State:
    scheduler: ChunkScheduler
    deliver: Deliver
    check: Callable[[int, bytes], Awaitable[SampleReport]]
    links: dict[PeerId, Link | None] = field(default_factory=dict)  # None while it is negotiated
    attempts: dict[PeerId, int] = field(default_factory=dict)
    excluded: set[PeerId] = field(default_factory=set)
    reasons: dict[PeerId, str] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    scopes: dict[PeerId, trio.CancelScope] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)  # why a chunk failed last
    fatal: P2PComputeError | None = None
    failed_at: dict[int, set[PeerId]] = field(default_factory=dict)  # whatever became of them since
    suspects: set[int] = field(default_factory=set)  # chunks that failed at several providers
    look_at: float = 0.0  # when the board is ranked next
    agreed: int = 0

    def wake(self) -> None:
        event, self.changed = self.changed, trio.Event()
        event.set()

    def let_go(self) -> None:
        """End the links that are not ready: nothing is owed there, and they may take long or for ever."""
        for provider, link in self.links.items():
            if (link is None or not link.ready) and provider in self.scopes:
                self.scopes[provider].cancel()


@dataclass(slots=True, kw_only=True)
class Coordinator:
    """Runs tasks for this node. `emit` gets every `TaskEvent`; it must not block."""

    overlay: Overlay
    network: str
    signer: Signer
    chain: ChainTerms
    binding: Callable[[], SignerBinding]
    board: AdBoard
    discovery: Discovery
    books: RequesterBooks
    now_ms: Callable[[], int]
    emit: Callable[[TaskEvent], None]
    is_banned: Callable[[PeerId], bool] = lambda _: False

    async def candidates(
        self, requirement: Requirement, *, units: int, fp: str, language: str, max_price_pusd: int, wanted: int
    ) -> list[Candidate]:
        """The providers that fit, best first.

        Raises:
            NoProviderError: nobody does, after at most `DISCOVERY_S` seconds of asking; says why and what to do.
        """

        def look() -> tuple[list[Candidate], dict[PeerId, str]]:
            return rank(
                self.board.entries(),
                requirement,
                units=units,
                fp=fp,
                language=language,
                chain=self.chain,
                max_price_pusd=max_price_pusd,
                excluded=lambda peer: peer == self.signer.peer_id or self.is_banned(peer),
            )

        found, reasons = look()
        if len(found) < wanted:
            await self.discovery.refresh(
                kinds=requirement.kinds, fp=fp, enough=lambda: len(look()[0]) >= wanted, timeout_s=DISCOVERY_S
            )
            found, reasons = look()
        if not found:
            seen = "; ".join(f"{peer[:16]}…: {why}" for peer, why in list(reasons.items())[:4])
            known = f"{len(reasons)} known, none fits ({seen})" if reasons else "none is known"
            raise NoProviderError(f"No provider fits this order: {known}. {HOW_TO_GET_ONE}")
        return found

    async def run(
        self,
        request: TaskRequest,
        *,
        deliver: Deliver,
        check: Callable[[int, bytes], Awaitable[SampleReport]],
    ) -> None:
        """Compute all chunks of `request`.

        `deliver` gets each checked chunk (index, output bytes, provider); the same index comes again when the
        provider that computed it was later caught lying: the newer one counts.

        Raises:
            NoProviderError: nobody took the order; no money has moved.
            ChunkFailed: a chunk failed at several providers; the receipts say why.
            TaskTimeout: the deadline passed. TaskError: all providers are gone.

        Cancellation: streams close, providers stop and bill nothing more; what was accepted is settled with the
        vouchers that were already sent.
        """
        state = _State(scheduler=ChunkScheduler(request.work.chunks), deliver=deliver, check=check)
        seconds = (request.deadline_ms - self.now_ms()) / 1000
        with trio.move_on_after(seconds) as deadline:
            async with trio.open_nursery() as nursery:
                await self._manage(request, state, nursery)
        if deadline.cancelled_caught and not state.scheduler.is_complete:
            raise TaskTimeout(
                f"{state.scheduler.done} of {request.work.chunks} chunks were done when the deadline passed; "
                "give more time (deadline_s=…) or more providers (max_providers=…)"
            )
        if state.fatal is not None:
            raise state.fatal
        self.requeued = state.scheduler.requeued

    requeued: int = 0

    async def _manage(self, request: TaskRequest, state: _State, nursery: trio.Nursery) -> None:
        """Keep as many links as are wanted until all chunks are done and every link has ended.

        A link's last check may still find a lie and take back what was done, so the end is only where both hold.
        """
        stuck_since: float | None = None
        while state.fatal is None and (state.links or not state.scheduler.is_complete):
            changed = state.changed
            if state.scheduler.is_complete:
                state.let_go()
                await changed.wait()
                continue
            now = trio.current_time()
            found: list[Candidate] = []
            if len(state.links) < request.max_providers and (now >= state.look_at or not state.links):
                state.look_at = now + _BUSY_S  # ranking a full board for each chunk would cost more than the chunk
                found = self._fresh(request, state)
            for candidate in found[: request.max_providers - len(state.links)]:
                state.links[candidate.peer_id] = None
                state.attempts[candidate.peer_id] = state.attempts.get(candidate.peer_id, 0) + 1
                nursery.start_soon(self._work_with, request, state, candidate)
            await self._question_failures(request, state)
            orphans = state.scheduler.orphans(state.links)
            if not orphans:
                stuck_since = None
            else:
                stuck_since = trio.current_time() if stuck_since is None else stuck_since
                nobody = not state.links and not state.agreed
                failing = not state.links and any(len(at) >= _CHUNK_FAILURES for at in state.failed_at.values())
                if nobody or trio.current_time() - stuck_since > (_FAILING_S if failing else _NOBODY_S):
                    state.fatal = self._nobody(request, state, orphans)
                    break
                await self.discovery.refresh(
                    kinds=request.requirement.kinds,
                    fp=request.fp,
                    enough=lambda: bool(self._fresh(request, state)),
                    timeout_s=DISCOVERY_S,
                )
            with trio.move_on_after(_BUSY_S):
                await changed.wait()
        if state.fatal is not None:
            nursery.cancel_scope.cancel()

    async def _question_failures(self, request: TaskRequest, state: _State) -> None:
        """A chunk that failed at several providers: does it at ours? If not, it was they who failed."""
        while state.suspects and state.fatal is None:
            index = state.suspects.pop()
            whole, last = chunk_bytes(request.work)
            try:
                # What the chunk's bytes are does not matter here, only whether its samples can be computed.
                report = await state.check(index, bytes(last if index == request.work.chunks - 1 else whole))
            except ExecutionError:
                report = None
            if report is None or not report.checked:
                state.fatal = _chunk_failed(index, state)
                return
            for provider in state.scheduler.forgive(index):
                state.excluded.add(provider)
                state.reasons[provider] = f"it failed chunk {index}, which computes here"
                await self.books.failed(provider, state.reasons[provider], ban=False)
                if (scope := state.scopes.get(provider)) is not None:
                    scope.cancel()

    def _fresh(self, request: TaskRequest, state: _State) -> list[Candidate]:
        found, reasons = rank(
            self.board.entries(),
            request.requirement,
            units=request.work.units_per_chunk,
            fp=request.fp,
            language=request.language,
            chain=self.chain,
            max_price_pusd=request.max_price_pusd,
            excluded=lambda peer: (
                peer == self.signer.peer_id
                or self.is_banned(peer)
                or peer in state.links
                or peer in state.excluded
                or state.attempts.get(peer, 0) >= _ATTEMPTS
            ),
        )
        state.reasons.update(reasons)
        return found

    def _nobody(self, request: TaskRequest, state: _State, orphans: list[int]) -> P2PComputeError:
        why = "; ".join(f"{peer[:16]}…: {reason}" for peer, reason in list(state.reasons.items())[:4])
        if not state.agreed:
            return NoProviderError(f"No provider took the order ({why}). {HOW_TO_GET_ONE}")
        failed = [index for index in orphans if index in state.failures]
        # Where it failed at several, that is what the user has to know, whatever else became of them since.
        blamed = failed and (
            len(state.failed_at[failed[0]]) >= _CHUNK_FAILURES or state.failed_at[failed[0]] <= state.excluded
        )
        if failed and (state.links or blamed):
            return _chunk_failed(failed[0], state)
        return TaskError(
            f"all providers are gone with {state.scheduler.done} of {request.work.chunks} chunks done ({why}); "
            "what was paid is covered by receipts; run the task again when providers are back"
        )

    async def _work_with(self, request: TaskRequest, state: _State, candidate: Candidate) -> None:
        provider = candidate.peer_id
        with trio.CancelScope() as scope:
            state.scopes[provider] = scope
            try:
                await self._link_to(request, state, candidate)
            except LiarError as lie:
                caught = state.links[provider]
                assert caught is not None  # a lie comes from a link
                await self._caught(state, caught, lie)
            except (InsufficientFunds, BudgetError, StorageError) as exc:
                state.fatal = exc
            except (OrderRefused, TaskRefused) as refused:
                state.reasons[provider] = str(refused)
                if isinstance(refused, WaitedTooLong):
                    state.attempts[provider] -= 1
                else:
                    state.excluded.add(provider)
                requeued = state.scheduler.lost(provider)
                self.emit(ProviderRefused(provider=provider, reason=str(refused)))
                if requeued:
                    self.emit(ProviderLost(provider=provider, reason=str(refused), requeued=tuple(requeued)))
            except (OverlayError, ProtocolError, PaymentError, ChainError) as exc:
                state.reasons[provider] = str(exc)
                requeued = state.scheduler.lost(provider)
                if isinstance(exc, ProtocolError):
                    state.excluded.add(provider)
                await self.books.failed(provider, str(exc), ban=False)
                self.board.forget(provider)
                self.emit(ProviderLost(provider=provider, reason=str(exc), requeued=tuple(requeued)))
            finally:
                del state.links[provider], state.scopes[provider]
                state.wake()

    async def _link_to(self, request: TaskRequest, state: _State, candidate: Candidate) -> None:
        agreement = await self._agree(request, candidate)
        state.agreed += 1
        reason = "cancelled"
        account = await self.books.open(agreement)
        try:
            link = Link(self.overlay, agreement, account, state.scheduler, request.blobs, self._hooks(state))
            state.links[candidate.peer_id] = link
            await link.run()
            reason = ""
        except Exception as exc:
            reason = str(exc) or type(exc).__name__
            raise
        finally:
            # Cancelled or not: an agreement that stays open keeps money reserved for it.
            with trio.CancelScope(shield=True):
                await self.books.close(agreement, reason=reason)

    async def _agree(self, request: TaskRequest, candidate: Candidate) -> Agreement:
        if candidate.peer_id not in self.overlay.peers():
            await self._dial(candidate)
        now = self.now_ms()
        order = OrderPayload(
            order_id=secrets.token_bytes(16),
            created_ms=now,
            expires_ms=now + _ORDER_LIFETIME_MS,
            work=request.work,
            requirement=request.requirement,
            max_price_pusd=request.max_price_pusd,
            ceiling_uusd=request.ceiling_uusd,
            chain=self.chain,
            payer=self.binding(),
            check=request.check,
            fp=request.fp,
            language=request.language,
            deadline_ms=request.deadline_ms,
            standing=False,
            arbiters=(),
        )
        started = trio.current_time()
        agreement = await negotiate(
            self.overlay,
            candidate.peer_id,
            order,
            network=self.network,
            signer=self.signer,
            now_ms=self.now_ms,
            accept=lambda bid: _is_bearable(bid, candidate),
        )
        terms = agreement.terms
        window_uusd = owed_uusd(request.work.units_per_chunk * terms.max_window, terms.price_pusd)
        self.emit(
            Agreed(
                provider=candidate.peer_id,
                task=agreement.task_id,
                price_pusd=terms.price_pusd,
                credit_window=terms.credit_window,
                max_window=terms.max_window,
                negotiation_ms=(trio.current_time() - started) * 1000,
                # A window that was paid although its samples missed something; a window that is never paid.
                requester_max_loss_uusd=min(window_uusd, terms.ceiling_uusd),
                provider_max_loss_uusd=min(window_uusd, terms.ceiling_uusd),
            )
        )
        return agreement

    async def _dial(self, candidate: Candidate) -> None:
        """Try all addresses of an ad beside each other; the first that is this peer counts."""
        errors: list[OverlayError] = []
        # An ad may not send us to somebody else.
        addresses = [address for address in candidate.addresses if address.endswith(f"/p2p/{candidate.peer_id}")]
        with trio.move_on_after(_DIAL_S):
            async with trio.open_nursery() as nursery:

                async def attempt(address: str) -> None:
                    try:
                        await self.overlay.connect(address)
                    except OverlayError as exc:
                        errors.append(exc)
                    else:
                        nursery.cancel_scope.cancel()

                for address in addresses:
                    nursery.start_soon(attempt, address)
        if candidate.peer_id not in self.overlay.peers():
            raise errors[0] if errors else DialError(f"{candidate.peer_id} is at none of its addresses")

    async def _caught(self, state: _State, link: Link, lie: LiarError) -> None:
        provider = lie.provider
        state.excluded.add(provider)
        state.reasons[provider] = str(lie)
        revoked = state.scheduler.revoke(provider)
        self.board.forget(provider)
        for received in link.rejected:
            await link.account.reject(received.receipt, received.payload, str(lie))
        await self.books.failed(provider, str(lie), ban=True)
        self.emit(
            LiarCaught(
                provider=provider,
                index=lie.index,
                mismatched=lie.report.mismatched,
                revoked=tuple(revoked),
                paid_uusd=link.account.paid_uusd,
            )
        )

    def _hooks(self, state: _State) -> LinkHooks:
        def failed(provider: PeerId, index: int, code: WireCode, detail: str) -> None:
            cancelled = code is WireCode.CANCELLED
            state.scheduler.fail(index, provider, for_good=not cancelled)
            if not cancelled:
                self.emit(ChunkRejected(provider=provider, index=index, reason=f"{code.name.lower()}: {detail}"))
                state.failures[index] = f"{code.name.lower()}: {detail}"
                state.failed_at.setdefault(index, set()).add(provider)
                if state.scheduler.failures(index) >= _CHUNK_FAILURES:
                    state.suspects.add(index)
            state.wake()

        async def done(provider: PeerId, index: int, output: bytes, report: SampleReport) -> None:
            others = state.scheduler.finish(index, provider, trio.current_time())
            if others is not None:
                await state.deliver(index, output, provider)
                self.emit(ChunkDone(provider=provider, index=index, checked=report.checked))
                for other in others:
                    slower = state.links.get(other)
                    if slower is not None:
                        await _quietly(slower.cancel, index)
            state.wake()

        return LinkHooks(
            ready=lambda provider, ms: self.emit(ProviderReady(provider=provider, compile_ms=ms)),
            assigned=lambda provider, index: self.emit(ChunkAssigned(provider=provider, index=index)),
            check=state.check,
            done=done,
            failed=failed,
            paid=lambda provider, amount: self.emit(Paid(provider=provider, paid_uusd=amount)),
            changed=lambda: state.changed,
        )


def _is_bearable(bid: BidPayload, candidate: Candidate) -> bool:
    """Whether a bid keeps to the ad that it was chosen for, and gives no licence to sit on a chunk for ever."""
    return (
        bid.payee == candidate.payee
        and any(bid.payee)
        and bid.price_pusd <= candidate.option.price_pusd
        and bid.max_window <= candidate.option.max_window
        and bid.slots <= candidate.device.slots
        and bid.chunk_timeout_ms <= _CHUNK_MOST_MS
    )


def _chunk_failed(index: int, state: _State) -> ChunkFailed:
    count = len(state.failed_at[index])
    return ChunkFailed(
        f"chunk {index} failed at {count} provider{'s' if count > 1 else ''}, last with {state.failures[index]}. "
        "The signed receipts are in the ledger; run the kernel on that range locally to find out why"
    )


async def _quietly(call: Callable[[int], Awaitable[None]], index: int) -> None:
    """Tell a slower provider; if that fails its own link finds out."""
    try:
        await call(index)
    except (OverlayError, ProtocolError) as exc:
        _log.debug("a cancel was not sent: %s", exc)
