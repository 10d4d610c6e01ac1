"""Who has misbehaved of late, how badly, and who is kept out for it.

What counts is only what this node has seen itself, and only against whom it is certain of: a peer ID after its
handshake, an address before it (TCP proves that whoever speaks gets our answers there). Nothing that a third party
says counts, nor anything that somebody between us could have sent: a record that does not authenticate ends the
connection and says nothing of the peer.

Scores halve every `HALF_LIFE_S`; at `BAN_SCORE` follows a ban, and the score starts anew. Each ban of the same is
twice as long as its last, until it has kept quiet for `FORGET_BANS_S`.

A ban of a peer goes to its own account only, and its address gets a small part of the blame: peer IDs are free, so an
address with one banned peer after the other is refused too, but one liar among honest neighbours behind a NAT is not
enough for that. And a ban of an address refuses new connections only; who is there already stays.

Nothing is kept over a restart. Bans are minutes long, a restart is rare and takes as long as an attacker needs to
come back, and strangers get no file that they can make us write. Who cheated with results or money is remembered
elsewhere, on disk.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

__all__ = [
    "BAN_SCORE",
    "FIRST_BAN_S",
    "FORGET_BANS_S",
    "HALF_LIFE_S",
    "LONGEST_BAN_S",
    "Ban",
    "BanList",
    "Offence",
    "Subject",
]

BAN_SCORE = 100.0
HALF_LIFE_S = 300.0
FIRST_BAN_S = 60.0
LONGEST_BAN_S = 3600.0
FORGET_BANS_S = 6 * 3600.0
MAX_SUBJECTS = 8192


class Offence(enum.Enum):
    """What counts, and how much; the values are names, `points` the weights."""

    VIOLATION = "broke a protocol"
    FORGED = "sent a message that its author did not sign"
    UNFIT = "sent work that nobody can do"
    FLOOD = "went over a rate"
    STALL = "held a stream without using it"
    HANDSHAKE_FAILED = "failed its handshake"
    HANDSHAKE_STALLED = "never finished its handshake"
    PEER_BANNED = "a peer from there was banned"
    HOST_BANNED = "an address in there was banned"

    @property
    def points(self) -> float:
        """What one of it adds to a score."""
        return _POINTS[self]


# Two violations in three minutes are an attack; one may be a fault of an honest implementation. Of work that nobody
# can do it takes five or six: another implementation may leave it to providers to say so, and whoever writes a kernel
# tries again. A flood is counted by the message or stream that was too many, after the burst that the rate allows.
# Handshakes fail for honest reasons too (another peer ID than was dialled, a cut line), many at once behind a NAT.
_POINTS = {
    Offence.VIOLATION: 60.0,
    Offence.FORGED: 60.0,
    Offence.UNFIT: 20.0,
    Offence.FLOOD: 0.1,
    Offence.STALL: 2.0,
    Offence.HANDSHAKE_FAILED: 1.0,
    Offence.HANDSHAKE_STALLED: 2.0,
    Offence.PEER_BANNED: 15.0,
    Offence.HOST_BANNED: 30.0,
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is scored: kind is "peer", "host" or "subnet", name its ID, address or network."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """A ban as it stands.

    Attributes:
        subject: who is kept out.
        left_s: for how many seconds more.
        times: how often it was banned, this time included, since it was last forgotten.
        reason: the offence that was the last straw.
    """

    subject: Subject
    left_s: float
    times: int
    reason: Offence


class _Record:
    __slots__ = ("banned_until", "reason", "score", "scored_at", "times")

    def __init__(self, now: float) -> None:
        self.score = 0.0
        self.scored_at = now
        self.banned_until = now
        self.times = 0
        self.reason = Offence.VIOLATION

    def score_at(self, now: float) -> float:
        return self.score * math.pow(0.5, (now - self.scored_at) / HALF_LIFE_S)


class BanList:
    """Scores and bans. Bounded: of too many subjects the one that did least harm of late is forgotten.

    Args:
        clock: seconds that do not go back.
        capacity: subjects that are remembered.
    """

    def __init__(self, clock: Callable[[], float], *, capacity: int = MAX_SUBJECTS) -> None:
        self._clock = clock
        self._capacity = capacity
        self._records: OrderedDict[Subject, _Record] = OrderedDict()  # who offended last stands last

    def __len__(self) -> int:
        return len(self._records)

    def offend(self, subject: Subject, offence: Offence, *, count: float = 1.0) -> bool:
        """Add to a score. True when that is a ban: then `is_banned` from now on."""
        now = self._clock()
        record = self._records.get(subject)
        if record is None:
            self._make_room(now)
            record = self._records[subject] = _Record(now)
        self._records.move_to_end(subject)
        if record.banned_until > now:
            return False  # it is kept out; what it had begun before does not count twice
        if now - record.banned_until > FORGET_BANS_S:
            record.times = 0
        record.score = record.score_at(now) + count * offence.points
        record.scored_at = now
        if record.score < BAN_SCORE:
            return False
        record.score = 0.0
        record.banned_until = now + min(LONGEST_BAN_S, FIRST_BAN_S * 2.0 ** min(record.times, 16))
        record.times += 1
        record.reason = offence
        return True

    def is_banned(self, subject: Subject) -> bool:
        """Whether it is kept out now."""
        record = self._records.get(subject)
        return record is not None and record.banned_until > self._clock()

    def left_s(self, subject: Subject) -> float:
        """Seconds that its ban still lasts; 0 without one."""
        record = self._records.get(subject)
        return max(0.0, record.banned_until - self._clock()) if record is not None else 0.0

    def score(self, subject: Subject) -> float:
        """Its score now; 0 for who is not known."""
        record = self._records.get(subject)
        return record.score_at(self._clock()) if record is not None else 0.0

    def bans(self) -> tuple[Ban, ...]:
        """All bans that stand, those that end first first."""
        now = self._clock()
        standing = [
            Ban(subject=subject, left_s=record.banned_until - now, times=record.times, reason=record.reason)
            for subject, record in self._records.items()
            if record.banned_until > now
        ]
        return tuple(sorted(standing, key=lambda ban: ban.left_s))

    def pardon(self, subject: Subject) -> None:
        """Forget a subject: its score, its ban and how often it was banned."""
        self._records.pop(subject, None)

    def _make_room(self, now: float) -> None:
        """Forget the quiet at the front; in a full table whoever of the front is banned least."""
        for _ in range(2):
            front = next(iter(self._records), None)
            if front is None:
                return
            record = self._records[front]
            if record.banned_until > now or now - max(record.scored_at, record.banned_until) < FORGET_BANS_S:
                break
            del self._records[front]
        if len(self._records) >= self._capacity:
            some = list(islice(self._records, max(1, self._capacity // 8)))
            least = min(some, key=lambda s: (self._records[s].banned_until > now, self._records[s].score_at(now)))
            del self._records[least]
