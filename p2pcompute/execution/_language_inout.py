"""Arrays that a kernel changes in place, in a language where inputs are only read: a rewriting of its tree.

An array that is given to be changed becomes an output, and one more parameter right behind it, the input that holds
what was there. At the top of the kernel each thread stores its own row of that into the output; what follows, the
author's lines as they are, loads and stores its own row there. What comes out is an ordinary kernel of the language: it
is admitted, bound, sent, run and checked as every other, and nobody else knows that there was another one.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution import _language as lang
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._tree import FreeNames

__all__ = ["InPlace"]

_ROOM = 12  # for what is put behind a name, and a number


@dataclass(frozen=True, slots=True)
class InPlace:
    """The rewriting for some arrays of a kernel. `arrays`: (parameter, axes of the array that it is given) of each."""

    arrays: tuple[tuple[str, int], ...]

    def __call__(self, tree: ast.Module, admitted: Admitted) -> ast.Module:
        """The kernel with the arrays as outputs, each with an input behind it. `tree` stays as it is.

        Args:
            tree: the module that was admitted; its lines are those of errors.
            admitted: what came of it. It stores into each of the arrays.

        Raises:
            KernelTypeError: there is no room for as many parameters.
        """
        entry = admitted.entry
        if len(entry.params) + len(self.arrays) > lang.MAX_PARAMS:
            raise KernelTypeError(
                f"{entry.name} has {len(entry.params)} parameters, and p2pcompute.inout takes one more of "
                f"{lang.MAX_PARAMS} for each array",
                line=entry.node.lineno,
                filename=entry.filename,
                instead="put scalars into an input array",
            )
        made = _Names(tree)
        text = _Text(entry.node, made, admitted)
        axes = dict(self.arrays)
        params: list[ast.arg] = []
        for param in entry.node.args.args:
            params.append(param)
            if param.arg in axes:
                given = made.like(param.arg, "given")
                params.append(ast.copy_location(ast.arg(arg=given), param))
                text.bring(param.arg, given, axes[param.arg])
        # Statements are shared with the tree that was given: nobody writes to them.
        kernel = copy.copy(entry.node)
        kernel.args = copy.copy(entry.node.args)
        kernel.args.args = params
        kernel.body = [*text.statements(), *entry.node.body]
        return ast.Module(body=[kernel if node is entry.node else node for node in tree.body], type_ignores=[])


class _Names(FreeNames):
    def like(self, name: str, what: str) -> str:
        """`name`_`what`, with a number behind it where that is taken."""
        return self.take(name[: lang.MAX_NAME_LENGTH - _ROOM].rstrip("_") + "_" + what)


class _Text:
    """The lines at the top. They are written as text and parsed, so that they read as they will."""

    def __init__(self, kernel: ast.FunctionDef, made: _Names, admitted: Admitted) -> None:
        self.kernel = kernel
        self.made = made
        self.grid = admitted.grid
        self.lines: list[str] = []
        self.own: tuple[str, ...] = ()
        self.counters: list[str] = []
        self.by_blocks = False

    def bring(self, name: str, given: str, axes: int) -> None:
        """Have each thread, or each block, store its row of `given` into `name`."""
        mapping = self.grid.mapping[name]
        further = range(len(mapping), axes)
        while len(self.counters) < len(further):
            self.counters.append(self.made.like("at", "row"))
        counters = self.counters[: len(further)]
        loops = [
            f"for {counter} in range({name}.shape[{axis}]):" for counter, axis in zip(counters, further, strict=True)
        ]
        if name in self.grid.by_block:
            self.by_blocks = True
            # One line of the block's threads goes along the row's first axis, or one thread does it.
            tests = [f"cuda.threadIdx.{axis} == 0" for axis in lang.AXES[1 : self.grid.dims]]
            if counters:
                loops[0] = (
                    f"for {counters[0]} in range(cuda.threadIdx.x, {name}.shape[{len(mapping)}], cuda.blockDim.x):"
                )
            else:
                tests = ["cuda.threadIdx.x == 0", *tests]
            if tests:
                loops = [f"if {' and '.join(tests)}:", *loops]
            places = [f"cuda.blockIdx.{lang.AXES[axis]}" for axis in mapping]
        else:
            if not self.own:
                dims = self.grid.dims
                self.own = tuple(self.made.like("own", lang.AXES[axis]) for axis in range(dims))
                self.lines.append(f"{', '.join(self.own)} = cuda.grid({dims})")
            places = [self.own[axis] for axis in mapping]
        index = ", ".join([*places, *counters])
        self.lines += [" " * depth + line for depth, line in enumerate(loops)]
        self.lines.append(" " * len(loops) + f"{name}[{index}] = {given}[{index}]")

    def statements(self) -> Iterator[ast.stmt]:
        """What `bring` has written, as statements of the kernel's first line."""
        lines = [*self.lines, "cuda.syncthreads()"] if self.by_blocks else self.lines
        for statement in ast.parse("\n".join(lines)).body:
            for inner in ast.walk(statement):
                if isinstance(inner, ast.expr | ast.stmt):
                    ast.copy_location(inner, self.kernel)
            yield statement
