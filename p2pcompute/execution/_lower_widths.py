"""How many bits an integer has where that matters: in ``cuda.popc``, ``clz``, ``ffs`` and ``brev``.

The language computes with 64 bits. But ``cuda.clz(x[i])`` of an int32 array means 32 to whoever wrote it, so a value
that only came from such an element, argument or conversion keeps its width, through variables, conditionals and device
functions. What an operator gives has 64 bits. That is numba's rule too.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from p2pcompute.execution._guard import Function
from p2pcompute.execution._guard_scratch import ITEM_BYTES
from p2pcompute.execution._language import BIT_CALLS

__all__ = ["Widths", "counts_bits"]

_NARROW: Final = frozenset({"int8", "int16", "int32", "uint8", "uint16", "uint32"})
_Known: TypeAlias = str | None  # a narrow dtype, nothing where it has 64 bits, None where nothing is assigned
_Memo: TypeAlias = dict[tuple[str, tuple[str, ...]], tuple[_Known, ...]]


def counts_bits(functions: Mapping[str, Function]) -> frozenset[str]:
    """The functions whose code depends on the widths of their arguments; `functions` come callees first."""
    found: set[str] = set()
    for name, function in functions.items():
        here = any(isinstance(node, ast.Attribute) and node.attr in BIT_CALLS for node in ast.walk(function.node))
        if here or not found.isdisjoint(function.calls):
            found.add(name)
    return frozenset(found)


class Widths:
    """The widths of one function's values.

    Args:
        functions: all of the source.
        function: this one.
        given: the dtype of each parameter: an array's elements, or a scalar's; nothing where it is not known.
        memo: what is known of device functions' results; one for a program.
    """

    def __init__(
        self, functions: Mapping[str, Function], function: Function, given: Sequence[str], memo: _Memo
    ) -> None:
        self._functions = functions
        self._memo = memo
        self._arrays = {array.name: array.dtype for array in function.scratch.values()}
        self._names: dict[str, str] = {}
        for name, dtype in zip(function.params, given, strict=True):
            if name in function.arrays:
                self._arrays[name] = dtype
            else:
                self._names[name] = dtype if dtype in _NARROW else ""
        before = -1
        while before != (before := sum(1 + (not dtype) for dtype in self._names.values())):  # settles: ever fewer
            for node in ast.walk(function.node):
                self._statement(node)
        self._returned: list[_Known] = []
        for node in ast.walk(function.node):
            if isinstance(node, ast.Return) and node.value is not None:
                parts = self._several(node.value)
                if len(parts) == len(self._returned):
                    parts = [_joined(one, other) for one, other in zip(parts, self._returned, strict=True)]
                self._returned = parts

    def dtype(self, node: ast.expr) -> str:
        """The narrow dtype that an expression has kept; nothing where it has 64 bits."""
        return self._of(node) or ""

    def bits(self, node: ast.expr) -> int:
        """How many bits an integer expression has: 8, 16, 32 or 64."""
        dtype = self.dtype(node)
        return 8 * ITEM_BYTES[dtype] if dtype else 64

    def _statement(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Tuple):
                        parts = self._several(value)
                        if len(parts) != len(target.elts):
                            parts = [""] * len(target.elts)
                        for element, part in zip(target.elts, parts, strict=True):
                            self._assign(element, part)
                    else:
                        self._assign(target, self._of(value))
            case ast.AugAssign(target=target) | ast.For(target=target):
                self._assign(target, "")
            case _:
                pass

    def _assign(self, target: ast.expr, dtype: _Known) -> None:
        if isinstance(target, ast.Name) and dtype is not None and target.id not in self._arrays:
            self._names[target.id] = _joined(self._names.get(target.id), dtype) or ""

    def _several(self, node: ast.expr) -> list[_Known]:
        match node:
            case ast.Tuple(elts=elements):
                return [self._of(element) for element in elements]
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in self._functions:
                return list(self._results(name, arguments))
            case _:
                return [self._of(node)]

    def _of(self, node: ast.expr) -> _Known:
        match node:
            case ast.Name(id=name):
                return self._names.get(name)
            case ast.Subscript(value=ast.Name(id=name)):
                dtype = self._arrays.get(name, "")
                return dtype if dtype in _NARROW else ""
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr=name)):
                return name if name in _NARROW else ""
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in self._functions:
                found = self._results(name, arguments)
                return found[0] if len(found) == 1 else ""
            case ast.IfExp(body=body, orelse=orelse):
                return _joined(self._of(body), self._of(orelse))
            case _:
                return ""

    def _results(self, name: str, arguments: Sequence[ast.expr]) -> tuple[_Known, ...]:
        """Of a device function for these arguments. It calls none that calls it, so this ends."""
        given = tuple(self._argument(argument) for argument in arguments)
        found = self._memo.get((name, given))
        if found is None:
            found = tuple(Widths(self._functions, self._functions[name], given, self._memo)._returned)
            self._memo[name, given] = found
        return found

    def _argument(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name) and node.id in self._arrays:
            return self._arrays[node.id]
        return self._of(node) or ""


def _joined(one: _Known, other: _Known) -> _Known:
    if one is None or other is None:
        return other if one is None else one
    return one if one == other else ""
