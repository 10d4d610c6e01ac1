"""The channel stream's transition table: hello, sync, then one voucher at a time, and a consent to close at the end."""

from __future__ import annotations

import enum
from typing import Final

from ..connection import Connection, Role, Table
from ..errors import LocalProtocolError, WireCode
from ..wire import Record
from ._messages import (
    MESSAGES,
    ChannelHello,
    ChannelSync,
    CloseAsk,
    ConsentFrame,
    VoucherAck,
    VoucherFrame,
    VoucherRefusal,
)

__all__ = ["TABLE", "ChannelConnection", "ChannelState"]


class ChannelState(enum.Enum):
    """Where the dialogue stands. The payer is the requester, the payee the provider."""

    IDLE = "idle"
    GREETED = "greeted"  # the payee owes a sync
    OPEN = "open"
    PAYING = "paying"  # the payee owes an answer to a voucher
    CLOSING = "closing"  # the payee owes an answer to a request to close
    REFUSED = "refused"  # the hello was refused
    CLOSED = "closed"  # the payee has signed: nothing more is said about this channel


_S = ChannelState
TABLE: Final[Table[ChannelState]] = {
    Role.REQUESTER: {
        _S.IDLE: {ChannelHello: _S.GREETED},
        _S.OPEN: {VoucherFrame: _S.PAYING, CloseAsk: _S.CLOSING},
    },
    Role.PROVIDER: {
        _S.GREETED: {ChannelSync: _S.OPEN, VoucherRefusal: _S.REFUSED},
        _S.PAYING: {VoucherAck: _S.OPEN, VoucherRefusal: _S.OPEN},
        _S.CLOSING: {ConsentFrame: _S.CLOSED, VoucherRefusal: _S.OPEN},
    },
}


class ChannelConnection(Connection[ChannelState]):
    """One channel over one stream. Amounts never go back: a voucher must be above the best one that the payee
    said it holds, an ack must be for the voucher that was sent, and a channel is not closed below what is held."""

    messages = MESSAGES
    table = TABLE
    start = _S.IDLE
    final = frozenset({_S.OPEN, _S.REFUSED, _S.CLOSED})

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.best_uusd = 0
        self._offered_uusd = 0

    def check(self, sender: Role, message: Record) -> None:  # noqa: ARG002  the base passes the sender
        match message:
            case ChannelSync():
                self.best_uusd = message.amount_uusd
            case VoucherFrame():
                if message.amount_uusd <= self.best_uusd:
                    raise LocalProtocolError(
                        f"a voucher of {message.amount_uusd} where {self.best_uusd} is held", code=WireCode.BAD_VOUCHER
                    )
                self._offered_uusd = message.amount_uusd
            case CloseAsk():
                if message.amount_uusd < self.best_uusd:
                    raise LocalProtocolError(
                        f"closing at {message.amount_uusd} where {self.best_uusd} is held", code=WireCode.BAD_VOUCHER
                    )
            case VoucherAck():
                if message.amount_uusd != self._offered_uusd:
                    raise LocalProtocolError("an ack for another voucher", code=WireCode.OUT_OF_ORDER)
                self.best_uusd = message.amount_uusd
            case _:
                pass
