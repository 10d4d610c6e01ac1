"""The CUDA back end: the same lowered code as on the CPU, compiled to PTX, checked there, and run on a device.

A block of the language is a block of CUDA's and its threads are CUDA's; a chunk's first block is an argument. A
thread calls the body and writes its own rows. That is the text that the CPU runs, but where threads work together:
there it is of the same lowering, with barriers in place of loops. Nothing is fused: NVVM is told so, and `_ptx_lint`
looks at what came out before it is loaded. Compiling needs no device.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import (
    ArgSpec,
    Array,
    CompiledKernel,
    DeviceBackend,
    InputSpec,
    KernelSource,
    Launch,
    OutputSpec,
)
from p2pcompute.execution._cuda_compile import CudaCompiler
from p2pcompute.execution._cuda_device import CudaDevice, DeviceArray, open_device
from p2pcompute.execution._cuda_text import program_text, snapshots_outside
from p2pcompute.execution._fast_matmul import Product, is_product
from p2pcompute.execution._guard import AdmittedSources
from p2pcompute.execution._language import ATOMICS
from p2pcompute.execution._lower import Lowered, Parameter, lower
from p2pcompute.execution._lower_scratch import constants
from p2pcompute.execution._lower_split import is_split
from p2pcompute.execution._ptx_lint import check_ptx, entry_parameters
from p2pcompute.execution._reduce import plain_outputs, reducing
from p2pcompute.execution._rows import Layout
from p2pcompute.execution._split import Box, Window, blocks_box, check_window, items_box
from p2pcompute.execution._strict import helpers

if TYPE_CHECKING:
    from p2pcompute.execution._cuda_product import TensorCode
    from p2pcompute.execution._cuda_rounds import Placing
    from p2pcompute.execution._rounds import States

__all__ = ["CudaBackend", "CudaProgram", "Parameters", "RunMemory"]

_KEPT: Final = 64  # compiled and admitted kernels held by one back end
_MOST_BLOCKS: Final = 2**31 - 1  # CUDA's bound along x
_THREADS: Final = 128  # of a block, where single threads are run
_SNAPSHOT_BYTES: Final = 64 << 20  # of a launch, for what a block's shared memory has no room for
_SIZES: Final = {"b8": 1, "u8": 1, "s8": 1, "u16": 2, "s16": 2, "u32": 4, "s32": 4, "f32": 4, "u64": 8, "f64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaProgram:
    """PTX of a kernel, for one text and one set of types, that has passed the checks.

    Attributes:
        blocks_ptx: a module with the entry ``run_blocks``.
        threads_ptx: a module with the entry ``run_threads``, which runs single items.
    """

    blocks_ptx: str
    threads_ptx: str


class CudaBackend:
    """Compiles admitted kernels for a CUDA device. Holds the latest compilations; not safe to share between threads.

    Args:
        device: where kernels run; None opens the first one when something is first run.
        capability: what PTX is made for; that of the device where None.
        blocks_a_launch: longer runs of blocks are launched in parts.

    Raises:
        CudaNotInstalled: the ``cuda`` extra is not installed.
        NoCudaDevice: neither `device` nor `capability` is given and no device answers.
    """

    name = "cuda"

    def __init__(
        self,
        device: CudaDevice | None = None,
        *,
        capability: tuple[int, int] | None = None,
        blocks_a_launch: int = _MOST_BLOCKS,
    ) -> None:
        if device is None and capability is None:
            device = open_device()
        self._device = device
        compiler = self._compiler = CudaCompiler(capability or (device.capability if device is not None else (0, 0)))
        self._namespace = _namespace(compiler)
        self._fast: tuple[CudaCompiler, dict[str, Any]] | None = None  # of fast mode; made when it is wanted
        self._blocks_a_launch = min(blocks_a_launch, _MOST_BLOCKS)
        self._programs: OrderedDict[str, _Program] = OrderedDict()
        self._sources = AdmittedSources(_KEPT)
        self._tensor: TensorCode | None = None  # of fast mode's product; made when it is wanted
        self._placing: Placing | None = None  # of rows in states; likewise

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CompiledKernel:
        """Admit, type, compile and check; see `Backend.compile`. No device is needed until the result is run.

        Raises:
            PtxRefused: the compiler made what `_ptx_lint` does not let pass.
        """
        given = Layout.of_admitted(self._sources.admit(source), launch, args)
        if source.fp == "fast" and is_product(source, args) and self._compiler.capability >= (8, 0):
            return self._product(launch, given.outputs[0])
        program, layout, lowered = self._program(source, launch, plain_outputs(args))
        return reducing(_Compiled(self, program, layout, lowered), layout, given)

    def _product(self, launch: Launch, output: OutputSpec) -> CompiledKernel:
        """`p2p.matmul` in fast mode."""
        from p2pcompute.execution._cuda_product import TensorCode, TensorProduct

        if self._tensor is None:
            self._tensor = TensorCode(self._compiler)
        self._tensor.ptx(output.dtype)  # what can't be compiled is said now
        multiply = TensorProduct(self, self._tensor).multiply
        return Product(launch, output, lambda total, part: part(0, total), 1, multiply=multiply)

    def ptx(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CudaProgram:
        """The checked PTX of both entries."""
        program, _, _ = self._program(source, launch, plain_outputs(args))
        return CudaProgram(blocks_ptx=program.ptx("run_blocks"), threads_ptx=program.ptx("run_threads"))

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).row_shapes

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        """Items of one block."""
        return Layout.of_admitted(self._sources.admit(source), launch, args).items_per_block

    @property
    def device(self) -> CudaDevice:
        """The device, opened when it is first asked for."""
        if self._device is None:
            self._device = open_device()
        if self._device.capability < self._compiler.capability:
            raise ExecutionError(
                f"{self._device.name} has capability {self._device.capability}, "
                f"and kernels are compiled for {self._compiler.capability}"
            )
        return self._device

    @property
    def device_ns(self) -> int:
        """Nanoseconds that launches have taken so far, by the device's own events; 0 where it counts none."""
        return self._device.device_ns if isinstance(self._device, DeviceBackend) else 0

    @property
    def lost(self) -> bool:
        """Whether a fault on the device has made it useless to this process."""
        return isinstance(self._device, DeviceBackend) and self._device.lost

    def states(self, state: Sequence[InputSpec]) -> States:
        """Room on the device for states of work in rounds."""
        from p2pcompute.execution._cuda_rounds import DeviceStates, Placing

        if self._placing is None:
            self._placing = Placing(self._compiler)
        return DeviceStates(self, self._placing, state)

    @property
    def blocks_a_launch(self) -> int:
        """Blocks of one launch at most."""
        return self._blocks_a_launch

    def _program(
        self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]
    ) -> tuple[_Program, Layout, Lowered]:
        admitted = self._sources.admit(source)
        layout = Layout.of_admitted(admitted, launch, args)
        lowered = lower(admitted, launch, args)
        most = max(_THREADS, 1 << (launch.threads_per_block - 1).bit_length())
        text = program_text(lowered)
        types_of = [(p.dtype, p.ndim, type(p.spec).__name__) for p in lowered.parameters]
        key = f"{source.fp} {most} {types_of} {[(array.dtype, array.values) for array in lowered.scratch]} {text}"
        program = self._programs.get(key)
        if program is None:
            program = _Program(*self._of_mode(source.fp), lowered, text, most)
            self._programs[key] = program
            if len(self._programs) > _KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return program, layout, lowered

    def _of_mode(self, fp: str) -> tuple[CudaCompiler, dict[str, Any]]:
        if fp != "fast":
            return self._compiler, self._namespace
        if self._fast is None:
            compiler = CudaCompiler(self._compiler.capability, fast=True)
            self._fast = compiler, _namespace(compiler)
        return self._fast


