"""The ledger: what this node has promised and what it was promised, on disk before anybody else hears of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import trio

from p2pcompute.errors import ConfigError, PaymentError, StorageError
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.money import ChainTerms, usd
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import ReceiptBatch, ReceiptPayload

from ._channels import ChannelsMixin, need_in, refuse_closing
from ._commits import GroupCommit
from ._consents import ConsentsMixin
from ._database import Database, Row, Transaction
from ._executor import Executor, ThreadExecutor
from ._failing import Failing
from ._lock import LedgerLock
from ._outbox import OutboxMixin
from ._peers import PeersMixin
from ._roots import Covered, RootsMixin
from ._rows import AgreementRow, AgreementState, LoggedReceipt, ReceiptRow, RoleName, ceil_uusd
from ._schema import MIGRATIONS
from ._verify import LedgerReport, check_full, check_invariants, replay

__all__ = ["CeilingReached", "Ledger", "ReceiptConflict", "UnknownAgreement", "open_ledger"]

LEDGER_FILE: Final = "ledger.sqlite3"
LOCK_FILE: Final = "ledger.lock"
# Issued and held ones, in the order of `ReceiptRow`'s fields.
_RECEIPTS = (
    "SELECT task, idx, code, digest, units, pusd, envelope, '' AS verdict, 0 AS sampled, '' AS reason"
    " FROM receipts_issued UNION ALL"
    " SELECT task, idx, code, digest, units, pusd, envelope, verdict, sampled, reason FROM receipts_held"
)
_AGREEMENT = (
    "SELECT task, role, peer, channel, raw, price_pusd, ceiling_uusd, total_pusd, state, reason, created_ms,"
    " deadline_ms FROM agreements"
)

T = TypeVar("T")


class ReceiptConflict(StorageError):
    """A receipt with another result for this index of this task is signed already; a second would be proof of fraud.

    A run on other hardware or after a crash gave other bits: send the stored receipt, or fail the chunk.
    """


class CeilingReached(PaymentError):
    """The work would cost more than the agreement's ceiling; it was not accepted and nothing was signed."""


class UnknownAgreement(StorageError):
    """The ledger holds no such agreement: record it with `add_agreement` before anything is signed under it."""


def _agreement(row: Row | None) -> AgreementRow | None:
    return None if row is None else AgreementRow._make(row)


def need_agreement(tx: Transaction, task: TaskId, role: RoleName) -> AgreementRow:
    """The agreement with this hash, of which we are `role`."""
    found = _agreement(tx.one(f"{_AGREEMENT} WHERE task = :task", task=task))
    if found is None or found.role != role:
        raise UnknownAgreement(f"no agreement {task.hex()[:16]} in the ledger where this node is the {role}")
    return found


