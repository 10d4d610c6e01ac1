"""The requester's side of a node: cut the work, price it, have it done, put the rows in place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import numpy as np
import trio

from p2pcompute._asked import asked, within_deadline
from p2pcompute._fast_run import ChunkJudge, check_policy, check_tolerance, make_sampler, rehearse, tolerance_of
from p2pcompute._groups import single_error
from p2pcompute._measures import run_ns
from p2pcompute._options import (
    AmountError,
    OptionError,
    callback,
    flag,
    number,
    one_of,
    parse_usd,
    price_per_unit_pusd,
    said,
    whole,
)
from p2pcompute._partial import Placed, RowForms
from p2pcompute._program_run import (
    PROGRAM_SETUP_S,
    calibrate_program,
    check_installed,
    explained,
    is_program,
    program_samples,
)
from p2pcompute._split import too_large
from p2pcompute._split_run import (
    Cut,
    block_output_bytes,
    cut_with_splits,
    has_splits,
    some_items,
    windowed_worker,
)
from p2pcompute._stakes import check_stakes, prepare_stake
from p2pcompute.checking import (
    DEFAULT_SAMPLES,
    DeliveredChunk,
    Sampler,
    SampleReport,
    block_samples,
    chunk_samples,
    sampled_every,
)
from p2pcompute.errors import (
    BudgetError,
    KernelTypeError,
    NoProviderError,
    P2PComputeError,
)
from p2pcompute.execution._api import OutputSpec
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.market._bidding import MAX_DEADLINE_MS
from p2pcompute.tasks import Compiling, Coordinator, TaskEnded, TaskEvent, TaskRequest, TaskStarted
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute.tasks._sharing import shareable
from p2pcompute.tasks._work import chunk_work, own_arrays, program_work
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_BLOB_BYTES, MAX_CHUNKS, MAX_OUTPUT_BYTES
from p2pcompute_protocols.money import PUSD_PER_UUSD, owed_uusd
from p2pcompute_protocols.work import Work

if TYPE_CHECKING:
    from p2pcompute._program import ConfiguredProgram, Program
    from p2pcompute.execution import WorkerSession
    from p2pcompute.kernel import Binding, ConfiguredKernel, Kernel
    from p2pcompute.stake import StakeDesk

    Runnable = Kernel | ConfiguredKernel | Program | ConfiguredProgram

__all__ = ["Chunk", "RunOptions", "TaskRun"]

_CHUNK_TARGET_US: Final = 400_000  # of one reference core
_CHUNK_TARGET_BYTES: Final = 4 * 1024 * 1024
_CALIBRATE_THREADS: Final = 1_024
_CALIBRATE_MOST: Final = 262_144
_CALIBRATE_NS: Final = 5_000_000
_CALIBRATE_GROWTH: Final = 16
_CALIBRATE_LONG_NS: Final = 200_000_000
_CALIBRATE_FEW: Final = 4
_CALIBRATE_S: Final = 30.0
_RECOMPUTE_S: Final = 300.0  # a chunk that providers differ about, or that no second one has
_MAX_PROVIDERS: Final = 64
_OWN: Final = "our own kernels"  # the tenant of this node's workers that its own tasks are; no peer ID is like it
_SETUP_S: Final = 3.0  # of a provider; what it has to compile and receive comes on top:
_SLOWER: Final = 8  # its compiler may be so many times slower than ours
_RESULT_S: Final = 10.0  # for a chunk, beside its own time
_MAX_ITEM_S: Final = 600.0  # the longest that a chunk may take, see the market's bidding
_SETUP_BYTES_PER_S: Final = 1024 * 1024
_MAX_BUDGET_UUSD: Final = (2**63 - 1) // _MAX_PROVIDERS  # each provider's channel may be funded with all of it
_MAX_SAMPLES: Final = 2**20  # of `CheckPolicy`
_ENDLESS: Final = ", or see whether a loop of it never ends"


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a task is run.

    Attributes:
        budget: the most it may cost, such as "0.01 USD".
        chunks: how many chunks to cut it into; chosen from a calibration run where None. A chunk is of whole blocks:
            few threads that each take long are spread by ``kernel[threads, 1]``.
        max_providers: how many providers at once, at most 64.
        deadline_s: seconds from now, at most 7 days.
        samples: private samples a chunk, of threads; where those of a block work together, blocks are run again, an
            eighth as many, and 8 at least; of a program items. Where this is left out no more than an eighth of a
            chunk is run again, and of chunks of less than eight some are left out where a provider may have several
            unpaid. 0 trusts providers and is visible in the agreement.
        item_s: of a program, how many seconds one item takes on a reference core; measured here where None. With
            check="none" the program need not be installed here then.
        max_price: the most that an hour of a reference core may cost, in steps of 0.0036 USD.
        check: "sample" re-runs the private samples; "quorum" also has chunks done by two providers, which may cost
            twice as much, and compares them. Where they differ, and where no second provider is to be had, we compute
            the whole chunk here. "none" trusts providers, as where nobody else has the data. Visible in the agreement.
        quorum_share: the share of chunks that "quorum" has done twice, from 0 to 1, all of them where None; which ones
            is our own secret.
        fp: "strict", or "fast" for results that may differ in their last places, and come sooner (docs/fast.md).
        rtol, atol: in fast mode, an element of a float output is right where it differs from the strict one by atol +
            rtol times its size at most. Where None: 1e-4 and 1e-6 of float32, 1e-9 and 1e-12 of float64.
        device: "cpu", "cuda" or "any".
        min_stake: what a provider has to have at stake, such as "100 USD", as the stake registry says.
        arbiters: multiaddrs or peer IDs of arbiters, 16 at most. Only providers that accept all of them, and put a
            stake at risk, get work; `Node.accuse` has a liar's stake taken.
        arbiters_needed: how many of them have to find against a provider; more than half where None.
        at_risk: what verdicts may take for one task; the least stake of the registry where None.
        share_inputs: whether providers of the task may give inputs of 1 MiB and more to each other, so that each
            leaves here about once; it tells them of each other. Where None: in kernels that samples check, and not
            with check="quorum" or "none".
        on_event: gets every `TaskEvent` (`p2pcompute.events`); must not block. What it raises ends the task, and is
            raised.

    Raises:
        OptionError: one of them is out of its range; says which range it has. Also a ValueError.
    """

    budget: str | int | float = "0.10 USD"
    chunks: int | None = None
    max_providers: int = 8
    deadline_s: float = 3_600.0
    samples: int = DEFAULT_SAMPLES
    check: str = "sample"
    item_s: float | None = None
    max_price: str | int | float | None = None
    quorum_share: float | None = None
    fp: str = "strict"
    rtol: float | None = None
    atol: float | None = None
    device: str = "any"
    min_stake: str | int | float | None = None
    arbiters: Sequence[str] = ()
    arbiters_needed: int | None = None
    at_risk: str | int | float | None = None
    share_inputs: bool | None = None
    on_event: Callable[[TaskEvent], None] | None = None

    def __post_init__(self) -> None:
        if parse_usd(self.budget) > _MAX_BUDGET_UUSD:
            raise AmountError(f"budget is {said(self.budget)}; write at most {_MAX_BUDGET_UUSD // 1_000_000} USD")
        if self.max_price is not None:
            price_per_unit_pusd(self.max_price, at_most=True)
        if self.chunks is not None:
            whole(self, "chunks", 1, MAX_CHUNKS, otherwise=", or None to have it chosen")
        whole(self, "max_providers", 1, _MAX_PROVIDERS)
        whole(self, "samples", 0, _MAX_SAMPLES)
        one_of(self, "check", "sample", "quorum", "none")
        if self.item_s is not None:
            most = f"seconds, more than 0 and at most {_MAX_ITEM_S:.0f}, or None"
            number(self, "item_s", 0, _MAX_ITEM_S, above=True, write=most)
        most = f"seconds from now, more than 0 and at most {MAX_DEADLINE_MS // 1000} (7 days)"
        number(self, "deadline_s", 0, MAX_DEADLINE_MS / 1000, above=True, write=most)
        if self.quorum_share is not None:
            number(self, "quorum_share", 0, 1, write="a share from 0 to 1")
        if self.quorum_share is not None and self.check != "quorum":
            raise OptionError(
                f'quorum_share is {self.quorum_share!r} and check is "{self.check}"; write check="quorum" too, or '
                "leave quorum_share out"
            )
        if self.check == "none" and self.samples not in (0, DEFAULT_SAMPLES):
            raise OptionError(
                f'samples is {self.samples} and check is "none", which looks at nothing; write check="sample", or '
                "leave samples out"
            )
        if self.check == "quorum" and self.max_providers < 2:
            raise OptionError('max_providers is 1; check="quorum" takes at least 2')
        check_tolerance(self)
        if self.share_inputs is not None:
            flag(self, "share_inputs")
        one_of(self, "device", "cpu", "cuda", "any")
        callback(self, "on_event")
        check_stakes(self)

    @property
    def doubled(self) -> float:
        """The share of chunks that two providers do."""
        if self.check != "quorum":
            return 0.0
        return 1.0 if self.quorum_share is None else float(self.quorum_share)

    @property
    def shares(self) -> bool:
        """Whether inputs may spread. Who trusts providers without checks has chosen whom the data goes to; and two
        that are compared are not to be told of each other."""
        return self.check == "sample" and self.checks if self.share_inputs is None else self.share_inputs

    @property
    def checks(self) -> bool:
        """Whether anything is computed again here."""
        return self.check == "quorum" or (self.check == "sample" and self.samples > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A checked chunk.

    Attributes:
        index: which of `total` chunks. `replaces` says that this index was given before, by a provider that has
            since been caught lying: this one counts.
        first_block, blocks: the blocks of the launch that it covers; of a program, the items.
        rows: for each output, an array. Of a launch along one axis the part of the output that the chunk covers: joined
            by `first_block`, chunks are the output. Along more axes ``(blocks * threads a block, *row)`` in thread
            order, zeros where a thread lies outside of the output, or ``(blocks, threads a block, *row)`` where the
            threads of a block work together. Where rows are blocks', or are combined, ``(blocks, *row)``.
        provider: who computed it.
    """

    index: int
    total: int
    first_block: int
    blocks: int
    rows: tuple[np.ndarray[Any, Any], ...]
    provider: PeerId
    replaces: bool


class _Pool(Protocol):
    @property
    def threads(self) -> int: ...

    def session(self, *, tenant: str | None = None) -> Any: ...


def params_of(kernel: object) -> tuple[str, ...]:
    """Names of a kernel's parameters; none of anything else."""
    from p2pcompute.kernel import ConfiguredKernel, Kernel

    if isinstance(kernel, ConfiguredKernel):
        kernel = kernel.kernel
    return kernel.params if isinstance(kernel, Kernel) else ()


def bound(kernel: object, args: tuple[Any, ...], options: RunOptions | None = None) -> Binding:
    """Check kernel or program, arguments and options together.

    Raises:
        KernelError: it is no kernel, the arguments do not fit it, or they are over what one task may send.
        ProgramError: what `options` ask for takes a program that is not installed here.
    """
    from p2pcompute._program import ConfiguredProgram, Program
    from p2pcompute.execution import InputSpec
    from p2pcompute.kernel import ConfiguredKernel, Kernel

    if not isinstance(kernel, Kernel | ConfiguredKernel | Program | ConfiguredProgram):
        name = kernel.__name__ if isinstance(kernel, FunctionType) else said(kernel)
        raise KernelTypeError(
            f"{name} is not a kernel",
            instead="decorate the function with @p2p.kernel; an installed program is p2p.program(name)",
        )
    if isinstance(kernel, Program | ConfiguredProgram) and options is not None:
        check_installed(kernel if isinstance(kernel, Program) else kernel.program, options)
    binding = kernel.bind(*args)
    if options is not None:
        tolerance_of(options.fp, options.rtol, options.atol, binding.layout.outputs)
    names = params_of(kernel) or tuple(f"argument {place}" for place in range(1, len(args) + 1))
    values = iter(binding.values)
    sizes: dict[int, int] = {}
    for place, spec in enumerate(binding.specs):
        name = names[binding.argument(place)]
        if isinstance(spec, OutputSpec):
            if 0 in spec.shape:
                ask = "pass" if place + 1 in binding.inout else "ask for"
                raise KernelTypeError(f"{name} has the shape {spec.shape}", instead=f"{ask} at least one element")
            continue
        value = next(values)
        if isinstance(spec, InputSpec):
            if 0 in spec.shape:
                raise KernelTypeError(f"{name} has the shape {spec.shape}", instead="pass at least one element")
            sizes[place] = 0 if spec.split is not None else value.nbytes
    if sum(sizes.values()) > MAX_BLOB_BYTES:
        raise too_large(binding, sizes, names)
    return binding


@dataclass(slots=True, kw_only=True)
class TaskRun:
    """One task of this node, from arguments to chunks."""

    kernel: Runnable
    args: tuple[Any, ...]
    options: RunOptions
    coordinator: Coordinator
    pool: Callable[[], Awaitable[_Pool]]
    score_milli: Callable[[], Awaitable[int]]
    fund: Callable[[int], Awaitable[None]]
    now_ms: Callable[[], int]
    stakes: Callable[[], StakeDesk] | None = None  # raises ConfigError where there is no registry
    budget: TaskBudget = field(default_factory=TaskBudget)  # started, with what `options` say at most
    ended: TaskEnded | None = None  # what it came to, once it has started and ended
    held: frozenset[int] = frozenset()  # the chunks that came, and hold

    def bind(self) -> Binding:
        """Check kernel and arguments; raises `KernelError` before anything else happens."""
        return bound(self.kernel, self.args, self.options)

    def _emit(self, event: TaskEvent) -> None:
        if self.options.on_event is not None:
            self.options.on_event(event)

    async def execute(self, binding: Binding, deliver: Callable[[Chunk], Awaitable[None]] | Placed) -> None:
        """Run the task; `deliver` gets each checked chunk. Errors as `Coordinator.run` and `BudgetError`."""
        try:
            await self._execute(binding, deliver)
        except NoProviderError as exc:
            if self.options.fp == "fast":
                exc = NoProviderError(f'{exc} What fp="fast" does not find, fp="strict" may')
            raise exc if binding.program is None else explained(exc, binding.program) from None

    async def _execute(self, binding: Binding, deliver: Callable[[Chunk], Awaitable[None]] | Placed) -> None:
        options, binding = self.options, own_arrays(binding)
        budget_uusd = parse_usd(options.budget)
        deadline_ms = self.now_ms() + int(options.deadline_s * 1000)
        requirement, limit = asked(options, *(() if binding.program is None else (binding.program.feature,)))
        # A worker of our own starts meanwhile; where nobody is there, that ends with the error.
        with single_error(NoProviderError, P2PComputeError):
            async with trio.open_nursery() as nursery:
                if self._needs_worker:
                    nursery.start_soon(self.pool)
                offered = await self.coordinator.candidates(
                    requirement, units=1, fp=options.fp, language=LANGUAGE_VERSION, max_price_pusd=limit, wanted=1
                )
                self.budget.check_price(min(candidate.option.price_pusd for candidate in offered))
                self._emit(Compiling())
        tolerance = tolerance_of(options.fp, options.rtol, options.atol, binding.layout.outputs)
        async with self._worker() as own, self._fast_worker(binding) as own_fast:
            began = trio.current_time()
            with within_deadline(deadline_ms, self.now_ms, "the kernel", or_else=_ENDLESS):
                row_shapes = await self._compile(own, binding)
                compile_s = trio.current_time() - began
                if own_fast is not None:
                    await self._compile(own_fast, binding, fp="fast")
                timed = windowed_worker(own if own_fast is None else own_fast, binding)
                units_per_item = await self._calibrate(timed, binding)
            cut = await self._cut(binding, units_per_item)
            work, worker = cut.work, windowed_worker(own, binding, cut)
            fast = windowed_worker(own_fast, binding, cut)
            copies = 2 if options.check == "quorum" else 1
            found = await self.coordinator.candidates(
                requirement,
                units=work.units_per_chunk,
                fp=options.fp,
                language=LANGUAGE_VERSION,
                max_price_pusd=limit,
                wanted=min(4, options.max_providers, copies * work.chunks),
            )
            doubled = options.doubled
            once = work.units_per_chunk * binding.launch.blocks / work.blocks_per_chunk
            total_units = math.ceil(once * (1 + doubled))
            cheapest = min(candidate.option.price_pusd for candidate in found)
            estimate_uusd = owed_uusd(total_units, cheapest)
            if estimate_uusd > budget_uusd:
                raise BudgetError(
                    f"the work is estimated at {estimate_uusd / 1e6:.6f} USD and {self.budget.shortage()}, or cut the "
                    "work. Nothing was paid for this task."
                )
            stake = await prepare_stake(self.options, self.stakes)
            self._emit(
                TaskStarted(
                    chunks=work.chunks,
                    units_per_chunk=work.units_per_chunk,
                    estimate_uusd=estimate_uusd,
                    ceiling_uusd=budget_uusd,
                )
            )
            await self.fund(budget_uusd * min(options.max_providers, copies * work.chunks, max(len(found), 1)))
            together, size = binding.layout.together, binding.launch.threads_per_block
            samples, per_probe = options.samples, DEFAULT_SAMPLES
            if binding.program is not None:
                samples = per_probe = program_samples(options.samples, work.chunk_range(0)[1])
            items = work.chunk_range(0)[1] * binding.layout.items_per_block
            per_chunk = chunk_samples(samples, items, size if together else 1)
            if not together and options.samples:
                samples = per_chunk
            sampler: Sampler | None = None
            if worker is not None:
                sampler = make_sampler(
                    binding,
                    worker,
                    row_shapes,
                    per_chunk=per_chunk,
                    per_probe=max(1, block_samples(per_probe, size) if together else per_probe),
                    tolerance=tolerance,
                    fast=fast,
                )
                if fast is not None and options.checks:
                    await rehearse(sampler, binding, work)
            request = TaskRequest(
                work=work,
                blobs=cut.blobs,
                splits=cut.splits,
                requirement=requirement,
                # Whoever ends up doing all of it, the budget covers it: a dear provider can't use it up half-way.
                max_price_pusd=min(limit, budget_uusd * PUSD_PER_UUSD // total_units),
                ceiling_uusd=budget_uusd,
                budget=self.budget,
                check=check_policy(options.check if options.checks else "none", samples, tolerance),
                doubled=doubled,
                fp=options.fp,
                language=LANGUAGE_VERSION,
                deadline_ms=deadline_ms,
                max_providers=min(options.max_providers, copies * work.chunks),
                setup_s=(_SETUP_S if binding.program is None else PROGRAM_SETUP_S)
                + _SLOWER * compile_s
                + sum(map(len, cut.blobs.values())) / _SETUP_BYTES_PER_S,
                chunk_s=_RESULT_S
                + 2 * _SLOWER * work.units_per_chunk / 1e6
                + 2 * cut.most_tile_bytes / _SETUP_BYTES_PER_S,
                sample_every=sampled_every(options.samples, items)
                if options.check == "sample" and binding.program is None
                else 1,
                stake=stake,
                shared=shareable(work) if options.shares else frozenset(),
            )
            judge: ChunkJudge | None = None
            if worker is not None and tolerance is not None:
                judge = ChunkJudge(work, binding, tolerance, worker, fast)
            try:
                await self._coordinate(request, work, binding, sampler, worker, judge, deliver)
            finally:
                self._end(request)

    def _end(self, request: TaskRequest) -> None:
        self.held = request.outcome.done
        self.ended = TaskEnded(
            chunks=request.work.chunks,
            done=len(self.held),
            accepted_uusd=owed_uusd(1, self.budget.accepted_pusd),
            paid_uusd=request.outcome.paid_uusd,
        )
        self._emit(self.ended)

    async def _coordinate(
        self,
        request: TaskRequest,
        work: Work,
        binding: Binding,
        sampler: Sampler | None,
        worker: WorkerSession | None,
        judge: ChunkJudge | None,
        deliver: Callable[[Chunk], Awaitable[None]] | Placed,
    ) -> None:
        items = binding.layout.items_per_block
        seen: set[int] = set()

        def delivered(index: int, output: memoryview) -> DeliveredChunk:
            first, blocks = work.chunk_range(index)
            return DeliveredChunk(
                first_thread=first * items,
                threads=blocks * items,
                output=output,
                inside=binding.layout.items_sampled(first, blocks),
            )

        async def check(chunks: Sequence[tuple[int, memoryview]]) -> list[SampleReport]:
            if sampler is None or not request.check.per_chunk:
                return [SampleReport(checked=0, mismatched=0)] * len(chunks)
            return await _apart(checks, partial(sampler.check_many, [delivered(*chunk) for chunk in chunks]))

        async def probe(index: int) -> bool:
            if sampler is None:
                return False  # nobody here can say whether it computes
            first, blocks = work.chunk_range(index)
            inside = binding.layout.items_sampled(first, blocks)
            return await _apart(checks, partial(sampler.probe, first * items, blocks * items, inside=inside))

        async def recompute(index: int) -> bytes:
            assert worker is not None  # what is done twice is computed here too, if it has to be
            call = partial(worker.run_blocks, *work.chunk_range(index), timeout_s=_RECOMPUTE_S)
            run = await _apart(checks, call)
            digest = hashlib.sha256()
            for output in run.outputs:
                digest.update(output)
            return digest.digest()

        forms = RowForms(binding.layout)

        async def hand_over(chunks: Sequence[tuple[int, memoryview]], provider: PeerId) -> None:
            if isinstance(deliver, Placed):
                deliver.put(chunks, work)
                return
            for index, output in chunks:
                first, blocks = work.chunk_range(index)
                replaces = index in seen
                seen.add(index)
                await deliver(
                    Chunk(
                        index=index,
                        total=work.chunks,
                        first_block=first,
                        blocks=blocks,
                        rows=forms.rows(output, blocks),
                        provider=provider,
                        replaces=replaces,
                    )
                )

        failure: Exception | None = None
        async with trio.open_nursery() as checks:
            if judge is not None:
                judge.apart = partial(_apart, checks)
            try:
                await self.coordinator.run(
                    request,
                    deliver=hand_over,
                    deliver_together=isinstance(deliver, Placed),
                    check=check,
                    probe=probe,
                    emit=self._emit,
                    recompute=recompute,
                    judge=judge,
                )
            except Exception as exc:  # noqa: BLE001  raised again below, outside of the nursery's group
                failure = exc
                checks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    @property
    def _needs_worker(self) -> bool:
        """Whether anything is run here: samples, or a calibration."""
        return self.options.checks or self.options.item_s is None or not is_program(self.kernel)

    @asynccontextmanager
    async def _worker(self) -> AsyncGenerator[WorkerSession | None]:
        if not self._needs_worker:
            yield None
            return
        pool = await self.pool()
        async with pool.session(tenant=_OWN) as worker:
            yield worker

    @asynccontextmanager
    async def _fast_worker(self, binding: Binding) -> AsyncGenerator[WorkerSession | None]:
        """A second one, for what providers run in fast mode: it is timed, and asked what hangs on rounding."""
        if self.options.fp == "strict" or not self._needs_worker or binding.program is not None:
            yield None
            return
        pool = await self.pool()
        async with pool.session(tenant=_OWN) as worker:
            yield worker

    async def _compile(
        self, worker: WorkerSession | None, binding: Binding, *, fp: str = "strict"
    ) -> Sequence[tuple[int, ...]]:
        """The shapes of rows, of what our worker has compiled."""
        if worker is None:
            return binding.layout.row_shapes
        source = replace(binding.source, fp=fp)
        compiled = await worker.compile(source, binding.launch, binding.specs, _inputs(binding))
        return compiled.row_shapes

    async def _calibrate(self, worker: WorkerSession | None, binding: Binding) -> float:
        """Units (microseconds of a reference core) of one item, from items all over the launch.

        They are timed in processor time: what others do on this machine meanwhile is not our work (`run_ns`). What an
        empty run costs is taken off, and the sample grows until a run is long enough to be timed. Of items
        that take long each, few are run: a thousand would be more work here than the network is asked for.
        """
        if worker is None or (binding.program is not None and self.options.item_s is not None):
            return (self.options.item_s or 0.0) * 1e6
        if binding.program is not None:
            return await calibrate_program(worker, binding) * await self.score_milli() / 1_000
        threads = (await self.pool()).threads
        rng = np.random.default_rng()
        total = binding.launch.blocks * binding.layout.items_per_block
        size = binding.launch.threads_per_block if binding.layout.together else 1  # threads of an item
        most = min(total, max(1, _CALIBRATE_MOST // size))

        async def timed(count: int) -> int:
            first, among = some_items(binding, rng)
            picked = first + np.sort(rng.integers(0, among, size=count, dtype=np.int64))
            return run_ns(await worker.run_threads(picked, timeout_s=_CALIBRATE_S), min(count, threads))

        await timed(1)  # compiles
        single_ns = max(1, min([await timed(1) for _ in range(3)]))
        # So many at once as our worker has threads; of long ones few for each.
        few = min(_CALIBRATE_FEW, max(1, int(_CALIBRATE_S * 1e9) // (4 * single_ns)))
        affordable = max(few, _CALIBRATE_LONG_NS // single_ns) * threads
        count = min(max(1, _CALIBRATE_THREADS // size), affordable, total)
        while True:
            spent_ns = min(await timed(count), await timed(count))
            if spent_ns >= _CALIBRATE_NS * min(count, threads) or count >= most:
                break
            # Straight to a run that is long enough; items differ, and what came first says little of many.
            longer = math.ceil(1.1 * _CALIBRATE_NS * min(count, threads) / max(1, spent_ns))
            count = min(count * min(max(2, longer), _CALIBRATE_GROWTH), most)
        # A run of one item has what every run costs, and an item: nearly nothing beside many, much beside few.
        empty_ns = single_ns if count >= 16 * threads and single_ns < _CALIBRATE_NS else 0
        per_item_ns = max(spent_ns - empty_ns, spent_ns / 100) / count / min(count, threads)
        return per_item_ns / 1_000 * await self.score_milli() / 1_000

    async def _cut(self, binding: Binding, units_per_item: float) -> Cut:
        launch = binding.launch
        block_units = units_per_item * binding.layout.items_per_block
        block_bytes = block_output_bytes(binding)
        unit = "block" if binding.program is None else "item"
        if block_bytes > MAX_OUTPUT_BYTES:
            raise KernelTypeError(
                f"one {unit} writes {block_bytes} bytes", instead=f"use {unit}s that write at most {MAX_OUTPUT_BYTES}"
            )
        if self.options.chunks is not None:
            per_chunk = -(-launch.blocks // max(1, self.options.chunks))
        else:
            per_chunk = max(1, int(_CHUNK_TARGET_US / max(block_units, 1e-9)))
            per_chunk = min(per_chunk, max(1, _CHUNK_TARGET_BYTES // block_bytes), launch.blocks)
        per_chunk = min(per_chunk, max(1, MAX_OUTPUT_BYTES // block_bytes))
        try:
            if has_splits(binding):
                return await cut_with_splits(binding, per_chunk, block_units, exactly=self.options.chunks is not None)
            units = max(1, math.ceil(block_units * per_chunk))
            if binding.program is not None:
                return Cut(*program_work(binding, items_per_chunk=per_chunk, units_per_chunk=units))
            return Cut(*chunk_work(binding, blocks_per_chunk=per_chunk, units_per_chunk=units))
        except LocalProtocolError as exc:
            raise KernelTypeError(
                f"the call is over a bound of the protocol: {exc}",
                instead="send less input (at most 64 MiB) or cut the launch into several calls",
            ) from exc


async def _apart(nursery: trio.Nursery, call: Callable[[], Awaitable[T]]) -> T:
    """Await a call of our worker within `nursery`: a provider's link may be cut while its chunk is being checked, and
    a call that is cancelled may cost the worker, which checks the chunks of all the others too."""
    over = trio.Event()
    given: list[T] = []
    failed: list[Exception] = []

    async def work() -> None:
        try:
            given.append(await call())
        except Exception as exc:  # noqa: BLE001  whoever waits gets it
            failed.append(exc)
        over.set()

    nursery.start_soon(work)
    await over.wait()
    if failed:
        raise failed[0]
    return given[0]


def _inputs(binding: Binding) -> dict[int, Any]:
    from p2pcompute.execution import InputSpec, OutputSpec

    inputs: dict[int, Any] = {}
    values = iter(binding.values)
    for position, spec in enumerate(binding.specs):
        if isinstance(spec, OutputSpec):
            continue
        value = next(values)
        if isinstance(spec, InputSpec) and spec.split is None:
            inputs[position] = value
    return inputs
