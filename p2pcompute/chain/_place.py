"""Which hub is meant at an endpoint, and whether what lies there is our contract: read and compared at every start.

A hub has no administrator and can't be changed, so its code says all there is to say of it. Whoever hands out the
address of another contract gets no further than this page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pcompute.errors import ChainError, RpcError
from p2pcompute_protocols.channel._voucher import Domain
from p2pcompute_protocols.ids import Address

from ._artifacts import hub_immutables, load_artifact
from ._client import HubClient, dev_info
from ._faults import NotJsonRpc
from ._hub import encode_decimals, encode_symbol
from ._rpc import ChainClient, hex_bytes

__all__ = ["TOKEN_DECIMALS", "HubPlace", "NoHub", "WrongHub", "check_token", "find_hub"]

TOKEN_DECIMALS: Final = 6
"""A micro-USD is one base unit, on every chain: tokens with other decimals can't be used."""


class WrongHub(ChainError):
    """What lies at an address is not the hub of this version, or its token is not one to pay with."""


class NoHub(ChainError):
    """An EVM chain, and nobody has said where its hub is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPlace:
    """A hub that was found and compared.

    Attributes:
        chain_id: EIP-155 chain ID.
        hub: the hub's address.
        token: the address of its token.
        symbol: what the token calls itself; only to be shown.
        development: it is p2pcompute's development chain, whose faucet gives money that is worth nothing.
    """

    chain_id: int
    hub: Address
    token: Address
    symbol: str
    development: bool

    def client(self, rpc: ChainClient) -> HubClient:
        """A client for it."""
        return HubClient(rpc, self.hub, self.token)


async def find_hub(rpc: ChainClient, *, hub: Address | None = None, token: Address | None = None) -> HubPlace:
    """Find the hub at an endpoint and compare its code with ours.

    Args:
        rpc: an open client.
        hub: its address; None asks the endpoint, which only a development chain of ours answers.
        token: the token that it has to be of; None takes the one that it is of.

    Raises:
        NoHub: `hub` is None and this is no development chain.
        WrongHub: there is no contract at that address, or another one, or its token is not as it has to be.
        ChainUnreachable, WrongChain, RpcError: see `ChainClient.call`.
    """
    chain_id = await rpc.chain_id()
    development = False
    if hub is None:
        try:
            info = await dev_info(rpc)
        except RpcError as exc:
            raise NoHub(
                f"this is chain {chain_id}, and nothing says where its hub is; name it with --hub 0x… (P2PCOMPUTE_HUB, "
                "hub=…), or put one there with `p2pcompute chain deploy`"
            ) from exc
        hub, development = info.hub, True
    found = await _token_of(rpc, hub, chain_id, development=development)
    if token is not None and token != found:
        raise WrongHub(
            f"the hub 0x{hub.hex()} is of the token 0x{found.hex()}, not of 0x{token.hex()}; name the hub of that one"
        )
    return HubPlace(
        chain_id=chain_id, hub=hub, token=found, symbol=await check_token(rpc, found), development=development
    )


async def _token_of(rpc: ChainClient, hub: Address, chain_id: int, *, development: bool) -> Address:
    code = hex_bytes(await rpc.call("eth_getCode", ["0x" + hub.hex(), "latest"]))
    if not code:
        raise WrongHub(
            f"there is no contract at 0x{hub.hex()} on chain {chain_id}; check the address, and that the endpoint is "
            "of the chain that the hub is on"
        )
    runtime = load_artifact("ChannelHub").runtime
    token = Address(code[len(runtime) + 12 : len(runtime) + 32])
    domain = Domain(chain_id=chain_id, contract=hub)
    if code != runtime + hub_immutables(token, chain_id, domain.separator):
        if development:
            raise WrongHub(
                "this development chain was made by another version of p2pcompute, with another hub; stop it, move its "
                "directory away (networks/<network>/chain) and start anew: its money is worth nothing"
            )
        raise WrongHub(
            f"the contract at 0x{hub.hex()} on chain {chain_id} is not the hub of this version of p2pcompute, so it is "
            "given no money; check the address with whoever deployed it"
        )
    return token


async def check_token(rpc: ChainClient, token: Address) -> str:
    """See that a token can be paid with; its symbol.

    Raises:
        WrongHub: there is no contract, or it has not 6 decimals.
        ChainUnreachable, WrongChain: see `ChainClient.call`.
    """
    where = "0x" + token.hex()
    calls = [
        ("eth_call", [{"to": where, "data": "0x" + data.hex()}, "latest"])
        for data in (encode_decimals(), encode_symbol())
    ]
    decimals, symbol = await rpc.batch(calls)
    given = b"" if isinstance(decimals, RpcError) else hex_bytes(decimals)
    if len(given) != 32:
        raise WrongHub(f"there is no ERC-20 token at {where}: it says nothing of decimals; check the address")
    if int.from_bytes(given, "big") != TOKEN_DECIMALS:
        raise WrongHub(
            f"the token {where} has {int.from_bytes(given[-2:], 'big')} decimals; amounts are counted in millionths, "
            f"so only one with {TOKEN_DECIMALS} can be used, as most stable tokens have"
        )
    return _text(b"" if isinstance(symbol, RpcError) else _bytes_or_none(symbol))


def _bytes_or_none(value: object) -> bytes:
    try:
        return hex_bytes(value)
    except NotJsonRpc:
        return b""


def _text(output: bytes) -> str:
    """An ABI string, or the 32 bytes that old tokens give; whatever it says is only shown."""
    size = int.from_bytes(output[32:64], "big") if len(output) >= 96 else 0
    raw = output[64 : 64 + min(size, 16)] if size else output[:32].rstrip(b"\0")[:16]
    shown = "".join(c for c in raw.decode("ascii", "replace") if c.isalnum() or c in "-._$")
    return shown or "token"
