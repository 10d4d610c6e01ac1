"""The six frames: 12 bytes of header, three unsigned 32-bit integers in network byte order, and a body.

The first integer holds the kind in its upper 8 bits and the body's length in its lower 24. The other two are the
number and the value of the frame; what a kind does not use is zero, and anything else there is refused. The header is
not CBOR: a stream carries tens of thousands of them a second, each is read before there is anything else to decode, and
a fixed layout has exactly one form to begin with.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from ..errors import LocalProtocolError, WireCode
from ..limits import (
    INITIAL_REQUEST_BYTES,
    INITIAL_REQUESTS,
    MAX_REQUEST_BODY_BYTES,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_MS,
    MAX_REQUESTS,
    MAX_TEXT,
)

__all__ = [
    "HEADER",
    "HEADER_BYTES",
    "KINDS",
    "MAX_NUMBER",
    "Ask",
    "Cancel",
    "Drain",
    "Fault",
    "Frame",
    "Limits",
    "Reply",
    "fault_text",
]

HEADER: Final = struct.Struct("!III")
HEADER_BYTES: Final = HEADER.size
MAX_NUMBER: Final = 2**32 - 1
_MAX_CODE: Final = 255


def _check(value: int, low: int, high: int, what: str) -> None:
    if not low <= value <= high:
        raise LocalProtocolError(f"{what} {value}; {low} to {high} is allowed", code=WireCode.OVERSIZED)


def fault_text(body: bytes) -> str:
    """The text of a fault's body; raises `LocalProtocolError` where it is none."""
    _check(len(body), 0, MAX_TEXT, "a text's bytes are")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise LocalProtocolError("a text is not UTF-8") from None
    if any(char < " " or "\x7f" <= char <= "\x9f" for char in text):
        raise LocalProtocolError("a text holds control characters")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request: `number` is one above that of the request before it, the first is 1.

    `timeout_ms` is how long the requester will wait, counted from when the frame arrives.
    """

    KIND: ClassVar[int] = 1
    number: int
    timeout_ms: int
    body: bytes

    def __post_init__(self) -> None:
        _check(self.number, 1, MAX_NUMBER, "a request's number is")
        _check(self.timeout_ms, 1, MAX_REQUEST_MS, "a request's time in milliseconds is")
        _check(len(self.body), 0, MAX_REQUEST_BODY_BYTES, "a body's bytes are")

    def encode(self) -> bytes:
        return HEADER.pack(1 << 24 | len(self.body), self.number, self.timeout_ms) + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The requester waits no more for the answer to request `number`, which comes nevertheless."""

    KIND: ClassVar[int] = 2
    number: int

    def __post_init__(self) -> None:
        _check(self.number, 1, MAX_NUMBER, "a request's number is")

    def encode(self) -> bytes:
        return HEADER.pack(2 << 24, self.number, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the provider takes: requests that are not answered yet, and bytes of their bodies together."""

    KIND: ClassVar[int] = 3
    requests: int
    request_bytes: int

    def __post_init__(self) -> None:
        _check(self.requests, INITIAL_REQUESTS, MAX_REQUESTS, "requests at once are")
        _check(self.request_bytes, INITIAL_REQUEST_BYTES, MAX_REQUEST_BYTES, "bytes of requests at once are")

    def encode(self) -> bytes:
        return HEADER.pack(3 << 24, self.requests, self.request_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to request `number`."""

    KIND: ClassVar[int] = 4
    number: int
    body: bytes

    def __post_init__(self) -> None:
        _check(self.number, 1, MAX_NUMBER, "a request's number is")
        _check(len(self.body), 0, MAX_REQUEST_BODY_BYTES, "a body's bytes are")

    def encode(self) -> bytes:
        return HEADER.pack(4 << 24 | len(self.body), self.number, 0) + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """There is no answer to request `number`: a wire code, never 0, and a text for people."""

    KIND: ClassVar[int] = 5
    number: int
    code: int
    detail: str

    def __post_init__(self) -> None:
        _check(self.number, 1, MAX_NUMBER, "a request's number is")
        _check(self.code, 1, _MAX_CODE, "a wire code is")
        fault_text(self.detail.encode())

    def encode(self) -> bytes:
        body = self.detail.encode()
        return HEADER.pack(5 << 24 | len(body), self.number, self.code) + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The provider acts on no request after `number`, the last that it has taken; 0 where it has taken none."""

    KIND: ClassVar[int] = 6
    number: int

    def __post_init__(self) -> None:
        _check(self.number, 0, MAX_NUMBER, "a request's number is")

    def encode(self) -> bytes:
        return HEADER.pack(6 << 24, self.number, 0)


Frame: TypeAlias = Ask | Cancel | Limits | Reply | Fault | Drain
KINDS: Final[Mapping[int, type[Frame]]] = {cls.KIND: cls for cls in (Ask, Cancel, Limits, Reply, Fault, Drain)}
