"""`split`: an input of which each provider is sent no more than its chunks need."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute._given import contiguous, lengths_of, refuse_dtype, refuse_masked
from p2pcompute._options import said
from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import InputSpec, OutputSpec, SplitSpec
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute_protocols.limits import MAX_BLOB_BYTES, MAX_SPLIT_BYTES

if TYPE_CHECKING:
    from p2pcompute.kernel import Binding

__all__ = ["EDGES", "MAX_HALO", "Split", "split", "split_argument", "too_large"]

EDGES = ("zero", "clamp", "wrap")
MAX_HALO = 2**20


@dataclass(frozen=True, slots=True)
class Split:
    """An array to be sent in tiles. Made by `split`."""

    array: np.ndarray[Any, Any]
    halo: int | tuple[int, ...]
    edge: str
    tile: tuple[int, ...] | None


def split(
    array: Any, *, halo: int | Sequence[int] = 0, edge: str = "zero", tile: int | Sequence[int] | None = None
) -> Split:
    """Pass an input that is cut into tiles: a provider gets those that its chunks need, and the array may be larger
    than what one provider would take, up to 4 GiB.

    In the kernel the array has its whole shape and global indices. A thread loads around its own place: `x[i + k]` for
    k from -halo to halo, `x[y + dy, x + dx]` on a grid of two axes. Its leading axes run along the grid's, as an
    output's do; the others are whole (docs/strict.md, section 14).

    Args:
        array: a NumPy array, or what lies in a file (`numpy.memmap`). It is not copied: where it is written to while
            its task runs, that ends with `InputChanged`.
        halo: how far from its own place a thread loads: one number, or one for each axis.
        edge: what it finds beyond the array: "zero" zeros, "clamp" the nearest element, "wrap" the other side.
        tile: lengths of a tile along each axis, one number where there is one axis; chosen where None.

    Raises:
        KernelTypeError: the array can't be an argument, or one of the others is out of its range; says which it has.
    """
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        from p2pcompute._inout import InOut

        raise KernelTypeError(
            f"a {type(array).__name__} can't be split",
            instead="write p2pcompute.inout(p2pcompute.split(array))"
            if isinstance(array, InOut)
            else "pass a NumPy array of one axis at least",
        )
    refuse_masked(array, "what is to be split")
    refuse_dtype(array.dtype, f"an array of dtype {array.dtype} can't be split")
    if not isinstance(edge, str) or edge not in EDGES:
        raise KernelTypeError(f"edge is {said(edge)}", instead='write "zero", "clamp" or "wrap"')
    numbers = lengths_of(halo, "halo", instead=f"write a whole number from 0 to {MAX_HALO}", most=MAX_HALO)
    if len(numbers) not in (1, array.ndim):
        raise KernelTypeError(f"halo is {said(halo)}", instead=f"write one number, or {array.ndim}: one for each axis")
    lengths: tuple[int, ...] | None = None
    if tile is not None:
        lengths = lengths_of(tile, "tile", instead=f"write a whole number from 1 to {2**40}", least=1, most=2**40)
        if len(lengths) != array.ndim:
            raise KernelTypeError(f"tile is {said(tile)}", instead=f"write {array.ndim} numbers, one for each axis")
    return Split(
        array=contiguous(array, "what is to be split", most=MAX_SPLIT_BYTES),
        halo=numbers[0] if len(numbers) == 1 else numbers,
        edge=edge,
        tile=lengths,
    )


def split_argument(name: str, value: Split, admitted: Admitted) -> InputSpec:
    """What a kernel is bound to for a split argument: its axes are found from the text.

    Raises:
        KernelTypeError: it does not fit the kernel; with the line.
    """
    dims, shape = admitted.grid.dims, value.array.shape
    entry = admitted.entry

    def refuse(reason: str, instead: str, node: ast.AST | None = None) -> KernelTypeError:
        line = getattr(node, "lineno", entry.node.lineno)
        return KernelTypeError(reason, line=line, filename=entry.filename, instead=instead)

    if len(shape) < dims:
        raise refuse(
            f"{name} has {len(shape)} axes and the grid {dims}", "split arrays with an axis for each of the grid's"
        )
    axes: list[int | None] = [None] * dims
    for node in ast.walk(entry.node):
        if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or node.value.id != name:
            continue
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for place, part in enumerate(parts[:dims]):
            found = {
                axis for inner in _expressions(part) if (axis := grid_axis(inner, admitted.grid.variables)) is not None
            }
            if len(found) > 1 or (found and axes[place] not in (None, *found)):
                raise refuse(
                    f"{name} is split and an index of it is made from several places",
                    f"index {name} as an output: each axis by one of the grid's, the same everywhere",
                    node,
                )
            if found:
                axes[place] = found.pop()
    if None in axes:  # then as the kernel's first output is indexed
        first = admitted.grid.mapping[admitted.outputs[0]]
        axes = [first[place] if axis is None else axis for place, axis in enumerate(axes)]
    known = tuple(axis for axis in axes if axis is not None)
    if sorted(known) != list(range(dims)):
        raise refuse(
            f"{name} is split and its first axes run along the grid axes {known}",
            "index its first axes by all of the grid's, each once",
        )
    halo = value.halo if isinstance(value.halo, tuple) else (value.halo,) * dims
    if any(halo[dims:]):
        raise refuse(
            f"{name} has the halo {halo}, and the grid has {dims} axes",
            "give axes beyond the grid's a halo of 0: they are whole for each thread",
        )
    return InputSpec(
        dtype=value.array.dtype.name,
        shape=shape,
        split=SplitSpec(axes=known, halo=halo[:dims], edge=value.edge),
    )


def too_large(binding: Binding, sizes: Mapping[int, int], names: Sequence[str]) -> KernelTypeError:
    """What to raise for inputs that are sent whole and are more than one call takes.

    Args:
        binding: the call.
        sizes: place in `binding.specs` -> bytes, of each.
        names: those of the caller's arguments.
    """
    place = max(sizes, key=lambda place: sizes[place])
    name = names[binding.argument(place)]
    name = name if name.isidentifier() else "array"
    instead = f", cut it, or pass p2pcompute.split({name}, halo=...) where each thread loads around its own place"
    if place in binding.inout:
        output = sum(isinstance(spec, OutputSpec) for spec in binding.specs[:place]) - 1
        instead = f": pass p2pcompute.inout(p2pcompute.split({name}))"
        if binding.layout.by_block[output]:  # whose rows no split array has
            instead = f": change {name} by parts, in several calls"
    return KernelTypeError(
        f"the inputs have {sum(sizes.values())} bytes", instead=f"send at most {MAX_BLOB_BYTES} in one call{instead}"
    )


def _expressions(node: ast.expr) -> list[ast.expr]:
    """All expressions within, but those that pick an element: what is loaded is a number and no place."""
    found: list[ast.expr] = []
    todo: list[ast.AST] = [node]
    while todo:
        this = todo.pop()
        if isinstance(this, ast.expr):
            found.append(this)
        if not (isinstance(this, ast.Subscript) and isinstance(this.value, ast.Name)):
            todo.extend(ast.iter_child_nodes(this))
    return found
