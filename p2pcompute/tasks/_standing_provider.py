"""A standing agreement at its provider: what the kernel is given for each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from p2pcompute.execution._api import ArgSpec, ScalarSpec
from p2pcompute_protocols.limits import MAX_CALLS
from p2pcompute_protocols.task import CallArg, CallInputs, TaskConnection
from p2pcompute_protocols.work import OutArg, ScalarArg, Work

from ._inputs import Input

__all__ = ["CALL_IDLE_S", "ServedCalls", "argument_value"]

CALL_IDLE_S: Final = 600.0
"""How long the requester of a standing agreement may make no call, once one was computed."""


def argument_value(arg: CallArg, content: Callable[[bytes], bytes]) -> Any:
    """A NumPy scalar or array from its wire form; `content` gives the bytes behind a digest."""
    dtype = np.dtype(arg.dtype).newbyteorder("<")
    if isinstance(arg, ScalarArg):
        return np.frombuffer(arg.value, dtype=dtype)[0].astype(arg.dtype)
    return np.frombuffer(content(arg.digest), dtype=dtype).astype(arg.dtype, copy=False).reshape(arg.shape)


class ServedCalls:
    """The calls of one task. Which were made the connection knows; here is what a worker has to be told of them.

    Args:
        connection: the task's, in SETUP; it learns of the calls here.
        work: the agreement's, a `ChunkWork`.
        blobs: by digest, the work's own inputs.
    """

    def __init__(self, connection: TaskConnection, work: Work, blobs: Mapping[bytes, Input]) -> None:
        self.inputs = CallInputs(work)
        connection.calls = connection.tiles = self.inputs
        connection.call_chunks = work.chunks
        connection.chunks = self.inputs.most * work.chunks
        self._blobs = blobs
        self._positions = [place for place, arg in enumerate(self.inputs.work.args) if not isinstance(arg, OutArg)]
        self._given: tuple[CallArg, ...] = ()  # what the worker runs with

    def begin(self, specs: list[ArgSpec]) -> list[ArgSpec]:
        """What a new worker compiles: nothing is proved from scalars, which are other ones in each call."""
        work = self.inputs.work
        self._given = tuple(arg for arg in work.args if isinstance(arg, CallArg))
        return [replace(spec, varies=True) if isinstance(spec, ScalarSpec) else spec for spec in specs]

    def digest(self, index: int) -> bytes:
        """What stands for a chunk's call in its receipt."""
        return self.inputs.of_chunk(index)[1]

    async def give(self, worker: Any, index: int, content: Callable[[bytes], bytes], *, timeout_s: float) -> None:
        """Have `worker` run with the inputs of the chunk's call, where it does not yet. Raises as the worker does."""
        call, _ = self.inputs.of_chunk(index)
        if call.args == self._given:
            return
        work = self.inputs.work
        compiled = [arg for arg in work.args if isinstance(arg, CallArg)]

        def read(digest: bytes) -> bytes:
            held = self._blobs.get(digest)
            if held is None:
                return content(digest)
            return held if isinstance(held, bytes) else held.read()

        values = {
            place: argument_value(arg, read)
            for place, arg, first in zip(self._positions, call.args, compiled, strict=True)
            if arg != first
        }
        self._given = ()
        await worker.set_arguments(values, timeout_s=timeout_s)
        self._given = call.args

    def forget(self, answered: MutableMapping[int, int]) -> None:
        """What is remembered of chunks of calls that are open no more is of no use."""
        first = max(0, self.inputs.made - MAX_CALLS) * self.inputs.work.chunks
        while answered and (oldest := next(iter(answered))) < first:
            del answered[oldest]
