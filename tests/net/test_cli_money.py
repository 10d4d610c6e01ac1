"""The commands that move money, as people use them: real processes on loopback."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ._programs import Program, job, verified

pytestmark = pytest.mark.net


def test_a_requester_closes_a_channel_at_once(start: Callable[..., Program], tmp_path: Path) -> None:
    """Its script has ended, so the command itself asks the provider, which agrees; then the two go on."""
    provider = start("up", "--json", "--threads", "1")
    provider.wait_event("ready")
    for times in (1, 2):
        ran = start("run", "--json", "--profile", "mine", *job(tmp_path, 2, 50, 600))
        assert ran.end() == 0, ran.said
        listed = start("channels", "--json", "--profile", "mine")
        assert listed.end() == 0
        (channel,) = listed.lines[0]["channels"]
        closed = start("close", channel["channel"][:8], "--yes", "--json", "--profile", "mine")
        assert closed.end() == 0, closed.said
        (answer,) = closed.lines
        assert (answer["direction"], answer["state"]) == ("out", "closed"), times
        assert answer["claimed_uusd"] == channel["voucher_uusd"] > 0
        assert answer["refund_uusd"] == channel["deposit_uusd"] - channel["voucher_uusd"] > 0
        assert answer["reserved_uusd"] == 0
    provider.process.send_signal(signal.SIGINT)
    assert provider.end() == 0, provider.said
    for profile in ("default", "mine"):
        verified(tmp_path / "home", profile)


def test_an_owner_buys_and_changes_the_key_that_signs(start: Callable[..., Program], tmp_path: Path) -> None:
    """Its key lies under a password; each command gets that from a file, and none without it gets at the money."""
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    given = {"P2PCOMPUTE_PASSWORD_FILE": str(password)}
    new = start("wallet", "new", "--profile", "safe", "--json", "--password-file", str(password))
    assert new.end() == 0, new.said
    owner = new.lines[0]["owner"]
    first = start("wallet", "address", "--profile", "safe", "--json")
    assert first.end() == 0, first.said
    assert (first.lines[0]["account"], first.lines[0]["has_owner"]) == (owner, True)
    assert first.lines[0]["signer"] != owner

    provider = start("up", "--json", "--threads", "1")
    provider.wait_event("ready")
    locked = start("run", "--json", "--profile", "safe", *job(tmp_path, 2, 50, 600))
    assert locked.end() != 0
    assert locked.events("error")[0]["error"] == "OwnerLocked"
    ran = start("run", "--json", "--profile", "safe", *job(tmp_path, 2, 50, 600), **given)
    assert ran.end() == 0, ran.said
    rotated = start("wallet", "rotate", "--profile", "safe", "--yes", "--json", **given)
    assert rotated.end() == 0, rotated.said
    (done,) = rotated.lines
    assert done["old"] == first.lines[0]["signer"] != done["new"]
    (channel,) = done["channels"]
    assert channel["state"] == "closed"
    assert channel["refund_uusd"] > 0
    again = start("run", "--json", "--profile", "safe", *job(tmp_path, 2, 50, 600), **given)
    assert again.end() == 0, again.said
    shown = start("channels", "--profile", "safe", "--json", "--password-file", str(password))
    assert shown.end() == 0, shown.said
    assert shown.lines[0]["account"] == owner
    rows = {row["channel"]: row for row in shown.lines[0]["channels"]}
    assert len(rows) == 2  # one for each key
    assert rows.pop(channel["channel"])["voucher_uusd"] > 0
    (opened,) = rows.values()
    assert opened["deposit_uusd"] >= opened["voucher_uusd"] > 0
    provider.process.send_signal(signal.SIGINT)
    assert provider.end() == 0, provider.said
    for profile in ("default", "safe"):
        verified(tmp_path / "home", profile)
