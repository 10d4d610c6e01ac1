"""Signing and verifying receipts."""

from __future__ import annotations

from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId
from ._messages import RECEIPT_KIND, ReceiptPayload

__all__ = ["open_receipt", "seal_receipt"]


def seal_receipt(receipt: ReceiptPayload, *, network: str, signer: Signer) -> bytes:
    """The provider's signature over what it computed, or over why it could not."""
    return seal(RECEIPT_KIND, network, signer, receipt.encode())


def open_receipt(
    raw: bytes, *, network: str, provider: PeerId, task: TaskId, index: int
) -> tuple[Envelope, ReceiptPayload]:
    """Verify a receipt for chunk `index` of `task` by `provider`; raises `LocalProtocolError`."""
    envelope = open_envelope(raw, kind=RECEIPT_KIND, network=network, signer=provider)
    receipt = ReceiptPayload.decode(envelope.payload)
    if receipt.task != task or receipt.index != index:
        raise LocalProtocolError("a receipt for another chunk", code=WireCode.REPLAYED)
    return envelope, receipt
