"""Statements and whole programs: an admitted kernel, a launch and argument types become typed code.

The text that comes out is plain Python over a few helper names (`_strict`), with every conversion written, one type
for each variable and one function for each combination of argument types. A thread's store into an output becomes a
store into its own row of a compact array; shapes of outputs come as numbers. Geometry and shapes are arguments, so
one compilation serves all sizes; only facts that decide which bounds checks are needed are in the text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._block_races import Races, find_races
from p2pcompute.execution._guard import Admitted, Function
from p2pcompute.execution._guard_places import grid_axis
from p2pcompute.execution._guard_scratch import Scratch, memory_call
from p2pcompute.execution._index_ranges import IndexRanges, index_ranges
from p2pcompute.execution._index_values import Site, index_values
from p2pcompute.execution._language import MAX_INSTANCES
from p2pcompute.execution._lower_apart import apart, renamed
from p2pcompute.execution._lower_block import BlockCode
from p2pcompute.execution._lower_expr import ExpressionLowering, widen
from p2pcompute.execution._lower_scratch import ScratchLowering, zero_of
from p2pcompute.execution._lower_types import (
    ArrayType,
    Expr,
    Scalar,
    Type,
    as_type,
    from_dtype,
    join,
    store_code,
    truth,
    wrapping,
    zero,
)
from p2pcompute.execution._lower_widths import Widths, counts_bits
from p2pcompute.execution._rows import extents

__all__ = ["FunctionLowering", "Lowered", "Parameter", "going_on", "lower"]

_NAME = re.compile(r"\b(?!not\b)[a-z]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of the kernel as the lowered body takes it. `ndim` counts the axes of the array that is passed:
    for an output, the thread axis and the row's."""

    name: str
    spec: ArgSpec
    dtype: str
    ndim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """Typed code.

    Attributes:
        functions: (name, code) of the device functions, callees first.
        body: code of ``body(t_0.., b_0.., d_0.., n_0.., r, <lengths>, <parameters>)``: thread and block index, block
            and grid size along each axis of the launch, the thread's row, then what `arguments` names.
        arguments: names of the body's last arguments: ``s_<output>_<axis>`` (int64, the output's global length) and
            ``p_<name>``, in order.
        parameters: the kernel's parameters in order.
        dims: axes of the launch.
        scratch: arrays that the kernel declares. The body takes its local ones last, in order, as ``l_<name>``: flat,
            of `Scratch.size` elements, for one thread at a time; it zeroes them. Constant ones are global names
            ``c_<name>``, flat.
        block: where threads of a block work together, what runs a block by loops over its threads. Then `body` is for
            a machine that runs them side by side: all of a block's threads call it, it takes the block's row ``k``
            behind ``r``, and last ``m_<name>`` for each shared array, flat, followed by ``w_<name>`` of the same size
            where that has a snapshot; then ``o``, if `BlockCode.vectors` are not empty: they, behind each other. It
            calls ``syncthreads()`` and ``atomic_<operation>(array, place, value)``.
    """

    functions: tuple[tuple[str, str], ...]
    body: str
    arguments: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    dims: int
    scratch: tuple[Scratch, ...] = ()
    block: BlockCode | None = None

    @property
    def locals(self) -> tuple[Scratch, ...]:
        """The local arrays, in order."""
        return tuple(array for array in self.scratch if array.kind == "local")


@dataclass(slots=True)
class _Instance:
    name: str
    result: Scalar | tuple[Scalar, ...]
    code: str
    calls: list[str] = field(default_factory=list)


def lower(admitted: Admitted, launch: Launch, args: Sequence[ArgSpec]) -> Lowered:
    """Type and lower an admitted kernel for arguments that `_rows.check_launch` has passed.

    Raises:
        KernelTypeError: an operation does not fit its operands' types; with the line.
    """
    return _Program(admitted, launch, args).run()


