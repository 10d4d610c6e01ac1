"""Yamux (github.com/hashicorp/yamux, spec.md) behind libp2p's muxer interface, in place of libp2p's own.

py-libp2p 0.8.1 tears frames when a write is cancelled, so that one cancelled task breaks every stream of the
connection; answers frames from its reading loop with blocking writes, so that two busy peers can wait for each
other for ever; raises after 5 s without window, which it polls for every 10 ms; keeps what a peer sends beyond
its window; and sends a window update on nearly every read. Here:

- One task writes. A sender puts whole frames into the outbox and waits for room, so cancelling it can't tear
  one, and the reader never waits to answer.
- Small frames that wait together leave in one Noise record.
- A stream that nobody reads fills its own window and stops there: nothing else waits for it.
- A peer that breaks the protocol, or is silent for `IDLE_TIMEOUT_S`, loses the connection.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._api import CLOSE_TIMEOUT_S, SEND_STALL_TIMEOUT_S

__all__ = ["MAX_STREAMS", "Yamux", "YamuxStream"]

INITIAL_WINDOW = 256 * 1024  # by the specification, in both directions
BULK_WINDOW = 1024 * 1024  # for a stream that has read one initial window
MAX_PAYLOAD = 65519 - 12  # a full frame is one Noise record (65535 less 16 bytes of tag)
OUTBOX_BYTES = 128 * 1024  # senders wait above this
MAX_OUTBOX_BYTES = 2 * 1024 * 1024  # a peer that makes us answer but does not read is cut off here
MAX_STREAMS = 512  # a side may open on one connection; one more is refused
DISCARD_BYTES = 1024 * 1024  # what a peer may still send to a stream that we closed
LINGER_S = 60.0  # a stream that we closed is reset when the peer has not finished by then
PING_INTERVAL_S = 30.0
IDLE_TIMEOUT_S = 90.0

_HEADER = struct.Struct("!BBHII")  # version, type, flags, stream ID, length
_DATA, _WINDOW_UPDATE, _PING, _GO_AWAY = range(4)
_SYN, _ACK, _FIN, _RST = 1, 2, 4, 8


class _ViolationError(Exception):
    """The peer broke the protocol; the message says how."""


class YamuxStream(IMuxedStream):
    """One stream. `write` may run beside `read`, but not beside itself, as for any byte stream."""

    def __init__(self, conn: Yamux, stream_id: int, *, inbound: bool) -> None:
        self.muxed_conn = self._conn = conn
        self.stream_id = stream_id
        self.inbound = inbound
        self._buffer = bytearray()
        self._receive_window = INITIAL_WINDOW
        self._target = INITIAL_WINDOW
        self._consumed = 0
        self._send_window = INITIAL_WINDOW
        self._readable = trio.Event()
        self._writable = trio.Event()
        self._write_lock = trio.Lock()
        self.eof = False  # the peer sent FIN
        self.fin_sent = False
        self.reset_done = False
        self.linger_until: float | None = None  # set once we closed both directions
        self._discarded = 0

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes. Raises MuxedStreamEOF at the end, MuxedStreamReset when the stream broke."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._buffer:
            if self.reset_done:
                raise MuxedStreamReset("the stream was reset")
            if self.eof or self.linger_until is not None:
                raise MuxedStreamEOF("the peer closed its side")
            self._readable = trio.Event()
            await self._readable.wait()
        data = bytes(self._buffer if n is None or n < 0 else self._buffer[:n])
        del self._buffer[: len(data)]
        self._consumed += len(data)
        self._credit()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _credit(self) -> None:
        """Give window back in big steps, so that a reader of single bytes costs no frame per byte."""
        if self.eof:
            return
        if self._consumed >= INITIAL_WINDOW:
            self._target = BULK_WINDOW
        delta = self._target - self._receive_window - len(self._buffer)
        if delta >= self._target // 2:
            self._receive_window += delta
            self._conn.answer(_WINDOW_UPDATE, 0, self.stream_id, delta)

    async def write(self, data: bytes) -> None:
        """Send all of `data`. Raises MuxedStreamReset or MuxedStreamClosed.

        One writer at a time: libp2p's pubsub writes from several tasks, and messages over one frame would mix.
        A write that is cancelled in its middle leaves half a message, so it resets the stream.
        """
        async with self._write_lock:
            started = False
            try:
                await trio.lowlevel.checkpoint_if_cancelled()
                started = True
                await self._write(memoryview(data))
            except trio.Cancelled:
                if started:
                    self.reset_nowait()
                raise

    def write_nowait(self, data: bytes) -> bool:
        """Send all of `data` as one frame without waiting, or nothing. Raises as `write`."""
        self._check_writable()
        if self._write_lock.locked() or len(data) > min(self._send_window, MAX_PAYLOAD) or not self._conn.has_room:
            return False
        self._send_window -= len(data)
        self._conn._put(_HEADER.pack(0, _DATA, 0, self.stream_id, len(data)) + data)
        return True

    async def _write(self, view: memoryview) -> None:
        if not view:
            self._check_writable()
            await trio.lowlevel.cancel_shielded_checkpoint()
        while view:
            await self._wait_for_window()
            part = view[: min(self._send_window, MAX_PAYLOAD)]
            self._send_window -= len(part)
            view = view[len(part) :]
            await self._conn.send_frame(_HEADER.pack(0, _DATA, 0, self.stream_id, len(part)) + part)

    async def _wait_for_window(self) -> None:
        self._check_writable()
        if self._send_window:
            return
        with trio.move_on_after(SEND_STALL_TIMEOUT_S):
            while not self._send_window:
                self._writable = trio.Event()
                await self._writable.wait()
                self._check_writable()
            return
        self.reset_nowait()
        raise MuxedStreamReset(f"the peer read nothing for {SEND_STALL_TIMEOUT_S:g} s")

    def _check_writable(self) -> None:
        if self.reset_done:
            raise MuxedStreamReset("the stream was reset")
        if self.fin_sent:
            raise MuxedStreamClosed("our side of the stream is closed")

    async def close_write(self) -> None:
        """Send FIN; reading goes on."""
        self._finish()
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """What libp2p calls a close: our side only (its own muxer does the same)."""
        await self.close_write()

    def _finish(self) -> None:
        if self.fin_sent or self.reset_done:
            return
        self.fin_sent = True
        self._conn.answer(_WINDOW_UPDATE, _FIN, self.stream_id, 0)
        if self.eof:
            self._conn.forget(self)

    def close_nowait(self) -> None:
        """Close both directions politely: FIN now; what the peer still sends is thrown away, within bounds."""
        self._finish()
        if self.reset_done or self.linger_until is not None:
            return
        self.linger_until = trio.current_time() + LINGER_S
        discarded = len(self._buffer)
        self._buffer.clear()
        self._readable.set()
        if not self.eof:
            self._discard(discarded)

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > DISCARD_BYTES:
            self.reset_nowait()
        else:
            self._credit()

    async def reset(self) -> None:
        self.reset_nowait()
        await trio.lowlevel.checkpoint()

    def reset_nowait(self) -> None:
        """Break the stream at once; safe while the task is being cancelled."""
        if self.reset_done or (self.eof and self.fin_sent):
            self.break_off()
            return
        self._conn.answer(_WINDOW_UPDATE, _RST, self.stream_id, 0)
        self.break_off()

    def break_off(self) -> None:
        """Both directions are gone: wake everyone who waits."""
        self.reset_done = True
        self._buffer.clear()
        self._readable.set()
        self._writable.set()
        self._conn.forget(self)

    def connection_lost(self) -> None:
        """The connection ended; what arrived whole, up to the peer's FIN, can still be read."""
        if self.eof:
            self.fin_sent = True
            self._writable.set()
            self._conn.forget(self)
        else:
            self.break_off()

    def on_data(self, data: bytes) -> None:
        self._receive_window -= len(data)
        if self.linger_until is not None:
            self._discard(len(data))
            return
        self._buffer += data
        self._readable.set()

    def check_window(self, length: int) -> None:
        if self.eof:
            raise _ViolationError("data after FIN")
        if length > self._receive_window:
            raise _ViolationError("data beyond the window")

    def on_window_update(self, delta: int) -> None:
        self._send_window += delta
        if self._send_window > 0xFFFF_FFFF:
            raise _ViolationError("a window over 4 GiB")
        self._writable.set()

    def on_fin(self) -> None:
        self.eof = True
        self._readable.set()
        if self.fin_sent:
            self._conn.forget(self)

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._conn.secured_conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self