def _namespace(compiler: CudaCompiler) -> dict[str, Any]:
    """The names that lowered code may use."""
    names = helpers(
        compiler.jit,
        round_down=compiler.round_down,
        round_up=compiler.round_up,
        math_jit=compiler.jit_apart,
        float_bits=compiler.float_bits,
        bits_float=compiler.bits_float,
        apart=compiler.apart,
    )
    names |= {"cuda": compiler.cuda, "np": np, "syncthreads": compiler.cuda.syncthreads}
    return names | {f"atomic_{name.rstrip('_')}": compiler.atomic(name) for name in ATOMICS}


class _Program:
    """Code for one text and one set of types. An entry is compiled when it is first asked for."""

    def __init__(
        self, compiler: CudaCompiler, namespace: dict[str, Any], lowered: Lowered, text: str, most_threads: int
    ) -> None:
        self.together = lowered.block is not None
        frozen = {name: values for name, values in constants(lowered).items() if name.startswith("c_")}
        names: dict[str, Any] = {**namespace, **frozen}
        exec(compile(text, "<kernel>", "exec"), names)
        for name, _ in lowered.functions:
            names[name] = compiler.jit(names[name])
        names["body"] = compiler.jit(names["body"])
        self._compiler = compiler
        self._entries: dict[str, Callable[..., Any]] = {name: names[name] for name in ("run_blocks", "run_threads")}
        self._most = {"run_blocks": most_threads, "run_threads": most_threads if self.together else _THREADS}
        tail: list[_Kind] = ["int64"] * (3 * lowered.dims)
        tail += [_type_of(name, lowered) for name in lowered.arguments]
        if lowered.block is not None and lowered.block.vectors:
            tail.append(("uint64", 1, False))
        tail += [(array.dtype, 1, True) for array in snapshots_outside(lowered)]
        ids = ("int64", 1, False)
        self._types = {
            "run_blocks": ["int64", "int64", *tail],
            "run_threads": [ids, "int64", *tail] if self.together else [ids, *tail],
        }
        self._ptx: dict[str, str] = {}
        self._loaded: dict[tuple[str, int], Any] = {}
        self.ptx("run_blocks")

    def ptx(self, entry: str) -> str:
        """Checked PTX of an entry."""
        found = self._ptx.get(entry)
        if found is None:
            types = self._types[entry]
            found = self._compiler.ptx(self._entries[entry], [_numba_type(kind) for kind in types], self._most[entry])
            check_ptx(found, together=self.together, fast=self._compiler.fast)
            due = [word for kind in types for word in _words(kind)]
            if [_SIZES.get(word, 0) for word in entry_parameters(found, entry)] != due:
                raise ExecutionError(f"{entry} takes other parameters than it is given; numba-cuda has changed")
            self._ptx[entry] = found
        return found

    def load(self, entry: str, device: CudaDevice) -> Any:
        """The entry's code on a device."""
        key = (entry, id(device))
        if key not in self._loaded:
            self._loaded[key] = device.load(self.ptx(entry))
        return self._loaded[key]


