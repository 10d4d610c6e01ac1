"""Getting a blob from several holders at once: each piece is checked when it comes, and whoever sends a wrong one is
asked no more."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import Dialogue
from p2pcompute._groups import single_error
from p2pcompute.errors import OverlayError, P2PComputeError, StreamError
from p2pcompute.overlay import BULK_BYTES
from p2pcompute_protocols import blob
from p2pcompute_protocols.blob import (
    BlobConnection,
    BlobDone,
    BlobDrop,
    BlobDropped,
    BlobGet,
    BlobGone,
    BlobHave,
    BlobHeld,
    BlobPiece,
)
from p2pcompute_protocols.connection import Role
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_HOLDERS, MAX_PIECES_ASKED

from ._held import HeldBlob, digest_of
from ._picker import Picker, SourceState

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, OverlayStream

__all__ = ["BlobFetch", "FetchFailed", "Source", "WrongRoot"]

_log = logging.getLogger("p2pcompute.blobs")

_HAVE_S: Final = 30.0  # longer than a holder waits for the leaves itself
_PIECE_S: Final = 30.0  # between two pieces that one holder owes us
_CONNECT_S: Final = 10.0
_AGAIN_S: Final = 1.0  # before a holder that broke off is asked again; twice as long each time
_ATTEMPTS: Final = 4
_FAST_S: Final = 0.25  # a piece in less than that: more may be under way there
_FIRST_ASKED: Final = 2
_ORIGIN_ASKED: Final = 8
_HEAD_START_S: Final = 0.3  # of all others, before the origin is asked for what they may have


class FetchFailed(P2PComputeError):
    """Nobody gives the rest of a blob: all who were named are gone, or say that they have nothing."""

    exit_code = 9


class WrongRoot(P2PComputeError):
    """All pieces are those of the root, and together they are not the blob: who named the root was wrong."""

    exit_code = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Somebody who may have the blob, and where it may be reached beside the addresses that are known already."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    origin: bool = False


@dataclass(slots=True, eq=False)
class _Asked:
    """A source that is being asked."""

    source: Source
    state: SourceState
    dropped: set[int] = field(default_factory=set)  # of what is under way there: we have said that it is not needed
    heard_s: float = 0.0


class _LeftError(Exception):
    """This holder gives nothing more, and has said so."""


class BlobFetch:
    """Fills a `HeldBlob`.

    Args:
        overlay: the network.
        held: what is filled; what it has already is not asked for.
        ticket: what is shown to holders.
        rng: chooses among pieces that are equally good.
        stored: called with each new piece, in its place already; may wait, for a disk.

    Attributes:
        liars: holders that have broken the protocol, such as by a piece with other bytes.
        received: bytes that came from each peer, those that came twice as well.
    """

    def __init__(
        self,
        overlay: Overlay,
        held: HeldBlob,
        ticket: bytes,
        *,
        rng: random.Random | None = None,
        stored: Callable[[int, bytes | memoryview], Awaitable[None]] | None = None,
    ) -> None:
        self.held = held
        self.liars: set[PeerId] = set()
        self.received: dict[PeerId, int] = {}
        self._overlay = overlay
        self._want = held.name.want(ticket)
        self._rng = rng or random.Random()
        self._stored = stored
        self._known: dict[PeerId, Source] = {}
        self._working = 0
        self._storing = 0  # pieces on their way to the disk: the last one is to get there as well
        self._unheard: set[PeerId] = set()  # holders that have not said yet what they have
        self._nursery: trio.Nursery | None = None
        self._moved = trio.Event()
        self._picker: Picker

    def add(self, source: Source) -> None:
        """Ask this one as well, now or as soon as `run` is called. One that is known already, or more than
        MAX_HOLDERS beside the origin, are passed over."""
        if source.peer in self._known or source.peer == self._overlay.peer_id:
            return
        if not source.origin and sum(not known.origin for known in self._known.values()) >= MAX_HOLDERS:
            return
        self._known[source.peer] = source
        if self._nursery is not None:
            self._start(source)

    def _start(self, source: Source) -> None:
        assert self._nursery is not None
        self._working += 1
        if not source.origin:
            self._unheard.add(source.peer)
        self._nursery.start_soon(self._ask, source)

    async def run(self) -> None:
        """Return when all of the blob is here and its digest is right.

        Raises:
            FetchFailed: nobody is left who could give the rest.
            WrongRoot: the root is that of something else.

        Cancellation: what has come stays in `held`; another fetch goes on from there.
        """
        self._picker = Picker(self.held.count, self.held.pieces, rng=self._rng, now=trio.current_time())
        if not self.held.is_complete:
            with single_error(FetchFailed, P2PComputeError):
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for source in list(self._known.values()):
                        self._start(source)
                    while not self.held.is_complete or self._storing:
                        moved = self._moved
                        if not self._working:
                            raise FetchFailed(
                                f"{len(self.held.pieces)} of {self.held.count} pieces of an input came, and none of "
                                f"{len(self._known)} holders gives the rest"
                            )
                        await moved.wait()
                    nursery.cancel_scope.cancel()
            self._nursery = None
        if await digest_of(self.held.content, self.held.name.size) != self.held.name.digest:
            raise WrongRoot("an input's pieces are those that its requester named, and not those of its digest")

    async def _put(self, index: int, data: bytes | memoryview) -> None:
        self._storing += 1
        try:
            new = self.held.put(index, data)
            self._wake()
            if new and self._stored is not None:
                await self._stored(index, data)
        finally:
            self._storing -= 1
            self._wake()

    def _wake(self) -> None:
        event, self._moved = self._moved, trio.Event()
        event.set()

    async def _ask(self, source: Source) -> None:
        """Ask one holder, again where the stream broke, until it lies or gives nothing."""
        wait_s, attempts = _AGAIN_S, _ATTEMPTS
        try:
            while attempts:
                before = self.received.get(source.peer, 0)
                try:
                    await self._ask_once(source)
                except RemoteProtocolError as exc:
                    if exc.code is not WireCode.STALLED:
                        self.liars.add(source.peer)
                        _log.info("a holder of an input, %s, is asked no more: %s", source.peer, exc)
                        return
                    _log.debug("%s: %s", source.peer, exc)
                except _LeftError:
                    return
                except OverlayError as exc:
                    _log.debug("%s: %s", source.peer, exc)
                if self.received.get(source.peer, 0) > before:
                    wait_s, attempts = _AGAIN_S, _ATTEMPTS
                attempts -= 1
                self._heard(source)
                if attempts:
                    await trio.sleep(wait_s)
                wait_s *= 2
        finally:
            self._working -= 1
            self._heard(source)
            self._wake()

    def _heard(self, source: Source) -> None:
        """It has said what it has, or said nothing at its first chance."""
        if source.peer in self._unheard:
            self._unheard.remove(source.peer)
            self._wake()

    async def _reach(self, source: Source) -> None:
        if source.peer in self._overlay.peers():
            return
        for address in source.addresses:
            if not address.endswith(f"/p2p/{source.peer}"):  # a stranger's hint may not send us to somebody else
                continue
            try:
                with trio.fail_after(_CONNECT_S):
                    await self._overlay.connect(address)
                    return
            except trio.TooSlowError:
                continue
            except OverlayError as exc:
                _log.debug("%s: %s", address, exc)

    async def _ask_once(self, source: Source) -> None:
        await self._reach(source)
        bulk = self.held.name.size >= BULK_BYTES
        stream = await self._overlay.open_stream(source.peer, blob.PROTOCOL_ID, bulk=bulk)
        asked = _Asked(source, SourceState(origin=source.origin))
        connection = BlobConnection(Role.REQUESTER)
        dialogue = Dialogue(connection, stream, send_s=_PIECE_S)
        try:
            await dialogue.send(self._want)
            have = await dialogue.expect(BlobHave, BlobGone, stall_s=_HAVE_S)
            if isinstance(have, BlobGone):
                # Who is only just getting it may have some later.
                if have.code == WireCode.NO_CAPACITY:
                    raise StreamError(f"{source.peer} has nothing of it yet")
                raise _LeftError
            self.held.know(have.leaves)
            asked.state.held = connection.held
            self._picker.sources.append(asked.state)
            self._heard(source)
            self._wake()
            with single_error(ProtocolError, StreamError, OverlayError, _LeftError):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._request, asked, dialogue)
                    nursery.start_soon(self._watch, asked)
                    await self._receive(asked, dialogue)
        finally:
            self._picker.lost(asked.state)
            self._wake()
            await self._leave(dialogue, stream)

    async def _leave(self, dialogue: Dialogue, stream: OverlayStream) -> None:
        """Say goodbye where all has come and that goes at once; else the stream is reset."""
        with trio.CancelScope(shield=True):
            if self.held.is_complete and dialogue.connection.state is blob.BlobState.OPEN:
                with trio.move_on_after(0.5):
                    try:
                        await dialogue.send(BlobDone())
                    except (ProtocolError, OverlayError):
                        pass
                    else:
                        await stream.aclose()
                        return
            await stream.reset()

    async def _request(self, asked: _Asked, dialogue: Dialogue) -> None:
        """Keep as much under way as this holder is fast."""
        state = asked.state
        if state.origin:
            with trio.move_on_after(_HEAD_START_S):
                while self._unheard:
                    await self._moved.wait()
        while not self.held.is_complete:
            moved = self._moved
            for index in [index for index in state.asked if index not in asked.dropped]:
                if self._picker.is_needless(state, index):
                    asked.dropped.add(index)
                    await dialogue.send(BlobDrop(index=index))
            wanted, again_s = None, math.inf
            if len(state.asked) < self._depth(state):
                again_s = self._picker.look_again_s(state, trio.current_time())
                wanted = self._picker.pick(state, trio.current_time())
            if wanted is not None:
                if not state.origin:
                    self._wake()  # it may be under way at the origin, which is to drop it
                asked.dropped.discard(wanted)
                await dialogue.send(BlobGet(index=wanted))
                continue
            with trio.move_on_at(again_s):
                await moved.wait()

    async def _watch(self, asked: _Asked) -> None:
        """End it where a holder owes us pieces and sends none."""
        while True:
            await trio.sleep(_PIECE_S / 4)
            oldest = min(asked.state.asked.values(), default=None)
            if oldest is not None and trio.current_time() - max(oldest, asked.heard_s) >= _PIECE_S:
                raise StreamError(f"{asked.source.peer} has sent none of the pieces that it owes in {_PIECE_S:g} s")

    def _depth(self, state: SourceState) -> int:
        """How many pieces may be under way at one holder: few where each takes long, so that others may take them. The
        origin is to have a choice, what is to go first."""
        if state.origin:
            return _ORIGIN_ASKED
        if state.piece_s >= _FAST_S:
            return _FIRST_ASKED
        return max(_FIRST_ASKED, min(MAX_PIECES_ASKED, int(1 / max(state.piece_s, 1e-3))))

    async def _receive(self, asked: _Asked, dialogue: Dialogue) -> None:
        state, peer = asked.state, asked.source.peer
        while True:
            message = await dialogue.receive()
            now = asked.heard_s = trio.current_time()
            match message:
                case BlobPiece(index=index, data=data):
                    self.received[peer] = self.received.get(peer, 0) + len(data)
                    self._picker.came(state, index, now)
                    asked.dropped.discard(index)
                    await self._put(index, data)
                case BlobHeld():
                    self._wake()
                case BlobDropped(index=index, code=code):
                    ours = index in asked.dropped
                    asked.dropped.discard(index)
                    self._picker.drop(state, index)
                    self._wake()
                    if code != WireCode.CANCELLED or not ours:
                        raise _LeftError
                case _:
                    raise StreamError(f"{peer} closed a blob stream")
