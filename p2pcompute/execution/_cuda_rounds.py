"""States of work in rounds on a CUDA device: what one launch leaves is there for the next, and for the next round.

A kernel writes rows, in the order of its threads; an array of the state has its elements in C order. The rows are put
into place on the device, by a kernel of our own that copies bits. A copy of each array comes to the host as soon as a
launch has given it: it is what the round's digest is of, and what windows of split inputs are made of. Outputs that
are combined are folded on the host, by the tree that docs/strict.md defines, and go back.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import Array, InputSpec
from p2pcompute.execution._cuda_compile import CudaCompiler
from p2pcompute.execution._cuda_device import CudaDevice, DeviceArray
from p2pcompute.execution._ptx_lint import check_ptx
from p2pcompute.execution._rounds import HostStates, Launched
from p2pcompute.execution._split import Window

if TYPE_CHECKING:
    from p2pcompute.execution._cuda import CudaBackend

__all__ = ["DeviceStates", "Placing"]

_THREADS: Final = 128
_WORDS: Final = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
_AXES: Final = "xyz"


def _text() -> str:
    """Each thread has an element of the array: it looks whose row it is in, and takes it from there; zero where no
    thread of the launch owns it."""
    names = ", ".join(f"stride_{axis}, length_{axis}, block_{axis}, grid_{axis}" for axis in _AXES)
    code = (
        f"def place(target, rows, size, {names}):\n"
        " at = uint64(cuda.blockIdx.x) * uint64(cuda.blockDim.x) + uint64(cuda.threadIdx.x)\n"
        " if at >= uint64(target.shape[0]):\n  return\n"
        " size = uint64(size)\n lead = at // size\n inner = at % size\n"
        " block = uint64(0)\n thread = uint64(0)\n threads = uint64(1)\n inside = True\n"
    )
    for axis in reversed(_AXES):
        code += (
            f" place_{axis} = (lead // uint64(stride_{axis})) % uint64(length_{axis})\n"
            f" inside = inside & (place_{axis} // uint64(block_{axis}) < uint64(grid_{axis}))\n"
            f" block = block * uint64(grid_{axis}) + place_{axis} // uint64(block_{axis})\n"
            f" thread = thread * uint64(block_{axis}) + place_{axis} % uint64(block_{axis})\n"
            f" threads = threads * uint64(block_{axis})\n"
        )
    return code + (
        " if inside:\n  target[at] = rows[(block * threads + thread) * size + inner]\n else:\n  target[at] = 0\n"
    )


class Placing:
    """The kernel that puts rows into place, for elements of one to eight bytes; compiled when it is first asked for."""

    def __init__(self, compiler: CudaCompiler) -> None:
        self._compiler = compiler
        self._ptx: dict[int, str] = {}
        self._loaded: dict[tuple[int, int], Any] = {}

    def ptx(self, itemsize: int) -> str:
        """Its checked PTX."""
        if itemsize not in self._ptx:
            from numba import types

            names: dict[str, Any] = {"cuda": self._compiler.cuda, "uint64": np.uint64}
            exec(compile(_text(), "<place>", "exec"), names)
            word = getattr(types, _WORDS[itemsize])
            arrays = [types.Array(word, 1, "C"), types.Array(word, 1, "C", readonly=True)]
            ptx = self._compiler.ptx(names["place"], [*arrays, *[types.int64] * 13], _THREADS)
            check_ptx(ptx, together=False, fast=False)
            self._ptx[itemsize] = ptx
        return self._ptx[itemsize]

    def run(self, device: CudaDevice, launched: Launched, place: int, rows: DeviceArray, target: DeviceArray) -> None:
        """Fill `target` from the rows of output number `place` of a whole launch."""
        from p2pcompute.execution._cuda import Parameters  # which makes these

        layout = launched.layout
        launch, mapping = layout.launch, layout.mappings[place]
        own = bool(layout.by_block) and layout.by_block[place]
        lengths, strides = [1, 1, 1], [1, 1, 1]
        step = 1
        for at in reversed(range(len(mapping))):
            lengths[mapping[at]], strides[mapping[at]] = target.shape[at], step
            step *= target.shape[at]
        given = Parameters()
        for array in (target, rows):
            given.vector(array.address, array.size, array.itemsize)
        given.scalar("int64", target.size // step)
        for axis in range(3):
            for number in (strides[axis], lengths[axis], 1 if own else launch.block[axis], launch.grid[axis]):
                given.scalar("int64", number)
        key = (target.itemsize, id(device))
        if key not in self._loaded:
            self._loaded[key] = device.load(self.ptx(target.itemsize))
        blocks = -(-target.size // _THREADS)
        device.launch(self._loaded[key], "place", (blocks, 1, 1), (_THREADS, 1, 1), bytes(given.data))


class DeviceStates:
    """As `States`: the arrays of a state, before a round and after it, stay on the device from round to round. Given
    back when nobody has it any more."""

    def __init__(self, backend: CudaBackend, placing: Placing, state: Sequence[InputSpec]) -> None:
        self._device = backend.device
        self._placing = placing
        self._host = HostStates()
        self._addresses: list[int] = []
        weakref.finalize(self, _release, self._device, self._addresses).atexit = False
        self._before = [self._room(np.dtype(spec.dtype), spec.shape) for spec in state]
        self._after = [self._room(np.dtype(spec.dtype), spec.shape) for spec in state]
        self._rows: dict[Launched, list[DeviceArray]] = {}
        self._left: Sequence[Array] | None = None  # what the last round has left, on the host; it is in `_after`

    def _room(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> DeviceArray:
        array = DeviceArray(address=0, dtype=dtype, shape=shape)
        address = self._device.allocate(max(1, array.nbytes))
        self._addresses.append(address)
        return DeviceArray(address=address, dtype=dtype, shape=shape)

    def constant(self, value: Array | Window) -> Any:
        """A window stays here; a whole array does so by itself, since nobody can write to it."""
        if not isinstance(value, Window):
            return value
        held = self._room(value.values.dtype, value.values.shape)
        self._device.upload(held.address, value.values)
        return Window(origin=value.origin, values=held)  # type: ignore[arg-type]  # as the back end takes it

    def begin(self, before: Sequence[Array]) -> list[Any]:
        """The state that a round begins with: the one that the last round has left, or else it is brought here."""
        if before is self._left:
            self._before, self._after = self._after, self._before
        else:
            for array, held in zip(before, self._before, strict=True):
                self._device.upload(held.address, np.ascontiguousarray(array))
        self._left = None
        return list(self._before)

    def run(self, launched: Launched, values: Sequence[Any], after: Sequence[Array]) -> list[Any]:
        """Run all of a launch; see `States.run`."""
        layout, given = launched.layout, [self._after[array] for array in launched.step.writes]
        if any(spec.reduce is not None for spec in layout.outputs):
            self._host.run(launched, values, after)
            for array, held in zip(launched.step.writes, given, strict=True):
                self._device.upload(held.address, np.ascontiguousarray(after[array]))
            return given
        rows = self._rows.get(launched)
        if rows is None:
            items = layout.launch.blocks * layout.items_per_block
            rows = self._rows[launched] = [
                self._room(np.dtype(spec.dtype), (items, *row))
                for spec, row in zip(layout.outputs, layout.row_shapes, strict=True)
            ]
        for one in rows:
            self._device.clear(one.address, one.nbytes)
        launched.kernel.run_blocks(0, layout.launch.blocks, values, rows)  # type: ignore[arg-type]  # likewise
        for place, (one, held, array) in enumerate(zip(rows, given, launched.step.writes, strict=True)):
            self._placing.run(self._device, launched, place, one, held)
            self._device.download(held.address, after[array])
        return given

    def end(self, after: Sequence[Array]) -> None:
        """The round is done: the next one may begin with what it has left."""
        self._left = after


def _release(device: CudaDevice, addresses: list[int]) -> None:
    release: Callable[[int], None] = device.release
    while addresses:
        with contextlib.suppress(ExecutionError):  # a device that is lost has nothing to give back
            release(addresses.pop())
