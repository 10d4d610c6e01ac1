"""A stream between two nodes in memory: latency, bandwidth, windows and faults, under trio's clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import trio

from p2pcompute.overlay import RECEIVE_BYTES, SEND_STALL_TIMEOUT_S, StreamReset
from p2pcompute.overlay._blame import is_offence
from p2pcompute.overlay._counters import StreamCount
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import PeerId

__all__ = ["WINDOW_BYTES", "Link", "MemoryStream", "stream_pair"]

WINDOW_BYTES = 256 * 1024  # sent and not yet read; then the sender waits
_SEGMENT_BYTES = 16 * 1024


class Link:
    """One direction between two nodes. What is sent leaves one after the other and arrives in order.

    Attributes:
        latency_s: from leaving to arriving.
        bytes_per_s: how fast bytes leave; infinite by default.
        up: while False nothing arrives; what is on the way arrives later, as TCP would resend it.
        uplink: what this link shares with others that leave the same node; None where it shares nothing.
        sent_bytes: how many have left.
    """

    def __init__(self, latency_s: float, bytes_per_s: float = math.inf) -> None:
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s
        self.up = True
        self.uplink: Link | None = None
        self.sent_bytes = 0
        self._free_at = -math.inf

    def arrival(self, size: int) -> float:
        """When `size` bytes that are sent now arrive. They take their time on the link."""
        self.sent_bytes += size
        begins = trio.current_time()
        if self.uplink is not None:
            begins = self.uplink.arrival(size)
        self._free_at = max(begins, self._free_at) + size / self.bytes_per_s
        return self._free_at + self.latency_s


class MemoryStream:
    """Implements `OverlayStream`: one of two ends."""

    def __init__(self, peer_id: PeerId, protocol: str, link_in: Link, link_out: Link) -> None:
        self.peer_id = peer_id
        self.protocol = protocol
        self.link_in = link_in
        self._link_out = link_out
        self._other: MemoryStream = self  # `stream_pair` joins the two
        self._inbox: deque[tuple[float, bytes]] = deque()
        self._unread = 0
        self._stalled = False
        self._sending = False
        self._finished = False  # we sent our end
        self._shut = False  # we read no more
        self._fin_at: float | None = None  # when the other's end arrives
        self._broken_from: float | None = None
        self._lost = False  # broken because the connection went, not by a reset
        self._broken_here = False
        self._changed = trio.Event()
        self._on_over: Callable[[], None] | None = None
        self.count: StreamCount | None = None
        self.on_blame: Callable[[PeerId, ProtocolError], None] | None = None

    def on_over(self, callback: Callable[[], None]) -> None:
        """Call back once, when this end has closed or reset the stream."""
        self._on_over = callback

    def poke(self) -> None:
        """Wake whoever waits at this end, to look again."""
        event, self._changed = self._changed, trio.Event()
        event.set()

    def _flows(self) -> bool:
        return self.link_in.up and not self._stalled

    def _is_broken(self) -> bool:
        if self._broken_here:
            return True
        return self._broken_from is not None and self._broken_from <= trio.current_time() and self._flows()

    def _next_news(self) -> float:
        """When something that is on its way to us arrives."""
        if not self._flows():
            return math.inf
        times = [self._inbox[0][0]] if self._inbox else []
        if self._broken_from is not None:
            times.append(self._broken_from)
        return min(times, default=math.inf)

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._sending = True
        try:
            self._check_sendable()
            view = memoryview(data)
            while view:
                await self._wait_for_window()
                part = bytes(view[:_SEGMENT_BYTES])
                view = view[len(part) :]
                if self.count is not None:
                    self.count.sent(len(part))
                arrives = self._link_out.arrival(len(part))
                if not self._other._shut:
                    self._other._inbox.append((arrives, part))
                    self._other._unread += len(part)
                    self._other.poke()
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.reset_nowait()
            raise
        finally:
            self._sending = False

    def send_nowait(self, data: bytes) -> bool:
        self._check_sendable()
        if self._other._shut:
            return True
        if self._sending or self._other._unread + len(data) > WINDOW_BYTES:
            return False
        if data:
            if self.count is not None:
                self.count.sent(len(data))
            self._other._inbox.append((self._link_out.arrival(len(data)), data))
            self._other._unread += len(data)
            self._other.poke()
        return True

    def _check_sendable(self) -> None:
        if self._is_broken():
            raise StreamReset(f"sending on {self.protocol}: the stream was reset")
        if self._finished:
            raise StreamReset(f"sending on {self.protocol}: our side of the stream is closed")

    async def _wait_for_window(self) -> None:
        with trio.move_on_after(SEND_STALL_TIMEOUT_S):
            while True:
                self._check_sendable()
                if self._other._unread < WINDOW_BYTES or self._other._shut:
                    return
                broken_at = self._broken_from if self._broken_from is not None and self._flows() else math.inf
                with trio.move_on_at(broken_at):
                    await self._changed.wait()
        self.reset_nowait()
        raise StreamReset(f"the peer read nothing for {SEND_STALL_TIMEOUT_S:g} s")

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES) -> bytes:
        if max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_readable()
        data = self._take(max_bytes)
        if self.count is not None:
            self.count.received(len(data))
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def receive_into(self, buffer: bytearray | memoryview, at_least: int = 1) -> int:
        target = memoryview(buffer).cast("B")
        if not 1 <= at_least <= len(target):
            raise ValueError("at_least must be 1 to the length of the buffer")
        await trio.lowlevel.checkpoint_if_cancelled()
        filled = 0
        try:
            while filled < at_least:
                await self._wait_readable()
                part = self._take(len(target) - filled)
                if not part:
                    break
                target[filled : filled + len(part)] = part
                filled += len(part)
        except trio.Cancelled:
            if filled and not (self._shut or self._broken_here):
                self._inbox.appendleft((trio.current_time(), bytes(target[:filled])))
                self._unread += filled
            raise
        while filled < len(target) and self._has_arrived() and (part := self._take(len(target) - filled)):
            target[filled : filled + len(part)] = part
            filled += len(part)
        if self.count is not None:
            self.count.received(filled)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return filled

    async def _wait_readable(self) -> None:
        """Return when there is something to take, or the end. Raises `StreamReset` where there is neither any more."""
        while True:
            if self._is_broken() and not self._can_read_on():
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise StreamReset(f"receiving on {self.protocol}: the stream was reset")
            if self._shut or self._has_arrived():
                return
            with trio.move_on_at(self._next_news()):
                await self._changed.wait()

    def _has_arrived(self) -> bool:
        return bool(self._inbox) and self._flows() and self._inbox[0][0] <= trio.current_time()

    def _can_read_on(self) -> bool:
        """A connection that went does not take away what had arrived whole, up to its end."""
        fin, broken = self._fin_at, self._broken_from
        return self._lost and not self._broken_here and fin is not None and broken is not None and fin <= broken

    def _take(self, max_bytes: int) -> bytes:
        if self._shut:
            return b""
        arrived, data = self._inbox[0]
        if not data:
            return b""  # the end stays where it is
        self._inbox.popleft()
        if len(data) > max_bytes:
            self._inbox.appendleft((arrived, data[max_bytes:]))
            data = data[:max_bytes]
        self._unread -= len(data)
        self._other.poke()
        return data

    async def close_write(self) -> None:
        self._finish()
        await trio.lowlevel.checkpoint()

    def _finish(self) -> None:
        if self._finished or self._is_broken():
            return
        self._finished = True
        self._other._fin_at = self._link_out.arrival(0)
        self._other._inbox.append((self._other._fin_at, b""))
        self._other.poke()

    async def aclose(self) -> None:
        self._finish()
        self._shut = True
        self._drop_inbox()
        self._over()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.reset_nowait()
        await trio.lowlevel.checkpoint()

    def blame(self, exc: ProtocolError) -> None:
        callback, self.on_blame = (self.on_blame, None) if is_offence(exc) else (None, self.on_blame)
        if callback is not None:
            callback(self.peer_id, exc)

    def reset_nowait(self) -> None:
        """Break both directions: here at once, at the other end when the news arrives."""
        if not self._broken_here and not (self._finished and self._shut):
            self._broken_here = True
            self._drop_inbox()
            if self._other._broken_from is None:
                self._other._broken_from = self._link_out.arrival(0)
                self._other.poke()
        self._over()

    def lose(self, at: float) -> None:
        """The connection under this end goes at time `at`."""
        if self._broken_from is None:
            self._broken_from = at
            self._lost = True
            self.poke()

    def _drop_inbox(self) -> None:
        self._inbox.clear()
        self._unread = 0
        self.poke()
        self._other.poke()

    def _over(self) -> None:
        if self.count is not None:
            self.count.ended("broken" if self._broken_from is not None else "reset" if self._broken_here else "closed")
        callback, self._on_over = self._on_over, None
        if callback is not None:
            callback()

    def set_stalled(self, stalled: bool) -> None:
        """Hold back, or let go again, what flows in both directions of this stream."""
        for end in (self, self._other):
            end._stalled = stalled
            end.poke()


def stream_pair(
    opener: PeerId, acceptor: PeerId, protocol: str, there: Link, back: Link
) -> tuple[MemoryStream, MemoryStream]:
    """(the opener's end, the acceptor's end)."""
    near = MemoryStream(acceptor, protocol, back, there)
    far = MemoryStream(opener, protocol, there, back)
    near._other, far._other = far, near
    return near, far
