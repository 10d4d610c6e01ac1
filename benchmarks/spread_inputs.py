"""How much of an input leaves its requester, and how long until all providers have it, in virtual time.

    python benchmarks/spread_inputs.py [MIB]

The requester sends 2 MB/s, everybody else 50 MB/s; 20 ms from one to the other. `sent` is what the requester's server
has sent, as copies of the input; `alone` is what it would take one after the other. Writes JSON, a line a case.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from contextlib import AsyncExitStack

import trio
import trio.testing

from p2pcompute.blobs import BlobFetch, BlobName, BlobServer, Bytes, HeldBlob, Source
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.testing import MemoryNetwork, open_memory_overlay, virtual_clock_ms
from p2pcompute_protocols.blob import leaves_of, root_of

UPLINK = 2e6
TICKET = bytes(32)


async def measure(data: bytes, providers: int, apart_s: float) -> dict[str, float]:
    """One input, so many providers, each of which begins so much later than the one before."""
    name = BlobName(digest=hashlib.sha256(data).digest(), size=len(data), root=root_of(leaves_of(data)))
    network = MemoryNetwork(latency_s=0.02, bytes_per_s=50e6)
    validator = AdRecordValidator(network="n", now_ms=virtual_clock_ms)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                open_memory_overlay(network, NodeKey.generate(), record_validator=validator)
            )
            for _ in range(providers + 1)
        ]
        network.uplink(nodes[0].peer_id, bytes_per_s=UPLINK)
        servers = [BlobServer() for _ in nodes]
        blobs = [HeldBlob(name, Bytes(data), complete=True, origin=True)]
        blobs += [HeldBlob(name, Bytes(len(data))) for _ in range(providers)]
        for node, server, held in zip(nodes, servers, blobs, strict=True):
            server.register(node)
            stack.enter_context(server.offer(held, TICKET))
        sources = [Source(peer=node.peer_id, addresses=node.addresses, origin=node is nodes[0]) for node in nodes]
        began, done = trio.current_time(), []

        async def get(at: int) -> None:
            await trio.sleep(apart_s * (at - 1))
            fetch = BlobFetch(nodes[at], blobs[at], TICKET, rng=random.Random(at))
            for source in sources:
                fetch.add(source)
            await fetch.run()
            done.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for at in range(1, providers + 1):
                nursery.start_soon(get, at)
        return {
            "providers": providers,
            "apart_s": apart_s,
            "sent": round(servers[0].sent_bytes / len(data), 3),
            "left": round(network.sent_bytes(nodes[0].peer_id) / len(data), 3),
            "all_have_it_s": round(max(done), 2),
            "alone_s": round(providers * len(data) / UPLINK, 2),
        }


def main() -> None:
    """Print a line for each case."""
    data = random.Random(1).randbytes(int(sys.argv[1] if sys.argv[1:] else 16) * 2**20)
    for providers in (1, 2, 4, 8):
        for apart_s in (0.0, 1.0):
            began = time.process_time()
            found = trio.run(measure, data, providers, apart_s, clock=trio.testing.MockClock(autojump_threshold=0))
            found["cpu_s"] = round(time.process_time() - began, 2)
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
