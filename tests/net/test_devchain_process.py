"""The development chain as a program: crashes, signals, its journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import coincurve
import pytest
import trio
import trio.testing

from p2pcompute.chain import ChainClient, DevChainProcess, HubClient, dev_info, encode_approve, faucet, serve_devchain
from p2pcompute.chain._devchain_journal import Journal, JournalCorrupt
from p2pcompute.chain._devchain_node import DevNode
from p2pcompute.errors import ChainUnreachable, DiskFull
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

pytestmark = pytest.mark.net

KEY = coincurve.PrivateKey(keccak256(b"owner"))
OWNER = address_of(KEY.public_key)
PROGRAM = [sys.executable, "-m", "p2pcompute.chain.devchain"]


async def everything(client: ChainClient) -> list[Any]:
    head = int(await client.call("eth_blockNumber"), 16)
    return await client.batch([("eth_getBlockByNumber", [hex(n), True]) for n in range(head + 1)])


def test_a_killed_chain_comes_back_with_all_it_acknowledged(tmp_path: Path) -> None:
    async def main() -> None:
        blocks: list[Any] = []
        for i in range(3):
            async with DevChainProcess(tmp_path) as chain, ChainClient(chain.url) as client:
                assert await everything(client) == blocks or i == 0
                info = await dev_info(client)
                await faucet(client, OWNER, token_uusd=1000)
                await client.call("evm_increaseTime", [1000])
                hub = HubClient(client, info.hub, info.token)
                receipt = await hub.transact(KEY, hub.token, encode_approve(hub.hub, i))
                assert receipt.ok
                blocks = await everything(client)
                await chain.kill()
        async with DevChainProcess(tmp_path) as chain, ChainClient(chain.url) as client:
            assert await everything(client) == blocks
            hub = HubClient(client, (await dev_info(client)).hub, (await dev_info(client)).token)
            assert await hub.token_balance_uusd(OWNER) == 3000
            assert await hub.nonce(OWNER) == 3
            assert await client.call("evm_increaseTime", [0]) == hex(3000)

    trio.run(main)


def test_several_clients_share_a_chain(tmp_path: Path) -> None:
    async def pay(url: str, i: int) -> None:
        key = coincurve.PrivateKey(keccak256(b"%d" % i))
        async with ChainClient(url) as client:
            info = await dev_info(client)
            hub = HubClient(client, info.hub, info.token)
            await faucet(client, address_of(key.public_key), token_uusd=5)
            for n in range(5):
                await hub.transact(key, hub.token, encode_approve(hub.hub, n))
            assert await hub.nonce(address_of(key.public_key)) == 5

    async def main() -> None:
        async with DevChainProcess(tmp_path) as chain, trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(pay, chain.url, i)

    trio.run(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async def main() -> None:
        async with DevChainProcess(tmp_path) as chain:
            chain.process.send_signal(number)
            with trio.fail_after(300):
                assert await chain.process.wait() == 0

    trio.run(main)


def test_a_signal_stops_it_in_the_middle_of_a_long_call(tmp_path: Path) -> None:
    async def ask(url: str) -> None:
        async with ChainClient(url) as client:
            with pytest.raises(ChainUnreachable):
                await client.batch([("eth_call", [{"data": "0x5b5f56"}])] * 100)  # for ever, a hundred times

    async def main() -> None:
        async with DevChainProcess(tmp_path) as chain, trio.open_nursery() as nursery:
            nursery.start_soon(ask, chain.url)
            await trio.testing.wait_all_tasks_blocked(0.3)  # the call has gone out
            chain.process.send_signal(signal.SIGTERM)
            with trio.fail_after(300):
                assert await chain.process.wait() == 0

    trio.run(main)


def test_it_ends_with_its_owner(tmp_path: Path) -> None:
    async def main() -> None:
        async with DevChainProcess(tmp_path) as chain:
            assert chain.process.stdin is not None
            await chain.process.stdin.aclose()  # as when the owner is killed
            with trio.fail_after(300):
                assert await chain.process.wait() == 0

    trio.run(main)


def test_announce_and_a_taken_port(tmp_path: Path) -> None:
    announce = tmp_path / "url"

    async def main() -> None:
        async with DevChainProcess(tmp_path / "one") as chain:
            port = chain.url.rsplit(":", 1)[1]
            second = [*PROGRAM, "--data-dir", str(tmp_path / "two"), "--announce", str(announce), "--port", port]
            done = await trio.run_process(second, capture_stdout=True, capture_stderr=True, check=False)
            assert done.returncode == 3
            assert b"is taken; use the chain that runs there" in done.stderr
            assert not announce.exists()
            with pytest.raises(ChainUnreachable, match="is taken"):
                async with DevChainProcess(tmp_path / "two", port=int(port)):
                    raise AssertionError
            third = [*PROGRAM, "--data-dir", str(tmp_path / "two"), "--announce", str(announce)]
            process = await trio.lowlevel.open_process(third, stdout=subprocess.PIPE)
            assert process.stdout is not None
            async with process.stdout:
                line = await process.stdout.receive_some(200)
                assert announce.read_bytes() == line
                process.terminate()
                assert await process.wait() == 0

    trio.run(main)
    assert not list(tmp_path.glob(".*"))  # nothing is left of the file that was renamed


def journal_of(directory: Path, blocks: int) -> bytes:
    node = DevNode(directory, now_s=lambda: 1000)
    for _ in range(blocks):
        node.faucet(Address(b"\x01" * 20), 1, 0)
    node.close()
    return (directory / "chain.journal").read_bytes()


def head_after(directory: Path, data: bytes) -> int:
    (directory / "chain.journal").write_bytes(data)
    node = DevNode(directory, now_s=lambda: 1000)
    try:
        return node.chain.head
    finally:
        node.close()


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    whole = journal_of(tmp_path, 2)
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole), 37):
        assert head_after(tmp_path, whole[:cut]) == 2
        assert (tmp_path / "chain.journal").read_bytes() == whole[:last]
    assert head_after(tmp_path, whole) == 3
    # Torn by a power cut that left zeros, or nothing at all but the first line.
    assert head_after(tmp_path, whole[:last] + bytes(100)) == 2
    assert head_after(tmp_path, whole[: whole.index(b"\n") + 1]) == 1
    assert head_after(tmp_path, b"") == 1


def test_damage_before_the_last_line_is_an_error(tmp_path: Path) -> None:
    whole = journal_of(tmp_path, 2)
    for place in (0, 5, 9, 40, whole.index(b"\n") + 20):
        broken = bytearray(whole)
        broken[place] ^= 1
        with pytest.raises(JournalCorrupt, match="is damaged"):
            head_after(tmp_path, bytes(broken))


def test_a_journal_that_leads_elsewhere_is_an_error(tmp_path: Path) -> None:
    journal_of(tmp_path, 2)
    journal = Journal(tmp_path)
    entries = journal.entries
    journal.close()
    for change in ({"hash": "00" * 32}, {"t": 1001}, {"txs": []}, {"txs": ["zz"]}, {"txs": 5}):
        (tmp_path / "chain.journal").unlink()
        journal = Journal(tmp_path)
        for entry in [*entries[:-1], {**entries[-1], **change}]:
            journal.append(entry)
        journal.close()
        with pytest.raises(JournalCorrupt, match=r"move chain\.journal away"):
            DevNode(tmp_path)


def test_a_full_disk_ends_the_service_and_loses_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            info = await nursery.start(serve_devchain, tmp_path)
            async with ChainClient(info.url) as client:
                await faucet(client, OWNER, token_uusd=7)
                # From here on the journal is a device that is always full.
                journal = tmp_path / "chain.journal"
                full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
                for entry in os.listdir("/proc/self/fd"):
                    try:
                        if os.readlink(f"/proc/self/fd/{entry}") == str(journal):
                            os.dup2(full, int(entry))
                    except OSError:
                        continue
                os.close(full)
                with pytest.raises(ChainUnreachable):
                    await faucet(client, OWNER, token_uusd=7)

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    with pytest.raises(DiskFull, match="every block that was acknowledged is safe"):
        raise caught.value.exceptions[0]
    node = DevNode(tmp_path)
    assert node.chain.head == 2
    node.close()