class Ledger(ChannelsMixin, ConsentsMixin, RootsMixin, OutboxMixin, PeersMixin):
    """All durable state of a node about work and money. Open it with `open_ledger`.

    Each method that changes something is one transaction: when it returns the change is on disk (WAL and
    ``synchronous=FULL``), when it raises nothing changed. Methods can be called from many tasks; they run one after
    the other, and those that wait for the disk share its next sync. A method is cancelled either before it began, and
    then did nothing, or not at all. One change waits for no sync, since nothing rests on it: `ack_voucher`.

    Raises, from any method:
        DiskFull: no room. Nothing is lost and the ledger goes on once there is room.
        LedgerFailed: the disk failed; restart the node.
        LedgerCorrupt: the file is damaged.
        AmountOutOfRange: above `INT64_MAX`.
    """

    def __init__(
        self,
        database: Database,
        *,
        executor: Executor,
        clock_ms: Callable[[], int],
        lock: LedgerLock | None,
    ) -> None:
        self._database = database
        self._executor = executor
        self._commit = GroupCommit(database, executor, clock_ms)
        self.closings = 0
        self._failing = Failing(database)
        self._acks: dict[ChannelId, int] = {}
        self._signed: dict[ChannelId, Covered] = {}
        self._lock = lock

    @property
    def path(self) -> Path | None:
        """The database file; None for one in memory."""
        return self._database.path

    @property
    def failure(self) -> str:
        """Why the ledger takes nothing more: the disk failed, or it is closed. "" while all is well."""
        return self._database.failure

    async def wait_failed(self) -> NoReturn:
        """Wait until the disk fails: who serves others ends with what this raises.

        Raises:
            LedgerFailed: it has; some method has raised the same, to somebody who may have made little of it.
        """
        await self._failing.wait()

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        with self._failing:
            return await self._commit(work)

    def _ride(self, key: object, work: Callable[[Transaction], object]) -> None:
        self._commit.ride(key, work)

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        await self._write_riders()
        return await self._run(lambda: self._database.read(work))

    async def _run(self, call: Callable[[], T]) -> T:
        with self._failing:
            return await self._executor(call)

    async def _look(self, work: Callable[[Transaction], T], key: object = None) -> T:
        if self._database.path is None:
            return await self._read(work)
        await trio.lowlevel.checkpoint_if_cancelled()  # over before anybody else would have had a turn
        with self._failing:
            return self._database.look(work, key)

    async def _write_riders(self) -> None:
        if self._commit.riding:
            with suppress(StorageError):  # they say nothing that is not said again; to read is what was asked for
                await self._write(lambda _: None)

    async def aclose(self) -> None:
        """Close the file and release the lock; waits for a call under way. Safe to call twice."""
        with trio.CancelScope(shield=True):
            await self._write_riders()
            self._database.close_looks()
            await self._executor(self._database.close)
        if self._lock is not None:
            self._lock.release()

    async def bind_chain(self, chain: ChainTerms) -> None:
        """Tie the ledger to one hub on one chain, at first use for good: the same channel IDs mean other money
        elsewhere. Call it before any other method that is about money.

        Raises:
            ConfigError: the ledger belongs to another chain, hub or token.
        """

        def work(tx: Transaction) -> None:
            row = tx.one("SELECT chain_id, hub, token FROM home")
            if row is None:
                tx.emit("chain_bound", chain_id=chain.chain_id, hub=chain.hub, token=chain.token)
            elif row != (chain.chain_id, chain.hub, chain.token):
                raise ConfigError(
                    f"this profile's ledger belongs to the hub 0x{row[1].hex()} on chain {row[0]}, not to "
                    f"0x{chain.hub.hex()} on chain {chain.chain_id}; use another profile for that one"
                )

        await self._write(work)

    async def bound_chain(self) -> ChainTerms | None:
        """The chain, hub and token that the ledger is tied to; None before the first `bind_chain`."""

        def work(tx: Transaction) -> ChainTerms | None:
            row = tx.one("SELECT chain_id, hub, token FROM home")
            return None if row is None else ChainTerms(chain_id=row[0], hub=row[1], token=row[2], decimals=6)

        return await self._read(work)

    # Agreements

    async def add_agreement(self, agreement: Agreement, *, role: RoleName) -> AgreementRow:
        """Record an agreement, and the channel it is paid over. The same one again changes nothing.

        A provider calls it before the countersignature leaves, a requester before it opens the task.

        Raises:
            ChannelClosing: as provider, where we have signed that the channel may be closed.
        """
        terms = agreement.terms
        channel = channel_id(Address(terms.payer.owner), Address(terms.payee), Address(terms.payer.signer))
        peer = terms.provider if role == "requester" else terms.requester

        def work(tx: Transaction) -> AgreementRow:
            task = agreement.task_id
            if tx.one("SELECT 1 FROM agreements WHERE task = :task", task=task) is None:
                if role == "provider":
                    refuse_closing(tx, channel)
                tx.emit(
                    "agreed",
                    task=task,
                    role=role,
                    peer=peer,
                    channel=channel,
                    raw=agreement.raw,
                    price_pusd=terms.price_pusd,
                    ceiling_uusd=terms.ceiling_uusd,
                    deadline_ms=terms.deadline_ms,
                )
                if role == "requester":
                    self._open_out(tx, channel, Address(terms.payee), PeerId(peer))
                else:
                    self._open_in(tx, channel, Address(terms.payer.owner), Address(terms.payer.signer), PeerId(peer))
            return need_agreement(tx, task, role)

        return await self._write(work)

    async def close_agreement(self, task: TaskId, *, state: AgreementState, reason: str = "") -> None:
        """The task ended: no further work is accepted under its agreement. Closing twice keeps the first."""

        def work(tx: Transaction) -> None:
            row = tx.one("SELECT state FROM agreements WHERE task = :task", task=task)
            if row is not None and row[0] == "open":
                tx.emit("agreement_closed", task=task, state=state, reason=reason)

        await self._write(work)

    async def agreement(self, task: TaskId) -> AgreementRow | None:
        """One agreement."""
        return await self._look(lambda tx: _agreement(tx.one(f"{_AGREEMENT} WHERE task = :task", task=task)))

    async def open_agreements(self) -> list[AgreementRow]:
        """Those whose task has not ended: what to take up, or to fail, after a restart."""

        def work(tx: Transaction) -> list[AgreementRow]:
            rows = tx.all(f"{_AGREEMENT} WHERE state = 'open' ORDER BY created_ms, task")
            return [row for row in map(_agreement, rows) if row is not None]

        return await self._read(work)

    # Receipts

    async def record_receipt(self, receipt: ReceiptPayload, *, sign: Callable[[ReceiptPayload], bytes]) -> bytes:
        """Provider: the signed receipt of a chunk, stored together with what is owed for it.

        `sign` makes the envelope (`seal_receipt`); it is called inside of the transaction, where nothing is signed for
        this (task, index, code), so that there is never a signature over a second result. Where there is one for the
        same result, that one is returned and nothing more is owed.

        Raises:
            ReceiptConflict: a result with another digest is signed for this index.
            UnknownAgreement: `add_agreement` was not called for this task.
        """

        def work(tx: Transaction) -> bytes:
            task = TaskId(receipt.task)
            agreement = need_agreement(tx, task, "provider")
            stored = tx.one(
                "SELECT digest, envelope FROM receipts_issued WHERE task = :task AND idx = :idx AND code = :code",
                task=task,
                idx=receipt.index,
                code=receipt.code,
            )
            if stored is not None:
                if stored[0] != receipt.output:
                    raise ReceiptConflict(
                        f"chunk {receipt.index} of task {task.hex()[:16]} has a signed receipt for another result; "
                        "send that one or fail the chunk"
                    )
                return bytes(stored[1])
            envelope = sign(receipt)
            tx.emit(
                "receipt_issued",
                task=task,
                idx=receipt.index,
                code=receipt.code,
                digest=receipt.output,
                units=receipt.units,
                pusd=receipt.units * agreement.price_pusd,
                envelope=envelope,
                channel=agreement.channel,
            )
            tx.know(("channel_in", agreement.channel), need_in(tx, agreement.channel))  # which is looked at next
            return envelope

        return await self._write(work)

    async def record_receipts(
        self, receipts: Sequence[ReceiptPayload], *, sign: Callable[[Sequence[ReceiptPayload]], ReceiptBatch]
    ) -> ReceiptBatch | None:
        """Provider: the receipts of several results of one task under one signature, in one transaction, as
        `record_receipt` does for one.

        Returns:
            What `sign` made; None, and nothing is done, where one of them has a receipt already: then each is recorded
            by itself.

        Raises:
            UnknownAgreement: `add_agreement` was not called for this task.
        """
        task = TaskId(receipts[0].task)

        def work(tx: Transaction) -> ReceiptBatch | None:
            agreement = need_agreement(tx, task, "provider")
            wanted = {receipt.index for receipt in receipts}
            low, high = min(wanted), max(wanted)
            stored = tx.all(
                "SELECT idx FROM receipts_issued WHERE task = :task AND idx BETWEEN :low AND :high AND code = 0",
                task=task,
                low=low,
                high=high,
            )
            if len(wanted) < len(receipts) or any(idx in wanted for (idx,) in stored):
                return None
            batch = sign(receipts)
            price_pusd = agreement.price_pusd
            tx.emit_rows(
                "receipts_issued",
                [
                    (receipt.index, receipt.output, receipt.units, receipt.units * price_pusd, shown)
                    for receipt, shown in zip(receipts, batch.receipts, strict=True)
                ],
                task=task,
                channel=agreement.channel,
                pusd=sum(receipt.units for receipt in receipts) * price_pusd,
                count=len(receipts),
            )
            return batch

        return await self._write(work)

    async def issued_receipt(self, task: TaskId, index: int) -> bytes | None:
        """Provider: the signed result receipt of a chunk, to send again after a crash; None where there is none."""

        def work(tx: Transaction) -> bytes | None:
            row = tx.one(
                "SELECT envelope FROM receipts_issued WHERE task = :task AND idx = :idx AND code = 0",
                task=task,
                idx=index,
            )
            return None if row is None else bytes(row[0])

        return await self._look(work)

    async def accept_work(
        self, task: TaskId, receipts: Sequence[tuple[ReceiptPayload, bytes]], *, sampled: int | Sequence[int]
    ) -> int:
        """Requester: receipts whose sample matched, in one transaction; they count towards the next voucher.

        Receipts of indexes accepted before are skipped, so nothing is paid twice.

        Args:
            receipts: payloads (code 0) and their envelopes, verified by the caller.
            sampled: how many elements of each were re-run: one number for all of them, or one for each.

        Returns:
            What the channel's next voucher will say, in micro-USD.

        Raises:
            CeilingReached: together they would cost more than the agreement's ceiling; none was accepted.
            UnknownAgreement: no open agreement for this task.
        """
        counts = [sampled] * len(receipts) if isinstance(sampled, int) else sampled

        def work(tx: Transaction) -> int:
            agreement = need_agreement(tx, task, "requester")
            if agreement.state != "open":
                raise UnknownAgreement(f"the task {task.hex()[:16]} has ended ({agreement.state}); accept nothing more")
            total_pusd = agreement.total_pusd
            known = _accepted_among(tx, task, receipts)
            rows: list[tuple[int, int, bytes, int, int, bytes, int]] = []
            for (receipt, envelope), count in zip(receipts, counts, strict=True):
                if receipt.task != task or receipt.code != 0:
                    raise PaymentError("only results of this task can be accepted")
                pusd = receipt.units * agreement.price_pusd
                if receipt.index in known:
                    continue
                known.add(receipt.index)
                total_pusd += pusd
                if ceil_uusd(total_pusd) > agreement.ceiling_uusd:
                    raise CeilingReached(
                        f"task {task.hex()[:16]} would cost {usd(ceil_uusd(total_pusd))} and its ceiling is "
                        f"{usd(agreement.ceiling_uusd)}; raise the budget and run the rest anew"
                    )
                rows.append((len(rows), receipt.index, receipt.output, receipt.units, pusd, envelope, count))
            if rows:
                tx.emit_rows(
                    "works_rooted",
                    rows,
                    task=task,
                    channel=agreement.channel,
                    pusd=total_pusd - agreement.total_pusd,
                    count=len(rows),
                )
            row = tx.one("SELECT accepted_pusd FROM channels_out WHERE channel = :channel", channel=agreement.channel)
            return ceil_uusd(row[0]) if row is not None else 0

        return await self._write(work)

    async def reject_work(self, receipt: ReceiptPayload, envelope: bytes, *, reason: str, sampled: int = 0) -> None:
        """Requester: keep a receipt that failed its check, or that reports a failure, as evidence. Costs nothing."""

        def work(tx: Transaction) -> None:
            agreement = need_agreement(tx, TaskId(receipt.task), "requester")
            if tx.one(
                "SELECT 1 FROM receipts_held WHERE task = :task AND idx = :idx AND envelope = :envelope"
                " AND verdict = 'rejected'",
                task=agreement.task,
                idx=receipt.index,
                envelope=envelope,
            ):
                return
            tx.emit(
                "work_rejected",
                task=agreement.task,
                idx=receipt.index,
                code=receipt.code,
                digest=receipt.output,
                units=receipt.units,
                envelope=envelope,
                sampled=sampled,
                reason=reason,
            )

        await self._write(work)

    async def receipt_log(self, *, limit: int = 1_000, before_ms: int | None = None) -> list[LoggedReceipt]:
        """Receipts of all tasks with whom they are between, those of the newest agreements first.

        Args:
            limit: how many at most.
            before_ms: only of agreements recorded before this time.
        """

        def work(tx: Transaction) -> list[LoggedReceipt]:
            rows = tx.all(
                f"SELECT r.*, a.role, a.peer, a.created_ms FROM ({_RECEIPTS}) r JOIN agreements a ON a.task = r.task"
                " WHERE :before IS NULL OR a.created_ms < :before"
                " ORDER BY a.created_ms DESC, r.task, r.idx, r.code LIMIT :limit",
                before=before_ms,
                limit=limit,
            )
            names = list(ReceiptRow.__dataclass_fields__)
            return [
                LoggedReceipt(
                    receipt=ReceiptRow(**dict(zip(names, row[: len(names)], strict=True))),
                    role=row[-3],
                    peer=PeerId(row[-2]),
                    agreed_ms=row[-1],
                )
                for row in rows
            ]

        return await self._read(work)

    async def receipts(self, task: TaskId) -> list[ReceiptRow]:
        """Every receipt of a task, issued or held, by index."""

        def work(tx: Transaction) -> list[ReceiptRow]:
            rows = tx.all(
                f"SELECT * FROM ({_RECEIPTS}) WHERE task = :task ORDER BY idx, code",
                task=task,
            )
            names = ReceiptRow.__dataclass_fields__
            return [ReceiptRow(**dict(zip(names, row, strict=True))) for row in rows]

        return await self._read(work)

    # The ledger itself

    async def verify(self, *, full: bool = False) -> LedgerReport:
        """Check the ledger's own rules; `full` also reads every page and replays the log.

        Raises:
            LedgerCorrupt: with the first rule that is broken.
        """
        return await self._run(
            lambda: self._database.read(
                lambda _: check_full(self._database.connection) if full else check_invariants(self._database.connection)
            )
        )

    async def replay(self) -> Database:
        """A database in memory, rebuilt from the log of events alone."""
        return await self._run(lambda: self._database.read(lambda _: replay(self._database.connection)))


