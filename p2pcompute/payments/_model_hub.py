"""The hub's rules in Python, for simulations: no EVM, no endpoint, no waiting.

It keeps to `ChannelHub.vy` in what payments use of it: balances, channels, vouchers that are checked by signature,
batches that skip bad rows, and nonces. A test runs the same operations on both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any, Final

import cbor2
import trio

from p2pcompute.errors import TransactionFailed
from p2pcompute_protocols.channel import (
    CloseConsent,
    Domain,
    Voucher,
    channel_id,
    recover_closer,
    recover_signer,
)
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.money import ChainTerms

from ._api import (
    Approve,
    ChannelOnChain,
    Claim,
    ClaimRow,
    CloseSigned,
    ContractCall,
    Deposit,
    Finalize,
    Fund,
    FundRow,
    HubCall,
    Outcome,
    RequestClose,
    Withdraw,
)

__all__ = ["ModelChain", "ModelHub"]

_CALLS: Final = {
    call.__name__.lower(): call
    for call in (Approve, Deposit, Fund, Claim, Withdraw, RequestClose, Finalize, CloseSigned, ContractCall)
}
CLOSE_DELAY_S: Final = 86_400  # the hub's
_ZERO: Final = ChannelOnChain(deposit_uusd=0, claimed_uusd=0, close_at_s=0)


class _Revert(Exception):
    """A transaction that has no effect."""


class ModelChain:
    """A chain with one hub and one token.

    Args:
        terms: chain, hub and token.
        clock_ms: UNIX time in milliseconds.

    Attributes:
        terms: chain, hub and token.
        mines: whether transactions are mined as they come; False keeps them until `mine`.
        tokens, allowances, free: by account, in micro-USD.
        channels: by channel ID.
        epochs: by channel ID, how often it was closed.
    """

    def __init__(self, terms: ChainTerms, *, clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self.terms = terms
        self.clock_ms = clock_ms
        self.mines = True
        self.tokens: dict[Address, int] = {}
        self.allowances: dict[Address, int] = {}
        self.free: dict[Address, int] = {}
        self.channels: dict[ChannelId, ChannelOnChain] = {}
        self.epochs: dict[ChannelId, int] = {}
        self.nonces: dict[Address, int] = {}
        self._pool: dict[bytes, bytes] = {}
        self._outcomes: dict[bytes, Outcome] = {}

    def hub(self, account: Address) -> ModelHub:
        """The hub as `account` sees it."""
        return ModelHub(self, account)

    def mint(self, account: Address, amount_uusd: int) -> None:
        """Give an account tokens."""
        self.tokens[account] = self.tokens.get(account, 0) + amount_uusd

    def total_uusd(self) -> int:
        """All money there is: it only changes by `mint`."""
        reserved = sum(state.deposit_uusd - state.claimed_uusd for state in self.channels.values())
        return sum(self.tokens.values()) + sum(self.free.values()) + reserved

    def submit(self, raw: bytes) -> None:
        """Take a transaction; the same bytes again change nothing."""
        tx_hash = hashlib.sha256(raw).digest()
        if tx_hash in self._outcomes or tx_hash in self._pool:
            return
        account, nonce = _decode(raw)[:2]
        if nonce < self.nonces.get(account, 0):
            raise TransactionFailed("another transaction has used this one's nonce; make it anew")
        self._pool[tx_hash] = raw
        if self.mines:
            self.mine()

    def mine(self) -> None:
        """Run what waits, in nonce order; a gap keeps the rest waiting."""
        progress = True
        while progress:
            progress = False
            for tx_hash, raw in list(self._pool.items()):
                account, nonce, call = _decode(raw)
                if nonce == self.nonces.get(account, 0):
                    del self._pool[tx_hash]
                    self.nonces[account] = nonce + 1
                    self._outcomes[tx_hash] = self._run(account, call)
                    progress = True

    def outcome(self, tx_hash: bytes) -> Outcome | None:
        """What became of a transaction."""
        return self._outcomes.get(tx_hash)

    def _run(self, account: Address, call: HubCall) -> Outcome:
        try:
            match call:
                case Approve():
                    self.allowances[account] = call.amount_uusd
                case Deposit():
                    self._deposit(account, call.amount_uusd)
                case Fund():
                    self._fund(account, call.rows)
                case Claim():
                    return Outcome(ok=True, claimed=self._claim(call))
                case Withdraw():
                    self._withdraw(account, call)
                case RequestClose():
                    self._request_close(channel_id(account, call.payee, call.signer))
                case Finalize():
                    self._finalize(account, call)
                case CloseSigned():
                    self._close_signed(call)
                case ContractCall():
                    raise _Revert  # there is no other contract here
        except _Revert:
            return Outcome(ok=False)
        return Outcome(ok=True)

    def _deposit(self, account: Address, amount: int) -> None:
        if self.tokens.get(account, 0) < amount or self.allowances.get(account, 0) < amount:
            raise _Revert
        self.tokens[account] -= amount
        self.allowances[account] -= amount
        self.free[account] = self.free.get(account, 0) + amount

    def _withdraw(self, account: Address, call: Withdraw) -> None:
        if not any(call.to) or call.to == self.terms.hub or self.free.get(account, 0) < call.amount_uusd:
            raise _Revert
        self.free[account] -= call.amount_uusd
        self.tokens[call.to] = self.tokens.get(call.to, 0) + call.amount_uusd

    def _fund(self, account: Address, rows: tuple[FundRow, ...]) -> None:
        total = sum(row.amount_uusd for row in rows)
        if any(not any(row.payee) or not any(row.signer) for row in rows):
            raise _Revert
        if self.free.get(account, 0) < total:
            raise _Revert
        self.free[account] -= total
        for row in rows:
            channel = channel_id(account, row.payee, row.signer)
            state = self.channels.get(channel, _ZERO)
            self.channels[channel] = dataclasses.replace(
                state, deposit_uusd=state.deposit_uusd + row.amount_uusd, close_at_s=0
            )

    def _request_close(self, channel: ChannelId) -> None:
        state = self.channels.get(channel, _ZERO)
        if state.deposit_uusd == state.claimed_uusd or state.close_at_s:
            raise _Revert
        close_at_s = self.clock_ms() // 1000 + CLOSE_DELAY_S
        self.channels[channel] = dataclasses.replace(state, close_at_s=close_at_s)

    def _finalize(self, account: Address, call: Finalize) -> None:
        channel = channel_id(call.payer, call.payee, call.signer)
        state = self.channels.get(channel, _ZERO)
        if state.deposit_uusd == state.claimed_uusd and not state.close_at_s:
            raise _Revert
        if account != call.payee and not 0 < state.close_at_s <= self.clock_ms() // 1000:
            raise _Revert
        self._close(channel, call.payer, state)

    def _close_signed(self, call: CloseSigned) -> None:
        channel = channel_id(call.payer, call.payee, call.signer)
        state = self.channels.get(channel, _ZERO)
        if state.deposit_uusd == state.claimed_uusd and not state.close_at_s:
            raise _Revert
        if self.clock_ms() // 1000 > call.deadline_s or state.claimed_uusd < call.amount_uusd:
            raise _Revert
        # Whatever epoch the caller says, the one that counts is the channel's.
        consent = CloseConsent(
            channel=channel,
            epoch=self.epochs.get(channel, 0),
            amount_uusd=call.amount_uusd,
            deadline_s=call.deadline_s,
        )
        try:
            good = recover_closer(self._domain, consent, call.signature) == call.payee
        except LocalProtocolError:
            good = False
        if not good:
            raise _Revert
        self._close(channel, call.payer, state)

    @property
    def _domain(self) -> Domain:
        return Domain(chain_id=self.terms.chain_id, contract=Address(self.terms.hub))

    def _close(self, channel: ChannelId, payer: Address, state: ChannelOnChain) -> None:
        refund = state.deposit_uusd - state.claimed_uusd
        self.free[payer] = self.free.get(payer, 0) + refund
        self.epochs[channel] = self.epochs.get(channel, 0) + 1
        self.channels[channel] = ChannelOnChain(
            deposit_uusd=state.claimed_uusd, claimed_uusd=state.claimed_uusd, close_at_s=0
        )

    def _claim(self, call: Claim) -> tuple[tuple[ChannelId, int], ...]:
        claimed: list[tuple[ChannelId, int]] = []
        for row in call.rows:
            channel = channel_id(row.payer, call.payee, row.signer)
            state = self.channels.get(channel, _ZERO)
            total = min(row.amount_uusd, state.deposit_uusd)
            if total <= state.claimed_uusd or not _signed(self._domain, channel, row):
                continue
            self.free[call.payee] = self.free.get(call.payee, 0) + total - state.claimed_uusd
            self.channels[channel] = dataclasses.replace(state, claimed_uusd=total)
            claimed.append((channel, total))
        return tuple(claimed)


def _signed(domain: Domain, channel: ChannelId, row: ClaimRow) -> bool:
    try:
        voucher = Voucher(channel=channel, amount_uusd=row.amount_uusd, memo=row.memo)
        return recover_signer(domain, voucher, row.signature) == row.signer
    except LocalProtocolError:
        return False


def _encode(account: Address, nonce: int, call: HubCall) -> bytes:
    fields: dict[str, Any] = dataclasses.asdict(call)
    return cbor2.dumps([account, nonce, type(call).__name__.lower(), fields], canonical=True)


def _decode(raw: bytes) -> tuple[Address, int, HubCall]:
    account, nonce, kind, fields, *_fee = cbor2.loads(raw)  # which this chain doesn't look at
    if kind in ("fund", "claim"):
        row_type = FundRow if kind == "fund" else ClaimRow
        fields["rows"] = tuple(row_type(**row) for row in fields["rows"])
    return Address(account), nonce, _CALLS[kind](**fields)


class ModelHub:
    """A `Hub` on a `ModelChain`."""

    def __init__(self, chain: ModelChain, account: Address) -> None:
        self._chain = chain
        self._account = account

    @property
    def terms(self) -> ChainTerms:
        """Chain, hub and token."""
        return self._chain.terms

    @property
    def account(self) -> Address:
        """Whose money and nonces these are."""
        return self._account

    async def channel(self, channel: ChannelId) -> ChannelOnChain:
        """Where a channel stands."""
        await trio.lowlevel.checkpoint()
        return self._chain.channels.get(channel, _ZERO)

    async def epoch(self, channel: ChannelId) -> int:
        """How often a channel was closed."""
        await trio.lowlevel.checkpoint()
        return self._chain.epochs.get(channel, 0)

    async def free_uusd(self) -> int:
        """The account's free balance at the hub."""
        await trio.lowlevel.checkpoint()
        return self._chain.free.get(self._account, 0)

    async def tokens_uusd(self) -> int:
        """The account's tokens."""
        await trio.lowlevel.checkpoint()
        return self._chain.tokens.get(self._account, 0)

    async def allowance_uusd(self) -> int:
        """How many of them the hub may take."""
        await trio.lowlevel.checkpoint()
        return self._chain.allowances.get(self._account, 0)

    async def nonce(self) -> int:
        """The account's count of mined transactions."""
        await trio.lowlevel.checkpoint()
        return self._chain.nonces.get(self._account, 0)

    async def signing(self, call: HubCall) -> Callable[[int], tuple[bytes, bytes]]:
        """A function from nonce to (hash, bytes)."""
        await trio.lowlevel.checkpoint()

        def sign(nonce: int) -> tuple[bytes, bytes]:
            raw = _encode(self._account, nonce, call)
            return hashlib.sha256(raw).digest(), raw

        return sign

    async def send(self, raw: bytes) -> None:
        """Broadcast."""
        await trio.lowlevel.checkpoint()
        self._chain.submit(raw)

    async def outcome(self, tx_hash: bytes) -> Outcome | None:
        """What became of a transaction."""
        await trio.lowlevel.checkpoint()
        return self._chain.outcome(tx_hash)