_Kind = Any  # a dtype's name, or (dtype, axes, writable) of an array


def _type_of(argument: str, lowered: Lowered) -> _Kind:
    if argument.startswith(("s_", "o_")):
        return "int64"
    parameter = next(p for p in lowered.parameters if argument == f"p_{p.name}")
    if parameter.ndim:
        return parameter.dtype, parameter.ndim, not isinstance(parameter.spec, InputSpec)
    return parameter.dtype


def _numba_type(kind: _Kind) -> Any:
    from numba import types

    dtype = kind if isinstance(kind, str) else kind[0]
    scalar: Any = types.boolean if dtype == "bool" else getattr(types, dtype)
    return scalar if isinstance(kind, str) else types.Array(scalar, kind[1], "C", readonly=not kind[2])


def _words(kind: _Kind) -> list[int]:
    """Sizes of the parameters that stand for a value: numba's array is seven numbers, and two for each more axis."""
    return [np.dtype(kind).itemsize] if isinstance(kind, str) else [8] * (5 + 2 * int(kind[1]))


class Parameters:
    """Builds a launch's block of parameters."""

    def __init__(self) -> None:
        self.data = bytearray()

    def scalar(self, dtype: str, value: Any) -> None:
        number = np.dtype(dtype).type(value)
        self.data += bytes(-len(self.data) % number.itemsize) + number.tobytes()

    def array(self, address: int, values: Array | DeviceArray) -> None:
        # meminfo and parent of numba's array are for its own memory manager, which kernels do not use
        for word in (0, 0, values.size, values.itemsize, address, *values.shape, *values.strides):
            self.scalar("int64", word)

    def vector(self, address: int, size: int, itemsize: int) -> None:
        for word in (0, 0, size, itemsize, address, size, itemsize):
            self.scalar("int64", word)


