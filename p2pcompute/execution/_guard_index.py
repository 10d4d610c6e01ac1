"""How a kernel uses its place in the launch: which names hold it, and which output axes it indexes.

A thread owns one row of each output. So each store into an output, and each load from it, must say all the grid's
axes, each once, in the leading positions, in one order for that output throughout the kernel. Then the row is
known without looking at values, no two threads share one, and any set of threads can be run again by itself.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from p2pcompute.errors import KernelError
from p2pcompute.execution._guard_places import Places

__all__ = ["GridUse", "Premise", "grid_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Premise:
    """What a launch has to be for an index to be the thread's place: of `block` threads a block along an axis, or,
    where that is 0, as long there as the output's axis `place`."""

    axis: int
    line: int
    block: int = 0
    output: str = ""
    place: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GridUse:
    """`dims`: axes of launches that fit. `variables`: name -> grid axis (0 is x) that it holds for the kernel's whole
    life. `mapping`: output -> grid axis of each leading position, so ``out[y, x, c]`` gives (1, 0). `by_block`: outputs
    whose leading positions are the block's place and not the thread's, so that a row is a block's."""

    dims: int
    variables: Mapping[str, int]
    mapping: Mapping[str, tuple[int, ...]]
    by_block: frozenset[str] = frozenset()
    premises: tuple[Premise, ...] = ()


def grid_use(
    kernel: ast.FunctionDef,
    nodes: Sequence[ast.AST],
    params: tuple[str, ...],
    filename: str,
    scratch: Collection[str] = (),
) -> GridUse:
    """Work out the kernel's use of the grid. The tree has passed the guard's other checks; `nodes` are all of it.

    Raises:
        KernelError: an output is indexed by what may be another thread's place.
    """
    places = Places(kernel, params)
    dims = 0
    for node in nodes:
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
    for node in nodes:
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id not in scratch
        ):
            stored.setdefault(node.value.id, node)
    mapping: dict[str, tuple[int, ...]] = {}
    owners: dict[str, str] = {}
    premises: list[Premise] = []
    for node in nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in stored:
            name = node.value.id
            found, needed = _leading(node, name, places)
            whose = "a thread"
            if not found and (found := _leading_blocks(node, places)):
                whose = "a block"
            premises += [premise for premise in needed if premise not in premises]
            if owners.setdefault(name, whose) != whose:
                raise KernelError(
                    f"{name} is indexed by the thread's place and by the block's",
                    line=node.lineno,
                    filename=filename,
                    instead="index it by one of them, by a name set once: i = cuda.grid(1), or b = cuda.blockIdx.x",
                )
            if not found or sorted(found) != list(range(len(found))):
                raise _not_own(node, name, places, filename)
            if mapping.setdefault(name, found) != found:
                raise KernelError(
                    f"{name} is indexed in two orders",
                    line=node.lineno,
                    filename=filename,
                    instead=f"index {name} by the same grid variables in the same order everywhere",
                )
    for call in nodes:
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
    return GridUse(
        dims=sizes.pop(), variables=places.threads, mapping=mapping, by_block=by_block, premises=tuple(premises)
    )


def _leading(node: ast.Subscript, name: str, places: Places) -> tuple[tuple[int, ...], list[Premise]]:
    """Grid axes in the leading positions, as many as are distinct, and what has to hold for them to be the thread's.
    Later positions are the row's own."""
    found: list[int] = []
    premises: list[Premise] = []
    for index in _indices(node):
        axis, premise = places.thread(index), None
        if axis is None and (tiled := places.tiled(index)) is not None:
            axis, block = tiled
            premise = Premise(axis=axis, line=node.lineno, block=block)
        if axis is None and (axis := places.strided(index, node)) is not None:
            premise = Premise(axis=axis, line=node.lineno, output=name, place=len(found))
        if axis is None or axis in found:
            break
        found.append(axis)
        if premise is not None:
            premises.append(premise)
    return tuple(found), premises


def _leading_blocks(node: ast.Subscript, places: Places) -> tuple[int, ...]:
    """The same of the block's place."""
    found: list[int] = []
    for index in _indices(node):
        axis = places.block(index)
        if axis is None or axis in found:
            break
        found.append(axis)
    return tuple(found)


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]


def _not_own(node: ast.Subscript, name: str, places: Places, filename: str) -> KernelError:
    first = _indices(node)[0]
    used = [inner for inner in ast.walk(first) if isinstance(inner, ast.expr) and places.thread(inner) is not None]
    axes = {places.thread(inner) for inner in used}
    of_data = any(isinstance(inner, ast.Subscript) for inner in ast.walk(first))
    elsewhere = of_data or isinstance(first, ast.Constant) or (used and isinstance(first, ast.BinOp))
    if isinstance(node.ctx, ast.Load) and len(axes) < 2 and elsewhere:
        instead = (
            "what other threads store is not loaded: for what was there before, take one more parameter, for which the "
            f"array is passed as an input, and load it from there, given[{ast.unparse(node.slice)[:60]}]"
        )
    elif isinstance(first, ast.Constant):
        instead = (
            f"store each thread's own value, {name}[i] = ..., and pass p2pcompute.reduce(op, shape, dtype), which "
            "combines them, in place of p2pcompute.out; or store one for each block, "
            f"{name}[cuda.blockIdx.x] = ..., and add them up behind the call"
        )
    elif len(axes) > 1:
        instead = (
            f"give {name} an axis for each grid axis, p2pcompute.out((height, width), dtype) or, where it is changed "
            f"in place, p2pcompute.inout(array.reshape(height, width)), and write {name}[y, x]: reshaped behind the "
            "call it is the flat array"
        )
    elif used and isinstance(first, ast.BinOp):
        instead = (
            f"where a thread stores several elements, give {name} an axis for them, p2pcompute.out((n, 2), dtype), and "
            f"write {name}[i, 0] and {name}[i, 1]; let a thread whose element is another's load it instead"
        )
    elif of_data:
        instead = (
            f"to count or combine at places that data gives, write cuda.atomic.add({name}, "
            f"{ast.unparse(node.slice)[:60]}, value) as a statement, and pass "
            f'p2pcompute.reduce("sum", shape, np.int64) for {name}; to move elements, let each thread load the one '
            "that comes to its own place"
        )
    elif places.within_block(first):
        instead = (
            "threadIdx is the same in every block: what a block has found goes into a parameter of its own, "
            "found[cuda.blockIdx.x] = ..., for which p2pcompute.out(blocks, dtype) is passed"
        )
    else:
        instead = (
            f"index {name} first by names that are set once, at the top of the kernel: i = cuda.grid(1), or "
            "x, y = cuda.grid(2), or by cuda.blockIdx; a thread reads and writes only its own row or its block's"
        )
    return KernelError(
        f"{name}[{ast.unparse(node.slice)[:60]}] may be another thread's element",
        line=node.lineno,
        filename=filename,
        instead=instead,
    )
