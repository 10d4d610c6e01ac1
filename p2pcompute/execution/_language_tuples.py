"""Variables that hold several values at once, as a name for each: ``t = f(x)`` and ``t[0]`` become ``t_0, t_1 = f(x)``
and ``t_0``.

A variable is taken so where all that is assigned to it has one known length: a tuple that stands in the text,
``cuda.grid(2)``, a call of Philox or of a device function that returns as many values everywhere, or another such
variable. What stands otherwise is left as it is, and the guard refuses it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection

__all__ = ["returned", "spread"]

Length = Callable[[ast.expr], int | None]


def returned(function: ast.FunctionDef) -> int | None:
    """How many values a normalised device function returns, where that is several and the same everywhere."""
    lengths = {
        len(node.value.elts) if isinstance(node.value, ast.Tuple) else 0
        for node in ast.walk(function)
        if isinstance(node, ast.Return)
    }
    return lengths.pop() if len(lengths) == 1 and lengths != {0} else None


def spread(function: ast.FunctionDef, taken: Collection[str], length: Length) -> set[str]:
    """Give each value of such a variable a name of its own.

    Args:
        function: a normalised function, which is changed.
        taken: names that are not free.
        length: how many values a call gives, or None for one, or where it is not known.

    Returns:
        The names that were given.
    """
    names: dict[str, list[str]] = {}
    free = set(taken)
    for name, several in _lengths(function, length).items():
        names[name] = []
        for place in range(several):
            own = f"{name}_{place}"
            if own.startswith("__"):  # of the variable _; such names are not taken
                own = f"v{own}"
            while own in free:
                own += "_"
            free.add(own)
            names[name].append(own)
    if names:
        _Spread(names).visit(function)
    return {own for several in names.values() for own in several}


def _lengths(function: ast.FunctionDef, length: Length) -> dict[str, int]:
    """The variables that hold several values, and how many.

    What a variable takes from another is not known until the other's length is, so that two may take from each other.
    """
    assigned: dict[str, list[int | str]] = {}  # lengths, 0 for one value, and variables that are taken over whole
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                match value:
                    case ast.Tuple(elts=elements):
                        assigned.setdefault(name, []).append(len(elements))
                    case ast.Name(id=other):
                        assigned.setdefault(name, []).append(other)
                    case _:
                        assigned.setdefault(name, []).append(length(value) or 0)
            case ast.Assign(targets=targets):
                for target in targets:
                    for inner in ast.walk(target):
                        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                            assigned.setdefault(inner.id, []).append(0)
            case ast.AugAssign(target=ast.Name(id=name)) | ast.For(target=ast.Name(id=name)) | ast.arg(arg=name):
                assigned.setdefault(name, []).append(0)
            case _:
                pass
    known: dict[str, int] = {}  # a length may become 0, and nothing else
    while True:
        found: dict[str, int] = {}
        for name, values in assigned.items():
            lengths = {
                value if isinstance(value, int) else known.get(value, 0)
                for value in values
                if isinstance(value, int) or value in known or value not in assigned
            }
            if lengths:
                found[name] = lengths.pop() if len(lengths) == 1 else 0
        if found == known:
            return {name: several for name, several in known.items() if several}
        known = found


class _Spread(ast.NodeTransformer):
    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int() as place)) if name in self.names:
                if 0 <= place < len(self.names[name]):
                    return ast.copy_location(ast.Name(id=self.names[name][place], ctx=ast.Load()), node)
            case ast.Subscript(
                value=ast.Name(id=name), slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1))
            ):
                if name in self.names:
                    return ast.copy_location(ast.Name(id=self.names[name][-1], ctx=ast.Load()), node)
            case _:
                pass
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[ast.Name(id=name)]) if name in self.names:
                return ast.copy_location(ast.Constant(value=len(self.names[name])), node)
            case _:
                self.generic_visit(node)
                return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.names:
            return node
        parts = [ast.copy_location(ast.Name(id=name, ctx=node.ctx), node) for name in self.names[node.id]]
        return ast.copy_location(ast.Tuple(elts=list(parts), ctx=node.ctx), node)
