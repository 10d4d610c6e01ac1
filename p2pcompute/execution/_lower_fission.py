"""Statements of a kernel whose threads work together: those of segments as ever, the block's own around them."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from p2pcompute.execution._block_races import Races
from p2pcompute.execution._guard_block import BlockPlan
from p2pcompute.execution._lower_block import BlockCode, BlockEmitter, BlockMemory
from p2pcompute.execution._lower_expr import ExpressionLowering, widen
from p2pcompute.execution._lower_function import FunctionLowering, going_on
from p2pcompute.execution._lower_scratch import ScratchLowering, zero_of
from p2pcompute.execution._lower_types import ArrayType, Expr, Scalar, as_type

__all__ = ["block_code"]


def block_code(typed: FunctionLowering, plan: BlockPlan, races: Races, arguments: Sequence[str]) -> BlockCode:
    """The code of a block, from the lowering of the kernel as if for one thread, which has settled the types.

    Args:
        typed: that lowering.
        plan: how the kernel falls into segments.
        races: which loads read snapshots.
        arguments: names of the kernel's arguments in the code.
    """
    return _BlockLowering(typed, plan, races).code(arguments)


class _BlockLowering(FunctionLowering):
    def __init__(self, typed: FunctionLowering, plan: BlockPlan, races: Races) -> None:
        super().__init__(typed.program, typed.function, typed.params, is_entry=True)
        self.types = dict(typed.types)
        self.scratch = ScratchLowering(typed.function.scratch, typed.program.sites, races=races, by_turns=True)
        self.dims = typed.program.launch.dims
        self.races = races
        names = frozenset(name for name in typed.function.names if not isinstance(self.types.get(name), ArrayType))
        self.expressions = ExpressionLowering(self, self.types, self.grid, self.dims, self.function.filename)
        self.expressions.depth = 0
        self.emitter = BlockEmitter(
            self,
            plan,
            races,
            body=self.function.node.body,
            names=names,
            params=frozenset(self.function.params),
            dims=self.dims,
        )

    def code(self, arguments: Sequence[str]) -> BlockCode:
        self.block(self.function.node.body)
        places = [f"{letter}_{axis}" for letter in "bdn" for axis in range(self.dims)]
        made: list[BlockMemory] = []
        for array in self.function.scratch.values():
            if array.kind == "shared":
                made.append(BlockMemory(name=f"m_{array.name}", dtype=array.dtype, size=array.size))
                if array.name in self.races.marked:
                    made.append(BlockMemory(name=f"w_{array.name}", dtype=array.dtype, size=array.size))
            elif array.kind == "local":
                made.append(BlockMemory(name=f"l_{array.name}", dtype=array.dtype, size=array.size, by_thread=True))
        call, functions = self.emitter.tail([*arguments, *(array.name for array in made)])
        lines = self.emitter.state()
        for flat in made:
            lines.append(f" for z in range({f'size * {flat.size}' if flat.by_thread else flat.size}):")
            lines.append(f"  {flat.name}[z] = {zero_of(flat.dtype)}")
        memory = (*made, *self.emitter.memory())
        head = f"def block({', '.join([*places, 'k', *arguments, *(array.name for array in memory)])}):\n"
        return BlockCode(
            functions=tuple(functions),
            block=head + "\n".join([*lines, *self.expressions.lines, *call]) + "\n",
            vectors=tuple(self.races.vectors),
            memory=memory,
            snapshots=self.races.marked,
        )

    # What the emitter asks

    def scalar_type(self, name: str) -> Scalar:
        """A variable's type."""
        kind = self.types.get(name, Scalar.BOOL)
        assert isinstance(kind, Scalar)
        return kind

    def parameter(self, name: str) -> str | None:
        """Code for the value of a scalar parameter, of the type of its variable."""
        if name not in self.function.params:
            return None
        kind = self.params[self.function.params.index(name)]
        if not isinstance(kind, Scalar):
            return None
        return as_type(widen(f"p_{name}", self.dtype(name, kind)), self.scalar_type(name))

    # What differs from a thread by itself

    def block(self, body: list[ast.stmt], first: tuple[ast.expr, Expr] | None = None) -> None:
        """A block one level deeper: the block's own falls into parts."""
        parts = self.emitter.parts_of(body)
        if parts is None:
            super().block(body, first)
            return
        lower = self.expressions
        lower.depth += 1
        start = len(lower.lines)
        if first is not None:
            self.assign(*first)
            if isinstance(first[0], ast.Name):
                self.emitter.target(first[0].id)
        self.emitter.emit_parts(parts)
        if len(lower.lines) == start:
            lower.emit("pass")
        lower.depth -= 1

    def while_loop(self, node: ast.While) -> None:
        """A loop; the block's own reads what threads hold each time around."""
        test, body = node.test, node.body
        if self.emitter.parts_of(body) is None:
            super().while_loop(node)
            return
        lower = self.expressions
        lower.emit("while True:")
        lower.depth += 1
        self.emitter.fetch(test)
        lower.emit(f"if not {going_on(lower.scalar(test))}:")
        lower.emit(" break")
        lower.depth -= 1
        self.block(body)
