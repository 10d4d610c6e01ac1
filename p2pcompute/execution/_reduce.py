"""Outputs that are combined: values of threads become one partial a block, and partials one result.

The order is fixed by the launch alone: a tree over the threads of a block, in the order of their ids, and the same
tree over all blocks. So the bits depend neither on how a launch is cut into chunks nor on who computes which, and a
block's partial can be computed again by itself: a block is what is run, sampled and placed (an *item*), as where its
threads work together. docs/strict.md, section 13, defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from p2pcompute.execution._api import ArgSpec, Array, CompiledKernel, OutputSpec
from p2pcompute.execution._operations import fold, identity
from p2pcompute.execution._rows import Layout

__all__ = ["plain_outputs", "reducing"]

_PART_BYTES: Final = 8 * 1024 * 1024  # of single threads' values that are held at a time


def plain_outputs(args: Sequence[ArgSpec]) -> list[ArgSpec]:
    """The same arguments with no output combined: what the kernel itself is compiled for."""
    return [
        OutputSpec(dtype=spec.dtype, shape=spec.shape) if isinstance(spec, OutputSpec) and spec.reduce else spec
        for spec in args
    ]


def reducing(kernel: CompiledKernel, layout: Layout, given: Layout) -> CompiledKernel:
    """`kernel`, compiled for `plain_outputs` with their `layout`, as what gives the outputs of the layout `given`."""
    combined = any(spec.reduce is not None for spec in given.outputs)
    return _ReducingKernel(kernel, layout, given) if combined else kernel


class _ReducingKernel:
    """A compiled kernel whose outputs are combined by blocks, around one that gives each thread's values."""

    def __init__(self, inner: CompiledKernel, inner_layout: Layout, layout: Layout) -> None:
        self._inner = inner
        self._inner_layout = inner_layout
        self._layout = layout
        row_bytes = sum(
            int(np.prod(row, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            for row, spec in zip(inner_layout.row_shapes, inner_layout.outputs, strict=True)
        )
        self._blocks_a_part = max(1, _PART_BYTES // max(1, row_bytes * inner_layout.items_per_block))

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """As `CompiledKernel.run_blocks`, with one row a block."""
        for start in range(0, blocks, self._blocks_a_part):
            count = min(self._blocks_a_part, blocks - start)
            some = [out[start : start + count] for out in outs]
            into = self._room(count, some)
            self._inner.run_blocks(first_block + start, count, args, into)
            self._combine(count, into, some)

    def run_threads(self, threads: Array, args: Sequence[Any], outs: Sequence[Array]) -> None:
        """As `CompiledKernel.run_threads`; `threads` are ids of blocks."""
        ids = np.array(threads, dtype=np.int64, ndmin=1)
        size = self._inner_layout.items_per_block
        if len(ids) and (ids.min() < 0 or ids.max() >= self._layout.launch.blocks):
            raise ValueError(f"not all ids are of blocks of a launch of {self._layout.launch.blocks}")
        for start in range(0, len(ids), self._blocks_a_part):
            part = ids[start : start + self._blocks_a_part]
            some = [out[start : start + len(part)] for out in outs]
            into = self._room(len(part), some)
            items = (part[:, np.newaxis] * size + np.arange(size, dtype=np.int64)).ravel()
            self._inner.run_threads(items, args, into)
            self._combine(len(part), into, some)

    def _room(self, blocks: int, outs: Sequence[Array]) -> list[Array]:
        """Where the kernel stores: an output's own rows, or values that are then combined."""
        inner = self._inner_layout
        items = blocks * inner.items_per_block
        return [
            out.reshape((items, *row))
            if spec.reduce is None
            else np.full((items, *row), identity(spec.reduce, spec.dtype), spec.dtype)
            for spec, row, out in zip(self._layout.outputs, inner.row_shapes, outs, strict=True)
        ]

    def _combine(self, blocks: int, into: Sequence[Array], outs: Sequence[Array]) -> None:
        inner = self._inner_layout
        for spec, own, out, values in zip(self._layout.outputs, inner.by_block, outs, into, strict=True):
            if spec.reduce is not None:
                of_block = 1 if own else inner.launch.threads_per_block
                out[...] = fold(spec.reduce, np.swapaxes(values.reshape((blocks, of_block, *out.shape[1:])), 0, 1))
