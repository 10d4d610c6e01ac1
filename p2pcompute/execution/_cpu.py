"""The CPU back end: lowered code through numba, one loop over blocks around one function for a thread.

The body stays a function of its own, so that ``return`` keeps its meaning; LLVM inlines it. Processor threads take
portions of a launch, without the interpreter's lock. None talks to another and nothing is summed across them, so
results do not depend on how many there are. numba's own parallel loops do the same, and take twice as long to
compile. Nothing is cached on disk: numba's cache is pickle.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numba
import numpy as np
from numba import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic

from p2pcompute.errors import KernelError
from p2pcompute.execution._api import ArgSpec, Array, CompiledKernel, InputSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._cpu_loops import memory, program_text
from p2pcompute.execution._fast_cpu import FAST, fast_helpers
from p2pcompute.execution._fast_matmul import Product, is_product
from p2pcompute.execution._guard import AdmittedSources
from p2pcompute.execution._lower import Lowered, Parameter, lower
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
_ALONE_NS = 50_000  # after which other threads are woken


class CpuBackend:
    """Compiles admitted kernels for this machine's CPU. Holds the latest compilations; not safe to share between
    threads. A context manager, since its own threads have to end.

    Args:
        threads: processor threads that compute, the caller's among them; the others start here.
    """

    name = "cpu"

    def __init__(self, threads: int = 1) -> None:
        self._crew = _Crew(threads)
        self._namespace = helpers(
            numba.njit(forceinline=True, **_OPTIONS), math_jit=numba.njit(**_OPTIONS), apart=_apart
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
                program = _Program(lowered, text, self._fast_namespace(), {**_OPTIONS, **FAST})
            else:
                program = _Program(lowered, text, self._namespace, _OPTIONS)
            self._programs[key] = program
            if len(self._programs) > _KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return reducing(_Compiled(program, layout, lowered.parameters, self._crew), layout, given)

    def _fast_namespace(self) -> dict[str, Any]:
        if self._fast is None:
            self._fast = fast_helpers(_OPTIONS, apart=_apart)
        return self._fast

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).row_shapes

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        """Items of one block."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).items_per_block


class _Program:
    """Compiled code for one text and one set of types. `run_threads` is compiled when it is first asked for."""

    def __init__(self, lowered: Lowered, text: str, namespace: dict[str, Any], options: dict[str, Any]) -> None:
        names: dict[str, Any] = {**namespace, "np": np, **constants(lowered)}
        exec(compile(text, "<kernel>", "exec"), names)
        inline = numba.njit(forceinline=True, **options)
        for name, _ in (*lowered.functions, *(lowered.block.functions if lowered.block is not None else ())):
            names[name] = inline(names[name])
        entry = "body" if lowered.block is None else "block"
        names[entry] = inline(names[entry])
        compiled = numba.njit(**options)
        self._blocks = compiled(names["run_blocks"])
        self._threads = compiled(names["run_threads"])
        integers = [types.int64] * (3 * lowered.dims)
        self._memory = [(np.dtype(array.dtype), array.size, array.by_thread) for array in memory(lowered)]
        work = [types.Array(_numba_dtype(array.dtype), 1, "C") for array in memory(lowered)]
        self._tail = (*integers, *(_numba_type(name, lowered) for name in lowered.arguments), *work)
        self._threads_ready = False
        _compile(self._blocks, (types.int64, types.int64, *self._tail))

    def memory(self, threads_per_block: int) -> list[Array]:
        """What a call of `blocks` or `threads` takes last; for one call at a time."""
        return [
            np.empty(size * threads_per_block if by_thread else size, dtype) for dtype, size, by_thread in self._memory
        ]

    def blocks(self, *args: Any) -> None:
        self._blocks(*args)

    def prepare_threads(self) -> None:
        """Compile for `threads`, which several may call at once after this."""
        if not self._threads_ready:
            ids = types.Array(types.int64, 1, "C", readonly=True)
            _compile(self._threads, (ids, *self._tail))
            self._threads_ready = True

    def threads(self, *args: Any) -> None:
        self._threads(*args)


