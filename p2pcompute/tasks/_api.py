"""What tasks need from execution, payments and checking: small interfaces, so that each can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from p2pcompute.market import Standing
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload

from ._budget import TaskBudget

if TYPE_CHECKING:
    from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch
    from p2pcompute.execution._rounds import Step

__all__ = [
    "ChunkRun",
    "Compiled",
    "ProviderAccount",
    "ProviderBooks",
    "RequesterAccount",
    "RequesterBooks",
    "RoundsRun",
    "TaskStake",
    "TaskWorker",
    "Workers",
]


class ChunkRun(Protocol):
    """Outputs of one run, in output order, and what it cost."""

    @property
    def outputs(self) -> tuple[bytes, ...]: ...
    @property
    def cpu_ns(self) -> int: ...
    @property
    def wall_ns(self) -> int: ...
    @property
    def device_ns(self) -> int: ...
    @property
    def energy_mj(self) -> int | None: ...


class Compiled(Protocol):
    """What compiling gave."""

    @property
    def compile_ms(self) -> float: ...
    @property
    def row_shapes(self) -> Sequence[tuple[int, ...]]: ...
    @property
    def items_per_block(self) -> int: ...


class RoundsRun(Protocol):
    """The bytes of each array of the state after each round, their SHA-256, and what they cost."""

    @property
    def states(self) -> tuple[tuple[bytearray, ...], ...]: ...
    @property
    def digests(self) -> tuple[tuple[bytes, ...], ...]: ...
    @property
    def cpu_ns(self) -> int: ...
    @property
    def wall_ns(self) -> int: ...
    @property
    def device_ns(self) -> int: ...
    @property
    def energy_mj(self) -> int | None: ...


class TaskWorker(Protocol):
    """One tenant's worker process; see `p2pcompute.execution.WorkerSession`."""

    async def compile(
        self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec], inputs: Mapping[int, Any]
    ) -> Compiled: ...
    @property
    def usable(self) -> bool: ...
    async def run_blocks(
        self, first_block: int, blocks: int, *, timeout_s: float, progress: Callable[[int], None] | None = None
    ) -> ChunkRun: ...
    async def run_threads(self, threads: Any, *, timeout_s: float) -> ChunkRun: ...
    async def compile_rounds(
        self, steps: Sequence[Step], state: Sequence[InputSpec], inputs: Sequence[Mapping[int, Any]]
    ) -> float: ...
    async def run_rounds(
        self, start: Sequence[bytes | bytearray | memoryview], number: int, rounds: int, *, timeout_s: float
    ) -> RoundsRun: ...


class Workers(Protocol):
    """Gives workers; leaving the context ends the process, or keeps it for its tenant where `keep` says so then."""

    def session(
        self, *, tenant: str | None = None, keep: Callable[[], bool] = ...
    ) -> AbstractAsyncContextManager[TaskWorker]: ...


class ProviderAccount(Protocol):
    """What one task may cost us on credit, and what it has earned."""

    @property
    def window(self) -> int:
        """Chunks that may be unpaid or under way at once, now."""
        ...

    @property
    def unpaid(self) -> int:
        """Chunks begun that no voucher covers."""
        ...

    async def begin(self) -> None:
        """Take on one more chunk, durably, before it is computed.

        Raises:
            LocalProtocolError: CREDIT_EXHAUSTED, no credit for this peer now.
        """
        ...

    async def begin_many(self, chunks: int) -> bool:
        """As `begin`, for several chunks at once; False, and none was begun, where there is no credit for all of
        them."""
        ...

    async def drop(self, *, used_units: int = 0) -> None:
        """A chunk that was begun came to nothing and is not owed. `used_units` is what it has used of the device all
        the same, which a newcomer's credit is charged. With no chunk under way: what the one that was issued last has
        really used, far more than its receipt says."""
        ...

    async def begin_compile(self) -> None:
        """Take on a compilation, before it begins.

        Raises:
            LocalProtocolError: CREDIT_EXHAUSTED, a newcomer without credit.
        """
        ...

    async def end_compile(self, *, used_units: int) -> None:
        """The compilation that was begun is over, however it ended; a newcomer's credit is charged what it used."""
        ...

    async def issue(self, payload: ReceiptPayload, sign: Callable[[ReceiptPayload], bytes]) -> bytes:
        """Store the receipt and what it earns in one transaction, then give its envelope.

        A receipt that was issued before for this chunk, with the same output, is given again.
        """
        ...

    async def issue_many(
        self, payloads: Sequence[ReceiptPayload], sign: Callable[[Sequence[ReceiptPayload]], ReceiptBatch]
    ) -> ReceiptBatch | None:
        """As `issue`, for results that share a signature; None, and nothing was stored, where one of the chunks has a
        receipt already: then each is issued by itself."""
        ...

    async def wait_changed(self) -> None:
        """Wait until a voucher covers the oldest unpaid chunk."""
        ...

    async def close(self) -> None:
        """The task has ended here; what is unpaid stays owed."""
        ...


