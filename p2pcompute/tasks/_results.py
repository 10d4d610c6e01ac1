"""Results of chunks: one by one, or several in one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute_protocols import task
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode, remote
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import DATA_BYTES, ChunkError, ReceiptPayload, ResultData, Results, ResultStart
from p2pcompute_protocols.work import Work

from ._meter import units_of
from ._provider_group import result_receipt

__all__ = [
    "ReceivedChunk",
    "checked_together",
    "cut",
    "gather",
    "open_failure",
    "open_results",
    "ranges",
    "send_result",
]

_SMALL_BYTES: Final = 64 * 1024
_CHECKED_TOGETHER: Final = 64  # chunks, in one run of our worker
_CHECK_S: Final = 0.2  # what such a run is expected to take
_CHECKED_BYTES: Final = 4 << 20  # of their outputs; what samples give back is no more
_WITH_IT_S: Final = 0.005  # a check waits so long for what comes with a result: chunks that were computed together


@dataclass(slots=True)
class ReceivedChunk:
    """A chunk as it came: its receipt is right, its samples are not drawn yet. `output` is the one copy of its bytes,
    read-only, and given up once the chunk is handed over."""

    index: int
    receipt: bytes
    payload: ReceiptPayload
    output: memoryview


async def send_result(
    dialogue: Dialogue, start: ResultStart, outputs: Sequence[bytes | memoryview], moved: Callable[[int], None]
) -> None:
    """Send `start` and what it announces; a small output in one write with it. `moved` is told of what has gone.

    Nobody else may speak on the stream meanwhile. Raises as `Dialogue.send`.
    """
    if len(outputs) == 1 and start.size <= _SMALL_BYTES:
        await dialogue.send(start, ResultData(data=outputs[0]))
        return
    await dialogue.send(start)
    # A piece at a time, so that a large output is not held twice.
    for output in outputs:
        for at in range(0, len(output), DATA_BYTES):
            await dialogue.send(ResultData(data=memoryview(output)[at : at + DATA_BYTES]))
            moved(DATA_BYTES)


def open_results(
    agreement: Agreement,
    work: Work,
    message: Results,
    size_of: Callable[[int], int],
    call_of: Callable[[int], bytes | None],
) -> list[ReceivedChunk]:
    """The results in a message, which the connection has compared with what was assigned.

    Their receipts follow from the outputs and the agreement, so that there is nothing to compare but the signed root.

    Args:
        agreement, work: what they are of.
        message: what came.
        size_of: bytes of the output of a chunk.
        call_of: what stands for the call of a chunk; None where there are no calls.

    Raises:
        RemoteProtocolError: it is not signed so.
    """
    data, at, chunks = memoryview(message.data), 0, work.chunks
    payloads: list[ReceiptPayload] = []
    outputs: list[memoryview] = []
    for index in message.chunks:
        size = size_of(index)
        output = data[at : at + size]
        at += size
        units = units_of(work, work.chunk_range(index % chunks)[1])
        payloads.append(result_receipt(agreement, index, (output,), units, message.finished_ms, call_of(index)))
        outputs.append(output)
    with remote():
        batch = task.open_batch(
            message.receipts,
            payloads,
            network=agreement.network,
            provider=PeerId(agreement.terms.provider),
            task=agreement.task_id,
        )
    return [
        ReceivedChunk(payload.index, receipt, payload, output)
        for payload, receipt, output in zip(payloads, batch.receipts, outputs, strict=True)
    ]


def open_failure(agreement: Agreement, message: ChunkError) -> ReceiptPayload:
    """What a provider has signed of a chunk that failed.

    Raises:
        RemoteProtocolError: it is not signed so, or it is the receipt of a success.
    """
    with remote():
        _, payload = task.open_receipt(
            message.receipt,
            network=agreement.network,
            provider=PeerId(agreement.terms.provider),
            task=agreement.task_id,
            index=message.index,
        )
    if payload.code == 0:
        raise RemoteProtocolError("a failure with the receipt of a success", code=WireCode.MALFORMED)
    return payload


def ranges(chunks: list[int]) -> list[range]:
    """Chunks in ascending order as ranges, each as long as it can be."""
    found: list[range] = []
    for index in sorted(chunks):
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


async def gather(
    waiting: list[ReceivedChunk],
    results: trio.MemoryReceiveChannel[list[ReceivedChunk]],
    can_wait: Callable[[int], bool],
) -> None:
    """Add to `waiting` what comes right behind it, as long as nobody waits for a check of so many: a run of our worker
    costs as much as many samples."""
    with trio.move_on_after(_WITH_IT_S), suppress(trio.EndOfChannel):
        while can_wait(len(waiting)):
            waiting += await results.receive()


def checked_together(check_s: float | None) -> int:
    """How many chunks are checked in one run of our worker: no more than it takes some tenths of a second for, because
    a run that is too long is broken off.

    Args:
        check_s: what the last check took for each chunk; None before the first.
    """
    if check_s is None:
        return 1
    return max(1, min(_CHECKED_TOGETHER, int(_CHECK_S / check_s))) if check_s > 0 else _CHECKED_TOGETHER


def cut(waiting: list[ReceivedChunk], most: int) -> tuple[list[ReceivedChunk], list[ReceivedChunk]]:
    """The first chunks of those that wait, `most` of them at most and one at least, and the others."""
    end = size = 0
    while end < min(most, len(waiting)) and (not end or size + len(waiting[end].output) <= _CHECKED_BYTES):
        size += len(waiting[end].output)
        end += 1
    return waiting[:end], waiting[end:]
