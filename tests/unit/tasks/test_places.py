"""Who gets a provider's places for tasks, and who has to make room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from p2pcompute.tasks import _places
from p2pcompute.tasks._places import FIRST_GRACE_S, LATER_GRACE_S, SHORT_GRACE_S, Guest, Place, Places
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId

_MIB = 1024 * 1024


def guest(peer: str, subnet: str = "", *, known: bool = False) -> Guest:
    """A guest in a subnet of its own where none is said."""
    return Guest(peer=PeerId(peer), subnet=subnet or peer, known=known)


def virtually(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def fill(places: Places, count: int, subnet: str = "") -> list[Place]:
    return [places.take(guest(f"{subnet}{number}", subnet)) for number in range(count)]


@pytest.mark.parametrize(("total", "newcomers"), [(1, 1), (3, 3), (4, 3), (8, 6), (62, 47)])
def test_a_quarter_is_for_known_guests(total: int, newcomers: int) -> None:
    async def main() -> None:
        places = Places(total)
        fill(places, newcomers)
        assert not places.has_room(guest("one more"))
        with pytest.raises(LocalProtocolError) as caught:
            places.take(guest("one more"))
        assert caught.value.code == WireCode.NO_CAPACITY
        for number in range(total - newcomers):
            places.take(guest(f"known {number}", known=True))
        assert places.taken == total
        assert not places.has_room(guest("known", known=True))

    virtually(main)


def test_one_subnet_has_half_of_what_newcomers_get_and_pushes_out_only_its_own() -> None:
    async def main() -> None:
        places = Places(16)
        mine = fill(places, 6, "10.0.0.0/24")
        other = places.take(guest("other"))
        assert not places.has_room(guest("seventh", "10.0.0.0/24"))
        assert places.has_room(guest("elsewhere"))
        await trio.sleep(FIRST_GRACE_S)
        places.take(guest("seventh", "10.0.0.0/24"))
        assert [place.lost for place in mine] == [True] + [False] * 5
        assert not other.lost

    virtually(main)


def test_one_peer_has_half_of_all() -> None:
    async def main() -> None:
        places = Places(8)
        for _ in range(4):
            places.take(guest("peer", known=True))
        assert not places.has_room(guest("peer", known=True))
        assert places.has_room(guest("other", known=True))

    virtually(main)


def test_who_makes_room_and_when() -> None:
    async def main() -> None:
        places = Places(4)
        done, idle, busy = fill(places, 3)
        done.chunks = 1
        newcomer = guest("newcomer")
        with busy.working():
            await trio.sleep(FIRST_GRACE_S - 0.1)
            assert not places.has_room(newcomer)
            await trio.sleep(0.1)
            place = places.take(newcomer)
            assert idle.lost
            assert idle.scope.cancel_called
            assert not done.lost
            # The next one finds nobody idle for long enough, and who has a chunk done stays for longer.
            with place.working():
                await trio.sleep(LATER_GRACE_S - FIRST_GRACE_S - 0.1)
                assert not places.has_room(guest("next"))
                await trio.sleep(0.1)
                places.take(guest("next"))
                assert done.lost
        assert not busy.lost
        assert places.taken == 3

    virtually(main)


def test_a_known_guest_stays_and_may_push_out() -> None:
    async def main() -> None:
        places = Places(4)
        known = [places.take(guest(f"known {number}", known=True)) for number in range(2)]
        newcomers = fill(places, 2)
        await trio.sleep(1_000)
        assert places.has_room(guest("known", known=True))
        places.take(guest("known", known=True))
        places.take(guest("known too", known=True))
        assert all(place.lost for place in newcomers)
        assert not any(place.lost for place in known)
        assert not places.has_room(guest("newcomer"))

    virtually(main)


@pytest.mark.parametrize(("bytes_per_s", "stays"), [(2 * _MIB, True), (_MIB // 16, True), (_MIB // 32, False)])
def test_inputs_that_come_at_a_good_speed_are_as_good_as_work(bytes_per_s: int, stays: bool) -> None:
    async def main() -> None:
        places = Places(1)
        place = places.take(guest("uploads"))
        for _ in range(100):
            await trio.sleep(0.1)
            place.moved(bytes_per_s // 10)
        assert places.has_room(guest("other")) != stays

    virtually(main)


def leave_late(places: Places, place: Place) -> None:
    """Its task has ended because nothing was done in it for too long."""
    place.overstayed = True
    places.leave(place)


@pytest.mark.parametrize("remembered", [True, False])
def test_who_idled_has_the_least_claim_until_it_has_done_something(
    remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who come again and again would push each other out before anybody else may."""
    if not remembered:
        monkeypatch.setattr(_places, "_REMEMBERED_S", 0.0)

    async def main() -> None:
        places = Places(1)
        idlers = [guest(f"idler {number}") for number in range(2)]
        for idler in idlers:
            place = places.take(idler)
            await trio.sleep(SHORT_GRACE_S)
            leave_late(places, place)
        places.take(idlers[0])
        await trio.sleep(FIRST_GRACE_S)
        assert places.has_room(idlers[1]) != remembered  # not at the cost of the other one
        honest = guest("honest")
        place = places.take(honest)
        places.leave(place)
        place = places.take(idlers[0])  # a free place it may have
        await trio.sleep(SHORT_GRACE_S)
        assert places.has_room(honest) == remembered
        place.chunks = 1
        places.leave(place)
        place = places.take(idlers[0])
        await trio.sleep(SHORT_GRACE_S)
        assert not places.has_room(honest)  # forgiven

    virtually(main)


