"""From a TCP connection to an authenticated, multiplexed one: which protocols we speak, and in which order."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Protocol

import trio
from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import PeerId, peer_id_from_bytes, public_key_of

from ._limits import Place
from ._link import LinkBroken
from ._multiselect import Answer, MultiselectError, Proposal
from ._muxer import Yamux
from ._secured import SecureSocket
from ._socket_link import Buffers, SocketLink
from ._turns import BEGINNING_S, Turn, Turns
from .noise import AESGCM, CHACHAPOLY, Credentials, Handshake, NoiseError, Role, Suite

if TYPE_CHECKING:
    from ._tls import TlsContext

__all__ = ["NOISE_AESGCM_ID", "NOISE_ID", "TLS_ID", "MendedUpgrader", "has_aes_instructions"]

NOISE_AESGCM_ID = "/p2pcompute/noise-aesgcm/1"  # between our own nodes: docs/adr/0015
NOISE_ID = "/noise"
TLS_ID = "/tls/1.0.0"
_READ_BYTES = 4096


class _Dialogue(Protocol):
    """What has to be said before records: a `Proposal`, an `Answer`, or a handshake."""

    def data_to_send(self) -> bytes: ...

    def receive_data(self, data: bytes) -> object: ...


class MendedUpgrader(TransportUpgrader):
    """Noise and Yamux, both of them ours; TLS 1.3 for peers that speak no Noise; nothing else.

    By default libp2p offers SECIO and plaintext too, and a peer may choose plaintext. Its Noise costs an operation of
    trio for each two bytes of length and each record. And only Ed25519 peers get through: every peer ID elsewhere in
    p2pcompute holds such a key.
    """

    def __init__(self, key_pair: KeyPair, *, aes: bool | None = None) -> None:
        """`aes` says whether AES-GCM is spoken; by default where the processor has instructions for it."""
        super().__init__({}, {})
        self._key = key_pair.private_key
        self._identity = key_pair.public_key.to_bytes()
        self._peer = ID.from_pubkey(key_pair.public_key)
        self._muxers = (str(YAMUX_ID),)
        self._credentials = Credentials(self._identity, self._key.sign, muxers=self._muxers)
        self._suites: dict[str, Suite] = {NOISE_ID: CHACHAPOLY}
        if has_aes_instructions() if aes is None else aes:
            self._suites = {NOISE_AESGCM_ID: AESGCM, **self._suites}
        self._protocols = [*self._suites, TLS_ID]
        self._tls: TlsContext | None = None
        self._buffers = Buffers()
        self.turns = Turns()

    def _tls_context(self) -> TlsContext:
        """Made where it is first needed, since few peers need it."""
        if self._tls is None:
            from ._tls import TlsContext

            self._tls = TlsContext(self._identity, self._key.sign, muxers=self._muxers)
        return self._tls

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """Agree on a protocol and shake hands. Bounded in bytes; the swarm bounds it in time.

        Raises:
            SecurityUpgradeFailure: the peer is not whom we dialled, speaks nothing that we speak, broke the protocol or
                the connection. Its cause says which.
        """
        assert isinstance(raw_conn, RawConnection)
        assert isinstance(raw_conn.stream, TrioTCPStream)
        stream = raw_conn.stream.stream
        role = Role.INITIATOR if is_initiator else Role.RESPONDER
        turn = self.turns.turn(_subnet(raw_conn))
        await turn.step()
        try:
            expected = public_key_of(_ed25519_peer(peer_id)) if peer_id is not None else None
            selection = Proposal(self._protocols) if is_initiator else Answer(self._protocols)
            await _say(stream, selection, b"", turn)
            suite = self._suites.get(selection.chosen or "")
            if suite is None:
                return await self._by_tls(raw_conn, stream, role, expected, selection.trailing, turn)
            if selection.trailing:  # what came with it takes as long again
                await turn.step()
            handshake = Handshake(suite, role, self._credentials, expected=expected)
            await _say(stream, handshake, selection.trailing, turn)
        except (MultiselectError, NoiseError, ProtocolError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise SecurityUpgradeFailure(f"no secure connection: {exc}") from exc
        assert handshake.result is not None
        trailing = handshake.trailing
        await turn.step()
        conn = SecureSocket(raw_conn, stream, suite, handshake.result, trailing=trailing, turn=turn, **self._ours())
        conn.negotiated_security_protocol = selection.chosen
        return conn

    async def _by_tls(
        self,
        raw: RawConnection,
        stream: trio.SocketStream,
        role: Role,
        expected: bytes | None,
        trailing: bytes,
        turn: Turn,
    ) -> ISecureConn:
        from ._tls import TlsHandshake, TlsSocket

        handshake = TlsHandshake(self._tls_context(), role, expected=expected)
        await _say(stream, handshake, trailing, turn)
        conn = TlsSocket(raw, stream, handshake, turn=turn, **self._ours())
        conn.negotiated_security_protocol = TLS_ID
        return conn

    def _ours(self) -> dict[str, Any]:
        return {"buffers": self._buffers, "local_peer": self._peer, "local_key": self._key}

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on Yamux, where the handshake did not already.

        Raises:
            MuxerUpgradeFailure: the peer speaks another muxer, or broke the connection.
        """
        assert isinstance(conn, SocketLink)
        await conn.turn.pay(BEGINNING_S)
        await conn.turn.step()
        if conn.muxer is None:
            muxers = [str(YAMUX_ID)]
            selection = Proposal(muxers) if conn.is_initiator else Answer(muxers)
            try:
                await _agree(conn, selection)
            except (MultiselectError, LinkBroken) as exc:
                raise MuxerUpgradeFailure(f"no muxer: {exc}") from exc
        muxed = Yamux(conn, peer_id)
        await conn.turn.step()
        return muxed


