"""Loads from split inputs: a window is passed in place of the array, and an index is its place there.

The window has all that the threads of a run may load, and what lies beyond the array's edges, so an index that is
proved to be no further from the thread's place than the halo costs a subtraction and no test.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import ArgSpec, InputSpec
from p2pcompute.execution._lower_scratch import zero_of
from p2pcompute.execution._lower_types import Expr, Scalar, as_type, wrapping

if TYPE_CHECKING:
    from p2pcompute.execution._guard import Admitted
    from p2pcompute.execution._index_ranges import IndexRanges, Reach
    from p2pcompute.execution._lower_arrays import ArrayLowering

__all__ = ["check_reads", "is_split", "split_arguments", "split_load"]


def is_split(spec: ArgSpec | None) -> bool:
    """Whether an argument is a split input."""
    return isinstance(spec, InputSpec) and spec.split is not None


def split_arguments(name: str, spec: ArgSpec) -> list[str]:
    """The body's arguments before a split input's window: the array's lengths, and the index of the window's first
    element along each leading axis. None for any other input."""
    if not isinstance(spec, InputSpec) or spec.split is None:
        return []
    lengths = [f"s_{name}_{axis}" for axis in range(len(spec.shape))]
    return [*lengths, *(f"o_{name}_{axis}" for axis in range(len(spec.split.axes)))]


def split_load(use: ArrayLowering, name: str, spec: InputSpec, indices: list[Expr], key: ast.expr) -> str:
    """Code for an element, or for zero where an index lies beyond the halo."""
    assert spec.split is not None
    lower, tests, places = use.expressions, list[str](), list[str]()
    reaches = use.ranges.reaches.get(id(key), ())
    for axis, index in enumerate(indices):
        if axis >= len(spec.split.axes):
            place = lower.held(Expr(as_type(index, Scalar.UINT), Scalar.UINT)).code
            places.append(place)
            if not use.ranges.inside(key, axis, spec.shape[axis]):
                tests.append(f"({place} < uint64(p_{name}.shape[{axis}]))")
            continue
        grid, halo = spec.split.axes[axis], spec.split.halo[axis]
        held = lower.held(Expr(as_type(index, Scalar.UINT), Scalar.UINT)).code
        places.append(wrapping("-", held, f"uint64(o_{name}_{axis})", Scalar.UINT))
        if axis < len(reaches) and within(reaches[axis], halo):
            continue
        away = wrapping("-", held, f"uint64(g{grid})", Scalar.UINT)
        tests.append(f"({wrapping('+', away, f'uint64({halo})', Scalar.UINT)} <= uint64({2 * halo}))")
        if index.type is Scalar.UINT:  # the greatest of these are no negative numbers
            tests.append(f"({held} < uint64({2**63}))")
    code = f"p_{name}[{', '.join(places)}]"
    if not tests:
        return code
    found = lower.temp()
    lower.emit(f"{found} = {zero_of(spec.dtype)}")
    lower.emit(f"if {' & '.join(tests)}:")
    lower.emit(f" {found} = {code}")
    return found


def within(reach: Reach, halo: int) -> bool:
    """Whether an index surely is no further from the thread's place than the halo."""
    return reach.sure is not None and -halo <= reach.sure[0] and reach.sure[1] <= halo


def check_reads(admitted: Admitted, specs: dict[str, ArgSpec], ranges: IndexRanges) -> None:
    """Refuse what can be known to be wrong when a kernel is bound.

    Raises:
        KernelTypeError: a load surely is further from the thread's place than the halo; a split input is given to a
            device function; or it is loaded, where threads work together, at an index that is not written from the
            thread's place: it would be the same for all threads and what it gives would not.
    """
    splits = {name: spec.split for name, spec in specs.items() if isinstance(spec, InputSpec) and spec.split}
    for node in ast.walk(admitted.entry.node) if splits else ():
        if isinstance(node, ast.Call):
            taken = [arg.id for arg in node.args if isinstance(arg, ast.Name) and arg.id in splits]
            if taken and not (isinstance(node.func, ast.Name) and node.func.id == "len"):
                raise KernelTypeError(
                    f"{taken[0]} is split and is passed to a function",
                    line=node.lineno,
                    filename=admitted.entry.filename,
                    instead="pass the elements' values: a thread loads what lies around its own place only",
                )
        if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name) or node.value.id not in splits:
            continue
        name, split = node.value.id, splits[node.value.id]
        for axis, (reach, halo) in enumerate(zip(ranges.reaches.get(id(node.slice), ()), split.halo, strict=False)):
            if admitted.plan is not None and not reach.written:
                raise KernelTypeError(
                    f"{name} is split and is loaded at an index that is not written from the thread's place",
                    line=node.lineno,
                    filename=admitted.entry.filename,
                    instead=f"where threads work together write {name}[i + k] with i = cuda.grid(1), or pass it whole",
                )
            if reach.sure is None or within(reach, halo):
                continue
            low, high = reach.sure
            if low > halo or high < -halo or reach.attained:
                most = max(abs(low), abs(high))
                raise KernelTypeError(
                    f"{name} is loaded {most} from the thread's own place along axis {axis}, and its halo is {halo}",
                    line=node.lineno,
                    filename=admitted.entry.filename,
                    instead=f"give it halo={most} in p2pcompute.split, a round's in p2pcompute.state; or load nearer",
                )
