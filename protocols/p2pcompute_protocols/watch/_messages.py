"""Leaving vouchers with a watchtower, and getting them back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from .._binding import SignerBinding
from ..errors import LocalProtocolError
from ..limits import MAX_TEXT, MAX_WATCHED_PER_REPLY, UINT64_MAX
from ..money import ChainTerms
from ..wire import Array, Bytes, Flag, Nested, Record, Text, Uint, optional, record, wire

__all__ = [
    "MESSAGES",
    "PROTOCOL_ID",
    "WatchFetch",
    "WatchGiven",
    "WatchHello",
    "WatchKeep",
    "WatchKept",
    "WatchRefusal",
    "WatchWelcome",
    "WatchedVoucher",
]

PROTOCOL_ID: Final = "/p2pcompute/watch/1"


@record
class WatchedVoucher(Record):
    """A voucher of a channel to the account that the hello names: enough for anybody to claim it for that account."""

    payer: bytes = wire(1, Bytes(20))
    signer: bytes = wire(2, Bytes(20))
    amount_uusd: int = wire(3, Uint(1, UINT64_MAX))
    memo: bytes = wire(4, Bytes(32))
    signature: bytes = wire(5, Bytes(65))

    @property
    def place(self) -> bytes:
        """Where it stands among the owner's vouchers: payer and signer, 40 bytes."""
        return self.payer + self.signer


@record
class WatchHello(Record):
    """Owner: whose vouchers this stream is about. The binding's owner and signer are that account, one and the same."""

    TYPE = 1
    chain: ChainTerms = wire(1, Nested(ChainTerms))
    owner: SignerBinding = wire(2, Nested(SignerBinding))


@record
class WatchKeep(Record):
    """Owner: keep this voucher in the place of the one that you hold of its channel."""

    TYPE = 2
    voucher: WatchedVoucher = wire(1, Nested(WatchedVoucher))


@record
class WatchFetch(Record):
    """Owner: give back what you hold, in ascending order, from behind `after` on."""

    TYPE = 3
    after: bytes | None = optional(1, Bytes(40), default=None)


@record
class WatchWelcome(Record):
    """Tower: of how many channels it holds a voucher for this owner, and how many more there is room for."""

    TYPE = 17
    kept: int = wire(1, Uint(0, UINT64_MAX))
    room: int = wire(2, Uint(0, UINT64_MAX))


@record
class WatchKept(Record):
    """Tower: of that channel a voucher of this amount, or a higher one, is on disk."""

    TYPE = 18
    amount_uusd: int = wire(1, Uint(1, UINT64_MAX))


@record
class WatchGiven(Record):
    """Tower: vouchers, ascending by payer and signer; `more` where the next fetch gives more."""

    TYPE = 19
    vouchers: tuple[WatchedVoucher, ...] = wire(1, Array(Nested(WatchedVoucher), MAX_WATCHED_PER_REPLY))
    more: bool = wire(2, Flag())

    def validate(self) -> None:
        places = [voucher.place for voucher in self.vouchers]
        if any(left >= right for left, right in pairwise(places)):
            raise LocalProtocolError("vouchers ascend by payer and signer, each channel once")
        if self.more and not places:
            raise LocalProtocolError("there is no more behind nothing")


@record
class WatchRefusal(Record):
    """Tower: the hello, or the voucher, was not taken."""

    TYPE = 20
    code: int = wire(1, Uint(1, 255))
    detail: str = wire(2, Text(MAX_TEXT))


MESSAGES: Final[Mapping[int, type[Record]]] = {
    cls.TYPE: cls for cls in (WatchHello, WatchKeep, WatchFetch, WatchWelcome, WatchKept, WatchGiven, WatchRefusal)
}
