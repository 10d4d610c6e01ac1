"""A requester that catches a liar keeps what convicts it, and the command shows it to anybody."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from p2pcompute.checking import result_evidence
from p2pcompute.errors import EvidenceError
from p2pcompute.tasks import Agreed, ChunkDone, LiarCaught
from p2pcompute_cli.main import cli, main

from ..market._harness import Market, Watch, Z, compute, in_memory
from ..protocols.vectors._material import NOW, REQUESTER
from ..tasks._scenarios import altered_rows
from ._disputes import case_of, judge


def test_a_liar_that_is_caught_leaves_a_file_that_convicts_it(tmp_path: Path) -> None:
    seen: list[tuple[LiarCaught, bytes, str, str]] = []

    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=altered_rows, price="0.01 USD")
        honest = await market.provider()
        requester = await market.node(connect=(liar, honest), evidence=tmp_path / "evidence")
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch), Z)
        (agreed,) = [event for event in watch.of(Agreed) if event.provider == liar.peer_id]
        assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}
        seen.extend((event, agreed.task, liar.peer_id, requester.peer_id) for event in watch.of(LiarCaught))

    in_memory(scenario)
    ((event, task, liar, requester),) = seen
    assert event.evidence is not None
    (path,) = (tmp_path / "evidence").iterdir()
    assert str(path) == event.evidence
    # Nodes, network and ledgers are gone: the file alone says it.
    found = judge(path)
    assert (found.wrong, found.peer, found.accuser) == ("provider", liar, requester)
    assert (found.kind, found.task, found.index) == ("result", task, event.index)


def test_honest_providers_leave_no_file(tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        requester = await market.node(connect=(provider,), evidence=tmp_path / "evidence")
        assert np.array_equal(await compute(requester), Z)

    in_memory(scenario)
    assert not (tmp_path / "evidence").exists()


def test_without_a_place_for_it_a_liar_is_caught_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("in the way")

    async def scenario(market: Market) -> None:
        for evidence in (None, tmp_path / "evidence"):
            liar = await market.provider(fault=altered_rows, price="0.01 USD")
            honest = await market.provider()
            requester = await market.node(connect=(liar, honest), evidence=evidence)
            watch = Watch()
            assert np.array_equal(await compute(requester, watch=watch), Z)
            assert [event.evidence for event in watch.of(LiarCaught)] == [None]
            market.kill(liar)
            market.kill(honest)

    in_memory(scenario)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Files in the profile of a requester: a lie, an honest provider accused, and no evidence."""
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    directory = tmp_path / "profiles" / "requester" / "evidence"
    directory.mkdir(parents=True)
    case = case_of()
    truth = case.output(0)
    made = {}
    for name, content in (("lie", bytes(len(truth))), ("honest", truth)):
        receipt = case.receipt(0, content)
        data = result_evidence(case.agreement, receipt, 0, blobs=case.blobs, signer=REQUESTER, now_ms=NOW)
        made[name] = directory / f"{name}.p2pevidence"
        made[name].write_bytes(data)
    made["broken"] = directory / "broken.p2pevidence"
    made["broken"].write_bytes(made["lie"].read_bytes()[:-1])
    return made


def test_the_command_says_who_is_wrong(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", "verify", str(files["lie"]), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["wrong"], said["index"], said["kind"]) == ("provider", 0, "result")
    assert said["claimed"] != said["computed"]
    assert main(["evidence", "verify", str(files["honest"])]) == 1
    words = capsys.readouterr().out
    assert words.startswith("the accuser is wrong: the chunk was computed rightly")
    assert REQUESTER.peer_id in words
    assert main(["evidence", "verify", str(files["broken"])]) == EvidenceError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: {files['broken']} is no evidence (malformed)" in captured.err
    assert main(["evidence", "verify", str(files["lie"].with_name("none"))]) == EvidenceError.exit_code


def test_the_command_lists_what_is_kept(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["evidence"]
    assert [Path(row["file"]).name.partition(".")[0] for row in rows] == ["broken", "honest", "lie"]
    assert rows[0]["error"].startswith("no evidence")
    assert (rows[2]["kind"], rows[2]["index"], rows[2]["missing"]) == ("result", 0, [])
    assert main(["evidence", "list"]) == 0
    assert "3 files; check one with" in capsys.readouterr().out
    assert main(["evidence", "list", "--profile", "other"]) == 0
    assert capsys.readouterr().out == "profile other keeps no evidence\n"


def test_its_help_has_examples() -> None:
    for args in (["evidence", "--help"], ["evidence", "verify", "--help"], ["evidence", "list", "--help"]):
        shown = CliRunner().invoke(cli, args)
        assert shown.exit_code == 0
        assert "evidence" in shown.output
