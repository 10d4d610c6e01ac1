"""A task in rounds: one provider after the other, each from the last state that is here and paid."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pcompute._groups import nursery_beside, single_error
from p2pcompute.checking import SampleReport, receipted_round_evidence
from p2pcompute.errors import (
    BudgetError,
    ChainError,
    InsufficientFunds,
    NoProviderError,
    OverlayError,
    PaymentError,
    StorageError,
    StreamError,
    TaskError,
    TaskRefused,
    TaskTimeout,
)
from p2pcompute.market import Candidate, OrderRefused
from p2pcompute.market._reasons import Reason, what_to_do
from p2pcompute.payments import subnet_of
from p2pcompute_protocols.errors import ProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, Requirement
from p2pcompute_protocols.work import RoundWork

from ._api import RequesterAccount, TaskStake
from ._budget import TaskBudget
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
from ._link import LiarError, NoRoomNow
from ._link_hooks import CheckedOutput, LinkHooks, one_by_one
from ._round_link import RoundLink
from ._round_quorum import Recompute, RoundDesk
from ._round_work import StateBytes
from ._state import MORE_PATIENCE, TaskRequest

__all__ = ["Party", "RoundRequest", "RoundTask"]

_log = logging.getLogger("p2pcompute.tasks")

_ATTEMPTS: Final = 2  # agreements with one provider
_NOBODY_S: Final = 15.0  # without any provider, before the task is given up
_SECOND_S: Final = 20.0  # a chunk waits for the other provider's; less than a provider waits for its first money
_LOOK_S: Final = 1.0  # between looks at who keeps us waiting
_AGAIN_S: Final = 2.0  # before somebody that had no room is asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequest:
    """What is to be done and what it may cost.

    Attributes:
        rounds: how many in all.
        make: the work from a number of rounds done and the state that they left, and its blobs.
        rounds_per_chunk, units_per_chunk: of a whole chunk.
        parties: how many providers compute the same rounds, one or two.
        stake: what is asked of their stakes; None for nothing.
        setup_s, chunk_s: as of `TaskRequest`: how long one may keep us waiting where others were never asked.
    """

    rounds: int
    make: Callable[[int, StateBytes], tuple[RoundWork, dict[bytes, bytes]]]
    rounds_per_chunk: int
    units_per_chunk: int
    requirement: Requirement
    max_price_pusd: int
    ceiling_uusd: int
    budget: TaskBudget
    check: CheckPolicy
    fp: str
    language: str
    deadline_ms: int
    parties: int = 1
    stake: TaskStake | None = None
    setup_s: float = 10.0
    chunk_s: float = 20.0


@dataclass(slots=True, kw_only=True)
class Party:
    """One provider of a leg: from a state on, until all rounds are done or it is gone.

    Attributes:
        wrong: a round of its work that it has wrong, and the state before.
        agreed: when there was an agreement, and a pledge where one is asked for; None before.
        given_up: why we ended it, where we did.
        caught: it was found lying, and that was noted.
    """

    candidate: Candidate
    first: int
    start: StateBytes
    link: RoundLink | None = None
    wrong: tuple[int, StateBytes] | None = None
    over: bool = False
    agreed: float | None = None
    given_up: str = ""
    caught: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def provider(self) -> PeerId:
        """Who it is."""
        return self.candidate.peer_id

    def waited(self, now: float) -> float:
        """For how many seconds it has owed us set-up or an answer; 0 where it owes nothing."""
        since = self.agreed if self.link is None or not self.link.ready else self.link.owes_since
        return 0.0 if since is None else now - since

    def give_up(self, why: str) -> None:
        """End it."""
        self.given_up = why
        self.scope.cancel()


Check = Callable[[Party, int, int], Awaitable[SampleReport]]
"""(who, the state before its chunk by its number in the work, how many rounds) -> what samples said."""
Done = Callable[[Party, int, list[bytes], SampleReport], Awaitable[None]]
"""(who, number of rounds of the task before the chunk, digests of the states after each) -> nothing."""


@dataclass(slots=True, kw_only=True)
class RoundTask:
    """Runs one task in rounds for this node.

    Attributes:
        done, state: rounds that were accepted, and the state behind them.
        check: looks at a chunk's rounds before it counts.
        deliver: gets the digests of each checked chunk. After a liar was caught those of its rounds come again.
        kept: told of the state that is here whenever that is another one.
        recompute: computes rounds here; wanted where there are two parties.
    """

    coordinator: Coordinator
    request: RoundRequest
    state: StateBytes
    check: Check
    deliver: Done
    emit: Callable[[TaskEvent], None]
    kept: Callable[[int, StateBytes], None]
    recompute: Recompute | None = None
    done: int = 0
    _excluded: set[PeerId] = field(default_factory=set)
    _attempts: dict[PeerId, int] = field(default_factory=dict)
    _ask_at: dict[PeerId, float] = field(default_factory=dict)
    _reasons: dict[PeerId, str] = field(default_factory=dict)
    _failed: dict[PeerId, int] = field(default_factory=dict)
    _agreed: int = 0
    _delivered: int = 0
    _given_up: int = 0

    async def run(self) -> StateBytes:
        """Compute all rounds; gives the last state.

        Raises:
            NoProviderError: nobody took the order; no money has moved.
            TaskTimeout: the deadline passed. TaskError: all providers are gone.
            BudgetError, InsufficientFunds, StorageError: as they say.

        Cancellation: streams close, providers stop and bill nothing more.
        """
        request = self.request
        seconds = max(0.0, (request.deadline_ms - self.coordinator.now_ms()) / 1000)
        with trio.move_on_after(seconds):
            while self.done < request.rounds:
                await self._leg(await self._candidate())
                await self._blame_failures()
            return self.state
        raise TaskTimeout(
            f"{self.done} of {request.rounds} rounds were done when the deadline passed; give more time (deadline_s=…)"
        )

    async def _blame_failures(self) -> None:
        """Who could not compute rounds that somebody else has computed since has failed us. Before that it may be the
        rounds that can't be computed."""
        for provider in [provider for provider, rounds in self._failed.items() if rounds <= self.done]:
            del self._failed[provider]
            await self.coordinator.books.failed(provider, self._reasons[provider], ban=False)

    async def _candidate(self) -> Candidate:
        """The best provider that may be asked now; waits for one. Nobody is given up on before others were looked for:
        those that are known may all have refused."""
        since, looked = trio.current_time(), False
        while True:
            found = self._ranked()
            if found:
                return found[0]
            now = trio.current_time()
            may_come = [at for peer, at in self._ask_at.items() if peer not in self._excluded]
            hopeless = now - since > _NOBODY_S or not (self._agreed or may_come)
            if hopeless and looked:
                raise self._nobody()
            if not hopeless:
                self.emit(WaitingForProviders(chunks=1, patience_s=_NOBODY_S))
            await self.coordinator.discovery.refresh(
                kinds=self.request.requirement.kinds,
                fp=self.request.fp,
                enough=lambda: bool(self._ranked()),
                timeout_s=DISCOVERY_S,
            )
            looked = True
            if not hopeless and not self._ranked():
                await trio.sleep(min(1.0, max(0.05, min(may_come, default=now + 1.0) - now)))

    def _ranked(self) -> list[Candidate]:
        request, now = self.request, trio.current_time()
        found, reasons = self.coordinator._rank(
            request.requirement,
            units=request.units_per_chunk,
            fp=request.fp,
            language=request.language,
            max_price_pusd=request.max_price_pusd,
            excluded=lambda peer: (
                peer in self._excluded or self._attempts.get(peer, 0) >= _ATTEMPTS or self._ask_at.get(peer, 0.0) > now
            ),
        )
        self._reasons.update(reasons)
        return sorted(found, key=lambda candidate: candidate.peer_id in self._ask_at)

    def _nobody(self) -> TaskError | NoProviderError:
        why = "; ".join(f"…{peer[-8:]}: {reason}" for peer, reason in list(self._reasons.items())[:4])
        if not self._agreed:
            todo = what_to_do(self._reasons.values(), self.coordinator.advice())
            return NoProviderError(f"No provider took the order ({why}). {todo}")
        return TaskError(
            f"all providers are gone with {self.done} of {self.request.rounds} rounds done ({why}); what was paid is "
            "covered by receipts. node.rounds keeps the state behind them: begin again from there when providers are "
            "back"
        )

    async def _leg(self, candidate: Candidate) -> None:
        """Let one provider go on from where we are, or two. How it ended is in `done`, `state` and what is known of
        them. When one of two is gone the other comes to its end, and the next leg has two again."""
        candidates = [candidate]
        desk: RoundDesk | None = None
        if self.recompute is not None:
            desk = RoundDesk(recompute=self.recompute, blame=self._blame, patience_s=_SECOND_S)
            kin = self._kin(candidate.peer_id)
            candidates += [one for one in self._ranked()[1:] if self._kin(one.peer_id) != kin][:1]
        parties = [Party(candidate=one, first=self.done, start=self.state) for one in candidates]
        if desk is None:
            await self._part(parties[0], None)
            return
        desk.parties = parties
        with single_error(InsufficientFunds, BudgetError, StorageError):
            async with trio.open_nursery() as nursery:
                for party in parties:
                    nursery.start_soon(self._part, party, desk)

    def _kin(self, provider: PeerId) -> str:
        """Who of one subnet may have one owner."""
        address = self.coordinator.overlay.remote_address(provider)
        return f"peer:{provider}" if address is None else subnet_of(address, provider)

    async def _part(self, party: Party, desk: RoundDesk | None) -> None:
        """One provider's part of a leg."""
        try:
            await self._try(party, desk)
        finally:
            party.over = True
            if desk is not None:
                for other in desk.parties:
                    if other.link is not None:
                        other.link.come_to_an_end()
                desk.tell()

    async def _try(self, party: Party, desk: RoundDesk | None) -> None:
        self._attempts[party.provider] = self._attempts.get(party.provider, 0) + 1
        try:
            async with nursery_beside() as nursery:
                nursery.start_soon(self._hurry, party)
                with party.scope:
                    await self._work_with(party, desk)
            if party.given_up and not party.caught:
                raise StreamError(party.given_up)
            self._attempts[party.provider] -= 1
        except LiarError:
            pass  # below, since it may come beside another end
        except (InsufficientFunds, BudgetError, StorageError):
            raise
        except (OrderRefused, TaskRefused) as refused:
            self._reasons[party.provider] = Reason(str(refused), getattr(refused, "code", None))
            no_room = isinstance(refused, OrderRefused) and refused.code is WireCode.NO_CAPACITY
            if no_room or isinstance(refused, NoRoomNow):
                self._ask_at[party.provider] = trio.current_time() + _AGAIN_S
            else:
                self._excluded.add(party.provider)
            self.emit(ProviderRefused(provider=party.provider, reason=str(refused)))
        except (OverlayError, ProtocolError, PaymentError, ChainError) as exc:
            self._reasons[party.provider] = str(exc)
            if isinstance(exc, ProtocolError):
                self._excluded.add(party.provider)
            if not isinstance(exc, ChainError):  # that is our own endpoint
                await self.coordinator.books.failed(party.provider, str(exc), ban=False)
            self.coordinator.board.forget(party.provider)
            self.emit(ProviderLost(provider=party.provider, reason=str(exc), requeued=()))
        finally:
            if party.link is not None and party.link.lie is not None:
                with trio.CancelScope(shield=True):
                    await self._caught(party, party.link, party.link.lie)

    async def _hurry(self, party: Party) -> None:
        """Let go of a provider that keeps us waiting where others were never asked: no other has its rounds. Where
        nobody is there it has as long as was agreed."""
        while True:
            await trio.sleep(_LOOK_S)
            ready = party.link is not None and party.link.ready
            waited = party.waited(trio.current_time())
            if waited < (self.request.chunk_s if ready else self.request.setup_s) * MORE_PATIENCE**self._given_up:
                continue
            if any(candidate.peer_id not in self._attempts for candidate in self._ranked()):
                self._given_up += 1
                what = "gave no result" if ready else "was not ready"
                party.give_up(f"it {what} in {waited:.0f} s, and others are there")
                return

    async def _work_with(self, party: Party, desk: RoundDesk | None) -> None:
        coordinator, request = self.coordinator, self.request
        work, blobs = request.make(party.first, party.start)
        order = TaskRequest(
            work=work,
            blobs=blobs,
            requirement=request.requirement,
            max_price_pusd=request.max_price_pusd,
            ceiling_uusd=request.ceiling_uusd,
            budget=request.budget,
            check=request.check,
            fp=request.fp,
            language=request.language,
            deadline_ms=request.deadline_ms,
            max_providers=request.parties,
            stake=request.stake,
        )
        agreement, seconds = await coordinator._dialler.agree(order, party.candidate, is_full=lambda: False)
        self._agreed += 1
        coordinator.announce(self.emit, agreement, seconds)
        reason = "cancelled"
        account = await coordinator.books.open(agreement, request.budget)
        try:
            pledge = b"" if request.stake is None else await request.stake.pledge(agreement)
            party.link = self._link(party, agreement, account, blobs, desk)
            party.link.pledge = pledge
            party.agreed = trio.current_time()
            if desk is not None and any(other.over for other in desk.parties):
                party.link.come_to_an_end()  # the next leg has two again
            await party.link.run()
            reason = ""
        except Exception as exc:
            reason = str(exc) or type(exc).__name__
            raise
        finally:
            with trio.CancelScope(shield=True):
                await coordinator.books.close(agreement, reason=reason)

    def _link(
        self,
        party: Party,
        agreement: Agreement,
        account: RequesterAccount,
        blobs: Mapping[bytes, bytes],
        desk: RoundDesk | None,
    ) -> RoundLink:
        changed = trio.Event()
        base = self._chunk_of(party)

        async def check(index: int, output: memoryview) -> SampleReport:
            assert party.link is not None  # it is what asks
            party.link.take(index, output)
            first, rounds = party.link.rounds.chunk_range(index)
            report = await self.check(party, first, rounds)
            return report if desk is None or not report.ok else await desk.settle(party, first, rounds)

        async def done(provider: PeerId, chunks: Sequence[CheckedOutput]) -> None:
            assert party.link is not None
            for index, _, report in chunks:
                party.link.scheduler.finish(index, provider, trio.current_time())
                first, rounds = party.link.rounds.chunk_range(index)
                if party.first + first >= self._delivered:
                    self._delivered = party.first + first + rounds
                    await self.deliver(party, party.first + first, party.link.digests[first : first + rounds], report)
                self.emit(ChunkDone(provider=provider, index=base + index, checked=report.checked))

        def failed(provider: PeerId, index: int, code: WireCode, detail: str) -> None:
            reason = f"{code.name.lower()}: {detail}"
            self.emit(ChunkRejected(provider=provider, index=base + index, reason=reason))
            assert party.link is not None
            first, rounds = party.link.rounds.chunk_range(index)
            self._failed[provider] = party.first + first + rounds
            party.link.fail(reason)

        def secured(number: int, state: StateBytes) -> None:
            if party.first + number > self.done:
                self._keep(party.first + number, state)

        hooks = LinkHooks(
            ready=lambda provider, ms: self.emit(ProviderReady(provider=provider, compile_ms=ms)),
            assigned=lambda provider, index: self.emit(ChunkAssigned(provider=provider, index=base + index)),
            check=one_by_one(check),
            done=done,
            failed=failed,
            paid=lambda provider, amount: self.emit(Paid(provider=provider, paid_uusd=amount)),
            changed=lambda: changed,
        )
        return RoundLink(self.coordinator.overlay, agreement, account, party.start, blobs, hooks, secured=secured)

    def _chunk_of(self, party: Party) -> int:
        """The number of a party's first chunk among all of the task's: events name those."""
        return party.first // self.request.rounds_per_chunk

    def _keep(self, done: int, state: StateBytes) -> None:
        self.done, self.state = done, state
        self.kept(done, state)

    async def _blame(self, party: Party, report: SampleReport) -> None:
        """The other's digests show that a party has a round wrong: that counts whether it is still here or not."""
        assert party.link is not None
        assert party.wrong is not None
        index = (party.wrong[0] - 1) // party.link.rounds.rounds_per_chunk
        lie = LiarError(party.provider, index, report)
        party.link.condemn(lie)
        with trio.CancelScope(shield=True):
            await self._caught(party, party.link, lie)
        party.give_up(str(lie))

    async def _caught(self, party: Party, link: RoundLink, lie: LiarError) -> None:
        """Nothing that only a liar has computed is kept: samples bound how much it can have altered, and do not say
        where. What two have computed alike is."""
        provider = party.provider
        if party.caught:
            return
        party.caught = True
        self._excluded.add(provider)
        self._reasons[provider] = str(lie)
        self.coordinator.board.forget(provider)
        base = self._chunk_of(party)
        revoked: tuple[int, ...] = ()
        if self.recompute is None:
            revoked = tuple(range(base, base + link.scheduler.done))
            self._keep(party.first, party.start)
            self._delivered = party.first
        await self.coordinator.books.failed(provider, str(lie), ban=True)
        for received in link.rejected:
            await link.account.reject(received.receipt, received.payload, str(lie))
        self.emit(
            LiarCaught(
                provider=provider,
                index=base + lie.index,
                mismatched=lie.report.mismatched,
                revoked=revoked,
                paid_uusd=link.account.paid_uusd,
                evidence=await self._keep_evidence(party, link, lie),
            )
        )

    async def _keep_evidence(self, party: Party, link: RoundLink, lie: LiarError) -> str | None:
        """Write what the liar has signed into a file that anybody can check."""
        coordinator = self.coordinator
        if coordinator.evidence is None or party.wrong is None:
            return None
        round_, before = party.wrong
        made = receipted_round_evidence(
            link.agreement,
            link.receipts,
            round_,
            before=(before.arrays, before.digests),
            blobs=link.blobs,
            signer=coordinator.signer,
            now_ms=coordinator.now_ms(),
            report=lie.report,
        )
        path = await coordinator.evidence.save(link.agreement, f"round-{round_}", made, pledge=link.pledge)
        return None if path is None else str(path)
