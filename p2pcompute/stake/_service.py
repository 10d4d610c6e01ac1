"""Who answers on stake streams: a provider with its pledges, an arbiter with its verdicts, or both."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._dialogue import STREAM_FAULTS, Dialogue
from p2pcompute._rates import Buckets, Rate, TokenBucket
from p2pcompute.errors import ChainError, ExecutionError, SandboxError, StorageError
from p2pcompute.payments import subnet_of
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_TEXT
from p2pcompute_protocols.stake import (
    PROTOCOL_ID,
    Accuse,
    CardGiven,
    CardQuery,
    EvidenceEnd,
    EvidencePiece,
    Pledge,
    Pledged,
    Proceed,
    StakeConnection,
    StakeRefusal,
    StrictGiven,
    StrictQuery,
)
from p2pcompute_protocols.wire import Record

from ._arbiter import Arbiter
from ._pledges import Pledges

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, OverlayStream

__all__ = ["StakeService"]

_log = logging.getLogger("p2pcompute.stake")
_QUESTION_S: Final = 30.0
_MOST_STREAMS: Final = 64
_MOST_OF_A_PEER: Final = 8
_MOST_QUESTIONS: Final = 16  # on one stream; nodes of ours ask one
# Questions that have the chain or the disk asked, or something signed.
_OF_PEER: Final = Rate(per_s=2, burst=64)
_OF_AGREED: Final = Rate(per_s=32, burst=512)  # of all peers with an agreement that names arbiters
_OF_STRANGERS: Final = Rate(per_s=4, burst=64)  # of all others: peer IDs cost nothing, so they share what is theirs
_SUBNETS: Final = 4  # that it takes to use up what peers share
_FILE_S: Final = 180.0
_MOST_ACCUSING: Final = 2  # files that are taken in at a time
# A file makes room for another that has had so long, and would need so much longer at the pace it has come at.
_PACE_S: Final = 10.0
_SOON_S: Final = 30.0


class _Crowd:
    """A rate that peers share, of which one subnet has a quarter at most."""

    __slots__ = ("_all", "_of_subnet")

    def __init__(self, rate: Rate) -> None:
        self._all = TokenBucket(rate, 0.0)
        share = Rate(per_s=rate.per_s / _SUBNETS, burst=rate.burst / _SUBNETS)
        self._of_subnet = Buckets[str](share, trio.current_time)

    def take(self, subnet: str) -> bool:
        return self._of_subnet.take(subnet) and self._all.take(trio.current_time())


class _Upload:
    """Evidence that is being taken in."""

    def __init__(self, size: int) -> None:
        self.scope = trio.CancelScope(deadline=trio.current_time() + _FILE_S)  # however regularly it drips
        self.data = bytearray()
        self._size = size
        self._began = trio.current_time()

    @property
    def left_s(self) -> float:
        """How much longer it will take, as it has come until now."""
        age_s = trio.current_time() - self._began
        if age_s < _PACE_S:
            return 0.0
        return (self._size - len(self.data)) * age_s / max(1, len(self.data))


@dataclass(slots=True, kw_only=True)
class StakeService:
    """Answers what it can; either part may be missing.

    One stream is for `_MOST_QUESTIONS` questions. What a peer asks beyond its rate, or all of its kind together beyond
    theirs, is refused with NO_CAPACITY and costs nothing more. Where there are `_MOST_STREAMS`, the one that has asked
    nothing for the longest makes room for a new one: peer IDs cost nothing, and neither does holding a stream.
    """

    overlay: Overlay
    pledges: Pledges | None = None
    arbiter: Arbiter | None = None
    _streams: Counter[str] = field(default_factory=Counter[str])
    _silent: dict[trio.CancelScope, None] = field(default_factory=dict[trio.CancelScope, None])  # the longest first
    _uploads: list[_Upload] = field(default_factory=list[_Upload])
    _of_peer: Buckets[str] = field(default_factory=lambda: Buckets(_OF_PEER, trio.current_time))
    _of_agreed: _Crowd = field(default_factory=lambda: _Crowd(_OF_AGREED))
    _of_strangers: _Crowd = field(default_factory=lambda: _Crowd(_OF_STRANGERS))

    def register(self) -> None:
        """Answer stake streams from now on."""
        self.overlay.handle(PROTOCOL_ID, self.serve_stream)

    async def serve_stream(self, stream: OverlayStream) -> None:
        """One stream, until its peer closes it."""
        peer = stream.peer_id
        if self._streams[peer] >= _MOST_OF_A_PEER or not self._has_room():
            await stream.reset()
            return
        self._streams[peer] += 1
        try:
            await self._serve(stream)
        except RemoteProtocolError as exc:
            _log.info("a stake stream with %s ended: %s", stream.peer_id, exc)
            await stream.reset()
        except STREAM_FAULTS as exc:
            _log.info("a stake stream with %s ended: %s", stream.peer_id, exc)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    async def _serve(self, stream: OverlayStream) -> None:
        dialogue = Dialogue(StakeConnection(Role.PROVIDER), stream)
        for _ in range(_MOST_QUESTIONS):
            asked = await self._question(dialogue)
            if asked is None:
                await stream.reset()
                return
            if isinstance(asked, StreamEnded):
                return
            try:
                self._admit(stream.peer_id, asked)
                answer = await self._answer(dialogue, stream, asked)
            except LocalProtocolError as exc:
                answer = StakeRefusal(code=exc.code, detail=_told(str(exc)))
            except (ChainError, ExecutionError, SandboxError, StorageError, ValueError) as exc:
                _log.warning("a question about stakes by %s is not answered: %s", stream.peer_id, exc)
                answer = StakeRefusal(code=WireCode.INTERNAL, detail="this node can't answer now")
            await dialogue.send(answer)

    def _has_room(self) -> bool:
        if self._streams.total() < _MOST_STREAMS:
            return True
        silent = next(iter(self._silent), None)
        if silent is None:
            return False
        del self._silent[silent]
        silent.cancel()
        return True

    async def _question(self, dialogue: Dialogue) -> Record | None:
        """What is asked next; None where nothing is, and another stream needs the place."""
        with trio.CancelScope() as scope:
            self._silent[scope] = None
            try:
                return await dialogue.receive(stall_s=_QUESTION_S)
            finally:
                self._silent.pop(scope, None)
        return None

    def _admit(self, peer: PeerId, asked: Record) -> None:
        if isinstance(asked, CardQuery):
            return  # what is sent is kept
        agreed = self.pledges is not None and self.pledges.is_agreed(peer)
        shared = self._of_agreed if agreed else self._of_strangers
        subnet = subnet_of(self.overlay.remote_address(peer) or "", peer)
        if not self._of_peer.take(peer) or not shared.take(subnet):
            raise LocalProtocolError("too much was asked of late; try again later", code=WireCode.NO_CAPACITY)

    async def _answer(self, dialogue: Dialogue, stream: OverlayStream, asked: Record) -> Record:
        match asked:
            case CardQuery() if self.arbiter is not None:
                return CardGiven(card=await self.arbiter.card())
            case Pledge() if self.pledges is not None:
                return Pledged(signature=await self.pledges.pledge(stream.peer_id, asked))
            case StrictQuery() if self.pledges is not None:
                output, signature = await self.pledges.strict_receipt(stream.peer_id, asked)
                return StrictGiven(output=output, signature=signature)
            case Accuse() if self.arbiter is not None:
                return await self._accused(self.arbiter, dialogue, asked)
            case CardQuery() | Accuse():
                raise LocalProtocolError("this node is no arbiter", code=WireCode.UNSUPPORTED)
            case _:
                raise LocalProtocolError("this node pledges nothing", code=WireCode.UNSUPPORTED)

    async def _accused(self, arbiter: Arbiter, dialogue: Dialogue, asked: Accuse) -> Record:
        await arbiter.admit(asked)
        upload = self._taken_in(asked.size)
        try:
            with upload.scope:
                await dialogue.send(Proceed())
                await _fill(upload.data, dialogue)
        finally:
            self._uploads.remove(upload)
        if upload.scope.cancelled_caught:
            raise RemoteProtocolError("the evidence came too slowly", code=WireCode.STALLED)
        return await arbiter.judge(asked, bytes(upload.data))

    def _taken_in(self, size: int) -> _Upload:
        """A place for a file. One that drips makes room: terms that both parties have signed are shown by whoever has
        seen them, so whose time that would be can't be told."""
        if len(self._uploads) >= _MOST_ACCUSING:
            slow = [upload for upload in self._uploads if upload.left_s > _SOON_S and not upload.scope.cancel_called]
            if not slow:
                raise LocalProtocolError("other evidence is being taken; try again later", code=WireCode.NO_CAPACITY)
            max(slow, key=lambda upload: upload.left_s).scope.cancel()
        self._uploads.append(upload := _Upload(size))
        return upload


async def _fill(data: bytearray, dialogue: Dialogue) -> None:
    while True:
        piece = await dialogue.expect(EvidencePiece, EvidenceEnd, stall_s=_QUESTION_S)
        if isinstance(piece, EvidenceEnd):
            return
        data += piece.data


def _told(text: str) -> str:
    """As a message can hold it."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.encode()[: MAX_TEXT - 4].decode("utf-8", "ignore")
