"""Where the stake registry lies, whether it is ours, and what it is set to.

Like the hub it has no administrator and can't be changed, so its code says all there is to say of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import coincurve

from p2pcompute.errors import ChainError
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

from ._abi import address, bytes32, selector, word
from ._artifacts import load_artifact
from ._rpc import ChainClient, hex_bytes
from ._tx import contract_address

__all__ = [
    "REGISTRAR_SECRET",
    "NoRegistry",
    "RegistryPlace",
    "WrongRegistry",
    "dev_registry",
    "encode_judged",
    "encode_receipt_key",
    "find_registry",
    "registry_immutables",
]

REGISTRAR_SECRET = keccak256(b"p2pcompute development chain: registrar")
"""Deploys the registry of a development chain; public, for there is nothing to protect."""

_RECEIPT_KEY = selector("receipt_key(address)")
_JUDGED = selector("judged(bytes32)")


class NoRegistry(ChainError):
    """Nobody has said where this chain's stake registry is."""


class WrongRegistry(ChainError):
    """What lies at an address is not the stake registry of this version, or is one of another token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPlace:
    """A registry that was found and compared.

    Attributes:
        registry: its address.
        min_stake_uusd: the least stake that counts.
        per_core_uusd: what a declared reference core lifts an account's cap by.
    """

    registry: Address
    min_stake_uusd: int
    per_core_uusd: int


def dev_registry() -> Address:
    """Where a development chain of ours has its registry: the same on each."""
    return contract_address(address_of(coincurve.PrivateKey(REGISTRAR_SECRET).public_key), 0)


def registry_immutables(token: Address, *, min_stake_uusd: int, stake_per_core_uusd: int) -> bytes:
    """What follows the registry's runtime code on chain, in the order in which the contract declares it."""
    return address(token) + word(min_stake_uusd) + word(stake_per_core_uusd)


def encode_receipt_key(owner: Address) -> bytes:
    """Read: the key that signs an account's receipts and terms now; zero where there is none."""
    return _RECEIPT_KEY + address(owner)


def encode_judged(terms: bytes) -> bytes:
    """Read: whether a verdict on these terms, by their struct hash, was carried out."""
    return _JUDGED + bytes32(terms)


async def find_registry(
    rpc: ChainClient, *, token: Address, registry: Address | None, development: bool
) -> RegistryPlace:
    """Find the registry of a token at an endpoint, and compare its code with ours.

    Args:
        rpc: an open client.
        token: what stakes are of: the hub's token.
        registry: its address; None for that of a development chain.
        development: it is a development chain of ours.

    Raises:
        NoRegistry: `registry` is None and this is no development chain.
        WrongRegistry: there is no contract, another one, or one of another token.
        ChainUnreachable, WrongChain, RpcError: see `ChainClient.call`.
    """
    if registry is None and not development:
        raise NoRegistry(
            "nothing says where the stake registry of this chain is; name it with --registry 0x… "
            "(P2PCOMPUTE_REGISTRY, registry=…)"
        )
    registry = dev_registry() if registry is None else registry
    answer: Any = await rpc.call("eth_getCode", ["0x" + registry.hex(), "latest"])
    code = hex_bytes(answer)
    if not code:
        raise WrongRegistry(
            f"there is no contract at 0x{registry.hex()}"
            + (
                ": this development chain was made by an older version of p2pcompute; start its nodes again"
                if development
                else "; check the address, and that the endpoint is of the chain that the registry is on"
            )
        )
    runtime = load_artifact("StakeRegistry").runtime
    words = code[len(runtime) :]
    if code[: len(runtime)] != runtime or len(words) != 96:
        raise WrongRegistry(
            f"the contract at 0x{registry.hex()} is not the stake registry of this version of p2pcompute, so it is "
            "given no money; check the address with whoever deployed it"
        )
    if words[:32] != address(token):
        raise WrongRegistry(
            f"the registry 0x{registry.hex()} is of the token 0x{words[12:32].hex()}, not of 0x{token.hex()}; name the "
            "one of the hub's token"
        )
    return RegistryPlace(
        registry=registry,
        min_stake_uusd=int.from_bytes(words[32:64], "big"),
        per_core_uusd=int.from_bytes(words[64:96], "big"),
    )
