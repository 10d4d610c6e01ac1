"""The histories of `tests/unit/payments/test_whole.py` on anvil, where it is there: another EVM than py-evm, with its
own rules of fees, nonces, reorganisations and answers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from typing import Any

import pytest
import trio
import trio.testing

from ...unit.payments import whole
from ...unit.payments.forkchain import CHAIN_ID
from ...unit.payments.whole_acts import play
from ...unit.payments.whole_attacks import ATTACKS, PHRASES, Attack
from ...unit.payments.whole_mallory import FORGERIES
from .anvil_fork import AnvilNode

pytestmark = pytest.mark.net

OpenAnvil = Callable[..., AbstractAsyncContextManager[str]]
ON_CHAIN = [attack for attack in ATTACKS if attack.name not in FORGERIES]


def run(anvil: OpenAnvil, acts: Any, token: str) -> Counter[str]:
    """A history on an anvil of its own."""

    async def start() -> None:
        options = ("--chain-id", str(CHAIN_ID), "--timestamp", str(whole.GENESIS_S - 1), "--no-mining")
        async with anvil(*options) as url:
            # Virtual time has a loop of its own, in another thread; this one looks after the process.
            await trio.to_thread.run_sync(history, int(url.rpartition(":")[2]))

    taken: Counter[str] = Counter()

    def history(port: int) -> None:
        async def main() -> None:
            world = whole.Whole(token, chain=functools.partial(AnvilNode, port=port))
            with closing(world.node):
                await play(world, acts)
            taken.update(world.taken)

        with whole.short_rounds():
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    trio.run(start)
    return taken


@pytest.mark.parametrize("attack", ON_CHAIN, ids=lambda attack: attack.name)
def test_an_attack_costs_no_more_than_a_window(bare_anvil: OpenAnvil, attack: Attack) -> None:
    taken = run(bare_anvil, attack.acts, attack.token)
    assert not [rule for rule in attack.rules if not taken[rule]]


PARTS = [(0, 7, "QuietToken"), (7, 12, "plain"), (12, len(PHRASES), "HostileToken")]


@pytest.mark.parametrize(("first", "last", "token"), PARTS)
def test_the_honest_end_with_what_they_are_owed(bare_anvil: OpenAnvil, first: int, last: int, token: str) -> None:
    taken = run(bare_anvil, [act for phrase in PHRASES[first:last] for act in phrase], token)
    assert taken["work"]
    assert taken["job"]
