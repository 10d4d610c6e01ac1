"""What attacks on a provider share: the stage, and what the provider is to answer."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from p2pcompute._serving import ProviderRole
from p2pcompute.node import Node
from p2pcompute.overlay import Offence, Subject
from p2pcompute_protocols.connection import StreamEnded
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.task import (
    Refused,
)

from ..market._harness import Market, Z, compute, in_memory, until
from ..market._rogues import Rogue, open_rogue

Attack = Callable[[Rogue, Node], Awaitable[None]]


class Forgiven(enum.Enum):
    """Why an attack leaves the rogue's standing as it was; docs/limits.md has the same."""

    ALLOWED = "the protocol allows it, and what it costs is bounded"
    LEAVES = "processes end, tasks are cancelled, lines are cut"
    SLOW = "lines and machines are slow"
    UNPAID = "vouchers wait for a disk, a chain or a line, and credit may be another's meanwhile"
    CROSSED = "whoever lost the line can't know what became of the other end"
    MEMORY = "memory and disks err, and inputs change under a running task"
    ORDER = "an order is a question, and clocks, chains, prices and versions differ"
    OURS = "it is the provider's own fault"


Falls = Offence | Forgiven  # what an attack is held to be, or why it is not
Table = dict[str, tuple[Attack, Falls]]


def attacks_of(table: Table) -> Callable[[Falls], Callable[[Attack], Attack]]:
    """A decorator that puts attacks into `table`, each with what becomes of the rogue's standing."""

    def attack(falls: Falls) -> Callable[[Attack], Attack]:
        def register(function: Attack) -> Attack:
            table[function.__name__] = function, falls
            return function

        return register

    return attack


def play(function: Attack, falls: Falls, **options: Any) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(**options)
        async with open_rogue(market, connect=(provider,)) as rogue:
            await function(rogue, provider)
            role = provider.provider
            assert role is not None
            await until(lambda: not role.tasks.active, within_s=1)
            check_standing(provider, rogue.key.peer_id, falls)
            # Others are served as if nothing had been, and nothing is in the ledger that should not be.
            requester = await market.node(connect=(provider,))
            assert np.array_equal(await compute(requester), Z)
            assert await market.claimed_uusd(provider) == await market.spent_uusd(requester)
            check_standing(provider, requester.peer_id, Forgiven.ALLOWED)

    in_memory(scenario)


def check_standing(node: Node, peer: PeerId, falls: Falls) -> None:
    """What `node` holds against `peer`: as much as one such offence, or a ban for more of them, or nothing at all."""
    overlay: Any = node.services.overlay
    subject = Subject("peer", peer)
    score = overlay.bans.score(subject)
    bans = [ban.reason for ban in node.services.overlay.limits_report().bans if ban.subject == subject]
    if isinstance(falls, Forgiven):
        assert (score, bans) == (0, []), falls.value
    elif bans:
        assert bans == [falls]
    else:
        assert score == pytest.approx(falls.points, rel=0.15), falls.value  # some time has passed


async def refused(dialogue: Any, code: WireCode) -> None:
    """The provider ends the task with this code."""
    while not isinstance(message := await dialogue.receive(stall_s=600), Refused):
        assert not isinstance(message, StreamEnded)
    assert message.code == code, message.detail


def role_of(provider: Node) -> ProviderRole:
    assert provider.provider is not None
    return provider.provider
