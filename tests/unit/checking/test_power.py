"""Chances of a sample: against exact fractions, against each other, and against draws."""

from __future__ import annotations

from fractions import Fraction
from math import comb, prod

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from p2pcompute.checking import (
    DEFAULT_SAMPLES,
    chance_over_chunks,
    chance_to_catch,
    cost_share,
    draw_threads,
    faked_elements,
    samples_for,
)
from p2pcompute.errors import ConfigError

SETS = st.integers(1, 2_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


def exact(elements: int, faked: int, samples: int) -> Fraction:
    return 1 - Fraction(comb(elements - faked, samples), comb(elements, samples))


@given(SETS)
def test_a_chance_is_the_hypergeometric_one(numbers: tuple[int, int, int]) -> None:
    assert chance_to_catch(*numbers) == pytest.approx(float(exact(*numbers)), rel=1e-9, abs=1e-12)


@given(st.lists(SETS, min_size=1, max_size=6), st.integers(0, 300))
def test_chunks_are_independent(chunks: list[tuple[int, int, int]], samples: int) -> None:
    missed = prod((1 - exact(n, faked, min(samples, n)) for n, faked, _ in chunks), start=Fraction(1))
    found = chance_over_chunks([(n, faked) for n, faked, _ in chunks], samples)
    assert found == pytest.approx(float(1 - missed), rel=1e-9, abs=1e-12)


@given(
    st.integers(1, 20_000), st.floats(0.0001, 1.0), st.sampled_from([0.1, 0.5, 0.9, 0.99, 0.999]), st.integers(1, 20)
)
@settings(deadline=None)
def test_the_fewest_samples_are_enough_and_one_less_is_not(
    elements: int, share: float, chance: float, chunks: int
) -> None:
    samples = samples_for(elements, share, chance, chunks=chunks)
    all_of_them = [(elements, faked_elements(elements, share))] * chunks
    assert samples == elements or chance_over_chunks(all_of_them, samples) >= chance - 1e-9
    if samples > 1:
        assert chance_over_chunks(all_of_them, samples - 1) < chance + 1e-9


def test_what_the_default_finds_in_one_chunk_and_in_two() -> None:
    chunk = (400_000, 4_000)  # 1 %
    assert chance_to_catch(*chunk, DEFAULT_SAMPLES) == pytest.approx(0.924, abs=0.001)
    assert chance_over_chunks([chunk, chunk], DEFAULT_SAMPLES) > 0.99
    assert samples_for(400_000, 0.01, 0.99) == 458
    assert samples_for(400_000, 0.01, 0.99, chunks=16) == 29
    assert cost_share(400_000, DEFAULT_SAMPLES) < 0.001


@pytest.mark.parametrize(
    ("elements", "samples", "share"), [(1, 300, 1.0), (256, 0, 0.0), (256, 128, 0.5), (51_200, 256, 0.005)]
)
def test_a_cost_is_what_is_run_again(elements: int, samples: int, share: float) -> None:
    assert cost_share(elements, samples) == share


@pytest.mark.parametrize(
    "where", ["at the start", "at the end", "in the middle", "every hundredth", "every ninth of runs"]
)
def test_whoever_places_faults_meets_three_quarters_of_the_samples_at_least(where: str) -> None:
    count, trials = 20_000, 1_500
    bad = np.zeros(count, bool)
    match where:
        case "at the start":
            bad[:200] = True
        case "at the end":
            bad[-200:] = True
        case "in the middle":
            bad[10_000:10_200] = True
        case "every hundredth":
            bad[::100] = True
        case _:
            bad[: 9 * 200 : 9] = True
    rng = np.random.default_rng(4)
    met = sum(bad[draw_threads(0, count, 128, rng)].any() for _ in range(trials)) / trials
    least = chance_to_catch(count, int(bad.sum()), 96)
    assert met > least - 3 * np.sqrt(least * (1 - least) / trials)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: chance_to_catch(0, 0, 1),
        lambda: chance_to_catch(10, 11, 1),
        lambda: chance_to_catch(10, -1, 1),
        lambda: chance_to_catch(10, 1, -1),
        lambda: chance_over_chunks([(10, 11)], 1),
        lambda: samples_for(10, 0.0, 0.5),
        lambda: samples_for(10, 1.5, 0.5),
        lambda: samples_for(10, 0.5, 0.0),
        lambda: samples_for(10, 0.5, 1.5),
        lambda: samples_for(10, 0.5, 0.5, chunks=0),
        lambda: cost_share(0, 1),
    ],
)
def test_what_is_no_chance_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="write"):
        wrong()  # type: ignore[operator]
