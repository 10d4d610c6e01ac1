"""An overlay stream over libp2p, and the negotiation that opens one."""

from __future__ import annotations

from collections.abc import Callable

import trio
from libp2p.abc import INetStream
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from p2pcompute.errors import StreamError
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import PeerId

from ._api import MAX_PROTOCOL_ID_BYTES, RECEIVE_BYTES, StreamReset, UnknownProtocol
from ._blame import is_offence
from ._muxed_stream import YamuxStream

__all__ = ["Libp2pStream", "negotiate"]

_MULTISTREAM = "/multistream/1.0.0"
_NOT_AVAILABLE = b"na\n"


class Libp2pStream:
    """Implements `OverlayStream` on a Yamux stream; the `NetStream` around it is libp2p's bookkeeping."""

    def __init__(
        self,
        stream: INetStream,
        peer_id: PeerId,
        protocol: str,
        on_blame: Callable[[PeerId, ProtocolError], None] = lambda _peer, _exc: None,
    ) -> None:
        assert isinstance(stream, NetStream)
        assert isinstance(stream.muxed_stream, YamuxStream)
        self.peer_id = peer_id
        self.protocol = protocol
        self._net = stream
        self._muxed = stream.muxed_stream
        self._removed = False
        self._on_blame = on_blame
        self._blamed = False
        self.progress_at = trio.current_time()  # when a byte moved last, for whoever ends idle streams

    async def send_all(self, data: bytes) -> None:
        try:
            await self._muxed.write(data)
            self.progress_at = trio.current_time()
        except MuxedStreamError as exc:
            raise StreamReset(f"sending on {self.protocol}: {exc}") from exc
        except trio.Cancelled:
            self._muxed.reset_nowait()
            raise

    def send_nowait(self, data: bytes) -> bool:
        try:
            sent = self._muxed.write_nowait(data)
        except MuxedStreamError as exc:
            raise StreamReset(f"sending on {self.protocol}: {exc}") from exc
        if sent:
            self.progress_at = trio.current_time()
        return sent

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        try:
            data = await self._muxed.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as exc:
            raise StreamReset(f"receiving on {self.protocol}: {exc}") from exc
        self.progress_at = trio.current_time()
        return data

    async def receive_into(self, buffer: bytearray | memoryview, at_least: int = 1) -> int:
        try:
            size = await self._muxed.receive_into(buffer, at_least)
        except MuxedStreamError as exc:
            raise StreamReset(f"receiving on {self.protocol}: {exc}") from exc
        if size:
            self.progress_at = trio.current_time()
        return size

    async def close_write(self) -> None:
        await self._muxed.close_write()

    async def aclose(self) -> None:
        self._muxed.close_nowait()
        await self._remove()

    async def reset(self) -> None:
        self._muxed.reset_nowait()
        await self._remove()

    def blame(self, exc: ProtocolError) -> None:
        if is_offence(exc) and not self._blamed:
            self._blamed = True
            self._on_blame(self.peer_id, exc)

    async def _remove(self) -> None:
        if not self._removed:
            self._removed = True
            with trio.CancelScope(shield=True):  # bookkeeping of libp2p only; waits for nobody
                await self._net.remove()
        await trio.lowlevel.checkpoint()


def _delimited(text: str) -> bytes:
    body = text.encode() + b"\n"
    assert len(body) < 128 * 128
    length = len(body)
    return (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])) + body


async def negotiate(stream: INetStream, protocol: str) -> None:
    """Select `protocol` by multistream-select 1.0, both lines in one message: one round trip instead of two.

    Raises:
        UnknownProtocol: the peer answered "na".
        StreamError: the peer answered something else, or the stream broke.
    """
    assert isinstance(stream, NetStream)
    muxed = stream.muxed_stream
    try:
        await muxed.write(_delimited(_MULTISTREAM) + _delimited(protocol))
        if await _read_line(muxed) != _MULTISTREAM.encode() + b"\n":
            raise StreamError("the peer does not speak multistream-select")
        answer = await _read_line(muxed)
    except MuxedStreamError as exc:
        raise StreamReset(f"the stream broke while {protocol} was negotiated: {exc}") from exc
    if answer == _NOT_AVAILABLE:
        raise UnknownProtocol(f"the peer does not speak {protocol}; is it another version, or not a provider?")
    if answer != protocol.encode() + b"\n":
        raise StreamError(f"a strange answer to {protocol}")


async def _read_line(stream: object) -> bytes:
    assert isinstance(stream, YamuxStream)
    length = shift = 0
    while True:
        byte = (await stream.read(1))[0]
        length |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 7:
            raise StreamError("an over-long answer in protocol negotiation")
    if length > MAX_PROTOCOL_ID_BYTES + 1:
        raise StreamError("an over-long answer in protocol negotiation")
    line = b""
    while len(line) < length:
        line += await stream.read(length - len(line))
    return line
