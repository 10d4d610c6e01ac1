"""Where an account's money comes from: a development chain's faucet, or its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2pcompute.errors import ChainError, InsufficientFunds
from p2pcompute_protocols.money import usd

if TYPE_CHECKING:
    from p2pcompute._chain_choice import ConnectedChain
    from p2pcompute.identity import WalletKey
    from p2pcompute.storage import Ledger

__all__ = ["AccountFunds", "coins", "in_channels_uusd"]

_GAS_WEI: Final = 10**17  # below this a development account is filled up
_GAS_GIFT_WEI: Final = 10**18
# benchmarks/hub_gas.py, with a fifth on top: claim of one row 70,000; approve 46,000, deposit 85,000, fund 57,000.
_CLAIM_GAS: Final = 85_000
_PAY_GAS: Final = 230_000


def coins(wei: int) -> str:
    """An amount of a chain's own coin, for people."""
    return f"{wei / 10**18:.9f}".rstrip("0").rstrip(".") or "0"


async def in_channels_uusd(ledger: Ledger) -> int:
    """What outgoing channels hold for work to come, all together, as far as the ledger knows; in micro-USD."""
    rows = await ledger.channels_out()
    return sum(max(0, row.deposit_uusd - max(row.accepted_uusd, row.claimed_uusd)) for row in rows)


class AccountFunds:
    """Sees that an account has what it is going to need. Give `ensure` to whoever is going to spend.

    Args:
        chain: where.
        wallet: whose.
        ledger: the account's; what its channels hold already needn't come in again.
    """

    def __init__(self, chain: ConnectedChain, wallet: WalletKey, ledger: Ledger) -> None:
        self._chain = chain
        self._wallet = wallet
        self._ledger = ledger

    async def ensure(self, amount_uusd: int) -> None:
        """See that there is gas, and `amount_uusd` of tokens or free balance: 0 for somebody that only claims.

        A development chain's faucet gives what is missing. On any other chain the owner has to send it, and is told
        where.

        Raises:
            InsufficientFunds: too little is there; nothing was sent.
            ChainError: the endpoint.
        """
        if self._chain.place.development:
            await self._from_faucet(amount_uusd)
        else:
            await self._from_owner(amount_uusd)

    async def _from_faucet(self, amount_uusd: int) -> None:
        from p2pcompute.chain import faucet

        hub, account = self._chain.hub, self._wallet.address
        held = await hub.holdings(account)
        wei = held.wei
        missing = max(0, amount_uusd - held.token_uusd - held.free_uusd)
        if wei >= _GAS_WEI and not missing:
            return
        try:
            await faucet(self._chain.rpc, account, wei=0 if wei >= _GAS_WEI else _GAS_GIFT_WEI, token_uusd=missing)
        except ChainError as exc:
            raise InsufficientFunds(
                f"the wallet 0x{account.hex()} lacks {usd(missing)} and the chain's faucet gives none: {exc}"
            ) from exc

    async def _from_owner(self, amount_uusd: int) -> None:
        place, hub, account = self._chain.place, self._chain.hub, self._wallet.address
        in_channels = await in_channels_uusd(self._ledger)
        if amount_uusd and in_channels >= amount_uusd:
            return  # nothing has to be sent to the chain
        held = await hub.holdings(account)
        there, wei = held.token_uusd + held.free_uusd + in_channels, held.wei
        need_wei = (await hub.fees()).max_wei * (_PAY_GAS if amount_uusd else _CLAIM_GAS)
        missing: list[str] = []
        if there < amount_uusd:
            missing.append(
                f"{(amount_uusd - there) / 1e6:.6f} of the token {place.symbol} (0x{place.token.hex()}): it has "
                f"{there / 1e6:.6f} and {amount_uusd / 1e6:.6f} may be reserved, the budget once at each provider"
            )
        if wei < need_wei:
            missing.append(
                f"{coins(need_wei - wei)} of the chain's own coin for gas: it has {coins(wei)}, and "
                + ("three transactions" if amount_uusd else "claiming what is earned")
                + f" may cost {coins(need_wei)} as fees are now"
            )
        if missing:
            raise InsufficientFunds(
                f"send to the account 0x{account.hex()} on chain {place.chain_id}: {'; and '.join(missing)}. "
                "Nothing was spent"
            )
