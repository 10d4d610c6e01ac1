"""Which names and expressions of a kernel are its thread's place, or its block's, found from the text alone.

Tutorials compute a place in many ways: ``cuda.grid(1)``, ``cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x``, the
same from names for the three, with the size of a block as a number, or as the counter of a loop that goes on in steps
of the whole launch. What is found here is only ever a name that is assigned once, at the top level of the kernel and
before it is read, or such an expression itself; a loop's counter counts within its loop.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

from p2pcompute.execution._language import AXES
from p2pcompute.execution._tree import walk

__all__ = ["Places", "grid_axis"]


def grid_axis(node: ast.expr, variables: Mapping[str, int]) -> int | None:
    """The grid axis whose global index `node` is, or None if it may be anything else.

    Args:
        node: an expression.
        variables: names that hold a place for the kernel's whole life.
    """
    return _thread(node, variables, {})


class Places:
    """The places of one kernel. `threads`: name -> grid axis of the thread's place that it holds throughout."""

    def __init__(self, kernel: ast.FunctionDef, params: Sequence[str]) -> None:
        self._stores: dict[str, list[ast.AST]] = {name: [kernel] for name in params}
        self._note_stores(kernel)
        self.threads: dict[str, int] = {}
        self._triples: dict[str, tuple[str, int]] = {}  # name -> threadIdx, blockIdx, blockDim or gridDim, and axis
        self._tiled: dict[str, tuple[int, int]] = {}  # name -> axis, threads that a block has to have
        self._sizes: dict[str, int] = {}  # name -> axis along which it is the threads of the launch
        for pairs in self._assigned_once(kernel):
            # All are read before one is written: a, b = cuda.grid(1), a
            known = [
                (name, _triple(value, self._triples), self.thread(value), self.tiled(value), self._size(value))
                for name, value in pairs
            ]
            for name, triple, thread, tiled, size in known:
                if triple is not None:
                    self._triples[name] = triple
                elif thread is not None:
                    self.threads[name] = thread
                elif tiled is not None:
                    self._tiled[name] = tiled
                elif size is not None:
                    self._sizes[name] = size
        self._strides: dict[str, int] = {}
        self._inside: dict[int, set[str]] = {}  # subscripts -> counters of the loops around
        self._find_loops(kernel)

    def thread(self, node: ast.expr) -> int | None:
        """The axis along which an expression is the thread's place, in every launch."""
        return _thread(node, self.threads, self._triples)

    def tiled(self, node: ast.expr) -> tuple[int, int] | None:
        """The axis along which an expression is the thread's place in launches of so many threads a block:
        ``cuda.blockIdx.x * 16 + cuda.threadIdx.x``."""
        match node:
            case ast.Name(id=name):
                return self._tiled.get(name)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                for product, thread in ((left, right), (right, left)):
                    found = _triple(thread, self._triples)
                    if found is None or found[0] != "threadIdx":
                        continue
                    if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
                        continue
                    for one, other in ((product.left, product.right), (product.right, product.left)):
                        match other:
                            case ast.Constant(value=int() as size) if size > 0 and not isinstance(size, bool):
                                if _triple(one, self._triples) == ("blockIdx", found[1]):
                                    return found[1], size
                            case _:
                                pass
            case _:
                pass
        return None

    def strided(self, node: ast.expr, at: ast.Subscript) -> int | None:
        """The axis along which a name starts at the thread's place and goes on in steps of the launch."""
        if not isinstance(node, ast.Name) or node.id not in self._strides:
            return None
        return self._strides[node.id] if node.id in self._inside.get(id(at), ()) else None

    def block(self, node: ast.expr) -> int | None:
        """The axis along which an expression is the block's place."""
        found = _triple(node, self._triples)
        return found[1] if found is not None and found[0] == "blockIdx" else None

    def within_block(self, node: ast.expr) -> bool:
        """Whether an expression is the thread's place in its block."""
        found = _triple(node, self._triples)
        return found is not None and found[0] == "threadIdx"

    def _note_stores(self, kernel: ast.FunctionDef) -> None:
        for node in walk(kernel):
            stored: Sequence[ast.expr] = ()
            match node:
                case ast.Assign(targets=targets):
                    stored = targets
                case ast.AugAssign(target=one) | ast.For(target=one):
                    stored = [one]
                case _:
                    pass
            for target in stored:
                for inner in walk(target):
                    if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                        self._stores.setdefault(inner.id, []).append(node)

    def _assigned_once(self, kernel: ast.FunctionDef) -> Iterator[list[tuple[str, ast.expr]]]:
        """Names that are assigned once, at the top level of the kernel, and not read before, with what they are, one
        statement after the other; of several values that a call gives, one of them as if it could be indexed."""
        seen: set[str] = set()  # read before the assignment: may still be the zero that locals start with
        for statement in kernel.body:
            pairs: list[tuple[ast.expr, ast.expr]] = []
            match statement:
                case ast.Assign(targets=[ast.Name() as target], value=value):
                    pairs = [(target, value)]
                case ast.Assign(targets=[ast.Tuple(elts=elements)], value=ast.Tuple(elts=values)):
                    pairs = list(zip(elements, values, strict=True))
                case ast.Assign(
                    targets=[ast.Tuple(elts=elements)],
                    value=ast.Call(args=[ast.Constant(value=int() as count)]) as call,
                ) if count == len(elements) > 1:
                    pairs = [
                        (element, ast.Subscript(value=call, slice=ast.Constant(value=axis), ctx=ast.Load()))
                        for axis, element in enumerate(elements)
                    ]
                case _:
                    pass
            mine = {inner.id for inner in walk(statement) if isinstance(inner, ast.Name)}
            yield [
                (target.id, value)
                for target, value in pairs
                if isinstance(target, ast.Name) and len(self._stores[target.id]) == 1 and target.id not in seen
            ]
            seen |= mine

    def _size(self, node: ast.expr) -> int | None:
        """The axis along which an expression is the threads of the launch."""
        match node:
            case ast.Name(id=name):
                return self._sizes.get(name)
            case ast.Call() | ast.Subscript(value=ast.Call()):
                return _along(node, "gridsize")
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                one, other = _triple(left, self._triples), _triple(right, self._triples)
                if one is None or other is None or one[1] != other[1]:
                    return None
                return one[1] if {one[0], other[0]} == {"gridDim", "blockDim"} else None
            case _:
                return None

    def _find_loops(self, kernel: ast.FunctionDef) -> None:
        """Counters of ``for i in range(place, stop, size)``, and names that a place is assigned to at the top level
        and that sizes are added to: ``i += size``."""
        counters: dict[str, set[int | None]] = {}
        for name, stores in self._stores.items():
            if name in self.threads:
                continue
            axes: set[int | None] = set()
            for at, node in enumerate(stores):
                match node:
                    case ast.For(
                        target=ast.Name(),
                        iter=ast.Call(func=ast.Name(id="range"), args=[start, _, step]),
                    ):
                        axis = self.thread(start)
                        axes.add(axis if axis == self._size(step) else None)
                    case ast.Assign(targets=[ast.Name()], value=value) if node in kernel.body and not at:
                        axes.add(self.thread(value))
                    case ast.AugAssign(target=ast.Name(), op=ast.Add(), value=value) if at:
                        axes.add(self._size(value))
                    case _:
                        axes.add(None)
            counters[name] = axes
        self._strides = {
            name: next(iter(axes)) or 0 for name, axes in counters.items() if len(axes) == 1 and None not in axes
        }
        for node in walk(kernel):
            if not isinstance(node, ast.For | ast.While):
                continue
            head = node.target if isinstance(node, ast.For) else node.test
            names = {inner.id for inner in walk(head) if isinstance(inner, ast.Name)} & self._strides.keys()
            for statement in node.body if names else ():
                for inner in walk(statement):
                    if isinstance(inner, ast.Subscript):
                        self._inside.setdefault(id(inner), set()).update(names)


