"""The negotiation's transition table: at most one order, one answer, one proposal and one answer to that."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_FRAME_BYTES, MAX_NEGOTIATION_ROUNDS
from ..wire import Record
from ._messages import MESSAGES, AcceptFrame, BidFrame, OrderFrame, ProposeFrame, RefusalFrame

__all__ = ["TABLE", "NegotiationConnection", "NegotiationState"]


class NegotiationState(enum.Enum):
    """Where the dialogue stands."""

    IDLE = "idle"  # nothing said
    ORDERED = "ordered"  # the provider owes an answer
    BIDDEN = "bidden"  # the requester may propose, order anew, or leave
    PROPOSED = "proposed"  # the provider owes a signature or a refusal
    REFUSED = "refused"  # the requester may order anew, or leave
    AGREED = "agreed"


_S = NegotiationState
TABLE: Final[Table[NegotiationState]] = {
    Role.REQUESTER: {
        _S.IDLE: {OrderFrame: _S.ORDERED},
        _S.BIDDEN: {ProposeFrame: _S.PROPOSED, OrderFrame: _S.ORDERED},
        _S.REFUSED: {OrderFrame: _S.ORDERED},
    },
    Role.PROVIDER: {
        _S.ORDERED: {BidFrame: _S.BIDDEN, RefusalFrame: _S.REFUSED},
        _S.PROPOSED: {AcceptFrame: _S.AGREED, RefusalFrame: _S.REFUSED},
    },
}


class NegotiationConnection(Connection[NegotiationState]):
    """One negotiation over one stream; at most MAX_NEGOTIATION_ROUNDS orders."""

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.BIDDEN, _S.REFUSED, _S.AGREED})
    max_frame_bytes = MAX_FRAME_BYTES

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.rounds = 0

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the base passes the sender
        if isinstance(message, OrderFrame):
            if self.rounds >= MAX_NEGOTIATION_ROUNDS:
                raise LocalProtocolError(
                    f"more than {MAX_NEGOTIATION_ROUNDS} orders in one negotiation", code=WireCode.OVERSIZED
                )
            self.rounds += 1
