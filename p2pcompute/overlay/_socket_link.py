"""A secured connection on a TCP socket, whatever secures it: a `Link` for our muxer, and libp2p's `ISecureConn`.

Bytes go between the socket and buffers that all connections of a node share: a connection holds one only from one
`receive` to the next, or while the peer reads nothing. So 300 idle connections cost a few KiB each, and a busy one
allocates nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import Sequence

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.keys import PrivateKey, PublicKey
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._link import LinkBroken
from ._turns import Turn
from .noise import BUFFER_BYTES, Data

__all__ = ["KEEP_WHOLE_BYTES", "Buffers", "Segment", "SocketLink"]

KEPT_BUFFERS = 4  # free ones that stay; more were needed at once, and go
KEEP_WHOLE_BYTES = 64 * 1024  # unsent bytes up to this are copied, so that a silent peer holds no buffer
SHARED_READ_BYTES = 256 * 1024  # of one read, where others have something to say
SHORT_READ_BYTES = 32 * 1024  # the same in a crowd, and of who passes others; to open more takes too long
_CLOSED = "the connection is closed"


class Buffers:
    """Free buffers of `BUFFER_BYTES`, shared by the connections of one node. They belong to whoever took them."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer with anything in it."""
        return self._free.pop() if self._free else memoryview(bytearray(BUFFER_BYTES))

    def give(self, buffer: memoryview) -> None:
        """Back; nobody may use it any more."""
        if len(self._free) < KEPT_BUFFERS:
            self._free.append(buffer)


class Segment:
    """Sealed bytes that wait for the socket: ``view[start:end]``."""

    __slots__ = ("end", "shared", "start", "view")

    def __init__(self, view: memoryview, *, shared: bool, end: int = 0) -> None:
        self.view = view
        self.start = 0
        self.end = end
        self.shared = shared  # whether the view is one of `Buffers`


