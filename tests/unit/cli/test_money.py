"""What the commands about money print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from p2pcompute_cli import _money, _wallet


def row(index: int, pusd: int) -> dict[str, Any]:
    return {
        "agreed_ms": 0,
        "role": "provider",
        "peer": "12D3KooWpeer",
        "task": "00" * 32,
        "index": index,
        "code": 0,
        "units": 1,
        "pusd": pusd,
        "verdict": "",
        "sampled": 0,
        "digest": "00" * 32,
        "reason": "",
    }


@pytest.mark.parametrize("options", [[], ["--csv"]])
def test_a_receipt_of_less_than_a_micro_usd_is_not_shown_as_nothing(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    amounts = (14, 493_214, 1_125_166, 3_000_000_000_001)
    answer = {"receipts": [row(index, pusd) for index, pusd in enumerate(amounts)]}
    monkeypatch.setattr(_money._Asker, "__call__", lambda *_, **__: answer)
    said = CliRunner().invoke(_money.receipts, options)
    assert said.exit_code == 0, said.output
    for shown in ("0.000000000014", "0.000000493214", "0.000001125166", "3.000000000001"):
        assert shown in said.output


def test_a_chunk_that_failed_says_why_and_that_nobody_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = row(3, 0) | {"code": 21, "units": 0, "reason": "the worker crashed with SIGSEGV"}
    monkeypatch.setattr(_money._Asker, "__call__", lambda *_, **__: {"receipts": [failed]})
    said = CliRunner().invoke(_money.receipts, [])
    assert "failed (21) and costs nothing: the worker crashed with SIGSEGV" in said.output


@pytest.mark.parametrize("command", sorted(_wallet.wallet.commands))
def test_a_profile_before_a_wallet_command_is_refused_and_not_forgotten(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A key made or changed in another profile than the one that was named would be worse than none.
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path / "home"))
    said = CliRunner().invoke(_wallet.wallet, ["--profile", "safe", command, "--json"])
    assert said.exit_code == 2, said.output
    assert f"write --profile behind {command}" in said.output
    assert not (tmp_path / "home").exists()
