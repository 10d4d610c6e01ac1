"""Disputes over finished tasks in rounds: who is committed is asked, the first wrong round is found and shown."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from p2pcompute._rounds import bind_rounds
from p2pcompute.checking import verify_evidence
from p2pcompute.errors import TaskRefused
from p2pcompute.node import Node
from p2pcompute.tasks import Agreed, _disputes
from p2pcompute.testing import InlineWorkers
from p2pcompute_protocols import negotiation
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.work import state_digest

from ..market._harness import Market, Watch, in_memory
from ._rounds import DT, START, drift, expected
from .test_rogue_rounds import late, lies


def digests(rounds: int = 40) -> list[bytes]:
    """Of all states, as NumPy gives them."""
    states = [expected(number) for number in range(rounds + 1)]
    return [state_digest([hashlib.sha256(state[name].tobytes()).digest() for name in ("x", "v")]) for state in states]


async def run(node: Node, **options: Any) -> tuple[Any, list[bytes]]:
    """The agreement of a task of one provider, and the digests that came."""
    watch = Watch()
    chosen: dict[str, Any] = {"rounds": 40, "state": START, "args": (DT,), "rounds_per_chunk": 8, "on_event": watch}
    async with node.rounds(drift, **{**chosen, **options}) as rounds:
        found = [done.digest async for done in rounds]
    (agreed,) = watch.of(Agreed)
    row = await node.services.ledger.agreement(agreed.task)
    assert row is not None
    both = {"requester": node.peer_id, "provider": agreed.provider}
    return negotiation.open_agreement(row.raw, network=node.network, **both), found


def blobs_of(rounds: int) -> tuple[bytes, dict[bytes, bytes]]:
    """The digests of the arrays of a state, one behind the other, and all that a round takes from there."""
    bound = bind_rounds(drift, 40, START, (DT,))
    arrays = [expected(rounds)[name].tobytes() for name in bound.names]
    kernel = bound.steps[0].source.text.encode()
    blobs = {hashlib.sha256(data).digest(): data for data in (*arrays, kernel)}
    return b"".join(hashlib.sha256(array).digest() for array in arrays), blobs


def test_a_provider_stands_by_what_it_has_computed() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        agreement, found = await run(node)
        assert found == digests()[1:]
        finding = await node.challenge(provider.peer_id, agreement.task_id, digests())
        assert finding.round is None
        again = await node.challenge(provider.peer_id, agreement.task_id, digests())
        assert again.commitment == finding.commitment  # one for each task
        with pytest.raises(LocalProtocolError, match="40 rounds there and 20 here"):
            await node.challenge(provider.peer_id, agreement.task_id, digests(20))

    in_memory(scenario)


def test_a_lie_that_nobody_looked_for_is_found_later_and_shown_to_others() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        lies(provider, late)
        node = await market.node(connect=(provider,))
        agreement, found = await run(node, check="none")
        assert found[19] == digests()[20]
        assert found[20] != digests()[21]
        finding = await node.challenge(provider.peer_id, agreement.task_id, digests())
        assert finding.round == 21
        named, blobs = blobs_of(20)
        evidence = finding.evidence(
            agreement, before=named, blobs=blobs, signer=node.services.key, now_ms=node.now_ms()
        )
        verdict = await verify_evidence(evidence, workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.round) == ("provider", provider.peer_id, 21)
        assert verdict.computed == digests()[21]

    in_memory(scenario)


def test_who_disputes_what_is_right_convicts_itself() -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        agreement, _ = await run(node)
        made_up = [*digests()[:1], *(bytes([n]) * 32 for n in range(1, 41))]
        for ours, round_ in ((made_up, 1), ([bytes(32), *made_up[1:]], 0)):
            finding = await node.challenge(provider.peer_id, agreement.task_id, ours)
            assert finding.round == round_
            named, blobs = blobs_of(0)
            evidence = finding.evidence(
                agreement, before=named, blobs=blobs, signer=node.services.key, now_ms=node.now_ms()
            )
            verdict = await verify_evidence(evidence, workers=InlineWorkers())
            assert (verdict.wrong, verdict.peer) == ("accuser", node.peer_id)

    in_memory(scenario)


def test_strangers_learn_nothing_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disputes, "_TASKS", 2)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        stranger = await market.node(connect=(provider,))
        tasks = [(await run(node))[0].task_id for _ in range(3)]
        refusals: list[str] = []
        for who, task in ((stranger, tasks[2]), (stranger, bytes(32)), (node, tasks[0])):
            with pytest.raises(TaskRefused, match="no rounds of this task") as refused:
                await who.challenge(provider.peer_id, task, digests())
            refusals.append(str(refused.value))
        assert len(set(refusals)) == 1  # whether there was such a task is not told
        assert (await node.challenge(provider.peer_id, tasks[2], digests())).round is None

    in_memory(scenario)
