"""`p2pcompute peers`: who the running node of a profile is connected to."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click

from ._screen import show
from ._shared import common_options, count, json_line, profile_option, seconds, short_peer
from ._status import ask_node, rate, size, watch_option

__all__ = ["peers", "table"]

_GAP: Final = "  "


@click.command(
    epilog="""\b
Examples:
  p2pcompute peers
  p2pcompute peers --watch
  p2pcompute peers --json | jq -r '.peers[].peer'

In a narrow terminal columns are left out; --json has everything, peer IDs in full. Round trips are measured by pings,
of each peer every ten seconds at most. Exit code 3: no node of this profile is running.
"""
)
@profile_option
@click.option("--banned", is_flag=True, help="those that this node deals with no more, and why")
@watch_option
@common_options
def peers(profile: str, banned: bool, watch: float | None, as_json: bool, debug: bool) -> None:
    """Show who the running node is connected to: how, since when, how far away, and what goes to and fro."""
    before: dict[str, Any] | None = None
    while True:
        answer = ask_node(profile, "/peers", as_json=as_json, debug=debug)
        if as_json:
            json_line(**answer)
        else:
            lines = _banned(answer) if banned else _connected(answer, before, watching=watch is not None)
            show(lines, watching=watch is not None, keep=0 if banned else 1)
            before = answer
        if watch is None:
            return
        time.sleep(watch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """A column of the table.

    Attributes:
        cell: the text for a peer.
        keep: the columns of the least `keep` go first where there is no room.
        right: whether it is flush right.
    """

    head: str
    cell: Callable[[dict[str, Any]], str]
    keep: int
    right: bool = False


def _connected(answer: dict[str, Any], before: dict[str, Any] | None, *, watching: bool) -> list[str]:
    rows = answer["peers"]
    if not rows:
        return ["no peers: nobody is connected to this node"]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = table(_columns(answer, before, watching=watching), rows, width)
    left_out = answer["peer_count"] - len(rows)
    banned = len(answer["banned"])
    end = f"{count(answer['peer_count'], 'peer')} on network {answer['network']}"
    end += f", {left_out} of them not shown" if left_out else ""
    end += f"; {banned} banned (--banned)" if banned else ""
    return [*lines, end]


def _banned(answer: dict[str, Any]) -> list[str]:
    if not answer["banned"]:
        return ["nobody is banned"]
    return [
        f"{row['kind']} {row['name']}{_GAP}"
        f"{'for good' if row['left_s'] is None else 'for ' + seconds(row['left_s'])}: {row['reason']}"
        for row in answer["banned"]
    ]


def _columns(answer: dict[str, Any], before: dict[str, Any] | None, *, watching: bool) -> list[_Column]:
    earlier = {row["peer"]: row for row in before["peers"]} if before is not None else {}

    def per_s(row: dict[str, Any], way: str) -> str:
        def value(one: dict[str, Any]) -> float:
            found = row if one is answer else earlier.get(row["peer"])
            return float(found[way]) if found is not None else 0.0

        return f"{size(rate(answer, before, value))}/s" if row["peer"] in earlier else "-"

    columns = [
        _Column(head="peer", cell=lambda row: short_peer(row["peer"]), keep=99),
        _Column(head="way", cell=lambda row: row["direction"], keep=90),
        _Column(head="address", cell=lambda row: row["address"] or "-", keep=80),
        _Column(head="since", cell=lambda row: seconds(row["age_s"]), keep=60, right=True),
        _Column(head="rtt", cell=_rtt, keep=95, right=True),
        _Column(head="streams", cell=lambda row: str(row["streams"]), keep=40, right=True),
        _Column(head="in", cell=lambda row: size(row["bytes_in"]), keep=72, right=True),
        _Column(head="out", cell=lambda row: size(row["bytes_out"]), keep=72, right=True),
    ]
    if watching:
        columns += [
            _Column(head="in/s", cell=lambda row: per_s(row, "bytes_in"), keep=70, right=True),
            _Column(head="out/s", cell=lambda row: per_s(row, "bytes_out"), keep=69, right=True),
        ]
    columns += [
        _Column(head="role", cell=_role, keep=75),
        _Column(head="USD/h", cell=_price, keep=50, right=True),
        _Column(head="paid us", cell=lambda row: _money(row, "paid_us_uusd"), keep=31, right=True),
        _Column(head="we paid", cell=lambda row: _money(row, "earned_from_us_uusd"), keep=30, right=True),
        _Column(head="secured by", cell=lambda row: _name(row["security"]), keep=45),
        _Column(head="muxer", cell=lambda row: _name(row["muxer"]), keep=10),
        _Column(head="more", cell=_more, keep=20),
    ]
    return [column for column in columns if column.keep > 31 or any(column.cell(row) for row in answer["peers"])]


def _rtt(row: dict[str, Any]) -> str:
    rtt_ms = row["rtt_ms"]
    return "-" if rtt_ms is None else f"{rtt_ms:.1f} ms" if rtt_ms < 100 else f"{rtt_ms:.0f} ms"


def _role(row: dict[str, Any]) -> str:
    if row["standing"] is not None and row["standing"]["banned"]:
        return "banned"
    return ", ".join(row["roles"]) + (" (draining)" if row["draining"] else "") or "-"


def _price(row: dict[str, Any]) -> str:
    """For an hour of a reference core: a unit is a microsecond of it."""
    return "-" if row["price_pusd"] is None else f"{row['price_pusd'] * 0.0036:.4f}"


def _money(row: dict[str, Any], way: str) -> str:
    standing = row["standing"]
    return f"{standing[way] / 1e6:.6f}" if standing is not None and standing[way] else ""


def _more(row: dict[str, Any]) -> str:
    failures = row["standing"]["failures"] if row["standing"] is not None else 0
    connections = len(row["connections"])
    parts = [f"{failures} failed"] if failures else []
    bulk = ", one for bulk" if any(connection["bulk"] for connection in row["connections"]) else ""
    parts += [f"{connections} connections{bulk}"] if connections > 1 else []
    return ", ".join(parts)


def _name(protocol: str) -> str:
    """A protocol ID without its namespace and version: "/yamux/1.0.0" is yamux."""
    words = [word for word in protocol.split("/") if word and not re.fullmatch(r"[0-9.]+", word)]
    return words[-1] if words else "-"


def table(columns: list[_Column], rows: list[dict[str, Any]], width: int | None) -> list[str]:
    """Lines of a table: a bold head and a line a row; columns that `width` has no room for are left out."""
    shown = [(column, [column.head, *(column.cell(row) for row in rows)]) for column in columns]
    while width is not None and len(shown) > 1 and _width(shown) > width:
        shown.remove(min(shown, key=lambda pair: pair[0].keep))
    lines: list[str] = []
    for number in range(len(rows) + 1):
        cells = [_padded(texts[number], max(map(len, texts)), column.right) for column, texts in shown]
        lines.append(_GAP.join(cells).rstrip())
    return [click.style(lines[0], bold=True), *lines[1:]]


def _width(shown: list[tuple[_Column, list[str]]]) -> int:
    return sum(max(map(len, texts)) for _, texts in shown) + len(_GAP) * (len(shown) - 1)


def _padded(text: str, width: int, right: bool) -> str:
    return f"{text:>{width}}" if right else f"{text:<{width}}"
