"""What has come of a task that ends with an error: the rows that were placed and hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from p2pcompute.errors import P2PComputeError, Partial

if TYPE_CHECKING:
    from p2pcompute._requester import Chunk, TaskRun
    from p2pcompute.kernel import Binding

__all__ = ["Placed"]


class Placed:
    """The outputs of one task, and which chunks are in them."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._chunks: dict[int, tuple[int, int]] = {}  # index: first block, blocks
        self.outputs = binding.empty_outputs()

    async def put(self, chunk: Chunk) -> None:
        """Put a chunk's rows in place; a later one of the same index counts."""
        for position, (rows, target) in enumerate(zip(chunk.rows, self.outputs, strict=True)):
            self._binding.layout.scatter(position, chunk.first_block, chunk.blocks, rows, target)
        self._chunks[chunk.index] = (chunk.first_block, chunk.blocks)

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
