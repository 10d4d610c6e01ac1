"""An accusation, which its author signs, and the file that holds it with all that it is about."""

from __future__ import annotations

from typing import Final

from ..dispute import StateClaim
from ..dispute._messages import STATEMENT_BYTES
from ..envelope import Signer, seal
from ..errors import LocalProtocolError
from ..limits import (
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_ENVELOPE_BYTES,
    MAX_EVIDENCE_BLOBS,
    MAX_LEAVES,
    MAX_NAME,
    MAX_TEXT,
)
from ..wire import Array, Bytes, Choice, Nested, Record, Text, Uint, optional, record, wire

__all__ = ["ACCUSATION_KIND", "Accusation", "EvidenceFile", "seal_accusation"]

ACCUSATION_KIND: Final = "accusation"


@record
class Accusation(Record):
    """What somebody holds against a provider, and signs: who accuses an honest one has said so under its own name.

    `result`: the receipt of chunk `index` is for an output that the work does not give; `item` may say where the first
    difference was seen. `equivocation`: two receipts for chunk `index` are for unlike outputs. `round`: the commitment
    claims a state after round `round` that the state before it does not give; round 0 is the first state itself. Of a
    `RoundWork` receipts say what is claimed, two where the states before and after lie in two chunks.
    """

    task: bytes = wire(1, Bytes(32))
    kind: str = wire(2, Choice("result", "equivocation", "round"))
    statements: tuple[bytes, ...] = wire(3, Array(Bytes(32), 2, 1))
    created_ms: int = wire(4, Uint())
    index: int | None = optional(5, Uint(0, MAX_CHUNKS - 1), default=None)
    item: int | None = optional(6, Uint(), default=None)
    round: int | None = optional(7, Uint(0, MAX_LEAVES - 1), default=None)
    detail: str | None = optional(8, Text(MAX_TEXT), default=None)

    def validate(self) -> None:
        rounds = self.kind == "round"
        if (self.round is not None) != rounds or (self.index is None) != rounds:
            raise LocalProtocolError("an accusation names a round or a chunk, as its kind says")
        if self.item is not None and self.kind != "result":
            raise LocalProtocolError("an item is named for a result only")
        due = {"result": (1,), "equivocation": (2,), "round": (1, 2)}[self.kind]
        if len(self.statements) not in due or len(set(self.statements)) != len(self.statements):
            raise LocalProtocolError("an equivocation is of two statements, a result of one, a round of one or two")


@record
class EvidenceFile(Record):
    """A file of evidence: what was signed, and the bytes that are needed to compute it again."""

    version: int = wire(1, Uint(1, 1))
    network: str = wire(2, Text(MAX_NAME, 1))
    accusation: bytes = wire(3, Bytes(1, MAX_ENVELOPE_BYTES))
    agreement: bytes = wire(4, Bytes(1, MAX_ENVELOPE_BYTES))
    statements: tuple[bytes, ...] = wire(5, Array(Bytes(1, STATEMENT_BYTES), 2, 1))
    blobs: tuple[bytes, ...] = wire(6, Array(Bytes(1, MAX_BLOB_BYTES), MAX_EVIDENCE_BLOBS))
    claims: tuple[StateClaim, ...] = wire(7, Array(Nested(StateClaim), 2))


def seal_accusation(accusation: Accusation, *, network: str, signer: Signer) -> bytes:
    """The accuser's signature."""
    return seal(ACCUSATION_KIND, network, signer, accusation.encode())
