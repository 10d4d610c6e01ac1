"""What a user writes kernels with: the decorators `kernel` and `device`, and `out` and `reduce` for what comes back.

A kernel is checked when it is decorated, without numba: what the language does not hold is refused there, with the
line, the reason and what to write instead. docs/strict.md defines what every operation gives.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, TypeAlias

import numpy as np

from p2pcompute._atomics import GlobalAtomics
from p2pcompute._form import Form, Variants
from p2pcompute._given import contiguous, dtype_of, lengths_of, refuse_dtype, refuse_masked
from p2pcompute._inout import InOut, check_covered, in_place, inout_specs
from p2pcompute._options import said
from p2pcompute._split import Split, split_argument
from p2pcompute.errors import KernelError, KernelTypeError, NotCalled
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import Admitted
from p2pcompute.execution._language_capture import capture
from p2pcompute.execution._operations import can_reduce, defined_for, fold
from p2pcompute.execution._rows import Layout
from p2pcompute_protocols.work import ProgramRef

__all__ = ["Binding", "ConfiguredKernel", "Device", "Kernel", "Out", "device", "kernel", "out", "reduce"]

Geometry: TypeAlias = int | Sequence[int]
_BLOCKS = {1: (128, 1, 1), 2: (16, 16, 1), 3: (8, 4, 4)}


@dataclass(frozen=True, slots=True)
class Out:
    """An output to be made: its global shape and dtype. Made by `out`, or by `reduce` with the operation that combines
    the values of all threads."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    reduce: str | None = None


def out(shape: int | Sequence[int], dtype: Any) -> Out:
    """Ask for an output array in a call of `p2pcompute.run`.

    Args:
        shape: its whole shape, or its length.
        dtype: any of bool, int8 to int64, uint8 to uint64, float32 and float64.

    Raises:
        KernelTypeError: no kernel can give such an array.
    """
    advice = "give a length for each axis, whole numbers from 0"
    lengths = lengths_of(shape, "an output's shape", instead=advice)
    kind = dtype_of(dtype, "no output has")
    if not lengths:
        raise KernelTypeError(f"no output has the shape {lengths}", instead=advice)
    return Out(lengths, kind)


def reduce(operation: str, shape: int | Sequence[int], dtype: Any) -> Out:
    """Ask, in place of `out`, for what the values of all threads come to.

    The kernel is the same as for `out`: each thread stores into its own place of an array of `shape`. What comes back
    has the axes of `shape` beyond those that the kernel indexes by the grid; where there are none, it is one number.
    Values are combined by a tree that the launch alone decides (docs/strict.md, section 13), so the bits are the same
    on every machine and for any number of chunks; a `sum` of float32 differs from `numpy.sum` in the last places. A
    thread that stores nothing gives the operation's identity.

    Of an output that a kernel changes by integer atomics from all blocks, `cuda.atomic.add(histogram, bin, 1)`, `shape`
    is that of what comes back: ``p2p.reduce("sum", bins, np.int64)``.

    Args:
        operation: sum, prod, min, max; and, or, xor for integers and bools. Integers wrap; min and max give NaN where
            there is one.
        shape: the whole shape of what `out` would give, or its length; with such atomics what comes back.
        dtype: as for `out`; values are combined in it.

    Raises:
        KernelTypeError: no kernel can give such an array, or values of this dtype are not combined so.
    """
    asked = out(shape, dtype)
    if not isinstance(operation, str) or not can_reduce(operation, asked.dtype.name):
        raise KernelTypeError(
            f"values of {asked.dtype} are not combined by {said(operation)}", instead=defined_for(asked.dtype.name)
        )
    return Out(asked.shape, asked.dtype, operation)


