"""The command killed without a word: others take over, and what it could not claim is claimed later."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ._programs import Program, chain, gone, job, long_job, verified

pytestmark = pytest.mark.net


def test_what_a_stopped_node_could_not_claim_is_claimed_next_time(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    with chain(tmp_path) as url:
        provider = start("up", "--json", "--chain", url)
        provider.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 2, 50, 600))
        assert script.end() == 0, script.said
        family = provider.family()
        provider.process.kill()
        provider.end()
        gone(family)  # the worker and the rest see the node's end
        verified(tmp_path / "home", "default", killed=True)
        again = start("up", "--json", "--chain", url)
        again.wait_event("ready")
        again.process.send_signal(signal.SIGINT)
        assert again.end() == 0, again.said
        assert again.events("checkpoint")[0]["claimed_uusd"] == script.events("summary")[0]["paid_uusd"]


def test_a_provider_that_is_killed_is_replaced(start: Callable[..., Program], tmp_path: Path) -> None:
    home = tmp_path / "home"
    with chain(tmp_path) as url:
        lenders: dict[str, Program] = {}
        profiles: dict[str, str] = {}
        for profile in ("one", "two"):
            lender = start("up", "--json", "--profile", profile, "--chain", url, "--threads", "1")
            peer = lender.wait_event("ready")["peer_id"]
            lenders[peer], profiles[peer] = lender, profile
        script = start("run", "--json", "--profile", "mine", "--chain", url, *job(tmp_path, 16, 10_000, 200_000))
        victim = script.wait_event("chunk-done")["provider"]
        lenders[victim].process.kill()
        assert script.end() == 0, script.said
        assert [event["provider"] for event in script.events("provider-lost")] == [victim]
        assert script.events("summary")[0]["chunks"] == 16
        (other,) = lenders.keys() - {victim}
        assert script.events("task-ended")[0]["providers"][other]["chunks"] > 0
        lenders[victim].end()
    verified(home, profiles[victim], killed=True)
    verified(home, "mine")


def test_the_only_provider_is_killed(start: Callable[..., Program], tmp_path: Path) -> None:
    with chain(tmp_path) as url:
        lender = start("up", "--json", "--chain", url)
        lender.wait_event("ready")
        script = start("run", "--json", "--profile", "mine", "--chain", url, *long_job(tmp_path))
        script.wait_event("chunk-done")
        family = lender.family()
        lender.process.kill()
        lender.end()
        gone(family)
        assert script.end() == 7, script.said
        assert [event["error"] for event in script.events("error")] == ["TaskError"]
        assert script.events("provider-lost")
        assert "Traceback" not in script.said
        assert script.said.splitlines()[-1].startswith("error: all providers are gone")
    verified(tmp_path / "home", "mine")
