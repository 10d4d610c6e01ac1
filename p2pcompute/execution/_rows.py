"""Rows: which thread owns which part of an output, without running anything. NumPy only.

The requester uses this to place a chunk's rows in the whole array and to draw samples among threads that matter;
the provider to size what it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from p2pcompute.errors import KernelTypeError
from p2pcompute.execution._api import ArgSpec, Array, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._guard import Admitted, admit, by_guard
from p2pcompute.execution._language import DTYPES, MAX_ARRAY_AXES
from p2pcompute.execution._language_advice import in_place
from p2pcompute.execution._operations import can_reduce, defined_for

__all__ = [
    "MAX_THREADS",
    "Layout",
    "boxes",
    "check_launch",
    "extents",
    "scatter_rows",
    "thread_coordinates",
    "threads_inside",
]

MAX_THREADS = 2**40
MAX_ELEMENTS = 2**40
_MAX_GRID = (2**31 - 1, 65_535, 65_535)  # CUDA's bounds: a launch that runs here runs there
_MAX_BLOCK = (1024, 1024, 64)
_MAX_BLOCK_THREADS = 1024


def check_launch(admitted: Admitted, launch: Launch, args: Sequence[ArgSpec]) -> None:
    """Check that geometry and arguments fit an admitted kernel.

    Raises:
        KernelTypeError: they don't; says which and why.
    """
    entry = admitted.entry

    def refuse(reason: str, instead: str = "", line: int = 0) -> KernelTypeError:
        return KernelTypeError(reason, line=line or entry.node.lineno, filename=entry.filename, instead=instead)

    if launch.dims != admitted.grid.dims:
        raise refuse(
            f"{entry.name} indexes {admitted.grid.dims} grid axes and is started on {launch.dims}",
            f"give blocks and threads as {admitted.grid.dims} numbers each",
        )
    for axis in range(3):
        top = _MAX_GRID[axis] if axis < launch.dims else 1
        most = _MAX_BLOCK[axis] if axis < launch.dims else 1
        if not 1 <= launch.grid[axis] <= top or not 1 <= launch.block[axis] <= most:
            raise refuse(
                f"the geometry {launch.grid} x {launch.block} is out of bounds on axis {axis}",
                f"give 1 to {top} blocks and 1 to {most} threads there",
            )
    if launch.threads_per_block > _MAX_BLOCK_THREADS or launch.threads > MAX_THREADS:
        raise refuse(
            f"{launch.threads_per_block} threads a block and {launch.threads} in all are too many",
            f"give a block {_MAX_BLOCK_THREADS} at most, and a launch {MAX_THREADS}",
        )
    if len(args) != len(entry.params):
        raise refuse(
            f"{entry.name} takes {len(entry.params)} arguments, not {len(args)}", f"give {', '.join(entry.params)}"
        )
    for name, spec in zip(entry.params, args, strict=True):
        if spec.dtype not in DTYPES:
            raise refuse(f"{name} is of dtype {spec.dtype}", f"use one of {', '.join(DTYPES)}")
        if isinstance(spec, ScalarSpec):
            if name in entry.arrays:
                raise refuse(f"{name} is used as an array and a scalar was passed", "pass a NumPy array")
            continue
        if not 1 <= len(spec.shape) <= MAX_ARRAY_AXES or any(length < 0 for length in spec.shape):
            raise refuse(f"{name} has the shape {spec.shape}", f"arrays have 1 to {MAX_ARRAY_AXES} axes")
        elements = 1
        for length in spec.shape:
            elements *= max(length, 1)
        if elements > MAX_ELEMENTS:
            raise refuse(
                f"{name} has the shape {spec.shape}, more than {MAX_ELEMENTS} elements", "make several calls of parts"
            )
        if isinstance(spec, InputSpec) and spec.split is not None:
            from p2pcompute.execution._split import split_fault  # knows of rows itself

            if fault := split_fault(spec, launch.dims):
                raise refuse(f"{name} can't be split so: {fault}", "pass the whole array, or split it otherwise")
        mapping = admitted.grid.mapping.get(name)
        if isinstance(spec, InputSpec) and mapping is not None:
            line, instead = in_place(entry.node, name)
            raise refuse(f"the kernel stores into {name}, which is an input", instead, line)
        if isinstance(spec, OutputSpec) and mapping is None:
            raise refuse(f"{name} is an output and the kernel never stores into it", "pass an array, or store into it")
        if mapping is not None and len(spec.shape) < len(mapping):
            raise refuse(f"{name} has fewer axes than the grid", f"give it at least {len(mapping)}")
        if isinstance(spec, OutputSpec) and spec.reduce is not None and not can_reduce(spec.reduce, spec.dtype):
            raise refuse(f"values of {spec.dtype} are not combined by {spec.reduce!r}", defined_for(spec.dtype))


def extents(admitted: Admitted, launch: Launch, args: Sequence[ArgSpec]) -> tuple[int, int, int]:
    """For each grid axis, the length of the longest output along it: threads beyond run nothing. Where threads of a
    block work together all of them run."""
    found = [0, 0, 0]
    if admitted.plan is not None:
        return (
            launch.grid[0] * launch.block[0],
            launch.grid[1] * launch.block[1] if launch.dims > 1 else 1,
            launch.grid[2] * launch.block[2] if launch.dims > 2 else 1,
        )
    for name, spec in zip(admitted.entry.params, args, strict=True):
        mapping = admitted.grid.mapping.get(name)
        if mapping is not None and isinstance(spec, OutputSpec):
            for place, axis in enumerate(mapping):
                found[axis] = max(found[axis], spec.shape[place])
    for axis in range(launch.dims, 3):
        found[axis] = 1
    return found[0], found[1], found[2]


def thread_coordinates(launch: Launch, threads: Array) -> tuple[Array, Array, Array]:
    """Global (x, y, z) of threads by linear id (int64, block-major, x fastest). Three int64 arrays of its shape."""
    block, local = np.divmod(np.asarray(threads, dtype=np.int64), launch.threads_per_block)
    found: list[Array] = []
    for axis in range(3):
        block, at = np.divmod(block, launch.grid[axis])
        local, inside = np.divmod(local, launch.block[axis])
        found.append(at * launch.block[axis] + inside)
    return found[0], found[1], found[2]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where rows lie, for one kernel, launch and arguments. Build it once with `of` and use it for every chunk.

    An *item* is the least that can be run by itself: a thread, or a block (`together`) where its threads work
    together or an output is combined. Items have linear ids, and one row of each output. In a block's row stand the
    rows of its threads, in their order, unless the output is the block's own (`by_block`) or combined.
    """

    launch: Launch
    outputs: tuple[OutputSpec, ...]
    mappings: tuple[tuple[int, ...], ...]
    extents: tuple[int, int, int]
    together: bool = False
    by_block: tuple[bool, ...] = ()

    @classmethod
    def of(cls, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> Layout:
        """Admit the source and check launch and arguments.

        Raises:
            KernelError: the source is refused, or launch and arguments don't fit (`KernelTypeError`).
        """
        return cls.of_admitted(admit(source), launch, args)

    @classmethod
    def of_admitted(cls, admitted: Admitted, launch: Launch, args: Sequence[ArgSpec]) -> Layout:
        """The same for a source that was admitted before."""
        with by_guard():
            check_launch(admitted, launch, args)
        outputs: list[OutputSpec] = []
        mappings: list[tuple[int, ...]] = []
        for name, spec in zip(admitted.entry.params, args, strict=True):
            if isinstance(spec, OutputSpec):
                outputs.append(spec)
                mappings.append(admitted.grid.mapping[name])
        return cls(
            launch=launch,
            outputs=tuple(outputs),
            mappings=tuple(mappings),
            extents=extents(admitted, launch, args),
            together=admitted.plan is not None or any(spec.reduce is not None for spec in outputs),
            by_block=tuple(
                name in admitted.grid.by_block
                for name, spec in zip(admitted.entry.params, args, strict=True)
                if isinstance(spec, OutputSpec)
            ),
        )

    @cached_property
    def row_shapes(self) -> list[tuple[int, ...]]:
        """For each output, the shape of one item's row."""
        threads = (self.launch.threads_per_block,) if self.together else ()
        return [
            (() if own or spec.reduce is not None else threads) + spec.shape[self.launch.dims :]
            for spec, own in zip(self.outputs, self.by_block, strict=True)
        ]

    @cached_property
    def target_shapes(self) -> list[tuple[int, ...]]:
        """For each output, the shape of what chunks are placed in: its own, or one partial for each block."""
        return [
            spec.shape if spec.reduce is None else (self.launch.blocks, *spec.shape[self.launch.dims :])
            for spec in self.outputs
        ]

    @property
    def items_per_block(self) -> int:
        """Items of one block."""
        return 1 if self.together else self.launch.threads_per_block

    def items_sampled(self, first_block: int, blocks: int) -> Array | None:
        """As `items_inside`; None where that is all items of the chunk, which costs nothing to find out."""
        return None if self._is_whole(first_block, blocks) else self.items_inside(first_block, blocks)

    def _is_whole(self, first_block: int, blocks: int) -> bool:
        """Whether one output has an element for each of a chunk's items: seen by the last one of each box. Another
        chunk may be whole too, by several outputs together."""
        self._check_chunk(first_block, blocks)
        if any(spec.reduce is not None for spec in self.outputs):
            return True  # a block gives a value even where none of its threads stores one
        ends = [
            tuple(at + n for at, n in zip(low, size, strict=True))
            for low, size in boxes(self.launch.grid, first_block, blocks)
        ]

        def holds(spec: OutputSpec, mapping: tuple[int, ...], own: bool) -> bool:
            sizes = (1, 1, 1) if own else self.launch.block
            for place, axis in enumerate(mapping):
                last = max(end[axis] for end in ends)
                last = (last - 1) * sizes[axis] if self.together else last * sizes[axis] - 1
                if last >= spec.shape[place]:
                    return False
            return True

        return bool(ends) and any(map(holds, self.outputs, self.mappings, self.by_block))

    def items_inside(self, first_block: int, blocks: int) -> Array:
        """Linear ids (int64, ascending) of a chunk's items that own an element of at least one output."""
        if not self.together:
            return self.threads_inside(first_block, blocks)
        self._check_chunk(first_block, blocks)
        found = np.arange(first_block, first_block + blocks, dtype=np.int64)
        if any(spec.reduce is not None for spec in self.outputs):
            return found  # a block gives a value even where none of its threads stores one
        places: list[Array] = []
        rest = found
        for axis in range(3):
            rest, at = np.divmod(rest, self.launch.grid[axis])
            places.append(at)
        inside = np.zeros(blocks, dtype=np.bool_)
        for spec, mapping, own in zip(self.outputs, self.mappings, self.by_block, strict=True):
            this = np.ones(blocks, dtype=np.bool_)
            for place, axis in enumerate(mapping):
                this &= places[axis] * (1 if own else self.launch.block[axis]) < spec.shape[place]
            inside |= this
        return found[inside]

    def inside(self, threads: Array) -> Array:
        """Whether each thread (linear ids, int64) owns a row of at least one output. Bools of the same shape."""
        places = thread_coordinates(self.launch, threads)
        found = np.zeros(np.shape(threads), dtype=np.bool_)
        for spec, mapping in zip(self.outputs, self.mappings, strict=True):
            this = np.ones(np.shape(threads), dtype=np.bool_)
            for place, axis in enumerate(mapping):
                this &= places[axis] < spec.shape[place]
            found |= this
        return found

    def threads_inside(self, first_block: int, blocks: int) -> Array:
        """Linear ids (int64, ascending) of a chunk's threads that own a row of at least one output."""
        self._check_chunk(first_block, blocks)
        size = self.launch.threads_per_block
        threads = np.arange(first_block * size, (first_block + blocks) * size, dtype=np.int64)
        return threads[self.inside(threads)]

    def part(self, out_index: int, first_block: int, rows: Array) -> Array:
        """A chunk's rows of one output as whoever joins chunks wants them: of a launch along one axis the part of the
        array that they are, without those of threads behind its end. Of more axes, and of what is combined, as they
        are."""
        spec = self.outputs[out_index]
        if self.launch.dims > 1 or spec.reduce is not None:
            return rows
        size = 1 if self.by_block[out_index] else self.launch.threads_per_block
        count = len(rows) * size // self.items_per_block
        return rows.reshape((count, *spec.shape[1:]))[: max(spec.shape[0] - first_block * size, 0)]

    def scatter(self, out_index: int, first_block: int, blocks: int, rows: Array, target: Array) -> None:
        """Place a chunk's rows of one output into the whole array; rows of threads outside are left out.

        Args:
            out_index: which output, among outputs.
            first_block: the chunk's first block.
            blocks: how many blocks it has.
            rows: the chunk's items' rows, ``(blocks * items_per_block, *row_shape)`` of the output's dtype.
            target: the whole output, of its `target_shapes`; written in place.

        Raises:
            ValueError: a shape or dtype is not as it has to be, or the chunk lies outside of the launch.
        """
        self._check_chunk(first_block, blocks)
        spec, mapping, launch = self.outputs[out_index], self.mappings[out_index], self.launch
        due = (blocks * self.items_per_block, *self.row_shapes[out_index])
        if rows.shape != due or rows.dtype != np.dtype(spec.dtype):
            raise ValueError(f"rows are {rows.dtype}{rows.shape}, not of this chunk")
        shape = self.target_shapes[out_index]
        if target.shape != shape or target.dtype != np.dtype(spec.dtype):
            raise ValueError(f"target is {target.dtype}{target.shape}, not {spec.dtype}{shape}")
        if spec.reduce is not None:
            target[first_block : first_block + blocks] = rows
            return
        row_shape = spec.shape[launch.dims :]
        block, size = launch.block, launch.threads_per_block
        if self.by_block[out_index]:
            block, size = (1, 1, 1), 1
        rows = rows.reshape((blocks * size, *row_shape))
        if launch.dims == 1:
            into = target[first_block * size : (first_block + blocks) * size]
            into[...] = rows[: len(into)]
            return
        axes = tuple(mapping.index(axis) for axis in reversed(range(launch.dims)))
        turned = target.transpose(axes + tuple(range(launch.dims, target.ndim)))  # (z, y, x, *row)
        turned = turned[(np.newaxis,) * (3 - launch.dims)]  # a view, whatever the strides
        done = 0
        for (x, y, z), (nx, ny, nz) in boxes(launch.grid, first_block, blocks):
            count = nx * ny * nz
            part = rows[done * size : (done + count) * size]
            done += count
            bx, by, bz = block
            part = part.reshape((nz, ny, nx, bz, by, bx, *row_shape))
            order = (0, 3, 1, 4, 2, 5)
            part = part.transpose(order + tuple(range(6, part.ndim))).reshape((nz * bz, ny * by, nx * bx, *row_shape))
            low = (z * bz, y * by, x * bx)
            into = turned[tuple(slice(at, at + n) for at, n in zip(low, part.shape[:3], strict=True))]
            into[...] = part[tuple(slice(0, n) for n in into.shape[:3])]

    def _check_chunk(self, first_block: int, blocks: int) -> None:
        if first_block < 0 or blocks < 0 or first_block + blocks > self.launch.blocks:
            raise ValueError(
                f"blocks {first_block} to {first_block + blocks} are not in a launch of {self.launch.blocks}"
            )


def boxes(
    grid: tuple[int, int, int], first: int, count: int
) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Cut a run of linear block ids into boxes ((x, y, z), (nx, ny, nz)), in order; at most five."""
    gx, gy, _ = grid
    while count:
        x, rest = first % gx, first // gx
        y, z = rest % gy, rest // gy
        if x or count < gx:
            box = (min(count, gx - x), 1, 1)
        elif y or count < gx * gy:
            box = (gx, min(count // gx, gy - y), 1)
        else:
            box = (gx, gy, count // (gx * gy))
        yield (x, y, z), box
        done = box[0] * box[1] * box[2]
        first += done
        count -= done


def scatter_rows(
    source: KernelSource,
    launch: Launch,
    args: Sequence[ArgSpec],
    out_index: int,
    first_block: int,
    blocks: int,
    rows: Array,
    target: Array,
) -> None:
    """`Layout.scatter` for a single use; it admits the source each time."""
    Layout.of(source, launch, args).scatter(out_index, first_block, blocks, rows, target)


def threads_inside(
    source: KernelSource, launch: Launch, args: Sequence[ArgSpec], first_block: int, blocks: int
) -> Array:
    """`Layout.threads_inside` for a single use; it admits the source each time."""
    return Layout.of(source, launch, args).threads_inside(first_block, blocks)
