"""Paying over a channel: who pays whom, the best voucher that the payee holds, and new vouchers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .._binding import SignerBinding
from ..errors import LocalProtocolError
from ..limits import MAX_CHUNKS, MAX_COVERED, MAX_LEAVES, MAX_TEXT, UINT64_MAX
from ..money import ChainTerms
from ..wire import Array, Bytes, Nested, Record, Text, Uint, optional, record, wire
from ._close import MAX_DEADLINE_S, MAX_EPOCH

__all__ = [
    "MESSAGES",
    "PROTOCOL_ID",
    "ChannelHello",
    "ChannelSync",
    "CloseAsk",
    "ConsentFrame",
    "ReceiptRef",
    "VoucherAck",
    "VoucherFrame",
    "VoucherRefusal",
]

PROTOCOL_ID: Final = "/p2pcompute/channel/2"
_AMOUNT: Final = Uint(0, UINT64_MAX)


@record
class ChannelHello(Record):
    """Payer: which channel this stream is about. The channel's ID is keccak256(payer owner, payee, signer)."""

    TYPE = 1
    chain: ChainTerms = wire(1, Nested(ChainTerms))
    payer: SignerBinding = wire(2, Nested(SignerBinding))
    payee: bytes = wire(3, Bytes(20))


@record
class ReceiptRef(Record):
    """A receipt with code 0, by the task and the chunk that it is for."""

    task: bytes = wire(1, Bytes(32))
    index: int = wire(2, Uint(0, MAX_CHUNKS - 1))


@record
class VoucherFrame(Record):
    """Payer: a cumulative voucher; EIP-712 signature of 65 bytes.

    `memo` is the root over the receipts that the payer has accepted on the channel, or zeros. `receipts` are those
    that the payee has not heard of yet, in their order, the first of them number `first` of the tree.
    """

    TYPE = 2
    amount_uusd: int = wire(1, _AMOUNT)
    memo: bytes = wire(2, Bytes(32))
    signature: bytes = wire(3, Bytes(65))
    first: int | None = optional(4, Uint(0, MAX_LEAVES - 1), default=None)
    receipts: tuple[ReceiptRef, ...] | None = optional(5, Array(Nested(ReceiptRef), MAX_COVERED), default=None)

    def validate(self) -> None:
        if (self.first is None) != (self.receipts is None) or self.receipts == ():
            raise LocalProtocolError("receipts are named with the number of the first one, or not at all")


@record
class CloseAsk(Record):
    """Payer: close the channel at this total; no voucher above it comes."""

    TYPE = 3
    amount_uusd: int = wire(1, _AMOUNT)


@record
class ChannelSync(Record):
    """Payee: the best voucher that it holds, so that a lost answer can't wedge the channel."""

    TYPE = 17
    amount_uusd: int = wire(1, _AMOUNT)
    memo: bytes | None = optional(2, Bytes(32), default=None)
    signature: bytes | None = optional(3, Bytes(65), default=None)

    def validate(self) -> None:
        held = self.amount_uusd > 0
        if (self.memo is not None) != held or (self.signature is not None) != held:
            raise LocalProtocolError("a sync above zero shows the voucher, and only then")


@record
class VoucherAck(Record):
    """Payee: the voucher of this amount is on disk."""

    TYPE = 18
    amount_uusd: int = wire(1, _AMOUNT)


@record
class VoucherRefusal(Record):
    """Payee: the voucher was not taken; `best_uusd` is what it holds, `deposit_uusd` what the channel covers."""

    TYPE = 19
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))
    best_uusd: int = wire(3, _AMOUNT)
    deposit_uusd: int | None = optional(4, _AMOUNT, default=None)


@record
class ConsentFrame(Record):
    """Payee: its signature over the closing at the total that was asked for; EIP-712, 65 bytes."""

    TYPE = 20
    epoch: int = wire(1, Uint(0, MAX_EPOCH - 1))
    deadline_s: int = wire(2, Uint(0, MAX_DEADLINE_S))
    signature: bytes = wire(3, Bytes(65))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls
    for cls in (ChannelHello, VoucherFrame, CloseAsk, ChannelSync, VoucherAck, VoucherRefusal, ConsentFrame)
}