def _thread(node: ast.expr, variables: Mapping[str, int], triples: Mapping[str, tuple[str, int]]) -> int | None:
    match node:
        case ast.Name(id=name):
            return variables.get(name)
        case ast.Call() | ast.Subscript(value=ast.Call()):
            return _along(node, "grid")
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            for product, thread in ((left, right), (right, left)):
                found = _triple(thread, triples)
                if found is None or found[0] != "threadIdx":
                    continue
                if not isinstance(product, ast.BinOp) or not isinstance(product.op, ast.Mult):
                    continue
                for one, other in ((product.left, product.right), (product.right, product.left)):
                    block = _triple(one, triples) == ("blockIdx", found[1])
                    if block and _triple(other, triples) == ("blockDim", found[1]):
                        return found[1]
        case _:
            pass
    return None


def _along(node: ast.expr, what: str) -> int | None:
    """The axis of ``cuda.grid(1)``, or of one of several values of ``cuda.grid(2)``; likewise of gridsize."""
    axis, call = 0, node
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
        axis, call = node.slice.value, node.value
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr=attr), args=[ast.Constant(value=count)]):
            return axis if attr == what and (count == 1) == (call is node) else None
        case _:
            return None


def _triple(node: ast.expr, triples: Mapping[str, tuple[str, int]]) -> tuple[str, int] | None:
    match node:
        case ast.Name(id=name):
            return triples.get(name)
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="cuda"), attr=attr), attr=axis) if axis in AXES:
            return attr, AXES.index(axis)
        case _:
            return None
