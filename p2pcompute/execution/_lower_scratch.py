"""Loads and stores of the arrays that a kernel declares.

They are flat in the code that comes out: an element's place is computed here, from lengths that stand in the text,
and so is the test that keeps it inside; where all touches surely lie inside there is none.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute.execution._block_races import Races
from p2pcompute.execution._guard_scratch import Scratch
from p2pcompute.execution._index_values import Site
from p2pcompute.execution._language import ATOMICS
from p2pcompute.execution._lower_expr import ExpressionLowering, widen
from p2pcompute.execution._lower_types import Expr, Scalar, as_type, store_code, to_dtype, wrapping

if TYPE_CHECKING:
    from p2pcompute.execution._lower import Lowered

__all__ = ["ScratchLowering", "constants", "dtype_name", "zero_of"]

_LETTERS = {"shared": "m", "local": "l", "const": "c"}


class ScratchLowering:
    """Lowers the touches of declared arrays.

    Args:
        arrays: what the kernel declares.
        sites: what is known of their indices (`index_values`).
        races: which loads of shared arrays read a snapshot, ``w_<name>``.
        names, offsets: code for an array's name, and for where it begins, where a device function was passed it.
        by_turns: whether threads run one after the other: then the local arrays of a block's threads lie behind each
            other, by the thread's place ``q``, and an atomic operation is a load and a store.
    """

    def __init__(
        self,
        arrays: Mapping[str, Scratch],
        sites: Mapping[int, Site],
        *,
        races: Races | None = None,
        by_turns: bool = False,
        names: Mapping[str, str] | None = None,
        offsets: Mapping[str, str] | None = None,
    ) -> None:
        self.arrays = arrays
        self.names = names or {}
        self.offsets = offsets or {}
        self.sites = sites
        self.races = races or Races()
        self.by_turns = by_turns

    def code_name(self, name: str) -> str:
        """The array's name in the code."""
        return self.names.get(name) or f"{_LETTERS[self.arrays[name].kind]}_{name}"

    def passed(self, name: str) -> list[str]:
        """Code for an array as the argument of a device function: a constant one is known there by its name, a local
        one may begin anywhere."""
        match self.arrays[name].kind:
            case "const":
                return []
            case "local":
                return [self.code_name(name), self.offset(name) or "uint64(0)"]
            case _:
                return [self.code_name(name)]

    def offset(self, name: str) -> str:
        """Code for the place of the array's first element, or nothing where it is 0."""
        if name in self.offsets:
            return self.offsets[name]
        array = self.arrays[name]
        return f"q * uint64({array.size})" if array.kind == "local" and self.by_turns else ""

    def place(self, lower: ExpressionLowering, name: str, indices: list[Expr], key: ast.expr) -> tuple[str, str]:
        """Code for an element's place, and for the test that it is inside; no test where it surely is."""
        array = self.arrays[name]
        site = self.sites.get(id(key))
        safe = site is not None and site.within(array.shape)
        place, tests = "", []
        for index, length in zip(indices, array.shape, strict=True):
            code = as_type(index, Scalar.UINT)  # negative ones become huge: one test does
            if not safe:
                code = lower.held(Expr(code, Scalar.UINT)).code
                tests.append(f"({code} < uint64({length}))")
            place = f"({place} * uint64({length}) + {code})" if place else code
        if offset := self.offset(name):
            place = f"({offset} + {place})"
        return place, " & ".join(tests)

    def load(self, lower: ExpressionLowering, name: str, indices: list[Expr], key: ast.expr) -> str:
        """Code for an element, or for zero where an index is out of range."""
        place, test = self.place(lower, name, indices, key)
        code = f"{self.code_name(name)}[{place}]"
        own = self.races.own.get(id(key))
        if not test and own is None:
            return code
        held = lower.temp()
        lower.emit(f"{held} = {zero_of(self.arrays[name].dtype)}")
        depth = lower.depth
        if test:
            lower.emit(f"if {test}:")
            lower.depth += 1
        if own is not None:
            at = lower.temp()
            lower.emit(f"{at} = {place}")
            lower.emit(f"if {' | '.join(f'({at} == {self.vector(number)})' for number in own)}:")
            lower.emit(f" {held} = m_{name}[{at}]")
            lower.emit("else:")
            lower.emit(f" {held} = w_{name}[{at}]")
        else:
            lower.emit(f"{held} = {code}")
        lower.depth = depth
        return held

    def vector(self, number: int) -> str:
        """Code for the element that a thread may have stored."""
        vector = self.races.vectors[number]
        moved = {element - thread for thread, element in enumerate(vector) if element < 1 << 63}
        # All that store keep one distance to their place. The others' elements no thread stores.
        if len(moved) == 1 and (by := moved.pop()) >= 0:
            return f"(q + uint64({by}))" if by else "q"
        if not self.by_turns:  # of a block's thousand vectors, an argument: a compiler would freeze them
            return f"o[uint64({number}) * uint64(size) + q]"
        return f"o{number}[q]"

    def atomic(
        self, lower: ExpressionLowering, name: str, indices: list[Expr], key: ast.expr, op: str, value: Expr
    ) -> None:
        """Emit an atomic operation."""
        dtype = self.arrays[name].dtype
        operand = lower.held(to_dtype(value, dtype))
        place, test = self.place(lower, name, indices, key)
        if test:
            lower.emit(f"if {test}:")
        deep = " " if test else ""
        if not self.by_turns:
            lower.emit(f"{deep}atomic_{op.rstrip('_')}(m_{name}, {place}, {store_code(operand, dtype)})")
            return
        at = lower.temp()
        lower.emit(f"{deep}{at} = {place}")
        have = widen(f"m_{name}[{at}]", dtype)
        code = as_type(operand, have.type)
        if op == "add":
            result = wrapping("+", have.code, code, have.type)
        elif op in ("max", "min"):
            result = f"{op}imum({have.code}, {code})"
        else:
            result = f"({have.code} {ATOMICS[op]} {code})"
        lower.emit(f"{deep}m_{name}[{at}] = {store_code(Expr(result, have.type), dtype)}")

    def store(self, lower: ExpressionLowering, name: str, indices: list[Expr], key: ast.expr, value: Expr) -> None:
        """Emit a store; out of range it is dropped."""
        stored = lower.held(Expr(store_code(value, self.arrays[name].dtype), value.type)).code
        place, test = self.place(lower, name, indices, key)
        if test:
            lower.emit(f"if {test}:")
        lower.emit(f"{' ' if test else ''}{self.code_name(name)}[{place}] = {stored}")


def zero_of(dtype: str) -> str:
    """Code for a zero element."""
    return {"bool": "False", "int64": "0", "float64": "0.0"}.get(dtype, f"{dtype}(0)")


def dtype_name(dtype: str) -> str:
    """The name of an array's dtype in generated code."""
    return f"np.{'bool_' if dtype == 'bool' else dtype}"


def constants(lowered: Lowered) -> dict[str, np.ndarray[Any, Any]]:
    """The global names of constant arrays and vectors: the compiler freezes what they hold."""
    found = {
        f"c_{array.name}": np.array(array.values, array.dtype) for array in lowered.scratch if array.kind == "const"
    }
    if lowered.block is not None:
        for number, vector in enumerate(lowered.block.vectors):
            found[f"o{number}"] = np.array(vector, np.uint64)
    return found
