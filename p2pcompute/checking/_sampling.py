"""Private samples: re-run a few threads of a chunk ourselves and compare bits.

Which threads is decided after the receipt came, from the operating system's randomness, so a provider can't know
them. A provider that alters a share *p* of a chunk's rows escapes *n* samples with probability (1 - p)^n: 256
samples miss 2 % with 0.6 %. Samples are drawn from the threads that own a row of an output; the rows of all others,
which the kernel can't write, have to be zero. Where the threads of a block work together, a sample is a whole block;
there are fewer of them (`block_samples`), for what each costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from p2pcompute.errors import ExecutionError

if TYPE_CHECKING:
    from p2pcompute.execution._api import OutputSpec

__all__ = ["DEFAULT_SAMPLES", "SampleReport", "Sampler", "block_samples", "draw_threads"]

DEFAULT_SAMPLES: Final = 256
Threads = np.ndarray[Any, np.dtype[np.int64]]
_LEAST_BLOCKS: Final = 8
_RUN: Final = 8  # threads in a row: a part of the samples lies together, for faults that come in blocks
_TIMEOUT_S: Final = 120.0


class _Rerun(Protocol):
    async def run_threads(self, threads: Any, *, timeout_s: float) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What a check of one chunk found. `thread` is the first mismatch's linear thread ID, or None."""

    checked: int
    mismatched: int
    thread: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every sample was equal, bit for bit."""
        return self.mismatched == 0


def block_samples(samples: int, threads: int) -> int:
    """How many blocks of `threads` are run again where `samples` threads would be: an eighth as many and 8 at least,
    and as many as hold so many threads."""
    return max(min(samples, max(_LEAST_BLOCKS, samples // 8)), -(-samples // threads))


def draw_threads(first: int, count: int, samples: int, rng: np.random.Generator) -> Threads:
    """Draw `samples` distinct threads of [first, first + count), a quarter of them in runs, sorted."""
    if samples >= count:
        return np.arange(first, first + count, dtype=np.int64)
    runs = max(1, samples // 4 // _RUN)
    starts = rng.integers(0, max(1, count - _RUN + 1), size=runs)
    together = (starts[:, None] + np.arange(_RUN)[None, :]).ravel()
    single = rng.choice(count, size=samples, replace=False)
    picked = np.unique(np.concatenate([together[together < count], single]))
    if len(picked) > samples:
        picked = np.sort(rng.choice(picked, size=samples, replace=False))
    return (picked + first).astype(np.int64)


class Sampler:
    """Checks chunks by re-running private samples in our own worker.

    Args:
        worker: a compiled worker session; its calls queue up, so several chunks may be checked at once.
        outputs: the outputs of the work, and `row_shapes` what one thread writes of each.
        per_chunk: samples a chunk.
        per_probe: samples of a probe at least.

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
    ) -> None:
        self._worker = worker
        self._row_bytes = [
            int(np.prod(shape, dtype=np.int64)) * np.dtype(out.dtype).itemsize
            for out, shape in zip(outputs, row_shapes, strict=True)
        ]
        self._per_chunk = per_chunk
        self._per_probe = per_probe
        self._rng = np.random.default_rng() if rng is None else rng  # seeded by the operating system
        self.checked = 0
        self.mismatched = 0

    async def check(
        self, first_thread: int, threads: int, output: bytes | memoryview, *, inside: Threads | None = None
    ) -> SampleReport:
        """Compare samples of a chunk's `output` with what we compute.

        Args:
            first_thread: linear ID of the chunk's first thread; `threads` is how many it has.
            output: the rows of each output, one output after the other.
            inside: the chunk's threads that own a row (`Layout.threads_inside`), ascending; samples are drawn from
                them, and the rows of all others have to be zero. None where all threads do.

        Raises:
            ExecutionError: our own worker failed; this says nothing about the provider.
        """
        if inside is None:
            inside = np.arange(first_thread, first_thread + threads, dtype=np.int64)
        padding = np.ones(threads, dtype=bool)
        padding[inside - first_thread] = False
        picked = inside[draw_threads(0, len(inside), self._per_chunk, self._rng)]
        bad = np.zeros(threads, dtype=bool)
        mine = (await self._worker.run_threads(picked, timeout_s=_TIMEOUT_S)).outputs if len(picked) else ()
        at = 0
        for place, size in enumerate(self._row_bytes):
            theirs = np.frombuffer(output, dtype=np.uint8, count=threads * size, offset=at).reshape(threads, size)
            if len(picked):
                ours = np.frombuffer(mine[place], dtype=np.uint8).reshape(len(picked), size)
                bad[picked - first_thread] |= (theirs[picked - first_thread] != ours).any(axis=1)
            if len(inside) < threads:
                bad[padding] |= theirs[padding].any(axis=1)
            at += threads * size
        mismatched = int(bad.sum())
        self.checked += len(picked)
        self.mismatched += mismatched
        where = first_thread + int(np.argmax(bad)) if mismatched else None
        return SampleReport(checked=len(picked), mismatched=mismatched, thread=where)

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
