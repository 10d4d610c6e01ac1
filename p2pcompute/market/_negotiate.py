"""Both ends of a negotiation: order, bid or refusal, terms, agreement."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from p2pcompute._dialogue import Dialogue
from p2pcompute.errors import StorageError, StreamError, TaskRefused
from p2pcompute_protocols import negotiation
from p2pcompute_protocols._binding import verify_binding
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.envelope import Envelope, Signer
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, WireCode, remote
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_CLOCK_SKEW_MS
from p2pcompute_protocols.negotiation import (
    AcceptFrame,
    Agreement,
    BidFrame,
    BidPayload,
    NegotiationConnection,
    OrderFrame,
    OrderPayload,
    ProposeFrame,
    RefusalFrame,
    RefusalPayload,
    Terms,
)

if TYPE_CHECKING:
    from p2pcompute.overlay import Requests, ServedDialogue

__all__ = ["BidPolicy", "NegotiationService", "OrderRefused", "Quote", "negotiate", "request_bid"]

_log = logging.getLogger("p2pcompute.market")
_ANSWER_S: Final = 10.0
MAX_SEEN_ORDERS: Final = 65_536
MAX_ORDERS_PER_PEER: Final = 512  # within the life of an order, at most ten minutes
_PRUNE_MS: Final = 10_000


class OrderRefused(TaskRefused):
    """A provider does not bid on this order, or does not sign. `code` is its `WireCode`."""

    def __init__(self, provider: PeerId, code: int, detail: str) -> None:
        self.provider = provider
        self.code = WireCode(code) if code in WireCode._value2member_map_ else WireCode.INTERNAL
        self.detail = detail
        super().__init__(f"{provider} refused ({self.code.name.lower()}): {detail}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A bid on an order, with the dialogue still open to accept it."""

    provider: PeerId
    order: Envelope
    order_payload: OrderPayload
    bid: Envelope
    bid_payload: BidPayload


def _terms(quote: Quote, *, requester: PeerId, now_ms: int) -> Terms:
    order, bid = quote.order_payload, quote.bid_payload
    return Terms(
        version=1,
        order_digest=quote.order.digest,
        bid_digest=quote.bid.digest,
        requester=requester,
        provider=quote.provider,
        created_ms=now_ms,
        deadline_ms=order.deadline_ms,
        work=order.work,
        standing=order.standing,
        chain=order.chain,
        payer=order.payer,
        payee=bid.payee,
        price_pusd=bid.price_pusd,
        ceiling_uusd=order.ceiling_uusd,
        credit_window=bid.credit_window,
        max_window=bid.max_window,
        check=order.check,
        arbiters=order.arbiters,
        language=order.language,
        fp=order.fp,
        chunk_timeout_ms=bid.chunk_timeout_ms,
        timeout_payer=bid.timeout_payer,
        slots=bid.slots,
        group_id=order.group_id,
    )


async def request_bid(
    dialogue: Dialogue, order_payload: OrderPayload, *, network: str, signer: Signer, provider: PeerId, now_ms: int
) -> Quote:
    """Send an order over an open negotiation and take the bid.

    Raises:
        OrderRefused: the provider's typed refusal.
        RemoteProtocolError, StreamError: the provider broke the protocol, stalled or is gone.
    """
    raw = negotiation.seal_order(order_payload, network=network, signer=signer, provider=provider)
    order, _ = negotiation.open_order(
        raw, network=network, requester=signer.peer_id, provider=provider, now_ms=order_payload.created_ms
    )
    await dialogue.send(OrderFrame(envelope=raw))
    answer = await dialogue.expect(BidFrame, RefusalFrame, stall_s=_ANSWER_S)
    with remote():
        if isinstance(answer, RefusalFrame):
            refusal = negotiation.open_refusal(
                answer.envelope, network=network, requester=signer.peer_id, provider=provider
            )
            raise OrderRefused(provider, refusal.code, refusal.detail)
        bid, payload = negotiation.open_bid(
            answer.envelope, network=network, requester=signer.peer_id, provider=provider
        )
        negotiation.check_bid_answers_order(payload, order, order_payload, now_ms=now_ms)
    return Quote(provider=provider, order=order, order_payload=order_payload, bid=bid, bid_payload=payload)


