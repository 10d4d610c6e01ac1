"""Tasks with split inputs: providers get the tiles that their chunks need, and nothing changes but that."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import p2pcompute as p2p
from p2pcompute import cuda
from p2pcompute._split_run import _bound
from p2pcompute.checking import read_evidence
from p2pcompute.checking._sampling import Sampler
from p2pcompute.errors import InputChanged, KernelTypeError, P2PComputeError
from p2pcompute.execution._api import InputSpec, Launch, SplitSpec
from p2pcompute.execution._split import blocks_box, fill_window, run_boxes, window_box
from p2pcompute.node import Node
from p2pcompute.overlay import Offence
from p2pcompute.tasks import ChunkDone, LiarCaught, TaskStarted
from p2pcompute.tasks._link import Link
from p2pcompute.tasks._splits import SplitInputs, TiledInput
from p2pcompute.tasks._tiles import TaskTiles
from p2pcompute.tasks._windows import tile_pieces
from p2pcompute.tasks._work import chunk_work
from p2pcompute_protocols._split import chunk_tiles
from p2pcompute_protocols.evidence import open_evidence
from p2pcompute_protocols.limits import MAX_BLOB_BYTES
from p2pcompute_protocols.task import Assign, BlobData, BlobStart, Finish, HeldTiles
from p2pcompute_protocols.work import ChunkWork, LaunchSpec, OutArg, SplitArg

from ..checking._disputes import judge
from ..market._harness import SIZE, Market, Watch, in_memory
from ..market._rogues import CHUNKS, Rogue, RogueTask, ended
from ..protocols.vectors._material import work as vector_work
from ._attacks import Forgiven, Table, attacks_of, play
from ._scenarios import altered_rows


@p2p.kernel
def sharpen(result, x):  # type: ignore[no-untyped-def]
    c, r = cuda.grid(2)
    if r < result.shape[0] and c < result.shape[1]:
        result[r, c] = 5 * x[r, c] - x[r - 1, c] - x[r + 1, c] - x[r, c - 1] - x[r, c + 1]


@p2p.kernel
def differences(result, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i + 1] - x[i - 1]


IMAGE = np.random.default_rng(8).integers(0, 1000, (150, 190)).astype(np.int32)
MODES = {"zero": "constant", "clamp": "edge", "wrap": "wrap"}
LINE = np.random.default_rng(9).integers(0, 1000, SIZE)


def sharpened(image: Any, edge: str) -> Any:
    p = np.pad(image, 1, mode=MODES[edge])  # type: ignore[call-overload]
    return 5 * image - p[:-2, 1:-1] - p[2:, 1:-1] - p[1:-1, :-2] - p[1:-1, 2:]


async def on_the_image(requester: Node, edge: str = "clamp", **options: Any) -> Any:
    tile = options.pop("tile", None)
    image = p2p.split(IMAGE, halo=1, edge=edge, tile=tile)
    return await requester.run(sharpen, p2p.out(IMAGE.shape, IMAGE.dtype), image, **options)


@pytest.mark.parametrize("edge", MODES)
def test_several_providers_give_what_the_whole_array_gives(edge: str) -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(3)]
        requester = await market.node(connect=tuple(providers))
        for options in ({"chunks": 40}, {"chunks": 7, "tile": (13, 50)}, {}, {"check": "quorum", "chunks": 6}):
            watch = Watch()
            found = await on_the_image(requester, edge, **options, on_event=watch)
            assert np.array_equal(found, sharpened(IMAGE, edge))
            assert sum(event.checked for event in watch.of(ChunkDone)) > 0
        assert await market.spent_uusd(requester) == sum([await market.claimed_uusd(node) for node in providers])

    in_memory(scenario)


def test_chunks_that_wait_for_a_slow_check_are_each_checked_with_their_own_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_many = Sampler.check_many

    async def slowly(sampler: Sampler, chunks: Any) -> Any:
        await trio.sleep(0.05)  # longer than the next results take to come
        return await check_many(sampler, chunks)

    monkeypatch.setattr(Sampler, "check_many", slowly)

    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=tuple(providers))
        watch = Watch()
        found = await on_the_image(requester, chunks=40, tile=(16, 16), on_event=watch)
        assert np.array_equal(found, sharpened(IMAGE, "clamp"))
        assert not watch.of(LiarCaught)

    in_memory(scenario)


def test_a_liar_is_caught_and_its_file_holds_the_tiles_of_the_chunk(tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows, price="0.01 USD")
        honest = await market.provider()
        requester = await market.node(connect=(liar, honest), evidence=tmp_path / "evidence")
        watch = Watch()
        found = await on_the_image(requester, chunks=40, tile=(16, 16), on_event=watch)
        assert np.array_equal(found, sharpened(IMAGE, "clamp"))
        assert len(watch.of(LiarCaught)) == 1

    in_memory(scenario)
    (path,) = (tmp_path / "evidence").iterdir()
    assert judge(path).wrong == "provider"
    found = open_evidence(read_evidence(path))
    (arg,) = found.work.splits.values()
    assert not found.missing
    # Kernel, manifest, and of 120 tiles those around one chunk of three blocks.
    assert 2 < len(found.blobs) < 2 + arg.tiles // 4


# How much travels, and how much is held


class Counted:
    """How many bytes of blobs links send, and how many of tiles a provider holds at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: dict[str, int] = {}
        self.most_held = 0
        send, take = Link._send_blob, TaskTiles.take

        async def sending(link: Link, digest: bytes, data: bytes) -> None:
            self.sent[link.provider] = self.sent.get(link.provider, 0) + len(data)
            await send(link, digest, data)

        def taking(tiles: TaskTiles, message: BlobStart | BlobData) -> int | None:
            found = take(tiles, message)
            self.most_held = max(self.most_held, len(tiles._piece) + sum(map(len, tiles._content.values())))
            return found

        monkeypatch.setattr(Link, "_send_blob", sending)
        monkeypatch.setattr(TaskTiles, "take", taking)


