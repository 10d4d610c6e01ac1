"""The CPU back end: lowered code through numba, loops over blocks around one function for a thread.

The body stays a function of its own, so that ``return`` keeps its meaning; LLVM inlines it. Processor threads take
portions of a launch, without the interpreter's lock (`_cpu_crew`). Nothing is summed across them, so results do not
depend on how many there are. numba's own parallel loops do the same, and take twice as long to compile. Nothing is
cached on disk: numba's cache is pickle.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import ArgSpec, Array, CompiledKernel, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu_calls import Entry
from p2pcompute.execution._cpu_crew import Crew, Pace, Work
from p2pcompute.execution._cpu_intrinsics import Unshared, across, apart, take
from p2pcompute.execution._cpu_loops import LINES, is_lined, memory, program_text
from p2pcompute.execution._fast_cpu import FAST, fast_helpers
from p2pcompute.execution._fast_matmul import Product, is_product
from p2pcompute.execution._guard import AdmittedSources
from p2pcompute.execution._lower import Lowered, lower
from p2pcompute.execution._lower_scratch import constants
from p2pcompute.execution._lower_split import is_split
from p2pcompute.execution._reduce import plain_outputs, reducing
from p2pcompute.execution._rows import Layout
from p2pcompute.execution._split import Box, blocks_box, check_window, items_box
from p2pcompute.execution._strict import helpers

__all__ = ["CpuBackend"]

# Without numba's run time an array has no owner: with it each thread of a kernel would count references, atomically.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": False, "nogil": True, "_nrt": False}
_KEPT = 64  # compiled and admitted kernels held by one back end
_SAMPLES_ALONE_NS = 5_000_000  # what samples may take on one thread before others help


class CpuBackend:
    """Compiles admitted kernels for this machine's CPU. Holds the latest compilations; not safe to share between
    threads. A context manager, since its own threads have to end.

    Args:
        threads: processor threads that compute, the caller's among them; the others start here.
    """

    name = "cpu"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads  # of a launch, at once
        self._crew = Crew(threads)
        self._namespace = helpers(
            numba.njit(forceinline=True, **_OPTIONS), math_jit=numba.njit(**_OPTIONS), apart=apart
        )
        self._fast: dict[str, Any] | None = None  # what `self._namespace` is, in fast mode; made when it is wanted
        self._programs: OrderedDict[str, _Program] = OrderedDict()
        self._sources = AdmittedSources(_KEPT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.close()

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CompiledKernel:
        """Admit, type and compile; see `Backend.compile`. Sizes and geometry are arguments of the compiled code, so
        another launch of the same kernel over the same types costs no compilation."""
        admitted = self._sources.admit(source)
        given = Layout.of_admitted(admitted, launch, args)
        if source.fp == "fast" and is_product(source, args):
            return Product(launch, given.outputs[0], self._crew.share, self._crew.threads)
        args = plain_outputs(args)
        layout = Layout.of_admitted(admitted, launch, args)
        lowered = lower(admitted, launch, args)
        types_of = [(p.dtype, p.ndim, type(p.spec).__name__) for p in lowered.parameters]
        frozen = [(name, array.tobytes()) for name, array in constants(lowered).items()]
        text = program_text(lowered, launch)
        key = f"{source.fp} {types_of} {frozen} {text}"
        program = self._programs.get(key)
        if program is None:
            if source.fp == "fast":
                program = _Program(lowered, launch, text, self._fast_namespace(), {**_OPTIONS, **FAST})
            else:
                program = _Program(lowered, launch, text, self._namespace, _OPTIONS)
            self._programs[key] = program
            if len(self._programs) > _KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return reducing(_Compiled(program, layout, lowered, self._crew), layout, given)

    def _fast_namespace(self) -> dict[str, Any]:
        if self._fast is None:
            self._fast = fast_helpers(_OPTIONS, apart=apart)
        return self._fast

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).row_shapes

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        """Items of one block."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).items_per_block


