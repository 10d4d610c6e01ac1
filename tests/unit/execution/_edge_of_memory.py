"""A program: kernels on an array between two pages that nobody may touch. It ends by a signal where one is touched."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

from p2pcompute import cuda
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.kernel import kernel, out

PAGE = mmap.PAGESIZE
PROT_NONE = 0


@kernel
def around(result: Any, x: Any) -> None:
    b, a = cuda.grid(2)
    result[a, b] = x[a - 1, b] + 10 * x[a + 1, b] + 100 * x[a, b - 1] + 1000 * x[a, b + 1]


def fenced(shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """An array of int64 that fills whole pages, with forbidden ones on both sides."""
    nbytes = shape[0] * shape[1] * 8
    memory = mmap.mmap(-1, nbytes + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for at in (start, start + PAGE + nbytes):
        if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return np.frombuffer(memory, np.int64, shape[0] * shape[1], PAGE).reshape(shape)


def main() -> None:
    """Heights at which a few lines of a block end on, before and behind the border."""
    with CpuBackend(1) as backend:
        for height in range(9, 18):
            x = fenced((height, PAGE // 8))
            x[...] = np.random.default_rng(height).integers(1, 10, x.shape)
            binding = around[(PAGE // 64, 2), (8, 16)].bind(out(x.shape, np.int64), x)
            assert np.shares_memory(binding.values[0], x)
            (rows,) = (np.zeros((binding.launch.threads, *row), np.int64) for row in binding.layout.row_shapes)
            compiled = backend.compile(binding.source, binding.launch, binding.specs)
            compiled.run_blocks(0, binding.launch.blocks, binding.values, [rows])
            (whole,) = binding.empty_outputs()
            binding.layout.scatter(0, 0, binding.launch.blocks, rows, whole)
            wide = np.pad(x, 1)
            due = wide[:-2, 1:-1] + 10 * wide[2:, 1:-1] + 100 * wide[1:-1, :-2] + 1000 * wide[1:-1, 2:]
            assert np.array_equal(whole, due)
    sys.stdout.write("stayed inside\n")


if __name__ == "__main__":
    main()
