"""Tasks whose chunks are done by two providers, on a whole market under virtual time."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import trio

import p2pcompute as p2p
from p2pcompute.errors import ConfigError, TaskError
from p2pcompute.tasks import ChunkAssigned, ChunkDone, LiarCaught, Paid, SecondCopyHere
from p2pcompute.testing import WorkerFaults

from ..market._harness import Market, Watch, Z, compute, in_memory
from ._disputes import judge


def one_bit(output: bytes, index: int) -> bytes:
    """A lie in one row of a chunk of 256: samples would hardly meet it."""
    return output[:100] + bytes([output[100] ^ 1]) + output[101:]


def paid_by(watch: Watch) -> dict[str, int]:
    return {event.provider: event.paid_uusd for event in watch.of(Paid)}


def test_every_chunk_is_done_by_two_and_both_are_paid() -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider(price="5 USD") for _ in range(2)]
        requester = await market.node(connect=tuple(providers))
        once = Watch()
        assert np.array_equal(await compute(requester, watch=once), Z)
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0), Z)
        given = Counter((event.provider, event.index) for event in watch.of(ChunkAssigned))
        assert set(given) == {(provider.peer_id, index) for provider in providers for index in range(16)}
        assert sorted(event.index for event in watch.of(ChunkDone)) == list(range(16))
        assert all(event.checked == 1 for event in watch.of(ChunkDone))
        paid = paid_by(watch)
        assert len(paid) == 2
        assert max(paid.values()) - min(paid.values()) <= 1
        assert sum(paid.values()) == pytest.approx(2 * sum(paid_by(once).values()), abs=3)

    in_memory(scenario)


def test_a_lie_in_one_row_is_caught_and_without_a_quorum_it_is_not(tmp_path: Path) -> None:
    found: list[str] = []

    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=one_bit, price="0.01 USD")
        honest = await market.provider(price="5 USD")
        naive = await market.node(connect=(liar, honest))
        trusting = Watch()
        assert not np.array_equal(await compute(naive, watch=trusting, samples=0), Z)  # the attack
        assert paid_by(trusting)[liar.peer_id] > 0
        requester = await market.node(connect=(liar, honest), evidence=tmp_path)
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0), Z)
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        assert caught.evidence is not None
        found.append(caught.evidence)
        assert liar.peer_id not in paid_by(watch)
        known = await requester.services.ledger.peer(liar.peer_id)
        assert known is not None
        assert known.banned
        assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}

    in_memory(scenario)
    verdict = judge(found[0])
    assert (verdict.wrong, verdict.kind) == ("provider", "result")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_share_of_the_chunks_is_done_twice(share: float) -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(3)]
        requester = await market.node(connect=tuple(providers))
        watch = Watch()
        options = {"check": "quorum", "quorum_share": share}
        assert np.array_equal(await compute(requester, watch=watch, **options), Z)
        given = Counter(event.index for event in watch.of(ChunkAssigned))
        assert sum(given.values()) == 16 + share * 16
        assert max(given.values()) == (2 if share else 1)

    in_memory(scenario)


def test_where_there_is_nobody_else_we_compute_it_ourselves_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(market: Market) -> None:
        provider = await market.provider(price="5 USD")
        requester = await market.node(connect=(provider,))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0), Z)
        assert paid_by(watch)[provider.peer_id] > 0
        here = watch.of(SecondCopyHere)  # and that is said, of each chunk
        assert sorted(event.index for event in here) == list(range(16))
        assert {(event.provider, event.reason) for event in here} == {
            (provider.peer_id, "no second provider is to be had for it")
        }
        (told,) = [record for record in caplog.records if "done a second time here" in record.message]
        assert told.levelno == logging.WARNING

    async def without_honest(market: Market) -> None:
        liar = await market.provider(fault=one_bit)
        requester = await market.node(connect=(liar,))
        watch = Watch()
        with pytest.raises(TaskError):
            await compute(requester, watch=watch, check="quorum", samples=0)
        assert len(watch.of(LiarCaught)) == 1
        assert paid_by(watch) == {}

    in_memory(scenario)
    in_memory(without_honest)


@pytest.mark.parametrize("together", [True, False])
def test_colluders_of_one_subnet_are_never_compared_with_each_other(together: bool) -> None:
    """The attack: two identities of one owner that lie alike. In two subnets they get through, which remains."""

    async def scenario(market: Market) -> None:
        liars = [await market.provider(fault=one_bit) for _ in range(2)]
        requester = await market.node(connect=tuple(liars))
        for number, liar in enumerate(liars):
            market.memory.place(liar.peer_id, f"198.51.{0 if together else number}.{number + 1}")
        watch = Watch()
        if together:
            with pytest.raises(TaskError):
                await compute(requester, watch=watch, check="quorum", samples=0)
            assert {event.provider for event in watch.of(LiarCaught)} == {liar.peer_id for liar in liars}
            assert paid_by(watch) == {}
        else:
            result = await compute(requester, watch=watch, check="quorum", samples=0)
            assert not np.array_equal(result, Z)
            # Samples are ours, whoever agrees on what: 256 of 256 rows here.
            again = Watch()
            with pytest.raises(TaskError):
                await compute(requester, watch=again, check="quorum", samples=256)
            assert again.of(LiarCaught)

    in_memory(scenario)


def test_providers_that_leave_or_fail_hold_up_nobody() -> None:
    async def scenario(market: Market) -> None:
        leaves = await market.provider()
        weak = await market.provider(workers=market.workers(faults=WorkerFaults(dies_at=frozenset({8}))))
        stays = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=(leaves, weak, *stays))
        done: list[int] = []

        def react(event: object) -> None:
            if isinstance(event, ChunkDone):
                done.append(event.index)
                if len(done) == 3:
                    market.kill(leaves)

        watch = Watch(react)
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0, chunks=32), Z)
        assert sorted(done) == list(range(32))
        assert not watch.of(LiarCaught)

    in_memory(scenario)


def test_who_keeps_a_second_copy_is_waited_for_once() -> None:
    """The attack: take the second copy of a chunk and never give it, so that every chunk waits for it."""

    async def scenario(market: Market) -> None:
        honest = await market.provider()
        sits = [await market.provider(workers=market.workers(chunk_s=100_000.0)) for _ in range(2)]
        requester = await market.node(connect=(honest, *sits))
        watch = Watch()
        began = trio.current_time()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0), Z)
        assert {event.provider for event in watch.of(ChunkDone)} == {honest.peer_id}
        assert trio.current_time() - began < 30  # virtual seconds: 14 here, and 64 where chunk after chunk waits

    in_memory(scenario)


def test_who_leaves_while_results_are_compared_is_judged_all_the_same() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(fault=one_bit)
        honest = await market.provider(workers=market.workers(chunk_s=2.0))
        requester = await market.node(connect=(liar, honest))
        begun = trio.Event()

        def react(event: object) -> None:
            if isinstance(event, ChunkAssigned) and event.provider == liar.peer_id:
                begun.set()

        async def leave() -> None:
            await begun.wait()
            await trio.sleep(1.0)  # its result has come, and waits for the honest one's
            market.kill(liar)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            watch = Watch(react)
            assert np.array_equal(await compute(requester, watch=watch, check="quorum", samples=0, chunks=4), Z)
        known = await requester.services.ledger.peer(liar.peer_id)
        assert known is not None
        assert "had left" in known.banned
        assert liar.peer_id not in paid_by(watch)

    in_memory(scenario)


def test_a_liar_that_is_caught_by_a_sample_takes_back_what_it_has_settled() -> None:
    """It agrees with an honest provider for a while, and then lies where nothing is compared."""

    async def scenario(market: Market) -> None:
        lies: list[int] = []

        def late(output: bytes, index: int) -> bytes:
            lies.append(index)
            return bytes(len(output)) if len(lies) > 10 else output

        liar = await market.provider(fault=late, price="0.01 USD")
        honest = [await market.provider() for _ in range(2)]
        requester = await market.node(connect=(liar, *honest))
        watch = Watch()
        assert np.array_equal(await compute(requester, watch=watch, check="quorum", quorum_share=0.5, chunks=32), Z)
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        last = {event.index: event.provider for event in watch.of(ChunkDone)}
        assert set(last) == set(range(32))
        assert liar.peer_id not in last.values()

    in_memory(scenario)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"check": "nonsense"}, "check is 'nonsense'"),
        ({"check": "quorum", "max_providers": 1}, "takes at least 2"),
        ({"quorum_share": 0.5, "check": "sample"}, 'write check="quorum" too'),
        ({"quorum_share": 1.5}, "from 0 to 1"),
        ({"quorum_share": "all"}, "from 0 to 1"),
        ({"quorum_share": True}, "from 0 to 1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        p2p.RunOptions(**options)  # type: ignore[arg-type]
