"""`p2pcompute arbiter` judges evidence for others; `p2pcompute accuse` has a liar's stake taken."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._money import _Asker
from ._passwords import owner_password, password_option
from ._shared import (
    common_options,
    fail,
    hush_logs,
    json_line,
    labelled,
    network_options,
    registry_option,
    short_peer,
    usd,
)

if TYPE_CHECKING:
    from p2pcompute.identity import AskPassword
    from p2pcompute.node import Node
    from p2pcompute.stake import Slashed

__all__ = ["accuse", "arbiter"]

_row = partial(labelled, width=10)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute arbiter\n  p2pcompute stake '100 USD' --profile arbiter    # once\n\n"
    "Providers accept an arbiter by `p2pcompute up --arbiter PEER`, requesters by `p2pcompute run --arbiter "
    "MULTIADDR`: the peer and the address that it shows."
)
@click.option(
    "--listen",
    metavar="MULTIADDR",
    multiple=True,
    default=("/ip4/127.0.0.1/tcp/0",),
    show_default=True,
    help="where to listen; may be repeated",
)
@registry_option
@click.option("--allow-unsandboxed", is_flag=True, help="run strangers' kernels without Landlock and seccomp")
@partial(network_options, profile="arbiter")
@password_option
@common_options
def arbiter(password_file: str | None, **options: Any) -> None:
    """Judge evidence of lies, in a locked worker, for a stake of your own; until Ctrl-C."""
    import trio

    from p2pcompute._profile import Profile

    as_json, debug = options.pop("as_json"), options.pop("debug")
    hush_logs(debug)
    try:
        # Before signals are caught: Ctrl-C has to end the prompt.
        password = owner_password(Profile.named(options["profile"]).path, password_file)
        trio.run(partial(_arbitrate, as_json=as_json, password=password, **options))
    except KeyboardInterrupt:
        pass
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(event="stopped")
    else:
        click.echo("stopped", err=True)


async def _arbitrate(
    *, as_json: bool, profile: str, allow_unsandboxed: bool, password: AskPassword, **options: Any
) -> None:
    import signal

    import trio

    import p2pcompute as p2p
    from p2pcompute._profile import Profile

    def show(task: bytes, wrong: str, reason: str) -> None:
        if as_json:
            json_line(event="verdict", task=task.hex(), wrong=wrong, reason=reason)
        else:
            said = wrong if wrong == "undecided" else f"the {wrong} is wrong"
            click.echo(f"task {task.hex()[:8]}: {said}: {reason}", err=True)

    place = Profile.named(profile)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            p2p.open_node(profile=place, start_chain=True, password=password, **options) as node,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(partial(node.arbitrate, allow_unsandboxed=allow_unsandboxed, on_verdict=show))
            await nursery.start(_control, node, place)
            await _ready(node, profile, as_json=as_json)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()


async def _control(node: Node, place: Any, *, task_status: Any) -> None:
    from p2pcompute.control import serve_control

    await serve_control(node, place.control_socket, task_status=task_status)


async def _ready(node: Node, profile: str, *, as_json: bool) -> None:
    status = await (await node.staking()).status()
    account = "0x" + node.services.account.address.hex()
    if as_json:
        json_line(
            event="ready",
            peer_id=node.peer_id,
            addresses=list(node.addresses),
            network=node.network,
            wallet=account,
            registry="0x" + status.registry.hex(),
            stake_uusd=status.stake_uusd,
            active=status.active,
        )
        return
    _row("peer", node.peer_id)
    for address in node.addresses:
        _row("address", address)
    _row("account", account)
    _row("stake", usd(status.stake_uusd))
    if not status.active:
        click.echo(
            f"warning: verdicts do not count yet: `p2pcompute stake '{status.min_stake_uusd / 1e6:g} USD' --profile "
            f"{profile}` puts the least stake in",
            err=True,
        )
    click.echo(f"ready on network {node.network}; Ctrl-C stops", err=True)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute evidence list --profile requester\n"
    "  p2pcompute accuse 3f9c01d2a4b5e6f7-chunk-3.p2pevidence\n"
    "  p2pcompute accuse first.p2preceipt second.p2preceipt\n\n"
    "The pledge lies beside the evidence. Anybody may accuse; what is not burned goes to the requester, and for two "
    "receipts of one chunk to whoever shows them."
)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@registry_option
@click.option("--yes", is_flag=True, help="do not ask")
@partial(network_options, profile="requester")
@password_option
@common_options
def accuse(
    file: Path,
    other: Path | None,
    yes: bool,
    password_file: str | None,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> None:
    """Have the arbiters of a task judge FILE, and the liar's stake taken."""
    import trio

    from p2pcompute._profile import Profile

    hush_logs(debug)
    place = {name: options[name] for name in ("chain", "hub", "token", "registry")} | {"password_file": password_file}
    asker = _Asker(options["profile"], options["network"], place, as_json=as_json, debug=debug)
    facts = asker.whose_account()
    asker.confirm(f"{file} goes to the arbiters of its task, and their verdict to the chain", facts, yes=yes)
    try:
        password = owner_password(Profile.named(options["profile"]).path, password_file)
        slashed = trio.run(partial(_accuse, file, other, {**options, "password": password}))
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    _show(slashed, as_json=as_json)


async def _accuse(file: Path, other: Path | None, options: dict[str, Any]) -> Slashed:
    import p2pcompute as p2p

    async with p2p.open_node(**options) as node:
        return await node.accuse(file, other)


def _show(slashed: Slashed, *, as_json: bool) -> None:
    burned_uusd = slashed.taken_uusd - slashed.paid_uusd
    if as_json:
        json_line(
            provider="0x" + slashed.provider.hex(),
            beneficiary="0x" + slashed.beneficiary.hex(),
            stake_uusd=slashed.stake_uusd,
            taken_uusd=slashed.taken_uusd,
            paid_uusd=slashed.paid_uusd,
            burned_uusd=burned_uusd,
            arbiters=list(slashed.arbiters),
            declined=dict(slashed.declined),
        )
        return
    _row("liar", f"0x{slashed.provider.hex()}: {usd(slashed.taken_uusd)} taken, {usd(slashed.stake_uusd)} left")
    _row("paid", f"{usd(slashed.paid_uusd)} to 0x{slashed.beneficiary.hex()}; `p2pcompute unstake` brings it home")
    _row("burned", usd(burned_uusd))
    for peer in slashed.arbiters:
        _row("judged by", short_peer(peer))
    for peer, why in slashed.declined.items():
        _row("not by", f"{short_peer(peer)}: {why}")
