"""Inputs on disk: found again, bounded, damaged, in use, and no way out of their directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing

from p2pcompute.blobs import BlobCache, HeldBlob
from p2pcompute.blobs._file import HEADER_BYTES, BlobFile
from p2pcompute.errors import ConfigError, DiskFull, StorageError
from p2pcompute_protocols.ids import PeerId

from ._network import MIB, empty, held_bytes, name_of, some_bytes, whole

T = TypeVar("T")
ALICE, BOB = PeerId("12D3KooWAlice"), PeerId("12D3KooWBob")
DATA = some_bytes(MIB + 5)
TAKES = HEADER_BYTES + len(DATA)


async def inline(function: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return function()


async def a_cache(directory: Path, *, room: int = 8) -> BlobCache:
    return await BlobCache.open(directory / "inputs", max_bytes=room * TAKES, run=inline)


async def keep(cache: BlobCache, data: bytes, owner: PeerId = ALICE, *, pieces: Any = None) -> None:
    source = whole(data)
    leaves = await source.wait_leaves()
    assert leaves is not None
    with cache.use(owner, await cache.create(owner, source.name, leaves)) as cached:
        for index in range(source.count) if pieces is None else pieces:
            await cached.put(index, source.read(index))


async def get(cache: BlobCache, data: bytes, owner: PeerId = ALICE) -> HeldBlob | None:
    name = name_of(data)
    file = await cache.find(owner, name.digest, name.size)
    if file is None:
        return None
    held = empty(data)
    with cache.use(owner, file) as cached:
        await cached.fill(held)
    return held


def path_of(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "inputs").iterdir()
    return path


def test_what_is_kept_is_found_again_by_its_owner_alone(tmp_path: Path) -> None:
    async def main() -> None:
        cache = await a_cache(tmp_path)
        await keep(cache, DATA)
        for found in (cache, await a_cache(tmp_path)):  # after a restart as well
            assert len(found) == 1
            assert found.nbytes == TAKES
            held = await get(found, DATA)
            assert held is not None
            assert held.is_complete
            assert held_bytes(held) == DATA
            assert await get(found, DATA, BOB) is None
            assert await get(found, DATA[:-1]) is None
        name = name_of(DATA)
        for size in (name.size - 1, name.size + 1, 1):  # the same digest of another length is another blob
            assert await cache.find(ALICE, name.digest, size) is None
        await keep(cache, DATA)
        path = path_of(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert name_of(DATA).digest.hex() not in path.name

    trio.run(main)


def test_what_is_being_made_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """Two tasks of one requester begin at once: one makes the file, the other looks for it."""

    async def main() -> None:
        made, looked = trio.Event(), trio.Event()

        async def slowly(function: Callable[[], T]) -> T:
            if made.is_set():  # somebody looks while the file is made
                looked.set()
                return function()
            await trio.lowlevel.checkpoint()
            path.write_bytes(b"not yet a blob")
            made.set()
            with trio.move_on_after(1):
                await looked.wait()
            return function()

        cache = await a_cache(tmp_path)
        await keep(cache, DATA)
        path = path_of(tmp_path)
        cache.run = slowly
        source, found = whole(DATA), []
        leaves = await source.wait_leaves()
        assert leaves is not None

        async def look() -> None:
            await made.wait()
            found.append(await cache.find(ALICE, source.name.digest, source.name.size))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            file = await cache.create(ALICE, source.name, leaves)
        with cache.use(ALICE, file):
            assert path.exists()
            assert cache.nbytes == TAKES
        assert found[0] is not None
        found[0].close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_directory_that_is_gone_is_a_fault_of_storage(tmp_path: Path) -> None:
    """Then a task goes on without the disk, as with a full one."""

    async def main() -> None:
        cache = await a_cache(tmp_path)
        (tmp_path / "inputs").rmdir()
        with pytest.raises(StorageError):
            await keep(cache, DATA)
        assert cache.nbytes == 0
        (tmp_path / "inputs").write_bytes(b"")  # no directory any more
        with pytest.raises(StorageError):
            await keep(cache, DATA)

    trio.run(main)


def test_a_part_is_found_as_a_part(tmp_path: Path) -> None:
    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA, pieces=[0, 4])
        held = await get(await a_cache(tmp_path), DATA)
        assert held is not None
        assert held.pieces == {0, 4}
        assert held.leaves is not None
        assert held.read(0) == DATA[: 256 * 1024]
        assert held.read(4) == DATA[MIB:]

    trio.run(main)


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    async def main() -> None:
        many = [some_bytes(MIB + 5, seed) for seed in range(6)]
        cache = await a_cache(tmp_path, room=8)  # four of one owner
        for at, data in enumerate(many[:4]):
            await keep(cache, data)
            for path in (tmp_path / "inputs").iterdir():
                os.utime(path, (at + 1, path.stat().st_mtime if path.stat().st_mtime < 100 else at + 1))
        assert len(cache) == 4
        assert await get(cache, many[0]) is not None
        await keep(cache, many[4])
        assert len(cache) == 4
        kept = [await get(cache, data) is not None for data in many]
        assert kept == [True, False, True, True, True, False]
        again = await a_cache(tmp_path, room=8)  # in the order of use, which is on disk
        await get(again, many[2])
        await keep(again, many[5])
        assert await get(again, many[2]) is not None

    trio.run(main)


def test_one_requester_has_half_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        cache = await a_cache(tmp_path, room=4)
        await keep(cache, DATA, BOB)
        for seed in range(6):
            await keep(cache, some_bytes(MIB + 5, seed), ALICE)
        assert await get(cache, DATA, BOB) is not None
        assert len(cache) == 3
        assert cache.nbytes <= cache.max_bytes

    trio.run(main)


def test_what_is_in_use_makes_room_for_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        cache = await a_cache(tmp_path, room=4)
        one, two, three = (some_bytes(MIB + 5, seed) for seed in range(3))
        await keep(cache, one)
        await keep(cache, two)
        names = [name_of(data) for data in (one, two, three)]
        files = [await cache.find(ALICE, name.digest, name.size) for name in names[:2]]
        assert files[0] is not None
        assert files[1] is not None
        with cache.use(ALICE, files[0]) as first:
            with cache.use(ALICE, files[1]), pytest.raises(DiskFull, match="--cache"):
                await keep(cache, three)
            await keep(cache, three)  # the second one is free now, and goes
            held = empty(one)
            await first.fill(held)
            assert held_bytes(held) == one
        assert [await get(cache, data) is not None for data in (one, two, three)] == [True, False, True]
        file = await cache.create(ALICE, names[1], (await whole(two).wait_leaves()) or ())
        with cache.use(ALICE, file), pytest.raises(StorageError, match="another task"):
            await keep(cache, two)

    trio.run(main)


def test_a_damaged_piece_is_found_and_no_other_is_lost(tmp_path: Path) -> None:
    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA)
        with path_of(tmp_path).open("r+b") as file:
            file.seek(HEADER_BYTES + 256 * 1024 + 9)
            file.write(b"?!")
        held = await get(await a_cache(tmp_path), DATA)
        assert held is not None
        assert held.pieces == {0, 2, 3, 4}

    trio.run(main)


@pytest.mark.parametrize("at", [0, 16, 48, 80, 87, 88, 100, 88 + 32 * 4])
def test_a_damaged_header_is_no_header(tmp_path: Path, at: int) -> None:
    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA)
        with path_of(tmp_path).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))
        cache = await a_cache(tmp_path)
        held = await get(cache, DATA)
        assert held is None
        assert len(cache) == 0
        assert not list((tmp_path / "inputs").iterdir())  # it is gone, and not tried again each time

    trio.run(main)


def test_a_file_that_was_cut_is_none(tmp_path: Path) -> None:
    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA)
        for size in (TAKES - 1, HEADER_BYTES, 50, 0):
            os.truncate(path_of(tmp_path), size)
            cache = await a_cache(tmp_path)
            assert await get(cache, DATA) is None
            await keep(cache, DATA)

    trio.run(main)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    async def main() -> None:
        cache = await a_cache(tmp_path)

        def full(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(DiskFull, match="no room"):
            await keep(cache, DATA)
        assert len(cache) == cache.nbytes == 0
        assert not list((tmp_path / "inputs").iterdir())
        monkeypatch.undo()
        await keep(cache, DATA)
        assert await get(cache, DATA) is not None

    trio.run(main)


def test_a_disk_that_fails_later_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        cache, source = await a_cache(tmp_path), whole(DATA)
        leaves = await source.wait_leaves()
        assert leaves is not None
        with cache.use(ALICE, await cache.create(ALICE, source.name, leaves)) as cached:
            await cached.put(0, source.read(0))

            def fails(*_: Any) -> int:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            monkeypatch.setattr(os, "pwrite", fails)
            with pytest.raises(StorageError, match="can't be used"):
                await cached.put(1, source.read(1))
            monkeypatch.undo()
            assert cached.pieces == {0}
        held = await get(cache, DATA)
        assert held is not None
        assert held.pieces == {0}

    trio.run(main)


def test_links_and_strange_files_are_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA)
        path = path_of(tmp_path)
        secret = tmp_path / "secret"
        path.rename(secret)
        path.symlink_to(secret)
        (path.parent / "notes.txt").write_text("mine")
        cache = await a_cache(tmp_path)
        assert len(cache) == 0
        assert await get(cache, DATA) is None
        await keep(cache, DATA)  # in place of the link, and not through it
        assert not path.is_symlink()
        assert secret.stat().st_size == TAKES
        assert (path.parent / "notes.txt").read_text() == "mine"
        path.unlink()
        path.symlink_to(secret)  # behind its back
        name = name_of(DATA)
        assert await cache.find(ALICE, name.digest, name.size) is None

    trio.run(main)


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "inputs"
    directory.mkdir()
    directory.chmod(0o777)

    async def main() -> None:
        with pytest.raises(ConfigError, match="chmod 700"):
            await a_cache(tmp_path)

    trio.run(main)


def test_a_smaller_cache_than_before_lets_go_of_the_rest(tmp_path: Path) -> None:
    async def main() -> None:
        cache = await a_cache(tmp_path, room=8)
        for seed in range(4):
            await keep(cache, some_bytes(MIB + 5, seed))
        smaller = await a_cache(tmp_path, room=2)
        assert smaller.nbytes <= 2 * TAKES
        assert len(list((tmp_path / "inputs").iterdir())) == len(smaller) == 2

    trio.run(main)


def test_a_power_cut_costs_pieces_and_is_noticed(tmp_path: Path) -> None:
    """The bit of a piece reached the disk, and its bytes did not."""

    async def main() -> None:
        await keep(await a_cache(tmp_path), DATA, pieces=[0, 1])
        with path_of(tmp_path).open("r+b") as file:
            file.seek(88 + 32 * 256)
            file.write(b"\x1f")
        held = await get(await a_cache(tmp_path), DATA)
        assert held is not None
        assert held.pieces == {0, 1}

    trio.run(main)


def test_a_file_says_what_it_is_of(tmp_path: Path) -> None:
    """Under the name of another blob a whole, valid file is none."""

    async def main() -> None:
        other = some_bytes(MIB + 5, 2)
        cache = await a_cache(tmp_path)
        await keep(cache, DATA)
        first = path_of(tmp_path)
        moved = first.rename(tmp_path / "moved")
        await keep(cache, other)
        second = path_of(tmp_path)
        moved.rename(second)
        assert await get(cache, other) is None
        assert BlobFile.open(second) is None

    trio.run(main)
