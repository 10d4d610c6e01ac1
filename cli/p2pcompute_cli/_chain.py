"""`p2pcompute chain`: the EVM chain that a profile uses, and putting a hub on one that has none."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ._shared import chain_options, common_options, fail, hush_logs, json_line, labelled, profile_option, usd

if TYPE_CHECKING:
    from p2pcompute._deploy import DeployPlan
    from p2pcompute.chain import HubPlace

__all__ = ["chain"]

_row = partial(labelled, width=12)


@click.group(
    epilog="\b\nExamples:\n  p2pcompute chain deploy --chain http://127.0.0.1:8545 --test-token\n"
    "  p2pcompute chain check --chain https://rpc.example --hub 0x…"
)
def chain() -> None:
    """The EVM chain that a profile uses.

    Without any of this nodes of a machine share an embedded development chain. On every other chain the same contract
    has to be deployed once, by anybody; all who deal with each other name that one hub.
    """


@chain.command(
    epilog="\b\nExamples:\n  p2pcompute chain check\n  p2pcompute chain check --chain https://rpc.example --hub 0x…"
)
@click.option(
    "--network",
    metavar="NAME",
    envvar="P2PCOMPUTE_NETWORK",
    default="local",
    show_default=True,
    help="whose development chain, where no chain is named",
)
@chain_options
@profile_option
@common_options
def check(
    network: str,
    chain: str | None,
    hub: str | None,
    token: str | None,
    profile: str,
    as_json: bool,
    debug: bool,
) -> None:
    """Compare the hub with ours, and show what this profile's account has there. Sends nothing, keeps nothing."""
    import trio

    hush_logs(debug)
    try:
        facts = trio.run(_check, profile, network, chain, hub, token)
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    if as_json:
        json_line(**facts)
        return
    _row("chain", f"{facts['chain_id']} at block {facts['block']}" + (", a development chain" * facts["development"]))
    _row("hub", f"{facts['hub']}: our contract")
    _row("token", f"{facts['token']} ({facts['symbol']})")
    _row("account", facts["account"])
    _row(
        "has", f"{facts['coins']} for gas, {usd(facts['tokens_uusd'])} of tokens, {usd(facts['free_uusd'])} at the hub"
    )


async def _check(profile: str, network: str, url: str | None, hub: str | None, token: str | None) -> dict[str, Any]:
    from p2pcompute._chain_choice import choose_chain, open_choice
    from p2pcompute._funds import coins
    from p2pcompute._profile import Profile
    from p2pcompute.errors import ConfigError
    from p2pcompute.identity import Keyring, WalletKey

    place = Profile.named(profile)
    choice = choose_chain(place, network, chain=url, hub=hub, token=token)
    if choice is None:
        raise ConfigError("no chain is named, and none runs here; name one with --chain URL, or run `p2pcompute up`")
    async with open_choice(choice) as found:
        account = Keyring(place.path).owner_address() or WalletKey.load_or_create(place.wallet_key).address
        head = await found.hub.head()
        return {
            "chain_id": found.place.chain_id,
            "block": head.number,
            "development": found.place.development,
            "hub": "0x" + found.place.hub.hex(),
            "token": "0x" + found.place.token.hex(),
            "symbol": found.place.symbol,
            "account": "0x" + account.hex(),
            "coins": coins(await found.hub.balance_wei(account)),
            "tokens_uusd": await found.hub.token_balance_uusd(account),
            "free_uusd": await found.hub.balance_uusd(account),
        }


