"""Quorum: who gets which chunk, who is right, and who is paid, whatever providers say and in whatever order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from p2pcompute.checking import ChunkState, Quorum, Ruling, draw_doubled
from p2pcompute.errors import ConfigError
from p2pcompute_protocols.ids import PeerId

CHUNKS = 6
TRUTH = {index: bytes([index]) * 32 for index in range(CHUNKS)}
A, B, C, D = (PeerId(name) for name in "ABCD")
GOOD, BAD, WORSE = b"right", b"wrong", b"worse"


def quorum(**options: Any) -> Quorum:
    return Quorum([0], **options)


# One chunk


def test_two_equal_digests_settle_a_chunk_and_both_are_paid() -> None:
    it = quorum()
    assert it.seconds(A) is None  # a second copy is of what somebody has begun
    assert it.may_take(A, 0)
    it.assign(A, 0)
    assert (it.seconds(A), it.seconds(B), it.wants(0)) == (None, 0, 1)
    it.assign(B, 0)
    assert (it.may_take(C, 0), it.wants(0)) == (False, 0)
    assert it.came(B, 0, GOOD) == Ruling(index=0, state=ChunkState.OPEN)
    assert it.came(A, 0, GOOD) == Ruling(index=0, state=ChunkState.SETTLED, right=(B, A))
    assert it.digest(0) == GOOD
    # What comes later is judged at once.
    assert it.came(C, 0, BAD).wrong == (C,)
    assert it.came(D, 0, GOOD).right == (B, A, D)


def test_unlike_digests_are_for_us_to_decide() -> None:
    it = quorum()
    it.came(A, 0, BAD)
    assert it.came(B, 0, GOOD).state is ChunkState.OURS
    assert it.wants(0) == 0
    assert it.rule(0, GOOD) == Ruling(index=0, state=ChunkState.SETTLED, right=(B,), wrong=(A,))


def test_a_third_provider_decides_where_it_may() -> None:
    it = quorum(arbiter="provider")
    it.came(A, 0, BAD)
    assert it.came(B, 0, GOOD).state is ChunkState.DISPUTED
    assert (it.wants(0), it.may_take(A, 0), it.seconds(C)) == (1, False, 0)
    assert it.came(C, 0, GOOD) == Ruling(index=0, state=ChunkState.SETTLED, right=(B, C), wrong=(A,))
    it = quorum(arbiter="provider")
    for who, what in ((A, BAD), (B, GOOD)):
        it.came(who, 0, what)
    assert it.came(C, 0, WORSE).state is ChunkState.OURS
    assert it.rule(0, GOOD).wrong == (A, C)
    it = quorum(arbiter="provider")
    for who, what in ((A, BAD), (B, GOOD)):
        it.came(who, 0, what)
    assert it.ask_us(0).state is ChunkState.OURS  # nobody comes
    assert it.rule(0, WORSE) == Ruling(index=0, state=ChunkState.SETTLED, wrong=(A, B))


def test_kin_never_share_a_chunk_and_agree_on_nothing() -> None:
    """The attack: one owner with two identities says the same twice. Without names for owners it settles a lie."""
    naive = quorum()
    naive.came(A, 0, BAD)
    assert naive.came(B, 0, BAD).right == (A, B)
    owner = {A: "one", B: "one", C: "two"}
    it = quorum(kin=lambda provider: owner[provider])
    it.assign(A, 0)
    assert (it.may_take(B, 0), it.may_take(C, 0)) == (False, True)
    it.came(A, 0, BAD)
    assert it.may_take(B, 0) is False
    assert it.came(B, 0, BAD).state is ChunkState.OURS  # it came all the same
    assert it.rule(0, GOOD).wrong == (A, B)


def test_a_provider_can_not_mend_its_word() -> None:
    it = quorum()
    it.came(A, 0, BAD)
    assert it.came(A, 0, GOOD).state is ChunkState.OPEN
    assert it.claims(0) == {A: BAD}
    it.came(B, 0, GOOD)
    assert it.rule(0, GOOD).wrong == (A,)


def test_who_is_convicted_has_said_nothing() -> None:
    it = quorum()
    it.came(A, 0, BAD)
    it.came(B, 0, BAD)
    assert it.state(0) is ChunkState.SETTLED
    assert it.convict(A) == [0]  # found by a sample of another chunk: what it has settled is open again
    assert (it.state(0), it.digest(0), it.claims(0)) == (ChunkState.OPEN, None, {B: BAD})
    assert it.may_take(A, 0) is False
    assert it.came(C, 0, GOOD).state is ChunkState.OURS
    assert it.rule(0, GOOD).wrong == (B,)
    assert it.convict(C) == []  # what we have computed stays
    assert it.digest(0) == GOOD
    three = quorum()
    for who in (A, B, C):
        three.came(who, 0, GOOD)
    assert three.convict(A) == []  # two others still agree


def test_who_drops_a_chunk_makes_room() -> None:
    it = quorum()
    it.assign(A, 0)
    it.assign(B, 0)
    it.drop(B, 0)
    assert it.seconds(C) == 0
    it.drop(A, 0)
    assert it.seconds(C) is None
    it.drop(A, 99)  # a chunk that is done once


# Drawing


@given(st.integers(1, 500), st.floats(0, 1), st.integers(0, 2**32))
@settings(deadline=None)
def test_a_share_of_chunks_is_drawn(chunks: int, share: float, seed: int) -> None:
    picked = draw_doubled(chunks, share, np.random.default_rng(seed))
    assert all(0 <= index < chunks for index in picked)
    assert len(picked) == min(chunks, -int(-share * chunks // 1))
    assert abs(len(picked) - share * chunks) < 1 + 1e-6


def test_nobody_knows_which_and_each_is_as_likely() -> None:
    hits = Counter(index for seed in range(2_000) for index in draw_doubled(10, 0.3, np.random.default_rng(seed)))
    assert min(hits.values()) > 0.8 * 600
    assert max(hits.values()) < 1.2 * 600
    assert len({draw_doubled(1_000, 0.5) for _ in range(3)}) == 3
    assert draw_doubled(7, 1.0) == frozenset(range(7))
    assert draw_doubled(7, 0.0) == frozenset()
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            draw_doubled(7, share)


# Any order of anything


class Market(RuleBasedStateMachine):
    """Honest providers, liars that each make up their own, and a gang of one owner that agrees on its lies."""

    @initialize(
        doubled=st.sets(st.integers(0, CHUNKS - 1), min_size=1),
        arbiter=st.sampled_from(["self", "provider"]),
    )
    def begin(self, doubled: set[int], arbiter: Any) -> None:
        self.owner = {PeerId(f"{kind}{n}"): f"{kind}{n}" for kind in ("honest", "liar") for n in range(3)}
        self.owner |= {PeerId(f"gang{n}"): "gang" for n in range(3)}
        self.arbiter = arbiter
        self.quorum = Quorum(sorted(doubled), arbiter=arbiter, kin=lambda who: self.owner[who])
        self.doubled = sorted(doubled)
        self.holding: set[tuple[PeerId, int]] = set()
        self.convicted: set[PeerId] = set()
        self.ours: set[int] = set()

    def says(self, who: PeerId, index: int) -> bytes:
        if who.startswith("honest"):
            return TRUTH[index]
        return b"gang" + bytes([index]) if who.startswith("gang") else who.encode() + bytes([index])

    @rule(data=st.data())
    def give_out(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(self.owner)))
        index = data.draw(st.sampled_from(self.doubled))
        second = self.quorum.seconds(who)
        assert second is None or self.quorum.may_take(who, second)
        if self.quorum.may_take(who, index):
            assert who not in self.convicted
            self.quorum.assign(who, index)
            self.holding.add((who, index))

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def result(self, data: st.DataObject) -> None:
        who, index = data.draw(st.sampled_from(sorted(self.holding)))
        self.holding.discard((who, index))
        if who in self.convicted:
            return  # its link has ended
        self.look(self.quorum.came(who, index, self.says(who, index)))

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        who, index = data.draw(st.sampled_from(sorted(self.holding)))
        self.holding.discard((who, index))
        self.quorum.drop(who, index)

    @rule(data=st.data())
    def patience_ends(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(self.doubled))
        if self.quorum.state(index) is not ChunkState.SETTLED:
            self.look(self.quorum.ask_us(index))

    @rule(data=st.data())
    def caught_elsewhere(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(name for name in self.owner if not name.startswith("honest"))))
        self.convicted.add(who)
        for index in self.quorum.convict(who):
            assert self.quorum.state(index) is ChunkState.OPEN

    def look(self, ruling: Ruling) -> None:
        if ruling.state is ChunkState.OURS:
            ruling = self.quorum.rule(ruling.index, TRUTH[ruling.index])
            self.ours.add(ruling.index)
        if ruling.state is not ChunkState.SETTLED:
            assert not ruling.right
            assert not ruling.wrong
            return
        assert self.quorum.digest(ruling.index) == TRUTH[ruling.index]  # a gang of one owner settles no lie
        assert all(who.startswith("honest") for who in ruling.right)
        assert not any(who.startswith("honest") for who in ruling.wrong)

    @invariant()
    def nobody_has_a_chunk_with_its_kin(self) -> None:
        for index in self.doubled:
            chunk = self.quorum._chunks[index]
            names = [self.owner[who] for who in chunk.holders | chunk.claims.keys()]
            assert len(names) == len(set(names))
            assert len(names) <= 3
            if self.arbiter == "self":
                assert len(names) <= 2 or chunk.state is ChunkState.SETTLED or index in self.ours

    @invariant()
    def what_is_settled_is_the_truth(self) -> None:
        for index in self.doubled:
            if self.quorum.state(index) is ChunkState.SETTLED:
                assert self.quorum.digest(index) == TRUTH[index]
                assert self.quorum.wants(index) == 0
            else:
                assert self.quorum.digest(index) is None

    def teardown(self) -> None:
        """Whatever happened, three honest providers bring it to an end."""
        if not hasattr(self, "quorum"):
            return
        for index in self.doubled:
            for who in sorted(name for name in self.owner if name.startswith("honest")):
                if self.quorum.may_take(who, index) or (who, index) in self.holding:
                    self.quorum.assign(who, index)
                    self.look(self.quorum.came(who, index, TRUTH[index]))
            if self.quorum.state(index) is not ChunkState.SETTLED:
                self.look(self.quorum.ask_us(index))
            assert self.quorum.digest(index) == TRUTH[index]


Market.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestMarket = Market.TestCase


def test_what_colluders_of_two_owners_agree_on_stands_until_a_sample_finds_one() -> None:
    """What remains: a share of chunks goes to two colluders. It is (gang / all)^2, and samples still look at them."""
    rng = np.random.default_rng(5)
    providers = [PeerId(f"p{n}") for n in range(20)]
    gang = set(providers[:4])
    chunks, settled_wrong = 3_000, 0
    it = Quorum(range(chunks))
    for index in range(chunks):
        pair = [providers[n] for n in rng.choice(20, size=2, replace=False)]
        for who in pair:
            ruling = it.came(who, index, BAD if who in gang else GOOD)
        if ruling.state is ChunkState.OURS:
            ruling = it.rule(index, GOOD)
        settled_wrong += it.digest(index) == BAD
        assert not set(ruling.wrong) - gang
    expected = 4 / 20 * 3 / 19
    assert abs(settled_wrong / chunks - expected) < 4 * np.sqrt(expected / chunks)
    back = [index for who in gang for index in it.convict(who)]
    assert len(back) == settled_wrong == len(set(back))
