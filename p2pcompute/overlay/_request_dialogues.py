"""Dialogues of several steps in requests: what a stream of its own would carry, without opening one.

A dialogue whose sides alternate, the requester first, needs no stream: each of its steps is a request. Both ends are
byte streams to those who speak, so that whatever runs on a stream runs on them. `protocols/request/README.md` has the
wire form under "Dialogues".
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from p2pcompute.errors import OverlayError, StreamError
from p2pcompute_protocols.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId

from ._api import MAX_INBOUND_STREAMS_PER_PEER, StreamReset
from ._blame import is_offence

if TYPE_CHECKING:
    from ._requests import Requests

__all__ = ["AskedDialogue", "DialogueHandler", "Dialogues", "ServedDialogue"]

_log = logging.getLogger(__name__)

HEAD: Final = struct.Struct("!QB")  # which dialogue, and which step of it
MAX_DIALOGUES: Final = 512  # of one protocol, for all peers together: more than there can be connections
MAX_STEPS: Final = 255
STEP_S: Final = 60.0  # what the peer may take for one step, where nobody waits a shorter time


class AskedDialogue:
    """The requester's end: what was said since the last answer goes out when an answer is waited for."""

    def __init__(self, requests: Requests, peer_id: PeerId, protocol: str, number: int) -> None:
        self.peer_id = peer_id
        self.protocol = protocol
        self._requests = requests
        self._number = number
        self._step = 0
        self._said = b""
        self._blamed = False

    async def send_all(self, data: bytes) -> None:
        """Say `data`; it goes out with the next `receive_some`."""
        await trio.lowlevel.checkpoint()
        self._said += data

    async def receive_some(self, max_bytes: int = 0) -> bytes:  # noqa: ARG002 - an answer comes whole
        """The answer to what was said, whole; b"" where the peer has ended the dialogue.

        Raises:
            OverlayError, LocalProtocolError: as `Requests.ask`.

        Cancellation: the step is lost, and with it the dialogue.
        """
        if not self._said or self._step > MAX_STEPS:
            raise StreamReset("nothing was said that could be answered")
        body, self._said = HEAD.pack(self._number, self._step) + self._said, b""
        self._step += 1
        return await self._requests.ask(self.peer_id, self.protocol, body, timeout_s=STEP_S)

    def blame(self, exc: ProtocolError) -> None:
        """Hold against the peer what it said wrongly. Once for a dialogue."""
        if is_offence(exc) and not self._blamed:
            self._blamed = True
            self._requests.overlay.blame(self.peer_id, exc)

    def leave(self) -> None:
        """Say that nothing more comes, where the peer may wait for it. Waits for nobody and never raises."""
        if 0 < self._step <= MAX_STEPS:
            body, self._step = HEAD.pack(self._number, self._step), MAX_STEPS + 1
            self._requests.start(self._end, body)

    async def _end(self, body: bytes) -> None:
        try:
            await self._requests.ask(self.peer_id, self.protocol, body)
        except (OverlayError, LocalProtocolError) as exc:
            _log.debug("%s was not told that a dialogue is over: %s", self.peer_id, exc)


class _Question:
    """A step that waits for its answer."""

    def __init__(self) -> None:
        self.answer = bytearray()
        self.failure: LocalProtocolError | RemoteProtocolError | None = None
        self.done = trio.Event()


class ServedDialogue:
    """The provider's end, for the handler: what it says until it reads again is the answer."""

    def __init__(self, peer_id: PeerId, protocol: str, on_blame: Callable[[PeerId, ProtocolError], None]) -> None:
        self.peer_id = peer_id
        self.protocol = protocol
        self._on_blame = on_blame
        self._blamed = False
        self._heard = b""
        self._steps = 0
        self._over = False
        self._question: _Question | None = None
        self._news = trio.Event()

    async def step(self, number: int, body: bytes) -> bytes:
        """The answer to step `number`; the handler is at work in its own task.

        Cancellation: the handler goes on, and what it says is lost.
        """
        if not body:  # the requester leaves, whatever it was waiting for
            self._over = True
            self._settle(LocalProtocolError("the requester has left the dialogue", code=WireCode.CANCELLED))
            self._news.set()
            await trio.lowlevel.checkpoint()
            return b""
        if number != self._steps or self._question is not None:
            raise RemoteProtocolError("a step of a dialogue out of its turn", code=WireCode.OUT_OF_ORDER)
        self._steps += 1
        question = self._question = _Question()
        self._heard = body
        self._news.set()
        try:
            await question.done.wait()
        finally:
            if self._question is question:
                self._question = None
        if question.failure is not None:
            raise question.failure
        return bytes(question.answer)

    def _settle(self, failure: LocalProtocolError | RemoteProtocolError | None) -> None:
        question, self._question = self._question, None
        if question is not None:
            question.failure = failure
            question.done.set()

    async def receive_some(self, max_bytes: int = 0) -> bytes:  # noqa: ARG002 - a step comes whole
        """What the requester says next, after it was given what was said since; b"" once it has left."""
        await trio.lowlevel.checkpoint()
        if not self._heard and self._question is not None and not self._over:
            empty = RemoteProtocolError("a step of a dialogue is not a whole message")
            self._settle(None if self._question.answer else empty)
        while not self._heard and not self._over:
            self._news = trio.Event()
            await self._news.wait()
        heard, self._heard = self._heard, b""
        return heard

    async def send_all(self, data: bytes) -> None:
        """Say `data` in answer to what was heard. Raises `StreamReset` where nobody waits for it any more."""
        await trio.lowlevel.checkpoint()
        if self._question is None:
            raise StreamReset("nobody waits for an answer any more")
        self._question.answer += data

    def blame(self, exc: ProtocolError) -> None:
        """Hold against the peer what it said wrongly. Once for a dialogue."""
        if is_offence(exc) and not self._blamed:
            self._blamed = True
            self._on_blame(self.peer_id, exc)

    async def reset(self) -> None:
        """The dialogue went wrong; whose fault that is, `blame` is told."""
        self._over = True
        self._settle(RemoteProtocolError("a dialogue was broken", code=WireCode.CANCELLED))
        await trio.lowlevel.checkpoint()

    def end(self, failure: LocalProtocolError) -> None:
        """The handler is done; `failure` is for a step that it has not answered."""
        self._over = True
        self._settle(None if self._question is not None and self._question.answer else failure)


