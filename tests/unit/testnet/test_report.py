"""The demonstration's tally and report: what is counted, and that each thing that can go wrong is said to be so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from p2pcompute.tasks import (
    Agreed,
    ChunkAssigned,
    ChunkDone,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderReady,
    SecondCopyHere,
    TaskEnded,
    TaskEvent,
    TaskStarted,
)
from p2pcompute_protocols.ids import PeerId, TaskId
from p2pcompute_testnet._live import LiveView, chunk_map
from p2pcompute_testnet._pathtracer_scene import Picture
from p2pcompute_testnet._picture_check import PictureCheck
from p2pcompute_testnet._report import ChainFacts, Outcome, build_report, report_table
from p2pcompute_testnet._tally import Tally

ADA, BEN, MALLORY = PeerId("12D3KooWada"), PeerId("12D3KooWben"), PeerId("12D3KooWmallory")
UNITS = 1_000_000  # at 10 pUSD a unit: 10 µUSD a chunk


def agreed(provider: PeerId, task: int) -> Agreed:
    return Agreed(
        provider=provider,
        task=TaskId(bytes([task]) * 32),
        price_pusd=10,
        credit_window=1,
        max_window=8,
        negotiation_ms=12.0 + task,
        requester_max_loss_uusd=40,
        provider_max_loss_uusd=80,
    )


def events() -> list[TaskEvent]:
    """Six chunks: mallory lies in 2 after 1 had passed, ben is lost with 3 and 4 after 0, ada does the rest."""
    said: list[TaskEvent] = [TaskStarted(chunks=6, units_per_chunk=UNITS, estimate_uusd=60, ceiling_uusd=1000)]
    for number, peer in enumerate((ADA, BEN, MALLORY)):
        said += [agreed(peer, number), ProviderReady(provider=peer, compile_ms=6000)]
    said += [ChunkAssigned(provider=peer, index=i) for peer, i in ((BEN, 0), (MALLORY, 1), (ADA, 5), (MALLORY, 2))]
    said += [ChunkDone(provider=peer, index=i, checked=100) for peer, i in ((BEN, 0), (MALLORY, 1))]
    said += [Paid(provider=BEN, paid_uusd=10)]
    said += [LiarCaught(provider=MALLORY, index=2, mismatched=3, revoked=(1,), paid_uusd=0)]
    said += [ChunkAssigned(provider=BEN, index=3), ChunkAssigned(provider=BEN, index=4)]
    said += [ProviderLost(provider=BEN, reason="the stream broke", requeued=(3, 4))]
    said += [ChunkDone(provider=ADA, index=i, checked=100) for i in (5, 1, 2, 3, 4)]
    said += [Paid(provider=ADA, paid_uusd=50)]
    said += [SecondCopyHere(provider=ADA, index=4, reason="no second provider is to be had for it")]
    said += [TaskEnded(chunks=6, done=6, accepted_uusd=70, paid_uusd=60)]
    return said


def tally(*, kill: bool = True, skip: Callable[[TaskEvent], bool] = lambda _: False) -> Tally:
    made = Tally(names={ADA: "ada", BEN: "ben", MALLORY: "mallory"}, samples=100)
    for at, event in enumerate(events()):
        if skip(event):
            continue
        if isinstance(event, ProviderLost) and kill:
            made.provider(BEN).state = "killed"
        made.take(event, float(at))
    return made


def outcome(**changes: Any) -> Outcome:
    good = Outcome(
        tally=tally(),
        picture=Picture(width=96, height=64, side=2),
        file="render.png",
        chain=ChainFacts(
            hub="0x" + "ab" * 20,
            chain_id=2_700_031,
            last_block=9,
            acked_uusd={ADA: 50, BEN: 10, MALLORY: 0},
            claimed_uusd={ADA: 50, BEN: 10, MALLORY: 0},
            claims={ADA: 1, BEN: 1, MALLORY: 0},
        ),
        check=PictureCheck(checked=500, suspect=80, altered=20, differ=0),
        liar=MALLORY,
        fault="lie:0.02:3",
        killed=BEN,
        kill_wanted=True,
        killed_at=2,
        requeued=4,
        accepted=6,
        rejected=2,
        per_chunk=100,
        language="strict-1",
        exit_codes={"ada": 0, "ben": 0, "mallory": 0},
        complete=True,
        seconds_setup=1.0,
        seconds_render=2.0,
        seconds_total=4.0,
    )
    return dataclasses.replace(good, **changes)


def test_events_add_up() -> None:
    made = tally()
    assert made.phase == "complete"
    assert made.done == {0: BEN, 1: ADA, 2: ADA, 3: ADA, 4: ADA, 5: ADA}
    liar, killed = made.provider(MALLORY), made.provider(BEN)
    assert (liar.state, liar.done, liar.revoked, liar.requeued, liar.caught_at) == ("lied", set(), {1}, {1, 2}, 2)
    assert (killed.requeued, killed.holds, killed.done) == ({3, 4}, set(), {0})
    assert (made.checked, made.mismatched, made.rejected) == (800, 3, 1)
    assert (made.paid_uusd, made.owed_uusd) == (60, 0)
    assert (made.requester_max_loss_uusd, made.provider_max_loss_uusd) == (120, 80)


def test_what_is_not_paid_yet_is_owed_but_not_to_a_liar() -> None:
    made = tally(skip=lambda event: isinstance(event, Paid))
    assert made.provider(ADA).owed_uusd(UNITS) == 50
    assert made.provider(MALLORY).owed_uusd(UNITS) == 0


def test_a_second_agreement_adds_to_what_the_first_paid() -> None:
    made = tally()
    for event in (agreed(ADA, 7), Paid(provider=ADA, paid_uusd=20)):
        made.take(event, 99.0)
    assert made.provider(ADA).paid_uusd == 70
    assert len(made.provider(ADA).tasks) == 2


def test_the_map_shows_who_did_what() -> None:
    assert chunk_map(tally()).plain == "BAAAAA"
    half = Tally(names={ADA: "ada"})
    half.take(TaskStarted(chunks=3, units_per_chunk=1, estimate_uusd=1, ceiling_uusd=1), 0.0)
    half.take(ChunkAssigned(provider=ADA, index=1), 0.0)
    assert chunk_map(half).plain == "·a·"


def test_the_report_of_a_good_run() -> None:
    report = build_report(outcome())
    assert report["ok"], report["checks"]
    assert report == json.loads(json.dumps(report))
    assert report["liar"] == {
        "peer_id": MALLORY,
        "name": "mallory",
        "fault": "lie:0.02:3",
        "caught": True,
        "chunk": 2,
        "mismatched": 3,
        "revoked": [1],
        "paid_uusd": 0,
    }
    assert report["killed_peer"]["requeued"] == [3, 4]
    assert report["receipts"] == 6
    assert report["receipts_rejected"] == 2
    assert [(row["name"], row["fate"], row["chunks"]) for row in report["providers"]] == [
        ("ada", "honest", 5),
        ("ben", "killed", 1),
        ("mallory", "caught lying", 0),
    ]
    assert report["seconds_to_first_chunk"] is not None
    assert report["negotiation_ms"] == {"min": 12.0, "max": 14.0}


def _with_chain(**changes: Any) -> Callable[[], Outcome]:
    return lambda: outcome(chain=dataclasses.replace(outcome().chain, **changes))


def _uncaught() -> Outcome:
    return outcome(tally=tally(skip=lambda event: isinstance(event, LiarCaught)))


WRONG: dict[str, tuple[str, Callable[[], Outcome]]] = {
    "incomplete": ("complete", lambda: outcome(complete=False)),
    "pixels differ": ("NumPy", lambda: outcome(check=PictureCheck(checked=500, suspect=80, altered=20, differ=1))),
    "nothing compared": ("NumPy", lambda: outcome(check=PictureCheck(checked=0, suspect=0, altered=0, differ=0))),
    "the liar got away": ("liar was caught", _uncaught),
    "the liar was paid": ("not paid", _with_chain(acked_uusd={ADA: 50, BEN: 10, MALLORY: 10})),
    "no evidence": ("not paid", lambda: outcome(rejected=0)),
    "nobody was killed": ("was killed", lambda: outcome(killed=None)),
    "killed while idle": (
        "was killed",
        lambda: outcome(tally=tally(skip=lambda event: isinstance(event, ProviderLost))),
    ),
    "claimed too little": ("everyone else", _with_chain(claimed_uusd={ADA: 49, BEN: 10, MALLORY: 0})),
    "claimed nothing of nothing": (
        "everyone else",
        _with_chain(acked_uusd={BEN: 10}, claimed_uusd={BEN: 10}),
    ),
    "the killed one lost money": ("came back", _with_chain(claimed_uusd={ADA: 50, BEN: 0, MALLORY: 0})),
    "a node crashed": ("ended in order", lambda: outcome(exit_codes={"ada": 0, "mallory": -9})),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name: str) -> None:
    words, make = WRONG[name]
    report = build_report(make())
    assert not report["ok"]
    failed = [entry["name"] for entry in report["checks"] if not entry["ok"]]
    assert any(words in text for text in failed), failed


def test_the_table_and_the_view_can_be_read_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120, force_terminal=False)
    view = LiveView(console)
    with view:
        view.say("some [words] in brackets")
        view.draw(tally())
        view.show(report_table(build_report(outcome())))
    said = capsys.readouterr().out
    assert "some [words] in brackets" in said
    assert "killed at chunk 2, came back" in said
    assert "lied in chunk 2, caught" in said
    assert "\x1b" not in said


def test_the_live_table_shows_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    view = LiveView(Console(width=120, force_terminal=True))
    with view:
        view.draw(tally())
    said = capsys.readouterr().out
    for words in ("ada", "caught lying", "killed (SIGKILL)", "6/6 chunks"):
        assert words in said