class _Program:
    def __init__(self, admitted: Admitted, launch: Launch, args: Sequence[ArgSpec]) -> None:
        self.admitted = admitted
        self.launch = launch
        self.specs: dict[str, ArgSpec] = dict(zip(admitted.entry.params, args, strict=True))
        self.extents = extents(admitted, launch, args)
        self.check_premises()
        self.instances: dict[tuple[str, tuple[Type, ...], tuple[str, ...]], _Instance] = {}
        self.counts_bits = counts_bits(admitted.functions)
        self.known_widths: dict[tuple[str, tuple[str, ...]], tuple[str | None, ...]] = {}
        scratch, plan = admitted.entry.scratch, admitted.plan
        self.sites: dict[int, Site] = {}
        self.races = Races(refresh=[frozenset()] * (0 if plan is None else plan.barriers))
        self.scratch = ScratchLowering(scratch, self.sites)
        self.ranges = IndexRanges()
        self.work_out_indices(args)

    def check_premises(self) -> None:
        """Indices that are a thread's own in some launches only."""
        entry = self.admitted.entry
        for premise in self.admitted.grid.premises:
            axis, have = "xyz"[premise.axis], self.launch.block[premise.axis]
            if premise.block:
                reason = (
                    f"this is a thread's own place in blocks of {premise.block} threads along {axis}, not of {have}"
                )
                instead = f"start it with {premise.block} threads a block along {axis}, or write cuda.blockDim.{axis}"
                if have == premise.block:
                    continue
            else:
                spec, threads = self.specs[premise.output], have * self.launch.grid[premise.axis]
                assert isinstance(spec, OutputSpec)
                length = spec.shape[premise.place]
                if length <= threads:
                    continue
                reason = f"{threads} threads along {axis} would store {length} rows of {premise.output}, several each"
                instead = f"start it with {-(-length // have)} blocks along {axis}, or leave out [blocks, threads]"
            raise KernelTypeError(reason, line=premise.line, filename=entry.filename, instead=instead)

    def work_out_indices(self, args: Sequence[ArgSpec]) -> None:
        """Types first, without knowing indices: what is known of a variable is known of an integer."""
        admitted, plan = self.admitted, self.admitted.plan
        lowering = FunctionLowering(self, admitted.entry, tuple(map(_type, args)), is_entry=True)
        lowering.run()
        integers = {name for name, kind in lowering.types.items() if kind in (Scalar.BOOL, Scalar.INT)}
        self.ranges = index_ranges(admitted, self.launch, args, self.extents, integers)
        if not admitted.entry.scratch and plan is None:
            return
        self.sites = index_values(admitted, self.launch, args, integers)
        if plan is not None:
            self.races = find_races(admitted, plan, self.sites, self.launch, args, integers)
        self.scratch = ScratchLowering(admitted.entry.scratch, self.sites, races=self.races)

    def run(self) -> Lowered:
        dims = self.launch.dims
        entry = self.admitted.entry
        lowering = FunctionLowering(self, entry, tuple(_type(spec) for spec in self.specs.values()), is_entry=True)
        lines = lowering.run()
        arguments: list[str] = []
        parameters: list[Parameter] = []
        for name, spec in self.specs.items():
            ndim = 0
            if isinstance(spec, OutputSpec):
                arguments += [f"s_{name}_{axis}" for axis in range(len(spec.shape))]
                ndim = 1 + len(spec.shape) - dims
            elif isinstance(spec, InputSpec):
                ndim = len(spec.shape)
            arguments.append(f"p_{name}")
            parameters.append(Parameter(name=name, spec=spec, dtype=spec.dtype, ndim=ndim))
        places = [f"{letter}_{axis}" for letter in "tbdn" for axis in range(dims)]
        local = [array for array in entry.scratch.values() if array.kind == "local"]
        made = [f"l_{array.name}" for array in local]
        row = ["r"]
        if self.admitted.plan is not None:
            row.append("k")
            made += self.shared()
            if self.races.vectors:
                made.append("o")
        head = f"def body({', '.join([*places, *row, *arguments, *made])}):\n"
        where = "".join(f" g{axis} = b_{axis} * d_{axis} + t_{axis}\n" for axis in range(dims))
        for array in local:
            where += f" for z in range({array.size}):\n  l_{array.name}[z] = {zero_of(array.dtype)}\n"
        if self.admitted.plan is not None:
            where += self.together_head()
        used: list[str] = []
        by_name = {instance.name: instance for instance in self.instances.values()}

        def use(name: str) -> None:
            if name not in used:
                for callee in by_name[name].calls:
                    use(callee)
                used.append(name)

        for name in lowering.called:
            use(name)
        block: BlockCode | None = None
        if self.admitted.plan is not None:
            from p2pcompute.execution._lower_fission import block_code

            block = block_code(lowering, self.admitted.plan, self.races, arguments)
        if len(used) > MAX_INSTANCES:
            raise KernelError(
                f"device functions are called with more than {MAX_INSTANCES} combinations of types",
                line=entry.node.lineno,
                filename=entry.filename,
                instead="call each with the same types",
            )
        functions = [(name, by_name[name].code) for name in used]
        body = head + where + lines
        blocks = [] if block is None else ["\n".join([block.block, *(code for _, code in block.functions)])]
        if far := apart(functions, [body, *blocks]):
            functions = [(name, renamed(code, far)) for name, code in functions]
            body = renamed(body, far)
            if block is not None:
                parts = tuple((name, renamed(code, far)) for name, code in block.functions)
                block = replace(block, block=renamed(block.block, far), functions=parts)
        return Lowered(
            functions=tuple(functions),
            body=body,
            arguments=tuple(arguments),
            parameters=tuple(parameters),
            dims=dims,
            scratch=tuple(entry.scratch.values()),
            block=block,
        )

    def shared(self) -> list[str]:
        """Names of the shared arrays, and of the snapshots of those that have one."""
        names: list[str] = []
        for array in self.admitted.entry.scratch.values():
            if array.kind == "shared":
                names.append(f"m_{array.name}")
                if array.name in self.races.marked:
                    names.append(f"w_{array.name}")
        return names

    def together_head(self) -> str:
        """The thread's place in its block; then all threads zero what they share."""
        dims = self.launch.dims
        place = "t_0"
        for axis in range(1, dims):
            place = f"{place} + t_{axis} * {' * '.join(f'd_{lower}' for lower in range(axis))}"
        size = " * ".join(f"d_{axis}" for axis in range(dims))
        lines = f" size = {size}\n q = uint64({place})\n"
        for name in self.shared():
            array = self.admitted.entry.scratch[name[2:]]
            lines += "".join(f" {line}\n" for line in _in_turn(name, zero_of(array.dtype), array.size))
        return lines + " syncthreads()\n"

    def instance(self, name: str, types: tuple[Type, ...], widths: tuple[str, ...]) -> _Instance:
        if name not in self.counts_bits:
            widths = ("",) * len(types)
        key = (name, types, widths)
        found = self.instances.get(key)
        if found is None:
            if len(self.instances) > 8 * MAX_INSTANCES:
                raise KernelError("device functions are called with too many combinations of types")
            lowering = FunctionLowering(self, self.admitted.functions[name], types, widths, is_entry=False)
            lines = lowering.run()
            result = lowering.result
            found = _Instance(f"f{len(self.instances)}_{name}", Scalar.BOOL if result is None else result, "")
            params: list[str] = []
            for param, kind in zip(self.admitted.functions[name].params, types, strict=True):
                local = isinstance(kind, ArrayType) and kind.kind == "local"
                if not (isinstance(kind, ArrayType) and kind.kind == "const"):
                    params += [f"p_{param}", f"a_{param}"] if local else [f"p_{param}"]
            found.code = f"def {found.name}({', '.join(params)}):\n{lines}"
            found.calls = lowering.called
            self.instances[key] = found
        return found


