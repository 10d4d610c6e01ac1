"""Strangers against what carries everything: negotiation on streams, frames, TLS behind its handshake."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.protocol_muxer.multiselect import Multiselect
from OpenSSL import SSL

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import open_libp2p
from p2pcompute.overlay._libp2p import Libp2pOverlay
from p2pcompute.overlay._link import LinkBroken
from p2pcompute.overlay._multiselect import HEADER
from p2pcompute.overlay._stream_lines import MAX_STREAM_LINE_BYTES, MAX_STREAM_LINES
from p2pcompute.overlay._tls import MAX_KEY_UPDATES, TlsContext, TlsHandshake, TlsSocket
from p2pcompute.overlay._upgrader import TLS_ID, MendedUpgrader
from p2pcompute.overlay.noise import Role
from p2pcompute.testing._overlay_checks import PrefixValidator

from ._attackers import DATA, MULTISTREAM, RST, SYN, WINDOW, frame, handshake, line, tcp

pytestmark = pytest.mark.net

ENDLESS = b"\xff\xff\xff\xff\x0f"  # a line of 4 GiB is about to come
STREAMS = 8
PIECE = b"a" * 60_000
PIECES = 20


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(500):
            await main()

    trio.run(bounded)


async def echo(stream: Any) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


@asynccontextmanager
async def a_node() -> AsyncGenerator[Libp2pOverlay, None]:
    async with open_libp2p(NodeKey.generate(), record_validator=PrefixValidator()) as node:
        node.handle("/echo/1", echo)
        yield node


class Frames:
    """What a stranger hears, frame by frame."""

    def __init__(self, secure: Any) -> None:
        self._secure = secure
        self._buffer = bytearray()

    async def _bytes(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._secure.read()
            assert data
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def next(self) -> tuple[int, int, int, int, bytes]:
        """Kind, flags, stream, length, payload."""
        _version, kind, flags, stream_id, length = struct.unpack("!BBHII", await self._bytes(12))
        return kind, flags, stream_id, length, await self._bytes(length) if kind == DATA else b""


def say(stream_id: int, data: bytes) -> bytes:
    return frame(DATA, 0, stream_id, len(data), data)


async def lines_without_end(node: Libp2pOverlay, grown: Callable[[int], bool]) -> int:
    """Open streams and send each a line that has no end; how many were reset before `grown` was true of what the node
    took of one of them, which it shows by giving window back."""
    stream = await tcp(node.addresses[0])
    async with stream:
        secure = await handshake(stream, node.addresses[0])
        for number in range(STREAMS):
            await secure.write(frame(WINDOW, SYN, 2 * number + 1, 0) + say(2 * number + 1, MULTISTREAM + ENDLESS))
        reset: set[int] = set()
        given: dict[int, int] = {}

        async def flood() -> None:
            for _ in range(PIECES):
                for number in range(STREAMS):
                    stream_id = 2 * number + 1
                    if stream_id not in reset:
                        await secure.write(say(stream_id, PIECE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            frames = Frames(secure)
            while len(reset) < STREAMS:
                kind, flags, stream_id, length, _ = await frames.next()
                if stream_id % 2 == 1 and flags & RST:
                    reset.add(stream_id)
                elif stream_id % 2 == 1 and kind == WINDOW and length:
                    given[stream_id] = given.get(stream_id, 0) + length
                    if grown(sum(given.values())):
                        break
            nursery.cancel_scope.cancel()
        return len(reset)


def test_a_line_of_negotiation_that_has_no_end_ends_its_stream() -> None:
    """Its bytes would have been read, so they would count nowhere, and be kept."""

    async def main() -> None:
        async with a_node() as node:
            assert await lines_without_end(node, lambda window: window > 0) == STREAMS

    run(main)


def test_libp2ps_own_negotiation_keeps_what_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._host.BoundedMultiselect", Multiselect)

    async def main() -> None:
        async with a_node() as node:
            assert await lines_without_end(node, lambda window: window > 2_000_000) == 0

    run(main)


def test_who_proposes_without_end_loses_the_stream() -> None:
    async def main() -> None:
        async with a_node() as node, await tcp(node.addresses[0]) as stream:
            secure = await handshake(stream, node.addresses[0])
            await secure.write(frame(WINDOW, SYN, 1, 0) + say(1, MULTISTREAM))
            await secure.write(say(1, line("/nobody/speaks/this") * (MAX_STREAM_LINES + 1)))
            frames = Frames(secure)
            answers = b""
            while True:
                _, flags, stream_id, _, payload = await frames.next()
                if stream_id == 1:
                    answers += payload
                    if flags & RST:
                        break
            assert answers.count(b"\x03na\n") == MAX_STREAM_LINES - 1  # one line was the greeting

    run(main)


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x00",
        struct.pack("B", MAX_STREAM_LINE_BYTES & 127 | 128) + b"\x09" + b"x" * 10,
        b"\x80\x80\x80\x80\x01",
        b"\x05\xff\xff\xff\xff\n",
        b"\x13/multistream/1.0.0x",
    ],
)
def test_lines_that_are_none_end_their_stream_and_nothing_else(greeting: bytes) -> None:
    async def main() -> None:
        async with a_node() as node, await tcp(node.addresses[0]) as stream:
            secure = await handshake(stream, node.addresses[0])
            await secure.write(frame(WINDOW, SYN, 1, 0) + say(1, greeting))
            frames = Frames(secure)
            while True:
                _, flags, stream_id, _, _ = await frames.next()
                if stream_id == 1 and flags & RST:
                    break
            ask = MULTISTREAM + line("/echo/1")
            await secure.write(frame(WINDOW, SYN, 3, 0) + say(3, ask + b"hello"))
            heard = b""
            while heard != ask + b"hello":
                _, flags, stream_id, _, payload = await frames.next()
                if stream_id == 3:
                    assert not flags & RST
                    heard += payload

    run(main)


# TLS behind its handshake


class KeyUpdates:
    """Key updates of a TLS client, made from its own secret: OpenSSL's sends no more than one at a time.

    RFC 8446 §4.6.3, §5.2, §7.1-7.3; each is the first record under its key.
    """

    def __init__(self, suite: str, secret: bytes) -> None:
        self._hash: hashes.HashAlgorithm = hashes.SHA384() if suite.endswith("SHA384") else hashes.SHA256()
        self._aead: type[AESGCM | ChaCha20Poly1305] = ChaCha20Poly1305 if "CHACHA" in suite else AESGCM
        self._key_bytes = 16 if "128" in suite else 32
        self._secret = secret

    def _expand(self, label: bytes, size: int) -> bytes:
        info = struct.pack("!HB", size, 6 + len(label)) + b"tls13 " + label + b"\0"
        return HKDFExpand(algorithm=self._hash, length=size, info=info).derive(self._secret)

    def make(self, count: int, *, ask: bool) -> bytes:
        """So many records; `ask` is whether each wants one of ours."""
        records = bytearray()
        for _ in range(count):
            records += self.first_record(b"\x18\x00\x00\x01" + bytes([ask]) + b"\x16")
            self._secret = self._expand(b"traffic upd", self._hash.digest_size)
        return bytes(records)

    def first_record(self, message: bytes) -> bytes:
        """The first record under the key that is now; `message` ends with its type."""
        key, nonce = self._expand(b"key", self._key_bytes), self._expand(b"iv", 12)
        head = b"\x17\x03\x03" + struct.pack("!H", len(message) + 16)
        return head + self._aead(key).encrypt(nonce, message, head)


def tls_context() -> TlsContext:
    pair = create_new_key_pair()
    return TlsContext(pair.public_key.to_bytes(), pair.private_key.sign, muxers=("/yamux/1.0.0",))


@asynccontextmanager
async def tls_client() -> AsyncGenerator[tuple[TlsSocket, trio.SocketStream, KeyUpdates], None]:
    """Ours, that a client has dialled: our end, the client's socket, and its key updates."""
    secrets: dict[str, bytes] = {}

    def keep(_connection: SSL.Connection, entry: bytes) -> None:
        name, _, secret = entry.decode().split()
        secrets[name] = bytes.fromhex(secret)

    theirs, ours = tls_context(), MendedUpgrader(create_new_key_pair())
    theirs.context.set_keylog_callback(keep)
    client = TlsHandshake(theirs, Role.INITIATOR)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, await trio.testing.open_stream_to_socket_listener(listener) as dialled:
        accepted = await listener.accept()
        found: list[Any] = []

        async def upgrade() -> None:
            found.append(await ours.upgrade_security(RawConnection(TrioTCPStream(accepted), False), False))

        async with accepted, trio.open_nursery() as nursery:
            nursery.start_soon(upgrade)
            await dialled.send_all(line(HEADER) + line(TLS_ID))
            greeting = b""
            while len(greeting) < len(line(HEADER) + line(TLS_ID)):
                greeting += await dialled.receive_some(len(line(HEADER) + line(TLS_ID)) - len(greeting))
            while client.result is None:
                await dialled.send_all(client.data_to_send())
                client.receive_data(await dialled.receive_some(4096))
            await dialled.send_all(client.data_to_send())
            while not found:
                await trio.lowlevel.checkpoint()
            suite = client.connection.get_cipher_name()
            assert suite is not None
            [ours_end] = found
            yield ours_end, dialled, KeyUpdates(suite, secrets["CLIENT_TRAFFIC_SECRET_0"])
            await ours_end.aclose()


