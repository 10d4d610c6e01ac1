"""The words in which users say a round: its state, what a launch reads and gives, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from p2pcompute._given import contiguous, lengths_of, name_of, refuse_dtype, refuse_masked
from p2pcompute._inout import InOut
from p2pcompute._options import said
from p2pcompute._split import Split
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._operations import OPERATIONS
from p2pcompute.kernel import ConfiguredKernel, Kernel, Out
from p2pcompute_protocols.limits import MAX_BLOB_BYTES

__all__ = [
    "BoundStep",
    "New",
    "Number",
    "State",
    "Steps",
    "by_names",
    "check_arguments",
    "launches",
    "new",
    "round_number",
    "state",
    "state_arrays",
    "step",
]

_NEW: Final = "new_"  # what a parameter's name begins with that is the next value of an array
_NUMBER: Final = "round_number"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What `state` gives. With a `halo` it is a split input."""

    name: str
    halo: int | Sequence[int] | None = None
    edge: str = "zero"

    def __repr__(self) -> str:
        return f"p2p.state({self.name!r})"


@dataclass(frozen=True, slots=True)
class New:
    """What `new` gives."""

    name: str
    reduce: str | None = None
    shape: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"p2p.new({self.name!r})"


@dataclass(frozen=True, slots=True)
class Number:
    """What `round_number` is."""

    def __repr__(self) -> str:
        return "p2p.round_number"


round_number: Final = Number()
"""In a call of `step`: an int64 scalar, how many rounds there were before this one."""


def state(name: str, *, halo: int | Sequence[int] | None = None, edge: str = "zero") -> Any:
    """In a call of `step`: an input, the array `name` of the state, as an earlier launch of this round left it, or else
    the last round. A launch that also gives this array reads what the last round left.

    Args:
        name: an array of the state.
        halo: makes a split input of it, of which a thread loads so far from its own place: one number, or one for each
            axis, as in `p2p.split`. Without it threads load the array anywhere.
        edge: with a halo, what is beyond the array: "zero", "clamp" or "wrap".
    """
    name_of(name, "p2p.state")
    if halo is None and edge != "zero":
        raise KernelTypeError(
            f"{name} has an edge rule and no halo", instead="say how far a thread loads, such as halo=1"
        )
    return State(name, halo, edge)


def new(name: str, *, reduce: str | None = None, shape: int | Sequence[int] | None = None) -> Any:
    """In a call of `step`: the output that becomes the array `name` of the state.

    Args:
        name: an array of the state, of whose shape and dtype it is. One launch of a round gives it, all of it: what no
            thread stores is zero.
        reduce: the operation by which the values of all threads are combined, as for `p2p.reduce`.
        shape: with `reduce`, what the kernel stores into; what it comes to has to be the array's shape, or one element.
    """
    name_of(name, "p2p.new")
    if shape is not None:
        advice = "give a length for each axis, whole numbers from 1"
        shape = lengths_of(shape, f"the shape of the new {name}", instead=advice, least=1)
    if (reduce is None) != (shape is None):
        raise KernelTypeError(
            f"the new {name} has a shape of its own, or is combined, but not both",
            instead='write p2p.new("x"), or p2p.new("x", reduce="sum", shape=…) with what the kernel stores into',
        )
    if reduce is not None and (not isinstance(reduce, str) or reduce not in OPERATIONS):
        raise KernelTypeError(
            f"values are not combined by {said(reduce)}", instead=f"use one of {', '.join(OPERATIONS)}"
        )
    return New(name, reduce, shape)


@dataclass(frozen=True, slots=True)
class BoundStep:
    """One launch of a round. Made by `step`."""

    kernel: Kernel | ConfiguredKernel
    args: tuple[Any, ...]


def step(kernel: Kernel | ConfiguredKernel, *args: Any) -> BoundStep:
    """One launch of a round: a kernel, or ``kernel[blocks, threads]``, and an argument for each of its parameters.

    Args:
        kernel: what `p2p.kernel` made.
        args: `p2p.new(name)` for outputs, `p2p.state(name)`, arrays, numbers, and `p2p.round_number`.
    """
    if not isinstance(kernel, Kernel | ConfiguredKernel):
        raise no_kernel(kernel)
    return BoundStep(kernel, args)


def no_kernel(given: object) -> KernelTypeError:
    """What to raise where a launch of something else is asked for."""
    from p2pcompute._program import ConfiguredProgram, Program

    if isinstance(given, Program | ConfiguredProgram):
        return KernelTypeError(f"{given!r} is a program", instead="rounds are of kernels; run programs with p2p.run")
    return KernelTypeError(f"{said(given)} is not a kernel", instead="decorate the function with @p2p.kernel")


Steps: TypeAlias = "Kernel | ConfiguredKernel | BoundStep | Sequence[BoundStep]"


