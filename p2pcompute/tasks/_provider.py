"""The provider's side of tasks: who is served, and what all of them share."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute._rates import Buckets
from p2pcompute.errors import StreamError
from p2pcompute_protocols import task
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.errors import RemoteProtocolError
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_protocols.work import ProgramRef, ProgramWork, Work

from ._api import ChunkRun, ProviderBooks, Workers
from ._disputes import DisputeService
from ._fetching import BlobExchange
from ._inputs import KeptInputs
from ._meter import UNPAID
from ._places import Guest, Places
from ._provider_session import Session
from ._round_provider import RoundFault
from ._turns import Turns
from ._usage import ActiveTask, Usage

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, OverlayStream

__all__ = ["OutputFault", "TaskService"]

_log = logging.getLogger("p2pcompute.tasks")

_NEWCOMERS_BYTES: Final = 2**32  # of inputs that newcomers' tasks hold at a time

OutputFault = Callable[[bytes, int], bytes]  # (output bytes, chunk index) -> what is sent and signed; for tests


@dataclass(slots=True, kw_only=True)
class TaskService:
    """Serves task streams. `slots` chunks are computed at once over all tasks; `guest` says who a peer is.

    Known peers are computed for first, and their compilations wait for no newcomer's. `newcomers_bytes` is what the
    tasks of newcomers may hold of inputs, all together. `programs` are those that this node's owner allows, each with
    the workers that have it loaded; a program runs on one thread, whose part of `score_milli` is `thread_milli`.
    """

    overlay: Overlay
    network: str
    signer: Signer
    workers: Workers
    books: ProviderBooks
    now_ms: Callable[[], int]
    slots: Turns
    guest: Callable[[PeerId], Awaitable[Guest]]
    max_tasks: int = 16
    score_milli: int = 1_000
    thread_milli: int = 1_000
    programs: Mapping[ProgramRef, Workers] = field(default_factory=dict)
    newcomers_bytes: int = _NEWCOMERS_BYTES
    fault: OutputFault | None = None
    computed: Callable[[TaskId, ChunkRun], None] = lambda _task, _run: None  # told of each chunk that is computed
    round_fault: RoundFault | None = None
    draining: bool = False
    active: dict[TaskId, ActiveTask] = field(default_factory=dict)
    used: Usage = field(default_factory=Usage)  # by all chunks of all tasks
    disputes: DisputeService = field(init=False)
    places: Places = field(init=False)
    compilers: Turns = field(init=False)
    newcomers_hold: int = field(init=False, default=0)
    kept: KeptInputs = field(default_factory=KeptInputs)
    exchange: BlobExchange | None = None  # where inputs may come from other providers as well
    unpaid: Buckets[PeerId] = field(default_factory=lambda: Buckets(UNPAID, trio.current_time))
    _compiling: dict[PeerId, trio.Lock] = field(default_factory=dict)
    _sessions: set[Session] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.disputes = DisputeService(
            overlay=self.overlay, network=self.network, signer=self.signer, now_ms=self.now_ms
        )
        self.places = Places(self.max_tasks)
        self.compilers = Turns(self.slots.total, apart=True)

    def workers_for(self, work: Work) -> Workers:
        """Where the work is done."""
        return self.programs[work.program] if isinstance(work, ProgramWork) else self.workers

    def speed_milli(self, work: Work) -> int:
        """What the work may use of a slot, in thousandths of a reference core."""
        return self.thread_milli if isinstance(work, ProgramWork) else self.score_milli

    @asynccontextmanager
    async def compile_turn(self, guest: Guest) -> AsyncGenerator[None]:
        """Wait until `guest` may compile: as many known peers do at once as there are slots, as many newcomers, and
        one task of each peer."""
        peer = guest.peer
        lock = self._compiling.setdefault(peer, trio.Lock())
        try:
            async with lock, self.compilers.turn(known=guest.known):
                yield
        finally:
            if not lock.locked():
                self._compiling.pop(peer, None)

    async def has_room(self, peer: PeerId) -> bool:
        """Whether a task of `peer` would be admitted now."""
        return not self.draining and self.places.has_room(await self.guest(peer))

    def register(self) -> None:
        """Serve task streams from now on."""
        self.overlay.handle(task.PROTOCOL_ID, self._serve)
        self.disputes.register()

    async def _serve(self, stream: OverlayStream) -> None:
        session = Session(self, stream)
        self._sessions.add(session)
        try:
            await session.run()
        except RemoteProtocolError as exc:
            _log.warning("task with %s ended: %s", stream.peer_id, exc)
            stream.blame(exc)
            await stream.reset()
        except StreamError as exc:
            _log.info("task with %s ended: the stream broke (%s)", stream.peer_id, exc)
        finally:
            self._sessions.discard(session)
            session.leave()

    def say_farewell(self) -> None:
        """Take no more work, and end every task with the word that this provider leaves. What was computed stays
        owed."""
        self.draining = True
        for session in self._sessions:
            session.say_farewell()
