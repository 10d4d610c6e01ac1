"""The command as people use it: real processes on loopback."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pcompute._profile import NetworkDir, Profile

from ._programs import Program, chain, gone, job, verified, wait_for_chain

pytestmark = pytest.mark.net


def test_two_lend_one_asks(start: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(home))
    first = start("up", "--json", "--price", "0.36 USD")
    ready = first.wait_event("ready")
    second = start("up", "--json", "--profile", "second", "--region", "attic")
    ready_2 = second.wait_event("ready")
    assert ready_2["chain"] == ready["chain"]  # it joined the chain that the first one runs
    assert ready_2["peer_id"] != ready["peer_id"]
    assert ready["sandbox"]["seccomp"] is True
    assert ready["price_pusd"] == 100

    again = start("up", "--json")
    assert again.end() == 3
    assert [event["error"] for event in again.events("error")] == ["ProfileInUse"]
    assert "`p2pcompute up --profile default-2`" in again.said

    port = ready["addresses"][0].partition("/p2p/")[0]
    busy = start("up", "--json", "--profile", "third", "--listen", port)
    assert busy.end() == 3
    assert [event["error"] for event in busy.events("error")] == ["PortInUse"]

    script = start("run", "--json", "--profile", "mine", "--budget", "0.02 USD", *job(tmp_path, 6, 50, 6_000))
    assert script.end() == 0, script.said
    assert script.said == "equal\n"
    (summary,) = script.events("summary")
    assert (summary["chunks"], summary["tasks"], summary["exit_code"]) == (6, 1, 0)
    assert script.events("task-started")[0]["ceiling_uusd"] == 20_000
    assert {event["index"] for event in script.events("chunk-done")} == set(range(6))

    asked = [start("status", "--json", "--profile", profile) for profile in ("default", "second")]
    assert [program.end() for program in asked] == [0, 0]
    totals = [program.lines[0]["totals"] for program in asked]
    assert sum(total["earned_uusd"] for total in totals) >= summary["paid_uusd"] > 0
    assert asked[0].lines[0]["pid"] == first.process.pid
    assert asked[0].lines[0]["peer_id"] == ready["peer_id"]

    neighbours = start("peers", "--json", "--profile", "second")
    assert neighbours.end() == 0
    assert neighbours.lines[0]["peer_id"] == ready_2["peer_id"]
    assert all(row["direction"] in ("in", "out") for row in neighbours.lines[0]["peers"])

    owner = "0x" + "5a" * 20
    earned = asked[1].lines[0]["totals"]["earned_uusd"]
    money = [start(*words, "--json", "--profile", "second") for words in (["wallet"], ["channels"], ["receipts"])]
    assert [program.end() for program in money] == [0, 0, 0]
    wallet, channels, receipts = (program.lines[0] for program in money)
    assert wallet["unclaimed_uusd"] == earned
    assert sum(row["voucher_uusd"] for row in channels["channels"]) == earned
    assert len(receipts["receipts"]) == sum(
        event["provider"] == ready_2["peer_id"] for event in script.events("chunk-done")
    )
    settle = start("settle", "--json", "--profile", "second")
    assert settle.end() == 0
    assert (settle.lines[0]["settled_uusd"], settle.lines[0]["free_uusd"]) == (earned, earned)
    if earned:
        assert "on 1 channel (network local, chain " in settle.said  # before it is claimed
    nothing = start("settle", "--json", "--profile", "second")
    assert nothing.end() == 0
    assert nothing.lines[0]["settled_uusd"] == 0
    assert "claiming" not in nothing.said  # of a claim that nobody makes
    unasked = start("withdraw", "all", "--to", owner, "--json", "--profile", "second")
    assert unasked.end() == 2  # nobody there to say yes
    assert "add --yes" in unasked.said

    drain = start("drain", "--json", "--profile", "second")
    assert drain.end() == 0
    assert drain.lines == [{"draining": True, "active_tasks": 0}]
    refused = start("run", "--json", "--profile", "mine", *job(tmp_path, 2, 50, 600))
    assert refused.end() == 0, refused.said
    assert {event["provider"] for event in refused.events("chunk-done")} == {ready["peer_id"]}

    # The first one ends, and its chain with it: the second one takes it over, where it was.
    last = start("status", "--json")
    assert last.end() == 0
    family = first.family()
    assert len(family) >= 3  # itself, the chain, a worker in reserve
    first.process.send_signal(signal.SIGINT)
    assert first.end() == 0, first.said
    gone(family)
    assert [event["event"] for event in first.lines[-3:]] == ["stopping", "checkpoint", "stopped"]
    assert first.events("checkpoint")[0]["claimed_uusd"] == last.lines[0]["totals"]["earned_uusd"] > 0
    assert not Profile.named("default").control_socket.exists()
    assert NetworkDir.named("local").chain_url() in (None, ready["chain"]["url"])
    wait_for_chain(ready["chain"]["url"])

    family = second.family()
    second.process.send_signal(signal.SIGTERM)
    assert second.end() == 0, second.said
    gone(family)
    # Its money is there without it, and the chain with the money.
    if earned:
        out = start("withdraw", "all", "--to", owner, "--yes", "--json", "--profile", "second")
        assert out.end() == 0, out.said
        assert (out.lines[0]["withdrawn_uusd"], out.lines[0]["free_uusd"]) == (earned, 0)
    empty = start("withdraw", "all", "--to", owner, "--yes", "--json", "--profile", "second")
    assert empty.end() != 0
    assert empty.events("error")[0]["error"] == "InsufficientFunds"

    # What is left on a channel: who pays asks for it, who is paid gives it back at once.
    listed = start("channels", "--json")
    assert listed.end() == 0
    (paid,) = listed.lines[0]["channels"]
    name = paid["channel"][:8]
    unasked = start("close", name, "--profile", "mine")
    assert unasked.end() == 2
    assert "add --yes" in unasked.said
    asked_back = start("close", name, "--yes", "--json", "--profile", "mine")
    assert asked_back.end() == 0, asked_back.said
    (answer,) = asked_back.lines
    assert (answer["direction"], answer["state"], answer["refund_uusd"]) == ("out", "closing", 0)
    assert answer["close_at_s"] > 0
    closed = start("close", name, "--yes", "--json")
    assert closed.end() == 0, closed.said
    (answer,) = closed.lines
    assert (answer["direction"], answer["state"], answer["channel"]) == ("in", "closed", paid["channel"])
    assert answer["refund_uusd"] == paid["deposit_uusd"] - answer["claimed_uusd"] > 0
    nothing = start("close", name, "--yes", "--json", "--profile", "mine")
    assert nothing.end() != 0
    assert "nothing is reserved" in nothing.events("error")[0]["message"]

    for profile in ("default", "second", "mine"):
        verified(home, profile)


def test_a_liar_by_fault_is_caught_and_gets_nothing(start: Callable[..., Program], tmp_path: Path) -> None:
    with chain(tmp_path) as url:
        liar = start("up", "--json", "--profile", "liar", "--fault", "lie:0.5:4", "--chain", url)
        honest = start("up", "--json", "--profile", "honest", "--chain", url)
        peer = liar.wait_event("ready")["peer_id"]
        honest.wait_event("ready")
        # Seconds of work, so that the honest one has not done all of it before the liar is ready.
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 16, 6_000, 90_000))
        assert script.end() == 0, script.said
        assert script.said == "equal\n"
        caught = script.events("liar-caught")
        assert [event["provider"] for event in caught] == [peer]
        assert caught[0]["paid_uusd"] == 0
        liar.process.send_signal(signal.SIGINT)
        assert liar.end() == 0, liar.said
        assert liar.events("checkpoint")[0]["claimed_uusd"] == 0


def test_scripts_that_fail(start: Callable[..., Program], tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    cases = {
        "import sys\nprint('out')\nsys.exit(5)\n": (5, "out\n"),
        "import sys\nsys.exit('no')\n": (1, "error: no\n"),
        "raise ValueError('mine')\n": (1, "ValueError: mine\n"),
        (tmp_path / "orbit.py").read_text(): (1, "ValueError: not enough values to unpack"),
    }
    for text, (code, says) in cases.items():
        file.write_text(text)
        program = start("run", "--json", str(file))
        assert program.end() == code
        assert says in program.said
        assert "p2pcompute_cli" not in program.said  # our frames are not the script's business
        assert program.lines[-1]["event"] == "summary"
        assert program.lines[-1]["exit_code"] == program.process.returncode
    nobody = start("run", "--json", *job(tmp_path, 1, 1, 10))
    assert nobody.end() == 5
    assert nobody.events("error")[0]["error"] == "NoProviderError"
    assert nobody.said.splitlines()[-1].startswith("error: No provider fits")
