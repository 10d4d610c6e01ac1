"""Split inputs on the wire: which tiles a chunk needs, which a provider holds, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute_protocols import task
from p2pcompute_protocols._split import chunk_tiles, chunk_window_bytes
from p2pcompute_protocols.connection import NEED_DATA, Role
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.framing import frame
from p2pcompute_protocols.limits import MAX_HALO
from p2pcompute_protocols.task import Assign, BlobData, BlobStart, Cancel, Finish, HeldTiles, TaskConnection, TaskState
from p2pcompute_protocols.work import ChunkWork, LaunchSpec, OutArg, ProgramWork, SplitArg

from .vectors._material import program_work, work


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def split_arg(**changes: Any) -> SplitArg:
    given = {
        "dtype": "uint8",
        "shape": (20, 6),
        "tile": (4, 6),
        "axes": (0,),
        "halo": (1,),
        "edge": "zero",
        "manifest": bytes(32),
    }
    return SplitArg(**{**given, **changes})


def split_work(arg: SplitArg, launch: LaunchSpec | None = None, per_chunk: int = 1, **changes: Any) -> ChunkWork:
    launch = launch or LaunchSpec(dims=1, grid=(5, 1, 1), block=(4, 1, 1))
    return work(
        **{
            "launch": launch,
            "args": (arg, OutArg(dtype="uint8", shape=(20,))),
            "blocks_per_chunk": per_chunk,
            "chunk_output_bytes": 4 * per_chunk,
            **changes,
        }
    )


# Bounds


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tile": (4,)}, WireCode.MALFORMED),
        ({"tile": (21, 6)}, WireCode.MALFORMED),
        ({"axes": (0, 0), "halo": (1, 1)}, WireCode.MALFORMED),
        ({"axes": (1,)}, WireCode.MALFORMED),
        ({"axes": (0, 1, 2), "halo": (1, 1, 1)}, WireCode.MALFORMED),
        ({"axes": (3,)}, WireCode.OVERSIZED),
        ({"axes": (), "halo": ()}, WireCode.OVERSIZED),
        ({"halo": (1, 1)}, WireCode.MALFORMED),
        ({"halo": (MAX_HALO + 1,)}, WireCode.OVERSIZED),
        ({"halo": (-1,)}, WireCode.OVERSIZED),
        ({"edge": "mirror"}, WireCode.UNSUPPORTED),
        ({"shape": (2**32, 1), "tile": (2**22, 1)}, None),
        ({"shape": (2**32 + 1, 1), "tile": (2**22, 1)}, WireCode.OVERSIZED),
        ({"shape": (2**40,) * 4, "tile": (1,) * 4}, WireCode.OVERSIZED),
        ({"shape": (2**22 + 1, 1), "tile": (2**22 + 1, 1)}, WireCode.OVERSIZED),
        ({"shape": (2**16, 1), "tile": (1, 1)}, None),
        ({"shape": (2**16 + 1, 1), "tile": (1, 1)}, WireCode.OVERSIZED),
        ({"manifest": bytes(31)}, WireCode.OVERSIZED),
    ],
)
def test_bounds_of_a_split_input(changes: dict[str, Any], code: WireCode | None) -> None:
    if code is None:
        split_arg(**changes)
        return
    with pytest.raises(LocalProtocolError) as error:
        split_arg(**changes)
    assert error.value.code is code


def test_work_that_a_split_input_does_not_fit() -> None:
    arg = split_arg(axes=(1, 0), halo=(1, 1))
    with pytest.raises(LocalProtocolError, match="along all of the launch's axes"):
        split_work(arg)
    with pytest.raises(LocalProtocolError) as error:  # two manifests of one digest and two sizes
        split_work(split_arg(), args=(split_arg(), split_arg(tile=(5, 6)), OutArg(dtype="uint8", shape=(20,))))
    assert error.value.code is WireCode.BAD_DIGEST
    made: ProgramWork = program_work()
    with pytest.raises(LocalProtocolError, match="counts its items") as error:
        dataclasses.replace(made, args=(*made.args, split_arg(axes=(1, 0), halo=(1, 1))))
    assert error.value.code is WireCode.MALFORMED
    huge = OutArg(dtype="uint8", shape=(2**31,))
    with pytest.raises(LocalProtocolError, match="items with split inputs") as error:
        dataclasses.replace(made, items=2**31, items_per_chunk=2**26, args=(split_arg(), huge))
    assert error.value.code is WireCode.OVERSIZED
    assert split_work(split_arg()).inputs[bytes(32)] == 5 * 32


# Which tiles


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_tiles_are_those_in_which_what_is_read_lies(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    few = st.integers(1, 6)

    def three(of: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(data.draw(of) if axis < dims else 1 for axis in range(3))

    launch = LaunchSpec(dims=dims, grid=three(st.integers(1, 4)), block=three(st.integers(1, 3)))
    shape = tuple(data.draw(few) for _ in range(data.draw(st.integers(dims, 4))))
    arg = split_arg(
        shape=shape,
        tile=tuple(data.draw(st.integers(1, n)) for n in shape),
        axes=tuple(data.draw(st.permutations(range(dims)))),
        halo=tuple(data.draw(st.integers(0, 7)) for _ in range(dims)),
        edge=data.draw(st.sampled_from(("zero", "clamp", "wrap"))),
    )
    whole = split_work(arg, launch, data.draw(st.integers(1, launch.blocks)))
    index = data.draw(st.integers(0, whole.chunks - 1))
    first, blocks = whole.chunk_range(index)
    due: set[int] = set()
    extent = [0, 0, 0]
    boxes: list[list[tuple[int, int]]] = []
    for block in range(first, first + blocks):
        at = [block % launch.grid[0], block // launch.grid[0] % launch.grid[1]]
        at.append(block // launch.grid[0] // launch.grid[1])
        boxes.append([(a * n, (a + 1) * n) for a, n in zip(at, launch.block, strict=True)])
        read: list[set[int]] = []
        for axis, length in enumerate(shape):
            if axis >= dims:
                read.append(set(range(length)))
                continue
            low, high = boxes[-1][arg.axes[axis]]
            indices = range(low - arg.halo[axis], high + arg.halo[axis])
            match arg.edge:
                case "zero":
                    read.append({i for i in indices if 0 <= i < length})
                case "clamp":
                    read.append({min(max(i, 0), length - 1) for i in indices})
                case _:
                    read.append({i % length for i in indices})
        tiles = [{i // t for i in some} for some, t in zip(read, arg.tile, strict=True)]
        due |= {arg.tile_number(place) for place in itertools.product(*tiles)}
    assert chunk_tiles(whole, index) == tuple((0, number) for number in sorted(due))
    for axis in range(3):
        extent[axis] = max(b[axis][1] for b in boxes) - min(b[axis][0] for b in boxes)
    size = 1
    for axis, length in enumerate(shape):
        size *= extent[arg.axes[axis]] + 2 * arg.halo[axis] if axis < dims else length
    assert chunk_window_bytes(whole, index) == size


def test_numbers_and_boxes_of_tiles() -> None:
    arg = split_arg(shape=(5, 7), tile=(2, 3))
    boxes = [arg.tile_box(number) for number in range(arg.tiles)]
    assert boxes[0] == ((0, 2), (0, 3))
    assert boxes[-1] == ((4, 5), (6, 7))
    assert sum(arg.tile_bytes(number) for number in range(arg.tiles)) == arg.nbytes == 35
    assert [arg.tile_number(place) for place in itertools.product(range(3), range(3))] == list(range(9))


def test_a_chunk_that_would_need_too_much_is_refused_before_it_is_counted() -> None:
    for changes, words in (
        ({"shape": (2**16, 1), "tile": (1, 1), "halo": (2**15,)}, "tiles"),
        ({"shape": (1, 6), "tile": (1, 6), "halo": (MAX_HALO,)}, None),
        ({"shape": (20, 64), "tile": (4, 64), "halo": (MAX_HALO,), "edge": "wrap"}, "window"),
        ({"shape": (2**27, 1), "tile": (2**21, 1), "halo": (2**20,)}, None),
    ):
        whole = split_work(split_arg(**changes))
        if words is None:
            assert chunk_tiles(whole, 0)
            continue
        with pytest.raises(LocalProtocolError, match=words) as error:
            chunk_tiles(whole, 0)
        assert error.value.code is WireCode.OVERSIZED


# Which are held


TILES = [bytes([number]) * 24 for number in range(5)]


def held_work(**changes: Any) -> tuple[ChunkWork, dict[int, bytes]]:
    manifest = b"".join(map(sha, TILES))
    return split_work(split_arg(manifest=sha(manifest)), **changes), {0: manifest}


def test_a_manifest_of_another_length_is_refused() -> None:
    whole, manifests = held_work()
    for bad in (b"", manifests[0][:-32], manifests[0] + bytes(32), manifests[0][:-1]):
        with pytest.raises(LocalProtocolError, match="another length"):
            HeldTiles(whole, {0: bad})


def test_what_is_held_comes_once() -> None:
    tiles = HeldTiles(*held_work())
    assert list(tiles.assign(0)) == [sha(TILES[0]), sha(TILES[1])]
    assert list(tiles.assign(1)) == [sha(TILES[2])]
    assert tiles.assign(2) == {sha(TILES[3]): 24}
    for index in range(3):
        tiles.answered(index)
    assert tiles.assign(0) == {}


def test_the_least_recently_used_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcompute_protocols.task._tiles.MAX_HELD_TILE_BYTES", 4 * 24)
    tiles = HeldTiles(*held_work())
    for index in (0, 1):
        tiles.assign(index)
    assert not tiles.fits(4)  # 0 to 2 are those of chunks under way
    before = dict(tiles.held)
    with pytest.raises(LocalProtocolError, match="under way") as error:
        tiles.assign(4)
    assert error.value.code is WireCode.OVERSIZED
    assert dict(tiles.held) == before
    tiles.answered(0)
    assert not tiles.fits(4)  # the one that would have to go is of chunk 1 too
    tiles.answered(1)
    assert tiles.fits(4)
    assert tiles.assign(4) == {sha(TILES[3]): 24, sha(TILES[4]): 24}
    assert list(tiles.held) == [sha(TILES[number]) for number in (1, 2, 3, 4)]


@given(data=st.data(), bound=st.integers(3, 6))
@settings(max_examples=60, deadline=None)
def test_both_sides_agree_whichever_answers_have_come(data: st.DataObject, bound: int) -> None:
    """The provider has fewer chunks under way than the requester thinks: what fits here fits there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("p2pcompute_protocols.task._tiles.MAX_HELD_TILE_BYTES", bound * 24)
        ours, theirs = HeldTiles(*held_work()), HeldTiles(*held_work())
        under_way: list[int] = []
        late: list[int] = []  # answers that are on their way
        for _ in range(20):
            free = [index for index in range(5) if index not in under_way + late and ours.fits(index)]
            if free and data.draw(st.booleans()):
                index = data.draw(st.sampled_from(free))
                assert ours.assign(index) == theirs.assign(index)
                under_way.append(index)
            elif under_way and data.draw(st.booleans()):
                late.append(under_way.pop(0))
                theirs.answered(late[-1])
            elif late:
                ours.answered(late.pop(0))
            assert list(ours.held) == list(theirs.held)
            assert sum(ours.held.values()) <= bound * 24


