"""Order, bid or refusal, agreement. Each travels in a signed envelope; here are the payloads and the frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .._binding import SignerBinding
from ..errors import LocalProtocolError, WireCode
from ..limits import (
    MAX_ARBITERS,
    MAX_CREDIT_WINDOW,
    MAX_ENVELOPE_BYTES,
    MAX_FEATURES,
    MAX_NAME,
    MAX_ORDER_LIFETIME_MS,
    MAX_SLOTS,
    MAX_TEXT,
)
from ..money import ChainTerms
from ..wire import Array, Bytes, Choice, Flag, Nested, Peer, Record, Text, Uint, optional, record, wire
from ..work import WORK, Work
from ._tolerance import Tolerance, check_mode

__all__ = [
    "ACCEPT_KIND",
    "BID_KIND",
    "MESSAGES",
    "ORDER_KIND",
    "PROTOCOL_ID",
    "REFUSAL_KIND",
    "TERMS_KIND",
    "AcceptFrame",
    "BidFrame",
    "BidPayload",
    "CheckPolicy",
    "OrderFrame",
    "OrderPayload",
    "ProposeFrame",
    "RefusalFrame",
    "RefusalPayload",
    "Requirement",
    "Terms",
]

PROTOCOL_ID: Final = "/p2pcompute/negotiation/5"
ORDER_KIND: Final = "order"
BID_KIND: Final = "bid"
REFUSAL_KIND: Final = "refusal"
TERMS_KIND: Final = "terms"  # the requester's signature over the terms
ACCEPT_KIND: Final = "agreement"  # the provider's signature over the requester's envelope


@record
class Requirement(Record):
    """What a device must have."""

    extensible = True
    kinds: tuple[str, ...] = wire(1, Array(Choice("cpu", "cuda"), 2, 1))
    memory_bytes: int = wire(2, Uint())
    features: tuple[str, ...] = wire(3, Array(Text(MAX_NAME, 1), MAX_FEATURES))
    min_score_milli: int = wire(4, Uint())
    region: str | None = optional(5, Text(MAX_NAME), default=None)


@record
class CheckPolicy(Record):
    """How results are checked: `sample` re-runs at least `per_chunk` private elements of each chunk; `quorum` does so
    too, and may have another provider do the same chunk, whose result has to be equal to be paid. In fast mode
    `tolerance` says what counts as equal."""

    extensible = True
    kind: str = wire(1, Choice("sample", "none", "quorum"))
    per_chunk: int = wire(2, Uint(0, 2**20))
    tolerance: Tolerance | None = optional(3, Nested(Tolerance), default=None)


@record
class OrderPayload(Record):
    """What a requester wants. The envelope's external_aad is the provider's binary peer ID."""

    extensible = True
    order_id: bytes = wire(1, Bytes(16))
    created_ms: int = wire(2, Uint())
    expires_ms: int = wire(3, Uint())
    work: Work | None = optional(4, WORK, default=None)  # may be left out where `standing`, and only there
    requirement: Requirement = wire(5, Nested(Requirement))
    max_price_pusd: int = wire(6, Uint())
    ceiling_uusd: int = wire(7, Uint())
    chain: ChainTerms = wire(8, Nested(ChainTerms))
    payer: SignerBinding = wire(9, Nested(SignerBinding))
    check: CheckPolicy = wire(10, Nested(CheckPolicy))
    fp: str = wire(11, Choice("strict", "fast"))
    language: str = wire(12, Text(MAX_NAME, 1))
    deadline_ms: int = wire(13, Uint())
    standing: bool = wire(14, Flag())
    arbiters: tuple[str, ...] = wire(15, Array(Peer(), MAX_ARBITERS))
    group_id: bytes | None = optional(16, Bytes(16), default=None)

    def validate(self) -> None:
        if not self.created_ms < self.expires_ms <= self.created_ms + MAX_ORDER_LIFETIME_MS:
            raise LocalProtocolError("an order expires within ten minutes", code=WireCode.EXPIRED)
        if self.work is None and not self.standing:
            raise LocalProtocolError("an order names its work, unless it is for a standing agreement")
        check_mode(self.fp, self.check.tolerance)


@record
class BidPayload(Record):
    """A provider's offer for one order. The envelope's external_aad is the requester's binary peer ID."""

    extensible = True
    order_digest: bytes = wire(1, Bytes(32))
    price_pusd: int = wire(2, Uint())
    slots: int = wire(3, Uint(1, MAX_SLOTS))
    credit_window: int = wire(4, Uint(1, MAX_CREDIT_WINDOW))  # chunks unpaid at first
    max_window: int = wire(5, Uint(1, MAX_CREDIT_WINDOW))  # chunks unpaid at most
    payee: bytes = wire(6, Bytes(20))
    score_milli: int = wire(7, Uint(1))
    valid_until_ms: int = wire(8, Uint())
    chunk_timeout_ms: int = wire(9, Uint(1))
    timeout_payer: str = wire(10, Choice("requester", "provider"))
    hold_until_ms: int | None = optional(11, Uint(), default=None)

    def validate(self) -> None:
        if self.credit_window > self.max_window:
            raise LocalProtocolError("the first credit window is above the largest one")


