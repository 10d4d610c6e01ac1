"""Back ends, brought to temperature: all that they load or start on first use is there before the lock."""

from __future__ import annotations

import numpy as np

from p2pcompute.execution._api import ArgSpec, Backend, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._language_capture import source_digest

__all__ = ["warm_cpu_backend", "warm_cuda_backend"]

_THREADS = 1024
_TEXT = """def warm(x, a, out):
    i = cuda.grid(1)
    if i < out.size:
        total = np.float32(0.0)
        for k in range(4):
            total = total * a + x[i]
        out[i] = math.sqrt(total)
"""


def warm_cpu_backend(threads: int) -> Backend:
    """A `CpuBackend` of so many processor threads that has compiled and run a small kernel both ways.

    Raises `RuntimeError` where the result is not the one due: such a machine must not compute for others.
    """
    from p2pcompute.execution._cpu import CpuBackend

    return _warm(CpuBackend(threads))


def warm_cuda_backend() -> Backend:
    """A `CudaBackend` on the one device that the driver shows, which has compiled and run the same kernel.

    Raises `CudaNotInstalled`, `NoCudaDevice` or `CudaFailure`, and `RuntimeError` as above.
    """
    from p2pcompute.execution._cuda import CudaBackend
    from p2pcompute.execution._cuda_device import open_device

    return _warm(CudaBackend(open_device()))


def _warm(backend: Backend) -> Backend:
    source = KernelSource(text=_TEXT, entry="warm", digest=source_digest("warm", _TEXT))
    launch = Launch(grid=(_THREADS // 32, 1, 1), block=(32, 1, 1), dims=1)
    args: list[ArgSpec] = [
        InputSpec(dtype="float32", shape=(_THREADS,)),
        ScalarSpec(dtype="float32", value=np.float32(2)),
        OutputSpec(dtype="float32", shape=(_THREADS,)),
    ]
    x = np.arange(_THREADS, dtype=np.float32)
    due = np.sqrt(x * np.float32(15))
    kernel = backend.compile(source, launch, args)
    by_block = np.zeros(_THREADS, dtype=np.float32)
    kernel.run_blocks(0, launch.blocks, [x, np.float32(2)], [by_block])
    by_thread = np.zeros(_THREADS, dtype=np.float32)
    kernel.run_threads(np.arange(_THREADS, dtype=np.int64), [x, np.float32(2)], [by_thread])
    if by_block.tobytes() != due.tobytes() or by_thread.tobytes() != due.tobytes():
        raise RuntimeError("this machine computes the warm-up kernel wrongly")
    return backend
