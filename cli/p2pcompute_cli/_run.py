"""`p2pcompute run`: a script that uses `p2p.run`, watched and bounded."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from ._shared import Failure, common_options, fail, hush_logs, network_options, registry_option, usd, whole_error

__all__ = ["run"]


def _amount(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from p2pcompute._options import parse_usd

    try:
        return parse_usd(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An amount that goes on as text."""
    _amount(ctx, param, value)
    return value


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""\b
Examples:
  p2pcompute run saxpy.py
  p2pcompute run --budget "0.05 USD" render.py --width 800
  p2pcompute run --json saxpy.py 2>/dev/null | jq -c 'select(.event == "paid")'

`python saxpy.py` does the same without the display: the settings are defaults that the script may override, but for
the budget, which caps it. With --json events go to stdout, and what the script prints goes to stderr.
""",
)
@partial(network_options, profile="requester")
@click.option(
    "--budget",
    metavar="AMOUNT",
    callback=_amount,
    help="the most that all tasks of the script may spend together, such as '0.05 USD' [each task has its own budget: "
    "what the script says, else 0.10 USD]",
)
@click.option(
    "--min-stake",
    metavar="AMOUNT",
    callback=_checked,
    help="what a provider has to have at stake, such as '100 USD', for tasks that say nothing of it",
)
@click.option(
    "--arbiter",
    "arbiters",
    metavar="MULTIADDR",
    multiple=True,
    help="an arbiter that providers have to accept, with a stake at risk; may be repeated; more than half must agree. "
    "A hire has none, and is refused",
)
@registry_option
@click.option(
    "--at-risk",
    metavar="AMOUNT",
    callback=_checked,
    help="how much of it the arbiters may take for one task [the least stake that counts]",
)
@common_options
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    profile: str,
    network: str,
    bootstrap: tuple[str, ...],
    chain: str | None,
    hub: str | None,
    token: str | None,
    budget: int | None,
    min_stake: str | None,
    arbiters: tuple[str, ...],
    registry: str | None,
    at_risk: str | None,
    as_json: bool,
    debug: bool,
    file: Path,
    args: tuple[str, ...],
) -> None:
    """Run a Python script that uses p2p.run, and show its progress."""
    hush_logs(debug)
    _set_environment(
        profile,
        network,
        bootstrap,
        budget,
        chain=chain,
        hub=hub,
        token=token,
        min_stake=min_stake,
        arbiters=",".join(arbiters) or None,
        registry=registry,
        at_risk=at_risk,
    )
    with _end_on_sigterm():
        if as_json:
            _run_json(file, args, budget, debug)
        else:
            _run_shown(file, args, profile, budget, debug)


def _set_environment(
    profile: str, network: str, bootstrap: Sequence[str], budget_uusd: int | None, **settings: str | None
) -> None:
    """The defaults for the script's nodes, in its threads and child processes too."""
    os.environ["P2PCOMPUTE_PROFILE"] = profile
    os.environ["P2PCOMPUTE_NETWORK"] = network
    if bootstrap:
        os.environ["P2PCOMPUTE_BOOTSTRAP"] = ",".join(bootstrap)
    for name, value in settings.items():
        if value:
            os.environ[f"P2PCOMPUTE_{name.upper()}"] = value
    if budget_uusd is not None:
        os.environ["P2PCOMPUTE_BUDGET"] = f"{budget_uusd} uusd"


@contextmanager
def _end_on_sigterm() -> Generator[None]:
    """SIGTERM ends the script as Ctrl-C does: providers are told, and nothing more is billed."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.SIG_IGN:
        # A shell script's background job starts with SIGINT ignored. It spends money: whoever ends it means it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)


def _run_shown(file: Path, args: Sequence[str], profile: str, budget: int | None, debug: bool) -> None:
    from rich.console import Console

    from p2pcompute._launch import Launch, launching

    from ._progress import Progress

    console = Console(stderr=True)
    progress = Progress(console, requested_profile=profile)
    limit = (
        f"{usd(budget)} can be spent at most, by all tasks together"
        if budget is not None
        else "each task spends its own budget at most; --budget caps all of them together"
    )
    console.print(f"running {file.name}: {limit}", style="dim", highlight=False, soft_wrap=True)
    started = time.monotonic()
    try:
        with launching(Launch(watcher=progress, left_uusd=budget)):
            _script(file, args)
    except BaseException as exc:  # noqa: BLE001  said in one line, or raised again
        progress.summary(time.monotonic() - started)
        _say(exc, as_json=False, debug=debug)
    progress.summary(time.monotonic() - started)


def _run_json(file: Path, args: Sequence[str], budget: int | None, debug: bool) -> None:
    from p2pcompute._launch import Launch, launching

    from ._progress import JsonWatcher

    # Descriptor 1 itself, so that what child processes of the script print does not mix with the events either.
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)
        try:
            watcher = JsonWatcher(events)
            started = time.monotonic()
            code = 0
            try:
                with launching(Launch(watcher=watcher, left_uusd=budget)):
                    _script(file, args)
            except BaseException as exc:
                plain = whole_error(exc)
                code = _exit_code(plain)
                if not isinstance(plain, SystemExit):
                    watcher.write(event="error", error=type(plain).__name__, message=str(plain), exit_code=code)
                raise
            finally:
                watcher.write(
                    event="summary",
                    exit_code=code,
                    tasks=len(watcher.tasks),
                    chunks=sum(task.done for task in watcher.tasks),
                    paid_uusd=sum(task.paid_uusd for task in watcher.tasks),
                    seconds=round(time.monotonic() - started, 3),
                )
        except BaseException as exc:  # noqa: BLE001  said in one line, or raised again
            _say(exc, as_json=False, debug=debug)  # the event is out already
        finally:
            sys.stdout.flush()
            os.dup2(events.fileno(), 1)


def _exit_code(error: BaseException) -> int:
    from p2pcompute.errors import P2PComputeError

    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        case KeyboardInterrupt():
            return 130
        case P2PComputeError():
            return error.exit_code
        case _:
            return 1


def _script(file: Path, args: Sequence[str]) -> None:
    """Run `file` as ``python file args…`` would: as ``__main__``, with its directory first on the path."""
    before = sys.argv, list(sys.path)
    sys.argv = [os.fspath(file), *args]
    sys.path.insert(0, os.fspath(file.resolve().parent))
    try:
        runpy.run_path(os.fspath(file), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before


def _say(error: BaseException, *, as_json: bool, debug: bool) -> None:
    """Our errors in one line; the script's own with its traceback, without our frames above it."""
    from p2pcompute.errors import P2PComputeError

    plain = whole_error(error)
    if isinstance(plain, SystemExit):
        if plain.code is not None and not isinstance(plain.code, int):
            raise Failure(str(plain.code), 1)
        raise click.exceptions.Exit(plain.code or 0)
    if isinstance(plain, (KeyboardInterrupt, P2PComputeError)):
        fail(error, as_json=as_json, debug=debug)
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") != "__main__":
        frames = frames.tb_next
    # A file that does not even parse has no frame of its own.
    ours = frames is None and not isinstance(error, SyntaxError)
    traceback.print_exception(error.with_traceback(error.__traceback__ if ours else frames))
    raise click.exceptions.Exit(1)
