"""What the coordinator knows of one task while it runs, and who takes which of its places."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from p2pcompute.errors import P2PComputeError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import CheckPolicy, Requirement
from p2pcompute_protocols.work import Work

from ._api import TaskStake
from ._budget import TaskBudget
from ._doubling import QuorumDesk
from ._events import TaskEvent
from ._link import Link
from ._link_hooks import CheckChunks
from ._outcome import TaskOutcome
from ._scheduler import ChunkScheduler
from ._sharing import Sharing
from ._splits import SplitInputs

__all__ = ["Contact", "Deliver", "RunState", "TaskRequest"]

PLACE_S: Final = 1.0  # for so long somebody who is asked takes a place of `max_providers` without an agreement
_FORGIVEN: Final = 2  # chunks of one provider that may time out once without being held against it
MORE_PATIENCE: Final = 1.05  # for each `max_providers` that were given up
_AGAIN_S: Final = 2.0  # before somebody that had no room is asked again; twice as long after each further time,
_AGAIN_MOST_S: Final = 60.0  # up to this,
_REFUSALS: Final = 8  # and so many times
_FORGIVEN_WAITS: Final = 2  # agreements with one provider that don't count because it waited for us
_MOST_SLOW: Final = 16  # who have taken longer and are still waited for, at least; 2 × max_providers where that is more

Deliver = Callable[[Sequence[tuple[int, memoryview]], PeerId], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequest:
    """What is to be done and what it may cost: a ceiling for each agreement, and the budget of all together.

    `setup_s` is how long a provider may take from its agreement until it is ready, and `chunk_s` for a chunk, where
    others wait that were never asked. Where nobody does it has as long as was agreed. Of `sample_every` chunks of a
    provider one is sampled, or more where its window is short (`SampleRuns`). `stake` is what the task asks of
    providers' stakes, None for nothing. `outcome` says what has come of it once `Coordinator.run` has ended, in
    whatever way.
    """

    work: Work
    blobs: Mapping[bytes, bytes]
    splits: SplitInputs | None = None
    requirement: Requirement
    max_price_pusd: int
    ceiling_uusd: int
    budget: TaskBudget
    check: CheckPolicy
    fp: str
    language: str
    deadline_ms: int
    max_providers: int = 8
    doubled: float = 0.0  # the share of chunks that two providers do
    setup_s: float = 10.0
    chunk_s: float = 20.0
    sample_every: int = 1
    stake: TaskStake | None = None
    standing: bool = False  # the work is what each call of a standing agreement repeats
    shared: frozenset[bytes] = frozenset()  # inputs that providers may give to each other
    outcome: TaskOutcome = field(default_factory=TaskOutcome)


@dataclass(slots=True, kw_only=True)
class Contact:
    """One provider, from the moment it is dialled until its link has ended; `since` is when it was dialled, and from
    the agreement on, when that was made."""

    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    agreed: bool = False
    link: Link | None = None
    given_up: str = ""  # why, where the coordinator ended it to ask others

    @property
    def ready(self) -> bool:
        """Whether it may have been given work."""
        return self.link is not None and self.link.ready

    @property
    def draining(self) -> bool:
        """Whether it takes no more work."""
        return self.link is not None and self.link.draining

    def waited(self, now: float) -> float:
        """For how many seconds it has owed us set-up or a result; 0 where it owes nothing."""
        if self.link is None or not self.link.ready:
            return now - self.since
        return now - self.link.owes_since if self.link.owes_since is not None else 0.0

    def give_up(self, why: str) -> None:
        """End it: others are waiting."""
        if not self.given_up:
            self.given_up = why
            self.scope.cancel()


@dataclass(slots=True, kw_only=True)
class RunState:
    """One task. `most` is how many providers may have an agreement at once.

    Whoever is asked and says nothing costs its identity nothing, so it takes a place for `PLACE_S` only; it is waited
    for beside the places then, and a late agreement is made where a place is left. How many are waited for is bounded
    too: the one that has taken longest is given up first.
    """

    scheduler: ChunkScheduler
    deliver: Deliver
    deliver_together: bool = False
    check: CheckChunks
    probe: Callable[[int], Awaitable[bool]]
    emit: Callable[[TaskEvent], None]
    most: int
    desk: QuorumDesk | None = None  # where some chunks are done by two
    sharing: Sharing | None = None  # where inputs are shared
    contacts: dict[PeerId, Contact] = field(default_factory=dict)
    attempts: dict[PeerId, int] = field(default_factory=dict)
    excluded: set[PeerId] = field(default_factory=set)
    refusals: dict[PeerId, int] = field(default_factory=dict)  # how often somebody had no room
    ask_at: dict[PeerId, float] = field(default_factory=dict)  # not before then again
    waits: dict[PeerId, int] = field(default_factory=dict)  # agreements given back because it waited for us
    reasons: dict[PeerId, str] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    failures: dict[int, str] = field(default_factory=dict)  # why a chunk failed last
    fatal: P2PComputeError | None = None
    failed_at: dict[int, set[PeerId]] = field(default_factory=dict)  # whatever became of them since
    slept: dict[PeerId, set[int]] = field(default_factory=dict)  # chunks whose time-out there may be forgiven
    suspects: set[int] = field(default_factory=set)  # chunks that failed at several providers
    look_at: float = 0.0  # when the board is ranked next
    agreed: int = 0
    given_up: int = 0  # who agreed, kept us waiting and made room for others

    def wake(self) -> None:
        """Something has changed: look again."""
        event, self.changed = self.changed, trio.Event()
        event.set()

    def had_no_room(self, provider: PeerId, now: float) -> None:
        """It is asked again after a while, a few times: each costs us a little, and anybody can say so."""
        count = self.refusals[provider] = self.refusals.get(provider, 0) + 1
        self.ask_at[provider] = now + min(_AGAIN_MOST_S, _AGAIN_S * 2.0 ** (count - 1))
        if count >= _REFUSALS:
            self.excluded.add(provider)

    def forgives_wait(self, provider: PeerId) -> bool:
        """Whether an agreement that ended because the provider waited for us does not count as one."""
        count = self.waits[provider] = self.waits.get(provider, 0) + 1
        return count <= _FORGIVEN_WAITS

    def may_ask_later(self) -> bool:
        """Whether somebody that had no room is to be asked again."""
        return any(provider not in self.excluded for provider in self.ask_at)

    def hopes(self) -> list[PeerId]:
        """Whom chunks may be waited for: all contacts but those that had no room and have not agreed since."""
        return [peer for peer, contact in self.contacts.items() if contact.agreed or peer not in self.refusals]

    def failed(self, index: int, provider: PeerId, *, reason: str, timed_out: bool) -> None:
        """A chunk failed at a provider.

        A time-out may be the machine's: whoever was stopped for a while and goes on finds that its worker ran past its
        limit. So the first one at a chunk may be forgiven, for a few chunks of a provider.
        """
        self.failures[index] = reason
        self.failed_at.setdefault(index, set()).add(provider)
        slept = self.slept.setdefault(provider, set())
        if timed_out and index not in slept and len(slept) < _FORGIVEN:
            slept.add(index)
        else:
            slept.discard(index)

    def chunk_limit_s(self, provider: PeerId) -> float:
        """How many seconds were agreed for one chunk."""
        contact = self.contacts[provider]
        assert contact.link is not None  # asked of providers that were given chunks
        return contact.link.agreement.terms.chunk_timeout_ms / 1000

    def overslept(self, index: int, providers: set[PeerId]) -> bool:
        """Whether a chunk failed at `providers`, and everywhere by time-outs that may be forgiven."""
        return bool(providers) and all(index in self.slept.get(provider, ()) for provider in providers)

    def let_go(self) -> None:
        """End the links that are not ready: nothing is owed there, and they may take long or for ever."""
        for contact in self.contacts.values():
            if not contact.ready:
                contact.scope.cancel()

    @property
    def is_full(self) -> bool:
        """Whether as many have agreed as may."""
        return sum(contact.agreed for contact in self.contacts.values()) >= self.most

    def free(self, now: float) -> int:
        """How many more may be asked now."""
        return max(0, self.most - len(self.holders(now)))

    def holders(self, now: float) -> list[PeerId]:
        """Who takes a place now."""
        return [peer for peer, contact in self.contacts.items() if contact.agreed or now - contact.since < PLACE_S]

    def stalled(self, now: float, *, setup_s: float, chunk_s: float) -> list[tuple[float, Contact]]:
        """Who has agreed and then kept us waiting, for how many seconds, the longest first.

        More is allowed with each that was given up for it: where everybody is slow, it is the work that takes so long.
        """
        patience = MORE_PATIENCE ** (self.given_up / self.most)
        found = [
            (waited, contact)
            for contact in self.contacts.values()
            if contact.agreed
            and not contact.given_up
            and (waited := contact.waited(now)) >= (chunk_s if contact.ready else setup_s) * patience
        ]
        return sorted(found, key=lambda pair: -pair[0])

    def give_up_stalled(self, stalled: list[tuple[float, Contact]]) -> None:
        """Make room for as many that were never asked."""
        for waited, contact in stalled:
            self.given_up += 1
            what = "gave no result" if contact.ready else "was not ready"
            contact.give_up(f"it {what} in {waited:.0f} s, and others are waiting")

    def give_up_slowest(self, now: float) -> None:
        """Keep the number of those that have no agreement after `PLACE_S` within its bound."""
        slow = [
            contact
            for contact in self.contacts.values()  # in the order in which they were asked
            if not contact.agreed and not contact.given_up and now - contact.since >= PLACE_S
        ]
        for contact in slow[: max(0, len(slow) - max(_MOST_SLOW, 2 * self.most))]:
            contact.give_up(f"no agreement in {now - contact.since:.0f} s, and others are waiting")
