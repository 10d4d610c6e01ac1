"""`p2pcompute doctor`: is this machine fit to lend and to ask, and what is to be done where it is not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import resource
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click

from ._shared import common_options, count, fail, hush_logs, json_line

if TYPE_CHECKING:
    from p2pcompute.execution import Fact

__all__ = ["Check", "doctor"]

_MIB: Final = 1 << 20
_LITTLE_DISK: Final = 100 * _MIB
_SOME_DISK: Final = 1024 * _MIB
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_EARLIEST_S: Final = 1_735_689_600  # 2025-01-01, before this program was written
_SCORE_S: Final = 60.0
_CHAIN_S: Final = 5.0
_MARKS: Final = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


@click.command(
    epilog="""\b
Examples:
  p2pcompute doctor
  p2pcompute doctor --listen /ip4/192.0.2.7/tcp/4001
  p2pcompute doctor --json | jq '.checks[] | select(.state != "ok")'

Exit code 1: at least one check failed. A warning does not stop the node.
"""
)
@click.option(
    "--network",
    metavar="NAME",
    envvar="P2PCOMPUTE_NETWORK",
    default="local",
    show_default=True,
    help="whose chain to ask",
)
@click.option("--chain", metavar="URL", envvar="P2PCOMPUTE_CHAIN", help="chain to ask [the network's]")
@click.option(
    "--listen",
    metavar="MULTIADDR",
    multiple=True,
    default=("/ip4/127.0.0.1/tcp/0",),
    show_default=True,
    help="where the node is to listen; may be repeated",
)
@click.option("--quick", is_flag=True, help="start no worker and measure nothing")
@common_options
def doctor(network: str, chain: str | None, listen: tuple[str, ...], quick: bool, as_json: bool, debug: bool) -> None:
    """Check this machine, and say what to do about what is missing."""
    import trio

    hush_logs(debug)
    checks: list[Check] = []

    def show(check: Check) -> None:
        checks.append(check)
        if as_json:
            return
        mark, colour = _MARKS[check.state]
        click.echo(click.style(mark, fg=colour) + f"  {check.name:<11} {check.detail}")
        if check.advice:
            click.echo(f"                  -> {check.advice}")

    try:
        trio.run(_look, network, chain, listen, quick, show)
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    failed = sum(check.state == "fail" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    if as_json:
        json_line(ok=not failed, checks=[asdict(check) for check in checks])
    elif failed:
        click.echo(f"{failed} failed: mend them before `p2pcompute up`")
    else:
        click.echo("fit" + (f", with {count(warned, 'warning')}" if warned else "") + "; lend it with `p2pcompute up`")
    if failed:
        raise click.exceptions.Exit(1)


async def _look(
    network: str, chain: str | None, listen: tuple[str, ...], quick: bool, show: Callable[[Check], None]
) -> None:
    from p2pcompute._profile import home_dir

    home = home_dir()
    show(_versions())
    for fact in await _execution(quick):
        show(fact)
    if not quick:
        show(await _guarded("score", _score))
    show(_files(home))
    show(_disk(home))
    show(_open_files())
    show(_clock())
    show(await _guarded("ports", partial(_ports, listen)))
    show(await _guarded("network", _overlay))
    show(await _guarded("chain", partial(_chain, network, chain)))


async def _guarded(name: str, check: Callable[[], Awaitable[Check]]) -> Check:
    """What goes wrong in a check is its answer."""
    from p2pcompute.errors import P2PComputeError

    from ._shared import whole_error

    try:
        return await check()
    except Exception as exc:  # noqa: BLE001  a check that breaks has failed
        plain = whole_error(exc)
        text = str(plain) if isinstance(plain, P2PComputeError) else f"unexpected: {plain!r}"
        return Check(name=name, state="fail", detail=text)


def _versions() -> Check:
    names = ("p2pcompute", "trio", "libp2p", "py-evm")
    try:
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as exc:
        return Check(name="packages", state="fail", detail=f"{exc.name} is missing", advice="reinstall p2pcompute")
    return Check(name="packages", state="ok", detail=found)


async def _execution(quick: bool) -> list[Check]:
    from p2pcompute.execution import doctor_facts

    return [_from_fact(fact) for fact in await doctor_facts(start_worker=not quick)]


def _from_fact(fact: Fact) -> Check:
    state: Literal["ok", "warn", "fail"] = "ok" if fact.ok else "fail" if fact.needed else "warn"
    return Check(name=fact.name, state=state, detail=fact.detail, advice=fact.advice)


async def _score() -> Check:
    import trio

    from p2pcompute.execution import measure_score, open_pool, probe_devices

    cores = probe_devices()[0].cores
    try:
        with trio.fail_after(_SCORE_S):
            async with open_pool(threads=cores, spare=0) as pool:
                score = (await measure_score(pool)).score
    except trio.TooSlowError:
        return Check(
            name="score",
            state="fail",
            detail=f"not measured within {_SCORE_S:g} s",
            advice="free the machine of other work and ask again",
        )
    detail = f"{score / 1000:.2f} reference cores with {cores} threads; the same bits each time"
    if score < 250 * cores:
        return Check(
            name="score", state="warn", detail=detail, advice="that is slow for so many threads: is it busy, or hot?"
        )
    return Check(name="score", state="ok", detail=detail)


def _files(home: Path) -> Check:
    """Where keys and ledgers are to lie: writable, ours, and not open to others."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = home / f".doctor.{os.getpid()}"
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, b"x")
            os.fsync(fd)
        finally:
            os.close(fd)
            probe.unlink()
        mode = home.stat().st_mode
    except OSError as exc:
        return Check(
            name="files",
            state="fail",
            detail=f"{home}: {exc.strerror}",
            advice="make it writable, or set P2PCOMPUTE_HOME to a directory of yours",
        )
    if mode & 0o022:
        return Check(name="files", state="fail", detail=f"{home} can be written by others", advice=f"chmod go-w {home}")
    return Check(name="files", state="ok", detail=str(home))


