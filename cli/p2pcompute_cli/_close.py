"""`p2pcompute close`: a payment channel is closed, and what is left on it comes back to its payer."""

from __future__ import annotations

import click

from ._money import Place, _Asker, _day, _options, _show_wallet
from ._shared import json_line, usd

__all__ = ["close"]


@click.command(
    epilog="\b\nExamples:\n  p2pcompute channels\n  p2pcompute close 3f9a11c0\n\n"
    "Where we are paid, our vouchers are claimed first, and the channel is closed at once. Where we pay, what is left "
    "comes back a day after the first time; then run it again."
)
@click.argument("channel")
@click.option("--yes", is_flag=True, help="do not ask")
@_options
def close(channel: str, profile: str, network: str, place: Place, yes: bool, as_json: bool, debug: bool) -> None:
    """Close the payment CHANNEL, named by the first 8 digits of its ID or more."""
    asker = _Asker(profile, network, place, as_json=as_json, debug=debug)
    asker.confirm(f"closing channel {channel}", asker("/wallet"), yes=yes)
    answer = asker("/close", "POST", channel=channel)
    if as_json:
        json_line(**answer)
        return
    if answer["state"] == "closing":
        click.echo(
            f"asked for it: from {_day(answer['close_at_s'] * 1000)} on `p2pcompute close {channel}` brings back what "
            "is left; vouchers count until then, and work that needs a larger deposit with this provider takes the "
            "request back"
        )
    elif answer["direction"] == "out":
        click.echo(f"closed: {usd(answer['refund_uusd'])} came back, {usd(answer['claimed_uusd'])} had been claimed")
    else:
        click.echo(f"closed: {usd(answer['claimed_uusd'])} were claimed on it, {usd(answer['refund_uusd'])} went back")
    _show_wallet(answer)
