"""What a requester's events come to: who holds which chunk, who did what, who was paid. A plain object without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    Compiling,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    SecondCopyHere,
    TaskEnded,
    TaskEvent,
    TaskStarted,
    WaitingForProviders,
)
from p2pcompute_protocols.money import owed_uusd

__all__ = ["ProviderState", "ProviderTally", "Tally"]

ProviderState: TypeAlias = Literal[
    "ready", "compiling", "waiting", "working", "lied", "killed", "lost", "refused", "stopped"
]


@dataclass(slots=True, kw_only=True)
class ProviderTally:
    """One provider, as the requester sees it.

    Attributes:
        name, peer_id: who it is.
        state: what it does now.
        holds: the chunks that it was given and has not answered.
        done: the chunks of it that count.
        revoked: the chunks that counted until it was caught.
        requeued: the chunks that it held when it was lost or caught.
        paid_uusd: acknowledged vouchers.
        paid_when_caught_uusd: that, at the moment when it was caught lying; None for an honest one.
        caught_at: the chunk whose samples differed.
        tasks: the agreements with it, by their hashes.
        last: what happened last, in a few words.
    """

    name: str
    peer_id: str
    state: ProviderState = "ready"
    holds: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    revoked: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    price_pusd: int = 0
    paid_uusd: int = 0
    paid_when_caught_uusd: int | None = None
    negotiation_ms: float | None = None
    compile_ms: int | None = None
    requester_max_loss_uusd: int = 0
    provider_max_loss_uusd: int = 0
    mismatched: int = 0
    caught_at: int | None = None
    tasks: list[bytes] = field(default_factory=list)
    last: str = ""
    _paid_before_uusd: int = 0  # by earlier agreements of this task

    def owed_uusd(self, units_per_chunk: int) -> int:
        """What its chunks are worth that no voucher covers yet, about: the last chunk may be a smaller one."""
        if self.state == "lied":
            return 0
        return max(0, owed_uusd(units_per_chunk * len(self.done), self.price_pusd) - self.paid_uusd)


@dataclass(slots=True, kw_only=True)
class Tally:
    """Takes the events of one task, in order.

    Attributes:
        names: a name for each peer ID that is known beforehand.
        providers: by peer ID.
        samples: private samples a chunk, which the event of a caught liar does not say.
        chunks: how many there are; 0 until the work is cut.
        done: by whom each chunk that counts was computed.
    """

    names: Mapping[str, str]
    samples: int = 0
    providers: dict[str, ProviderTally] = field(default_factory=dict)
    phase: Literal["starting", "compiling", "running", "complete"] = "starting"
    chunks: int = 0
    units_per_chunk: int = 0
    estimate_uusd: int = 0
    ceiling_uusd: int = 0
    done: dict[int, str] = field(default_factory=dict)
    checked: int = 0
    mismatched: int = 0
    rejected: int = 0
    first_done_s: float | None = None

    def __post_init__(self) -> None:
        for peer_id, name in self.names.items():
            self.providers[peer_id] = ProviderTally(name=name, peer_id=peer_id)

    def provider(self, peer_id: str) -> ProviderTally:
        """The provider of that ID; one that was not known beforehand is named by the end of it."""
        if peer_id not in self.providers:
            self.providers[peer_id] = ProviderTally(name=peer_id[-6:], peer_id=peer_id)
        return self.providers[peer_id]

    def holder(self, index: int) -> ProviderTally | None:
        """One of those who compute a chunk now."""
        return next((provider for provider in self.providers.values() if index in provider.holds), None)

    @property
    def paid_uusd(self) -> int:
        """What all providers acknowledged."""
        return sum(provider.paid_uusd for provider in self.providers.values())

    @property
    def owed_uusd(self) -> int:
        """What is computed, checked and not paid yet, about."""
        return sum(provider.owed_uusd(self.units_per_chunk) for provider in self.providers.values())

    @property
    def requester_max_loss_uusd(self) -> int:
        """What the requester can lose at most: with each provider, a window that is wrong and was not sampled."""
        return sum(provider.requester_max_loss_uusd for provider in self.providers.values())

    @property
    def provider_max_loss_uusd(self) -> int:
        """What one provider can lose at most: a window that is not paid."""
        return max((provider.provider_max_loss_uusd for provider in self.providers.values()), default=0)

    def take(self, event: TaskEvent, now_s: float) -> None:
        """Count an event that came `now_s` seconds after the task was begun."""
        match event:
            case Compiling():
                self.phase = "compiling"
            case TaskStarted():
                self.phase = "running"
                self.chunks, self.units_per_chunk = event.chunks, event.units_per_chunk
                self.estimate_uusd, self.ceiling_uusd = event.estimate_uusd, event.ceiling_uusd
            case ChunkDone():
                self._done(event, now_s)
            case LiarCaught():
                self._caught(event)
            case WaitingForProviders() | SecondCopyHere() | TaskEnded():
                pass  # the table shows that nobody works, and the report what it cost
            case _:
                self._of_one(event, self.provider(event.provider))

    def _of_one(
        self,
        event: Agreed | ProviderRefused | ProviderReady | ChunkAssigned | ChunkRejected | Paid | ProviderLost,
        provider: ProviderTally,
    ) -> None:
        match event:
            case Agreed():
                provider.state, provider.last = "compiling", f"agreed in {event.negotiation_ms:.0f} ms"
                provider.price_pusd, provider.negotiation_ms = event.price_pusd, event.negotiation_ms
                provider.requester_max_loss_uusd = event.requester_max_loss_uusd
                provider.provider_max_loss_uusd = event.provider_max_loss_uusd
                provider.tasks.append(event.task)
                provider._paid_before_uusd = provider.paid_uusd
            case ProviderReady():
                provider.state, provider.compile_ms = "working", event.compile_ms
                provider.last = f"compiled in {event.compile_ms / 1000:.1f} s"
            case ProviderRefused():
                provider.state, provider.last = "refused", event.reason
            case ChunkAssigned():
                provider.holds.add(event.index)
                provider.last = f"got chunk {event.index}"
            case ChunkRejected():
                provider.holds.discard(event.index)
                provider.last = f"chunk {event.index} failed: {event.reason}"
            case Paid():
                provider.paid_uusd = provider._paid_before_uusd + event.paid_uusd
                provider.last = f"paid {provider.paid_uusd} µUSD in all"
            case ProviderLost():
                self._lost(event, provider)

    def _done(self, event: ChunkDone, now_s: float) -> None:
        provider = self.provider(event.provider)
        if self.first_done_s is None:
            self.first_done_s = now_s
        for other in self.providers.values():  # who computed it as well is told to stop
            other.holds.discard(event.index)
        provider.done.add(event.index)
        provider.last = f"chunk {event.index} done"
        self.done[event.index] = event.provider
        self.checked += event.checked
        if self.chunks and len(self.done) == self.chunks:
            self.phase = "complete"

    def _lost(self, event: ProviderLost, provider: ProviderTally) -> None:
        provider.requeued.update(event.requeued)
        provider.holds.clear()
        if provider.state != "killed":
            provider.state, provider.last = "lost", event.reason

    def _caught(self, event: LiarCaught) -> None:
        provider = self.provider(event.provider)
        provider.state = "lied"
        provider.revoked.update(event.revoked)
        provider.requeued.update(provider.holds, event.revoked)
        provider.holds.clear()
        provider.done.clear()
        provider.paid_when_caught_uusd = provider.paid_uusd
        provider.mismatched += event.mismatched
        provider.caught_at = event.index
        provider.last = f"LIED: {event.mismatched} samples of chunk {event.index} differ"
        self.mismatched += event.mismatched
        self.checked += max(self.samples, event.mismatched)
        self.rejected += 1
        for index in event.revoked:
            self.done.pop(index, None)
        self.phase = "running"
