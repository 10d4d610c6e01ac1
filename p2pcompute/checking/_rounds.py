"""Checking a round: with the state before it and the one after, private samples of each of its launches are run again.

What a launch has read is in the two states: an array is given by one launch of a round, so whoever reads it behind that
launch has read the later one. Outputs that are combined from all threads can't be sampled; such a launch is computed
again whole. What no thread owns has to be zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ._sampling import DEFAULT_SAMPLES, SampleReport, block_samples, draw_threads

if TYPE_CHECKING:
    from p2pcompute.execution._api import ArgSpec, InputSpec
    from p2pcompute.execution._rounds import Step
    from p2pcompute.execution._rows import Layout
    from p2pcompute.tasks._api import TaskWorker

__all__ = ["RoundSampler", "draw_rounds", "recompute_round"]

_TIMEOUT_S: Final = 300.0
_DRAWS: Final = 16
_LISTED: Final = 2**20  # items of a launch, of which all that own something are listed
Array = np.ndarray[Any, Any]
Session = Callable[[], AbstractAsyncContextManager["TaskWorker"]]


def draw_rounds(count: int, wanted: int, rng: np.random.Generator) -> list[int]:
    """`wanted` distinct ones of 0 to `count` - 1, ascending."""
    return sorted(int(n) for n in rng.choice(count, size=min(wanted, count), replace=False))


class RoundSampler:
    """Checks rounds in workers of our own.

    Args:
        session: opens a worker.
        steps: the launches of a round; `constants` has the arrays of each, in order.
        state: the arrays of a state.
        samples: of each launch.
    """

    def __init__(
        self,
        session: Session,
        steps: Sequence[Step],
        constants: Sequence[Sequence[Array]],
        state: Sequence[InputSpec],
        *,
        samples: int = DEFAULT_SAMPLES,
        rng: np.random.Generator | None = None,
    ) -> None:
        from p2pcompute.execution._rows import Layout

        self._session = session
        self._steps = list(steps)
        self._constants = [list(given) for given in constants]
        self._state = list(state)
        self._samples = samples
        self._layouts = [Layout.of(step.source, step.launch, step.specs(state)) for step in steps]
        self._rng = np.random.default_rng() if rng is None else rng

    async def check(
        self, number: int, before: Sequence[bytes | bytearray], after: Sequence[bytes | bytearray]
    ) -> SampleReport:
        """Compare samples of one round with what we compute.

        Args:
            number: how many rounds there were before it.
            before, after: the arrays of the states around it.

        Raises:
            ExecutionError: our own worker failed; this says nothing about the provider.
        """
        from p2pcompute.execution._api import InputSpec
        from p2pcompute.tasks._windows import array_pieces, windowed

        ours = [self._array(place, data) for place, data in enumerate(before)]
        theirs = [self._array(place, data) for place, data in enumerate(after)]
        checked = mismatched = 0
        async with self._session() as worker:
            now = list(ours)
            for step, constants, layout in zip(self._steps, self._constants, self._layouts, strict=True):
                values = step.values(number, constants, now)
                specs, inputs = _bound(step, self._state, number, values)
                split = {place for place, spec in enumerate(specs) if isinstance(spec, InputSpec) and spec.split}
                whole = {place: value for place, value in inputs.items() if place not in split}
                await worker.compile(step.source, step.launch, specs, whole)
                pieces = array_pieces({place: inputs[place] for place in split})
                runner = windowed(worker, step.launch, specs, layout.items_per_block, pieces)
                looked, wrong = await self._check_step(runner, step, layout, theirs)
                checked, mismatched = checked + looked, mismatched + wrong
                for array in step.writes:
                    now[array] = theirs[array]
        return SampleReport(checked=checked, mismatched=mismatched)

    def _array(self, place: int, data: bytes | bytearray) -> Array:
        spec = self._state[place]
        return np.frombuffer(data, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)

    async def _check_step(
        self, worker: TaskWorker, step: Step, layout: Layout, theirs: Sequence[Array]
    ) -> tuple[int, int]:
        """How many items were looked at, and how many of them, or of what nobody owns, are wrong."""
        from p2pcompute.execution._rounds import rows_of

        if any(spec.reduce is not None for spec in layout.outputs):
            return await self._check_whole(worker, step, layout, theirs)
        wrong = sum(_stray(layout, place, theirs[array]) for place, array in enumerate(step.writes))
        items = self._draw(layout)
        run = await worker.run_threads(items, timeout_s=_TIMEOUT_S)
        bad = np.zeros(len(items), np.bool_)
        for place, (array, row) in enumerate(zip(step.writes, layout.row_shapes, strict=True)):
            rows, _ = rows_of(layout, place, items, theirs[array])
            given = np.frombuffer(run.outputs[place], rows.dtype).reshape((len(items), *row))
            bad |= _bits(rows, len(items)) != _bits(given, len(items))
        return len(items), wrong + int(bad.sum())

    def _draw(self, layout: Layout) -> Array:
        """Items that own something, from all over the launch."""
        size = layout.launch.threads_per_block
        wanted = block_samples(self._samples, size) if layout.together else self._samples
        total = layout.launch.blocks * layout.items_per_block
        if total <= _LISTED:
            inside = layout.items_inside(0, layout.launch.blocks)
            return inside[draw_threads(0, len(inside), wanted, self._rng)]
        for _ in range(_DRAWS):
            found = draw_threads(0, total, wanted, self._rng)
            if not layout.together:
                found = found[layout.inside(found)]
            if len(found):
                return found
        return layout.items_inside(0, layout.launch.blocks)[:wanted]

    async def _check_whole(
        self, worker: TaskWorker, step: Step, layout: Layout, theirs: Sequence[Array]
    ) -> tuple[int, int]:
        from p2pcompute.execution._operations import fold

        blocks = layout.launch.blocks
        run = await worker.run_blocks(0, blocks, timeout_s=_TIMEOUT_S)
        wrong = 0
        for place, (array, spec, row) in enumerate(zip(step.writes, layout.outputs, layout.row_shapes, strict=True)):
            rows = np.frombuffer(run.outputs[place], spec.dtype).reshape((blocks * layout.items_per_block, *row))
            due = np.zeros(theirs[array].shape, spec.dtype)
            if spec.reduce is not None:
                due[...] = fold(spec.reduce, rows)
            else:
                layout.scatter(place, 0, blocks, rows, due)
            wrong += due.tobytes() != theirs[array].tobytes()
        return blocks, wrong


def _bound(
    step: Step, state: Sequence[InputSpec], number: int, values: Sequence[Any]
) -> tuple[list[ArgSpec], Mapping[int, Any]]:
    """Specs with the round's number, and the content of each input."""
    import dataclasses

    from p2pcompute.execution._api import InputSpec, OutputSpec, ScalarSpec

    specs: list[ArgSpec] = []
    inputs: dict[int, Any] = {}
    given = iter(values)
    for position, spec in enumerate(step.specs(state)):
        if not isinstance(spec, OutputSpec):
            value = next(given)
            if isinstance(spec, InputSpec):
                inputs[position] = value
            elif isinstance(spec, ScalarSpec) and spec.varies:
                spec = dataclasses.replace(spec, value=np.dtype(spec.dtype).type(number))
        specs.append(spec)
    return specs, inputs


