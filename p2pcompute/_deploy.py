"""Putting a hub, and where wanted a test token, on a chain that has none.

Nobody owns a hub, and any number of them can be on a chain: whoever deploys one pays the gas and gets nothing by it.
The transactions go through the profile's outbox as all others do, so a crash in the middle costs nothing: the same
command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from p2pcompute._funds import coins
from p2pcompute.errors import ChainError, ConfigError, RpcError
from p2pcompute.payments import ChainHub, HubCall, Outbox
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms

if TYPE_CHECKING:
    from p2pcompute.chain import ChainClient, HubClient, HubPlace
    from p2pcompute.identity import WalletKey
    from p2pcompute.storage import Ledger

__all__ = ["DeployPlan", "Deployer"]

TEST_SUPPLY_UUSD: Final = 1_000_000_000_000  # a million USD of a token that is worth nothing
_NOWHERE: Final = Address(bytes(20))
# The hub's creation can't be estimated before its token is there, nor by an account without coins. 200 gas for each
# byte that is stored, 16 for each that is sent, and what a creation costs anyway: 1,253,000 for a hub of 5,433 bytes.
_GAS_PER_BYTE: Final = 300
_CREATION_GAS: Final = 150_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """Create a contract."""

    code: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployPlan:
    """What a deployment is going to cost, and where.

    Attributes:
        chain_id: EIP-155 chain ID.
        account: who pays.
        token: of which the hub is going to be; None where a test token comes first.
        symbol: what that token calls itself.
        gas: units, at most.
        most_wei: what they cost at most as fees are now.
        balance_wei: what the account has.
    """

    chain_id: int
    account: Address
    token: Address | None
    symbol: str
    gas: int
    most_wei: int
    balance_wei: int


class _CreatingHub(ChainHub):
    """An account on a chain that has no hub yet: it can create contracts and nothing else."""

    def __init__(self, client: HubClient, chain_id: int, wallet: WalletKey) -> None:
        nowhere = ChainTerms(chain_id=chain_id, hub=bytes(_NOWHERE), token=bytes(_NOWHERE), decimals=6)
        super().__init__(client, terms=nowhere, private_key=wallet.private_key)
        self._hub_client = client
        self._wallet = wallet

    async def signing(self, call: HubCall | Create) -> Callable[[int], tuple[bytes, bytes]]:
        """As `ChainHub.signing`, for `Create`."""
        import dataclasses

        import coincurve

        from p2pcompute.chain import sign_transaction

        assert isinstance(call, Create)
        unsigned = await self._hub_client.prepare(self.account, None, call.code, nonce=0)
        key = coincurve.PrivateKey(self._wallet.private_key)

        def sign(nonce: int) -> tuple[bytes, bytes]:
            signed = sign_transaction(dataclasses.replace(unsigned, nonce=nonce), key)
            return signed.hash, signed.raw

        return sign


class Deployer:
    """Deploys from a profile's account.

    Args:
        rpc: an open client of the chain.
        wallet: the profile's; pays.
        ledger: the profile's, for the outbox. It must not belong to another chain.
    """

    def __init__(self, rpc: ChainClient, wallet: WalletKey, ledger: Ledger) -> None:
        from p2pcompute.chain import HubClient

        self._rpc = rpc
        self._wallet = wallet
        self._ledger = ledger
        self._client = HubClient(rpc, _NOWHERE, _NOWHERE)

    async def plan(self, token: Address | None) -> DeployPlan:
        """What it is going to cost; sends nothing.

        Args:
            token: the ERC-20 of the hub; None for a test token of our own, all of it the account's.

        Raises:
            WrongHub: there is no token there, or not one with 6 decimals.
            ConfigError: this is a development chain of ours, which has a hub.
            NoGas: the account can't pay for it; says what to send, and where.
            ChainUnreachable, WrongChain: see `ChainClient.call`.
        """
        from p2pcompute.chain import NoGas, check_token, dev_info

        chain_id = await self._rpc.chain_id()
        try:
            info = await dev_info(self._rpc)
        except RpcError:
            pass
        else:
            raise ConfigError(
                f"this is a development chain of p2pcompute, and its hub is 0x{info.hub.hex()}: nothing has to be "
                "deployed"
            )
        symbol = "tUSD" if token is None else await check_token(self._rpc, token)
        gas = _most_gas("ChannelHub") + (_most_gas("TestToken") if token is None else 0)
        most_wei = gas * (await self._client.fees()).max_wei
        account = self._wallet.address
        balance_wei = await self._client.balance_wei(account)
        if balance_wei < most_wei:
            raise NoGas(
                f"deploying may cost {coins(most_wei)} of the coin of chain {chain_id} as fees are now; the account "
                f"0x{account.hex()} has {coins(balance_wei)}: send {coins(most_wei - balance_wei)} there, then run "
                "this again. Nothing was spent"
            )
        return DeployPlan(
            chain_id=chain_id,
            account=account,
            token=token,
            symbol=symbol,
            gas=gas,
            most_wei=most_wei,
            balance_wei=balance_wei,
        )

    async def deploy(self, token: Address | None) -> HubPlace:
        """Deploy, wait until it is mined, and compare what lies there with what was sent.

        What this account has deployed before is taken and not made again: a run that was cut off goes on.

        Args:
            token: as `plan` takes it.

        Raises:
            SettlementPending: not mined in time; the same command goes on from there.
            TransactionFailed, NoGas, ChainError: see `Outbox.run`.
        """
        from p2pcompute.chain import find_hub
        from p2pcompute.chain._artifacts import hub_creation, token_creation

        chain_id = await self._rpc.chain_id()
        outbox = Outbox(ledger=self._ledger, hub=_CreatingHub(self._client, chain_id, self._wallet))
        await outbox.settle(raise_fees=True)
        if token is None:
            token = await self._made(outbox, token_creation(self._wallet.address, TEST_SUPPLY_UUSD), chain_id)
        hub = await self._made(outbox, hub_creation(token), chain_id)
        return await find_hub(self._rpc, hub=hub, token=token)

    async def _made(self, outbox: Outbox, code: bytes, chain_id: int) -> Address:
        """The contract that `code` creates, made now where this account has not made it yet."""
        found = await self._earlier(code, chain_id)
        if found is None:
            # Only this hub's view takes it; payments know of no contracts but the one that is there.
            await outbox.run(cast("HubCall", Create(code=code)))
            found = await self._earlier(code, chain_id)
        if found is None:
            raise ChainError("a contract that was just created is not on the chain; run this again in a minute")
        return found

    async def _earlier(self, code: bytes, chain_id: int) -> Address | None:
        """What a transaction of the ledger has created by `code`, where it is on the chain."""
        from p2pcompute.chain import contract_address, decode_transaction
        from p2pcompute.chain._rpc import hex_bytes

        for row in await self._ledger.of_kind(self._wallet.address, "create"):
            tx = decode_transaction(row.raw)
            if tx.data == code and tx.chain_id == chain_id:
                made = contract_address(self._wallet.address, row.nonce)
                if hex_bytes(await self._rpc.call("eth_getCode", ["0x" + made.hex(), "latest"])):
                    return made
        return None


def _most_gas(contract: str) -> int:
    from p2pcompute.chain import load_artifact

    return len(load_artifact(contract).bytecode) * _GAS_PER_BYTE + _CREATION_GAS