@pytest.mark.parametrize("ask", [False, True])
def test_a_tls_peer_that_changes_its_key_without_end_is_cut_off(ask: bool) -> None:
    """OpenSSL takes any number of key updates and answers each that asks: memory for who reads none of the answers."""

    async def main() -> None:
        async with tls_client() as (ours, dialled, updates):
            await dialled.send_all(updates.make(2 * MAX_KEY_UPDATES + 2, ask=ask))
            with pytest.raises(LinkBroken, match="again and again"):
                await ours.receive()
            assert ours.unsent == 0

    run(main)


def test_some_key_updates_are_no_attack() -> None:
    async def main() -> None:
        async with tls_client() as (ours, dialled, updates):
            await dialled.send_all(updates.make(MAX_KEY_UPDATES // 4, ask=True) + updates.first_record(b"hello\x17"))
            assert bytes(await ours.receive()) == b"hello"

    run(main)


def test_without_a_bound_answers_to_key_updates_are_kept_for_who_reads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute.overlay._tls.MAX_KEY_UPDATES", 10**9)

    async def main() -> None:
        async with tls_client() as (ours, dialled, updates):
            ours._blocked = True  # as where the socket takes nothing
            await dialled.send_all(updates.make(3000, ask=True))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.receive)
                while ours.unsent < 50_000:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run(main)
