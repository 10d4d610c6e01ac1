"""An account's stake: putting it in, asking for it back, and where it stands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from p2pcompute.chain import (
    encode_allow,
    encode_approve,
    encode_declare,
    encode_request_unstake,
    encode_set_receipt_key,
    encode_stake,
    encode_stake_withdraw,
    encode_unstake,
    receipt_key_digest,
)
from p2pcompute.errors import ConfigError, InsufficientFunds
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import usd

from ._registry import Registry

__all__ = ["AccountCalls", "KeySigner", "StakeStatus", "Staking"]


class KeySigner(Protocol):
    """A secp256k1 key; `WalletKey` is one."""

    address: Address

    def sign_digest(self, digest: bytes) -> bytes: ...


class AccountCalls(Protocol):
    """What an account can do on its chain."""

    @property
    def account(self) -> Address: ...
    async def tokens_uusd(self) -> int: ...
    async def call(self, to: Address, data: bytes) -> None:
        """Send a transaction and wait until it is mined; see `Outbox.run` for errors."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeStatus:
    """Where an account's stake stands; amounts in micro-USD.

    Attributes:
        registry: the contract.
        stake_uusd: all that it can lose.
        leaving_uusd: how much of it is on its way out; `leave_at_s` is the UNIX time from which that can be taken.
        credit_uusd: what is neither: taken out already, or gained by proofs. `unstake` brings it home.
        min_stake_uusd: the least stake that counts, and `cap_uusd` the most that this account may have.
        active: whether what stays comes to the minimum.
        receipt_key: the key that signs for the account on this machine; None where the registry knows none.
        at_risk_uusd: what verdicts can still take on that key's word.
        burned_uusd: of all stakes, what was taken and paid to nobody.
    """

    registry: Address
    stake_uusd: int
    leaving_uusd: int
    leave_at_s: int
    credit_uusd: int
    min_stake_uusd: int
    cap_uusd: int
    active: bool
    receipt_key: Address | None
    at_risk_uusd: int
    burned_uusd: int


