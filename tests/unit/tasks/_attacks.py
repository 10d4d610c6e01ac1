"""What attacks on a provider share: the stage, and what the provider is to answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from p2pcompute._serving import ProviderRole
from p2pcompute.node import Node
from p2pcompute_protocols.connection import StreamEnded
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.task import (
    Refused,
)

from ..market._harness import Market, Z, compute, in_memory, until
from ..market._rogues import Rogue, open_rogue

Attack = Callable[[Rogue, Node], Awaitable[None]]


def play(function: Attack, **options: Any) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(**options)
        async with open_rogue(market, connect=(provider,)) as rogue:
            await function(rogue, provider)
            role = provider.provider
            assert role is not None
            await until(lambda: not role.tasks.active, within_s=1)
            # Others are served as if nothing had been, and nothing is in the ledger that should not be.
            requester = await market.node(connect=(provider,))
            assert np.array_equal(await compute(requester), Z)
            assert await market.claimed_uusd(provider) == await market.spent_uusd(requester)

    in_memory(scenario)


async def refused(dialogue: Any, code: WireCode) -> None:
    """The provider ends the task with this code."""
    while not isinstance(message := await dialogue.receive(stall_s=600), Refused):
        assert not isinstance(message, StreamEnded)
    assert message.code == code, message.detail


def role_of(provider: Node) -> ProviderRole:
    assert provider.provider is not None
    return provider.provider
