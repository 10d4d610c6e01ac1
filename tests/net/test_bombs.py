"""Work that takes its worker down, between real processes: the node lives, the next task runs, and what failed leaves a
receipt, signed and on both disks, that says why, and that nobody pays for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ..unit.execution._program_site import install
from ._programs import Program

pytestmark = pytest.mark.net
EXECUTION_FAILED, TIMED_OUT = 21, 22

BOMBS = """
import ctypes, mmap, os

def go(index, out, kind):
    if kind == 1:
        ctypes.string_at(0)                       # a segfault
    if kind == 2:
        while True:                               # no end
            pass
    if kind == 3:
        held = [bytearray(1 << 30) for _ in range(1 << 10)]   # a tebibyte
    if kind == 4:
        block = b"x" * (1 << 20)
        for _ in range(10 * 1024):                # 10 GiB of output
            os.write(1, block)
            os.write(2, block)
        raise SystemExit(4)
    out[...] = 7
"""

ASK = """
import json, sys
import numpy as np
import p2pcompute as p2p
import trio
from p2pcompute.errors import ChunkFailed

go = p2p.program("bombs:go", version="1", digest=sys.argv[1])

async def main():
    async with p2p.open_node() as node:
        for kind in map(int, sys.argv[2:]):
            try:
                item_s = 0.001 if kind == 2 else 2.0  # only what has no end runs out of its time
                options = {"check": "none", "item_s": item_s, "chunks": 1}
                seven = await node.run(go[4], p2p.out(4, np.int64), kind, **options)
                print("SAID", kind, json.dumps(seven.tolist()), flush=True)
            except ChunkFailed as error:
                print("SAID", kind, "ChunkFailed", flush=True)

trio.run(main)
"""
KINDS = {
    1: "the worker crashed with SIGSEGV",
    3: "the work does not fit into the worker's memory limit",
    4: "File too large",
    2: "the worker did not answer within 20 s and was killed",
}


# A provider that allows ten seconds for a compilation, and not sixty, so that the test need not wait for those.
HURRIED = """
import sys
import p2pcompute.tasks._provider_session as session
from p2pcompute_cli.main import main

session._COMPILE_S = 10.0
sys.exit(main())
"""

COMPILE_BOMB = """
import p2pcompute as p2p
from p2pcompute import cuda

@p2p.device
def long(x, y):
{body}
    return x ^ y

@p2p.kernel
def bomb(out, a, b, c, d):
    i = cuda.grid(1)
    if i < out.size:
        x = long(long(i, a), long(b, i)) ^ long(long(c, a), long(d, b))
        out[i] = x ^ long(long(a, b), long(b, c)) ^ long(long(c, d), long(d, a))

@p2p.kernel
def plain(out, a):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = i + a
"""
BODY = "\n".join(
    f"    x = (x * y - {k}) if x > y * {k} else (y // (x | 1) + x % {k + 3})\n    y = y ^ (x >> {k})" for k in range(60)
)

# A requester that compiles nothing itself, as it would be stopped by the same: only a hostile one sends such a kernel.
SEND_THE_BOMB = """
import numpy as np
import p2pcompute as p2p
import p2pcompute._requester as requester
import trio
from p2pcompute.errors import TaskError
from compile_bomb import bomb, plain

async def main():
    async with p2p.open_node() as node:
        needs_worker = requester.TaskRun._needs_worker
        requester.TaskRun._needs_worker = property(lambda self: False)
        options = {"check": "none", "chunks": 1}
        small = np.int8(3), np.uint16(5), np.int32(7), np.uint64(9)
        try:
            await node.run(bomb[1, 64], p2p.out(64, np.int64), *small, **options)
        except TaskError as error:
            print("SAID", error, flush=True)
        requester.TaskRun._needs_worker = needs_worker
        print("SAID", (await node.run(plain[1, 64], p2p.out(64, np.int64), np.int64(5))).sum(), flush=True)

trio.run(main)
"""


def test_a_compile_bomb_leaves_a_receipt_and_a_node_that_works(start: Callable[..., Program], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "hurried.py").write_text(HURRIED)
    (site / "compile_bomb.py").write_text(COMPILE_BOMB.format(body=BODY))
    (tmp_path / "send.py").write_text(SEND_THE_BOMB)
    paths = os.pathsep.join(path for path in (str(site), os.environ.get("PYTHONPATH", "")) if path)
    provider = start("up", "--json", module="hurried", PYTHONPATH=paths)
    provider.wait_event("ready")
    script = start("run", "--json", "--profile", "mine", str(tmp_path / "send.py"), PYTHONPATH=paths)
    assert script.end() == 0, script.said
    said = [line for line in script.said.splitlines() if line.startswith("SAID")]
    assert len(said) == 2, script.said
    assert "the kernel took over 10 s to compile" in said[0]
    assert said[1] == f"SAID {sum(range(64)) + 64 * 5}"
    assert provider.process.poll() is None
    for profile in ("mine", "default"):
        asked = start("receipts", "--json", "--profile", profile)
        assert asked.end() == 0, asked.said
        failed = [row for row in asked.lines[0]["receipts"] if row["code"]]
        assert [(row["code"], row["units"], row["pusd"]) for row in failed] == [(TIMED_OUT, 0, 0)]
        assert "the kernel took over 10 s to compile" in failed[0]["reason"]


def test_a_bomb_leaves_a_receipt_and_a_node_that_works(start: Callable[..., Program], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "bombs", "1", {"bombs.py": BOMBS}, {"go": "bombs:go"})
    paths = os.pathsep.join(path for path in (str(site), os.environ.get("PYTHONPATH", "")) if path)
    (tmp_path / "ask.py").write_text(ASK)
    listed = start("programs", "--json", PYTHONPATH=paths)
    assert listed.end() == 0
    (digest,) = [program["digest"] for program in listed.lines]
    provider = start("up", "--json", "--allow-program", "bombs:go", PYTHONPATH=paths)
    provider.wait_event("ready")

    kinds = [0, *KINDS, 0]  # before them and after them the same program, as it should be
    script = start("run", "--json", "--profile", "mine", str(tmp_path / "ask.py"), digest, *map(str, kinds))
    assert script.end() == 0, script.said
    said = [line.split(maxsplit=2) for line in script.said.splitlines() if line.startswith("SAID")]
    assert [(int(kind), what) for _, kind, what in said] == [
        (kind, "ChunkFailed" if kind else "[7, 7, 7, 7]") for kind in kinds
    ]
    assert provider.process.poll() is None
    for profile in ("mine", "default"):
        asked = start("receipts", "--json", "--profile", profile)
        assert asked.end() == 0, asked.said
        rows = asked.lines[0]["receipts"]
        assert [row["units"] > 0 for row in rows if not row["code"]] == [True, True]
        failed = {row["reason"]: row for row in rows if row["code"]}
        assert len(failed) == len(KINDS)
        for kind, words in KINDS.items():
            (reason,) = [reason for reason in failed if words in reason]
            assert failed[reason]["code"] == (TIMED_OUT if kind == 2 else EXECUTION_FAILED)
            assert (failed[reason]["units"], failed[reason]["pusd"]) == (0, 0)
