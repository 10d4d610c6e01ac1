"""Protocol errors say who broke the protocol and carry the code that goes on the wire.

    ProtocolError                abstract
    ├── LocalProtocolError       we were about to do what the protocol forbids; nothing was sent
    └── RemoteProtocolError      the peer did; close the stream, and count it against the peer
        └── EndedEarly           it left in the middle, as honest peers do that give up; nothing to count

Code inside the protocols raises `LocalProtocolError`; what receives bytes from a peer converts it
(h11's arrangement), so one set of checks serves both directions.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["EndedEarly", "LocalProtocolError", "ProtocolError", "RemoteProtocolError", "WireCode", "remote"]


class WireCode(enum.IntEnum):
    """Why a message, a stream or an order was refused; sent as an unsigned integer."""

    OK = 0
    MALFORMED = 1  # not deterministic CBOR of the schema
    OVERSIZED = 2  # over a bound of limits.py
    BAD_SIGNATURE = 3
    WRONG_NETWORK = 4
    WRONG_PEER = 5  # signed by, or meant for, somebody else
    EXPIRED = 6
    REPLAYED = 7  # seen before, or a sequence that does not rise
    OUT_OF_ORDER = 8  # not allowed in this state
    UNSUPPORTED = 9  # a version, kind of work or feature that this node does not have
    STALLED = 10  # nothing came in the time that the protocol gives
    UNKNOWN_CHUNK = 11  # a chunk that was not asked for
    BAD_DIGEST = 12  # bytes do not hash to what was announced
    NO_CAPACITY = 13
    PRICE_TOO_LOW = 14
    KERNEL_REFUSED = 15
    CHAIN_MISMATCH = 16  # another chain, hub or token
    CREDIT_EXHAUSTED = 17  # the credit for this stranger, hour or subnet is used up
    PAYMENT_REQUIRED = 18  # the window is full; send a voucher
    BAD_VOUCHER = 19
    UNFUNDED = 20  # the voucher is above the channel's deposit
    EXECUTION_FAILED = 21  # the kernel failed in the worker
    TIMED_OUT = 22  # a chunk ran past its limit
    CANCELLED = 23
    DRAINING = 24  # the provider takes no more work
    UNDERPRICED = 25  # the work turned out to cost far more than the order said
    CHECK_FAILED = 26  # a sample did not match
    INTERNAL = 27
    CLOSING = 28  # the channel's payee has consented to close it


class ProtocolError(Exception):
    """Abstract: somebody broke a protocol. `code` is the `WireCode` to send.

    `certain` says that nothing but what its sender itself has said explains it, whatever the code: no clock, setting,
    line or memory, and no news that it has crossed.
    """

    def __init__(self, message: str, *, code: WireCode = WireCode.MALFORMED, certain: bool = False) -> None:
        if type(self) is ProtocolError:
            raise TypeError("raise LocalProtocolError or RemoteProtocolError")
        self.code = code
        self.certain = certain
        super().__init__(message)


class LocalProtocolError(ProtocolError):
    """We were about to do what the protocol forbids. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer did what the protocol forbids."""


class EndedEarly(RemoteProtocolError):
    """The peer closed its side where the protocol has more to come: whoever waited there has given up, or ended."""


@contextmanager
def remote() -> Generator[None]:
    """Turn a `LocalProtocolError` raised while reading a peer's bytes into a `RemoteProtocolError`."""
    try:
        yield
    except LocalProtocolError as exc:
        raise RemoteProtocolError(str(exc), code=exc.code, certain=exc.certain) from exc
