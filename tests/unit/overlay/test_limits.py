"""The table of limits, rates, shares of memory, and places: each against what it promises."""

from __future__ import annotations

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute._rates import Buckets, TokenBucket
from p2pcompute.overlay import Limits, MemoryPool, Place, ProtocolLimits, Rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# Rates


@given(
    st.floats(0.1, 1000),
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 5)), max_size=200),
)
def test_a_bucket_lets_through_its_burst_and_its_rate(per_s: float, burst: int, asked: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(Rate(per_s=per_s, burst=burst), 0.0)
    now, passed = 0.0, 0
    for wait, count in asked:
        now += wait
        passed += count if bucket.take(now, count) else 0
        assert passed <= (burst + now * per_s) * (1 + 1e-9)


@given(st.floats(0.5, 100), st.integers(1, 50))
def test_whoever_keeps_to_a_rate_is_never_stopped(per_s: float, burst: int) -> None:
    bucket = TokenBucket(Rate(per_s=per_s, burst=burst), 0.0)
    assert all(bucket.take(0.0) for _ in range(burst))
    assert not bucket.take(0.0)
    assert all(bucket.take(turn * 1.001 / per_s) for turn in range(1, 200))


def test_buckets_of_the_quiet_are_forgotten() -> None:
    clock = Clock()
    buckets = Buckets[int](Rate(per_s=1, burst=4), clock, capacity=100)
    for key in range(50):
        assert buckets.take(key)
    clock.now += 10  # all are full again
    for key in range(50, 90):
        assert buckets.take(key)
        assert len(buckets) <= 51
    assert len(buckets) <= 41


def test_a_crowd_does_not_grow_the_table_and_does_not_free_the_busy() -> None:
    clock = Clock()
    buckets = Buckets[int](Rate(per_s=0.001, burst=2), clock, capacity=100)
    assert buckets.take(-1)
    assert buckets.take(-1)
    for key in range(1000):
        assert buckets.take(key)
        assert not buckets.take(-1)  # used all the time, so it is not the one that goes
    assert len(buckets) == 100


def test_what_was_charged_beyond_what_was_there_has_to_come_in_first() -> None:
    clock = Clock()
    buckets = Buckets[str](Rate(per_s=1, burst=10), clock)
    assert buckets.has("a", 10)
    assert not buckets.has("a", 11)
    assert len(buckets) == 0  # to ask makes no bucket
    buckets.charge("a", 25)
    clock.now += 15
    assert not buckets.take("a")
    clock.now += 1
    assert buckets.has("a")
    assert buckets.take("a")
    assert not buckets.has("a")
    assert buckets.take("b", 10)


@pytest.mark.parametrize("rate", [{"per_s": 0, "burst": 1}, {"per_s": 1, "burst": 0.5}, {"per_s": -1, "burst": 1}])
def test_a_rate_that_lets_nothing_through_is_none(rate: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a rate lets"):
        Rate(**rate)


def test_limits_of_a_protocol_are_above_zero() -> None:
    with pytest.raises(ValueError, match="above zero"):
        ProtocolLimits(idle_s=0)
    with pytest.raises(ValueError, match="above zero"):
        ProtocolLimits(streams_per_peer=0)


def test_protocols_without_an_entry_have_the_common_limits() -> None:
    limits = Limits(protocol=ProtocolLimits(streams=7), protocols={"/a/1": ProtocolLimits(streams=3)})
    assert (limits.of("/a/1").streams, limits.of("/b/1").streams) == (3, 7)
    assert Limits().of("/ipfs/kad/1.0.0").deadline_s < 60


# Memory


def test_one_peer_gets_half_of_the_pool_and_two_get_a_third_each() -> None:
    pool = MemoryPool(total=900, per_peer=900, kept=0)
    one, two = pool.open("a"), pool.open("b")
    while one.try_charge(1):
        pass
    assert one.held == 450
    two.try_charge(150)
    while two.try_charge(1):
        pass
    assert two.held == 225  # of what the first left
    one.release(450)
    two.release(225)
    while one.try_charge(1) | two.try_charge(1):
        pass
    assert one.held in (299, 300, 301)
    assert two.held in (299, 300, 301)


def test_twenty_greedy_peers_leave_something_and_under_a_plain_bound_one_leaves_nothing() -> None:
    class FirstCome(MemoryPool):
        def _move(self, peer: Hashable, change: int) -> bool:
            if self.held + change > self._total:
                return False
            self._held[peer] = self._held.get(peer, 0) + change
            return True

    def left_for_the_next(pool: MemoryPool, greedy: int) -> bool:
        accounts = [pool.open(f"greedy {number}") for number in range(greedy)]
        while sum(account.try_charge(10) for account in accounts):
            pass
        return pool.open("honest").try_charge(300)

    sizes = {"total": 10_000, "per_peer": 10_000, "kept": 100}
    assert left_for_the_next(MemoryPool(**sizes), 20)
    assert not left_for_the_next(FirstCome(**sizes), 1)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["charge", "release", "close"]), st.integers(0, 400)), max_size=120
    )
)
def test_a_pool_keeps_its_books(steps: list[tuple[int, str, int]]) -> None:
    total, per_peer, kept = 1000, 600, 50
    pool = MemoryPool(total=total, per_peer=per_peer, kept=kept)
    accounts = {number: pool.open(number % 3) for number in range(6)}  # two connections for each of three peers
    for number, what, count in steps:
        account = accounts[number]
        of_peer = pool.held_by(number % 3)
        if what == "charge":
            done = account.try_charge(count)
            assert done or of_peer + count > kept  # what is kept for a peer is there whatever others do
        elif what == "release":
            account.release(min(count, account.held))
        else:
            account.close()
            accounts[number] = pool.open(number % 3)
        assert pool.held == sum(account.held for account in accounts.values())
        assert all(pool.held_by(peer) <= per_peer for peer in range(3))
        assert sum(max(0, pool.held_by(peer) - kept) for peer in range(3)) <= total
        assert pool.peers == 3
    for account in accounts.values():
        account.close()
    assert (pool.held, pool.peers, pool._shared) == (0, 0, 0)


def test_an_account_gives_back_only_what_it_holds_and_nothing_after_its_end() -> None:
    pool = MemoryPool(total=100, per_peer=100, kept=10)
    account = pool.open("a")
    assert account.try_charge(10)
    with pytest.raises(ValueError, match="can't be given back"):
        account.release(11)
    with pytest.raises(ValueError, match="release gives"):
        account.try_charge(-1)
    account.close()
    account.close()
    account.release(5)
    assert not account.try_charge(1)
    assert pool.held == 0
    with pytest.raises(ValueError, match="negative"):
        MemoryPool(total=100, per_peer=5, kept=10)


# Places


@pytest.mark.parametrize(
    ("ip", "host", "subnet", "exempt"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.0/24", False),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "2001:db8:1::/48", False),
        ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.0/24", False),
        ("fe80::1%eth0", "fe80::/64", "fe80::/48", False),
        ("127.0.0.1", "127.0.0.1", "127.0.0.0/24", True),
        ("::ffff:127.0.0.1", "127.0.0.1", "127.0.0.0/24", True),
        ("::1", "::/64", "::/48", True),
        (None, "unknown", "unknown", False),
        ("no address", "unknown", "unknown", False),
    ],
)
def test_a_place_is_what_counts_together(ip: str | None, host: str, subnet: str, exempt: bool) -> None:
    assert Place.of(ip) == Place(host=host, subnet=subnet, exempt=exempt)
    assert not Place.of(ip, loopback_exempt=False).exempt
