"""What is committed to, asked and claimed about the rounds of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import LocalProtocolError
from ..limits import MAX_ARGS, MAX_LEAVES, MAX_TEXT
from ..merkle import InclusionProof
from ..wire import Bytes, Nested, Record, Text, Uint, optional, record, wire

__all__ = [
    "MESSAGES",
    "PROTOCOL_ID",
    "ROUNDS_KIND",
    "STATEMENT_BYTES",
    "Ask",
    "Challenge",
    "Claim",
    "Commitment",
    "DisputeRefusal",
    "RoundsPayload",
    "Settle",
    "StateClaim",
]

PROTOCOL_ID: Final = "/p2pcompute/dispute/1"
ROUNDS_KIND: Final = "rounds"
STATEMENT_BYTES: Final = 4 * 1024  # an envelope of a receipt or of rounds
_STATE: Final = Uint(0, MAX_LEAVES - 1)


@record
class RoundsPayload(Record):
    """What a provider signs for a task that it has run in rounds, each on the state that the last one left.

    Of a `RoundWork` states and their digests are the work's own, and `rounds` those that were run. Of a `ChunkWork`
    state 0 is the input `state`, round *i* the whole launch with state *i* - 1 in the place of that input, and state
    *i* what it leaves in the output `out`; a state's digest is SHA-256 of its bytes, C order, little-endian. `root` is
    over the digests of all states, 0 to `rounds`.
    """

    task: bytes = wire(1, Bytes(32))
    state: int | None = optional(2, Uint(0, MAX_ARGS - 1), default=None)
    out: int | None = optional(3, Uint(0, MAX_ARGS - 1), default=None)
    rounds: int = wire(4, Uint(1, MAX_LEAVES - 1))
    root: bytes = wire(5, Bytes(32))
    finished_ms: int = wire(6, Uint())

    def validate(self) -> None:
        if (self.state is None) != (self.out is None):
            raise LocalProtocolError("a commitment names an input and an output, or neither")
        if self.state is not None and self.state == self.out:
            raise LocalProtocolError("an argument is an input or an output")


@record
class StateClaim(Record):
    """The digest of a state, and that it is the one committed to: the leaf's number is the state's."""

    digest: bytes = wire(1, Bytes(32))
    proof: InclusionProof = wire(2, Nested(InclusionProof))


@record
class Challenge(Record):
    """Requester: show what you have committed yourself to."""

    TYPE = 1
    task: bytes = wire(1, Bytes(32))


@record
class Ask(Record):
    """Requester: which digest does this state have?"""

    TYPE = 2
    state: int = wire(1, _STATE)


@record
class Settle(Record):
    """Requester: it is over. `round` is the first one whose result differs; left out where none does."""

    TYPE = 3
    round: int | None = optional(1, _STATE, default=None)
    detail: str | None = optional(2, Text(MAX_TEXT), default=None)


@record
class Commitment(Record):
    """Provider: the commitment, in its envelope."""

    TYPE = 17
    rounds: bytes = wire(1, Bytes(1, STATEMENT_BYTES))


@record
class Claim(Record):
    """Provider: the digest of the state that was asked for."""

    TYPE = 18
    claim: StateClaim = wire(1, Nested(StateClaim))


@record
class DisputeRefusal(Record):
    """Provider: it has no such commitment, or answers no more. `code` is a `WireCode`."""

    TYPE = 19
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls for cls in (Challenge, Ask, Settle, Commitment, Claim, DisputeRefusal)
}
