"""Hiring: one agreement for many calls of a kernel, each with its own inputs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import trio

from p2pcompute._asked import asked, within_deadline
from p2pcompute._groups import single_error
from p2pcompute._inout import InOut
from p2pcompute._launch import allowance
from p2pcompute._listening import listening
from p2pcompute._options import OptionError, parse_usd
from p2pcompute._partial import Placed
from p2pcompute._requester import (
    _ENDLESS,
    RunOptions,
    TaskRun,
    _apart,
)
from p2pcompute._stakes import prepare_stake, stake_wish
from p2pcompute.checking import DEFAULT_SAMPLES, Sampler, SampleReport, block_samples, chunk_samples, sampled_every
from p2pcompute.errors import BudgetError, KernelTypeError, P2PComputeError
from p2pcompute.execution._api import InputSpec, OutputSpec, ScalarSpec
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.tasks import Compiling, TaskEnded, TaskEvent, TaskRequest
from p2pcompute.tasks._standing import PendingCall
from p2pcompute.tasks._standing_task import StandingTask
from p2pcompute.tasks._work import little_endian, own_arrays, viewed
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import owed_uusd
from p2pcompute_protocols.negotiation import CheckPolicy
from p2pcompute_protocols.work import ArrayArg, ChunkWork, ScalarArg

if TYPE_CHECKING:
    from p2pcompute.execution import WorkerSession
    from p2pcompute.kernel import Binding

__all__ = ["HireOptions", "Hired", "hireable", "hiring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HireOptions:
    """How a provider is hired.

    Attributes:
        budget: the most that all calls together may cost, such as "0.01 USD". A call that could pass it is not made.
        chunks: how many chunks to cut each call into; chosen from a calibration run where None.
        deadline_s: seconds from now, at most 7 days; the hire ends then.
        samples: private samples a chunk, as of `RunOptions`. 0 trusts the provider and is visible in the agreement.
        check: "sample" re-runs the private samples; "none" trusts the provider.
        max_price: the most that an hour of a reference core may cost, in steps of 0.0036 USD.
        device: "cpu", "cuda" or "any".
        min_stake: what a provider has to have at stake, as of `RunOptions`.
        on_event: gets every `TaskEvent` (`p2pcompute.events`); must not block. Chunks have the numbers of their
            agreement: call c of n chunks has those from c × n on.

    Raises:
        OptionError: one of them is out of its range; says which range it has. Also a ValueError.
    """

    budget: str | int | float = "0.10 USD"
    chunks: int | None = None
    deadline_s: float = 3_600.0
    samples: int = DEFAULT_SAMPLES
    check: str = "sample"
    max_price: str | int | float | None = None
    device: str = "any"
    min_stake: str | int | float | None = None
    on_event: Callable[[TaskEvent], None] | None = None

    def __post_init__(self) -> None:
        checked = self.run_options()
        if checked.check == "quorum":
            raise OptionError('check is "quorum", and a hire has one provider at a time; write "sample" or "none"')
        for name in _COMMON:
            object.__setattr__(self, name, getattr(checked, name))

    def run_options(self) -> RunOptions:
        """Those that all tasks have."""
        return RunOptions(**{name: getattr(self, name) for name in _COMMON})


_COMMON: Final = {field.name for field in fields(HireOptions)}


class Hired:
    """A provider that waits for calls. Made by `Node.hire`.

    Calls may be made from many tasks at once; they are computed in the order in which they came.
    """

    def __init__(self, task: StandingTask, binding: Binding) -> None:
        self._task = task
        self._binding = binding
        self._inputs = [place for place, spec in enumerate(binding.specs) if not isinstance(spec, OutputSpec)]

    async def run(self, *args: Any) -> Any:
        """Run the kernel with these inputs.

        Args:
            args: what the kernel takes, in its order and without its outputs: arrays of the shape and dtype that were
                hired for, and numbers of the same dtype. Where an array was given in `p2p.inout`, another one to be
                changed, in `p2p.inout` or as it is. Arrays are copied before this waits.

        Returns:
            The output array, or a tuple of them where there are several, as `Node.run`.

        Raises:
            KernelTypeError: the inputs are not of the types and shapes that were hired for; nothing was sent.
            BudgetError: the call could cost more than is left of the budget, and was not made.
            ChunkFailed: the call failed at a provider; other calls go on.
            TaskTimeout, TaskError, NoProviderError, PaymentError: no more calls are made. What was paid is covered by
                checked receipts.

        Cancellation: the provider is told that the call is not needed; other calls go on. What it had computed by then
        is paid for.
        """
        binding = self._binding
        call, results = self._asked(args)
        await self._task.call(call)
        found = binding.results(results)
        return found[0] if len(found) == 1 else tuple(found)

    def _asked(self, args: tuple[Any, ...]) -> tuple[PendingCall, list[np.ndarray[Any, Any]]]:
        binding = self._binding
        if len(args) != len(self._inputs):
            raise KernelTypeError(
                f"{len(args)} inputs are given and the hired kernel takes {len(self._inputs)}",
                instead="pass its inputs in order, without its outputs: those are as they were hired for",
            )
        wire: list[ScalarArg | ArrayArg] = []
        blobs: dict[bytes, bytes] = {}
        values: dict[int, Any] = {}
        for number, (place, given) in enumerate(zip(self._inputs, args, strict=True), 1):
            spec = binding.specs[place]
            if place in binding.inout and isinstance(given, InOut):
                given = given.given
            value = _fitting(number, spec, given)
            if isinstance(spec, ScalarSpec):
                wire.append(ScalarArg(dtype=spec.dtype, value=little_endian(value).tobytes()))
            else:
                assert isinstance(spec, InputSpec)
                data = little_endian(value).tobytes()
                digest = hashlib.sha256(data).digest()
                blobs[digest] = data
                wire.append(ArrayArg(dtype=spec.dtype, shape=spec.shape, digest=digest))
                value = viewed(data, value.dtype, spec.shape)
            values[place] = value
        placed, work = Placed(binding), self._task.request.work

        def deliver(chunk: int, output: memoryview, _: PeerId) -> None:
            placed.put([(chunk, output)], work)

        call = PendingCall(args=tuple(wire), blobs=blobs, values=values, chunks=work.chunks, deliver=deliver)
        return call, placed.outputs


def _fitting(number: int, spec: Any, given: Any) -> Any:
    """Argument `number` of a call, counted from 1, as NumPy has it and of the type that was hired for."""
    what = f"argument {number} was hired as {spec.dtype}"
    if isinstance(spec, ScalarSpec):
        kind = np.dtype(spec.dtype).type
        if isinstance(given, np.generic) or (isinstance(given, np.ndarray) and given.ndim == 0):
            if given.dtype != np.dtype(spec.dtype):
                raise KernelTypeError(f"{what} and {given.dtype} is given", instead=f"pass numpy.{spec.dtype}(…)")
            return kind(given)
        if isinstance(given, bool | int | float):
            fits = isinstance(given, bool) == (spec.dtype == "bool")
            with suppress(OverflowError, ValueError):
                value = kind(given)
                fits = fits and (not isinstance(given, int) or int(value) == given)
                if fits and (isinstance(given, int) or spec.dtype.startswith("float")):
                    return value
        raise KernelTypeError(f"{what} and does not hold what is given", instead=f"pass numpy.{spec.dtype}(…)")
    if not isinstance(given, np.ndarray) or isinstance(given, np.ma.MaskedArray):
        raise KernelTypeError(f"{what}{spec.shape}, and no array is given", instead="pass a NumPy array")
    if given.dtype != np.dtype(spec.dtype) or given.shape != spec.shape:
        raise KernelTypeError(
            f"{what}{spec.shape} and {given.dtype}{given.shape} is given",
            instead="pass arrays of the shape and dtype that were hired for, or hire for these",
        )
    return given


def hireable(binding: Binding) -> Binding:
    """What a provider can be hired for.

    Raises:
        KernelTypeError: it is a program, or an input is split.
    """
    if binding.program is not None:
        raise KernelTypeError("a program is not hired", instead="run it: node.run(program, …)")
    if any(isinstance(spec, InputSpec) and spec.split is not None for spec in binding.specs):
        raise KernelTypeError("an input of a hire is not split", instead="pass the array itself, or use node.run")
    return binding


@asynccontextmanager
async def hiring(task: TaskRun, binding: Binding) -> AsyncGenerator[Hired]:
    """Find, calibrate, agree; then calls, until the context is left.

    Raises as `Node.hire`.
    """
    binding = own_arrays(binding)
    with allowance(task.options, task.budget) as options, listening(options.on_event) as listener:
        task.options = replace(options, on_event=listener)
        async with task._worker() as own:
            standing, sampled = await _prepare(task, binding, own)
            failure: BaseException | None = None
            with single_error(P2PComputeError):
                async with trio.open_nursery() as checks, trio.open_nursery() as nursery:
                    standing.check = partial(_checked_apart, checks, sampled)
                    nursery.start_soon(standing.run)
                    try:
                        await standing.ready.wait()
                        if standing.failure is not None:
                            raise standing.failure
                        yield Hired(standing, binding)
                    except BaseException as exc:  # noqa: BLE001  raised again outside of the nursery's group
                        failure = exc
                        nursery.cancel_scope.cancel()
                    standing.close()
            if standing.agreed:
                task._emit(_ended(task, standing))
            if failure is not None:
                raise failure


def _ended(task: TaskRun, standing: StandingTask) -> TaskEnded:
    accepted_uusd = owed_uusd(1, task.budget.accepted_pusd)
    paid_uusd = standing.request.outcome.paid_uusd
    return TaskEnded(chunks=standing.done, done=standing.done, accepted_uusd=accepted_uusd, paid_uusd=paid_uusd)


async def _prepare(task: TaskRun, binding: Binding, own: WorkerSession | None) -> tuple[StandingTask, _Samples]:
    """What is hired for: the kernel compiled and timed here, a call cut into chunks, and the order for it."""
    options = task.options
    wish = stake_wish(options)
    if wish is not None and wish.arbiters:
        raise OptionError("a hire has no arbiters: unset P2PCOMPUTE_ARBITERS for it, or use node.run")
    budget_uusd = parse_usd(options.budget)
    deadline_ms = task.now_ms() + int(options.deadline_s * 1000)
    requirement, limit = asked(options)
    found = await task.coordinator.candidates(
        requirement, units=1, fp="strict", language=LANGUAGE_VERSION, max_price_pusd=limit, wanted=1
    )
    task.budget.check_price(min(candidate.option.price_pusd for candidate in found))
    task._emit(Compiling())
    # Nothing may be proved from the numbers of the first call: the next ones have others.
    varied = replace(
        binding,
        specs=tuple(replace(spec, varies=True) if isinstance(spec, ScalarSpec) else spec for spec in binding.specs),
    )
    with within_deadline(deadline_ms, task.now_ms, "the kernel", or_else=_ENDLESS):
        row_shapes = await task._compile(own, varied)
        units_per_item = await task._calibrate(own, varied)
    cut = await task._cut(binding, units_per_item)
    work = cut.work
    assert isinstance(work, ChunkWork)  # of a kernel
    once = math.ceil(work.units_per_chunk * work.blocks / work.blocks_per_chunk)
    cheapest = min(candidate.option.price_pusd for candidate in found)
    if owed_uusd(once, cheapest) > budget_uusd:
        raise BudgetError(
            f"one call is estimated at {owed_uusd(once, cheapest) / 1e6:.6f} USD and {task.budget.shortage()}. Nothing "
            "was paid."
        )
    stake = await prepare_stake(options, task.stakes)
    await task.fund(budget_uusd)
    together, size = binding.layout.together, binding.launch.threads_per_block
    items = work.chunk_range(0)[1] * binding.layout.items_per_block
    per_chunk = chunk_samples(options.samples, items, size if together else 1)
    samples = options.samples if together or not options.samples else per_chunk
    sampler: Sampler | None = None
    if own is not None and options.checks:
        probes = block_samples(DEFAULT_SAMPLES, size) if together else DEFAULT_SAMPLES
        sampler = Sampler(own, binding.layout.outputs, row_shapes, per_chunk=per_chunk, per_probe=probes)
    request = TaskRequest(
        work=work,
        blobs=cut.blobs,
        requirement=requirement,
        max_price_pusd=limit,
        ceiling_uusd=budget_uusd,
        budget=task.budget,
        check=CheckPolicy(kind="sample" if options.checks else "none", per_chunk=samples if options.checks else 0),
        fp="strict",
        language=LANGUAGE_VERSION,
        deadline_ms=deadline_ms,
        max_providers=1,
        sample_every=sampled_every(options.samples, items) if options.check == "sample" else 1,
        standing=True,
        stake=stake,
    )
    checked = _Samples(sampler, own, varied, work)
    standing = StandingTask(coordinator=task.coordinator, request=request, check=checked.check, emit=task._emit)
    return standing, checked


class _Samples:
    """Draws samples of chunks in our own worker, which is given each call's inputs before."""

    def __init__(self, sampler: Sampler | None, own: WorkerSession | None, binding: Binding, work: ChunkWork) -> None:
        self._sampler = sampler
        self._own = own
        self._binding = binding
        self._work = work
        self._turn = trio.Lock()
        self._given: PendingCall | None = None

    async def check(self, call: PendingCall, chunk: int, output: memoryview) -> SampleReport:
        """Compare samples of a call's chunk."""
        if self._sampler is None or self._own is None:
            return SampleReport(checked=0, mismatched=0)
        async with self._turn:
            if self._given is not call and call.values:
                self._given = None
                await self._own.set_arguments(call.values, timeout_s=_ARGUMENTS_S)
                self._given = call
            layout = self._binding.layout
            items = layout.items_per_block
            first, blocks = self._work.chunk_range(chunk)
            return await self._sampler.check(
                first * items, blocks * items, output, inside=layout.items_sampled(first, blocks)
            )


_ARGUMENTS_S: Final = 60.0


async def _checked_apart(
    nursery: trio.Nursery, samples: _Samples, call: PendingCall, chunk: int, output: memoryview
) -> SampleReport:
    return await _apart(nursery, partial(samples.check, call, chunk, output))
