"""Our Noise on real sockets: against libp2p's own, cut off, forged, cancelled, and what it holds meanwhile."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as new_rsa_key_pair
from libp2p.crypto.secp256k1 import create_new_key_pair as new_secp256k1_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID
from libp2p.stream_muxer.yamux.yamux import Yamux as TheirYamux
from libp2p.transport.exceptions import SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader

from p2pcompute.overlay._link import LinkBroken
from p2pcompute.overlay._multiselect import HEADER, line
from p2pcompute.overlay._secured import SecureSocket
from p2pcompute.overlay._socket_link import KEEP_WHOLE_BYTES, Buffers
from p2pcompute.overlay._upgrader import MendedUpgrader, has_aes_instructions
from p2pcompute.overlay.noise import (
    AESGCM,
    BUFFER_BYTES,
    CHACHAPOLY,
    LAST_NONCE,
    MAX_EMPTY_RECORDS,
    MAX_PLAINTEXT,
    WrongPeer,
    record_bytes,
)

from ._sockets import run, socket_pair

pytestmark = pytest.mark.net


class CountedBuffers(Buffers):
    """Knows how many are out."""

    def __init__(self) -> None:
        super().__init__()
        self.out = 0
        self.most = 0

    def take(self) -> memoryview:
        self.out += 1
        self.most = max(self.most, self.out)
        return super().take()

    def give(self, buffer: memoryview) -> None:
        assert all(buffer is not free for free in self._free)
        self.out -= 1
        super().give(buffer)


def upgrader(key_pair: Any = None) -> MendedUpgrader:
    ours = MendedUpgrader(key_pair or create_new_key_pair(), aes=True)
    ours._buffers = CountedBuffers()
    return ours


def stock(key_pair: Any = None) -> TransportUpgrader:
    """libp2p's own Noise, and nothing else."""
    noise = NoiseTransport(key_pair or create_new_key_pair(), noise_privkey=new_x25519_key_pair().private_key)
    return TransportUpgrader({NOISE_ID: noise}, {YAMUX_ID: TheirYamux})


def peer_of(one: Any) -> ID:
    if isinstance(one, MendedUpgrader):
        return one._peer
    return one.security_multistream.transports[NOISE_ID].local_peer  # type: ignore[no-any-return]


async def secured(dialler: Any, listener: Any, expected: ID | None = None) -> tuple[Any, Any]:
    """What both sides get from an upgrade over a TCP connection."""
    ends = await socket_pair()
    conns: list[ISecureConn | None] = [None, None]

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


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[SecureSocket, SecureSocket], None]:
    """Two of ours; what they hold is counted, and is nothing at the end."""
    a, b = await secured(upgrader(), upgrader())
    try:
        yield a, b
    finally:
        await a.aclose()
        await b.aclose()


def held(conn: SecureSocket) -> int:
    buffers = conn._buffers
    assert isinstance(buffers, CountedBuffers)
    return buffers.out


async def take(conn: SecureSocket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        view = await conn.receive()
        assert view
        data += view
    return bytes(data)


async def put(conn: SecureSocket, *parts: Any) -> None:
    conn.send_nowait(parts)
    await conn.flush()


async def ended(conn: SecureSocket) -> bool:
    """Whether the peer is gone; which way hangs on what it had not read."""
    try:
        return not await conn.receive()
    except LinkBroken:
        return True


def first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


# Who talks to whom


@pytest.mark.parametrize("we_dial", [True, False])
def test_libp2ps_own_noise_talks_to_ours(we_dial: bool) -> None:
    async def main() -> None:
        ours, theirs = upgrader(), stock()
        a, b = await (secured(ours, theirs) if we_dial else secured(theirs, ours))
        mine, other = (a, b) if we_dial else (b, a)
        assert mine.suite is CHACHAPOLY
        assert mine.session.muxer is None  # libp2p for Python has no early negotiation
        assert mine.get_remote_peer() == peer_of(theirs)
        assert other.get_remote_peer() == mine.get_local_peer() == peer_of(ours)
        assert ID.from_pubkey(mine.get_remote_public_key()) == peer_of(theirs)
        assert mine.is_initiator is we_dial
        data = random.Random(1).randbytes(1_000_000)

        async def send(conn: Any) -> None:
            for at in range(0, len(data), 70_001):
                await conn.write(data[at : at + 70_001])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, mine)
            nursery.start_soon(send, other)
            assert await other.read(len(data)) == data
            assert await mine.read(len(data)) == data
        await other.close()
        with pytest.raises(ConnectionClosedError):
            await mine.read()
        await mine.close()

    run(main)


