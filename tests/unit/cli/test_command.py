"""The command line itself: what is refused, what help costs, how errors read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from p2pcompute.errors import BudgetError, ChainUnreachable, ConfigError
from p2pcompute_cli._shared import Failure, fail, seconds, short_peer, usd, whole_error
from p2pcompute_cli.main import cli, main


@pytest.fixture(autouse=True)
def environment() -> Generator[None]:
    """`run` sets the environment of the program that it is; here that is the tests'."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def invoke(*args: str, home: Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(args), env={"P2PCOMPUTE_HOME": str(home)})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("up", "--slots", "0"), "0 is not in the range"),
        (("up", "--slots", "many"), "not a valid integer"),
        (("up", "--threads", "-1"), "not in the range"),
        (("up", "--max-window", "65"), "not in the range"),
        (("up", "--cache", "much"), 'write it as "2 GiB"'),
        (("up", "--cache", "1 MiB"), "write a size of 16 MiB to 1024 TiB"),
        (("up", "--price", "cheap"), "is not an amount"),
        (("up", "--nonsense"), "No such option"),
        (("up", "extra"), "unexpected extra argument"),
        (("run",), "Missing argument 'FILE'"),
        (("run", "/nonexistent.py"), "does not exist"),
        (("run", "--budget", "a lot", __file__), "is not an amount"),
        (("run", "--budget", "-1 USD", __file__), "is not a positive number"),
        (("run", "--budget", "0.0000001 USD", __file__), "0.000001 USD"),
        (("run", "--min-stake", "0,5 USD", __file__), "has a comma"),
        (("status", "--json", "--metrics"), "exclude each other"),
        (("status", "--watch", "0"), "not in the range"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_wrong(args: tuple[str, ...], says: str, tmp_path: Path) -> None:
    code, output = invoke(*args, home=tmp_path)
    assert code == 2
    assert says in output
    assert "Traceback" not in output


def test_what_run_says_of_stakes_reaches_the_script(tmp_path: Path) -> None:
    script = tmp_path / "shows.py"
    script.write_text(
        "import os; print(*(os.environ['P2PCOMPUTE_' + n] for n in ('REGISTRY', 'MIN_STAKE', 'ARBITERS')))"
    )
    options = ("--registry", "0x" + "1" * 40, "--min-stake", "5 USD", "--arbiter", "/one", "--arbiter", "/two")
    code, output = invoke("run", *options, str(script), home=tmp_path)
    assert code == 0, output
    assert f"0x{'1' * 40} 5 USD /one,/two" in output


def test_a_script_that_does_not_parse_shows_its_own_line_and_none_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "broken.py"
    script.write_text("def f(:\n")
    assert main(["run", str(script)]) == 1
    said = capsys.readouterr().err
    assert "SyntaxError" in said
    assert "broken.py" in said
    assert "runpy" not in said
    assert "_run.py" not in said


def test_a_home_that_cannot_be_made_is_an_error_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "a-file"
    home.touch()
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(home))
    assert main(["up"]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert f"can't be used ({home}: Not a directory); check the path and its permissions" in said
    assert "internal error" not in said


def test_every_option_says_what_it_takes_and_what_it_is_for() -> None:
    def commands(group: click.Group, ctx: click.Context) -> Iterator[click.Command]:
        for name in group.list_commands(ctx):
            found = group.get_command(ctx, name)
            assert found is not None
            yield found
            if isinstance(found, click.Group):
                yield from commands(found, ctx)

    for command in commands(cli, click.Context(cli)):
        assert command.epilog or isinstance(command, click.Group), command.name
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, f"{command.name} {option.name}"
                assert option.is_flag or option.metavar or not isinstance(option.type, click.types.StringParamType), (
                    f"{command.name} {option.name}"
                )


def test_a_bad_profile_name_is_our_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--profile", "../../etc"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: '../../etc' is not a profile name")
    assert captured.err.count("\n") == 1


