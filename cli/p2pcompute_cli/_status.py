"""`p2pcompute status` and `p2pcompute drain`: ask the node of a profile that runs on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ._screen import show
from ._shared import (
    common_options,
    count,
    fail,
    hush_logs,
    json_line,
    label,
    profile_option,
    seconds,
    short_peer,
    usd,
)

__all__ = ["ask_node", "drain", "rate", "size", "status", "watch_option"]

F = TypeVar("F", bound=Callable[..., Any])


def watch_option(function: F) -> F:
    """--watch [SECONDS]."""
    return click.option(
        "--watch",
        type=click.FloatRange(0.2, 3600),
        is_flag=False,
        flag_value=2.0,
        metavar="[SECONDS]",
        help="again and again, until Ctrl-C [every 2 s]",
    )(function)


@click.command(
    epilog="""\b
Examples:
  p2pcompute status
  p2pcompute status --watch
  p2pcompute status --json | jq .totals.earned_uusd
  p2pcompute status --metrics > /var/lib/node_exporter/p2pcompute.prom

Exit code 3: no node of this profile is running.
"""
)
@profile_option
@click.option("--metrics", is_flag=True, help="Prometheus text instead")
@watch_option
@common_options
def status(profile: str, metrics: bool, watch: float | None, as_json: bool, debug: bool) -> None:
    """Show what the running node does, earns and is owed."""
    if metrics and as_json:
        raise click.UsageError("--metrics and --json exclude each other")
    before: dict[str, Any] | None = None
    while True:
        answer = ask_node(profile, "/metrics" if metrics else "/status", as_json=as_json, debug=debug)
        if metrics:
            click.echo(answer, nl=False)
        elif as_json:
            json_line(**answer)
        else:
            show(_said(answer, before), watching=watch is not None)
            before = answer
        if watch is None:
            return
        time.sleep(watch)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute drain\n  p2pcompute drain --profile second\n\n"
    "Tasks that run go on; `p2pcompute status` shows how many. Stop the node with Ctrl-C or SIGTERM."
)
@profile_option
@common_options
def drain(profile: str, as_json: bool, debug: bool) -> None:
    """Have the running node take no more work."""
    answer = ask_node(profile, "/drain", method="POST", as_json=as_json, debug=debug)
    if as_json:
        json_line(**answer)
    else:
        click.echo("draining: no more work is taken until the node is started anew")
        click.echo(f"tasks still running: {answer['active_tasks']}")


def ask_node(profile: str, target: str, *, method: str = "GET", as_json: bool, debug: bool) -> Any:
    """What the running node of a profile answers; leaves with one line and an exit code where none does."""
    import trio

    from p2pcompute._profile import Profile
    from p2pcompute.control import NoNode, ask

    hush_logs(debug)
    place: Profile | None = None
    try:
        place = Profile.named(profile)
        return trio.run(partial(ask, place.control_socket, target, method=method))
    except BaseException as exc:  # noqa: BLE001  said in one line
        advice = _why_none(profile, place.path) if place is not None and isinstance(exc, NoNode) else ""
        fail(exc, as_json=as_json, debug=debug, advice=advice)


def _why_none(profile: str, place: Path) -> str:
    """Who has the profile open without answering, or how to start a node."""
    with contextlib.suppress(OSError), (place / "ledger.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return (
                f"; process {lock.read(16).strip() or 'unknown'} has the profile open: a script that runs a task, or a "
                "node that is starting or stopping"
            )
    others = "" if profile == "default" else f" --profile {profile}"
    return f"; start one with `p2pcompute up{others}`" + _running(profile, place)


def _running(profile: str, place: Path) -> str:
    names = sorted(path.parent.name for path in place.parent.glob("*/control.sock") if path.parent.name != profile)
    return f", or ask another profile: {', '.join(names[:8])}" if names else ""


def size(count: float) -> str:
    """A number of bytes in words, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def rate(now: dict[str, Any], before: dict[str, Any] | None, value: Callable[[dict[str, Any]], float]) -> float:
    """How fast a value of two answers of one node grows, per second; since the node's start where there is no earlier
    one, or where the node was started anew."""
    since_s, earlier = 0.0, 0.0
    if before is not None and before["peer_id"] == now["peer_id"] and before["uptime_s"] < now["uptime_s"]:
        since_s, earlier = before["uptime_s"], value(before)
    passed_s = now["uptime_s"] - since_s
    return max(0.0, value(now) - earlier) / passed_s if passed_s > 0 else 0.0


