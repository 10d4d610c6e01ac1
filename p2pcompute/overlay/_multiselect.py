"""multistream-select 1.0, without I/O (github.com/multiformats/multistream-select): which protocol is spoken next.

Each message is a line behind its length. Who dialled proposes one protocol after the other, who listens takes the first
that it knows. Before a handshake both are strangers, so lines are short and few.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["HEADER", "MAX_LINE_BYTES", "MAX_PROPOSALS", "Answer", "MultiselectError", "Proposal", "line"]

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
MAX_LINE_BYTES = 256  # without its length, with its end
MAX_PROPOSALS = 16


class MultiselectError(Exception):
    """The peer does not negotiate as it should, or speaks nothing that we speak."""


def line(text: str) -> bytes:
    """`text` as a message."""
    body = text.encode() + b"\n"
    if len(body) > MAX_LINE_BYTES:
        raise ValueError(f"{text!r} is too long to be negotiated")
    return (bytes([len(body)]) if len(body) < 128 else bytes([len(body) & 127 | 128, len(body) >> 7])) + body


class _Lines:
    """What both sides share. Ends when `chosen` is set; what came behind the last line is in `trailing`."""

    def __init__(self) -> None:
        self.chosen: str | None = None
        self._buffer = bytearray()
        self._outgoing = bytearray(line(HEADER))
        self._greeted = False

    @property
    def trailing(self) -> bytes:
        """What came behind the negotiation."""
        return bytes(self._buffer) if self.chosen is not None else b""

    def data_to_send(self) -> bytes:
        """What has to be sent now."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def receive_data(self, data: bytes | bytearray | memoryview) -> str | None:
        """Take bytes from the peer; the protocol, once it is chosen. Raises MultiselectError."""
        self._buffer += data
        while self.chosen is None and (text := self._next_line()) is not None:
            if self._greeted:
                self._take(text)
            elif text == HEADER:
                self._greeted = True
            else:
                raise MultiselectError("the peer does not speak multistream-select 1.0")
        return self.chosen

    def _next_line(self) -> str | None:
        buffer = self._buffer
        if not buffer or (buffer[0] > 127 and len(buffer) < 2):
            return None
        start = 1 if buffer[0] < 128 else 2
        length = buffer[0] if start == 1 else buffer[0] & 127 | buffer[1] << 7
        if not 0 < length <= MAX_LINE_BYTES:
            raise MultiselectError(f"the peer sent a line of {length} bytes in protocol negotiation")
        if len(buffer) < start + length:
            return None
        body = bytes(buffer[start : start + length])
        del buffer[: start + length]
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = ""
        if not text.endswith("\n"):
            raise MultiselectError("the peer sent a strange line in protocol negotiation")
        return text[:-1]

    def _take(self, text: str) -> None:
        raise NotImplementedError


class Proposal(_Lines):
    """The side that dialled: proposes `protocols` in this order, the first without waiting for the peer's header."""

    def __init__(self, protocols: Sequence[str]) -> None:
        super().__init__()
        self._left = list(protocols)
        self._outgoing += line(self._left[0])

    def _take(self, text: str) -> None:
        if text == self._left[0]:
            self.chosen = text
        elif text != NOT_AVAILABLE:
            raise MultiselectError(f"a strange answer to {self._left[0]}")
        elif len(self._left) == 1:
            raise MultiselectError("the peer speaks none of the protocols that we speak")
        else:
            del self._left[0]
            self._outgoing += line(self._left[0])


class Answer(_Lines):
    """The side that listens: greets, and takes the first of `protocols` that is proposed."""

    def __init__(self, protocols: Collection[str]) -> None:
        super().__init__()
        self._protocols = protocols
        self._proposals = 0

    def _take(self, text: str) -> None:
        self._proposals += 1
        if text in self._protocols:
            self.chosen = text
            self._outgoing += line(text)
        elif self._proposals >= MAX_PROPOSALS:
            raise MultiselectError(f"the peer proposed {MAX_PROPOSALS} protocols that we don't speak")
        else:
            self._outgoing += line(NOT_AVAILABLE)
