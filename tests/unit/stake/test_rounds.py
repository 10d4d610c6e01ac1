"""Work in rounds asks for stakes as other tasks do: before it begins, of every provider, and a lie costs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pcompute._rounds import RoundOptions
from p2pcompute.errors import ConfigError, NoProviderError, TaskError
from p2pcompute.node import Node
from p2pcompute.tasks import Agreed, LiarCaught, Paid, ProviderRefused, TaskStarted
from p2pcompute_protocols.ids import PeerId

from ..market._harness import Watch
from ..tasks._rounds import expected, iterate, same
from ._court import MIN_UUSD, Court, in_court, kept


def skipped(_: int, arrays: list[bytearray]) -> Sequence[bytes]:
    """A lie: every round leaves values as no computation would."""
    x = np.frombuffer(bytes(arrays[0]), np.float32).copy()
    x[:100] += 1
    return [x.tobytes(), bytes(arrays[1])]


def lies(node: Node) -> None:
    assert node.provider is not None
    node.provider.tasks.round_fault = skipped


def pledged(node: Node) -> int:
    """For how many tasks a provider has signed terms."""
    assert node.provider is not None
    assert node.provider.pledges is not None
    return sum(task.terms is not None for task in node.provider.pledges._tasks.values())


@pytest.mark.parametrize("check", ["sample", "quorum"])
def test_a_lie_in_a_round_costs_what_was_at_risk(tmp_path: Path, check: str) -> None:
    async def scenario(court: Court) -> None:
        arbiters = await court.arbiters(3)
        liar = await court.provider(arbiters, price="0.01 USD", staked_uusd=1_500)
        lies(liar)
        others = [await court.provider(arbiters) for _ in range(2)]
        requester = await court.requester(liar, *others, *arbiters)
        watch, named = Watch(), [one.addresses[0] for one in arbiters]
        assert same(await iterate(requester, watch=watch, check=check, arbiters=named), expected(40))
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        slashed = await court.accuser(requester).by_verdict(*kept(caught.evidence))
        assert (slashed.taken_uusd, slashed.stake_uusd) == (MIN_UUSD, 500)
        assert {judge.peer_id for judge in arbiters} == {*slashed.arbiters}
        assert all(judge.services.books.banned == {liar.peer_id} for judge in arbiters)
        assert [await court.stakes(one) for one in others] == [MIN_UUSD, MIN_UUSD]

    in_court(tmp_path, scenario)


def test_whoever_goes_on_with_the_rounds_pledges_too(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        providers = {one.peer_id: one for one in [await court.provider([arbiter]) for _ in range(2)]}
        requester = await court.requester(*providers.values(), arbiter)

        def react(event: Any) -> None:
            if isinstance(event, Paid) and len(watch.of(Paid)) == 2:
                court.market.kill(providers[event.provider])

        watch = Watch(react)
        assert same(await iterate(requester, watch=watch, arbiters=[arbiter.addresses[0]]), expected(40))
        assert {event.provider for event in watch.of(Agreed)} == {*providers}
        assert [pledged(one) for one in providers.values()] == [1, 1]

    in_court(tmp_path, scenario)


ASKED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "options": ({"min_stake": "1000 uusd"}, {}),
    "environment": ({}, {"P2PCOMPUTE_MIN_STAKE": "1000 uusd"}),
}


@pytest.mark.parametrize("where", ASKED)
def test_rounds_go_only_to_who_has_enough_at_stake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    options, environment = ASKED[where]

    async def scenario(court: Court) -> None:
        bare = await court.provider([], staked_uusd=0, price="0.01 USD")
        requester = await court.requester(bare)
        assert same(await iterate(requester), expected(40))  # nothing is asked for
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(NoProviderError, match=r"0\.000000 USD at stake, of 0\.001000 USD"):
            await iterate(requester, **options)
        staked = await court.provider([])
        await requester.services.overlay.connect(staked.addresses[0])
        watch = Watch()
        assert same(await iterate(requester, watch=watch, **options), expected(40))
        assert [event.provider for event in watch.of(Agreed)] == [staked.peer_id]

    in_court(tmp_path, scenario)


def test_arbiters_and_what_is_at_risk_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        provider = await court.provider([arbiter], at_risk="500 uusd")
        none = await court.provider([], price="0.01 USD")
        requester = await court.requester(none, provider, arbiter)
        monkeypatch.setenv("P2PCOMPUTE_ARBITERS", arbiter.addresses[0])
        watch = Watch()
        with pytest.raises(TaskError, match=r"0\.000500 USD are put at risk for one task at most; at_risk= asks"):
            await iterate(requester, watch=watch)
        refused: dict[PeerId, str] = {event.provider: event.reason for event in watch.of(ProviderRefused)}
        assert "accept no arbiters" in refused[none.peer_id]
        assert await court.market.spent_uusd(requester) == 0
        monkeypatch.setenv("P2PCOMPUTE_AT_RISK", "500 uusd")
        watch = Watch()
        assert same(await iterate(requester, watch=watch), expected(40))
        assert {event.provider for event in watch.of(Agreed)} == {provider.peer_id}
        assert pledged(provider) == 1

    in_court(tmp_path, scenario)


def test_arbiters_of_rounds_are_looked_at_before_anything_is_ordered(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        provider = await court.provider([arbiter])
        requester = await court.requester(provider)
        watch = Watch()
        with pytest.raises(ConfigError, match="is no arbiter"):
            await iterate(requester, watch=watch, arbiters=[provider.addresses[0]])
        assert not watch.of(TaskStarted)
        bare = await court.market.node(connect=(provider,))  # it knows no registry
        with pytest.raises(ConfigError, match="no stake registry"):
            await iterate(bare, min_stake="1000 uusd")

    in_court(tmp_path, scenario)


@pytest.mark.parametrize(
    "options", [{"arbiters": ["nobody"]}, {"arbiters_needed": 1}, {"at_risk": "1 USD"}, {"min_stake": "much"}]
)
def test_options_of_rounds_that_ask_for_nothing_that_there_is(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        RoundOptions(**options)