@chain.command(
    epilog="\b\nExamples:\n  p2pcompute chain deploy --chain http://127.0.0.1:8545 --test-token\n"
    "  p2pcompute chain deploy --chain https://rpc.example --token 0x…\n\n"
    "The profile belongs to that hub from then on. Others name it: p2pcompute up --chain URL --hub ADDRESS."
)
@click.option(
    "--chain", "url", metavar="URL", envvar="P2PCOMPUTE_CHAIN", required=True, help="JSON-RPC URL of the chain"
)
@click.option("--token", metavar="ADDRESS", help="the ERC-20 to pay with: a stable token with 6 decimals")
@click.option("--test-token", is_flag=True, help="deploy a token that is worth nothing too, all of it this account's")
@click.option("--yes", is_flag=True, help="do not ask")
@profile_option
@common_options
def deploy(url: str, token: str | None, test_token: bool, yes: bool, profile: str, as_json: bool, debug: bool) -> None:
    """Put the hub contract on a chain. Says what it costs, and asks."""
    import trio

    if (token is None) != test_token:
        raise click.UsageError("name the token of the hub with --token, or have one made with --test-token")
    hush_logs(debug)
    try:
        place = trio.run(_deploy, profile, url, token, yes)
    except (click.Abort, click.UsageError):
        raise
    except BaseException as exc:  # noqa: BLE001  said in one line
        fail(exc, as_json=as_json, debug=debug)
    facts = {"chain_id": place.chain_id, "hub": "0x" + place.hub.hex(), "token": "0x" + place.token.hex()}
    if as_json:
        json_line(**facts, symbol=place.symbol, profile=profile)
        return
    click.echo(f"the hub is {facts['hub']} on chain {place.chain_id}, of the token {facts['token']} ({place.symbol})")
    click.echo(f"this profile keeps it; others write: p2pcompute up --chain URL --hub {facts['hub']}")


def _ask(plan: DeployPlan, url: str, *, yes: bool) -> None:
    """Say what will be spent, and where, before it is; ask where somebody can answer."""
    from p2pcompute._funds import coins
    from p2pcompute.chain._endpoint import shown_endpoint

    what = "a test token and the hub" if plan.token is None else f"the hub for {plan.symbol} 0x{plan.token.hex()}"
    click.echo(
        f"deploying {what} on chain {plan.chain_id} ({shown_endpoint(url)}) from the account "
        f"0x{plan.account.hex()}: at most {plan.gas:,} gas, which cost at most {coins(plan.most_wei)} of the "
        f"{coins(plan.balance_wei)} coins that it has",
        err=True,
    )
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here; add --yes to do it")
    click.confirm("do it?", abort=True, err=True)


async def _deploy(profile: str, url: str, token_text: str | None, yes: bool) -> HubPlace:
    from p2pcompute._chain_choice import account, keep_choice, kept_choice
    from p2pcompute._deploy import Deployer
    from p2pcompute._profile import Profile
    from p2pcompute.chain import ChainClient
    from p2pcompute.errors import ConfigError
    from p2pcompute.identity import WalletKey
    from p2pcompute.node import wall_clock_ms
    from p2pcompute.storage import open_ledger
    from p2pcompute_protocols.money import ChainTerms

    token = None if token_text is None else account(token_text)
    home = Profile.named(profile)
    kept = kept_choice(home)
    if kept is not None and kept.hub is not None:
        raise ConfigError(
            f"this profile uses the hub 0x{kept.hub.hex()} on chain {kept.chain_id}, and a profile belongs to one for "
            "good; deploy with another one: --profile NAME"
        )
    async with open_ledger(home.path, clock_ms=wall_clock_ms) as ledger, ChainClient(url) as rpc:
        wallet = WalletKey.load_or_create(home.wallet_key)
        if (bound := await ledger.bound_chain()) is not None:
            raise ConfigError(
                f"this profile's ledger belongs to the hub 0x{bound.hub.hex()} on chain {bound.chain_id}; deploy with "
                "another one: --profile NAME"
            )
        deployer = Deployer(rpc, wallet, ledger)
        _ask(await deployer.plan(token), url, yes=yes)
        place = await deployer.deploy(token)
        await ledger.bind_chain(
            ChainTerms(chain_id=place.chain_id, hub=bytes(place.hub), token=bytes(place.token), decimals=6)
        )
        keep_choice(home, url, place)
        return place
