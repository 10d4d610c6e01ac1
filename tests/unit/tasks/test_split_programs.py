"""Programs over split inputs: an item gets its own rows, a provider those of its chunks, and nothing else changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import InputChanged, KernelTypeError
from p2pcompute.execution import InputSpec, OutputSpec, SandboxPolicy, open_pool
from p2pcompute.execution._api import ArgSpec, SplitSpec
from p2pcompute.execution._pool_program import program_worker
from p2pcompute.execution._program import ProgramBackend, program_launch, program_source
from p2pcompute.execution._program_files import look_up
from p2pcompute.execution._split import Window
from p2pcompute.node import Node
from p2pcompute.tasks import ChunkDone, LiarCaught, TaskStarted
from p2pcompute.tasks._link import Link
from p2pcompute.tasks._windows import array_pieces, windowed
from p2pcompute_protocols._split import chunk_tiles
from p2pcompute_protocols.limits import MAX_BLOB_BYTES
from p2pcompute_protocols.work import SplitArg

from ..execution._program_site import install, on_path
from ..market._harness import Market, Watch, in_memory
from ..protocols.vectors._material import program_work
from ._scenarios import altered_rows

PROGRAM = """
import numpy as np

def score(index, out, batch, weights):
    out[...] = batch.astype(np.int64) @ weights

def smooth(index, out, near):
    out[...] = near.sum(axis=0)

def own(index, out, number):
    out[...] = number + index if isinstance(number, np.int32) else -1

def scribble(index, out, batch):
    try:
        batch[...] = 0
    except ValueError:
        out[...] = 1
"""
ITEMS = 60
BATCH = np.random.default_rng(5).integers(0, 256, (ITEMS, 12)).astype(np.uint8)
WEIGHTS = np.random.default_rng(6).integers(-9, 9, (12, 3))
SCORES = BATCH.astype(np.int64) @ WEIGHTS
MODES = {"zero": "constant", "clamp": "edge", "wrap": "wrap"}


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    names = ("score", "smooth", "own", "scribble")
    points = {name: f"batch_steps:{name}" for name in names}
    install(tmp_path, "batch-steps", "1", {"batch_steps.py": PROGRAM}, points)
    on_path(monkeypatch, tmp_path)
    yield tmp_path
    sys.modules.pop("batch_steps", None)


async def scores(node: Node, *, tile: tuple[int, int] | None = None, **options: Any) -> Any:
    batch = p2p.split(BATCH, tile=tile)
    return await node.run(p2p.program("score")[ITEMS], p2p.out((ITEMS, 3), np.int64), batch, WEIGHTS, **options)


def smoothed(array: Any, halo: int, edge: str) -> Any:
    padded = np.pad(array, ((halo, halo), (0, 0)), mode=MODES[edge])  # type: ignore[call-overload]
    return sum(padded[k : k + len(array)].astype(np.int64) for k in range(2 * halo + 1))


def test_a_batch_gives_what_the_whole_array_gives_however_it_is_cut() -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider(programs=["score"]) for _ in range(2)]
        node = await market.node(connect=tuple(providers))
        for options in ({"chunks": 6}, {"chunks": 7, "tile": (4, 5)}, {}, {"chunks": ITEMS, "tile": (1, 12)}):
            watch = Watch()
            assert np.array_equal(await scores(node, **options, on_event=watch), SCORES)
            assert sum(event.checked for event in watch.of(ChunkDone)) > 0
        assert await market.spent_uusd(node) == sum([await market.claimed_uusd(one) for one in providers])

    in_memory(scenario)


def test_a_liar_over_a_batch_is_caught() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(programs=["score"], fault=altered_rows, price="0.01 USD")
        honest = await market.provider(programs=["score"])
        node = await market.node(connect=(liar, honest))
        watch = Watch()
        assert np.array_equal(await scores(node, chunks=6, samples=1_000, on_event=watch), SCORES)
        assert {event.provider for event in watch.of(LiarCaught)} <= {liar.peer_id}

    in_memory(scenario)


@pytest.mark.parametrize("edge", MODES)
@pytest.mark.parametrize("halo", [1, 3])
def test_with_a_halo_an_item_gets_its_neighbours(edge: str, halo: int) -> None:
    batch = BATCH.astype(np.int64)

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["smooth"])
        node = await market.node(connect=(provider,))
        near = p2p.split(batch, halo=halo, edge=edge, tile=(5, 12))
        found = await node.run(p2p.program("smooth"), p2p.out((ITEMS, 12), np.int64), near, chunks=8)
        assert np.array_equal(found, smoothed(batch, halo, edge))

    in_memory(scenario)


def test_each_provider_is_sent_the_rows_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [0]
    send = Link._send_blob

    async def sending(link: Link, digest: bytes, data: bytes) -> None:
        sent[0] += len(data)
        await send(link, digest, data)

    monkeypatch.setattr(Link, "_send_blob", sending)

    async def scenario(market: Market) -> None:
        providers = [await market.provider(programs=["score"]) for _ in range(3)]
        node = await market.node(connect=tuple(providers))
        watch = Watch()
        assert np.array_equal(await scores(node, chunks=12, tile=(5, 12), on_event=watch), SCORES)
        # A chunk's tile once, some twice where two compute it; and to each provider the weights and the manifest.
        assert len({event.provider for event in watch.of(ChunkDone)}) > 1
        assert BATCH.nbytes < sent[0] <= 3 * BATCH.nbytes // 2 + 3 * (WEIGHTS.nbytes + 12 * 32)

    in_memory(scenario)


def test_a_batch_may_be_larger_than_whole_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, it is refused with the word that helps."""
    monkeypatch.setattr("p2pcompute._requester.MAX_BLOB_BYTES", BATCH.nbytes - 1)

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["score"])
        node = await market.node(connect=(provider,))
        with pytest.raises(KernelTypeError, match=r"p2pcompute\.split"):
            await node.run(p2p.program("score")[ITEMS], p2p.out((ITEMS, 3), np.int64), BATCH, WEIGHTS)
        assert np.array_equal(await scores(node, chunks=6), SCORES)

    in_memory(scenario)
    assert BATCH.nbytes < MAX_BLOB_BYTES