class RunMemory:
    """What one run holds on a device; given back at its end."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for address in self._held:
            self._device.release(address)

    def put(self, values: Array) -> int:
        address = self.room(values.nbytes)
        self._device.upload(address, values)
        return address

    def room(self, size: int) -> int:
        """The address of `size` bytes that hold anything."""
        address = self._device.allocate(max(size, 1))
        self._held.append(address)
        return address


class _Resident:
    """Inputs that stay on a device from run to run, as long as the compiled kernel lives. A chunk is several launches,
    and all chunks have the same inputs. Only what nobody can write is kept: an array may change otherwise."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[CudaDevice, int, Array]] = {}  # by id of the array, which is held too

    def put(self, device: CudaDevice, values: Array) -> int | None:
        """Where it lies; None for one that can't be kept."""
        if values.flags.writeable:
            return None
        held = self._held.get(id(values))
        if held is None or held[0] is not device:
            address = device.allocate(max(values.nbytes, 1))
            try:
                device.upload(address, values)
            except BaseException:
                device.release(address)
                raise
            self._held[id(values)] = held = (device, address, values)
        return held[1]

    def release(self) -> None:
        """Give all of it back."""
        while self._held:
            _, (device, address, _) = self._held.popitem()
            with contextlib.suppress(ExecutionError):  # a device that is lost has nothing to give back
                device.release(address)


