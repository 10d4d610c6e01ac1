"""The hub over an endpoint: `HubClient` in the shape that payments ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pcompute.errors import ConfigError
from p2pcompute_protocols.ids import Address, ChannelId
from p2pcompute_protocols.money import ChainTerms

from ._api import Approve, ChannelOnChain, Claim, Deposit, Fund, HubCall, Outcome, Withdraw

if TYPE_CHECKING:
    from p2pcompute.chain import HubClient

__all__ = ["ChainHub"]


class ChainHub:
    """A `Hub` for one account whose private key is at hand.

    Args:
        client: an open hub client.
        terms: chain, hub and token; must be the client's.
        private_key: 32-byte secp256k1 secret of the account that signs transactions.

    Raises:
        ConfigError: `terms` are not the client's.
    """

    def __init__(self, client: HubClient, *, terms: ChainTerms, private_key: bytes) -> None:
        import coincurve

        from p2pcompute_protocols._evm import address_of_public_key

        if (terms.hub, terms.token) != (client.hub, client.token):
            raise ConfigError("the hub client is of another hub or token than the terms say")
        self._client = client
        self._terms = terms
        self._key = coincurve.PrivateKey(private_key)
        self._account = address_of_public_key(self._key.public_key)

    @property
    def terms(self) -> ChainTerms:
        """Chain, hub and token."""
        return self._terms

    @property
    def account(self) -> Address:
        """Whose money and nonces these are."""
        return self._account

    async def channel(self, channel: ChannelId) -> ChannelOnChain:
        """Where a channel stands."""
        state = await self._client.channel_state(channel)
        return ChannelOnChain(
            deposit_uusd=state.deposit_uusd, claimed_uusd=state.claimed_uusd, close_at_s=state.close_at_s
        )

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

    async def signing(self, call: HubCall) -> Callable[[int], tuple[bytes, bytes]]:
        """Estimate gas and fees; the function that comes back signs for a nonce."""
        import dataclasses

        from p2pcompute.chain import sign_transaction

        to, data = self._calldata(call)
        # The nonce does not count for gas, so it is put in when it is known.
        unsigned = await self._client.prepare(self._account, to, data, nonce=0)

        def sign(nonce: int) -> tuple[bytes, bytes]:
            signed = sign_transaction(dataclasses.replace(unsigned, nonce=nonce), self._key)
            return signed.hash, signed.raw

        return sign

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

    async def send(self, raw: bytes) -> None:
        """Broadcast signed bytes."""
        await self._client.send_raw(raw)

    async def outcome(self, tx_hash: bytes) -> Outcome | None:
        """What became of a transaction."""
        receipt = await self._client.receipt(tx_hash)
        if receipt is None:
            return None
        if not receipt.ok:
            return Outcome(ok=False)
        claims = self._client.decode_claims(receipt)
        return Outcome(ok=True, claimed=tuple((claim.channel, claim.claimed_uusd) for claim in claims))
