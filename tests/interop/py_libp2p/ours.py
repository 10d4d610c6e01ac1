"""A plugin of pytest that puts our Noise and our Yamux in the place of py-libp2p's, for py-libp2p's own tests.

`make libp2p-own` runs them; README.md in this folder says which fail, and why.
"""

from __future__ import annotations

from typing import Any

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import NoiseFailure, PeerIDMismatchesPubkey
from libp2p.security.noise.patterns import PatternXX
from libp2p.stream_muxer.yamux import yamux

from p2pcompute.overlay import _muxed_stream, _muxer
from p2pcompute.overlay._secured import SecureSocket
from p2pcompute.overlay._socket_link import Buffers
from p2pcompute.overlay._turns import Turns
from p2pcompute.overlay._upgrader import _say
from p2pcompute.overlay.noise import CHACHAPOLY, Credentials, Handshake, NoiseError, Role, WrongPeer

_buffers = Buffers()
_turns = Turns()


async def _secured(pattern: Any, conn: IRawConnection, role: Role, peer: ID | None) -> ISecureConn:
    assert isinstance(conn, RawConnection), "ours is on a socket"
    assert isinstance(conn.stream, TrioTCPStream), "ours is on a socket"
    key = pattern.libp2p_privkey
    identity = key.get_public_key().to_bytes()
    expected = peer.to_bytes()[-32:] if peer is not None else None
    handshake = Handshake(CHACHAPOLY, role, Credentials(identity, key.sign), expected=expected)
    stream = conn.stream.stream
    try:
        await _say(stream, handshake, b"", _turns.turn(""))
    except WrongPeer as exc:
        raise PeerIDMismatchesPubkey(str(exc)) from exc
    except (NoiseError, trio.BrokenResourceError) as exc:
        raise NoiseFailure(str(exc)) from exc
    assert handshake.result is not None
    return SecureSocket(
        conn,
        stream,
        CHACHAPOLY,
        handshake.result,
        trailing=handshake.trailing,
        buffers=_buffers,
        turn=_turns.turn(""),
        local_peer=pattern.local_peer,
        local_key=key,
    )


async def _inbound(self: Any, conn: IRawConnection) -> ISecureConn:
    return await _secured(self, conn, Role.RESPONDER, None)


async def _outbound(self: Any, conn: IRawConnection, remote_peer: ID) -> ISecureConn:
    return await _secured(self, conn, Role.INITIATOR, remote_peer)


class _Yamux(_muxer.Yamux):
    """As theirs is made. Whether we dialled is theirs to say; our own asks the connection."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID, is_initiator: bool | None = None, **_: Any) -> None:
        if is_initiator is not None:
            secured_conn.is_initiator = is_initiator
        read = secured_conn.read
        # Theirs names a number of bytes, and a pipe of their tests ends after two seconds of silence only then.
        secured_conn.read = lambda n=None: read(65536 if n is None else n)  # type: ignore[method-assign]
        super().__init__(secured_conn, peer_id)
        self.event_shutting_down = self.event_closed

    async def close(self, error_code: int = 0) -> None:
        await super().close()

    async def _write_frame(self, data: bytes) -> None:
        await self.secured_conn.write(data)  # as somebody who says what ours would not


def _named_as_theirs() -> None:
    """What their tests read of a stream, by their names."""
    stream: Any = _muxed_stream.YamuxStream
    stream.send_closed = property(lambda self: self.fin_sent or self.reset_done)
    stream.recv_closed = property(lambda self: self.eof or self.reset_done)
    stream.closed = property(lambda self: (self.eof and self.fin_sent) or self.reset_done)
    stream.send_window = property(lambda self: self._conn.session.send_window(self.stream_id))
    stream.recv_window = property(lambda self: self._conn.session.receive_window(self.stream_id))


_named_as_theirs()
PatternXX.handshake_inbound = _inbound  # type: ignore[method-assign]
PatternXX.handshake_outbound = _outbound  # type: ignore[method-assign]
yamux.Yamux = _Yamux  # type: ignore[misc, assignment]
yamux.YamuxStream = _muxed_stream.YamuxStream  # type: ignore[misc, assignment]