def test_status_without_a_node_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    assert main(["status", "--profile", "mine", "--json"]) == 3
    captured = capsys.readouterr()
    event = json.loads(captured.out)
    assert (event["event"], event["error"], event["exit_code"]) == ("error", "NoNode", 3)
    assert "`p2pcompute up --profile mine`" in captured.err


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--listen", "here", "write a multiaddr, such as '/ip4/192.0.2.7/tcp/4001'"),
        ("--bootstrap", "192.0.2.7:4001", "write a multiaddr, such as '/ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…'"),
        ("--watchtower", "/ip4/192.0.2.7/tcp/4001", "write a multiaddr with its peer"),
        ("--at-risk", "much", "write it as '0.01 USD'"),
        ("--cache", "lots", "'lots' is no size; write it as \"2 GiB\", or 0 for none"),
        ("--cache", "10 MiB", "'10 MiB' is less than 16 MiB; write a size of 16 MiB to 1024 TiB, or 0 for none"),
        ("--price", "cheap", "write it as '0.01 USD'"),
    ],
)
def test_up_refuses_what_it_can_t_use_before_it_starts_anything(
    option: str,
    value: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("P2PCOMPUTE_HOME", str(tmp_path))
    assert main(["up", option, value]) == 2
    captured = capsys.readouterr()
    assert f"'{option}'" in captured.err
    assert says in captured.err
    assert "starting" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("args", [["--help"], ["up", "--help"], ["run", "-h"], ["status", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from p2pcompute_cli.main import main\n"
        f"code = main({args!r})\n"
        "heavy = {'trio', 'numpy', 'numba', 'libp2p', 'rich', 'httpx', 'eth', 'p2pcompute_testnet'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=500)
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0"


def test_help_lists_the_commands_of_plug_ins(tmp_path: Path) -> None:
    code, output = invoke("--help", home=tmp_path)
    assert code == 0
    for name in ("up", "run", "status", "drain", "programs", "doctor", "testnet", "demo"):
        assert f"\n  {name} " in output
    assert "\x1b" not in output  # no colours where there is no terminal


def test_a_plug_in_that_is_broken_harms_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.metadata

    from p2pcompute_cli import main as module

    broken = importlib.metadata.EntryPoint(name="demo", value="no_such_module:demo", group="p2pcompute.commands")
    monkeypatch.setattr(module, "entry_points", lambda group: [broken])
    assert main(["--help"]) == 0
    assert main(["demo"]) == 1
    assert "can't be loaded" in capsys.readouterr().err


def test_errors_are_one_line_with_the_code_of_their_kind(capsys: pytest.CaptureFixture[str]) -> None:
    nested = ExceptionGroup("a", [ExceptionGroup("b", [BudgetError("too dear")])])
    with pytest.raises(Failure) as caught:
        fail(nested, as_json=True, debug=False, advice="; pay more")
    assert caught.value.code == BudgetError.exit_code
    assert json.loads(capsys.readouterr().out) == {
        "event": "error",
        "error": "BudgetError",
        "message": "too dear; pay more",
        "exit_code": 6,
    }


def test_bugs_are_called_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failure) as caught:
        fail(ExceptionGroup("", [ChainUnreachable("gone"), ZeroDivisionError("x")]), as_json=False, debug=True)
    assert caught.value.code == 70
    assert "internal error: ZeroDivisionError('x')" in caught.value.message
    assert "ZeroDivisionError: x" in capsys.readouterr().err


def test_ctrl_c_in_a_group_is_ctrl_c() -> None:
    group = BaseExceptionGroup("", [ChainUnreachable("gone"), KeyboardInterrupt()])
    assert isinstance(whole_error(group), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        fail(group, as_json=False, debug=False)


def test_amounts_times_and_names() -> None:
    assert usd(1) == "0.000001 USD"
    assert usd(12_345_678) == "12.345678 USD"
    assert [seconds(value) for value in (0.04, 99.94, 100, 3_599, 3_600, 86_400)] == [
        "0.0 s",
        "99.9 s",
        "1 min 40 s",
        "59 min 59 s",
        "1 h 0 min",
        "24 h 0 min",
    ]
    assert short_peer("12D3KooWFAKfHai58xJJYbXhZRQhTyW9Qn7LKjpHq4inRjD3fpHo") == "…RjD3fpHo"