class Device:
    """A function that kernels call: scalars and read-only arrays in, one number or several out. Made by `device`.

    Called from plain Python it runs as the plain function that it was written as, whose arithmetic is Python's and
    not the language's.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", "device")
        self.__doc__ = function.__doc__
        self.__name__ = self.name
        self.__wrapped__ = function

    def __call__(self, *args: Any) -> Any:
        """Run the plain Python function."""
        return self.function(*args)

    def __repr__(self) -> str:
        return f"<p2pcompute.device {self.name}>"


def device(function: Callable[..., Any] | None = None, *more: Any, **options: Any) -> Device:
    """Decorate a function that kernels call. It is checked with the kernel that calls it."""
    if function is None or more or options:
        raise _with_arguments("device", (function, *more), options)
    if not callable(function) or isinstance(function, type | Kernel | ConfiguredKernel):
        raise KernelError(f"a {type(function).__name__} is no device function", instead="decorate a plain function")
    return Device(function)


def _with_arguments(name: str, given: tuple[Any, ...], options: Mapping[str, Any]) -> KernelError:
    """What to raise where a decorator has parentheses. numba's take signatures and options there, and these don't."""
    values = [said(value) for value in given if value is not None]
    return KernelError(
        f"@p2p.{name}({', '.join([*values, *(f'{key}=…' for key in options)])}) has parentheses",
        instead=f"write @p2p.{name} without them: types come from the arguments, and how it is run is said to p2p.run, "
        'such as fp="fast"',
    )


def kernel(function: Callable[..., Any] | None = None, *more: Any, **options: Any) -> Kernel:
    """Decorate a kernel.

    Raises:
        KernelError: the function, or a device function that it calls, says what the language does not hold; or the
            decorator has parentheses, as numba's may have.
    """
    if function is None or more or options:
        raise _with_arguments("kernel", (function, *more), options)
    try:
        return Kernel(function)
    except KernelError as exc:
        # The message has the line of the kernel; where in the guard it was refused says nothing about it.
        raise exc.with_traceback(None) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A kernel or a program with its geometry and arguments: what a task is made from.

    `program` says which, where it is one; `source` is what `program_source` gives then. `specs` has one entry for each
    parameter of the source. `values` has a NumPy scalar, a C-contiguous array or a `Split` for each parameter that is
    no output, in order: what `run_blocks` takes, but for a `Split`, of which it takes a window. `inout` has the places
    in `specs` of the inputs that are behind outputs of the same argument, an array that is changed in place. `shapes`
    has, for outputs that atomic operations change, the shape that was asked for. `held` has for each of `values` the
    bytes that an array of it is a view of, in little-endian order, where it is the task's own (`tasks.own_arrays`).
    """

    source: KernelSource
    launch: Launch
    specs: tuple[ArgSpec, ...]
    values: tuple[Any, ...] = field(repr=False)
    layout: Layout = field(repr=False)
    program: ProgramRef | None = None
    inout: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...] | None, ...] = ()
    held: tuple[bytes | None, ...] = field(default=(), repr=False)

    def argument(self, place: int) -> int:
        """Which argument of the caller's, counted from 0, the entry `place` of `specs` is."""
        return place - sum(behind <= place for behind in self.inout)

    def empty_outputs(self) -> list[np.ndarray[Any, Any]]:
        """Zeroed arrays to place chunks' rows in: the outputs, and for a combined one a partial for each block."""
        return [
            np.zeros(shape, spec.dtype)
            for shape, spec in zip(self.layout.target_shapes, self.layout.outputs, strict=True)
        ]

    def results(self, placed: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
        """What a call gives, from the arrays of `empty_outputs` with every chunk in place: blocks' partials are
        combined, to a NumPy scalar where no axis is left."""
        return [
            array if spec.reduce is None else fold(spec.reduce, array).reshape(self.result_shape(position))[()]
            for position, (array, spec) in enumerate(zip(placed, self.layout.outputs, strict=True))
        ]

    def result_shape(self, position: int) -> tuple[int, ...]:
        """The shape of what output number `position` comes to."""
        spec, asked = self.layout.outputs[position], self.shapes[position] if self.shapes else None
        return asked or (spec.shape if spec.reduce is None else spec.shape[self.launch.dims :])


class Kernel:
    """A checked kernel. Made by `kernel`.

    Attributes:
        source: normalised source, the same for the same meaning wherever it was written. What is sent of a kernel with
            atomic operations on an output is made of it when it is bound (`Binding.source`).
        name: the function's name.
        params: names of its parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        captured = capture(function, unwrap_device=_unwrap)
        self._atomics = GlobalAtomics.of(captured)
        if self._atomics is None:
            self._form = Form.of(captured.source, captured.tree, captured.filenames)
        else:  # with sizes that stand for any
            self._form = self._atomics.form
        self._variants = Variants()  # with arrays that are changed in place
        self._admitted: Admitted = self._form.admitted
        self.source: KernelSource = captured.source
        self.name: str = getattr(function, "__name__", "kernel")
        self.params: tuple[str, ...] = self._admitted.entry.params
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = self.name
        self.__wrapped__ = function

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the parameters that it stores into."""
        return self._admitted.outputs

    def __repr__(self) -> str:
        return f"<p2pcompute.kernel {self.name}({', '.join(self.params)})>"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Kernels are not called: says how to start one."""
        raise NotCalled(f"{self.name} is a kernel", instead=f"start {self.name} with p2pcompute.run({self.name}, ...)")

    def __getitem__(self, geometry: tuple[Geometry, Geometry]) -> ConfiguredKernel:
        """``kernel[blocks, threads]``, ints or tuples (x, y, z) as in numba.cuda."""
        if not isinstance(geometry, tuple) or len(geometry) != 2:
            raise KernelTypeError("geometry is kernel[blocks, threads]", instead="give both, as ints or tuples")
        grid, grid_dims = _triple(geometry[0], "blocks")
        block, block_dims = _triple(geometry[1], "threads")
        return ConfiguredKernel(self, Launch(grid=grid, block=block, dims=max(grid_dims, block_dims)))

    def launch_for(self, out_shape: Sequence[int]) -> Launch:
        """The default geometry for the kernel's first output of the global shape `out_shape`: blocks of 128, 16 x 16
        or 8 x 4 x 4 threads, as many as cover it. Grid axis x runs along the output's axis that the kernel indexes
        by x. Kernels whose threads work together have none."""
        mapping = self._admitted.grid.mapping[self._admitted.outputs[0]]
        self._refuse_default()
        out_shape = lengths_of(out_shape, "an output's shape", instead="give a length for each axis")
        if len(out_shape) < len(mapping):
            raise KernelTypeError(
                f"{self.name} indexes its output by {len(mapping)} grid axes and the shape is {tuple(out_shape)}",
                instead="give the output a length for each of them",
            )
        dims = self._admitted.grid.dims
        block = _BLOCKS[dims]
        grid = [1, 1, 1]
        for place, axis in enumerate(mapping):
            grid[axis] = max(1, -(-out_shape[place] // block[axis]))
        return Launch(grid=(grid[0], grid[1], grid[2]), block=block, dims=dims)

    def bind(self, *args: Any) -> Binding:
        """Bind arguments under the default geometry, made for the largest output along each grid axis.

        Raises:
            KernelTypeError: the arguments don't fit; with the kernel's line where there is one.
        """
        self._count(args)
        self._refuse_default()
        grid = [1, 1, 1]
        block = _BLOCKS[self._admitted.grid.dims]
        for name, value in zip(self.params, args, strict=True):
            mapping = self._admitted.grid.mapping.get(name, ())
            if isinstance(value, Out | InOut):
                shape = value.shape if isinstance(value, Out) else value.array.shape
                for length, axis in zip(shape, mapping, strict=False):
                    grid[axis] = max(grid[axis], -(-length // block[axis]))
        launch = Launch(grid=(grid[0], grid[1], grid[2]), block=block, dims=self._admitted.grid.dims)
        return self._bind(launch, args)

    def _refuse_default(self) -> None:
        if self._admitted.plan is not None:
            raise KernelTypeError(
                f"the threads of a block of {self.name} work together, so how many they are is for you to say",
                line=self._admitted.entry.node.lineno,
                filename=self._admitted.entry.filename,
                instead=f"start {self.name}[blocks, threads]",
            )

    def _count(self, args: tuple[Any, ...]) -> None:
        if len(args) != len(self.params):
            raise KernelTypeError(
                f"{self.name} takes {len(self.params)} arguments ({', '.join(self.params)}), not {len(args)}",
                line=self._admitted.entry.node.lineno,
                filename=self._admitted.entry.filename,
                instead=f"give {', '.join(self.params)}, p2pcompute.out(shape, dtype) for what the kernel stores into, "
                "p2pcompute.inout(array) for what it changes in place",
            )

    def _bind(self, launch: Launch, args: tuple[Any, ...]) -> Binding:
        from p2pcompute.execution._lower import lower

        self._count(args)
        form = self._form
        shapes: Mapping[str, tuple[int, ...]] = {}
        if self._atomics is not None:
            form, args, shapes = self._atomics.variant(launch, args)
        changed = in_place(form.admitted, args)
        if changed is not None:
            form = self._variants.get((form.source.digest, changed), partial(form.rewritten, changed))
        specs: list[ArgSpec] = []
        values: list[Any] = []
        behind: list[int] = []
        for name, value in zip(self.params, args, strict=True):
            if isinstance(value, InOut):
                specs += inout_specs(name, value, form.admitted)
                values.append(value.given)
                behind.append(len(specs) - 1)
                continue
            if isinstance(value, Split):
                specs.append(split_argument(name, value, form.admitted))
                values.append(value)
                continue
            spec, taken = _argument(name, value)
            specs.append(spec)
            if taken is not None:
                values.append(taken)
        layout = Layout.of_admitted(form.admitted, launch, specs)
        for name, value in zip(self.params, args, strict=True):
            if isinstance(value, InOut):
                check_covered(name, value.array.shape, form.admitted, launch)
        lower(form.admitted, launch, specs)  # types are checked here, where the author's lines are known
        return Binding(
            source=form.source,
            launch=launch,
            specs=tuple(specs),
            values=tuple(values),
            layout=layout,
            inout=tuple(behind),
            shapes=tuple(shapes.get(name) for name in form.admitted.outputs),
        )


@dataclass(frozen=True, slots=True)
class ConfiguredKernel:
    """A kernel and its launch geometry: ``kernel[blocks, threads]``."""

    kernel: Kernel
    launch: Launch

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """numba.cuda starts kernels so; here somebody is paid for it: says how to start one."""
        dims = self.launch.dims
        blocks, threads = (
            str(sizes[0]) if dims == 1 else str(sizes[:dims]) for sizes in (self.launch.grid, self.launch.block)
        )
        this = f"{self.kernel.name}[{blocks}, {threads}]"
        raise NotCalled(
            f"{this} is a kernel with its geometry",
            instead=f"start it with p2pcompute.run({this}, ...), and take the outputs that this gives back",
        )

    def bind(self, *args: Any) -> Binding:
        """Bind arguments under this geometry.

        Raises:
            KernelTypeError: the arguments or the geometry don't fit.
        """
        return self.kernel._bind(self.launch, args)


def _unwrap(value: object) -> Any:
    return value.function if isinstance(value, Device) else None


def _triple(value: Geometry, what: str) -> tuple[tuple[int, int, int], int]:
    advice = "give one to three positive whole numbers, as in kernel[blocks, threads]"
    lengths = lengths_of(value, f"the number of {what}", instead=advice, least=1)
    if not 1 <= len(lengths) <= 3:
        raise KernelTypeError(f"the number of {what} is {said(value)}", instead=advice)
    padded = (*lengths, 1, 1)
    return (padded[0], padded[1], padded[2]), len(lengths)


def _argument(name: str, value: Any) -> tuple[ArgSpec, Any]:
    """The spec and the value of one argument. Python's floats are float32, as literals are; its ints are int64."""
    if isinstance(value, Out):
        return OutputSpec(dtype=value.dtype.name, shape=value.shape, reduce=value.reduce), None
    if isinstance(value, bool):
        value = np.bool_(value)
    elif isinstance(value, np.generic):
        pass
    elif isinstance(value, float):
        value = np.float32(value)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise KernelTypeError(f"{name} is an integer that 64 bits don't hold", instead="pass a float")
        value = np.int64(value) if value < 2**63 else np.uint64(value)
    elif not isinstance(value, np.ndarray):
        raise KernelTypeError(
            f"{name} is a {type(value).__name__}: {said(value)}",
            instead="pass NumPy arrays, p2pcompute.split(...), numbers, p2pcompute.out(...) and p2pcompute.inout(...)",
        )
    refuse_masked(value, name)
    refuse_dtype(value.dtype, f"{name} is of dtype {value.dtype}")
    if isinstance(value, np.generic):
        return ScalarSpec(dtype=value.dtype.name, value=value), value
    if value.ndim == 0:
        return ScalarSpec(dtype=value.dtype.name, value=value[()]), value[()]
    return InputSpec(dtype=value.dtype.name, shape=value.shape), contiguous(value, name)


class _CallableModule(types.ModuleType):
    """Importing this module makes it the package's attribute `kernel`, over the decorator of that name; so that
    ``@p2pcompute.kernel`` holds in every order of imports, the module is the decorator as well."""

    def __call__(self, function: Callable[..., Any] | None = None, *more: Any, **options: Any) -> Kernel:
        return kernel(function, *more, **options)


sys.modules[__name__].__class__ = _CallableModule
