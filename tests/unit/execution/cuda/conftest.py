"""What needs the packages of the ``cuda`` extra is left out where they are not installed, with the command that
installs them. None of it needs a GPU."""

from __future__ import annotations

import pytest

from p2pcompute.execution._cpu import CpuBackend
from p2pcompute.execution._cuda import CudaBackend
from p2pcompute.execution._cuda_compile import CudaNotInstalled, check_installed

from .ptx_machine import Machine


@pytest.fixture(scope="session")
def machine() -> Machine:
    """What stands for a device."""
    return Machine()


@pytest.fixture(scope="session")
def gpu(machine: Machine) -> CudaBackend:
    """The back end, with its compiler for real and the interpreter as its device."""
    try:
        check_installed()
    except CudaNotInstalled as error:
        pytest.skip(f"{error}; for the tests: make cuda-compile")
    return CudaBackend(machine)


@pytest.fixture(scope="session")
def cpu() -> CpuBackend:
    return CpuBackend()
