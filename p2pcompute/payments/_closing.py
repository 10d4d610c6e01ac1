"""Closing a channel: a payee does it at once, a payer with the payee's consent, or by a request and a day's wait."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from p2pcompute.errors import (
    ConfigError,
    OverlayError,
    PaymentError,
    RpcError,
    TransactionFailed,
)
from p2pcompute_protocols.channel import CloseConsent, channel_id
from p2pcompute_protocols.errors import ProtocolError
from p2pcompute_protocols.ids import Address, ChannelId

from ._api import (
    ChannelIn,
    ChannelOnChain,
    ChannelOutView,
    Claim,
    ClaimRow,
    CloseSigned,
    Finalize,
    Hub,
    PayeeLedger,
    RequestClose,
)
from ._outbox import Outbox
from ._settler import Settler

__all__ = ["AskClose", "ClosedChannel", "ClosingLedger", "close_channel", "find_channel", "named_channel"]

AskClose: TypeAlias = Callable[[ChannelOutView], Awaitable[tuple[CloseConsent, bytes]]]
"""Asks the payee of a channel for its consent; see `ChannelOut.ask_close`, whose errors it raises."""

_LEAST_DIGITS: Final = 8
_LEAST_LEFT_S: Final = 120  # of a consent: for a claim and a closing to be mined
_log = logging.getLogger("p2pcompute.payments")


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
        reason: why a closing one's payee did not consent to close it at once, where it was asked.
    """

    channel: ChannelId
    direction: Literal["in", "out"]
    state: Literal["closed", "closing"]
    close_at_s: int
    refund_uusd: int
    claimed_uusd: int
    reason: str = ""


class ClosingLedger(PayeeLedger, Protocol):
    """What closing reads and writes on disk."""

    async def channel_out(self, channel: ChannelId) -> ChannelOutView | None: ...
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
    ask: AskClose | None = None,
    signers: Sequence[Address] = (),
) -> ClosedChannel:
    """Close a channel, as far as its account can now.

    A channel on which the account is paid is claimed and closed at once. A voucher that comes in between the two is
    not lost, but waits for the channel to be funded again; a provider drains first. One on which it pays is closed at
    once where its payee consents: what is owed is paid and claimed for the payee first. Where it does not, or can't be
    asked, the first call asks the hub for what is left, and a call from a day later on gets it; vouchers count until
    then. New work that tops the channel up takes that request back.

    Args:
        name: see `find_channel`.
        ledger: of the profile.
        hub: the account's view of the hub.
        outbox: the only sender of the account's transactions.
        settler: claims.
        clock_ms: UNIX time in milliseconds.
        ask: asks the payee for its consent; None where it can't be asked.
        signers: other keys than the account's own that sign, or have signed, for it.

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
    channel, payee = outgoing.channel, outgoing.payee
    known = (hub.account, *signers)
    signer = next((key for key in known if channel_id(hub.account, payee, key) == channel), None)
    if signer is None:
        raise ConfigError("another key than the account's signs on this channel; close it with a client of that key")
    earlier = await hub.channel(channel)
    await outbox.settle()
    before = await hub.channel(channel)
    if _is_open(earlier) and not _is_open(before):  # a closing of ours was under way, and is done by now
        await ledger.set_chain_out(channel, deposit_uusd=before.deposit_uusd, claimed_uusd=before.claimed_uusd)
        return _closed(channel, "out", earlier, before)
    before = _open(before)
    reason = ""
    if ask is not None and not 0 < before.close_at_s <= clock_ms() // 1000:
        agreed = await _close_agreed(
            outgoing, signer, before, ledger=ledger, hub=hub, outbox=outbox, clock_ms=clock_ms, ask=ask
        )
        if isinstance(agreed, ClosedChannel):
            return agreed
        reason = agreed
        _log.info("the channel %s is not closed at once: %s", channel.hex()[:8], reason)
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
            reason=reason,
        )
    await outbox.run(Finalize(payer=hub.account, payee=payee, signer=signer))
    after = await hub.channel(channel)
    await ledger.set_chain_out(channel, deposit_uusd=after.deposit_uusd, claimed_uusd=after.claimed_uusd)
    return _closed(channel, "out", before, after)


async def _close_agreed(
    row: ChannelOutView,
    signer: Address,
    before: ChannelOnChain,
    *,
    ledger: ClosingLedger,
    hub: Hub,
    outbox: Outbox,
    clock_ms: Callable[[], int],
    ask: AskClose,
) -> ClosedChannel | str:
    """Close a channel with its payee's consent; why not, where there is none that is of use."""
    channel, payee = row.channel, row.payee
    try:
        consent, signature = await ask(row)
    except (PaymentError, OverlayError, ProtocolError) as exc:
        return str(exc) or type(exc).__name__
    if consent.epoch != await hub.epoch(channel) or consent.deadline_s - clock_ms() // 1000 < _LEAST_LEFT_S:
        return "its consent is of no use, it is for another time"
    row = await ledger.channel_out(channel) or row  # what was owed was paid before the consent
    try:
        if before.claimed_uusd < consent.amount_uusd:
            # The hub wants the payee to have its money first; anyone may bring it.
            if row.memo is None or row.signature is None:
                return "it says that more was paid than this ledger knows of"
            claim = ClaimRow(
                payer=hub.account,
                signer=signer,
                amount_uusd=row.voucher_uusd,
                memo=row.memo,
                signature=row.signature,
            )
            await outbox.run(Claim(payee=payee, rows=(claim,)))
        await outbox.run(
            CloseSigned(
                payer=hub.account,
                payee=payee,
                signer=signer,
                epoch=consent.epoch,
                amount_uusd=consent.amount_uusd,
                deadline_s=consent.deadline_s,
                signature=signature,
            )
        )
    except (TransactionFailed, RpcError) as exc:
        return f"the hub does not close it at once: {exc}"
    after = await hub.channel(channel)
    await ledger.set_chain_out(channel, deposit_uusd=after.deposit_uusd, claimed_uusd=after.claimed_uusd)
    return _closed(channel, "out", before, after)


def _is_open(state: ChannelOnChain) -> bool:
    return state.deposit_uusd != state.claimed_uusd or state.close_at_s != 0


def _open(state: ChannelOnChain) -> ChannelOnChain:
    if not _is_open(state):
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
