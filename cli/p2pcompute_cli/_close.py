"""`p2pcompute close`: a payment channel is closed, and what is left on it comes back to its payer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ._money import Place, _Asker, _day, _options, _show_wallet
from ._shared import json_line, short_peer, usd

__all__ = ["close"]


def _named(asker: _Asker, name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the channel that begins so; says it where there is none, before anything is asked."""
    from p2pcompute.errors import ConfigError
    from p2pcompute.payments import named_channel

    by_id = {row["channel"]: row for row in rows}
    try:
        return by_id[named_channel(name, by_id)]
    except ConfigError as exc:
        asker.fail(exc)


@click.command(
    epilog="\b\nExamples:\n  p2pcompute channels\n  p2pcompute close 3f9a11c0\n\n"
    "Where we are paid, our vouchers are claimed first, and the channel is closed at once. Where we pay, what is left "
    "comes back at once if the payee's node answers and agrees; else a day after the first time: then run it again."
)
@click.argument("channel")
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def close(channel: str, profile: str, network: str, place: Place, yes: bool, as_json: bool, debug: bool) -> None:
    """Close the payment CHANNEL, named by the first 8 digits of its ID or more."""
    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    facts = asker("/channels")
    row = _named(asker, channel, facts["channels"])
    spoken_for_uusd = max(row["claimed_uusd"], row["voucher_uusd"])  # the payee's, whether claimed by now or not
    left, peer = usd(max(0, row["deposit_uusd"] - spoken_for_uusd)), short_peer(row["peer"])
    what = f"on which {peer} pays us" if row["direction"] == "in" else f"on which we pay {peer}"
    asker.confirm(f"closing channel {row['channel'][:8]}, {what}: {left} are left on it", facts, yes=yes)
    answer = asker("/close", "POST", channel=channel)
    if as_json:
        json_line(**answer)
        return
    if answer["state"] == "closing":
        click.echo(
            f"not closed at once{': ' + answer['reason'] if answer['reason'] else ''}; the hub was asked for it: from "
            f"{_day(answer['close_at_s'] * 1000)} on `p2pcompute close {channel}` brings back what is left; vouchers "
            "count until then, and work that needs a larger deposit with this provider takes the request back"
        )
    elif answer["direction"] == "out":
        click.echo(f"closed: {usd(answer['refund_uusd'])} came back, {usd(answer['claimed_uusd'])} had been claimed")
    else:
        click.echo(f"closed: {usd(answer['claimed_uusd'])} were claimed on it, {usd(answer['refund_uusd'])} went back")
    _show_wallet(answer)
