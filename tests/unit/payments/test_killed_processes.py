"""Real processes, killed with SIGKILL in the middle of their work: whatever they had let out is in the ledger.

`test_kill.py` ends a process at chosen points; here it is killed wherever it happens to be, with real threads and a
real disk, after it has let out so many things.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.storage import open_ledger
from p2pcompute_protocols.ids import PeerId

# One line for each thing that leaves; a pipe keeps what was written before the kill.
WORKER = """
import os, sys, trio
from pathlib import Path
from p2pcompute.storage import open_ledger
from p2pcompute_protocols.ids import Address, ChannelId, PeerId

def leaves(*what):
    os.write(1, (" ".join(map(str, what)) + "\\n").encode())

async def main():
    async with open_ledger(Path(sys.argv[1])) as ledger, trio.open_nursery() as nursery:
        start = {}
        for row in await ledger.channels_in():
            start[row.channel] = row.best_uusd

        async def payee(number):
            channel = ChannelId(bytes([number]) * 32)
            account = Address(bytes([number]) * 20)
            await ledger.open_channel_in(channel, payer=account, signer=account, peer=PeerId(f"peer {number}"))
            await ledger.set_chain_in(channel, deposit_uusd=10**9, claimed_uusd=0, close_at_s=0)
            amount = start.get(channel, 0)
            while True:
                amount += 1
                await ledger.take_voucher(
                    channel, amount_uusd=amount, memo=bytes(32), signature=amount.to_bytes(65, "big"),
                    peer=PeerId(f"peer {number}"),
                )
                leaves("held", number, amount)

        async def sender():
            while True:
                row = await ledger.queue_tx(
                    Address(b"s" * 20), kind="claim", chain_nonce=0,
                    sign=lambda nonce: (nonce.to_bytes(32, "big"), b"raw %d" % nonce),
                )
                leaves("sent", row.nonce, row.raw.decode())
                await ledger.tx_sent(row.id)

        for number in range(1, 6):
            nursery.start_soon(payee, number)
        nursery.start_soon(sender)

trio.run(main)
"""


def killed_after(directory: Path, lines: int) -> list[list[str]]:
    """Run the worker, kill it once it has let out `lines` things, and give all that it has."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stderr is not None
        heard = [worker.stdout.readline() for _ in range(lines)]
        worker.kill()
        heard += worker.stdout.readlines()
        complaint = worker.stderr.read().decode()
        worker.wait()
    assert complaint == ""
    assert worker.returncode == -9
    return [line.decode().rstrip().split(maxsplit=2) for line in heard if line.endswith(b"\n")]


@pytest.mark.timeout(900)
def test_killed_again_and_again_nothing_that_was_let_out_is_missing(tmp_path: Path) -> None:
    chance = random.Random(7)
    best: dict[int, int] = {}
    sent: dict[int, str] = {}

    async def check() -> None:
        async with open_ledger(tmp_path / "profile") as ledger:
            held: dict[Any, int] = {row.channel[0]: row.best_uusd for row in await ledger.channels_in()}
            for number, amount in best.items():
                # What was stored and not let out any more may be there on top of it.
                assert amount <= held[number] <= amount + 1
                peer = await ledger.peer(PeerId(f"peer {number}"))
                assert peer is not None
                assert peer.paid_uusd == held[number]
                best[number] = held[number]
            rows = {row.nonce: row.raw.decode() for row in await ledger.unsettled(b"s" * 20)}  # type: ignore[arg-type]
            assert sent.items() <= rows.items()
            assert sorted(rows) == list(range(len(rows)))
            assert len(sent) <= len(rows) <= len(sent) + 1
            sent.update(rows)
            await ledger.verify(full=True)

    for _ in range(6):
        for line in killed_after(tmp_path / "profile", chance.randrange(10, 60)):
            if line[0] == "held":
                assert int(line[2]) > best.get(int(line[1]), 0)
                best[int(line[1])] = int(line[2])
            else:
                assert int(line[1]) not in sent
                sent[int(line[1])] = line[2]
        trio.run(check)
    assert sum(best.values()) + len(sent) >= 60
