"""What needs a GPU. Without a CUDA driver every test here is skipped with that reason; ``make test-gpu`` runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_device import CudaDevice, open_device
from p2pcompute.execution._pool_cuda import device_worker
from p2pcompute.execution._pool_process import WorkerProgram


@pytest.fixture(scope="session")
def device() -> CudaDevice:
    """The first GPU, in this process."""
    try:
        return open_device()
    except ExecutionError as error:
        pytest.skip(f"no CUDA driver: {error}")


@pytest.fixture(scope="session")
def gpu(device: CudaDevice) -> CudaBackend:
    return CudaBackend(device)


@pytest.fixture(scope="session")
def cpu() -> Iterator[CpuBackend]:
    with CpuBackend(2) as backend:
        yield backend


@pytest.fixture(scope="session")
def program() -> WorkerProgram:
    """What a pool of workers on the first GPU starts."""
    try:
        return device_worker("cuda:0")
    except ExecutionError as error:
        pytest.skip(f"no CUDA driver: {error}")
