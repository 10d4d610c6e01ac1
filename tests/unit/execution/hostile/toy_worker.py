"""A worker with a toy back end: the real program, channel and lock, and kernels that are picked by name.

`source.text` is ignored; `source.entry` names one of the classes below.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p2pcompute.errors import KernelError, KernelTypeError
from p2pcompute.execution._api import ArgSpec, KernelSource, Launch, OutputSpec
from p2pcompute.execution._worker import run_worker


class Toy:
    def __init__(self, launch: Launch) -> None:
        self.tpb = launch.threads_per_block

    def run_blocks(self, first_block: int, blocks: int, args: Sequence[Any], outs: Sequence[Any]) -> None:
        self.run_threads(np.arange(first_block * self.tpb, (first_block + blocks) * self.tpb), args, outs)

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        raise NotImplementedError


class Iota(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        assert not outs[0].any()  # zeroed, also when the arena is used again
        outs[0][:] = threads.reshape(-1, *[1] * (outs[0].ndim - 1)) + 1


class AddInput(Toy):
    """outs[0][t] = scalar + input[t]"""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        outs[0][:] = args[0] + args[1][threads]


class Spin(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        while True:
            pass


class Segfault(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        ctypes.string_at(0)


class Abort(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        os.abort()


class Exec(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        os.execv("/bin/true", ["true"])


class Hog(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        bytearray(6 << 30)


class Truncate(Toy):
    """Tries to shrink and to grow its arena through every descriptor it has."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        refused = 0
        for fd in range(3, 64):
            for size in (0, 1 << 30):
                try:
                    os.ftruncate(fd, size)
                except OSError:
                    refused += 1
        outs[0][:] = refused


class Raise(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        raise ZeroDivisionError("evil \x1b[2J words")


class ReadPasswd(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        open("/etc/passwd").close()


class WriteInput(Toy):
    """Writes through the mapping of its input, which numpy refuses, then by hand."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        assert not args[0].flags.writeable
        ctypes.memset(args[0].ctypes.data, 0xFF, 4)


class Gate(Toy):
    """Says that it runs in its last element, and goes on once somebody has written the first one."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        outs[0][-1] = 1
        while outs[0][0] == 0:
            pass


class Steps(Toy):
    """Takes its time for each block."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        for start in range(0, len(threads), self.tpb):
            part = outs[0][start : start + self.tpb]
            assert not part.any()
            end = time.monotonic_ns() + 20_000_000
            while time.monotonic_ns() < end:
                pass
            part[:] = threads[start : start + self.tpb].reshape(-1, *[1] * (part.ndim - 1)) + 1


class Peek(Toy):
    """How much of the arena was not zero when the run began; it looks at all of it, behind its own outputs too."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        base = outs[0]
        while isinstance(base.base, np.ndarray):
            base = base.base
        arena = np.frombuffer(base.base, dtype=np.uint8)
        outs[0][:] = int(np.count_nonzero(arena))


class Facts(Toy):
    """What the process sees of itself."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        facts = [
            os.getpid(),
            os.getppid(),
            len(os.environ),
            threading.active_count(),
            int(os.getcwd() == "/"),
            int(any("SECRET" in name for name in os.environ)),
        ]
        outs[0][: len(facts)] = facts


class ThreadBomb(Toy):
    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        while True:
            threading.Thread(target=threading.Event().wait, daemon=True).start()


class Forge(Toy):
    """Sends the node a descriptor over the channel, from inside the lock."""

    def run_threads(self, threads: Any, args: Sequence[Any], outs: Sequence[Any]) -> None:
        for fd in range(3, 20):
            try:
                socket.send_fds(socket.socket(fileno=os.dup(fd)), [b"x"], [0])
            except OSError:
                continue
            outs[0][:] = 1


KERNELS = {cls.__name__: cls for cls in Toy.__subclasses__()}


class ToyBackend:
    name = "toy"

    def compile(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> Toy:
        if source.entry == "Refuse":
            raise KernelError("no such thing", line=7, instead="write another")
        if source.entry == "RefuseType":
            raise KernelTypeError("argument 1 is odd")
        if source.entry == "CompileForever":
            while True:
                pass
        return KERNELS[source.entry](launch)

    def row_shapes(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> list[tuple[int, ...]]:
        return [spec.shape[launch.dims :] for spec in args if isinstance(spec, OutputSpec)]

    def items_per_block(self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec]) -> int:
        return launch.threads_per_block


def main(config: Mapping[str, Any]) -> None:
    run_worker(config, ToyBackend)
