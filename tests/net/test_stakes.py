"""A liar loses its stake: provider, arbiters, requester and accuser as processes of the command, on a real chain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from p2pcompute._profile import Profile
from p2pcompute.chain import RegistryDomain, StrictReceipt, strict_receipt_digest
from p2pcompute.checking import PLEDGE_SUFFIX
from p2pcompute.identity import WalletKey
from p2pcompute.stake import open_pledge
from p2pcompute_protocols.ids import Address, TaskId
from p2pcompute_protocols.stake import SignedReceipt

pytestmark = [pytest.mark.net, pytest.mark.timeout(600)]

STAKE = 100_000_000
PATIENCE_S = 240.0  # bounds a hang; nothing is expected to take that long
SCRIPT = """
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def triple(out, x):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] * np.float32(3.0)


x = np.arange(4096, dtype=np.float32)
z = p2p.run(triple, p2p.out(x.shape, x.dtype), x, chunks=4)
"""
ROUNDS = """
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda


@p2p.kernel
def grow(new_x, x):
    i = cuda.grid(1)
    if i < new_x.size:
        new_x[i] = x[i] + 1


last = p2p.iterate(grow, rounds=12, state={"x": np.zeros(4096, np.int64)}, rounds_per_chunk=4)
assert (last["x"] == 12).all()
"""


def environment(home: Path) -> dict[str, str]:
    """Ours, without settings of p2pcompute that whoever runs the tests may have."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("P2PCOMPUTE_")}
    return {**kept, "P2PCOMPUTE_HOME": str(home)}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "p2pcompute_cli.main", *args]


