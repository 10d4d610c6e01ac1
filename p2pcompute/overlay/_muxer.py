"""Our Yamux behind libp2p's muxer interface: the session of `yamux` with a link, a clock and tasks.

- What a caller writes is framed, sealed and with the socket at the end of its `write`, as far as window and socket
  go. One task writes what is left over; a caller is never in the middle of a frame, so cancelling it tears none.
- Streams with much to send take turns by frames, and little is sealed ahead, so that a small message on another
  stream waits for at most `SEAL_BYTES`.
- Frames without payload (acknowledgements, window, pongs) wait a moment for something to travel with.
- One task reads. It never waits to answer, and a stream that nobody reads fills its own window and stops there.
- A peer that breaks the protocol, or is silent for `IDLE_TIMEOUT_S`, or takes nothing of what waits for it for so
  long, loses the connection.

py-libp2p 0.8.1's own tears frames when a write is cancelled, so that one cancelled task breaks every stream of the
connection; answers frames from its reading loop with blocking writes, so that two busy peers can wait for each
other for ever; raises after 5 s without window, which it polls for every 10 ms; keeps what a peer sends beyond its
window; and sends a window update on nearly every read.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from . import yamux
from ._api import CLOSE_TIMEOUT_S
from ._conn_link import LinkOverSecureConn
from ._held import HeldBytes
from ._link import Link, LinkBroken
from ._muxed_stream import SMALL_BYTES, YamuxStream
from ._turns import BEGINNING_S, Turn

__all__ = ["Yamux"]

_log = logging.getLogger(__name__)

RECORD_BYTES = 65519  # a full Noise record without its tag: frames of whole ones are sealed without a copy
FRAME_BYTES = 16 * RECORD_BYTES  # of a stream that has the connection to itself
SHARED_FRAME_BYTES = 4 * RECORD_BYTES  # of streams that take turns
SEAL_BYTES = FRAME_BYTES  # at most so much is sealed before the socket has taken what was sealed before
CLOGGED_BYTES = 64 * 1024  # writers of more than `SMALL_BYTES` wait while the socket leaves more than this
MAX_ANSWER_BYTES = 512 * 1024  # a peer that makes us answer but does not read is cut off here
ANSWER_TICKS = 3  # rounds of trio's loop that a frame without payload waits for company
FRAMES_PER_BREATH = 1024  # of what a peer sent; then other tasks run
FRAMES_PER_LOOK = 4  # where others have something to say, after so many the turn is over: whoever is told of one acts
CALLS_PER_BREATH = 8  # of calls that need not wait, one lets other tasks run
PING_INTERVAL_S = 30.0
IDLE_TIMEOUT_S = 90.0


class Yamux(IMuxedConn):
    """One connection. `start` runs it and returns when it has ended, whoever ended it.

    Args:
        conn: who the peer is; where it is a `Link` too, that is used, and `read` and `write` otherwise.
        peer_id: the peer.
    """

    def __init__(self, conn: ISecureConn, peer_id: ID) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None  # set by SwarmConn, which also sees the end itself
        self.refuses: Callable[[int], bool] | None = None  # a stream of the peer's, by how many it has not begun
        self.room = trio.lowlevel.ParkingLot()  # writers that wait for the socket
        self.session = yamux.Session(initiator=conn.is_initiator, now=trio.current_time())
        self._link: Link = _link_of(conn)
        self._initiator = conn.is_initiator
        self._streams: dict[int, YamuxStream] = {}
        self._unaccepted: dict[int, YamuxStream] = {}  # opened by the peer, and nobody took them yet; the oldest first
        self._accepting = trio.lowlevel.ParkingLot()
        self._opening = trio.lowlevel.ParkingLot()
        self._turns: deque[YamuxStream] = deque()  # streams that have something to send, and window for it
        self._ahead_of_turns = 0  # bytes that went before them since they were last served
        self._work = trio.lowlevel.ParkingLot()
        self._flushed = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._last_heard = self.flushed_at = trio.current_time()
        self._calls = 0
        self.violation: str | None = None  # how the peer broke the protocol, where it did
        # Over in both directions, with bytes that their users have not read yet. Weakly: who drops one, frees them.
        self._finished: WeakValueDictionary[int, YamuxStream] = WeakValueDictionary()
        self.held = HeldBytes(lambda: self.unread_bytes, self._held_by_streams)

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
    def turn(self) -> Turn:
        """That of the connection."""
        return self._link.turn

    @property
    def streams(self) -> int:
        """How many streams are open, those that linger included."""
        return len(self._streams)

    @property
    def unread_bytes(self) -> int:
        """What was received and not read, of streams that are over too."""
        finished = sum(stream.kept for stream in self._finished.values()) if self._finished else 0
        return self.session.unread_bytes + finished

    # Life

    async def start(self) -> None:
        """Run the connection until it ends. Never raises for anything that a peer does."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_loop)
                    nursery.start_soon(self._keep_alive)
                    self.event_started.set()
                    await self._read_loop()
                    await self._link.turn.step()  # what ends takes as long as what begins
                    nursery.cancel_scope.cancel()
        finally:
            self._end()
            self.event_started.set()  # whoever waits in add_conn sees the end instead of waiting
            with trio.CancelScope(shield=True):
                await self._link.aclose()

    def _end(self) -> None:
        if self.event_closed.is_set():
            return
        self.event_closed.set()
        for stream in list(self._streams.values()):
            stream.connection_lost()
        self._turns.clear()
        self.session.data_to_send()
        for lot in (self.room, self._accepting, self._opening, self._flushed):
            lot.unpark_all()
        self.held.close()
        self._scope.cancel()

    def abort(self) -> None:
        """End the connection now, without a word to the peer; `start` closes the socket."""
        self._end()

    async def close(self) -> None:
        """Say goodbye, give what was sent up to `CLOSE_TIMEOUT_S` to leave, and end."""
        with trio.CancelScope(shield=True):
            if not self.event_closed.is_set() and self.event_started.is_set():
                self.session.go_away(yamux.GO_AWAY_NORMAL)
                self._work.unpark_all()
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    while not self.event_closed.is_set() and (self.session.pending_bytes or self._link.unsent):
                        await self._flushed.park()
            self._end()
            await self._link.aclose()

    async def breathe(self) -> None:
        """Let other tasks run, if it is time: for calls that need not wait, which would keep the thread otherwise."""
        self._calls += 1
        if self._calls >= CALLS_PER_BREATH:
            self._calls = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _keep_alive(self) -> None:
        nonce = 0
        took_at, sent = trio.current_time(), 0
        while True:
            await trio.sleep(PING_INTERVAL_S)
            self._sweep()
            now, link = trio.current_time(), self._link
            if not link.unsent or link.bytes_sent != sent:
                took_at, sent = now, link.bytes_sent
            if now - self._last_heard > IDLE_TIMEOUT_S:
                self._end()
            elif now - took_at > IDLE_TIMEOUT_S:
                _log.debug("%s talks and reads nothing", self.peer_id)
                self._end()
            nonce = (nonce + 1) & 0xFFFF_FFFF
            self.session.ping(nonce)
            self._answer()

    def _sweep(self) -> None:
        now = trio.current_time()
        for stream in list(self._streams.values()):
            if stream.linger_until is not None and stream.linger_until < now:
                stream.reset_nowait()

    # Streams

    async def open_stream(self) -> YamuxStream:
        """Open a stream. Raises MuxedConnUnavailable when the connection has ended or is full.

        Waits while the peer has not answered the `yamux.ACK_BACKLOG` streams before.
        """
        await trio.lowlevel.checkpoint()
        if self.session.unacknowledged >= yamux.ACK_BACKLOG or not self.session.can_open():
            self._sweep()
        while self.session.unacknowledged >= yamux.ACK_BACKLOG and not self.event_closed.is_set():
            if not self.session.can_open():
                break
            await self._opening.park()
        if self.event_closed.is_set():
            raise MuxedConnUnavailable("the connection has ended")
        try:
            stream_id = self.session.open_stream(trio.current_time())
        except yamux.LocalYamuxError as exc:
            raise MuxedConnUnavailable(str(exc)) from exc
        stream = self._streams[stream_id] = YamuxStream(self, stream_id, inbound=False)
        self._work.unpark_all()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """The next stream that the peer opens. Raises MuxedConnUnavailable when the connection has ended."""
        await trio.lowlevel.checkpoint()
        paid = False
        while not (self._unaccepted and paid):
            if self._unaccepted:
                await self._link.turn.pay(BEGINNING_S)
                paid = True  # also where that one is reset meanwhile: it was no work
            elif self.event_closed.is_set():
                raise MuxedConnUnavailable("the connection has ended")
            else:
                await self._accepting.park()
        return self._unaccepted.pop(next(iter(self._unaccepted)))

    def forget(self, stream: YamuxStream) -> None:
        """Drop the bookkeeping of a stream that is over in both directions."""
        if self._streams.get(stream.stream_id) is stream:
            del self._streams[stream.stream_id]
            stream.kept = stream.left
            if stream.kept:
                self._finished[stream.stream_id] = stream
        self._opening.unpark_all()

    def freed(self, stream: YamuxStream) -> None:
        """What a stream held unread is thrown away."""
        self._finished.pop(stream.stream_id, None)
        self.held.consumed()

    def _held_by_streams(self) -> list[tuple[int, Callable[[], None]]]:
        unread = self.session.unread_of
        held = [(unread(stream.stream_id), stream.reset_nowait) for stream in self._streams.values()]
        return held + [(stream.kept, stream.reset_nowait) for stream in self._finished.values()]

    # What streams ask for

    @property
    def unsent(self) -> int:
        """What is sealed and the socket has not taken."""
        return self._link.unsent

    @property
    def clogged(self) -> bool:
        """Whether the socket takes less than is sent, so that a writer has to wait."""
        return self._link.unsent > CLOGGED_BYTES

    def write_through(self, stream: YamuxStream, data: memoryview) -> int:
        """Frame, seal and hand over what may leave at once; how much that was."""
        unsent = self._link.unsent
        if len(data) <= SMALL_BYTES:
            if unsent >= SEAL_BYTES or (self._turns and self._ahead_of_turns >= SEAL_BYTES):
                return 0
        elif unsent or self._turns:
            return 0
        count = self.session.send_data(stream.stream_id, data, FRAME_BYTES)
        if count:
            self._ahead_of_turns += count
            self._hand_over()
        return count

    def write_whole(self, stream: YamuxStream, data: memoryview) -> bool:
        """The same for all of `data` in one frame, or for nothing; whether it has left."""
        if len(data) > min(FRAME_BYTES, self.session.send_window(stream.stream_id)):
            return False
        return not data or self.write_through(stream, data) > 0

    def queue(self, stream: YamuxStream) -> None:
        """Give a stream that has more to send its turn, once it has window."""
        if not stream.queued and self.session.send_window(stream.stream_id):
            stream.queued = True
            self._turns.append(stream)
            self._work.unpark_all()

    def consumed(self, stream_id: int, count: int, *, grow: bool = True) -> None:
        """Received bytes have gone to their reader."""
        self.session.consumed(stream_id, count, trio.current_time(), grow=grow)
        if self._finished and (stream := self._finished.get(stream_id)) is not None:
            stream.kept -= count
            if not stream.kept:
                del self._finished[stream_id]
        self.held.consumed()
        if self.session.pending_bytes:
            self._work.unpark_all()

    def finish(self, stream: YamuxStream) -> None:
        if self.event_closed.is_set():
            return
        self.session.finish(stream.stream_id)
        if stream.eof:
            self.forget(stream)
        self._work.unpark_all()

    def reset(self, stream: YamuxStream) -> None:
        if not self.event_closed.is_set():
            self.session.reset(stream.stream_id)
            self._work.unpark_all()

    # Writing

    def _hand_over(self) -> None:
        """Give the link what the session has."""
        if self._link.send_nowait(self.session.data_to_send()):
            self._work.unpark_all()

    def _answer(self) -> None:
        """Have what the session wants to say said, unless it waits for a peer that does not listen."""
        if self.session.pending_bytes > MAX_ANSWER_BYTES:
            _log.debug("%s makes us answer and reads nothing", self.peer_id)
            self._end()
        elif self.session.pending_bytes:
            self._work.unpark_all()

    async def _write_loop(self) -> None:
        session, link = self.session, self._link
        try:
            while True:
                while not session.pending_bytes and not self._turns and not link.unsent:
                    self._flushed.unpark_all()
                    await self._work.park()
                for _ in range(ANSWER_TICKS):
                    if self._turns or link.unsent or not session.pending_bytes:
                        break
                    await trio.lowlevel.checkpoint()
                if link.unsent < SEAL_BYTES:
                    self._seal()
                await link.flush()
                self.flushed_at = trio.current_time()
                self.room.unpark_all()
        except LinkBroken as exc:
            _log.debug("the connection to %s broke: %s", self.peer_id, exc)
            self._end()

    def _seal(self) -> None:
        """Let streams take turns, up to `SEAL_BYTES`, and hand over what they and the session have."""
        session, turns = self.session, self._turns
        limit = FRAME_BYTES if len(turns) == 1 else SHARED_FRAME_BYTES
        sealed = self._ahead_of_turns = 0
        while turns and sealed < SEAL_BYTES:
            stream = turns.popleft()
            sealed += stream.offer(min(limit, SEAL_BYTES - sealed))
            if stream.wants_to_send and session.send_window(stream.stream_id):
                turns.append(stream)
            else:
                stream.queued = False
        if session.pending_bytes:
            self._link.send_nowait(session.data_to_send())

    # Reading

    async def _read_loop(self) -> None:
        session, link, turn = self.session, self._link, self._link.turn
        try:
            while not self.event_closed.is_set():
                view = await link.receive()
                if not view:
                    return
                now = self._last_heard = trio.current_time()
                while view:
                    limit = FRAMES_PER_LOOK if turn.shared else FRAMES_PER_BREATH
                    for event in session.receive_data(view, now, limit=limit):
                        if not self._on_event(event):
                            return
                    view = view[session.taken :]
                    self.held.arrived()
                    self._answer()
                    if view:  # a full read of tiny frames would keep the thread for a quarter of a second
                        turn.done()
                        await trio.lowlevel.checkpoint()
                        await turn.take()
        except LinkBroken as exc:
            _log.debug("the connection to %s broke: %s", self.peer_id, exc)

    def _on_event(self, event: yamux.Event) -> bool:
        """Tell the stream that it is for; whether the connection goes on."""
        match event:
            case yamux.DataReceived():
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.on_data(event.data)
            case yamux.WindowOpened():
                stream = self._streams.get(event.stream_id)
                if stream is not None and stream.wants_to_send:
                    self.queue(stream)
            case yamux.StreamOpened():
                if self.refuses is not None and self.refuses(len(self._unaccepted)):
                    self.session.reset(event.stream_id)
                    return not self.event_closed.is_set()  # that may have been one too many
                stream = YamuxStream(self, event.stream_id, inbound=True)
                self._streams[event.stream_id] = self._unaccepted[event.stream_id] = stream
                self._accepting.unpark_all()
            case yamux.StreamAcknowledged():
                self._opening.unpark_all()
            case yamux.StreamFinished():
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.on_fin()
            case yamux.StreamReset():
                self._unaccepted.pop(event.stream_id, None)  # nobody need take what is over already
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    stream.break_off()
            case yamux.PongReceived():
                pass  # that we heard anything is what counts
            case yamux.GoneAway():
                _log.debug("%s goes away (%d)", self.peer_id, event.code)
                return False
            case yamux.SessionBroken():
                self.violation = event.violation.value
                _log.debug("%s broke the protocol: %s", self.peer_id, self.violation)
                self._hand_over()  # says why; nobody waits for it
                return False
        return True

    # What SwarmConn asks for

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.secured_conn.get_remote_address()


def _link_of(conn: ISecureConn) -> Link:
    if hasattr(conn, "send_nowait"):
        return conn  # type: ignore[return-value] # it says so by having that
    return LinkOverSecureConn(conn)
