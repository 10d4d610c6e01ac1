"""Work in rounds, as users say it: launches that are repeated on a state, which stays where it is computed.

    @p2p.kernel
    def step(new_x, new_v, x, v, dt):
        ...

    last = p2p.iterate(step, rounds=1000, state={"x": x0, "v": v0}, args=(np.float32(0.01),), budget="0.05 USD")
    last["x"]

A round of several launches is a list of `step(kernel, ...)`, whose arguments name arrays of the state.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import trio

from p2pcompute._asked import asked, within_deadline
from p2pcompute._groups import single_error
from p2pcompute._options import parse_usd, said, whole
from p2pcompute._requester import (
    _ENDLESS,
    _OWN,
    _RESULT_S,
    _SETUP_BYTES_PER_S,
    _SETUP_S,
    _SLOWER,
    RunOptions,
    TaskRun,
)
from p2pcompute._rounds_words import (
    BoundStep,
    New,
    Number,
    State,
    Steps,
    by_names,
    check_arguments,
    launches,
    new,
    round_number,
    state,
    state_arrays,
    step,
)
from p2pcompute._split import Split, split
from p2pcompute._split_run import windowed_worker
from p2pcompute._stakes import prepare_stake
from p2pcompute.checking import DEFAULT_SAMPLES, SampleReport
from p2pcompute.checking._rounds import RoundSampler, draw_rounds
from p2pcompute.errors import BudgetError, KernelTypeError, NoProviderError, P2PComputeError
from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.kernel import Binding, Out, out, reduce
from p2pcompute.tasks import Compiling, Coordinator, TaskEvent, TaskStarted
from p2pcompute.tasks._budget import TaskBudget
from p2pcompute.tasks._round_task import Party, RoundRequest, RoundTask
from p2pcompute.tasks._round_work import StateBytes, round_work
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_LEAVES
from p2pcompute_protocols.money import PUSD_PER_UUSD, owed_uusd
from p2pcompute_protocols.negotiation import CheckPolicy
from p2pcompute_protocols.work import RoundWork

if TYPE_CHECKING:
    from p2pcompute.execution import InputSpec
    from p2pcompute.execution._rounds import Step
    from p2pcompute.stake import StakeDesk

__all__ = [
    "BoundRounds",
    "BoundStep",
    "Round",
    "RoundOptions",
    "RoundsRun",
    "Steps",
    "bind_rounds",
    "new",
    "round_number",
    "state",
    "step",
]

_CHUNK_US: Final = 400_000  # of one reference core, that a chunk takes at least
_CHUNK_MOST_US: Final = 10_000_000
_MOVED_BYTES_PER_US: Final = 10  # what a network is taken to move
_STATES_A_CHUNK: Final = 3
_LAUNCH_US: Final = 150  # of a reference core, beside what the kernel takes
_STATE_BYTES_PER_US: Final = 250  # hashed and copied
_RECOMPUTE_S: Final = 300.0
_RECOMPUTE_BYTES: Final = 16 * 1024 * 1024  # of states that our worker gives at once
_MOST_ROUNDS_A_CHUNK: Final = 4_096

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOptions:
    """How a task in rounds is run.

    Attributes:
        budget: the most it may cost, such as "0.01 USD".
        rounds_per_chunk: after so many rounds there is a receipt, a check, a payment, and the state comes here, so that
            no more are lost with a provider; chosen from a calibration run and the size of the state where None.
        check_rounds: of each chunk so many rounds, drawn in private, are looked at.
        samples: private samples of each launch of these rounds.
        check: "sample"; "quorum" has two providers compute the same rounds, which may cost twice as much, and where
            they differ finds the first round that does and computes it here; "none" trusts the provider.
        deadline_s: seconds from now, at most 7 days.
        max_price: the most that an hour of a reference core may cost.
        device: "cpu", "cuda" or "any".
        min_stake, arbiters, arbiters_needed, at_risk: as of `RunOptions`; each provider of the rounds has so much at
            stake, and puts it at risk before they begin.
        on_event: gets every `TaskEvent` (`p2pcompute.events`); must not block. What it raises ends the task, and is
            raised.

    Raises:
        OptionError: one of them is out of its range; says which range it has. Also a ValueError.
    """

    budget: str | int | float = "0.10 USD"
    rounds_per_chunk: int | None = None
    check_rounds: int = 1
    samples: int = DEFAULT_SAMPLES
    check: str = "sample"
    deadline_s: float = 3_600.0
    max_price: str | int | float | None = None
    device: str = "any"
    min_stake: str | int | float | None = None
    arbiters: Sequence[str] = ()
    arbiters_needed: int | None = None
    at_risk: str | int | float | None = None
    on_event: Callable[[TaskEvent], None] | None = None

    def __post_init__(self) -> None:
        if self.rounds_per_chunk is not None:
            whole(self, "rounds_per_chunk", 1, MAX_LEAVES - 1, otherwise=", or None to have it chosen")
        whole(self, "check_rounds", 1, 2)
        checked = self.run_options()
        for name in _COMMON:
            object.__setattr__(self, name, getattr(checked, name))

    def run_options(self) -> RunOptions:
        """Those that all tasks have."""
        return RunOptions(**{name: getattr(self, name) for name in _COMMON})


_COMMON: Final = {field.name for field in fields(RoundOptions)} & {field.name for field in fields(RunOptions)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round whose chunk was checked.

    Attributes:
        number: how many rounds are done with it, of `total`. A number may come again, and then all after it: whoever
            computed them was caught lying.
        digest: SHA-256 over the SHA-256 digests of the state's arrays, in their order.
        provider: who computed it.
    """

    number: int
    total: int
    digest: bytes
    provider: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRounds:
    """Steps and state that fit together."""

    names: tuple[str, ...]
    specs: tuple[InputSpec, ...]
    arrays: tuple[bytes, ...]
    steps: tuple[Step, ...]
    constants: tuple[tuple[Array, ...], ...]
    bindings: tuple[Binding, ...]
    rounds: int

    def result(self, arrays: Sequence[bytes | bytearray]) -> dict[str, Array]:
        """A state as users see it."""
        return {
            name: np.frombuffer(bytes(data), np.dtype(spec.dtype).newbyteorder("<"))
            .astype(spec.dtype, copy=True)
            .reshape(spec.shape)
            for name, spec, data in zip(self.names, self.specs, arrays, strict=True)
        }

    def inputs(self) -> list[dict[int, Any]]:
        """Each step's constants by position."""
        from p2pcompute.execution._api import InputSpec

        found: list[dict[int, Any]] = []
        for made, given in zip(self.steps, self.constants, strict=True):
            places = [place for place, arg in enumerate(made.args) if isinstance(arg, InputSpec)]
            found.append(dict(zip(places, given, strict=True)))
        return found


