"""What a worker with a GPU may touch beyond what every worker may: as data, so that it can be read and tested without
one.

Sources: the numbers of NVIDIA's open kernel modules (``nv-ioctl-numbers.h``, ``nv_escape.h``, ``uvm_ioctl.h``), and of
them those that gVisor's nvproxy found programs to need. The driver is opened and its context made before the filter is
on (see `_sandbox`), so that what only an opening needs is not in these lists. Nothing here has met a driver.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "DEVICE_CALLS",
    "DRIVER_IOCTLS",
    "UVM_IOCTLS",
    "DeviceAccess",
    "driver_directories",
    "nvidia_access",
]

_TYPE: Final = ord("F")  # of the driver's ioctls; the driver itself looks at the number only

# What a process with a context does: allocate, free and map memory, load code, launch, wait. Sharing objects with other
# processes (RM_SHARE), exporting memory as a descriptor and what graphics need are left out.
_RUNNING: Final = {
    "RM_ALLOC_MEMORY": 0x27,
    "RM_FREE": 0x29,
    "RM_CONTROL": 0x2A,
    "RM_ALLOC": 0x2B,
    "RM_DUP_OBJECT": 0x34,
    "RM_VID_HEAP_CONTROL": 0x4A,
    "RM_MAP_MEMORY": 0x4E,
    "RM_UNMAP_MEMORY": 0x4F,
    "RM_UPDATE_DEVICE_MAPPING_INFO": 0x5E,
    "REGISTER_FD": 201,  # of a node that is opened for one mapping
    "ALLOC_OS_EVENT": 206,
    "FREE_OS_EVENT": 207,
    "CHECK_VERSION_STR": 210,
    "WAIT_OPEN_COMPLETE": 218,
}
DRIVER_IOCTLS: Final = tuple(_TYPE << 8 | number for number in _RUNNING.values())
"""Type and number of what ``/dev/nvidia*`` and ``/dev/nvidiactl`` are asked; size and direction differ by version."""

UVM_IOCTLS: Final = (
    25,  # REGISTER_GPU_VASPACE
    26,  # UNREGISTER_GPU_VASPACE
    27,  # REGISTER_CHANNEL
    28,  # UNREGISTER_CHANNEL
    33,  # MAP_EXTERNAL_ALLOCATION
    34,  # FREE
    39,  # PAGEABLE_MEM_ACCESS
    65,  # MAP_DYNAMIC_PARALLELISM_REGION
    68,  # ALLOC_SEMAPHORE_POOL
    72,  # VALIDATE_VA_RANGE
    73,  # CREATE_EXTERNAL_RANGE
    75,  # MM_INITIALIZE
)
"""What ``/dev/nvidia-uvm`` is asked; its numbers are whole words."""

DEVICE_CALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    "mincore": (27, 232),
    "get_mempolicy": (239, 236),
    "eventfd2": (290, 19),
    "pipe2": (293, 59),
}
"""System calls that the driver's library makes besides, for x86-64 and aarch64."""

_READABLE: Final = (
    "/proc/driver/nvidia",
    "/proc/sys/vm",
    "/proc/devices",
    "/proc/modules",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/self",
    "/sys/devices",
    "/sys/bus/pci",
    "/sys/module",
)
_LIBRARY: Final = "libcuda.so.1"
_DIRECTORIES: Final = (
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAccess:
    """What a worker on a device may open, and how it finds it.

    Attributes:
        nodes: device nodes to read, to write and to ask (ioctl). Nothing else can be written.
        readable: files and directories to read, besides those of every worker.
        environment: for the driver's library.
    """

    nodes: tuple[str, ...]
    readable: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]


def driver_directories(*, search: str = "", root: str = "/") -> list[str]:
    """Where the driver's library lies: in a directory of `search` (as in ``LD_LIBRARY_PATH``), or a usual one."""
    usual = [os.path.join(root, path.lstrip("/")) for path in _DIRECTORIES]
    places = [*(path for path in search.split(":") if os.path.isabs(path)), *usual]
    found = [path for path in places if os.path.exists(os.path.join(path, _LIBRARY))]
    return list(dict.fromkeys(found))


def nvidia_access(*, minor: int, visible: str, libraries: Sequence[str] = ()) -> DeviceAccess:
    """For one of NVIDIA's GPUs.

    Args:
        minor: of its node, ``/dev/nvidia<minor>``.
        visible: its UUID, or its place in the order of the bus: the worker sees it as device 0, and no other one.
        libraries: `driver_directories`.
    """
    environment = {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": visible,
        "CUDA_CACHE_DISABLE": "1",  # it would be a file that is shared across tenants
    }
    if libraries:
        environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    return DeviceAccess(
        nodes=(f"/dev/nvidia{minor}", "/dev/nvidiactl", "/dev/nvidia-uvm"),
        readable=(*_READABLE, *libraries),
        environment=tuple(environment.items()),
    )
