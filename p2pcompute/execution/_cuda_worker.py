"""The worker on a GPU: the same lock and channel as on the processor, and the CUDA back end.

The driver is opened, its context made and a kernel run between the two steps of the lock: Landlock is on, and lets the
device's nodes pass and nothing else that can be written; the system-call filter is not, since an opening needs what no
kernel does. What a requester sends is compiled and run behind both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2pcompute.execution._api import Backend
from p2pcompute.execution._worker import run_worker

__all__ = ["main"]


def main(config: Mapping[str, Any]) -> None:
    """Entry point of the process that the pool starts."""
    run_worker(config, _make_backend)


def _make_backend() -> Backend:
    from p2pcompute.execution._worker_warmup import warm_cuda_backend  # numba and the driver: inside the first step

    return warm_cuda_backend()