def _type(spec: ArgSpec) -> Type:
    if isinstance(spec, ScalarSpec):
        return from_dtype(spec.dtype)
    return ArrayType(dtype=spec.dtype, ndim=len(spec.shape))


class FunctionLowering:
    """Lowers one function for one combination of argument types."""

    def __init__(
        self,
        program: _Program,
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

    def run(self) -> str:
        """Repeat until no type widens; types only ever widen along a chain of five, so it ends."""
        while True:
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

    def dtype(self, name: str, kind: Scalar) -> str:
        spec = self.program.specs[name]
        return spec.dtype if self.is_entry else kind.title

    # ArrayUse

    def axis_length(self, name: str, axis: int) -> str:
        """Code for a length: of an output, the global one."""
        if name in self.scratch.arrays:
            return str(self.scratch.arrays[name].shape[axis])
        if self.is_entry and isinstance(self.program.specs[name], OutputSpec):
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
            case ast.While(test=test, body=body):
                self.while_loop(test, body)
            case ast.For(target=ast.Name() as target, iter=ast.Call(args=bounds), body=body):
                self.range_loop(target, bounds, body)
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
                raise lower.refuse(node, f"{type(node).__name__} is not in the kernel language")

    def barrier(self, node: ast.stmt) -> None:
        """A barrier, and the snapshots that are taken there: a second one keeps stores off until they are."""
        lower, plan = self.expressions, self.program.admitted.plan
        assert plan is not None
        lower.emit("syncthreads()")
        taken = sorted(self.program.races.refresh[plan.barrier_numbers[id(node)]])
        for name in taken:
            for line in _in_turn(f"w_{name}", f"m_{name}[z]", self.function.scratch[name].size):
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
            raise lower.refuse(value, f"an atomic operation with a {operand.type.title}", "convert it: int(...)")
        indices = lower.indices(target, name, lower.array(target, name))
        self.scratch.atomic(lower, name, indices, index, op, operand)

    def while_loop(self, test: ast.expr, body: list[ast.stmt]) -> None:
        lower = self.expressions
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
                raise lower.refuse(value, "one value for several names")
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
                raise lower.refuse(target, f"{len(parts)} values are given here", "assign them to as many names")
            for element, part in zip(target.elts, parts, strict=True):
                self.assign(element, part)

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

    def range_loop(self, target: ast.Name, bounds: list[ast.expr], body: list[ast.stmt]) -> None:
        lower = self.expressions
        codes = [lower.integer(bound) for bound in bounds]
        counter = lower.temp()
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


def _load(target: ast.expr) -> ast.expr:
    if isinstance(target, ast.Name):
        return ast.Name(id=target.id, ctx=ast.Load())
    assert isinstance(target, ast.Subscript)
    return ast.copy_location(ast.Subscript(value=target.value, slice=target.slice, ctx=ast.Load()), target)


def _in_turn(array: str, value: str, size: int) -> list[str]:
    """Lines by which the threads of a block set each element once: unsigned, so that nothing is asked of an index."""
    return ["z = q", f"while z < uint64({size}):", f" {array}[z] = {value}", " z += uint64(size)"]
