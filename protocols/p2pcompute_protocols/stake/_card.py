"""An arbiter's card: which account judges for which peer, signed by both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .._binding import SignerBinding, verify_binding
from ..envelope import Signer, open_envelope, seal
from ..errors import LocalProtocolError, WireCode
from ..ids import Address, PeerId
from ..money import ChainTerms
from ..wire import Bytes, Nested, Record, record, wire

__all__ = ["ARBITER_KIND", "ArbiterCard", "OpenCard", "open_card", "seal_card"]

ARBITER_KIND: Final = "arbiter"


@record
class ArbiterCard(Record):
    """What an arbiter says of itself: the account whose stake stands behind its verdicts, and where that stake is."""

    extensible = True
    chain: ChainTerms = wire(1, Nested(ChainTerms))
    registry: bytes = wire(2, Bytes(20))
    binding: SignerBinding = wire(3, Nested(SignerBinding))

    def validate(self) -> None:
        if self.binding.owner != self.binding.signer:
            raise LocalProtocolError("an arbiter's account signs for itself", code=WireCode.WRONG_PEER)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCard:
    """A card whose signatures hold: the peer's over all of it, and the account's over the binding."""

    peer_id: PeerId
    account: Address
    card: ArbiterCard
    raw: bytes


def seal_card(card: ArbiterCard, *, network: str, signer: Signer) -> bytes:
    """The peer's signature. Without it any account could say that it judges for that peer."""
    return seal(ARBITER_KIND, network, signer, card.encode())


def open_card(raw: bytes, *, network: str, now_ms: int) -> OpenCard:
    """Verify a card.

    Args:
        raw: its envelope.
        network: the network's ID.
        now_ms: UNIX time in milliseconds; 0 for a card that was verified when it was new, and may be old by now.

    Raises:
        LocalProtocolError: as `open_envelope` and `verify_binding`; WRONG_PEER where the two are of unlike peers.
    """
    envelope = open_envelope(raw, kind=ARBITER_KIND, network=network)
    card = ArbiterCard.decode(envelope.payload)
    verify_binding(card.binding, network=network, peer_id=envelope.signer, now_ms=now_ms)
    return OpenCard(peer_id=envelope.signer, account=Address(card.binding.owner), card=card, raw=raw)
