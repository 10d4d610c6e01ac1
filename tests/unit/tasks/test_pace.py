"""How many chunks lie at a provider: it never waits for the next one, however far away it is, and holds few of them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import p2pcompute as p2p
from p2pcompute.tasks import ChunkAssigned, ChunkDone
from p2pcompute.tasks._pace import Pace
from p2pcompute_protocols.limits import MAX_INFLIGHT_CHUNKS

from ..market._harness import SIZE, Market, X, Y, Z, axpy, in_memory

AHEAD_S = 0.4


def play(chunk_s: float, round_trip_s: float, chunks: int) -> Iterator[tuple[float, int]]:
    """A provider that computes one chunk after the other: at each answer, for how long it had nothing to do before the
    chunks that were given out since the last one, and how many it may have from now on."""
    pace = Pace(2)
    pace.began(0.0)
    answers: list[tuple[float, float]] = []  # when it comes, and when its chunk was given out
    free_at, idle_s, now, given, came = math.inf, 0.0, 0.0, 0, 0
    while came < chunks:
        under_way = given - came
        room = max(0, pace.depth - under_way)
        for _ in range(0 if room < pace.portion <= under_way else room):
            arrived = now + round_trip_s / 2
            begins = arrived if free_at == math.inf else max(arrived, free_at)
            idle_s += 0.0 if free_at == math.inf else begins - free_at
            free_at = begins + chunk_s
            heapq.heappush(answers, (free_at + round_trip_s / 2, now))
            given += 1
        now, since = heapq.heappop(answers)
        came += 1
        pace.answered(1, now, now - since, finished_ms=came)
        yield idle_s, pace.depth
        idle_s = 0.0


times = st.floats(0.0005, 0.5)


@given(chunk_s=times, round_trip_s=st.floats(0.0001, 0.3))
def test_a_provider_waits_for_nothing_once_it_is_known(chunk_s: float, round_trip_s: float) -> None:
    bound = 1 + (round_trip_s + chunk_s + AHEAD_S) / chunk_s
    known = max(200, math.ceil(2 * bound))  # answers; it doubles once a round trip
    played = [*play(chunk_s, round_trip_s, known + 200)]
    assert max(held for _, held in played[known:]) <= max(2, math.ceil(bound))
    if bound < MAX_INFLIGHT_CHUNKS:
        assert max(idle_s for idle_s, _ in played[max(32, math.ceil(bound / 2)) :]) < 1e-9


@pytest.mark.parametrize(("chunk_s", "round_trip_s", "depth"), [(1.0, 0.001, 2), (0.1, 0.001, 6), (0.02, 0.05, 24)])
def test_so_many_lie_there(chunk_s: float, round_trip_s: float, depth: int) -> None:
    *_, (idle_s, held) = play(chunk_s, round_trip_s, 200)
    assert held == depth
    assert idle_s < 1e-9


def test_what_was_computed_together_counts_as_one_answer() -> None:
    """Ten chunks of 20 ms that come in three messages, one right after the other: as many as if they came singly."""
    pace, now = Pace(2), 0.0
    pace.began(now)
    for group in range(20):
        now += 0.2
        for count in (3, 3, 4):
            pace.answered(count, now, 0.21, finished_ms=group)
            now += 1e-4
    assert pace.depth == math.ceil((0.21 + AHEAD_S) / 0.02)  # 64 and more where each message counts by itself
    assert pace.portion == 9


def test_a_provider_that_is_far_away_computes_all_the_time() -> None:
    """128 chunks of 20 ms, which go to a provider 20 ms away and come back as far."""
    chunks, chunk_s = 128, 0.02

    async def scenario(market: Market) -> None:
        provider = await market.provider(workers=market.workers(chunk_s=chunk_s), max_window=64)
        requester = await market.node(connect=(provider,))
        times: list[float] = []

        def note(event: Any) -> None:
            if isinstance(event, ChunkAssigned | ChunkDone):
                times.append(trio.current_time())

        out = await requester.run(
            axpy[chunks, SIZE // chunks],
            p2p.out(Y.shape, Y.dtype),
            np.float32(2),
            X,
            Y,
            budget="0.10 USD",
            chunks=chunks,
            check="none",
            on_event=note,
        )
        assert np.array_equal(out, Z)
        assert times[-1] - times[0] < 1.15 * chunks * chunk_s  # 1.5 while two of them lay there at most

    in_memory(scenario)