def test_arrays_of_one_axis_give_numbers_and_items_beyond_the_array_what_the_edge_says() -> None:
    line = np.arange(100, 110, dtype=np.int32)

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["own"])
        node = await market.node(connect=(provider,))
        for edge, last in (("zero", [0, 0]), ("clamp", [109, 109]), ("wrap", [100, 101])):
            found = await node.run(p2p.program("own")[12], p2p.out(12, np.int64), p2p.split(line, edge=edge), chunks=4)
            assert np.array_equal(found, np.array([*line, *last]) + np.arange(12))

    in_memory(scenario)


def test_a_batch_that_is_written_to_ends_the_task() -> None:
    """Otherwise its samples would make a liar of an honest provider."""
    batch = BATCH.copy()

    async def scenario(market: Market) -> None:
        provider = await market.provider(programs=["score"])
        node = await market.node(connect=(provider,))

        def change(event: Any) -> None:
            if isinstance(event, TaskStarted):
                batch[:] = 0

        args = p2p.out((ITEMS, 3), np.int64), p2p.split(batch), WEIGHTS
        with pytest.raises(InputChanged):
            await node.run(p2p.program("score")[ITEMS], *args, chunks=6, on_event=change)

    in_memory(scenario)


def test_what_a_program_can_not_be_given_is_refused_with_what_to_write() -> None:
    program = p2p.program("score")
    out = p2p.out((ITEMS, 3), np.int64)
    with pytest.raises(KernelTypeError, match="along the first axis only"):
        program[ITEMS].bind(out, p2p.split(BATCH, halo=(0, 1)), WEIGHTS)
    binding = program[ITEMS].bind(out, p2p.split(BATCH, halo=(2, 0)), WEIGHTS)
    assert binding.specs[1] == InputSpec(
        dtype="uint8", shape=BATCH.shape, split=SplitSpec(axes=(0,), halo=(2,), edge="zero")
    )


