"""Work in rounds: the same launches again and again, on named arrays that each round leaves for the next.

A *step* is one launch of a round. Its outputs become arrays of the state, its inputs are arrays of the state or
constants, and a scalar may be the number of the round. Each array is given by one step, as zeros where no thread
stores. A step reads an array as an earlier step of the round left it, or else the last round; a step that gives an
array reads what the last round left of it. So what each step had before it is in the states before and after its
round, and any part of any round can be computed again from these two.

A step may read a constant or an array of the state as a *split* input, for its halo and edge rule. All of a round is
computed in one place, so the array is there whole, and a step's threads are given one window of it for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from p2pcompute.execution._api import (
    ArgSpec,
    Array,
    Backend,
    CompiledKernel,
    InputSpec,
    KernelSource,
    Launch,
    OutputSpec,
    ScalarSpec,
    SplitSpec,
)
from p2pcompute.execution._operations import fold
from p2pcompute.execution._rows import Layout
from p2pcompute.execution._split import Box, Window, blocks_box, fill_window, window_box

__all__ = [
    "HostStates",
    "Launched",
    "ReadState",
    "RoundEngine",
    "RoundNumber",
    "States",
    "StatesBackend",
    "Step",
    "StepArg",
    "WriteState",
    "result_shape",
    "rows_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadState:
    """An input: array number `array` of the state, read as a split input where `split` says how."""

    array: int
    split: SplitSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteState:
    """An output that becomes array number `array` of the state; `spec` is what the kernel sees."""

    array: int
    spec: OutputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundNumber:
    """A scalar: how many rounds there were before this one. `dtype` is an integer's."""

    dtype: str


