"""The node's side of work in rounds: what `WorkerSession.compile_rounds` and `run_rounds` do.

States pass through the arena and are copied out before anybody looks at them. They stay in this process, in buffers
that can be overwritten: a worker that has held any is not kept for its tenant.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pcompute.errors import ExecutionError
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import InputSpec
from p2pcompute.execution._ipc_rounds import StateLayout, encode_step
from p2pcompute.execution._pool_memory import SharedInput
from p2pcompute.execution._rounds import Step

if TYPE_CHECKING:
    from p2pcompute.execution._pool_session import InputContent, WorkerSession

__all__ = ["RoundsResult", "compile_rounds", "run_rounds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsResult:
    """What rounds gave.

    Attributes:
        states: after each round, the bytes of each array, C order, and `digests` their SHA-256.
        cpu_ns, wall_ns, device_ns, energy_mj: as of `WorkResult`.
    """

    states: tuple[tuple[bytearray, ...], ...]
    digests: tuple[tuple[bytes, ...], ...]
    cpu_ns: int
    wall_ns: int
    device_ns: int = 0
    energy_mj: int | None = None


async def compile_rounds(
    session: WorkerSession,
    steps: Sequence[Step],
    state: Sequence[InputSpec],
    inputs: Sequence[Mapping[int, InputContent]],
    *,
    timeout_s: float,
) -> float:
    """Compile the steps of a round; gives the milliseconds that it took."""
    started = time.perf_counter_ns()
    session._launch = None
    session._state = None
    for place, (step, contents) in enumerate(zip(steps, inputs, strict=True)):
        fds: list[int] = []
        try:
            for position, arg in enumerate(step.args):
                if not isinstance(arg, InputSpec):
                    continue
                content = contents[position]
                if isinstance(content, SharedInput):
                    fds.append(content.duplicate())
                else:
                    with await SharedInput.make(content) as made:
                        fds.append(made.duplicate())
            session._count_inputs(fds)
            await session._exchange(ipc.COMPILE_STEP, encode_step(place, state, step), fds, timeout_s=timeout_s)
        finally:
            for fd in fds:
                os.close(fd)
    session._state = tuple(state)
    return (time.perf_counter_ns() - started) / 1e6


async def run_rounds(
    session: WorkerSession,
    start: Sequence[bytes | bytearray | memoryview],
    number: int,
    rounds: int,
    *,
    timeout_s: float,
) -> RoundsResult:
    """Run `rounds` rounds from the state `start`, before which there were `number` rounds."""
    session._refuse_if_dead()
    if session._state is None:
        raise ExecutionError("there are no compiled rounds in this session; call compile_rounds first")
    plan = StateLayout.of(session._state)
    if [len(array) for array in start] != [size for _, size in plan.spans]:
        raise ValueError("the arrays are not those of a state")
    arena, fresh = session._room((rounds + 1) * plan.slot_bytes)
    session._held_state = True
    for array, (offset, _) in zip(start, plan.spans, strict=True):
        arena.put(array, offset)
    fields: list[Any] = [number, rounds, arena.nbytes if fresh else 0]
    energy_before = None if session._energy is None else session._energy()
    cpu_before, started = session._process.cpu_ns(), time.perf_counter_ns()
    fds = [arena.fileno()] if fresh else []
    packet = await session._exchange(ipc.RUN_ROUNDS, fields, fds, timeout_s=timeout_s)
    wall_ns = time.perf_counter_ns() - started
    cpu_ns = max(0, session._process.cpu_ns() - cpu_before)
    spans = [(slot * plan.slot_bytes + offset, size) for slot in range(1, rounds + 1) for offset, size in plan.spans]
    copies = await arena.copy_into(spans)
    width = len(plan.spans)
    rows = [copies[at : at + width] for at in range(0, len(copies), width)]
    return RoundsResult(
        states=tuple(tuple(array for array, _ in row) for row in rows),
        digests=tuple(tuple(digest for _, digest in row) for row in rows),
        cpu_ns=cpu_ns,
        wall_ns=wall_ns,
        device_ns=packet[2] if len(packet) == 3 else 0,
        energy_mj=None if energy_before is None else session._energy_since(energy_before),
    )
