"""Programs in JavaScript beside a test: js-libp2p from npm, and a peer that was written from `protocols/` alone."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio

JS = Path(__file__).with_name("js")
PATIENCE_S = 400.0  # bounds a hang; nothing is expected to take that long

_INSTALLED = (JS / "node_modules" / ".package-lock.json").exists() and shutil.which("node") is not None
needs_js = pytest.mark.skipif(not _INSTALLED, reason="js-libp2p is not installed: run `make interop`")


class JsError(Exception):
    """What the other side threw: the name of its error, what it says, and those inside of it."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.name: str = error["name"]
        self.causes: list[str] = error["causes"]
        super().__init__(f"{error['name']}: {error['message']} {error['causes']}")


class JsProgram:
    """A program that takes commands and gives answers and events, a line of JSON each. Made by `run_js`."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._calls: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._events: defaultdict[
            str, tuple[trio.MemorySendChannel[dict[str, Any]], trio.MemoryReceiveChannel[dict[str, Any]]]
        ] = defaultdict(lambda: trio.open_memory_channel[dict[str, Any]](1000))
        self._last = 0
        self.ending = False
        self.peer = ""
        self.address = ""

    async def call(self, do: str, **command: object) -> dict[str, Any]:
        """The answer to a command. Raises `JsError` where the other side fails."""
        self._last += 1
        number = self._last
        sender, receiver = trio.open_memory_channel[dict[str, Any]](1)
        self._calls[number] = sender
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps({"id": number, "do": do, **command}).encode() + b"\n")
        answer = await receiver.receive()
        if "error" in answer:
            raise JsError(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def event(self, name: str) -> dict[str, Any]:
        """The next event of that name."""
        return await self._events[name][1].receive()

    async def end(self) -> None:
        """No more commands: the program stops what it runs and ends."""
        assert self._process.stdin is not None
        self.ending = True
        await self._process.stdin.aclose()

    async def read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                said: dict[str, Any] = json.loads(line)
                if "id" in said:
                    self._calls.pop(said["id"]).send_nowait(said)  # of a call that was cancelled nobody takes it
                else:
                    self._events[said["event"]][0].send_nowait(said)
        assert self.ending, "the program in JavaScript ended before it was told to; it has said why on stderr"


@asynccontextmanager
async def run_js(program: str, options: dict[str, Any] | None = None) -> AsyncGenerator[JsProgram, None]:
    """Run a program of `js/` while the context is open; it is ready then. Afterwards it has ended by itself."""
    command = ["node", "--import", "./polyfill.mjs", program, json.dumps(options or {})]
    process = await trio.lowlevel.open_process(command, stdin=PIPE, stdout=PIPE, cwd=JS)
    js = JsProgram(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(js.read)  # it ends where its pipe does
            ready = await js.event("ready")
            js.peer = ready.get("peer", "")
            js.address = next(iter(ready.get("addresses", ())), "")
            yield js
            await js.end()
            assert await process.wait() == 0
    finally:
        js.ending = True
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()
