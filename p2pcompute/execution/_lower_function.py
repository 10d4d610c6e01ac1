"""Statements of one function: each becomes lines of typed code, and each variable gets the one type it needs.

A thread's store into an output becomes a store into its own row of a compact array.
"""

from __future__ import annotations

import ast
import re

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._guard_scratch import memory_call
from p2pcompute.execution._language_advice import of_a_fraction
from p2pcompute.execution._lower_arrays import ArrayLowering
from p2pcompute.execution._lower_expr import ExpressionLowering, widen
from p2pcompute.execution._lower_types import Expr, Scalar, as_type, join, store_code, truth, wrapping, zero

__all__ = ["FunctionLowering", "going_on", "in_turn"]

_NAME = re.compile(r"\b(?!not\b)[a-z]")


class FunctionLowering(ArrayLowering):
    """Lowers one function for one combination of argument types."""

    def run(self) -> str:
        """Repeat until no type widens; types only ever widen along a chain of five, so it ends. It may take four
        rounds for each variable, where each takes its type from one that is assigned behind it: that is bounded."""
        while True:
            self.program.note_round(self.function)
            before = (dict(self.types), self.result)
            self.called = []
            self.expressions = ExpressionLowering(
                self, self.types, self.grid, self.program.launch.dims, self.function.filename
            )
            self.top(self.function.node.body)
            if (self.types, self.result) == before:
                break
        head: list[str] = []
        for name, kind in zip(self.function.params, self.params, strict=True):
            if isinstance(kind, Scalar):
                wide = self.types[name]
                assert isinstance(wide, Scalar)
                value = widen(f"p_{name}", self.dtype(name, kind)) if self.is_entry else Expr(f"p_{name}", kind)
                head.append(f" v_{name} = {as_type(value, wide)}")
        for name in sorted(self.function.names - set(self.function.params)):
            kind = self.types.get(name, Scalar.BOOL)
            assert isinstance(kind, Scalar)
            if name not in self.grid:
                head.append(f" v_{name} = {zero(kind)}")
        return "\n".join(head + self.expressions.lines) + "\n"

    # Statements

    def top(self, body: list[ast.stmt]) -> None:
        self.expressions.depth = 0
        if self.is_entry:
            self.expressions.lines += [f" {line}" for line in self.thread_head()]
        self.block(body)

    def thread_head(self) -> list[str]:
        """Lines that say of which outputs this thread has a row."""
        lines: list[str] = []
        for name in sorted(self.unlike):
            mapping = self.program.admitted.grid.mapping[name]
            letter = "b_" if name in self.program.admitted.grid.by_block else "g"
            test = " & ".join(f"({letter}{axis} < s_{name}_{place})" for place, axis in enumerate(mapping))
            lines.append(f"in_{name} = {test}")
        return lines

    def block(self, body: list[ast.stmt], first: tuple[ast.expr, Expr] | None = None) -> None:
        """A block one level deeper; `first` is assigned at its head."""
        lower = self.expressions
        lower.depth += 1
        start = len(lower.lines)
        if first is not None:
            self.assign(*first)
        for statement in body:
            self.statement(statement)
        if len(lower.lines) == start:
            lower.emit("pass")
        lower.depth -= 1

    def statement(self, node: ast.stmt) -> None:
        lower = self.expressions
        match node:
            case ast.Assign(value=value) if memory_call(value):
                pass  # declared before the code begins
            case ast.Assign(targets=targets, value=value):
                self.assignment(targets, value)
            case ast.AugAssign(target=target, op=op, value=value):
                have = ast.copy_location(_load(target), target)
                self.assignment([target], ast.copy_location(ast.BinOp(left=have, op=op, right=value), node))
            case ast.If(test=test, body=body, orelse=orelse):
                lower.emit(f"if {truth(lower.scalar(test))}:")
                self.block(body)
                if orelse:
                    lower.emit("else:")
                    self.block(orelse)
            case ast.While():
                self.while_loop(node)
            case ast.For(target=ast.Name() as target, iter=ast.Call(args=bounds)):
                self.range_loop(node, target, bounds)
            case ast.Return(value=None):
                lower.emit("return")
            case ast.Return(value=value) if value is not None:
                self.give_back(node, value)
            case ast.Break():
                lower.emit("break")
            case ast.Continue():
                lower.emit("continue")
            case ast.Pass():
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=op), args=[ast.Name(id=name), index, value])):
                self.atomic(op, name, index, value)
            case ast.Expr(value=ast.Call(func=ast.Name()) as call):
                lower.emit(lower.call(call)[0])
            case ast.Expr():
                self.barrier(node)
            case _:
                raise lower.refuse(
                    node, f"{type(node).__name__} is not in the kernel language", "docs/strict.md has what there is"
                )

    def barrier(self, node: ast.stmt) -> None:
        """A barrier, and the snapshots that are taken there: a second one keeps stores off until they are."""
        lower, plan = self.expressions, self.program.admitted.plan
        assert plan is not None
        lower.emit("syncthreads()")
        taken = sorted(self.program.races.refresh[plan.barrier_numbers[id(node)]])
        for name in taken:
            for line in in_turn(f"w_{name}", f"m_{name}[z]", self.function.scratch[name].size):
                lower.emit(line)
        if taken:
            lower.emit("syncthreads()")

    def atomic(self, op: str, name: str, index: ast.expr, value: ast.expr) -> None:
        lower = self.expressions
        target = ast.copy_location(
            ast.Subscript(value=ast.Name(id=name, ctx=ast.Load()), slice=index, ctx=ast.Store()), index
        )
        operand = lower.scalar(value)
        if operand.type.is_float:
            raise lower.refuse(value, f"an atomic operation with a {operand.type.title}", of_a_fraction(value))
        indices = lower.indices(target, name, lower.array(target, name))
        self.scratch.atomic(lower, name, indices, index, op, operand)

    def while_loop(self, node: ast.While) -> None:
        lower, test, body = self.expressions, node.test, node.body
        sure = self.ranges.once.get(id(node))
        if sure is not None:
            lower.emit("if True:" if sure else f"if {truth(lower.scalar(test))}:")
            self.block(body)
            return
        condition, lines = lower.apart(test)
        if not lines:
            lower.emit(f"while {going_on(condition)}:")
        else:  # the condition needs statements of its own, each time around
            lower.emit("while True:")
            lower.lines += lines
            lower.emit(f" if not {going_on(condition)}:")
            lower.emit("  break")
        self.block(body)

    def assignment(self, targets: list[ast.expr], value: ast.expr) -> None:
        lower = self.expressions
        several = lower.several(value)
        if several is None:
            result = lower.scalar(value)
            if any(isinstance(target, ast.Tuple) for target in targets):
                raise lower.refuse(value, "one value for several names", "give each name one: a, b = v, v")
            if len(targets) > 1:
                name = lower.temp()
                lower.emit(f"{name} = {result.code}")
                result = Expr(name, result.type, result.literal)
            for target in targets:
                self.assign(target, result)
            return
        parts: list[Expr] = []
        if isinstance(several, tuple):
            name = lower.temp()
            lower.emit(f"{name} = {several[0]}")
            parts = [Expr(f"{name}[{place}]", kind) for place, kind in enumerate(several[1])]
        else:
            for part in several:  # all are read before one is written: a, b = b, a
                name = lower.temp()
                if part.literal is None:
                    lower.emit(f"{name} = {part.code}")
                parts.append(part if part.literal is not None else Expr(name, part.type))
        for target in targets:
            if not isinstance(target, ast.Tuple) or len(target.elts) != len(parts):
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Attribute):  # x.shape
                    raise self.shape_refused(target, ast.unparse(value.value), len(parts))
                raise lower.refuse(target, f"{len(parts)} values are given here", "assign them to as many names")
            for element, part in zip(target.elts, parts, strict=True):
                self.assign(element, part)

    def shape_refused(self, target: ast.Tuple, array: str, axes: int) -> KernelError:
        """More or fewer names for a shape than the array has axes."""
        names = len(target.elts)
        stand = f"{names} names stand" if names > 1 else "1 name stands"
        return self.expressions.refuse(
            target,
            f"{array} has {axes} ax{'es' if axes > 1 else 'is'} and {stand} here",
            f"give each axis one name, or write {array}.shape[0]",
        )

    def assign(self, target: ast.expr, value: Expr) -> None:
        lower = self.expressions
        if isinstance(target, ast.Name):
            if target.id in self.grid:
                lower.emit(f"v_{target.id} = {value.code}")
                self.types[target.id] = Scalar.INT
                return
            have = self.types.get(target.id, Scalar.BOOL)
            if not isinstance(have, Scalar):
                raise lower.refuse(target, f"{target.id} is an array here", "assign to another name")
            kind = join(have, value.type)
            self.types[target.id] = kind
            lower.emit(f"v_{target.id} = {as_type(value, kind)}")
            return
        assert isinstance(target, ast.Subscript)
        assert isinstance(target.value, ast.Name)
        name = target.value.id
        array = lower.array(target, name)
        indices = lower.indices(target, name, array)
        if name in self.scratch.arrays:
            self.scratch.store(lower, name, indices, target.slice, value)
            return
        places, tests = [self.row(name)], self.own_tests(name, indices, target.slice)
        for axis, index in enumerate(indices[self.program.launch.dims :]):
            place = lower.held(Expr(as_type(index, Scalar.UINT), Scalar.UINT)).code
            places.append(place)
            whole = self.program.launch.dims + axis
            if not self.ranges.inside(target.slice, whole, self.output(name).shape[whole]):
                tests.append(f"({place} < uint64(p_{name}.shape[{axis + 1}]))")
        stored = (
            lower.held(Expr(store_code(value, array.dtype), value.type)).code
            if tests
            else store_code(value, array.dtype)
        )
        if tests:
            lower.emit(f"if {' & '.join(tests)}:")
        lower.emit(f"{' ' if tests else ''}p_{name}[{', '.join(places)}] = {stored}")

    def range_loop(self, node: ast.For, target: ast.Name, bounds: list[ast.expr]) -> None:
        lower, body = self.expressions, node.body
        codes = [lower.integer(bound) for bound in bounds]
        counter = lower.temp()
        sure = self.ranges.once.get(id(node))
        if sure is not None:
            lower.emit(f"{counter} = {codes[0]}")
            lower.emit("if True:" if sure else f"if {counter} < {codes[1]}:")
            self.block(body, (target, Expr(counter, Scalar.INT)))
            return
        if len(codes) == 1:
            lower.emit(f"for {counter} in range({codes[0]}):")
            place = Expr(counter, Scalar.INT)
        else:
            start, step = lower.temp(), lower.temp()
            lower.emit(f"{start} = {codes[0]}")
            lower.emit(f"{step} = {codes[2] if len(codes) == 3 else '1'}")
            lower.emit(f"for {counter} in range(count({start}, {codes[1]}, {step})):")
            place = Expr(wrapping("+", start, wrapping("*", counter, step, Scalar.INT), Scalar.INT), Scalar.INT)
        self.block(body, (target, place))

    def give_back(self, node: ast.stmt, value: ast.expr) -> None:
        lower = self.expressions
        several = lower.several(value)
        if several is None:
            result = lower.scalar(value)
            if isinstance(self.result, tuple):
                raise self.mixed(node)
            self.result = result.type if self.result is None else join(self.result, result.type)
            lower.emit(f"return {as_type(result, self.result)}")
            return
        if isinstance(several, tuple):
            name = lower.temp()
            lower.emit(f"{name} = {several[0]}")
            parts = [Expr(f"{name}[{place}]", kind) for place, kind in enumerate(several[1])]
        else:
            parts = several
        kinds = tuple(part.type for part in parts)
        if self.result is not None:
            if not isinstance(self.result, tuple) or len(self.result) != len(kinds):
                raise self.mixed(node)
            kinds = tuple(join(have, kind) for have, kind in zip(self.result, kinds, strict=True))
        self.result = kinds
        codes = [as_type(part, kind) for part, kind in zip(parts, kinds, strict=True)]
        lower.emit(f"return ({', '.join(codes)},)")

    def mixed(self, node: ast.stmt) -> KernelTypeError:
        return self.expressions.refuse(
            node, f"{self.function.name} returns different numbers of values", "return as many in each place"
        )


def going_on(test: Expr) -> str:
    """Code for the test of a while loop. Where it holds no name Python would leave it out, and numba does not compile
    a loop without an end: a call is none that either looks into."""
    code = truth(test)
    return code if _NAME.search(code) else f"({code} & (uint64(1) == uint64(1)))"


def in_turn(array: str, value: str, size: int) -> list[str]:
    """Lines by which the threads of a block set each element once: unsigned, so that nothing is asked of an index."""
    return ["z = q", f"while z < uint64({size}):", f" {array}[z] = {value}", " z += uint64(size)"]


def _load(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Name):
        return ast.Name(id=target.id, ctx=ast.Load())
    assert isinstance(target, ast.Subscript)
    return ast.copy_location(ast.Subscript(value=target.value, slice=target.slice, ctx=ast.Load()), target)
