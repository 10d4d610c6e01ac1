"""What our muxer costs: python benchmarks/network_mux.py [--plain | --chacha] [--mib 256] [--count 2000]

Two processes on loopback. By default two whole overlays, so with Noise, negotiation and libp2p's bookkeeping; with
`--plain` the muxer alone on a TCP socket. CPU is `process_time` of each side; wall time stands beside it and means
little on a busy machine. It prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
from libp2p.peer.id import ID

from p2pcompute.identity import NodeKey
from p2pcompute.overlay import RECEIVE_BYTES, open_libp2p
from p2pcompute.overlay._muxer import Yamux
from p2pcompute.overlay._turns import Turns
from p2pcompute.overlay._upgrader import NOISE_AESGCM_ID, NOISE_ID

MIB = 1 << 20
MESSAGE = 200
KINDS = ("sink", "echo", "cpu")
Opener = Callable[[str], Awaitable[Any]]


class PlainLink:
    """A TCP socket as a link, without encryption."""

    def __init__(self, stream: trio.SocketStream, *, initiator: bool) -> None:
        self.is_initiator = initiator
        self._stream = stream
        self._socket = stream.socket
        self._raw = stream.socket._sock  # type: ignore[attr-defined]
        self._buffer = memoryview(bytearray(MIB))
        self._rest = bytearray()
        self.bytes_sent = 0
        self.turn = Turns().turn("")

    @property
    def unsent(self) -> int:
        return len(self._rest)

    async def receive(self) -> memoryview:
        return self._buffer[: await self._socket.recv_into(self._buffer)]

    def send_nowait(self, parts: Sequence[Any]) -> int:
        total = sum(map(len, parts))
        sent = 0
        if not self._rest:
            try:
                sent = self._raw.sendmsg(parts)
            except BlockingIOError:
                sent = 0
        self.bytes_sent += sent
        if sent < total:
            self._rest += b"".join(parts)[sent:]
        return len(self._rest)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._rest:
            await trio.lowlevel.wait_writable(self._raw)
            sent = self._raw.send(self._rest)
            del self._rest[:sent]
            self.bytes_sent += sent

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Stream:
    """A muxed stream with the names that an overlay's has."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.send_all = stream.write
        self.receive_some = stream.read

    async def aclose(self) -> None:
        self._stream.close_nowait()
        await trio.lowlevel.checkpoint()


async def read_exactly(stream: Any, size: int) -> bytes:
    data = await stream.receive_some(size)
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise EOFError("the stream ended early")
        data += part
    return data


async def serve_stream(kind: str, stream: Any) -> None:
    if kind == "sink":
        left = int.from_bytes(await read_exactly(stream, 8), "big")
        while left:
            left -= len(await stream.receive_some(min(left, RECEIVE_BYTES)))
        await stream.send_all(b"done")
    elif kind == "cpu":
        await stream.send_all(time.process_time_ns().to_bytes(8, "big"))
    else:
        with contextlib.suppress(Exception):  # the end of a plain stream
            while data := await stream.receive_some():
                await stream.send_all(data)
    await stream.aclose()


@asynccontextmanager
async def plain_server() -> AsyncGenerator[str, None]:
    async def serve_connection(socket: trio.SocketStream) -> None:
        mux = Yamux(PlainLink(socket, initiator=False), ID(b"client"))  # type: ignore[arg-type]
        async with trio.open_nursery() as streams:
            streams.start_soon(mux.start)
            try:
                while True:
                    stream = await mux.accept_stream()
                    kind = KINDS[(await stream.read(1))[0]]
                    streams.start_soon(serve_stream, kind, _Stream(stream))
            except Exception:  # noqa: BLE001 - the connection has ended
                streams.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, serve_connection, 0, host="127.0.0.1"))
        yield str(listeners[0].socket.getsockname()[1])


