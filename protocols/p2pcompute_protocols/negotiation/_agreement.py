"""An agreement: terms in the requester's envelope, and that in the provider's. Its hash names the task."""

from __future__ import annotations

import dataclasses
import hashlib

from ..envelope import Envelope, Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId, peer_id_to_bytes
from ..limits import MAX_CLOCK_SKEW_MS, MAX_ENVELOPE_BYTES
from ._messages import (
    ACCEPT_KIND,
    BID_KIND,
    ORDER_KIND,
    REFUSAL_KIND,
    TERMS_KIND,
    BidPayload,
    OrderPayload,
    RefusalPayload,
    Terms,
)

__all__ = [
    "Agreement",
    "accept_terms",
    "check_bid_answers_order",
    "check_terms_follow_bid",
    "open_agreement",
    "open_bid",
    "open_order",
    "open_refusal",
    "open_terms",
    "seal_bid",
    "seal_order",
    "seal_refusal",
    "seal_terms",
    "task_id_of",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Terms that both signed; `raw` is the evidence, `task_id` its SHA-256."""

    terms: Terms
    network: str
    raw: bytes
    task_id: TaskId = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_id", task_id_of(self.raw))  # once: every receipt asks for it


def task_id_of(raw: bytes) -> TaskId:
    """The task's ID: SHA-256 of the countersigned agreement."""
    return TaskId(hashlib.sha256(raw).digest())


def seal_order(order: OrderPayload, *, network: str, signer: Signer, provider: PeerId) -> bytes:
    """An order for one provider; nobody else can be shown it as if it were for them."""
    return seal(ORDER_KIND, network, signer, order.encode(), external_aad=peer_id_to_bytes(provider))


def open_order(
    raw: bytes, *, network: str, requester: PeerId, provider: PeerId, now_ms: int
) -> tuple[Envelope, OrderPayload]:
    """Verify an order meant for `provider`; raises `LocalProtocolError`."""
    envelope = open_envelope(
        raw, kind=ORDER_KIND, network=network, signer=requester, external_aad=peer_id_to_bytes(provider)
    )
    order = OrderPayload.decode(envelope.payload)
    if order.created_ms > now_ms + MAX_CLOCK_SKEW_MS:
        raise LocalProtocolError("the order is from the future; check both clocks", code=WireCode.EXPIRED)
    if order.expires_ms <= now_ms:
        raise LocalProtocolError("the order has expired", code=WireCode.EXPIRED)
    return envelope, order


def seal_bid(bid: BidPayload, *, network: str, signer: Signer, requester: PeerId) -> bytes:
    """A bid for one requester."""
    return seal(BID_KIND, network, signer, bid.encode(), external_aad=peer_id_to_bytes(requester))


def open_bid(raw: bytes, *, network: str, requester: PeerId, provider: PeerId) -> tuple[Envelope, BidPayload]:
    """Verify a bid meant for `requester`."""
    envelope = open_envelope(
        raw, kind=BID_KIND, network=network, signer=provider, external_aad=peer_id_to_bytes(requester)
    )
    return envelope, BidPayload.decode(envelope.payload)


def seal_refusal(refusal: RefusalPayload, *, network: str, signer: Signer, requester: PeerId) -> bytes:
    """A refusal for one requester."""
    return seal(REFUSAL_KIND, network, signer, refusal.encode(), external_aad=peer_id_to_bytes(requester))


def open_refusal(raw: bytes, *, network: str, requester: PeerId, provider: PeerId) -> RefusalPayload:
    """Verify a refusal meant for `requester`."""
    envelope = open_envelope(
        raw, kind=REFUSAL_KIND, network=network, signer=provider, external_aad=peer_id_to_bytes(requester)
    )
    return RefusalPayload.decode(envelope.payload)


def check_bid_answers_order(bid: BidPayload, order: Envelope, payload: OrderPayload, *, now_ms: int) -> None:
    """Refuse a bid for another order, above its price, or that has lapsed."""
    if bid.order_digest != order.digest:
        raise LocalProtocolError("the bid is for another order", code=WireCode.REPLAYED)
    if bid.price_pusd > payload.max_price_pusd:
        raise LocalProtocolError("the bid is above the order's price")
    if bid.valid_until_ms <= now_ms:
        raise LocalProtocolError("the bid has lapsed", code=WireCode.EXPIRED)


def seal_terms(terms: Terms, *, network: str, signer: Signer) -> bytes:
    """The requester's half of an agreement."""
    return seal(TERMS_KIND, network, signer, terms.encode())


def open_terms(raw: bytes, *, network: str, requester: PeerId) -> tuple[Envelope, Terms]:
    """Verify the requester's half."""
    envelope = open_envelope(raw, kind=TERMS_KIND, network=network, signer=requester)
    terms = Terms.decode(envelope.payload)
    if terms.requester != envelope.signer:
        raise LocalProtocolError("terms signed by somebody else", code=WireCode.WRONG_PEER)
    if terms.encode() != envelope.payload:  # both sides keep these bytes: nothing rides along in them
        raise LocalProtocolError("the terms hold more than terms", code=WireCode.MALFORMED)
    return envelope, terms


def check_terms_follow_bid(
    terms: Terms, *, order: Envelope, order_payload: OrderPayload, bid: Envelope, bid_payload: BidPayload
) -> None:
    """What a provider checks before it countersigns: the terms say what order and bid said, and nothing else."""
    expected = {
        "order_digest": order.digest,
        "bid_digest": bid.digest,
        "requester": order.signer,
        "provider": bid.signer,
        "deadline_ms": order_payload.deadline_ms,
        "work": order_payload.work,
        "standing": order_payload.standing,
        "chain": order_payload.chain,
        "payer": order_payload.payer,
        "payee": bid_payload.payee,
        "price_pusd": bid_payload.price_pusd,
        "ceiling_uusd": order_payload.ceiling_uusd,
        "credit_window": bid_payload.credit_window,
        "max_window": bid_payload.max_window,
        "check": order_payload.check,
        "arbiters": order_payload.arbiters,
        "language": order_payload.language,
        "fp": order_payload.fp,
        "chunk_timeout_ms": bid_payload.chunk_timeout_ms,
        "timeout_payer": bid_payload.timeout_payer,
        "slots": bid_payload.slots,
        "group_id": order_payload.group_id,
    }
    if bid_payload.order_digest != order.digest:
        raise LocalProtocolError("the bid is for another order", code=WireCode.REPLAYED)
    for name, value in expected.items():
        if getattr(terms, name) != value:
            raise LocalProtocolError(f"the terms differ from order and bid in {name}")


def accept_terms(terms_envelope: bytes, *, network: str, signer: Signer) -> bytes:
    """The provider's countersignature: the agreement."""
    return seal(ACCEPT_KIND, network, signer, terms_envelope)


def open_agreement(raw: bytes, *, network: str, requester: PeerId, provider: PeerId) -> Agreement:
    """Verify both signatures of an agreement between these two.

    Raises:
        LocalProtocolError: as `open_envelope`, and WRONG_PEER when the terms name others.
    """
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise LocalProtocolError("an agreement above the bound", code=WireCode.OVERSIZED)
    outer = open_envelope(raw, kind=ACCEPT_KIND, network=network, signer=provider)
    _, terms = open_terms(outer.payload, network=network, requester=requester)
    if terms.provider != provider:
        raise LocalProtocolError("the terms name another provider", code=WireCode.WRONG_PEER)
    return Agreement(terms=terms, network=network, raw=raw)
