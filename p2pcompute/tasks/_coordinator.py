"""The requester's coordinator: agrees with the best few providers, spreads chunks, replaces who fails."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.checking import EvidenceStore, Quorum, SampleReport, can_be_judged, draw_doubled, result_evidence
from p2pcompute.errors import (
    BudgetError,
    ChainError,
    ChunkFailed,
    InputChanged,
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
from p2pcompute.market import AdBoard, Candidate, Discovery, OrderRefused, rank
from p2pcompute.market._ranking import NEWCOMERS_PLACE
from p2pcompute.market._reasons import ABOUT_BANS, Reason, what_to_do
from p2pcompute.payments import agreed_loss, subnet_of
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import ProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, Requirement

from ._api import RequesterBooks
from ._dialling import Dialler, NoPlaceError
from ._doubling import DoublingScheduler, QuorumDesk
from ._doubling_fast import Judge, NearDesk
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
    SecondCopyHere,
    TaskEvent,
    WaitingForProviders,
)
from ._link import LiarError, Link, NoRoomNow, WaitedTooLong
from ._link_hooks import CheckChunks, CheckedOutput, LinkHooks, one_by_one
from ._scheduler import ChunkScheduler
from ._sharing import Sharing
from ._state import Contact, Deliver, RunState, TaskRequest

if TYPE_CHECKING:
    from p2pcompute.blobs import BlobServer
    from p2pcompute.overlay import Overlay, Requests

__all__ = ["DISCOVERY_S", "HOW_TO_GET_ONE", "Coordinator", "Deliver", "TaskRequest"]

_log = logging.getLogger("p2pcompute.tasks")

DISCOVERY_S: Final = 1.5
_LATE_S: Final = 10.0  # for the first answer of all, on machines that are busy
_ATTEMPTS: Final = 2  # agreements with one provider, when the earlier one broke
_NOBODY_S: Final = 15.0  # without any provider, before the task is given up
_FAILING_S: Final = 2.0  # the same where a chunk has failed at several: others are hardly going to come for it
_CHUNK_FAILURES: Final = 2  # providers at which a chunk may fail before the task does
_BUSY_S: Final = 1.0
_SAID: Final = 4  # of those that do not fit
_SECOND_S: Final = 20.0  # a result waits for another provider's: less than the provider waits for its first money

HOW_TO_GET_ONE: Final = (
    "Start one here with `p2pcompute up`, or point at a network with a provider: --bootstrap and --chain, "
    "p2p.open_node(bootstrap=[…], chain=…), or P2PCOMPUTE_BOOTSTRAP and P2PCOMPUTE_CHAIN. No money has moved."
)


@dataclass(kw_only=True)
class Coordinator:
    """Runs tasks for this node, several at once if need be."""

    overlay: Overlay
    requests: Requests
    network: str
    signer: Signer
    chain: ChainTerms
    binding: Callable[[], SignerBinding]
    board: AdBoard
    discovery: Discovery
    books: RequesterBooks
    now_ms: Callable[[], int]
    is_banned: Callable[[PeerId], bool] = lambda _: False
    blobs: BlobServer | None = None  # what serves inputs that are shared
    evidence: EvidenceStore | None = None  # where what liars have signed is kept for others to check
    advice: Callable[[], str] = lambda: HOW_TO_GET_ONE  # what to do where there is no provider, as things stand
    draw: Callable[[int], int] = secrets.randbelow  # one of so many, from 0; a newcomer's chances are our own secret
    requeued: int = 0  # of the task that ended last
    _salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    async def candidates(
        self, requirement: Requirement, *, units: int, fp: str, language: str, max_price_pusd: int, wanted: int
    ) -> list[Candidate]:
        """The providers that fit, best first.

        Raises:
            NoProviderError: nobody does, after at most `DISCOVERY_S` seconds of asking, or some more where those who
                were asked have not answered; says why and what to do.
        """

        def look() -> tuple[list[Candidate], dict[PeerId, str]]:
            return self._rank(
                requirement,
                units=units,
                fp=fp,
                language=language,
                max_price_pusd=max_price_pusd,
                excluded=lambda _: False,
            )

        found, reasons = look()
        if len(found) < wanted:
            answered = await self.discovery.refresh(
                kinds=requirement.kinds, fp=fp, enough=lambda: len(look()[0]) >= wanted, timeout_s=DISCOVERY_S
            )
            found, reasons = look()
            if not answered and not reasons and not found:
                await self.discovery.refresh(
                    kinds=requirement.kinds, fp=fp, enough=lambda: bool(look()[0]), timeout_s=_LATE_S
                )
                found, reasons = look()
        if not found:
            banned = [entry.peer_id for entry in self.board.entries() if self.is_banned(entry.peer_id)]
            reasons |= dict.fromkeys(banned, "banned for good")
            for peer in banned[:_SAID]:
                reasons[peer] += f": {await self.books.why_banned(peer)}"
            seen = "; ".join(f"…{peer[-8:]}: {why}" for peer, why in list(reasons.items())[:_SAID])
            known = f"{len(reasons)} known, none fits ({seen})" if reasons else "none is known"
            todo = what_to_do(reasons.values(), self.advice())
            todo = f"{ABOUT_BANS} {todo}" if banned else todo
            raise NoProviderError(f"No provider fits this order: {known}. {todo}")
        return found

    async def run(
        self,
        request: TaskRequest,
        *,
        deliver: Deliver,
        deliver_together: bool = False,
        check: CheckChunks,
        probe: Callable[[int], Awaitable[bool]],
        emit: Callable[[TaskEvent], None],
        recompute: Callable[[int], Awaitable[bytes]] | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Compute all chunks of `request`.

        `deliver` gets checked chunks (index and output bytes of each) and their provider, several at once where it
        waits for nobody (`deliver_together`); the same index comes again when the provider that computed it was later
        caught lying: the newer one counts. `check` draws samples of chunks'
        outputs; `probe` says whether a chunk's samples compute here, where it failed elsewhere. `emit` gets every
        `TaskEvent` of this task; it must not block. `recompute` computes a whole chunk here and gives the digest of
        its output; it is wanted where a share of the chunks is `doubled`. In fast mode `judge` takes its place.

        Raises:
            NoProviderError: nobody took the order; no money has moved.
            ChunkFailed: a chunk failed at several providers; the receipts say why.
            TaskTimeout: the deadline passed. TaskError: all providers are gone.

        Cancellation: streams close, providers stop and bill nothing more; what was accepted is settled with the
        vouchers that were already sent.
        """
        state = RunState(
            scheduler=ChunkScheduler(request.work.chunks),
            deliver=deliver,
            deliver_together=deliver_together,
            check=check,
            probe=probe,
            emit=emit,
            most=request.max_providers,
        )
        if request.doubled and recompute is not None:
            self._double(request, state, recompute, judge)
        seconds = max(0.0, (request.deadline_ms - self.now_ms()) / 1000)  # it may have passed before this
        try:
            with trio.move_on_after(seconds) as deadline, self._sharing(request) as state.sharing:
                async with trio.open_nursery() as nursery:
                    await self._manage(request, state, nursery)
        finally:
            request.outcome.done = state.scheduler.finished
        if deadline.cancelled_caught and not state.scheduler.is_complete:
            raise TaskTimeout(
                f"{state.scheduler.done} of {request.work.chunks} chunks were done when the deadline passed; "
                "give more time (deadline_s=…) or more providers (max_providers=…)"
            )
        if state.fatal is not None:
            raise state.fatal
        self.requeued = state.scheduler.requeued

    def _sharing(self, request: TaskRequest) -> AbstractContextManager[Sharing | None]:
        if self.blobs is None or not request.shared:
            return nullcontext()
        return Sharing.open(self.overlay, self.blobs, request.blobs, request.shared)

    def _double(
        self,
        request: TaskRequest,
        state: RunState,
        recompute: Callable[[int], Awaitable[bytes]],
        judge: Judge | None,
    ) -> None:
        """Have some chunks done by two providers, which are not in one subnet as far as we can see."""
        places: dict[PeerId, str] = {}

        def kin(provider: PeerId) -> str:
            address = self.overlay.remote_address(provider)
            if address is not None:
                places.setdefault(provider, subnet_of(address, provider))
            return places.get(provider, f"peer:{provider}")

        patience_s = min(_SECOND_S, request.chunk_s)

        def others(provider: PeerId, index: int) -> bool:
            now, refused = trio.current_time(), scheduler.refused_at(index)
            return any(
                other != provider
                and other not in refused
                and (scheduler.ran_at(index, other) or quorum.may_take(other, index))
                and state.contacts[other].waited(now) < patience_s  # once for each that keeps us waiting, not a chunk
                and not state.contacts[other].draining
                for other in state.hopes()
            )

        async def blame(provider: PeerId, index: int) -> None:
            state.excluded.add(provider)
            state.reasons[provider] = f"its result of chunk {index} was wrong, and it had left"
            scheduler.revoke(provider)
            await self.books.failed(provider, state.reasons[provider], ban=True)

        def decided(provider: PeerId, index: int, reason: str) -> None:
            if state.desk is not None and state.desk.decided_here == 1:  # once a task; each is an event
                _log.warning("chunk %d is done a second time here, by us: %s", index, reason)
            state.emit(SecondCopyHere(provider=provider, index=index, reason=reason))

        async def sample(index: int, output: memoryview) -> SampleReport:
            return (await state.check([(index, output)]))[0]

        quorum = Quorum(draw_doubled(request.work.chunks, request.doubled), kin=kin)
        scheduler = state.scheduler = DoublingScheduler(request.work.chunks, quorum)
        kind = QuorumDesk if judge is None else partial(NearDesk, judge=judge)
        state.desk = kind(
            quorum=quorum,
            sample=sample,
            recompute=recompute,
            others=others,
            blame=blame,
            wake=state.wake,
            patience_s=patience_s,
            decided=decided,
        )

    @cached_property
    def _dialler(self) -> Dialler:
        return Dialler(
            overlay=self.overlay,
            requests=self.requests,
            network=self.network,
            signer=self.signer,
            chain=self.chain,
            binding=self.binding,
            now_ms=self.now_ms,
        )

    async def _manage(self, request: TaskRequest, state: RunState, nursery: trio.Nursery) -> None:
        """Keep as many links as are wanted until all chunks are done and every link has ended.

        A link's last check may still find a lie and take back what was done, so the end is only where both hold.
        """
        stuck_since: float | None = None
        while state.fatal is None and (state.contacts or not state.scheduler.is_complete):
            changed = state.changed
            if state.scheduler.is_complete:
                state.let_go()
                await changed.wait()
                continue
            now = trio.current_time()
            found: list[Candidate] = []
            free = state.free(now)
            stalled = state.stalled(now, setup_s=request.setup_s, chunk_s=request.chunk_s)
            if not free and stalled and now >= state.look_at:
                state.look_at = now + _BUSY_S
                waiting = sum(candidate.peer_id not in state.attempts for candidate in self._fresh(request, state))
                state.give_up_stalled(stalled[:waiting])
            if free and (now >= state.look_at or not state.contacts):
                state.look_at = now + _BUSY_S  # ranking a full board for each chunk would cost more than the chunk
                found = self._fresh(request, state)
            for candidate in found[:free]:
                contact = state.contacts[candidate.peer_id] = Contact(since=now)
                state.attempts[candidate.peer_id] = state.attempts.get(candidate.peer_id, 0) + 1
                nursery.start_soon(self._work_with, request, state, candidate, contact)
            state.give_up_slowest(now)
            orphans = state.scheduler.orphans(state.hopes())
            if len(orphans) + state.scheduler.done == request.work.chunks:  # last of all: it may take as long again
                state.suspects.update(i for i in orphans if state.overslept(i, state.scheduler.refused_at(i)))
            if state.suspects:
                await self._question_failures(state)
                orphans = state.scheduler.orphans(state.hopes())
            if not orphans:
                stuck_since = None
            else:
                if stuck_since is None and state.agreed:
                    state.emit(WaitingForProviders(chunks=len(orphans), patience_s=_NOBODY_S))
                stuck_since = trio.current_time() if stuck_since is None else stuck_since
                nobody = not state.contacts and not state.agreed and not state.may_ask_later()
                failing = not state.contacts and any(len(at) >= _CHUNK_FAILURES for at in state.failed_at.values())
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

    async def _question_failures(self, state: RunState) -> None:
        """A chunk that failed at several providers: does it at ours? If not, it was they who failed, and they get no
        more work; but where it ran out of time only, they get it once more."""
        while state.suspects and state.fatal is None:
            index = state.suspects.pop()
            if not await state.probe(index):
                state.fatal = _chunk_failed(index, state)
                return
            for provider in state.scheduler.forgive(index):
                if index in state.slept.get(provider, ()):
                    continue
                state.excluded.add(provider)
                state.reasons[provider] = f"it failed chunk {index}, which computes here"
                if (contact := state.contacts.get(provider)) is not None:
                    contact.give_up(state.reasons[provider])
                else:
                    await self.books.failed(provider, state.reasons[provider], ban=False)
            state.wake()  # links may have the chunk again

    def _fresh(self, request: TaskRequest, state: RunState) -> list[Candidate]:
        now = trio.current_time()
        found, reasons = self._rank(
            request.requirement,
            units=request.work.units_per_chunk,
            fp=request.fp,
            language=request.language,
            max_price_pusd=request.max_price_pusd,
            excluded=lambda peer: (
                peer in state.contacts
                or peer in state.excluded
                or state.attempts.get(peer, 0) >= _ATTEMPTS
                or state.ask_at.get(peer, 0.0) > now
            ),
            holders=state.holders(now),
            newcomer_first=state.most == 1 and self.draw(NEWCOMERS_PLACE) == 0,
        )
        state.reasons.update(reasons)
        # Who had no room comes last: those who only ever say so hold up nobody.
        return sorted(found, key=lambda candidate: candidate.peer_id in state.refusals)

    def _rank(
        self,
        requirement: Requirement,
        *,
        units: int,
        fp: str,
        language: str,
        max_price_pusd: int,
        excluded: Callable[[PeerId], bool],
        holders: Collection[PeerId] = (),
        newcomer_first: bool = False,
    ) -> tuple[list[Candidate], dict[PeerId, str]]:
        peers = self.overlay.peers()
        return rank(
            self.board.entries(),
            requirement,
            units=units,
            fp=fp,
            language=language,
            chain=self.chain,
            max_price_pusd=max_price_pusd,
            excluded=lambda peer: peer == self.signer.peer_id or self.is_banned(peer) or excluded(peer),
            standing=self.books.standing,
            connected=peers.__contains__,
            salt=self._salt,
            holders=holders,
            newcomer_first=newcomer_first,
        )

    def _nobody(self, request: TaskRequest, state: RunState, orphans: list[int]) -> P2PComputeError:
        why = "; ".join(f"…{peer[-8:]}: {reason}" for peer, reason in list(state.reasons.items())[:4])
        if not state.agreed:
            todo = what_to_do(state.reasons.values(), self.advice())
            return NoProviderError(f"No provider took the order ({why}). {todo}")
        failed = [index for index in orphans if index in state.failures]
        # Where it failed at several, that is what the user has to know, whatever else became of them since.
        blamed = failed and (
            len(state.failed_at[failed[0]]) >= _CHUNK_FAILURES or state.failed_at[failed[0]] <= state.excluded
        )
        if failed and (state.contacts or blamed):
            return _chunk_failed(failed[0], state)
        return TaskError(
            f"all providers are gone with {state.scheduler.done} of {request.work.chunks} chunks done ({why}); "
            "what was paid is covered by receipts; run the task again when providers are back. What is done is in this "
            "error's `partial`, and node.map gives each chunk as it comes"
        )

    async def _work_with(self, request: TaskRequest, state: RunState, candidate: Candidate, contact: Contact) -> None:
        provider = candidate.peer_id
        try:
            with contact.scope:
                await self._try(request, state, candidate, contact)
            if contact.given_up and (contact.link is None or contact.link.lie is None):
                state.reasons[provider] = contact.given_up
                state.emit(
                    ProviderLost(
                        provider=provider,
                        reason=contact.given_up,
                        requeued=tuple(state.scheduler.lost(provider)),
                    )
                )
                await self.books.failed(provider, contact.given_up, ban=False)
        finally:
            del state.contacts[provider]
            state.wake()

    async def _try(self, request: TaskRequest, state: RunState, candidate: Candidate, contact: Contact) -> None:
        provider = candidate.peer_id
        try:
            await self._link_to(request, state, candidate, contact)
        except NoPlaceError as exc:
            _log.debug("%s", exc)
            state.attempts[provider] -= 1
        except LiarError:
            pass  # below, since it may come beside a cancellation, which hides it
        except (InsufficientFunds, BudgetError, InputChanged, StorageError) as exc:
            state.fatal = exc
        except (OrderRefused, TaskRefused) as refused:
            state.reasons[provider] = Reason(str(refused), getattr(refused, "code", None))
            no_room = isinstance(refused, OrderRefused) and refused.code is WireCode.NO_CAPACITY
            if no_room or isinstance(refused, NoRoomNow):
                state.had_no_room(provider, trio.current_time())
            else:
                state.excluded.add(provider)
            # Attempts are agreements: each is a row of the ledger.
            if no_room or (isinstance(refused, WaitedTooLong) and state.forgives_wait(provider)):
                state.attempts[provider] -= 1
            requeued = state.scheduler.lost(provider)
            state.emit(ProviderRefused(provider=provider, reason=str(refused)))
            if requeued:
                state.emit(ProviderLost(provider=provider, reason=str(refused), requeued=tuple(requeued)))
        except (OverlayError, ProtocolError, PaymentError, ChainError) as exc:
            state.reasons[provider] = str(exc)
            requeued = state.scheduler.lost(provider)
            if isinstance(exc, ProtocolError):
                state.excluded.add(provider)
            if not isinstance(exc, ChainError):  # that is our own endpoint
                await self.books.failed(provider, str(exc), ban=False)
            self.board.forget(provider)
            state.emit(ProviderLost(provider=provider, reason=str(exc), requeued=tuple(requeued)))
        finally:
            if contact.link is not None and contact.link.lie is not None:
                with trio.CancelScope(shield=True):  # a task that ends just then forgets no lie
                    await self._caught(state, contact.link, contact.link.lie)

    async def _link_to(self, request: TaskRequest, state: RunState, candidate: Candidate, contact: Contact) -> None:
        agreement, seconds = await self._dialler.agree(request, candidate, is_full=lambda: state.is_full)
        contact.agreed, contact.since = True, trio.current_time()  # nothing is awaited: the place is still free
        state.agreed += 1
        self.announce(state.emit, agreement, seconds)
        reason = "cancelled"
        account = await self.books.open(agreement, request.budget)
        try:
            pledge = b"" if request.stake is None else await request.stake.pledge(agreement)
            hooks = self._hooks(request, state, agreement)
            link = Link(
                self.overlay,
                agreement,
                account,
                state.scheduler,
                request.blobs,
                hooks,
                splits=request.splits,
                sharing=state.sharing,
            )
            link.pledge = pledge
            contact.link = link
            await link.run()
            reason = ""
        except Exception as exc:
            reason = str(exc) or type(exc).__name__
            raise
        finally:
            # Cancelled or not: an agreement that stays open keeps money reserved for it.
            with trio.CancelScope(shield=True):
                await self.books.close(agreement, reason=reason)

    def announce(self, emit: Callable[[TaskEvent], None], agreement: Agreement, seconds: float) -> None:
        """Say that there is an agreement, which took so many seconds, and what it can cost."""
        terms = agreement.terms
        loss = agreed_loss(terms)
        emit(
            Agreed(
                provider=PeerId(terms.provider),
                task=agreement.task_id,
                price_pusd=terms.price_pusd,
                credit_window=terms.credit_window,
                max_window=terms.max_window,
                negotiation_ms=seconds * 1000,
                # Without samples a lie, or two alike, is never found, and all that is paid can be paid for lies.
                requester_max_loss_uusd=loss.requester_uusd if terms.check.per_chunk else loss.locked_uusd,
                provider_max_loss_uusd=loss.provider_uusd,
                check=terms.check.kind,
            )
        )

    async def _caught(self, state: RunState, link: Link, lie: LiarError) -> None:
        provider = lie.provider
        state.excluded.add(provider)
        state.reasons[provider] = str(lie)
        revoked = state.scheduler.revoke(provider)
        self.board.forget(provider)
        try:
            await self.books.failed(provider, str(lie), ban=True)
            for received in link.rejected:
                await link.account.reject(received.receipt, received.payload, str(lie))
        except StorageError as exc:
            state.fatal = exc
        state.emit(
            LiarCaught(
                provider=provider,
                index=lie.index,
                mismatched=lie.report.mismatched,
                revoked=tuple(revoked),
                paid_uusd=link.account.paid_uusd,
                evidence=await self._keep_evidence(link, lie),
            )
        )

    async def _keep_evidence(self, link: Link, lie: LiarError) -> str | None:
        """Write what the liar has signed into a file that anybody can check."""
        received = next((one for one in link.rejected if one.index == lie.index), None)
        if self.evidence is None or received is None or not can_be_judged(link.agreement):
            return None
        try:
            made = result_evidence(
                link.agreement,
                received.receipt,
                lie.index,
                blobs=link.blobs_of(lie.index),
                signer=self.signer,
                now_ms=self.now_ms(),
                report=lie.report,
                output=received.output,
            )
        except (InputChanged, ProtocolError) as exc:
            _log.warning("evidence against %s can't be made: %s", lie.provider, exc)
            return None
        path = await self.evidence.save(link.agreement, f"chunk-{lie.index}", made, pledge=link.pledge)
        return None if path is None else str(path)

    def _hooks(self, request: TaskRequest, state: RunState, agreement: Agreement) -> LinkHooks:
        def assigned(provider: PeerId, index: int) -> None:
            state.emit(ChunkAssigned(provider=provider, index=index))
            if state.desk is not None and index in state.desk.quorum:
                state.wake()  # somebody who has nothing to do may be wanted for it too

        def failed(provider: PeerId, index: int, code: WireCode, detail: str) -> None:
            cancelled = code is WireCode.CANCELLED
            ran_s = state.scheduler.ran(index, provider, trio.current_time())
            state.scheduler.fail(index, provider, for_good=not cancelled)
            if not cancelled:
                state.emit(ChunkRejected(provider=provider, index=index, reason=f"{code.name.lower()}: {detail}"))
                reason = f"{code.name.lower()}: {detail}"
                # Whoever says so before the time is up has not computed at all.
                timed_out = code is WireCode.TIMED_OUT and ran_s >= state.chunk_limit_s(provider)
                state.failed(index, provider, reason=reason, timed_out=timed_out)
                if state.scheduler.failures(index) >= _CHUNK_FAILURES:
                    state.suspects.add(index)
            state.wake()

        async def done(provider: PeerId, chunks: Sequence[CheckedOutput]) -> None:
            for together in [chunks] if state.deliver_together else [[one] for one in chunks]:
                now, fresh = trio.current_time(), list[tuple[CheckedOutput, list[PeerId]]]()
                for one in together:
                    if (others := state.scheduler.finish(one[0], provider, now)) is not None:
                        fresh.append((one, others))
                if fresh:
                    await state.deliver([(index, output) for (index, output, _), _ in fresh], provider)
                for (index, _, report), _ in fresh:
                    state.emit(ChunkDone(provider=provider, index=index, checked=report.checked))
                for (index, _, _), others in fresh:
                    for other in others:
                        slower = state.contacts.get(other)
                        if slower is not None and slower.link is not None:
                            await _quietly(slower.link.cancel, index)
                state.wake()

        def paid(provider: PeerId, amount_uusd: int) -> None:
            request.outcome.paid(agreement.task_id, amount_uusd)
            state.emit(Paid(provider=provider, paid_uusd=amount_uusd))

        return LinkHooks(
            ready=lambda provider, ms: state.emit(ProviderReady(provider=provider, compile_ms=ms)),
            assigned=assigned,
            check=one_by_one(partial(state.desk.check, PeerId(agreement.terms.provider)))
            if state.desk is not None
            else state.check
            if request.check.per_chunk
            else None,
            # the windows of split inputs are those of one chunk
            checks_together=state.desk is None and request.splits is None,
            done=done,
            failed=failed,
            paid=paid,
            changed=lambda: state.changed,
            sample_every=request.sample_every,
        )


def _chunk_failed(index: int, state: RunState) -> ChunkFailed:
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
