"""The program inside a worker process: it locks itself, then compiles and runs what its one tenant sends.

The node starts it with one descriptor, the channel, and a configuration in `sys.argv[1]`. Nothing in here is
trusted by the node once a stranger's kernel has been compiled; what this program checks, it checks so that an
honest worker fails with a clear word.
"""

from __future__ import annotations

import array
import contextlib
import gc
import math
import mmap
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np

from p2pcompute.errors import ExecutionError, KernelError, KernelTypeError, SandboxError
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import (
    ArgSpec,
    Backend,
    CompiledKernel,
    DeviceBackend,
    InputSpec,
    KernelSource,
    OutputSpec,
    ScalarSpec,
)
from p2pcompute.execution._sandbox import (
    SandboxPolicy,
    WorkerLimits,
    close_other_descriptors,
    enter_early,
    enter_late,
)
from p2pcompute.execution._split import Window
from p2pcompute.execution._worker_launches import Pace, Stopped, in_launches
from p2pcompute.execution._worker_rounds import WorkerRounds

__all__ = ["BackendFactory", "Worker", "main", "run_worker"]

_Array: TypeAlias = "np.ndarray[Any, Any]"
_OPERATIONS = frozenset(
    {
        ipc.COMPILE,
        ipc.RUN_BLOCKS,
        ipc.RUN_THREADS,
        ipc.WINDOWS,
        ipc.COMPILE_STEP,
        ipc.RUN_ROUNDS,
        ipc.ARGUMENTS,
    }
)
_RUNS = frozenset({ipc.RUN_BLOCKS, ipc.RUN_THREADS, ipc.RUN_ROUNDS})
_ANCILLARY_BYTES = socket.CMSG_SPACE(ipc.MAX_ARGUMENTS * array.array("i").itemsize)


class BackendFactory(Protocol):
    """Makes the back end and brings it to temperature: all its threads run and its lazy imports are done."""

    def __call__(self) -> Backend: ...


def main(config: Mapping[str, Any]) -> None:
    """Entry point of the process that the pool starts."""
    run_worker(config, partial(_cpu_backend, int(config["threads"])))


def _cpu_backend(threads: int) -> Backend:
    from p2pcompute.execution._worker_warmup import warm_cpu_backend  # numba: only inside the first step of the lock

    return warm_cpu_backend(threads)


