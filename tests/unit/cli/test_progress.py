"""What a script's run shows."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from p2pcompute.errors import TaskError
from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    ChunkRejected,
    Compiling,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    ProviderRefused,
    SecondCopyHere,
    TaskEnded,
    TaskEvent,
    TaskStarted,
)
from p2pcompute_cli._progress import JsonWatcher, Progress, TaskView
from p2pcompute_protocols.ids import PeerId, TaskId

HONEST, LIAR, LOST, NO = (PeerId(f"12D3KooW{name:x<40}{name}") for name in ("honest", "liar", "lost", "no"))


def agreed(provider: PeerId) -> Agreed:
    return Agreed(
        provider=provider,
        task=TaskId(bytes(32)),
        price_pusd=13,
        credit_window=1,
        max_window=8,
        negotiation_ms=12.4,
        requester_max_loss_uusd=4,
        provider_max_loss_uusd=8,
    )


STORY: list[TaskEvent] = [
    Compiling(),
    TaskStarted(chunks=4, units_per_chunk=10, estimate_uusd=40, ceiling_uusd=100),
    *(agreed(provider) for provider in (HONEST, LIAR, LOST)),
    ProviderRefused(provider=NO, reason="draining"),
    *(ProviderReady(provider=provider, compile_ms=5) for provider in (HONEST, LIAR, LOST)),
    *(ChunkAssigned(provider=provider, index=i) for i, provider in enumerate((HONEST, LIAR, LOST))),
    ChunkDone(provider=HONEST, index=0, checked=256),
    Paid(provider=HONEST, paid_uusd=10),
    ChunkDone(provider=LIAR, index=1, checked=256),
    Paid(provider=LIAR, paid_uusd=10),
    ChunkAssigned(provider=LIAR, index=3),
    LiarCaught(provider=LIAR, index=3, mismatched=5, revoked=(1,), paid_uusd=10),
    ChunkRejected(provider=LOST, index=2, reason="timed_out: slow"),
    ProviderLost(provider=LOST, reason="the stream broke", requeued=(2,)),
    SecondCopyHere(provider=HONEST, index=2, reason="no second provider is to be had for it"),
    *(ChunkDone(provider=HONEST, index=i, checked=256) for i in (1, 2, 3)),
    Paid(provider=HONEST, paid_uusd=40),
    TaskEnded(chunks=4, done=4, accepted_uusd=50, paid_uusd=50),
]


def test_a_revoked_chunk_counts_once() -> None:
    view = TaskView()
    done: list[int] = []
    for event in STORY:
        view.take(event)
        done.append(view.done)
    assert max(done) == done[-1] == 4
    assert done[STORY.index(STORY[-9])] <= 2
    assert view.paid_uusd == 50
    assert view.providers[LIAR].done == set()
    assert view.providers[LIAR].state == "caught lying in chunk 3"
    assert view.checked == 5 * 256


def told(console: Console, error: BaseException | None = None) -> str:
    progress = Progress(console, requested_profile="default")
    for event in STORY:
        progress.task_event(event)
    progress.task_ended(error)
    progress.summary(12.5)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    text = told(Console(file=io.StringIO(), width=200))
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "4 chunks, about 0.000040 USD; this task spends 0.000100 USD at most"
    for part in (
        "agreed with …xxhonest in 12 ms; a lie that sampling misses can cost you 0.000004 USD at most, and it unpaid",
        "refused: draining",
        "1 of 4 chunks, paid 0.000000 USD",
        "LIED: 5 samples of chunk 3 differ; it gets nothing more, 1 chunk is computed anew",
        "failed chunk 2: timed_out: slow",
        "is lost: the stream broke; 1 chunk is open again",
        "chunk 2 is done a second time here, by us: no second provider is to be had for it",
        "done: 4 chunks from 1 provider in",
        "1 task in 12.5 s",
    ):
        assert part in text
    total = next(line for line in lines if line.startswith("total"))
    assert total.split() == ["total", "4", "0.000050", "USD"]


@pytest.mark.parametrize("pledged", [False, True])
def test_where_a_stake_is_at_risk_the_next_step_is_said(tmp_path: Path, pledged: bool) -> None:
    evidence = tmp_path / "task-chunk-3.p2pevidence"
    if pledged:
        evidence.with_suffix(".p2ppledge").touch()
    console = Console(file=io.StringIO(), width=1_000)
    progress = Progress(console, requested_profile="default")
    for event in STORY:
        progress.task_event(
            dataclasses.replace(event, evidence=str(evidence)) if isinstance(event, LiarCaught) else event
        )
    progress.task_ended(None)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert f"evidence: {evidence}" in said
    assert ("; its stake is at risk: `p2pcompute accuse" in said) == pledged


@pytest.mark.parametrize("terminal", [False, True])
def test_what_both_can_lose_is_said_wherever_one_looks(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, _environ={"TERM": "xterm"})
    progress = Progress(console, requested_profile="default")
    progress.task_event(STORY[1])
    progress.task_event(agreed(HONEST))
    progress.task_ended(None)
    assert isinstance(console.file, io.StringIO)
    assert "can cost you 0.000004 USD at most, and it unpaid work of 0.000008 USD" in console.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_that_nothing_is_checked_is_said_wherever_one_looks(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=terminal, _environ={"TERM": "xterm"})
    progress = Progress(console, requested_profile="default")
    progress.task_event(STORY[1])
    progress.task_event(dataclasses.replace(agreed(HONEST), check="none"))
    progress.task_ended(None)
    assert isinstance(console.file, io.StringIO)
    assert "nothing that it gives is checked: a lie can cost you 0.000004 USD at most" in console.file.getvalue()


def test_what_a_quorum_leaves_open_is_said_as_such() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(console, requested_profile="default")
    progress.task_event(STORY[1])
    progress.task_event(dataclasses.replace(agreed(HONEST), check="quorum"))
    progress.task_ended(None)
    assert isinstance(console.file, io.StringIO)
    assert "two providers that lie alike can cost you 0.000004 USD at most" in console.file.getvalue()
    assert "sampling" not in console.file.getvalue()


def test_a_terminal_gets_a_live_display_that_leaves_nothing_behind() -> None:
    text = told(
        Console(file=io.StringIO(), width=200, force_terminal=True, _environ={"TERM": "xterm"}),
        TaskError("all providers are gone"),
    )
    assert "\x1b" in text
    assert "paid 0.000050 USD of 0.000100 USD" in text  # the last frame
    assert "done:" not in text
    assert "1 task, 1 of them failed, in 12.5 s" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "1 task, 1 of them broken off, in 12.5 s"),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), "1 task, 1 of them broken off, in 12.5 s"),
        (ExceptionGroup("", [ValueError()]), "1 task, 1 of them failed, in 12.5 s"),
    ],
)
def test_who_breaks_a_task_off_is_not_told_that_it_failed(error: BaseException, said: str) -> None:
    assert said in told(Console(file=io.StringIO(), width=200), error)


def test_json_lines() -> None:
    file = io.StringIO()
    watcher = JsonWatcher(file)
    for event in STORY:
        watcher.task_event(event)
    watcher.task_ended(None)
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["event"] for line in lines[:3]] == ["compiling", "task-started", "agreed"]
    assert lines[2]["task"] == "00" * 32
    assert [line["event"] for line in lines].count("task-ended") == 1
    assert lines[-1]["event"] == "task-ended"
    assert lines[-1]["error"] is None
    assert lines[-1]["providers"][HONEST] == {"chunks": 4, "paid_uusd": 40}
    assert lines[-1]["paid_uusd"] == 50


def test_a_task_that_fails_before_its_first_event_is_still_told_of() -> None:
    file = io.StringIO()
    JsonWatcher(file).task_ended(TaskError("x"))
    assert json.loads(file.getvalue())["error"] == "TaskError"


def opened(*, test_money: bool) -> Any:
    """What `node_opened` asks a node for."""
    services = SimpleNamespace(
        hub=SimpleNamespace(terms=SimpleNamespace(chain_id=8453, hub=b"\x11" * 20)),
        ledger=SimpleNamespace(path=Path("/home/u/profiles/default/ledger.sqlite")),
        account=SimpleNamespace(address=b"\x22" * 20),
        test_money=test_money,
    )
    return SimpleNamespace(network="local", services=services)


def test_only_a_development_chain_s_money_is_called_test_money() -> None:
    for test_money in (True, False):
        file = io.StringIO()
        progress = Progress(Console(file=file, width=200), requested_profile="default")
        for _ in range(3):
            progress.node_opened(opened(test_money=test_money))
        [line] = file.getvalue().splitlines()  # said once, though each call of a script opens a node
        assert ("test money" in line) == ("development" in line) == test_money
        assert "chain 8453" in line
