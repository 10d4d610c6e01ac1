"""What a user of requests meets: errors, limits and the kinds of handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pcompute.errors import StreamError
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_TEXT
from p2pcompute_protocols.request import Limits

__all__ = [
    "ABANDONED_S",
    "IDLE_ASKING_S",
    "IDLE_SERVING_S",
    "MAX_HANDLERS",
    "MAX_REQUEST_STREAMS_PER_PEER",
    "OUTBOX_BYTES",
    "REQUEST_TIMEOUT_S",
    "InlineRequestHandler",
    "RequestError",
    "RequestHandler",
    "RequestLimits",
    "RequestLost",
    "RequestRefused",
    "RequestTimeout",
    "as_detail",
]

REQUEST_TIMEOUT_S: Final = 10.0
IDLE_ASKING_S: Final = 120.0  # a stream that carries nothing for so long is closed; the next request opens another
IDLE_SERVING_S: Final = 300.0  # longer, so that in the normal case it is the asking side that closes
ABANDONED_S: Final = 10.0  # a request that was cancelled has to be answered by then, or the stream is reset
FIRST_S: Final = 30.0  # a stream on which nothing was ever asked is closed sooner than one that was used
FRAME_S: Final = 30.0  # from the first byte of a frame to its last
DRAIN_S: Final = 5.0  # what a requester may take to leave a stream that takes no more
MAX_REQUEST_STREAMS_PER_PEER: Final = 4  # of one protocol: one is enough, and another follows one that drains
MAX_HANDLERS: Final = 1_024  # of one protocol, for all peers together
OUTBOX_BYTES: Final = 256 * 1024  # answers that the peer does not take; above, nothing more is begun for it


class RequestError(StreamError):
    """A request has no answer.

    Attributes:
        may_have_acted: False where the peer certainly has not acted on it, so that it may be asked again, or somebody
            else; True where nobody here can know.
    """

    def __init__(self, message: str, *, may_have_acted: bool) -> None:
        self.may_have_acted = may_have_acted
        super().__init__(message)


class RequestRefused(RequestError):
    """The peer answered with a fault: `code` is its `WireCode` (INTERNAL for one that we do not know), `detail` a text
    for people. A fault says nothing of how far the peer came, but for those that say that it has not begun."""

    def __init__(self, code: int, detail: str) -> None:
        self.code = WireCode(code) if code in WireCode._value2member_map_ else WireCode.INTERNAL
        self.detail = detail
        begun = self.code not in (WireCode.NO_CAPACITY, WireCode.DRAINING)
        super().__init__(f"the peer refused ({self.code.name.lower()}): {detail}", may_have_acted=begun)


class RequestTimeout(RequestError):
    """No answer came in the time that the request had; the peer was told that nobody waits any more."""


class RequestLost(RequestError):
    """The stream broke before the answer came. Ask again where `may_have_acted` is False or the request may be made
    twice; the next one opens a new stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a protocol's provider takes.

    Attributes:
        requests: of one stream, that are not answered.
        request_bytes: of their bodies together.
        longest_s: a handler is cancelled after so long, whatever time the request gave.
        handlers: that run at once for all peers; above, requests are refused as NO_CAPACITY. Inline ones do not count.
        streams: of one peer; one more is reset.
    """

    requests: int = 64
    request_bytes: int = 1024 * 1024
    longest_s: float = 60.0
    handlers: int = MAX_HANDLERS
    streams: int = MAX_REQUEST_STREAMS_PER_PEER

    def __post_init__(self) -> None:
        self.on_wire()
        if not (self.longest_s > 0 and self.handlers >= 1 and self.streams >= 1):
            raise ValueError("limits of requests are positive")

    def on_wire(self) -> Limits:
        """As the peer is told them. Raises `LocalProtocolError` where the protocol does not allow them."""
        return Limits(requests=self.requests, request_bytes=self.request_bytes)


RequestHandler: TypeAlias = Callable[[PeerId, bytes], Awaitable[bytes]]
InlineRequestHandler: TypeAlias = Callable[[PeerId, bytes], bytes]


def as_detail(exc: LocalProtocolError) -> str:
    """The text of a refusal as the wire takes it."""
    text = "".join(char if char >= " " and not "\x7f" <= char <= "\x9f" else " " for char in str(exc))
    return text.encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
