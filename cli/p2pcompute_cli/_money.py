"""`p2pcompute channels`, `earnings`, `receipts`, `settle`, `fund` and `withdraw`: a profile's money.

A running node is asked, since it has the ledger; else the profile is opened here.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, cast

import click

from ._passwords import owner_password, password_option
from ._shared import (
    chain_options,
    common_options,
    count,
    fail,
    hush_logs,
    json_line,
    labelled,
    profile_option,
    short_peer,
    usd,
)

__all__ = ["channels", "earnings", "fund", "receipts", "settle", "withdraw"]

F = TypeVar("F", bound=Callable[..., Any])
Place: TypeAlias = Mapping[str, str | None]
"""--chain, --hub, --token and --password-file."""
_ANSWER_S: Final = 160.0
_row = partial(labelled, width=12)


def _options(function: F) -> F:
    for option in (
        common_options,
        password_option,
        partial(chain_options, where="where the node does not run: "),
        click.option(
            "--network",
            metavar="NAME",
            envvar="P2PCOMPUTE_NETWORK",
            default="local",
            show_default=True,
            help="where the node does not run: its network",
        ),
        profile_option,
    ):
        function = option(function)

    @wraps(function)
    def with_place(
        chain: str | None, hub: str | None, token: str | None, password_file: str | None, **options: Any
    ) -> Any:
        where = {"chain": chain, "hub": hub, "token": token, "password_file": password_file}
        return function(place=where, **options)

    return cast("F", with_place)


class _Asker:
    """Asks the profile's money, through its node where that runs."""

    def __init__(self, profile: str, network: str, place: Place, *, as_json: bool, debug: bool) -> None:
        self._profile = profile
        self._network = network
        self._place = place
        self.password_file = place["password_file"]
        self.as_json = as_json
        self._debug = debug
        self._said: set[str] = set()
        hush_logs(debug)

    def __call__(self, target: str, method: str = "GET", *, from_ledger: bool = False, **fields: Any) -> dict[str, Any]:
        """What is answered. Where no node runs, what a ledger is enough for starts no chain; `from_ledger` asks none
        that runs either."""
        import trio

        try:
            answer: dict[str, Any] = trio.run(partial(self._ask, target, method, fields, from_ledger))
        except BaseException as exc:  # noqa: BLE001  said in one line
            self.fail(exc)
        return answer

    def whose_account(self) -> dict[str, Any]:
        """What `announce` says of who pays, and where, from what is on this disk; a profile that was never used gets
        its account when it is."""
        from p2pcompute._profile import Profile
        from p2pcompute.chain._endpoint import shown_endpoint
        from p2pcompute.errors import ConfigError

        try:
            is_new = not Profile.named(self._profile).wallet_key.exists()
        except ConfigError as exc:
            self.fail(exc)
        if not is_new:
            return self("/channels", from_ledger=True)
        url = self._place["chain"]
        chain = {"chain_id": None, "url": None if url is None else shown_endpoint(url)}
        return {"network": self._network, "account": "made for this", "chain": chain}

    def fail(self, error: BaseException) -> NoReturn:
        """Say what went wrong in one line and leave."""
        fail(error, as_json=self.as_json, debug=self._debug)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            click.echo(line, err=True)

    async def _ask(self, target: str, method: str, fields: Mapping[str, Any], from_ledger: bool) -> Any:
        from p2pcompute._profile import Profile
        from p2pcompute.control import BOOK_ANSWERS, MONEY_ANSWERS, NoNode, ask

        place = Profile.named(self._profile)
        if place.control_socket.exists():
            try:
                return await ask(place.control_socket, target, method=method, fields=fields, timeout_s=_ANSWER_S)
            except NoNode:
                pass  # a dead one has left its socket behind, or it does not answer: then the ledger's lock says so
        from p2pcompute.wallet import finds_chain, open_books, open_wallet

        chain, hub, token = (self._place[name] for name in ("chain", "hub", "token"))
        answer = BOOK_ANSWERS.get((method, target))
        if answer is not None and (
            from_ledger or not finds_chain(place, self._network, chain=chain, hub=hub, token=token)
        ):
            async with open_books(profile=place, network=self._network, chain=chain, hub=hub, token=token) as books:
                return await answer(books, fields)
        password = owner_password(place.path, self.password_file)
        async with open_wallet(
            profile=place,
            network=self._network,
            chain=chain,
            hub=hub,
            token=token,
            registry=self._place.get("registry"),
            on_start_chain=self._say_once,
            password=password,
        ) as money:
            return await MONEY_ANSWERS[method, target](money, fields)

    def announce(self, what: str, facts: Mapping[str, Any], *, gas: int | None = None) -> None:
        """Say what will be spent, and where, before it is; `gas` is about how much."""
        chain = facts["chain"]
        where = f"network {facts['network']}, chain {chain['chain_id'] or 'not known yet'}" + (
            f" at {chain['url']}" if chain["url"] else ""
        )
        costs = "gas on top" if gas is None else f"some {gas:,} gas on top"
        click.echo(f"{what} ({where}, account {facts['account']}, {costs})", err=True)

    def confirm(self, what: str, facts: Mapping[str, Any], *, yes: bool) -> None:
        """As `announce`; asks where somebody can answer."""
        self.announce(what, facts)
        if yes:
            return
        if not sys.stdin.isatty():
            raise click.UsageError("nobody can be asked here; add --yes to do it")
        click.confirm("do it?", abort=True, err=True)


