"""The node's side of workers on a GPU: which one, and what their processes may touch."""

from __future__ import annotations

import os
import re
from typing import Final

from p2pcompute.errors import ConfigError
from p2pcompute.execution._cuda_compile import check_installed
from p2pcompute.execution._cuda_device import NoCudaDevice
from p2pcompute.execution._nvml import energy_meter, list_gpus
from p2pcompute.execution._pool_process import CPU_WORKER, WorkerProgram
from p2pcompute.execution._sandbox_devices import DeviceAccess, driver_directories, nvidia_access

__all__ = ["cuda_ordinal", "cuda_worker", "device_worker"]

_NAME: Final = re.compile(r"cuda:(0|[1-9][0-9]?)")
_MODULE: Final = "p2pcompute.execution._cuda_worker"


def cuda_ordinal(device: str) -> int | None:
    """Which GPU ``cuda:0``, ``cuda:1``, … names, in the order of the bus; None for ``cpu``.

    Raises `ConfigError` for any other name.
    """
    if device == "cpu":
        return None
    named = _NAME.fullmatch(device)
    if named is None:
        raise ConfigError(f"device is {device!r}; write cpu, or cuda:0 for the first GPU (cuda:1 for the second, …)")
    return int(named[1])


def device_worker(device: str) -> WorkerProgram:
    """What a pool of workers on `device` starts. Raises `ConfigError`, and what `cuda_worker` raises."""
    ordinal = cuda_ordinal(device)
    return CPU_WORKER if ordinal is None else cuda_worker(ordinal)


def cuda_worker(ordinal: int) -> WorkerProgram:
    """What a pool of workers on a GPU starts.

    Raises:
        CudaNotInstalled: the ``cuda`` extra is not installed.
        NoCudaDevice: there is no driver, no such GPU, or a device node is missing; says which.
    """
    check_installed()
    libraries = driver_directories(search=os.environ.get("LD_LIBRARY_PATH", ""))
    if not libraries:
        raise NoCudaDevice(
            "no CUDA device: there is no NVIDIA driver here (libcuda.so.1 lies in no usual directory); install "
            "it, or put its directory into LD_LIBRARY_PATH"
        )
    gpus = list_gpus()
    if gpus and ordinal >= len(gpus):
        names = ", ".join(f"cuda:{place} {gpu.name}" for place, gpu in enumerate(gpus))
        raise NoCudaDevice(f"no CUDA device {ordinal}: the driver lists {names}")
    if gpus:
        gpu = gpus[ordinal]
        access = nvidia_access(minor=gpu.minor, visible=gpu.uuid, libraries=libraries)
        energy = energy_meter(gpu.uuid)
    else:  # without NVML: on all but odd machines nodes are numbered like this
        access, energy = nvidia_access(minor=ordinal, visible=str(ordinal), libraries=libraries), None
    _check_nodes(access)
    return WorkerProgram(module=_MODULE, access=access, energy=energy)


def _check_nodes(access: DeviceAccess) -> None:
    missing = [node for node in access.nodes if not os.path.exists(node)]
    if missing:
        raise NoCudaDevice(
            f"no CUDA device: {' and '.join(missing)} is missing; load the driver's modules (nvidia-modprobe -c 0 -u "
            "makes the nodes), or hand them to this container"
        )
