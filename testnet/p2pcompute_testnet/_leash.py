"""Run a command so that it can't outlive whoever started it: ``python -m p2pcompute_testnet._leash COMMAND…``.

Standard input has to be a pipe that the owner holds open and never writes to. When its other end is closed, which
the kernel does even for an owner that was killed, the kernel sends SIGKILL to this process group. No thread, no
signal handler and no cooperation of the command is needed, and it holds over `exec`. (A parent-death signal would
come when the *thread* that forked ends, which for an asynchronous owner is any worker thread of a pool.)
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
from typing import Final, NoReturn

__all__ = ["leash", "main"]

_F_SETSIG: Final = 10  # fcntl(2); Python's module has no name for it


def leash() -> None:
    """Tie this process group to the pipe on standard input; the process must lead its group."""
    fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(0, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    watched = select.poll()
    watched.register(0, select.POLLIN)
    if watched.poll(0):  # it was closed before we asked to be told
        os._exit(1)


def main() -> NoReturn:
    """Put the leash on and become the command."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    leash()
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
