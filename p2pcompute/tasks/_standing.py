"""The calls that wait for a provider, and which of their chunks it gets next: plain objects without I/O or clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from p2pcompute.errors import BudgetError, ChunkFailed, P2PComputeError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_INFLIGHT_CHUNKS
from p2pcompute_protocols.money import owed_uusd
from p2pcompute_protocols.task import CallArg, CallInputs

from ._meter import units_of
from ._scheduler import ChunkScheduler

__all__ = ["CallQueue", "CallScheduler", "PendingCall"]

_FAILURES: Final = 2  # of one call's chunks, before the call is given up


@dataclass(slots=True, kw_only=True, eq=False)
class PendingCall:
    """One call, from when it is asked for until all its chunks are here or it has failed.

    Attributes:
        args, blobs: its inputs as they go over the wire, and the bytes behind their digests.
        values: its inputs for a worker of our own, by position.
        chunks: how many it has.
        deliver: gets each checked chunk: its number in the call, its output, and who computed it.
    """

    args: tuple[CallArg, ...]
    blobs: Mapping[bytes, bytes]
    values: Mapping[int, Any]
    chunks: int
    deliver: Callable[[int, memoryview, PeerId], None]
    pending: deque[int] = field(init=False)
    done: dict[int, PeerId] = field(default_factory=dict)
    failures: int = 0
    failure: P2PComputeError | None = None
    withdrawn: bool = False
    over: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.pending = deque(range(self.chunks))

    def fail(self, error: P2PComputeError) -> None:
        """It has come to nothing."""
        if not self.over.is_set():
            self.failure = error
            self.pending.clear()
            self.over.set()

    def withdraw(self) -> None:
        """Nobody waits for it any more."""
        self.withdrawn = True
        self.pending.clear()
        self.over.set()


class CallQueue:
    """All calls of one hire that have chunks to give out, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[PendingCall] = deque()
        self.open: dict[PendingCall, None] = {}  # not over yet
        self.closed = False
        self.changed = trio.Event()

    def wake(self) -> None:
        """Something has changed: look again."""
        event, self.changed = self.changed, trio.Event()
        event.set()

    def put(self, call: PendingCall) -> None:
        """A call is asked for. Whoever gives it out has to be told."""
        self._waiting.append(call)
        self.open[call] = None

    def again(self, call: PendingCall, chunk: int) -> None:
        """A chunk is wanted again, before all others."""
        if call.over.is_set():
            return
        if not call.pending and call not in self._waiting:
            self._waiting.appendleft(call)
        call.pending.appendleft(chunk)

    def first(self) -> PendingCall | None:
        """The first call with a chunk to give out."""
        while self._waiting:
            call = self._waiting[0]
            if call.pending:
                return call
            self._waiting.popleft()
        return None

    def end(self, call: PendingCall) -> None:
        """A call is over."""
        self.open.pop(call, None)

    def fail(self, error: P2PComputeError) -> None:
        """None of the calls comes to anything."""
        for call in list(self.open):
            call.fail(error)
            self.end(call)