def _bits(rows: Array, count: int) -> Array:
    """One opaque value a row, that compares bit for bit."""
    flat = np.ascontiguousarray(rows).view(np.uint8).reshape(count, -1)
    return flat.view(np.dtype((np.void, flat.shape[1]))).reshape(count)


def _stray(layout: Layout, place: int, whole: Array) -> int:
    """1 where something stands in what no thread of the launch owns."""
    launch = layout.launch
    own = bool(layout.by_block) and layout.by_block[place]
    for at, axis in enumerate(layout.mappings[place]):
        reach = launch.grid[axis] * (1 if own else launch.block[axis])
        if reach < whole.shape[at]:
            beyond = np.ascontiguousarray(whole[(slice(None),) * at + (slice(reach, None),)])
            if beyond.view(np.uint8).any():
                return 1
    return 0


async def recompute_round(
    worker: TaskWorker,
    steps: Sequence[Step],
    state: Sequence[InputSpec],
    constants: Sequence[Mapping[int, Any]],
    number: int,
    before: Sequence[bytes | bytearray],
    *,
    timeout_s: float = _TIMEOUT_S,
) -> tuple[bytearray, ...]:
    """The arrays of the state after a whole round, computed in `worker`."""
    await worker.compile_rounds(steps, state, constants)
    run = await worker.run_rounds(before, number, 1, timeout_s=timeout_s)
    return run.states[0]
