"""A node: opens the services, each in one visible nursery, and offers what users do with them.

    async with p2p.open_node() as node:
        z = await node.run(saxpy, p2p.out(y.shape, y.dtype), np.float32(2), x, y, budget="0.01 USD")

A node is a requester from the start; `node.serve(…)` makes it a provider as well.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio

from p2pcompute._books import RequesterLedgerBooks
from p2pcompute._fast_proof import Prove, modes_sold
from p2pcompute._funds import in_channels_uusd
from p2pcompute._given import check_challenge
from p2pcompute._groups import nursery_beside, single_error
from p2pcompute._launch import allowance, current_launch, default_network, default_profile
from p2pcompute._listening import listening
from p2pcompute._node_stakes import NodeStakes
from p2pcompute._options import chosen
from p2pcompute._partial import Placed
from p2pcompute._profile import Profile
from p2pcompute._program_run import allowed_programs, installed_program, program_ref
from p2pcompute._provider_events import Checkpointed
from p2pcompute._reach import asking
from p2pcompute._serving import AllowedProgram, ProviderOptions, ProviderRole
from p2pcompute._stakes import StakeParts, make_desk
from p2pcompute._streams import ChunkStream, Feed, RoundStream, TaskOfNode
from p2pcompute._where import check_where, multiaddrs, place_of, refuse_other_loops
from p2pcompute.blobs import BlobRuns, BlobServer, in_thread
from p2pcompute.errors import ChainError, ConfigError, P2PComputeError, WorkerDied
from p2pcompute.identity import AskPassword, NodeKey, WalletKey, password_from_environment
from p2pcompute.market import AdBoard, AdService
from p2pcompute.overlay import Overlay, Requests
from p2pcompute.payments import Hub, Outbox, Payer, Wallet
from p2pcompute.storage import Ledger, LedgerFailed, WatchStore
from p2pcompute.tasks import Coordinator
from p2pcompute.tasks._disputes import challenge
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.ads import Device
from p2pcompute_protocols.ids import Address, ChannelId, PeerId, TaskId
from p2pcompute_protocols.work import ProgramRef

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from p2pcompute._ahead import WorkersAhead
    from p2pcompute._hired import Hired
    from p2pcompute._requester import Runnable, RunOptions, TaskRun
    from p2pcompute._rounds import RoundsRun, Steps
    from p2pcompute.checking import Finding
    from p2pcompute.execution import Layers, WorkerPool
    from p2pcompute.execution._program_files import InstalledProgram

__all__ = ["Node", "NodeServices", "compose_node", "open_node"]

_log = logging.getLogger("p2pcompute.node")

_SPARE_S: Final = 15.0
_STOP_S: Final = 1.0
_DESCRIPTORS: Final = 65_536
# A signed batch is on disk before it is sent; what the chain has not mined by then is settled at the next start.
_CHECKPOINT_S: Final = 1.5


def wall_clock_ms() -> int:
    """UNIX time in milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class NodeServices:
    """What a node is made of; tests put other parts in place of these.

    `wallet` signs vouchers and `account` holds the money: one key, unless the profile has an owner.
    """

    key: NodeKey
    wallet: WalletKey
    account: WalletKey
    overlay: Overlay
    requests: Requests
    ledger: Ledger
    hub: Hub
    outbox: Outbox
    binding: Callable[[], SignerBinding]
    payer: Payer
    board: AdBoard
    ad_service: AdService
    books: RequesterLedgerBooks
    coordinator: Coordinator
    open_pool: Callable[[int, bool], WorkerPool]
    open_program_pool: Callable[[InstalledProgram, str | None, int, bool], WorkerPool]
    measure: Callable[[WorkerPool], Awaitable[Device]]
    known_device: Callable[[], Device | None]
    guess_milli: int
    cores: int
    fund_wallet: Callable[[int], Awaitable[None]]
    blobs: BlobServer
    retired: tuple[Address, ...] = ()
    blob_directory: Path | None = None  # where a provider keeps inputs
    blob_run: BlobRuns = in_thread  # what waits for that disk
    chain_url: str | None = None
    test_money: bool = False  # of our development chain: worth nothing
    open_device_pool: Callable[[str, bool], WorkerPool] | None = None
    measure_on: Callable[[WorkerPool, str], Awaitable[Device]] | None = None
    prove_fast: Prove | None = None
    watch_store: Callable[[], AbstractAsyncContextManager[WatchStore]] | None = None
    stake: StakeParts | None = None


