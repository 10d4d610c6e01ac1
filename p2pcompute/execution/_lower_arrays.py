"""What a function in lowering says of its arrays: code that loads an element, lengths, which rows are a thread's own.

An index that may leave its array is tested; where it is proved that it does not, no test is in the code.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Protocol

from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec
from p2pcompute.execution._block_races import Races
from p2pcompute.execution._guard import Admitted, Function
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute.execution._guard_scratch import Scratch
from p2pcompute.execution._index_ranges import IndexRanges
from p2pcompute.execution._index_values import Site
from p2pcompute.execution._lower_expr import ExpressionLowering
from p2pcompute.execution._lower_scratch import ScratchLowering, zero_of
from p2pcompute.execution._lower_split import is_split, split_load
from p2pcompute.execution._lower_types import ArrayType, Expr, Scalar, Type, as_type
from p2pcompute.execution._lower_widths import Widths

__all__ = ["ArrayLowering", "Instance", "Program"]


@dataclass(slots=True)
class Instance:
    """A device function for one combination of argument types. `result` is known when its body has been lowered."""

    name: str
    result: Scalar | tuple[Scalar, ...]
    code: str
    calls: list[str] = field(default_factory=list)


class Program(Protocol):
    """The program that a function is lowered in: what is known of the launch, and the other functions."""

    admitted: Admitted
    launch: Launch
    specs: dict[str, ArgSpec]
    extents: tuple[int, int, int]
    ranges: IndexRanges
    races: Races
    scratch: ScratchLowering
    sites: dict[int, Site]
    known_widths: dict[tuple[str, tuple[str, ...]], tuple[str | None, ...]]

    def instance(self, name: str, types: tuple[Type, ...], widths: tuple[str, ...]) -> Instance:
        """The device function for these types of arguments, and widths of integers where they are counted."""
        ...

    def note_round(self, function: Function) -> None:
        """Types are worked out along `function` once more. Raises `KernelError` where that is too much."""
        ...


class ArrayLowering:
    """The arrays of one function, for one combination of argument types. What it emits goes to `expressions`."""

    def __init__(
        self,
        program: Program,
        function: Function,
        types: tuple[Type, ...],
        widths: tuple[str, ...] = (),
        *,
        is_entry: bool,
    ) -> None:
        self.program = program
        self.function = function
        self.params = types
        self.is_entry = is_entry
        self.types: dict[str, Type] = dict(zip(function.params, types, strict=True))
        for array in function.scratch.values():
            self.types[array.name] = ArrayType(
                dtype=array.dtype,
                ndim=len(array.shape),
                kind=array.kind,
                shape=array.shape,
                name=array.name if array.kind == "const" else "",
            )
        self.result: Scalar | tuple[Scalar, ...] | None = None
        self.called: list[str] = []
        self.grid = program.admitted.grid.variables if is_entry else {}
        self.scratch = program.scratch if is_entry else _passed_arrays(function, types)
        if is_entry:
            widths = tuple(spec.dtype for spec in program.specs.values())
        given = [kind.dtype if isinstance(kind, ArrayType) else own for kind, own in zip(types, widths, strict=True)]
        self.widths = Widths(program.admitted.functions, function, given, program.known_widths)
        self.ranges = program.ranges
        self.expressions = ExpressionLowering(self, self.types, self.grid, program.launch.dims, function.filename)

    def dtype(self, name: str, kind: Scalar) -> str:
        spec = self.program.specs[name]
        return spec.dtype if self.is_entry else kind.title

    # ArrayUse

    def axis_length(self, name: str, axis: int) -> str:
        """Code for a length: of an output or a split input, the global one."""
        if name in self.scratch.arrays:
            return str(self.scratch.arrays[name].shape[axis])
        spec = self.program.specs[name] if self.is_entry else None
        if isinstance(spec, OutputSpec) or is_split(spec):
            return f"s_{name}_{axis}"
        return f"p_{name}.shape[{axis}]"

    def call(self, name: str, node: ast.Call, types: tuple[Type, ...]) -> tuple[str, Scalar | tuple[Scalar, ...]]:
        """The instance of a device function for these types."""
        instance = self.program.instance(name, types, tuple(map(self.widths.dtype, node.args)))
        if instance.name not in self.called:
            self.called.append(instance.name)
        return instance.name, instance.result

    def bits(self, node: ast.expr) -> int:
        """How many bits an integer has where they are counted."""
        return self.widths.bits(node)

    def passed(self, name: str) -> list[str]:
        """Code for an array as an argument of a device function."""
        return self.scratch.passed(name) if name in self.scratch.arrays else [f"p_{name}"]

    def load(self, name: str, kind: ArrayType, indices: list[Expr], axes: list[int | None], key: ast.expr) -> str:
        """Code for an element, or for zero where an index is out of range."""
        if name in self.scratch.arrays:
            return self.scratch.load(self.expressions, name, indices, key)
        spec = self.program.specs.get(name) if self.is_entry else None
        if isinstance(spec, InputSpec) and spec.split is not None:
            return split_load(self, name, spec, indices, key)
        places = [as_type(index, Scalar.UINT) for index in indices]  # negative ones become huge: one test does
        safe = False
        if isinstance(spec, OutputSpec):
            dims = self.program.launch.dims
            places = [self.row(name), *places[dims:]]
            safe = all(self.ranges.inside(key, axis, spec.shape[axis]) for axis in range(dims, len(spec.shape)))
        elif isinstance(spec, InputSpec):
            # A thread runs only inside of some output, so its place is in range on an axis as long as all of them.
            safe = all(
                (grid is not None and length >= self.program.extents[grid]) or self.ranges.inside(key, axis, length)
                for axis, (length, grid) in enumerate(zip(spec.shape, axes, strict=True))
            )
        code = f"p_{name}[{', '.join(places)}]" if safe else f"load{len(places)}(p_{name}, {', '.join(places)})"
        tests = self.own_tests(name, indices, key) if isinstance(spec, OutputSpec) else []
        if not tests:
            return code
        lower, held = self.expressions, self.expressions.temp()
        lower.emit(f"{held} = {zero_of(kind.dtype)}")
        lower.emit(f"if {' & '.join(tests)}:")
        lower.emit(f" {held} = {code}")
        return held

    def own_tests(self, name: str, indices: list[Expr], key: ast.expr) -> list[str]:
        """Code that says whether an element of an output is in a row of this thread's: there is one at all, and an
        index that is its place in some launches, or in a loop's first turn, is that here."""
        tests = [f"in_{name}"] if name in self.unlike else []
        if name not in self.program.admitted.grid.by_block:
            nodes = key.elts if isinstance(key, ast.Tuple) else [key]
            for node, index, axis in zip(nodes, indices, self.program.admitted.grid.mapping[name], strict=False):
                if grid_axis(node, self.grid) is None:
                    tests.append(f"({as_type(index, Scalar.INT)} == g{axis})")
        return tests

    def row(self, name: str) -> str:
        """Code for the row of an output that this thread, or its block, owns."""
        return "uint64(k)" if name in self.program.admitted.grid.by_block else "r"

    def output(self, name: str) -> OutputSpec:
        """What an output is bound to."""
        spec = self.program.specs[name]
        assert isinstance(spec, OutputSpec)
        return spec

    def always(self, node: ast.Compare) -> bool:
        """Whether a comparison is true for every thread that comes there."""
        return self.is_entry and self.ranges.holds(node)

    def never(self, node: ast.Compare) -> bool:
        """Whether it is false for every one of them; asked of code for the inner threads only."""
        return self.is_entry and self.ranges.fails(node)

    @property
    def unlike(self) -> frozenset[str]:
        """Outputs whose leading axes are not as long as the longest: threads run that lie outside of them."""
        found: set[str] = set()
        if not self.is_entry:
            return frozenset()
        for name, mapping in self.program.admitted.grid.mapping.items():
            shape = self.program.specs[name]
            assert isinstance(shape, OutputSpec)
            most = self.program.extents
            if name in self.program.admitted.grid.by_block:
                most = self.program.launch.grid
            if any(shape.shape[place] < most[axis] for place, axis in enumerate(mapping)):
                found.add(name)
        return frozenset(found)


def _passed_arrays(function: Function, types: tuple[Type, ...]) -> ScratchLowering:
    """The arrays that the kernel declares and a device function is passed, under its names."""
    arrays: dict[str, Scratch] = {}
    names: dict[str, str] = {}
    offsets: dict[str, str] = {}
    for name, kind in zip(function.params, types, strict=True):
        if isinstance(kind, ArrayType) and kind.kind:
            arrays[name] = Scratch(name=name, kind=kind.kind, dtype=kind.dtype, shape=kind.shape, values=(), line=0)
            names[name] = f"c_{kind.name}" if kind.kind == "const" else f"p_{name}"
            if kind.kind == "local":
                offsets[name] = f"a_{name}"
    return ScratchLowering(arrays, {}, names=names, offsets=offsets)
