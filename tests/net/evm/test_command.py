"""The command on an EVM chain of others' making: deploy, lend, buy, and the ways in which a chain is not the right
one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from p2pcompute._profile import Profile
from p2pcompute.chain import ChainClient
from p2pcompute.identity import WalletKey

pytestmark = pytest.mark.net

SCRIPT = """
import numpy as np
import p2pcompute as p2p
from p2pcompute import cuda

@p2p.kernel
def double(out, x):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i] + x[i]

x = np.arange(10_000, dtype=np.float32)
print("equal" if np.array_equal(p2p.run(double, p2p.out(x.shape, x.dtype), x, chunks=4), x + x) else "DIFFERENT")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("P2PCOMPUTE_")]:
        if name != "P2PCOMPUTE_ANVIL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


async def command(*args: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    done = await trio.run_process(
        [sys.executable, "-m", "p2pcompute_cli.main", *args],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert done.returncode == 0, done.stderr.decode()
    return done


async def refused(*args: str) -> tuple[int, str]:
    done = await command(*args, check=False)
    return done.returncode, done.stderr.decode()


def wallet_of(name: str) -> str:
    return "0x" + WalletKey.load_or_create(Profile.named(name).wallet_key).address.hex()


async def give_coins(url: str, account: str, wei: int = 10**18) -> None:
    async with ChainClient(url) as rpc:
        await rpc.call("anvil_setBalance", [account, hex(wei)])


def test_lending_and_buying_on_another_chain(
    bare_anvil: Callable[..., AbstractAsyncContextManager[str]], home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "double.py"
    script.write_text(SCRIPT)

    async def lend(url: str, hub: str, *, task_status: trio.TaskStatus[trio.Process]) -> None:
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                "p2pcompute_cli.main",
                "up",
                "--json",
                "--chain",
                url,
                "--hub",
                hub,
                "--threads",
                "1",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        said = b""
        try:
            async for piece in process.stdout:
                said += piece
                if b'"ready"' in said and b"\n" in said.partition(b'"ready"')[2]:
                    break
            task_status.started(process)
            async for _ in process.stdout:
                pass
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.CancelScope(shield=True):
                    await process.wait()

    async def main() -> None:
        async with bare_anvil() as url:
            code, said = await refused("chain", "deploy", "--chain", url, "--test-token", "--yes", "--profile", "bank")
            assert code == 11
            assert f"the account {wallet_of('bank')} has 0: send" in said
            await give_coins(url, wallet_of("bank"))
            deployed = await command(
                "chain", "deploy", "--chain", url, "--test-token", "--yes", "--json", "--profile", "bank"
            )
            hub = json.loads(deployed.stdout)["hub"]
            assert b"at most" in deployed.stderr

            # A provider without gas is told where to send some.
            code, said = await refused("up", "--chain", url, "--hub", hub)
            assert code == 10
            assert f"send to the account {wallet_of('default')} on chain 31337" in said
            await give_coins(url, wallet_of("default"))

            async with trio.open_nursery() as nursery:
                lender = await nursery.start(lend, url, hub)
                # So is a buyer without tokens; it has named no hub the second time, since the profile has kept it.
                code, said = await refused("run", "--chain", url, "--hub", hub, str(script))
                assert code == 10
                assert f"send to the account {wallet_of('requester')}" in said
                assert "of the token tUSD" in said
                await give_coins(url, wallet_of("requester"))
                await command("fund", "100 USD", "--yes", "--profile", "bank")
                await command("withdraw", "100 USD", "--to", wallet_of("requester"), "--yes", "--profile", "bank")
                done = await command("run", "--budget", "0.05 USD", str(script))
                assert done.stdout.decode().strip().endswith("equal")
                spent = json.loads((await command("wallet", "--json", "--profile", "requester")).stdout)
                assert spent["promised_uusd"] > 0
                lender.send_signal(signal.SIGTERM)
            earned = json.loads((await command("wallet", "--json")).stdout)
            assert earned["free_uusd"] == spent["promised_uusd"]  # claimed as it stopped
            assert earned["chain"]["hub"] == hub

    trio.run(main)


def test_a_chain_that_is_not_the_one_is_refused(
    bare_anvil: Callable[..., AbstractAsyncContextManager[str]], home: Path
) -> None:
    async def main() -> None:
        async with bare_anvil() as url, bare_anvil("--chain-id", "31338") as other:
            await give_coins(url, wallet_of("default"))
            code, said = await refused("chain", "check", "--chain", url)
            assert code == 11
            assert "nothing says where its hub is" in said
            deployed = await command("chain", "deploy", "--chain", url, "--test-token", "--yes", "--json")
            hub, token = (json.loads(deployed.stdout)[name] for name in ("hub", "token"))
            shown = json.loads((await command("chain", "check", "--json")).stdout)
            assert (shown["hub"], shown["symbol"], shown["tokens_uusd"]) == (hub, "tUSD", 10**12)
            # The profile knows its chain's ID: an endpoint of another chain is seen as such.
            code, said = await refused("wallet", "--chain", other)
            assert code == 11
            assert "serves chain 31338, not 31337" in said
            for named, words in ((token, "is not the hub of this version"), (wallet_of("default"), "no contract at")):
                code, said = await refused("chain", "check", "--chain", url, "--hub", named, "--profile", "second")
                assert code == 11
                assert words in said
            code, said = await refused(
                "chain", "check", "--chain", url, "--hub", hub, "--token", hub, "--profile", "second"
            )
            assert code == 11
            assert f"is of the token {token}" in said
            code, said = await refused("chain", "deploy", "--chain", url, "--test-token", "--yes")
            assert code == 3
            assert "a profile belongs to one for good" in said

    trio.run(main)
