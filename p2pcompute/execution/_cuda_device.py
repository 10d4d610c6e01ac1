"""A CUDA device as the back end uses it, and the real one behind the driver's own interface (cuda.bindings).

The seam is narrow (memory, code, a launch whose parameters are a block of bytes), so that all above it runs on any
machine that executes PTX. The real one is reached only where a driver answers.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from p2pcompute.errors import ExecutionError
from p2pcompute.execution._api import Array
from p2pcompute.execution._cuda_compile import CudaNotInstalled, check_installed, link_cubin

__all__ = ["CudaDevice", "CudaFailure", "DeviceArray", "NoCudaDevice", "driver_is_here", "find_devices", "open_device"]

_BLOCKING_SYNC = 4  # CU_CTX_SCHED_BLOCKING_SYNC: who waits for a launch sleeps
_STICKY = frozenset({700, 702, 709, 710, 713, 714, 715, 716, 717, 718, 719, 999})
"""Errors after which a context is of no use: a fault in a kernel, and unknown ones."""
_PARAMETERS, _SIZE, _END = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END


class NoCudaDevice(ExecutionError):
    """No CUDA device answers: there is none, its driver is missing or too old, or the sandbox hides it."""


class CudaFailure(ExecutionError):
    """The driver refused an operation. `status` is its error's number."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArray:
    """An array on a device, C-contiguous; whoever has allocated it gives it back."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.size * self.itemsize

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from an element to the next one along each axis."""
        found = [self.itemsize]
        for length in reversed(self.shape[1:]):
            found.append(found[-1] * length)
        return tuple(reversed(found))

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """The same elements under another shape."""
        return replace(self, shape=shape)


class CudaDevice(Protocol):
    """One device, its memory by address. Not safe to share between threads."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    processors: int

    def load(self, ptx: str) -> Any:
        """Make the code ready and give a handle of it."""
        ...

    def allocate(self, size: int) -> int:
        """The address of `size` bytes (one at least), aligned to 256, that hold anything."""
        ...

    def release(self, address: int) -> None:
        """Give memory back."""
        ...

    def upload(self, address: int, values: Array) -> None:
        """Copy a C-contiguous array there."""
        ...

    def clear(self, address: int, size: int) -> None:
        """Make zeros of `size` bytes there."""
        ...

    def download(self, address: int, values: Array) -> None:
        """Fill a C-contiguous array from there; waits for launches before it."""
        ...

    def launch(
        self, code: Any, entry: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes
    ) -> None:
        """Start an entry; `parameters` are its parameters, each at its natural alignment."""
        ...


def driver_is_here() -> bool:
    """Whether the driver's library can be loaded: known without cuda.bindings, which takes 5 MB."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def find_devices() -> list[CudaDevice]:
    """The devices that the driver shows; nothing is put on them. Empty where the extra or a driver is missing."""
    try:
        check_installed()
        driver = _driver()
    except (CudaNotInstalled, NoCudaDevice):
        return []
    return [_Driven(driver, ordinal) for ordinal in range(int(_call(driver.cuDeviceGetCount)))]


def open_device(ordinal: int = 0) -> CudaDevice:
    """Open one device.

    Raises:
        CudaNotInstalled: the ``cuda`` extra is not installed.
        NoCudaDevice: no driver answers, or it has no such device.
    """
    check_installed()
    driver = _driver()
    count = int(_call(driver.cuDeviceGetCount))
    if not 0 <= ordinal < count:
        raise NoCudaDevice(f"no CUDA device {ordinal}: the driver shows {count}; see what nvidia-smi lists")
    return _Driven(driver, ordinal)


def _driver() -> Any:
    try:
        driver: Any = import_module("cuda.bindings.driver")
        status = driver.cuInit(0)[0]
    except ImportError as error:
        raise CudaNotInstalled(f"cuda-bindings is installed and does not load: {error}") from error
    except RuntimeError as error:  # libcuda can't be loaded
        raise NoCudaDevice("no CUDA device: there is no NVIDIA driver here") from error
    if int(status) != 0:
        raise NoCudaDevice(f"no CUDA device: the driver answers {status!r}; see what nvidia-smi says")
    return driver


