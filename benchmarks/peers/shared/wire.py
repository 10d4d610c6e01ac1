"""Bytes and small messages over streams of trio: the same for a bare socket, py-libp2p as it comes, and ours.

A stream has `send_all(data)`, `receive_some()` (b"" at its end), `close_write()`, `aclose()`, and where it can fill
memory of the caller's `receive_into(buffer)`. What it is for is said by its protocol, or by its first byte where there
are none.

- `SINK`: eight bytes of how many come, one that says whether they are to be hashed, the bytes. The answer is the number
  that came, and the digest.
- `ECHO`: messages of `MESSAGE` bytes, each with its length in front; each is answered by one of the same size.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio
from side import BLOCK, MESSAGE, answer, blocks, commands, digest_of, ready

__all__ = ["ECHO", "SINK", "Client", "drive", "echo", "sink"]

SINK = "/p2pcompute-benchmark/sink/1"
ECHO = "/p2pcompute-benchmark/echo/1"
_LENGTH = (MESSAGE - 4).to_bytes(4, "big")
_REQUEST = _LENGTH + bytes(MESSAGE - 4)


class Stream(Protocol):
    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self) -> bytes: ...
    async def close_write(self) -> None: ...
    async def aclose(self) -> None: ...


class Client(Protocol):
    """How a peer's driving side reaches its serving side."""

    async def open(self, protocol: str) -> Stream:
        """A new stream; over a connection that is there, where the transport has such."""
        ...

    def connecting(self) -> AbstractAsyncContextManager[Callable[[], Awaitable[None]]]:
        """A new identity that has never connected, and the call that connects it and learns who the other is."""
        ...


async def sink(stream: Stream) -> None:
    """The receiving end of `SINK`."""
    data = bytearray()
    while len(data) < 9:
        data += await _some(stream)
    length, hashed = int.from_bytes(data[:8], "big"), bool(data[8])
    found = hashlib.sha256()
    got = len(data) - 9
    if hashed:
        found.update(memoryview(data)[9:])
    into = getattr(stream, "receive_into", None)
    buffer = memoryview(bytearray(BLOCK))
    while got < length:
        if into is None:
            piece = await _some(stream)
        else:
            piece = buffer[: await into(buffer)]
            if not piece:
                raise EOFError("the stream ended early")
        got += len(piece)
        if hashed:
            found.update(piece)
    await stream.send_all(got.to_bytes(8, "big") + found.digest())


async def echo(stream: Stream) -> None:
    """The answering end of `ECHO`: takes messages apart, and answers all that are there in one call."""
    rest = b""
    while data := await stream.receive_some():
        data = rest + data if rest else data
        at = replies = 0
        while at + 4 <= len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            if end > len(data):
                break
            replies += 1
            at = end
        rest = data[at:]
        if replies:
            await stream.send_all(_REQUEST * replies)


async def _some(stream: Stream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise EOFError("the stream ended early")
    return data


async def _exactly(stream: Stream, count: int) -> bytes:
    data = await _some(stream)
    while len(data) < count:
        data += await _some(stream)
    return data


async def _bulk(client: Client, *, nbytes: int, check: bool) -> dict[str, Any]:
    stream = await client.open(SINK)
    block = bytes(BLOCK)
    began = time.perf_counter()
    await stream.send_all(nbytes.to_bytes(8, "big") + bytes([check]))
    if check:
        for one in blocks(nbytes):
            await stream.send_all(one)
    else:
        for _ in range(nbytes // BLOCK):
            await stream.send_all(block)
    said = await _exactly(stream, 40)
    spent = time.perf_counter() - began
    await stream.aclose()
    if int.from_bytes(said[:8], "big") != nbytes:
        raise AssertionError("bytes are missing")
    if check and said[8:].hex() != digest_of(nbytes):
        raise AssertionError("other bytes came than were sent")
    return {"s": spent, "units": nbytes / BLOCK}


async def _ask(stream: Stream) -> None:
    await stream.send_all(_REQUEST)
    await _exactly(stream, MESSAGE)


async def _repeated(call: Callable[[], Awaitable[None]], *, seconds: float, most: int) -> dict[str, Any]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < most:
        began = time.perf_counter()
        await call()
        now = time.perf_counter()
        times.append((now - began) * 1000)
        if now > end:
            break
    return {"times_ms": times, "units": len(times)}


async def _request(client: Client, *, seconds: float, most: int) -> dict[str, Any]:
    stream = await client.open(ECHO)
    for _ in range(20):
        await _ask(stream)
    found = await _repeated(lambda: _ask(stream), seconds=seconds, most=most)
    await stream.aclose()
    return found


async def _fresh(client: Client, *, seconds: float, most: int) -> dict[str, Any]:
    async def once() -> None:
        stream = await client.open(ECHO)
        await _ask(stream)
        await stream.aclose()

    await once()
    return await _repeated(once, seconds=seconds, most=most)


async def _flight(client: Client, *, seconds: float, flight: int) -> dict[str, Any]:
    """So many requests are always under way: whoever has its reply asks again, all that have it in one call."""
    stream = await client.open(ECHO)
    await _ask(stream)
    began = time.perf_counter()
    await stream.send_all(_REQUEST * flight)
    replied = got = 0
    while (now := time.perf_counter()) - began < seconds:
        got += len(await _some(stream))
        replies, got = divmod(got, MESSAGE)
        replied += replies
        if replies:
            await stream.send_all(_REQUEST * replies)
    await stream.close_write()
    while await stream.receive_some():
        pass
    await stream.aclose()
    return {"s": now - began, "units": replied}


async def _connect(client: Client, *, count: int) -> dict[str, Any]:
    times = []
    for _ in range(count):
        async with client.connecting() as connect:
            began = time.perf_counter()
            await connect()
            times.append((time.perf_counter() - began) * 1000)
    return {"times_ms": times, "units": count}


MEASURES = {"bulk": _bulk, "request": _request, "stream": _fresh, "flight": _flight, "connect": _connect}


async def _orders() -> AsyncIterator[dict[str, Any]]:
    lines = commands()
    while (order := await trio.to_thread.run_sync(next, lines, None, abandon_on_cancel=True)) is not None:
        yield order


async def drive(client: Client) -> None:
    """Measure what is asked for, until there is no more."""
    ready()
    async for order in _orders():
        answer(await MEASURES[order.pop("do")](client, **order))
