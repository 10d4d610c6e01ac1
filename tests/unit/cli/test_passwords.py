"""The prompt for an owner's password, and leaving it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from p2pcompute.identity import Keyring, WalletKey, encrypt_keystore
from p2pcompute_cli import _passwords
from p2pcompute_cli.main import cli, main


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the profile `safe`, whose money is an owner's."""
    for name in ("P2PCOMPUTE_PASSWORD", "P2PCOMPUTE_PASSWORD_FILE", "P2PCOMPUTE_CHAIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    Keyring(tmp_path / "profiles" / "safe").create_owner(WalletKey.generate().private_key, "long and secret", n=2)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [["up"], ["arbiter"], ["accuse", "none.p2pevidence", "--yes"], ["wallet"], ["stake", "status"]],
    ids=lambda command: command[0],
)
def test_who_leaves_the_prompt_is_told_of_no_fault(
    command: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_passwords, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    said = CliRunner().invoke(cli, [*command, "--profile", "safe"], input="")  # the end of it, as Ctrl-C is
    assert "password of the owner's key" in said.output
    assert "Aborted!" in said.output
    assert "internal error" not in said.output
    assert said.exit_code == 1
    assert not list(home.glob("networks/*/nodes/*"))  # nothing was opened


@pytest.mark.parametrize("command", [["arbiter"], ["accuse", "none.p2pevidence", "--yes"], ["up"], ["stake", "status"]])
def test_a_password_that_others_can_read_is_not_taken(command: list[str], home: Path) -> None:
    file = home / "password"
    file.write_text("long and secret\n")
    file.chmod(0o644)
    said = CliRunner().invoke(cli, [*command, "--profile", "safe", "--password-file", str(file)])
    assert "mode 0644 lets others read it" in said.output
    assert "internal error" not in said.output
    assert said.exit_code == 1


def test_importing_what_is_no_keystore_names_the_file_and_makes_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path / "home"))
    wrong, password = tmp_path / "notes.json", tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    for name in ("P2PCOMPUTE_PASSWORD", "P2PCOMPUTE_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    for content in ("{}", "not json"):
        wrong.write_text(content)
        for options in (["--password-file", str(password)], []):  # it is looked at before a password is asked for
            assert main(["wallet", "import", str(wrong), "--profile", "safe", *options]) == 3
            assert f"error: {wrong}: " in capsys.readouterr().err.replace("\n", " ")
    keystore = tmp_path / "owner.json"
    keystore.write_bytes(encrypt_keystore(bytes(range(1, 33)), "another", n=16))
    assert main(["wallet", "import", str(keystore), "--profile", "safe", "--password-file", str(password)]) == 3
    assert f"error: {keystore}: the password does not fit" in capsys.readouterr().err
    assert not (tmp_path / "home" / "profiles" / "safe").exists()
