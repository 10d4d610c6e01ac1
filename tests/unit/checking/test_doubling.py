"""The scheduler of doubled chunks: whatever is lost, refused or taken back, every chunk is somewhere and ends done."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pcompute.checking import ChunkState, Quorum
from p2pcompute.tasks._doubling import DoublingScheduler
from p2pcompute_protocols.ids import PeerId

CHUNKS = 5
HONEST = [PeerId(f"honest{n}") for n in range(3)]
LIARS = [PeerId(f"liar{n}") for n in range(2)]
KIN = [PeerId(f"kin{n}") for n in range(2)]  # honest, of one owner
TRUTH = {index: bytes([index]) * 32 for index in range(CHUNKS)}


class Doubling(RuleBasedStateMachine):
    """Providers take, give, lose and refuse chunks; liars are convicted where the quorum finds them."""

    @initialize(doubled=st.sets(st.integers(0, CHUNKS - 1)))
    def begin(self, doubled: set[int]) -> None:
        self.quorum = Quorum(sorted(doubled), kin=lambda who: "kin" if who in KIN else who)
        self.scheduler = DoublingScheduler(CHUNKS, self.quorum)
        self.has: set[tuple[PeerId, int]] = set()  # computing
        self.waits: dict[tuple[PeerId, int], bytes] = {}  # here, and not known to be right yet
        self.done: dict[int, bytes] = {}
        self.convicted: set[PeerId] = set()
        self.now = 0.0

    def says(self, who: PeerId, index: int) -> bytes:
        return who.encode() + bytes([index]) if who in LIARS else TRUTH[index]

    @rule(who=st.sampled_from(HONEST + LIARS + KIN), seconds=st.sampled_from([0.0, 0.5, 100.0]))
    def take(self, who: PeerId, seconds: float) -> None:
        self.now += seconds
        if who in self.convicted:
            return
        index = self.scheduler.take(who, self.now)
        if index is None:
            return
        assert index not in self.done
        assert (who, index) not in self.has
        self.has.add((who, index))
        if index in self.quorum and self.quorum.state(index) is not ChunkState.SETTLED:
            holders = [other for other, at in (*self.has, *self.waits) if at == index and other in KIN]
            assert len(set(holders)) <= 1  # never two of one owner

    @precondition(lambda self: self.has)
    @rule(data=st.data())
    def result(self, data: st.DataObject) -> None:
        who, index = data.draw(st.sampled_from(sorted(self.has)))
        self.has.discard((who, index))
        self.scheduler.came(index, who, self.now)
        digest = self.says(who, index)
        if index not in self.quorum:
            self.finish(who, index, digest)  # samples are not the matter here: a liar gets through
            return
        self.waits[who, index] = digest
        if self.quorum.came(who, index, digest).state is ChunkState.OURS:
            self.quorum.rule(index, TRUTH[index])
        self.look()

    def look(self) -> None:
        """Whoever waits for a chunk that is settled goes on."""
        for (who, index), digest in list(self.waits.items()):
            if self.quorum.state(index) is not ChunkState.SETTLED or (who, index) not in self.waits:
                continue
            del self.waits[who, index]
            if digest == self.quorum.digest(index):
                self.finish(who, index, digest)
            else:
                self.convict(who)

    def finish(self, who: PeerId, index: int, digest: bytes) -> None:
        others = self.scheduler.finish(index, who, self.now)
        if others is None:
            return
        self.done[index] = digest
        for other in others:  # who still computes it is told to stop
            self.has.discard((other, index))

    def convict(self, who: PeerId) -> None:
        assert who in LIARS
        self.convicted.add(who)
        for index in self.scheduler.revoke(who):
            self.done.pop(index, None)
        self.leave(who)

    def leave(self, who: PeerId) -> None:
        self.has = {pair for pair in self.has if pair[0] != who}
        self.waits = {pair: digest for pair, digest in self.waits.items() if pair[0] != who}

    @rule(who=st.sampled_from(HONEST + LIARS + KIN))
    def lost(self, who: PeerId) -> None:
        self.scheduler.lost(who)
        self.leave(who)

    @precondition(lambda self: self.has)
    @rule(data=st.data(), for_good=st.booleans())
    def fails(self, data: st.DataObject, for_good: bool) -> None:
        who, index = data.draw(st.sampled_from(sorted(self.has)))
        self.has.discard((who, index))
        self.scheduler.fail(index, who, for_good=for_good)

    @rule(who=st.sampled_from(LIARS))
    def caught_by_a_sample(self, who: PeerId) -> None:
        self.convict(who)

    @precondition(lambda self: self.waits)
    @rule(data=st.data())
    def patience_ends(self, data: st.DataObject) -> None:
        _, index = data.draw(st.sampled_from(sorted(self.waits)))
        if self.quorum.state(index) is not ChunkState.SETTLED:
            self.quorum.ask_us(index)
            self.quorum.rule(index, TRUTH[index])
        self.look()

    @invariant()
    def every_chunk_is_in_one_place(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        pending = self.scheduler._pending
        running = set(self.scheduler._running)
        assert len(pending) == len(set(pending))
        assert set(pending) | running | self.done.keys() == set(range(CHUNKS))
        assert not set(pending) & running
        assert not set(pending) & self.done.keys()
        assert not running & self.done.keys()
        for index, digest in self.done.items():
            if index in self.quorum:
                assert digest == TRUTH[index]

    def teardown(self) -> None:
        """One honest provider that comes back ends it, however it stands; we decide where nobody else can."""
        if not hasattr(self, "scheduler"):
            return
        for who in (*HONEST, *LIARS, *KIN):
            self.lost(who)
        for index in range(CHUNKS):
            self.scheduler.forgive(index)
        who = HONEST[0]
        while (index := self.scheduler.take(who, self.now)) is not None:
            self.scheduler.came(index, who, self.now)
            if index not in self.quorum:
                self.finish(who, index, TRUTH[index])
                continue
            self.waits[who, index] = TRUTH[index]
            if self.quorum.came(who, index, TRUTH[index]).state is not ChunkState.SETTLED:
                self.quorum.ask_us(index)
                self.quorum.rule(index, TRUTH[index])
            self.look()
        assert self.scheduler.is_complete
        assert self.done.keys() == set(range(CHUNKS))


Doubling.TestCase.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
TestDoubling = Doubling.TestCase


def test_a_chunk_that_is_taken_back_while_a_third_copy_runs_is_given_out_once() -> None:
    quorum = Quorum([0])
    scheduler = DoublingScheduler(1, quorum)
    a, b, c, d = (PeerId(name) for name in "abcd")
    assert [scheduler.take(who, 0.0) for who in (a, b)] == [0, 0]
    assert scheduler.take(c, 0.1) is None  # two are enough, until they are late
    assert scheduler.take(c, 1_000.0) == 0
    for who in (a, b):
        scheduler.came(0, who, 1_001.0)
        quorum.came(who, 0, TRUTH[0])
    assert scheduler.finish(0, a, 1_001.0) == [b, c]
    assert scheduler.revoke(a) == [0]  # it was settled with its word
    assert scheduler._pending == [0]
    assert scheduler.take(d, 1_002.0) == 0  # beside the one that still computes it
    assert scheduler._pending == []
    assert quorum.came(c, 0, TRUTH[0]).state is ChunkState.SETTLED  # with the word of the other that had given it
    assert scheduler.finish(0, c, 1_003.0) == [d]
    assert scheduler.is_complete
