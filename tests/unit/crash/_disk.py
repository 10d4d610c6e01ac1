"""A disk that can lose power: records what SQLite writes, and makes what such a disk could hold afterwards.

`Recorder` puts a thin layer around the VFS of the very SQLite library that Python's `sqlite3` uses. Each write,
truncation, sync, creation and removal still goes to the real file, and is noted. Nothing of the ledger changes: the
layer is the library's default VFS for as long as it is there.

`Disk` plays a prefix of those notes. What was written since a file's last sync may be on the disk in any part and any
order: `Disk.image` takes a subset of its sectors, torn ones and garbage among them. SQLite's assumption about a disk
is kept (sqlite.org/atomiccommit.html, "powersafe overwrite"): a write harms no byte outside of its range.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["SECTOR", "VARIANTS", "Disk", "Left", "Note", "Recorder"]

SECTOR: Final = 512
_OK: Final = 0
_IOERR_FSYNC: Final = 10 | (4 << 8)

_P: Final = ctypes.c_void_p
# Names are passed on as the pointers that they are: SQLite keeps them.
_XOPEN: Final = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, _P, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
_XDELETE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, ctypes.c_int)
_XWRITE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, ctypes.c_int, ctypes.c_int64)
_XTRUNCATE: Final = ctypes.CFUNCTYPE(ctypes.c_int, _P, ctypes.c_int64)
_XSYNC: Final = ctypes.CFUNCTYPE(ctypes.c_int, _P, ctypes.c_int)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", _P),
        ("zName", ctypes.c_char_p),
        ("pAppData", _P),
        ("xOpen", _XOPEN),
        ("xDelete", _XDELETE),
        *((name, _P) for name in ("xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose")),
        *((name, _P) for name in ("xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64")),
        *((name, _P) for name in ("xSetSystemCall", "xGetSystemCall", "xNextSystemCall")),
    )


class _Methods(ctypes.Structure):
    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("xClose", _P),
        ("xRead", _P),
        ("xWrite", _XWRITE),
        ("xTruncate", _XTRUNCATE),
        ("xSync", _XSYNC),
        *((name, _P) for name in ("xFileSize", "xLock", "xUnlock", "xCheckReservedLock", "xFileControl")),
        *((name, _P) for name in ("xSectorSize", "xDeviceCharacteristics")),
        *((name, _P) for name in ("xShmMap", "xShmLock", "xShmBarrier", "xShmUnmap", "xFetch", "xUnfetch")),
    )


class _File(ctypes.Structure):
    _fields_ = (("pMethods", ctypes.POINTER(_Methods)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that happened to a file. `kind` is create, write, truncate, sync, failed (sync), remove, or directory
    (synced)."""

    kind: str
    path: str
    offset: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Something that left the process: from here on the disk of `who` has to hold what `what` says."""

    who: str
    what: tuple[Any, ...]


class Recorder:
    """Notes of all databases that this process opens while `installed`.

    Attributes:
        notes: what happened, in order, with `Left`s between.
        fail_syncs: which syncs fail, counted from 0 over all files.
        lost_syncs: which syncs a lying disk leaves out, and says that it did them.
        syncs: how many there were.
    """

    def __init__(self) -> None:
        self.notes: list[Note | Left] = []
        self.fail_syncs: Callable[[int], bool] = lambda _: False
        self.lost_syncs: Callable[[int], bool] = lambda _: False
        self.syncs = 0
        self._paths: dict[int, str] = {}
        self._seen: set[str] = set()
        self._library = ctypes.CDLL(getattr(_sqlite3, "__file__", None))  # where it is part of Python itself, that
        self._library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        self._library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [ctypes.POINTER(_Vfs), ctypes.c_int]
        self._library.sqlite3_vfs_unregister.argtypes = [ctypes.POINTER(_Vfs)]
        self._real = self._library.sqlite3_vfs_find(b"unix").contents
        self._methods: dict[int, _Methods] = {}  # by the address of the real ones
        self._by_file: dict[int, _Methods] = {}  # the real ones of an open file
        self._vfs = _Vfs.from_buffer_copy(self._real)
        self._vfs.zName = b"recorded"
        # Kept for as long as SQLite may call them.
        self._vfs.xOpen = self._xopen = _XOPEN(self._open)
        self._vfs.xDelete = self._xdelete = _XDELETE(self._delete)
        self._xwrite, self._xtruncate, self._xsync = (
            _XWRITE(self._write),
            _XTRUNCATE(self._truncate),
            _XSYNC(self._sync),
        )

    @contextmanager
    def installed(self) -> Iterator[Recorder]:
        """Databases opened inside are recorded; close them before it ends."""
        if self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) != _OK:
            raise RuntimeError("SQLite took no VFS")
        fsync = os.fsync

        def noted(fd: int) -> None:
            fsync(fd)
            path = os.readlink(f"/proc/self/fd/{fd}")
            if os.path.isdir(path):
                self.notes.append(Note(kind="directory", path=path))

        os.fsync = noted
        try:
            yield self
        finally:
            os.fsync = fsync
            self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def left(self, who: str, *what: Any) -> None:
        """Note that something left."""
        self.notes.append(Left(who=who, what=what))

    def known(self, path: Path) -> None:
        """Start with a file that is on the disk already."""
        self._seen.add(str(path))

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = "" if name is None else os.fsdecode(ctypes.string_at(name))
        missing = not os.path.exists(path)
        code = self._real.xOpen(vfs, name, file, flags, out)
        if code != _OK or name is None:
            return int(code)
        if missing or path not in self._seen:
            # The main file is made before SQLite sees it, by `open_private`.
            self.notes.append(Note(kind="create", path=path))
        self._seen.add(path)
        self._paths[file] = path
        handle = ctypes.cast(file, ctypes.POINTER(_File)).contents
        address = ctypes.addressof(handle.pMethods.contents)
        if address not in self._methods:
            methods = _Methods.from_buffer_copy(handle.pMethods.contents)
            methods.xWrite, methods.xTruncate, methods.xSync = self._xwrite, self._xtruncate, self._xsync
            self._methods[address] = methods
        self._by_file[file] = handle.pMethods.contents
        handle.pMethods = ctypes.pointer(self._methods[address])
        return _OK

    def _delete(self, vfs: int, name: int, synced: int) -> int:
        code = int(self._real.xDelete(vfs, name, synced))
        if code == _OK:
            path = os.fsdecode(ctypes.string_at(name))
            self.notes.append(Note(kind="remove", path=path))
            if synced:
                self.notes.append(Note(kind="directory", path=os.path.dirname(path)))
        return code

    def _write(self, file: int, data: int, amount: int, offset: int) -> int:
        code = int(self._by_file[file].xWrite(file, data, amount, offset))
        if code == _OK:
            self.notes.append(
                Note(kind="write", path=self._paths[file], offset=offset, data=ctypes.string_at(data, amount))
            )
        return code

    def _truncate(self, file: int, size: int) -> int:
        code = int(self._by_file[file].xTruncate(file, size))
        if code == _OK:
            self.notes.append(Note(kind="truncate", path=self._paths[file], offset=size))
        return code

    def _sync(self, file: int, flags: int) -> int:
        number, self.syncs = self.syncs, self.syncs + 1
        if self.fail_syncs(number):
            self.notes.append(Note(kind="failed", path=self._paths[file]))
            return _IOERR_FSYNC
        # Not done for real: nothing here loses power, and a real one only costs time.
        if not self.lost_syncs(number):
            self.notes.append(Note(kind="sync", path=self._paths[file]))
        return _OK


@dataclass(slots=True)
class _OnDisk:
    data: bytearray = field(default_factory=bytearray)
    pending: list[Note] = field(default_factory=list)
    entry: bool = False  # whether its name would be found
    removed: bool = False  # its removal may or may not be on the disk


class Disk:
    """What is on a disk for certain, and what may be, after some notes.

    Args:
        start: files that are there for certain at first.
        failed: which writes a failed sync has brought to the disk; the others are lost for good. See `VARIANTS`.
    """

    def __init__(self, start: dict[str, bytes] | None = None, *, failed: str = "nothing of it") -> None:
        self._failed = VARIANTS[failed]
        self._chance = random.Random(failed)
        self._files = {path: _OnDisk(data=bytearray(data), entry=True) for path, data in (start or {}).items()}

    def play(self, note: Note) -> None:
        """The next note."""
        if note.kind == "directory":
            self._sync_directory(note.path)
            return
        if note.kind == "create":
            old = self._files.get(note.path)
            if old is None or old.removed:
                self._files[note.path] = _OnDisk()
            return
        file = self._files[note.path]
        match note.kind:
            case "remove":
                file.removed = True
            case "failed":
                # The kernel marks the pages clean whatever became of them, and the next sync says that all is well
                # (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
                for number, change in enumerate(file.pending):
                    if self._failed.kept(self._chance, number, len(file.pending)):
                        _apply(file.data, change)
                file.pending.clear()
            case "sync":
                for change in file.pending:
                    _apply(file.data, change)
                file.pending.clear()
                if not file.entry and note.path.endswith(("-wal", "-journal")):
                    # SQLite's unix VFS syncs the directory of a log that it made with the log's first sync.
                    self._sync_directory(os.path.dirname(note.path))
            case _:
                file.pending.append(note)

    def _sync_directory(self, directory: str) -> None:
        for path, file in list(self._files.items()):
            if os.path.dirname(path) == directory:
                if file.removed:
                    del self._files[path]
                file.entry = True

    def image(self, directory: str, variant: str, seed: str) -> dict[str, bytes]:
        """Files that may be below `directory` after power is lost now; their names without it."""
        chance = random.Random(f"{seed}/{variant}")
        choose = VARIANTS[variant]
        found: dict[str, bytes] = {}
        for path, file in self._files.items():
            if not path.startswith(directory + os.sep):
                continue
            if file.removed and choose.kept(chance, 0, 1):
                continue
            if not file.entry and not choose.kept(chance, 0, 1):
                continue
            data = bytearray(file.data)
            for number, change in enumerate(file.pending):
                if change.kind == "truncate":
                    if choose.kept(chance, number, len(file.pending)):
                        _apply(data, change)
                elif choose.sectors:
                    for part in _sectors(change):
                        _persist(data, part, choose, chance, number, len(file.pending))
                else:
                    _persist(data, change, choose, chance, number, len(file.pending))
            found[path[len(directory) + 1 :]] = bytes(data)
        return found

    def pending(self, directory: str) -> int:
        """How many writes below `directory` are not synced."""
        return sum(len(file.pending) for path, file in self._files.items() if path.startswith(directory + os.sep))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Which unsynced writes are on the disk: `kept` gets chance, a write's number and how many there are."""

    kept: Callable[[random.Random, int, int], bool]
    sectors: bool = False
    torn: bool = False
    garbage: bool = False  # what a lost write would have made longer holds garbage, not zeros


