"""What a Noise connection costs, in CPU: sealing and opening alone, and over a loopback socket between two processes.

    python benchmarks/network_noise.py [--mib 256] [--rounds 5]

Prints JSON: milliseconds of CPU per MiB for each side, and MB/s of wall time beside it; the median over the rounds with
the least and the most. Without a muxer: plaintext in, plaintext out, as much as the socket takes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import sys
import time
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID

from p2pcompute.overlay._listener import LocatedStream
from p2pcompute.overlay._secured import SecureSocket
from p2pcompute.overlay._upgrader import NOISE_AESGCM_ID, NOISE_ID, MendedUpgrader
from p2pcompute.overlay.noise import AESGCM, BUFFER_BYTES, CHACHAPOLY, MAX_PLAINTEXT, Opener, Sealer, Suite, cut

MIB = 1 << 20
CHUNK = 16 * MAX_PLAINTEXT
SUITES = {NOISE_ID: CHACHAPOLY, NOISE_AESGCM_ID: AESGCM}


def spread(values: list[float]) -> dict[str, float]:
    """Median and range, rounded to what is worth reading."""
    functions = (("median", statistics.median), ("least", min), ("most", max))
    return {name: round(function(values), 3) for name, function in functions}


def spent() -> tuple[float, float]:
    """CPU of this process so far, in seconds: all of it, and what the kernel took of that."""
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime


def alone(suite: Suite, mib: int) -> dict[str, float]:
    """Seal and open in one process, from one buffer to the next."""
    sealer, opener = Sealer(suite, bytes(32)), Opener(suite, bytes(32))
    source = memoryview(os.urandom(CHUNK))
    sealed, plain = (memoryview(bytearray(BUFFER_BYTES)) for _ in range(2))
    sealing = opening = 0.0
    times = mib * MIB // CHUNK
    for _ in range(times):
        start = time.process_time()
        size = 0
        for record in cut([source]):
            size += sealer.seal_into(record, sealed[size:])
        between = time.process_time()
        opener.open_into(sealed[:size], plain)
        sealing += between - start
        opening += time.process_time() - between
    done = times * CHUNK / MIB
    return {"seal": sealing * 1e3 / done, "open": opening * 1e3 / done}


def upgrader_for(protocol: str) -> MendedUpgrader:
    """A node that speaks only `protocol`."""
    upgrader = MendedUpgrader(create_new_key_pair(), aes=True)
    upgrader._protocols = [protocol]
    return upgrader


async def receive(listener: trio.SocketListener, protocol: str, total: int, pipe: int) -> None:
    """The receiving side: tell who we are, take `total` bytes, tell what that cost."""
    async with listener:
        stream = await listener.accept()
    upgrader = upgrader_for(protocol)
    os.write(pipe, upgrader._peer.to_bytes())
    conn = await upgrader.upgrade_security(RawConnection(LocatedStream(stream), False), False)
    assert isinstance(conn, SecureSocket)
    start, cpu = time.perf_counter(), spent()
    left, reads = total, 0
    while left:
        view = await conn.receive()
        assert view
        left -= len(view)
        reads += 1
    wall = time.perf_counter() - start
    cost = [now - then for now, then in zip(spent(), cpu, strict=True)]
    answer = json.dumps({"cpu": cost, "wall": wall, "reads": reads})
    conn.send_nowait([b"done"])
    os.write(pipe, answer.encode())
    await conn.aclose()


async def send(port: int, protocol: str, total: int, pipe: int) -> dict[str, Any]:
    """The sending side."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    expected = ID(await trio.to_thread.run_sync(os.read, pipe, 38))
    upgrader = upgrader_for(protocol)
    conn = await upgrader.upgrade_security(RawConnection(LocatedStream(stream), True), True, expected)
    assert isinstance(conn, SecureSocket)
    source = memoryview(os.urandom(CHUNK))
    cpu = spent()
    left, waits = total, 0
    while left:
        part = source[:left]
        if conn.send_nowait([part]):
            await conn.flush()
            waits += 1
        left -= len(part)
    cost = [now - then for now, then in zip(spent(), cpu, strict=True)]
    assert bytes(await conn.receive()) == b"done"
    await conn.aclose()
    return {"cpu": cost, "waits": waits}


def over_a_socket(protocol: str, mib: int) -> dict[str, float]:
    """Bulk one way between this process and a child of it."""
    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    reading, writing = os.pipe()
    total = mib * MIB
    child = os.fork()
    if not child:
        try:
            bound.setblocking(False)
            trio.run(receive, trio.SocketListener(trio.socket.from_stdlib_socket(bound)), protocol, total, writing)
        finally:
            os._exit(0)
    bound.close()
    os.close(writing)
    sender = trio.run(send, port, protocol, total, reading)
    receiver: dict[str, Any] = json.loads(os.read(reading, 4096))
    os.close(reading)
    os.waitpid(child, 0)
    return {
        "send": sender["cpu"][0] * 1e3 / mib,
        "send_system": sender["cpu"][1] * 1e3 / mib,
        "receive": receiver["cpu"][0] * 1e3 / mib,
        "receive_system": receiver["cpu"][1] * 1e3 / mib,
        "mb_s": total / 1e6 / receiver["wall"],
        "reads_per_mib": receiver["reads"] / mib,
        "waits_per_mib": sender["waits"] / mib,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):  # one after the other, so that what disturbs the machine disturbs all alike
        for protocol, suite in SUITES.items():
            rounds.setdefault(f"{protocol} alone", []).append(alone(suite, options.mib))
            rounds.setdefault(f"{protocol} socket", []).append(over_a_socket(protocol, options.mib))
    result = {
        "unit": "ms CPU per MiB and side; mb_s is wall time",
        "mib": options.mib,
        "rounds": options.rounds,
        "figures": {
            name: {key: spread([one[key] for one in ones]) for key in ones[0]} for name, ones in rounds.items()
        },
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
