"""Stakes of nodes whose money is an owner's: the stake is the owner's, and so is what is signed for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcompute.identity import WalletKey

from ._court import MIN_UUSD, Court, in_court


@pytest.mark.parametrize("whose", ["arbiter", "provider", "requester"])
def test_a_verdict_where_one_of_them_has_an_owner(tmp_path: Path, whose: str) -> None:
    async def scenario(court: Court) -> None:
        owner = WalletKey.generate()
        arbiter = await court.arbiter(owner=owner if whose == "arbiter" else None)
        liar = await court.liar([arbiter], owner=owner if whose == "provider" else None)
        honest = await court.provider([arbiter])
        requester = await court.requester(liar, honest, arbiter, owner=owner if whose == "requester" else None)
        node = {"arbiter": arbiter, "provider": liar, "requester": requester}[whose]
        assert node.services.account.address == owner.address != node.services.wallet.address
        evidence, pledge = await court.caught(requester, [arbiter])
        terms = pledge.terms
        assert owner.address in (terms.provider, terms.requester, *terms.arbiters)
        slashed = await court.accuser(requester).by_verdict(evidence, pledge)
        assert (slashed.taken_uusd, slashed.arbiters) == (MIN_UUSD, (arbiter.peer_id,))
        assert await court.stakes(liar) == 0
        assert await court.stakes(arbiter) == MIN_UUSD
        assert (await court.staking(requester).unstake()).credit_uusd == 0
        assert court.bench.tokens(requester.services.account.address) == MIN_UUSD // 2

    in_court(tmp_path, scenario)