class Yamux(IMuxedConn):
    """One connection. `start` runs it and returns when it has ended, whoever ended it."""

    def __init__(self, conn: ISecureConn, peer_id: ID) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None  # set by SwarmConn, which also sees the end itself
        self._initiator = conn.is_initiator
        self._next_id = 1 if self._initiator else 2
        self._streams: dict[int, YamuxStream] = {}
        self._inbound = 0
        self._accept_send, self._accept_receive = trio.open_memory_channel[YamuxStream](MAX_STREAMS)
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._outbox_filled = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._flushed = trio.Event()
        self._scope = trio.CancelScope()
        self._last_heard = trio.current_time()

    @property
    def is_initiator(self) -> bool:
        return self._initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and not self.event_closed.is_set()

    @property
    def is_closed(self) -> bool:
        return self.event_closed.is_set()

    @property
    def streams(self) -> int:
        """How many streams are open, those that linger included."""
        return len(self._streams)

    @property
    def has_room(self) -> bool:
        """Whether senders need not wait."""
        return self._outbox_bytes <= OUTBOX_BYTES

    async def start(self) -> None:
        """Run the connection until it ends. Never raises for anything that a peer does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._keep_alive)
                    self.event_started.set()
                    await self._read_loop()
                    nursery.cancel_scope.cancel()
        finally:
            self._end()
            self.event_started.set()  # whoever waits in add_conn sees the end instead of waiting
            with trio.CancelScope(shield=True):
                await self._close_socket()

    def _end(self) -> None:
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        for stream in list(self._streams.values()):
            stream.connection_lost()
        self._accept_send.close()
        self._outbox.clear()
        self._outbox_bytes = 0
        self._flushed.set()
        self._room.unpark_all()
        self._scope.cancel()

    def abort(self) -> None:
        """End the connection now, without a word to the peer; `start` closes the socket."""
        self._end()

    async def _close_socket(self) -> None:
        try:
            await self.secured_conn.close()
        except Exception:  # noqa: BLE001 - libp2p raises many types for a socket that is gone already
            return

    async def close(self) -> None:
        """Say goodbye, give what was sent up to `CLOSE_TIMEOUT_S` to leave, and end."""
        with trio.CancelScope(shield=True):
            if not self.event_closed.is_set() and self.event_started.is_set():
                self.answer(_GO_AWAY, 0, 0, 0)
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    while self._outbox_bytes and not self.event_closed.is_set():
                        self._flushed = trio.Event()
                        await self._flushed.wait()
            self._end()
            await self._close_socket()

    async def open_stream(self) -> YamuxStream:
        """Open a stream. Raises MuxedConnUnavailable when the connection has ended or is full."""
        await trio.lowlevel.checkpoint()
        self._sweep()
        if self.event_closed.is_set():
            raise MuxedConnUnavailable("the connection has ended")
        if len(self._streams) - self._inbound >= MAX_STREAMS or self._next_id > 0xFFFF_FFF0:
            raise MuxedConnUnavailable("too many streams on this connection")
        stream = YamuxStream(self, self._next_id, inbound=False)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.answer(_WINDOW_UPDATE, _SYN, stream.stream_id, 0)
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opens. Raises MuxedConnUnavailable when the connection has ended."""
        try:
            return await self._accept_receive.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection has ended") from None

    def forget(self, stream: YamuxStream) -> None:
        """Drop the bookkeeping of a stream that is over in both directions."""
        if self._streams.pop(stream.stream_id, None) is not None and stream.inbound:
            self._inbound -= 1

    def _sweep(self) -> None:
        now = trio.current_time()
        for stream in list(self._streams.values()):
            if stream.linger_until is not None and stream.linger_until < now:
                stream.reset_nowait()

    # Writing

    def answer(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Queue a frame without payload; never waits, so that the reading loop may call it."""
        self._put(_HEADER.pack(0, kind, flags, stream_id, length))
        if self._outbox_bytes > MAX_OUTBOX_BYTES:
            self._end()

    async def send_frame(self, frame: bytes) -> None:
        """Queue a whole frame, then wait until the outbox is short again."""
        self._put(frame)
        if self._outbox_bytes > OUTBOX_BYTES:
            await self._room.park()
        else:
            await trio.lowlevel.checkpoint()

    def _put(self, frame: bytes) -> None:
        if not self.event_closed.is_set():
            self._outbox.append(frame)
            self._outbox_bytes += len(frame)
            self._outbox_filled.set()

    async def _write_loop(self) -> None:
        while True:
            if not self._outbox:
                self._outbox_filled = trio.Event()
                await self._outbox_filled.wait()
            batch = [self._outbox.popleft()]
            size = len(batch[0])
            while self._outbox and size + len(self._outbox[0]) <= MAX_PAYLOAD + _HEADER.size:
                size += len(self._outbox[0])
                batch.append(self._outbox.popleft())
            try:
                await self.secured_conn.write(b"".join(batch))
            except Exception:  # noqa: BLE001 - whatever it is, the connection is no good any more
                self._end()
                return
            self._outbox_bytes -= size
            if self._outbox_bytes <= OUTBOX_BYTES:
                self._room.unpark_all()
            if not self._outbox_bytes:
                self._flushed.set()

    async def _keep_alive(self) -> None:
        nonce = 0
        while True:
            await trio.sleep(PING_INTERVAL_S)
            self._sweep()
            if trio.current_time() - self._last_heard > IDLE_TIMEOUT_S:
                self._end()
            nonce = (nonce + 1) & 0xFFFF_FFFF
            self.answer(_PING, _SYN, 0, nonce)

    # Reading

    async def _read_loop(self) -> None:
        buffer = bytearray()
        payload_of: YamuxStream | None = None
        payload_left = 0
        payload_flags = 0
        try:
            while not self.event_closed.is_set():
                buffer += await self.secured_conn.read()
                self._last_heard = trio.current_time()
                while True:
                    if payload_left:
                        if not buffer:
                            break
                        data = bytes(buffer[:payload_left])
                        del buffer[:payload_left]
                        payload_left -= len(data)
                        if payload_of is not None and not payload_of.reset_done:
                            payload_of.on_data(data)
                        if payload_left:
                            break
                        self._on_end_flags(payload_of, payload_flags)
                        continue
                    if len(buffer) < _HEADER.size:
                        break
                    version, kind, flags, stream_id, length = _HEADER.unpack_from(buffer)
                    del buffer[: _HEADER.size]
                    if version:
                        raise _ViolationError("unknown version")
                    if kind == _DATA:
                        payload_of = self._stream_of(stream_id, flags)
                        if payload_of is not None and length:
                            payload_of.check_window(length)
                        elif length > BULK_WINDOW:
                            raise _ViolationError("a frame beyond any window")
                        payload_left, payload_flags = length, flags
                        if not length:
                            self._on_end_flags(payload_of, flags)
                    elif kind == _WINDOW_UPDATE:
                        stream = self._stream_of(stream_id, flags)
                        if stream is not None:
                            stream.on_window_update(length)
                        self._on_end_flags(stream, flags)
                    elif kind == _PING:
                        if flags & _SYN:
                            self.answer(_PING, _ACK, 0, length)
                    elif kind == _GO_AWAY:
                        return
                    else:
                        raise _ViolationError("unknown frame type")
        except Exception:  # noqa: BLE001 - closed, reset, a violation, or a Noise record that does not authenticate
            return

    def _stream_of(self, stream_id: int, flags: int) -> YamuxStream | None:
        """The stream that a frame is for, opened by SYN; None for one that is over."""
        if not flags & _SYN:
            if not stream_id:
                raise _ViolationError("a stream frame for stream 0")
            return self._streams.get(stream_id)
        theirs = 0 if self._initiator else 1
        if not stream_id or stream_id % 2 != theirs or stream_id in self._streams:
            raise _ViolationError("a stream ID that the peer may not open")
        self._sweep()
        if self._inbound >= MAX_STREAMS:
            self.answer(_WINDOW_UPDATE, _RST, stream_id, 0)
            return None
        stream = YamuxStream(self, stream_id, inbound=True)
        try:
            self._accept_send.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self.answer(_WINDOW_UPDATE, _RST, stream_id, 0)
            return None
        self._streams[stream_id] = stream
        self._inbound += 1
        self.answer(_WINDOW_UPDATE, _ACK, stream_id, 0)
        return stream

    def _on_end_flags(self, stream: YamuxStream | None, flags: int) -> None:
        if stream is None:
            return
        if flags & _RST:
            stream.break_off()
        elif flags & _FIN:
            stream.on_fin()

    # What SwarmConn asks for

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()