def test_two_of_ours_speak_aes_and_need_no_round_trip_for_the_muxer() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            assert a.suite is b.suite is AESGCM
            assert a.session.muxer == b.session.muxer == str(YAMUX_ID)
            assert a.session.hash == b.session.hash
            assert (a.get_remote_peer(), b.get_remote_peer()) == (b.get_local_peer(), a.get_local_peer())
            assert a.get_remote_address() is not None

    run(main)


def test_without_instructions_for_aes_it_is_not_spoken(tmp_path: Path) -> None:
    async def main() -> None:
        for ours in ((True, False), (False, True)):
            a, b = await secured(*(MendedUpgrader(create_new_key_pair(), aes=aes) for aes in ours))
            assert a.suite is b.suite is CHACHAPOLY

    run(main)
    info = tmp_path / "cpuinfo"
    for text, has in (
        ("processor\t: 0\nflags\t\t: fpu aes pclmulqdq sse2\n", True),
        ("processor\t: 0\nflags\t\t: fpu aes sse2\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd aes pmull sha1\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ):
        info.write_text(text)
        assert has_aes_instructions(str(info)) is has
    assert has_aes_instructions(str(tmp_path / "none")) is False


@pytest.mark.parametrize("make", [new_secp256k1_key_pair, lambda: new_rsa_key_pair(2048)], ids=["secp256k1", "RSA"])
@pytest.mark.parametrize("we_dial", [True, False])
def test_only_ed25519_peers_get_through(make: Callable[[], Any], we_dial: bool) -> None:
    async def main() -> None:
        theirs = stock(make())
        await secured(stock(), stock(make()))  # libp2p lets them in
        with pytest.raises(BaseExceptionGroup) as caught:
            await (secured(upgrader(), theirs) if we_dial else secured(theirs, upgrader()))
        failed = caught.value.subgroup(SecurityUpgradeFailure)
        assert failed is not None
        assert "Ed25519" in str(first(failed))

    run(main)


def test_somebody_else_is_not_whom_we_dialled() -> None:
    async def main() -> None:
        other = ID.from_pubkey(create_new_key_pair().public_key)
        for listener in (upgrader(), stock()):
            with pytest.raises(BaseExceptionGroup) as caught:
                await secured(upgrader(), listener, other)
            failed = caught.value.subgroup(lambda exc: isinstance(exc.__cause__, WrongPeer))
            assert failed is not None

    run(main)


# Strangers


STRANGE = {
    "nothing": b"",
    "no negotiation": b"GET / HTTP/1.1\r\n\r\n",
    "a long line": b"\xff\xff\x7f",
    "proposals for ever": line(HEADER) + line("/plaintext/2.0.0") * 16,
    "a long handshake": line(HEADER) + line("/noise") + b"\xff\xff" + bytes(100),
    "a short one": line(HEADER) + line("/noise") + b"\x00\x1f" + bytes(31),
    "a key of small order": line(HEADER) + line("/noise") + b"\x00\x20" + bytes(32),
    "garbage for the last message": line(HEADER)
    + line("/noise")
    + b"\x00\x20\x09"
    + bytes(31)
    + b"\x01\x00"
    + bytes(256),
}


@pytest.mark.parametrize("data", STRANGE.values(), ids=STRANGE)
def test_a_stranger_costs_no_buffer_and_gets_a_typed_refusal(data: bytes) -> None:
    async def main() -> None:
        ours = upgrader()
        dialled, accepted = await socket_pair()
        await dialled.send_all(data)
        await dialled.send_eof()
        with pytest.raises(SecurityUpgradeFailure):
            await ours.upgrade_security(RawConnection(TrioTCPStream(accepted), False), False)
        assert isinstance(ours._buffers, CountedBuffers)
        assert ours._buffers.most == 0

    run(main)


def test_a_recorded_visit_can_not_be_replayed() -> None:
    """Everything that a dialler once sent, sent again to the same listener."""

    async def main() -> None:
        listener, recorded = upgrader(), bytearray()
        ends, wire = await socket_pair(), await socket_pair()

        async def forward(source: trio.SocketStream, to: trio.SocketStream, keep: bytearray | None) -> None:
            async for data in source:
                if keep is not None:
                    keep += data
                await to.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forward, ends[1], wire[0], recorded)
            nursery.start_soon(forward, wire[0], ends[1], None)
            dialler = upgrader()
            result: list[Any] = []

            async def listen() -> None:
                raw = RawConnection(TrioTCPStream(wire[1]), False)
                result.append(await listener.upgrade_security(raw, False))

            nursery.start_soon(listen)
            raw = RawConnection(TrioTCPStream(ends[0]), True)
            conn = await dialler.upgrade_security(raw, True, peer_of(listener))
            await conn.write(b"pay me")
            while not result:
                await trio.lowlevel.checkpoint()
            assert await result[0].read(6) == b"pay me"
            nursery.cancel_scope.cancel()
        again, accepted = await socket_pair()
        await again.send_all(recorded)
        with pytest.raises(SecurityUpgradeFailure, match=r"does not authenticate|before ours was known"):
            await listener.upgrade_security(RawConnection(TrioTCPStream(accepted), False), False)

    run(main)


# The link


def test_bytes_arrive_in_order_whatever_their_size() -> None:
    async def main() -> None:
        chance = random.Random(7)
        sizes = [0, 1, 12, 200, 4096, 16_384, 16_385, MAX_PLAINTEXT, MAX_PLAINTEXT + 1, BUFFER_BYTES, 3 * BUFFER_BYTES]
        sizes += [chance.randrange(100_000) for _ in range(50)]
        messages = [chance.randbytes(size) for size in sizes]

        async def send(conn: SecureSocket) -> None:
            for message in messages:
                middle = len(message) // 3
                await put(conn, message[:middle], memoryview(message)[middle:])

        async with pair() as (a, b), trio.open_nursery() as nursery:
            nursery.start_soon(send, a)
            nursery.start_soon(send, b)
            whole = b"".join(messages)
            assert await take(b, len(whole)) == whole
            assert await take(a, len(whole)) == whole
            nursery.cancel_scope.cancel()

    run(main)


def test_a_small_message_is_on_its_way_before_anybody_waits() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            assert a.send_nowait([b"header", b"message"]) == 0
            assert held(a) == 0
            assert bytes(await b.receive()) == b"headermessage"

    run(main)


def test_what_is_read_ahead_is_not_lost() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            await put(a, b"0123456789")
            assert await b.read(4) == b"0123"
            assert bytes(await b.receive()) == b"456789"
            await put(a, b"abcdef")
            assert await b.read(1) == b"a"
            with trio.move_on_after(0):
                await b.read(100)
            assert await b.read(5) == b"bcdef"
            b.unread(b"again")
            assert await b.read() == b"again"

    run(main)


def test_records_that_came_with_the_handshake_are_not_lost() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            sealed = a._sealer.seal([b"early"]) + a._sealer.seal([b"bird"]) + a._sealer.seal([b"cut"])
            late = SecureSocket(
                b._raw, b.stream, b.suite, b.session, trailing=sealed[:-5], buffers=b._buffers, turn=b.turn,
                local_peer=b.get_local_peer(), local_key=b.get_local_private_key(),
            )  # fmt: skip
            assert bytes(await late.receive()) == b"earlybird"
            await a.stream.send_all(sealed[-5:])
            assert bytes(await late.receive()) == b"cut"

    run(main)


def test_an_idle_connection_holds_no_buffer() -> None:
    async def main() -> None:
        async with pair() as (a, b), trio.open_nursery() as nursery:
            await put(a, bytes(100_000))
            assert len(await take(b, 100_000)) == 100_000
            assert held(b) == 1  # the view that was given
            nursery.start_soon(b.receive)
            await trio.testing.wait_all_tasks_blocked()
            assert held(a) == held(b) == 0
            assert len(b._partial) == 0
            nursery.cancel_scope.cancel()

    run(main)


def test_half_a_record_is_kept_without_a_buffer() -> None:
    """And however slowly the rest comes."""

    async def main() -> None:
        async with pair() as (a, b), trio.open_nursery() as nursery:
            record = a._sealer.seal([b"slowly"])
            received: list[bytes] = []

            async def receive() -> None:
                received.append(bytes(await b.receive()))

            nursery.start_soon(receive)
            for at in range(len(record)):
                assert not received
                await a.stream.send_all(record[at : at + 1])
                await trio.testing.wait_all_tasks_blocked()
                while at < len(record) - 1 and len(b._partial) <= at:
                    await trio.lowlevel.checkpoint()
                    assert held(b) == 0
            while not received:
                await trio.lowlevel.checkpoint()
            assert received == [b"slowly"]
            assert held(b) == 0  # so little is copied

    run(main)


def test_a_peer_that_does_not_read_holds_what_is_unsent_and_no_more() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            payload = random.Random(3).randbytes(MAX_PLAINTEXT)
            sent = bytearray()
            while not a.unsent:
                a.send_nowait([payload])
                sent += payload
            for _ in range(3):
                a.send_nowait([b"small", b"things"])
                sent += b"smallthings"
            assert a.unsent <= record_bytes(MAX_PLAINTEXT) + 3 * record_bytes(11)
            assert held(a) == (a.unsent > KEEP_WHOLE_BYTES)
            while a.unsent <= 3 * BUFFER_BYTES:
                a.send_nowait([payload] * 4)
                sent += payload * 4
            assert 3 <= held(a) <= 5
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.flush)
                assert await take(b, len(sent)) == sent
            assert a.unsent == held(a) == 0

    run(main)