class SocketLink(ISecureConn):
    """Implements `Link` but for sealing, and `ISecureConn` on top of it for what is said before a muxer takes over.

    Args:
        raw: libp2p's connection around `stream`.
        stream: the socket; nobody else reads or writes it any more.
        identity: the peer's raw Ed25519 key.
        muxer: what both sides agreed on in the handshake; None where that is still to do.
        buffers: those of the node.
        local_peer, local_key: who we are.
        turn: that of this connection.
    """

    def __init__(
        self,
        raw: RawConnection,
        stream: trio.SocketStream,
        *,
        identity: bytes,
        muxer: str | None,
        buffers: Buffers,
        local_peer: ID,
        local_key: PrivateKey,
        turn: Turn,
    ) -> None:
        self.is_initiator = raw.is_initiator
        self.stream = stream
        self.muxer = muxer
        self.negotiated_security_protocol: str | None = None  # what libp2p asks a connection for
        self._raw = raw
        self._socket: socket.socket = stream.socket._sock  # type: ignore[attr-defined] # its calls have no checkpoint
        self._buffers = buffers
        self.turn = turn
        self._local_peer = local_peer
        self._local_key = local_key
        self._remote_key = Ed25519PublicKey.from_bytes(identity)
        self._remote_peer = ID.from_pubkey(self._remote_key)
        self._fresh = False  # whether what was read behind the handshake may be opened without reading more
        self._lent: memoryview | None = None  # the buffer that the last `receive` gave a view of
        self._ahead = memoryview(b"")  # plaintext that `read` has not given yet
        self._segments: deque[Segment] = deque()
        self._unsent = 0
        self._blocked = False  # whether the socket took less than it was offered
        self._ended = False
        self._mute: str | None = None  # why nothing goes out any more
        self._broken: str | None = None  # why nothing comes in any more
        self._write_lock = trio.Lock()
        self.bytes_received = 0  # from the socket, for whoever watches
        self.bytes_sent = 0

    def _read_and_open(self) -> memoryview | None:
        """Read the socket once, and open what is whole. None where that gave nothing; `_lent` holds what it gave."""
        raise NotImplementedError

    def _seal(self, parts: Sequence[Data]) -> None:
        """Put what stands for `parts` into `_segments`, and count it in `_unsent`."""
        raise NotImplementedError

    # Receiving

    async def receive(self) -> memoryview:
        """See `Link.receive`."""
        self.turn.done()
        if self._ahead or self._fresh or self._ended:
            await trio.lowlevel.checkpoint()
        if self._ahead:
            await self.turn.take()
            ahead, self._ahead = self._ahead, memoryview(b"")
            return ahead
        if self._lent is not None:
            self._buffers.give(self._lent)
            self._lent = None
        while self._broken is None and not self._ended:
            if not self._fresh:
                try:
                    await trio.lowlevel.wait_readable(self._socket)
                except (trio.ClosedResourceError, OSError, ValueError):
                    self._break(_CLOSED)
                    break
            if not self.turn.try_take():
                await self.turn.take()
            opened = self._read_and_open()
            if opened is not None:
                return opened
            self.turn.done()
        if self._broken is not None:
            raise LinkBroken(self._broken)
        return memoryview(b"")

    def _receive_into(self, view: memoryview) -> int:
        """What the socket has, without waiting: 0 where that is nothing, or the end."""
        if self.turn.shared:
            view = view[: SHORT_READ_BYTES if self.turn.short else SHARED_READ_BYTES]
        try:
            received = self._socket.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._break(f"the connection was lost: {exc.strerror or exc}")
            return 0
        if not received:
            self._ended = True
            if self._mute is not None:
                self._break(self._mute)
        self.bytes_received += received
        return received

    # Sending

    @property
    def unsent(self) -> int:
        """See `Link.unsent`."""
        return self._unsent

    def send_nowait(self, parts: Sequence[Data]) -> int:
        """See `Link.send_nowait`."""
        if self._mute is None:
            self._seal(parts)
            self._push()
            self._settle()
        return self._unsent

    def _push(self) -> None:
        """Hand to the socket what it takes."""
        while self._segments and not self._blocked:
            segment = self._segments[0]
            offered = segment.end - segment.start
            try:
                taken = self._socket.send(segment.view[segment.start : segment.end]) if offered else 0
            except (BlockingIOError, InterruptedError):
                self._blocked = True
                return
            except OSError as exc:
                self._silence(f"the connection was lost: {exc.strerror or exc}")
                return
            self.bytes_sent += taken
            self._unsent -= taken
            segment.start += taken
            if taken < offered:
                self._blocked = True
            else:
                self._segments.popleft()
                if segment.shared:
                    self._buffers.give(segment.view)

    def _settle(self) -> None:
        """Where little is left, keep that little and no buffer for it."""
        if not self._segments or self._unsent > KEEP_WHOLE_BYTES:
            return
        rest = bytearray()
        for segment in self._segments:
            rest += segment.view[segment.start : segment.end]
        self._drop_segments()
        self._segments.append(Segment(memoryview(rest), shared=False, end=len(rest)))
        self._unsent = len(rest)

    def _drop_segments(self) -> None:
        for segment in self._segments:
            if segment.shared:
                self._buffers.give(segment.view)
        self._segments.clear()
        self._unsent = 0

    async def flush(self) -> None:
        """See `Link.flush`."""
        if not self._unsent:
            await trio.lowlevel.checkpoint()
        while self._unsent:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except (trio.ClosedResourceError, OSError, ValueError):
                self._break(_CLOSED)
            self._blocked = False
            self._push()
        if self._mute is not None:
            raise LinkBroken(self._mute)

    # The end

    def _silence(self, why: str) -> None:
        """Nothing more goes out. What has arrived can still be received; behind it stands `why`."""
        if self._mute is None:
            self._mute = why
            self._drop_segments()
            with contextlib.suppress(OSError):  # it may be closed, or nobody there any more
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for the peer

    def _break(self, why: str) -> None:
        """Nothing more goes out or comes in."""
        if self._broken is None:
            self._broken = why
            self._silence(why)

    async def aclose(self) -> None:
        """See `Link.aclose`."""
        self.turn.done()
        self._break(_CLOSED)
        self._forget_received()
        await self._raw.close()

    def _forget_received(self) -> None:
        """Hold nothing that came: what is left of a connection lies about until its cycles are collected. Whoever still
        has a view of the lent buffer keeps that, so it goes back to nobody."""
        self._lent = None
        self._ahead = memoryview(b"")

    # What libp2p reads and writes

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, or what there is. Raises ConnectionClosedError at the end and where the link broke."""
        data = bytearray()
        while n is None or len(data) < n:
            try:
                view = await self.receive()
            except LinkBroken as exc:
                raise ConnectionClosedError(str(exc)) from exc
            except trio.Cancelled:
                self.unread(data + self._ahead)
                raise
            self.turn.done()  # the view stays; when the next one is asked for, nobody knows
            if not view:
                raise ConnectionClosedError("the peer closed the connection")
            if n is None:
                return bytes(view)
            taken = view[: n - len(data)]
            data += taken
            self._ahead = view[len(taken) :]
        return bytes(data)

    def unread(self, data: Data) -> None:
        """Put back what was read too much: it is what comes next."""
        self._ahead = memoryview(bytes(data))

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises ConnectionClosedError where the link broke."""
        async with self._write_lock:
            self.send_nowait([data])
            try:
                await self.flush()
            except LinkBroken as exc:
                raise ConnectionClosedError(str(exc)) from exc

    async def close(self) -> None:
        """The same as `aclose`."""
        await self.aclose()

    # Who and where

    def get_local_peer(self) -> ID:
        return self._local_peer

    def get_local_private_key(self) -> PrivateKey:
        return self._local_key

    def get_remote_peer(self) -> ID:
        return self._remote_peer

    def get_remote_public_key(self) -> PublicKey:
        return self._remote_key

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._raw.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        remote = self._raw.get_remote_address()
        if remote is None:
            return []
        host = ipaddress.ip_address(remote[0])  # as bytes, since to read the text of an address takes 60 us
        kind = b"\x04" if host.version == 4 else b"\x29"
        return [Multiaddr(kind + host.packed + b"\x06" + remote[1].to_bytes(2, "big"))]

    def get_connection_type(self) -> ConnectionType:
        return self._raw.get_connection_type()
