"""The embedded development chain that nodes of one machine share: the first one up runs it, the others join."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import urlsplit

import trio

from p2pcompute._log import log_event
from p2pcompute._private_files import open_private, private_directory
from p2pcompute._profile import NetworkDir
from p2pcompute.chain import DevChainProcess
from p2pcompute.errors import ChainUnreachable

__all__ = ["serve_local_chain"]

_log = logging.getLogger("p2pcompute.node")

_LOOK_S: Final = 0.25
_PATIENCE_S: Final = 60.0


@contextlib.contextmanager
def _lock(path: Path) -> Generator[bool]:
    """Hold the lock on `path`, or find that somebody else does. The kernel drops it with its process."""
    private_directory(path.parent)
    fd, _ = open_private(path)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


async def serve_local_chain(
    directory: NetworkDir, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Keep the development chain of a network up until cancelled; reports its URL once it answers.

    Where another process of this machine runs the chain, that one is joined, and taken over, on the same port, when
    its owner ends: the state is on disk, and the owner's end does not leave the others without a chain.

    Raises:
        ConfigError: the network's directory can't be made, or others can write to it.
        ChainUnreachable: it did not start, or whoever is starting it does not get there.
    """
    reported: list[str] = []

    def report(url: str) -> None:
        if not reported:
            reported.append(url)
            task_status.started(url)

    deadline = trio.current_time() + _PATIENCE_S
    while True:
        with _lock(directory.path / "chain.lock") as ours:
            url = directory.chain_url()
            if url is not None:
                report(url)
            elif ours:
                try:
                    await _run(directory, _port(reported), report)
                    _log.warning("the development chain ended by itself; starting it again")
                except ChainUnreachable as exc:
                    if not reported:
                        raise
                    _log.warning("%s; trying again", exc)
        if not reported and trio.current_time() > deadline:
            raise ChainUnreachable(
                "another process of this machine is starting the development chain and does not finish; stop it, or "
                "name a chain with --chain"
            )
        await trio.sleep(_LOOK_S)


def _port(reported: list[str]) -> int:
    # Whoever joined talks to the URL that it was given, so a chain that is started again keeps its port.
    return (urlsplit(reported[0]).port or 0) if reported else 0


async def _run(directory: NetworkDir, port: int, report: Callable[[str], None]) -> None:
    """Run the chain as a child until it ends."""
    log_event(_log, "starting", "starting a development chain", step="chain")
    async with DevChainProcess(directory.chain_data, port=port) as chain:
        with directory.announce_chain(chain.url):
            report(chain.url)
            await chain.process.wait()
