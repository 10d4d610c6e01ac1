"""TLS 1.3 on real sockets: with libp2p's own, with and without an early muxer, and against peers that are not sound."""

from __future__ import annotations

import datetime
import random
import socket
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as new_secp256k1_key_pair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.tls.transport import TLSTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from OpenSSL import SSL

from p2pcompute.overlay._link import LinkBroken
from p2pcompute.overlay._multiselect import HEADER, line
from p2pcompute.overlay._tls import MAX_HANDSHAKE_BYTES, TlsContext, TlsHandshake, TlsSocket
from p2pcompute.overlay._tls_certificate import make_certificate
from p2pcompute.overlay._upgrader import TLS_ID, MendedUpgrader
from p2pcompute.overlay.noise import BadIdentity, BadMessage, NoiseError, Role, WrongPeer

from ._sockets import run, socket_pair

pytestmark = pytest.mark.net


def only_tls(key_pair: Any = None) -> MendedUpgrader:
    """Ours, to a peer that speaks no Noise."""
    ours = MendedUpgrader(key_pair or create_new_key_pair())
    ours._protocols = [TLS_ID]
    return ours


def stock(key_pair: Any = None) -> TransportUpgrader:
    """libp2p's own TLS, and nothing else."""
    return TransportUpgrader({TProtocol(TLS_ID): TLSTransport(key_pair or create_new_key_pair())}, {})


def peer_of(one: Any) -> ID:
    if isinstance(one, MendedUpgrader):
        return one._peer
    return one.security_multistream.transports[TLS_ID].local_peer  # type: ignore[no-any-return]


async def secured(dialler: Any, listener: Any, expected: ID | None = None) -> tuple[Any, Any]:
    ends = await socket_pair()
    conns: list[Any] = [None, None]

    async def upgrade(index: int, one: TransportUpgrader, peer: ID | None) -> None:
        raw = RawConnection(TrioTCPStream(ends[index]), index == 0)
        try:
            conns[index] = await one.upgrade_security(raw, index == 0, peer)
        except BaseException:
            ends[index].socket.close()
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(upgrade, 0, dialler, expected or peer_of(listener))
        nursery.start_soon(upgrade, 1, listener, None)
    return conns[0], conns[1]


async def take(conn: TlsSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        view = await conn.receive()
        assert view
        data += view
    return bytes(data)


def failure(caught: pytest.ExceptionInfo[BaseExceptionGroup[Exception]], kind: type[NoiseError]) -> None:
    assert caught.value.subgroup(lambda exc: isinstance(exc.__cause__, kind)) is not None, caught.value.exceptions


# Who talks to whom


@pytest.mark.parametrize("we_dial", [True, False])
def test_libp2ps_own_tls_talks_to_ours(we_dial: bool) -> None:
    """Noise is asked for first, and refused."""

    async def main() -> None:
        ours, theirs = MendedUpgrader(create_new_key_pair()), stock()
        a, b = await (secured(ours, theirs) if we_dial else secured(theirs, ours))
        mine, other = (a, b) if we_dial else (b, a)
        assert type(mine) is TlsSocket
        assert mine.muxer is None
        assert mine.get_remote_peer() == peer_of(theirs)
        assert other.get_remote_peer() == mine.get_local_peer() == peer_of(ours)
        data = random.Random(1).randbytes(300_000)

        async def send(conn: Any) -> None:
            for at in range(0, len(data), 40_001):
                await conn.write(data[at : at + 40_001])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, mine)
            nursery.start_soon(send, other)
            assert await other.read(len(data)) == data
            assert await mine.read(len(data)) == data
        await mine.close()

    run(main)


def test_two_of_ours_agree_on_the_muxer_and_move_bytes_in_order() -> None:
    async def main() -> None:
        a, b = await secured(only_tls(), only_tls())
        assert a.muxer == b.muxer == str(YAMUX_ID)
        assert (a.get_remote_peer(), b.get_remote_peer()) == (b.get_local_peer(), a.get_local_peer())
        chance = random.Random(7)
        messages = [chance.randbytes(size) for size in (0, 1, 200, 16_384, 16_385, 1_000_000, 3_000_000)]
        whole = b"".join(messages)

        async def send(conn: TlsSocket) -> None:
            for message in messages:
                conn.send_nowait([message[:7], memoryview(message)[7:]])
                await conn.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, a)
            nursery.start_soon(send, b)
            assert await take(b, len(whole)) == whole
            assert await take(a, len(whole)) == whole
        await a.aclose()
        assert len(await b.receive()) == 0
        await b.aclose()

    run(main)


def test_noise_is_preferred() -> None:
    async def main() -> None:
        a, _ = await secured(MendedUpgrader(create_new_key_pair()), MendedUpgrader(create_new_key_pair()))
        assert type(a) is not TlsSocket

    run(main)


@pytest.mark.parametrize("we_dial", [True, False])
def test_only_ed25519_peers_get_through(we_dial: bool) -> None:
    async def main() -> None:
        theirs = stock(new_secp256k1_key_pair())
        with pytest.raises(BaseExceptionGroup) as caught:
            await (secured(only_tls(), theirs, peer_of(only_tls())) if we_dial else secured(theirs, only_tls()))
        failure(caught, BadIdentity)

    run(main)


def test_somebody_else_is_not_whom_we_dialled() -> None:
    async def main() -> None:
        other = ID.from_pubkey(create_new_key_pair().public_key)
        for listener in (only_tls(), stock()):
            with pytest.raises(BaseExceptionGroup) as caught:
                await secured(only_tls(), listener, other)
            failure(caught, WrongPeer)

    run(main)


# Peers that are not sound, in memory


