"""An account's money: where it lies, bringing it in, claiming what was earned, and taking it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from p2pcompute.errors import ChainError, ConfigError, InsufficientFunds
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.money import usd

from ._api import ChannelIn, ChannelOutView, Hub, Withdraw
from ._closing import AskClose, ClosedChannel, ClosingLedger, close_channel
from ._outbox import Outbox
from ._settler import Settler

__all__ = ["Balances", "Wallet", "too_few_tokens", "too_little_free"]

_CLOSING_S: Final = 5.0
_AT_ONCE: Final = 4  # requests to the chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Balances:
    """Where an account's money lies, in micro-USD.

    Attributes:
        tokens_uusd: tokens of the account, outside of the hub.
        free_uusd: free balance at the hub: for channels, or to withdraw.
        reserved_uusd: in channels on which it pays, less what was claimed from them.
        promised_uusd: the part of that for which vouchers are signed.
        unclaimed_uusd: what the vouchers that it holds would bring now.
    """

    tokens_uusd: int
    free_uusd: int
    reserved_uusd: int
    promised_uusd: int
    unclaimed_uusd: int


class WalletLedger(ClosingLedger, Protocol):
    """What a wallet reads and writes on disk."""


class Wallet:
    """The money of one account: what `p2pcompute wallet` and its like do.

    Args:
        ledger: of the profile.
        hub: the account's view of the hub.
        outbox: the only sender of the account's transactions.
        settler: claims; it may be the running node's.
        clock_ms: UNIX time in milliseconds.
        ask: asks the payee of a channel to consent to its closing; None where it can't be asked.
        signers: other keys than the account's own that sign, or have signed, for it.
    """

    def __init__(
        self,
        *,
        ledger: WalletLedger,
        hub: Hub,
        outbox: Outbox,
        settler: Settler | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        ask: AskClose | None = None,
        signers: Sequence[Address] = (),
    ) -> None:
        self._ledger = ledger
        self._hub = hub
        self._outbox = outbox
        self._clock_ms = clock_ms
        self._ask = ask
        self._signers = tuple(signers)
        self._settler = settler or Settler(ledger=ledger, hub=hub, outbox=outbox, cap_uusd=0)

    @property
    def address(self) -> Address:
        """The account."""
        return self._hub.account

    async def balances(self) -> Balances:
        """Where the money lies, tokens and free balance read from the chain. Raises `ChainError`."""
        incoming, outgoing = await self.channels()
        return Balances(
            tokens_uusd=await self._hub.tokens_uusd(),
            free_uusd=await self._hub.free_uusd(),
            reserved_uusd=sum(row.deposit_uusd - row.claimed_uusd for row in outgoing),
            promised_uusd=sum(max(0, row.voucher_uusd - row.claimed_uusd) for row in outgoing),
            unclaimed_uusd=sum(row.unclaimed_uusd for row in incoming),
        )

    async def channels(self) -> tuple[list[ChannelIn], list[ChannelOutView]]:
        """Channels on which the account is paid, and those on which it pays, as the ledger has them."""
        return list(await self._ledger.channels_in()), list(await self._ledger.channels_out())

    async def closing(self) -> dict[ChannelId, int]:
        """The channels on which the account pays and whose close it has asked for: UNIX time from which each can be
        closed. The chain is asked, for 5 s at most; what it does not say is left out."""
        found: dict[ChannelId, int] = {}

        async def look(channel: ChannelId) -> None:
            with suppress(ChainError):
                async with at_once:
                    state = await self._hub.channel(channel)
                if state.close_at_s:
                    found[channel] = state.close_at_s

        at_once = trio.CapacityLimiter(_AT_ONCE)
        with trio.move_on_after(_CLOSING_S):
            async with trio.open_nursery() as nursery:
                for row in await self._ledger.channels_out():
                    if row.deposit_uusd > row.claimed_uusd:
                        nursery.start_soon(look, row.channel)
        return found

    async def reserved(self) -> list[ChannelOutView]:
        """The channels on which it pays and on which money is left, or whose closing is asked for, as the chain has
        them. Raises `ChainError`."""
        found: list[ChannelOutView] = []
        for row in await self._ledger.channels_out():
            state = await self._hub.channel(row.channel)
            if state.deposit_uusd > state.claimed_uusd or state.close_at_s:
                found.append(row)
        return found

    async def settle(self) -> int:
        """Claim on chain what vouchers are worth; channels stay open. What it brought, in micro-USD.

        Raises:
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`. Vouchers are kept either way.
        """
        before = await self._hub.free_uusd()
        claimed = await self._settler.checkpoint()
        return await self._hub.free_uusd() - before if claimed else 0

    async def fund(self, amount_uusd: int) -> Balances:
        """Bring tokens into the hub, as free balance for channels.

        Raises:
            InsufficientFunds: the account has fewer; nothing was sent.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        _positive(amount_uusd)
        tokens = await self._hub.tokens_uusd()
        if tokens < amount_uusd:
            raise too_few_tokens("0x" + self.address.hex(), tokens, amount_uusd)
        await self._outbox.deposit(amount_uusd)
        return await self.balances()

    async def close(self, name: str) -> ClosedChannel:
        """Close the channel whose ID begins with `name`, as far as the account can now; see `close_channel`.

        Raises:
            ConfigError: there is no such channel, or nothing on it to close.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        return await close_channel(
            name,
            ledger=self._ledger,
            hub=self._hub,
            outbox=self._outbox,
            settler=self._settler,
            clock_ms=self._clock_ms,
            ask=self._ask,
            signers=self._signers,
        )

    async def withdraw(self, to: Address, amount_uusd: int | None = None) -> int:
        """Take free balance out of the hub, as tokens of `to`. What was taken, in micro-USD.

        Args:
            to: who gets them.
            amount_uusd: how many; all that is free where None.

        Raises:
            InsufficientFunds: less is free; nothing was sent. What was earned is free once it is settled.
            ConfigError: nobody could use tokens there.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        account: object = to
        if not isinstance(account, bytes) or len(account) != 20:
            raise ConfigError(
                "tokens sent there would be lost: an account has 20 bytes; p2pcompute.control.parse_address makes them "
                "of 0x and 40 digits"
            )
        if amount_uusd is not None:
            _positive(amount_uusd)
        if not any(to) or to in (self._hub.terms.hub, self._hub.terms.token):
            raise ConfigError("tokens sent there would be lost; name an account of yours")
        free = await self._hub.free_uusd()
        amount_uusd = free if amount_uusd is None else amount_uusd
        if free < amount_uusd or not free:
            raise too_little_free(free, amount_uusd or None)
        await self._outbox.run(Withdraw(amount_uusd=amount_uusd, to=to))
        return amount_uusd


def too_few_tokens(account: str, tokens_uusd: int, amount_uusd: int) -> InsufficientFunds:
    """What to raise where an account lacks the tokens that are to be brought in."""
    return InsufficientFunds(
        f"{account} has {usd(tokens_uusd)} of tokens and {usd(amount_uusd)} were to be brought in; send tokens there "
        "first"
    )


def too_little_free(free_uusd: int, amount_uusd: int | None) -> InsufficientFunds:
    """What to raise where less is free at the hub than is to be withdrawn; None is all, of nothing."""
    if not free_uusd:
        return InsufficientFunds(
            "nothing is free at the hub, so nothing was withdrawn; what was earned is free after `p2pcompute settle`"
        )
    return InsufficientFunds(
        f"{usd(free_uusd)} are free at the hub and {usd(amount_uusd or free_uusd)} were to be withdrawn; what was "
        "earned is free after `p2pcompute settle`"
    )


def _positive(amount_uusd: int) -> None:
    given: object = amount_uusd
    if isinstance(given, bool) or not isinstance(given, int):
        raise ConfigError("amounts here are whole numbers of micro-USD; write 1_500_000 for 1.50 USD")
    if amount_uusd <= 0:
        raise ConfigError("an amount of at least 0.000001 USD is wanted, such as '1.50 USD'")
