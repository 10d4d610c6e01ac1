"""Whole nodes without sockets, processes, threads or a chain: the market and tasks under virtual time.

    async def main():
        network, chain = MemoryNetwork(latency_s=0.02), simulated_chain()
        async with open_simulated_node(network, chain) as provider, open_simulated_node(network, chain) as node:
            await node.services.overlay.connect(provider.addresses[0])
            async with trio.open_nursery() as nursery:
                await nursery.start(provider.serve)
                z = await node.run(kernel, ...)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

Everything is the code of a real node but for four parts: the overlay is in memory, the ledger is SQLite in memory and
called inline, the hub is the Python model of the contract, and kernels run in this process, compiled once and with a
stated virtual duration. A kernel is not sandboxed here: run your own only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import trio

from p2pcompute._opening import wire_services
from p2pcompute.checking import EvidenceStore
from p2pcompute.errors import ExecutionError, WorkerDied, WorkerTimeout
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.node import Node, compose_node
from p2pcompute.overlay import Overlay
from p2pcompute.payments import ModelChain
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute_protocols.ads import Device
from p2pcompute_protocols.money import ChainTerms

from ._memory_overlay import MemoryNetwork, open_memory_overlay

if TYPE_CHECKING:
    from p2pcompute.execution import ArgSpec, Backend, CompiledKernel, InputSpec, KernelSource, Launch, SharedInput
    from p2pcompute.execution._cpu import CpuBackend
    from p2pcompute.execution._program_files import InstalledProgram
    from p2pcompute.execution._rounds import Step

__all__ = ["InlineWorkers", "WorkerFaults", "open_simulated_node", "simulated_chain", "virtual_clock_ms"]

SIMULATED_EPOCH_MS = 1_800_000_000_000
DEFAULT_NETWORK = "simulated"
_CHUNK_ITEMS: Final = 2_560  # that a calibration takes as long for as for a chunk


def virtual_clock_ms() -> int:
    """UNIX milliseconds of the run's clock: they rise with `trio.current_time`, virtual or not."""
    return SIMULATED_EPOCH_MS + int(trio.current_time() * 1000)


def simulated_chain() -> ModelChain:
    """A model of a chain with the hub on it."""
    terms = ChainTerms(chain_id=31_337_001, hub=b"\x11" * 20, token=b"\x22" * 20, decimals=6)
    return ModelChain(terms, clock_ms=virtual_clock_ms)


@dataclass(slots=True, kw_only=True)
class WorkerFaults:
    """What goes wrong in a simulated worker: chunks (by a block of theirs) or rounds (by how many there were before)
    that kill it, or that never end."""

    dies_at: frozenset[int] = frozenset()
    hangs_at: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    outputs: tuple[bytes, ...]
    cpu_ns: int
    wall_ns: int
    device_ns: int = 0
    energy_mj: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rounds:
    states: tuple[tuple[bytearray, ...], ...]
    digests: tuple[tuple[bytes, ...], ...]
    cpu_ns: int
    wall_ns: int
    device_ns: int = 0
    energy_mj: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compiled:
    compile_ms: float
    row_shapes: tuple[tuple[int, ...], ...]
    items_per_block: int