def context() -> TlsContext:
    key = create_new_key_pair()
    return TlsContext(key.public_key.to_bytes(), key.private_key.sign, muxers=[str(YAMUX_ID)])


def raw_peer(role: Role, *, certificate: bool = True, version: int | None = None, says: list[bytes]) -> SSL.Connection:
    """OpenSSL as anybody may set it up."""
    ctx = context().context if certificate else SSL.Context(SSL.TLS_METHOD)
    if not certificate:
        ctx.set_verify(SSL.VERIFY_NONE, lambda *_: True)
    if version is not None:
        ctx.set_max_proto_version(version)
    ctx.set_alpn_protos(says)
    connection = SSL.Connection(ctx, None)
    connection.set_connect_state() if role is Role.INITIATOR else connection.set_accept_state()
    return connection


def meet(ours: TlsHandshake, theirs: SSL.Connection) -> None:
    """Carry bytes between both until ours is done or nothing moves."""
    for _ in range(10):
        try:
            theirs.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            break
        try:
            said = theirs.bio_read(1 << 20)
        except SSL.WantReadError:
            said = b""
        ours.receive_data(said)
        if back := ours.data_to_send():
            theirs.bio_write(back)
        elif ours.result is not None:
            return


def test_a_client_without_a_certificate_is_refused() -> None:
    with pytest.raises(BadMessage, match="certificate"):
        meet(TlsHandshake(context(), Role.RESPONDER), raw_peer(Role.INITIATOR, certificate=False, says=[b"libp2p"]))


def test_an_older_tls_is_refused() -> None:
    with pytest.raises(BadMessage, match=r"version|protocol"):
        meet(
            TlsHandshake(context(), Role.RESPONDER),
            raw_peer(Role.INITIATOR, certificate=False, version=SSL.TLS1_2_VERSION, says=[b"libp2p"]),
        )


def test_a_client_that_speaks_something_else_is_refused() -> None:
    with pytest.raises(BadMessage, match=r"failed"):
        meet(TlsHandshake(context(), Role.RESPONDER), raw_peer(Role.INITIATOR, says=[b"h2"]))
    fine = TlsHandshake(context(), Role.RESPONDER)
    meet(fine, raw_peer(Role.INITIATOR, says=[b"h2", b"libp2p"]))
    assert fine.result is not None
    assert fine.result.muxer is None


def test_a_peer_that_says_no_protocol_is_refused() -> None:
    pair, plain = create_new_key_pair(), SSL.Context(SSL.TLS_METHOD)
    now = datetime.datetime.now(datetime.UTC)
    certificate, key = make_certificate(pair.public_key.to_bytes(), pair.private_key.sign, now)
    plain.use_certificate(certificate)
    plain.use_privatekey(key)
    plain.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    for role in Role:
        peer = SSL.Connection(plain, None)
        peer.set_connect_state() if role is Role.INITIATOR else peer.set_accept_state()
        with pytest.raises(BadMessage, match="does not say that it speaks libp2p"):
            meet(TlsHandshake(context(), role.other), peer)


def test_a_handshake_is_bounded() -> None:
    side = TlsHandshake(context(), Role.RESPONDER)
    message = b"\x01\x00\xff\xff" + bytes(0xFFFF)  # a greeting of 64 KiB, in records of 1,000 bytes
    records = b"".join(b"\x16\x03\x01\x03\xe8" + message[at : at + 1000] for at in range(0, 60_000, 1000))
    side.receive_data(records[: MAX_HANDSHAKE_BYTES // 4])
    with pytest.raises(BadMessage, match=r"over|failed"):
        side.receive_data(records[MAX_HANDSHAKE_BYTES // 4 :])
    assert side.result is None


def test_every_cut_of_a_handshake_gives_the_same() -> None:
    for size in (1, 7, 1000):
        client, server = (TlsHandshake(context(), role) for role in (Role.INITIATOR, Role.RESPONDER))
        for _ in range(4):
            for side, other in ((client, server), (server, client)):
                data = side.data_to_send()
                for at in range(0, len(data), size):
                    other.receive_data(data[at : at + size])
        assert client.result is not None
        assert server.result is not None
        assert client.result.muxer == server.result.muxer == str(YAMUX_ID)


# The end


def test_a_connection_that_is_cut_off_is_not_an_orderly_end() -> None:
    """libp2p's own takes it for one: whoever can cut a connection decides where a message ends."""

    async def main() -> None:
        a, b = await secured(only_tls(), only_tls())
        a.send_nowait([b"pay 10"])
        assert bytes(await b.receive()) == b"pay 10"
        a.stream.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(LinkBroken, match="without a goodbye"):
            await b.receive()
        theirs, mine = await secured(stock(), stock())
        theirs.conn.stream_writer.raw_connection.stream.stream.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionClosedError):
            await mine.read()
        assert await mine.conn.read_msg() == b""

    run(main)


def test_a_forged_record_breaks_the_link() -> None:
    async def main() -> None:
        a, b = await secured(only_tls(), only_tls())
        await a.stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(LinkBroken, match="TLS record"):
            await b.receive()
        with pytest.raises(LinkBroken):
            await b.flush()

    run(main)


def test_a_stranger_gets_a_typed_refusal() -> None:
    async def main() -> None:
        ours = MendedUpgrader(create_new_key_pair())
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05" + bytes(5)):
            dialled, accepted = await socket_pair()
            await dialled.send_all(line(HEADER) + line(TLS_ID) + data)
            await dialled.send_eof()
            with pytest.raises(SecurityUpgradeFailure):
                await ours.upgrade_security(RawConnection(TrioTCPStream(accepted), False), False)

    run(main)