def test_the_back_end_checks_its_windows() -> None:
    """It believes neither the node nor the packet: rows that are not there would be a neighbour's."""
    spec = InputSpec(dtype="uint8", shape=BATCH.shape, split=SplitSpec(axes=(0,), halo=(1,), edge="zero"))
    specs: list[ArgSpec] = [OutputSpec(dtype="int64", shape=(ITEMS, 12)), spec]

    def smooth(index: int, out: Any, near: Any) -> None:
        assert near.shape == (3, 12)
        out[...] = near.sum(axis=0)

    found = look_up("smooth")
    backend = ProgramBackend(smooth, found)
    kernel = backend.compile(program_source(found), program_launch(ITEMS), specs)
    rows = [np.zeros((4, 12), np.int64)]
    kernel.run_blocks(5, 4, [Window(origin=(4, 0), values=BATCH[4:10])], rows)
    assert np.array_equal(rows[0], smoothed(BATCH, 1, "zero")[5:9])
    kernel.run_threads(np.array([8, 5, 5, 6]), [Window(origin=(2, 0), values=BATCH[2:12])], rows)
    assert np.array_equal(rows[0], smoothed(BATCH, 1, "zero")[[8, 5, 5, 6]])
    for first, part in ((5, BATCH[5:11]), (4, BATCH[4:9]), (4, BATCH[4:10, :5]), (4, BATCH[4:10].astype(np.int8))):
        with pytest.raises(ValueError, match="window"):
            kernel.run_blocks(5, 4, [Window(origin=(first, 0), values=part)], rows)
    for axes, halo in (((1,), (0,)), ((0, 1), (0, 0))):
        wrong = InputSpec(dtype="uint8", shape=BATCH.shape, split=SplitSpec(axes=axes, halo=halo, edge="zero"))
        with pytest.raises(KernelTypeError, match="split its first axis"):
            backend.compile(program_source(found), program_launch(ITEMS), [specs[0], wrong])


@pytest.mark.net
def test_a_locked_worker_runs_a_program_over_windows() -> None:
    spec = InputSpec(dtype="uint8", shape=BATCH.shape, split=SplitSpec(axes=(0,), halo=(2,), edge="clamp"))
    whole = InputSpec(dtype="uint8", shape=BATCH.shape, split=SplitSpec(axes=(0,), halo=(0,), edge="zero"))

    cases: tuple[tuple[str, list[ArgSpec], Any], ...] = (
        ("smooth", [OutputSpec(dtype="int64", shape=(ITEMS, 12)), spec], smoothed(BATCH, 2, "clamp")),
        ("scribble", [OutputSpec(dtype="int64", shape=(ITEMS,)), whole], np.ones(ITEMS, np.int64)),
    )

    async def main() -> None:
        for name, specs, due in cases:
            found, launch = look_up(name), program_launch(ITEMS)
            async with (
                open_pool(program=program_worker(found), policy=SandboxPolicy(bwrap="never"), spare=0) as pool,
                pool.session() as session,
            ):
                await session.compile(program_source(found), launch, specs, {})
                worker = windowed(session, launch, specs, 1, array_pieces({1: BATCH}))
                (chunk,) = (await worker.run_blocks(40, 20, timeout_s=20)).outputs
                assert chunk == due[40:].tobytes()
                (single,) = (await worker.run_threads(np.array([59, 0, 7]), timeout_s=20)).outputs
                assert single == due[[59, 0, 7]].tobytes()

    trio.run(main)


def test_the_work_names_the_rows_that_a_chunk_needs() -> None:
    arg = SplitArg(dtype="uint8", shape=(20, 6), tile=(4, 6), axes=(0,), halo=(1,), edge="wrap", manifest=bytes(32))
    work = program_work(args=(*program_work().args, arg))
    assert [chunk_tiles(work, index) for index in range(work.chunks)] == [
        ((4, 0), (4, 1), (4, 2), (4, 4)),
        ((4, 1), (4, 2), (4, 3), (4, 4)),
        ((4, 0), (4, 3), (4, 4)),
    ]
