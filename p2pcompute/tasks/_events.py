"""What a requester can watch while a task runs. Only these are emitted; each is complete in itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2pcompute_protocols.ids import PeerId, TaskId

__all__ = [
    "Agreed",
    "ChunkAssigned",
    "ChunkDone",
    "ChunkRejected",
    "Compiling",
    "LiarCaught",
    "Paid",
    "ProviderLost",
    "ProviderReady",
    "ProviderRefused",
    "SecondCopyHere",
    "TaskEnded",
    "TaskEvent",
    "TaskStarted",
    "WaitingForProviders",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiling:
    """The kernel is compiled and timed here, to price the order and to check results."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted:
    """The work is cut; `estimate_uusd` is the expected cost, the maximum losses are as in docs/guarantees.md."""

    chunks: int
    units_per_chunk: int
    estimate_uusd: int
    ceiling_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """Both signed. `negotiation_ms` runs from the order to the agreement; `check` is "sample", "quorum" where chunks
    are done by two providers, or "none" where results are taken unchecked. `requester_max_loss_uusd` is what a lie
    that a sample misses costs: a window. Where no samples are drawn, with "none" or a "quorum" without any, it is the
    whole ceiling: two who lie alike agree in each chunk, and nothing finds them later."""

    provider: PeerId
    task: TaskId
    price_pusd: int
    credit_window: int
    max_window: int
    negotiation_ms: float
    requester_max_loss_uusd: int
    provider_max_loss_uusd: int
    check: str = "sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefused:
    """A provider did not bid, sign or open."""

    provider: PeerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderReady:
    """It has the inputs and has compiled the kernel."""

    provider: PeerId
    compile_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkAssigned:
    """A chunk was given out."""

    provider: PeerId
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDone:
    """A chunk came, its receipt is right and its samples were equal."""

    provider: PeerId
    index: int
    checked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRejected:
    """A chunk failed at a provider; it goes to another."""

    provider: PeerId
    index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """The provider acknowledged a voucher; amounts are cumulative for this task, in micro-USD."""

    provider: PeerId
    paid_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderLost:
    """The connection broke, or it stalled; `requeued` are the chunks that it had."""

    provider: PeerId
    reason: str
    requeued: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiarCaught:
    """A sample differed: nothing more is paid, and every chunk of it is computed anew. `evidence` is the path of a file
    that shows it to anybody (`verify_evidence`); None where none is kept."""

    provider: PeerId
    index: int
    mismatched: int
    revoked: tuple[int, ...]
    paid_uusd: int
    evidence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingForProviders:
    """Nobody is left who could compute `chunks` of the chunks; the task gives up after `patience_s` seconds."""

    chunks: int
    patience_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondCopyHere:
    """A chunk that two providers were to do was computed here, whole, to judge the one result of `provider`: nobody
    else could have it, its result did not come in time, or the two differ."""

    provider: PeerId
    index: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnded:
    """The task has ended, whether it is complete or not: the last event of each that has started (`TaskStarted`).

    `done` of its `chunks` came, were checked and hold. `accepted_uusd` is what all providers together are owed for
    what was accepted, and `paid_uusd` what they have acknowledged vouchers for by now, both in micro-USD; a provider
    that is gone is paid what is left later."""

    chunks: int
    done: int
    accepted_uusd: int
    paid_uusd: int


TaskEvent: TypeAlias = (
    Compiling
    | TaskStarted
    | Agreed
    | ProviderRefused
    | ProviderReady
    | ChunkAssigned
    | ChunkDone
    | ChunkRejected
    | Paid
    | ProviderLost
    | LiarCaught
    | WaitingForProviders
    | SecondCopyHere
    | TaskEnded
)
