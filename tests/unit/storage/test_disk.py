"""A disk that is really full, and a disk that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.storage import InlineExecutor, LedgerFailed, open_ledger

# Fills a file system of 512 KiB with receipts and with a file beside the ledger, removes that file, and goes on.
FULL_DISK = """
import sys, trio
from pathlib import Path
from p2pcompute.errors import DiskFull
from p2pcompute.storage import open_ledger

async def main():
    disk = Path(sys.argv[1])
    async with open_ledger(disk / "profile") as ledger:
        await ledger.ban("peer 0", reason="x" * 500)
        (disk / "ballast").write_bytes(bytes(200_000))
        stored = 1
        try:
            while True:
                await ledger.ban(f"peer {stored}", reason="x" * 500)
                stored += 1
        except DiskFull as exc:
            assert "Make room" in str(exc)
        assert stored > 1
        assert len(await ledger.peers()) == stored
        await ledger.verify(full=True)
        (disk / "ballast").unlink()
        await ledger.ban(f"peer {stored}", reason="x" * 500)
        assert len(await ledger.peers()) == stored + 1
        await ledger.verify(full=True)
    async with open_ledger(disk / "profile") as ledger:
        assert len(await ledger.peers()) == stored + 1
        await ledger.verify(full=True)
    print("stored", stored)

trio.run(main)
"""


def can_mount(directory: Path) -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    probe = [unshare, "-Urm", "mount", "-t", "tmpfs", "tmpfs", str(directory)]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_a_file_system_without_room(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("mounting a small tmpfs needs unprivileged user namespaces; max_page_count is tested everywhere")
    script = 'mount -t tmpfs -o size=512k tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stored ")


def open_file(path: Path) -> int:
    """The descriptor under which this process has `path` open."""
    links = ((int(entry.name), entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return next(number for number, link in links if os.readlink(link) == str(path))


def test_an_io_error_stops_the_ledger_for_good(tmp_path: Path, deal: Any) -> None:
    """After a failed write what the disk holds is not known, so nothing is tried again before the next start."""

    async def main() -> None:
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            await ledger.add_agreement(deal.agreement, role="provider")
            envelope = await ledger.record_receipt(deal.receipt(0), sign=deal.sign)
            assert ledger.failure == ""
            log = tmp_path / "ledger.sqlite3-wal"
            number = open_file(log)
            working, read_only = os.dup(number), os.open(log, os.O_RDONLY)
            os.dup2(read_only, number)  # writes to the log fail with EBADF from here on
            with pytest.raises(LedgerFailed, match="restart the node"):
                await ledger.record_receipt(deal.receipt(1), sign=deal.sign)
            assert "restart the node" in ledger.failure
            os.dup2(working, number)
            os.close(working)
            os.close(read_only)
            with pytest.raises(LedgerFailed, match="restart the node"):
                await ledger.record_receipt(deal.receipt(2), sign=deal.sign)
            with pytest.raises(LedgerFailed):
                await ledger.receipts(deal.task)
        async with open_ledger(tmp_path, executor=InlineExecutor()) as ledger:
            assert [row.envelope for row in await ledger.receipts(deal.task)] == [envelope]
            await ledger.verify(full=True)

    trio.run(main)