def test_each_provider_is_sent_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)

    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(4)]
        requester = await market.node(connect=tuple(providers))
        found = await on_the_image(requester, chunks=10, tile=(4, 190))
        assert np.array_equal(found, sharpened(IMAGE, "clamp"))
        split, counted.sent = sum(counted.sent.values()), {}
        x = IMAGE
        whole = await requester.run(sharpen, p2p.out(x.shape, x.dtype), x, chunks=40)
        assert np.array_equal(whole, sharpened(IMAGE, "zero"))
        assert sum(counted.sent.values()) == 4 * IMAGE.nbytes
        assert split < 2 * IMAGE.nbytes

    in_memory(scenario)


def test_what_is_larger_than_whole_inputs_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    x = np.zeros((4096, 16_640), np.uint8)
    x[:, 7] = np.arange(4096) % 251
    assert x.nbytes > MAX_BLOB_BYTES

    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=tuple(providers))
        with pytest.raises(KernelTypeError, match=r"p2pcompute\.split"):
            await requester.run(rows_below, p2p.out(4096, np.int64), x)
        found = await requester.run(rows_below, p2p.out(4096, np.int64), p2p.split(x, halo=1), chunks=16)
        assert np.array_equal(found, np.append(np.arange(1, 4096) % 251, 0))

    in_memory(scenario)
    assert 0 < counted.most_held <= MAX_BLOB_BYTES


@p2p.kernel
def rows_below(result, x):  # type: ignore[no-untyped-def]
    i = cuda.grid(1)
    if i < result.size:
        result[i] = x[i + 1, 7]


