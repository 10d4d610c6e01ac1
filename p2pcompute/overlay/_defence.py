"""Who may come, stay, open a stream and gossip: `Limits` and bans, held where strangers meet the node.

One object for each overlay. It counts and decides; closing and resetting is done by whoever asked, but for bans, which
end all connections of a peer through `on_ban`.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import trio

from p2pcompute._log import log_event
from p2pcompute._rates import Buckets
from p2pcompute_protocols.ids import PeerId

from ._bans import BanList, Offence, Subject
from ._limits import Limits, Place
from ._limits_report import LimitsReport, PeerUse
from ._memory import MemoryPool, give_back

_K = TypeVar("_K")

__all__ = ["Defence", "Refusal", "Served", "Visit"]

_log = logging.getLogger(__name__)

ENDED_BEFORE_GIVING_BACK = 4  # connections: fewer are not worth it
GIVE_BACK_S = 10.0  # between two times
SWEEP_INTERVAL_S = 5.0  # how late an idle stream may be noticed


class Refusal(enum.StrEnum):
    """Why something was refused."""

    HOST_BANNED = "connection: its address is banned"
    HOST_RATE = "connection: too many from its address of late"
    SUBNET_RATE = "connection: too many from its subnet of late"
    SUBNET_FULL = "connection: too many from its subnet"
    SUBNET_HANDSHAKES = "connection: too many unfinished handshakes from its subnet"
    PEER_BANNED = "connection: its peer is banned"
    PEER_RATE = "connection: too many of its peer of late"
    STREAM_RATE = "stream: too many of its peer of late"
    STREAMS_OF_PEER = "stream: too many of its peer"
    STREAMS_OF_PROTOCOL = "stream: too many of its protocol"
    STREAM_IDLE = "stream: nothing moved for too long"
    STREAM_DEADLINE = "stream: open for too long"
    GOSSIP_RATE = "gossip: too many messages of its neighbour"
    GOSSIP_OWN_RATE = "gossip: too many messages of its publisher"
    GOSSIP_CONTROL = "gossip: too many control messages of its neighbour"
    GOSSIP_ASKED = "gossip: too many messages asked for again"
    GOSSIP_FORGED = "gossip: not signed by its author"


class Visit:
    """An inbound connection, from its accept to its end. Made by `Defence.arrive`."""

    def __init__(self, defence: Defence, place: Place) -> None:
        self.place = place
        self._defence = defence
        self._shaking = True
        self._here = True

    def authenticated(self) -> None:
        """The handshake is done: bounds on unfinished ones are no more for this connection."""
        if self._shaking:
            self._shaking = False
            self._defence._leave_handshakes(self.place)

    def failed(self, *, stalled: bool = False) -> None:
        """The handshake did not come to its end; what else went wrong later does not count here."""
        if self._shaking:
            offence = Offence.HANDSHAKE_STALLED if stalled else Offence.HANDSHAKE_FAILED
            self._defence.accuse_place(self.place, offence)

    def leave(self) -> None:
        """The connection has ended. Idempotent."""
        if self._here:
            self._here = False
            self.authenticated()
            self._defence._leave(self.place)


class Served:
    """A stream that a handler of ours serves. Made by `Defence.serving`.

    Attributes:
        scope: around the handler; cancelled when the stream is idle or open for too long.
        expired: then why; None otherwise.
        progress: gives the time, by `trio.current_time`, at which a byte moved last.
    """

    def __init__(self, idle_s: float, progress: Callable[[], float]) -> None:
        self.scope = trio.CancelScope()
        self.expired: Refusal | None = None
        self.progress = progress
        self.idle_s = idle_s


class Defence:
    """What strangers have taken of one node, and whether they may take more.

    Args:
        limits: what they may take.
        on_ban: called with a peer that was banned just now; ends its connections, must not wait.
        clock: seconds that do not go back.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        on_ban: Callable[[PeerId], None] = lambda _peer: None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self.limits = limits = limits or Limits()
        self.bans = BanList(clock)
        self.memory = MemoryPool(total=limits.memory, per_peer=limits.memory_per_peer, kept=limits.memory_kept_per_peer)
        self.on_ban = on_ban
        self.refused: Counter[Refusal] = Counter()
        self._clock = clock
        self._from_subnet: Counter[str] = Counter()
        self._shaking_from: Counter[str] = Counter()
        self._shaking = 0
        self._arrivals_of_host = Buckets[str](limits.handshake_rate_per_host, clock)
        self._arrivals_of_subnet = Buckets[str](limits.handshake_rate_per_subnet, clock)
        self._arrivals_of_peer = Buckets[PeerId](limits.connection_rate_per_peer, clock)
        self._opened_by = Buckets[PeerId](limits.stream_rate_per_peer, clock)
        self._gossip_of = Buckets[PeerId](limits.gossip_rate_per_peer, clock)
        self._gossip_bytes_of = Buckets[PeerId](limits.gossip_bytes_per_peer, clock)
        self._gossip_by = Buckets[PeerId](limits.gossip_rate_own, clock)
        self._gossip_control_of = Buckets[PeerId](limits.gossip_control_per_peer, clock)
        self._gossip_asked_by = Buckets[PeerId](limits.gossip_asked_per_peer, clock)
        self._streams_of: Counter[PeerId] = Counter()
        self._served_of: Counter[tuple[PeerId, str]] = Counter()
        self._served_with: Counter[str] = Counter()
        self._serving: dict[Served, PeerId] = {}
        self._connections_of: dict[PeerId, list[Place]] = {}
        self._ended = 0  # inbound connections, since memory was given back
        self._gave_back_at = -math.inf

    # Connections

    def arrive(self, ip: str | None) -> Visit | None:
        """An inbound connection from `ip`, before a byte of it is read. None where it is to be closed at once."""
        place = Place.of(ip, loopback_exempt=self.limits.loopback_exempt)
        refusal = None if place.exempt else self._refuse_place(place)
        if refusal is not None:
            self.refused[refusal] += 1
            return None
        self._from_subnet[place.subnet] += 1
        self._shaking_from[place.subnet] += 1
        self._shaking += 1
        return Visit(self, place)

    def _refuse_place(self, place: Place) -> Refusal | None:
        if self.bans.is_banned(Subject("host", place.host)) or self.bans.is_banned(Subject("subnet", place.subnet)):
            return Refusal.HOST_BANNED
        if self._from_subnet[place.subnet] >= self.limits.connections_per_subnet:
            return Refusal.SUBNET_FULL
        if self._shaking_from[place.subnet] >= self.limits.handshakes_per_subnet:
            return Refusal.SUBNET_HANDSHAKES
        if not self._arrivals_of_host.take(place.host):
            return Refusal.HOST_RATE
        if not self._arrivals_of_subnet.take(place.subnet):
            return Refusal.SUBNET_RATE
        return None

    def _leave_handshakes(self, place: Place) -> None:
        self._shaking -= 1
        _take_one(self._shaking_from, place.subnet)

    def _leave(self, place: Place) -> None:
        self._ended += 1
        _take_one(self._from_subnet, place.subnet)

    def check_peer(self, peer: PeerId, *, inbound: bool) -> Refusal | None:
        """Whether a connection that has just proven its peer may stay: None, or why not."""
        refusal = None
        if self.bans.is_banned(Subject("peer", peer)):
            refusal = Refusal.PEER_BANNED
        elif inbound and not self._arrivals_of_peer.take(peer):
            refusal = Refusal.PEER_RATE
            self.accuse(peer, Offence.FLOOD, count=20)  # a handshake costs what many streams do
        if refusal is not None:
            self.refused[refusal] += 1
        return refusal

    def wait_s(self, peer: PeerId) -> float:
        """Seconds until a banned peer may come again; 0 for others."""
        return self.bans.left_s(Subject("peer", peer))

    def connected(self, peer: PeerId, ip: str | None) -> None:
        """A connection is open; `disconnected` follows."""
        place = Place.of(ip, loopback_exempt=self.limits.loopback_exempt)
        self._connections_of.setdefault(peer, []).append(place)

    def disconnected(self, peer: PeerId, ip: str | None) -> None:
        """A connection has ended."""
        places = self._connections_of.get(peer, [])
        place = Place.of(ip, loopback_exempt=self.limits.loopback_exempt)
        if place in places:
            places.remove(place)
        if not places:
            self._connections_of.pop(peer, None)

    # Blame

    def accuse(self, peer: PeerId, offence: Offence, *, count: float = 1.0) -> None:
        """Hold an offence against a peer that has proven who it is; a ban ends its connections."""
        if not self.bans.offend(Subject("peer", peer), offence, count=count):
            return
        _say_banned(self.bans, Subject("peer", peer), offence)
        for place in set(self._connections_of.get(peer, [])):
            self.accuse_place(place, Offence.PEER_BANNED)
        self.on_ban(peer)

    def accuse_place(self, place: Place, offence: Offence) -> None:
        """Hold an offence against an address, and bans of addresses against their subnet."""
        if place.exempt or place.host == "unknown":
            return
        if self.bans.offend(Subject("host", place.host), offence):
            _say_banned(self.bans, Subject("host", place.host), offence)
            if self.bans.offend(Subject("subnet", place.subnet), Offence.HOST_BANNED):
                _say_banned(self.bans, Subject("subnet", place.subnet), Offence.HOST_BANNED)

    # Streams

    def refuses_stream(self, peer: PeerId, others: int = 0) -> bool:
        """Whether a stream that a peer opens is refused before anything is done for it; that is held against the peer.

        `others` of its streams are not begun yet, so that `inbound_stream` has not seen them.
        """
        return self._is_flood(peer, others, lambda: self._opened_by.has(peer, others + 1))

    def _is_flood(self, peer: PeerId, others: int, in_time: Callable[[], bool]) -> bool:
        if self._streams_of[peer] + others >= self.limits.streams_per_peer:
            refusal = Refusal.STREAMS_OF_PEER
        elif not in_time():
            refusal = Refusal.STREAM_RATE
        else:
            return False
        self.refused[refusal] += 1
        self.accuse(peer, Offence.FLOOD)
        return True

    @contextmanager
    def inbound_stream(self, peer: PeerId) -> Generator[bool, None, None]:
        """Around a stream that a peer opened, negotiation included. False where it is to be reset at once."""
        if self._is_flood(peer, 0, lambda: self._opened_by.take(peer)):
            yield False
            return
        self._streams_of[peer] += 1
        try:
            yield True
        finally:
            _take_one(self._streams_of, peer)

    @contextmanager
    def serving(
        self, peer: PeerId, protocol: str, progress: Callable[[], float] | None = None
    ) -> Generator[Served | None, None, None]:
        """Around a handler; run it in the `scope`. None where the stream is to be reset at once.

        Without `progress` nothing is known of what moves, and only the protocol's deadline holds.
        """
        limits = self.limits.of(protocol)
        slot = (peer, protocol)
        if self._served_of[slot] >= limits.streams_per_peer or self._served_with[protocol] >= limits.streams:
            of_peer = self._served_of[slot] >= limits.streams_per_peer
            self.refused[Refusal.STREAMS_OF_PEER if of_peer else Refusal.STREAMS_OF_PROTOCOL] += 1
            if of_peer:  # the others' crowd is no fault of this one
                self.accuse(peer, Offence.FLOOD)
            yield None
            return
        served = Served(limits.idle_s if progress is not None else math.inf, progress or trio.current_time)
        served.scope.deadline = trio.current_time() + limits.deadline_s
        self._served_of[slot] += 1
        self._served_with[protocol] += 1
        self._serving[served] = peer
        try:
            yield served
        finally:
            if served.scope.cancelled_caught and served.expired is None:
                served.expired = Refusal.STREAM_DEADLINE
            if served.expired is not None:
                self.refused[served.expired] += 1
                self.accuse(peer, Offence.STALL)
            del self._serving[served]
            _take_one(self._served_of, slot)
            _take_one(self._served_with, protocol)

    async def watch(self) -> NoReturn:
        """End streams on which nothing moves, and give back what connections held that have ended. Runs until
        cancelled."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            now = trio.current_time()
            self.sweep(now)
            if self._ended >= ENDED_BEFORE_GIVING_BACK and now - self._gave_back_at >= GIVE_BACK_S:
                self._ended, self._gave_back_at = 0, now
                await trio.to_thread.run_sync(give_back)  # in a thread, which holds up whoever allocates at worst

    def sweep(self, now: float) -> None:
        """End the streams on which nothing has moved for too long at `now`."""
        for served in self._serving:
            if served.expired is None and now - served.progress() > served.idle_s:
                served.expired = Refusal.STREAM_IDLE
                served.scope.cancel()

    # Gossip

    def may_gossip(self, neighbour: PeerId, *, own: bool, size: int) -> bool:
        """Whether a message that a neighbour handed on, or published itself (`own`), is looked at.

        Whoever only hands on may be flooded itself: its messages are dropped and it is not blamed.
        """
        if own and not self._gossip_by.take(neighbour):
            self.refused[Refusal.GOSSIP_OWN_RATE] += 1
            self.accuse(neighbour, Offence.FLOOD)
            return False
        if not self._gossip_of.take(neighbour) or not self._gossip_bytes_of.take(neighbour, size):
            self.refused[Refusal.GOSSIP_RATE] += 1
            return False
        return True

    def may_control_gossip(self, neighbour: PeerId, entries: int) -> bool:
        """Whether an RPC with so many entries of control messages is looked at. They are nobody's but its own."""
        if self._gossip_control_of.take(neighbour, entries):
            return True
        self.refused[Refusal.GOSSIP_CONTROL] += 1
        self.accuse(neighbour, Offence.FLOOD, count=10)
        return False

    def may_ask_for_gossip(self, neighbour: PeerId) -> bool:
        """Whether a neighbour that asks for one more message again gets it."""
        if self._gossip_asked_by.take(neighbour):
            return True
        self.refused[Refusal.GOSSIP_ASKED] += 1
        self.accuse(neighbour, Offence.FLOOD)
        return False

    def forged_gossip(self, neighbour: PeerId) -> None:
        """A neighbour handed on what its author did not sign; it checks that itself before it hands anything on."""
        self.refused[Refusal.GOSSIP_FORGED] += 1
        self.accuse(neighbour, Offence.FORGED)

    # What is shown

    def report(self) -> LimitsReport:
        """How near we are to the limits."""
        peers = [
            PeerUse(
                peer_id=peer,
                connections=len(places),
                streams=self._streams_of.get(peer, 0),
                memory_bytes=self.memory.held_by(peer),
                score=self.bans.score(Subject("peer", peer)),
            )
            for peer, places in self._connections_of.items()
        ]
        return LimitsReport(
            limits=self.limits,
            connections=sum(peer.connections for peer in peers),
            handshakes=self._shaking,
            streams=sum(self._streams_of.values()),
            memory_bytes=self.memory.held,
            refused={refusal.value: count for refusal, count in self.refused.items()},
            bans=self.bans.bans(),
            peers=tuple(sorted(peers, key=lambda peer: (-peer.streams, peer.peer_id))),
        )


def _take_one(counter: Counter[_K], key: _K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _say_banned(bans: BanList, subject: Subject, offence: Offence) -> None:
    left_s = bans.left_s(subject)
    log_event(
        _log,
        "banned",
        f"{subject.kind} {subject.name} is banned for {left_s:.0f} s: {offence.value}",
        level=logging.WARNING,
        kind=subject.kind,
        name=subject.name,
        reason=offence.value,
        left_s=round(left_s),
    )