def test_cancelling_loses_nothing() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            with trio.CancelScope() as scope:
                scope.cancel()
                await b.receive()
            chance = random.Random(5)
            data = chance.randbytes(8 * BUFFER_BYTES)
            a.send_nowait([data])
            received = bytearray()

            async def flush() -> None:
                while a.unsent:
                    with trio.move_on_after(0.001):
                        await a.flush()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush)
                while len(received) < len(data):
                    with trio.move_on_after(0.001):
                        received += await b.receive()
            assert received == data

    run(main)


# The end


def test_the_end_between_records_is_orderly_and_inside_one_is_not() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            await put(a, b"goodbye")
            await a.aclose()
            assert bytes(await b.receive()) == b"goodbye"
            assert len(await b.receive()) == 0
            assert len(await b.receive()) == 0
        for cut_off in (1, 2, 17, 20):
            async with pair() as (a, b):
                record = a._sealer.seal([b"goodbye"])
                await a.stream.send_all(record[:cut_off])
                await a.stream.aclose()
                for _ in range(2):
                    with pytest.raises(LinkBroken, match="cut off inside a record"):
                        await b.receive()

    run(main)


def test_a_reset_breaks_the_link_and_sending_says_nothing() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            a.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await a.stream.aclose()
            with pytest.raises(LinkBroken, match="lost"):
                await b.receive()
            assert b.send_nowait([b"anybody there?"]) == 0
            with pytest.raises(LinkBroken):
                await b.flush()
            with pytest.raises(ConnectionClosedError):
                await b.write(b"anybody there?")
            assert held(b) == 0

    run(main)


