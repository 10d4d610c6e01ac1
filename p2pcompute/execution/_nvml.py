"""What NVIDIA's management library says of the GPUs here: which there are, and the energy that they have used.

It is asked through nvidia-ml-py (``pynvml``), which the ``cuda`` extra brings; where that, the library or a driver is
missing there is nothing to say, and everything else goes on without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["Gpu", "energy_meter", "list_gpus"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, as the driver numbers them: by their place on the bus.

    Attributes:
        uuid: names it for ever.
        minor: of its device node, ``/dev/nvidia<minor>``.
        memory_bytes: its own memory.
        driver: the driver's version.
    """

    uuid: str
    minor: int
    name: str
    memory_bytes: int
    driver: str


def list_gpus() -> list[Gpu]:
    """The GPUs here; none where nobody can be asked. Raises nothing."""
    library = _library()
    if library is None:
        return []
    found: list[Gpu] = []
    try:
        driver = _text(library.nvmlSystemGetDriverVersion())
        for index in range(int(library.nvmlDeviceGetCount())):
            handle = library.nvmlDeviceGetHandleByIndex(index)
            found.append(
                Gpu(
                    uuid=_text(library.nvmlDeviceGetUUID(handle)),
                    minor=int(library.nvmlDeviceGetMinorNumber(handle)),
                    name=_text(library.nvmlDeviceGetName(handle)),
                    memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
                    driver=driver,
                )
            )
    except library.NVMLError:
        return []
    return found


def energy_meter(uuid: str) -> Callable[[], int | None] | None:
    """What gives the millijoules that a GPU has used since its driver was loaded (None where that fails later); None
    where it does not count them, as before Volta."""
    library = _library()
    if library is None:
        return None
    try:
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        library.nvmlDeviceGetTotalEnergyConsumption(handle)
    except library.NVMLError:
        return None

    def read() -> int | None:
        try:
            return int(library.nvmlDeviceGetTotalEnergyConsumption(handle))
        except library.NVMLError:
            return None

    return read


def _library() -> Any:
    """The library, ready to be asked; None where there is none. To start it again costs nothing."""
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
    except library.NVMLError:
        return None
    return library


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