class Node(NodeStakes):
    """A node on the network. Made by `open_node`.

    Attributes:
        network: the network's ID.
        peer_id: who we are.
    """

    def __init__(
        self, services: NodeServices, nursery: trio.Nursery, *, network: str, now_ms: Callable[[], int]
    ) -> None:
        self.services = services
        self.network = network
        self.now_ms = now_ms
        self.peer_id: PeerId = services.key.peer_id
        self.provider: ProviderRole | None = None
        self.started_ms = now_ms()
        self._nursery = nursery
        self.workers_ahead: WorkersAhead | None = None  # begun by whoever opens this node
        self._pool: WorkerPool | None = None
        self._pool_opened_with: tuple[int, bool] = (0, False)
        self._device: Device | None = None
        self._device_pools: dict[str, WorkerPool] = {}  # by what names the GPU
        self._pool_lock = trio.Lock()
        self._program_pools: dict[tuple[ProgramRef, str | None], WorkerPool] = {}  # by program and its data
        self._turn = trio.Lock()
        self._feeds: set[Feed] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs that reach this node, each ending in ``/p2p/<peer id>``."""
        return self.services.overlay.addresses

    @property
    def money(self) -> Wallet:
        """This node's account: balances, claiming, bringing in and taking out."""
        services = self.services
        settler = None if self.provider is None else self.provider.settler
        return Wallet(
            ledger=services.ledger,
            hub=services.hub,
            outbox=services.outbox,
            settler=settler,
            clock_ms=self.now_ms,
            ask=asking(services, network=self.network, now_ms=self.now_ms),
            signers=(services.wallet.address, *services.retired),
        )

    async def _worker_pool(self, threads: int = 0, allow_unsandboxed: bool = False) -> WorkerPool:
        """The workers, opened on first use; 0 threads are all cores."""
        async with self._pool_lock:
            if self._pool is None:
                ahead, self.workers_ahead = self.workers_ahead, None
                pool = None if ahead is None else await ahead.take(threads, allow_unsandboxed)
                if pool is None:
                    pool = self.services.open_pool(threads, allow_unsandboxed)
                    await self._nursery.start(pool.serve)
                self._pool, self._pool_opened_with = pool, (threads, allow_unsandboxed)
            return self._pool

    async def _device_pool(self, slot: str, allow_unsandboxed: bool) -> tuple[WorkerPool, Device]:
        """The workers on a GPU, opened on first use, and what it is.

        Raises ConfigError for what names none, and ExecutionError where there is none, or no driver.
        """
        if self.services.open_device_pool is None or self.services.measure_on is None:
            raise ConfigError(f"this node has no device {slot!r}; serve with device='cpu'")
        async with self._pool_lock:
            pool = self._device_pools.get(slot)
            if pool is None:
                pool = self.services.open_device_pool(slot, allow_unsandboxed)
                await self._nursery.start(pool.serve)
                self._device_pools[slot] = pool
            return pool, await self.services.measure_on(pool, slot)

    async def _program_pool(
        self, program: InstalledProgram, *, data: str | None = None, spare: int = 0, allow_unsandboxed: bool = False
    ) -> WorkerPool:
        """The workers that have loaded a program and may read `data`, opened on first use."""
        key = (program_ref(program), data)
        async with self._pool_lock:
            pool = self._program_pools.get(key)
            if pool is None:
                pool = self.services.open_program_pool(program, data, spare, allow_unsandboxed)
                await self._nursery.start(pool.serve)
                self._program_pools[key] = pool
            return pool

    def _refuse_other_workers(self, terms: ProviderOptions) -> None:
        """Raise ConfigError where the workers that are open aren't as `serve` was told to have them."""
        threads, allow_unsandboxed = terms.threads, terms.allow_unsandboxed
        had_threads, had_unsandboxed = self._pool_opened_with
        if self._pool is None:
            return
        cores = len(os.sched_getaffinity(0))
        if threads is None and terms.slots > 1 and (had_threads or cores) > max(1, cores // terms.slots):
            raise ConfigError(
                f"this node's workers are open already and have all cores each, which {terms.slots} slots would share; "
                "serve before the first run, or open another node to serve"
            )
        if (threads is not None and threads != had_threads) or (allow_unsandboxed and not had_unsandboxed):
            raise ConfigError(
                "this node's workers are open already, with other threads or with the sandbox; serve before the first "
                "run, or open another node to serve with threads or allow_unsandboxed"
            )

    async def device(self) -> Device:
        """This machine's device with its measured score."""
        pool = await self._worker_pool()
        known = self._device
        if known is None:
            known = self._device = await self.services.measure(pool)
        return known

    async def sandbox_layers(self) -> Layers | None:
        """What locks strangers' kernels in, as a worker in reserve says; None where none comes up in time."""
        role = self.provider
        lent = None if role is None else self._device_pools.get(role.options.device)
        pool = lent or await self._worker_pool()
        with trio.move_on_after(_SPARE_S), suppress(WorkerDied):
            await pool.wait_warm()
        return pool._warm[0].layers if pool._warm else None

    async def _score_milli(self) -> int:
        """For a requester's estimates: what was measured, else a reference core for each thread."""
        if self._device is None:
            self._device = self.services.known_device()
        return self._device.score_milli if self._device is not None else self.services.guess_milli

    async def _thread_milli(self) -> int:
        """The same for one thread, which is what a program runs on."""
        threads = self._pool.threads if self._pool is not None else self.services.cores
        return max(1, await self._score_milli() // threads)

    async def _see_to_money(self, amount_uusd: int) -> None:
        """See that there is money for a task. On a development chain, which gives what is missing at any time, channels
        that hold half of it are enough to begin with (`Payer.has_room`)."""
        services = self.services
        if not services.test_money or 2 * await in_channels_uusd(services.ledger) < amount_uusd:
            await services.fund_wallet(amount_uusd)

    def _task(self, kernel: Runnable, args: tuple[Any, ...], options: RunOptions) -> TaskRun:
        from p2pcompute._requester import TaskRun

        program = installed_program(kernel)
        return TaskRun(
            kernel=kernel,
            args=args,
            options=options,
            coordinator=self.services.coordinator,
            pool=self._worker_pool if program is None else partial(self._program_pool, program),
            score_milli=self._score_milli if program is None else self._thread_milli,
            fund=self._see_to_money,
            now_ms=self.now_ms,
            stakes=partial(make_desk, self),
        )

    async def run(self, kernel: Runnable, *args: Any, **options: Any) -> Any:
        """Run a kernel or a program on the network and give its outputs.

        Args:
            kernel: what `p2p.kernel` made, or ``kernel[blocks, threads]``; or a program: ``p2p.program(name)[items]``.
            args: NumPy arrays, numbers, and `p2p.out(shape, dtype)` or `p2p.reduce(operation, shape, dtype)` for
                each output, `p2p.inout(array)` for each array that is changed in place. Arrays are copied once, when
                the task's turn has come; those in `p2p.split` are not, and must not be written to until it has ended.
            options: fields of `RunOptions`: budget, chunks, max_providers, deadline_s, samples, check, quorum_share,
                item_s, max_price, device, min_stake, arbiters, on_event.

        Returns:
            The output array, or a tuple of them where there are several.

        Raises:
            ConfigError: an option is unknown or out of its range; nothing was sent.
            KernelError: the kernel or an argument is refused; nothing was sent.
            ProgramError: the program is not installed here, and has to be checked or timed here; nothing was sent.
            NoProviderError: no money has moved.
            BudgetError: the estimate is over the budget and no money has moved, or the budget is used up.
            ChunkFailed, TaskTimeout, TaskError, PaymentError: what was paid is covered by checked receipts.
            An error of a task that had started has what came of it, as masked arrays, in `error.partial`.

        Tasks of one node take turns: each would have but its part of the same providers, and a worker here. A task in
        the body of a loop over chunks of `map` does not wait, since the loop's task would wait for it; it has its own
        budget, and places of its own at providers.

        Cancellation: providers stop and bill nothing more.
        """
        from p2pcompute._requester import RunOptions, params_of

        task = self._task(kernel, args, chosen(RunOptions, options, params=params_of(kernel)))
        binding = task.bind()
        placed = Placed(binding)
        try:
            await self._execute(task, binding, placed, waits=not self._is_within_stream())
        except P2PComputeError as error:
            placed.note(error, task)
            raise
        results = binding.results(placed.outputs)
        return results[0] if len(results) == 1 else tuple(results)

    def _rounds(
        self, steps: Steps, rounds: int, state: Mapping[str, Any], args: Sequence[Any], options: dict[str, Any]
    ) -> RoundsRun:
        from p2pcompute._rounds import RoundOptions, RoundsRun, bind_rounds

        return RoundsRun(
            bound=bind_rounds(steps, rounds, state, args),
            options=chosen(RoundOptions, options),
            coordinator=self.services.coordinator,
            pool=self._worker_pool,
            score_milli=self._score_milli,
            fund=self._see_to_money,
            now_ms=self.now_ms,
            stakes=partial(make_desk, self),
        )

    async def iterate(
        self, steps: Steps, *, rounds: int, state: Mapping[str, Any], args: Sequence[Any] = (), **options: Any
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Repeat launches on a state that stays at its provider, and give the last state.

        Args:
            steps: a kernel whose parameters are named ``new_x`` (output) and ``x`` (input) for an array x of the state,
                ``round_number``, and others for `args`; or what `p2p.step` made, or a list of those.
            rounds: how often.
            state: the arrays to begin with, by name.
            args: for a bare kernel, the values of its other parameters, in order.
            options: fields of `RoundOptions`: budget, rounds_per_chunk, check_rounds, samples, check, deadline_s,
                max_price, device, min_stake, arbiters, on_event.

        Raises:
            ConfigError, KernelError, NoProviderError, BudgetError, TaskTimeout, TaskError, PaymentError: as `run`.

        Turns and cancellation are those of `run`.
        """
        task = self._rounds(steps, rounds, state, args, options)

        async def drop(_: object) -> None:
            await trio.lowlevel.checkpoint()

        await self._execute(task, task.bound, drop, waits=not self._is_within_stream())
        assert task.last is not None  # it has ended without an error
        return task.bound.result(task.last[1].arrays)

    def rounds(
        self, steps: Steps, *, rounds: int, state: Mapping[str, Any], args: Sequence[Any] = (), **options: Any
    ) -> RoundStream:
        """As `iterate`, and iterate over the rounds as their chunks are checked: ``async for done in node.rounds(…)``.

        The stream's `state` and `done` are the last state that is here and how many rounds it is behind, at any time,
        also when it has ended with an error: what was paid for is not lost.
        """
        return RoundStream(self, self._rounds(steps, rounds, state, args, options))

    async def challenge(self, provider: PeerId, task: TaskId, digests: Sequence[bytes]) -> Finding:
        """Find the first round of a task whose result at its provider differs from ours, in as many questions as the
        number of rounds has bits. For whoever went through the rounds again; a task that runs needs no questions.

        Args:
            provider: who computed it; connected.
            task: the task's ID, as of the event `Agreed`. It has to be ours, or to name this node as an arbiter.
            digests: ours, of the states 0 to the last.

        Raises:
            ConfigError: one of the arguments is something else.
            TaskRefused: the provider shows nothing, such as after it was started again.
            RemoteProtocolError: it answers otherwise than it is committed to. OverlayError: it is gone.
        """
        check_challenge(provider, task, digests)
        return await challenge(
            self.services.overlay,
            provider,
            task,
            network=self.network,
            ours=digests.__getitem__,
            rounds=len(digests) - 1,
        )

    def _is_within_stream(self) -> bool:
        """Whether the calling task is in the body of a loop over chunks of this node, whose task goes on only once
        the body is done."""
        caller = trio.lowlevel.current_task()
        return any(feed.waits_for(caller) for feed in self._feeds)

    async def _execute(self, task: TaskOfNode, binding: Any, deliver: Any, *, waits: bool) -> None:
        async with AsyncExitStack() as stack:
            if waits:
                await stack.enter_async_context(self._turn)
            task.options = stack.enter_context(allowance(task.options, task.budget))
            listener = stack.enter_context(listening(task.options.on_event))
            task.options = replace(task.options, on_event=listener)
            with single_error(P2PComputeError):
                await task.execute(binding, deliver)

    def map(self, kernel: Runnable, *args: Any, **options: Any) -> ChunkStream:
        """Run a kernel and iterate over its checked chunks as they come, in no order.

        ``async for chunk in node.map(…)``; leave early with ``async with node.map(…) as chunks``. Arguments and
        errors are those of `run`, raised by the iteration; kernel errors at once. What a chunk has: `Chunk`.
        """
        from p2pcompute._requester import RunOptions, params_of

        task = self._task(kernel, args, chosen(RunOptions, options, params=params_of(kernel)))
        return ChunkStream(self, task, task.bind())

    def hire(self, kernel: Runnable, *args: Any, **options: Any) -> AbstractAsyncContextManager[Hired]:
        """Agree once with a provider, and then call a kernel there many times:

            async with node.hire(saxpy, p2p.out(y.shape, y.dtype), np.float32(2), x, y, budget="0.01 USD") as hired:
                z = await hired.run(np.float32(3), x, y)

        Args:
            kernel: as of `run`; a program is not hired.
            args: as of `run`. Their types and shapes hold for every call; their values are sent along, so that a call
                that has some of them sends nothing.
            options: fields of `HireOptions`: budget, chunks, deadline_s, samples, check, max_price, device,
                min_stake, on_event.

        Returns:
            An async context manager that gives a `Hired`. Leaving it ends the calls that are under way.

        Raises, when it is entered:
            ConfigError, KernelError: an option, the kernel or an argument is refused; nothing was sent.
            NoProviderError: nobody took the order. BudgetError: one call costs more than the budget. No money has
                moved.
            TaskTimeout, TaskError, PaymentError: as `run`.

        A provider that is lost is followed by another one, and so is one that ends the agreement because no call came
        for ten minutes. A hire does not take turns with `run`.

        Cancellation: providers stop and bill nothing more.
        """
        from p2pcompute._hired import HireOptions, hireable, hiring
        from p2pcompute._requester import params_of

        task = self._task(kernel, args, chosen(HireOptions, options, params=params_of(kernel)).run_options())
        return hiring(task, hireable(task.bind()))

    async def serve(
        self, *, task_status: trio.TaskStatus[ProviderRole] = trio.TASK_STATUS_IGNORED, **options: Any
    ) -> NoReturn:
        """Be a provider until cancelled; then end the tasks and claim what was earned, in one checkpoint.

        Args:
            options: fields of `ProviderOptions`: price, device, slots, threads, max_window, region, programs, credit, …

        Raises:
            ProgramError: a program that is allowed is not installed, or can't be pinned.
            InsufficientFunds: there is nothing to pay the gas of a claim with; has the account and what to send.
            SandboxError: strangers' kernels can't be locked in here; says what is missing.
            SelfTestError, FastSelfTestError: this machine computes what nobody else does, and sells nothing; the
                second where ``fp="fast"`` is all that it was to sell.
            ConfigError: this node serves already, its workers are open with other settings, or an option is unknown or
                out of its range.
            LedgerFailed: the disk failed, so no promise can be kept any more; restart the node. Requesters were told.
        """
        if self.provider is not None:
            raise ConfigError("this node serves already; open another one for other settings")
        terms = chosen(ProviderOptions, options)
        allowed = allowed_programs(terms.programs, terms.program_data)
        self._refuse_other_workers(terms)
        await self.services.fund_wallet(0)  # who can't claim is told before the machine is measured
        _raise_descriptor_limit()
        threads = terms.threads or max(1, len(os.sched_getaffinity(0)) // terms.slots)
        if terms.device == "cpu":
            pool = await self._worker_pool(threads, terms.allow_unsandboxed)
            measured = await self.device()
        else:
            pool, measured = await self._device_pool(terms.device, terms.allow_unsandboxed)
        device = Device(
            kind=measured.kind,
            name=measured.name,
            slots=terms.slots,
            memory_bytes=measured.memory_bytes,
            score_milli=measured.score_milli,
            scores=measured.scores,
        )
        sold = await modes_sold(terms.fp, self.services.prove_fast, pool, terms.device)
        programs = {
            program_ref(program): AllowedProgram(
                pool=await self._program_pool(program, data=data, spare=1, allow_unsandboxed=terms.allow_unsandboxed),
                data=data,
            )
            for program, data in allowed
        }
        role = self.provider = ProviderRole(self, terms, pool, device, programs, sold)
        try:
            with single_error(LedgerFailed):
                async with trio.open_nursery() as nursery:
                    await nursery.start(role.serve, self.services.ad_service)
                    task_status.started(role)
                    await self.services.ledger.wait_failed()
        finally:
            self.provider = None
            with trio.CancelScope(shield=True):
                with trio.move_on_after(_STOP_S):
                    await role.stop()
                with trio.move_on_after(_CHECKPOINT_S):
                    claimed = await self._try_checkpoint(role.settler.last_checkpoint)
                    role.emit(Checkpointed(channels=len(claimed), claimed_uusd=sum(claimed.values())))
        raise AssertionError("unreachable")

    async def checkpoint(self, role: ProviderRole | None = None) -> dict[ChannelId, int]:
        """Claim on chain what vouchers are worth, whatever gas costs; channels stay open. Total claimed per channel, in
        micro-USD."""
        role = role or self.provider
        return {} if role is None else await self._try_checkpoint(role.settler.checkpoint)

    async def _try_checkpoint(self, checkpoint: Callable[[], Awaitable[dict[ChannelId, int]]]) -> dict[ChannelId, int]:
        try:
            return await checkpoint()
        except ChainError as exc:
            _log.warning("no checkpoint: %s; vouchers are kept and claimed next time", exc)
            return {}


def _raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: each task holds some for its stream, worker and inputs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _close_agreements(ledger: Ledger, reason: str) -> None:
    """Mark open agreements as failed, so that nothing stays reserved for work that will not come."""
    for row in await ledger.open_agreements():
        await ledger.close_agreement(row.task, state="failed", reason=reason)


@asynccontextmanager
async def compose_node(services: NodeServices, *, network: str, now_ms: Callable[[], int]) -> AsyncGenerator[Node]:
    """Run a node's services while the context is open; everything of it is in this one nursery."""
    failure: Exception | None = None
    # No task outlives its node, however that ended: what is still open in the ledger was left by a killed one.
    await _close_agreements(services.ledger, "the node was killed")
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(services.requests.run)
            await nursery.start(services.ad_service.serve)
            await nursery.start(services.books.serve)
            try:
                yield Node(services, nursery, network=network, now_ms=now_ms)
            except Exception as exc:  # noqa: BLE001  raised again below, outside of the nursery's group
                failure = exc
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await services.payer.aclose()
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await _close_agreements(services.ledger, "the node was stopped")
    if failure is not None:
        raise failure


@asynccontextmanager
async def _local_chain(network: str) -> AsyncGenerator[str]:
    """The URL of this machine's development chain, which runs at least as long as the context."""
    from p2pcompute._local_chain import serve_local_chain
    from p2pcompute._profile import NetworkDir

    async with nursery_beside() as nursery:
        url: str = await nursery.start(serve_local_chain, NetworkDir.named(network))
        yield url


@asynccontextmanager
async def open_node(
    *,
    profile: str | Profile | None = None,
    network: str | None = None,
    bootstrap: str | Sequence[str] = (),
    chain: str | None = None,
    hub: str | None = None,
    token: str | None = None,
    listen: str | Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    start_chain: bool = False,
    registry: str | None = None,
    password: AskPassword | None = None,
) -> AsyncGenerator[Node]:
    """Open a node of this profile; keys and ledger are made on first use.

    Args:
        profile: its name, or a `Profile`; P2PCOMPUTE_PROFILE, then "requester", where None. Where another process has
            the named one open, an ephemeral one is used instead, on a development chain only: it lives on free money
            and is gone afterwards.
        network: the network's ID; P2PCOMPUTE_NETWORK, then "local", where None.
        bootstrap: multiaddrs of peers to join by, or one; P2PCOMPUTE_BOOTSTRAP (comma-separated) and the nodes of this
            network that run on this machine come on top.
        chain: JSON-RPC URL of any EVM chain; P2PCOMPUTE_CHAIN, then what the profile has kept, then the embedded chain
            of this machine, where None.
        hub: address of the hub contract there; P2PCOMPUTE_HUB, then what the profile has kept, where None. Not needed
            on a development chain. Its code is compared with ours at every start.
        token: address of the token that the hub has to be of; P2PCOMPUTE_TOKEN, then the one that it is of.
        listen: multiaddrs to listen on, or one; port 0 takes a free one.
        start_chain: where no chain is named, run this machine's development chain while the node is open, or join the
            one that runs. For the first provider of a network; `p2pcompute up` does so.
        registry: address of the stake registry there; P2PCOMPUTE_REGISTRY where None. Only stakes need it, and not on
            a development chain.
        password: gives the password of the owner's key, where the profile has an owner; called in another thread.
            P2PCOMPUTE_PASSWORD, then the first line of the file that P2PCOMPUTE_PASSWORD_FILE names, where None.

    Raises:
        NoProviderError: no network is up here and none was named.
        ConfigError, IdentityError, PortInUse, ProfileInUse, ChainUnreachable, WrongChain, chain.NoHub, chain.WrongHub:
            each says what to do.
    """
    from p2pcompute._chain_choice import kept_choice
    from p2pcompute._opening import open_services

    refuse_other_loops("open_node")
    profile = default_profile() if profile is None else profile
    network = default_network() if network is None else network
    place = place_of(profile)
    check_where(
        network=network,
        chain=chain,
        hub=hub,
        token=token,
        registry=registry,
        start_chain=start_chain,
        password=password,
    )
    bootstrap, listen = multiaddrs(bootstrap, "bootstrap"), multiaddrs(listen, "listen")
    async with AsyncExitStack() as stack:
        if start_chain and chain is None and "P2PCOMPUTE_CHAIN" not in os.environ and kept_choice(place) is None:
            chain = await stack.enter_async_context(_local_chain(network))
        services, now_ms = await stack.enter_async_context(
            open_services(
                profile=profile,
                network=network,
                bootstrap=bootstrap,
                chain=chain,
                hub=hub,
                token=token,
                listen=listen,
                now_ms=wall_clock_ms,
                registry=registry,
                password=password_from_environment if password is None else password,
            )
        )
        node = await stack.enter_async_context(compose_node(services, network=network, now_ms=now_ms))
        if (launch := current_launch()) is not None:
            launch.watcher.node_opened(node)
        yield node
