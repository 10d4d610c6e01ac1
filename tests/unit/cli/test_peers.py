"""`p2pcompute peers` and `status`: tables that fit where they are read, rates, and what they import."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from p2pcompute.control import node_status
from p2pcompute.control._peers import PeerWatch
from p2pcompute_cli._peers import _banned, _columns, _connected, _name, table
from p2pcompute_cli._screen import fitted, show
from p2pcompute_cli._shared import label
from p2pcompute_cli._status import _said, rate, size
from p2pcompute_cli.main import main

from ..market._harness import Market, compute, in_memory


@cache
def said_of_a_market() -> tuple[dict[str, Any], dict[str, Any], str]:
    """What a requester's node says of its peers, before and after a task, and its provider's status."""
    found: list[dict[str, Any]] = []
    shown: list[str] = []

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,))
        found.append(json.loads(json.dumps(await PeerWatch(requester).peers())))
        before = await node_status(provider)
        await compute(requester, chunks=4)
        found.append(json.loads(json.dumps(await PeerWatch(requester).peers())))
        after = await node_status(provider)

        @click.command()
        def say() -> None:
            show(_said(after, {**before, "uptime_s": after["uptime_s"] - 2}), watching=True)

        shown.append(CliRunner().invoke(say, catch_exceptions=False).output)

    in_memory(scenario)
    return found[0], found[1], shown[0]


def test_the_table_fits_into_the_terminal() -> None:
    before, after, status = said_of_a_market()
    [row] = after["peers"]
    columns = _columns(after, None, watching=False)
    wide = table(columns, [row, {**row, "rtt_ms": None, "address": ""}], None)
    assert len(wide) == 3
    assert len({click.unstyle(line).index("provider") for line in wide[1:]}) == 1, "columns stand under each other"
    for head in ("peer", "address", "rtt", "role", "USD/h", "we paid", "secured by", "muxer"):
        assert head in wide[0]
    assert "paid us" not in wide[0], "nobody has paid us"
    for width in (20, 40, 60, 80, 100, 120):
        narrow = [click.unstyle(line) for line in table(columns, [row], width)]
        assert max(map(len, narrow)) <= width
        assert row["peer"][-8:] in narrow[1]
    assert "rtt" in table(columns, [row], 40)[0]
    assert "muxer" not in table(columns, [row], 80)[0]
    lines = _connected(after, before, watching=True)
    assert "in/s" in lines[0]
    assert "B/s" in lines[1]
    assert lines[-1] == "1 peer on network simulated"
    assert "served     1 task, 4 chunks; now 2.00 chunks/s" in status
    assert "traffic " in status
    assert "\x1b" not in status, "no colour where nobody sees it"


@pytest.mark.parametrize("columns", [1, 2, 20, 40, 79, 80, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 23, 100])
@pytest.mark.parametrize("keep", [0, 1])
def test_what_is_watched_fits_into_the_terminal(columns: int, rows: int, keep: int) -> None:
    lines = [click.style("Node", bold=True), *(label(f"row {n}", "x" * n * 10) for n in range(10)), "the end"]
    shown = fitted(lines, columns, rows, keep=keep)
    plain = [click.unstyle(line) for line in shown]
    assert len(shown) <= rows
    assert all(len(line) <= columns for line in plain)
    for line, whole in zip(shown, lines, strict=False):
        assert line.count("\x1b") in (0, whole.count("\x1b")), "a style ends where it has begun"
    assert plain[0] == "Node" if columns >= 4 else plain[0].endswith("…")
    if len(lines) <= rows:
        assert len(shown) == len(lines)
        if columns == 200:
            assert shown == lines
    elif rows >= 3 and columns >= 40:
        assert plain[-1 - keep] == f"… {len(lines) - rows + 1} more: the terminal is too low"
        assert not keep or plain[-1] == "the end"


def test_without_a_terminal_all_lines_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["x" * 500] * 200
    show(lines, watching=True)
    assert capsys.readouterr().out.splitlines() == lines


def test_who_is_banned_and_who_is_not_there() -> None:
    _, after, _ = said_of_a_market()
    gone = {**after, "peers": [], "peer_count": 0}
    assert _connected(gone, None, watching=False) == ["no peers: nobody is connected to this node"]
    assert _banned(after) == ["nobody is banned"]
    banned: list[dict[str, Any]] = [
        {"kind": "peer", "name": "12D3KooWLiar", "reason": "lied", "left_s": None},
        {"kind": "subnet", "name": "192.0.2.0/24", "reason": "an address in there was banned", "left_s": 60},
    ]
    caught = {**after, "banned": banned}
    assert _banned(caught) == [
        "peer 12D3KooWLiar  for good: lied",
        "subnet 192.0.2.0/24  for 60.0 s: an address in there was banned",
    ]
    assert _connected(caught, None, watching=False)[-1].endswith("2 banned (--banned)")
    many = {**after, "peer_count": 700}
    assert _connected(many, None, watching=False)[-1] == "700 peers on network simulated, 699 of them not shown"


@pytest.mark.parametrize(
    ("protocol", "name"), [("/noise", "noise"), ("/yamux/1.0.0", "yamux"), ("/tls/1.0.0", "tls"), ("", "-")]
)
def test_protocols_have_short_names(protocol: str, name: str) -> None:
    assert _name(protocol) == name


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (99_960, "100 kB"), (1_234_567, "1.2 MB"), (5e13, "50.0 TB")],
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert size(count) == text


def test_rates_are_of_one_life_of_a_node() -> None:
    def value(answer: dict[str, Any]) -> float:
        return float(answer["bytes"])

    now = {"peer_id": "a", "uptime_s": 20.0, "bytes": 300}
    assert rate(now, None, value) == 15
    assert rate(now, {"peer_id": "a", "uptime_s": 10.0, "bytes": 100}, value) == 20
    assert rate(now, {"peer_id": "a", "uptime_s": 30.0, "bytes": 900}, value) == 15, "it was started anew"
    assert rate(now, {"peer_id": "b", "uptime_s": 10.0, "bytes": 100}, value) == 15
    assert rate({"peer_id": "a", "uptime_s": 0.0, "bytes": 0}, None, value) == 0


@pytest.mark.parametrize("command", ["peers", "status", "drain"])
def test_without_a_node_it_says_what_to_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    assert main([command, "--json"]) == 3
    assert "start one with `p2pcompute up`" in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.parametrize("command", ["peers", "status"])
def test_asking_imports_nothing_of_what_a_node_is_made_of(command: str, tmp_path: Path) -> None:
    code = (
        "import json, sys\nfrom p2pcompute_cli.main import main\n"
        f"assert main(['{command}']) == 3\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
        env={"P2PCOMPUTE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    loaded = set(json.loads(done.stdout))
    heavy = {"numpy", "numba", "libp2p", "httpx", "eth", "nacl", "coincurve", "cbor2", "sqlite3", "prometheus_client"}
    assert not loaded & heavy
    assert not {name for name in loaded if name.startswith("p2pcompute.")} & {
        f"p2pcompute.{part}" for part in ("tasks", "payments", "storage", "overlay", "execution", "market", "node")
    }
    assert not any(name.startswith("p2pcompute_protocols") for name in loaded)