def _disk(home: Path) -> Check:
    place = home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / _MIB / 1024:.1f} GiB free"
    if free < _LITTLE_DISK:
        advice = "free some: the ledger can't promise anything that it can't write"
        return Check(name="disk", state="fail", detail=detail, advice=advice)
    if free < _SOME_DISK:
        return Check(name="disk", state="warn", detail=detail, advice="free some; the ledger grows with use")
    return Check(name="disk", state="ok", detail=detail)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files"
    if soft < 256:
        return Check(name="limits", state="fail", detail=detail, advice="ulimit -n 4096")
    if soft < 1024:
        return Check(name="limits", state="warn", detail=detail, advice=f"ulimit -n {min(4096, max(hard, 1024))}")
    return Check(name="limits", state="ok", detail=detail)


def _clock() -> Check:
    """Ads, orders and agreements expire by wall clock."""
    if time.time() < _EARLIEST_S:
        when = time.strftime("%Y-%m-%d", time.gmtime())
        return Check(name="clock", state="fail", detail=f"it says {when}", advice="set the clock; use NTP")
    state = -1
    with contextlib.suppress(OSError, AttributeError):
        # struct timex with modes = 0 only reads; its size is below 256 bytes on every Linux.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256))
    if state == _TIME_ERROR:
        return Check(
            name="clock",
            state="warn",
            detail="the kernel does not know it to be synchronised",
            advice="run an NTP client (in a container the host may do it); ads of a clock that is minutes off expire",
        )
    return Check(name="clock", state="ok", detail="synchronised" if state >= 0 else "plausible")


async def _ports(listen: tuple[str, ...]) -> Check:
    from p2pcompute.identity import NodeKey
    from p2pcompute.overlay import open_libp2p

    async with open_libp2p(NodeKey.generate(), listen=listen, record_validator=_NoRecords()) as overlay:
        return Check(
            name="ports",
            state="ok",
            detail="free: " + ", ".join(address.partition("/p2p/")[0] for address in overlay.addresses),
        )


async def _overlay() -> Check:
    """Two nodes on loopback, in this process: dial, Noise, Yamux, identify."""
    from p2pcompute.identity import NodeKey
    from p2pcompute.overlay import open_libp2p

    records = _NoRecords()
    async with (
        open_libp2p(NodeKey.generate(), record_validator=records) as one,
        open_libp2p(NodeKey.generate(), record_validator=records, listen=()) as other,
    ):
        started = time.monotonic()
        await other.connect(one.addresses[0])
        took_ms = (time.monotonic() - started) * 1000
    return Check(name="network", state="ok", detail=f"two nodes on loopback shook hands in {took_ms:.0f} ms")


class _NoRecords:
    """A DHT that stores nothing."""

    def validate(self, key: bytes, value: bytes) -> bool:
        del key, value
        return False

    def select(self, key: bytes, values: object) -> int:
        del key, values
        return 0


async def _chain(network: str, url: str | None) -> Check:
    import trio

    from p2pcompute._chain_choice import choose_chain, open_choice
    from p2pcompute.chain import NoHub
    from p2pcompute.errors import P2PComputeError

    try:
        choice = choose_chain(None, network, chain=url, hub=None, token=None)
    except P2PComputeError as exc:
        return Check(name="chain", state="fail", detail=str(exc), advice="set it right, or unset it")
    if choice is None:
        detail = f"none runs for the network {network}; `p2pcompute up` starts one here"
        return Check(name="chain", state="ok", detail=detail)
    named = choice.endpoint
    advice = "check the URL and that it runs" if url else "stop the node that runs it and start it again"
    try:
        with trio.fail_after(_CHAIN_S):
            async with open_choice(choice) as chain:
                terms = chain.terms
    except trio.TooSlowError:
        detail = f"{named}: no answer within {_CHAIN_S:g} s"
        return Check(name="chain", state="fail", detail=detail, advice=advice)
    except NoHub as exc:
        return Check(name="chain", state="warn", detail=f"{named}: {exc}", advice="set P2PCOMPUTE_HUB")
    except P2PComputeError as exc:
        return Check(name="chain", state="fail", detail=f"{named}: {exc}", advice=advice)
    detail = f"{named}: chain {terms.chain_id}, hub 0x{bytes(terms.hub).hex()}"
    return Check(name="chain", state="ok", detail=detail)
