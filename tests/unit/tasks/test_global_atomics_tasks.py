"""Kernels with integer atomics on an output of all blocks, end to end on simulated nodes: tasks, hires and rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute.errors import TaskError
from p2pcompute.tasks import ChunkDone, LiarCaught, Paid, TaskEnded

from ..execution.test_global_atomics import histogram
from ..market._harness import Market, Watch, in_memory
from ._scenarios import altered_rows

X = np.random.default_rng(1).standard_normal(30_000, dtype=np.float32)
LOW, HIGH = np.float32(-4), np.float32(4)


def bins_of(x: Any, bins: int) -> Any:
    found = ((x - LOW) / ((HIGH - LOW) / np.float32(bins))).astype(np.int32)
    return np.bincount(found[(found >= 0) & (found < bins)], minlength=bins)


DUE = bins_of(X, 10)
SUM = p2p.reduce("sum", (10,), np.int64)


def test_a_tutorials_histogram_is_a_task_as_any_other() -> None:
    async def scenario(market: Market) -> None:
        providers = await market.provider(), await market.provider()
        node = await market.node(connect=providers)
        watch = Watch()
        for chunks in (1, 16):
            found = await node.run(histogram[64, 64], X, LOW, HIGH, SUM, chunks=chunks, samples=1, on_event=watch)
            assert found.dtype == np.int64
            assert np.array_equal(found, DUE)
        done, (_, ended) = watch.of(ChunkDone), watch.of(TaskEnded)
        assert len(done) == 17
        assert all(event.checked for event in done)  # a block of each chunk was computed here too
        assert 0 < ended.accepted_uusd <= ended.paid_uusd  # of each provider a micro-USD is rounded up
        assert 0 < await market.spent_uusd(node) <= sum(event.paid_uusd for event in watch.of(TaskEnded))
        assert {event.provider for event in watch.of(Paid)} == {provider.peer_id for provider in providers}

    in_memory(scenario)


def test_a_lie_about_a_blocks_counts_is_caught() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows, price="0.01 USD")
        node = await market.node(connect=(liar, await market.provider()))
        watch = Watch()
        found = await node.run(histogram[64, 64], X, LOW, HIGH, SUM, chunks=8, on_event=watch)
        assert np.array_equal(found, DUE)
        assert [event.provider for event in watch.of(LiarCaught)] == [liar.peer_id]

    in_memory(scenario)


def test_a_hire_and_its_calls() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(),))
        async with node.hire(histogram[16, 32], X, LOW, HIGH, SUM, chunks=4) as hired:
            for scale in (1, 2, -1):
                x = X * np.float32(scale)
                assert np.array_equal(await hired.run(x, LOW, HIGH), bins_of(x, 10))

    in_memory(scenario)


@p2p.kernel
def in_space(h, at):  # type: ignore[no-untyped-def]
    i, j = cuda.grid(2)
    if i >= at.shape[1] or j >= at.shape[0]:
        return
    cuda.atomic.add(h, (at[j, i, 0], at[j, i, 1], at[j, i, 2]), 1)


def test_an_array_of_more_axes_than_are_left_beside_the_grids() -> None:
    at = np.random.default_rng(2).integers(0, 5, (20, 30, 3))
    due = np.zeros((5, 4, 3), np.int32)
    inside = at[(at < (5, 4, 3)).all(axis=2)]
    np.add.at(due, tuple(inside.T), 1)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        args = p2p.out((5, 4, 3), np.int32), at
        found = await node.run(in_space[(4, 3), (8, 8)], *args, chunks=4)
        assert found.shape == due.shape
        assert np.array_equal(found, due)
        react = Watch(lambda event: market.kill(provider) if isinstance(event, ChunkDone) else None)
        with pytest.raises(TaskError) as failed:
            await node.run(in_space[(4, 3), (8, 8)], *args, chunks=12, deadline_s=60, on_event=react)
        assert failed.value.partial is not None
        [partial] = failed.value.partial.outputs
        assert (partial.shape, partial.dtype, partial.mask.all()) == (due.shape, due.dtype, True)

    in_memory(scenario)


@p2p.kernel
def moved(h, positions, counts):  # type: ignore[no-untyped-def]
    """Walkers count where they stand; how many stand there says how they go on."""
    i = cuda.grid(1)
    if i < positions.size:
        cuda.atomic.add(h, positions[i] % 8, 1)


@p2p.kernel
def stepped(new, positions, counts):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < new.size:
        new[i] = positions[i] + 1 + counts[positions[i] % 8] % 3


def test_counts_of_a_round_are_a_part_of_the_state() -> None:
    begin, counts = np.arange(100) ** 2 % 31, np.zeros(8, np.int64)

    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(),))
        p, c = p2p.state("p"), p2p.state("c")
        found = await node.iterate(
            [p2p.step(moved[4, 32], p2p.new("c"), p, c), p2p.step(stepped, p2p.new("p"), p, c)],
            rounds=6,
            state={"p": begin, "c": counts},
        )
        positions = begin
        for _ in range(6):
            now = np.bincount(positions % 8, minlength=8)
            positions = positions + 1 + now[positions % 8] % 3
        assert np.array_equal(found["c"], now)
        assert np.array_equal(found["p"], positions)

    in_memory(scenario)
