"""Kernels whose threads work together, for a machine that runs threads one after the other.

The block's own control flow stays as it is; each segment between its parts becomes a loop over the threads. What a
thread holds from one segment to the next lies in an array with an element for each thread, what is the same for all
threads is one variable. A thread's places are computed anew in each segment: a compiler that sees them can vectorise.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from p2pcompute.execution._block_races import Races
from p2pcompute.execution._guard_block import Barrier, BlockPlan, Part, Segment, Whole
from p2pcompute.execution._guard_scratch import memory_call
from p2pcompute.execution._lower_types import Scalar, zero

if TYPE_CHECKING:
    from p2pcompute.execution._lower_expr import ExpressionLowering

__all__ = ["BlockCode", "BlockEmitter", "BlockMemory", "Statements", "repeatable"]

_DTYPES = {
    Scalar.BOOL: "bool",
    Scalar.INT: "int64",
    Scalar.UINT: "uint64",
    Scalar.F32: "float32",
    Scalar.F64: "float64",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMemory:
    """A flat array that a block's code is given to work in: of `size` elements, or so many for each thread."""

    name: str
    dtype: str
    size: int
    by_thread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCode:
    """Code of a kernel that is run by blocks.

    Attributes:
        functions: (name, code) of the functions that `block` calls.
        block: code of ``block(b_0.., d_0.., n_0.., k, <arguments>, <memory>)``: block index, block and grid size along
            each axis of the launch, the block's row, then the arguments that `Lowered` names, and what `memory` names.
            Rows of outputs that threads own are ``k * threads + place in the block``, of those that blocks own ``k``.
        vectors: global names ``o<n>`` of uint64 vectors, one element for each thread of the block.
        snapshots: names of the shared arrays that have one.
        memory: flat arrays that one block at a time works in. The code zeroes them.
    """

    functions: tuple[tuple[str, str], ...]
    block: str
    vectors: tuple[tuple[int, ...], ...]
    memory: tuple[BlockMemory, ...]
    snapshots: frozenset[str] = frozenset()


class Statements(Protocol):
    """The lowering of single statements, typed already."""

    expressions: ExpressionLowering

    def statement(self, node: ast.stmt) -> None:
        """Emit a statement that is within a segment, or the block's own."""
        ...

    def thread_head(self) -> list[str]:
        """Lines that each thread of a segment begins with, after its place is known."""
        ...

    def scalar_type(self, name: str) -> Scalar:
        """A variable's type."""
        ...

    def parameter(self, name: str) -> str | None:
        """Code for the value of a scalar parameter, of the type of its variable; None for any other name."""
        ...


def repeatable(body: Sequence[ast.stmt], names: frozenset[str], params: frozenset[str]) -> dict[str, ast.stmt]:
    """Variables that every segment may compute anew, with the statement that does: assigned once, at the top level,
    before they are read, from places, lengths, literals, parameters that stay, and such variables."""
    stores: dict[str, int] = dict.fromkeys(params, 1)
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                stores[node.id] = stores.get(node.id, 0) + 1
    good: dict[str, ast.stmt] = {}
    seen: set[str] = set()
    known = {name for name in params if stores[name] == 1}
    for statement in body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and not memory_call(statement.value):
            target = statement.targets[0]
            targets = target.elts if isinstance(target, ast.Tuple) else [target]
            if all(
                isinstance(one, ast.Name) and one.id in names and stores[one.id] == 1 and one.id not in seen
                for one in targets
            ) and _plain(statement.value, known):
                for one in targets:
                    if isinstance(one, ast.Name):
                        good[one.id] = statement
                        known.add(one.id)
        seen.update(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
    return good


def _plain(node: ast.expr, known: set[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in known
        case ast.Constant():
            return True
        case ast.Attribute():
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="cuda"), attr="grid" | "gridsize")):
            return True
        case ast.Subscript(value=ast.Attribute(attr="shape")):
            return True
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() | ast.Mod(), right=right):
            return _plain(left, known) and _plain(right, known)
        case ast.Tuple(elts=elements):
            return all(_plain(element, known) for element in elements)
        case _:
            return False