class _Program:
    """Compiled code for one text and one set of types. `run_threads` is compiled when it is first asked for.

    Attributes:
        blocks: the entry that runs a portion of blocks.
        memory: of each array that a run works in, its dtype, its length, and whether each thread of a block has one.
    """

    def __init__(
        self, lowered: Lowered, launch: Launch, text: str, namespace: dict[str, Any], options: dict[str, Any]
    ) -> None:
        names: dict[str, Any] = {**namespace, "np": np, "take": take, **constants(lowered)}
        exec(compile(text, "<kernel>", "exec"), names)
        inline = numba.njit(forceinline=True, **options)
        for name, _ in (*lowered.functions, *(lowered.block.functions if lowered.block is not None else ())):
            names[name] = inline(names[name])
        for name in ("body", "inner", "block"):
            if name in names:
                names[name] = inline(names[name])
        if is_lined(lowered):
            most = names["body" if lowered.inner is None else "inner"]
            dims = lowered.dims  # the first arguments are four for each axis, the block's place second, and the row
            at = {"block": dims, "row": 4 * dims, "rows": launch.threads_per_block}
            names["across"] = across(most, launch.block[0], 1, **at)
            if dims > 1:
                names["across_lines"] = across(most, launch.block[0], LINES, **at)
        compiled = numba.njit(pipeline_class=Unshared, **options)
        self._threads = compiled(names["run_threads"])
        integers = [types.int64] * (5 * lowered.dims)
        self.memory = [(np.dtype(array.dtype), array.size, array.by_thread) for array in memory(lowered)]
        work = [types.Array(_numba_dtype(array.dtype), 1, "C") for array in memory(lowered)]
        self._head = (types.Array(types.int64, 1, "C"), types.int64, types.int64)
        self._tail = (*integers, *(_numba_type(name, lowered) for name in lowered.arguments), *work)
        self.blocks = _compile(compiled(names["run_blocks"]), (*self._head, types.int64, *self._tail))

    @cached_property
    def threads(self) -> Entry:
        """As `blocks`, for single items."""
        ids = types.Array(types.int64, 1, "C", readonly=True)
        return _compile(self._threads, (*self._head, ids, *self._tail))


def _compile(function: Any, signature: tuple[Any, ...]) -> Entry:
    try:
        function.compile(signature)
    except NumbaError as error:
        raise KernelError(
            f"numba does not compile this kernel: {str(error)[:400]}",
            instead="report this as a fault of p2pcompute, and write the kernel in smaller steps meanwhile",
        ) from error
    return Entry(function, signature)


def _numba_type(argument: str, lowered: Lowered) -> Any:
    if argument.startswith(("s_", "o_")):
        return types.int64
    parameter = next(p for p in lowered.parameters if argument == f"p_{p.name}")
    kind = _numba_dtype(parameter.dtype)
    if parameter.ndim:
        return types.Array(kind, parameter.ndim, "C", readonly=isinstance(parameter.spec, InputSpec))
    return kind


def _numba_dtype(dtype: str) -> Any:
    return types.boolean if dtype == "bool" else getattr(types, dtype)