def _said(answer: dict[str, Any], before: dict[str, Any] | None = None) -> list[str]:
    lines: list[str] = []

    def labelled(name: str, text: str) -> None:
        lines.append(label(name, text))

    totals, provider = answer["totals"], answer["provider"]
    lines.append(_section("Node"))
    labelled("peer", answer["peer_id"])
    for address in answer["addresses"]:
        labelled("address", address)
    labelled(
        "network",
        f"{answer['network']}: {count(answer['peer_count'], 'peer')}, {count(answer['ads'], 'ad')} on the board",
    )
    labelled("up for", f"{seconds(answer['uptime_s'])} (process {answer['pid']}, p2pcompute {answer['version']})")
    traffic, meanwhile = answer["traffic"], "now" if before is not None else "on average"
    in_s = rate(answer, before, lambda one: one["traffic"]["bytes_in"])
    out_s = rate(answer, before, lambda one: one["traffic"]["bytes_out"])
    labelled(
        "traffic",
        f"{size(traffic['bytes_in'])} in, {size(traffic['bytes_out'])} out; {meanwhile} {size(in_s)}/s in, "
        f"{size(out_s)}/s out; {count(traffic['streams'], 'open stream')}",
    )
    if provider is not None:
        device = provider["device"]
        labelled("device", f"{device['name']}: {device['score_milli'] / 1000:.2f} reference cores a slot")
        labelled("slots", f"{provider['busy_slots']} of {provider['slots']} busy")
        served = provider["served"]
        failed = f", {served['failed']} failed" if served["failed"] else ""
        chunks_s = rate(answer, before, lambda one: one["provider"]["served"]["chunks"] if one["provider"] else 0)
        labelled(
            "served",
            f"{count(served['tasks'], 'task')}, {count(served['chunks'], 'chunk')}{failed}; {meanwhile} "
            f"{_number(chunks_s)} chunks/s",
        )
        labelled("used", _usage(provider["used"]))
        for program in provider["programs"]:
            name = f"{program['distribution']}:{program['name']}"
            data = f", reads {program['data']}" if program["data"] else ""
            labelled("program", f"{name} {program['version']}, files {program['digest'][:16]}{data}")
        if provider["draining"]:
            labelled("draining", "no more work is taken until it is started anew")
    lines.append(_section("Wallet"))
    labelled("address", answer["wallet"])
    chain = answer["chain"]
    labelled("chain", f"{chain['url'] + ', ' if chain['url'] else ''}id {chain['chain_id']}, hub {chain['hub']}")
    an_hour = round(3600 * rate(answer, before, lambda one: one["totals"]["earned_uusd"])) if before else 0
    labelled(
        "earned",
        f"{usd(totals['earned_uusd'])}, of it claimed on chain {usd(totals['claimed_uusd'])}"
        + (f"; now {usd(an_hour)} an hour" if an_hour else ""),
    )
    labelled("owed to us", usd(totals["owed_to_us_uusd"]))
    labelled("spent", f"{usd(totals['spent_uusd'])} of {usd(totals['reserved_uusd'])} in channels")
    labelled("channels", f"{totals['channels_in']} in, {totals['channels_out']} out")
    tasks = [] if provider is None else provider["tasks"]
    lines.append(_section("Tasks"))
    if not tasks:
        lines.append("  none running")
    lines += [
        f"  {task['task'][:8]}  for {short_peer(task['requester'])}  {count(task['chunks_done'], 'chunk')}"
        f"  {seconds(task['age_s'])}"
        + (f"  {task['chunks_failed']} failed" if task["chunks_failed"] else "")
        + _computing(task["computing"])
        for task in tasks
    ]
    for title, rows in (("Peers that pay us", answer["earnings"]), ("Peers that we pay", answer["spending"])):
        if rows:
            lines.append(_section(title))
            lines += _table(rows)
    return lines


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _usage(used: dict[str, Any]) -> str:
    parts = [f"{seconds(used['cpu_ns'] / 1e9)} of processor time for chunks"]
    parts += [f"{seconds(used['device_ns'] / 1e9)} of device time"] if used["device_ns"] else []
    parts += [f"{used['energy_mj'] / 1e3:.1f} J"] if used["energy_mj"] is not None else []
    return ", ".join(parts)


def _computing(chunk: dict[str, int] | None) -> str:
    """How far the chunk is that a task has under way; nothing where it has just begun."""
    if chunk is None or not chunk["blocks_done"]:
        return ""
    return f"  chunk {chunk['chunk']} at {chunk['blocks_done'] * 100 // chunk['blocks']}%"


def _section(title: str) -> str:
    return click.style(title, bold=True)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = [name for name in rows[0] if name != "peer"]
    heads = [name.removesuffix("_uusd") for name in columns]
    lines = ["  " + "".join(f"{head:>14}" for head in heads) + "  (USD)"]
    for row in rows[:20]:
        amounts = "".join(f"{row[name] / 1e6:>14.6f}" for name in columns)
        lines.append(f"  {amounts}  {short_peer(row['peer'])}")
    if len(rows) > 20:
        lines.append(f"  and {len(rows) - 20} more; --json has up to 200")
    return lines
