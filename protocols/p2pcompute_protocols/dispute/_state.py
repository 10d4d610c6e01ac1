"""The dispute stream's transition table, and what its connection remembers between messages."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..ids import PeerId, TaskId
from ..limits import MAX_DISPUTE_QUESTIONS
from ..wire import Record
from ._messages import MESSAGES, Ask, Challenge, Claim, Commitment, DisputeRefusal, RoundsPayload, Settle
from ._rounds import check_claim, open_rounds

__all__ = ["TABLE", "DisputeConnection", "DisputeState"]


class DisputeState(enum.Enum):
    """Where the dialogue stands."""

    IDLE = "idle"
    CHALLENGED = "challenged"
    OPEN = "open"  # the provider is committed
    ASKED = "asked"
    CLOSED = "closed"


_S = DisputeState
TABLE: Final[Table[DisputeState]] = {
    Role.REQUESTER: {
        _S.IDLE: {Challenge: _S.CHALLENGED},
        _S.OPEN: {Ask: _S.ASKED, Settle: _S.CLOSED},
    },
    Role.PROVIDER: {
        _S.CHALLENGED: {Commitment: _S.OPEN, DisputeRefusal: _S.CLOSED},
        _S.ASKED: {Claim: _S.OPEN, DisputeRefusal: _S.CLOSED},
    },
}


class DisputeConnection(Connection[DisputeState]):
    """One dispute over one stream.

    Besides the table it holds: the commitment is the provider's and of the task that was challenged; each claim is of
    the state that was asked for, and is the committed one. `network` and `provider` are set by whoever opens the
    dialogue; without them no commitment is taken. Only one side may speak in each state, so messages never cross.
    """

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.CLOSED})

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.network = ""
        self.provider = PeerId("")
        self.task = TaskId(b"")
        self.rounds: RoundsPayload | None = None  # what the provider is committed to
        self.questions = 0
        self.asked = 0

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the table says who may send what
        match message:
            case Challenge():
                self.task = TaskId(message.task)
            case Commitment():
                _, self.rounds = open_rounds(
                    message.rounds, network=self.network, provider=self.provider, task=self.task
                )
            case Ask():
                assert self.rounds is not None  # the table: a commitment came first
                if message.state > self.rounds.rounds:
                    raise LocalProtocolError(f"state {message.state} of {self.rounds.rounds}", code=WireCode.OVERSIZED)
                if self.questions >= MAX_DISPUTE_QUESTIONS:
                    raise LocalProtocolError("too many questions", code=WireCode.OVERSIZED)
                self.questions += 1
                self.asked = message.state
            case Claim():
                assert self.rounds is not None
                check_claim(message.claim, self.rounds, self.asked)
            case _:
                pass