class TaskStake(Protocol):
    """What a task asks of the stakes of its providers. `p2pcompute.stake.TaskStake` is one."""

    @property
    def arbiters(self) -> tuple[str, ...]:
        """The peers that orders name as arbiters."""
        ...

    async def admit(self, provider: PeerId, payee: bytes) -> None:
        """Raise `TaskRefused` where too little is at stake; `ChainError` where that can't be told."""
        ...

    async def pledge(self, agreement: Agreement) -> bytes:
        """Have the provider put its stake at risk; the file to have it taken by, empty where there are no arbiters.

        Raises `TaskRefused` where it does not, and what streams and chains raise.
        """
        ...


class ProviderBooks(Protocol):
    """The provider's ledger, as tasks see it."""

    async def agreed(self, agreement: Agreement) -> None:
        """Store an agreement; on disk when this returns."""
        ...

    async def open(self, agreement: Agreement) -> ProviderAccount:
        """The account of a task. Raises `LocalProtocolError` CREDIT_EXHAUSTED for a stranger without credit."""
        ...


class RequesterAccount(Protocol):
    """What one agreement has cost."""

    @property
    def paid_uusd(self) -> int:
        """Micro-USD that the provider has acknowledged for this agreement."""
        ...

    async def accept(self, results: Sequence[tuple[bytes, ReceiptPayload, int]]) -> None:
        """Store checked receipts, in order: the next voucher covers them.

        Args:
            results: the receipt, what it says, and how many elements of the chunk were re-run.

        Raises:
            BudgetError, PaymentError: together they would cost too much; none was accepted.
        """
        ...

    async def reject(self, receipt: bytes, payload: ReceiptPayload, reason: str) -> None:
        """Store a receipt that will not be paid, as evidence."""
        ...

    async def funded(self) -> None:
        """Wait until the channel that `pay` pays over has money for what may be accepted now, or it is known that it
        gets none; asks for it where nobody has."""
        ...

    async def pay_earlier(self) -> None:
        """Pay what earlier tasks have left accepted and unpaid, such as one whose link broke; raises as `pay`."""
        ...

    async def pay(self) -> None:
        """Send a voucher for all that was accepted; returns when the provider has acknowledged it.

        Raises:
            PaymentError: refused for good. OverlayError: the provider is gone; what it holds stays claimable.
        """
        ...


class RequesterBooks(Protocol):
    """The requester's ledger, as tasks see it."""

    async def open(self, agreement: Agreement, budget: TaskBudget) -> RequesterAccount:
        """Store the agreement; the channel of a provider that was paid before begins to be funded in the background,
        unless it holds enough to begin with."""
        ...

    async def close(self, agreement: Agreement, *, reason: str = "") -> None:
        """The task has ended with this provider; `reason` says why, "" where it was done."""
        ...

    async def failed(self, provider: PeerId, reason: str, *, ban: bool) -> None:
        """Remember that a provider failed us; a banned one gets no more work."""
        ...

    async def why_banned(self, provider: PeerId) -> str:
        """For what it gets no more work; "" where it does."""
        ...

    def standing(self, provider: PeerId) -> Standing:
        """What is known of a provider when providers are ranked."""
        ...