class CallScheduler(ChunkScheduler):
    """What one provider is given of a queue, by the numbers that chunks have in its agreement.

    Args:
        queue: shared with the agreements before and after this one.
        inputs: the calls of this agreement's connection.
        price_pusd, ceiling_uusd: the agreement's; what is given out never costs more.
        given_uusd: the budget of all agreements together, which the ceiling is what is left of.
    """

    def __init__(
        self, queue: CallQueue, inputs: CallInputs, *, price_pusd: int, ceiling_uusd: int, given_uusd: int
    ) -> None:
        super().__init__(0)
        self.queue = queue
        self.inputs = inputs
        self._price_pusd = price_pusd
        self._ceiling_uusd = ceiling_uusd
        self._given_uusd = given_uusd
        self._units = 0  # of what was given out and has not failed
        self._numbers: dict[PendingCall, int] = {}  # of calls that are not over
        self._calls: dict[int, PendingCall] = {}  # by number, those with a chunk under way
        self._next = 0
        self._under_way: dict[int, int] = {}  # by number of the chunk, its units
        self._since: dict[int, float] = {}  # of these
        self._under_way_of: dict[int, int] = {}  # how many, by number of the call
        self._delivered = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is under way and nothing more is to come, of this agreement."""
        if self._under_way:
            return False
        return self._next >= self.inputs.most or (self.queue.closed and self.queue.first() is None)

    @property
    def done(self) -> int:
        """How many chunks are done."""
        return self._delivered

    @property
    def used_up(self) -> bool:
        """Whether the agreement has no numbers left."""
        return self._next >= self.inputs.most

    def call_of(self, index: int) -> tuple[PendingCall, int]:
        """The call of a chunk that is under way, and the chunk's number in it."""
        number, chunk = divmod(index, self.inputs.work.chunks)
        return self._calls[number], chunk

    def take(self, provider: PeerId, now: float) -> int | None:  # noqa: ARG002  of one provider
        """The next chunk, or None where there is none now. A call is made before another one is taken from."""
        work = self.inputs.work
        while (call := self.queue.first()) is not None:
            number = self._numbers.get(call)
            if number is None or number < self.inputs.made - self.inputs.open_calls:
                if not self.inputs.has_room():
                    return None
                units = sum(units_of(work, work.chunk_range(chunk)[1]) for chunk in call.pending)
                if owed_uusd(self._units + units, self._price_pusd) > self._ceiling_uusd:
                    call.fail(_used_up(self._given_uusd))
                    self.queue.end(call)
                    continue
                number = self._numbers[call] = self._next
                self._next += 1
            chunk = call.pending.popleft()
            index = number * work.chunks + chunk
            self._calls[number] = call
            self._under_way[index] = units_of(work, work.chunk_range(chunk)[1])
            self._since[index] = now
            self._under_way_of[number] = self._under_way_of.get(number, 0) + 1
            self._units += self._under_way[index]
            return index
        return None

    def hedge_at(self, provider: PeerId) -> float | None:  # noqa: ARG002  there is nobody else
        """Nothing is given out twice."""
        return None

    def share(self, provider: PeerId, under_way: int) -> int:  # noqa: ARG002
        """Any number: there is nobody else."""
        return MAX_INFLIGHT_CHUNKS - under_way

    def ran_at(self, index: int, provider: PeerId) -> bool:  # noqa: ARG002
        """Whether the provider has the chunk now, or is to get it: not once nobody waits for its call."""
        return index in self._under_way and not self.call_of(index)[0].over.is_set()

    def ran(self, index: int, provider: PeerId, now: float) -> float:  # noqa: ARG002
        """For how many seconds the provider has had the chunk; 0 where it does not have it."""
        return max(0.0, now - self._since.get(index, now))

    def came(self, index: int, provider: PeerId, now: float) -> None:
        """A result is here and waits to be checked."""

    def _end(self, index: int) -> tuple[PendingCall, int] | None:
        if index not in self._under_way:
            return None
        call, chunk = self.call_of(index)
        del self._under_way[index], self._since[index]
        number = index // self.inputs.work.chunks
        self._under_way_of[number] -= 1
        if not self._under_way_of[number]:
            del self._under_way_of[number], self._calls[number]
        return call, chunk

    def give(self, index: int, output: memoryview, provider: PeerId) -> None:
        """A checked result: hand it to whoever waits for it."""
        ended = self._end(index)
        assert ended is not None  # it came, and was not given up since
        call, chunk = ended
        self._delivered += 1
        if not call.over.is_set():
            call.deliver(chunk, output, provider)
            call.done[chunk] = provider
            if len(call.done) == call.chunks:
                call.over.set()
        if call.over.is_set():
            self.queue.end(call)
            self._numbers.pop(call, None)

    def fail(self, index: int, provider: PeerId, *, for_good: bool) -> None:  # noqa: ARG002
        """A chunk came back without a result, or was not sent."""
        units = self._under_way.get(index, 0)
        ended = self._end(index)
        if ended is None:
            return
        self._units -= units
        call, chunk = ended
        if call.over.is_set():
            self._numbers.pop(call, None)
            number = index // self.inputs.work.chunks
            if number >= self.inputs.made and number not in self._calls:
                self._next = number  # it was never made: the next one has its number
        else:
            self.queue.again(call, chunk)
        self.queue.wake()

    def failed(self, index: int, reason: str) -> None:
        """A chunk failed at the provider. It is tried once more."""
        call, _ = self.call_of(index)
        call.failures += 1
        if call.failures >= _FAILURES:
            call.fail(
                ChunkFailed(
                    f"a call failed {call.failures} times, last with {reason}. The signed receipts are in the ledger; "
                    "run the kernel with these arguments locally to find out why"
                )
            )
            self.queue.end(call)

    def under_way_of(self, call: PendingCall) -> list[int]:
        """The chunks of a call that the provider has now."""
        return [index for index in self._under_way if self.call_of(index)[0] is call]

    def withdrawn(self, call: PendingCall) -> list[int]:
        """Nobody waits for a call any more: the chunks of it that the provider has, or is to get, now."""
        self._numbers.pop(call, None)
        return self.under_way_of(call)

    def lost(self, provider: PeerId) -> list[int]:
        """The provider is gone: what it was computing goes back. Gives the chunks."""
        mine = sorted(self._under_way, reverse=True)
        for index in mine:
            self.fail(index, provider, for_good=False)
        self._numbers.clear()
        return mine[::-1]

    def revoke(self, provider: PeerId) -> list[int]:
        """The provider lied: of calls that are not over everything goes back. Calls that are over were given away."""
        mine = self.lost(provider)
        for call in self.queue.open:
            for chunk in sorted((chunk for chunk, who in call.done.items() if who == provider), reverse=True):
                del call.done[chunk]
                self.queue.again(call, chunk)
        return mine


def _used_up(given_uusd: int) -> BudgetError:
    return BudgetError(
        f"with those before it this call could pass the budget of {given_uusd / 1e6:.6f} USD, and was not made; raise "
        "budget=… and hire again"
    )
