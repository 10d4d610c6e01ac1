"""A provider in JavaScript, written from `protocols/` alone, and a node of ours: each a process, on loopback.

It reads our ad and verifies it, sells a core, computes chunks in JavaScript's own arithmetic, signs receipts, and is
paid by vouchers that it verifies and that the hub takes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import coincurve
import pytest
import trio

from p2pcompute.chain import ChainClient, ClaimRow, HubClient, dev_info, encode_claim, faucet
from p2pcompute.identity import WalletKey
from p2pcompute_protocols.ids import Address

from ..net._programs import Program
from ._js import JS, JsProgram, needs_js, run_js

pytestmark = [pytest.mark.net, needs_js]

PROTOCOLS = Path(__file__).parents[2] / "protocols"

SCRIPT = """
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def saxpy(out, a, x, y):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a * x[i] + y[i]


if __name__ == "__main__":
    rng = np.random.default_rng(7)
    x = rng.standard_normal(300_007).astype(np.float32)
    y = rng.standard_normal(300_007).astype(np.float32)
    x[:6] = [0, -0.0, np.inf, 1e-45, 3e38, -np.inf]
    y[:6] = [-0.0, 0, 1, 1e-45, 3e38, np.inf]
    a = np.float32(3.7)
    z = p2p.run(saxpy, p2p.out(x.shape, np.float32), a, x, y, chunks=6)
    with np.errstate(all="ignore"):
        expected = a * x + y
    expected[np.isnan(expected)] = np.float32(np.nan)
    print("equal" if expected.tobytes() == z.tobytes() else "DIFFERENT")
"""


async def wait(program: Program, event: str) -> dict[str, Any]:
    return await trio.to_thread.run_sync(partial(program.wait_event, event))


async def end(program: Program) -> int:
    return await trio.to_thread.run_sync(program.end)


class Market:
    """Our node that runs the chain, their provider, and commands of ours beside them."""

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "home"
        self.home.mkdir(mode=0o700)
        self.script = tmp_path / "script.py"
        self.script.write_text(SCRIPT)
        self.programs: list[Program] = []
        self.ready: dict[str, Any] = {}
        self.ads: list[dict[str, Any]] = []

    def start(self, *args: str) -> Program:
        self.programs.append(Program(self.home, *args))
        return self.programs[-1]

    async def run(self, js: JsProgram) -> Program:
        """`p2pcompute run` of a requester that knows their provider, and ours as one that takes no more work."""
        program = self.start("run", "--json", "--profile", "mine", "--bootstrap", js.address, str(self.script))
        assert await end(program) == 0, program.said
        return program


@asynccontextmanager
async def market(tmp_path: Path) -> AsyncGenerator[tuple[Market, JsProgram], None]:
    it = Market(tmp_path)
    try:
        up = it.start("up", "--json", "--price", "0.36 USD")
        it.ready = await wait(up, "ready")
        options = {"network": "local", "journal": str(tmp_path / "journal")}
        async with run_js("peer/peer.mjs", options) as js:
            read = await js.call("read_ads", address=it.ready["addresses"][0], rpc=it.ready["chain"]["url"])
            it.ads = read["ads"]
            assert await end(it.start("drain", "--json")) == 0
            yield it, js
        up.process.terminate()
        assert await end(up) == 0, up.said
    finally:
        for program in it.programs:
            if program.process.poll() is None:
                program.process.kill()
                program.end()


async def claim(market: Market, voucher: dict[str, Any]) -> int:
    """What the payee has of it in the end; anybody may bring a voucher to the hub."""
    async with ChainClient(market.ready["chain"]["url"]) as rpc:
        info = await dev_info(rpc)
        hub = HubClient(rpc, info.hub, info.token)
        carrier = WalletKey.generate()
        await faucet(rpc, carrier.address)
        payee = Address(bytes.fromhex(voucher["payee"]))
        row = ClaimRow(
            payer=Address(bytes.fromhex(voucher["payer"])),
            signer=Address(bytes.fromhex(voucher["signer"])),
            amount_uusd=voucher["amount_uusd"],
            memo=bytes.fromhex(voucher["memo"]),
            signature=bytes.fromhex(voucher["signature"]),
        )
        assert await hub.balance_uusd(payee) == 0
        await hub.transact(coincurve.PrivateKey(carrier.private_key), hub.hub, encode_claim(payee, [row]))
        return await hub.balance_uusd(payee)


def test_it_computes_for_our_requester_and_is_paid(tmp_path: Path) -> None:
    async def main() -> None:
        async with market(tmp_path) as (ours, js):
            (ad,) = ours.ads
            assert (ad["peer_id"], ad["price_pusd"]) == (ours.ready["peer_id"], ours.ready["price_pusd"])

            run = await ours.run(js)
            assert run.said == "equal\n"
            assert Counter(event["provider"] for event in run.events("chunk-done")) == {js.peer: 6}
            (summary,) = run.events("summary")

            agreed = await js.event("agreed")
            assert len(agreed["task"]) == 64
            chunks = [await js.event("chunk") for _ in range(6)]
            assert {chunk["index"] for chunk in chunks} == set(range(6))
            voucher: dict[str, Any] = {"amount_uusd": 0}
            while voucher["amount_uusd"] < summary["paid_uusd"]:
                voucher = await js.event("voucher")
                assert voucher["reproduced"]  # it comes to the same root over the receipts as the payer
            units = sum(chunk["units"] for chunk in chunks)
            assert voucher["amount_uusd"] == summary["paid_uusd"] == -(-units * 2_000 // 1_000_000)
            assert 1 <= voucher["leaves"] <= 6  # a last piece below a micro-USD takes no voucher
            assert (await js.event("closed"))["chunks"] == 6
            assert await claim(ours, voucher) == voucher["amount_uusd"]

    trio.run(main)


def test_vectors_of_the_protocols_hold_in_javascript() -> None:
    async def main() -> str:
        done = await trio.run_process(
            ["node", "peer/vectors.mjs", PROTOCOLS.as_uri() + "/"], cwd=JS, capture_stdout=True
        )
        return done.stdout.decode()

    tried = {}
    for line in trio.run(main).splitlines():
        row = json.loads(line)
        assert row["failed"] == []
        tried[row["protocol"]] = (row["accepted"], row["rejected"], row["transcripts"])
    for protocol in ("envelope", "ads", "negotiation", "task", "channel", "request"):
        vectors = json.loads((PROTOCOLS / protocol / "vectors.json").read_text())
        # the peer takes no split inputs, so it can't say which tiles are due
        transcripts = [one for one in vectors.get("transcripts", []) if "split" not in one.get("setup", {})]
        assert tried[protocol] == (len(vectors["accept"]), len(vectors.get("reject", [])), len(transcripts))
