"""Who finds no provider is told what would help: another one only where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from p2pcompute._options import OptionError
from p2pcompute.errors import NoProviderError, TaskError
from p2pcompute.market._reasons import Reason, what_to_do
from p2pcompute.stake._requester import StakeTooLow
from p2pcompute.testing._output_faults import lie
from p2pcompute_protocols.errors import WireCode

from ..market._harness import Market, compute, in_memory, until


def refused(provider: dict[str, Any], **wishes: Any) -> str:
    """What a requester with `wishes` is told where there is one such provider."""
    said: list[str] = []

    async def scenario(market: Market) -> None:
        seller = await market.provider(**provider)
        requester = await market.node(connect=(seller,))
        await until(lambda: len(requester.services.board) > 0)
        with pytest.raises(NoProviderError) as caught:
            await compute(requester, **wishes)
        said.append(str(caught.value))

    in_memory(scenario)
    return said[0]


@pytest.mark.parametrize(
    ("provider", "wishes", "advice"),
    [
        ({"price": "1 USD"}, {"max_price": "0.5 USD"}, "a higher max_price=… or budget=…."),
        ({"fp": "strict"}, {"fp": "fast", "rtol": 1e-3}, "Ask for less: the refusals say what is not to be had"),
    ],
)
def test_the_advice_is_about_what_was_refused(provider: dict[str, Any], wishes: dict[str, Any], advice: str) -> None:
    said = refused(provider, **wishes)
    assert advice in said
    assert "Start one here" not in said
    assert said.count("No money has moved.") == 1


def test_of_who_is_banned_it_says_why_for_how_long_and_what_is_left_to_do() -> None:
    async def scenario(market: Market) -> None:
        liar, dear = await market.provider(fault=lie(1)), await market.provider(price="5 USD")
        requester = await market.node(connect=(liar, dear))
        await until(lambda: len(requester.services.board) > 1)
        with pytest.raises(TaskError, match="all providers are gone"):
            await compute(requester, max_price="1 USD")
        row = await requester.services.ledger.peer(liar.peer_id)
        assert row is not None
        with pytest.raises(NoProviderError) as caught:
            await compute(requester, max_price="1 USD")
        said = str(caught.value)
        assert "2 known, none fits" in said
        assert f"…{liar.peer_id[-8:]}: banned for good: {row.banned}" in said
        assert "no command lifts it" in said
        assert "--profile" in said
        assert "a higher max_price=…" in said
        await compute(requester, max_price="9 USD")

    in_memory(scenario)


def test_each_kind_of_refusal_has_its_advice() -> None:
    reasons = [Reason("dear", WireCode.PRICE_TOO_LOW), Reason("busy", WireCode.NO_CAPACITY), "the stream broke"]
    said = what_to_do(reasons, "start one")
    assert "max_price" in said
    assert "later" in said
    assert said.count("No money has moved.") == 1
    assert what_to_do([Reason("too little", StakeTooLow.code)], "").startswith("Ask for less at stake with min_stake=")
    assert "chunks=" in what_to_do([Reason("slow", WireCode.OVERSIZED)], "")


def test_where_there_is_none_one_has_to_be_started() -> None:
    for reasons in ([], ["the stream broke"], [Reason("odd", WireCode.INTERNAL)], [Reason("small")]):
        assert what_to_do(reasons, "start one") == "start one"
    assert Reason("busy", WireCode.NO_CAPACITY) == "busy"


def test_samples_of_what_is_not_looked_at_are_refused() -> None:
    from p2pcompute._requester import RunOptions

    with pytest.raises(OptionError, match=r'samples is 3 and check is "none".*leave samples out'):
        RunOptions(check="none", samples=3)
    assert not RunOptions(check="none").checks
    assert not RunOptions(check="none", samples=0).checks
