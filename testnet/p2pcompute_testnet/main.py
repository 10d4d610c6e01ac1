"""`p2pcompute testnet …`, `p2pcompute demo` and the program `p2pcompute-testnet`, which is both."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

__all__ = ["cli", "demo", "main", "testnet"]

_INTERNAL_ERROR: Final = 70  # EX_SOFTWARE of sysexits.h
_INTERRUPTED: Final = 130


def _failure(message: str, exit_code: int) -> click.ClickException:
    """An error in one line, with the exit code of its kind."""
    error = click.ClickException(message)
    vars(error)["exit_code"] = exit_code  # declared as the class's, read as the instance's
    return error


def _run(work: Callable[[], Awaitable[Any]], *, debug: bool) -> Any:
    """Run `work` on trio until it ends or a SIGINT or SIGTERM cancels it; errors come out in one line."""
    import trio

    stopped = False
    result: Any = None

    async def watch(nursery: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal stopped
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                stopped = True
                nursery.cancel_scope.cancel()

    async def supervise() -> None:
        nonlocal result
        async with trio.open_nursery() as nursery:
            await nursery.start(watch, nursery)
            result = await work()
            nursery.cancel_scope.cancel()

    # A handler of our own at once, and not only when trio listens: no KeyboardInterrupt in the middle of anything.
    try:
        trio.run(supervise, restrict_keyboard_interrupt_to_checkpoints=True)
    except BaseException as exc:  # noqa: BLE001  said in one line
        _fail(exc, debug=debug)
    if stopped:
        click.echo("stopped", err=True)
        raise click.exceptions.Exit(_INTERRUPTED)
    return result


def _fail(error: BaseException, *, debug: bool) -> NoReturn:
    import traceback

    from p2pcompute.errors import P2PComputeError

    if debug:
        traceback.print_exception(error)
    flat: list[BaseException] = [error]
    while any(isinstance(exc, BaseExceptionGroup) for exc in flat):
        flat = [inner for exc in flat for inner in (exc.exceptions if isinstance(exc, BaseExceptionGroup) else [exc])]
    if any(isinstance(exc, KeyboardInterrupt) for exc in flat):
        raise KeyboardInterrupt from None
    # An unexpected error says more than one of ours, which may only follow from it.
    plain = next((exc for exc in flat if not isinstance(exc, P2PComputeError)), flat[0])
    if isinstance(plain, P2PComputeError):
        raise _failure(str(plain), plain.exit_code) from None
    raise _failure(f"internal error: {plain!r}; run it again with --debug and report what it says", _INTERNAL_ERROR)


def _logs(debug: bool) -> None:
    level = logging.INFO if debug else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s: %(message)s")


@click.command(
    epilog="""\b
Examples:
  p2pcompute demo
  p2pcompute demo --out demo-small --side 4
  p2pcompute demo | cat          # plain lines instead of a live table
"""
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="directory for render.png, report.json and the nodes' logs",
)
@click.option("--width", type=click.IntRange(16, 16_384), default=1280, show_default=True, help="pixels")
@click.option("--height", type=click.IntRange(16, 16_384), default=720, show_default=True, help="pixels")
@click.option("--side", type=click.IntRange(1, 16), default=8, show_default=True, help="squared: samples a pixel")
@click.option("--depth", type=click.IntRange(1, 64), default=8, show_default=True, help="segments of a path")
@click.option("--chunks", type=click.IntRange(1, 4096), default=90, show_default=True, help="parts of the picture")
@click.option("--providers", type=click.IntRange(3, 8), default=4, show_default=True, help="the liar included")
@click.option("--quiet", is_flag=True, help="say nothing; the exit code and report.json tell")
@click.option("--debug", is_flag=True, help="tracebacks and logs, for bug reports")
def demo(
    out: Path, width: int, height: int, side: int, depth: int, chunks: int, providers: int, quiet: bool, debug: bool
) -> None:
    """Render a picture on a market of its own, with a cheat and a crash in it.

    Starts a development chain and providers on this machine, renders a path-traced picture on them, catches the one
    that lies, kills another one at work, pays the rest, and has them claim it on chain. The exit code is 0 only
    where everything came out as it should.
    """
    from functools import partial
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        raise _failure("the picture is written with pillow, which is missing: pip install 'p2pcompute[demo]'", 3)
    _logs(debug)
    from ._demo import DemoOptions, run_demo
    from ._live import LiveView
    from ._pathtracer_scene import Picture

    options = DemoOptions(
        out=out,
        picture=Picture(width=width, height=height, side=side, depth=depth),
        chunks=chunks,
        providers=providers,
    )
    with LiveView(quiet=quiet) as view:
        report = _run(partial(run_demo, options, view), debug=debug)
    if not report["ok"]:
        wrong = "; ".join(
            f"not so: {entry['name']} ({entry['detail']})" for entry in report["checks"] if not entry["ok"]
        )
        raise _failure(wrong, 1)


@click.group()
def testnet() -> None:
    """Many nodes on this machine."""


@testnet.command(
    "up",
    epilog="""\b
Examples:
  p2pcompute testnet up 5
  p2pcompute testnet up 20 --network crowd --threads 1 --json
""",
)
@click.argument("providers", type=click.IntRange(1, 64), metavar="N")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="homes and logs of the nodes  [under P2PCOMPUTE_HOME]",
)
@click.option(
    "--network",
    metavar="NAME",
    default="local",
    show_default=True,
    help="name of the network; one that runs is joined",
)
@click.option(
    "--price", metavar="AMOUNT", default="0.05 USD", show_default=True, help="for an hour of a reference core"
)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="of each provider")
@click.option("--json", "as_json", is_flag=True, help="machine-readable output")
@click.option("--debug", is_flag=True, help="tracebacks and logs, for bug reports")
def testnet_up(
    providers: int, directory: Path | None, network: str, price: str, threads: int, as_json: bool, debug: bool
) -> None:
    """Run N providers and a development chain on this machine, until Ctrl-C."""
    from functools import partial

    _logs(debug)
    from ._testnet import TestnetOptions, run_testnet

    options = TestnetOptions(
        providers=providers,
        directory=directory,
        network=network,
        price=price,
        threads=threads,
        as_json=as_json,
    )
    _run(partial(run_testnet, options), debug=debug)


@click.group()
def cli() -> None:
    """Many nodes of p2pcompute on this machine."""


cli.add_command(demo)
cli.add_command(testnet_up)


def main(argv: Sequence[str] | None = None) -> int:
    """The program `p2pcompute-testnet`; its exit code."""
    try:
        code = cli.main(
            args=None if argv is None else list(argv), prog_name="p2pcompute-testnet", standalone_mode=False
        )
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
