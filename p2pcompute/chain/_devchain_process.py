"""The development chain in a process of its own, owned by an async context manager."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from p2pcompute.errors import ChainUnreachable

__all__ = ["DevChainProcess"]

_START_S = 60.0
_STOP_S = 2.0


class DevChainProcess:
    """`python -m p2pcompute.chain.devchain` as a child process: up inside `async with`, gone after it.

    Leaving stops it with SIGTERM, and kills it where that takes longer than two seconds; so does cancellation.

    Args:
        data_dir: where the chain is kept.
        port: its TCP port on loopback, or 0 for any that is free.
        block_time_s: see `serve_devchain`.

    Attributes:
        url: its JSON-RPC endpoint.
        process: the child.

    Raises:
        ChainUnreachable: it did not start; the message is what it said.
    """

    process: trio.Process

    def __init__(self, data_dir: Path | str, *, port: int = 0, block_time_s: float | None = None) -> None:
        self._command = [sys.executable, "-m", "p2pcompute.chain.devchain"]
        self._command += ["--data-dir", os.fspath(data_dir), "--port", str(port)]
        if block_time_s is not None:
            self._command += ["--block-time", str(block_time_s)]
        self._command.append("--until-stdin-closes")  # so that it does not outlive an owner that was killed
        self.url = ""

    async def __aenter__(self) -> Self:
        # A session of its own: a Ctrl-C at the terminal reaches its owner, who stops it in order.
        self.process = await trio.lowlevel.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            with trio.fail_after(_START_S):
                self.url = (await self._first_line()).decode("ascii", "replace").strip()
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.kill()
            raise
        return self

    async def _first_line(self) -> bytes:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = b""
        while not line.endswith(b"\n"):
            more = await self.process.stdout.receive_some(1024)
            if not more:
                said = await self.process.stderr.receive_some(4096)
                raise ChainUnreachable(
                    "the development chain did not start: "
                    + (said.decode("utf-8", "replace").strip() or "it said nothing; run it by hand to see")
                )
            line += more
        return line

    async def kill(self) -> None:
        """End it at once, as a crash would; what it has acknowledged is safe."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._close_pipes()

    async def stop(self) -> None:
        """End it in order."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        with trio.move_on_after(_STOP_S):
            await self.process.wait()
        await self.kill()

    async def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                await pipe.aclose()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):
            await self.stop()
