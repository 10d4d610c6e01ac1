"""Cards of arbiters, pledges of providers, receipts for the stake registry, and verdicts on evidence."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from ..errors import LocalProtocolError, WireCode
from ..limits import (
    MAX_ARBITERS,
    MAX_CARD_BYTES,
    MAX_CHUNKS,
    MAX_DATA_FRAME_BYTES,
    MAX_EVIDENCE_BYTES,
    MAX_NAME,
    MAX_TEXT,
    UINT64_MAX,
)
from ..money import ChainTerms
from ..wire import Array, Bytes, Nested, Record, Text, Uint, record, wire

__all__ = [
    "MESSAGES",
    "PIECE_BYTES",
    "PROTOCOL_ID",
    "Accuse",
    "CardGiven",
    "CardQuery",
    "EvidenceEnd",
    "EvidencePiece",
    "Pledge",
    "PledgeFile",
    "Pledged",
    "PledgedTerms",
    "Proceed",
    "SignedReceipt",
    "StakeRefusal",
    "StrictGiven",
    "StrictQuery",
    "VerdictGiven",
]

PROTOCOL_ID: Final = "/p2pcompute/stake/1"
PIECE_BYTES: Final = MAX_DATA_FRAME_BYTES - 64
_LAST_S: Final = 2**40 - 1


@record
class PledgedTerms(Record):
    """What provider and requester sign for the registry: `Terms` of docs/contracts.md, with the chain and the registry
    that are its domain. `arbiters` are accounts."""

    chain: ChainTerms = wire(1, Nested(ChainTerms))
    registry: bytes = wire(2, Bytes(20))
    task: bytes = wire(3, Bytes(32))
    provider: bytes = wire(4, Bytes(20))
    requester: bytes = wire(5, Bytes(20))
    at_risk_uusd: int = wire(6, Uint(1, UINT64_MAX))
    threshold: int = wire(7, Uint(1, MAX_ARBITERS))
    expires_s: int = wire(8, Uint(1, _LAST_S))
    arbiters: tuple[bytes, ...] = wire(9, Array(Bytes(20), MAX_ARBITERS, 1))

    def validate(self) -> None:
        if any(left >= right for left, right in pairwise(self.arbiters)):
            raise LocalProtocolError("arbiters ascend, and none is named twice")
        if self.threshold > len(self.arbiters):
            raise LocalProtocolError("more arbiters have to agree than there are")
        if self.provider == self.requester or {self.provider, self.requester} & set(self.arbiters):
            raise LocalProtocolError(
                "provider, requester and arbiters are different accounts", code=WireCode.WRONG_PEER
            )


@record
class PledgeFile(Record):
    """What a requester keeps of a pledge: all that the registry asks for beside the verdict, and where the arbiters
    are: their cards, in the order of `terms`, and addresses that reached them."""

    version: int = wire(1, Uint(1, 1))
    network: str = wire(2, Text(MAX_NAME, 1))
    terms: PledgedTerms = wire(3, Nested(PledgedTerms))
    provider_signature: bytes = wire(4, Bytes(65))
    requester_signature: bytes = wire(5, Bytes(65))
    cards: tuple[bytes, ...] = wire(6, Array(Bytes(1, MAX_CARD_BYTES), MAX_ARBITERS, 1))
    addresses: tuple[str, ...] = wire(7, Array(Text(256, 1), MAX_ARBITERS))

    def validate(self) -> None:
        if len(self.cards) != len(self.terms.arbiters):
            raise LocalProtocolError("each arbiter has a card")


@record
class SignedReceipt(Record):
    """A `StrictReceipt` of docs/contracts.md with its signature, as a file: two of them that differ are a proof."""

    version: int = wire(1, Uint(1, 1))
    chain: ChainTerms = wire(2, Nested(ChainTerms))
    registry: bytes = wire(3, Bytes(20))
    owner: bytes = wire(4, Bytes(20))
    task: bytes = wire(5, Bytes(32))
    index: int = wire(6, Uint(0, MAX_CHUNKS - 1))
    output: bytes = wire(7, Bytes(32))
    signature: bytes = wire(8, Bytes(65))


@record
class CardQuery(Record):
    """Anybody: are you an arbiter?"""

    TYPE = 1


@record
class Pledge(Record):
    """Requester: sign these terms, as I have; the cards are of its arbiters, in their order."""

    TYPE = 2
    terms: PledgedTerms = wire(1, Nested(PledgedTerms))
    signature: bytes = wire(2, Bytes(65))
    cards: tuple[bytes, ...] = wire(3, Array(Bytes(1, MAX_CARD_BYTES), MAX_ARBITERS, 1))

    def validate(self) -> None:
        if len(self.cards) != len(self.terms.arbiters):
            raise LocalProtocolError("each arbiter has a card")


@record
class StrictQuery(Record):
    """Requester: sign for the registry what you have receipted."""

    TYPE = 3
    task: bytes = wire(1, Bytes(32))
    index: int = wire(2, Uint(0, MAX_CHUNKS - 1))


@record
class Accuse(Record):
    """Anybody: judge this. A file of evidence of `size` bytes follows, whose SHA-256 is `digest`."""

    TYPE = 4
    terms: PledgedTerms = wire(1, Nested(PledgedTerms))
    provider_signature: bytes = wire(2, Bytes(65))
    requester_signature: bytes = wire(3, Bytes(65))
    size: int = wire(4, Uint(1, MAX_EVIDENCE_BYTES))
    digest: bytes = wire(5, Bytes(32))


@record
class EvidencePiece(Record):
    """Accuser: the next bytes of the file."""

    TYPE = 5
    data: bytes = wire(1, Bytes(1, PIECE_BYTES))


@record
class EvidenceEnd(Record):
    """Accuser: that was all of it."""

    TYPE = 6


@record
class CardGiven(Record):
    """Arbiter: its card, in its envelope."""

    TYPE = 17
    card: bytes = wire(1, Bytes(1, MAX_CARD_BYTES))


@record
class Pledged(Record):
    """Provider: its signature over the same terms."""

    TYPE = 18
    signature: bytes = wire(1, Bytes(65))


@record
class StrictGiven(Record):
    """Provider: the output that it has receipted for that chunk, signed for the registry."""

    TYPE = 19
    output: bytes = wire(1, Bytes(32))
    signature: bytes = wire(2, Bytes(65))


@record
class Proceed(Record):
    """Arbiter: it is named in these terms, and takes the evidence."""

    TYPE = 20


@record
class VerdictGiven(Record):
    """Arbiter: the provider is wrong, and this much is to be taken; its signature over the registry's `Verdict`."""

    TYPE = 21
    amount_uusd: int = wire(1, Uint(1, UINT64_MAX))
    evidence: bytes = wire(2, Bytes(32))
    signature: bytes = wire(3, Bytes(65))


@record
class StakeRefusal(Record):
    """The question is not answered, and why; after evidence: there is no verdict against the provider."""

    TYPE = 22
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls
    for cls in (
        CardQuery,
        Pledge,
        StrictQuery,
        Accuse,
        EvidencePiece,
        EvidenceEnd,
        CardGiven,
        Pledged,
        StrictGiven,
        Proceed,
        VerdictGiven,
        StakeRefusal,
    )
}
