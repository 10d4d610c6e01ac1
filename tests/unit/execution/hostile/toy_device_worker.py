"""A worker that drives a device: the toy back end with a device's clock, behind the lock that such a worker has. Any
device node can stand for a GPU's, since what is tested is what the lock lets through."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from toy_worker import KERNELS, Toy, ToyBackend

from p2pcompute.execution._api import ArgSpec, KernelSource, Launch
from p2pcompute.execution._worker import run_worker

FREE_MEMORY = 0xC0104629  # RM_FREE of the driver, as NVIDIA's library asks it
GRAPHICS = 0xC0384657  # RM_MAP_MEMORY_DMA
TYPE_KEYS = 0x5412  # TIOCSTI


def attempt(call: Any, *args: Any) -> int:
    """The error number of a call, 0 where it went well."""
    try:
        result = call(*args)
    except OSError as error:
        return error.errno or -1
    if isinstance(result, int) and result > 2 and call is os.open:
        os.close(result)
    return 0


class Reach(Toy):
    """What can be opened and asked from inside."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        node = os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC) if attempt(os.open, "/dev/zero", os.O_RDWR) == 0 else 0
        found = [
            attempt(os.open, "/dev/zero", os.O_RDWR | os.O_CLOEXEC),
            attempt(os.open, "/dev/full", os.O_RDWR | os.O_CLOEXEC),
            attempt(os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC),
            attempt(os.open, "/dev/zero", os.O_RDWR | os.O_TRUNC),
            attempt(os.open, "/tmp/p2pcompute-reach", os.O_RDWR | os.O_CREAT, 0o600),
            attempt(fcntl.ioctl, node, FREE_MEMORY, b""),
            attempt(fcntl.ioctl, node, GRAPHICS, b""),
            attempt(fcntl.ioctl, node, TYPE_KEYS, b"x"),
            attempt(os.open, "/etc/passwd", os.O_RDONLY),
            int(os.environ.get("TOY_DEVICE", "0")),
        ]
        outs[0][: len(found)] = found


class Tick(Toy):
    """Takes 1000 ns of the device for each launch."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        BACKEND.device_ns += 1_000


class Logistic(Tick):
    """What measures strict arithmetic, for which it takes as long as it has blocks."""

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Any]) -> None:
        time.sleep(blocks / 1_000)
        self.run_threads(None, args, outs)


class Fault(Toy):
    """Meets a fault, after which the device is of no use."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        BACKEND.lost = True
        raise OSError(errno.EIO, "an illegal address")


class DeviceToys(ToyBackend):
    device_ns = 0
    lost = False

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> Toy:
        own: dict[str, type[Toy]] = {"Reach": Reach, "Tick": Tick, "Fault": Fault}
        measured: dict[str, type[Toy]] = {"logistic": Logistic, "triad": Tick, "gemm": Tick}
        return {**KERNELS, **own, **measured}[source.entry](launch)


BACKEND = DeviceToys()


def main(config: Mapping[str, Any]) -> None:
    run_worker(config, lambda: BACKEND)