StepArg: TypeAlias = ScalarSpec | InputSpec | ReadState | WriteState | RoundNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One launch of a round; one of `args` for each parameter."""

    source: KernelSource
    launch: Launch
    args: tuple[StepArg, ...]

    def specs(self, state: Sequence[InputSpec]) -> list[ArgSpec]:
        """What the kernel is compiled for, on arrays of a state as `state` has them."""
        found: list[ArgSpec] = []
        for arg in self.args:
            match arg:
                case ReadState():
                    found.append(replace(state[arg.array], split=arg.split))
                case WriteState():
                    found.append(arg.spec)
                case RoundNumber():
                    found.append(ScalarSpec(dtype=arg.dtype, value=np.dtype(arg.dtype).type(0), varies=True))
                case _:
                    found.append(arg)
        return found

    @property
    def writes(self) -> list[int]:
        """Which arrays it gives, in the order of its outputs."""
        return [arg.array for arg in self.args if isinstance(arg, WriteState)]

    def values(self, number: int, constants: Sequence[Any], now: Sequence[Any]) -> list[Any]:
        """What `run_blocks` takes, in order, but for whole arrays where it takes windows. `now` are the arrays of the
        state as this step reads them."""
        values: list[Any] = []
        given = iter(constants)
        for arg in self.args:
            match arg:
                case ScalarSpec():
                    values.append(arg.value)
                case InputSpec():
                    values.append(next(given))
                case ReadState():
                    values.append(now[arg.array])
                case RoundNumber():
                    values.append(np.dtype(arg.dtype).type(number))
                case WriteState():
                    pass
        return values


def result_shape(spec: OutputSpec, launch: Launch) -> tuple[int, ...]:
    """The shape of the array that an output comes to; one number is an array of one element."""
    return spec.shape if spec.reduce is None else spec.shape[launch.dims :] or (1,)


@dataclass(slots=True, eq=False)
class Launched:
    """A compiled step.

    Attributes:
        constants: as its kernel takes them.
        places: of all of its threads.
        windows: arrays of the state that are split, with their numbers, by place among the values.
    """

    step: Step
    kernel: CompiledKernel
    layout: Layout
    constants: list[Any]
    places: Box
    windows: dict[int, tuple[InputSpec, int]]


class States(Protocol):
    """Where the arrays of states lie while rounds are computed. A round is `begin`, a `run` for each of its launches,
    and `end`."""

    def constant(self, value: Array | Window) -> Any:
        """What kernels are given for a value that is the same in all rounds."""
        ...

    def begin(self, before: Sequence[Array]) -> list[Any]:
        """What kernels are given for the arrays of the state that a round begins with."""
        ...

    def run(self, launched: Launched, values: Sequence[Any], after: Sequence[Array]) -> Sequence[Any]:
        """Run all of a launch, and write the arrays that it gives into those of `after`; gives what later launches of
        the round are given for them, in the order of `Step.writes`."""
        ...

    def end(self, after: Sequence[Array]) -> None:
        """All of `after` is written."""
        ...


@runtime_checkable
class StatesBackend(Protocol):
    """What a back end has besides where states can stay on its device."""

    def states(self, state: Sequence[InputSpec]) -> States:
        """Room for states of such arrays."""
        ...


class HostStates:
    """As `States`: in memory as everything else, with room for the rows of each launch."""

    def __init__(self) -> None:
        self._rows: dict[Launched, list[Array]] = {}

    def constant(self, value: Array | Window) -> Any:
        """The same."""
        return value

    def begin(self, before: Sequence[Array]) -> list[Any]:
        """The same."""
        return list(before)

    def run(self, launched: Launched, values: Sequence[Any], after: Sequence[Array]) -> Sequence[Any]:
        """See `States.run`."""
        layout, launch = launched.layout, launched.layout.launch
        rows = self._rows.get(launched)
        if rows is None:
            items = launch.blocks * layout.items_per_block
            rows = self._rows[launched] = [
                np.zeros((items, *row), spec.dtype) for row, spec in zip(layout.row_shapes, layout.outputs, strict=True)
            ]
        else:
            for one in rows:
                one.fill(0)
        launched.kernel.run_blocks(0, launch.blocks, values, rows)
        for place, (array, spec, one) in enumerate(zip(launched.step.writes, layout.outputs, rows, strict=True)):
            target = after[array]
            if spec.reduce is not None:
                target[...] = fold(spec.reduce, one)
            else:
                target.fill(0)
                layout.scatter(place, 0, launch.blocks, one, target)
        return [after[array] for array in launched.step.writes]

    def end(self, after: Sequence[Array]) -> None:
        """Nothing."""


class RoundEngine:
    """Compiled steps, and what they work in.

    Args:
        backend: compiles and runs.
        state: the arrays of a state.
    """

    def __init__(self, backend: Backend, state: Sequence[InputSpec]) -> None:
        self._backend = backend
        self._steps: list[Launched] = []
        self.state = tuple(state)
        self._states: States = backend.states(state) if isinstance(backend, StatesBackend) else HostStates()

    def add(self, step: Step, constants: Sequence[Array]) -> None:
        """Compile one more step. `constants` has an array for each `InputSpec` of it, in order.

        Raises:
            KernelError: it is refused, or gives arrays of other shapes than the state has.
        """
        from p2pcompute.errors import KernelTypeError

        specs = step.specs(self.state)
        layout = Layout.of(step.source, step.launch, specs)
        for array, output in zip(step.writes, layout.outputs, strict=True):
            due = self.state[array]
            if output.dtype != due.dtype or result_shape(output, step.launch) != due.shape:
                raise KernelTypeError(
                    f"an output gives {output.dtype}{result_shape(output, step.launch)} where the state has "
                    f"{due.dtype}{due.shape}",
                    instead="give outputs the shapes and dtypes of the arrays that they take the place of",
                )
        kernel = self._backend.compile(step.source, step.launch, specs)
        places = blocks_box(step.launch, 0, step.launch.blocks)
        given = iter(constants)
        found: list[Any] = []
        windows: dict[int, tuple[InputSpec, int]] = {}
        inputs = [(arg, spec) for arg, spec in zip(step.args, specs, strict=True) if not isinstance(arg, WriteState)]
        for place, (arg, spec) in enumerate(inputs):
            if isinstance(arg, InputSpec):
                whole = next(given)
                found.append(self._states.constant(whole if arg.split is None else _window(arg, places, whole)))
            elif isinstance(arg, ReadState) and arg.split is not None:
                assert isinstance(spec, InputSpec)
                windows[place] = spec, arg.array
        self._steps.append(Launched(step, kernel, layout, found, places, windows))

    def advance(self, number: int, before: Sequence[Array], after: Sequence[Array]) -> None:
        """One round: from the arrays `before` to those of `after`, which are written in place.

        Args:
            number: how many rounds there were before.
        """
        now, given = list(before), self._states.begin(before)
        for launched in self._steps:
            values = launched.step.values(number, launched.constants, given)
            for place, (spec, array) in launched.windows.items():
                values[place] = _window(spec, launched.places, now[array])
            left = self._states.run(launched, values, after)
            for array, value in zip(launched.step.writes, left, strict=True):
                now[array], given[array] = after[array], value
        self._states.end(after)


def _window(spec: InputSpec, places: Box, whole: Array) -> Window:
    return fill_window(spec, window_box(spec, places), [((0,) * whole.ndim, whole)])


def rows_of(layout: Layout, place: int, items: Array, whole: Array) -> tuple[Array, Array]:
    """The rows that `items` (linear ids) own of an output, out of the whole array: what `scatter` has placed there.

    Args:
        layout: of the launch.
        place: which output, among outputs; not one that is combined.
        whole: the output.

    Returns:
        An array as `run_threads` gives it, and bools of the shape of its leading axes: False where a thread owns
        nothing of this output, and the row is zeros.
    """
    from p2pcompute.execution._rows import thread_coordinates

    launch, mapping = layout.launch, layout.mappings[place]
    if layout.by_block[place] if layout.by_block else False:
        launch = Launch(grid=launch.grid, block=(1, 1, 1), dims=launch.dims)
        threads = items
    elif layout.together:
        threads = items[:, np.newaxis] * launch.threads_per_block + np.arange(launch.threads_per_block)
    else:
        threads = items
    places = thread_coordinates(launch, threads)
    owned = np.ones(threads.shape, np.bool_)
    index: list[Array] = []
    for at, axis in enumerate(mapping):
        inside = places[axis] < whole.shape[at]
        owned &= inside
        index.append(np.where(inside, places[axis], 0))
    rows = whole[tuple(index)]
    rows[~owned] = 0
    return rows, owned
