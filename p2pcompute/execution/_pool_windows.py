"""Windows of split inputs on their way into a worker: one stretch of shared memory a session, written anew each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import ArgSpec, InputSpec
from p2pcompute.execution._pool_memory import Arena
from p2pcompute.execution._split import Window

__all__ = ["SessionWindows"]


class SessionWindows:
    """What one session's worker is given of the split inputs of its kernel."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._specs: dict[int, InputSpec] = {}
        self._arena: Arena | None = None
        self._mapped = False  # whether the worker has the arena

    @property
    def nbytes(self) -> int:
        """Memory that is held for them."""
        return 0 if self._arena is None else self._arena.nbytes

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
            total += -(-values.nbytes // ipc.ALIGNMENT) * ipc.ALIGNMENT
        if total > self._most_bytes:
            raise ExecutionError(f"the windows of this run have {total} bytes and a worker takes {self._most_bytes}")
        if self._arena is None or self._arena.nbytes < total:
            # At least double: a hostile worker that keeps the old ones holds no more than the last one's size.
            size = min(max(total, 2 * self.nbytes, ipc.ALIGNMENT), max(self._most_bytes, total))
            self.close()
            self._arena = Arena(size)
        arena = self._arena
        await arena.fill(pieces)
        return [fields, 0 if self._mapped else arena.nbytes], [] if self._mapped else [arena.fileno()]

    def taken(self) -> None:
        """The packet of the last `put` has reached the worker, which answered."""
        self._mapped = True

    def close(self) -> None:
        """Give the memory back."""
        if self._arena is not None:
            self._arena.close()
            self._arena = None
        self._mapped = False