def _accepted_among(tx: Transaction, task: TaskId, receipts: Sequence[tuple[ReceiptPayload, bytes]]) -> set[int]:
    """The chunks among those of `receipts` that have an accepted receipt already."""
    if not receipts:
        return set()
    indexes = [receipt.index for receipt, _ in receipts]
    low, high = min(indexes), max(indexes)
    if high - low > 4 * len(indexes):  # far apart: what lies between them is not to be read
        found = (
            tx.one(
                "SELECT idx FROM receipts_held WHERE task = :task AND idx = :idx AND verdict = 'accepted'",
                task=task,
                idx=index,
            )
            for index in indexes
        )
        return {row[0] for row in found if row is not None}
    rows = tx.all(
        "SELECT idx FROM receipts_held WHERE task = :task AND idx BETWEEN :low AND :high AND verdict = 'accepted'",
        task=task,
        low=low,
        high=high,
    )
    return {idx for (idx,) in rows}


@asynccontextmanager
async def open_ledger(
    directory: Path | None,
    *,
    executor: Executor | None = None,
    clock_ms: Callable[[], int] | None = None,
    migrations: Sequence[str] = MIGRATIONS,
) -> AsyncGenerator[Ledger]:
    """Open, or create, the ledger of a profile.

    Args:
        directory: where ``ledger.sqlite3`` and its lock lie; made with mode 0700 where missing. None keeps
            everything in memory, for simulations.
        executor: `ThreadExecutor` unless given.
        clock_ms: UNIX time in milliseconds; the system's unless given.
        migrations: only for tests of the machinery.

    Raises:
        ProfileInUse: another process has it open.
        ConfigError: it was written by a newer p2pcompute, or lies on a file system that can't hold it.
        LedgerCorrupt, DiskFull: as `Ledger`.
    """
    run = ThreadExecutor() if executor is None else executor
    lock: LedgerLock | None = None
    path: Path | None = None
    if directory is not None:
        lock = LedgerLock(directory / LOCK_FILE)
        path = directory / LEDGER_FILE
    try:
        database = await run(lambda: Database(path, migrations=migrations))
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    clock = clock_ms if clock_ms is not None else lambda: time.time_ns() // 1_000_000
    ledger = Ledger(database, executor=run, clock_ms=clock, lock=lock)
    try:
        await ledger.verify()
        yield ledger
    finally:
        await ledger.aclose()
