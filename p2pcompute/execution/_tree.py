"""Walking syntax trees, several times as fast as `ast` does it: the guard goes over each kernel a dozen times."""

from __future__ import annotations

import ast
from typing import Final

from p2pcompute.execution._language import RESERVED

__all__ = ["LEAF", "FreeNames", "function_of", "leaves", "literal_integer", "parts", "walk"]

LEAF: Final = (ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop)
_ABSTRACT: Final = frozenset({"ctx", "op", "ops"})  # fields that hold leaves and nothing else
_TEXTS: Final = frozenset({"id", "attr", "arg", "kind", "type_comment"})  # fields that hold no node in any of these:
_KNOWN: Final = (
    ast.Name, ast.Constant, ast.Attribute, ast.arg, ast.Assign, ast.For, ast.FunctionDef, ast.BinOp, ast.UnaryOp,
    ast.BoolOp, ast.Compare, ast.Subscript, ast.AugAssign, ast.Tuple,
)  # fmt: skip
_PARTS: Final[dict[type, tuple[str, ...]]] = {
    kind: tuple(
        name for name in kind._fields if name not in _ABSTRACT | _TEXTS and (kind, name) != (ast.Constant, "value")
    )
    for kind in _KNOWN
}
_LEAVES: Final[dict[type, int]] = {kind: len({"ctx", "op"} & set(kind._fields)) for kind in _KNOWN}


def parts(node: ast.AST) -> tuple[str, ...]:
    """Names of the fields in which `node` may have children that are no `leaves`; of an unusual node, of all."""
    known = _PARTS.get(type(node))
    return node._fields if known is None else known


def walk(node: ast.AST) -> list[ast.AST]:
    """`node` and all below it, in the order of `ast.walk`, but for operators and contexts."""
    found = [node]
    for inner in found:
        for name in parts(inner):
            value = getattr(inner, name, None)
            if isinstance(value, list):
                found.extend(one for one in value if isinstance(one, ast.AST) and not isinstance(one, LEAF))
            elif isinstance(value, ast.AST) and not isinstance(value, LEAF):
                found.append(value)
    return found


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The function of this name, which the module has."""
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)


def literal_integer(node: ast.expr) -> int | None:
    """The number that a literal is, negative ones too; None of anything else."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as inner):
            positive = literal_integer(inner)
            return None if positive is None else -positive
        case _:
            return None


def leaves(node: ast.AST) -> int:
    """How many operators and contexts hang on `node`: what `ast.walk` finds beside what `walk` does."""
    known = _LEAVES.get(type(node))
    if known is None:
        return sum(isinstance(child, LEAF) for child in ast.iter_child_nodes(node))
    return known + len(node.ops) if isinstance(node, ast.Compare) else known


class FreeNames:
    """Names that nothing in a module has."""

    def __init__(self, tree: ast.Module) -> None:
        self._taken = set(RESERVED)
        for node in walk(tree):
            match node:
                case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                    self._taken.add(name)
                case _:
                    pass

    def take(self, wanted: str) -> str:
        """`wanted`, with a number behind it where that is taken."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name
