"""Serving blobs: to whoever shows the ticket, so many bytes a second, and each piece a few times at most."""

from __future__ import annotations

import hmac
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute._groups import single_error
from p2pcompute.errors import StreamError
from p2pcompute_protocols import blob
from p2pcompute_protocols.blob import (
    BlobConnection,
    BlobDrop,
    BlobDropped,
    BlobGet,
    BlobGone,
    BlobHave,
    BlobHeld,
    BlobPiece,
    BlobState,
    BlobWant,
    bitmap,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId

from ._held import HeldBlob

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, OverlayStream

__all__ = ["BlobServer", "ServerLimits"]

_log = logging.getLogger("p2pcompute.blobs")

_ASK_S: Final = 10.0
_LEAVES_S: Final = 20.0  # for somebody who has only just begun to get it
_IDLE_S: Final = 300.0  # between two messages of a peer; it may wait for pieces that are still to come
_PIECE_S: Final = 20.0  # for a peer to take a piece, once it is its turn
_MAX_BUCKETS: Final = 4_096
_STALLS: Final = 2  # pieces that a peer may leave untaken, before it is
_STALLED_S: Final = 60.0  # served nothing for so long
_AGED_S: Final = 3.0  # who has waited for so long comes first, whatever it waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What serving may cost.

    Attributes:
        streams, peer_streams: open at once, of all peers and of one.
        at_once: pieces that are sent at a time, over all peers. Few, so that each goes at the speed of the uplink and
            others may drop theirs while they wait.
        peer_bytes_per_s: of one peer, on average; a blob at full size comes as fast as it can.
        repeats: how often one peer is sent one piece.
    """

    streams: int = 64
    peer_streams: int = 8
    at_once: int = 2
    peer_bytes_per_s: float = 64 * 1024 * 1024
    burst_bytes: int = 128 * 1024 * 1024
    repeats: int = 2


class BlobServer:
    """Serves the blobs that are offered on all streams of `protocols/blob`.

    Attributes:
        draining: nothing is served but this node's own tasks' inputs.
        sent_bytes: of pieces, so far.
    """

    def __init__(self, *, limits: ServerLimits | None = None) -> None:
        self.limits = limits or ServerLimits()
        self.draining = False
        self.sent_bytes = 0
        self._offers: dict[bytes, list[tuple[bytes, HeldBlob, set[trio.CancelScope]]]] = {}  # by digest
        self._streams: Counter[PeerId] = Counter()
        self._turns = _Turns(self.limits.at_once)
        self._peer_turns: dict[PeerId, trio.Lock] = {}  # one of them at a time for one peer
        self._stalls: OrderedDict[PeerId, tuple[int, float]] = OrderedDict()  # how many, and until when that counts
        self._buckets: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()  # bytes left, as of when

    def register(self, overlay: Overlay) -> None:
        """Serve blob streams from now on."""
        overlay.handle(blob.PROTOCOL_ID, self.serve)

    @contextmanager
    def offer(self, held: HeldBlob, ticket: bytes) -> Generator[None]:
        """Serve this blob to whoever shows `ticket`, as far as it is here, until the context ends; then the streams
        that are open for it are reset."""
        entry = (ticket, held, set[trio.CancelScope]())
        self._offers.setdefault(held.name.digest, []).append(entry)
        try:
            yield
        finally:
            offers = self._offers[held.name.digest]
            offers.remove(entry)
            if not offers:
                del self._offers[held.name.digest]
            for scope in entry[2]:
                scope.cancel()

    def _find(self, want: BlobWant) -> tuple[HeldBlob, set[trio.CancelScope]] | None:
        for ticket, held, scopes in self._offers.get(want.digest, ()):
            if (
                hmac.compare_digest(ticket, want.ticket)
                and (held.name.size, held.name.root) == (want.size, want.root)
                and (held.origin or not self.draining)
            ):
                return held, scopes
        return None

    async def serve(self, stream: OverlayStream) -> None:
        """One stream, from its first byte to its last."""
        peer = stream.peer_id
        if self._streams[peer] >= self.limits.peer_streams or self._streams.total() >= self.limits.streams:
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            with single_error(ProtocolError, StreamError):
                await self._serve(stream)
        except RemoteProtocolError as exc:
            _log.info("a blob stream of %s ended: %s", peer, exc)
            await stream.reset()
        except StreamError as exc:
            _log.debug("a blob stream of %s broke: %s", peer, exc)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
                self._peer_turns.pop(peer, None)

    async def _serve(self, stream: OverlayStream) -> None:
        dialogue = Dialogue(BlobConnection(Role.PROVIDER), stream, send_s=_PIECE_S)
        want = await dialogue.expect(BlobWant, stall_s=_ASK_S)
        found = self._find(want)
        if found is None:
            # The same words whether it is not here, or the ticket is wrong: nobody finds out what is here.
            await dialogue.send(BlobGone(code=WireCode.BAD_DIGEST, detail="not to be had here"))
            return
        if self._has_stalled(stream.peer_id):
            await dialogue.send(BlobGone(code=WireCode.NO_CAPACITY, detail="you have not taken what you asked for"))
            return
        held, scopes = found
        with trio.CancelScope() as scope:
            scopes.add(scope)
            try:
                leaves: tuple[bytes, ...] | None = None
                with trio.move_on_after(_LEAVES_S):
                    leaves = await held.wait_leaves()
                if leaves is None:
                    await dialogue.send(BlobGone(code=WireCode.NO_CAPACITY, detail="nothing of it is here yet"))
                    return
                told = set(held.pieces)
                await dialogue.send(BlobHave(leaves=leaves, held=bitmap(told, held.count)))
                await _Serving(self, stream.peer_id, dialogue, held, told).run()
            finally:
                scopes.discard(scope)
        if scope.cancelled_caught:
            await stream.reset()

    async def pace(self, peer: PeerId, size: int) -> None:
        """`peer` was sent so many bytes: wait until it may be sent more."""
        limits, now = self.limits, trio.current_time()
        left, at = self._buckets.pop(peer, (float(limits.burst_bytes), now))
        left = min(limits.burst_bytes, left + (now - at) * limits.peer_bytes_per_s) - size
        self._buckets[peer] = (left, now)
        if len(self._buckets) > _MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if left < 0:
            await trio.sleep(-left / limits.peer_bytes_per_s)

    @asynccontextmanager
    async def turn(self, peer: PeerId, copies: Callable[[], int]) -> AsyncGenerator[None]:
        """What is held while a piece is sent; `copies` says how often the piece was sent that would be next. A peer
        that takes none holds one turn of all, and gets no other for a while."""
        async with self._peer_turns.setdefault(peer, trio.Lock()), self._turns.turn(copies):
            try:
                yield
            except RemoteProtocolError as exc:
                if exc.code is WireCode.STALLED:
                    count, _ = self._stalls.pop(peer, (0, 0.0))
                    self._stalls[peer] = (count + 1, trio.current_time() + _STALLED_S)
                    if len(self._stalls) > _MAX_BUCKETS:
                        self._stalls.popitem(last=False)
                raise

    def _has_stalled(self, peer: PeerId) -> bool:
        count, until_s = self._stalls.get(peer, (0, 0.0))
        return count >= _STALLS and trio.current_time() < until_s


class _Turns:
    """So many pieces are sent at a time. A piece that nobody was sent comes first: those who wait for another copy of
    one mostly get it from each other meanwhile."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._waiting: list[tuple[float, Callable[[], int], trio.Event]] = []  # in the order in which they came

    @asynccontextmanager
    async def turn(self, copies: Callable[[], int]) -> AsyncGenerator[None]:
        await trio.lowlevel.checkpoint()
        if self._free:
            self._free -= 1
        else:
            entry = (trio.current_time(), copies, trio.Event())
            self._waiting.append(entry)
            try:
                await entry[2].wait()
            except trio.Cancelled:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                else:
                    self._pass_on()  # it had been given the turn just then
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        at = 0
        if trio.current_time() - self._waiting[0][0] < _AGED_S:
            at = min(range(len(self._waiting)), key=lambda place: (self._waiting[place][1](), place))
        self._waiting.pop(at)[2].set()


class _Serving:
    """One peer that gets one blob."""

    def __init__(self, server: BlobServer, peer: PeerId, dialogue: Dialogue, held: HeldBlob, told: set[int]) -> None:
        self.server = server
        self.peer = peer
        self.dialogue = dialogue
        self.held = held
        self.told = told
        self.queue: list[int] = []
        self.refused: list[tuple[int, WireCode]] = []
        self.wake = trio.Event()

    async def run(self) -> None:
        self.held.watchers.add(self._notify)
        try:
            with single_error(ProtocolError, StreamError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell)
                    nursery.start_soon(self._send)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self.held.watchers.discard(self._notify)
            for index in self.queue:
                self.held.given[self.peer, index] -= 1  # it was not sent

    def _notify(self) -> None:
        event, self.wake = self.wake, trio.Event()
        event.set()

    async def _read(self) -> None:
        while self.dialogue.connection.state is BlobState.OPEN:
            match await self.dialogue.receive(stall_s=_IDLE_S):
                case BlobGet(index=index):
                    if self.server.draining and not self.held.origin:
                        self.refused.append((index, WireCode.DRAINING))
                    elif self.held.given[self.peer, index] >= self.server.limits.repeats:
                        self.refused.append((index, WireCode.OVERSIZED))
                    else:
                        self.held.given[self.peer, index] += 1  # now: several streams of one peer may ask at once
                        self.queue.append(index)
                case BlobDrop(index=index):
                    if index in self.queue:
                        self.queue.remove(index)
                        self.held.given[self.peer, index] -= 1
                        self.refused.append((index, WireCode.CANCELLED))
                case _:
                    return
            self._notify()

    async def _tell(self) -> None:
        """Say which pieces are not sent, and which are here that were not."""
        while True:
            wake = self.wake
            while self.refused:
                index, code = self.refused.pop(0)
                await self.dialogue.send(BlobDropped(index=index, code=code))
            for index in sorted(self.held.pieces - self.told):
                self.told.add(index)
                await self.dialogue.send(BlobHeld(index=index))
            await wake.wait()

    def _next(self) -> int | None:
        """Of the pieces that are asked for the one that was sent least often."""
        return min(self.queue, key=lambda index: self.held.sent[index], default=None)

    def _copies(self) -> int:
        index = self._next()
        return 0 if index is None else self.held.sent[index]

    async def _send(self) -> None:
        while True:
            wake = self.wake
            if not self.queue:
                await wake.wait()
                continue
            async with self.server.turn(self.peer, self._copies):
                index = self._next()
                if index is None:  # what was asked for is dropped meanwhile
                    continue
                try:
                    data = self.held.read(index)
                except ValueError:  # its content was closed just now, and this stream with it
                    return
                self.queue.remove(index)
                self.held.sent[index] += 1
                self.server.sent_bytes += len(data)
                await self.dialogue.send(BlobPiece(index=index, data=data))
            await self.server.pace(self.peer, len(data))
