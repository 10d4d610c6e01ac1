"""docs/limits.md says what the table says."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from p2pcompute.blobs import _server
from p2pcompute.overlay import Limits, Offence, ProtocolLimits, Rate
from p2pcompute.overlay._bans import BAN_SCORE, FIRST_BAN_S, FORGET_BANS_S, HALF_LIFE_S, LONGEST_BAN_S
from p2pcompute.overlay._limits import PROTOCOL_LIMITS
from p2pcompute.overlay._request_api import DRAIN_S, IDLE_SERVING_S, MAX_REQUEST_STREAMS_PER_PEER
from p2pcompute.payments import _payee
from p2pcompute_protocols import ads, blob, channel, dispute, negotiation, task

PAGE = (Path(__file__).parents[3] / "docs" / "limits.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]


def as_written(value: object) -> str:
    if isinstance(value, Rate):
        return f"{value.per_s:g}/s, {value.burst:g}" if value.burst < 1e6 else f"{value.per_s:.0f}/s, {value.burst:.0f}"
    return str(value)


def test_every_limit_is_on_the_page() -> None:
    limits = Limits()
    names = {field.name for field in dataclasses.fields(Limits)} - {"protocol", "protocols", "loopback_exempt"}
    written = {row[0].strip("`"): row[1] for row in ROWS if row[0].strip("`") in names}
    assert written == {name: as_written(getattr(limits, name)) for name in names}


def test_every_protocol_is_on_the_page() -> None:
    def row(limits: ProtocolLimits, *, idle_holds: bool) -> list[str]:
        idle = f"{limits.idle_s:g} s" if idle_holds and limits.idle_s < math.inf else "–"
        deadline = f"{limits.deadline_s:g} s" if limits.deadline_s < math.inf else "–"
        return [str(limits.streams_per_peer), str(limits.streams), idle, deadline]

    limits = Limits()
    expected = {"any other": row(limits.protocol, idle_holds=True)}
    for name, protocol in limits.protocols.items():
        expected[f"`{name}`"] = row(protocol, idle_holds=name.startswith("/p2pcompute/"))
    assert {cells[0]: cells[1:] for cells in ROWS if len(cells) == 5 and cells[0] != "protocol"} == expected


def test_rows_of_our_protocols_have_the_ids_of_today() -> None:
    """A row for an ID that nobody speaks any more bounds nobody."""
    served = {part.PROTOCOL_ID for part in (task, dispute, channel, ads, negotiation, blob)}
    assert {name for name in PROTOCOL_LIMITS if name.startswith("/p2pcompute/")} == served


def test_a_protocol_ends_silence_before_the_defence_does() -> None:
    assert PROTOCOL_LIMITS[channel.PROTOCOL_ID].idle_s > _payee.IDLE_TIMEOUT_S
    assert PROTOCOL_LIMITS[blob.PROTOCOL_ID].idle_s > _server._IDLE_S
    for part in (ads, negotiation):
        limits = PROTOCOL_LIMITS[part.PROTOCOL_ID]
        assert limits.idle_s > IDLE_SERVING_S + DRAIN_S
        assert limits.streams_per_peer > MAX_REQUEST_STREAMS_PER_PEER


def test_every_offence_is_on_the_page() -> None:
    points = sorted(float(row[1]) for row in ROWS if row[2:] in (["the peer"], ["the address"], ["the subnet"]))
    assert points == sorted(offence.points for offence in Offence)
    words = re.sub(r"\s+", " ", PAGE)
    assert f"halves every {HALF_LIFE_S / 60:g} minutes. At {BAN_SCORE:g} follows a ban of a minute" in words
    assert (FIRST_BAN_S, LONGEST_BAN_S, FORGET_BANS_S) == (60, 3600, 6 * 3600)
    assert "twice as long, up to an hour, until the offender has kept quiet for six" in words
