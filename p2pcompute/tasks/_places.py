"""A provider's places for tasks: who may have one, and who has to leave when another needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import trio

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId

__all__ = ["FIRST_GRACE_S", "LATER_GRACE_S", "SHORT_GRACE_S", "Guest", "Place", "Places"]

FIRST_GRACE_S: Final = 2.0  # without work under way, before the first chunk is done
LATER_GRACE_S: Final = 30.0  # after it: its samples are checked and its channel is funded meanwhile
SHORT_GRACE_S: Final = 0.5  # for those who idled before: a few round trips
_REMEMBERED_S: Final = 600.0
_MAX_IDLERS: Final = 4_096
_LEFT_EMPTY: Final = 4  # departures without a chunk, after idling, that make an idler
_NOWHERE: Final = "unknown"  # the subnet of all who come over relays
_FAST_BYTES_PER_S: Final = 64 * 1024  # who sends or takes bytes as fast as this is not idle; a slower transfer stalls


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """Who wants a place.

    Attributes:
        peer: its ID, which costs nothing.
        subnet: where it is, as `payments.subnet_of` has it.
        known: whether it has paid enough here to be no newcomer.
    """

    peer: PeerId
    subnet: str
    known: bool


class Place:
    """The place of one task, from its opening to its end.

    Attributes:
        chunks: results that were signed.
        lost: set when another one gets the place; `scope` is cancelled with it.
        overstayed: set when its task ended because nothing was done in it for as long as one may idle.
    """

    __slots__ = ("_idle_since_s", "chunks", "guest", "lost", "overstayed", "scope")

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.chunks = 0
        self._idle_since_s: float | None = trio.current_time()  # None while something is done
        self.scope = trio.CancelScope()
        self.lost = False
        self.overstayed = False

    def working(self) -> Place:
        """Something is computed or compiled, or waits for its turn, in the context that this gives: it is not the guest
        who is slow."""
        return self

    def __enter__(self) -> None:
        self._idle_since_s = None

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Nothing is done from now on."""
        self._idle_since_s = trio.current_time()

    @property
    def idle_from_s(self) -> float:
        """Since when nothing was computed or compiled for it, in trio's time; now, while something is."""
        return trio.current_time() if self._idle_since_s is None else self._idle_since_s

    def moved(self, size: int) -> None:
        """`size` bytes of inputs or results have come or gone: at full speed that is as good as work."""
        if self._idle_since_s is not None:
            self._idle_since_s = min(trio.current_time(), self._idle_since_s + size / _FAST_BYTES_PER_S)

    @property
    def idle_s(self) -> float:
        """For how long nothing was done for it."""
        return trio.current_time() - self.idle_from_s


