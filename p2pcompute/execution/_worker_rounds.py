"""The worker's side of work in rounds: steps are compiled one by one, rounds run from state to state in the arena."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np

from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import Array, Backend, InputSpec
from p2pcompute.execution._ipc_rounds import StateLayout, decode_step
from p2pcompute.execution._rounds import RoundEngine

__all__ = ["WorkerRounds"]


class WorkerRounds:
    """What a worker has compiled of a round."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._engine: RoundEngine | None = None
        self._steps = 0

    def compile_step(self, fields: list[Any], fds: list[int], map_input: Callable[[int, InputSpec], Array]) -> None:
        """Compile one more step; raises `KernelError` where it is refused."""
        place, state, step = decode_step(fields)
        constants = [arg for arg in step.args if isinstance(arg, InputSpec)]
        if len(constants) != len(fds):
            raise ipc.FrameError("not one descriptor per constant array")
        if place == 0:
            self._engine, self._steps = RoundEngine(self._backend, state), 0
        engine = self._engine
        if engine is None or place != self._steps or engine.state != tuple(state):
            raise ipc.FrameError("a step that does not follow the last one")
        self._steps = -1  # until it is there
        engine.add(step, [map_input(fd, spec) for fd, spec in zip(fds, constants, strict=True)])
        self._steps = place + 1

    def run(self, number: int, rounds: int, arena: mmap.mmap) -> None:
        """Run `rounds` rounds from the state at the arena's start; each leaves its state behind the last one."""
        engine = self._engine
        if engine is None or self._steps < 1:
            raise ipc.FrameError("rounds before their steps")
        plan = StateLayout.of(engine.state)
        if rounds < 1 or (rounds + 1) * plan.slot_bytes > len(arena):
            raise ipc.FrameError("an arena that is too small")

        def state(slot: int) -> list[Array]:
            return [
                np.frombuffer(arena, np.uint8, size, slot * plan.slot_bytes + offset)
                .view(ipc.DTYPES[spec.dtype])
                .reshape(spec.shape)
                for spec, (offset, size) in zip(engine.state, plan.spans, strict=True)
            ]

        before = state(0)
        for done in range(rounds):
            after = state(done + 1)
            engine.advance(number + done, before, after)
            before = after