@dataclass(slots=True, kw_only=True)
class Staking:
    """The stake of one account.

    Attributes:
        registry: where.
        account: whose, and how its transactions are sent.
        receipt_key: signs terms and receipts in its place, on this machine.
        now_s: the chain's time, UNIX seconds: what a block made now would have.
        provide: sees that so many micro-USD of tokens are there, as a faucet does; None where the owner sends them.
    """

    registry: Registry
    account: AccountCalls
    receipt_key: KeySigner
    now_s: Callable[[], Awaitable[int]]
    provide: Callable[[int], Awaitable[None]] | None = None

    async def status(self) -> StakeStatus:
        """Where it stands, read from the chain. Raises `ChainError`."""
        registry, owner = self.registry, self.account.account
        state = await registry.state(owner)
        key = await registry.receipt_key(owner)
        return StakeStatus(
            registry=registry.address,
            stake_uusd=state.stake_uusd,
            leaving_uusd=state.leaving_uusd,
            leave_at_s=state.leave_at_s,
            credit_uusd=await registry.credit_uusd(owner),
            min_stake_uusd=registry.place.min_stake_uusd,
            cap_uusd=await registry.cap_uusd(owner),
            active=await registry.is_active(owner),
            receipt_key=key,
            at_risk_uusd=0 if key is None else await registry.allowance_uusd(key),
            burned_uusd=await registry.burned_uusd(),
        )

    async def stake(self, amount_uusd: int, *, cores: int | None = None) -> StakeStatus:
        """Add to the stake, register this machine's receipt key, and let verdicts on its word take all of the stake.

        What an earlier call that was cut off has done is not done again, but for the stake itself: read `status`.

        Args:
            amount_uusd: how much is added.
            cores: how many reference cores the account offers; its stake is capped by that. What it has declared
                before where None.

        Raises:
            ConfigError: below the minimum, or above the cap; says what would do. Nothing was sent.
            InsufficientFunds: the account has too few tokens. Nothing was sent.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        registry, owner = self.registry, self.account.account
        if amount_uusd <= 0:
            raise ConfigError("a stake is of at least 0.000001 USD, such as '100 USD'")
        if cores is not None and not 0 <= cores < 2**64:
            raise ConfigError(f"cores is {cores}; write a number of reference cores")
        state = await registry.state(owner)
        total, least = state.stake_uusd + amount_uusd, registry.place.min_stake_uusd
        if total - state.leaving_uusd < least:
            raise ConfigError(
                f"the least stake is {usd(least)} and {usd(total - state.leaving_uusd)} would count; stake more"
            )
        cap = await registry.cap_uusd(owner)
        if cores is not None:
            cap = max(least, cores * registry.place.per_core_uusd)
        if total > cap:
            wanted = -(-total // max(1, registry.place.per_core_uusd))
            raise ConfigError(
                f"a stake of {usd(total)} is above the cap of {usd(cap)}, which follows the reference cores that the "
                f"account declares; declare {wanted} (--cores {wanted}), or stake less"
            )
        if self.provide is not None:
            await self.provide(amount_uusd)
        tokens = await self.account.tokens_uusd()
        if tokens < amount_uusd:
            raise InsufficientFunds(
                f"0x{owner.hex()} has {usd(tokens)} of tokens and {usd(amount_uusd)} were to be staked; send tokens "
                "there first. Nothing was spent"
            )
        if cores is not None and cap != await registry.cap_uusd(owner):
            await self.account.call(registry.address, encode_declare(cores))
        await self.account.call(Address(registry.chain.token), encode_approve(registry.address, amount_uusd))
        await self.account.call(registry.address, encode_stake(amount_uusd))
        key = self.receipt_key
        if await registry.receipt_key(owner) != key.address:
            signature = key.sign_digest(receipt_key_digest(registry.domain, owner))
            await self.account.call(registry.address, encode_set_receipt_key(key.address, signature))
        if await registry.allowance_uusd(key.address) < total:
            await self.account.call(registry.address, encode_allow(key.address, total))
        return await self.status()

    async def unstake(self, amount_uusd: int | None = None) -> StakeStatus:
        """Take the next step on the way out: bring home what has left, else take out what was asked for and is due,
        else ask for `amount_uusd`.

        Args:
            amount_uusd: how much is to leave; all that stays where None. Only counts where the step is to ask.

        Raises:
            ConfigError: there is nothing to take, or not yet, or what would stay is below the minimum.
            SettlementPending, TransactionFailed, ChainError: see `Outbox.run`.
        """
        registry, owner = self.registry, self.account.account
        state = await registry.state(owner)
        staying = state.stake_uusd - state.leaving_uusd
        now_s = await self.now_s()
        due = state.leaving_uusd > 0 and now_s >= state.leave_at_s
        if due:
            await self.account.call(registry.address, encode_unstake())
        credit = await registry.credit_uusd(owner)
        if credit:
            await self.account.call(registry.address, encode_stake_withdraw(credit, owner))
        if due or credit:
            return await self.status()
        if not staying or (amount_uusd is None and state.leaving_uusd):
            raise ConfigError(
                "nothing is staked, so nothing can be taken out"
                if not state.leaving_uusd
                else f"{usd(state.leaving_uusd)} are on their way out; run this again from "
                f"{_moment(state.leave_at_s)} on. Until then they can be lost"
            )
        amount_uusd = staying if amount_uusd is None else amount_uusd
        left = staying - amount_uusd
        if amount_uusd <= 0 or left < 0 or 0 < left < registry.place.min_stake_uusd:
            raise ConfigError(
                f"{usd(staying)} are staked; take out all of it, or leave at least {usd(registry.place.min_stake_uusd)}"
            )
        await self.account.call(registry.address, encode_request_unstake(amount_uusd))
        return await self.status()


def _moment(at_s: int) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"
