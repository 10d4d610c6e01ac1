"""Bubblewrap around a worker: namespaces of its own and a file tree that holds only what it may read.

It is a second wall, not the first: the worker locks itself from inside either way. Whether bubblewrap works is
found out by running it, since containers and kernel settings forbid user namespaces in many ways.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import trio

__all__ = ["Bwrap", "probe_bwrap"]

_NAMESPACES = (
    "--unshare-user",
    "--unshare-pid",
    "--unshare-net",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup-try",
)
_PROBE_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bwrap:
    """A bubblewrap that works here.

    Attributes:
        path: the program.
        version: what it says of itself.
        disable_userns: whether it can also forbid further user namespaces (0.8 and newer).
    """

    path: str
    version: str
    disable_userns: bool

    def command(self, readable: Sequence[str], *, info_fd: int | None, devices: Sequence[str] = ()) -> list[str]:
        """The command line in front of the worker's own. `devices` are nodes that it may drive."""
        argv = [self.path, *_NAMESPACES]
        if self.disable_userns:
            argv.append("--disable-userns")
        # PID 1 of its namespace is the worker itself, so the PID in the info pipe is the one to kill and to time.
        argv += ["--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        argv += ["--proc", "/proc", "--dev", "/dev"]
        for path in readable:
            if not path.startswith(("/dev/", "/proc/")):
                argv += ["--ro-bind-try", path, path]
        for path in devices:
            argv += ["--dev-bind-try", path, path]
        argv += ["--chdir", "/"]
        if info_fd is not None:
            argv += ["--info-fd", str(info_fd)]
        return [*argv, "--"]


async def probe_bwrap(python: str, readable: Sequence[str], devices: Sequence[str] = ()) -> tuple[Bwrap | None, str]:
    """Run bubblewrap once as a worker would be. Returns it, or None, and a word on what was found."""
    path = shutil.which("bwrap")
    if path is None:
        return None, "bubblewrap is not installed"
    said = await _run([path, "--version"])
    version = said[1].strip()
    why = ""
    for disable_userns in (True, False):
        bwrap = Bwrap(path=path, version=version, disable_userns=disable_userns)
        code, why = await _run([*bwrap.command(readable, info_fd=None, devices=devices), python, "-I", "-c", "pass"])
        if code == 0:
            return bwrap, version
    return None, f"{version} is installed but does not work here: {' '.join(why.split())[:200] or 'no reason given'}"


async def _run(argv: list[str]) -> tuple[int, str]:
    with trio.move_on_after(_PROBE_TIMEOUT_S):
        try:
            done = await trio.run_process(argv, stdin=b"", capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        except OSError as error:
            return 127, str(error)
        return done.returncode, (done.stdout or b"").decode(errors="replace")
    return 124, "it did not end in time"
