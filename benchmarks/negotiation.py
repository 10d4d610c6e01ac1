"""Time from order to agreement over libp2p between two processes that are connected; prints JSON.

The provider checks the order, bids, checks the terms, stores the agreement on disk with fsync, and signs. Order and
bid are one request on the stream that is kept, terms and agreement another one, so two round trips.

python benchmarks/negotiation.py [--count 100]
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from p2pcompute.execution._language import LANGUAGE_VERSION
from p2pcompute.identity import NodeKey, WalletKey
from p2pcompute.market import AdRecordValidator, FixedPricePolicy, NegotiationService, negotiate
from p2pcompute.overlay import open_libp2p, open_requests
from p2pcompute.storage import open_ledger
from p2pcompute_protocols._binding import bind_signer
from p2pcompute_protocols.ads import Device
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, CheckPolicy, OrderPayload, Requirement
from p2pcompute_protocols.work import BlobRef, ChunkWork, LaunchSpec, OutArg

NETWORK = "benchmark"
CHAIN = ChainTerms(chain_id=31_337, hub=b"\x11" * 20, token=b"\x22" * 20, decimals=6)
WARM_UP = 10
LIMIT_S = 120.0


def now_ms() -> int:
    """UNIX time in milliseconds."""
    return time.time_ns() // 1_000_000


async def provide(directory: Path) -> None:
    """Be a provider that only negotiates; prints its address and ends when its input closes."""
    key, wallet = NodeKey.generate(), WalletKey.generate()
    validator = AdRecordValidator(network=NETWORK, now_ms=now_ms)

    async def first_window(_peer: PeerId, _pusd: int) -> int:
        return 1

    async def has_room(_peer: PeerId) -> bool:
        return True

    async with (
        open_ledger(directory / "ledger") as ledger,
        open_libp2p(key, record_validator=validator) as overlay,
        open_requests(overlay) as requests,
    ):
        await ledger.bind_chain(CHAIN)

        async def agreed(agreement: Agreement) -> None:
            await ledger.add_agreement(agreement, role="provider")

        NegotiationService(
            requests=requests,
            network=NETWORK,
            signer=key,
            now_ms=now_ms,
            policy=FixedPricePolicy(
                device=Device(kind="cpu", name="cpu", slots=1, memory_bytes=2**30, score_milli=1_000, scores=()),
                chain=CHAIN,
                payee=wallet.address,
                language=LANGUAGE_VERSION,
                price_pusd=1,
                max_window=8,
                now_ms=now_ms,
                has_room=has_room,
                first_window=first_window,
            ),
            agreed=agreed,
        ).register()
        sys.stdout.write(overlay.addresses[0] + "\n")
        sys.stdout.flush()
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


def an_order(key: NodeKey, wallet: WalletKey) -> OrderPayload:
    """An order for 64 chunks of a kernel with one output."""
    now = now_ms()
    return OrderPayload(
        order_id=secrets.token_bytes(16),
        created_ms=now,
        expires_ms=now + 60_000,
        work=ChunkWork(
            kernel=BlobRef(digest=bytes(32), size=400),
            entry="kernel",
            launch=LaunchSpec(dims=1, grid=(4096, 1, 1), block=(128, 1, 1)),
            args=(OutArg(dtype="float32", shape=(4096 * 128,)),),
            blocks_per_chunk=64,
            chunk_output_bytes=64 * 128 * 4,
            units_per_chunk=100_000,
        ),
        requirement=Requirement(kinds=("cpu", "cuda"), memory_bytes=0, features=(), min_score_milli=0),
        max_price_pusd=2_000,
        ceiling_uusd=100_000,
        chain=CHAIN,
        payer=bind_signer(NETWORK, key.peer_id, wallet, sequence=now, expires_ms=now + 86_400_000),
        check=CheckPolicy(kind="sample", per_chunk=256),
        fp="strict",
        language=LANGUAGE_VERSION,
        deadline_ms=now + 3_600_000,
        standing=False,
        arbiters=(),
    )


async def request(address: str, count: int) -> list[float]:
    """Milliseconds of each of `count` negotiations."""
    key, wallet = NodeKey.generate(), WalletKey.generate()
    validator = AdRecordValidator(network=NETWORK, now_ms=now_ms)
    times: list[float] = []
    async with open_libp2p(key, record_validator=validator) as overlay, open_requests(overlay) as requests:
        provider = await overlay.connect(address)
        for _ in range(WARM_UP + count):
            order = an_order(key, wallet)  # the binding of a node is made once, so it is not part of the time
            began = time.perf_counter()
            await negotiate(requests, provider, order, network=NETWORK, signer=key, now_ms=now_ms)
            times.append((time.perf_counter() - began) * 1000)
    return times[WARM_UP:]


async def measure(provider: subprocess.Popen[str], count: int) -> dict[str, Any]:
    """Negotiate with the provider in another process."""
    assert provider.stdout is not None
    with trio.fail_after(LIMIT_S):
        address = await trio.to_thread.run_sync(provider.stdout.readline, abandon_on_cancel=True)
        times = sorted(await request(address.strip(), count))
    return {
        "count": count,
        "cores": len(os.sched_getaffinity(0)),
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[min(count - 1, int(count * 0.99))], 2),
        "min_ms": round(times[0], 2),
    }


def with_provider(count: int) -> dict[str, Any]:
    """Start the provider's process, measure, and end it."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--provide", directory]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as provider:
            try:
                return trio.run(measure, provider, count)
            finally:
                provider.terminate()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--provide", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.provide is not None:
        trio.run(provide, arguments.provide)
    else:
        sys.stdout.write(json.dumps(with_provider(min(arguments.count, 400))) + "\n")


if __name__ == "__main__":
    main()