def run_worker(config: Mapping[str, Any], make_backend: BackendFactory) -> None:
    """Lock this process as `config` says, say READY, and serve until the node hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the node; it ends us
    fd = int(config["fd"])
    close_other_descriptors([fd])
    channel = socket.socket(fileno=fd)
    policy = SandboxPolicy(**config["policy"])
    try:
        devices = config["devices"]
        abi = enter_early(config["readable"], parent=int(config["parent"]), policy=policy, devices=devices)
        backend = make_backend()
        seccomp = enter_late(WorkerLimits(**config["limits"]), policy=policy, device=bool(devices))
    except ExecutionError as error:
        kind = ipc.Failure.SANDBOX if isinstance(error, SandboxError) else ipc.Failure.EXECUTION
        _send(channel, [ipc.FAILED, 0, kind, str(error)[: ipc.MAX_TEXT], 0, "", ""])
        return
    gc.collect()
    gc.freeze()
    _send(channel, [ipc.READY, 0, abi, seccomp])
    Worker(channel, backend).serve()


def _send(channel: socket.socket, packet: Sequence[Any]) -> None:
    channel.send(ipc.encode(packet, limit=ipc.MAX_REPLY_BYTES))


class Worker:
    """Serves one channel with one back end, one request after the other."""

    def __init__(self, channel: socket.socket, backend: Backend) -> None:
        self._channel = channel
        self._backend = backend
        self._device = backend if isinstance(backend, DeviceBackend) else None
        self._kernel: CompiledKernel | None = None
        self._args: list[Any] = []
        self._specs: list[ArgSpec] = []
        self._compiled: list[Any] = []  # the values that came with the kernel
        self._outputs: list[OutputSpec] = []
        self._rows: list[tuple[int, ...]] = []
        self._items = 1
        self._arena: mmap.mmap | None = None
        self._rooms: tuple[int, bool, list[_Array], list[_Array]] | None = None
        self._paces = {ipc.RUN_BLOCKS: Pace(), ipc.RUN_THREADS: Pace()}
        self._answered = 0  # the last request that has its answer
        self._said_ns = 0  # when the node heard last of the run that goes on
        self._splits: list[tuple[int, InputSpec]] = []  # places among `_args`
        self._windows: mmap.mmap | None = None
        self._given: mmap.mmap | None = None  # what ARGUMENTS has named
        self._rounds = WorkerRounds(backend)
        self._at_once: int = getattr(backend, "threads", 1)
        self._buffer = memoryview(bytearray(ipc.MAX_PACKET_BYTES + 1))

    def serve(self) -> None:
        """Answer requests until the node closes its end or sends what it can't have meant."""
        while True:
            frame, fds = self._receive()
            if not frame:
                return
            packet = ipc.decode(frame, limit=ipc.MAX_PACKET_BYTES)
            if packet == [ipc.CANCEL, self._answered]:
                continue  # it has crossed the answer
            try:
                reply = self._answer(packet, fds)
            finally:
                for fd in fds:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            self._answered = reply[1]
            if reply[0] == ipc.DONE:
                self._channel.send(ipc.encode_numbers(*reply))
            else:
                _send(self._channel, reply)
            if self._device is not None and self._device.lost:
                return

    def _receive(self) -> tuple[bytes, list[int]]:
        # Into a buffer of our own: room for the largest packet is a mapping made and undone each time.
        size, ancillary, _, _ = self._channel.recvmsg_into([self._buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return bytes(self._buffer[:size]), list(fds)

    def _answer(self, packet: list[Any], fds: list[int]) -> list[Any]:
        operation = packet[0]
        if type(operation) is not int or operation not in _OPERATIONS:
            raise ipc.FrameError("an operation that there is not")
        request = ipc.take_int(packet[1], low=1, high=ipc.MAX_EXTENT)
        device = self._device
        before_ns = 0 if device is None else device.device_ns
        try:
            if operation == ipc.COMPILE:
                return [ipc.COMPILED, request, self._compile(packet[2:], fds), self._items]
            if operation == ipc.WINDOWS:
                self._take_windows(packet[2:], fds)
            elif operation == ipc.ARGUMENTS:
                self._take_arguments(packet[2:], fds)
            elif operation == ipc.COMPILE_STEP:
                self._rounds.compile_step(packet[2:], fds, _map_input)
            elif operation == ipc.RUN_ROUNDS:
                self._run_rounds(packet[2:], fds)
            else:
                self._run(operation, request, packet[2:], fds)
            if device is not None and operation in _RUNS:
                return [ipc.DONE, request, device.device_ns - before_ns]
        except Stopped:
            return [ipc.CANCELLED, request]
        except KernelError as error:
            kind = ipc.Failure.GUARD if error.by_guard else ipc.Failure.KERNEL
            kind += isinstance(error, KernelTypeError)
            line = min(max(error.line, 0), ipc.MAX_EXTENT)
            texts = [text[: ipc.MAX_TEXT] for text in (error.reason, error.filename, error.instead)]
            return [ipc.FAILED, request, kind, texts[0], line, texts[1], texts[2]]
        except MemoryError:
            return self._failed(request, "the work does not fit into the worker's memory limit")
        except ipc.FrameError:
            raise  # the node is not ours any more: end
        except Exception as error:  # noqa: BLE001  (whatever a back end raises has to reach the node as a word)
            return self._failed(request, f"{type(error).__name__}: {error}")
        return [ipc.DONE, request]

    def _failed(self, request: int, reason: str) -> list[Any]:
        return [ipc.FAILED, request, ipc.Failure.EXECUTION, reason[: ipc.MAX_TEXT], 0, "", ""]

    def _compile(self, fields: list[Any], fds: list[int]) -> list[list[int]]:
        text, entry, digest, grid, block, dims, arguments, mode = ipc.take_list(fields, low=8, high=8)
        fp = ipc.take_text(mode, limit=ipc.MAX_TEXT)
        if fp not in ipc.FP_MODES:
            raise ipc.FrameError(f"unknown floating-point mode {fp!r}")
        source = KernelSource(
            text=ipc.take_text(text, limit=ipc.MAX_SOURCE_BYTES),
            entry=ipc.take_text(entry, limit=ipc.MAX_TEXT),
            digest=ipc.take_bytes(digest, limit=32),
            fp=fp,
        )
        launch = ipc.check_launch(grid, block, dims)
        specs = ipc.decode_arguments(arguments)
        if len(fds) != sum(isinstance(spec, InputSpec) and spec.split is None for spec in specs):
            raise ipc.FrameError("not one descriptor per input array")
        self._kernel = None
        rows = self._backend.row_shapes(source, launch, specs)
        self._items = self._backend.items_per_block(source, launch, specs)
        kernel = self._backend.compile(source, launch, specs)
        inputs = iter(fds)
        values: list[Any] = []
        splits: list[tuple[int, InputSpec]] = []
        for spec in specs:
            if isinstance(spec, InputSpec) and spec.split is not None:
                splits.append((len(values), spec))
                values.append(None)  # until its window comes
            elif isinstance(spec, InputSpec):
                values.append(_map_input(next(inputs), spec))
            elif isinstance(spec, ScalarSpec):
                values.append(spec.value)
        self._args, self._rows, self._splits = values, rows, splits
        self._specs, self._compiled = specs, list(values)
        self._outputs = [spec for spec in specs if isinstance(spec, OutputSpec)]
        self._kernel, self._rooms = kernel, None
        self._paces = {operation: Pace() for operation in self._paces}
        return [list(row) for row in rows]

    def _take_windows(self, fields: list[Any], fds: list[int]) -> None:
        windows, size = ipc.take_list(fields, low=2, high=2)
        found = ipc.take_windows(windows, [spec for _, spec in self._splits])
        for place, _ in self._splits:
            self._args[place] = None  # the old mapping goes with its last view
        if fds:
            self._windows = None
            size = ipc.take_int(size, low=1, high=ipc.MAX_EXTENT)
            self._windows = mmap.mmap(fds[0], size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        for (place, spec), (origin, shape, offset) in zip(self._splits, found, strict=True):
            dtype, count = ipc.DTYPES[spec.dtype], math.prod(shape)
            if self._windows is None or offset + count * dtype.itemsize > len(self._windows):
                raise ipc.FrameError("windows that are larger than their memory")
            values = np.frombuffer(self._windows, dtype=dtype, count=count, offset=offset)
            self._args[place] = Window(origin=origin, values=values.reshape(shape))

    def _take_arguments(self, fields: list[Any], fds: list[int]) -> None:
        given, size = ipc.take_list(fields, low=2, high=2)
        if self._kernel is None or self._splits:
            raise ipc.FrameError("other arguments, and no kernel that takes them")
        found = ipc.take_arguments(given, self._specs)
        inputs = [position for position, spec in enumerate(self._specs) if not isinstance(spec, OutputSpec)]
        values = list(self._compiled)
        self._args = values  # the old mapping goes with its last view
        if fds:
            size = ipc.take_int(size, low=1, high=ipc.MAX_EXTENT)
            # Writable as far as this process is concerned: what may change is copied to a device for each run.
            self._given = mmap.mmap(fds[0], size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        for position, value in found:
            spec = self._specs[position]
            if isinstance(spec, InputSpec):
                dtype, count = ipc.DTYPES[spec.dtype], math.prod(spec.shape)
                if self._given is None or value + count * dtype.itemsize > len(self._given):
                    raise ipc.FrameError("arguments that are larger than their memory")
                value = np.frombuffer(self._given, dtype=dtype, count=count, offset=value).reshape(spec.shape)
            values[inputs.index(position)] = value

    def _run(self, operation: int, request: int, fields: list[Any], fds: list[int]) -> None:
        kernel = self._kernel
        if kernel is None:
            raise ipc.FrameError("a run before a kernel")
        if any(self._args[place] is None for place, _ in self._splits):
            raise ipc.FrameError("a run before its windows")
        if operation not in (ipc.RUN_BLOCKS, ipc.RUN_THREADS):
            raise ipc.FrameError(f"no request is of the type {operation}")
        numbers = ipc.take_ints(fields, count=(2, 3), low=0, high=ipc.MAX_EXTENT)
        if fds:
            self._map_arena(fds[0], numbers[-1])
        by_id = operation == ipc.RUN_THREADS
        total, size = (numbers[0], 1) if by_id else (numbers[1], self._items)
        if total < 1:
            raise ipc.FrameError("a run of nothing")
        outs = self._room(total * size, by_id=by_id, fresh=bool(fds))
        arena = self._arena
        ids = np.frombuffer(arena, dtype=np.int64, count=total).copy() if by_id and arena is not None else None

        def launch(start: int, count: int) -> None:
            part = slice(start * size, (start + count) * size)
            rows = outs if count == total else [out[part] for out in outs]
            if ids is not None:
                kernel.run_threads(ids[start : start + count], self._args, rows)
            else:
                kernel.run_blocks(numbers[0] + start, count, self._args, rows)

        def between(done: int) -> bool:
            return self._go_on(request, 0 if by_id else done)

        self._said_ns = time.monotonic_ns()
        try:
            in_launches(total, launch, self._paces[operation], between, at_once=self._at_once)
        except Stopped:
            if arena is not None:
                _clear(arena)
            raise

    def _room(self, items: int, *, by_id: bool, fresh: bool) -> list[_Array]:
        """The rows that a run of so many items writes, all zero; those of the run before where they are the same."""
        if self._rooms is None or self._rooms[:2] != (items, by_id):
            plan = ipc.layout(self._outputs, self._rows, items, with_ids=by_id)
            arena = self._arena
            if arena is None or len(arena) < plan.total_bytes:
                raise ipc.FrameError("an arena that is too small")
            raws = [np.frombuffer(arena, dtype=np.uint8, count=nbytes, offset=offset) for offset, nbytes in plan.spans]
            outs = [
                raw.view(ipc.DTYPES[output.dtype]).reshape((items, *row))
                for raw, output, row in zip(raws, self._outputs, self._rows, strict=True)
            ]
            self._rooms = (items, by_id, raws, outs)
        if not fresh:  # a new arena is zeros
            for raw in self._rooms[2]:
                raw[:] = 0
        return self._rooms[3]

    def _go_on(self, request: int, done: int) -> bool:
        """Between two launches: say how far the run is, now and then, and look whether it is to stop."""
        now_ns = time.monotonic_ns()
        if done and now_ns - self._said_ns >= ipc.PROGRESS_NS:
            self._said_ns = now_ns
            _send(self._channel, [ipc.PROGRESS, request, done])
        try:
            frame = self._channel.recv(ipc.MAX_PACKET_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        if frame and frame != ipc.encode_numbers(ipc.CANCEL, request):
            raise ipc.FrameError("not a cancel of the run that goes on")
        return False  # nothing at all: the node has hung up, which `serve` finds out next

    def _run_rounds(self, fields: list[Any], fds: list[int]) -> None:
        number, rounds, size = ipc.take_ints(fields, count=(3, 3), low=0, high=ipc.MAX_EXTENT)
        if fds:
            self._map_arena(fds[0], size)
        if self._arena is None:
            raise ipc.FrameError("rounds without an arena")
        self._rounds.run(number, rounds, self._arena)

    def _map_arena(self, fd: int, size: int) -> None:
        self._arena = self._rooms = None  # the old mapping goes with its last view
        self._arena = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _clear(arena: mmap.mmap) -> None:
    """Nothing of a result that nobody wants is left; its memory goes back to the system, which takes no time."""
    try:
        arena.madvise(mmap.MADV_REMOVE)
    except OSError:  # the system has none of that for such memory
        np.frombuffer(arena, dtype=np.uint8)[:] = 0


def _map_input(fd: int, spec: InputSpec) -> _Array:
    dtype = ipc.DTYPES[spec.dtype]
    count = math.prod(spec.shape)
    if count == 0:  # there is no mapping of nothing
        return np.zeros(spec.shape, dtype=dtype)
    # MAP_PRIVATE: before Linux 6.7 a write-sealed memfd can't be mapped shared, not even for reading.
    view = mmap.mmap(fd, count * dtype.itemsize, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return np.frombuffer(view, dtype=dtype, count=count).reshape(spec.shape)
