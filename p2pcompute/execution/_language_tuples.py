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


def spread(function: ast.FunctionDef, taken: Collection[str], length: Length) -> None:
    """Give each value of such a variable a name of its own.

    Args:
        function: a normalised function, which is changed.
        taken: names that are not free.
        length: how many values a call gives, or None for one, or where it is not known.
    """
    params = {argument.arg for argument in function.args.args}
    known: dict[str, int] = {}
    while True:
        found = _lengths(function, known, length)
        found = {name: several for name, several in found.items() if name not in params}
        if found == known:
            break
        if set(known) - set(found):  # what was taken for several values is one as well
            known = {name: several for name, several in known.items() if found.get(name) == several}
            break
        known = found
    names: dict[str, list[str]] = {}
    free = set(taken)
    for name, several in known.items():
        names[name] = []
        for place in range(several):
            own = f"{name}_{place}"
            while own in free:
                own += "_"
            free.add(own)
            names[name].append(own)
    if names:
        _Spread(names).visit(function)


def _lengths(function: ast.FunctionDef, known: dict[str, int], length: Length) -> dict[str, int]:
    found: dict[str, set[int]] = {}
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                match value:
                    case ast.Tuple(elts=elements):
                        found.setdefault(name, set()).add(len(elements))
                    case ast.Name(id=other) if other in known:
                        found.setdefault(name, set()).add(known[other])
                    case _:
                        found.setdefault(name, set()).add(length(value) or 0)
            case ast.Assign(targets=targets):
                for target in targets:
                    for inner in ast.walk(target):
                        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                            found.setdefault(inner.id, set()).add(0)
            case ast.AugAssign(target=ast.Name(id=name)) | ast.For(target=ast.Name(id=name)):
                found.setdefault(name, set()).add(0)
            case _:
                pass
    return {name: lengths.pop() for name, lengths in found.items() if len(lengths) == 1 and lengths != {0}}


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
