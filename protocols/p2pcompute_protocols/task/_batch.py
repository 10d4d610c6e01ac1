"""Receipts that share a signature: one envelope over the root of a tree, and for each receipt its path to it.

A signature takes longer than a short chunk does, and checking it longer still. So the receipts of chunks that are done
together are the leaves of a tree (RFC 9162 §2.1.1, `merkle`), and its root is what is signed. What is stored, shown and
paid for is still one thing for each chunk, which proves itself: the receipt, its path and the envelope.

    batch = seal_batch(payloads, network=..., signer=...)
    batch.envelope                  # goes out once, in `Results`
    batch.receipts[7]               # what `open_receipt` takes, for chunk 7 of the batch, on both sides the same bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

import cbor2

from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId
from ..limits import MAX_ENVELOPE_BYTES, MAX_PROOF_DIGESTS
from ..merkle import InclusionProof, MerkleTree, verify_inclusion
from ..wire import Bytes, Nested, Record, record, wire
from ._messages import RECEIPT_KIND, RECEIPTS_KIND, ReceiptPayload, ReceiptsPayload

__all__ = ["BatchedReceipt", "ReceiptBatch", "open_batch", "open_batched", "seal_batch", "stands_in_batch"]

_MAP_OF_THREE = 0xA3  # an envelope begins with its tag, 0xD2
_ARRAYS: Final = tuple(bytes([0x80 | size]) for size in range(MAX_PROOF_DIGESTS + 1))  # their heads
_FORM: Final = attrgetter("task", "code", "fp", "units", "finished_ms", "detail", "call")  # all but index and output
_INDEX_AT: Final = 1 + 1 + 2 + 32 + 1  # in an encoded receipt: behind the map's head, the task, and a key
_TO_OUTPUT: Final = 1 + 1 + 2  # from there to the output, beside the code: two keys, and the head of 32 bytes


@record
class BatchedReceipt(Record):
    """A receipt as one of a batch: itself, its place in the tree, and the envelope over the tree's root."""

    receipt: bytes = wire(1, Bytes(1, 2 * 1024))
    proof: InclusionProof = wire(2, Nested(InclusionProof))
    envelope: bytes = wire(3, Bytes(1, 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBatch:
    """Receipts under one signature: `envelope` is what is signed, `receipts` are `BatchedReceipt`s as encoded."""

    envelope: bytes
    receipts: tuple[bytes, ...]


def _leaves(payloads: Sequence[ReceiptPayload]) -> list[bytes]:
    """Each as encoded. Receipts of a batch differ in index and output at most, nearly always: the others around those
    are encoded once for all that have them alike."""
    leaves: list[bytes] = []
    alike: object = None
    head = middle = end = b""
    for payload in payloads:
        if (form := _FORM(payload)) != alike:
            alike = form
            raw = cbor2.dumps(payload.to_map())  # as `encode`, whose bounds a receipt can't pass
            at = _INDEX_AT + len(cbor2.dumps(payload.index))
            output = at + _TO_OUTPUT + len(cbor2.dumps(payload.code))
            head, middle, end = raw[:_INDEX_AT], raw[at:output], raw[output + 32 :]
        leaves.append(head + cbor2.dumps(payload.index) + middle + payload.output + end)
    return leaves


def _tree(payloads: Sequence[ReceiptPayload]) -> tuple[list[bytes], MerkleTree]:
    leaves = _leaves(payloads)
    return leaves, MerkleTree(leaves)


def _shown(leaves: Sequence[bytes], tree: MerkleTree, envelope: bytes) -> tuple[bytes, ...]:
    """Each `BatchedReceipt`, encoded: all are alike in form, and their paths meet, so that there is nothing to check
    and little to encode for each."""
    count, end = cbor2.dumps(len(leaves)), b"\x03" + cbor2.dumps(envelope)
    return tuple(
        b"".join(
            (
                b"\xa3\x01",  # a map of three: the receipt,
                cbor2.dumps(leaf),
                b"\x02\xa3\x01",  # its proof, which is a map of three as well: its place,
                cbor2.dumps(at),
                b"\x02",  # of how many,
                count,
                b"\x03",  # and its path, an array of less than 24,
                _ARRAYS[digests],
                path,
                end,  # and the envelope
            )
        )
        for at, (leaf, (digests, path)) in enumerate(zip(leaves, tree.joined_paths(b"\x58\x20"), strict=True))
    )


def seal_batch(payloads: Sequence[ReceiptPayload], *, network: str, signer: Signer) -> ReceiptBatch:
    """The provider's one signature over the receipts of several chunks of a task, two at least.

    Raises:
        LocalProtocolError: they are of two tasks, or too many or too few.
    """
    task = payloads[0].task
    if any(payload.task != task for payload in payloads):
        raise LocalProtocolError("a batch of receipts is of one task")
    leaves, tree = _tree(payloads)
    signed = ReceiptsPayload(task=task, root=tree.root, leaves=len(leaves))
    envelope = seal(RECEIPTS_KIND, network, signer, signed.encode())
    return ReceiptBatch(envelope=envelope, receipts=_shown(leaves, tree, envelope))


def _open_root(envelope: bytes, *, network: str, provider: PeerId, task: TaskId) -> ReceiptsPayload:
    signed = ReceiptsPayload.decode(
        open_envelope(envelope, kind=RECEIPTS_KIND, network=network, signer=provider).payload
    )
    if signed.task != task:
        raise LocalProtocolError("receipts for another task", code=WireCode.REPLAYED)
    return signed


def open_batch(
    envelope: bytes, payloads: Sequence[ReceiptPayload], *, network: str, provider: PeerId, task: TaskId
) -> ReceiptBatch:
    """Verify the signature over the receipts of a batch, which are all here.

    Raises:
        LocalProtocolError: as `open_envelope`; REPLAYED for another task, BAD_DIGEST for other receipts.
    """
    leaves, tree = _tree(payloads)
    signed = _open_root(envelope, network=network, provider=provider, task=task)
    if signed.leaves != len(leaves) or signed.root != tree.root:
        raise LocalProtocolError("what is signed is another tree than that of these receipts", code=WireCode.BAD_DIGEST)
    return ReceiptBatch(envelope=envelope, receipts=_shown(leaves, tree, envelope))


def stands_in_batch(raw: bytes) -> bool:
    """Whether a receipt is one of a batch, rather than signed by itself: the first byte tells."""
    return raw[:1] == bytes((_MAP_OF_THREE,))


def open_batched(raw: bytes, *, network: str, provider: PeerId, task: TaskId) -> Envelope:
    """Verify one receipt of a batch by itself.

    Returns:
        As `open_envelope` does for one that is signed by itself: `payload` is the receipt, `raw` all of what proves it.

    Raises:
        LocalProtocolError: MALFORMED, OVERSIZED; as `open_envelope`; REPLAYED for another task, BAD_DIGEST where it
            does not belong to the root that is signed.
    """
    shown = BatchedReceipt.decode(raw, max_bytes=MAX_ENVELOPE_BYTES)
    signed = _open_root(shown.envelope, network=network, provider=provider, task=task)
    if shown.proof.leaves != signed.leaves:
        raise LocalProtocolError("a path in a tree of another size than what is signed", code=WireCode.BAD_DIGEST)
    verify_inclusion(shown.receipt, shown.proof, signed.root)
    return Envelope(kind=RECEIPT_KIND, network=network, signer=provider, payload=shown.receipt, raw=raw)
