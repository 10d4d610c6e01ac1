"""One tenant's use of one worker: compile a kernel, run parts of its launch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import trio

from p2pcompute.errors import ExecutionError, KernelError, KernelTypeError, WorkerDied, WorkerProtocolError
from p2pcompute.execution import _ipc as ipc
from p2pcompute.execution._api import ArgSpec, InputSpec, KernelSource, Launch, OutputSpec, ScalarSpec
from p2pcompute.execution._pool_arguments import SessionArguments
from p2pcompute.execution._pool_memory import Arena, SharedInput
from p2pcompute.execution._pool_process import CANCEL_GRACE_S, Progress, WorkerProcess, take
from p2pcompute.execution._pool_rounds import RoundsResult, compile_rounds, run_rounds
from p2pcompute.execution._pool_windows import SessionWindows
from p2pcompute.execution._rounds import Step
from p2pcompute.execution._sandbox import Layers, WorkerLimits
from p2pcompute.execution._split import Window

__all__ = ["DEFAULT_COMPILE_TIMEOUT_S", "CompileInfo", "InputContent", "WorkResult", "WorkerSession"]

DEFAULT_COMPILE_TIMEOUT_S: Final = 60.0

_KEPT_BYTES: Final = 256 * 1024 * 1024  # inputs and outputs that a worker may hold while it waits for its tenant

InputContent: TypeAlias = "np.ndarray[Any, Any] | bytes | SharedInput"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileInfo:
    """What compiling gave.

    Attributes:
        compile_ms: wall time of the whole exchange, as the node measured it.
        row_shapes: per output, the shape of one item's row.
        items_per_block: how many a block has: its threads, or 1 where they work together and a block is the least
            that can be run.
    """

    compile_ms: float
    row_shapes: tuple[tuple[int, ...], ...]
    items_per_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """What a run gave.

    Attributes:
        outputs: per output, private bytes of an array of shape ``(items, *row_shape)`` in C order.
        cpu_ns: processor time of the worker over the exchange, all threads, as the kernel counted it.
        wall_ns: wall time of the exchange, copies left out, as the node measured it.
        device_ns: what launches took on a device by its own events, as the worker says; 0 on a processor.
        energy_mj: millijoules that the device used meanwhile, for all that ran on it; None where nobody counts them.
    """

    outputs: tuple[bytes, ...]
    cpu_ns: int
    wall_ns: int
    device_ns: int = 0
    energy_mj: int | None = None


class WorkerSession:
    """A worker that one tenant has for itself. Made by `WorkerPool.session`.

    Calls from several tasks queue up and run one at a time, in order. A call cancelled while it still queues does no
    harm. One that is cancelled *while the worker is at it* ends with `trio.Cancelled` once the worker has come to the
    end of a launch, some 100 ms later; the worker then goes on with the next call. One that has not come there when
    `grace_s` is over is killed, since there is no other way to stop a kernel, as it is while it compiles: every other
    call, now or later, ends with `WorkerDied`. `usable` says which it was.
    A refused kernel (`KernelError`) and work that raises in the worker (`ExecutionError`) leave the worker alive;
    `WorkerTimeout`, `WorkerProtocolError` and `WorkerDied` leave it dead.
    """

    def __init__(
        self,
        process: WorkerProcess,
        limits: WorkerLimits,
        *,
        grace_s: float = CANCEL_GRACE_S,
        energy: Callable[[], int | None] | None = None,
    ) -> None:
        self._energy = energy
        self._process = process
        self._limits = limits
        self._grace_s = grace_s
        self._turn = trio.Lock()
        self._why_dead = ""
        self._launch: Launch | None = None
        self._outputs: list[OutputSpec] = []
        self._plan: tuple[int, bool, ipc.Layout] | None = None
        self._rows: tuple[tuple[int, ...], ...] = ()
        self._arena: Arena | None = None
        self._windows = SessionWindows(limits.input_bytes)
        self._arguments = SessionArguments(limits.input_bytes)
        self._given: set[int] = set()  # inodes of the inputs that the worker has been given
        self._given_bytes = 0
        self._state: tuple[InputSpec, ...] | None = None  # of the rounds that are compiled
        self._held_state = False

    @property
    def layers(self) -> Layers:
        """What locks this worker."""
        return self._process.layers

    @property
    def pid(self) -> int:
        """The worker's process ID."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether calls can still be made: the worker was not lost."""
        return not self._why_dead and self._process.usable

    async def compile(
        self,
        source: KernelSource,
        launch: Launch,
        args: Sequence[ArgSpec],
        inputs: Mapping[int, InputContent],
        *,
        timeout_s: float = DEFAULT_COMPILE_TIMEOUT_S,
    ) -> CompileInfo:
        """Admit and compile a kernel in the worker; it replaces the one before.

        Args:
            source: the normalised source.
            launch: geometry of the whole launch.
            args: one spec per parameter, in order.
            inputs: by position in `args`, the content of each `InputSpec`: C-contiguous bytes of exactly its size,
                an array of its dtype and shape, or a sealed `SharedInput`, which stays its owner's.
            timeout_s: wall time after which the worker is killed.

        Raises `KernelError` or `KernelTypeError` where the kernel or its arguments are refused, `ValueError` for a
        `SharedInput` that was closed meanwhile, `ExecutionError`
        where they are over the worker's limits, and what the class names.
        """
        _check_arguments(source, args, inputs, self._limits)
        async with self._turn:
            self._refuse_if_dead()
            started = time.perf_counter_ns()
            fds: list[int] = []
            try:
                for position, spec in enumerate(args):
                    if isinstance(spec, InputSpec) and spec.split is None:
                        content = inputs[position]
                        if isinstance(content, SharedInput):
                            fds.append(content.duplicate())
                        else:
                            with await SharedInput.make(content) as made:
                                fds.append(made.duplicate())
                self._count_inputs(fds)
                self._launch = self._state = None
                fields = [source.text, source.entry, source.digest, list(launch.grid), list(launch.block), launch.dims]
                packet = await self._exchange(
                    ipc.COMPILE, [*fields, ipc.encode_arguments(args), source.fp], fds, timeout_s=timeout_s
                )
            finally:
                for fd in fds:
                    os.close(fd)
            outputs = [spec for spec in args if isinstance(spec, OutputSpec)]
            self._rows, self._items = self._check_rows(packet, outputs, launch)
            self._outputs, self._plan = outputs, None
            self._windows.expect(args)
            self._arguments.expect(args)
            self._launch = launch
            return CompileInfo(
                compile_ms=(time.perf_counter_ns() - started) / 1e6, row_shapes=self._rows, items_per_block=self._items
            )

    def _count_inputs(self, fds: Sequence[int]) -> None:
        """A worker that was taken over keeps each input's descriptor: bound what it can hold on to."""
        new = {stat.st_ino: stat.st_size for stat in map(os.fstat, fds) if stat.st_ino not in self._given}
        total = self._given_bytes + sum(new.values())
        if total > self._limits.session_input_bytes:
            raise ExecutionError(
                f"this session's inputs come to {total} bytes over its life and {self._limits.session_input_bytes} "
                "are allowed; open another session, or pass one SharedInput again instead of a copy"
            )
        self._given.update(new)
        self._given_bytes = total

    async def run_blocks(
        self,
        first_block: int,
        blocks: int,
        *,
        timeout_s: float,
        progress: Progress | None = None,
        windows: Mapping[int, Window] | None = None,
    ) -> WorkResult:
        """Run `blocks` whole blocks from `first_block` on and copy the outputs out. `windows` has, by position, what
        these blocks may load of each split input.

        `progress` is told how many are done, now and then, where that takes longer than a tenth of a second.

        Raises `ValueError` for blocks outside the launch, `ExecutionError` where the outputs would be over the
        worker's limit, and what the class names.
        """
        await take(self._turn)
        try:
            launch = self._compiled()
            if not (first_block >= 0 and blocks >= 1 and first_block + blocks <= launch.blocks):
                raise ValueError(
                    f"blocks {first_block} to {first_block + blocks} lie outside a launch of {launch.blocks}"
                )
            plan = self._layout(blocks * self._items, with_ids=False)
            await self._give_windows(windows, timeout_s)
            return await self._run(ipc.RUN_BLOCKS, [first_block, blocks], plan, None, timeout_s, progress)
        finally:
            self._turn.release()

    async def set_arguments(self, values: Mapping[int, Any], *, timeout_s: float) -> None:
        """Have the compiled kernel run with other values from now on.

        Args:
            values: by position, a NumPy scalar for a `ScalarSpec` that varies, an array of its dtype and shape for an
                `InputSpec`. Arguments that are left out have the values that they were compiled with.
            timeout_s: wall time after which the worker is killed.

        Raises `ValueError` for other values than these, `ExecutionError` where they are over the worker's limit, and
        what the class names.
        """
        await take(self._turn)
        try:
            self._compiled()
            fields, fds = await self._arguments.put(values)
            await self._exchange(ipc.ARGUMENTS, fields, fds, timeout_s=timeout_s)
            if fds:
                self._arguments.taken()
        finally:
            self._turn.release()

    async def run_threads(
        self, threads: np.ndarray[Any, Any], *, timeout_s: float, windows: Mapping[int, Window] | None = None
    ) -> WorkResult:
        """Run single items by linear id (a one-dimensional int64 array, any order) and copy their rows out; `windows`
        as for `run_blocks`, of the blocks that they are of.

        Raises `ValueError` for ids outside the launch, and as `run_blocks` does.
        """
        await take(self._turn)
        try:
            launch = self._compiled()
            if threads.dtype != np.int64 or threads.ndim != 1 or threads.size == 0:
                raise ValueError("threads must be a one-dimensional int64 array that is not empty")
            if int(threads.min()) < 0 or int(threads.max()) >= launch.blocks * self._items:
                raise ValueError(f"a thread id lies outside a launch of {launch.blocks * self._items}")
            plan = self._layout(int(threads.size), with_ids=True)
            await self._give_windows(windows, timeout_s)
            return await self._run(ipc.RUN_THREADS, [int(threads.size)], plan, threads.tobytes(), timeout_s)
        finally:
            self._turn.release()

    async def _give_windows(self, windows: Mapping[int, Window] | None, timeout_s: float) -> None:
        packet = await self._windows.put(windows or {})
        if packet is not None:
            await self._exchange(ipc.WINDOWS, *packet, timeout_s=timeout_s)
            self._windows.taken()

    def _layout(self, items: int, *, with_ids: bool) -> ipc.Layout:
        """Where things lie in a run's arena; chunks of a task are alike, so that the last one mostly serves again."""
        if self._plan is None or self._plan[:2] != (items, with_ids):
            self._plan = (items, with_ids, ipc.layout(self._outputs, self._rows, items, with_ids=with_ids))
        return self._plan[2]

    async def _run(
        self,
        operation: int,
        fields: list[int],
        plan: ipc.Layout,
        ids: bytes | None,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> WorkResult:
        arena, fresh = self._room(plan.total_bytes)
        if ids is not None:
            arena.put(ids)
        fds = [arena.fileno()] if fresh else []
        energy_before = None if self._energy is None else self._energy()
        cpu_before, started = self._process.cpu_ns(), time.perf_counter_ns()
        try:
            packet = await self._exchange(
                operation, [*fields, arena.nbytes if fresh else 0], fds, timeout_s=timeout_s, progress=progress
            )
        except trio.Cancelled:
            if fresh and not self._process.delivered:  # the worker has not got it
                arena.close()
                self._arena = None
            raise
        wall_ns = time.perf_counter_ns() - started
        cpu_ns = max(0, self._process.cpu_ns() - cpu_before)
        return WorkResult(
            outputs=await arena.copy_out(plan.spans),
            cpu_ns=cpu_ns,
            wall_ns=wall_ns,
            device_ns=packet[2] if len(packet) == 3 else 0,
            energy_mj=None if energy_before is None else self._energy_since(energy_before),
        )

    def _energy_since(self, before: int) -> int | None:
        now = None if self._energy is None else self._energy()
        return None if now is None else max(0, now - before)

    def _room(self, total_bytes: int) -> tuple[Arena, bool]:
        """An arena of that size at least, and whether the worker does not have it yet."""
        if total_bytes > self._limits.output_bytes:
            raise ExecutionError(
                f"this run's outputs need {total_bytes} bytes and a worker has {self._limits.output_bytes}; "
                "run fewer blocks at a time"
            )
        arena = self._arena
        fresh = arena is None or arena.nbytes < total_bytes
        if arena is None or fresh:
            # At least double: a hostile worker that keeps the old ones holds no more than the last one's size.
            old = 0 if arena is None else arena.nbytes
            size = min(max(total_bytes, 2 * old, ipc.ALIGNMENT), max(self._limits.output_bytes, total_bytes))
            if arena is not None:
                arena.close()
            self._arena = None
            self._arena = arena = Arena(size)
        return arena, fresh

    async def compile_rounds(
        self,
        steps: Sequence[Step],
        state: Sequence[InputSpec],
        inputs: Sequence[Mapping[int, InputContent]],
        *,
        timeout_s: float = DEFAULT_COMPILE_TIMEOUT_S,
    ) -> float:
        """Compile the steps of a round, in place of what was compiled before.

        Args:
            steps: the launches of a round, in order.
            state: the arrays of a state.
            inputs: for each step, by position, the content of each constant array, as for `compile`.
            timeout_s: for each step, wall time after which the worker is killed.

        Returns:
            Milliseconds that it took.

        Raises `KernelError` where a step is refused, and what the class names.
        """
        async with self._turn:
            self._refuse_if_dead()
            return await compile_rounds(self, steps, state, inputs, timeout_s=timeout_s)

    async def run_rounds(
        self, start: Sequence[bytes | bytearray | memoryview], number: int, rounds: int, *, timeout_s: float
    ) -> RoundsResult:
        """Run rounds, and copy the state after each out.

        Args:
            start: the bytes of each array of the state to begin with, C order.
            number: how many rounds there were before.
            rounds: how many to run; their states and the first one have to fit into the worker's outputs together.
            timeout_s: wall time after which the worker is killed.

        Raises `ExecutionError` where the states are over the worker's limit, and what the class names.
        """
        await take(self._turn)
        try:
            return await run_rounds(self, start, number, rounds, timeout_s=timeout_s)
        finally:
            self._turn.release()

    async def _exchange(
        self,
        operation: int,
        fields: list[Any],
        fds: list[int],
        *,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> list[Any]:
        try:
            return await self._process.exchange(
                operation, fields, fds, timeout_s=timeout_s, progress=progress, grace_s=self._grace_s
            )
        except trio.Cancelled:
            if not self._process.usable:
                self._why_dead = f"a call was cancelled, and it did not stop within {self._grace_s:g} s"
            raise
        except (KernelError, ExecutionError) as error:
            if not self._process.usable:
                self._why_dead = str(error)
            raise

    def _compiled(self) -> Launch:
        self._refuse_if_dead()
        if self._launch is None:
            raise ExecutionError("there is no compiled kernel in this session; call compile first")
        return self._launch

    def rest(self) -> bool:
        """Whether the worker is sound and idle, holds little and has held no state of a task; its kernel has to be
        named anew then."""
        self._launch = self._state = None
        if self._held_state:
            return False
        held = (
            self._given_bytes
            + self._windows.nbytes
            + self._arguments.nbytes
            + (0 if self._arena is None else self._arena.nbytes)
        )
        sound = not self._why_dead and self._process.usable and not self._turn.locked()
        return sound and held <= min(_KEPT_BYTES, self._limits.session_input_bytes // 2)

    def _refuse_if_dead(self) -> None:
        if self._why_dead or not self._process.usable:
            raise WorkerDied(
                f"this session's worker is gone: {self._why_dead or 'it was closed'}; open another session"
            )

    def _check_rows(
        self, packet: list[Any], outputs: Sequence[OutputSpec], launch: Launch
    ) -> tuple[tuple[tuple[int, ...], ...], int]:
        """The row shapes and the items a block that the worker claims: a row has to be a tail of its output's shape,
        or that for each thread of a block; so a lie costs it nothing but its own result."""
        threads = launch.threads_per_block
        try:
            claimed, items = ipc.take_list(packet[2:], low=2, high=2)
            if ipc.take_int(items, low=1, high=threads) not in (1, threads):
                raise ipc.FrameError(f"{items} items in a block of {threads} threads")
            rows = [
                ipc.take_ints(row, count=(0, 1 + ipc.MAX_DIMENSIONS), low=0, high=ipc.MAX_EXTENT)
                for row in ipc.take_list(claimed, low=len(outputs), high=len(outputs))
            ]
            for row, output in zip(rows, outputs, strict=True):
                one = row[1:] if items == 1 and row[:1] == (threads,) else row
                if not _is_tail(one, output.shape) and not _is_tail(row, output.shape):
                    raise ipc.FrameError(f"row shape {row} is not a tail of {output.shape}")
        except ipc.FrameError as error:
            self._process.kill()
            self._why_dead = f"it lied about its outputs: {error}"
            raise WorkerProtocolError(f"the worker lied about its outputs: {error}") from None
        return tuple(rows), items

    def close(self) -> None:
        """Give the node's memory back. The pool calls it and kills the worker."""
        self._why_dead = self._why_dead or "the session is closed"
        self._windows.close()
        self._arguments.close()
        if self._arena is not None:
            self._arena.close()
            self._arena = None


def _is_tail(row: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(row) <= len(shape) and row == shape[len(shape) - len(row) :]


def _check_arguments(
    source: KernelSource, args: Sequence[ArgSpec], inputs: Mapping[int, InputContent], limits: WorkerLimits
) -> None:
    """What can be said about a call without looking into the kernel."""
    if len(source.text.encode()) > ipc.MAX_SOURCE_BYTES:
        raise KernelError(
            f"the kernel's source is over {ipc.MAX_SOURCE_BYTES} bytes", instead="pass tables as input arrays"
        )
    if len(args) > ipc.MAX_ARGUMENTS:
        raise KernelTypeError(f"{len(args)} arguments; at most {ipc.MAX_ARGUMENTS} are taken")
    total = 0
    positions: set[int] = set()
    for position, spec in enumerate(args):
        if spec.dtype not in ipc.DTYPES:
            raise KernelTypeError(f"argument {position}: unknown dtype {spec.dtype!r}")
        if isinstance(spec, ScalarSpec):
            continue
        if len(spec.shape) > ipc.MAX_DIMENSIONS or not all(0 <= n <= ipc.MAX_EXTENT for n in spec.shape):
            raise KernelTypeError(f"argument {position}: shape {spec.shape} is out of bounds")
        if isinstance(spec, OutputSpec) or spec.split is not None:
            continue
        positions.add(position)
        if position not in inputs:
            raise KernelTypeError(f"argument {position}: an input array without content")
        total += _check_input(position, spec, inputs[position])
    if set(inputs) != positions:
        raise KernelTypeError(f"content for arguments {sorted(set(inputs) - positions)}, which are no input arrays")
    if total > limits.input_bytes:
        raise ExecutionError(f"the inputs have {total} bytes and a worker takes {limits.input_bytes}")


def _check_input(position: int, spec: InputSpec, content: InputContent) -> int:
    due = ipc.DTYPES[spec.dtype].itemsize
    for extent in spec.shape:
        due *= extent
    if isinstance(content, np.ndarray) and (content.dtype != ipc.DTYPES[spec.dtype] or content.shape != spec.shape):
        raise KernelTypeError(
            f"argument {position}: an array {content.dtype}{content.shape} for {spec.dtype}{spec.shape}"
        )
    if isinstance(content, SharedInput) and not content.sealed:
        raise KernelTypeError(f"argument {position}: the shared input is not sealed; call seal() first")
    size = len(content) if isinstance(content, bytes) else content.nbytes
    if size != due:
        raise KernelTypeError(f"argument {position}: {size} bytes of content for {due}")
    return due
