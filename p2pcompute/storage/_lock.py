"""One ledger, one process: a lock file beside the database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from p2pcompute._private_files import open_private, private_directory
from p2pcompute.errors import ProfileInUse

__all__ = ["LedgerLock"]


class LedgerLock:
    """An exclusive lock on a file, held from construction to `release` or the end of the process.

    It is `flock(2)`: tied to the open file and not to the process, so that a second ledger in this process is
    refused as well, and the kernel drops it when the process dies, however it dies.

    Raises:
        ProfileInUse: another holder; the message names its process.
        ConfigError: others can write to the directory, or the file is a link; see `_private_files`.
    """

    def __init__(self, path: Path) -> None:
        private_directory(path.parent)
        self.path = path
        # Through a link, what is written into it below would end up in another file of this user.
        self._fd, _ = open_private(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise ProfileInUse(
                f"the ledger in {path.parent} is in use by process {holder}; talk to that node through its control "
                "API, stop it, or start this one with another profile"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Give the lock up. The file stays: removing it would race with the next holder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
