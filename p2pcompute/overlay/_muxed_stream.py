"""A stream of our Yamux: what its user waits for, and what waits for its user."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from ._api import RECEIVE_BYTES, SEND_STALL_TIMEOUT_S

if TYPE_CHECKING:
    from ._muxer import Yamux

__all__ = ["DISCARD_BYTES", "LINGER_S", "SMALL_BYTES", "YamuxStream"]

DISCARD_BYTES = 1024 * 1024  # what a peer may still send to a stream that we closed
LINGER_S = 60.0  # a stream that we closed is reset when the peer has not finished by then
SMALL_BYTES = 16 * 1024  # a write up to this goes out before what other streams have waiting
_SMALL_CHUNK = 4096  # below this, pieces that arrive one behind the other are kept as one
_LOOK_S = SEND_STALL_TIMEOUT_S / 4  # how often a writer that waits looks whether anything leaves
_NOTHING = memoryview(b"")


class YamuxStream(IMuxedStream):
    """One stream. `write` may run beside `read`, but not beside itself, as for any byte stream."""

    def __init__(self, conn: Yamux, stream_id: int, *, inbound: bool) -> None:
        self.muxed_conn = self._conn = conn
        self.stream_id = stream_id
        self.inbound = inbound
        self._chunks: deque[bytes | bytearray] = deque()
        self._offset = 0  # how much of the first chunk has been read
        self._put_back = b""  # read by a `receive_into` that was cancelled; comes first
        self._target = _NOTHING  # where a `receive_into` wants what comes
        self._filled = 0
        self._enough = 0
        self._readable = trio.lowlevel.ParkingLot()
        self._write_lock = trio.Lock()
        self._outgoing = _NOTHING  # what `write` has not handed over yet
        self._handed_over = trio.lowlevel.ParkingLot()
        self._progress_at = 0.0
        self.queued = False  # whether the connection knows that there is something to send
        self.eof = False  # the peer sent FIN
        self.fin_sent = False
        self.reset_done = False
        self.linger_until: float | None = None  # set once we closed both directions
        self._discarded = 0
        self.kept = 0  # unread, once both sides are finished; the connection counts

    # Reading

    async def read(self, n: int | None = None) -> bytes:
        """1 to `n` bytes, or what there is. Raises MuxedStreamEOF at the end, MuxedStreamReset when it broke.

        Cancellation: loses nothing.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._chunks or self._put_back:
            await self._conn.breathe()
        while not self._chunks and not self._put_back:
            self._check_readable()
            await self._readable.park()
        if self._put_back:
            count = len(self._put_back) if n is None or n < 0 else n
            data, self._put_back = self._put_back[:count], self._put_back[count:]
            return data
        if n is None or n < 0:
            data = b"".join(self._take(len(chunk)) for chunk in tuple(self._chunks))
        else:
            data = self._take(n)
        self._conn.consumed(self.stream_id, len(data))
        return data

    def _take(self, n: int) -> bytes:
        """1 to `n` bytes of the first chunk, which there is."""
        chunk = self._chunks[0]
        if not self._offset and len(chunk) <= n:
            self._chunks.popleft()
            return bytes(chunk)  # no copy, if it is of that type
        with memoryview(chunk) as view:
            data = bytes(view[self._offset : self._offset + n])
        self._offset += len(data)
        if self._offset >= len(chunk):
            self._chunks.popleft()
            self._offset = 0
        return data

    async def receive_into(self, buffer: bytearray | memoryview, at_least: int = 1) -> int:
        """Receive into `buffer`, and say how much: `at_least` bytes, and up to its length if there is more.

        What comes while this waits goes straight from where it was opened into `buffer`. It is less than
        `at_least` only where the peer closed its side, and 0 once all was read.

        Args:
            buffer: writable bytes, not empty, which must not be resized meanwhile.
            at_least: 1 to ``len(buffer)``.

        Raises:
            MuxedStreamReset: the stream broke; what had come is lost.

        Cancellation: loses nothing, what had come is what the next call gives.
        """
        target = memoryview(buffer).cast("B")
        if not 1 <= at_least <= len(target):
            raise ValueError("at_least must be 1 to the length of the buffer")
        if self._target:
            raise trio.BusyResourceError("another task receives from this stream")
        await trio.lowlevel.checkpoint_if_cancelled()
        filled = self._take_into(target)
        if filled >= at_least:
            await self._conn.breathe()
            return filled
        self._target, self._filled, self._enough = target, filled, at_least
        try:
            while self._filled < at_least:
                if self.reset_done:
                    self._check_readable()
                if self.eof or self.linger_until is not None:
                    break
                await self._readable.park()
            return self._filled
        except trio.Cancelled:
            self._put_back = bytes(target[: self._filled])
            raise
        finally:
            self._target = _NOTHING

    def _take_into(self, target: memoryview) -> int:
        filled = 0
        if self._put_back:
            filled = min(len(target), len(self._put_back))
            target[:filled] = self._put_back[:filled]
            self._put_back = self._put_back[filled:]
        consumed = 0
        while self._chunks and filled < len(target):
            chunk = self._chunks[0]
            with memoryview(chunk) as view:
                piece = view[self._offset : self._offset + len(target) - filled]
                target[filled : filled + len(piece)] = piece
                count = len(piece)
                piece.release()
            filled += count
            consumed += count
            self._offset += count
            if self._offset >= len(chunk):
                self._chunks.popleft()
                self._offset = 0
        if consumed:
            self._conn.consumed(self.stream_id, consumed)
        return filled

    @property
    def left(self) -> int:
        """What has come and was not read."""
        return sum(map(len, self._chunks)) - self._offset

    def _check_readable(self) -> None:
        if self.reset_done:
            raise MuxedStreamReset("the stream was reset")
        if self.eof or self.linger_until is not None:
            raise MuxedStreamEOF("the peer closed its side")

    # Writing

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, which must not change meanwhile. Raises MuxedStreamReset or MuxedStreamClosed.

        What the connection takes at once is sealed and with the socket before this waits for anything. One writer
        at a time: libp2p's pubsub writes from several tasks, and messages over one frame would mix.

        Cancellation: a write that is cancelled in its middle leaves half a message, so it resets the stream.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._write_lock.locked():
            await self._write_lock.acquire()
        else:
            self._write_lock.acquire_nowait()
        try:
            self._check_writable()
            view = memoryview(data)
            if view.itemsize != 1 or view.ndim != 1:
                view = view.cast("B")
            rest = view[self._conn.write_through(self, view) :]
            if rest or (self._conn.clogged and len(view) > SMALL_BYTES):
                await self._write_rest(rest)
            else:
                await self._conn.breathe()
        finally:
            self._write_lock.release()

    def write_nowait(self, data: bytes | bytearray | memoryview) -> bool:
        """Send all of `data` as one frame in this step, or nothing. Raises as `write`."""
        self._check_writable()
        view = memoryview(data)
        return not self._write_lock.locked() and self._conn.write_whole(self, view)

    async def _write_rest(self, rest: memoryview) -> None:
        """Leave `rest` to the connection's writer, and wait until it is handed over and there is room again."""
        self._outgoing = rest
        if rest:
            self._conn.queue(self)
        self._progress_at = trio.current_time()
        unsent = self._conn.unsent
        try:
            while self._outgoing or self._conn.clogged:
                self._check_writable()
                look_again = min(self._progress_at + SEND_STALL_TIMEOUT_S, trio.current_time() + _LOOK_S)
                with trio.move_on_at(look_again) as waited:
                    await (self._handed_over if self._outgoing else self._conn.room).park()
                if not waited.cancelled_caught:
                    continue
                if not self._waits_for_window:  # then it is the line that it waits for, and a slow one is no stall
                    if self._conn.unsent < unsent:
                        self._progress_at = trio.current_time()
                    self._progress_at = max(self._progress_at, self._conn.flushed_at)
                unsent = self._conn.unsent
                if trio.current_time() >= self._progress_at + SEND_STALL_TIMEOUT_S:
                    self.reset_nowait()
                    raise MuxedStreamReset(f"the peer read nothing for {SEND_STALL_TIMEOUT_S:g} s")
            self._check_reset()
        except trio.Cancelled:
            self.reset_nowait()
            raise
        finally:
            self._outgoing = _NOTHING

    @property
    def _waits_for_window(self) -> bool:
        return bool(self._outgoing) and not self._conn.session.send_window(self.stream_id)

    def offer(self, limit: int) -> int:
        """Put one frame of what waits, up to `limit` bytes, into the session; how much, 0 without window."""
        if not self._outgoing:
            return 0
        count = self._conn.session.send_data(self.stream_id, self._outgoing, limit)
        if count:
            self._progress_at = trio.current_time()
            self._outgoing = self._outgoing[count:]
            if not self._outgoing:
                self._handed_over.unpark_all()
        return count

    @property
    def wants_to_send(self) -> bool:
        return bool(self._outgoing)

    def _check_reset(self) -> None:
        if self.reset_done:
            raise MuxedStreamReset("the stream was reset")

    def _check_writable(self) -> None:
        self._check_reset()
        if self.fin_sent:
            raise MuxedStreamClosed("our side of the stream is closed")

    # The end

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
        if self._outgoing:  # another task is in the middle of a write, which can't be finished any more
            self.reset_nowait()
            return
        self.fin_sent = True
        self._conn.finish(self)

    def close_nowait(self) -> None:
        """Close both directions politely: FIN now; what the peer still sends is thrown away, within bounds."""
        self._finish()
        if self.reset_done or self.linger_until is not None:
            return
        self.linger_until = trio.current_time() + LINGER_S
        unread = self.left
        self._drop_unread()
        self._readable.unpark_all()
        if not self.eof:
            self._discard(unread)

    def _drop_unread(self) -> None:
        self._chunks.clear()
        self._offset = 0
        self._put_back = b""
        self._conn.freed(self)

    def _discard(self, count: int) -> None:
        self._discarded += count
        if self._discarded > DISCARD_BYTES:
            self.reset_nowait()
        elif count:
            self._conn.consumed(self.stream_id, count, grow=False)

    async def reset(self) -> None:
        self.reset_nowait()
        await trio.lowlevel.checkpoint()

    def reset_nowait(self) -> None:
        """Break the stream at once; safe while the task is being cancelled."""
        if not self.reset_done and not (self.eof and self.fin_sent):
            self._conn.reset(self)
        self.break_off()

    def break_off(self) -> None:
        """Both directions are gone: wake everyone who waits."""
        self.reset_done = True
        self._outgoing = _NOTHING
        self._drop_unread()
        self._wake_all()
        self._conn.forget(self)

    def _wake_all(self) -> None:
        self._readable.unpark_all()
        self._handed_over.unpark_all()
        self._conn.room.unpark_all()

    def connection_lost(self) -> None:
        """The connection ended; what arrived whole, up to the peer's FIN, can still be read."""
        if self.eof:
            if self._outgoing:
                self.break_off()
                return
            self.fin_sent = True
            self._wake_all()
            self._conn.forget(self)
        else:
            self.break_off()

    # What the connection brings

    def on_data(self, data: memoryview) -> None:
        if self.linger_until is not None:
            self._discard(len(data))
            return
        if self._target and self._filled < len(self._target):
            start = self._filled
            count = min(len(self._target) - start, len(data))
            self._target[start : start + count] = data[:count]
            self._filled += count
            self._conn.consumed(self.stream_id, count)
            if self._filled >= self._enough:
                self._readable.unpark_all()
            if count == len(data):
                return
            data = data[count:]
        self._keep(data)
        self._readable.unpark_all()

    def _keep(self, data: memoryview) -> None:
        """Copy what arrived, so that a read of `RECEIVE_BYTES` copies nothing again and small pieces cost no object."""
        if len(data) < _SMALL_CHUNK:
            last = self._chunks[-1] if self._chunks else None
            if type(last) is bytearray and len(last) + len(data) <= _SMALL_CHUNK:
                last += data
            else:
                self._chunks.append(bytearray(data))
            return
        for start in range(0, len(data), RECEIVE_BYTES):
            self._chunks.append(bytes(data[start : start + RECEIVE_BYTES]))

    def on_fin(self) -> None:
        self.eof = True
        self._readable.unpark_all()
        if self.fin_sent:
            self._conn.forget(self)

    # What libp2p asks for

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._conn.get_remote_address()

    async def __aenter__(self) -> Self:
        return self
