"""`inout`: an array that a kernel changes in place, as kernels of numba.cuda do, and that comes back changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from p2pcompute._given import contiguous, refuse_dtype, refuse_masked
from p2pcompute._options import said
from p2pcompute._split import Split
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import InputSpec, Launch, OutputSpec, SplitSpec
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._language import AXES, MAX_ARRAY_AXES
from p2pcompute.execution._language_inout import InPlace

__all__ = ["InOut", "check_covered", "in_place", "inout", "inout_specs"]


@dataclass(frozen=True, slots=True)
class InOut:
    """An array to be changed. Made by `inout`."""

    given: np.ndarray[Any, Any] | Split

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """What it holds before the call, split or not."""
        return self.given.array if isinstance(self.given, Split) else self.given


def inout(array: Any) -> InOut:
    """Pass an array that the kernel changes in place.

    For kernels that are written so, as those of numba.cuda's tutorials are: `x[i] += 1`. The array that was passed
    stays as it is; the changed one comes back, at its place among the outputs. Each thread loads and stores its own
    row of it, as of an output; what it does not store stays as it was, but that a NaN is the one NaN of the language
    (docs/strict.md, section 2).

        y = p2p.run(increment_by_one[8, 128], p2p.inout(x))

    Args:
        array: a NumPy array of one axis at least. Or such an array in `p2pcompute.split`, without a halo: then each
            provider is sent the part that its chunks change.

    Raises:
        KernelTypeError: it is no such array.
    """
    from p2pcompute.kernel import Out

    if isinstance(array, InOut):
        return array
    if isinstance(array, Split):
        if any(array.halo) if isinstance(array.halo, tuple) else array.halo:
            raise KernelTypeError(
                "an array that is changed in place is split with a halo, and a thread loads its own row of it only",
                instead="write p2pcompute.inout(p2pcompute.split(array)); where threads load what others had, pass "
                "p2pcompute.split(array, halo=...) as an input besides, for one more parameter",
            )
        return InOut(array)
    if isinstance(array, Out):
        raise KernelTypeError(
            f"p2pcompute.{'out' if array.reduce is None else 'reduce'}(...) holds nothing that a kernel could change",
            instead="pass it without p2pcompute.inout, which takes the array that is there before the call",
        )
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise KernelTypeError(
            f"{said(array)} can't be changed in place",
            instead="pass a NumPy array of one axis at least, or p2pcompute.out(shape, dtype) for what is only stored",
        )
    refuse_masked(array, "what is to be changed in place")
    refuse_dtype(array.dtype, f"an array of dtype {array.dtype} can't be changed in place")
    further = ", or a copy as p2pcompute.inout(p2pcompute.split(np.ascontiguousarray(array)))"
    return InOut(contiguous(array, "what is to be changed in place", further=further))


def in_place(admitted: Admitted, args: Sequence[Any]) -> InPlace | None:
    """The rewriting for the arguments of a call, one for each parameter; None where none of them is changed in place.

    Raises:
        KernelTypeError: the kernel does not change one of them, or a block and not a thread does that, and it is split.
    """
    found: list[tuple[str, int]] = []
    entry = admitted.entry
    for name, value in zip(entry.params, args, strict=True):
        if not isinstance(value, InOut):
            continue
        reason = instead = ""
        if name not in admitted.grid.mapping:
            reason = f"the kernel never stores into {name}, which is given p2pcompute.inout"
            instead = "pass the array itself"
        elif isinstance(value.given, Split) and name in admitted.grid.by_block:
            reason = f"{name} is split, and its rows are the blocks' and not the threads'"
            instead = "pass p2pcompute.inout(array), which is sent as a whole"
        if reason:
            raise KernelTypeError(reason, line=entry.node.lineno, filename=entry.filename, instead=instead)
        found.append((name, min(value.array.ndim, MAX_ARRAY_AXES)))  # no launch takes more
    return InPlace(tuple(found)) if found else None


def inout_specs(name: str, value: InOut, admitted: Admitted) -> tuple[OutputSpec, InputSpec]:
    """What the kernel that `in_place` gives is bound to: the output, and the input behind it."""
    array = value.array
    split = None
    mapping = admitted.grid.mapping[name]
    # With fewer axes it fits no launch, which `check_launch` says.
    if isinstance(value.given, Split) and len(mapping) <= array.ndim:
        split = SplitSpec(axes=mapping, halo=(0,) * len(mapping), edge=value.given.edge)
    dtype, shape = array.dtype.name, array.shape
    return OutputSpec(dtype=dtype, shape=shape), InputSpec(dtype=dtype, shape=shape, split=split)


def check_covered(name: str, shape: Sequence[int], admitted: Admitted, launch: Launch) -> None:
    """Check that a launch has a thread, or a block, for each row of an array that is changed in place: what no thread
    brings along is zero.

    Raises:
        KernelTypeError: it has not; says how many blocks there have to be.
    """
    own = name in admitted.grid.by_block
    for length, axis in zip(shape, admitted.grid.mapping[name], strict=False):
        size = 1 if own else launch.block[axis]
        if launch.grid[axis] * size >= length:
            continue
        what = "blocks" if own else "threads"
        raise KernelTypeError(
            f"the launch has {launch.grid[axis] * size} {what} along {AXES[axis]}, and {name}, which is changed in "
            f"place, has {length} elements there",
            line=admitted.entry.node.lineno,
            filename=admitted.entry.filename,
            instead=f"start {-(-length // size)} blocks there at least, or pass a part of the array",
        )
