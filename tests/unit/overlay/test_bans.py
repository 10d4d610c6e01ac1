"""Scores, bans and who decides them, in a time that the tests set."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute.overlay import Limits, Offence, Rate, Subject
from p2pcompute.overlay._bans import (
    BAN_SCORE,
    FIRST_BAN_S,
    FORGET_BANS_S,
    HALF_LIFE_S,
    LONGEST_BAN_S,
    BanList,
)
from p2pcompute.overlay._defence import Defence, Refusal, Visit
from p2pcompute_protocols.ids import PeerId


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


LIAR = Subject("peer", "liar")


def test_a_violation_is_forgiven_and_two_are_not() -> None:
    clock = Clock()
    bans = BanList(clock)
    assert not bans.offend(LIAR, Offence.VIOLATION)
    clock.now += 3 * HALF_LIFE_S
    assert bans.score(LIAR) == pytest.approx(Offence.VIOLATION.points / 8)
    assert not bans.offend(LIAR, Offence.VIOLATION)
    assert bans.offend(LIAR, Offence.VIOLATION)
    assert bans.is_banned(LIAR)
    (ban,) = bans.bans()
    assert (ban.subject, ban.left_s, ban.times, ban.reason) == (LIAR, FIRST_BAN_S, 1, Offence.VIOLATION)
    clock.now += FIRST_BAN_S
    assert not bans.is_banned(LIAR)
    assert bans.bans() == ()
    assert bans.left_s(LIAR) == 0


def test_each_ban_is_twice_as_long_until_it_is_forgotten() -> None:
    clock = Clock()
    bans = BanList(clock)
    lasted = []
    for _ in range(2000):  # far past where 2**times is a number that fits a float
        assert bans.offend(LIAR, Offence.VIOLATION, count=2)
        lasted.append(bans.left_s(LIAR))
        clock.now += lasted[-1]
    assert lasted[:7] == [60, 120, 240, 480, 960, 1920, LONGEST_BAN_S]
    assert set(lasted[6:]) == {LONGEST_BAN_S}
    clock.now += FORGET_BANS_S + 1
    assert bans.offend(LIAR, Offence.VIOLATION, count=2)
    assert bans.left_s(LIAR) == FIRST_BAN_S


def test_what_comes_during_a_ban_does_not_lengthen_it() -> None:
    clock = Clock()
    bans = BanList(clock)
    bans.offend(LIAR, Offence.VIOLATION, count=2)
    for _ in range(100):
        assert not bans.offend(LIAR, Offence.VIOLATION)
    clock.now += FIRST_BAN_S
    assert not bans.is_banned(LIAR)
    assert bans.score(LIAR) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from(list(Offence))), max_size=60))
def test_a_score_never_passes_where_the_ban_is(history: list[tuple[float, Offence]]) -> None:
    clock = Clock()
    bans = BanList(clock)
    for wait, offence in history:
        clock.now += wait
        banned = bans.is_banned(LIAR)
        now_banned = bans.offend(LIAR, offence)
        assert not (banned and now_banned)
        assert bans.score(LIAR) < BAN_SCORE
        assert bans.is_banned(LIAR) == (banned or now_banned)


def test_free_identities_do_not_push_out_a_ban_nor_grow_the_list() -> None:
    clock = Clock()
    bans = BanList(clock, capacity=64)
    bans.offend(LIAR, Offence.VIOLATION, count=2)
    for number in range(1000):
        bans.offend(Subject("peer", f"free {number}"), Offence.FLOOD)
        clock.now += 0.01
    assert bans.is_banned(LIAR)
    assert len(bans) == 64
    clock.now += FORGET_BANS_S + FIRST_BAN_S + 1
    for number in range(64):
        bans.offend(Subject("peer", f"later {number}"), Offence.FLOOD)
    assert len(bans) <= 64
    bans.pardon(LIAR)
    assert not bans.is_banned(LIAR)


# The defence


def defence(clock: Clock, **limits: Any) -> tuple[Defence, list[PeerId]]:
    ended: list[PeerId] = []
    return Defence(Limits(**limits), on_ban=ended.append, clock=clock), ended


def come(ours: Defence, ip: str, peer: str) -> bool:
    """An honest connection from `ip`, to its end; whether it was let in."""
    visit = ours.arrive(ip)
    if visit is None:
        return False
    visit.authenticated()
    allowed = ours.check_peer(PeerId(peer), inbound=True) is None
    visit.leave()
    return allowed


def test_one_liar_behind_a_nat_does_not_shut_out_its_neighbours() -> None:
    """But one that comes with ever new peer IDs shuts its address out, and no other."""
    clock = Clock()
    ours, ended = defence(clock)
    nat, elsewhere = "192.0.2.7", "192.0.2.8"
    for turn in range(20):
        liar = PeerId(f"liar {turn}")
        if not come(ours, nat, liar):
            break
        ours.connected(liar, nat)
        ours.accuse(liar, Offence.FORGED, count=2)
        ours.disconnected(liar, nat)
        assert ended[-1] == liar
        if turn < 6:
            assert come(ours, nat, f"neighbour {turn}")
    else:
        pytest.fail("the address is never refused")
    assert turn >= 6
    assert ours.refused[Refusal.HOST_BANNED] == 1
    assert come(ours, elsewhere, "honest")
    clock.now += FIRST_BAN_S + 1
    assert come(ours, nat, "neighbour")


def test_who_is_connected_stays_when_its_address_is_banned() -> None:
    clock = Clock()
    ours, ended = defence(clock)
    ours.connected(PeerId("honest"), "192.0.2.7")
    while (visit := ours.arrive("192.0.2.7")) is not None:
        visit.failed()
        visit.leave()
        clock.now += 0.5
    assert ours.bans.is_banned(Subject("host", "192.0.2.7"))
    assert ended == []
    assert [use.peer_id for use in ours.report().peers] == ["honest"]


def test_bans_of_addresses_add_up_for_their_subnet() -> None:
    clock = Clock()
    ours, _ = defence(clock)
    for last in range(1, 5):
        ip = f"2001:db8:0:{last}::1"
        assert come(ours, ip, "honest")
        for _ in range(100):
            visit = ours.arrive(ip)
            if visit is None:
                break
            visit.failed(stalled=True)
            visit.leave()
    assert not come(ours, "2001:db8:0:77::1", "honest")
    assert come(ours, "2001:db8:1:77::1", "honest")


def test_loopback_is_under_no_bound_of_hosts_but_under_those_of_peers() -> None:
    ours, ended = defence(Clock())
    for _ in range(1000):
        visit = ours.arrive("127.0.0.1")
        assert visit is not None
        visit.failed()
        visit.leave()
    liar = PeerId("liar")
    ours.connected(liar, "127.0.0.1")
    ours.accuse(liar, Offence.FORGED, count=2)
    assert ended == [liar]
    assert not come(ours, "127.0.0.1", liar)
    assert come(ours, "127.0.0.1", "other")
    assert [ban.subject for ban in ours.report().bans] == [Subject("peer", "liar")]


def test_a_subnet_has_its_share_of_places_and_handshakes() -> None:
    ours, _ = defence(Clock(), connections_per_subnet=4, handshakes_per_subnet=2)
    visits: list[Visit] = []
    for number in range(5):
        visit = ours.arrive(f"192.0.2.{number}")
        if visit is not None:
            visits.append(visit)
    assert (len(visits), ours.refused[Refusal.SUBNET_HANDSHAKES]) == (2, 3)
    for _ in range(2):
        for visit in visits:
            visit.authenticated()
        more = [ours.arrive("192.0.2.200") for _ in range(3)]
        visits += [visit for visit in more if visit is not None]
    assert len(visits) == 4
    assert ours.refused[Refusal.SUBNET_FULL] > 0
    assert ours.arrive("198.51.100.1") is not None
    visits[0].leave()
    visits[0].leave()
    assert ours.arrive("192.0.2.3") is not None
    assert ours.arrive("192.0.2.3") is None


def test_connections_that_come_and_go_have_a_rate() -> None:
    clock = Clock()
    ours, _ = defence(
        clock, handshake_rate_per_host=Rate(per_s=1, burst=5), handshake_rate_per_subnet=Rate(per_s=1, burst=8)
    )
    assert [come(ours, "192.0.2.1", f"{turn}") for turn in range(6)] == [True] * 5 + [False]
    assert [come(ours, "192.0.2.2", f"{turn}") for turn in range(4)] == [True] * 3 + [False]
    assert come(ours, "192.0.3.1", "elsewhere")
    clock.now += 2
    assert come(ours, "192.0.2.1", "again")
    assert ours.refused == {Refusal.HOST_RATE: 1, Refusal.SUBNET_RATE: 1}


def test_a_peer_that_reconnects_without_end_is_banned() -> None:
    ours, ended = defence(Clock())
    served = 0
    while not ended:
        served += come(ours, "127.0.0.1", "restless")
    assert served == ours.limits.connection_rate_per_peer.burst
    assert ended == ["restless"]


def test_who_hands_on_too_much_is_not_blamed_and_who_publishes_it_is() -> None:
    ours, ended = defence(Clock())
    relay, flood = PeerId("relay"), PeerId("flood")
    handed_on = sum(ours.may_gossip(relay, own=False, size=100) for _ in range(5000))
    assert handed_on == ours.limits.gossip_rate_per_peer.burst
    assert ours.bans.score(Subject("peer", relay)) == 0
    published = 0
    while not ended:
        published += ours.may_gossip(flood, own=True, size=100)
    assert published == ours.limits.gossip_rate_own.burst
    assert ended == [flood]


def test_large_messages_are_counted_by_their_bytes() -> None:
    ours, _ = defence(Clock(), gossip_bytes_per_peer=Rate(per_s=1, burst=1000))
    assert [ours.may_gossip(PeerId("a"), own=False, size=400) for _ in range(3)] == [True, True, False]


def test_control_messages_and_questions_have_rates() -> None:
    ours, ended = defence(Clock())
    asks, floods = PeerId("asks"), PeerId("floods")
    assert sum(ours.may_ask_for_gossip(asks) for _ in range(600)) == ours.limits.gossip_asked_per_peer.burst
    assert ours.may_control_gossip(floods, 10_000)
    while not ended:
        assert not ours.may_control_gossip(floods, 10_000)
    assert ended == [floods]
    assert ours.may_control_gossip(asks, 10_000)
