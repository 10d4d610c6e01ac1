"""TLS 1.3 as libp2p specifies it (libp2p/specs tls), for peers that speak no Noise.

By pyOpenSSL, since Python's own `ssl` can't ask a client for a certificate without checking it against authorities.
py-libp2p reaches into CPython's structures for that, and takes any error while reading, such as a connection that was
cut off, for an orderly end. It is here to be understood, not to be fast: docs/adr/0014.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.network.connection.raw_connection import RawConnection
from OpenSSL import SSL

from ._socket_link import Segment, SocketLink
from ._tls_certificate import UNREADABLE, identity_of, make_certificate
from .noise import BadIdentity, BadMessage, Data, Role, WrongPeer

__all__ = ["MAX_HANDSHAKE_BYTES", "MAX_KEY_UPDATES", "TlsContext", "TlsHandshake", "TlsSession", "TlsSocket"]

MAX_HANDSHAKE_BYTES = 32 * 1024  # of a peer before it is known; ours are 1,200
MAX_KEY_UPDATES = 64  # and one more for each MiB; honest peers need one in 2^24 records (RFC 8446 §5.5)
_RECORD_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024
_NO_MUXER = b"libp2p"  # the application protocol of peers without early negotiation, and the last that is offered


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSession:
    """Both sides know each other; `identity` and `muxer` as in `Handshaken`."""

    identity: bytes
    muxer: str | None


class _Messages:
    """How many messages of the handshake's kind have come since the handshake: key updates, and session tickets."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _count_message(connection: SSL.Connection, where: int, _result: int) -> None:
    messages = connection.get_app_data()
    if where & SSL.SSL_CB_EXIT and isinstance(messages, _Messages):
        messages.count += 1


