"""What is particular to tasks in fast mode, on the requester's side: tolerance, rehearsal, whole chunks compared."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from p2pcompute._options import OptionError, number, one_of, said
from p2pcompute._split_run import has_splits
from p2pcompute.checking import (
    DEFAULT_TOLERANCE,
    FreivaldsScreen,
    ProductSampler,
    Sampler,
    alike,
    outside_rows,
    rows_of,
)
from p2pcompute.errors import ConfigError, UnstableKernel
from p2pcompute_protocols.negotiation import MAX_RTOL, MIN_RTOL, CheckPolicy, Tolerance

if TYPE_CHECKING:
    from p2pcompute.execution import WorkerSession
    from p2pcompute.execution._api import OutputSpec
    from p2pcompute.kernel import Binding
    from p2pcompute_protocols.work import Work

__all__ = ["MAX_LOOSE", "ChunkJudge", "check_policy", "check_tolerance", "make_sampler", "rehearse", "tolerance_of"]

MAX_LOOSE: Final = 0.05  # of the samples at home, before fast mode is given up
_MOST_SILENT: Final = 0.5
_REHEARSED: Final = 4  # chunks, where inputs are split
_PROBED_ROWS: Final = 16  # of a product: each costs as much as a matrix has elements
_RECOMPUTE_S: Final = 300.0


def check_tolerance(options: object) -> None:
    """Check the fields `fp`, `rtol` and `atol` together. What fits which dtype is `tolerance_of`'s.

    Raises:
        OptionError: these can't be options of one task.
    """
    one_of(options, "fp", "strict", "fast")
    least, single = MIN_RTOL["float64"], MIN_RTOL["float32"]
    rtols = f"a number from {least:.3g} to {MAX_RTOL:g}, or None; float32 outputs take {single:.3g} at least"
    for name, low, high, write in (
        ("rtol", least, MAX_RTOL, rtols),
        ("atol", 0.0, math.nextafter(math.inf, 0), "a number from 0 on, or None"),
    ):
        value = getattr(options, name)
        if value is None:
            continue
        if getattr(options, "fp") == "strict":  # noqa: B009  of any dataclass that has it
            raise OptionError(
                f'{name} is {said(value)}; strict results are equal to the bit: leave it out, or ask for fp="fast"'
            )
        number(options, name, low, high, write=write)


def tolerance_of(fp: str, rtol: float | None, atol: float | None, outputs: Sequence[OutputSpec]) -> Tolerance | None:
    """The tolerance of a task with these outputs; None in strict mode.

    Raises:
        ConfigError: `rtol` is below what one of the outputs' dtypes can keep.
    """
    if fp == "strict":
        return None
    found: dict[str, float] = {}
    for dtype, bits in (("float32", "32"), ("float64", "64")):
        usual = DEFAULT_TOLERANCE.for_dtype(dtype)
        assert usual is not None
        least = MIN_RTOL[dtype]
        if rtol is not None and rtol < least and any(spec.dtype == dtype for spec in outputs):
            raise ConfigError(
                f"rtol is {rtol!r}, which {dtype} can't keep where sums are taken in any order; write at least "
                f'{least:.3g}, or ask for fp="strict"'
            )
        found[f"rtol{bits}"] = max(least, usual[0] if rtol is None else rtol)
        found[f"atol{bits}"] = usual[1] if atol is None else atol
    return Tolerance.of(**found)


def check_policy(kind: str, samples: int, tolerance: Tolerance | None) -> CheckPolicy:
    """What the agreement says of checking."""
    return CheckPolicy(kind=kind, per_chunk=0 if kind == "none" else samples, tolerance=tolerance)


def make_sampler(
    binding: Binding,
    worker: WorkerSession,
    row_shapes: Sequence[tuple[int, ...]],
    *,
    per_chunk: int,
    per_probe: int,
    tolerance: Tolerance | None,
    fast: WorkerSession | None,
) -> Sampler:
    """What checks the chunks of a task; of a product of matrices in fast mode, one with a screen."""
    from p2pcompute.execution._fast_matmul import is_product

    if tolerance is None or fast is None or not is_product(binding.source, binding.specs):
        kind, probe = Sampler, per_probe
    else:
        kind, probe = ProductSampler, _PROBED_ROWS
    made = kind(
        worker,
        binding.layout.outputs,
        row_shapes,
        per_chunk=per_chunk,
        per_probe=probe,
        tolerance=tolerance,
        fast=fast,
    )
    if isinstance(made, ProductSampler):
        assert tolerance is not None
        made.screen = FreivaldsScreen(*binding.values, tolerance=tolerance)
    return made


async def rehearse(sampler: Sampler, binding: Binding, work: Work) -> None:
    """Run samples of the whole launch in both modes here, before anybody is asked. Where inputs are split, of a few
    chunks: a worker gets the windows of one chunk at a time.

    Raises:
        UnstableKernel: results hang on rounding by more than the tolerance, or the tolerance is so wide that zeros
            would pass for them. No money has moved.
    """
    parts = [(0, binding.launch.blocks)]
    if has_splits(binding):
        chosen = np.random.default_rng().choice(work.chunks, size=min(_REHEARSED, work.chunks), replace=False)
        parts = [work.chunk_range(int(index)) for index in chosen]
    checked = loose = silent = 0
    for first, blocks in parts:
        items = blocks * binding.layout.items_per_block
        inside = binding.layout.items_sampled(first, blocks) if items <= 1 << 22 else None
        found = await sampler.rehearse(first * binding.layout.items_per_block, items, inside=inside)
        checked, loose, silent = checked + found.checked, loose + found.loose, silent + found.silent
    if loose > MAX_LOOSE * checked:
        raise UnstableKernel(
            f"in fast mode {loose} of {checked} samples are off by more than the tolerance on this machine "
            "alone: what they give hangs on rounding",
            instead='ask for fp="strict", or give a larger rtol or atol. No money has moved',
        )
    if silent > _MOST_SILENT * checked:
        raise UnstableKernel(
            f"zeros would pass for {silent} of {checked} samples: atol is larger than the results",
            instead="give an atol well below the results that matter. No money has moved",
        )


class ChunkJudge:
    """Holds whole chunks against what we compute, within the tolerance; see `tasks.Judge`.

    Args:
        worker: has compiled the work strictly, or has loaded its program.
        fast: has compiled it in fast mode; None for a program.

    `apart` awaits a call of a worker where it can't be cancelled half-way.
    """

    def __init__(
        self, work: Work, binding: Binding, tolerance: Tolerance, worker: WorkerSession, fast: WorkerSession | None
    ) -> None:
        self._work = work
        self._layout = binding.layout
        self._tolerance = tolerance
        self._worker = worker
        self._fast = fast
        self.apart: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]] = _here

    def _rows(self, index: int, output: bytes | memoryview) -> list[np.ndarray[Any, Any]]:
        items = self._work.chunk_range(index)[1] * self._layout.items_per_block
        return rows_of(output, self._layout.outputs, self._layout.row_shapes, items)

    def alike(self, index: int, one: memoryview, other: memoryview) -> bool:
        """Whether two outputs of a chunk may both be right."""
        pairs = zip(self._rows(index, one), self._rows(index, other), strict=True)
        return all(alike(mine, theirs, self._tolerance) for mine, theirs in pairs)

    async def right(self, index: int, outputs: Sequence[memoryview]) -> list[bool]:
        """Which of these outputs of a chunk are right: near to ours, but for what hangs on rounding."""
        strict = await self._compute(self._worker, index)
        own: list[np.ndarray[Any, Any]] | None = None
        found: list[bool] = []
        for output in outputs:
            theirs = self._rows(index, output)
            is_right = self._all_near(theirs, strict, None)
            if not is_right and self._fast is not None:
                own = own or await self._compute(self._fast, index)
                is_right = self._all_near(theirs, strict, own)
            found.append(is_right)
        return found

    def _all_near(self, theirs: Any, strict: Any, own: Any) -> bool:
        return not any(
            outside_rows(rows, due, None if own is None else own[place], self._tolerance)[0].any()
            for place, (rows, due) in enumerate(zip(theirs, strict, strict=True))
        )

    async def _compute(self, worker: WorkerSession, index: int) -> list[np.ndarray[Any, Any]]:
        call = partial(worker.run_blocks, *self._work.chunk_range(index), timeout_s=_RECOMPUTE_S)
        run = await self.apart(call)
        return self._rows(index, b"".join(run.outputs))


async def _here(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()
