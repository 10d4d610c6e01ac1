"""Rogues in work in rounds: what each tries, what it gets, and that the result is right all the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from p2pcompute.checking import DEFAULT_TOLERANCE, SampleReport, read_evidence, two_results_evidence, verify_evidence
from p2pcompute.checking._rounds import RoundSampler
from p2pcompute.errors import EvidenceError, StorageError, TaskError
from p2pcompute.market import OrderRefused
from p2pcompute.node import Node
from p2pcompute.tasks import (
    Agreed,
    ChunkDone,
    LiarCaught,
    Paid,
    ProviderLost,
    ProviderRefused,
    TaskStarted,
    _round_provider,
)
from p2pcompute.tasks._round_link import RoundLink
from p2pcompute.testing import InlineWorkers, WorkerFaults
from p2pcompute_protocols.evidence import EvidenceFile
from p2pcompute_protocols.limits import MAX_EVIDENCE_BYTES
from p2pcompute_protocols.negotiation import CheckPolicy
from p2pcompute_protocols.task import PROTOCOL_ID, open_receipt, seal_receipt
from p2pcompute_protocols.work import ArrayArg, BlobRef, LaunchSpec, NextArg, RoundLaunch, RoundWork

from ..market._harness import Market, Watch, in_memory
from ..market._rogues import open_rogue
from ._rounds import DT, START, drift, expected, iterate, same


def lies(node: Node, fault: Any) -> None:
    assert node.provider is not None
    node.provider.tasks.round_fault = fault


def skipped(_: int, arrays: list[bytearray]) -> Sequence[bytes]:
    """A lie: every round leaves one value as no computation would."""
    x = np.frombuffer(bytes(arrays[0]), np.float32).copy()
    x[:100] += 1
    return [x.tobytes(), bytes(arrays[1])]


def units(watch: Watch) -> int:
    return int(watch.of(TaskStarted)[0].units_per_chunk)


async def paid_units(market: Market, node: Node, watch: Watch) -> int:
    """Units of work that all providers were paid for, by what the requester has signed away."""
    price = watch.of(Agreed)[0].price_pusd
    return await market.spent_uusd(node) * 1_000_000 // price


def test_a_liar_is_caught_before_it_is_paid_and_shown_to_others(tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(price="0.01 USD")
        lies(liar, skipped)
        honest = await market.provider(price="0.05 USD")
        node = await market.node(connect=(liar, honest), evidence=tmp_path)
        watch = Watch()
        assert same(await iterate(node, watch=watch), expected(40))  # the cheaper one is asked first
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        assert caught.paid_uusd == 0
        assert await market.claimed_uusd(liar) == 0
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.kind) == ("provider", liar.peer_id, "round")

    in_memory(scenario)


def test_samples_find_a_lie_that_unchecked_rounds_hide() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider()
        lies(liar, skipped)
        node = await market.node(connect=(liar,))
        assert not same(await iterate(node, check="none"), expected(40))  # without the defence it is believed
        with pytest.raises(TaskError, match="samples of chunk 0 differ"):
            await iterate(node)

    in_memory(scenario)


def made_up_digests(output: bytes, _: int) -> bytes:
    return bytes(32) + output[32:]


@pytest.mark.parametrize("what", ["digests", "withheld", "short", "other"])
def test_who_can_not_be_sampled_is_unpaid_and_out(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _round_provider.give_state

    async def scenario(market: Market) -> None:
        rogue = await market.provider(**({"fault": made_up_digests} if what == "digests" else {}))
        node = await market.node(connect=(rogue,))
        watch = Watch()

        async def give(dialogue: Any, state: Any, number: int, moved: Any) -> None:
            if what == "withheld":
                state = None
            elif what == "other":
                state = _round_provider.StateBytes.of([bytes(len(array)) for array in state.arrays])
            elif what == "short":
                short = [array[:-4] for array in state.arrays]
                state = _round_provider.StateBytes(arrays=tuple(short), digests=state.digests, digest=state.digest)
            await real(dialogue, state, number, moved)

        if what != "digests":
            monkeypatch.setattr("p2pcompute.tasks._provider_session.give_state", give)
        with pytest.raises(TaskError, match="all providers are gone with 0 of 40 rounds done"):
            await iterate(node, watch=watch, check_rounds=2, rounds_per_chunk=2)
        assert await market.spent_uusd(node) == 0
        assert len(watch.of(Agreed)) == 1  # a breach of the protocol: it is not asked again
        monkeypatch.undo()
        honest = await market.provider()
        await node.services.overlay.connect(honest.addresses[0])
        assert same(await iterate(node), expected(40))

    in_memory(scenario)


def test_a_lost_provider_s_rounds_go_on_elsewhere_and_nothing_is_paid_twice() -> None:
    async def scenario(market: Market) -> None:
        providers = {node.peer_id: node for node in [await market.provider(max_window=1) for _ in range(2)]}
        node = await market.node(connect=tuple(providers.values()))

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and event.index == 2 and len(watch.of(Agreed)) == 1:
                market.kill(providers[event.provider])

        watch = Watch(react)
        chosen = {"rounds": 40, "state": START, "args": (DT,), "rounds_per_chunk": 8, "on_event": watch}
        async with node.rounds(drift, **chosen) as rounds:
            seen = [(done.number, done.provider) async for done in rounds]
        assert same(rounds.state, expected(40))
        assert rounds.done == 40
        first, second = watch.of(Agreed)
        assert first.provider != second.provider
        assert [number for number, _ in seen] == sorted(number for number, _ in seen)  # what was checked may come again
        numbers = [number for number, who in seen if who == second.provider]
        began = numbers[0]
        assert began in (17, 25)  # behind the last state that was paid
        assert numbers == list(range(began, 41))
        # What was paid for is 40 rounds and no more.
        paid = await paid_units(market, node, watch)
        assert 5 * units(watch) <= paid <= 5 * units(watch) + 2 * 1_000_000 // first.price_pusd

    in_memory(scenario)


def test_a_successor_that_goes_on_from_another_state_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = _round_provider.RoundStates.begin
    stale: list[Any] = []

    def begin(self: Any, blobs: Any) -> None:
        real(self, blobs)
        if self._work.first and not stale:  # it has been here before, and takes what it knows
            stale.append(self._work.first)
            self._kept[0] = _round_provider.StateBytes.of([START["x"].tobytes(), START["v"].tobytes()])

    monkeypatch.setattr(_round_provider.RoundStates, "begin", begin)

    async def scenario(market: Market) -> None:
        providers = {node.peer_id: node for node in [await market.provider() for _ in range(3)]}
        node = await market.node(connect=tuple(providers.values()))

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and event.index == 4 and len(watch.of(Agreed)) == 1:
                market.kill(providers[event.provider])

        watch = Watch(react)
        found = await iterate(node, watch=watch, rounds_per_chunk=2, check_rounds=2)
        assert same(found, expected(40))
        first, second, third = (event.provider for event in watch.of(Agreed))
        assert [event.provider for event in watch.of(LiarCaught)] == [second]
        assert len({first, second, third}) == 3
        assert await market.claimed_uusd(providers[second]) == 0

    in_memory(scenario)


def test_questions_about_states_end_where_the_protocol_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    real = _round_provider.give_state

    async def counted(dialogue: Any, state: Any, number: int, moved: Any) -> None:
        given.append(number)
        await real(dialogue, state, number, moved)

    monkeypatch.setattr("p2pcompute.tasks._provider_session.give_state", counted)

    async def greedy(self: RoundLink) -> None:
        self.connection._may_ask = 10**6  # its own side would not let it
        while True:
            await self.state(3)

    monkeypatch.setattr(RoundLink, "_keep", greedy)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        with pytest.raises(TaskError):
            await iterate(node)
        assert len(given) <= 2 * 8  # of two agreements
        assert await market.claimed_uusd(provider) == 0
        assert not provider.provider.tasks.active

    in_memory(scenario)


def test_states_that_are_not_kept_are_computed_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_round_provider, "KEPT_BYTES", 1)  # those at the ends of chunks are kept all the same
    ran: list[tuple[int, int]] = []
    real = _round_provider.RoundsWorker._run

    async def run(self: Any, state: Any, at: int, count: int, deadline: float) -> Any:
        ran.append((at, count))
        return await real(self, state, at, count, deadline)

    monkeypatch.setattr(_round_provider.RoundsWorker, "_run", run)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        assert same(await iterate(node, check_rounds=2), expected(40))
        rounds = sum(count for _, count in ran)
        assert 40 <= rounds <= 40 + 2 * 40  # both drawn rounds of a chunk from its beginning, at worst
        assert any(count < 8 for _, count in ran)

        async def greedy(self: RoundLink) -> None:
            for number in (7, 6) * 3:  # each time from the beginning
                await self.state(number)

        ran.clear()
        monkeypatch.setattr(RoundLink, "_keep", greedy)
        with pytest.raises(TaskError, match="let go of"):
            await iterate(node, check="none")
        again = sum(count for _, count in ran) - sum(count for at, count in ran if at % 8 == 0 and count == 8)
        assert again <= 2 * 3 * 8  # of one chunk, at two agreements

    in_memory(scenario)


def test_rounds_are_not_sold_at_the_price_of_fast_mode() -> None:
    array = ArrayArg(dtype="uint8", shape=(8,), digest=bytes(32))
    launch = RoundLaunch(
        kernel=BlobRef(digest=b"k" * 32, size=9),
        entry="step",
        launch=LaunchSpec(dims=1, grid=(1, 1, 1), block=(8, 1, 1)),
        args=(NextArg(array=0),),
        splits=(),
    )
    work: Any = RoundWork(
        launches=(launch,), state=(array,), first=0, rounds=8, rounds_per_chunk=4, units_per_chunk=1_000
    )

    async def scenario(market: Market) -> None:
        provider = await market.provider(price="0.05 USD", fast_price="0.001 USD")
        fast = CheckPolicy(kind="sample", per_chunk=8, tolerance=DEFAULT_TOLERANCE)
        async with open_rogue(market, connect=(provider,)) as rogue:
            assert isinstance((await rogue.agree(provider, work)).terms.work, RoundWork)
            with pytest.raises(OrderRefused, match="strict mode only"):
                await rogue.agree(provider, work, fp="fast", check=fast)

    in_memory(scenario)


@pytest.mark.parametrize("state_bytes", [1, 1_000, 2**20, 2**26])
def test_what_is_kept_is_bounded_however_small_a_state_is(state_bytes: int) -> None:
    array = ArrayArg(dtype="uint8", shape=(state_bytes,), digest=bytes(32))
    launch = RoundLaunch(
        kernel=BlobRef(digest=b"k" * 32, size=9),
        entry="step",
        launch=LaunchSpec(dims=1, grid=(1, 1, 1), block=(1, 1, 1)),
        args=(NextArg(array=0),),
        splits=(),
    )
    work = RoundWork(
        launches=(launch,), state=(array,), first=0, rounds=2**20 - 1, rounds_per_chunk=2**17, units_per_chunk=1
    )
    held: list[int] = []
    with _round_provider.RoundStates(work, window=3, hold=held.append) as states:
        chunks = 4 * -(-work.rounds_per_chunk // states.stride)  # what is kept of four chunks
        assert 1 <= states.stride <= work.rounds_per_chunk
        assert chunks * (state_bytes + 512) <= max(2 * _round_provider.KEPT_BYTES, 5 * (state_bytes + 512))


def test_a_worker_that_dies_ends_the_leg_and_not_the_task() -> None:
    async def scenario(market: Market) -> None:
        weak = await market.provider(
            workers=market.workers(faults=WorkerFaults(dies_at=frozenset({20}))), price="0.01 USD"
        )
        strong = await market.provider(price="0.02 USD")
        node = await market.node(connect=(weak, strong))
        watch = Watch()
        assert same(await iterate(node, watch=watch), expected(40))
        (refused,) = watch.of(ProviderRefused)
        assert refused.provider == weak.peer_id
        assert "execution_failed" in refused.reason

    in_memory(scenario)


def test_states_are_overwritten_when_the_task_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    real = _round_provider.RoundStates.add

    def add(self: Any, state: Any) -> None:
        held.extend(state.arrays)
        real(self, state)

    monkeypatch.setattr(_round_provider.RoundStates, "add", add)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))

        def react(event: Any) -> None:
            if isinstance(event, Paid):
                scope.cancel()

        with trio.CancelScope() as scope:
            await iterate(node, watch=Watch(react))
        await trio.sleep(5)
        assert not provider.provider.tasks.active
        assert len(held) >= 16
        assert not any(any(array) for array in held)

    in_memory(scenario)


def test_two_receipts_for_one_chunk_of_rounds_convict_without_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    links: list[RoundLink] = []
    real = RoundLink.run

    async def run(self: RoundLink) -> None:
        links.append(self)
        await real(self)

    monkeypatch.setattr(RoundLink, "run", run)

    async def scenario(market: Market) -> None:
        provider = await market.provider()
        node = await market.node(connect=(provider,))
        await iterate(node)
        (link,) = links
        _, payload = open_receipt(
            link.receipts[4][0],
            network=link.agreement.network,
            provider=provider.peer_id,
            task=link.agreement.task_id,
            index=4,
        )
        signer = provider.services.key
        other = seal_receipt(
            dataclasses.replace(payload, output=bytes(32)), network=link.agreement.network, signer=signer
        )
        receipts = link.receipts[4][0], other
        dead = InlineWorkers(faults=WorkerFaults(dies_at=frozenset(range(99))))
        made = two_results_evidence(link.agreement, receipts, 4, signer=node.services.key, now_ms=node.now_ms())
        verdict = await verify_evidence(made, workers=dead)
        assert (verdict.wrong, verdict.peer) == ("provider", provider.peer_id)
        # Its own ledger would not have signed the second one.
        with pytest.raises(StorageError):
            await provider.services.ledger.record_receipt(
                dataclasses.replace(payload, output=bytes(32)), sign=lambda _: other
            )

    in_memory(scenario)


def test_who_accuses_an_honest_provider_of_a_round_loses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def scenario(market: Market) -> None:
        honest = await market.provider()
        node = await market.node(connect=(honest,), evidence=tmp_path)
        watch = Watch()

        async def check(self: Any, *_: Any) -> SampleReport:
            return SampleReport(checked=9, mismatched=1)  # what a requester that won't pay would say

        monkeypatch.setattr(RoundSampler, "check", check)
        with pytest.raises(TaskError):
            await iterate(node, watch=watch)
        (caught,) = watch.of(LiarCaught)
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer) == ("accuser", node.peer_id)
        # A file whose parts are left out decides nothing, and one with others is none.
        file = EvidenceFile.decode(read_evidence(Path(caught.evidence)), max_bytes=MAX_EVIDENCE_BYTES)
        for left_out in range(len(file.blobs)):
            blobs = (*file.blobs[:left_out], *file.blobs[left_out + 1 :])
            try:
                partly = await verify_evidence(dataclasses.replace(file, blobs=blobs).encode(), workers=InlineWorkers())
            except EvidenceError:
                continue  # what only the list that is left out names is named by nothing now
            assert partly.wrong == "undecided"
            whole = dataclasses.replace(file, blobs=blobs).encode()
            again = await verify_evidence(whole, blobs=file.blobs, workers=InlineWorkers())
            assert again.wrong == "accuser"
        other = dataclasses.replace(file, blobs=(*file.blobs, b"something else"))
        with pytest.raises(EvidenceError, match="nothing names"):
            await verify_evidence(other.encode())

    in_memory(scenario)


# Two providers


def test_two_providers_agree_and_both_are_paid() -> None:
    async def scenario(market: Market) -> None:
        providers = [await market.provider() for _ in range(2)]
        node = await market.node(connect=tuple(providers))
        watch = Watch()
        assert same(await iterate(node, watch=watch, check="quorum"), expected(40))
        assert {event.provider for event in watch.of(ChunkDone)} == {one.peer_id for one in providers}
        claimed = [await market.claimed_uusd(one) for one in providers]
        assert min(claimed) > 0
        assert sum(claimed) == await market.spent_uusd(node)

    in_memory(scenario)


def late(number: int, arrays: list[bytearray]) -> Sequence[bytes | bytearray]:
    """One bit of one element, once: no sample finds that."""
    if number == 21:
        arrays[0][40] ^= 1
    return arrays


@pytest.mark.parametrize("spare", [0, 1])
def test_one_wrong_bit_is_found_by_a_quorum_and_shown_to_others(tmp_path: Path, spare: int) -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider(price="0.01 USD")
        lies(liar, late)
        others = [await market.provider(price="0.02 USD") for _ in range(1 + spare)]
        node = await market.node(connect=(liar, *others), evidence=tmp_path)
        watch = Watch()
        assert same(await iterate(node, watch=watch, check="quorum", samples=4), expected(40))
        (caught,) = watch.of(LiarCaught)
        assert caught.provider == liar.peer_id
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.round) == ("provider", liar.peer_id, 21)
        assert verdict.claimed != verdict.computed

    in_memory(scenario)


@pytest.mark.parametrize("how", ["leaves", "withholds"])
def test_a_liar_that_leaves_before_its_rounds_are_compared_is_caught_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its digests are here and signed: neither leaving nor withholding the state before the lie undoes that."""
    real, run = _round_provider.RoundsWorker.state, _round_provider.RoundsWorker.run_blocks

    async def scenario(market: Market) -> None:
        liar = await market.provider(price="0.01 USD")
        lies(liar, late)
        honest = await market.provider(price="0.02 USD")
        node = await market.node(connect=(liar, honest), evidence=tmp_path)

        async def slowly(self: Any, *args: Any, **options: Any) -> Any:
            if self._fault is None:
                await trio.sleep(6)  # the honest one's digests come later
            return await run(self, *args, **options)

        async def state(self: Any, number: int, *, timeout_s: float) -> Any:
            if self._fault is None or number != 20:
                return await real(self, number, timeout_s=timeout_s)
            if how == "leaves":  # the question has told it that it is found out
                assert market.memory.reset_streams(liar.peer_id, PROTOCOL_ID)
            return None

        monkeypatch.setattr(_round_provider.RoundsWorker, "run_blocks", slowly)
        monkeypatch.setattr(_round_provider.RoundsWorker, "state", state)
        watch = Watch()
        assert same(await iterate(node, watch=watch, check="quorum", samples=4), expected(40))
        (caught,) = watch.of(LiarCaught)
        assert (caught.provider, caught.index) == (liar.peer_id, 2)
        assert node.services.books.banned == {liar.peer_id}
        verdict = await verify_evidence(Path(caught.evidence), workers=InlineWorkers())
        assert (verdict.wrong, verdict.peer, verdict.round) == ("provider", liar.peer_id, 21)

    in_memory(scenario)


def test_where_there_is_no_second_provider_we_compute_the_rounds() -> None:
    async def scenario(market: Market) -> None:
        liar = await market.provider()
        lies(liar, late)
        node = await market.node(connect=(liar,))
        assert not same(await iterate(node, check="none"), expected(40))
        watch = Watch()
        with pytest.raises(TaskError):
            await iterate(node, check="quorum", samples=4, watch=watch)
        assert [event.provider for event in watch.of(LiarCaught)] == [liar.peer_id]

    in_memory(scenario)


def test_a_quorum_goes_on_when_one_is_gone() -> None:
    async def scenario(market: Market) -> None:
        providers = {one.peer_id: one for one in [await market.provider() for _ in range(3)]}
        node = await market.node(connect=tuple(providers.values()))

        def react(event: Any) -> None:
            if isinstance(event, ChunkDone) and event.index == 1 and not killed:
                killed.append(event.provider)
                market.kill(providers[event.provider])

        killed: list[Any] = []
        watch = Watch(react)
        assert same(await iterate(node, watch=watch, check="quorum"), expected(40))
        assert [event.provider for event in watch.of(ProviderLost)] == killed

    in_memory(scenario)
