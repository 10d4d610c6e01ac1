"""Private samples: re-run a few threads of a chunk ourselves and compare bits.

Which threads is decided after the receipt came, from the operating system's randomness, so a provider can't know
them. A provider that alters a share *p* of a chunk's rows escapes *n* samples with probability (1 - p)^n: 256
samples miss 2 % with 0.6 %. Samples are drawn from the threads that own a row of an output; the rows of all others,
which the kernel can't write, have to be zero. Where the threads of a block work together, a sample is a whole block;
there are fewer of them (`block_samples`), for what each costs. All threads of a chunk are taken to cost the same, so
the share of them that is run again is what checking costs: an eighth at most, unless more is asked for
(`chunk_samples`). Of chunks of less than eight some are not sampled at all (`SampleRuns`).

In fast mode bits are not equal between machines. What we compute is the strict result, which has one value, and what
was delivered has to be as near to it as the agreement says (`_tolerance`). Where it is not, our own fast mode is asked
too: an element that it puts as far off hangs on rounding, and speaks against nobody.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import trio

from p2pcompute.errors import ExecutionError

from ._tolerance import outside_rows, rows_of

if TYPE_CHECKING:
    from p2pcompute.execution._api import OutputSpec
    from p2pcompute_protocols.negotiation import Tolerance

__all__ = [
    "DEFAULT_SAMPLES",
    "DeliveredChunk",
    "Rehearsal",
    "SampleReport",
    "SampleRuns",
    "Sampler",
    "block_samples",
    "chunk_samples",
    "draw_threads",
    "sampled_every",
]

DEFAULT_SAMPLES: Final = 256
Threads = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Rows = np.ndarray[Any, Any]
_LEAST_BLOCKS: Final = 8
_MOST_SHARE: Final = 8  # one of so many threads is run again where nothing else is asked for
_RUN: Final = 8  # threads in a row: a part of the samples lies together, for faults that come in blocks
_TIMEOUT_S: Final = 120.0


class _Rerun(Protocol):
    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What a check of one chunk found. `thread` is the first mismatch's linear thread ID, or None. `loose` counts
    samples in fast mode that are off by more than was agreed at our own machine too: they are not held against anybody.
    """

    checked: int
    mismatched: int
    thread: int | None = None
    loose: int = 0

    @property
    def ok(self) -> bool:
        """Whether every sample was equal, bit for bit, or in fast mode as near as was agreed."""
        return self.mismatched == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveredChunk:
    """A chunk as a provider gave it.

    Attributes:
        first_thread: linear ID of its first thread; `threads` is how many it has.
        output: the rows of each output, one output after the other.
        inside: its threads that own a row (`Layout.items_inside`), ascending; samples are drawn from them, and the rows
            of all others have to be zero. None where all threads do.
    """

    first_thread: int
    threads: int
    output: bytes | memoryview
    inside: Threads | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What fast mode gives at home: of `checked` threads, in how many it is off by more than the tolerance (`loose`),
    and in how many, that are not zero, zeros would pass for the result (`silent`)."""

    checked: int
    loose: int
    silent: int


def block_samples(samples: int, threads: int) -> int:
    """How many blocks of `threads` are run again where `samples` threads would be: an eighth as many and 8 at least,
    and as many as hold so many threads."""
    return max(min(samples, max(_LEAST_BLOCKS, samples // 8)), -(-samples // threads))


def chunk_samples(samples: int, items: int, threads: int = 1) -> int:
    """How many of a chunk's `items` are run again: as many as are asked for, and an eighth of them at most, but one at
    least, where that is left at `DEFAULT_SAMPLES`.

    Args:
        samples: threads, as they were asked for.
        items: of the chunk.
        threads: of an item; blocks are drawn where there is more than one (`block_samples`).
    """
    wanted = samples if threads == 1 else block_samples(samples, threads)
    if samples == DEFAULT_SAMPLES:
        wanted = min(wanted, items // _MOST_SHARE)
    return max(1, wanted)


def sampled_every(samples: int, items: int) -> int:
    """Of how many chunks of `items` each one has to be sampled, for that to cost an eighth of the work: of one, unless
    they are short and `samples` is left at `DEFAULT_SAMPLES`."""
    return 1 if samples != DEFAULT_SAMPLES else max(1, -(-_MOST_SHARE // max(1, items)))


class SampleRuns:
    """Which of one provider's chunks are sampled, where one of several is enough. They come in runs, and of each run
    one is drawn in private before the first has come. A run is never longer than half of what may be unpaid, so that
    no window is paid of which nothing was looked at.

    Args:
        every: of so many chunks one is sampled, where the window is wide enough.
        draw: a private number from 0 to below its argument.
    """

    def __init__(self, every: int, draw: Callable[[int], int] = secrets.randbelow) -> None:
        self._every = every
        self._draw = draw
        self._length = 0  # of the run
        self._left = 0  # of it
        self._picked = 0

    def next_is_sampled(self, window: int) -> bool:
        """Whether to sample the next chunk; `window` is how many may be unpaid now."""
        most = max(1, window // 2)
        if self._length > most:  # the window has become shorter: a run that was not looked at is not lost in that
            missed = self._left > self._picked
            self._length = self._left = 0
            if missed:
                return True
        if not self._left:
            self._length = self._left = min(self._every, most)
            self._picked = self._draw(self._left)
        self._left -= 1
        return self._left == self._picked


def draw_threads(first: int, count: int, samples: int, rng: np.random.Generator) -> Threads:
    """Draw `samples` distinct threads of [first, first + count), a quarter of them in runs, sorted."""
    if samples >= count:
        return np.arange(first, first + count, dtype=np.int64)
    runs = max(1, samples // 4 // _RUN)
    starts = rng.integers(0, max(1, count - _RUN + 1), size=runs)
    together = (starts[:, None] + np.arange(_RUN)[None, :]).ravel()
    single = rng.choice(count, size=samples, replace=False, shuffle=False)
    picked = np.concatenate([together[together < count], single])
    picked.sort()
    once = np.empty(len(picked), dtype=bool)
    once[0] = True
    np.not_equal(picked[1:], picked[:-1], out=once[1:])
    picked = picked[once]
    if len(picked) > samples:
        picked = rng.choice(picked, size=samples, replace=False, shuffle=False)
        picked.sort()
    return (picked + first).astype(np.int64)


def _stray_rows(chunk: DeliveredChunk, delivered: Sequence[Rows]) -> Threads:
    """The threads that own no row and were given one that is not zero."""
    if chunk.inside is None:
        return np.zeros(0, dtype=np.int64)
    outside = np.ones(chunk.threads, dtype=bool)
    outside[chunk.inside - chunk.first_thread] = False
    at = np.flatnonzero(outside)
    bad = np.zeros(len(at), dtype=bool)
    if len(at):
        for rows in delivered:
            bad |= rows.view(np.uint8)[at].any(axis=1)
    return at[bad] + chunk.first_thread


class Sampler:
    """Checks chunks by re-running private samples in our own worker.

    Args:
        worker: a compiled worker session; its calls queue up, so several chunks may be checked at once.
        outputs: the outputs of the work, and `row_shapes` what one thread writes of each.
        per_chunk: samples a chunk.
        per_probe: samples of a probe at least.
        tolerance: of the agreement, in fast mode; None where bits have to be equal.
        fast: a worker that has compiled the same in fast mode; None where there is none to ask.

    Where the threads of a block work together, blocks take the place of threads.
    """

    def __init__(
        self,
        worker: _Rerun,
        outputs: Sequence[OutputSpec],
        row_shapes: Sequence[tuple[int, ...]],
        *,
        per_chunk: int = DEFAULT_SAMPLES,
        per_probe: int = DEFAULT_SAMPLES,
        rng: np.random.Generator | None = None,
        tolerance: Tolerance | None = None,
        fast: _Rerun | None = None,
    ) -> None:
        self._worker = worker
        self._fast = fast
        self._tolerance = tolerance
        self._outputs = tuple(outputs)
        self._row_shapes = tuple(row_shapes)
        self._per_chunk = per_chunk
        self._per_probe = per_probe
        self._rng = np.random.default_rng() if rng is None else rng  # seeded by the operating system
        self.checked = 0
        self.mismatched = 0

    async def check(
        self, first_thread: int, threads: int, output: bytes | memoryview, *, inside: Threads | None = None
    ) -> SampleReport:
        """Compare samples of one chunk with what we compute. Arguments as `DeliveredChunk` has them; raises as
        `check_many`."""
        chunk = DeliveredChunk(first_thread=first_thread, threads=threads, output=output, inside=inside)
        return (await self.check_many([chunk]))[0]

    async def check_many(self, chunks: Sequence[DeliveredChunk]) -> list[SampleReport]:
        """Compare samples of chunks with what we compute, in one run of our worker: as many are drawn of each as if it
        had come alone. A report for each chunk, in their order.

        Raises:
            ExecutionError: our own worker failed; this says nothing about the provider.
        """
        delivered = [rows_of(chunk.output, self._outputs, self._row_shapes, chunk.threads) for chunk in chunks]
        picked = [await self._pick(chunk, rows) for chunk, rows in zip(chunks, delivered, strict=True)]
        parts = [
            [part[threads - chunk.first_thread] for part in rows]
            for chunk, rows, threads in zip(chunks, delivered, picked, strict=True)
        ]
        theirs = [np.concatenate(part) for part in zip(*parts, strict=True)]
        wrong, loose = await self._compare(np.concatenate(picked), theirs)
        reports: list[SampleReport] = []
        end = 0
        for chunk, rows, threads in zip(chunks, delivered, picked, strict=True):
            mine = slice(end, end + len(threads))
            end = mine.stop
            bad = np.concatenate([threads[wrong[mine]], _stray_rows(chunk, rows)])
            self.checked += len(threads)
            self.mismatched += len(bad)
            reports.append(
                SampleReport(
                    checked=len(threads),
                    mismatched=len(bad),
                    thread=int(bad.min()) if len(bad) else None,
                    loose=int(loose[mine].sum()),
                )
            )
        return reports

    async def _pick(self, chunk: DeliveredChunk, delivered: Sequence[Rows]) -> Threads:  # noqa: ARG002
        """The threads of a chunk that are run again; `delivered` are all of its rows, by output."""
        await trio.lowlevel.checkpoint()
        if chunk.inside is None:
            return draw_threads(chunk.first_thread, chunk.threads, self._per_chunk, self._rng)
        return chunk.inside[draw_threads(0, len(chunk.inside), self._per_chunk, self._rng)]

    async def _compare(self, picked: Threads, theirs: Sequence[Rows]) -> tuple[Mask, Mask]:
        """Which of the rows of these threads are wrong, and of which others that can't be said."""
        none = np.zeros(len(picked), dtype=bool)
        if not len(picked):
            return none, none
        strict = await self._rows(self._worker, picked)
        wrong = none.copy()
        for rows, ours in zip(theirs, strict, strict=True):
            wrong |= outside_rows(rows, ours, None, self._tolerance)[0]
        if self._fast is None or self._tolerance is None or not wrong.any():
            return wrong, none
        # A second look, at those alone: it costs nothing where nobody lies and nothing hangs on rounding.
        again = np.flatnonzero(wrong)
        own = await self._rows(self._fast, picked[again])
        wrong, loose = none.copy(), none.copy()
        for rows, ours, mine in zip(theirs, strict, own, strict=True):
            off, open_ = outside_rows(rows[again], ours[again], mine, self._tolerance)
            wrong[again] |= off
            loose[again] |= open_
        return wrong, loose & ~wrong

    async def _rows(self, worker: _Rerun, picked: Threads) -> list[Rows]:
        run = await worker.run_threads(picked, timeout_s=_TIMEOUT_S)
        return [
            rows_of(data, [spec], [shape], len(picked))[0]
            for data, spec, shape in zip(run.outputs, self._outputs, self._row_shapes, strict=True)
        ]

    async def rehearse(self, first_thread: int, threads: int, *, inside: Threads | None = None) -> Rehearsal:
        """Fast mode against strict mode on our own machine, before anybody is paid for it. Arguments as for `check`.

        Raises:
            ExecutionError: as `check`.
        """
        if inside is None or not len(inside):
            inside = np.arange(first_thread, first_thread + threads, dtype=np.int64)
        picked = inside[draw_threads(0, len(inside), max(self._per_chunk, self._per_probe), self._rng)]
        if self._fast is None or self._tolerance is None:
            raise ValueError("a rehearsal takes a tolerance and a worker in fast mode")
        loose, silent = np.zeros(len(picked), dtype=bool), np.zeros(len(picked), dtype=bool)
        own, strict = await self._rows(self._fast, picked), await self._rows(self._worker, picked)
        for mine, ours in zip(own, strict, strict=True):
            loose |= outside_rows(mine, ours, None, self._tolerance)[0]
            silent |= ours.any(axis=1)
        for ours in strict:
            silent &= ~outside_rows(np.zeros_like(ours), ours, None, self._tolerance)[0]
        return Rehearsal(checked=len(picked), loose=int(loose.sum()), silent=int(silent.sum()))

    async def probe(self, first_thread: int, threads: int, *, inside: Threads | None = None) -> bool:
        """Whether samples of this range compute here at all: nobody's output is looked at.

        As many are drawn as for a check, and `per_probe` at least. Arguments as for `check`; where no thread
        owns a row, any of them are drawn.
        """
        samples = max(self._per_chunk, self._per_probe)
        if inside is None or not len(inside):
            picked = draw_threads(first_thread, threads, samples, self._rng)
        else:
            picked = inside[draw_threads(0, len(inside), samples, self._rng)]
        try:
            await self._worker.run_threads(picked, timeout_s=_TIMEOUT_S)
        except ExecutionError:
            return False
        return True
