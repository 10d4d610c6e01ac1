"""Both sides of a request stream, without I/O, clock or randomness.

Feed what arrives with `receive_data` (b"" for the end of the stream), take events with `next_event` until it gives
`NEED_DATA`, and write what the other methods return, in the order of the calls. An error that the peer caused breaks
the session for good; its `code` says what the peer did. The states and their table are those of the specification;
methods that an honest program can't call in the wrong state look at the state, and everything received goes through the
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..connection import NEED_DATA, NeedData, Role
from ..errors import EndedEarly, LocalProtocolError, RemoteProtocolError, WireCode, remote
from ..limits import (
    INITIAL_REQUEST_BYTES,
    INITIAL_REQUESTS,
    MAX_REQUEST_BODY_BYTES,
    MAX_REQUEST_MS,
    MAX_TEXT,
)
from ._frames import (
    HEADER,
    HEADER_BYTES,
    KINDS,
    MAX_NUMBER,
    Ask,
    Cancel,
    Drain,
    Fault,
    Frame,
    Limits,
    Reply,
    fault_text,
)
from ._state import TABLE, RequestState

__all__ = ["AskingSession", "ServingSession", "StreamOver"]

_ASK: Final = 1 << 24
_REPLY: Final = 4 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOver:
    """The peer closed its side where the protocol lets it."""


class _Session:
    """Cuts what is received into frames. A header is judged when it is there, before its body is waited for."""

    role: Role

    def __init__(self) -> None:
        self.state = RequestState.NEW
        self._data: bytes | bytearray = b""
        self._start = 0
        self._ended = False
        self._broken: RemoteProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of a frame that is not whole yet, and of frames that nobody has taken."""
        return len(self._data) - self._start

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the peer; b"" says that it closed its side. A broken session keeps none."""
        if self._broken is not None:
            return
        if not data:
            self._ended = True
            return
        if self._ended:
            raise LocalProtocolError("data after the end of the stream", code=WireCode.OUT_OF_ORDER)
        if self._start == len(self._data):
            self._data, self._start = data, 0  # nearly always: whole frames come together, and nothing is copied
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(memoryview(self._data)[self._start :])
        else:
            del self._data[: self._start]
        self._start = 0
        self._data += data

    def next_event(self) -> Frame | StreamOver | NeedData:
        """The next frame, `StreamOver`, or `NEED_DATA`.

        Raises:
            RemoteProtocolError: the peer broke the protocol; the session is broken from now on.
        """
        if self._broken is not None:
            raise type(self._broken)(str(self._broken), code=self._broken.code)
        try:
            with remote():
                return self._next()
        except RemoteProtocolError as exc:
            self._broken = exc
            self._data, self._start = b"", 0
            raise

    def _next(self) -> Frame | StreamOver | NeedData:
        while True:
            start = self._start
            left = len(self._data) - start
            if left < HEADER_BYTES:
                break
            word, number, value = HEADER.unpack_from(self._data, start)
            size = word & 0xFFFFFF
            sender = self.role.other
            kind = KINDS.get(word >> 24)
            if kind is None:
                raise LocalProtocolError(f"unknown kind {word >> 24}")
            state = TABLE[sender][self.state].get(kind)
            if state is None:
                raise LocalProtocolError(
                    f"{sender.value} may not send {kind.__name__} in state {self.state.name}",
                    code=WireCode.OUT_OF_ORDER,
                )
            self._judge(kind, number, value, size)
            end = start + HEADER_BYTES + size
            if left < HEADER_BYTES + size:
                return self._at_end() if self._ended else NEED_DATA
            body = b""
            if size:
                begin = start + HEADER_BYTES
                data = self._data
                body = data[begin:end] if isinstance(data, bytes) else bytes(memoryview(data)[begin:end])
            self._start = end
            event = self._take(kind, number, value, body)
            self.state = state
            if event is not None:
                return event
        return self._at_end() if self._ended else NEED_DATA

    def _at_end(self) -> StreamOver:
        if self.buffered:
            raise EndedEarly("the stream ended inside of a frame", code=WireCode.OUT_OF_ORDER)
        self._check_end()
        return StreamOver()

    def _judge(self, kind: type[Frame], number: int, value: int, size: int) -> None:
        """Refuse a header."""
        raise NotImplementedError

    def _take(self, kind: type[Frame], number: int, value: int, body: bytes) -> Frame | None:
        """Act on a whole frame; None where it has no meaning any more."""
        raise NotImplementedError

    def _check_end(self) -> None:
        """Refuse the end of the stream."""


def _zero(what: str, *values: int) -> None:
    if any(values):
        raise LocalProtocolError(f"{what} has something where nothing may be")


class AskingSession(_Session):
    """The side that opened the stream. Its requests count against the provider's limits until they are answered,
    cancelled ones too, so both sides always agree on what is under way."""

    role = Role.REQUESTER

    def __init__(self) -> None:
        super().__init__()
        self.limits = Limits(requests=INITIAL_REQUESTS, request_bytes=INITIAL_REQUEST_BYTES)
        self.last = 0
        self.bytes_under_way = 0
        self._sizes: dict[int, int] = {}  # of the bodies of requests that are not answered
        self._cancelled: set[int] = set()
        self._closed = False

    @property
    def under_way(self) -> int:
        """Requests that are not answered."""
        return len(self._sizes)

    @property
    def takes_more(self) -> bool:
        """Whether this stream may still carry new requests; where not, another one has to."""
        return (
            self.state is not RequestState.DRAINING
            and not self._closed
            and not self._ended
            and self._broken is None
            and self.last < MAX_NUMBER
        )

    def has_room(self, size: int) -> bool:
        """Whether a request with a body of `size` bytes may be sent now."""
        limits = self.limits
        return len(self._sizes) < limits.requests and self.bytes_under_way + size <= limits.request_bytes

    def ask(self, body: bytes, timeout_ms: int) -> tuple[int, bytes]:
        """(number, bytes) of a request.

        Raises:
            LocalProtocolError: no room for it (NO_CAPACITY), the stream takes no more (DRAINING), or a bound is passed
                (OVERSIZED); nothing changed.
        """
        size = len(body)
        if not self.takes_more:
            raise LocalProtocolError("this stream takes no more requests; open another", code=WireCode.DRAINING)
        if size > MAX_REQUEST_BODY_BYTES or not 0 < timeout_ms <= MAX_REQUEST_MS:
            raise LocalProtocolError(
                f"a request of {size} bytes and {timeout_ms} ms; {MAX_REQUEST_BODY_BYTES} and {MAX_REQUEST_MS} at most",
                code=WireCode.OVERSIZED,
            )
        if not self.has_room(size):
            raise LocalProtocolError("the provider takes no more requests at once", code=WireCode.NO_CAPACITY)
        self.last += 1
        self._sizes[self.last] = size
        self.bytes_under_way += size
        return self.last, HEADER.pack(_ASK | size, self.last, timeout_ms) + body

    def cancel(self, number: int) -> bytes:
        """Bytes that say that nobody waits for an answer any more; none where it is answered or cancelled already."""
        if number not in self._sizes or number in self._cancelled or self._closed:
            return b""
        self._cancelled.add(number)
        return Cancel(number=number).encode()

    def close(self) -> None:
        """We ask and cancel no more; after what this session has returned so far the stream's end may be sent."""
        self._closed = True

    def _judge(self, kind: type[Frame], number: int, value: int, size: int) -> None:
        if kind is Reply:
            _zero("a reply", value)
            limit = MAX_REQUEST_BODY_BYTES
        else:
            limit = MAX_TEXT if kind is Fault else 0
        if size > limit:
            raise LocalProtocolError(f"a {kind.__name__} of {size} bytes; {limit} at most", code=WireCode.OVERSIZED)
        if kind is Drain:
            _zero("a drain", value)
            if number > self.last:
                raise LocalProtocolError("a drain after a request that was not made", code=WireCode.OUT_OF_ORDER)
        elif kind is not Limits and number not in self._sizes:
            raise LocalProtocolError(
                f"an answer to request {number}, which is not under way", code=WireCode.OUT_OF_ORDER
            )

    def _answered(self, number: int) -> None:
        self.bytes_under_way -= self._sizes.pop(number)
        self._cancelled.discard(number)

    def _take(self, kind: type[Frame], number: int, value: int, body: bytes) -> Frame | None:
        if kind is Reply:
            self._answered(number)
            return Reply(number=number, body=body)
        if kind is Fault:
            fault = Fault(number=number, code=value, detail=fault_text(body))
            self._answered(number)
            return fault
        if kind is Limits:
            self.limits = Limits(requests=number, request_bytes=value)
            return self.limits
        for dropped in [later for later in self._sizes if later > number]:
            self._answered(dropped)
        return Drain(number=number)

    def _check_end(self) -> None:
        if self._sizes:
            raise EndedEarly(
                f"the stream ended with {len(self._sizes)} requests unanswered", code=WireCode.OUT_OF_ORDER
            )


