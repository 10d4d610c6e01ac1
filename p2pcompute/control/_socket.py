"""The name of a control socket, for whoever serves it and whoever asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Final

__all__ = ["socket_address"]

_SUN_PATH: Final = 107  # sockaddr_un.sun_path less its closing NUL, Linux


@contextlib.contextmanager
def socket_address(path: Path) -> Generator[str]:
    """A name for `path` that fits into a socket address: through a descriptor of its directory where it is long.

    Raises:
        FileNotFoundError: the directory is missing.
    """
    if len(os.fsencode(path)) <= _SUN_PATH:
        yield os.fspath(path)
        return
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