@pytest.mark.parametrize("bound", [20_000, 60_000])
def test_tiles_that_no_chunk_needs_make_room(monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    monkeypatch.setattr("p2pcompute_protocols.task._tiles.MAX_HELD_TILE_BYTES", bound)
    monkeypatch.setattr("p2pcompute_protocols._split.MAX_HELD_TILE_BYTES", bound)
    monkeypatch.setattr("p2pcompute._split_run.MAX_HELD_TILE_BYTES", bound)
    counted = Counted(monkeypatch)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        found = await on_the_image(requester, chunks=40, tile=(8, 32))
        assert np.array_equal(found, sharpened(IMAGE, "clamp"))
        assert provider.provider is not None
        assert provider.provider.tasks.newcomers_hold == 0

    in_memory(scenario)
    assert bound / 4 < counted.most_held <= bound < IMAGE.nbytes


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_tiles_of_a_chunk_make_all_that_its_threads_load(data: st.DataObject) -> None:
    """Whatever the shapes, tiles, chunks, halos and edge rules: against NumPy's own ways to pad."""
    dims, work, arg = _some_work(data)
    spec = InputSpec(dtype=arg.dtype, shape=arg.shape, split=SplitSpec(axes=arg.axes, halo=arg.halo, edge=arg.edge))
    x = np.random.default_rng(1).integers(1, 2**15, arg.shape).astype(np.int16)
    content: dict[bytes, bytes] = {}
    digests: list[bytes] = []
    for number in range(arg.tiles):
        tile = x[tuple(slice(low, high) for low, high in arg.tile_box(number))].tobytes()
        digests.append(hashlib.sha256(tile).digest())
        content[digests[-1]] = tile
    held = HeldTiles(work, {0: b"".join(digests)})
    launch = Launch(grid=work.launch.grid, block=work.launch.block, dims=dims)  # type: ignore[arg-type]
    index = data.draw(st.integers(0, work.chunks - 1))
    first, blocks = work.chunk_range(index)
    needed = set(held.of_chunk(index).values())
    pieces = tile_pieces(work, held, {digest: content[digest] for digest in needed}.__getitem__)
    box = window_box(spec, blocks_box(launch, first, blocks))
    window = fill_window(spec, box, pieces(0, first))
    for places in run_boxes(launch, first, blocks):
        part = window_box(spec, places)
        axes = [np.arange(low, high) for low, high in part]
        inside = np.ones([len(at) for at in axes], np.bool_)
        for axis, (at, n) in enumerate(zip(axes, arg.shape, strict=True)):
            inside &= ((at >= 0) & (at < n)).reshape([-1 if other == axis else 1 for other in range(len(axes))])
        clip = [np.clip(at, 0, n - 1) for at, n in zip(axes, arg.shape, strict=True)]
        due = x[np.ix_(*clip)]
        if arg.edge == "wrap":
            due = x[np.ix_(*[at % n for at, n in zip(axes, arg.shape, strict=True)])]
        if arg.edge == "zero":
            due = np.where(inside, due, 0)
        where = tuple(slice(low - at[0], high - at[0]) for (low, high), at in zip(part, box, strict=True))
        assert np.array_equal(window.values[where], due)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_what_is_seen_of_all_chunks_at_once_holds_for_each(data: st.DataObject) -> None:
    dims, work, arg = _some_work(data)
    bound = _bound(work)
    if bound is None:  # each is looked at
        assert dims > 1
        return
    for index in range(work.chunks):
        assert sum(arg.tile_bytes(number) for _, number in chunk_tiles(work, index)) <= bound


def _some_work(data: st.DataObject) -> tuple[int, ChunkWork, SplitArg]:
    dims = data.draw(st.integers(1, 3))

    def three(most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(1, most)) if axis < dims else 1 for axis in range(3))

    launch = LaunchSpec(dims=dims, grid=three(6), block=three(4))
    shape = tuple(data.draw(st.integers(1, 20)) for _ in range(dims))
    arg = SplitArg(
        dtype="int16",
        shape=shape,
        tile=tuple(data.draw(st.integers(1, n)) for n in shape),
        axes=tuple(data.draw(st.permutations(range(dims)))),
        halo=tuple(data.draw(st.integers(0, 9)) for _ in range(dims)),
        edge=data.draw(st.sampled_from(("zero", "clamp", "wrap"))),
        manifest=bytes(32),
    )
    work = dataclasses.replace(
        vector_work(),
        launch=launch,
        args=(arg, OutArg(dtype="uint8", shape=(20,))),
        blocks_per_chunk=data.draw(st.integers(1, launch.blocks)),
    )
    return dims, work, arg