class _Compiled:
    def __init__(self, backend: CudaBackend, program: _Program, layout: Layout, lowered: Lowered) -> None:
        self._resident = _Resident()
        weakref.finalize(self, self._resident.release).atexit = False
        self._backend = backend
        self._program = program
        self._layout = layout
        self._parameters = lowered.parameters
        vectors = () if lowered.block is None else lowered.block.vectors
        self._vectors = np.array(vectors, np.uint64).ravel()
        self._outside = snapshots_outside(lowered)
        self._split = any(is_split(parameter.spec) for parameter in lowered.parameters)

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        launch = self._layout.launch
        if first_block < 0 or blocks < 0 or first_block + blocks > launch.blocks:
            raise ValueError(f"blocks {first_block} to {first_block + blocks} are not in a launch of {launch.blocks}")
        places = blocks_box(launch, first_block, blocks) if self._split and blocks else ()
        values = self._values(args, outs, blocks * self._layout.items_per_block, places)
        with RunMemory(self._backend.device) as memory:
            head = Parameters()
            head.scalar("int64", first_block)
            self._launch(memory, "run_blocks", head, blocks, values)

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        launch = self._layout.launch
        items = launch.blocks * self._layout.items_per_block
        ids = np.array(threads, dtype=np.int64, order="C", ndmin=1)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= items)):
            raise ValueError(f"threads are not linear ids in a launch of {items}")
        places = items_box(launch, ids, self._layout.items_per_block) if self._split and ids.size else ()
        values = self._values(args, outs, ids.size, places)
        with RunMemory(self._backend.device) as memory:
            head = Parameters()
            head.array(memory.put(ids), ids)
            self._launch(memory, "run_threads", head, ids.size, values)

    def _launch(
        self, memory: RunMemory, entry: str, head: Parameters, items: int, values: list[tuple[Parameter, Any]]
    ) -> None:
        """Run `items` blocks, or single threads, and bring back what they wrote."""
        device, block, most = self._backend.device, self._layout.launch.block, self._backend.blocks_a_launch
        singly = entry == "run_threads" and not self._layout.together
        tail, written = self._place(memory, values)
        blocks = items
        if singly:
            blocks, block, most = -(-items // _THREADS), (_THREADS, 1, 1), _MOST_BLOCKS
        if self._outside:
            most = min(most, max(1, _SNAPSHOT_BYTES // sum(array.nbytes for array in self._outside)))
        for array in self._outside:
            room = min(most, items) * array.size
            itemsize = array.nbytes // array.size
            tail.vector(memory.room(room * itemsize), room, itemsize)
        for start in range(0, blocks, most):
            given = Parameters()
            given.data += head.data
            if not singly:
                given.scalar("int64", start)
            code = self._program.load(entry, device)
            grid = (min(most, blocks - start), 1, 1)
            device.launch(code, entry, grid, block, bytes(given.data + tail.data))
        for address, out in written:
            device.download(address, out)

    def _place(
        self, memory: RunMemory, values: list[tuple[Parameter, Any]]
    ) -> tuple[Parameters, list[tuple[int, Array]]]:
        """The parameters after an entry's own, and where the outputs lie. All before is a whole number of words."""
        launch, dims = self._layout.launch, self._layout.launch.dims
        tail = Parameters()
        for number in (*launch.block[:dims], *launch.grid[:dims], *self._layout.extents[:dims]):
            tail.scalar("int64", number)
        written: list[tuple[int, Array]] = []
        for parameter, value in values:
            if parameter.ndim == 0:
                tail.scalar(parameter.dtype, value)
                continue
            if isinstance(value, Window):
                assert isinstance(parameter.spec, InputSpec)
                for number in (*parameter.spec.shape, *value.origin[:dims]):
                    tail.scalar("int64", number)
                value = value.values
                if not isinstance(value, DeviceArray):
                    value = np.require(value, requirements=["C", "A"])
            address = self._address(memory, parameter, value)
            if isinstance(parameter.spec, OutputSpec):
                for length in parameter.spec.shape:
                    tail.scalar("int64", length)
                if not isinstance(value, DeviceArray):
                    written.append((address, value))
            tail.array(address, value)
        if self._vectors.size:
            tail.array(memory.put(self._vectors), self._vectors)
        return tail, written

    def _address(self, memory: RunMemory, parameter: Parameter, value: Array | DeviceArray) -> int:
        """Where an array lies on the device. Inputs stay there; windows don't, of which each chunk has another one."""
        if isinstance(value, DeviceArray):
            return value.address
        kept = None
        if isinstance(parameter.spec, InputSpec) and parameter.spec.split is None:
            kept = self._resident.put(self._backend.device, value)
        return memory.put(value) if kept is None else kept

    def _values(
        self, args: Sequence[Any], outs: Sequence[Array], rows: int, places: Box
    ) -> list[tuple[Parameter, Any]]:
        layout = self._layout
        given, written = iter(args), iter(zip(outs, layout.row_shapes, layout.by_block, strict=False))
        if len(args) + len(outs) != len(self._parameters) or len(outs) != len(self._layout.outputs):
            raise ValueError(f"{len(args)} arguments and {len(outs)} outputs are not what the kernel takes")
        values: list[tuple[Parameter, Any]] = []
        for parameter in self._parameters:
            spec = parameter.spec
            dtype = np.dtype(spec.dtype)
            if isinstance(spec, OutputSpec):
                out, row, by_block = next(written)
                shape = (rows, *row)
                fits = isinstance(out, DeviceArray) or (out.flags.c_contiguous and out.flags.writeable)
                if out.shape != shape or out.dtype != dtype or not fits:
                    raise ValueError(f"rows of {parameter.name}: {dtype}{shape} is wanted, C-contiguous and writable")
                if layout.together and not by_block:  # the code counts threads
                    out = out.reshape((shape[0] * shape[1], *shape[2:]))
                values.append((parameter, out))
            elif isinstance(spec, InputSpec) and spec.split is not None:
                window = next(given)
                if places:
                    check_window(parameter.name, spec, window, places)
                values.append((parameter, window))
            elif isinstance(spec, InputSpec):
                value = next(given)
                if not isinstance(value, DeviceArray):
                    value = np.require(value, requirements=["C", "A"])
                if value.shape != spec.shape or value.dtype != dtype:
                    raise ValueError(f"{parameter.name} is {value.dtype}{value.shape}, not {dtype}{spec.shape}")
                values.append((parameter, value))
            else:
                values.append((parameter, dtype.type(next(given))))
        return values
