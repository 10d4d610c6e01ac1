"""`p2pcompute stake` and `unstake`: money that a provider or an arbiter leaves on chain, and loses for a lie."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from ._money import Place, _amount, _Asker, _day, _options
from ._shared import json_line, labelled, registry_option, usd

__all__ = ["stake", "unstake"]

_row = partial(labelled, width=12)
_registry = partial(registry_option, where="where the node does not run: ")


def _show(answer: dict[str, Any]) -> None:
    _row("account", answer["account"])
    _row("registry", f"{answer['registry']} on chain {answer['chain']['chain_id']}")
    counts = "counts" if answer["active"] else f"does not count: the least is {usd(answer['min_stake_uusd'])}"
    _row("stake", f"{usd(answer['stake_uusd'] - answer['leaving_uusd'])}, {counts}")
    if answer["leaving_uusd"]:
        _row(
            "leaving", f"{usd(answer['leaving_uusd'])}, from {_day(answer['leave_at_s'] * 1000)} on; can be lost until"
        )
    if answer["credit_uusd"]:
        _row("credit", f"{usd(answer['credit_uusd'])}; `p2pcompute unstake` brings it home")
    _row("at risk", f"{usd(answer['at_risk_uusd'])} at most, on the word of {answer['receipt_key'] or 'no key yet'}")
    _row("burned", f"{usd(answer['burned_uusd'])}, of all stakes")


@click.command(
    epilog="\b\nExamples:\n  p2pcompute stake status\n  p2pcompute stake '100 USD'\n"
    "  p2pcompute stake '500 USD' --cores 50\n\n"
    "A development chain's faucet gives the tokens. What is staked comes back two weeks after `p2pcompute unstake`."
)
@click.argument("amount", metavar="AMOUNT|status")
@_registry
@click.option("--cores", type=click.IntRange(0), help="reference cores that the account offers; they cap its stake")
@click.option("--yes", is_flag=True, help="do not ask")
@_options
@click.pass_context
def stake(
    ctx: click.Context,
    amount: str,
    profile: str,
    network: str,
    place: Place,
    registry: str | None,
    cores: int | None,
    yes: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Put AMOUNT at stake, or show where the stake stands."""
    asker = _Asker(profile, network, {**place, "registry": registry}, as_json=as_json, debug=debug)
    if amount == "status":
        answer = asker("/stake")
    else:
        amount_uusd = _amount(ctx, ctx.command.params[0], amount)
        if amount_uusd is None:
            raise click.UsageError("write an amount, such as '100 USD'")
        facts = asker("/stake")
        asker.confirm(
            f"{usd(amount_uusd)} of tokens go to the stake registry {facts['registry']}; arbiters that you accept can "
            "take them, and they come back two weeks after you ask",
            facts,
            yes=yes,
        )
        answer = asker("/stake", "POST", amount_uusd=amount_uusd, cores=cores)
        if not as_json:
            click.echo(f"staked {usd(amount_uusd)}")
    if as_json:
        json_line(**answer)
    else:
        _show(answer)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute unstake\n  p2pcompute unstake '50 USD'\n\n"
    "The first time asks for it, and it counts no more; two weeks later the same command brings it home. Until then it "
    "can be lost."
)
@click.argument("amount", callback=_amount, metavar="[AMOUNT|all]", required=False)
@_registry
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def unstake(
    amount: int | None,
    profile: str,
    network: str,
    place: Place,
    registry: str | None,
    yes: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Ask for the stake back, or bring home what has come out of it."""
    asker = _Asker(profile, network, {**place, "registry": registry}, as_json=as_json, debug=debug)
    facts = asker("/stake")
    what = "all of the stake" if amount is None else usd(amount)
    asker.confirm(f"{what} is asked for, or what is due comes home", facts, yes=yes)
    fields: dict[str, Any] = {} if amount is None else {"amount_uusd": amount}
    answer = asker("/unstake", "POST", **fields)
    if as_json:
        json_line(**answer)
        return
    if answer["came_uusd"]:
        click.echo(f"brought home {usd(answer['came_uusd'])}")
    else:
        click.echo(f"asked for it: from {_day(answer['leave_at_s'] * 1000)} on `p2pcompute unstake` brings it home")
    _show(answer)
