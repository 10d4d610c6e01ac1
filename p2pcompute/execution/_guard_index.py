"""How a kernel uses its place in the launch: which names hold it, and which output axes it indexes.

A thread owns one row of each output. So each store into an output, and each load from it, must say all the grid's
axes, each once, in the leading positions, in one order for that output throughout the kernel. Then the row is
known without looking at values, no two threads share one, and any set of threads can be run again by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from p2pcompute.errors import KernelError
from p2pcompute.execution._language import AXES

__all__ = ["GridUse", "grid_axis", "grid_use"]


_Place: TypeAlias = Callable[[ast.expr, Mapping[str, int]], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridUse:
    """`dims`: axes of launches that fit. `variables`: name -> grid axis (0 is x) that it holds for the kernel's whole
    life. `mapping`: output -> grid axis of each leading position, so ``out[y, x, c]`` gives (1, 0). `by_block`: outputs
    whose leading positions are the block's place and not the thread's, so that a row is a block's."""

    dims: int
    variables: Mapping[str, int]
    mapping: Mapping[str, tuple[int, ...]]
    by_block: frozenset[str] = frozenset()


def grid_axis(node: ast.expr, variables: Mapping[str, int]) -> int | None:
    """The grid axis whose global index `node` is, or None if it may be anything else."""
    match node:
        case ast.Name(id=name):
            return variables.get(name)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid"), args=[ast.Constant(value=1)]):
            return 0
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            for product, thread in ((left, right), (right, left)):
                axis = _triple(thread, "threadIdx")
                if axis is None or not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
                    continue
                for one, other in ((product.left, product.right), (product.right, product.left)):
                    if _triple(one, "blockIdx") == axis == _triple(other, "blockDim"):
                        return axis
        case _:
            pass
    return None


def _triple(node: ast.expr, name: str) -> int | None:
    match node:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=attr), attr=axis) if attr == name:
            return AXES.index(axis) if axis in AXES else None
        case _:
            return None


def grid_use(kernel: ast.FunctionDef, params: tuple[str, ...], filename: str, scratch: Collection[str] = ()) -> GridUse:
    """Work out the kernel's use of the grid. The tree has passed the guard's other checks.

    Raises:
        KernelError: an output is indexed by what may be another thread's place.
    """
    variables = _variables(kernel, params, grid_axis)
    blocks = _variables(kernel, params, _block_axis)
    dims = 0
    for node in ast.walk(kernel):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "grid":
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, int):
                if dims not in (0, argument.value):
                    raise KernelError(
                        "cuda.grid is asked for different numbers of axes",
                        line=node.lineno,
                        filename=filename,
                        instead="use one of cuda.grid(1), (2) and (3) throughout",
                    )
                dims = argument.value
    stored: dict[str, ast.Subscript] = {}
    for node in ast.walk(kernel):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id not in scratch
        ):
            stored.setdefault(node.value.id, node)
    mapping: dict[str, tuple[int, ...]] = {}
    owners: dict[str, str] = {}
    for node in ast.walk(kernel):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in stored:
            name = node.value.id
            found = _leading(node, variables, grid_axis)
            whose = "a thread"
            if not found and (found := _leading(node, blocks, _block_axis)):
                whose = "a block"
            if owners.setdefault(name, whose) != whose:
                raise KernelError(
                    f"{name} is indexed by the thread's place and by the block's",
                    line=node.lineno,
                    filename=filename,
                    instead="index it by one of them, by a name set once: i = cuda.grid(1), or b = cuda.blockIdx.x",
                )
            if not found or sorted(found) != list(range(len(found))):
                raise _not_own(node, name, filename)
            if mapping.setdefault(name, found) != found:
                raise KernelError(
                    f"{name} is indexed in two orders",
                    line=node.lineno,
                    filename=filename,
                    instead=f"index {name} by the same grid variables in the same order everywhere",
                )
    for call in ast.walk(kernel):
        if isinstance(call, ast.Call):
            for argument in call.args:
                called = call.func.id if isinstance(call.func, ast.Name) else ""
                if isinstance(argument, ast.Name) and argument.id in stored and called != "len":
                    raise KernelError(
                        f"the output {argument.id} is passed to a function",
                        line=call.lineno,
                        filename=filename,
                        instead="pass the element's value: a thread reads and writes only its own row",
                    )
    if not mapping:
        raise KernelError(
            "the kernel stores nothing",
            line=kernel.lineno,
            filename=filename,
            instead="store into an output: out[i] = ...",
        )
    sizes = {len(axes) for axes in mapping.values()}
    if dims:
        sizes.add(dims)
    if len(sizes) != 1:
        first = next(iter(stored.values()))
        raise KernelError(
            "outputs are indexed by different numbers of grid axes",
            line=first.lineno,
            filename=filename,
            instead="index each output by all axes of cuda.grid, or two threads would write one element",
        )
    by_block = frozenset(name for name, whose in owners.items() if whose == "a block")
    return GridUse(dims=sizes.pop(), variables=variables, mapping=mapping, by_block=by_block)


def _block_axis(node: ast.expr, variables: Mapping[str, int]) -> int | None:
    """The grid axis along which `node` is the block's place, or None."""
    return variables.get(node.id) if isinstance(node, ast.Name) else _triple(node, "blockIdx")


def _variables(kernel: ast.FunctionDef, params: tuple[str, ...], place: _Place) -> dict[str, int]:
    """Names that are assigned once, at the top level of the kernel, and hold a place."""
    stores: dict[str, int] = dict.fromkeys(params, 1)
    for node in ast.walk(kernel):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stores[node.id] = stores.get(node.id, 0) + 1
    found: dict[str, int] = {}
    seen: set[str] = set()  # read before the assignment: may still be the zero that locals start with
    for statement in kernel.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                axis = place(value, found)
                if axis is not None and stores[name] == 1 and name not in seen:
                    found[name] = axis
            case ast.Assign(targets=[ast.Tuple(elts=elements)], value=ast.Tuple(elts=values)):
                for element, value in zip(elements, values, strict=True):
                    axis = place(value, found)
                    if axis is None or not isinstance(element, ast.Name):
                        continue
                    if stores[element.id] == 1 and element.id not in seen:
                        found[element.id] = axis
            case ast.Assign(
                targets=[ast.Tuple(elts=elements)],
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid"), args=[ast.Constant(value=count)]
                ),
            ) if isinstance(count, int) and count == len(elements) and count > 1 and place is grid_axis:
                for axis, element in enumerate(elements):
                    if isinstance(element, ast.Name) and stores[element.id] == 1 and element.id not in seen:
                        found[element.id] = axis
            case _:
                pass
        seen.update(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
    return found


def _leading(node: ast.Subscript, variables: Mapping[str, int], place: _Place) -> tuple[int, ...]:
    """Grid axes in the leading positions: as many as are distinct. Later positions are the row's own."""
    indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    found: list[int] = []
    for index in indices:
        axis = place(index, variables)
        if axis is None or axis in found:
            break
        found.append(axis)
    return tuple(found)


def _not_own(node: ast.Subscript, name: str, filename: str) -> KernelError:
    return KernelError(
        f"{name}[{ast.unparse(node.slice)[:60]}] may be another thread's element",
        line=node.lineno,
        filename=filename,
        instead=f"index {name} first by names that are set once, at the top of the kernel: i = cuda.grid(1), or "
        "x, y = cuda.grid(2), or by cuda.blockIdx; a thread reads and writes only its own row or its block's",
    )
