"""Several results in one message: what it says of each chunk, and that all of that is signed."""

from __future__ import annotations

from dataclasses import dataclass

from p2pcompute_protocols import task
from p2pcompute_protocols.errors import remote
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import ReceiptPayload, Results
from p2pcompute_protocols.work import Work

from ._meter import units_of
from ._provider_group import result_receipt

__all__ = ["ReceivedChunk", "open_results", "ranges"]


@dataclass(slots=True)
class ReceivedChunk:
    """A chunk as it came: its receipt is right, its samples are not drawn yet. `output` is the one copy of its bytes,
    read-only, and given up once the chunk is handed over."""

    index: int
    receipt: bytes
    payload: ReceiptPayload
    output: memoryview


def open_results(agreement: Agreement, work: Work, message: Results, size: int) -> list[ReceivedChunk]:
    """The results in a message, which the connection has compared with what was assigned; a chunk has `size` bytes, the
    last one perhaps fewer.

    Their receipts follow from the outputs and the agreement, so that there is nothing to compare but the signed root.

    Raises:
        RemoteProtocolError: it is not signed so.
    """
    data = memoryview(message.data)
    payloads: list[ReceiptPayload] = []
    outputs: list[memoryview] = []
    for number, index in enumerate(message.chunks):
        output = data[number * size : (number + 1) * size]
        units = units_of(work, work.chunk_range(index)[1])
        payloads.append(result_receipt(agreement, index, (output,), units, message.finished_ms))
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


def ranges(chunks: list[int]) -> list[range]:
    """Chunks in ascending order as ranges, each as long as it can be."""
    found: list[range] = []
    for index in sorted(chunks):
        if found and found[-1].stop == index:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
