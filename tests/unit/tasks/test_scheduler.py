"""The chunk scheduler against a model of it, and its rules one by one."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pcompute.tasks._scheduler import ChunkScheduler
from p2pcompute_protocols.ids import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
LAST = PeerId("last")
PEERS = st.sampled_from([A, B, C])


class SchedulerMachine(RuleBasedStateMachine):
    """The model: where each chunk is, who may not have it, and how often one was put back or given out twice."""

    @initialize(chunks=st.integers(1, 12))
    def begin(self, chunks: int) -> None:
        self.scheduler = ChunkScheduler(chunks)
        self.running: dict[int, dict[PeerId, float]] = {}
        self.done: dict[int, PeerId] = {}
        self.refused: dict[int, set[PeerId]] = {}
        self.requeued = 0
        self.now = 0.0

    @property
    def pending(self) -> set[int]:
        return set(range(self.scheduler.chunks)) - self.running.keys() - self.done.keys()

    def may_have(self, provider: PeerId) -> set[int]:
        return {index for index in self.pending if provider not in self.refused.get(index, set())}

    @rule(seconds=st.sampled_from([0.1, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(provider=PEERS)
    def take(self, provider: PeerId) -> None:
        free = self.may_have(provider)
        hedge_at = self.scheduler.hedge_at(provider)
        index = self.scheduler.take(provider, self.now)
        if free:
            assert index == min(free)
        elif index is None:
            assert hedge_at is None or hedge_at > self.now
            return
        else:
            # A further copy of a late chunk of others.
            assert hedge_at is not None
            assert hedge_at <= self.now
            assert provider not in self.running[index]
            assert self.running[index]
            assert self.now - max(self.running[index].values()) >= 2 ** (len(self.running[index]) - 1)
            assert math.inf not in self.running[index].values()
            assert provider not in self.refused.get(index, set())
            self.requeued += 1
        self.running.setdefault(index, {})[provider] = self.now

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def come(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.running)))
        provider = data.draw(st.sampled_from(sorted(self.running[index])))
        self.scheduler.came(index, provider, self.now)
        self.running[index][provider] = math.inf
        for other in {A, B, C} - self.running[index].keys():
            taken = self.scheduler.hedge_at(other)
            assert taken is None or taken < math.inf

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.running)))
        provider = data.draw(st.sampled_from(sorted(self.running[index])))
        others = self.scheduler.finish(index, provider, self.now)
        assert others == [other for other in self.running.pop(index) if other != provider]
        self.done[index] = provider

    @rule(data=st.data(), provider=PEERS)
    def answer_late(self, data: st.DataObject, provider: PeerId) -> None:
        """A result of a chunk that was taken away from its provider meanwhile, or that is done."""
        index = data.draw(st.integers(0, self.scheduler.chunks - 1))
        if index in self.done:
            assert self.scheduler.finish(index, provider, self.now) is None
            return
        others = self.scheduler.finish(index, provider, self.now)
        assert others == [other for other in self.running.pop(index, {}) if other != provider]
        self.done[index] = provider

    @rule(data=st.data(), provider=PEERS, for_good=st.booleans())
    def fail(self, data: st.DataObject, provider: PeerId, for_good: bool) -> None:
        index = data.draw(st.integers(0, self.scheduler.chunks - 1))
        self.scheduler.fail(index, provider, for_good=for_good)
        if for_good:
            self.refused.setdefault(index, set()).add(provider)
        self._goes_back(index, provider)

    def _goes_back(self, index: int, provider: PeerId) -> None:
        copies = self.running.get(index, {})
        if copies.pop(provider, None) is not None and not copies:
            del self.running[index]
            self.requeued += 1

    @rule(provider=PEERS)
    def lose(self, provider: PeerId) -> None:
        mine = [index for index, copies in self.running.items() if provider in copies]
        assert sorted(self.scheduler.lost(provider)) == sorted(mine)
        for index in mine:
            self._goes_back(index, provider)

    @rule(provider=PEERS)
    def revoke(self, provider: PeerId) -> None:
        mine = sorted(index for index, who in self.done.items() if who == provider)
        assert self.scheduler.done_by(provider) == mine
        assert self.scheduler.revoke(provider) == mine
        for index in [index for index, copies in self.running.items() if provider in copies]:
            self._goes_back(index, provider)
        for index in mine:
            del self.done[index]
        self.requeued += len(mine)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        assert scheduler.done == len(self.done)
        assert scheduler.running == len(self.running)
        assert scheduler.is_complete == (len(self.done) == scheduler.chunks)
        assert scheduler.requeued == self.requeued
        assert scheduler.orphans([A, B]) == sorted(
            index for index in self.pending if {A, B} <= self.refused.get(index, set())
        )

    def teardown(self) -> None:
        """Whatever happened: who comes last can do everything that is not done, each chunk once."""
        if not hasattr(self, "scheduler"):
            return
        for provider in (A, B, C):
            self.scheduler.lost(provider)
        taken: list[int] = []
        while (index := self.scheduler.take(LAST, self.now)) is not None:
            taken.append(index)
            assert self.scheduler.finish(index, LAST, self.now) == []
        assert sorted(taken) == sorted(set(range(self.scheduler.chunks)) - self.done.keys())
        assert self.scheduler.is_complete


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_chunks_go_out_in_order_and_each_once() -> None:
    scheduler = ChunkScheduler(4)
    assert [scheduler.take(provider, 0) for provider in (A, B, A, B)] == [0, 1, 2, 3]
    assert scheduler.take(A, 0) is None


def test_a_late_chunk_is_given_out_a_second_time_and_the_first_answer_counts() -> None:
    scheduler = ChunkScheduler(4)
    for index in range(3):
        assert scheduler.take(A, 0) == index
        scheduler.finish(index, A, 2.0)  # the median is two seconds
    assert scheduler.take(A, 10) == 3
    assert scheduler.hedge_at(B) == 16
    assert scheduler.hedge_at(A) is None
    assert scheduler.take(B, 15.9) is None
    assert scheduler.take(B, 16) == 3
    assert scheduler.take(C, 27.9) is None  # a third only after twice the wait,
    assert scheduler.take(C, 28) == 3  # so that two who sit on a chunk hold up nobody for ever
    assert scheduler.requeued == 2
    assert scheduler.finish(3, B, 29) == [A, C]
    assert scheduler.finish(3, A, 18) is None
    assert scheduler.done_by(B) == [3]


def test_without_any_result_a_chunk_is_late_after_half_a_minute() -> None:
    scheduler = ChunkScheduler(1)
    scheduler.take(A, 5)
    assert scheduler.hedge_at(B) == 35


def test_a_chunk_that_came_and_waits_to_be_checked_is_not_late() -> None:
    scheduler = ChunkScheduler(1)
    assert scheduler.take(A, 0) == 0
    scheduler.came(0, A, 2)
    assert scheduler.hedge_at(B) is None
    assert scheduler.take(B, 1000) is None
    assert scheduler.lost(A) == [0]  # it was never checked
    assert scheduler.take(B, 1000) == 0
    assert scheduler.finish(0, B, 1001) == []


def test_a_chunk_that_failed_for_good_goes_to_others_only() -> None:
    scheduler = ChunkScheduler(2)
    assert scheduler.take(A, 0) == 0
    scheduler.fail(0, A, for_good=True)
    assert scheduler.take(A, 0) == 1
    assert scheduler.take(A, 0) is None
    assert scheduler.orphans([A]) == [0]
    assert scheduler.orphans([A, B]) == []
    assert scheduler.take(B, 0) == 0
    assert scheduler.failures(0) == 1


def test_everything_of_a_liar_goes_back() -> None:
    scheduler = ChunkScheduler(5)
    for index in range(3):
        scheduler.take(A, 0)
        scheduler.finish(index, A, 1)
    assert scheduler.take(A, 1) == 3
    assert scheduler.take(B, 1) == 4
    assert scheduler.revoke(A) == [0, 1, 2]
    assert scheduler.requeued == 4
    assert [scheduler.take(B, 2) for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("chunks", [1, 1000])
def test_a_task_is_complete_when_the_last_chunk_is_done(chunks: int) -> None:
    scheduler = ChunkScheduler(chunks)
    for index in range(chunks):
        assert not scheduler.is_complete
        scheduler.take(A, 0)
        scheduler.finish(index, A, 0)
    assert scheduler.is_complete


def test_the_last_chunks_are_shared_out_evenly() -> None:
    """Whoever asks counts, and so does everybody who computes; nobody is left without one while there is any."""
    scheduler = ChunkScheduler(10)
    assert scheduler.share(A, 0) == 10
    for provider, count in ((A, 3), (B, 2)):
        for _ in range(count):
            assert scheduler.take(provider, 0.0) is not None
    assert scheduler.share(A, 3) == 2  # five of ten are its own
    assert scheduler.share(B, 2) == 3  # of the five that are pending each may have as many, rounded up
    assert scheduler.share(C, 0) == 2
    for _ in range(5):
        scheduler.take(B, 0.0)
    assert scheduler.share(A, 3) == 2  # none is pending: of those that are late elsewhere
    for index in range(9):
        scheduler.finish(index, A, 1.0)
    assert scheduler.share(B, 1) == 0
    scheduler.lost(B)
    assert scheduler.share(A, 0) == 1
