"""Calls of a standing agreement on a device: what a worker is given anew lies there anew."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import InputSpec, ScalarSpec
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._pool_memory import Arena
from p2pcompute.execution._worker import Worker

SIZE = 64
X = np.arange(SIZE, dtype=np.int64)


@p2p.kernel
def scaled(got, a, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < got.size:
        got[i] = a * x[i]


@contextmanager
def memory(content: bytes) -> Generator[int]:
    """A descriptor of memory that holds `content`, as the node gives it."""
    arena = Arena(len(content))
    try:
        arena.put(content)
        yield arena.fileno()
    finally:
        arena.close()


def test_arguments_that_change_are_not_kept_on_the_device(gpu: CudaBackend) -> None:
    binding = scaled[1, SIZE].bind(p2p.out(SIZE, np.int64), np.int64(2), X)
    specs = list(binding.specs)
    assert isinstance(specs[2], InputSpec)
    specs[1] = ScalarSpec(dtype="int64", value=np.int64(2), varies=True)
    source, launch = binding.source, binding.launch
    ours, theirs = socket.socketpair()
    with ours, theirs, memory(X.tobytes()) as first, memory(bytes(8 * SIZE)) as second:
        worker: Any = Worker(theirs, gpu)
        fields = [source.text, source.entry, source.digest, list(launch.grid), list(launch.block), launch.dims]
        worker._compile([*fields, ipc.encode_arguments(specs), "strict"], [first])

        def run() -> list[int]:
            got = np.zeros(SIZE, np.int64)
            worker._kernel.run_blocks(0, 1, worker._args, [got])
            return [int(value) for value in got]

        assert run() == [2 * n for n in range(SIZE)]
        for given in (X + 1, X + 2):  # the same stretch of memory, written anew
            os.pwrite(second, given.tobytes(), 0)
            worker._take_arguments([[[1, np.int64(3).tobytes()], [2, 0]], 8 * SIZE], [second])
            assert worker._args[1].flags.writeable  # so that the device keeps no copy of it from run to run
            assert run() == [3 * int(value) for value in given]
        worker._take_arguments([[], 0], [])
        assert run() == [2 * n for n in range(SIZE)]
