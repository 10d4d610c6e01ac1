"""A 32-byte secret in a file that only its owner can read, made once and never half written.

The file is text: one line that says what it is, one with 64 hexadecimal digits. It is written under a
temporary name with mode 0600, flushed to disk and then given its name with `link`, which fails where the name
exists: of two processes that race, one wins and the other loads what the winner wrote, and a crash leaves
either no key or a whole one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from p2pcompute.errors import IdentityError

__all__ = ["SECRET_BYTES", "load_or_create_secret", "read_private", "store_new", "sync_directory"]

SECRET_BYTES = 32
_MAX_FILE_BYTES = 256  # a key file is about 100 bytes; anything bigger is something else


def load_or_create_secret(path: Path, *, kind: str, create: Callable[[], bytes]) -> bytes:
    """The secret in `path`, made with `create` where there is no such file.

    Args:
        path: the file. Missing parent directories are made with mode 0700.
        kind: what the first line says, such as "p2pcompute node key v1".
        create: gives a fresh secret of `SECRET_BYTES` bytes.

    Raises:
        IdentityError: the file is malformed, readable by others or not ours, or can't be read or made.
    """
    try:
        found = _load(path, kind)
        if found is not None:
            return found
        _store(path, kind, create())
        found = _load(path, kind)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise IdentityError(
            f"{path}: cannot read or make the key file ({reason}); check the path and its permissions"
        ) from None
    if found is None:
        raise IdentityError(f"{path}: the key file vanished while it was made; start again")
    return found


def _load(path: Path, kind: str) -> bytes | None:
    data = _read(path, kind, _MAX_FILE_BYTES + 1, "move it away and a new key is made")
    return None if data is None else _parse(path, kind, data)


def read_private(path: Path, *, most_bytes: int) -> bytes | None:
    """What is in a file that nobody else can read; None where there is none.

    Raises:
        IdentityError: others can read it, it is not ours, larger than `most_bytes`, or can't be read.
    """
    try:
        data = _read(path, "secret", most_bytes + 1, "use another secret")
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise IdentityError(f"{path}: cannot be read ({reason}); check the path and its permissions") from None
    if data is not None and len(data) > most_bytes:
        raise IdentityError(f"{path}: is larger than {most_bytes} bytes, so it is something else")
    return data


def _read(path: Path, kind: str, most_bytes: int, instead: str) -> bytes | None:
    try:
        # O_NONBLOCK: opening a pipe that somebody put there must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise IdentityError(f"{path}: not a regular file; name a file that holds a {kind}")
        if info.st_uid != os.geteuid():
            raise IdentityError(
                f"{path}: belongs to user {info.st_uid}, not to {os.geteuid()} who runs this; "
                f"chown it or name another key file"
            )
        if info.st_mode & 0o077:
            raise IdentityError(
                f"{path}: mode {stat.S_IMODE(info.st_mode):04o} lets others read it; if it is still secret, "
                f"run `chmod 600 {path}`, otherwise {instead}"
            )
        return os.read(fd, most_bytes)
    finally:
        os.close(fd)


def _parse(path: Path, kind: str, data: bytes) -> bytes:
    lines = data.split(b"\n")
    if len(lines) == 3 and lines[0] == kind.encode("ascii") and not lines[2] and len(lines[1]) == 2 * SECRET_BYTES:
        with contextlib.suppress(ValueError):
            return bytes.fromhex(lines[1].decode("ascii", "replace"))
    # The contents are never put into the message: they may be most of a key.
    raise IdentityError(f"{path}: not a {kind}; restore it from a backup, or move it away and a new key is made")


def _store(path: Path, kind: str, secret: bytes) -> None:
    if len(secret) != SECRET_BYTES:
        raise IdentityError(f"{path}: a {kind} has {SECRET_BYTES} bytes")
    store_new(path, kind.encode("ascii") + b"\n" + secret.hex().encode("ascii") + b"\n")


def store_new(path: Path, data: bytes) -> bool:
    """Write a file that only its owner can read, whole or not at all; False where there is one of that name already.

    Raises:
        OSError: it can't be made.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
            new = True
        except FileExistsError:  # somebody else was first: theirs is what counts
            new = False
    finally:
        os.unlink(temporary)
    sync_directory(path.parent)
    return new


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