class ServingSession(_Session):
    """The side that answers. `begin` first."""

    role = Role.PROVIDER

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.last = 0
        self.bytes_under_way = 0
        self._sizes: dict[int, int] = {}
        self._cancelled: set[int] = set()
        self._cancels = 0
        self._drained_at: int | None = None

    @property
    def under_way(self) -> int:
        """Requests that are not answered."""
        return len(self._sizes)

    def begin(self) -> bytes:
        """The first bytes that a provider sends."""
        if self.state is not RequestState.NEW:
            raise LocalProtocolError("the limits are said once", code=WireCode.OUT_OF_ORDER)
        self.state = RequestState.OPEN
        return self.limits.encode()

    def reply(self, number: int, body: bytes) -> bytes:
        """Bytes of the answer to a request.

        Raises:
            LocalProtocolError: no such request is under way (OUT_OF_ORDER), or the body is too long (OVERSIZED);
                nothing changed.
        """
        size = len(body)
        if size > MAX_REQUEST_BODY_BYTES:
            raise LocalProtocolError(
                f"an answer of {size} bytes; at most {MAX_REQUEST_BODY_BYTES}", code=WireCode.OVERSIZED
            )
        data = HEADER.pack(_REPLY | size, number, 0) + body
        self._answer(number)
        return data

    def fault(self, number: int, code: WireCode, detail: str) -> bytes:
        """Bytes that say why there is no answer; raises as `reply`."""
        data = Fault(number=number, code=code, detail=detail).encode()
        self._answer(number)
        return data

    def _answer(self, number: int) -> None:
        if number not in self._sizes or self.state is RequestState.NEW:
            raise LocalProtocolError(f"request {number} is not under way", code=WireCode.OUT_OF_ORDER)
        self.bytes_under_way -= self._sizes.pop(number)
        self._cancelled.discard(number)

    def drain(self) -> bytes:
        """Bytes that say that nothing more is taken; none where that was said. What was taken is still answered."""
        if self.state is not RequestState.OPEN:
            return b""
        self.state = RequestState.DRAINING
        self._drained_at = self.last
        return Drain(number=self.last).encode()

    def _judge(self, kind: type[Frame], number: int, value: int, size: int) -> None:
        if kind is Cancel:
            _zero("a cancel", value, size)
            if not 0 < number <= self.last:
                raise LocalProtocolError(f"request {number} was never made", code=WireCode.OUT_OF_ORDER)
            return
        if size > MAX_REQUEST_BODY_BYTES or not 0 < value <= MAX_REQUEST_MS:
            raise LocalProtocolError(f"a request of {size} bytes and {value} ms", code=WireCode.OVERSIZED)
        if number != self.last + 1:
            code = WireCode.REPLAYED if 0 < number <= self.last else WireCode.OUT_OF_ORDER
            raise LocalProtocolError(f"request {number} after request {self.last}", code=code)
        if self._drained_at is not None:
            # It crossed the news. More of them than could be under way can't have.
            if number - self._drained_at > self.limits.requests:
                raise LocalProtocolError("requests after a drain", code=WireCode.OVERSIZED)
        elif len(self._sizes) >= self.limits.requests or self.bytes_under_way + size > self.limits.request_bytes:
            raise LocalProtocolError("more requests at once than were allowed", code=WireCode.OVERSIZED)

    def _take(self, kind: type[Frame], number: int, value: int, body: bytes) -> Frame | None:
        if kind is Cancel:
            self._cancels += 1
            if number in self._cancelled or self._cancels > self.last:
                raise LocalProtocolError(f"request {number} was cancelled already", code=WireCode.REPLAYED)
            if number not in self._sizes:
                return None  # the answer crossed it
            self._cancelled.add(number)
            return Cancel(number=number)
        self.last = number
        if self._drained_at is not None:
            return None
        self._sizes[number] = len(body)
        self.bytes_under_way += len(body)
        return Ask(number=number, timeout_ms=value, body=body)