@record
class RefusalPayload(Record):
    """Why a provider does not bid, or does not sign. `code` is a `WireCode`."""

    extensible = True
    order_digest: bytes = wire(1, Bytes(32))
    code: int = wire(2, Uint(1, 255))
    detail: str = wire(3, Text(MAX_TEXT))
    retry_after_ms: int | None = optional(4, Uint(), default=None)


@record
class Terms(Record):
    """What both sign: requester first, then the provider over the requester's envelope."""

    version: int = wire(1, Uint(1, 1))
    order_digest: bytes = wire(2, Bytes(32))
    bid_digest: bytes = wire(3, Bytes(32))
    requester: str = wire(4, Peer())
    provider: str = wire(5, Peer())
    created_ms: int = wire(6, Uint())
    deadline_ms: int = wire(7, Uint())
    work: Work | None = optional(8, WORK, default=None)
    standing: bool = wire(9, Flag())
    chain: ChainTerms = wire(10, Nested(ChainTerms))
    payer: SignerBinding = wire(11, Nested(SignerBinding))
    payee: bytes = wire(12, Bytes(20))
    price_pusd: int = wire(13, Uint())
    ceiling_uusd: int = wire(14, Uint())
    credit_window: int = wire(15, Uint(1, MAX_CREDIT_WINDOW))
    max_window: int = wire(16, Uint(1, MAX_CREDIT_WINDOW))
    check: CheckPolicy = wire(17, Nested(CheckPolicy))
    arbiters: tuple[str, ...] = wire(18, Array(Peer(), MAX_ARBITERS))
    language: str = wire(19, Text(MAX_NAME, 1))
    fp: str = wire(20, Choice("strict", "fast"))
    chunk_timeout_ms: int = wire(21, Uint(1))
    timeout_payer: str = wire(22, Choice("requester", "provider"))
    slots: int = wire(23, Uint(1, MAX_SLOTS))
    group_id: bytes | None = optional(24, Bytes(16), default=None)

    def validate(self) -> None:
        if self.work is None and not self.standing:
            raise LocalProtocolError("terms name their work, unless they are standing")
        check_mode(self.fp, self.check.tolerance)
        if self.requester == self.provider:
            raise LocalProtocolError("requester and provider are the same peer", code=WireCode.WRONG_PEER)
        if self.payer.peer_id != self.requester:
            raise LocalProtocolError("the payer's binding is of another peer", code=WireCode.WRONG_PEER)
        if not self.created_ms < self.deadline_ms:
            raise LocalProtocolError("the deadline is before the agreement", code=WireCode.EXPIRED)
        if self.credit_window > self.max_window:
            raise LocalProtocolError("the first credit window is above the largest one")


@record
class OrderFrame(Record):
    """Requester: an order, in its envelope."""

    TYPE = 1
    envelope: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


@record
class BidFrame(Record):
    """Provider: a bid, in its envelope."""

    TYPE = 2
    envelope: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


@record
class RefusalFrame(Record):
    """Provider: a refusal, in its envelope."""

    TYPE = 3
    envelope: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


@record
class ProposeFrame(Record):
    """Requester: the terms, in its envelope."""

    TYPE = 4
    envelope: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


@record
class AcceptFrame(Record):
    """Provider: the agreement, that is its envelope around the requester's."""

    TYPE = 5
    envelope: bytes = wire(1, Bytes(1, MAX_ENVELOPE_BYTES))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls for cls in (OrderFrame, BidFrame, RefusalFrame, ProposeFrame, AcceptFrame)
}
