"""The ledger as a file: who may open it, how it grows older, and what a full disk does."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.errors import ConfigError, DiskFull, ProfileInUse
from p2pcompute.storage import InlineExecutor, open_ledger
from p2pcompute.storage._schema import MIGRATIONS
from p2pcompute_protocols.ids import Address, ChannelId, PeerId

EMPTY = Address(bytes(20))

HOLDER = """
import sys, trio
from pathlib import Path
from p2pcompute.storage import open_ledger

async def main():
    async with open_ledger(Path(sys.argv[1])):
        print("open", flush=True)
        sys.stdin.readline()

trio.run(main)
"""


def test_a_second_process_is_told_who_holds_the_ledger(tmp_path: Path) -> None:
    async def try_open() -> None:
        async with open_ledger(tmp_path) as ledger:
            await ledger.verify(full=True)

    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(ProfileInUse, match=rf"process {holder.pid};.*another profile"):
            trio.run(try_open)
        holder.kill()
        holder.wait()
    # The kernel dropped the lock with the process, and nothing has to be cleaned up.
    trio.run(try_open)


def test_a_second_ledger_in_this_process_is_refused_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path):
            with pytest.raises(ProfileInUse, match=f"process {os.getpid()}"):
                async with open_ledger(tmp_path):
                    pass
            with pytest.raises(ProfileInUse):  # the refused attempt did not drop the lock
                async with open_ledger(tmp_path):
                    pass
        async with open_ledger(tmp_path):
            pass

    trio.run(main)


def test_an_old_ledger_is_migrated_in_place(tmp_path: Path, deal: Any) -> None:
    newer = (*MIGRATIONS, "ALTER TABLE peers ADD COLUMN note TEXT NOT NULL DEFAULT 'old';")

    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor(), migrations=MIGRATIONS) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            await ledger.record_receipt(deal.receipt(0), sign=deal.sign)
        async with open_ledger(tmp_path, executor=InlineExecutor(), migrations=newer) as ledger:
            connection = ledger._database.connection
            assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
            assert connection.execute("SELECT note FROM peers").fetchall() == [("old",)]
            assert len(await ledger.receipts(deal.task)) == 1
        with pytest.raises(ConfigError, match="install the newer p2pcompute"):
            async with open_ledger(tmp_path, executor=InlineExecutor()):
                pass

    trio.run(main)


def test_a_ledger_from_before_there_were_consents_takes_them(tmp_path: Path, deal: Any) -> None:
    channel, account, peer = ChannelId(b"c" * 32), Address(b"a" * 20), PeerId("peer")

    async def main() -> None:
        opened: dict[str, Any] = {"channel": channel, "payer": account, "signer": account, "peer": peer}
        async with open_ledger(tmp_path, executor=InlineExecutor(), migrations=MIGRATIONS[:1]) as ledger:
            # As it was written then: today's methods read columns that came later.
            await ledger._write(lambda tx: tx.emit("channel_in_opened", **opened))
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.set_chain_in(channel, deposit_uusd=5, claimed_uusd=0, close_at_s=0)
            await ledger.take_voucher(channel, amount_uusd=5, memo=bytes(32), signature=bytes(65), peer=peer)
            given = await ledger.give_consent(
                channel, epoch=0, amount_uusd=5, deadline_s=1, renew_before_s=0, sign=lambda *_: bytes(65)
            )
            assert await ledger.consent(channel) == given
            await ledger.verify(full=True)

    trio.run(main)


def test_results_that_a_ledger_has_receipted_are_counted_when_it_grows_older(tmp_path: Path, deal: Any) -> None:
    """One from before they were counted: none of what its payers name of them later is one too many."""

    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            row = await ledger.add_agreement(deal.agreement, role="provider")
            await ledger.open_channel_in(ChannelId(b"c" * 32), payer=EMPTY, signer=EMPTY, peer=PeerId("peer"))
            for index in range(3):
                await ledger.record_receipt(deal.receipt(index), sign=deal.sign)
            await ledger.record_receipt(deal.receipt(3, code=9), sign=deal.sign)
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as old:
            old.executescript("ALTER TABLE channels_in DROP COLUMN issued; PRAGMA user_version = 3;")
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.verify(full=True)
            counted = ledger._database.connection.execute("SELECT channel, issued FROM channels_in ORDER BY issued")
            assert counted.fetchall() == [(b"c" * 32, 0), (row.channel, 3)]

    trio.run(main)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    broken = (*MIGRATIONS, "CREATE TABLE half (a INTEGER) STRICT; INSERT INTO nowhere VALUES (1);")

    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()):
            pass
        with pytest.raises(Exception, match="nowhere"):
            async with open_ledger(tmp_path, executor=InlineExecutor(), migrations=broken):
                pass
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            names = {name for (name,) in ledger._database.connection.execute("SELECT name FROM sqlite_schema")}
            assert "half" not in names

    trio.run(main)


def test_a_full_disk_loses_nothing_and_the_ledger_goes_on(tmp_path: Path, deal: Any) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            connection = ledger._database.connection
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 3}")
            stored = 0

            async def fill() -> None:
                nonlocal stored
                while True:
                    await ledger.record_receipt(deal.receipt(stored), sign=deal.sign)
                    stored += 1

            with pytest.raises(DiskFull, match="Make room"):
                await fill()
            assert stored > 0
            assert len(await ledger.receipts(deal.task)) == stored
            with pytest.raises(DiskFull):
                await ledger.record_receipt(deal.receipt(stored, units=1), sign=deal.sign)
            await ledger.verify(full=True)
            connection.execute("PRAGMA max_page_count = 100000")
            await ledger.record_receipt(deal.receipt(stored), sign=deal.sign)
            assert len(await ledger.receipts(deal.task)) == stored + 1
            await ledger.verify(full=True)

    trio.run(main)


def test_someone_can_read_the_file_meanwhile(tmp_path: Path, deal: Any) -> None:
    async def main() -> None:
        async with open_ledger(tmp_path) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            reader = sqlite3.connect(f"file:{tmp_path}/ledger.sqlite3?mode=ro", uri=True)
            assert reader.execute("SELECT count(*) FROM agreements").fetchone() == (1,)
            reader.close()

    trio.run(main)