def test_chunks_that_read_too_much_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute_protocols._split.MAX_WINDOW_BYTES", 9_000)
    monkeypatch.setattr("p2pcompute._split_run.MAX_WINDOW_BYTES", 9_000)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        watch = Watch()
        found = await on_the_image(requester, chunks=2, on_event=watch)
        assert np.array_equal(found, sharpened(IMAGE, "clamp"))
        assert watch.of(TaskStarted)[0].chunks > 20
        for module in ("p2pcompute_protocols._split", "p2pcompute._split_run"):
            monkeypatch.setattr(f"{module}.MAX_WINDOW_BYTES", 900)
        with pytest.raises(KernelTypeError, match="what a block reads of split inputs"):
            await on_the_image(requester)

    in_memory(scenario)


def test_what_can_not_be_cut_is_refused_before_anybody_is_asked() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        tiles = p2p.split(np.zeros(70_000, np.int8), halo=1, tile=(1,))
        with pytest.raises(KernelTypeError, match="70000 tiles"):
            await requester.run(differences, p2p.out(70_000, np.int64), tiles)
        large = p2p.split(np.zeros(8 * 2**20, np.int8), halo=1, tile=(8 * 2**20,))
        with pytest.raises(KernelTypeError, match="tile="):
            await requester.run(differences, p2p.out(8 * 2**20, np.int8), large)
        with pytest.raises(KernelTypeError, match="at least one element"):
            await requester.run(differences, p2p.out(4, np.int8), p2p.split(np.zeros(0, np.int8), halo=1))
        assert provider.provider is not None
        assert not provider.provider.tasks.active

    in_memory(scenario)