def _amount(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    from p2pcompute._options import parse_usd

    if value is None or value == "all":
        return None
    try:
        amount_uusd = parse_usd(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if not amount_uusd:
        raise click.BadParameter("write an amount of at least 0.000001 USD, such as '1.50 USD'")
    return amount_uusd


def _account(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    from p2pcompute.control import parse_address
    from p2pcompute.errors import ConfigError

    try:
        parse_address(value)
    except ConfigError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def _show_wallet(answer: dict[str, Any]) -> None:
    chain = answer["chain"]
    _row("account", answer["account"])
    _row("network", f"{answer['network']}: chain {chain['chain_id']}, hub {chain['hub']}")
    _row("tokens", usd(answer["tokens_uusd"]))
    _row("free", f"{usd(answer['free_uusd'])} at the hub, to withdraw or for channels")
    _row("in channels", f"{usd(answer['reserved_uusd'])}, of it promised {usd(answer['promised_uusd'])}")
    _row("unclaimed", f"{usd(answer['unclaimed_uusd'])} of vouchers that we hold; `p2pcompute settle` claims them")


@click.command(epilog="\b\nExamples:\n  p2pcompute channels\n  p2pcompute channels --profile requester --json")
@_options
def channels(profile: str, network: str, place: Place, as_json: bool, debug: bool) -> None:
    """Show the payment channels, those on which we are paid first."""
    answer = _Asker(profile, network, place, as_json=as_json, debug=debug)("/channels")
    if as_json:
        json_line(**answer)
        return
    if not answer["channels"]:
        click.echo("no channels yet: one is opened with the first work for money")
        return
    click.echo(f"  {'':<3} {'deposit':>12} {'worked':>12} {'voucher':>12} {'claimed':>12}  (USD)")
    for row in answer["channels"]:
        amounts = "".join(
            f" {row[name] / 1e6:>12.6f}" for name in ("deposit_uusd", "worked_uusd", "voucher_uusd", "claimed_uusd")
        )
        closing = f"  closing {_day(row['close_at_s'] * 1000)}" if row["close_at_s"] else ""
        click.echo(f"  {row['direction']:<3}{amounts}  {row['channel'][:8]}  {short_peer(row['peer'])}{closing}")


@click.command(epilog="\b\nExamples:\n  p2pcompute earnings\n  p2pcompute earnings --json | jq .earned_uusd")
@_options
def earnings(profile: str, network: str, place: Place, as_json: bool, debug: bool) -> None:
    """Show what was earned, by who paid it."""
    answer = _Asker(profile, network, place, as_json=as_json, debug=debug)("/channels", from_ledger=True)
    payers: dict[str, dict[str, int]] = {}
    for row in answer["channels"]:
        if row["direction"] == "in":
            total = payers.setdefault(row["peer"], dict.fromkeys(("earned_uusd", "claimed_uusd", "unclaimed_uusd"), 0))
            total["earned_uusd"] += max(row["voucher_uusd"], row["claimed_uusd"])
            total["claimed_uusd"] += row["claimed_uusd"]
            total["unclaimed_uusd"] += row["unclaimed_uusd"]
    ranked = sorted(payers.items(), key=lambda item: (-item[1]["earned_uusd"], item[0]))
    earned, unclaimed = (sum(total[name] for _, total in ranked) for name in ("earned_uusd", "unclaimed_uusd"))
    if as_json:
        rows = [{"peer": peer, **total} for peer, total in ranked]
        json_line(account=answer["account"], earned_uusd=earned, unclaimed_uusd=unclaimed, peers=rows)
        return
    click.echo(f"earned {usd(earned)}, of it not claimed on chain yet {usd(unclaimed)}")
    for peer, total in ranked[:50]:
        click.echo(f"  {total['earned_uusd'] / 1e6:>14.6f} USD  {short_peer(peer)}")
    if len(ranked) > 50:
        click.echo(f"  and {count(len(ranked) - 50, 'payer')} more; --json has all")


@click.command(
    epilog="\b\nExamples:\n  p2pcompute receipts\n  p2pcompute receipts --csv --limit 10000 > receipts.csv\n"
    "  p2pcompute receipts --prove 5f3a09c1 12 > proof.json\n\n"
    "The newest tasks come first. `code` is 0 for a result; `verdict` is what this node found, where it bought. "
    "Amounts are exact; only what is paid for all of them together is rounded up, to a millionth."
)
@click.option("--csv", "as_csv", is_flag=True, help="one line each, for a spreadsheet")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True, help="how many at most")
@click.option(
    "--prove",
    type=(str, click.IntRange(0)),
    metavar="TASK INDEX",
    default=None,
    help="print, as JSON, the proof that the receipt of a chunk stands behind a voucher; 8 digits of the task or more",
)
@click.option("--root", metavar="HEX", default="", help="with --prove: the memo that was claimed on chain")
@_options
def receipts(
    profile: str,
    network: str,
    place: Place,
    as_csv: bool,
    limit: int,
    prove: tuple[str, int] | None,
    root: str,
    as_json: bool,
    debug: bool,
) -> None:
    """List the receipts of chunks that were done here or for us."""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    if prove is not None:
        json_line(**asker("/proof", from_ledger=True, task=prove[0], index=prove[1], root=root))
        return
    if root:
        raise click.UsageError("--root goes with --prove")
    answer = asker("/receipts", from_ledger=True, limit=limit)
    rows = answer["receipts"]
    if as_json:
        json_line(**answer)
    elif as_csv:
        names = [
            "agreed",
            "role",
            "peer",
            "task",
            "index",
            "code",
            "units",
            "usd",
            "verdict",
            "sampled",
            "digest",
            "reason",
        ]
        out = csv.DictWriter(sys.stdout, names, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        for row in rows:
            out.writerow(
                {
                    **row,
                    "agreed": _day(row["agreed_ms"], offset=True),
                    "usd": _exact_usd(row["pusd"]),
                    "reason": _cell(row["reason"]),
                }
            )
    elif not rows:
        click.echo("no receipts yet")
    else:
        for row in rows:
            said = row["verdict"] or "done"
            if row["code"]:
                said = f"failed ({row['code']}) and costs nothing: {_cell(row['reason'])}"
            did = "for" if row["role"] == "provider" else "by"
            click.echo(
                f"  {_day(row['agreed_ms'])}  task {row['task'][:8]} chunk {row['index']:>5}  "
                f"{_exact_usd(row['pusd']):>16} USD  {did} {short_peer(row['peer'])}  {said}"
            )
        if len(rows) == limit:
            click.echo(f"  the newest {limit}; --limit for more")


def _exact_usd(pusd: int) -> str:
    """To the last pico-USD: a chunk may cost less than a millionth, and what is earned is rounded once, in the sum."""
    return f"{pusd // 10**12}.{pusd % 10**12:012d}"


def _cell(text: str) -> str:
    """A peer's words: a spreadsheet takes what begins so for a formula."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _day(at_ms: int, *, offset: bool = False) -> str:
    """This machine's time; `offset` adds that of its zone, for who reads it elsewhere."""
    at = datetime.fromtimestamp(at_ms // 1000).astimezone()
    return (at if offset else at.replace(tzinfo=None)).isoformat()


@click.command(
    epilog="\b\nExamples:\n  p2pcompute settle\n  p2pcompute settle --json | jq .settled_uusd\n\n"
    "Channels stay open, and the node goes on. It does the same by itself, when much is unclaimed."
)
@_options
def settle(profile: str, network: str, place: Place, as_json: bool, debug: bool) -> None:
    """Claim on chain what our vouchers are worth."""
    from p2pcompute.payments._settle_policy import claim_gas

    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    facts = asker("/channels")
    due = [row["unclaimed_uusd"] for row in facts["channels"] if row["direction"] == "in" and row["unclaimed_uusd"]]
    if due:
        asker.announce(f"claiming {usd(sum(due))} on {count(len(due), 'channel')}", facts, gas=claim_gas(len(due)))
    answer = asker("/settle", "POST")
    if as_json:
        json_line(**answer)
        return
    settled = answer["settled_uusd"]
    click.echo(f"claimed {usd(settled)}" if settled else "there was nothing new to claim")
    _show_wallet(answer)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute fund '5 USD' --profile requester\n\n"
    "A development chain's faucet funds by itself what a task needs."
)
@click.argument("amount", callback=_amount)
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def fund(amount: int | None, profile: str, network: str, place: Place, yes: bool, as_json: bool, debug: bool) -> None:
    """Bring AMOUNT of the account's tokens into the hub, for channels."""
    if amount is None:
        raise click.UsageError("write an amount, such as '5 USD'")
    from p2pcompute.errors import InsufficientFunds
    from p2pcompute.payments import too_few_tokens

    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    facts = asker("/wallet")
    if facts["tokens_uusd"] < amount:
        from p2pcompute.chain import DEV_CHAIN_ID

        if facts["chain"]["chain_id"] == DEV_CHAIN_ID:
            asker.fail(
                InsufficientFunds(
                    f"{facts['account']} has {usd(facts['tokens_uusd'])} of tokens, and nothing has to be brought in "
                    "here: a development chain's faucet gives each task what it needs, and into the hub"
                )
            )
        asker.fail(too_few_tokens(facts["account"], facts["tokens_uusd"], amount))
    asker.confirm(f"{usd(amount)} of tokens go into the hub", facts, yes=yes)
    answer = asker("/fund", "POST", amount_uusd=amount)
    if as_json:
        json_line(**answer)
    else:
        click.echo(f"brought in {usd(amount)}")
        _show_wallet(answer)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute settle\n"
    "  p2pcompute withdraw all --to 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
)
@click.argument("amount", callback=_amount, metavar="AMOUNT|all")
@click.option("--to", required=True, metavar="ACCOUNT", callback=_account, help="who gets the tokens: 0x and 40 digits")
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def withdraw(
    amount: int | None, to: str, profile: str, network: str, place: Place, yes: bool, as_json: bool, debug: bool
) -> None:
    """Take AMOUNT of what is free at the hub out of it."""
    from p2pcompute.payments import too_little_free

    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    facts = asker("/wallet")
    if not facts["free_uusd"] or (amount or 0) > facts["free_uusd"]:
        asker.fail(too_little_free(facts["free_uusd"], amount))
    what = usd(facts["free_uusd"] if amount is None else amount)
    asker.confirm(f"{what} go to {to}", facts, yes=yes)
    # Of what came in meanwhile nothing was said.
    answer = asker("/withdraw", "POST", to=to, amount_uusd=facts["free_uusd"] if amount is None else amount)
    if as_json:
        json_line(**answer)
    else:
        click.echo(f"withdrew {usd(answer['withdrawn_uusd'])} to {answer['to']}")
        _show_wallet(answer)