VARIANTS: Final[dict[str, _Choice]] = {
    "nothing of it": _Choice(kept=lambda _, number, count: False),
    "all of it": _Choice(kept=lambda _, number, count: True),
    "all but the last": _Choice(kept=lambda _, number, count: number < count - 1),
    "all but the first": _Choice(kept=lambda _, number, count: number > 0),
    "half of it, whole writes": _Choice(kept=lambda chance, number, count: chance.random() < 0.5),
    "half of it, by sectors": _Choice(kept=lambda chance, number, count: chance.random() < 0.5, sectors=True),
    "most of it, torn": _Choice(kept=lambda chance, number, count: chance.random() < 0.9, sectors=True, torn=True),
    "most of it, and garbage": _Choice(
        kept=lambda chance, number, count: chance.random() < 0.8, sectors=True, garbage=True
    ),
}


def _sectors(note: Note) -> Iterator[Note]:
    at = 0
    while at < len(note.data):
        end = min(len(note.data), at + SECTOR - (note.offset + at) % SECTOR)
        yield Note(kind="write", path=note.path, offset=note.offset + at, data=note.data[at:end])
        at = end


def _persist(data: bytearray, note: Note, choose: _Choice, chance: random.Random, number: int, count: int) -> None:
    if choose.kept(chance, number, count):
        if choose.torn and chance.random() < 0.3:
            note = Note(
                kind="write", path=note.path, offset=note.offset, data=note.data[: chance.randrange(len(note.data))]
            )
        _apply(data, note)
    elif choose.garbage and len(data) < note.offset + len(note.data):
        data.extend(bytes(note.offset - len(data)))
        data.extend(chance.randbytes(note.offset + len(note.data) - len(data)))


def _apply(data: bytearray, note: Note) -> None:
    if note.kind == "truncate":
        del data[note.offset :]
        data.extend(bytes(note.offset - len(data)))
        return
    end = note.offset + len(note.data)
    if len(data) < note.offset:
        data.extend(bytes(note.offset - len(data)))
    data[note.offset : end] = note.data


def write_image(image: dict[str, bytes], directory: Path) -> None:
    """Put an image into an empty directory, as the next start finds it. Shared memory never outlives a power cut."""
    directory.mkdir(mode=0o700, parents=True)
    for name, data in image.items():
        path = directory / name
        path.touch(mode=0o600)
        path.write_bytes(data)


def count_points(notes: Sequence[Note | Left]) -> int:
    """How many write points there are."""
    return sum(isinstance(note, Note) for note in notes)