def bind_rounds(steps: Steps, rounds: int, state: Mapping[str, Any], args: Sequence[Any]) -> BoundRounds:
    """Check steps, state and arguments together.

    Raises:
        KernelError: they don't fit; says where and what to write.
        OptionError: `rounds` is out of its range.
    """
    from p2pcompute.execution._api import InputSpec

    holder = _Count(rounds)
    whole(holder, "rounds", 1, MAX_LEAVES - 1)
    arrays = state_arrays(state)
    given = launches(steps)
    values_given: object = args
    if isinstance(values_given, str | bytes) or not isinstance(values_given, Sequence):
        raise KernelTypeError(f"args is {said(args)}", instead="pass a tuple of the values, such as args=(dt,)")
    if args and (len(given) != 1 or isinstance(given[0], BoundStep)):
        raise KernelTypeError("args are for a bare kernel", instead="put them into p2p.step(kernel, …)")
    bound = [one if isinstance(one, BoundStep) else by_names(one, arrays, args) for one in given]
    names = tuple(arrays)
    places = {name: place for place, name in enumerate(names)}
    made_steps: list[Step] = []
    constants: list[tuple[Array, ...]] = []
    bindings: list[Binding] = []
    for one in bound:
        made_step, values, binding = _bind_step(one, arrays, places)
        made_steps.append(made_step)
        constants.append(values)
        bindings.append(binding)
    _check_given(made_steps, names)
    return BoundRounds(
        names=names,
        specs=tuple(InputSpec(dtype=array.dtype.name, shape=array.shape) for array in arrays.values()),
        arrays=tuple(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for array in arrays.values()),
        steps=tuple(made_steps),
        constants=tuple(constants),
        bindings=tuple(bindings),
        rounds=holder.rounds,
    )


