"""Blobs that stay on disk: for the next task of the same requester, also after a restart, and what has come of one
whose transfer broke.

A file's name says nothing of what is in it, and what one requester left here no other finds: else anybody could find
out, by its digest, what others compute on.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from p2pcompute._private_files import private_directory
from p2pcompute.errors import DiskFull, StorageError
from p2pcompute_protocols.ids import PeerId

from ._file import BlobFile
from ._held import BlobName, HeldBlob

__all__ = ["BlobCache", "BlobRuns", "CachedBlob", "in_thread"]

_log = logging.getLogger("p2pcompute.blobs")

_NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{64}\.blob")
_AT_ONCE: Final = 4  # pieces that are read in one go of a thread

T = TypeVar("T")


class BlobRuns(Protocol):
    """Runs a function that blocks, and gives what it gives."""

    def __call__(self, function: Callable[[], T]) -> Awaitable[T]: ...


async def in_thread(function: Callable[[], T]) -> T:
    """Run it in a thread of trio's."""
    return await trio.to_thread.run_sync(function)


def _owner_name(owner: PeerId) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def _file_name(owner: PeerId, digest: bytes) -> str:
    return f"{_owner_name(owner)}-{hashlib.sha256(owner.encode() + digest).hexdigest()}.blob"


class CachedBlob:
    """One blob of the cache, pinned while this is open.

    Attributes:
        name, leaves, pieces: as the file says.
    """

    def __init__(self, cache: BlobCache, file: BlobFile) -> None:
        self._cache = cache
        self._file = file

    @property
    def name(self) -> BlobName:
        return self._file.name

    @property
    def leaves(self) -> tuple[bytes, ...]:
        return self._file.leaves

    @property
    def pieces(self) -> set[int]:
        return self._file.pieces

    async def fill(self, held: HeldBlob) -> None:
        """Copy the pieces that are right into `held`, whose root is this one's. Those that are not are forgotten."""
        assert held.name.root == self.name.root  # whoever opened it has looked
        held.know(self.leaves)
        due = sorted(self.pieces)
        for at in range(0, len(due), _AT_ONCE):
            some = due[at : at + _AT_ONCE]
            read = await self._cache.run(partial(self._read, some))
            for index, data in zip(some, read, strict=True):
                if data is None:
                    _log.warning("a piece of a kept input is damaged on disk; it is fetched again")
                else:
                    held.put(index, data)

    def _read(self, indices: list[int]) -> list[bytes | None]:
        return [self._file.read(index) for index in indices]

    async def put(self, index: int, data: bytes | memoryview) -> None:
        """Write a piece. Raises `DiskFull` or `StorageError`."""
        if index not in self.pieces:
            await self._cache.run(lambda: self._file.write(index, data))


class BlobCache:
    """Files of one directory, `max_bytes` of them in all; the least recently used make room, and none that is in use.

    One process has the directory. Made by `open`.

    Args:
        directory: made where it is missing, mode 0700.
        max_bytes: of all files together; of one requester's, half of that.
        run: runs what blocks.
    """

    def __init__(self, directory: Path, *, max_bytes: int, run: BlobRuns = in_thread) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.run = run
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._pins: Counter[str] = Counter()
        self._writing = trio.Lock()

    @classmethod
    async def open(cls, directory: Path, *, max_bytes: int, run: BlobRuns = in_thread) -> BlobCache:
        """The cache with what earlier runs have left in it, as far as there is room.

        Raises:
            ConfigError: others can write to the directory, or it can't be made.
        """
        cache = cls(directory, max_bytes=max_bytes, run=run)
        await run(cache._scan)
        return cache

    def _scan(self) -> None:
        private_directory(self.directory)
        found: list[tuple[float, str, int]] = []
        for path in self.directory.iterdir():
            if _NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                info = path.stat()
                found.append((info.st_mtime, path.name, info.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
        self._make_room(0, "")

    @property
    def nbytes(self) -> int:
        """What all files take."""
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def _make_room(self, size: int, owner: str) -> bool:
        """Let go of the least recently used until `size` more fit; False where what is in use is in the way."""
        if size > self.max_bytes // 2:
            return False
        theirs = [name for name in self._sizes if owner and name.startswith(owner)]
        self._shorten(theirs, self.max_bytes // 2 - size)
        self._shorten(list(self._sizes), self.max_bytes - size)
        held = sum(self._sizes[name] for name in theirs if name in self._sizes)
        return self.nbytes + size <= self.max_bytes and held + size <= self.max_bytes // 2

    def _shorten(self, names: list[str], most: int) -> None:
        total = sum(self._sizes[name] for name in names)
        for name in names:
            if total <= most:
                return
            if not self._pins[name]:
                total -= self._sizes[name]
                self._remove(name)

    def _remove(self, name: str) -> None:
        self._sizes.pop(name, None)
        try:
            (self.directory / name).unlink(missing_ok=True)
        except OSError as exc:
            _log.warning("a kept input can't be removed: %s", exc)

    @contextmanager
    def _pinned(self, name: str, file: BlobFile) -> Generator[CachedBlob]:
        self._pins[name] += 1
        if name in self._sizes:
            self._sizes.move_to_end(name)
            with suppress(OSError):
                file.touch()  # no data: this does not block
        try:
            yield CachedBlob(self, file)
        finally:
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]
            file.close()

    def in_use(self, owner: PeerId, digest: bytes) -> bool:
        """Whether somebody reads or writes it now."""
        return self._pins[_file_name(owner, digest)] > 0

    async def find(self, owner: PeerId, digest: bytes, size: int) -> BlobFile | None:
        """What `owner` has left here of a blob, whole or not; `use` opens it. A file that is not what its name says is
        dropped."""
        name = _file_name(owner, digest)
        if name not in self._sizes:
            return None
        async with self._writing:  # a file that is being made is not one that is damaged
            file = await self.run(lambda: BlobFile.open(self.directory / name))
        if file is not None and (file.name.digest, file.name.size) == (digest, size) and name in self._sizes:
            return file
        if file is not None:
            file.close()
        if not self._pins[name]:
            self._remove(name)
        return None

    @contextmanager
    def use(self, owner: PeerId, file: BlobFile) -> Generator[CachedBlob]:
        """Pin what `find` or `create` gave until the context ends, which closes the file."""
        name = _file_name(owner, file.name.digest)
        with self._pinned(name, file) as cached:
            yield cached

    def drop(self, owner: PeerId, digest: bytes) -> None:
        """Forget a blob: it turned out to be none."""
        self._remove(_file_name(owner, digest))

    async def create(self, owner: PeerId, blob: BlobName, leaves: tuple[bytes, ...]) -> BlobFile:
        """A file for a blob that is about to come; `use` opens it.

        Raises:
            DiskFull: there is no room, in the cache or on the disk, beside what is in use. StorageError: the disk
                fails.
        """
        name, size = _file_name(owner, blob.digest), BlobFile.nbytes(blob.size)
        async with self._writing:
            if self._pins[name]:
                raise StorageError("another task of the same requester is getting this input")
            if name in self._sizes:
                self._remove(name)
            if not self._make_room(size, _owner_name(owner)):
                raise DiskFull(
                    f"the cache of inputs has no room for {size} bytes: it may take {self.max_bytes}, half of that "
                    "for one requester; give `up` a larger --cache"
                )
            self._sizes[name] = size  # before the file is there: nobody else gets this room
            try:
                return await self.run(lambda: BlobFile.create(self.directory / name, blob, leaves))
            except BaseException:
                self._sizes.pop(name, None)
                raise