@dataclass(slots=True, kw_only=True)
class InlineWorkers:
    """Workers in this process. `chunk_s`, `round_s` and `compile_s` are how long a chunk, a round and a compilation
    take, in seconds of the run's clock; equal kernels are compiled once for all of them. `backend` is asked for
    kernels, or for the program that it has; the CPU's where None."""

    chunk_s: float = 0.1
    round_s: float = 0.01
    compile_s: float = 0.5
    faults: WorkerFaults = field(default_factory=WorkerFaults)
    threads: int = 1
    backend: Backend | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Nothing has to run beside the sessions."""
        task_status.started()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    def session(
        self,
        *,
        tenant: str | None = None,  # noqa: ARG002
        keep: Callable[[], bool] = bool,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[_InlineSession]:
        """A worker for one tenant; a new one each time."""
        return _session(self)


def _read(shared: SharedInput) -> bytes:
    fd = shared.duplicate()
    try:
        return os.pread(fd, shared.nbytes, 0)
    finally:
        os.close(fd)


@asynccontextmanager
async def _session(workers: InlineWorkers) -> AsyncGenerator[_InlineSession]:
    yield _InlineSession(workers)


_compiled: dict[
    tuple[Any, ...], tuple[CompiledKernel, tuple[tuple[int, ...], ...], int]
] = {}  # by what it was made from


@cache
def _backend() -> CpuBackend:
    """One for all: what differs in sizes, geometry and numbers only is compiled once."""
    from p2pcompute.execution._cpu import CpuBackend

    return CpuBackend()


class _InlineSession:
    def __init__(self, workers: InlineWorkers) -> None:
        self._workers = workers
        self._turn = trio.Lock()
        self._dead = False
        self._chunk_blocks = 0

    @property
    def usable(self) -> bool:
        """Whether calls can still be made."""
        return not self._dead

    async def compile(
        self, source: KernelSource, launch: Launch, args: Sequence[ArgSpec], inputs: Mapping[int, Any]
    ) -> _Compiled:
        from p2pcompute.execution import InputSpec, OutputSpec, ScalarSpec, SharedInput

        def compiled(backend: Backend) -> tuple[CompiledKernel, tuple[tuple[int, ...], ...], int]:
            rows = tuple(backend.row_shapes(source, launch, args))
            items = backend.items_per_block(source, launch, args)
            return backend.compile(source, launch, args), rows, items

        if self._workers.backend is not None:
            self._kernel, self._rows, self._items = compiled(self._workers.backend)
        else:
            key = (source.text, source.entry, source.fp, launch, tuple(repr(arg) for arg in args))
            if key not in _compiled:
                _compiled[key] = compiled(_backend())
            self._kernel, self._rows, self._items = _compiled[key]
        self._values: list[Any] = []
        self._splits: dict[int, int] = {}
        for position, spec in enumerate(args):
            if isinstance(spec, ScalarSpec):
                self._values.append(spec.value)
            elif isinstance(spec, InputSpec) and spec.split is not None:
                self._splits[position] = len(self._values)
                self._values.append(None)
            elif isinstance(spec, InputSpec):
                data = inputs[position]
                if isinstance(data, SharedInput):
                    data = _read(data)
                array = np.frombuffer(data, spec.dtype) if isinstance(data, bytes) else np.asarray(data)
                self._values.append(array.reshape(spec.shape))
        self._dtypes = [spec.dtype for spec in args if isinstance(spec, OutputSpec)]
        self._specs, self._compiled_with = tuple(args), list(self._values)
        await trio.sleep(self._workers.compile_s)
        return _Compiled(compile_ms=self._workers.compile_s * 1000, row_shapes=self._rows, items_per_block=self._items)

    async def set_arguments(self, values: Mapping[int, Any], *, timeout_s: float) -> None:  # noqa: ARG002  at once
        from p2pcompute.execution import InputSpec, OutputSpec, ScalarSpec

        async with self._turn:
            if self._dead:
                raise WorkerDied("this simulated worker has died; open another session")
            inputs = [position for position, spec in enumerate(self._specs) if not isinstance(spec, OutputSpec)]
            taken = list(self._compiled_with)
            for position, value in values.items():
                spec = self._specs[position]
                if isinstance(spec, ScalarSpec) and spec.varies:
                    taken[inputs.index(position)] = np.dtype(spec.dtype).type(value)
                elif isinstance(spec, InputSpec) and spec.split is None and value.shape == spec.shape:
                    taken[inputs.index(position)] = np.array(value, dtype=spec.dtype)
                else:
                    raise ValueError(f"argument {position} has no such value in this kernel")
            self._values = taken

    async def run_blocks(
        self,
        first_block: int,
        blocks: int,
        *,
        timeout_s: float,
        progress: Callable[[int], None] | None = None,  # noqa: ARG002  a simulated chunk is over at once, or not yet
        windows: Mapping[int, Any] | None = None,
    ) -> _Run:
        count, values = blocks * self._items, self._with_windows(windows)
        return await self._run(
            count,
            lambda outs: self._kernel.run_blocks(first_block, blocks, values, outs),
            range(first_block, first_block + blocks),
            timeout_s,
        )

    async def run_threads(self, threads: Any, *, timeout_s: float, windows: Mapping[int, Any] | None = None) -> _Run:
        values = self._with_windows(windows)
        return await self._run(
            len(threads), lambda outs: self._kernel.run_threads(threads, values, outs), None, timeout_s
        )

    def _with_windows(self, windows: Mapping[int, Any] | None) -> list[Any]:
        values = list(self._values)
        for position, window in (windows or {}).items():
            values[self._splits[position]] = window
        return values

    async def compile_rounds(
        self, steps: Sequence[Step], state: Sequence[InputSpec], inputs: Sequence[Mapping[int, Any]]
    ) -> float:
        from p2pcompute.execution import InputSpec, SharedInput
        from p2pcompute.execution._rounds import RoundEngine

        self._engine = RoundEngine(_backend(), state)
        for step, contents in zip(steps, inputs, strict=True):
            constants: list[Any] = []
            for position, arg in enumerate(step.args):
                if isinstance(arg, InputSpec):
                    data = contents[position]
                    data = _read(data) if isinstance(data, SharedInput) else data
                    array = np.frombuffer(data, arg.dtype) if isinstance(data, bytes) else np.asarray(data)
                    constants.append(array.reshape(arg.shape))
            self._engine.add(step, constants)
        await trio.sleep(self._workers.compile_s)
        return self._workers.compile_s * 1000

    async def run_rounds(
        self, start: Sequence[bytes | bytearray | memoryview], number: int, rounds: int, *, timeout_s: float
    ) -> _Rounds:
        async with self._turn:
            if self._dead:
                raise WorkerDied("this simulated worker has died; open another session")
            faults, asked = self._workers.faults, range(number, number + rounds)
            if any(at in asked for at in faults.dies_at):
                self._dead = True
                raise WorkerDied("a simulated worker died, as it was told to")
            if any(at in asked for at in faults.hangs_at):
                self._dead = True
                await trio.sleep(timeout_s)
                raise WorkerTimeout("a simulated worker ran past its limit, as it was told to")
            seconds = self._workers.round_s * rounds
            try:
                await trio.sleep(seconds)
            except trio.Cancelled:
                self._dead = True
                raise
            specs = self._engine.state
            before = [
                np.frombuffer(data, spec.dtype).reshape(spec.shape) for spec, data in zip(specs, start, strict=True)
            ]
            states: list[tuple[bytearray, ...]] = []
            for done in range(rounds):
                after = [np.zeros(spec.shape, spec.dtype) for spec in specs]
                self._engine.advance(number + done, before, after)
                states.append(tuple(bytearray(array.tobytes()) for array in after))
                before = after
            nanoseconds = max(1, int(seconds * 1e9))
            digests = tuple(tuple(hashlib.sha256(array).digest() for array in state) for state in states)
            return _Rounds(states=tuple(states), digests=digests, cpu_ns=nanoseconds, wall_ns=nanoseconds)

    def _chunks_in(self, blocks: range) -> int:
        """Of how many chunks a run has the blocks: the first run of all is of one."""
        self._chunk_blocks = self._chunk_blocks or len(blocks)
        return -(-len(blocks) // self._chunk_blocks)

    async def _run(self, count: int, call: Callable[[list[Any]], None], blocks: range | None, timeout_s: float) -> _Run:
        """Blocks of chunks, or threads of samples, where `blocks` is None."""
        async with self._turn:
            if self._dead:
                raise WorkerDied("this simulated worker has died; open another session")
            if blocks is not None and not self._workers.faults.dies_at.isdisjoint(blocks):
                self._dead = True
                raise WorkerDied("a simulated worker died, as it was told to")
            if blocks is not None and not self._workers.faults.hangs_at.isdisjoint(blocks):
                self._dead = True
                await trio.sleep(timeout_s)
                raise WorkerTimeout("a simulated worker ran past its limit, as it was told to")
            # A check of the usual size takes a tenth of a chunk; a larger one, or a calibration, in proportion.
            share = count / _CHUNK_ITEMS if blocks is None else self._chunks_in(blocks)
            seconds = self._workers.chunk_s * share
            await trio.sleep(seconds)  # one that is cancelled stops, and its worker goes on
            outs = [np.zeros((count, *row), dtype) for row, dtype in zip(self._rows, self._dtypes, strict=True)]
            try:
                call(outs)
            except Exception as error:  # what a program raises; a real worker says it as it is said here
                raise ExecutionError(f"{type(error).__name__}: {error}") from error
            # A chunk takes as long as it was told to, whatever is in it; of a processor it has what its items take in a
            # calibration. The rest of the time it waits.
            busy_s = min(seconds, self._workers.chunk_s * count / _CHUNK_ITEMS)
            return _Run(
                outputs=tuple(out.tobytes() for out in outs),
                cpu_ns=max(1, int(busy_s * 1e9)),
                wall_ns=max(1, int(seconds * 1e9)),
            )


def _program_workers(kernels: InlineWorkers, program: InstalledProgram) -> InlineWorkers:
    """Workers in this process for a program, which is imported into it, and has no directory of data."""
    from p2pcompute.execution._program import ProgramBackend
    from p2pcompute.execution._program_worker import load

    return replace(kernels, backend=ProgramBackend(load(program), program))


@asynccontextmanager
async def open_simulated_node(
    network: MemoryNetwork | Overlay,
    chain: ModelChain,
    *,
    key: NodeKey | None = None,
    workers: InlineWorkers | None = None,
    score_milli: int = 1_000,
    network_id: str = DEFAULT_NETWORK,
    now_ms: Callable[[], int] = virtual_clock_ms,
    evidence: Path | None = None,
    owner: WalletKey | None = None,
    inputs: Path | None = None,
) -> AsyncGenerator[Node]:
    """A node on a network in memory, or on any overlay that is open already.

    Args:
        network: the network in memory that it joins, or an overlay of which `key` is the key.
        chain: the model of the chain; the node's wallet is filled from nothing, as by a faucet.
        key: who it is; made where None.
        workers: how its kernels run.
        score_milli: what it says of its speed.
        network_id: the network's ID; peers of another one refuse it.
        now_ms: its wall clock.
        evidence: a directory for what liars have signed; None to keep none.
        owner: holds the money, where that is another key than the one that signs vouchers.
        inputs: a directory for inputs that a provider keeps; None to keep none on disk.
    """
    key = key or NodeKey.generate()
    pool = workers or InlineWorkers()
    wallet = WalletKey.generate()
    account = owner or wallet

    async def measure(_: Any) -> Device:
        await trio.lowlevel.checkpoint()
        return Device(kind="cpu", name="simulated", slots=1, memory_bytes=2**30, score_milli=score_milli, scores=())

    async def fund(amount_uusd: int) -> None:
        await trio.lowlevel.checkpoint()
        held = chain.tokens.get(account.address, 0) + chain.free.get(account.address, 0)
        chain.mint(account.address, max(0, amount_uusd - held))

    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(None, executor=InlineExecutor(), clock_ms=now_ms))
        await ledger.bind_chain(chain.terms)
        overlay: Overlay
        if isinstance(network, MemoryNetwork):
            validator = AdRecordValidator(network=network_id, now_ms=now_ms)
            overlay = await stack.enter_async_context(open_memory_overlay(network, key, record_validator=validator))
        else:
            overlay = network
        services = wire_services(
            key=key,
            wallet=wallet,
            account=account,
            overlay=overlay,
            ledger=ledger,
            hub=chain.hub(account.address),
            network=network_id,
            now_ms=now_ms,
            open_pool=lambda _threads, _unsandboxed: pool,
            measure=measure,
            known_device=lambda: None,
            guess_milli=score_milli,
            fund_wallet=fund,
            open_program_pool=lambda program, _data, _spare, _unsandboxed: _program_workers(pool, program),
            evidence=None if evidence is None else EvidenceStore(directory=evidence, run_sync=InlineExecutor()),
        )
        services.blob_directory, services.blob_run = inputs, InlineExecutor()
        yield await stack.enter_async_context(compose_node(services, network=network_id, now_ms=now_ms))
