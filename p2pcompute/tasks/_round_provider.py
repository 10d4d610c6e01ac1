"""The provider's side of work in rounds: a chunk is some rounds, its output the digests of their states.

The state goes from round to round here, and leaves for the requester only where it asks for one. States of as many
chunks as may be unpaid are kept, so that it may; where they are too many, every so manieth is, and the others are
computed again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import trio

from p2pcompute.errors import ExecutionError, WorkerTimeout
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.task import DATA_BYTES, StateData, StateGone, StateStart
from p2pcompute_protocols.work import RoundWork

from ._round_work import StateBytes, content_of, execution_steps, wipe

if TYPE_CHECKING:
    from p2pcompute._dialogue import Dialogue
    from p2pcompute.execution import SharedInput

    from ._api import RoundsRun, TaskWorker

__all__ = ["KEPT_BYTES", "RoundFault", "RoundStates", "RoundsWorker", "give_state"]

# Of the states of one task; those at the ends of unpaid chunks are kept in any case.
KEPT_BYTES: Final = 64 * 1024 * 1024
_OBJECT_BYTES: Final = 256  # that keeping an array takes beside its bytes: a state may be a byte, and rounds a million
_BATCH_BYTES: Final = 8 * 1024 * 1024  # of the states that a worker gives at once
_BATCH_ROUNDS: Final = 512
_REPEATS: Final = 3  # times the stride, for each chunk: rounds that are computed again for who asks for states

RoundFault = Callable[[int, list[bytearray]], Sequence[bytes | bytearray]]
"""(rounds done, arrays after them) -> the arrays that it says and goes on with; for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    outputs: tuple[bytes, ...]
    cpu_ns: int
    wall_ns: int
    device_ns: int = 0
    energy_mj: int | None = None


