"""Windows of split inputs on their way into a worker: one stretch of shared memory a session, written anew each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import ArgSpec, InputSpec
from p2pcompute.execution._pool_stretch import SharedStretch, aligned
from p2pcompute.execution._split import Window

__all__ = ["SessionWindows"]


class SessionWindows(SharedStretch):
    """What one session's worker is given of the split inputs of its kernel."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self._specs: dict[int, InputSpec] = {}

    def expect(self, args: Sequence[ArgSpec]) -> None:
        """The kernel's arguments from now on."""
        self._specs = {
            position: spec
            for position, spec in enumerate(args)
            if isinstance(spec, InputSpec) and spec.split is not None
        }

    async def put(self, windows: Mapping[int, Window]) -> tuple[list[Any], list[int]] | None:
        """Write the windows of a run; gives the fields and descriptors of the packet that says so, or None where no
        input is split. The memory goes along until `taken` says that the worker has it.

        Raises:
            ValueError: not one window for each split input, or one of another type.
            ExecutionError: they are over the worker's limit.
        """
        if set(windows) != set(self._specs):
            raise ValueError(f"windows for the arguments {sorted(windows)}; {sorted(self._specs)} are split")
        if not windows:
            return None
        fields: list[Any] = []
        pieces: list[tuple[int, memoryview]] = []
        total = 0
        for position, spec in self._specs.items():
            window = windows[position]
            values = np.ascontiguousarray(window.values)
            if values.dtype != ipc.DTYPES[spec.dtype] or values.ndim != len(spec.shape) or values.size == 0:
                raise ValueError(f"a window of {values.dtype}{values.shape} for {spec.dtype}{spec.shape}")
            fields.append([list(window.origin), list(values.shape)])
            pieces.append((total, values.reshape(-1).view(np.uint8).data))
            total += aligned(values.nbytes)
        size, descriptors = await self.write(pieces, total, "the windows of this run")
        return [fields, size], descriptors