@contextmanager
def running(home: Path, *args: str) -> Generator[dict[str, Any]]:
    """A process of the command that runs until the block ends; gives what it says when it is ready."""
    log = home / f"{'-'.join(args[:3])}.log".replace("/", "_")
    with log.open("w") as errors:
        process = subprocess.Popen(
            command(*args, "--json"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=environment(home),
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "ready":
                yield event
                break
        else:
            raise AssertionError(f"{args} ended before it was ready: {log.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()


def said(home: Path, *args: str) -> dict[str, Any]:
    """What a command that ends says last, in JSON."""
    done = subprocess.run(
        command(*args, "--json"), capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment(home)
    )
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def events(home: Path, script: Path, *args: str) -> list[dict[str, Any]]:
    """Run the script; what it says of that, however it ends."""
    done = subprocess.run(
        command("run", "--json", *args, str(script)),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=environment(home),
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def lied(home: Path, script: Path, *arbiters: str) -> str:
    """Run the script on providers that lie; the file of evidence that was kept."""
    said = events(home, script, *[text for address in arbiters for text in ("--arbiter", address)])
    caught = [event for event in said if "evidence" in event]
    assert caught, said
    evidence: str = caught[0]["evidence"]
    return evidence


def two_receipts(home: Path, evidence: Path) -> list[Path]:
    """What a liar's key signs that was restored from an old backup: two outputs for one chunk."""
    pledge = open_pledge(evidence.with_suffix(PLEDGE_SUFFIX).read_bytes()).terms
    key = WalletKey.load_or_create(Profile(home / "profiles" / "liar").receipt_key)
    domain = RegistryDomain(chain_id=pledge.chain.chain_id, contract=Address(pledge.registry))
    paths: list[Path] = []
    for number in (1, 2):
        receipt = StrictReceipt(task=TaskId(pledge.task), index=3, output=bytes([number]) * 32)
        made = SignedReceipt(
            version=1,
            chain=pledge.chain,
            registry=pledge.registry,
            owner=pledge.provider,
            task=receipt.task,
            index=receipt.index,
            output=receipt.output,
            signature=key.sign_digest(strict_receipt_digest(domain, receipt)),
        )
        paths.append(home / f"{number}.p2preceipt")
        paths[-1].write_bytes(made.encode())
    return paths


def test_a_verdict_costs_the_liar_its_stake(tmp_path: Path) -> None:
    script = tmp_path / "triple.py"
    script.write_text(SCRIPT)
    with (
        running(tmp_path, "arbiter", "--profile", "judge-1") as first,
        running(tmp_path, "arbiter", "--profile", "judge-2") as second,
    ):
        assert not first["active"]
        for name in ("judge-1", "judge-2"):
            staked = said(tmp_path, "stake", "100 USD", "--profile", name, "--yes")
            assert (staked["stake_uusd"], staked["active"]) == (STAKE, True)
        accepted = ("--arbiter", first["peer_id"], "--arbiter", second["peer_id"])
        with running(tmp_path, "up", "--profile", "liar", "--fault", "lie:1", "--threads", "1", *accepted) as liar:
            before = said(tmp_path, "stake", "150 USD", "--cores", "15", "--profile", "liar", "--yes")
            assert (before["account"], before["stake_uusd"]) == (liar["wallet"], 150_000_000)
            assert before["at_risk_uusd"] == 150_000_000
            evidence = lied(tmp_path, script, first["addresses"][0], second["addresses"][0])
            taken = said(tmp_path, "accuse", evidence, "--yes", "--profile", "witness")
            assert taken["provider"] == liar["wallet"]
            assert (taken["taken_uusd"], taken["stake_uusd"]) == (STAKE, 50_000_000)
            assert (taken["paid_uusd"], taken["burned_uusd"]) == (STAKE // 2, STAKE // 2)
            assert sorted(taken["arbiters"]) == sorted((first["peer_id"], second["peer_id"]))
            after = said(tmp_path, "stake", "status", "--profile", "liar")
            assert (after["stake_uusd"], after["active"], after["burned_uusd"]) == (50_000_000, False, STAKE // 2)
            # Two results for one chunk need no arbiter; the first of them could have been any chunk's.
            first_file, second_file = two_receipts(tmp_path, Path(evidence))
            cut = said(tmp_path, "accuse", str(first_file), str(second_file), "--yes")
            assert (cut["taken_uusd"], cut["stake_uusd"]) == (2_500_000, 47_500_000)
            assert cut["beneficiary"] == taken["beneficiary"]
            victim = said(tmp_path, "unstake", "--yes", "--profile", "requester")
            assert victim["came_uusd"] == STAKE // 2 + 1_250_000
            assert victim["account"] == taken["beneficiary"]
            # Who judged deals with the liar no more, and who accused neither; it is not the requester that was cheated.
            for name in ("judge-1", "judge-2"):
                banned = said(tmp_path, "peers", "--banned", "--profile", name)["banned"]
                assert [row["name"] for row in banned] == [liar["peer_id"]]
            tried = events(tmp_path, script, "--profile", "witness")
            assert not [event for event in tried if event["event"] == "agreed"], tried
            assert tried[-1]["exit_code"] == 5, tried  # there is no provider
    assert Profile(Path(evidence).parents[1]).evidence == Path(evidence).parent


def test_what_the_command_asks_of_stakes_holds_for_rounds(tmp_path: Path) -> None:
    script = tmp_path / "grow.py"
    script.write_text(ROUNDS)
    with running(tmp_path, "arbiter", "--profile", "judge") as judge:
        said(tmp_path, "stake", "100 USD", "--profile", "judge", "--yes")
        serving = ("up", "--profile", "provider", "--threads", "1", "--arbiter", judge["peer_id"])
        with running(tmp_path, *serving):
            asked = ("--min-stake", "100 USD", "--arbiter", judge["addresses"][0])
            bare = events(tmp_path, script, *asked)
            assert bare[-1]["exit_code"] == 5, bare  # there is no provider with so much
            assert "0.000000 USD at stake, of 100.000000 USD" in bare[-2]["message"]
            said(tmp_path, "stake", "100 USD", "--profile", "provider", "--yes")
            done = events(tmp_path, script, *asked)
            assert (done[-1]["exit_code"], done[-1]["chunks"]) == (0, 3), done
