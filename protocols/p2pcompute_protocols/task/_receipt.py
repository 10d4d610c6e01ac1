"""Signing and verifying receipts."""

from __future__ import annotations

from collections.abc import Mapping

from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId
from ..merkle import InclusionProof, MerkleTree, verify_inclusion
from ._batch import open_batched, stands_in_batch
from ._messages import RECEIPT_KIND, ReceiptPayload

__all__ = ["open_proven_receipt", "open_receipt", "receipts_tree", "seal_receipt"]


def seal_receipt(receipt: ReceiptPayload, *, network: str, signer: Signer) -> bytes:
    """The provider's signature over what it computed, or over why it could not."""
    return seal(RECEIPT_KIND, network, signer, receipt.encode())


def open_receipt(
    raw: bytes, *, network: str, provider: PeerId, task: TaskId, index: int
) -> tuple[Envelope, ReceiptPayload]:
    """Verify a receipt for chunk `index` of `task` by `provider`, be it signed by itself or as one of a batch; raises
    `LocalProtocolError`."""
    if stands_in_batch(raw):
        envelope = open_batched(raw, network=network, provider=provider, task=task)
    else:
        envelope = open_envelope(raw, kind=RECEIPT_KIND, network=network, signer=provider)
    receipt = ReceiptPayload.decode(envelope.payload)
    if receipt.task != task or receipt.index != index:
        raise LocalProtocolError("a receipt for another chunk", code=WireCode.REPLAYED)
    return envelope, receipt


def receipts_tree(receipts: Mapping[int, bytes]) -> MerkleTree:
    """The one tree over receipts: each whole as it is shown and stored, in ascending order of chunks.

    Its root stands for all of them: in a voucher's `memo`, or wherever a provider shows what it has done. A task's
    tree holds its receipts with code 0. The number of a leaf is not the chunk's where others have done some chunks.
    """
    return MerkleTree(receipts[index] for index in sorted(receipts))


def open_proven_receipt(
    raw: bytes, proof: InclusionProof, root: bytes, *, network: str, provider: PeerId, task: TaskId, index: int
) -> ReceiptPayload:
    """What a third party does that knows a root: the receipt is a provider's, and it belongs to the root.

    Raises:
        LocalProtocolError: as `open_receipt`, and BAD_DIGEST where it does not belong to the root.
    """
    _, receipt = open_receipt(raw, network=network, provider=provider, task=task, index=index)
    verify_inclusion(raw, proof, root)
    return receipt
