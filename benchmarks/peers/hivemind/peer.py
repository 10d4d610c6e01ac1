"""hivemind: its daemon of go-libp2p on each side, unary handlers for requests and tasks, a binary stream for bytes.

python peer.py serve wire | drive MULTIADDR wire
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hivemind.p2p import P2P, PeerID
from hivemind.proto.runtime_pb2 import ExpertRequest, ExpertResponse

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import BLOCK, MESSAGE, answer, blocks, commands, digest_of, end_with_parent, ready, wait_for_end

ALONE = {"nat_port_map": False, "auto_nat": False, "use_relay": False, "startup_timeout": 120}
BODY = bytes(MESSAGE - 3)  # with its tag and length, 200 bytes


async def _echo(request: ExpertRequest, _context: Any) -> ExpertResponse:
    return ExpertResponse(metadata=request.metadata)


async def _sink(_info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readexactly(9)
    length, hashed = int.from_bytes(head[:8], "big"), bool(head[8])
    found = hashlib.sha256()
    got = 0
    while got < length:
        piece = await reader.read(BLOCK)
        if not piece:
            break
        got += len(piece)
        if hashed:
            found.update(piece)
    writer.write(got.to_bytes(8, "big") + found.digest())
    await writer.drain()
    writer.close()


async def _serve() -> None:
    node = await P2P.create(**ALONE)
    await node.add_protobuf_handler("echo", _echo, ExpertRequest)
    await node.add_binary_stream_handler("sink", _sink)
    ready(str((await node.get_visible_maddrs())[0]))
    await asyncio.to_thread(wait_for_end)
    await node.shutdown()


async def _drive(address: str) -> None:
    node = await P2P.create(initial_peers=[address], **ALONE)
    peer = PeerID.from_base58(address.rpartition("/")[2])

    async def ask(body: bytes = BODY) -> None:
        await node.call_protobuf_handler(peer, "echo", ExpertRequest(metadata=body), ExpertResponse)

    async def bulk(*, nbytes: int, check: bool) -> dict[str, Any]:
        _, reader, writer = await node.call_binary_stream_handler(peer, "sink")
        block = bytes(BLOCK)
        began = time.perf_counter()
        writer.write(nbytes.to_bytes(8, "big") + bytes([check]))
        for one in blocks(nbytes) if check else (block for _ in range(nbytes // BLOCK)):
            writer.write(one)
            await writer.drain()
        said = await reader.readexactly(40)
        spent = time.perf_counter() - began
        writer.close()
        if int.from_bytes(said[:8], "big") != nbytes or (check and said[8:].hex() != digest_of(nbytes)):
            raise AssertionError("other bytes came than were sent")
        return {"s": spent, "units": nbytes / BLOCK}

    async def sampled(body: bytes, seconds: float, most: int) -> dict[str, Any]:
        for _ in range(20):
            await ask(body)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < most:
            began = time.perf_counter()
            await ask(body)
            now = time.perf_counter()
            times.append((now - began) * 1000)
            if now > end:
                break
        return {"times_ms": times, "units": len(times)}

    async def request(*, seconds: float, most: int) -> dict[str, Any]:
        return await sampled(BODY, seconds, most)

    async def task(*, seconds: float, most: int) -> dict[str, Any]:
        return await sampled(b"", seconds, most)

    async def flight(*, seconds: float, flight: int) -> dict[str, Any]:
        await ask()
        counts = [0] * flight
        began = time.perf_counter()

        async def again_and_again(which: int) -> None:
            while time.perf_counter() - began < seconds:
                await ask()
                counts[which] += 1

        await asyncio.gather(*map(again_and_again, range(flight)))
        return {"s": time.perf_counter() - began, "units": sum(counts)}

    async def crowd(*, count: int) -> dict[str, Any]:
        await ask(b"")
        began = time.perf_counter()
        await asyncio.gather(*(ask(b"") for _ in range(count)))
        return {"s": time.perf_counter() - began, "units": count}

    measures: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "bulk": bulk,
        "request": request,
        "task": task,
        "flight": flight,
        "crowd": crowd,
    }
    await ask()
    ready()
    lines = commands()
    while (order := await asyncio.to_thread(next, lines, None)) is not None:
        answer(await measures[order.pop("do")](**order))
    await node.shutdown()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(_serve() if sys.argv[1] == "serve" else _drive(sys.argv[2]))