DialogueHandler: TypeAlias = Callable[[ServedDialogue], Awaitable[None]]


class _Held:
    """A dialogue that is under way, and its handler's scope."""

    def __init__(self, dialogue: ServedDialogue) -> None:
        self.dialogue = dialogue
        self.scope = trio.CancelScope()


class Dialogues:
    """The dialogues of one protocol that peers have with us. `start` gives each a task, until its handler returns.

    A dialogue outlives the stream that it was begun on, so bounds of streams do not bound it. One peer has at most
    `MAX_INBOUND_STREAMS_PER_PEER`, all together `MAX_DIALOGUES`. Where these are taken, the peer that has most gives up
    its oldest one for who has fewer, so a crowd does not keep out a peer that has none.
    """

    def __init__(
        self,
        protocol: str,
        handler: DialogueHandler,
        start: Callable[..., None],
        on_blame: Callable[[PeerId, ProtocolError], None],
    ) -> None:
        self._protocol = protocol
        self._on_blame = on_blame
        self._handler = handler
        self._start = start
        self._open: dict[tuple[PeerId, int], _Held] = {}  # the oldest first
        self._count: Counter[PeerId] = Counter()

    async def answer(self, peer: PeerId, body: bytes) -> bytes:
        """A request's answer; a `RequestHandler`."""
        if len(body) < HEAD.size:
            raise RemoteProtocolError("a step of a dialogue without its number")
        number, step = HEAD.unpack_from(body)
        key = (peer, number)
        held = self._open.get(key)
        if step:
            if held is None:
                raise LocalProtocolError("this dialogue is over; begin another", code=WireCode.EXPIRED)
            return await held.dialogue.step(step, body[HEAD.size :])
        if len(body) == HEAD.size:
            raise RemoteProtocolError("a dialogue that begins with nothing")
        if held is not None:
            raise RemoteProtocolError("a dialogue was begun twice", code=WireCode.REPLAYED)
        if self._count[peer] >= MAX_INBOUND_STREAMS_PER_PEER:
            raise LocalProtocolError("too many dialogues at once; end some", code=WireCode.NO_CAPACITY)
        if len(self._open) >= MAX_DIALOGUES:
            self._make_room(peer)
        held = self._open[key] = _Held(ServedDialogue(peer, self._protocol, self._on_blame))
        self._count[peer] += 1
        self._start(self._run, key, held)
        return await held.dialogue.step(0, body[HEAD.size :])

    def _make_room(self, peer: PeerId) -> None:
        greedy = max(self._count, key=self._count.__getitem__)
        if self._count[greedy] <= self._count[peer] + 1:
            raise LocalProtocolError("too many dialogues of all peers; try later", code=WireCode.NO_CAPACITY)
        oldest = next(key for key in self._open if key[0] == greedy)
        held = self._open[oldest]
        self._forget(oldest, held)
        held.scope.cancel()
        held.dialogue.end(LocalProtocolError("the dialogue made room for another peer's", code=WireCode.EXPIRED))

    def _forget(self, key: tuple[PeerId, int], held: _Held) -> None:
        if self._open.get(key) is not held:
            return  # it has made room, and its number may be another's by now
        del self._open[key]
        self._count[key[0]] -= 1
        if not self._count[key[0]]:
            del self._count[key[0]]

    async def _run(self, key: tuple[PeerId, int], held: _Held) -> None:
        failure = LocalProtocolError("the dialogue was ended", code=WireCode.INTERNAL)
        try:
            with held.scope:
                await self._handler(held.dialogue)
        except StreamError as exc:
            _log.info("a dialogue of %s ended: %s", self._protocol, exc)
        except Exception:  # noqa: BLE001 - whatever it is, only this dialogue comes to harm
            _log.warning("the handler of %s failed; its dialogue is over", self._protocol, exc_info=True)
        finally:
            self._forget(key, held)
            held.dialogue.end(failure)