def _apart(function: Any) -> Any:
    """A function of floats that LLVM does not copy into its callers. numba has no option for that: the call says it."""

    def called(context: Any, kinds: tuple[Any, ...]) -> tuple[Any, Any]:
        signature: Any = types.Dispatcher(function).get_call_type(context, kinds, {})

        def code(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
            compiled = function.overloads[tuple(signature.args)]
            target.active_code_library.add_linking_library(compiled.library)
            callee = target.declare_function(builder.module, compiled.fndesc)
            _, value = target.call_conv.call_function(  # nothing in the language raises: there is no status to look at
                builder, callee, signature.return_type, signature.args, values, attrs=("noinline",)
            )
            return value

        return signature, code

    def one(context: Any, x: Any) -> tuple[Any, Any]:
        return called(context, (x,))

    def two(context: Any, x: Any, y: Any) -> tuple[Any, Any]:
        return called(context, (x, y))

    return intrinsic(one if function.py_func.__code__.co_argcount == 1 else two)


def _compile(function: Any, signature: tuple[Any, ...]) -> None:
    try:
        function.compile(signature)
    except NumbaError as error:
        raise KernelError(f"numba does not compile this kernel: {str(error)[:400]}") from error
    function.disable_compile()


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
    def __init__(self, program: _Program, layout: Layout, parameters: Sequence[Parameter], crew: _Crew) -> None:
        self._program = program
        self._layout = layout
        self._parameters = parameters
        self._crew = crew
        self._split = any(is_split(parameter.spec) for parameter in parameters)

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        launch = self._layout.launch
        if first_block < 0 or blocks < 0 or first_block + blocks > launch.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not in a launch of {launch.blocks}")
        size = self._layout.items_per_block
        places = blocks_box(launch, first_block, blocks) if self._split and blocks else ()
        head, tail = self._arguments(args, outs, blocks * size, places)

        def part(start: int, count: int) -> None:
            rows = slice(start * size, (start + count) * size)
            self._program.blocks(first_block + start, count, *head, *_sliced(tail, rows), *self._memory())

        self._crew.share(blocks, part)

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        items = self._layout.launch.blocks * self._layout.items_per_block
        ids = np.array(threads, dtype=np.int64, order="C", ndmin=1)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= items)):
            raise ValueError(f"threads are not linear ids in a launch of {items}")
        ids.flags.writeable = False
        launch, size = self._layout.launch, self._layout.items_per_block
        places = items_box(launch, ids, size) if self._split and ids.size else ()
        head, tail = self._arguments(args, outs, ids.size, places)
        self._program.prepare_threads()

        def part(start: int, count: int) -> None:
            rows = slice(start, start + count)
            self._program.threads(ids[rows], *head, *_sliced(tail, rows), *self._memory())

        self._crew.share(ids.size, part)

    def _memory(self) -> list[Array]:
        return self._program.memory(self._layout.launch.threads_per_block)

    def _arguments(
        self, args: Sequence[Any], outs: Sequence[Array], rows: int, places: Box
    ) -> tuple[list[int], list[Any]]:
        """The geometry, and then what follows it, outputs marked as such: each call gets its own rows of them."""
        launch, dims = self._layout.launch, self._layout.launch.dims
        head = [*launch.block[:dims], *launch.grid[:dims], *self._layout.extents[:dims]]
        tail: list[Any] = []
        given, written = iter(args), iter(zip(outs, self._layout.row_shapes, self._layout.by_block, strict=False))
        if len(args) + len(outs) != len(self._parameters) or len(outs) != len(self._layout.outputs):
            raise ValueError(f"{len(args)} arguments and {len(outs)} outputs are not what the kernel takes")
        for parameter in self._parameters:
            spec = parameter.spec
            dtype = np.dtype(spec.dtype)
            if isinstance(spec, OutputSpec):
                out, row, by_block = next(written)
                shape = (rows, *row)
                flags = out.flags
                if (
                    out.shape != shape
                    or out.dtype != dtype
                    or not (flags.c_contiguous and flags.writeable and flags.aligned)
                ):
                    raise ValueError(f"rows of {parameter.name}: {dtype}{shape} is wanted, C-contiguous and writable")
                tail.extend(spec.shape)
                tail.append(_Rows(out, self._layout.together and not by_block))
            elif isinstance(spec, InputSpec) and spec.split is not None:
                window = next(given)
                if places:
                    check_window(parameter.name, spec, window, places)
                tail += [*spec.shape, *window.origin[: len(spec.split.axes)]]
                value = np.require(window.values, requirements=["C", "A"]).view()
                value.flags.writeable = False
                tail.append(value)
            elif isinstance(spec, InputSpec):
                value = np.require(next(given), requirements=["C", "A"]).view()
                if value.shape != spec.shape or value.dtype != dtype:
                    raise ValueError(f"{parameter.name} is {value.dtype}{value.shape}, not {dtype}{spec.shape}")
                value.flags.writeable = False  # the compiled code is for arrays that it can't write
                tail.append(value)
            else:
                tail.append(dtype.type(next(given)))
        return head, tail


class _Rows:
    """An output among the arguments: items' rows. The code counts threads where the next axis of an item's row has
    them (`by_thread`)."""

    __slots__ = ("array", "by_thread")

    def __init__(self, array: Array, by_thread: bool) -> None:
        self.array = array
        self.by_thread = by_thread

    def part(self, rows: slice) -> Array:
        part = self.array[rows]
        return part.reshape((part.shape[0] * part.shape[1], *part.shape[2:])) if self.by_thread else part


def _sliced(tail: Sequence[Any], rows: slice) -> list[Any]:
    return [value.part(rows) if isinstance(value, _Rows) else value for value in tail]


class _Crew:
    """Threads that compute portions of a launch together with the one that asks for it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, thread_name_prefix="kernel") if threads > 1 else None
        if self._pool is not None:  # all of them start now: later the process may be locked
            here = threading.Barrier(threads)
            for _ in range(threads - 1):
                self._pool.submit(here.wait)
            here.wait()

    def share(self, total: int, part: Callable[[int, int], None]) -> None:
        """Call ``part(start, count)`` for portions that cover ``range(total)``, in no order."""
        # Portions differ in cost: smaller ones than one for each thread even that out.
        portion = max(1, total // (16 * self.threads))
        if self._pool is None or portion >= total:
            part(0, total)
            return
        # One of few items may take as long as it likes: the others are not to wait for it.
        done = self._alone(total, total // 8, part) if total >= 64 * self.threads else 0
        if done == total:
            return
        starts = iter(range(done, total, portion))  # shared by all: the interpreter's lock makes each step one

        def work() -> None:
            for start in starts:
                part(start, min(portion, total - start))

        others = [self._pool.submit(work) for _ in range(min(self.threads, -(-(total - done) // portion)) - 1)]
        work()
        for other in others:
            other.result()

    def _alone(self, total: int, most: int, part: Callable[[int, int], None]) -> int:
        """Begin without the others: to wake them takes longer than all of a small launch. How much is done; what
        comes first says little of what follows, so no portion is larger than `most`."""
        done, size, end = 0, 1, time.perf_counter_ns() + _ALONE_NS
        while done < total and time.perf_counter_ns() < end:
            size = min(size, total - done)
            part(done, size)
            done += size
            size = min(2 * size, most)
        return done

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
