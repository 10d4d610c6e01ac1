"""The compiled contracts that ship with the package; `scripts/compile-contracts.sh` makes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from p2pcompute_protocols.ids import Address

__all__ = ["Artifact", "hub_creation", "hub_immutables", "load_artifact", "registry_creation", "token_creation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract.

    Attributes:
        contract: its name.
        compiler: name and version of what compiled it.
        source_sha256: hex digest of the source that was compiled.
        abi: the contract's ABI, as JSON gives it.
        bytecode: what creates the contract, without constructor arguments.
        runtime: what lies on chain afterwards, without immutables.
    """

    contract: str
    compiler: str
    source_sha256: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    runtime: bytes


def load_artifact(contract: str) -> Artifact:
    """Read the artefact of `ChannelHub`, `StakeRegistry` or `TestToken`."""
    text = resources.files("p2pcompute.chain").joinpath("artifacts", f"{contract}.json").read_text("utf-8")
    fields = json.loads(text)
    return Artifact(
        contract=fields["contract"],
        compiler=fields["compiler"],
        source_sha256=fields["source_sha256"],
        abi=fields["abi"],
        bytecode=bytes.fromhex(fields["bytecode"].removeprefix("0x")),
        runtime=bytes.fromhex(fields["bytecode_runtime"].removeprefix("0x")),
    )


def hub_creation(token: Address) -> bytes:
    """The data of a transaction that creates a hub for `token`."""
    return load_artifact("ChannelHub").bytecode + token.rjust(32, b"\0")


def registry_creation(token: Address, *, min_stake_uusd: int, stake_per_core_uusd: int) -> bytes:
    """The data of a transaction that creates a stake registry for `token`."""
    amounts = min_stake_uusd.to_bytes(32, "big") + stake_per_core_uusd.to_bytes(32, "big")
    return load_artifact("StakeRegistry").bytecode + token.rjust(32, b"\0") + amounts


def hub_immutables(token: Address, chain_id: int, domain: bytes) -> bytes:
    """What follows the hub's runtime code on chain: its immutables, in the order in which the contract declares them.

    Args:
        token: the hub's token.
        chain_id: of the chain on which it was created.
        domain: the separator of its vouchers' EIP-712 domain, 32 bytes.
    """
    return token.rjust(32, b"\0") + chain_id.to_bytes(32, "big") + domain


def token_creation(faucet: Address, supply_uusd: int) -> bytes:
    """The data of a transaction that creates a test token, its whole supply at `faucet`."""
    arguments = faucet.rjust(32, b"\0") + supply_uusd.to_bytes(32, "big")
    return load_artifact("TestToken").bytecode + arguments
