"""Closing a channel: a payee does it at once, a payer asks and comes back a day later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from p2pcompute.errors import ConfigError
from p2pcompute_protocols.channel import channel_id
from p2pcompute_protocols.ids import ChannelId

from ._api import ChannelIn, ChannelOnChain, ChannelOutView, Finalize, Hub, PayeeLedger, RequestClose
from ._outbox import Outbox
from ._settler import Settler

__all__ = ["ClosedChannel", "ClosingLedger", "close_channel", "find_channel", "named_channel"]

_LEAST_DIGITS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedChannel:
    """What closing a channel has come to.

    Attributes:
        channel: its ID.
        direction: "out" where the account pays on it, "in" where it is paid.
        state: "closed", or "closing" where the payer has asked and has to come back.
        close_at_s: UNIX time from which a closing one can be closed; 0 otherwise.
        refund_uusd: what went back to the payer's free balance.
        claimed_uusd: what was ever claimed on it.
    """

    channel: ChannelId
    direction: Literal["in", "out"]
    state: Literal["closed", "closing"]
    close_at_s: int
    refund_uusd: int
    claimed_uusd: int


class ClosingLedger(PayeeLedger, Protocol):
    """What closing reads and writes on disk."""

    async def channels_out(self) -> Sequence[ChannelOutView]: ...
    async def set_chain_out(self, channel: ChannelId, *, deposit_uusd: int, claimed_uusd: int) -> ChannelOutView: ...


async def find_channel(ledger: ClosingLedger, name: str) -> tuple[ChannelIn | None, ChannelOutView | None]:
    """The one channel of this ledger whose ID begins so: one on which we are paid, or one on which we pay.

    Args:
        name: at least 8 hexadecimal digits, as `p2pcompute channels` shows them.

    Raises:
        ConfigError: none begins so, or more than one.
    """
    incoming = {row.channel.hex(): row for row in await ledger.channels_in()}
    outgoing = {row.channel.hex(): row for row in await ledger.channels_out()}
    found = named_channel(name, [*incoming, *outgoing])
    return incoming.get(found), outgoing.get(found)


def named_channel(name: str, channels: Iterable[str]) -> str:
    """The one of `channels`, IDs in hexadecimal digits, that begins so.

    Raises:
        ConfigError: none begins so, or more than one.
    """
    given: object = name
    digits = given.lower().removeprefix("0x") if isinstance(given, str) else ""
    if len(digits) < _LEAST_DIGITS or set(digits) - set("0123456789abcdef"):
        raise ConfigError(f"{name!r} names no channel; write {_LEAST_DIGITS} digits or more of `p2pcompute channels`")
    match [channel for channel in channels if channel.startswith(digits)]:
        case [found]:
            return found
        case []:
            raise ConfigError(f"no channel begins with {name}; `p2pcompute channels` shows those that there are")
        case _:
            raise ConfigError(f"more than one channel begins with {name}; write more of its digits")


async def close_channel(
    name: str,
    *,
    ledger: ClosingLedger,
    hub: Hub,
    outbox: Outbox,
    settler: Settler,
    clock_ms: Callable[[], int],
) -> ClosedChannel:
    """Close a channel, as far as its account can now.

    A channel on which the account is paid is claimed and closed at once. A voucher that comes in between the two is
    not lost, but waits for the channel to be funded again; a provider drains first. On one on which it pays, the first
    call asks for what is left, and a call from a day later on gets it; vouchers count until then. New work that tops
    the channel up takes the request back.

    Args:
        name: see `find_channel`.
        ledger: of the profile.
        hub: the account's view of the hub.
        outbox: the only sender of the account's transactions.
        settler: claims.
        clock_ms: UNIX time in milliseconds.

    Raises:
        ConfigError: there is no such channel; it has nothing to close; another key signs on it.
        SettlementPending, TransactionFailed, ChainError: see `Outbox.run`. What is on chain then stays, and the next
            call goes on from there.
    """
    incoming, outgoing = await find_channel(ledger, name)
    if incoming is not None:
        await settler.checkpoint()
        before = _open(await hub.channel(incoming.channel))
        await outbox.run(Finalize(payer=incoming.payer, payee=hub.account, signer=incoming.signer))
        after = await hub.channel(incoming.channel)
        await ledger.set_chain_in(
            incoming.channel,
            deposit_uusd=after.deposit_uusd,
            claimed_uusd=after.claimed_uusd,
            close_at_s=after.close_at_s,
        )
        return _closed(incoming.channel, "in", before, after)
    assert outgoing is not None
    channel, payee, signer = outgoing.channel, outgoing.payee, hub.account
    if channel_id(hub.account, payee, signer) != channel:
        raise ConfigError("another key than the account's signs on this channel; close it with a client of that key")
    await outbox.settle()
    before = _open(await hub.channel(channel))
    if not before.close_at_s:
        await outbox.run(RequestClose(payee=payee, signer=signer))
        before = await hub.channel(channel)
    if clock_ms() // 1000 < before.close_at_s:
        return ClosedChannel(
            channel=channel,
            direction="out",
            state="closing",
            close_at_s=before.close_at_s,
            refund_uusd=0,
            claimed_uusd=before.claimed_uusd,
        )
    await outbox.run(Finalize(payer=hub.account, payee=payee, signer=signer))
    after = await hub.channel(channel)
    await ledger.set_chain_out(channel, deposit_uusd=after.deposit_uusd, claimed_uusd=after.claimed_uusd)
    return _closed(channel, "out", before, after)


def _open(state: ChannelOnChain) -> ChannelOnChain:
    if state.deposit_uusd == state.claimed_uusd and not state.close_at_s:
        raise ConfigError("nothing is reserved on this channel, so there is nothing to close")
    return state


def _closed(
    channel: ChannelId, direction: Literal["in", "out"], before: ChannelOnChain, after: ChannelOnChain
) -> ClosedChannel:
    return ClosedChannel(
        channel=channel,
        direction=direction,
        state="closed",
        close_at_s=0,
        # A claim in between took its part first.
        refund_uusd=before.deposit_uusd - after.deposit_uusd,
        claimed_uusd=after.claimed_uusd,
    )
