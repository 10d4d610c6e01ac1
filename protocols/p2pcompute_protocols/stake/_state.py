"""The stake stream's transition table: one question at a time, of four kinds."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..limits import MAX_DATA_FRAME_BYTES
from ..wire import Record
from ._messages import (
    MESSAGES,
    Accuse,
    CardGiven,
    CardQuery,
    EvidenceEnd,
    EvidencePiece,
    Pledge,
    Pledged,
    Proceed,
    StakeRefusal,
    StrictGiven,
    StrictQuery,
    VerdictGiven,
)

__all__ = ["TABLE", "StakeConnection", "StakeState"]


class StakeState(enum.Enum):
    """Where the dialogue stands. Who asks is the requester, the provider or arbiter the provider."""

    IDLE = "idle"
    ASKED = "asked"  # the other owes its card
    PLEDGING = "pledging"  # it owes a signature
    SIGNING = "signing"  # it owes a receipt
    ACCUSED = "accused"  # it owes a word on whether it judges this
    RECEIVING = "receiving"  # the evidence comes
    JUDGING = "judging"  # it owes a verdict


_S = StakeState
TABLE: Final[Table[StakeState]] = {
    Role.REQUESTER: {
        _S.IDLE: {CardQuery: _S.ASKED, Pledge: _S.PLEDGING, StrictQuery: _S.SIGNING, Accuse: _S.ACCUSED},
        _S.RECEIVING: {EvidencePiece: _S.RECEIVING, EvidenceEnd: _S.JUDGING},
    },
    Role.PROVIDER: {
        _S.ASKED: {CardGiven: _S.IDLE, StakeRefusal: _S.IDLE},
        _S.PLEDGING: {Pledged: _S.IDLE, StakeRefusal: _S.IDLE},
        _S.SIGNING: {StrictGiven: _S.IDLE, StakeRefusal: _S.IDLE},
        _S.ACCUSED: {Proceed: _S.RECEIVING, StakeRefusal: _S.IDLE},
        _S.JUDGING: {VerdictGiven: _S.IDLE, StakeRefusal: _S.IDLE},
    },
}


class StakeConnection(Connection[StakeState]):
    """Questions about stakes over one stream. Evidence has the size that was announced, and a verdict is on that
    evidence."""

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.IDLE})
    max_frame_bytes = MAX_DATA_FRAME_BYTES

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self._left = 0
        self._digest = b""
        self._at_risk_uusd = 0

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the base passes the sender
        match message:
            case Accuse():
                self._left, self._digest = message.size, message.digest
                self._at_risk_uusd = message.terms.at_risk_uusd
            case EvidencePiece():
                if len(message.data) > self._left:
                    raise LocalProtocolError("more evidence than was announced", code=WireCode.OVERSIZED)
                self._left -= len(message.data)
            case EvidenceEnd():
                if self._left:
                    raise LocalProtocolError("less evidence than was announced", code=WireCode.OUT_OF_ORDER)
            case VerdictGiven():
                if message.evidence != self._digest:
                    raise LocalProtocolError("a verdict on other evidence", code=WireCode.REPLAYED)
                if message.amount_uusd > self._at_risk_uusd:
                    raise LocalProtocolError("a verdict on more than is at risk", code=WireCode.OVERSIZED)
            case _:
                pass