@dataclass(slots=True)
class _Count:
    rounds: int


def _bind_step(
    one: BoundStep, arrays: Mapping[str, Array], places: Mapping[str, int]
) -> tuple[Step, tuple[Array, ...], Binding]:
    from p2pcompute.execution._api import InputSpec, OutputSpec
    from p2pcompute.execution._rounds import ReadState, RoundNumber, Step, StepArg, WriteState, result_shape

    def array(name: str) -> Array:
        if name not in arrays:
            raise KernelTypeError(f"the state has no {name}", instead=f"it has {', '.join(arrays)}")
        return arrays[name]

    check_arguments(one)
    values: list[Any] = []
    for arg in one.args:
        match arg:
            case State():
                like = array(arg.name)
                values.append(like if arg.halo is None else split(like, halo=arg.halo, edge=arg.edge))
            case New():
                like = array(arg.name)
                if arg.reduce is None or arg.shape is None:
                    values.append(out(like.shape, like.dtype))
                else:
                    values.append(reduce(arg.reduce, arg.shape, like.dtype))
            case Number():
                values.append(np.int64(0))
            case Out():
                raise KernelTypeError("an output of a round is an array of the state", instead='pass p2p.new("name")')
            case _:
                values.append(arg)
    binding = one.kernel.bind(*values)
    args: list[StepArg] = []
    constants: list[Array] = []
    given = iter(binding.values)
    for arg, spec in zip(one.args, binding.specs, strict=True):
        value = None if isinstance(spec, OutputSpec) else next(given)
        match arg:
            case State():
                assert isinstance(spec, InputSpec)
                args.append(ReadState(array=places[arg.name], split=spec.split))
            case New():
                assert isinstance(spec, OutputSpec)
                if result_shape(spec, binding.launch) != arrays[arg.name].shape:
                    raise KernelTypeError(
                        f"the new {arg.name} comes to {result_shape(spec, binding.launch)} and the state has "
                        f"{arrays[arg.name].shape}",
                        instead="give the state's array that shape; one number is an array of one element",
                    )
                args.append(WriteState(array=places[arg.name], spec=spec))
            case Number():
                args.append(RoundNumber(dtype="int64"))
            case _:
                assert not isinstance(spec, OutputSpec)
                args.append(spec)
                if isinstance(spec, InputSpec):
                    # A copy: whoever writes to it while the rounds go on would make a liar of an honest provider.
                    constants.append(np.array(value.array if isinstance(value, Split) else value))
    return Step(source=binding.source, launch=binding.launch, args=tuple(args)), tuple(constants), binding


def _check_given(steps: Sequence[Step], names: Sequence[str]) -> None:
    given = [array for one in steps for array in one.writes]
    for place, name in enumerate(names):
        if given.count(place) == 1:
            continue
        if place in given:
            raise KernelTypeError(
                f"{name} is given by two launches of a round", instead="give each array of the state once"
            )
        raise KernelTypeError(
            f"no launch of a round gives {name}",
            instead=f"store into a parameter new_{name}, or pass what stays the same among args",
        )


