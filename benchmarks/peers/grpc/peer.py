"""gRPC with TLS: one channel, handlers of bytes, no protobuf.

python peer.py serve wire | drive ADDRESS wire
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from side import BLOCK, MESSAGE, blocks, digest_of, dispatch, end_with_parent, ready, sampled, wait_for_end

OPTIONS = [("grpc.max_receive_message_length", 2 * BLOCK), ("grpc.max_send_message_length", 2 * BLOCK)]
CERTIFICATE = Path(os.environ["P2PCOMPUTE_BENCHMARK_CERTIFICATE"]).read_bytes()
KEY = Path(os.environ["P2PCOMPUTE_BENCHMARK_KEY"]).read_bytes()
THREADS = 4  # of the serving side


def _echo(request: bytes, _context: Any) -> bytes:
    return request


def _sink(pieces: Iterator[bytes], context: Any) -> bytes:
    hashed = ("hashed", "1") in context.invocation_metadata()
    found = hashlib.sha256()
    got = 0
    for piece in pieces:
        got += len(piece)
        if hashed:
            found.update(piece)
    return got.to_bytes(8, "big") + found.digest()


def _serve() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=OPTIONS)
    handlers = {
        "echo": grpc.unary_unary_rpc_method_handler(_echo),
        "sink": grpc.stream_unary_rpc_method_handler(_sink),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark", handlers),))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(KEY, CERTIFICATE)]))
    server.start()
    ready(f"127.0.0.1:{port}")
    wait_for_end()
    server.stop(0).wait()


def _channel(address: str, *, fresh: bool = False) -> grpc.Channel:
    own = [("grpc.use_local_subchannel_pool", 1)] if fresh else []
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(CERTIFICATE), options=[*OPTIONS, *own])


def _drive(address: str) -> None:
    with _channel(address) as channel:
        echo = channel.unary_unary("/benchmark/echo")
        sink = channel.stream_unary("/benchmark/sink")
        message = bytes(MESSAGE)

        def bulk(*, nbytes: int, check: bool) -> dict[str, Any]:
            block = bytes(BLOCK)
            pieces = blocks(nbytes) if check else (block for _ in range(nbytes // BLOCK))
            began = time.perf_counter()
            said = sink(pieces, metadata=(("hashed", "1" if check else "0"),))
            spent = time.perf_counter() - began
            if int.from_bytes(said[:8], "big") != nbytes or (check and said[8:].hex() != digest_of(nbytes)):
                raise AssertionError("other bytes came than were sent")
            return {"s": spent, "units": nbytes / BLOCK}

        def request(*, seconds: float, most: int) -> dict[str, Any]:
            for _ in range(20):
                echo(message)
            return sampled(lambda: echo(message), seconds=seconds, most=most)

        def flight(*, seconds: float, flight: int) -> dict[str, Any]:
            done: queue.SimpleQueue[Any] = queue.SimpleQueue()

            def ask() -> None:
                echo.future(message).add_done_callback(done.put)

            echo(message)
            began = time.perf_counter()
            for _ in range(flight):
                ask()
            replied = 0
            while (now := time.perf_counter()) - began < seconds:
                done.get().result()
                replied += 1
                ask()
            for _ in range(flight):
                done.get().result()
            return {"s": now - began, "units": replied}

        def connect(*, count: int) -> dict[str, Any]:
            times = []
            for _ in range(count):
                began = time.perf_counter()
                with _channel(address, fresh=True) as fresh:
                    grpc.channel_ready_future(fresh).result(60)
                    times.append((time.perf_counter() - began) * 1000)
            return {"times_ms": times, "units": count}

        echo(message)
        dispatch({"bulk": bulk, "request": request, "flight": flight, "connect": connect})


if __name__ == "__main__":
    end_with_parent()
    if sys.argv[1] == "serve":
        _serve()
    else:
        _drive(sys.argv[2])