@asynccontextmanager
async def plain_client(address: str) -> AsyncGenerator[Opener, None]:
    socket = await trio.open_tcp_stream("127.0.0.1", int(address))
    mux = Yamux(PlainLink(socket, initiator=True), ID(b"server"))  # type: ignore[arg-type]

    async def open_stream(kind: str) -> Any:
        stream = await mux.open_stream()
        await stream.write(bytes([KINDS.index(kind)]))
        return _Stream(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        yield open_stream
        await mux.close()


class _Anything:
    def validate(self, _key: bytes, _value: bytes) -> bool:
        return True

    def select(self, _key: bytes, _values: Sequence[bytes]) -> int:
        return 0


@asynccontextmanager
async def overlay_server() -> AsyncGenerator[str, None]:
    async with open_libp2p(NodeKey.generate(), record_validator=_Anything()) as overlay:
        for kind in KINDS:

            async def handler(stream: Any, kind: str = kind) -> None:
                await serve_stream(kind, stream)

            overlay.handle(f"/bench/{kind}/1", handler)
        yield overlay.addresses[0]


@asynccontextmanager
async def overlay_client(address: str, *, chacha: bool) -> AsyncGenerator[Opener, None]:
    async with open_libp2p(NodeKey.generate(), listen=(), record_validator=_Anything()) as overlay:
        if chacha:
            overlay._swarm.upgrader._protocols = [NOISE_ID]  # type: ignore[attr-defined]
        peer = await overlay.connect(address)

        async def open_stream(kind: str) -> Any:
            return await overlay.open_stream(peer, f"/bench/{kind}/1")

        yield open_stream


def client_of(address: str, options: argparse.Namespace) -> AbstractAsyncContextManager[Opener]:
    return plain_client(address) if options.plain else overlay_client(address, chacha=options.chacha)


class Meter:
    """CPU of both sides and wall time, per unit of what is done inside."""

    def __init__(self, open_stream: Opener) -> None:
        self._open = open_stream

    async def _now(self) -> tuple[float, float, float]:
        stream = await self._open("cpu")
        far = int.from_bytes(await read_exactly(stream, 8), "big") / 1e9
        await stream.aclose()
        return time.process_time(), far, time.perf_counter()

    async def measure(self, units: int, work: Callable[[], Awaitable[None]]) -> dict[str, float]:
        before = await self._now()
        await work()
        after = await self._now()
        near, far, wall = (1e3 * (b - a) / units for a, b in zip(before, after, strict=True))
        return {"near_cpu_ms": round(near, 4), "far_cpu_ms": round(far, 4), "wall_ms": round(wall, 4)}


async def measure(open_stream: Opener, mib: int, count: int) -> dict[str, Any]:
    meter = Meter(open_stream)
    message = bytes(range(MESSAGE))
    walls: list[float] = []

    async def bulk() -> None:
        stream = await open_stream("sink")
        piece = bytearray(4 * MIB)
        await stream.send_all((mib // 4 * len(piece)).to_bytes(8, "big"))
        for _ in range(mib // 4):
            await stream.send_all(memoryview(piece))
        await read_exactly(stream, 4)
        await stream.aclose()

    async def ask(stream: Any) -> None:
        start = time.perf_counter()
        await stream.send_all(message)
        await read_exactly(stream, MESSAGE)
        walls.append(time.perf_counter() - start)

    async def kept(times: int = count) -> None:
        stream = await open_stream("echo")
        for _ in range(times):
            await ask(stream)
        await stream.aclose()

    async def new() -> None:
        for _ in range(max(1, count // 8)):
            stream = await open_stream("echo")
            await ask(stream)
            await stream.aclose()

    async def many() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(kept, max(1, count // 16))

    result: dict[str, Any] = {}
    await bulk()  # warm
    result["bulk_per_mib"] = await meter.measure(mib, bulk)
    result["bulk_per_mib"]["mb_per_s"] = round(1000 * MIB / 1e6 / result["bulk_per_mib"]["wall_ms"], 1)
    for name, units, work in (
        ("kept_stream_per_request", count, kept),
        ("new_stream_per_request", max(1, count // 8), new),
        ("in_flight_64_per_request", 64 * max(1, count // 16), many),
    ):
        walls.clear()
        result[name] = await meter.measure(units, work)
        result[name]["wall_p50_ms"] = round(1e3 * statistics.median(walls), 4)
    return result


def link_name(options: argparse.Namespace) -> str:
    return "tcp" if options.plain else NOISE_ID if options.chacha else NOISE_AESGCM_ID


async def serve(plain: bool) -> None:
    async with plain_server() if plain else overlay_server() as address:
        sys.stdout.write(address + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


async def main(options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--serve", *(["--plain"] if options.plain else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:  # noqa: ASYNC220 - it only starts it
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            async with client_of(address, options) as open_stream:
                figures = await measure(open_stream, options.mib, options.count)
            sys.stdout.write(json.dumps({"link": link_name(options), "mib": options.mib, **figures}, indent=1) + "\n")
        finally:
            server.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true", help="the muxer alone, without Noise and negotiation")
    parser.add_argument("--chacha", action="store_true", help="/noise, as with strangers, instead of AES-GCM")
    parser.add_argument("--mib", type=int, default=256, help="of bulk, one way")
    parser.add_argument("--count", type=int, default=2000, help="requests on the kept stream")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    trio.run(serve, arguments.plain) if arguments.serve else trio.run(main, arguments)