class BlockEmitter:
    """Emits the code of a block. `lower` does statements; its `block` and `while_loop` come back here for what the
    plan says is the block's own."""

    def __init__(
        self,
        lower: Statements,
        plan: BlockPlan,
        races: Races,
        *,
        body: Sequence[ast.stmt],
        names: frozenset[str],
        params: frozenset[str],
        dims: int,
    ) -> None:
        self.lower = lower
        self.plan = plan
        self.races = races
        self.dims = dims
        self.names = names
        blocks_own = self.read_by_block()
        self.again = {
            name: made
            for name, made in repeatable(body, names, params).items()
            if name not in plan.block_names | blocks_own
        }
        self.order = {id(statement): at for at, statement in enumerate(body)}
        self.uses = [_Uses.of(segment.statements) for segment in plan.segments]
        carried: set[str] = set()
        for use in self.uses:
            carried |= use.exposed
        self.held = sorted((carried | blocks_own) & (names - plan.block_names - set(self.again)))
        self.functions: list[tuple[str, str]] = []
        self.in_segment = False

    def read_by_block(self) -> set[str]:
        """Variables of threads that the block's control flow reads, or sets: the same for all threads."""
        found: set[str] = set()
        for parts in self.plan.parts.values():
            for part in parts:
                if isinstance(part, Whole):
                    match part.statement:
                        case ast.If(test=head) | ast.While(test=head):
                            found |= _names(head)
                        case ast.For(target=target, iter=head):
                            found |= _names(head) | _names(target)
                        case _:
                            pass
        return found

    @property
    def outer(self) -> bool:
        """Whether the statement at hand is the block's."""
        return not self.in_segment

    def parts_of(self, body: Sequence[ast.stmt]) -> list[Part] | None:
        """What a list of statements falls into; None where it is not the block's."""
        return None if self.in_segment else self.plan.parts.get(id(body))

    def state(self) -> list[str]:
        """Lines that set what threads hold, and variables of the block."""
        lines = [" size = " + " * ".join(f"d_{axis}" for axis in range(self.dims))]
        for name in sorted(self.names):
            kind = self.lower.scalar_type(name)
            start = self.lower.parameter(name)
            if name in self.held:
                lines.append(" for z in range(size):")
                lines.append(f"  x_{name}[z] = {zero(kind) if start is None else start}")
            elif start is not None:
                lines.append(f" v_{name} = {start}")
            elif name in self.plan.block_names:
                lines.append(f" v_{name} = {zero(kind)}")
        return lines

    def memory(self) -> list[BlockMemory]:
        """The arrays of variables that threads hold."""
        return [
            BlockMemory(name=f"x_{name}", dtype=_DTYPES[self.lower.scalar_type(name)], size=1, by_thread=True)
            for name in self.held
        ]

    def emit_parts(self, parts: Sequence[Part]) -> None:
        """Emit a list of the block's."""
        expressions = self.lower.expressions
        for part in parts:
            match part:
                case Segment():
                    self.segment(part)
                case Barrier(number=number):
                    for name in sorted(self.races.refresh[number]):
                        expressions.emit(f"for z in range(m_{name}.shape[0]):")
                        expressions.emit(f" w_{name}[z] = m_{name}[z]")
                case Whole(statement=statement):
                    match statement:
                        case ast.If(test=head) | ast.For(iter=head):
                            self.fetch(head)
                        case _:
                            pass
                    self.lower.statement(statement)

    def fetch(self, head: ast.expr) -> None:
        """Bring variables that threads hold, and that are the same for all, to where the block reads them."""
        for name in sorted(_names(head)):
            if name in self.held:
                self.lower.expressions.emit(f"v_{name} = x_{name}[0]")

    def target(self, name: str) -> None:
        """The block has set a loop's variable that threads hold."""
        if name in self.held:
            self.lower.expressions.emit("for z in range(size):")
            self.lower.expressions.emit(f" x_{name}[z] = v_{name}")

    def repeat(self, wanted: set[str]) -> None:
        """Emit the statements that compute `wanted` anew, and what they need."""
        needed: set[str] = set()
        stack = [name for name in wanted if name in self.again]
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack += [other for other in _names(self.again[name]) if other in self.again]
        statements = {id(self.again[name]): self.again[name] for name in needed}
        for statement in sorted(statements.values(), key=lambda one: self.order[id(one)]):
            self.lower.statement(statement)

    def segment(self, segment: Segment) -> None:
        """Emit a segment: a loop over the block's threads."""
        expressions = self.lower.expressions
        use = self.uses[segment.number]
        outer = expressions.depth
        apart = segment.last
        around = expressions.lines
        if apart:
            expressions.lines = []
            expressions.depth = 1
        else:
            place = "0"
            for axis in reversed(range(self.dims)):
                expressions.emit(f"for t_{axis} in range(d_{axis}):")
                expressions.depth += 1
                place = f"t_{axis}" if place == "0" else f"({place} * d_{axis} + t_{axis})"
            expressions.emit(f"q = uint64({place})")
        expressions.emit("r = uint64(k) * uint64(size) + q")
        for axis in range(self.dims):
            expressions.emit(f"g{axis} = b_{axis} * d_{axis} + t_{axis}")
        for line in self.lower.thread_head():
            expressions.emit(line)
        self.in_segment = True
        self.repeat(use.read)
        for name in self.held:
            if name in use.exposed or (name in use.assigned and name not in use.sure):
                expressions.emit(f"v_{name} = x_{name}[q]")
        for name in sorted(use.assigned - use.sure - set(self.held) - set(self.again)):
            expressions.emit(f"v_{name} = {zero(self.lower.scalar_type(name))}")
        for statement in segment.statements:
            self.lower.statement(statement)
        if not apart:
            for name in self.held:
                if name in use.assigned:
                    expressions.emit(f"x_{name}[q] = v_{name}")
        self.in_segment = False
        expressions.depth = outer
        if apart:
            name = f"segment{segment.number}"
            self.functions.append((name, "\n".join(expressions.lines) + "\n"))
            expressions.lines = around

    def tail(self, arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Lines that call the last segment, where it is a function, and the function: there a thread may return."""
        if not self.functions:
            return [], []
        name, code = self.functions[0]
        places = [f"{letter}_{axis}" for letter in "tbdn" for axis in range(self.dims)]
        mine = [f"x_{held}" for held in self.held]
        outer = sorted(
            other
            for other in self.names - set(self.held)
            if other in self.plan.block_names or self.lower.parameter(other) is not None
        )
        given = ", ".join([*places, "q", "k", "size", *arguments, *mine, *(f"v_{other}" for other in outer)])
        lines: list[str] = []
        place = "0"
        depth = 1
        for axis in reversed(range(self.dims)):
            lines.append(" " * depth + f"for t_{axis} in range(d_{axis}):")
            depth += 1
            place = f"t_{axis}" if place == "0" else f"({place} * d_{axis} + t_{axis})"
        lines.append(" " * depth + f"q = uint64({place})")
        lines.append(" " * depth + f"{name}({given})")
        return lines, [(name, f"def {name}({given}):\n{code}")]


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


@dataclass(slots=True)
class _Uses:
    """What a segment does to variables: reads before it has surely assigned them, reads, assigns, surely assigns."""

    exposed: set[str]
    read: set[str]
    assigned: set[str]
    sure: set[str]

    @classmethod
    def of(cls, statements: Sequence[ast.stmt]) -> _Uses:
        uses = cls(set(), set(), set(), set())
        uses.sure = uses.block(statements, set())
        return uses

    def reads(self, node: ast.AST, sure: set[str]) -> None:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                self.read.add(inner.id)
                if inner.id not in sure:
                    self.exposed.add(inner.id)

    def block(self, statements: Sequence[ast.stmt], sure: set[str]) -> set[str]:
        sure = set(sure)
        for statement in statements:
            match statement:
                case ast.Assign(targets=targets, value=value):
                    self.reads(value, sure)
                    for target in targets:
                        self.assign(target, sure)
                case ast.AugAssign(target=target, value=value):
                    self.reads(value, sure)
                    if isinstance(target, ast.Name):
                        self.reads(ast.Name(id=target.id, ctx=ast.Load()), sure)
                    self.assign(target, sure)
                case ast.If(test=test, body=body, orelse=orelse):
                    self.reads(test, sure)
                    sure = self.block(body, sure) & self.block(orelse, sure)
                case ast.While(test=test, body=body):
                    self.reads(test, sure)
                    self.block(body, sure)
                case ast.For(target=ast.Name(id=name), iter=iterated, body=body):
                    self.reads(iterated, sure)
                    self.assigned.add(name)
                    self.block(body, sure | {name})
                case _:
                    self.reads(statement, sure)
        return sure

    def assign(self, target: ast.expr, sure: set[str]) -> None:
        match target:
            case ast.Name(id=name):
                self.assigned.add(name)
                sure.add(name)
            case ast.Tuple(elts=elements):
                for element in elements:
                    self.assign(element, sure)
            case _:
                self.reads(target, sure)
