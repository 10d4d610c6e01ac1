"""The seam between the kernel language, its back ends and the worker that runs them.

A kernel is a pure function of (launch geometry, global thread index, arguments). A thread writes only its own
row of each output, so a chunk's output is an array of shape ``(threads, *row_shape)`` in thread order
(blocks ascending with x fastest, and inside a block threads with x fastest), and re-running any set of threads
gives rows that must be equal, bit for bit. Where threads of a block work together, or an output is combined, the
block takes the thread's place: an *item*, the least that is run by itself, is a block, and its row holds the rows of
its threads, or of a combined output the one value that they give together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

__all__ = [
    "ArgSpec",
    "Backend",
    "CompiledKernel",
    "DeviceBackend",
    "InputSpec",
    "KernelSource",
    "Launch",
    "OutputSpec",
    "ScalarSpec",
    "SplitSpec",
]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Launch geometry: `grid` blocks of `block` threads, each (x, y, z); unused axes are 1. `dims` is 1 to 3."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dims: int

    @property
    def blocks(self) -> int:
        """Blocks in the whole launch."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads_per_block(self) -> int:
        """Threads in one block."""
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def threads(self) -> int:
        """Threads in the whole launch."""
        return self.blocks * self.threads_per_block


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarSpec:
    """A scalar argument: `value` is a NumPy scalar of `dtype` (bool, int8…int64, uint8…uint64, float32, float64). One
    that `varies` may have another value in each run, so that nothing is proved from this one."""

    dtype: str
    value: Any
    varies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSpec:
    """How threads see an input of which each has a part: docs/strict.md, section 14.

    Attributes:
        axes: the grid axis (0 is x) along which each leading axis of the array runs, all of the launch's, each once.
        halo: for each of these, how far from its own place a thread may load.
        edge: what lies beyond the array: "zero", "clamp" or "wrap".
    """

    axes: tuple[int, ...]
    halo: tuple[int, ...]
    edge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """A read-only input array, C-contiguous, of up to 4 dimensions. `shape` is the global one, also where the array is
    `split`: what a run is given then is a `_split.Window` that has what its threads may load."""

    dtype: str
    shape: tuple[int, ...]
    split: SplitSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """An output array. `shape` is the global one that the kernel sees as ``out.shape``. `reduce` names the operation
    by which the values of all threads are combined (`_reduce.OPERATIONS`); None where each stands for itself."""

    dtype: str
    shape: tuple[int, ...]
    reduce: str | None = None


ArgSpec: TypeAlias = ScalarSpec | InputSpec | OutputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSource:
    """What goes over the wire: normalised source of the kernel and its device functions, and the entry's name.

    `text` is the one thing hashed; constants captured from globals stand in it as literals. `fp` is the mode in which
    it is computed: "strict", or "fast" for whatever comes near (docs/fast.md).
    """

    text: str
    entry: str
    digest: bytes = field(repr=False)  # SHA-256 over entry, NUL, text
    fp: str = "strict"


class CompiledKernel(Protocol):
    """A kernel compiled for one signature on one device."""

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Run whole blocks. `args`: a NumPy scalar or array per scalar and input argument, in parameter order
        with outputs left out. `outs[k]`: zeroed array of shape ``(blocks * items_per_block, *row_shape_k)``."""
        ...

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """Run single items by linear id (int64, block-major as above). `outs[k]`: zeroed ``(len(threads), *row)``."""
        ...


class Backend(Protocol):
    """Compiles admitted kernels: CPU now; CUDA shares this interface."""

    name: str

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CompiledKernel:
        """Admit (the guard runs here again) and compile. Raises `KernelError` with line, reason and remedy."""
        ...

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row: the axes of the output beyond those the grid covers, behind
        the number of threads where the item is a block and the output is neither the block's own nor combined."""
        ...

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        """Items of one block: its threads, or 1 where they work together."""
        ...


@runtime_checkable
class DeviceBackend(Protocol):
    """What a back end has besides where its launches run on a device of its own."""

    @property
    def device_ns(self) -> int:
        """Nanoseconds that launches have taken so far, by the device's own events."""
        ...

    @property
    def lost(self) -> bool:
        """Whether nothing can be run any more, after a fault on the device: the process has to end."""
        ...
