"""Inputs that several providers need, between real processes: what leaves the requester, and what stays on disk."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.blobs import BlobName, BlobServer, Bytes, HeldBlob, ServerLimits
from p2pcompute.blobs._file import BlobFile
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.overlay import open_libp2p
from p2pcompute_protocols.blob import leaves_of, root_of

from ._programs import PATIENCE_S, Program, chain, gone

pytestmark = pytest.mark.net

MIB = 1024 * 1024
TICKET = hashlib.sha256(b"a ticket").digest()

GETTER = """
import json
import sys

import trio

from p2pcompute.blobs import BlobFetch, BlobName, BlobServer, Bytes, HeldBlob, Source
from p2pcompute.identity import NodeKey
from p2pcompute.market import AdRecordValidator
from p2pcompute.overlay import open_libp2p


async def main():
    validator = AdRecordValidator(network="n", now_ms=lambda: 0)
    async with open_libp2p(
        NodeKey.generate(), listen=["/ip4/127.0.0.1/tcp/0"], record_validator=validator, bootstrap=[]
    ) as overlay:
        server = BlobServer()
        server.register(overlay)
        print(json.dumps({"peer": overlay.peer_id, "addresses": overlay.addresses}), flush=True)
        asked = json.loads(await trio.to_thread.run_sync(sys.stdin.readline))
        digest, size, root, ticket = (bytes.fromhex(asked[k]) if k != "size" else asked[k] for k in asked["name"])
        held = HeldBlob(BlobName(digest=digest, size=size, root=root), Bytes(size))
        fetch = BlobFetch(overlay, held, ticket)
        for peer, addresses, origin in asked["sources"]:
            fetch.add(Source(peer=peer, addresses=tuple(addresses), origin=origin))
        with server.offer(held, ticket):
            await fetch.run()
            print(json.dumps({"received": fetch.received, "sent": server.sent_bytes}), flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)  # others still get it from us


trio.run(main)
"""


def test_three_processes_take_little_more_than_one_copy() -> None:
    data = random.Random(7).randbytes(12 * MIB)
    name = BlobName(digest=hashlib.sha256(data).digest(), size=len(data), root=root_of(leaves_of(data)))
    getters: list[subprocess.Popen[str]] = []

    def say(getter: subprocess.Popen[str], words: dict[str, Any]) -> None:
        assert getter.stdin is not None
        getter.stdin.write(json.dumps(words) + "\n")
        getter.stdin.flush()

    def hear(getter: subprocess.Popen[str]) -> dict[str, Any]:
        assert getter.stdout is not None
        found: dict[str, Any] = json.loads(getter.stdout.readline())
        return found

    async def main() -> None:
        validator = AdRecordValidator(network="n", now_ms=lambda: 0)
        async with open_libp2p(
            NodeKey.generate(), listen=["/ip4/127.0.0.1/tcp/0"], record_validator=validator, bootstrap=[]
        ) as overlay:
            # A thin uplink: a third of it to each at once, and then next to nothing, however slow this machine is.
            server = BlobServer(limits=ServerLimits(peer_bytes_per_s=16 * 1024, burst_bytes=5 * MIB))
            server.register(overlay)
            held = HeldBlob(name, Bytes(data), complete=True, origin=True)
            with server.offer(held, TICKET):
                known = [await trio.to_thread.run_sync(hear, getter) for getter in getters]
                for getter, own in zip(getters, known, strict=True):
                    others = [(one["peer"], one["addresses"], False) for one in known if one is not own]
                    say(
                        getter,
                        {
                            "name": ["digest", "size", "root", "ticket"],
                            "digest": name.digest.hex(),
                            "size": name.size,
                            "root": name.root.hex(),
                            "ticket": TICKET.hex(),
                            "sources": [(overlay.peer_id, overlay.addresses, True), *others],
                        },
                    )
                with trio.fail_after(PATIENCE_S):
                    said = [await trio.to_thread.run_sync(hear, getter) for getter in getters]
            for getter in getters:
                say(getter, {})
            from_origin = [one["received"].get(overlay.peer_id, 0) for one in said]
            assert sum(from_origin) <= server.sent_bytes < 2.5 * len(data)  # and not three times
            assert sum(sum(one["received"].values()) for one in said) >= 3 * len(data)

    try:
        getters += [
            subprocess.Popen([sys.executable, "-c", GETTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        trio.run(main)
        assert [getter.wait(PATIENCE_S) for getter in getters] == [0, 0, 0]
    finally:
        for getter in getters:
            getter.kill()
            getter.communicate()


SCRIPT = """
import json
import sys

import numpy as np
import trio

import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def look_up(out, table):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = table[(i * 4099) % table.size]


async def main(times):
    table = np.random.default_rng(5).integers(0, 2**31, 2**20, dtype=np.int32)
    right = table[(np.arange(4096) * 4099) % table.size]
    async with p2p.open_node() as node:
        for _ in range(times):
            z = await node.run(look_up, p2p.out((4096,), np.int32), table, chunks=4)
            sent = node.services.blobs.sent_bytes
            print(json.dumps({"event": "ran", "equal": bool(np.array_equal(z, right)), "sent": sent}), flush=True)


trio.run(main, int(sys.argv[1]))
"""


def test_an_input_outlives_its_provider(start: Callable[..., Program], tmp_path: Path) -> None:
    script = tmp_path / "look_up.py"
    script.write_text(SCRIPT)

    with chain(tmp_path) as url:

        def ran(times: int) -> list[dict[str, Any]]:
            made = start("run", "--json", "--profile", "mine", "--chain", url, str(script), str(times))
            assert made.end() == 0, made.said
            return [json.loads(line) for line in made.said.splitlines() if line.startswith("{")]

        provider = start("up", "--json", "--cache", "64 MiB", "--chain", url)
        provider.wait_event("ready")
        first = ran(2)
        assert [one["equal"] for one in first] == [True, True]
        assert first[0]["sent"] == first[1]["sent"] >= 4 * MIB  # for both runs of them together

        directory = tmp_path / "home" / "profiles" / "default" / "inputs"
        deadline = time.monotonic() + PATIENCE_S
        while not _is_whole(directory):
            assert time.monotonic() < deadline, list(directory.iterdir())
            time.sleep(0.05)
        family = provider.family()
        provider.process.kill()
        provider.end()
        gone(family)

        again = start("up", "--json", "--cache", "64 MiB", "--chain", url)
        again.wait_event("ready")
        (later,) = ran(1)
        assert later["equal"]
        assert later["sent"] == 0  # it was on the provider's disk
        again.process.send_signal(signal.SIGINT)
        assert again.end() == 0, again.said


def _is_whole(directory: Path) -> bool:
    for path in directory.glob("*.blob"):
        file = BlobFile.open(path)
        if file is not None:
            whole = len(file.pieces) == len(file.leaves)
            file.close()
            return whole
    return False