@dataclass(slots=True, kw_only=True)
class RoundsRun:
    """One task in rounds of this node, from arguments to the last state.

    Attributes:
        last: the state that is here, and how many rounds were done before it.
    """

    bound: BoundRounds
    options: RoundOptions
    coordinator: Coordinator
    pool: Callable[[], Awaitable[Any]]
    score_milli: Callable[[], Awaitable[int]]
    fund: Callable[[int], Awaitable[None]]
    now_ms: Callable[[], int]
    stakes: Callable[[], StakeDesk] | None = None  # raises ConfigError where there is no registry
    budget: TaskBudget = field(default_factory=TaskBudget)
    last: tuple[int, StateBytes] | None = None
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng())  # numpy.random: 2 MB

    def _emit(self, event: TaskEvent) -> None:
        if self.options.on_event is not None:
            self.options.on_event(event)

    async def execute(self, bound: BoundRounds, deliver: Callable[[Round], Awaitable[None]]) -> None:
        """Run the task; `deliver` gets each checked round. Errors as `RoundTask.run`, `BudgetError` and, where stakes
        are asked for, as `StakeDesk.prepare`."""
        options = self.options
        budget_uusd = parse_usd(options.budget)
        deadline_ms = self.now_ms() + int(options.deadline_s * 1000)
        requirement, limit = asked(options)
        with single_error(NoProviderError, P2PComputeError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.pool)
                offered = await self.coordinator.candidates(
                    requirement, units=1, fp="strict", language=LANGUAGE_VERSION, max_price_pusd=limit, wanted=1
                )
                self.budget.check_price(min(candidate.option.price_pusd for candidate in offered))
                self._emit(Compiling())
        with within_deadline(deadline_ms, self.now_ms, "a round", or_else=_ENDLESS):
            units, compile_s = await self._calibrate(bound)
        start = StateBytes.of(bound.arrays)
        per_chunk = self._rounds_per_chunk(bound, units)
        make = partial(self._make, bound, units, per_chunk)
        try:
            work, blobs = make(0, start)
        except LocalProtocolError as exc:
            raise KernelTypeError(
                f"the rounds are over a bound of the protocol: {exc}",
                instead="state and inputs have 64 MiB at most together, the windows of split ones as much, and a round "
                "8 launches",
            ) from exc
        copies = 2 if options.check == "quorum" else 1
        found = await self.coordinator.candidates(
            requirement,
            units=work.units_per_chunk,
            fp="strict",
            language=LANGUAGE_VERSION,
            max_price_pusd=limit,
            wanted=copies,
        )
        total_units = units * bound.rounds * copies
        estimate_uusd = owed_uusd(total_units, min(candidate.option.price_pusd for candidate in found))
        if estimate_uusd > budget_uusd:
            raise BudgetError(
                f"the work is estimated at {estimate_uusd / 1e6:.6f} USD and {self.budget.shortage()}, or run fewer "
                "rounds. Nothing was paid for this task."
            )
        carried = sum(map(len, blobs.values()))
        del blobs
        stake = await prepare_stake(options, self.stakes)
        self._emit(
            TaskStarted(
                chunks=work.chunks,
                units_per_chunk=work.units_per_chunk,
                estimate_uusd=estimate_uusd,
                ceiling_uusd=budget_uusd,
            )
        )
        await self.fund(budget_uusd * copies)
        kind = "quorum" if options.check == "quorum" else "sample" if options.run_options().checks else "none"
        request = RoundRequest(
            rounds=bound.rounds,
            make=make,
            rounds_per_chunk=work.rounds_per_chunk,
            units_per_chunk=work.units_per_chunk,
            requirement=requirement,
            max_price_pusd=min(limit, budget_uusd * PUSD_PER_UUSD // total_units),
            ceiling_uusd=budget_uusd,
            budget=self.budget,
            check=CheckPolicy(kind=kind, per_chunk=0 if kind == "none" else options.samples),
            fp="strict",
            language=LANGUAGE_VERSION,
            deadline_ms=deadline_ms,
            parties=copies,
            stake=stake,
            setup_s=_SETUP_S + _SLOWER * compile_s + carried / _SETUP_BYTES_PER_S,
            chunk_s=_RESULT_S
            + 2 * _SLOWER * work.units_per_chunk / 1e6
            + 2 * _STATES_A_CHUNK * work.state_bytes / _SETUP_BYTES_PER_S,
        )
        await self._coordinate(request, bound, start, deliver)

    async def _coordinate(
        self,
        request: RoundRequest,
        bound: BoundRounds,
        start: StateBytes,
        deliver: Callable[[Round], Awaitable[None]],
    ) -> None:
        pool = await self.pool()
        sampler = RoundSampler(
            lambda: pool.session(tenant=_OWN),
            bound.steps,
            bound.constants,
            bound.specs,
            samples=self.options.samples,
        )

        async def check(party: Party, first: int, rounds: int) -> SampleReport:
            if not request.check.per_chunk or party.link is None:
                return SampleReport(checked=0, mismatched=0)
            checked = 0
            for at in draw_rounds(rounds, self.options.check_rounds, self._rng):
                before = await party.link.state(first + at)
                after = await party.link.state(first + at + 1)
                report = await sampler.check(party.first + first + at, before.arrays, after.arrays)
                checked += report.checked
                if not report.ok:
                    party.wrong = (first + at + 1, before)
                    return report
            return SampleReport(checked=checked, mismatched=0)

        async def hand_over(party: Party, first: int, digests: list[bytes], _: SampleReport) -> None:
            for number, digest in enumerate(digests, first + 1):
                await deliver(Round(number=number, total=bound.rounds, digest=digest, provider=party.provider))

        def kept(number: int, state: StateBytes) -> None:
            self.last = (number, state)

        async def recompute(done: int, state: StateBytes, rounds: int) -> list[StateBytes]:
            async with pool.session(tenant=_OWN) as worker:
                await worker.compile_rounds(bound.steps, bound.specs, bound.inputs())
                states: list[StateBytes] = []
                while len(states) < rounds:
                    at = states[-1] if states else state
                    count = max(1, min(rounds - len(states), _RECOMPUTE_BYTES // max(1, sum(map(len, at.arrays)))))
                    run = await worker.run_rounds(at.arrays, done + len(states), count, timeout_s=_RECOMPUTE_S)
                    states += [StateBytes.of(arrays) for arrays in run.states]
                return states

        task = RoundTask(
            coordinator=self.coordinator,
            request=request,
            state=start,
            check=check,
            deliver=hand_over,
            emit=self._emit,
            kept=kept,
            recompute=recompute if request.parties > 1 else None,
        )
        self.last = (0, start)
        await task.run()

    def _make(
        self, bound: BoundRounds, units: int, per_chunk: int, first: int, state: StateBytes
    ) -> tuple[RoundWork, dict[bytes, bytes]]:
        return round_work(
            bound.steps,
            bound.constants,
            bound.specs,
            state.arrays,
            first=first,
            rounds=bound.rounds - first,
            rounds_per_chunk=per_chunk,
            units_per_round=units,
        )

    async def _calibrate(self, bound: BoundRounds) -> tuple[int, float]:
        """Units (microseconds of a reference core) of one round: its launches, and what it costs to hash a state; and
        how many seconds its kernels took to compile."""
        options = self.options.run_options()
        units = _LAUNCH_US * len(bound.bindings) + sum(map(len, bound.arrays)) / _STATE_BYTES_PER_US
        compile_s = 0.0
        pool = await self.pool()
        for binding, one in zip(bound.bindings, bound.steps, strict=True):
            run = TaskRun(
                kernel=None,  # type: ignore[arg-type]  # a binding is all that is asked for
                args=(),
                options=options,
                coordinator=self.coordinator,
                pool=self.pool,
                score_milli=self.score_milli,
                fund=self.fund,
                now_ms=self.now_ms,
            )
            async with pool.session(tenant=_OWN) as worker:
                began = trio.current_time()
                await run._compile(worker, binding)
                compile_s += trio.current_time() - began
                per_item = await run._calibrate(windowed_worker(worker, binding), binding)
            units += per_item * binding.layout.items_per_block * one.launch.blocks
        return max(1, math.ceil(units)), compile_s

    def _rounds_per_chunk(self, bound: BoundRounds, units: int) -> int:
        if self.options.rounds_per_chunk is not None:
            return min(self.options.rounds_per_chunk, bound.rounds)
        # Long enough that the states which come here take less than half of the time.
        moved_us = _STATES_A_CHUNK * sum(map(len, bound.arrays)) / _MOVED_BYTES_PER_US
        target_us = min(_CHUNK_MOST_US, max(_CHUNK_US, 2 * moved_us))
        return max(1, min(int(target_us / units), _MOST_ROUNDS_A_CHUNK, bound.rounds))
