"""Rogues in rounds with split inputs: lies about them are found and shown to others, windows have a bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import p2pcompute as p2p
from p2pcompute.checking import verify_evidence
from p2pcompute.errors import KernelError
from p2pcompute.node import Node
from p2pcompute.tasks import LiarCaught
from p2pcompute.testing import InlineWorkers

from ..market._harness import Market, Watch, in_memory
from ._rounds import HILLS, expected_hills, flow_steps, peak, same


async def hills(node: Node, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    chosen: dict[str, Any] = {"rounds_per_chunk": 5, "budget": "1 USD", **options}
    return await node.iterate(flow_steps(), rounds=12, state=HILLS, **chosen)


def lies(node: Node, fault: Any) -> None:
    assert node.provider is not None
    node.provider.tasks.round_fault = fault


def without_its_edge(_: int, arrays: list[bytearray]) -> Sequence[bytes | bytearray]:
    """A lie at the border alone, where the other side should have been read."""
    h = np.frombuffer(arrays[0], np.int64).reshape(37, 50)
    h[:, -1] += 1
    return arrays


def one_bit(number: int, arrays: list[bytearray]) -> Sequence[bytes | bytearray]:
    if number == 8:
        arrays[0][0] ^= 1
    return arrays


def test_a_liar_at_the_border_is_caught_and_its_file_convicts_it(tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(price="0.01 USD")
        lies(liar, without_its_edge)
        honest = await market.provider(price="0.05 USD")
        node = await market.node(connect=(liar, honest), evidence=tmp_path)
        watch = Watch()
        assert same(await hills(node, samples=2_000, on_event=watch), expected_hills(12))
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        assert await market.claimed_uusd(liar) == 0
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.kind) == ("provider", liar.peer_id, "round")

    in_memory(scenario)


def test_a_quorum_finds_the_first_wrong_round(tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(price="0.01 USD")
        lies(liar, one_bit)
        honest = await market.provider(price="0.02 USD")
        node = await market.node(connect=(liar, honest), evidence=tmp_path)
        watch = Watch()
        found = await hills(node, check="quorum", samples=4, on_event=watch)
        assert same(found, expected_hills(12))
        (caught,) = watch.of(LiarCaught)
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.round) == ("provider", liar.peer_id, 8)

    in_memory(scenario)


def test_honest_providers_agree_and_none_is_accused() -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        node = await market.node(connect=tuple(providers))
        watch = Watch()
        assert same(await hills(node, check="quorum", on_event=watch), expected_hills(12))
        assert not watch.of(LiarCaught)
        assert min([await market.claimed_uusd(one) for one in providers]) > 0

    in_memory(scenario)


def test_windows_that_are_too_much_are_refused_before_anything_is_ordered() -> None:
    async def scenario(market: Market) -> None:
        node = await market.node(connect=(await market.provider(),))
        wide = p2p.new("top", reduce="max", shape=(4_096, 4_096))  # of an array that is small: a window of 128 MiB
        steps = [flow_steps()[0], flow_steps()[1], p2p.step(peak, wide, p2p.state("h", halo=0))]
        with pytest.raises(KernelError, match="windows of split ones"):
            await node.iterate(steps, rounds=2, state=HILLS, budget="1 USD")

    in_memory(scenario)