# The stream


def running(role: Role, tiles: bool = True) -> TaskConnection:
    conn = TaskConnection(role)
    conn.state = TaskState.RUNNING
    conn.chunks, conn.chunk_bytes = 5, (4, 4)
    if tiles:
        conn.tiles = HeldTiles(*held_work())
    return conn


def tile(number: int) -> list[Any]:
    return [BlobStart(digest=sha(TILES[number]), size=24), BlobData(data=TILES[number])]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([Assign(index=0), *tile(0), *tile(1), Assign(index=1), *tile(2), Finish(code=0, detail="")], None),
        ([Assign(index=0), *tile(1), Cancel(index=0), *tile(0)], None),
        ([Assign(index=0), Finish(code=0, detail="")], None),
        ([Assign(index=0), *tile(0), Assign(index=1)], WireCode.OUT_OF_ORDER),
        ([Assign(index=0), *tile(0), *tile(1)[:1], Assign(index=1)], WireCode.OUT_OF_ORDER),
        ([Assign(index=0), tile(2)[0]], WireCode.BAD_DIGEST),
        ([Assign(index=0), *tile(0), tile(0)[0]], WireCode.BAD_DIGEST),
        ([tile(0)[0]], WireCode.BAD_DIGEST),
        ([Assign(index=0), BlobStart(digest=sha(TILES[0]), size=25)], WireCode.OVERSIZED),
        ([Assign(index=0), tile(0)[0], BlobData(data=bytes(25))], WireCode.OVERSIZED),
        ([Assign(index=0), tile(0)[0], BlobData(data=bytes([9]) * 24)], WireCode.BAD_DIGEST),
        ([Assign(index=0), tile(0)[1]], WireCode.OUT_OF_ORDER),
    ],
)
def test_what_may_come_behind_a_chunk(said: list[Any], code: WireCode | None) -> None:
    requester, provider = running(Role.REQUESTER), running(Role.PROVIDER)
    for place, message in enumerate(said):
        wrong = code is not None and place == len(said) - 1
        if wrong:
            before = set(requester.needed), set(requester.outstanding)
            with pytest.raises(LocalProtocolError) as local:
                requester.send(message)
            assert local.value.code is code
            assert (requester.needed, requester.outstanding) == before
        else:
            requester.send(message)
        provider.receive_data(frame(message.encode(), max_bytes=1 << 20))
        if wrong:
            with pytest.raises(RemoteProtocolError) as remote:
                provider.next_event()
            assert remote.value.code is code
        else:
            assert provider.next_event() == message
            assert provider.next_event() is NEED_DATA
            assert provider.needed == requester.needed


def test_without_split_inputs_nothing_comes_behind_a_chunk() -> None:
    requester = running(Role.REQUESTER, tiles=False)
    requester.send(Assign(index=0))
    with pytest.raises(LocalProtocolError) as error:
        requester.send(tile(0)[0])
    assert error.value.code is WireCode.BAD_DIGEST
    requester.send(Assign(index=1))
    assert isinstance(requester, TaskConnection)
    assert task.TABLE[Role.PROVIDER][TaskState.RUNNING].get(BlobStart) is None