class Places:
    """All places of a provider.

    A quarter of them is for guests that are known. Newcomers of one subnet have half of the rest, one peer has half of
    all, and two at least. Where there is no place, newcomers for which nothing is computed make room, the one that
    came first before the others, and before any that has a chunk done. Known guests make room for known ones of other
    peers only, and after a longer time.

    Who had to leave without a chunk has no right to another's place for ten minutes, and next to no grace itself; nor
    have others in its subnet. The same holds for who leaves so of its own accord, time and again. Otherwise a few that
    come again and again would push each other out before anybody else may. Whoever has its work done elsewhere leaves
    without a chunk as well, so once or twice says nothing; nor does where the others of all relays are.

    Args:
        total: how many there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.for_newcomers = total - max(1, total // 4) if total >= 4 else total
        self._for_subnet = max(2, self.for_newcomers // 2)
        self._for_peer = max(2, total // 2)
        self._taken: dict[Place, None] = {}  # in the order in which they came
        # Peers and subnets, and until when they are remembered; the oldest first.
        self._idlers: dict[str, float] = {}
        self._left_empty: dict[str, tuple[int, float]] = {}  # how often, likewise

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return len(self._taken)

    def has_room(self, guest: Guest) -> bool:
        """Whether `take` would give a place now."""
        try:
            self._find(guest)
        except LocalProtocolError:
            return False
        return True

    def take(self, guest: Guest) -> Place:
        """A place, which may be another's until now; that one's `scope` is cancelled.

        Raises:
            LocalProtocolError: NO_CAPACITY, there is none for this guest.
        """
        other = self._find(guest)
        if other is not None:
            other.lost = True
            other.scope.cancel()
            self.leave(other)
        place = Place(guest)
        self._taken[place] = None
        return place

    def leave(self, place: Place) -> None:
        """Its task has ended. Idempotent."""
        if place not in self._taken:
            return
        del self._taken[place]
        if place.chunks:
            for name in _names(place.guest):
                self._idlers.pop(name, None)
                self._left_empty.pop(name, None)
        elif not place.guest.known and (place.lost or place.overstayed):
            self._mark(place.guest)
        elif not place.guest.known and place.idle_s >= SHORT_GRACE_S:
            self._note_empty(place.guest)

    def _mark(self, guest: Guest) -> None:
        for name in _names(guest):
            self._idlers.pop(name, None)
            self._idlers[name] = trio.current_time() + _REMEMBERED_S
            if len(self._idlers) > _MAX_IDLERS:
                del self._idlers[next(iter(self._idlers))]

    def _note_empty(self, guest: Guest) -> None:
        now = trio.current_time()
        for name in _names(guest):
            times, until_s = self._left_empty.pop(name, (0, 0.0))
            if until_s <= now:
                times, until_s = 0, now + _REMEMBERED_S
            self._left_empty[name] = (times + 1, until_s)
            if len(self._left_empty) > _MAX_IDLERS:
                del self._left_empty[next(iter(self._left_empty))]
        if any(self._left_empty[name][0] >= _LEFT_EMPTY for name in _names(guest)):
            self._mark(guest)

    def _idled(self, guest: Guest) -> bool:
        now = trio.current_time()
        return not guest.known and any(self._idlers.get(name, 0.0) > now for name in _names(guest))

    def _may_lose(self, place: Place) -> bool:
        """Whether the guest of this place may be asked to leave: one for which nothing is done."""
        grace_s = SHORT_GRACE_S if self._idled(place.guest) else FIRST_GRACE_S
        if place.chunks or place.guest.known:
            grace_s = LATER_GRACE_S
        return place.idle_s >= grace_s

    def _find(self, guest: Guest) -> Place | None:
        """Who has to leave for `guest`; None where nobody has to."""
        if sum(1 for place in self._taken if place.guest.peer == guest.peer) >= self._for_peer:
            raise _no_place("you have as many tasks here as one peer may have")
        newcomers = [place for place in self._taken if not place.guest.known]
        neighbours = [place for place in newcomers if place.guest.subnet == guest.subnet]
        if not guest.known and len(neighbours) >= self._for_subnet:
            leavers, why = neighbours, "newcomers of your subnet have as many tasks here as they may have"
        elif not guest.known and len(newcomers) >= self.for_newcomers:
            leavers, why = newcomers, "newcomers have as many tasks here as they may have"
        elif len(self._taken) >= self.total:
            leavers, why = newcomers, "too many tasks at once"
        else:
            return None
        idle = [] if self._idled(guest) else [place for place in leavers if self._may_lose(place)]
        if not idle and guest.known:
            others = [place for place in self._taken if place.guest.known and place.guest.peer != guest.peer]
            idle = [place for place in others if self._may_lose(place)]
        if not idle:
            raise _no_place(why)
        return min(idle, key=lambda place: place.chunks > 0)  # the first of those that have none done


def _names(guest: Guest) -> tuple[str, ...]:
    """What an idler is remembered by: a peer ID is never a subnet."""
    return (guest.peer,) if guest.subnet in (_NOWHERE, guest.peer) else (guest.peer, guest.subnet)


def _no_place(why: str) -> LocalProtocolError:
    return LocalProtocolError(f"{why}; try later", code=WireCode.NO_CAPACITY)