def test_what_arrived_before_sending_broke_can_still_be_read() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            await put(a, b"last words")
            await trio.lowlevel.wait_readable(b._socket)
            b._socket.shutdown(socket.SHUT_WR)
            assert b.send_nowait([b"anybody there?"]) == 0
            assert bytes(await b.receive()) == b"last words"
            with pytest.raises(LinkBroken, match="lost"):
                await b.receive()

    run(main)


@pytest.mark.parametrize("at", [0, 1, 2, 10, -1])
def test_a_forged_record_breaks_the_link(at: int) -> None:
    async def main() -> None:
        async with pair() as (a, b):
            record = bytearray(a._sealer.seal([bytes(5000)]))
            record[at] ^= 4
            await a.stream.send_all(bytes(record) + bytes(70_000))
            with pytest.raises(LinkBroken, match="does not authenticate"):
                await b.receive()
            assert held(b) == 0
            assert await ended(a)

    run(main)


def test_records_before_a_forged_one_are_not_given_with_it() -> None:
    """A view is given whole or not at all."""

    async def main() -> None:
        async with pair() as (a, b):
            await a.stream.send_all(a._sealer.seal([b"fine"]) + a._sealer.seal([b"x"])[:-1] + b"!")
            with pytest.raises(LinkBroken, match="does not authenticate"):
                await take(b, 5)  # four may come, where the socket gave them alone

    run(main)


def test_a_flood_of_empty_records_breaks_the_link() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            record = memoryview(bytearray(18))
            flood = bytearray()
            for _ in range(MAX_EMPTY_RECORDS + 1):
                a._sealer.seal_into(b"", record)
                flood += record
            await a.stream.send_all(flood)
            with pytest.raises(LinkBroken, match="empty records"):
                await b.receive()

    run(main)


def test_a_link_without_nonces_ends() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            a._sealer.count = b._opener.count = LAST_NONCE
            a._sealer._turn = b._opener._turn = LAST_NONCE + 1  # not by two hundred million keys
            await put(a, b"the last")
            assert bytes(await b.receive()) == b"the last"
            assert a.send_nowait([b"one more"]) == 0
            with pytest.raises(LinkBroken, match="as many records as one connection may"):
                await a.receive()
            assert len(await b.receive()) == 0

    run(main)


def test_closing_ends_what_waits() -> None:
    async def main() -> None:
        async with pair() as (a, b):
            while not a.unsent:
                a.send_nowait([bytes(BUFFER_BYTES)])

            async def broken(wait: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(LinkBroken, match="closed"):
                    await wait()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(broken, a.receive)
                nursery.start_soon(broken, a.flush)
                await trio.testing.wait_all_tasks_blocked()
                await a.aclose()
                await a.aclose()
            assert held(a) == a.unsent == 0
            del b

    run(main)