async def negotiate(
    requests: Requests,
    provider: PeerId,
    order: OrderPayload,
    *,
    network: str,
    signer: Signer,
    now_ms: Callable[[], int],
    accept: Callable[[BidPayload], bool] = lambda _: True,
) -> Agreement:
    """Order from one provider and agree on its bid.

    Args:
        accept: decides on the bid; False ends the negotiation with `OrderRefused` (code PRICE_TOO_LOW).

    Raises:
        OrderRefused, RemoteProtocolError, OverlayError.

    Cancellation: leaves nothing behind but an agreement that the provider may have signed; it costs nothing.
    """
    stream = requests.dialogue(provider, negotiation.PROTOCOL_ID)
    agreed = False
    try:
        dialogue = Dialogue(NegotiationConnection(Role.REQUESTER), stream)
        quote = await request_bid(dialogue, order, network=network, signer=signer, provider=provider, now_ms=now_ms())
        if not accept(quote.bid_payload):
            raise OrderRefused(provider, WireCode.PRICE_TOO_LOW, "we did not take its bid")
        terms = _terms(quote, requester=signer.peer_id, now_ms=now_ms())
        await dialogue.send(ProposeFrame(envelope=negotiation.seal_terms(terms, network=network, signer=signer)))
        answer = await dialogue.expect(AcceptFrame, RefusalFrame, stall_s=_ANSWER_S)
        with remote():
            if isinstance(answer, RefusalFrame):
                refusal = negotiation.open_refusal(
                    answer.envelope, network=network, requester=signer.peer_id, provider=provider
                )
                raise OrderRefused(provider, refusal.code, refusal.detail)
            agreement = negotiation.open_agreement(
                answer.envelope, network=network, requester=signer.peer_id, provider=provider
            )
            if agreement.terms != terms:
                raise LocalProtocolError("the provider signed other terms")
        agreed = True
        return agreement
    except RemoteProtocolError as exc:
        stream.blame(exc)
        raise
    finally:
        if not agreed:
            stream.leave()


@contextmanager
def _of_its_own(stream: ServedDialogue) -> Generator[None]:
    """Around what the requester has made and signed itself: what is wrong with that is its own fault."""
    try:
        yield
    except LocalProtocolError as exc:
        stream.blame(exc)
        raise


class BidPolicy(Protocol):
    """Decides on orders; raises `LocalProtocolError` with the refusal's code and reason."""

    async def bid(self, requester: PeerId, order: Envelope, payload: OrderPayload) -> BidPayload: ...


