"""The requester's side of work in rounds at one provider: as for chunks, and states on demand.

A result is a list of digests. What they stand for stays at the provider until it is asked for: around a round that is
checked, and before anything is paid the state that its last round left, so that the work can go on elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.errors import TaskRefused
from p2pcompute_protocols.errors import RemoteProtocolError, WireCode
from p2pcompute_protocols.negotiation import Agreement
from p2pcompute_protocols.task import GetState, ResultStart, StateData, StateGone, StateStart, TaskState
from p2pcompute_protocols.wire import Record
from p2pcompute_protocols.work import RoundWork, state_digest

from ._api import RequesterAccount
from ._link import MIN_BYTES_PER_S, LiarError, Link, ReceivedChunk
from ._link_hooks import LinkHooks
from ._round_work import StateBytes
from ._scheduler import ChunkScheduler

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay

__all__ = ["RoundLink"]

_GRACE_S: Final = 10.0
Secured = Callable[[int, StateBytes], None]


@dataclass(slots=True)
class _Asked:
    number: int
    digest: bytes
    came: trio.Event = field(default_factory=trio.Event)
    state: StateBytes | None = None


class RoundLink(Link):
    """Works with one provider until all rounds are done or the provider fails.

    Attributes:
        digests: of the states after the rounds that have come, the first round's first.
        receipts: by index, the receipts of the chunks that are checked, with their digests.
        kept: the last state that is here, and paid or about to be, and the number of rounds before it.
    """

    def __init__(
        self,
        overlay: Overlay,
        agreement: Agreement,
        account: RequesterAccount,
        start: StateBytes,
        blobs: Mapping[bytes, bytes],
        hooks: LinkHooks,
        *,
        secured: Secured,
    ) -> None:
        work = agreement.terms.work
        assert isinstance(work, RoundWork)  # as was ordered
        super().__init__(overlay, agreement, account, ChunkScheduler(work.chunks), blobs, hooks)
        self.rounds = work
        self.connection.chunk_rounds = work.rounds_per_chunk
        self.connection.state_arrays = tuple(array.nbytes for array in work.state)
        self.digests: list[bytes] = []
        self.receipts: dict[int, tuple[bytes, bytes]] = {}
        self.kept: tuple[int, StateBytes] = (0, start)
        self._secured = secured
        self._asked: deque[_Asked] = deque()
        self._saying = trio.Lock()

    def digest(self, number: int) -> bytes:
        """The digest of the state after `number` rounds, as the provider has receipted it."""
        return self.digests[number - 1] if number else self.rounds.first_state

    def take(self, index: int, output: bytes | memoryview) -> None:
        """The digests of a chunk have come; chunks come in order. Of earlier ones but the last no receipt is kept
        here: whoever is found wrong is so in this one."""
        for old in [one for one in self.receipts if one < index - 1]:
            del self.receipts[old]
        data = bytes(output)
        self.digests.extend(data[at : at + 32] for at in range(0, len(data), 32))

    async def state(self, number: int) -> StateBytes:
        """The state after `number` rounds, with the digest that was receipted.

        Raises:
            RemoteProtocolError: the provider does not give it (STALLED, UNKNOWN_CHUNK), or gives another (BAD_DIGEST).
        """
        if number == self.kept[0]:
            return self.kept[1]
        asked = _Asked(number, self.digest(number))
        async with self._saying:  # answers come in the order of the questions
            self._asked.append(asked)
            await self.dialogue.send(GetState(state=number))
        # It answers between chunks, and may have to compute it again.
        size = self.rounds.state_bytes
        limit = self.agreement.terms.chunk_timeout_ms / 1000 * 3 + _GRACE_S + 2 * size / MIN_BYTES_PER_S
        with trio.move_on_after(limit):
            await asked.came.wait()
        if asked.state is None:
            raise RemoteProtocolError(f"state {number} did not come in {limit:.0f} s", code=WireCode.STALLED)
        return asked.state

    async def _result(self, start: ResultStart) -> ReceivedChunk:
        received = await super()._result(start)
        self.receipts[received.index] = (received.receipt, bytes(received.output))
        return received

    async def _other(self, message: Record) -> None:
        match message:
            case StateStart():
                await self._take_state(message)
            case StateGone():
                known = message.code in WireCode._value2member_map_
                raise RemoteProtocolError(
                    f"the provider does not give state {message.state}: {message.detail}",
                    code=WireCode(message.code) if known else WireCode.INTERNAL,
                )
            case _:
                await super()._other(message)

    async def _take_state(self, start: StateStart) -> None:
        asked = self._asked.popleft()
        if state_digest(start.arrays) != asked.digest:
            raise RemoteProtocolError("a state is not the one that was receipted", code=WireCode.BAD_DIGEST)
        arrays = [bytearray(size) for size in self.connection.state_arrays]
        place = at = 0
        with trio.move_on_after(_GRACE_S + self.rounds.state_bytes / MIN_BYTES_PER_S) as scope:
            while place < len(arrays):
                data = (await self.dialogue.expect(StateData, stall_s=_GRACE_S)).data
                done = 0
                while done < len(data):
                    count = min(len(data) - done, len(arrays[place]) - at)
                    arrays[place][at : at + count] = data[done : done + count]
                    done, at = done + count, at + count
                    if at == len(arrays[place]):
                        place, at = place + 1, 0
        if scope.cancelled_caught:
            raise RemoteProtocolError("a state came too slowly", code=WireCode.STALLED)
        for array, due in zip(arrays, start.arrays, strict=True):
            if hashlib.sha256(array).digest() != due:
                raise RemoteProtocolError("an array is not what its digest says", code=WireCode.BAD_DIGEST)
        asked.state = StateBytes(arrays=tuple(arrays), digests=start.arrays, digest=asked.digest)
        self._last_progress = self._answered = trio.current_time()
        asked.came.set()

    async def _keep(self) -> None:
        """Have the state behind the last checked chunk, before it is paid."""
        if not self._checked or self.connection.state is not TaskState.RUNNING:
            return
        first, rounds = self.rounds.chunk_range(self._checked[-1][0].index)
        end = first + rounds
        if end > self.kept[0]:
            state = await self.state(end)
            self.kept = (end, state)
            self._secured(end, state)

    def _is_kept(self, index: int) -> bool:
        first, rounds = self.rounds.chunk_range(index)
        return first + rounds <= self.kept[0]

    def come_to_an_end(self) -> None:
        """Assign no more chunks; those that are assigned are still checked and paid."""
        self.scheduler.cut()
        self._wake.set()

    def condemn(self, lie: LiarError) -> None:
        """It was found lying by what another provider says: nothing more is accepted of it."""
        self.lie = lie
        self._checked.clear()

    def fail(self, reason: str) -> None:
        """A chunk did not come to a result: no later one can."""
        raise TaskRefused(f"{self.provider} failed: {reason}")
