"""The stake registry as nodes read it: who has something at stake, and who speaks for whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p2pcompute.chain import (
    RegistryDomain,
    RegistryPlace,
    StakeState,
    decode_stake,
    encode_active,
    encode_allowance_left,
    encode_burned,
    encode_cap,
    encode_credits,
    encode_judged,
    encode_receipt_key,
    encode_speaks_for,
    encode_stake_account,
)
from p2pcompute.errors import ChainError
from p2pcompute_protocols.ids import Address
from p2pcompute_protocols.money import ChainTerms

if TYPE_CHECKING:
    from p2pcompute.chain import ChainClient

__all__ = ["Registry", "read_from"]


def read_from(rpc: ChainClient, registry: Address) -> Callable[[bytes], Awaitable[bytes]]:
    """How a registry is read through an endpoint, in its newest block."""
    from p2pcompute.chain._rpc import hex_bytes

    async def read(data: bytes) -> bytes:
        answer: Any = await rpc.call("eth_call", [{"to": "0x" + registry.hex(), "data": "0x" + data.hex()}, "latest"])
        return hex_bytes(answer)

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """One stake registry. Every read raises `ChainError`.

    Attributes:
        place: where it is, and what it is set to.
        chain: of which chain and token.
        read: calls a view of it: calldata in, output out.
    """

    place: RegistryPlace
    chain: ChainTerms
    read: Callable[[bytes], Awaitable[bytes]]

    @property
    def address(self) -> Address:
        """The contract."""
        return self.place.registry

    @property
    def domain(self) -> RegistryDomain:
        """What is signed for it counts in this domain."""
        return RegistryDomain(chain_id=self.chain.chain_id, contract=self.place.registry)

    async def state(self, owner: Address) -> StakeState:
        """Where an account's stake stands."""
        try:
            return decode_stake(await self.read(encode_stake_account(owner)))
        except ValueError as exc:
            raise ChainError(f"the stake registry answers what it never would ({exc}); use another endpoint") from exc

    async def is_active(self, owner: Address) -> bool:
        """Whether it has the minimum at stake, what is on its way out not counted."""
        return await self._word(encode_active(owner)) != 0

    async def speaks_for(self, owner: Address, key: Address) -> bool:
        """Whether what `key` signs counts as said by `owner`."""
        return await self._word(encode_speaks_for(owner, key)) != 0

    async def receipt_key(self, owner: Address) -> Address | None:
        """The key that signs for an account now, beside its own."""
        found = await self._word(encode_receipt_key(owner))
        return Address(found.to_bytes(20, "big")) if found else None

    async def allowance_uusd(self, key: Address) -> int:
        """What verdicts may still take on terms that a receipt key has signed."""
        return await self._word(encode_allowance_left(key))

    async def credit_uusd(self, owner: Address) -> int:
        """What an account can withdraw."""
        return await self._word(encode_credits(owner))

    async def cap_uusd(self, owner: Address) -> int:
        """The most that an account may have at stake, by the cores that it has declared."""
        return await self._word(encode_cap(owner))

    async def is_judged(self, terms: bytes) -> bool:
        """Whether a verdict on these terms, by their struct hash, was carried out."""
        return await self._word(encode_judged(terms)) != 0

    async def burned_uusd(self) -> int:
        """What was taken and paid to nobody."""
        return await self._word(encode_burned())

    async def _word(self, data: bytes) -> int:
        output = await self.read(data)
        if len(output) != 32:
            raise ChainError(
                f"the stake registry answers {len(output)} bytes where it gives 32; use another endpoint of this chain"
            )
        return int.from_bytes(output, "big")
