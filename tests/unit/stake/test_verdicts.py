"""Arbiters judge evidence, and a liar's stake falls; nobody else's does."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute._requester import RunOptions
from p2pcompute._serving import ProviderOptions
from p2pcompute.chain import UNSTAKE_DELAY_S
from p2pcompute.checking import EvidenceStore
from p2pcompute.errors import (
    ChainUnreachable,
    ConfigError,
    EvidenceError,
    InsufficientFunds,
    NoProviderError,
    StakeError,
    TaskError,
)
from p2pcompute.node import Node
from p2pcompute.stake import NoVerdict, Registry
from p2pcompute.storage import InlineExecutor
from p2pcompute.tasks import Agreed
from p2pcompute_protocols.ids import PeerId

from ..checking._disputes import case_of
from ..market._harness import Watch, X, Y, Z, axpy, compute
from ..tasks._rounds import iterate
from ._court import MIN_UUSD, Court, in_court


@pytest.mark.parametrize("owners", [False, True], ids=["one key", "owners"])
def test_a_lie_costs_what_was_at_risk(tmp_path: Path, owners: bool) -> None:
    async def scenario(court: Court) -> None:
        arbiters = await court.arbiters(3)
        liar, honest = await court.liar(arbiters, staked_uusd=1_500), await court.provider(arbiters)
        requester = await court.requester(liar, honest, *arbiters)
        evidence, pledge = await court.caught(requester, arbiters)
        assert (pledge.terms.threshold, pledge.terms.at_risk_uusd) == (2, MIN_UUSD)
        court.market.kill(arbiters[0])  # two of three are enough
        slashed = await court.accuser(requester).by_verdict(evidence, pledge)
        assert (slashed.taken_uusd, slashed.paid_uusd, slashed.stake_uusd) == (1_000, 500, 500)
        assert {*slashed.arbiters} == {arbiters[1].peer_id, arbiters[2].peer_id}
        assert {*slashed.declined} == {arbiters[0].peer_id}
        assert await court.stakes(liar) == 500
        assert court.contract.burned() == 500
        assert await court.stakes(honest) == MIN_UUSD
        with pytest.raises(StakeError, match="already"):
            await court.accuser(requester).by_verdict(evidence, pledge)
        # The victim takes its part home.
        assert (await court.staking(requester).unstake()).credit_uusd == 0
        assert court.bench.tokens(requester.services.account.address) == 500

    in_court(tmp_path, scenario, owners=owners)


def test_whoever_sees_a_verdict_gives_the_liar_no_more_work(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        arbiters = await court.arbiters(2)
        liar, honest = await court.liar(arbiters, staked_uusd=1_500), await court.provider(arbiters, price="0.09 USD")
        requester = await court.requester(liar, honest, *arbiters)
        evidence, pledge = await court.caught(requester, arbiters)
        accuser, late, bystander = [await court.requester(liar, honest, *arbiters) for _ in range(3)]
        for judge in arbiters:
            for provider in (liar, honest):
                await judge.services.overlay.connect(provider.addresses[0])

        async def work(node: Node) -> list[PeerId]:
            """Who gets it; the liar is the cheaper one, and asked first by who knows nothing of it."""
            watch = Watch()
            await compute(node, watch=watch, chunks=1, max_providers=1)
            return [event.provider for event in watch.of(Agreed)]

        await court.accuser(accuser).by_verdict(evidence, pledge)
        with pytest.raises(StakeError, match="already"):
            await court.accuser(late).by_verdict(evidence, pledge)
        for node in (accuser, late, *arbiters):
            assert await work(node) == [honest.peer_id]
            known = await node.services.ledger.peer(liar.peer_id)
            assert known is not None
            assert pledge.terms.task.hex()[:16] in (known.banned or "")  # on disk
        assert (await work(bystander))[0] == liar.peer_id

    in_court(tmp_path, scenario)


def test_honest_work_under_a_pledge_costs_nobody_anything(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        provider = await court.provider([arbiter])
        requester = await court.requester(provider, arbiter)
        assert np.array_equal(await compute(requester, arbiters=[arbiter.addresses[0]], min_stake="1000 uusd"), Z)
        assert await court.stakes(provider) == MIN_UUSD

    in_court(tmp_path, scenario)
    assert not list(tmp_path.rglob("*.p2ppledge"))


def test_a_provider_accepts_no_arbiters_unless_it_is_told_to(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        first, second = await court.arbiters(2)
        none, other = await court.provider([]), await court.provider([second])
        requester = await court.requester(none, other, first)
        with pytest.raises(NoProviderError) as refused:
            await compute(requester, arbiters=[first.addresses[0]])
        assert "accept no arbiters" in str(refused.value)
        assert "accept none of these arbiters" in str(refused.value)
        assert np.array_equal(await compute(requester), Z)  # without arbiters it works for anybody

    in_court(tmp_path, scenario)


def test_only_what_the_chain_says_of_a_stake_counts(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        bare, staked = await court.provider([], staked_uusd=0), await court.provider([], staked_uusd=2_000)
        requester = await court.requester(bare)
        with pytest.raises(NoProviderError, match="at stake"):
            await compute(requester, min_stake="0.001 USD")
        await requester.services.overlay.connect(staked.addresses[0])
        assert np.array_equal(await compute(requester, min_stake="0.001 USD"), Z)
        with pytest.raises(
            NoProviderError, match=r"0\.002000 USD at stake, of 0\.002001 USD: ask for less with min_stake="
        ):
            await compute(requester, min_stake="2001 uusd")

    in_court(tmp_path, scenario)


def test_a_provider_that_puts_less_at_risk_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        provider = await court.provider([arbiter], at_risk="500 uusd")
        requester = await court.requester(provider, arbiter)
        with pytest.raises(
            TaskError,
            match=r"0\.001000 USD at risk: .*0\.000500 USD are put at risk for one task at most; at_risk= asks",
        ):
            await compute(requester, arbiters=[arbiter.addresses[0]])
        monkeypatch.setenv("P2PCOMPUTE_AT_RISK", "500 uusd")  # as `p2pcompute run --at-risk` does
        assert np.array_equal(await compute(requester, arbiters=[arbiter.addresses[0]]), Z)

    in_court(tmp_path, scenario)


@pytest.mark.parametrize("why", ["no stake", "no arbiter", "gone", "twice"])
def test_arbiters_are_looked_at_before_anything_is_ordered(tmp_path: Path, why: str) -> None:
    async def scenario(court: Court) -> None:
        arbiter = await court.arbiter(staked=why != "no stake")
        provider = await court.provider([arbiter])
        requester = await court.requester(provider, arbiter)
        names = [arbiter.addresses[0]]
        match why:
            case "no stake":
                said = "minimum at stake"
            case "no arbiter":
                names, said = [provider.addresses[0]], "is no arbiter"
            case "gone":
                court.market.kill(arbiter)
                said = "can't be asked"
            case _:
                names, said = [arbiter.addresses[0], arbiter.peer_id], "one account"
        with pytest.raises(ConfigError, match=said):
            await compute(requester, arbiters=names)
        assert await requester.services.ledger.receipt_log() == []

    in_court(tmp_path, scenario)


def test_too_few_arbiters_take_nothing(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        arbiters = await court.arbiters(3)
        liar, honest = await court.liar(arbiters), await court.provider(arbiters)
        requester = await court.requester(liar, honest, *arbiters)
        evidence, pledge = await court.caught(requester, arbiters, arbiters_needed=3)
        # One of them can't tell: its machine takes for ever.
        slow = arbiters[2]
        slow._pool.faults = dataclasses.replace(slow._pool.faults, hangs_at=frozenset(range(64)))  # type: ignore[union-attr]
        with pytest.raises(NoVerdict, match=r"2 of the 3 arbiters .*, and 3 have to .*undecided"):
            await court.accuser(requester).by_verdict(evidence, pledge)
        assert await court.stakes(liar) == MIN_UUSD
        # It is as good as new for the next one: a kernel that never ends has cost it a worker.
        slow._pool.faults = dataclasses.replace(slow._pool.faults, hangs_at=frozenset())  # type: ignore[union-attr]
        assert (await court.accuser(requester).by_verdict(evidence, pledge)).taken_uusd == MIN_UUSD

    in_court(tmp_path, scenario)


def test_asking_for_the_stake_back_after_the_lie_does_not_save_it(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        liar, honest = await court.liar([arbiter]), await court.provider([arbiter])
        requester = await court.requester(liar, honest, arbiter)
        evidence, pledge = await court.caught(requester, [arbiter])
        status = await court.staking(liar).unstake()
        assert status.leaving_uusd == MIN_UUSD
        assert status.leave_at_s > pledge.terms.expires_s  # whatever is left of the pledge's time is enough
        court.wait(UNSTAKE_DELAY_S - 3_700)
        with pytest.raises(ConfigError, match="on their way out"):
            await court.staking(liar).unstake()
        assert (await court.accuser(requester).by_verdict(evidence, pledge)).taken_uusd == MIN_UUSD
        court.wait(4_000)
        with pytest.raises(ConfigError, match="nothing"):
            await court.staking(liar).unstake()

    in_court(tmp_path, scenario)


def test_what_is_on_its_way_out_when_the_work_begins_does_not_count(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        provider = await court.provider([arbiter], staked_uusd=2_000, at_risk="1500 uusd")
        await court.staking(provider).unstake(1_000)
        requester = await court.requester(provider, arbiter)
        with pytest.raises(NoProviderError, match=r"0\.001000 USD at stake, of 0\.001500 USD"):
            await compute(requester, arbiters=[arbiter.addresses[0]], at_risk="1500 uusd")

    in_court(tmp_path, scenario)


def test_evidence_that_is_none_gets_no_verdict(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        (arbiter,) = await court.arbiters(1)
        liar, honest = await court.liar([arbiter]), await court.provider([arbiter])
        requester = await court.requester(liar, honest, arbiter)
        evidence, pledge = await court.caught(requester, [arbiter])
        accuser = court.accuser(requester)
        flipped = bytearray(evidence)
        flipped[len(flipped) // 3] ^= 1
        for broken in (evidence[:-1], evidence + b"\0", bytes(flipped), b"x"):
            with pytest.raises(EvidenceError):
                await accuser.by_verdict(broken, pledge)
        # Who skips our own look at it is told the same by the arbiter.
        for broken in (evidence[:-1], bytes(flipped), b"x"):
            given, declined = await accuser._ask_all(broken, hashlib.sha256(broken).digest(), pledge, court.registry)
            assert not given
            assert list(declined) == [arbiter.peer_id]
        assert (await accuser.by_verdict(evidence, pledge)).taken_uusd == MIN_UUSD

    in_court(tmp_path, scenario)


def test_what_is_kept_of_a_pledge_goes_with_its_evidence(tmp_path: Path) -> None:
    store = EvidenceStore(directory=tmp_path / "evidence", run_sync=InlineExecutor(), max_files=1)
    agreement = case_of().agreement

    async def main() -> None:
        for name in ("chunk-1", "chunk-2"):
            assert await store.save(agreement, name, b"evidence", pledge=b"pledge") is not None

    trio.run(main)
    task = agreement.task_id.hex()[:16]
    assert sorted(path.name for path in store.directory.iterdir()) == [
        f"{task}-chunk-2.p2pevidence",
        f"{task}-chunk-2.p2ppledge",
    ]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("case.p2pevidence", None, "nothing at risk"),
        ("case.p2pevidence", "other.p2ppledge", "is no pledge"),
        ("one.p2preceipt", None, "alone proves nothing"),
        ("one.p2preceipt", "two.p2preceipt", "no receipt for a stake registry"),
        ("missing.p2preceipt", "two.p2preceipt", "can't be read"),
    ],
)
def test_files_that_nobody_can_be_accused_by(tmp_path: Path, first: str, second: str | None, said: str) -> None:
    for name in ("case.p2pevidence", "other.p2ppledge", "one.p2preceipt", "two.p2preceipt"):
        (tmp_path / name).write_bytes(b"\xa0")

    async def scenario(court: Court) -> None:
        requester = await court.requester()
        with pytest.raises(EvidenceError, match=said):
            await requester.accuse(tmp_path / first, None if second is None else tmp_path / second)

    in_court(tmp_path, scenario)


def test_options_that_ask_for_nothing_that_there_is(tmp_path: Path) -> None:
    for options in (
        {"arbiters": ["nobody"]},
        {"arbiters": "12D3KooW"},
        {"arbiters": ["/ip4/127.0.0.1/tcp/1"]},
        {"arbiters": [f"/ip4/127.0.0.1/tcp/{n}/p2p/x" for n in range(17)]},
        {"arbiters_needed": 1},
        {"at_risk": "1 USD"},
        {"min_stake": "much"},
    ):
        with pytest.raises(ConfigError):
            RunOptions(**options)
    with pytest.raises(ConfigError):
        ProviderOptions(arbiters=["nobody"])
    with pytest.raises(ConfigError, match="name the arbiters"):
        ProviderOptions(at_risk="1 USD")

    async def scenario(court: Court) -> None:
        node = await court.market.node()  # it knows no registry
        with pytest.raises(ConfigError, match="no stake registry"):
            await node.staking()
        with pytest.raises(ConfigError, match="no stake registry"):
            await node.arbitrate()

    in_court(tmp_path, scenario)


def test_a_node_is_one_arbiter_at_a_time(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        node = await court.node()
        refused: list[str] = []

        async def judge() -> None:
            try:
                await node.arbitrate()
            except ConfigError as error:
                refused.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(judge)
            nursery.start_soon(judge)  # at the same time: both are still looking for the registry
            await trio.sleep(1)
            await judge()
            assert refused == ["this node is an arbiter already"] * 2
            assert node.stake_service is not None
            assert node.stake_service.arbiter is not None
            nursery.cancel_scope.cancel()
        assert node.stake_service.arbiter is None

    in_court(tmp_path, scenario)


def test_stakes_are_put_in_and_taken_out_in_steps(tmp_path: Path) -> None:
    async def scenario(court: Court) -> None:
        node = await court.node()
        staking = court.staking(node)
        for amount, cores, said in (
            (MIN_UUSD - 1, None, "least stake"),
            (MIN_UUSD + 1, None, "--cores 11"),
            (MIN_UUSD, 2**64, "reference cores"),
            (0, None, "at least 0.000001 USD"),
        ):
            with pytest.raises(ConfigError, match=said):
                await staking.stake(amount, cores=cores)
        with pytest.raises(InsufficientFunds):
            await staking.stake(MIN_UUSD)
        with pytest.raises(ConfigError, match="nothing is staked"):
            await staking.unstake()
        await court.stake(node, 2_500)
        status = await staking.status()
        assert (status.stake_uusd, status.active, status.at_risk_uusd, status.cap_uusd) == (2_500, True, 2_500, 2_500)
        assert node.services.stake is not None
        assert status.receipt_key == node.services.stake.receipt_key.address
        with pytest.raises(ConfigError, match="leave at least"):
            await staking.unstake(1_501)
        status = await staking.unstake(1_500)
        assert (status.leaving_uusd, status.active) == (1_500, True)
        with pytest.raises(
            ConfigError, match=r"on their way out; run this again from \d{4}-\d\d-\d\d \d\d:\d\d UTC on"
        ):
            await staking.unstake()
        court.wait(UNSTAKE_DELAY_S)
        status = await staking.unstake()
        assert (status.stake_uusd, status.leaving_uusd, status.credit_uusd) == (1_000, 0, 0)
        assert court.bench.tokens(node.services.wallet.address) == 1_500

    in_court(tmp_path, scenario)


def test_a_hire_goes_only_to_who_has_enough_at_stake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(court: Court) -> None:
        bare, staked = await court.provider([], staked_uusd=0, price="0.01 USD"), await court.provider([])
        requester = await court.requester(bare, staked)
        monkeypatch.setenv("P2PCOMPUTE_MIN_STAKE", "1000 uusd")
        shown = (axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y)
        watch = Watch()
        async with requester.hire(*shown, budget="0.10 USD", on_event=watch) as hired:
            assert np.array_equal(await hired.run(np.float32(2), X, Y), Z)
        assert [event.provider for event in watch.of(Agreed)] == [staked.peer_id]
        with pytest.raises(NoProviderError, match="at stake"):
            async with requester.hire(*shown, min_stake="1001 uusd"):
                pass
        monkeypatch.setenv("P2PCOMPUTE_ARBITERS", staked.addresses[0])
        with pytest.raises(ConfigError, match="a hire has no arbiters"):
            async with requester.hire(*shown):
                pass

    in_court(tmp_path, scenario)


async def hire(node: Node, **options: Any) -> None:
    async with node.hire(axpy, p2p.out(Y.shape, Y.dtype), np.float32(2), X, Y, **options):
        pass


@pytest.mark.parametrize("work", [compute, iterate, hire])
def test_an_endpoint_of_ours_that_fails_is_no_provider_s_fault(
    tmp_path: Path, work: Callable[..., Awaitable[Any]]
) -> None:
    async def down(_: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        raise ChainUnreachable("no answer")

    async def scenario(court: Court) -> None:
        provider = await court.provider([])
        requester = await court.requester(provider)
        assert requester.services.stake is not None
        broken = Registry(place=court.registry.place, chain=court.registry.chain, read=down)

        async def registry() -> Registry:
            await trio.lowlevel.checkpoint()
            return broken

        requester.services.stake.open_registry = registry
        with pytest.raises((NoProviderError, TaskError), match="no answer"):
            await work(requester, min_stake="1000 uusd")
        assert requester.services.books.standing(provider.peer_id).failures == 0

    in_court(tmp_path, scenario)
