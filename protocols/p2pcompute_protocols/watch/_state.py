"""The watch stream's transition table: hello, welcome, then one question at a time."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..wire import Record
from ._messages import (
    MESSAGES,
    WatchFetch,
    WatchGiven,
    WatchHello,
    WatchKeep,
    WatchKept,
    WatchRefusal,
    WatchWelcome,
)

__all__ = ["TABLE", "WatchConnection", "WatchState"]


class WatchState(enum.Enum):
    """Where the dialogue stands. The owner of the vouchers is the requester, the tower the provider."""

    IDLE = "idle"
    GREETED = "greeted"  # the tower owes a welcome
    OPEN = "open"
    KEEPING = "keeping"  # the tower owes an answer to a voucher
    FETCHING = "fetching"  # the tower owes vouchers
    REFUSED = "refused"  # the hello was refused


_S = WatchState
TABLE: Final[Table[WatchState]] = {
    Role.REQUESTER: {
        _S.IDLE: {WatchHello: _S.GREETED},
        _S.OPEN: {WatchKeep: _S.KEEPING, WatchFetch: _S.FETCHING},
    },
    Role.PROVIDER: {
        _S.GREETED: {WatchWelcome: _S.OPEN, WatchRefusal: _S.REFUSED},
        _S.KEEPING: {WatchKept: _S.OPEN, WatchRefusal: _S.OPEN},
        _S.FETCHING: {WatchGiven: _S.OPEN},
    },
}


class WatchConnection(Connection[WatchState]):
    """One owner's vouchers over one stream. What is kept is never below what was sent, and what is given lies behind
    what was asked for."""

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.OPEN, _S.REFUSED})

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self._sent_uusd = 0
        self._after = b""

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the base passes the sender
        match message:
            case WatchKeep():
                self._sent_uusd = message.voucher.amount_uusd
            case WatchFetch():
                self._after = message.after or b""
            case WatchKept():
                if message.amount_uusd < self._sent_uusd:
                    raise LocalProtocolError("less is kept than was sent", code=WireCode.OUT_OF_ORDER)
            case WatchGiven():
                if message.vouchers and message.vouchers[0].place <= self._after:
                    raise LocalProtocolError("a voucher that was given before", code=WireCode.OUT_OF_ORDER)
            case _:
                pass
