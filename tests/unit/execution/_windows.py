"""Runs kernels with split inputs, chunk by chunk, each with no more of them than its window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from p2pcompute._split import Split
from p2pcompute.execution._api import Backend, CompiledKernel, InputSpec, OutputSpec
from p2pcompute.execution._split import Box, blocks_box, fill_window, items_box, window_box
from p2pcompute.kernel import Binding

__all__ = ["arguments", "chunked", "reference", "rows_of", "single"]

Array = np.ndarray[Any, Any]


def _values(binding: Binding) -> Iterator[tuple[Any, Any]]:
    values = iter(binding.values)
    for spec in binding.specs:
        if not isinstance(spec, OutputSpec):
            yield spec, next(values)


def arguments(binding: Binding, places: Box) -> list[Any]:
    """What a back end takes for threads at these places."""
    found: list[Any] = []
    for spec, value in _values(binding):
        if isinstance(value, Split):
            assert isinstance(spec, InputSpec)
            pieces = [((0,) * value.array.ndim, value.array)]
            value = fill_window(spec, window_box(spec, places), pieces)
        found.append(value)
    return found


def rows_of(binding: Binding, count: int) -> list[Array]:
    return [
        np.zeros((count, *row), spec.dtype)
        for row, spec in zip(binding.layout.row_shapes, binding.layout.outputs, strict=True)
    ]


def chunked(backend: Backend, binding: Binding, blocks_per_chunk: int) -> list[Any]:
    """The results, from chunks of so many blocks."""
    compiled = backend.compile(binding.source, binding.launch, binding.specs)
    whole = binding.empty_outputs()
    for first in range(0, binding.launch.blocks, blocks_per_chunk):
        blocks = min(blocks_per_chunk, binding.launch.blocks - first)
        rows = rows_of(binding, blocks * binding.layout.items_per_block)
        compiled.run_blocks(first, blocks, arguments(binding, blocks_box(binding.launch, first, blocks)), rows)
        for place, (part, target) in enumerate(zip(rows, whole, strict=True)):
            binding.layout.scatter(place, first, blocks, part, target)
    return binding.results(whole)


def single(compiled: CompiledKernel, binding: Binding, ids: Array) -> list[Array]:
    """The rows of single items."""
    rows = rows_of(binding, len(ids))
    places = items_box(binding.launch, ids, binding.layout.items_per_block)
    compiled.run_threads(ids, arguments(binding, places), rows)
    return rows


def reference(x: Array, index: list[Array], place: list[Array], halo: list[int], edge: str) -> Array:
    """What docs/strict.md, section 14, says of a load: `index` and `place` along each axis, of one shape."""
    found = np.ones(index[0].shape, np.bool_)
    at: list[Array] = []
    for axis, (wanted, own, far) in enumerate(zip(index, place, halo, strict=True)):
        length = x.shape[axis]
        found &= (wanted >= own - far) & (wanted <= own + far)
        if edge == "zero":
            found &= (wanted >= 0) & (wanted < length)
        at.append(np.clip(wanted, 0, length - 1) if edge == "clamp" else wanted % length)
    return np.where(found, x[tuple(at)], x.dtype.type(0))
