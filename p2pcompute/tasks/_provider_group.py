"""Short chunks at a provider: run together, receipted under one signature in one transaction, and sent in few frames.

A chunk that takes less than a wake-up of the worker, a sync of the disk and a signature costs mostly those. So chunks
that lie side by side, and are here already, are one run over all of their blocks; the outputs are cut apart behind it.
Nobody waits for a group to be full: it is what is in the queue when the worker is free. Each chunk still has its own
output, receipt and price.

How many go together follows from how long the last ones took, and is twice as many as ever did at most; what is there
is cut into even parts. What is too much for one message is several, each with its own signature; it is one transaction
all the same. A group that fails, or that takes far longer than expected, gives nothing: its chunks are computed one by
one then, and so is the rest of the task, so that each of them succeeds, fails, is cancelled and is bounded as if there
were no groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from p2pcompute.errors import ExecutionError
from p2pcompute_protocols import task
from p2pcompute_protocols.limits import MAX_BATCH_CHUNKS, MAX_INFLIGHT_CHUNKS
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import BATCH_BYTES, ReceiptBatch, ReceiptPayload, Results
from p2pcompute_protocols.work import RoundWork, Work

from ._api import ChunkRun, ProviderAccount, TaskWorker
from ._meter import Meter, check_price, units_of
from ._refusing import WorkerGoneError
from ._round_provider import RoundsWorker

if TYPE_CHECKING:
    from ._provider_session import Session

__all__ = ["Group", "result_receipt", "together"]

_GROUP_S: Final = 0.2  # what the chunks of a group should take together
_QUICK_S: Final = 0.02  # what delays nobody
_GROUP_BYTES: Final = 2 << 20  # what they should give together
_MOST_S: Final = 1.0  # a group that takes longer is none: its chunks are computed one by one
_Output: TypeAlias = "bytes | memoryview"


class Group:
    """How many chunks of a task are computed together."""

    __slots__ = ("_chunk_s", "_largest", "alone")

    def __init__(self) -> None:
        self.alone = False  # for good: a group came to nothing
        self._chunk_s = _GROUP_S  # until one was timed
        self._largest = 1

    def ran(self, chunks: int, wall_ns: int) -> None:
        """So many have taken so long."""
        self._largest = max(self._largest, chunks)
        self._chunk_s = max(wall_ns, 1) / 1e9 / chunks

    def refused(self, chunks: int) -> None:
        """There was no credit for so many; for half of them there may be."""
        self._largest = max(1, chunks // 4)

    @property
    def quick(self) -> int:
        """How many take no time to speak of."""
        return max(1, int(_QUICK_S / self._chunk_s))

    def most(self, room: int) -> int:
        """How many of `room` chunks, which are here and may go together, do so now: as even parts of them as there can
        be without one that takes much longer than a group should, so that none is left over by itself."""
        if self.alone or room < 1 or 2 * self._chunk_s > _GROUP_S:
            return 1
        parts = max(1, round(room * self._chunk_s / _GROUP_S))
        return max(1, min(2 * self._largest, -(-room // parts), MAX_INFLIGHT_CHUNKS))


def result_receipt(
    agreement: Agreement, index: int, outputs: Sequence[_Output], units: int, now_ms: int, call: bytes | None
) -> ReceiptPayload:
    """What is signed for a chunk with a result; `call` stands for its call, in a standing agreement."""
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(output)
    return ReceiptPayload(
        task=agreement.task_id,
        index=index,
        code=0,
        output=digest.digest(),
        fp=agreement.terms.fp,
        units=units,
        finished_ms=now_ms,
        call=call,
    )


def _chosen(session: Session, work: Work, account: ProviderAccount) -> list[int]:
    """The chunks at the head of the queue that are computed together, in ascending order; they stay there."""
    if len(session.queue) < 2:
        return []
    size = max(1, session.connection.chunk_bytes[0])
    # Vouchers come for half a window: what is paid with one is not to wait for what is paid with the next, so a group
    # ends where a half does, and the requester looks at one half while the other one is computed.
    half = max(1, account.window // 2)
    room = min(account.window - account.unpaid, max(half - account.unpaid % half, min(session.group.quick, half)))
    most = min(session.group.most(min(len(session.queue), room)), _GROUP_BYTES // size)
    if most < 2 or BATCH_BYTES // size < 2 or isinstance(work, RoundWork) or work.splits:
        return []
    chosen: list[int] = []
    for index in islice(session.queue, most):
        if chosen and (index != chosen[-1] + 1 or index % work.chunks == 0):  # which is of another call
            break
        if index in session.cancelled or session.answered[index]:
            break
        chosen.append(index)
    if BATCH_BYTES // size == 2 and len(chosen) % 2:
        chosen.pop()  # there is no batch of one
    return chosen


def _batches(count: int, most: int) -> list[slice]:
    """So many results as few batches of at most `most`, of about as many each."""
    batches = -(-count // most)
    return [slice(count * at // batches, count * (at + 1) // batches) for at in range(batches)]


def _blocks(work: Work, chunks: Sequence[int]) -> tuple[int, int]:
    """The first block of chunks that lie side by side, and the one behind their last."""
    return work.chunk_range(chunks[0] % work.chunks)[0], sum(work.chunk_range(chunks[-1] % work.chunks))


async def together(
    session: Session, agreement: Agreement, work: Work, account: ProviderAccount, worker: TaskWorker | RoundsWorker
) -> bool:
    """Compute, sign and send the next chunks at once; False, and nothing is done, where the next one goes by itself.

    Raises:
        WorkerGoneError: the worker was lost; the chunks are in the queue again, each for itself.
        RefuseError: as for one chunk.
    """
    chunks = _chosen(session, work, account)
    if len(chunks) < 2 or isinstance(worker, RoundsWorker):
        return False
    if not await account.begin_many(len(chunks)):
        session.group.refused(len(chunks))
        return False
    for _ in chunks:
        session.queue.popleft()  # meanwhile there came only what is behind them
    run, used = await _run(session, agreement, work, account, worker, chunks)
    if run is None:
        return True
    await _deliver(session, agreement, work, account, chunks, run, used)
    return True


async def _run(
    session: Session,
    agreement: Agreement,
    work: Work,
    account: ProviderAccount,
    worker: TaskWorker,
    chunks: Sequence[int],
) -> tuple[ChunkRun | None, Meter]:
    service, known = session.service, session.place.guest.known
    first, end = _blocks(work, chunks)
    blocks = end - first
    limit_s = min(_MOST_S, agreement.terms.chunk_timeout_ms / 1000)
    used = Meter(service.speed_milli(work), limit_s)
    run: ChunkRun | None = None
    failed: ExecutionError | None = None
    try:
        with trio.CancelScope() as session.running:
            if session.finish.is_set():
                session.running.cancel()
            with session.place.working():
                async with service.slots.turn(known=known):
                    with used, session.shown(chunks[0], blocks) as shown:
                        await session.give_call(worker, chunks[0], timeout_s=agreement.terms.chunk_timeout_ms / 1000)
                        session.running.deadline = trio.current_time() + limit_s
                        run = await worker.run_blocks(
                            first, blocks, timeout_s=agreement.terms.chunk_timeout_ms / 1000, progress=shown.progress
                        )
                        shown.end(run)
                        service.used.add(run)
                        service.computed(agreement.task_id, run)
    except ExecutionError as exc:
        failed = exc
    except BaseException:
        await _drop(account, chunks, used)
        raise
    if run is not None:
        return run, used
    await _drop(account, chunks, used)
    if session.finish.is_set():
        return None, used
    session.group.alone = True
    session.queue.extendleft(reversed(chunks))
    if failed is not None or not worker.usable:
        session.deaths -= 1  # which of the chunks it was, nobody knows yet; it happens once in a task
        raise WorkerGoneError("a worker was lost with several chunks") from failed
    return None, used


async def _drop(account: ProviderAccount, chunks: Sequence[int], used: Meter) -> None:
    """Whoever leaves in the middle has used as much as who stays; of which chunk it was, does not matter."""
    with trio.CancelScope(shield=True):
        for number, _ in enumerate(chunks):
            await account.drop(used_units=0 if number else used.units)


async def _deliver(
    session: Session,
    agreement: Agreement,
    work: Work,
    account: ProviderAccount,
    chunks: Sequence[int],
    run: ChunkRun,
    used: Meter,
) -> None:
    service = session.service
    now_ms, of_call = service.now_ms(), work.chunks
    payloads: list[ReceiptPayload] = []
    results: list[tuple[_Output, ...]] = []
    begin, end = _blocks(work, chunks)
    outputs = [(memoryview(output), len(output) // (end - begin)) for output in run.outputs]
    parts = _batches(len(chunks), min(MAX_BATCH_CHUNKS, BATCH_BYTES // max(1, session.connection.chunk_bytes[0])))
    batches: list[ReceiptBatch] = []

    def sign(receipts: Sequence[ReceiptPayload]) -> ReceiptBatch:
        batches[:] = [task.seal_batch(receipts[part], network=service.network, signer=service.signer) for part in parts]
        # Each receipt shows the signature that it is under; to whoever stores them they are one batch.
        return ReceiptBatch(
            envelope=batches[0].envelope, receipts=tuple(shown for batch in batches for shown in batch.receipts)
        )

    try:
        for part in parts:
            for index in chunks[part]:
                first, blocks = work.chunk_range(index % of_call)
                at = first - begin
                result: tuple[_Output, ...] = tuple(rows[at * size : (at + blocks) * size] for rows, size in outputs)
                if service.fault is not None:
                    result = (service.fault(b"".join(result), index),)
                results.append(result)
                units = units_of(work, blocks)
                payloads.append(result_receipt(agreement, index, result, units, now_ms, session.call_of(index)))
            await trio.lowlevel.checkpoint()  # a node has others to talk to
        issued = await account.issue_many(payloads, sign)
    except BaseException:  # computed, and owed by nobody
        await _drop(account, chunks, used)
        raise
    if issued is None:
        for payload, result in zip(payloads, results, strict=True):
            await session.hand_over(agreement, account, payload, result, 0)
    else:
        session.place.chunks += len(chunks)
        messages = [
            Results(
                index=chunks[part.start],
                count=len(chunks[part]),
                finished_ms=now_ms,
                receipts=batch.envelope,
                data=b"".join(output for result in results[part] for output in result),
            )
            for part, batch in zip(parts, batches, strict=True)
        ]
        await session.dialogue.send(*messages)
        session.note_answered(chunks)
    session.cancelled.difference_update(chunks)  # it came too late
    session.group.ran(len(chunks), run.wall_ns)
    units = sum(payload.units for payload in payloads)
    await check_price(agreement, account, run, units, service.speed_milli(work), session.spent)