@pytest.mark.parametrize("hashed", [True, False])
def test_an_array_that_is_written_to_makes_no_liar_of_anybody(hashed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless tiles are hashed again before they are used to check others."""
    if not hashed:
        monkeypatch.setattr(
            SplitInputs, "tile", lambda inputs, digest: inputs.inputs[1].tile(inputs._places[digest][1])
        )

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        image = IMAGE.copy()

        def spoil(event: Any) -> None:
            if isinstance(event, ChunkDone):
                image[:] += 1

        watch = Watch(spoil)
        argument = p2p.split(image, halo=1, tile=image.shape)  # sent once, and then used to check others
        if not hashed:
            with pytest.raises(P2PComputeError):
                await requester.run(sharpen, p2p.out(image.shape, image.dtype), argument, chunks=40, on_event=watch)
            assert [event.provider for event in watch.of(LiarCaught)] == [provider.peer_id]
            return
        with pytest.raises(InputChanged, match="argument 2 was written to"):
            await requester.run(sharpen, p2p.out(image.shape, image.dtype), argument, chunks=40, on_event=watch)
        assert watch.of(ChunkDone)
        assert not watch.of(LiarCaught)
        assert np.array_equal(await on_the_image(requester, chunks=10), sharpened(IMAGE, "clamp"))

    in_memory(scenario)


# Attacks on a provider

ATTACKS: Table = {}
attack = attacks_of(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_provider_goes_on(name: str) -> None:
    play(*ATTACKS[name])


async def split_task(rogue: Rogue, provider: Node, *, halo: int = 1, edge: str = "wrap") -> tuple[RogueTask, HeldTiles]:
    """A task over `LINE` in tiles of 64, agreed and ready; and which tiles the provider holds."""
    binding = differences.bind(p2p.out(SIZE, np.int64), p2p.split(LINE, halo=halo, edge=edge))
    spec: Any = binding.specs[1]
    tiled = TiledInput.bare("x", LINE, spec, (64,), 1)
    await tiled.hash()
    inputs = SplitInputs({1: tiled})
    blocks = binding.launch.blocks // CHUNKS
    work, blobs = chunk_work(binding, blocks_per_chunk=blocks, units_per_chunk=10_000, splits=inputs)
    opened = await rogue.open_task(provider, work)
    opened.blobs = blobs
    opened.connection.chunk_bytes = (SIZE // CHUNKS * 8,) * 2
    await opened.start()
    return opened, HeldTiles(work, inputs.manifests)


def content(number: int) -> bytes:
    return LINE[64 * number : 64 * number + 64].tobytes()


async def cut_off(opened: RogueTask, within_s: float = 1.0) -> None:
    assert await ended(opened.stream) <= within_s


@attack(Forgiven.MEMORY)
async def sends_other_bytes_as_a_tile(rogue: Rogue, provider: Node) -> None:
    opened, tiles = await split_task(rogue, provider)
    digest = next(iter(tiles.assign(0)))
    await opened.say(Assign(index=0), BlobStart(digest=digest, size=512), BlobData(data=bytes(512)))
    await cut_off(opened)


@attack(Offence.VIOLATION)
async def sends_a_tile_of_another_size(rogue: Rogue, provider: Node) -> None:
    opened, tiles = await split_task(rogue, provider)
    digest = next(iter(tiles.assign(0)))
    await opened.say(Assign(index=0), BlobStart(digest=digest, size=511))
    await cut_off(opened)


@attack(Offence.VIOLATION)
async def sends_a_tile_that_no_chunk_needs(rogue: Rogue, provider: Node) -> None:
    opened, tiles = await split_task(rogue, provider)
    digest = tiles.of_chunk(9)[1, 38]
    await opened.say(Assign(index=0), BlobStart(digest=digest, size=512))
    await cut_off(opened)


@attack(Offence.VIOLATION)
async def sends_tiles_before_any_chunk(rogue: Rogue, provider: Node) -> None:
    opened, tiles = await split_task(rogue, provider)
    await opened.say(BlobStart(digest=next(iter(tiles.assign(0))), size=512))
    await cut_off(opened)


@attack(Offence.VIOLATION)
async def assigns_more_before_the_tiles_came(rogue: Rogue, provider: Node) -> None:
    opened, _ = await split_task(rogue, provider)
    await opened.say(Assign(index=0), Assign(index=1))
    await cut_off(opened)


@attack(Forgiven.SLOW)
async def never_sends_a_tile(rogue: Rogue, provider: Node) -> None:
    opened, _ = await split_task(rogue, provider)
    await opened.say(Assign(index=0))
    await cut_off(opened, within_s=35)


@attack(Forgiven.SLOW)
async def sends_a_part_of_the_tiles(rogue: Rogue, provider: Node) -> None:
    opened, tiles = await split_task(rogue, provider)
    digest = tiles.of_chunk(0)[1, 0]
    await opened.say(Assign(index=0), BlobStart(digest=digest, size=512), BlobData(data=content(0)))
    await cut_off(opened, within_s=35)


@attack(Forgiven.SLOW)
async def drips_a_tile(rogue: Rogue, provider: Node) -> None:
    """A byte now and then, each in time: all of them together are not."""
    opened, tiles = await split_task(rogue, provider)
    digest = tiles.of_chunk(0)[1, 0]
    await opened.say(Assign(index=0), BlobStart(digest=digest, size=512))
    began = trio.current_time()

    async def drip() -> None:
        for byte in content(0):
            await trio.sleep(10)
            await opened.say(BlobData(data=bytes([byte])))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        await ended(opened.stream)
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 45


@attack(Forgiven.ALLOWED)
async def cancels_while_tiles_are_due(rogue: Rogue, provider: Node) -> None:
    """That is allowed; and then it finishes, with none of them sent."""
    from p2pcompute_protocols.task import Cancel, Closed

    opened, _ = await split_task(rogue, provider)
    opened.connection.tiles = None
    await opened.say(Assign(index=0), Cancel(index=0))
    await trio.sleep(1)
    await opened.dialogue.send(Finish(code=0, detail=""))
    await opened.dialogue.expect(Closed)


@attack(Offence.VIOLATION)
async def asks_for_windows_without_end(rogue: Rogue, provider: Node) -> None:
    """Two axes, and a halo of a million along each: the chunk would take terabytes."""
    binding = sharpen.bind(p2p.out((16, 16), np.int32), p2p.split(IMAGE[:16, :16], halo=2**20, edge="wrap"))
    spec: Any = binding.specs[1]
    tiled = TiledInput.bare("x", IMAGE[:16, :16], spec, (16, 16), 1)
    await tiled.hash()
    work, blobs = chunk_work(binding, blocks_per_chunk=1, units_per_chunk=9, splits=SplitInputs({1: tiled}))
    assert isinstance(work, ChunkWork)
    opened = await rogue.open_task(provider, work)
    opened.blobs = blobs
    await opened.start()
    await opened.say(Assign(index=0))
    await cut_off(opened)
