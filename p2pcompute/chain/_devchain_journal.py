"""The development chain's memory: an append-only file of raw transactions and block times.

The state is not stored but made again by running every block. Each line is

    CRC-32 of the rest in 8 hex digits, a blank, a JSON object

The first describes the genesis, each other one a block: its time, its transactions and the hash that came out.
A last line that is torn was never acknowledged and is cut off; damage anywhere else is an error.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any

from p2pcompute.errors import ConfigError, DiskFull, ProfileInUse, StorageError

__all__ = ["Journal", "JournalCorrupt"]


class JournalCorrupt(StorageError):
    """The development chain's journal is damaged, or does not lead to the blocks that it led to before."""


class Journal:
    """The file, held open and locked by one process.

    Args:
        directory: where `chain.journal` lies; made if it is missing.

    Raises:
        ProfileInUse: another process runs a chain from there.
        ConfigError: the directory can't be used.
        JournalCorrupt: a line other than the last is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "chain.journal"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = not self.path.exists()
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed by close())
        except OSError as exc:
            raise ConfigError(
                f"the chain's directory {directory} can't be used ({exc.strerror}); give another --data-dir"
            ) from exc
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise ProfileInUse(
                    f"another development chain runs from {directory}; use its URL, or another --data-dir"
                ) from exc
            if new:
                _sync_directory(directory)
            self.entries = self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        data = self._file.read()
        entries: list[dict[str, Any]] = []
        good = 0
        while good < len(data):
            end = data.find(b"\n", good)
            entry = _parse(data[good:end]) if end >= 0 else None
            if entry is None:
                if 0 <= end < len(data) - 1:
                    raise JournalCorrupt(
                        f"line {len(entries) + 1} of {self.path} is damaged; move the file away to start a "
                        "new chain, or put a copy of it back"
                    )
                # What a crash has torn was promised to nobody.
                self._file.truncate(good)
                os.fsync(self._file.fileno())
                break
            entries.append(entry)
            good = end + 1
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry; it is on disk when this returns.

        Raises:
            DiskFull: no room for it.
            StorageError: the disk failed.
        """
        text = json.dumps(entry, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
        line = b"%08x %b\n" % (zlib.crc32(text), text)
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._file.fileno())
        except OSError as exc:
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind = DiskFull if full else StorageError
            raise kind(
                f"the chain's journal {self.path} can't be written ({exc.strerror}); make room and start the "
                "chain again: every block that was acknowledged is safe"
            ) from exc

    def close(self) -> None:
        """Give the file and its lock back."""
        self._file.close()


def _parse(line: bytes) -> dict[str, Any] | None:
    crc, blank, text = line[:8], line[8:9], line[9:]
    if blank != b" " or crc != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