class RoundStates:
    """The states of one task that are kept, by how many of its rounds were done. A context manager: at its end they
    are overwritten.

    Args:
        work: the rounds.
        window: how many chunks may be unpaid.
        hold: called with how many bytes more are kept, or less; may refuse by raising.
    """

    def __init__(self, work: RoundWork, *, window: int, hold: Callable[[int], None]) -> None:
        self._work = work
        self._hold = hold
        self._kept: dict[int, StateBytes] = {}
        self._again: tuple[int, StateBytes] | None = None  # the last that was computed again
        self._repeated = 0
        self.window = window
        self._cost = work.state_bytes + _OBJECT_BYTES * (1 + len(work.state))
        unpaid = work.rounds_per_chunk * (window + 1) * self._cost
        self.stride = min(work.rounds_per_chunk, max(1, -(-unpaid // KEPT_BYTES)))
        self.done = 0  # rounds
        self.digests: list[bytes] = []  # of all states, the first one's first

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._kept):
            self._drop(number)
        if self._again is not None:
            wipe(self._again[1].arrays)

    def _drop(self, number: int) -> None:
        state = self._kept.pop(number)
        wipe(state.arrays)
        self._hold(-self._cost)

    def begin(self, blobs: Mapping[bytes, bytes | SharedInput]) -> None:
        """State 0 is here."""
        if not self._kept:
            self._keep(0, StateBytes.of(content_of(blobs[array.digest]) for array in self._work.state))
            self.digests.append(self._kept[0].digest)

    def _keep(self, number: int, state: StateBytes) -> None:
        self._hold(self._cost)
        self._kept[number] = state

    def add(self, state: StateBytes) -> None:
        """One more round is done."""
        before = self.done
        self._keep(before + 1, state)
        self.done += 1
        self.digests.append(state.digest)
        if before % self.stride and before % self._work.rounds_per_chunk and before in self._kept:
            self._drop(before)

    def forget_before(self, number: int) -> None:
        """Nobody may ask for earlier ones any more."""
        for old in [kept for kept in self._kept if kept < min(number, self.done)]:
            self._drop(old)

    def may_repeat(self, rounds: int) -> bool:
        """Take on so many rounds that are computed again, for nothing; False where that would be too many. Whoever asks
        for the states around a few rounds of each chunk stays within."""
        chunks = -(-self.done // self._work.rounds_per_chunk)
        if self._repeated + rounds > _REPEATS * self.stride * chunks:
            return False
        self._repeated += rounds
        return True

    def remember(self, number: int, state: StateBytes) -> None:
        """One that was computed again: the next one that is asked for may be near."""
        if self._again is not None:
            wipe(self._again[1].arrays)
        self._again = (number, state)

    def nearest(self, number: int) -> tuple[int, StateBytes] | None:
        """The kept state to come to `number` from, and its number; None where all are forgotten."""
        found = max((kept for kept in self._kept if kept <= number), default=None)
        if found is None:
            return None
        if self._again is not None and found < self._again[0] <= number:
            return self._again
        return found, self._kept[found]


async def give_state(dialogue: Dialogue, state: StateBytes | None, number: int, moved: Callable[[int], None]) -> None:
    """Send a state that the requester has asked for, or say that it was let go of. `moved` counts its bytes."""
    if state is None:
        detail = "it is of an earlier chunk than may be unpaid, and was let go of"
        await dialogue.send(StateGone(state=number, code=WireCode.UNKNOWN_CHUNK, detail=detail))
        return
    await dialogue.send(StateStart(state=number, arrays=state.digests))
    for array in state.arrays:
        for at in range(0, len(array), DATA_BYTES):
            await dialogue.send(StateData(data=memoryview(array)[at : at + DATA_BYTES]))
            moved(DATA_BYTES)


class RoundsWorker:
    """A worker that computes chunks of rounds, in the shape of one that computes blocks.

    Args:
        worker: compiles and runs.
        work: the rounds.
        states: where they are kept; a second worker goes on from there.
    """

    def __init__(
        self,
        worker: TaskWorker,
        work: RoundWork,
        states: RoundStates,
        *,
        fault: RoundFault | None = None,
    ) -> None:
        self._worker = worker
        self._work = work
        self._states = states
        self._fault = fault
        slot = max(1, work.state_bytes)
        self._batch = max(1, min(_BATCH_ROUNDS, _BATCH_BYTES // slot))

    async def compile_work(self, blobs: Mapping[bytes, bytes | SharedInput]) -> float:
        """Compile what a round is of; gives milliseconds. Raises as `TaskWorker.compile`."""
        steps, state, inputs = execution_steps(self._work, blobs)
        self._states.begin(blobs)
        return await self._worker.compile_rounds(steps, state, inputs)

    @property
    def usable(self) -> bool:
        """Whether its process lives and can be asked again."""
        return self._worker.usable

    async def run_blocks(
        self, first: int, rounds: int, *, timeout_s: float, progress: Callable[[int], None] | None = None
    ) -> _Run:
        """Compute a chunk: the rounds behind state `first`. Its output is the digests of their states. `progress` is
        told how many are done.

        Raises:
            ExecutionError: the rounds before were not computed, or the worker failed.
        """
        states, chunk = self._states, self._work.rounds_per_chunk
        # What is paid does not say what may be forgotten: a voucher is rounded up, and may cover what is not checked.
        states.forget_before((first // chunk - states.window) * chunk)
        if first > states.done:
            raise ExecutionError("the rounds before these were not computed")
        if first < states.done:
            raise ExecutionError("these rounds were computed already")
        deadline = trio.current_time() + timeout_s
        digests: list[bytes] = []
        cpu_ns = wall_ns = device_ns = 0
        energy_mj: int | None = None
        found = states.nearest(first)
        assert found is not None  # the last state is always kept
        state = found[1]
        while len(digests) < rounds:
            count = min(self._batch, rounds - len(digests))
            run = await self._run(state, states.done, count, deadline)
            cpu_ns, wall_ns, device_ns = cpu_ns + run.cpu_ns, wall_ns + run.wall_ns, device_ns + run.device_ns
            if run.energy_mj is not None:
                energy_mj = (energy_mj or 0) + run.energy_mj
            for arrays, known in zip(run.states, run.digests, strict=True):
                if self._fault is None:
                    state = StateBytes.of(arrays, known)
                else:
                    state = StateBytes.of(self._fault(states.done + 1, list(arrays)))
                states.add(state)
                digests.append(state.digest)
                if self._fault is not None:
                    break  # the lie is what it goes on with
            if progress is not None and len(digests) < rounds:
                progress(len(digests))
        return _Run(
            outputs=(b"".join(digests),), cpu_ns=cpu_ns, wall_ns=wall_ns, device_ns=device_ns, energy_mj=energy_mj
        )

    async def state(self, number: int, *, timeout_s: float) -> StateBytes | None:
        """The state after `number` rounds, computed again where it is not kept; None where it is forgotten.

        Raises:
            ExecutionError: the worker failed.
        """
        states = self._states
        found = states.nearest(number)
        if found is None or not states.may_repeat(number - found[0]):
            return None
        at, state = found
        deadline = trio.current_time() + timeout_s
        while at < number:
            count = min(self._batch, number - at)
            run = await self._run(state, at, count, deadline)
            for passed in run.states[:-1]:
                wipe(passed)
            at += count
            state = StateBytes.of(run.states[-1], run.digests[-1])
            states.remember(at, state)
        return state

    async def _run(self, state: StateBytes, at: int, count: int, deadline: float) -> RoundsRun:
        left_s = deadline - trio.current_time()
        if left_s <= 0:
            raise WorkerTimeout("the rounds took longer than was agreed for a chunk")
        return await self._worker.run_rounds(state.arrays, self._work.first + at, count, timeout_s=left_s)
