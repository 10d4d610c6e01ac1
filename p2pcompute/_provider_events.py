"""What can be watched at a provider: tasks that come and go, and the checkpoint at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pcompute.payments import agreed_loss
from p2pcompute.tasks import ChunkRun, ProviderAccount, ProviderBooks, Usage
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.money import owed_uusd
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload

__all__ = ["Checkpointed", "ProviderEvent", "ServedTaskEnded", "ServedTaskStarted", "ServedTotals", "WatchedBooks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTaskStarted:
    """A requester has opened a task here.

    Attributes:
        window: chunks that it may owe for now.
        max_loss_uusd: what its work can cost us at most, unpaid: as many chunks as it may ever owe.
    """

    task: TaskId
    requester: PeerId
    price_pusd: int
    window: int
    max_loss_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTaskEnded:
    """A task has ended here, for whatever reason.

    Attributes:
        chunks, failed: receipts over results, and over failures.
        billed_uusd: what the results cost, rounded up.
        unpaid_chunks: results that no voucher covered when it ended.
        used: processor time, wall time, device time and energy of the chunks that were computed.
    """

    task: TaskId
    requester: PeerId
    chunks: int
    failed: int
    billed_uusd: int
    unpaid_chunks: int
    used: Usage = field(default_factory=Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """Vouchers were claimed on chain: so many channels, and what was ever claimed on them."""

    channels: int
    claimed_uusd: int


ProviderEvent: TypeAlias = ServedTaskStarted | ServedTaskEnded | Checkpointed


@dataclass(slots=True, kw_only=True)
class ServedTotals:
    """What a provider has done since it began to sell.

    Attributes:
        tasks: that were opened, those that run included.
        chunks, failed: receipts over results, and over failures.
        billed_uusd: what tasks that have ended were billed, each rounded up.
    """

    tasks: int = 0
    chunks: int = 0
    failed: int = 0
    billed_uusd: int = 0


class WatchedBooks:
    """`ProviderBooks` that tell `emit` when tasks begin and end, and count them in `totals`."""

    def __init__(self, books: ProviderBooks, emit: Callable[[ProviderEvent], None]) -> None:
        self.totals = ServedTotals()
        self._books = books
        self._emit = emit
        self._used: dict[TaskId, Usage] = {}  # by tasks that are open

    def computed(self, task: TaskId, run: ChunkRun) -> None:
        """A chunk of `task` was computed."""
        if task in self._used:
            self._used[task].add(run)

    async def agreed(self, agreement: Agreement) -> None:
        """Store an agreement."""
        await self._books.agreed(agreement)

    async def open(self, agreement: Agreement) -> _WatchedAccount:
        """The account of a task."""
        account = await self._books.open(agreement)
        terms = agreement.terms
        self.totals.tasks += 1
        self._emit(
            ServedTaskStarted(
                task=TaskId(agreement.task_id),
                requester=PeerId(terms.requester),
                price_pusd=terms.price_pusd,
                window=account.window,
                max_loss_uusd=agreed_loss(terms).provider_uusd,
            )
        )
        self._used[TaskId(agreement.task_id)] = Usage()
        return _WatchedAccount(account, agreement, self._emit, self._used, self.totals)


class _WatchedAccount:
    """`ProviderAccount` that counts."""

    def __init__(
        self,
        account: ProviderAccount,
        agreement: Agreement,
        emit: Callable[[ProviderEvent], None],
        used: dict[TaskId, Usage],
        totals: ServedTotals,
    ) -> None:
        self._used = used
        self._totals = totals
        self._account = account
        self._agreement = agreement
        self._emit = emit
        self._chunks = 0
        self._failed = 0
        self._units = 0

    @property
    def window(self) -> int:
        return self._account.window

    @property
    def unpaid(self) -> int:
        return self._account.unpaid

    async def begin(self) -> None:
        await self._account.begin()

    async def begin_many(self, chunks: int) -> bool:
        return await self._account.begin_many(chunks)

    async def drop(self, *, used_units: int = 0) -> None:
        await self._account.drop(used_units=used_units)

    async def begin_compile(self) -> None:
        await self._account.begin_compile()

    async def end_compile(self, *, used_units: int) -> None:
        await self._account.end_compile(used_units=used_units)

    async def issue(self, payload: ReceiptPayload, sign: Callable[[ReceiptPayload], bytes]) -> bytes:
        envelope = await self._account.issue(payload, sign)
        if payload.code == 0:
            self._chunks += 1
            self._totals.chunks += 1
            self._units += payload.units
        else:
            self._failed += 1
            self._totals.failed += 1
        return envelope

    async def issue_many(
        self, payloads: Sequence[ReceiptPayload], sign: Callable[[Sequence[ReceiptPayload]], ReceiptBatch]
    ) -> ReceiptBatch | None:
        batch = await self._account.issue_many(payloads, sign)
        if batch is not None:
            self._chunks += len(payloads)
            self._totals.chunks += len(payloads)
            self._units += sum(payload.units for payload in payloads)
        return batch

    async def wait_changed(self) -> None:
        await self._account.wait_changed()

    async def close(self) -> None:
        used = self._used.pop(TaskId(self._agreement.task_id), None) or Usage()
        await self._account.close()
        billed_uusd = owed_uusd(self._units, self._agreement.terms.price_pusd)
        self._totals.billed_uusd += billed_uusd
        self._emit(
            ServedTaskEnded(
                task=TaskId(self._agreement.task_id),
                requester=PeerId(self._agreement.terms.requester),
                chunks=self._chunks,
                failed=self._failed,
                billed_uusd=billed_uusd,
                unpaid_chunks=self._account.unpaid,
                used=used,
            )
        )
