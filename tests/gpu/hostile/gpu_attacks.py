"""A worker with a GPU that tries to get out, from inside its lock and with the driver open."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from p2pcompute.execution._api import ArgSpec, Backend, CompiledKernel, KernelSource, Launch, OutputSpec
from p2pcompute.execution._worker import run_worker
from p2pcompute.execution._worker_warmup import warm_cuda_backend

ATTACKS: dict[str, Callable[[], object]] = {
    "read /etc/passwd": lambda: open("/etc/passwd").close(),
    "look into homes": lambda: os.listdir("/home"),
    "make a file": lambda: open("/tmp/p2pcompute-gpu-attack", "w").close(),
    "write to a device that is not its own": lambda: os.open("/dev/full", os.O_WRONLY),
    "list other processes": lambda: open(f"/proc/{os.getppid()}/cmdline").close(),
    "make a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "type keys into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
    "share GPU memory with another process": lambda: fcntl.ioctl(os.open("/dev/nvidiactl", os.O_RDWR), 0xC0104635, b""),
}


class _Attack:
    """Tries them all; the first output says of each whether it was refused."""

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Any]) -> None:
        for place, attack in enumerate(ATTACKS.values()):
            try:
                attack()
            except OSError:
                outs[0].flat[place] = 1
        outs[0].flat[len(ATTACKS)] = threading.active_count()

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        self.run_blocks(0, 1, args, outs)


class _Attacker:
    name = "attacker"

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> CompiledKernel:
        return _Attack() if source.entry == "attack" else self.inner.compile(source, launch, args)

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        if source.entry == "attack":
            return [spec.shape[launch.dims :] for spec in args if isinstance(spec, OutputSpec)]
        return self.inner.row_shapes(source, launch, args)

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        return launch.threads_per_block


def main(config: Mapping[str, Any]) -> None:
    run_worker(config, lambda: _Attacker(warm_cuda_backend()))