@pytest.mark.parametrize(("times", "marked"), [(1, False), (3, False), (4, True)])
def test_who_leaves_with_nothing_done_is_an_idler_only_time_and_again(times: int, marked: bool) -> None:
    """The chunks of an honest one may have gone to other providers; who idles as long as it may each time is none."""

    async def main() -> None:
        places = Places(4)
        for _ in range(times):
            place = places.take(guest("peer", "10.0.0.0/24"))
            with place.working():
                await trio.sleep(5)
            await trio.sleep(FIRST_GRACE_S - 0.1)
            places.leave(place)
        for name in ("peer", "neighbour"):
            assert places._idled(guest(name, "10.0.0.0/24")) == marked
        await trio.sleep(600)
        assert not places._idled(guest("peer", "10.0.0.0/24"))

    virtually(main)


@pytest.mark.parametrize(("subnet", "shared"), [("10.0.0.0/24", True), ("unknown", False)])
def test_who_was_pushed_out_is_an_idler_and_relays_are_no_neighbourhood(subnet: str, shared: bool) -> None:
    async def main() -> None:
        places = Places(1)
        places.take(guest("idler", subnet))
        await trio.sleep(FIRST_GRACE_S)
        places.take(guest("honest"))
        assert places._idled(guest("idler", subnet))
        assert places._idled(guest("neighbour", subnet)) == shared

    virtually(main)


def test_known_guests_that_idle_make_room_for_other_known_ones() -> None:
    async def main() -> None:
        places = Places(4)
        idle = [places.take(guest(name, known=True)) for name in ("a", "a", "b", "b")]
        with idle[0].working():
            await trio.sleep(LATER_GRACE_S - 0.1)
            assert not places.has_room(guest("c", known=True))
            await trio.sleep(0.1)
            assert not places.has_room(guest("newcomer"))
            assert not places.has_room(guest("a", known=True))  # it has half of them
            places.take(guest("c", known=True))
        assert [place.lost for place in idle] == [False, True, False, False]
        assert not places._idled(guest("a"))

    virtually(main)


def test_idlers_are_forgotten_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_places, "_MAX_IDLERS", 8)

    async def main() -> None:
        places = Places(1)
        for number in range(20):
            place = places.take(guest(f"empty {number}"))
            await trio.sleep(SHORT_GRACE_S)
            places.leave(place)
        assert len(places._left_empty) == 8
        for number in range(20):
            place = places.take(guest(f"idler {number}"))
            await trio.sleep(SHORT_GRACE_S)
            leave_late(places, place)
            places.leave(place)
        assert len(places._idlers) == 8
        assert places._idled(guest("idler 19"))
        assert not places._idled(guest("idler 0"))
        await trio.sleep(600)
        assert not places._idled(guest("idler 19"))

    virtually(main)
