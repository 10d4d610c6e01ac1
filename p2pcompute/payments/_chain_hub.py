"""The hub over an endpoint: `HubClient` in the shape that payments ask for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from p2pcompute.errors import ConfigError, RpcError
from p2pcompute_protocols.channel import CloseConsent, channel_id
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.money import ChainTerms

from ._api import (
    Approve,
    ChannelOnChain,
    Claim,
    CloseSigned,
    ContractCall,
    Deposit,
    Finalize,
    Fund,
    GasQuote,
    HubCall,
    Outcome,
    RequestClose,
    Withdraw,
)
from ._confirmations import AT_ONCE, Confirmations

if TYPE_CHECKING:
    from p2pcompute.chain import Head, HubClient

__all__ = ["ChainHub"]

_LEAST_RISE_PERCENT: Final = 13  # nodes take a second transaction for a nonce from 10 % more on, some from 12.5 %
_log = logging.getLogger("p2pcompute.payments")


class ChainHub:
    """A `Hub` for one account whose private key is at hand. Also a `ConfirmingHub`, a `FeeRaiser` and a `GasMeter`.

    Args:
        client: an open hub client.
        terms: chain, hub and token; must be the client's.
        private_key: 32-byte secp256k1 secret of the account that signs transactions.
        confirmations: how deep money has to lie before it counts.
        free_gas: gas is not worth a thought, as on a development chain.
        clock_ms: UNIX time in milliseconds; what the age of blocks is held against.

    Raises:
        ConfigError: `terms` are not the client's.
    """

    def __init__(
        self,
        client: HubClient,
        *,
        terms: ChainTerms,
        private_key: bytes,
        confirmations: Confirmations = AT_ONCE,
        free_gas: bool = True,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        import coincurve

        from p2pcompute_protocols._evm import address_of_public_key

        if (terms.hub, terms.token) != (client.hub, client.token):
            raise ConfigError("the hub client is of another hub or token than the terms say")
        self._client = client
        self._terms = terms
        self._key = coincurve.PrivateKey(private_key)
        self._account = address_of_public_key(self._key.public_key)
        self._confirmations = confirmations
        self._free_gas = free_gas
        self._clock_ms = clock_ms
        self._highest = 0

    @property
    def terms(self) -> ChainTerms:
        """Chain, hub and token."""
        return self._terms

    @property
    def account(self) -> Address:
        """Whose money and nonces these are."""
        return self._account

    async def channel(self, channel: ChannelId) -> ChannelOnChain:
        """Where a channel stands in the newest block."""
        state = await self._client.channel_state(channel)
        return ChannelOnChain(
            deposit_uusd=state.deposit_uusd, claimed_uusd=state.claimed_uusd, close_at_s=state.close_at_s
        )

    async def confirmed_channel(self, channel: ChannelId) -> ChannelOnChain:
        """The same for its payee: of a deposit that is new only a part counts yet; see `Confirmations`.

        Raises:
            HeadOutOfLine: the endpoint's newest block is old, or far behind one that it has shown before.
        """
        head, state = await self._client.newest_channel_state(channel)
        self._see(head)
        deposit = state.deposit_uusd
        depths = self._confirmations.depths
        if self._confirmations.needed(state.open_uusd) > 1:
            older = await self._client.channel_history(channel, [max(0, head.number - depth + 1) for depth in depths])
            # A block may have been taken back meanwhile, so the newest is no more than any other.
            deposit = self._confirmations.counted(
                [min(deposit, then.deposit_uusd) for then in older], min(then.claimed_uusd for then in older)
            )
        return ChannelOnChain(
            deposit_uusd=max(deposit, state.claimed_uusd),
            claimed_uusd=state.claimed_uusd,
            close_at_s=state.close_at_s,
        )

    async def epoch(self, channel: ChannelId) -> int:
        """How often a channel was closed, in the newest block."""
        return await self._client.channel_epoch(channel)

    async def confirmed_epoch(self, channel: ChannelId) -> int:
        """The same, as deep in the chain as a deposit has to lie to count in full.

        Raises:
            HeadOutOfLine: as `confirmed_channel`.
        """
        if self._confirmations.whole == 1:
            return await self._client.channel_epoch(channel)
        head = await self._client.head()
        self._see(head)
        return await self._client.channel_epoch(channel, block=max(0, head.number - self._confirmations.whole + 1))

    def _see(self, head: Head) -> None:
        """Hold an endpoint's head against the clock and against what it said before."""
        from p2pcompute.chain import HeadOutOfLine

        policy = self._confirmations
        age_s = self._clock_ms() // 1000 - head.timestamp_s
        if policy.head_age_s is not None and age_s > policy.head_age_s:
            raise HeadOutOfLine(
                f"the newest block of the endpoint, {head.number}, is {age_s} s old: it has stopped to follow its "
                "chain, or this machine's clock is wrong; use another endpoint with --chain"
            )
        if policy.head_back is not None and head.number < self._highest - policy.head_back:
            raise HeadOutOfLine(
                f"the endpoint's newest block is {head.number}, and it has shown {self._highest} before; use another "
                "endpoint with --chain"
            )
        self._highest = max(self._highest, head.number)

    async def free_uusd(self) -> int:
        """The account's free balance at the hub."""
        return await self._client.balance_uusd(self._account)

    async def tokens_uusd(self) -> int:
        """The account's tokens."""
        return await self._client.token_balance_uusd(self._account)

    async def allowance_uusd(self) -> int:
        """How many of them the hub may take."""
        return await self._client.allowance_uusd(self._account)

    async def nonce(self) -> int:
        """The account's count of mined transactions."""
        return await self._client.nonce(self._account)

    async def gas_quote(self) -> GasQuote | None:
        """What gas costs now and has usually cost; None where it is not worth a thought."""
        if self._free_gas:
            return None
        fees, usual_wei = await self._client.fees_and_usual()
        return GasQuote(fee_wei=fees.base_wei + fees.priority_wei, usual_wei=usual_wei + fees.priority_wei)

    async def signing(self, call: HubCall) -> Callable[[int], tuple[bytes, bytes]]:
        """Estimate gas and fees; the function that comes back signs for a nonce.

        Raises:
            NoGas: the account can't pay for it.
        """
        import dataclasses

        from p2pcompute.chain import sign_transaction

        to, data = self._calldata(call)
        # The nonce does not count for gas, so it is put in when it is known.
        try:
            unsigned = await self._client.prepare(self._account, to, data, nonce=0)
        except RpcError as exc:
            if (no_gas := self._client.no_gas(self._account, exc)) is not None:
                raise no_gas from exc
            raise

        def sign(nonce: int) -> tuple[bytes, bytes]:
            signed = sign_transaction(dataclasses.replace(unsigned, nonce=nonce), self._key)
            return signed.hash, signed.raw

        return sign

    async def raised(self, raw: bytes) -> tuple[bytes, bytes] | None:
        """The same transaction at a higher fee; None where it pays enough as it is."""
        import dataclasses

        from p2pcompute.chain import decode_transaction, sign_transaction

        tx = decode_transaction(raw)
        fees = await self._client.fees()
        if tx.max_fee_wei >= fees.base_wei + min(tx.priority_fee_wei, fees.priority_wei):
            return None
        least = 100 + _LEAST_RISE_PERCENT
        priority_wei = max(fees.priority_wei, -(-tx.priority_fee_wei * least // 100))
        higher = dataclasses.replace(
            tx,
            max_fee_wei=max(fees.max_wei, -(-tx.max_fee_wei * least // 100), priority_wei),
            priority_fee_wei=priority_wei,
        )
        _log.warning("gas costs more than a transaction under way pays; it is sent again at a higher fee")
        signed = sign_transaction(higher, self._key)
        return signed.hash, signed.raw

    def _calldata(self, call: HubCall) -> tuple[Address, bytes]:
        from p2pcompute import chain

        match call:
            case Approve():
                return self._client.token, chain.encode_approve(self._client.hub, call.amount_uusd)
            case Deposit():
                return self._client.hub, chain.encode_deposit(call.amount_uusd, self._account)
            case Fund():
                funds = [
                    chain.FundRow(payee=row.payee, signer=row.signer, amount_uusd=row.amount_uusd) for row in call.rows
                ]
                return self._client.hub, chain.encode_fund(funds)
            case Claim():
                claims = [
                    chain.ClaimRow(
                        payer=row.payer,
                        signer=row.signer,
                        amount_uusd=row.amount_uusd,
                        memo=row.memo,
                        signature=row.signature,
                    )
                    for row in call.rows
                ]
                return self._client.hub, chain.encode_claim(call.payee, claims)
            case Withdraw():
                return self._client.hub, chain.encode_withdraw(call.amount_uusd, call.to)
            case RequestClose():
                return self._client.hub, chain.encode_request_close(call.payee, call.signer)
            case Finalize():
                return self._client.hub, chain.encode_finalize(call.payer, call.payee, call.signer)
            case CloseSigned():
                consent = CloseConsent(
                    channel=channel_id(call.payer, call.payee, call.signer),
                    epoch=call.epoch,
                    amount_uusd=call.amount_uusd,
                    deadline_s=call.deadline_s,
                )
                return self._client.hub, chain.encode_close_signed(
                    consent, call.signature, payer=call.payer, payee=call.payee, signer=call.signer
                )
            case ContractCall():
                return call.to, call.data

    async def send(self, raw: bytes) -> None:
        """Broadcast signed bytes. That the endpoint keeps them isn't said: it does not while they pay too little.

        Raises:
            NoGas: the account can't pay for them.
        """
        from p2pcompute.chain import FeeTooLow

        try:
            await self._client.send_raw(raw)
        except FeeTooLow as exc:
            _log.info("a transaction waits on disk until fees come down, or it is sent again at a higher one: %s", exc)
        except RpcError as exc:
            if (no_gas := self._client.no_gas(self._account, exc)) is not None:
                raise no_gas from exc
            raise

    async def outcome(self, tx_hash: bytes) -> Outcome | None:
        """What became of a transaction."""
        if self._confirmations.whole == 1:
            receipt, depth = await self._client.receipt(tx_hash), 1
        else:
            receipt, depth = await self._client.receipt_and_depth(tx_hash)
        if receipt is None:
            return None
        final = depth >= self._confirmations.whole
        if not receipt.ok:
            return Outcome(ok=False, final=final)
        claims = self._client.decode_claims(receipt)
        return Outcome(ok=True, claimed=tuple((claim.channel, claim.claimed_uusd) for claim in claims), final=final)