@dataclass(slots=True, kw_only=True)
class NegotiationService:
    """The provider's side. `agreed` is awaited, and must have stored the agreement, before it is sent."""

    requests: Requests
    network: str
    signer: Signer
    now_ms: Callable[[], int]
    policy: BidPolicy
    agreed: Callable[[Agreement], Awaitable[None]]
    _seen: dict[tuple[PeerId, bytes], int] = field(default_factory=dict)  # order -> until when it counts
    _orders: Counter[PeerId] = field(default_factory=Counter)  # how many of them each peer has
    _pruned_ms: int = 0

    def register(self) -> None:
        """Answer negotiations from now on."""
        self.requests.serve_dialogues(negotiation.PROTOCOL_ID, self._serve)

    def _fresh(self, requester: PeerId, payload: OrderPayload) -> None:
        """An order ID counts once per requester, for as long as an order can live."""
        now = self.now_ms()
        key = (requester, payload.order_id)
        if self._seen.get(key, 0) > now:
            raise LocalProtocolError("this order was answered already", code=WireCode.REPLAYED)
        if len(self._seen) >= MAX_SEEN_ORDERS or self._orders[requester] >= MAX_ORDERS_PER_PEER:
            self._forget_orders(now)
            if self._orders[requester] >= MAX_ORDERS_PER_PEER:
                raise LocalProtocolError("you have ordered too often; try later", code=WireCode.NO_CAPACITY)
            if len(self._seen) >= MAX_SEEN_ORDERS:
                raise LocalProtocolError("too many orders at once; try later", code=WireCode.NO_CAPACITY)
        if key not in self._seen:
            self._orders[requester] += 1
        self._seen[key] = payload.expires_ms + MAX_CLOCK_SKEW_MS

    def _forget_orders(self, now_ms: int) -> None:
        """Drop what counts no more; now and then only, or a flood of orders would cost a walk over all of them each."""
        if now_ms - self._pruned_ms < _PRUNE_MS:
            return
        self._pruned_ms = now_ms
        self._seen = {key: until for key, until in self._seen.items() if until > now_ms}
        self._orders = Counter(peer for peer, _ in self._seen)

    async def _serve(self, stream: ServedDialogue) -> None:
        requester = stream.peer_id
        dialogue = Dialogue(NegotiationConnection(Role.PROVIDER), stream)
        quote: Quote | None = None
        order_digest = bytes(32)
        try:
            while True:
                message = await dialogue.receive(stall_s=_ANSWER_S)
                try:
                    if isinstance(message, StreamEnded):
                        return
                    if isinstance(message, OrderFrame):
                        with _of_its_own(stream):
                            order, payload = negotiation.open_order(
                                message.envelope,
                                network=self.network,
                                requester=requester,
                                provider=self.signer.peer_id,
                                now_ms=self.now_ms(),
                            )
                            order_digest = order.digest
                            binding, now_ms = payload.payer, self.now_ms()
                            verify_binding(binding, network=self.network, peer_id=requester, now_ms=now_ms)
                        self._fresh(requester, payload)
                        quote = await self._bid(dialogue, requester, order, payload)
                    elif isinstance(message, ProposeFrame) and quote is not None:
                        with _of_its_own(stream):
                            _, terms = negotiation.open_terms(
                                message.envelope, network=self.network, requester=requester
                            )
                        await self._sign(dialogue, requester, quote, message.envelope, terms)
                        return
                except LocalProtocolError as exc:
                    await self._refuse(dialogue, requester, order_digest, exc)
        except (ProtocolError, StorageError) as exc:
            level = logging.WARNING if isinstance(exc, StorageError) else logging.INFO
            _log.log(level, "negotiation with %s ended: %s", requester, exc)
            await stream.reset()
        except StreamError:
            pass  # the requester left; nothing was promised

    async def _bid(self, dialogue: Dialogue, requester: PeerId, order: Envelope, payload: OrderPayload) -> Quote:
        bid_payload = await self.policy.bid(requester, order, payload)
        raw = negotiation.seal_bid(bid_payload, network=self.network, signer=self.signer, requester=requester)
        bid, _ = negotiation.open_bid(raw, network=self.network, requester=requester, provider=self.signer.peer_id)
        await dialogue.send(BidFrame(envelope=raw))
        return Quote(provider=self.signer.peer_id, order=order, order_payload=payload, bid=bid, bid_payload=bid_payload)

    async def _sign(self, dialogue: Dialogue, requester: PeerId, quote: Quote, envelope: bytes, terms: Terms) -> None:
        negotiation.check_terms_follow_bid(
            terms, order=quote.order, order_payload=quote.order_payload, bid=quote.bid, bid_payload=quote.bid_payload
        )
        if quote.bid_payload.valid_until_ms <= self.now_ms():
            raise LocalProtocolError("the bid has lapsed; order again", code=WireCode.EXPIRED)
        raw = negotiation.accept_terms(envelope, network=self.network, signer=self.signer)
        agreement = negotiation.open_agreement(
            raw, network=self.network, requester=requester, provider=self.signer.peer_id
        )
        await self.agreed(agreement)
        await dialogue.send(AcceptFrame(envelope=raw))

    async def _refuse(
        self, dialogue: Dialogue, requester: PeerId, order_digest: bytes, exc: LocalProtocolError
    ) -> None:
        refusal = RefusalPayload(order_digest=order_digest, code=exc.code, detail=str(exc)[:512])
        raw = negotiation.seal_refusal(refusal, network=self.network, signer=self.signer, requester=requester)
        await dialogue.send(RefusalFrame(envelope=raw))