class _Compiled:
    def __init__(self, program: _Program, layout: Layout, lowered: Lowered, crew: Crew) -> None:
        self._program = program
        self._layout = layout
        self._crew = crew
        self._split = any(is_split(parameter.spec) for parameter in lowered.parameters)
        self._pace, self._thread_pace = Pace(), Pace()
        self._last: _Run | None = None
        launch, inner, dims = layout.launch, lowered.inner, lowered.dims
        within = [0] * (2 * dims) if inner is None else [*inner.low[:dims], *inner.high[:dims]]
        self._head = (*launch.block[:dims], *launch.grid[:dims], *layout.extents[:dims], *within)
        self._kinds = [(p.name, p.spec, np.dtype(p.spec.dtype)) for p in lowered.parameters]
        # What is done for each run is done while the other threads wait for it, on caches that the last run has filled.
        self._rows = [
            (tuple(row), layout.together and not by_block)
            for row, by_block in zip(layout.row_shapes, layout.by_block, strict=True)
        ]

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        launch = self._layout.launch
        if first_block < 0 or blocks < 0 or first_block + blocks > launch.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not in a launch of {launch.blocks}")
        last = self._last
        if last is None or not last.serves(first_block, blocks, args, outs):
            places = blocks_box(launch, first_block, blocks) if self._split and blocks else ()
            given = self._arguments(args, outs, blocks * self._layout.items_per_block, places)
            job = self._job(self._program.blocks, [first_block, *given])
            last = _Run(first_block, blocks, args, outs, job)
            self._last = last if last.again and not self._split else None
            self._crew.run(blocks, job.work, self._pace, kept=(given, job))
        else:
            self._crew.run(blocks, last.job.work, self._pace, kept=(args, outs, last))

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        items = self._layout.launch.blocks * self._layout.items_per_block
        ids = np.array(threads, dtype=np.int64, order="C", ndmin=1)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= items)):
            raise ValueError(f"threads are not linear ids in a launch of {items}")
        ids.flags.writeable = False
        launch, size = self._layout.launch, self._layout.items_per_block
        places = items_box(launch, ids, size) if self._split and ids.size else ()
        given = self._arguments(args, outs, ids.size, places)
        job = self._job(self._program.threads, [ids, *given])
        self._crew.run(ids.size, job.work, self._thread_pace, alone_ns=_SAMPLES_ALONE_NS, kept=(ids, given, job))

    def _job(self, entry: Entry, given: list[Any]) -> _Job:
        size = self._layout.launch.threads_per_block
        memory = [
            np.empty((self._crew.threads, count * size if by_thread else count), dtype)
            for dtype, count, by_thread in self._program.memory
        ]
        return _Job(entry, given, memory)

    def _arguments(self, args: Sequence[Any], outs: Sequence[Array], rows: int, places: Box) -> list[Any]:
        """The geometry, and then what follows it."""
        tail: list[Any] = []
        inputs: list[Array] = []
        if len(args) + len(outs) != len(self._kinds) or len(outs) != len(self._rows):
            raise ValueError(f"{len(args)} arguments and {len(outs)} outputs are not what the kernel takes")
        given, written = iter(args), zip(outs, self._rows, strict=True)
        for name, spec, dtype in self._kinds:
            if isinstance(spec, OutputSpec):
                out, (row, by_thread) = next(written)
                flags = out.flags
                if (
                    out.shape != (rows, *row)
                    or out.dtype != dtype
                    or not (flags.c_contiguous and flags.writeable and flags.aligned)
                ):
                    raise ValueError(f"rows of {name}: {dtype}{(rows, *row)} is wanted, C-contiguous and writable")
                if by_thread:  # the code counts threads: the next axis of an item's row
                    out = out.reshape((out.shape[0] * out.shape[1], *out.shape[2:]))
                tail += spec.shape
                tail.append(out)
            elif isinstance(spec, InputSpec) and spec.split is not None:
                window = next(given)
                if places:
                    check_window(name, spec, window, places)
                tail += [*spec.shape, *window.origin[: len(spec.split.axes)]]
                value = np.require(window.values, requirements=["C", "A"]).view()
                value.flags.writeable = False
                tail.append(value)
                inputs.append(value)
            elif isinstance(spec, InputSpec):
                value = next(given)
                if type(value) is not np.ndarray or not (value.flags.c_contiguous and value.flags.aligned):
                    value = np.require(value, requirements=["C", "A"])
                value = value.view()
                if value.shape != spec.shape or value.dtype != dtype:
                    raise ValueError(f"{name} is {value.dtype}{value.shape}, not {dtype}{spec.shape}")
                value.flags.writeable = False  # the compiled code is for arrays that it can't write
                tail.append(value)
                inputs.append(value)
            else:
                tail.append(dtype.type(next(given)))
        for place, out in enumerate(outs):  # the code is for arrays that lie apart (`Unshared`)
            if any(np.may_share_memory(out, other) for other in (*inputs, *outs[:place])):
                raise ValueError("rows of an output overlap another array: give memory of its own to each")
        return [*self._head, *tail]


class _Job:
    """A call of an entry: the records, and what each thread works in."""

    __slots__ = ("_memory", "_records", "work")

    def __init__(self, entry: Entry, given: Sequence[Any], memory: list[Array]) -> None:
        self._memory = memory
        self._records = entry.records(given, memory)
        stride = self._records.strides[0] if len(self._records) > 1 else 0
        self.work = Work(entry.address, self._records.__array_interface__["data"][0], stride)

    def move(self, first: int) -> None:
        """Another number in the first place."""
        self._records[:, 0] = first


class _Run:
    """A run of blocks, to be made again with the same arrays: to look at arguments takes as long as a small launch
    does, on caches that the last run has filled with other things.

    It holds no array, and trusts that nobody changes the shape or the dtype of one in place, or its memory or flags;
    only whether an output may be written is asked again.

    Attributes:
        again: whether it may be; not where an argument had to be copied.
    """

    __slots__ = ("_args", "_blocks", "_dead", "_first_block", "_ids", "_refs", "_values", "again", "job")

    def __init__(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array], job: _Job) -> None:
        arrays = [value for value in (*args, *outs) if isinstance(value, np.ndarray)]
        self._values = [value for value in args if not isinstance(value, np.ndarray)]
        self.again = all(
            type(array) is np.ndarray and array.ndim and array.flags.c_contiguous and array.flags.aligned
            for array in arrays
        ) and all(isinstance(value, (np.generic, int, float)) for value in self._values)
        self._first_block, self._blocks = first_block, blocks
        self._args, self._ids = len(args), [*map(id, args), *map(id, outs)]
        self._dead: list[Any] = []  # arrays that are gone: another one may have the id of one of them
        self._refs = [weakref.ref(array, self._dead.append) for array in arrays]
        self.job = job

    def serves(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> bool:
        """Whether it is the same, but for the place of the first block, which is set then."""
        if blocks != self._blocks or self._dead or len(args) != self._args:
            return False
        if [*map(id, args), *map(id, outs)] != self._ids:
            return False
        for out in outs:
            if not out.flags.writeable:
                return False
        if first_block != self._first_block:
            self._first_block = first_block
            self.job.move(first_block)
        return True