def has_aes_instructions(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the processor multiplies and encrypts for GCM by itself.

    Without that AES-GCM is slower than ChaCha20-Poly1305, and its tables tell by their timing what they are used on.
    """
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip().lower() in ("flags", "features"):  # x86 and ARM; all cores are alike
                    flags = set(value.split())
                    return {"aes", "pclmulqdq"} <= flags or {"aes", "pmull"} <= flags
    except OSError:
        pass
    return False


def _ed25519_peer(peer_id: ID) -> PeerId:
    return peer_id_from_bytes(peer_id.to_bytes())


def _subnet(raw: RawConnection) -> str:
    """Which connections a connection counts together with."""
    remote = raw.get_remote_address()
    return Place.of(None if remote is None else remote[0]).subnet


async def _say(stream: trio.SocketStream, dialogue: _Dialogue, data: bytes, turn: Turn) -> None:
    """Send and receive until `dialogue` has come to its end, in turns and steps: a handshake is some 0.1 ms of
    arithmetic for each message."""
    done = await _heard(dialogue, data, turn)
    while True:
        outgoing = dialogue.data_to_send()
        if outgoing:
            await stream.send_all(outgoing)
        if done is not None:
            return
        data = await _receive(stream, turn)
        if not data:
            raise trio.BrokenResourceError("the peer closed the connection")
        done = await _heard(dialogue, data, turn)


async def _receive(stream: trio.SocketStream, turn: Turn) -> bytes:
    """What has come, read in a step of its own; empty at the end."""
    sock: socket.socket = stream.socket._sock  # type: ignore[attr-defined] # its calls have no checkpoint
    while True:
        try:
            await trio.lowlevel.wait_readable(sock)
            await turn.step()
            return sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            continue
        except (OSError, ValueError) as exc:
            raise trio.BrokenResourceError(f"the connection was lost: {exc}") from exc


async def _heard(dialogue: _Dialogue, data: bytes, turn: Turn) -> object:
    if not data:  # nobody has a turn for coming
        return dialogue.receive_data(data)
    await turn.take()
    try:
        return dialogue.receive_data(data)
    finally:
        turn.done()


async def _agree(conn: SocketLink, selection: Proposal | Answer) -> None:
    while True:
        conn.send_nowait([selection.data_to_send()])
        await conn.flush()
        if selection.chosen is not None:
            conn.unread(selection.trailing)
            return
        data = await conn.receive()
        if not data:
            raise LinkBroken("the peer closed the connection")
        selection.receive_data(data)