def _call(function: Any, *args: Any) -> Any:
    status, *results = function(*args)
    if int(status) != 0:
        raise CudaFailure(f"{function.__name__}: {status!r}", int(status))
    return results[0] if len(results) == 1 else results


class _Driven:
    """A device behind the driver. Its context, the primary one, is made when something is first put on it, and is
    current in the thread that did.

    Attributes:
        device_ns: what launches took, by events before and behind each.
        lost: a kernel has met a fault, and the context is of no more use.
    """

    def __init__(self, driver: Any, ordinal: int) -> None:
        self._driver = driver
        device = _call(driver.cuDeviceGet, ordinal)
        what = driver.CUdevice_attribute

        def attribute(name: str) -> int:
            return int(_call(driver.cuDeviceGetAttribute, getattr(what, f"CU_DEVICE_ATTRIBUTE_{name}"), device))

        self.name = bytes(_call(driver.cuDeviceGetName, 256, device)).split(b"\0")[0].decode(errors="replace")
        self.capability = (attribute("COMPUTE_CAPABILITY_MAJOR"), attribute("COMPUTE_CAPABILITY_MINOR"))
        self.processors = attribute("MULTIPROCESSOR_COUNT")
        self.memory_bytes = int(_call(driver.cuDeviceTotalMem, device))
        self.device_ns = 0
        self.lost = False
        self._device = device
        self._context: Any = None
        self._events: tuple[Any, Any] = (None, None)

    def _ready(self) -> Any:
        if self._context is None:
            _call(self._driver.cuDevicePrimaryCtxSetFlags, self._device, _BLOCKING_SYNC)
            self._context = _call(self._driver.cuDevicePrimaryCtxRetain, self._device)
            _call(self._driver.cuCtxSetCurrent, self._context)
            self._events = (_call(self._driver.cuEventCreate, 0), _call(self._driver.cuEventCreate, 0))
        return self._driver

    def _on(self, function: Any, *args: Any) -> Any:
        """A call that may be the first to hear of a fault in a kernel."""
        try:
            return _call(function, *args)
        except CudaFailure as error:
            self.lost = self.lost or error.status in _STICKY
            raise

    def load(self, ptx: str) -> Any:
        # linked here, not by the driver: that may be older than the PTX
        return self._on(self._ready().cuModuleLoadData, link_cubin(ptx, self.capability))

    def allocate(self, size: int) -> int:
        # Zeroed, whatever is then put there: what another process has left is nobody's to see.
        driver, size = self._ready(), max(size, 1)
        address = int(self._on(driver.cuMemAlloc, size))
        self._on(driver.cuMemsetD8, address, 0, size)
        return address

    def release(self, address: int) -> None:
        self._on(self._driver.cuMemFree, address)

    def upload(self, address: int, values: Array) -> None:
        if values.nbytes:
            self._on(self._driver.cuMemcpyHtoD, address, values.ctypes.data, values.nbytes)

    def clear(self, address: int, size: int) -> None:
        if size:
            self._on(self._driver.cuMemsetD8, address, 0, size)

    def download(self, address: int, values: Array) -> None:
        self._on(self._driver.cuCtxSynchronize)
        if values.nbytes:
            self._on(self._driver.cuMemcpyDtoH, values.ctypes.data, address, values.nbytes)

    def launch(
        self, code: Any, entry: str, grid: tuple[int, int, int], block: tuple[int, int, int], parameters: bytes
    ) -> None:
        function = self._on(self._driver.cuModuleGetFunction, code, entry.encode())
        block_of_bytes = np.frombuffer(parameters, dtype=np.uint8).copy()
        size = ctypes.c_size_t(len(parameters))
        extra = (ctypes.c_void_p * 5)(
            _PARAMETERS, block_of_bytes.ctypes.data, _SIZE, ctypes.addressof(size), _END
        )  # fmt: skip
        before, behind = self._events
        self._on(self._driver.cuEventRecord, before, 0)
        self._on(self._driver.cuLaunchKernel, function, *grid, *block, 0, 0, 0, ctypes.addressof(extra))
        self._on(self._driver.cuEventRecord, behind, 0)
        self._on(self._driver.cuCtxSynchronize)  # what goes wrong is said here, and the parameters are free again
        self.device_ns += int(self._on(self._driver.cuEventElapsedTime, before, behind) * 1e6)
