"""A Noise connection on a TCP socket. Records are sealed and opened where they lie, in the node's buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from libp2p.network.connection.raw_connection import RawConnection

from ._socket_link import Segment, SocketLink
from .noise import Data, Handshaken, NoiseError, Opener, Sealer, Suite, cut, record_bytes

__all__ = ["SecureSocket"]

COPIED_BYTES = 16 * 1024  # of one read: a copy costs less than a buffer for whoever takes its time over so little


class SecureSocket(SocketLink):
    """A `Link` by Noise.

    Args:
        suite: what was negotiated.
        session: what the handshake came to.
        trailing: what was read behind the handshake.
        rest: see `SocketLink`.
    """

    def __init__(
        self,
        raw: RawConnection,
        stream: trio.SocketStream,
        suite: Suite,
        session: Handshaken,
        *,
        trailing: bytes = b"",
        **rest: Any,
    ) -> None:
        super().__init__(raw, stream, identity=session.identity, muxer=session.muxer, **rest)
        self.session = session
        self.suite = suite
        self._sealer = Sealer(suite, session.sending_key)
        self._opener = Opener(suite, session.receiving_key)
        self._partial = bytearray(trailing)  # the beginning of a record, or what was read behind the handshake
        self._fresh = bool(trailing)

    def _read_and_open(self) -> memoryview | None:
        buffer = self._buffers.take()
        try:
            have = len(self._partial)
            if self._fresh:  # there may be whole records in it
                self._fresh = False
                total = have
            else:
                received = self._receive_into(buffer[have:])
                if not received:
                    if self._ended and have:
                        self._break("the connection was cut off inside a record")
                    return None
                total = have + received
                if have and self._opener.missing(self._partial) > received:
                    self._partial += buffer[have:total]
                    return None
            buffer[:have] = self._partial
            return self._open(buffer, total)
        finally:
            self._buffers.give(buffer)

    def _open(self, sealed: memoryview, total: int) -> memoryview | None:
        plain = self._buffers.take()
        try:
            consumed, written = self._opener.open_into(sealed[:total], plain)
        except NoiseError as exc:
            self._buffers.give(plain)
            self._break(str(exc))
            return None
        self._partial = bytearray(sealed[consumed:total])
        if not written:
            self._buffers.give(plain)
            return None
        if written <= COPIED_BYTES:
            little = memoryview(bytes(plain[:written]))
            self._buffers.give(plain)
            return little
        self._lent = plain
        return plain[:written]

    def _forget_received(self) -> None:
        super()._forget_received()
        self._partial = bytearray()

    def _seal(self, parts: Sequence[Data]) -> None:
        try:
            for plaintext in cut(parts):
                segment = self._room_for(record_bytes(len(plaintext)))
                if segment is None:
                    return
                size = self._sealer.seal_into(plaintext, segment.view[segment.end :])
                segment.end += size
                self._unsent += size
        except NoiseError as exc:
            self._silence(str(exc))

    def _room_for(self, size: int) -> Segment | None:
        """The last segment, where `size` more bytes fit; a new one otherwise. None where the connection broke."""
        if self._segments:
            last = self._segments[-1]
            if len(last.view) - last.end >= size:
                return last
            self._push()  # it is full, so it may go
            if self._mute is not None:
                return None
        self._segments.append(Segment(self._buffers.take(), shared=True))
        return self._segments[-1]