def _said(value: Any) -> str:
    return f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def state_arrays(state: object) -> dict[str, Array]:
    """The state's arrays, as they are sent."""
    advice = 'pass state={"x": array}'
    if not isinstance(state, Mapping):
        raise KernelTypeError(f"the state is {said(state)}", instead=advice)
    arrays: dict[str, Array] = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise KernelTypeError(f"the state has {said(name)} for a name", instead=advice)
        if not isinstance(value, np.ndarray) or value.ndim == 0 or 0 in value.shape:
            raise KernelTypeError(
                f"the state's {name} is {_said(value)}", instead="pass NumPy arrays of one element at least"
            )
        refuse_masked(value, f"the state's {name}")
        refuse_dtype(value.dtype, f"the state's {name} is of dtype {value.dtype}")
        arrays[name] = contiguous(value, f"the state's {name}")
    if not arrays:
        raise KernelTypeError("the state is empty", instead=advice)
    return arrays


def launches(steps: object) -> list[Kernel | ConfiguredKernel | BoundStep]:
    """The launches of a round."""
    given = list(steps) if isinstance(steps, Sequence) and not isinstance(steps, str | bytes) else [steps]
    if not given:
        raise KernelTypeError("there are no steps", instead="pass a kernel, or a list of p2p.step(kernel, …)")
    found: list[Kernel | ConfiguredKernel | BoundStep] = []
    for one in given:
        if not isinstance(one, Kernel | ConfiguredKernel | BoundStep):
            raise no_kernel(one)
        found.append(one)
    return found


def bare(kernel: Kernel | ConfiguredKernel) -> Kernel:
    """The kernel without its geometry."""
    return kernel.kernel if isinstance(kernel, ConfiguredKernel) else kernel


def by_names(kernel: Kernel | ConfiguredKernel, arrays: Mapping[str, Array], args: Sequence[Any]) -> BoundStep:
    """A bare kernel: its parameters say what they are by their names; all others are `args`, in order."""
    params, stored = bare(kernel).params, bare(kernel).outputs
    for name in params:
        if name in stored and not (name.startswith(_NEW) and name.removeprefix(_NEW) in arrays):
            fits = name if name in arrays else next(iter(arrays))
            raise KernelTypeError(
                f"{bare(kernel).name} stores into {name}, which is not named new_… after an array of the state "
                f"({', '.join(arrays)})",
                instead=f"call the parameter new_{fits}: it starts as zeros, and {fits} is what the last round left; "
                f'or say what is what, p2p.step(kernel, p2p.new("{fits}"), …)',
            )
    found: list[Any] = []
    rest = iter(args)
    used = 0
    for name in params:
        if name in arrays:
            found.append(State(name))
        elif name.startswith(_NEW) and name.removeprefix(_NEW) in arrays:
            found.append(New(name.removeprefix(_NEW)))
        elif name == _NUMBER:
            found.append(round_number)
        else:
            try:
                found.append(next(rest))
            except StopIteration:
                raise KernelTypeError(
                    f"{name} is no array of the state ({', '.join(arrays)}), and args has only {len(args)} "
                    f"value{'s' * (len(args) != 1)}",
                    instead=f"add the value of {name}: args go, in order, to the parameters that name no array",
                ) from None
            used += 1
    if used != len(args):
        others = [name for name in params if not isinstance(found[params.index(name)], State | New | Number)]
        raise KernelTypeError(
            f"args has {len(args)} values and the kernel takes {used} of them",
            instead=f"pass one for each of {', '.join(others)}" if others else "leave args out",
        )
    return BoundStep(kernel, tuple(found))


def check_arguments(one: BoundStep) -> None:
    """Check the arguments of a launch by what the kernel does with them, before it is bound.

    Raises:
        KernelTypeError: one of them is none for a round; says what to write in its place.
    """
    kernel = bare(one.kernel)
    for name, arg in zip(kernel.params, one.args, strict=False):  # `bind` says that they are too few or too many
        if isinstance(arg, InOut):
            raise KernelTypeError(
                f"{name} is given p2pcompute.inout, and no launch of a round changes an array in place",
                instead='store into an output of its own: p2p.new("x") for it, and for what was there, one more '
                'parameter, p2p.state("x")',
            )
        if name in kernel.outputs and not isinstance(arg, New | Out):
            raise KernelTypeError(
                f"{kernel.name} stores into {name}, which is given {said(arg)}",
                instead='pass p2p.new("x") for it, the new value of the array x of the state',
            )
        if name not in kernel.outputs and isinstance(arg, New):
            raise KernelTypeError(
                f"{kernel.name} never stores into {name}, which is given {arg!r}",
                instead=f'pass p2p.state("{arg.name}") for it',
            )
        if isinstance(arg, Split) and arg.array.nbytes > MAX_BLOB_BYTES:
            raise KernelTypeError(
                f"{name} is split and has {arg.array.nbytes} bytes",
                instead=f"a provider computes all of each round: give it inputs of at most {MAX_BLOB_BYTES} bytes",
            )
        if not isinstance(arg, State | New | Number | Out | Split | np.ndarray | np.generic | bool | int | float):
            raise KernelTypeError(
                f"{name} is a {type(arg).__name__}: {said(arg)}",
                instead='pass NumPy arrays, numbers, p2p.state("x"), p2p.new("x") and p2p.round_number',
            )
