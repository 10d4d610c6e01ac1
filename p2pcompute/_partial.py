"""Outputs of chunks as rows, in their places; and what has come of a task that ends with an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute.errors import P2PComputeError, Partial

if TYPE_CHECKING:
    from p2pcompute._requester import TaskRun
    from p2pcompute.execution._rows import Layout
    from p2pcompute.kernel import Binding
    from p2pcompute_protocols.work import Work

__all__ = ["Placed", "RowForms"]


class RowForms:
    """How the bytes of a chunk are its rows, output by output."""

    def __init__(self, layout: Layout) -> None:
        self._items = layout.items_per_block
        self._forms = [
            (np.dtype(spec.dtype), np.dtype(spec.dtype).newbyteorder("<"), row, math.prod(row))
            for spec, row in zip(layout.outputs, layout.row_shapes, strict=True)
        ]

    def rows(self, output: bytes | memoryview, blocks: int) -> tuple[np.ndarray[Any, Any], ...]:
        """The rows of so many blocks: an array ``(blocks * items_per_block, *row_shape)`` for each output, in the
        memory of `output` where this machine has its byte order."""
        rows: list[np.ndarray[Any, Any]] = []
        count, at = blocks * self._items, 0
        for dtype, sent, row, size in self._forms:
            array = np.frombuffer(output, dtype=sent, count=count * size, offset=at)
            at += array.nbytes
            rows.append(array.reshape((count, *row)).astype(dtype, copy=False))
        return tuple(rows)


class Placed:
    """The outputs of one task, and which chunks are in them."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._forms = RowForms(binding.layout)
        self._chunks: dict[int, tuple[int, int]] = {}  # index: first block, blocks
        self.outputs = binding.empty_outputs()

    def put(self, chunks: Sequence[tuple[int, memoryview]], work: Work) -> None:
        """Put what chunks of `work` have given in place; a later one of the same index counts."""
        at = 0
        while at < len(chunks):
            end = at + 1
            # Neighbours are one piece, where not each has all outputs one behind the other.
            while len(self.outputs) == 1 and end < len(chunks) and chunks[end][0] == chunks[end - 1][0] + 1:
                end += 1
            self._put(chunks[at:end], work)
            at = end

    def _put(self, neighbours: Sequence[tuple[int, memoryview]], work: Work) -> None:
        blocks = 0
        for index, _ in neighbours:
            self._chunks[index] = work.chunk_range(index)
            blocks += self._chunks[index][1]
        first = self._chunks[neighbours[0][0]][0]
        output = neighbours[0][1] if len(neighbours) == 1 else b"".join(given for _, given in neighbours)
        for position, (rows, target) in enumerate(zip(self._forms.rows(output, blocks), self.outputs, strict=True)):
            self._binding.layout.scatter(position, first, blocks, rows, target)

    def note(self, error: P2PComputeError, task: TaskRun) -> None:
        """Put what is there into `error.partial`, if the task had started."""
        if task.ended is None:
            return
        held = self._chunks.keys() & task.held  # what a liar gave, and nobody again, is not
        error.partial = Partial(
            outputs=tuple(self._masked(position, sorted(held)) for position in range(len(self.outputs))),
            done=len(held),
            chunks=task.ended.chunks,
            accepted_uusd=task.ended.accepted_uusd,
            paid_uusd=task.ended.paid_uusd,
        )

    def _masked(self, position: int, chunks: list[int]) -> np.ma.MaskedArray[Any, Any]:
        layout = self._binding.layout
        spec = layout.outputs[position]
        if spec.reduce is not None:
            return np.ma.MaskedArray(np.zeros(self._binding.result_shape(position), dtype=spec.dtype), mask=True)
        marks = np.zeros(spec.shape, dtype=spec.dtype)
        for index in chunks:
            first, blocks = self._chunks[index]
            rows = np.ones((blocks * layout.items_per_block, *layout.row_shapes[position]), dtype=spec.dtype)
            layout.scatter(position, first, blocks, rows, marks)
        there = marks != 0
        values = np.where(there, self.outputs[position], np.zeros((), dtype=spec.dtype))
        return np.ma.MaskedArray(values, mask=~there)