class TlsContext:
    """Who we are in every handshake: a certificate of this run, for which the identity has signed once.

    Args:
        identity: our raw Ed25519 public key, 32 bytes.
        sign: the 64-byte Ed25519 signature of a message by that key.
        muxers: protocol IDs of the muxers that we speak, the best first.
        now: the time.
    """

    def __init__(
        self,
        identity: bytes,
        sign: Callable[[bytes], bytes],
        *,
        muxers: Sequence[str],
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        self.now = now
        self.protocols = [*(muxer.encode() for muxer in muxers), _NO_MUXER]
        certificate, key = make_certificate(identity, sign, now())
        self.context = SSL.Context(SSL.TLS_METHOD)
        self.context.set_min_proto_version(SSL.TLS1_3_VERSION)
        # A session that is resumed shows no certificate, so none may be.
        self.context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        self.context.set_options(SSL.OP_NO_TICKET)
        # Whoever it is has to show a certificate, and prove to have its key. Who that is says `identity_of`.
        self.context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        self.context.set_info_callback(_count_message)
        self.context.use_certificate(certificate)
        self.context.use_privatekey(key)
        self.context.set_alpn_protos(self.protocols)
        self.context.set_alpn_select_callback(self._select)

    def _select(self, _connection: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in offered:  # the client's preference
            if protocol in self.protocols:
                return protocol
        return b""  # ends the handshake


class TlsHandshake:
    """One side of one handshake, without I/O; used as a `noise.Handshake` is."""

    def __init__(self, context: TlsContext, role: Role, *, expected: bytes | None = None) -> None:
        self.connection = SSL.Connection(context.context, None)
        self.result: TlsSession | None = None
        self._context = context
        self._role = role
        self._expected = expected
        self._received = 0
        (self.connection.set_connect_state if role is Role.INITIATOR else self.connection.set_accept_state)()
        self._advance()

    def data_to_send(self) -> bytes:
        """What has to be sent now."""
        return drain(self.connection)

    def receive_data(self, data: bytes) -> TlsSession | None:
        """Take bytes from the peer; give the result once there is one.

        Raises:
            BadMessage, BadIdentity, WrongPeer: the handshake has failed for good.
        """
        self._received += len(data)
        if self._received > MAX_HANDSHAKE_BYTES:
            raise BadMessage(f"a TLS handshake over {MAX_HANDSHAKE_BYTES} bytes")
        if data:
            self.connection.bio_write(data)
        if self.result is None:
            self._advance()
        return self.result

    def _advance(self) -> None:
        try:
            self.connection.do_handshake()
        except SSL.WantReadError:
            return
        except SSL.Error as exc:
            raise BadMessage(f"a TLS handshake that failed: {reason(exc)}") from None
        if self.connection.get_protocol_version_name() != "TLSv1.3":
            raise BadMessage("another TLS than 1.3")
        try:
            certificate = self.connection.get_peer_certificate(as_cryptography=True)
            chain = self.connection.get_peer_cert_chain(as_cryptography=True) or []  # a server's lacks the first
        except UNREADABLE as exc:
            raise BadIdentity(f"the peer's certificate does not parse: {exc}") from None
        if certificate is None or [one for one in chain if one != certificate]:
            raise BadMessage("the peer has to show one certificate, and no more")
        identity = identity_of(certificate, self._context.now())
        if self._expected is not None and identity != self._expected:
            raise WrongPeer("somebody else answers than the one that was dialled")
        protocol = self.connection.get_alpn_proto_negotiated()
        if protocol not in self._context.protocols:
            raise BadMessage("a TLS peer that does not say that it speaks libp2p")
        self.result = TlsSession(identity=identity, muxer=None if protocol == _NO_MUXER else protocol.decode())


class TlsSocket(SocketLink):
    """A `Link` by TLS. An end without a goodbye is a broken link: whoever cuts a connection can't end it orderly.

    Args:
        handshake: one that is done.
        rest: see `SocketLink`.
    """

    def __init__(self, raw: RawConnection, stream: trio.SocketStream, handshake: TlsHandshake, **rest: Any) -> None:
        assert handshake.result is not None
        super().__init__(raw, stream, identity=handshake.result.identity, muxer=handshake.result.muxer, **rest)
        self._tls = handshake.connection
        self._messages = _Messages()
        self._tls.set_app_data(self._messages)
        self._fresh = True  # records may have come with the end of the handshake

    def _read_and_open(self) -> memoryview | None:
        buffer = self._buffers.take()
        written = 0
        try:
            if not self._fresh:
                received = self._receive_into(buffer[:_READ_BYTES])
                if not received:
                    if self._ended:
                        self._break("the connection was cut off without a goodbye")
                    return None
                self._tls.bio_write(buffer[:received])
            self._fresh = False
            with contextlib.suppress(SSL.WantReadError):
                while written + _RECORD_BYTES <= len(buffer):
                    written += self._tls.recv_into(buffer[written:], _RECORD_BYTES)
                self._fresh = True
            if self._messages.count > MAX_KEY_UPDATES + (self.bytes_received >> 20):
                # OpenSSL answers any number, for as long as we have memory for the answers.
                self._break("the peer changes its key again and again")
                written = 0
        except SSL.ZeroReturnError:
            self._ended = True
        except SSL.Error as exc:
            self._break(f"a TLS record that is none: {reason(exc)}")
            written = 0
        finally:
            if written:
                self._lent = buffer
            else:
                self._buffers.give(buffer)
        if self._drain():  # an answer to a key update
            self._push()
        return buffer[:written] if written else None

    def _seal(self, parts: Sequence[Data]) -> None:
        try:
            for start in range(0, len(data := memoryview(b"".join(parts))), _RECORD_BYTES):
                self._tls.send(data[start : start + _RECORD_BYTES])
        except SSL.Error as exc:
            self._silence(f"TLS can't send any more: {reason(exc)}")
            return
        self._drain()

    def _drain(self) -> int:
        """Put what OpenSSL has for the peer behind what is unsent."""
        sealed = drain(self._tls) if self._mute is None else b""
        if sealed:
            self._segments.append(Segment(memoryview(sealed), shared=False, end=len(sealed)))
            self._unsent += len(sealed)
        return len(sealed)

    async def aclose(self) -> None:
        """See `Link.aclose`. Says goodbye where the socket takes it at once."""
        if self._mute is None and not self._unsent:
            with contextlib.suppress(SSL.Error):
                self._tls.shutdown()
                self._drain()
                self._push()
        await super().aclose()


def drain(connection: SSL.Connection) -> bytes:
    """What `connection` has to say."""
    said = bytearray()
    with contextlib.suppress(SSL.WantReadError):
        while True:
            said += connection.bio_read(_READ_BYTES)
    return bytes(said)


def reason(error: SSL.Error) -> str:
    """What OpenSSL has to say of it."""
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return str(queue[-1][-1]) if queue and queue[-1] else str(error) or type(error).__name__
