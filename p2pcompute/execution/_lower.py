"""Whole programs: an admitted kernel, a launch and argument types become typed code.

The text that comes out is plain Python over a few helper names (`_strict`), with every conversion written, one type
for each variable and one function for each combination of argument types (`_lower_function`). Shapes of outputs come
as numbers. Geometry and shapes are arguments, so one compilation serves all sizes; only facts that decide which
bounds checks are needed are in the text.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import ArgSpec, InputSpec, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._block_races import Races, find_races
from p2pcompute.execution._guard import Admitted, Function
from p2pcompute.execution._guard_scratch import Scratch
from p2pcompute.execution._index_interior import find_interior
from p2pcompute.execution._index_ranges import IndexRanges, index_ranges
from p2pcompute.execution._index_values import Site, index_values
from p2pcompute.execution._language import MAX_INSTANCES, MAX_TYPED_NODES
from p2pcompute.execution._lower_apart import apart, renamed
from p2pcompute.execution._lower_arrays import Instance
from p2pcompute.execution._lower_block import BlockCode
from p2pcompute.execution._lower_fission import block_code
from p2pcompute.execution._lower_function import FunctionLowering, in_turn
from p2pcompute.execution._lower_scratch import ScratchLowering, zero_of
from p2pcompute.execution._lower_split import check_reads, is_split, split_arguments
from p2pcompute.execution._lower_types import ArrayType, Scalar, Type, from_dtype
from p2pcompute.execution._lower_widths import counts_bits
from p2pcompute.execution._rows import extents

__all__ = ["Inner", "Lowered", "Parameter", "lower"]

_SHORT = 60  # lines of a kernel that is compiled twice, for its border and for the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of the kernel as the lowered body takes it. `ndim` counts the axes of the array that is passed:
    for an output, the thread axis and the row's."""

    name: str
    spec: ArgSpec
    dtype: str
    ndim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """Code for the threads whose place along each axis is from `low` to below `high`: of the same name, arguments and
    results as the body, with fewer tests. A back end need not use it."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """Typed code.

    Attributes:
        functions: (name, code) of the device functions, callees first.
        body: code of ``body(t_0.., b_0.., d_0.., n_0.., r, <lengths>, <parameters>)``: thread and block index, block
            and grid size along each axis of the launch, the thread's row, then what `arguments` names.
        arguments: names of the body's last arguments: ``s_<output>_<axis>`` (int64, the output's global length) and
            ``p_<name>``, in order; before a split input's also what `split_arguments` gives.
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
        inner: the body for those threads that are not at a border, where they need fewer tests.
    """

    functions: tuple[tuple[str, str], ...]
    body: str
    arguments: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    dims: int
    scratch: tuple[Scratch, ...] = ()
    block: BlockCode | None = None
    inner: Inner | None = None

    @property
    def locals(self) -> tuple[Scratch, ...]:
        """The local arrays, in order."""
        return tuple(array for array in self.scratch if array.kind == "local")


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
        self.instances: dict[tuple[str, tuple[Type, ...], tuple[str, ...]], Instance] = {}
        self.counts_bits = counts_bits(admitted.functions)
        self.sizes: dict[str, int] = {}
        self.typed_nodes = 0
        self.known_widths: dict[tuple[str, tuple[str, ...]], tuple[str | None, ...]] = {}
        scratch, plan = admitted.entry.scratch, admitted.plan
        self.sites: dict[int, Site] = {}
        self.races = Races(refresh=[frozenset()] * (0 if plan is None else plan.barriers))
        self.scratch = ScratchLowering(scratch, self.sites)
        self.ranges = IndexRanges()
        self.integers: frozenset[str] = frozenset()
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
        check_reads(admitted, self.specs, self.ranges)
        self.integers = frozenset(integers)
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
                arguments += split_arguments(name, spec)
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
        inner = self.inner(head + where, lines)
        blocks = [] if block is None else ["\n".join([block.block, *(code for _, code in block.functions)])]
        if far := apart(functions, [body, *blocks]):
            functions = [(name, renamed(code, far)) for name, code in functions]
            body = renamed(body, far)
            if inner is not None:
                inner = replace(inner, body=renamed(inner.body, far))
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
            inner=inner,
        )

    def inner(self, head: str, lines: str) -> Inner | None:
        """The kernel once more for the threads within its border. One that is long, or calls functions of its own,
        spends its time elsewhere and takes long enough to compile. A split input knows of no border: its window has
        what lies beyond the edges."""
        entry = self.admitted.entry
        if self.admitted.plan is not None or self.instances or lines.count("\n") > _SHORT:
            return None
        if any(is_split(spec) for spec in self.specs.values()):
            return None
        found = find_interior(
            self.admitted, self.launch, tuple(self.specs.values()), self.extents, self.integers, self.ranges
        )
        if found is None:
            return None
        whole, self.ranges = self.ranges, found.ranges
        self.typed_nodes = 0  # the rounds are those that were taken before: no launch has a kernel refused for them
        code = FunctionLowering(self, entry, tuple(map(_type, self.specs.values())), is_entry=True).run()
        self.ranges = whole
        return Inner(low=found.low, high=found.high, body=head + code)

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
            lines += "".join(f" {line}\n" for line in in_turn(name, zero_of(array.dtype), array.size))
        return lines + " syncthreads()\n"

    def note_round(self, function: Function) -> None:
        """A stranger's kernel of a few kilobytes may want a thousand rounds over all of it."""
        if function.name not in self.sizes:
            self.sizes[function.name] = sum(1 for _ in ast.walk(function.node))
        self.typed_nodes += self.sizes[function.name]
        if self.typed_nodes > MAX_TYPED_NODES:
            raise KernelError(
                "the types of variables hang on each other over too many assignments",
                line=function.node.lineno,
                filename=function.filename,
                instead="begin each variable with the type that it ends with, as in v = 0.0 where a float comes later",
            )

    def instance(self, name: str, types: tuple[Type, ...], widths: tuple[str, ...]) -> Instance:
        if name not in self.counts_bits:
            widths = ("",) * len(types)
        key = (name, types, widths)
        found = self.instances.get(key)
        if found is None:
            if len(self.instances) > 8 * MAX_INSTANCES:
                raise KernelError(
                    "device functions are called with too many combinations of types",
                    instead="convert what they are called with to one type: f(np.float32(a))",
                )
            lowering = FunctionLowering(self, self.admitted.functions[name], types, widths, is_entry=False)
            lines = lowering.run()
            result = lowering.result
            found = Instance(f"f{len(self.instances)}_{name}", Scalar.BOOL if result is None else result, "")
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
