"""Other values for a compiled kernel on their way into a worker: one stretch of shared memory a session, written anew
each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import ArgSpec, InputSpec, ScalarSpec
from p2pcompute.execution._pool_stretch import SharedStretch, aligned

__all__ = ["SessionArguments"]


class SessionArguments(SharedStretch):
    """What one session's worker is given in the place of the values that its kernel was compiled with."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self._specs: tuple[ArgSpec, ...] = ()

    def expect(self, args: Sequence[ArgSpec]) -> None:
        """The kernel's arguments from now on."""
        self._specs = tuple(args)

    async def put(self, values: Mapping[int, Any]) -> tuple[list[Any], list[int]]:
        """Write the arrays among `values`, by position; gives the fields and descriptors of the packet that says so.
        The memory goes along until `taken` says that the worker has it.

        Raises:
            ValueError: a value is not of its argument's type and shape, or its argument has no other values.
            ExecutionError: they are over the worker's limit.
        """
        fields: list[Any] = []
        pieces: list[tuple[int, memoryview]] = []
        total = 0
        for position, value in sorted(values.items()):
            spec = self._specs[position] if 0 <= position < len(self._specs) else None
            if isinstance(spec, ScalarSpec) and spec.varies:
                scalar = np.asarray(value)
                if scalar.dtype != ipc.DTYPES[spec.dtype] or scalar.shape:
                    raise ValueError(f"argument {position}: {scalar.dtype}{scalar.shape} for a {spec.dtype}")
                fields.append([position, scalar.tobytes()])
            elif isinstance(spec, InputSpec) and spec.split is None:
                array = np.ascontiguousarray(value)
                if array.dtype != ipc.DTYPES[spec.dtype] or array.shape != spec.shape or array.size == 0:
                    raise ValueError(f"argument {position}: {array.dtype}{array.shape} for {spec.dtype}{spec.shape}")
                fields.append([position, total])
                pieces.append((total, array.reshape(-1).view(np.uint8).data))
                total += aligned(array.nbytes)
            else:
                raise ValueError(f"argument {position} has no other values in this kernel")
        if not pieces:
            return [fields, 0], []
        size, descriptors = await self.write(pieces, total, "these inputs")
        return [fields, size], descriptors
