"""Negotiation on the streams of libp2p's own host, with lines that have an end.

py-libp2p 0.8.1 believes whatever length stands before a line of multistream-select, and reads a hundred pieces of it
before it gives up: 6 MiB of each stream, which count nowhere since they have been read. One peer with its 768 streams
made a node hold 5 GiB; and it may propose protocols for as long as the negotiation may take.
"""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.abc import IMultiselectCommunicator
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect import DEFAULT_NEGOTIATE_TIMEOUT, Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

__all__ = ["MAX_STREAM_LINES", "MAX_STREAM_LINE_BYTES", "BoundedMultiselect", "BoundedMultiselectClient"]

MAX_STREAM_LINE_BYTES = 1024  # go-multistream's bound
MAX_STREAM_LINES = 64  # of one negotiation


class _BoundedLines(MultiselectCommunicator):
    """One negotiation: reads `MAX_STREAM_LINES` lines of `MAX_STREAM_LINE_BYTES` at most."""

    def __init__(self, read_writer: ReadWriteCloser) -> None:
        super().__init__(read_writer)
        self._left = MAX_STREAM_LINES

    async def read(self) -> str:
        """The next line, without its end. Raises MultiselectCommunicatorError."""
        self._left -= 1
        if self._left < 0:
            raise MultiselectCommunicatorError("the peer does not come to an end in protocol negotiation")
        try:
            body = await self._exactly(await self._length())
            text = body.decode()
        except (IOException, UnicodeDecodeError) as exc:
            raise MultiselectCommunicatorError("no line in protocol negotiation") from exc
        if not text.endswith("\n"):
            raise MultiselectCommunicatorError("a line without an end in protocol negotiation")
        return text[:-1]

    async def _length(self) -> int:
        first = (await self._exactly(1))[0]
        length = first if first < 128 else first & 127 | (await self._exactly(1))[0] << 7
        if not 0 < length <= MAX_STREAM_LINE_BYTES:
            raise MultiselectCommunicatorError(f"a line of {length} bytes or more in protocol negotiation")
        return length

    async def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await self.read_writer.read(count - len(data))
            if not piece:
                raise MultiselectCommunicatorError("the stream ended in protocol negotiation")
            data += piece
        return data


def _bounded(communicator: IMultiselectCommunicator) -> IMultiselectCommunicator:
    if isinstance(communicator, MultiselectCommunicator):
        return _BoundedLines(communicator.read_writer)
    return communicator


class BoundedMultiselect(Multiselect):
    """Answers on streams that peers open."""

    async def negotiate(
        self, communicator: IMultiselectCommunicator, negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT
    ) -> tuple[TProtocol | None, StreamHandlerFn | None]:
        """As libp2p's. Raises MultiselectError."""
        return await super().negotiate(_bounded(communicator), negotiate_timeout)


class BoundedMultiselectClient(MultiselectClient):
    """Proposes on streams that libp2p's own protocols open to whoever is connected."""

    async def select_one_of(
        self,
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT,
    ) -> TProtocol:
        """As libp2p's. Raises MultiselectClientError."""
        return await super().select_one_of(protocols, _bounded(communicator), negotiate_timeout)
