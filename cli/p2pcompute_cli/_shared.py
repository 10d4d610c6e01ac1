"""What the commands share: options, errors as one line, amounts and names in words."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import click

__all__ = [
    "Failure",
    "chain_options",
    "checked_addresses",
    "common_options",
    "count",
    "fail",
    "hush_logs",
    "json_line",
    "label",
    "labelled",
    "network_options",
    "profile_option",
    "seconds",
    "short_peer",
    "usd",
    "whole_error",
]

F = TypeVar("F", bound=Callable[..., Any])
_INTERNAL_ERROR: Final = 70  # EX_SOFTWARE of sysexits.h


class Failure(click.ClickException):
    """An error in one line, with the exit code of its kind in `code`."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(click.style("error: ", fg="red", bold=True) + self.message, file=file, err=True)


def profile_option(function: F, *, default: str = "default") -> F:
    """--profile; the default is the lender's."""
    return click.option(
        "--profile",
        metavar="NAME",
        envvar="P2PCOMPUTE_PROFILE",
        default=default,
        show_default=True,
        help="keys and ledger of this node",
    )(function)


def checked_addresses(_ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Multiaddrs. A node looks at them too, but only once a chain was started for it."""
    from p2pcompute._options import OptionError
    from p2pcompute._where import multiaddrs

    try:
        return multiaddrs(value, param.name or "") if value else value
    except OptionError as exc:
        raise click.BadParameter(str(exc)) from exc


def chain_options(function: F, *, where: str = "") -> F:
    """--chain, --hub, --token; `where` says when they count."""
    for option in (
        click.option("--token", metavar="ADDRESS", help=f"{where}the token that the hub has to be of"),
        click.option(
            "--hub",
            metavar="ADDRESS",
            help=f"{where}the hub contract on that chain; its code is compared with ours. Kept in the profile",
        ),
        click.option(
            "--chain",
            metavar="URL",
            help=f"{where}JSON-RPC URL of an EVM chain; the one that the profile has kept, else this machine's "
            "development chain, if none is named",
        ),
    ):
        function = option(function)
    return function


def registry_option(function: F, *, where: str = "") -> F:
    """--registry; `where` says when it counts."""
    return click.option(
        "--registry",
        metavar="ADDRESS",
        help=f"{where}the stake registry; kept in the profile, and not needed on a development chain",
    )(function)


def network_options(function: F, *, profile: str = "default") -> F:
    """--profile, --network, --bootstrap, --chain, --hub, --token."""
    for option in (
        chain_options,
        click.option(
            "--bootstrap",
            metavar="MULTIADDR",
            multiple=True,
            callback=checked_addresses,
            help="a peer to join by; may be repeated. Nodes on this machine find each other without it",
        ),
        click.option(
            "--network", metavar="NAME", envvar="P2PCOMPUTE_NETWORK", default="local", show_default=True, help="network"
        ),
        partial(profile_option, default=profile),
    ):
        function = option(function)
    return function


def common_options(function: F) -> F:
    """--json and --debug."""
    for option in (
        click.option("--debug", is_flag=True, help="tracebacks and logs, for bug reports"),
        click.option("--json", "as_json", is_flag=True, help="machine-readable output"),
    ):
        function = option(function)
    return function


def json_line(**fields: Any) -> None:
    """One JSON object on stdout, at once."""
    sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class _PlainFormatter(logging.Formatter):
    """Levels in small letters, as compilers write them; to all others in this process they are what they were."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def hush_logs(debug: bool) -> None:
    """Warnings as plain lines on stderr; everything with --debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s") if debug else _PlainFormatter()
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO if debug else logging.WARNING)


def whole_error(error: BaseException) -> BaseException:
    """The plain error in nested groups: an unexpected one, else Ctrl-C, else one of ours."""
    from p2pcompute.errors import P2PComputeError

    flat: list[BaseException] = []
    stack = [error]
    while stack:
        inner = stack.pop(0)
        if isinstance(inner, BaseExceptionGroup):
            stack += inner.exceptions
        else:
            flat.append(inner)

    def rank(exc: BaseException) -> int:
        return 0 if isinstance(exc, KeyboardInterrupt) else 1 if isinstance(exc, P2PComputeError) else 2

    # An unexpected error says more than one of ours that may only follow from it.
    unexpected = [exc for exc in flat if rank(exc) == 2]
    return unexpected[0] if unexpected else min(flat, key=rank)


def fail(error: BaseException, *, as_json: bool, debug: bool, advice: str = "") -> NoReturn:
    """Say what went wrong in one line and leave with its exit code; other errors than ours are bugs and say so."""
    from p2pcompute.errors import P2PComputeError

    plain = whole_error(error)
    if isinstance(plain, KeyboardInterrupt | click.Abort | click.ClickException):  # who leaves a prompt, say
        raise plain
    if debug:
        traceback.print_exception(error)
    if isinstance(plain, P2PComputeError):
        message, code = f"{plain}{advice}", plain.exit_code
    else:
        message, code = f"internal error: {plain!r}; run it again with --debug and report what it says", _INTERNAL_ERROR
    if as_json:
        json_line(event="error", error=type(plain).__name__, message=message, exit_code=code)
    raise Failure(message, code) from None


def usd(amount_uusd: int) -> str:
    """Micro-USD in USD."""
    return f"{amount_uusd / 1e6:.6f} USD"


def count(number: int, noun: str) -> str:
    """A number of things: 1 chunk, 2 chunks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def label(name: str, text: str, *, width: int = 11) -> str:
    """A line of a summary: what it is in colour, in a column of so many characters, and what there is to say."""
    return "  " + click.style(f"{name:<{width}}", fg="cyan") + text


def labelled(name: str, text: str, *, width: int = 11) -> None:
    """Say a line of a summary, as `label` makes it."""
    click.echo(label(name, text, width=width))


def short_peer(peer: str) -> str:
    """The end of a peer ID: beginnings of Ed25519 ones are all alike."""
    return f"…{peer[-8:]}"


def seconds(value_s: float) -> str:
    """A time in words."""
    if value_s < 100:
        return f"{value_s:.1f} s"
    minutes, rest = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
