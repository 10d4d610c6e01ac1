"""Private samples: what is drawn, what is compared, and how likely a lie escapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import trio
from hypothesis import given, settings

from p2pcompute.checking import (
    DEFAULT_SAMPLES,
    DeliveredChunk,
    Sampler,
    SampleRuns,
    chunk_samples,
    draw_threads,
    sampled_every,
)
from p2pcompute.errors import WorkerDied
from p2pcompute.execution._api import OutputSpec


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# Drawing


@given(
    first=st.integers(0, 2**40),
    count=st.integers(1, 5_000),
    samples=st.integers(1, 600),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_drawn_threads_are_distinct_sorted_and_of_the_chunk(first: int, count: int, samples: int, seed: int) -> None:
    picked = draw_threads(first, count, samples, rng(seed))
    assert picked.dtype == np.int64
    assert len(picked) == min(samples, count)
    assert np.all(np.diff(picked) > 0)
    assert first <= picked[0]
    assert picked[-1] < first + count


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, DEFAULT_SAMPLES])
def test_a_chunk_no_larger_than_the_sample_is_checked_whole(count: int) -> None:
    assert draw_threads(100, count, DEFAULT_SAMPLES, rng(1)).tolist() == list(range(100, 100 + count))


@pytest.mark.parametrize("count", [257, 300, 1_000, 100_000])
def test_as_many_are_drawn_as_were_asked_for(count: int) -> None:
    for seed in range(50):
        assert len(draw_threads(0, count, DEFAULT_SAMPLES, rng(seed))) == DEFAULT_SAMPLES


def test_every_thread_is_as_likely_as_another_but_for_the_runs() -> None:
    """Over many draws each thread comes about equally often; the first and last few are in fewer runs."""
    count, draws = 512, 4_000
    hits = np.zeros(count)
    for seed in range(draws):
        hits[draw_threads(0, count, 64, rng(seed))] += 1
    share = hits / draws
    assert share.min() > 0.7 * 64 / count
    inner = share[8:-8]
    assert abs(inner.mean() - 64 / count) < 0.01
    # 6 standard deviations of a binomial count.
    assert np.abs(inner - inner.mean()).max() < 6 * np.sqrt(inner.mean() / draws)


def test_a_part_lies_together() -> None:
    """Faults that come in blocks are met by runs of neighbours, more of them than chance gives."""
    neighbours = [np.sum(np.diff(draw_threads(0, 1_000_000, 256, rng(seed))) == 1) for seed in range(50)]
    assert np.mean(neighbours) > 20
    by_chance = [np.sum(np.diff(np.sort(rng(s).choice(1_000_000, 256, replace=False))) == 1) for s in range(50)]
    assert np.mean(by_chance) < 1


@pytest.mark.parametrize(("altered", "escapes"), [(0.02, 0.98**256), (0.01, 0.99**256), (0.005, 0.995**256)])
def test_a_liar_escapes_as_often_as_is_said(altered: float, escapes: float) -> None:
    count, trials = 50_000, 1_500
    bad = np.zeros(count, bool)
    bad[rng(7).choice(count, int(altered * count), replace=False)] = True
    missed = sum(not bad[draw_threads(0, count, DEFAULT_SAMPLES, rng(1_000 + seed))].any() for seed in range(trials))
    spread = np.sqrt(escapes * (1 - escapes) / trials)
    assert missed / trials <= escapes + 4 * spread
    assert missed / trials >= escapes - 4 * spread - 1 / trials


# Comparing


@dataclasses.dataclass
class Run:
    outputs: tuple[bytes, ...]


class Truth:
    """A worker that knows every row; `rows` are arrays of shape (threads, *row), from thread 0."""

    def __init__(self, *rows: np.ndarray[Any, Any]) -> None:
        self.rows = rows
        self.asked: list[np.ndarray[Any, Any]] = []

    async def run_threads(self, threads: Any, *, timeout_s: float) -> Run:
        await trio.lowlevel.checkpoint()
        self.asked.append(threads)
        return Run(tuple(rows[threads].tobytes() for rows in self.rows))


def sampler(truth: Truth, shapes: Sequence[tuple[int, ...]], *, per_chunk: int, seed: int = 3) -> Sampler:
    specs = [OutputSpec(dtype=str(rows.dtype), shape=(len(rows),)) for rows in truth.rows]
    return Sampler(truth, specs, shapes, per_chunk=per_chunk, rng=rng(seed))


def check(it: Sampler, first: int, threads: int, output: bytes, inside: Any = None) -> Any:
    async def main() -> Any:
        return await it.check(first, threads, output, inside=inside)

    return trio.run(main)


def rows_of(first: int, count: int, truth: Truth) -> bytes:
    return b"".join(rows[first : first + count].tobytes() for rows in truth.rows)


TWO = (rng(5).random((600, 3)).astype(np.float32), rng(6).integers(0, 2**31, 600).astype(np.int32))


def test_an_honest_chunk_passes() -> None:
    truth = Truth(*TWO)
    it = sampler(truth, [(3,), ()], per_chunk=64)
    report = check(it, 200, 300, rows_of(200, 300, truth))
    assert report.ok
    assert (report.checked, report.mismatched, report.thread) == (64, 0, None)
    assert (it.checked, it.mismatched) == (64, 0)
    assert np.all((truth.asked[0] >= 200) & (truth.asked[0] < 500))


def test_each_altered_row_is_found_where_it_is_sampled_and_only_there() -> None:
    truth = Truth(*TWO)
    first, count = 100, 250
    honest = rows_of(first, count, truth)
    picked = draw_threads(first, count, 32, rng(3))
    for thread in range(first, first + count):
        for at in (
            (thread - first) * 12,  # the first byte of its row of the first output
            (thread - first) * 12 + 11,  # and the last
            count * 12 + (thread - first) * 4 + 2,  # a byte of its row of the second
        ):
            altered = bytearray(honest)
            altered[at] ^= 0x10
            report = check(sampler(truth, [(3,), ()], per_chunk=32), first, count, bytes(altered))
            if thread in picked:
                assert (report.mismatched, report.thread) == (1, thread)
            else:
                assert report.ok


@pytest.mark.parametrize("threads", [1, 2, 31, 32, 33])
def test_a_small_chunk_is_compared_whole(threads: int) -> None:
    truth = Truth(*TWO)
    honest = rows_of(0, threads, truth)
    for at in range(0, len(honest), 3):
        altered = bytearray(honest)
        altered[at] ^= 1
        assert not check(sampler(truth, [(3,), ()], per_chunk=33), 0, threads, bytes(altered)).ok


def test_bits_are_compared_and_not_numbers() -> None:
    """-0.0 equals 0.0 and a NaN is unlike itself: neither matters here."""
    truth = Truth(np.array([0.0, np.nan, 1.0, 2.0], np.float32))
    it = sampler(truth, [()], per_chunk=4)
    assert check(it, 0, 4, rows_of(0, 4, truth)).ok
    minus = np.array([-0.0, np.nan, 1.0, 2.0], np.float32).tobytes()
    report = check(it, 0, 4, minus)
    assert (report.mismatched, report.thread) == (1, 0)
    other_nan = bytearray(rows_of(0, 4, truth))
    other_nan[4] ^= 1
    assert check(it, 0, 4, bytes(other_nan)).thread == 1


def test_the_first_mismatch_is_named_and_all_are_counted() -> None:
    truth = Truth(np.arange(100, dtype=np.int64))
    report = check(sampler(truth, [()], per_chunk=100), 0, 100, np.arange(1, 101, dtype=np.int64).tobytes())
    assert (report.checked, report.mismatched, report.thread) == (100, 100, 0)


def test_samples_of_one_sampler_differ_from_chunk_to_chunk() -> None:
    truth = Truth(np.arange(10_000, dtype=np.int32))
    it = sampler(truth, [()], per_chunk=16)
    for _ in range(2):
        check(it, 0, 10_000, rows_of(0, 10_000, truth))
    assert truth.asked[0].tolist() != truth.asked[1].tolist()


def test_without_a_seed_nobody_can_know_the_sample() -> None:
    truth = Truth(np.arange(10_000, dtype=np.int32))
    for _ in range(2):
        it = Sampler(truth, [OutputSpec(dtype="int32", shape=(10_000,))], [()], per_chunk=16)
        check(it, 0, 10_000, rows_of(0, 10_000, truth))
    assert truth.asked[0].tolist() != truth.asked[1].tolist()


def test_chunks_that_came_together_are_one_run_and_a_lie_is_found_in_its_own() -> None:
    truth = Truth(*TWO)
    places = [(0, 100), (100, 100), (500, 37)]
    honest = [rows_of(first, count, truth) for first, count in places]
    lied = bytearray(honest[1])
    lied[100 * 12 + 40 * 4] ^= 1  # of the second output, thread 140

    async def reports(it: Sampler, outputs: Sequence[bytes]) -> list[Any]:
        return await it.check_many(
            [
                DeliveredChunk(first_thread=first, threads=count, output=output)
                for (first, count), output in zip(places, outputs, strict=True)
            ]
        )

    it = sampler(truth, [(3,), ()], per_chunk=100)
    found = trio.run(reports, it, honest)
    assert [(report.checked, report.mismatched) for report in found] == [(100, 0), (100, 0), (37, 0)]
    assert [len(asked) for asked in truth.asked] == [237]
    found = trio.run(reports, it, [honest[0], bytes(lied), honest[2]])
    assert [report.ok for report in found] == [True, False, True]
    assert (found[1].mismatched, found[1].thread) == (1, 140)
    assert (it.checked, it.mismatched) == (474, 1)
    # As many of each as if it had come alone, and others each time.
    few = sampler(truth, [(3,), ()], per_chunk=16)
    trio.run(reports, few, honest)
    for first, count in places:
        assert np.sum((truth.asked[-1] >= first) & (truth.asked[-1] < first + count)) == 16


def test_rows_that_nobody_owns_are_looked_at_in_each_of_several_chunks() -> None:
    truth = Truth(PADDED)
    stray = PADDED.copy()
    stray[1_605, 1] = 5  # owned by nobody

    async def main() -> list[Any]:
        return await sampler(truth, [(3,)], per_chunk=8).check_many(
            [
                DeliveredChunk(
                    first_thread=first,
                    threads=1_600,
                    output=stray[first : first + 1_600].tobytes(),
                    inside=INSIDE[(first <= INSIDE) & (first + 1_600 > INSIDE)],
                )
                for first in (0, 1_600)
            ]
        )

    assert [(report.mismatched, report.thread) for report in trio.run(main)] == [(0, None), (1, 1_605)]


# Threads of blocks that stand out over an output's edge own no row.

PADDED = np.zeros((4_000, 3), np.float32)
INSIDE = np.arange(0, 4_000, 16, dtype=np.int64)
PADDED[INSIDE] = rng(8).random((len(INSIDE), 3))


def test_no_sample_is_wasted_on_threads_that_own_no_row() -> None:
    """One thread in 16 owns a row, and every tenth of those rows is altered: 64 samples all but always meet one."""
    truth = Truth(PADDED)
    altered = PADDED.copy()
    altered[INSIDE[::10]] += 1

    def misses(inside: Any) -> int:
        found = (
            check(sampler(truth, [(3,)], per_chunk=64, seed=s), 0, 4_000, altered.tobytes(), inside) for s in range(50)
        )
        return sum(report.ok for report in found)

    assert misses(None) > 20  # samples of all threads: four fall on rows
    assert misses(INSIDE) == 0
    assert all(np.isin(asked, INSIDE).all() for asked in truth.asked[50:])


def test_what_lies_outside_of_the_output_has_to_be_zero() -> None:
    truth = Truth(PADDED)
    first, count = 160, 1_600
    owners = INSIDE
    inside = owners[(owners >= first) & (owners < first + count)]
    honest = rows_of(first, count, truth)
    it = sampler(truth, [(3,)], per_chunk=8)
    assert check(it, first, count, honest, inside).checked == 8
    for thread in (first + 1, first + 777, first + count - 1):
        altered = bytearray(honest)
        altered[(thread - first) * 12 + 5] = 1
        report = check(it, first, count, bytes(altered), inside)
        assert (report.mismatched, report.thread) == (1, thread)


def test_a_chunk_that_owns_no_row_is_zero_and_runs_nothing() -> None:
    truth = Truth(np.zeros(64, np.int32))
    nobody = np.array([], np.int64)
    it = sampler(truth, [()], per_chunk=8)
    assert check(it, 0, 64, bytes(256), nobody).ok
    assert check(it, 0, 64, bytes(255) + b"\1", nobody).thread == 63
    assert not truth.asked


# Whether a range computes here


def test_a_probe_runs_samples_and_needs_nobodys_output() -> None:
    truth = Truth(*TWO)
    it = sampler(truth, [(3,), ()], per_chunk=1)

    async def main() -> None:
        assert await it.probe(200, 300)
        assert await it.probe(0, 600, inside=np.arange(7, 20, dtype=np.int64))
        assert await it.probe(0, 40, inside=np.arange(0, dtype=np.int64))

    trio.run(main)
    first, inside, padding = truth.asked
    assert len(first) == DEFAULT_SAMPLES  # however few a check draws
    assert (first.min() >= 200, first.max() < 500) == (True, True)
    assert inside.tolist() == list(range(7, 20))
    assert padding.tolist() == list(range(40))
    assert (it.checked, it.mismatched) == (0, 0)


def test_a_probe_says_where_a_range_does_not_compute() -> None:
    class Dead(Truth):
        async def run_threads(self, threads: Any, *, timeout_s: float) -> Run:
            raise WorkerDied("it died")

    it = sampler(Dead(*TWO), [(3,), ()], per_chunk=16)
    assert not trio.run(it.probe, 0, 600)


@given(st.integers(1, 2**40), st.integers(1, 1024), st.integers(1, 2**20))
def test_no_more_than_an_eighth_is_run_again_unless_it_is_asked_for(items: int, threads: int, samples: int) -> None:
    most = max(1, items // 8)
    assert 1 <= chunk_samples(DEFAULT_SAMPLES, items, threads) <= most
    assert chunk_samples(DEFAULT_SAMPLES, items) == min(DEFAULT_SAMPLES, most)
    if samples != DEFAULT_SAMPLES:
        assert chunk_samples(samples, items) == samples
        assert sampled_every(samples, items) == 1
    every = sampled_every(DEFAULT_SAMPLES, items)
    assert every * items >= 8  # one item of so many chunks is an eighth at most
    assert every == 1 or (every - 1) * items < 8


@settings(max_examples=1000)
@given(st.integers(1, 8), st.lists(st.integers(1, 40), min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_no_window_is_without_a_sample_and_nobody_knows_which(every: int, windows: list[int], draw: Any) -> None:
    """Windows change while chunks come; what may be unpaid at any time holds a chunk that is looked at."""
    runs = SampleRuns(every, draw.randrange)
    looked = [runs.next_is_sampled(window) for window in windows]
    since = 0
    for place, sampled in enumerate(looked):
        since = 0 if sampled else since + 1
        widest = max(windows[max(0, place - since) : place + 1])
        assert since <= 2 * max(1, widest // 2) - 2  # the last of one run, and the first of the next
        assert since < max(1, widest)


def test_one_chunk_of_a_run_is_drawn_and_each_as_often() -> None:
    rng = np.random.default_rng(1)
    runs = SampleRuns(8, lambda count: int(rng.integers(count)))
    looked = np.array([[runs.next_is_sampled(32) for _ in range(8)] for _ in range(4_000)])
    assert (looked.sum(axis=1) == 1).all()
    assert (abs(looked.sum(axis=0) - 500) < 150).all()  # seven standard deviations


def test_a_stranger_has_each_chunk_looked_at() -> None:
    runs = SampleRuns(8)
    assert all(runs.next_is_sampled(window) for window in (1, 2, 3, 1, 1))
