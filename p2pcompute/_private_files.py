"""Directories and files that nobody but their owner can change.

A directory that others can write to makes the modes of the files in it worth nothing: they can be replaced, or
links be put where a file will be made.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from .errors import ConfigError

__all__ = ["make_directories", "open_private", "private_directory"]


def make_directories(path: Path) -> None:
    """Make a directory and the missing ones above it, all of them with mode 0700; `Path.mkdir` gives it to the last
    only."""
    missing: list[Path] = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory)) from None


def private_directory(path: Path) -> None:
    """Make a directory where it is missing, and see that nobody else can write to it.

    Raises:
        ConfigError: others can, or it is another user's; or it can't be made. The message says what to run.
    """
    try:
        make_directories(path)
        info = path.stat()
    except OSError as exc:
        where = "" if exc.filename in (None, str(path), path) else f"{exc.filename}: "
        raise ConfigError(f"{path} can't be used ({where}{exc.strerror}); check the path and its permissions") from exc
    # What root owns only root can change, which can change anything.
    if info.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"{path} belongs to user {info.st_uid}, who can put other files there; use a directory of your own"
        )
    if info.st_mode & 0o022:
        raise ConfigError(
            f"{path} has mode {stat.S_IMODE(info.st_mode):04o}: other users can replace what is in it. If nobody did, "
            f"run `chmod 700 {path}`"
        )


def open_private(path: Path) -> tuple[int, bool]:
    """Open a regular file for reading and writing, made with mode 0600 where it is missing; links are not followed.

    A file that is there gets mode 0600.

    Returns:
        The descriptor, and whether the file is new.

    Raises:
        ConfigError: it is a link, no regular file, or can't be opened. Whose it is is not asked: in a directory that
            passed `private_directory` nobody else can put one.
    """
    # O_NONBLOCK: opening a pipe that somebody put there must not hang.
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            fd, new = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            fd, new = os.open(path, flags), False
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise ConfigError(f"{path} is not a regular file; move it away")
            if stat.S_IMODE(info.st_mode) != 0o600:
                os.fchmod(fd, 0o600)
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise ConfigError(
                f"{path} is a symbolic link, which is not followed; move it away, or link the directory instead"
            ) from exc
        raise ConfigError(f"{path} can't be opened ({exc.strerror}); check its permissions") from exc
    return fd, new
