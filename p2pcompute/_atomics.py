"""What is particular to kernels that change an output of all blocks by integer atomic operations: each is bound as the
kernel that `execution._language_atomics` makes of it, for the shapes that are asked for."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from p2pcompute._form import Form, Variants
from p2pcompute._inout import InOut
from p2pcompute._split import Split
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import Launch
from p2pcompute.execution._guard import admit_tree
from p2pcompute.execution._guard_scratch import ITEM_BYTES
from p2pcompute.execution._language import ATOMIC_DTYPES, MAX_SHARED_BYTES
from p2pcompute.execution._language_advice import of_floats
from p2pcompute.execution._language_atomics import Part, Target, combined, global_targets, left_out, row_shape
from p2pcompute.execution._language_capture import Captured
from p2pcompute.execution._operations import identity
from p2pcompute.execution._tree import function_of

if TYPE_CHECKING:
    from p2pcompute.kernel import Out

__all__ = ["GlobalAtomics", "Variant"]

_COMBINE: Final = {
    "sum": np.add, "max": np.maximum, "min": np.minimum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}  # fmt: skip


class Variant(NamedTuple):
    """A kernel for the shapes of one call. `args` are the call's, with outputs by blocks for the targets; `shapes` are
    those that come back for these, by name."""

    form: Form
    args: tuple[Any, ...]
    shapes: Mapping[str, tuple[int, ...]]


class GlobalAtomics:
    """A kernel with such operations. Its attribute `form` says which parameters it has and what it does with
    them; sizes in it stand for any."""

    def __init__(self, captured: Captured, targets: Mapping[str, Target]) -> None:
        self._tree = captured.tree
        self._entry = captured.source.entry
        self._files = captured.filenames
        self._targets = targets
        self._known = Variants()
        self._dims = self._axes()
        least = {
            name: Part(operation=one.operation, shape=(1,) * one.axes, dtype="int64") for name, one in targets.items()
        }
        self.form = self._made(least, self._dims or 1)
        shared = sum(array.nbytes for array in self.form.admitted.entry.scratch.values() if array.kind == "shared")
        self._own_bytes = shared - len(targets) * ITEM_BYTES["int64"]

    @classmethod
    def of(cls, captured: Captured) -> GlobalAtomics | None:
        """What there is of it in a captured kernel, or None.

        Raises:
            KernelError: an array that is changed so is used in another way too, a thread may return where others would
                wait for it, or the rest of the kernel says what the language does not hold.
        """
        entry = captured.source.entry
        targets = global_targets(function_of(captured.tree, entry), captured.filenames[entry])
        return cls(captured, targets) if targets else None

    def _axes(self) -> int | None:
        """Along how many axes the kernel is started, if that is known from its text."""
        tree = left_out(self._tree, self._entry, self._targets, self._files[self._entry])
        kernel = function_of(tree, self._entry)
        params = {argument.arg for argument in kernel.args.args}
        dims: int | None = None
        stores = False
        for node in ast.walk(kernel):
            match node:
                case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()) if name in params:
                    stores = True
                case ast.Call(func=ast.Attribute(attr="grid"), args=[ast.Constant(value=int() as axes)]):
                    dims = min(max(axes, 1), 3)  # others are for the guard to refuse
                case _:
                    pass
        return admit_tree(tree, self._entry, self._files).grid.dims if stores else dims

    def _made(self, parts: Mapping[str, Part], dims: int) -> Form:
        key = (dims, tuple((name, part.shape, part.dtype) for name, part in parts.items()))

        def make() -> Form:
            tree = combined(self._tree, self._entry, parts, dims, self._files[self._entry])
            return Form.made(tree, self._entry, self._files)

        return self._known.get(key, make)

    def variant(self, launch: Launch, args: Sequence[Any]) -> Variant:
        """The kernel for these arguments, which are as many as it has parameters.

        Raises:
            KernelTypeError: what is passed for a target is no output that it can be; says what to pass.
            KernelError: with these sizes the kernel is refused.
        """
        dims = self._dims or launch.dims
        given = dict(zip(self.form.admitted.entry.params, args, strict=True))
        asked = {name: self._asked(target, given[name]) for name, target in self._targets.items()}
        parts = {
            name: Part(operation=self._targets[name].operation, shape=one.shape, dtype=one.dtype.name)
            for name, one in asked.items()
        }
        self._check_size(parts)
        form = self._made(parts, dims)
        blocks = tuple(reversed(launch.grid[:dims]))
        for name, one in asked.items():
            shape = (*blocks, *row_shape(one.shape, dims))
            given[name] = dataclasses.replace(one, shape=shape, reduce=self._targets[name].reduce)
        return Variant(
            form=form,
            args=tuple(given.values()),
            shapes={name: one.shape for name, one in asked.items()},
        )

    def _asked(self, target: Target, value: Any) -> Out:
        from p2pcompute.kernel import Out

        name, atomic = target.name, f"cuda.atomic.{target.operation}"
        of = value.array if isinstance(value, InOut | Split) else value
        if isinstance(of, Out | np.ndarray) and of.dtype.kind == "f":
            raise self._refuse(
                target,
                f"{name} is of {of.dtype.name}, and what {atomic} makes of floats depends on the order of threads",
                of_floats(target.reduce, target.call),
            )
        if not isinstance(value, Out):
            raise self._refuse(
                target,
                f"any thread changes any element of {name} by {atomic}, and p2pcompute.inout is for what each changes "
                "in its own row"
                if isinstance(value, InOut)
                else f"{name} is changed by {atomic}, and inputs stay as they are",
                _asked_for(target, of if isinstance(of, np.ndarray) else None),
            )
        shape, dtype = _spelled(value.shape), value.dtype.name
        if dtype not in ATOMIC_DTYPES:
            raise self._refuse(
                target,
                f"{name} is changed by {atomic}, and is of {dtype}",
                f'use one of {", ".join(ATOMIC_DTYPES)}: p2pcompute.reduce("{target.reduce}", {shape}, np.int32)',
            )
        ask = f'p2pcompute.reduce("{target.reduce}", {shape}, np.{dtype})'
        if value.reduce not in (None, target.reduce):
            raise self._refuse(target, f"{name} is changed by {atomic}, and combined by {value.reduce}", f"pass {ask}")
        if value.reduce is None and identity(target.reduce, dtype) != 0:
            raise self._refuse(
                target,
                f"{name} is changed by {atomic}, and an output begins as zeros, which would count as values",
                f"pass {ask}: elements that nobody changes come back as {int(identity(target.reduce, dtype))}",
            )
        if len(value.shape) != target.axes or 0 in value.shape:
            raise self._refuse(
                target,
                f"{name} has the shape {value.shape}, and {atomic} an index of {target.axes} number"
                f"{'s' * (target.axes > 1)}",
                "give it a length from 1 for each number of the index, which is (i, j) for two axes",
            )
        return value

    def _check_size(self, parts: Mapping[str, Part]) -> None:
        sizes = {name: math.prod(part.shape) * ITEM_BYTES[part.dtype] for name, part in parts.items()}
        if self._own_bytes + sum(sizes.values()) <= MAX_SHARED_BYTES:
            return
        name = max(sizes, key=lambda name: sizes[name])
        target, item = self._targets[name], ITEM_BYTES[parts[name].dtype]
        left = max(MAX_SHARED_BYTES - self._own_bytes - (sum(sizes.values()) - sizes[name]), 0)
        instead = (
            f"make several calls, each with {left // item} elements at most and its range of indices: "
            f"cuda.atomic.{target.operation}({name}, i - first, value), where those out of range are dropped"
        )
        if item > 4:
            instead += f"; of np.int32 {left // 4} fit"
        if left < item:
            instead = "make the kernel's own shared arrays smaller, or pass fewer such arrays in one call"
        raise self._refuse(
            target,
            f"each block has a part of {name} of its own, of {sizes[name]} bytes, and of the {MAX_SHARED_BYTES} "
            f"bytes that a block shares {left} are left for it",
            instead,
        )

    def _refuse(self, target: Target, reason: str, instead: str) -> KernelTypeError:
        return KernelTypeError(reason, line=target.call.lineno, filename=self._files[self._entry], instead=instead)


def _asked_for(target: Target, of: np.ndarray[Any, Any] | None) -> str:
    """What to pass in place of an array, or of something else."""
    name, reduce = target.name, target.reduce
    if of is None:
        return f'pass p2pcompute.reduce("{reduce}", shape, np.int64) for {name}'
    kind = of.dtype.name if of.dtype.name in ATOMIC_DTYPES else "int64"
    counts = bool((of != int(identity(reduce, kind))).any())
    return f'pass p2pcompute.reduce("{reduce}", {_spelled(of.shape)}, np.{kind}) for {name}' + (
        f", and behind the call take np.{_COMBINE[reduce].__name__}(what it had, {name})" if counts else ""
    )


def _spelled(shape: tuple[int, ...]) -> str:
    return str(shape[0]) if len(shape) == 1 else str(shape)
