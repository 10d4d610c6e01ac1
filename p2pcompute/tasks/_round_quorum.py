"""Two providers compute the same rounds: their digests are compared before either is paid.

Each chunk comes with the digest of every state, so where two lists differ the first round that does is found here, by
`Bisection` over what both have receipted, without another question to anybody. The state before that round is agreed:
it is fetched from one of them, and the round is computed here. Who has another result is wrong, by its own receipts.

Where the other's digests do not come, all rounds of the chunk are computed here from the last state that was kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.checking import Bisection, SampleReport

from ._round_work import StateBytes, wipe

if TYPE_CHECKING:
    from ._round_task import Party

__all__ = ["Recompute", "RoundDesk", "first_difference"]

_PART: Final = 64  # rounds that are computed here at once

Recompute = Callable[[int, StateBytes, int], Awaitable[list[StateBytes]]]
"""(rounds of the task done before, the state behind them, how many) -> the states after each, computed by us."""


def first_difference(before: bytes, mine: list[bytes], theirs: list[bytes]) -> int:
    """A round, from 1 on, about whose beginning two lists of digests agree and about whose end they don't.

    Args:
        before: the digest of the state before the first round, which is agreed.
        mine, theirs: of the states after each round; of one length, and unlike.
    """
    search = Bisection(len(mine))
    while (state := search.question) is not None:
        search.take(*((digests[state - 1] if state else before) for digests in (mine, theirs)))
    if search.round is not None:
        return search.round
    # They end alike: one has made up what lies between, and signed it.
    return next(place for place, pair in enumerate(zip(mine, theirs, strict=True), 1) if pair[0] != pair[1])


@dataclass(slots=True, kw_only=True)
class RoundDesk:
    """Where the parties of one leg wait for each other.

    Attributes:
        recompute: computes rounds here.
        blame: is told of a party whose `wrong` was found by the other's chunk, and what was compared.
        patience_s: how long a chunk waits for the other's.
        computed: rounds that we have computed.
    """

    recompute: Recompute
    blame: Callable[[Party, SampleReport], Awaitable[None]]
    patience_s: float
    parties: list[Party] = field(default_factory=list)
    computed: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)
    _rulings: dict[int, bytes] = field(default_factory=dict)
    _deciding: trio.Lock = field(default_factory=trio.Lock)

    def tell(self) -> None:
        """Digests have come, or somebody is gone."""
        event, self._changed = self._changed, trio.Event()
        event.set()

    async def settle(self, party: Party, first: int, rounds: int) -> SampleReport:
        """Compare the rounds behind state `first` with the other's, or with ours.

        Returns:
            One is mismatched where this party is wrong; `party.wrong` then says in which round.
        """
        assert party.link is not None  # it has a chunk
        self.tell()
        mine = party.link.digests[first : first + rounds]
        other = await self._other(party, first, rounds)
        if other is None or other.link is None:
            return await self._compute(party, first, mine)
        theirs = other.link.digests[first : first + rounds]
        if theirs == mine:
            return SampleReport(checked=rounds, mismatched=0)
        at = first + first_difference(party.link.digest(first), mine, theirs)
        agreed = await party.link.state(at - 1)
        async with self._deciding:
            if at not in self._rulings:
                (ours,) = await self.recompute(party.first + at - 1, agreed, 1)
                self.computed += 1
                self._rulings[at] = ours.digest
                wipe(ours.arrays)
        found = SampleReport(checked=at - first, mismatched=1)
        if other.link.digest(at) != self._rulings[at]:
            other.wrong = (at, agreed)
            await self.blame(other, found)  # it may have left, or withhold the state that would convict it
        if party.link.digest(at) != self._rulings[at]:
            party.wrong = (at, agreed)
            return found
        if at == first + rounds:
            return SampleReport(checked=rounds, mismatched=0)
        # The other is wrong, and says nothing about what follows.
        return await self._compute(party, at, mine[at - first :])

    async def _other(self, party: Party, first: int, rounds: int) -> Party | None:
        """The other one, once it has digests of these rounds; None where they don't come, or begin elsewhere."""
        until = trio.current_time() + self.patience_s
        while True:
            other = next((one for one in self.parties if one is not party), None)
            if other is not None and other.link is not None and len(other.link.digests) >= first + rounds:
                if other.link.digest(first) == (party.link and party.link.digest(first)):
                    return other
                return None  # it was wrong before, and this one was found right
            if other is None or other.over or trio.current_time() >= until:
                return None
            with trio.move_on_at(until):
                await self._changed.wait()

    async def _compute(self, party: Party, first: int, claimed: list[bytes]) -> SampleReport:
        """Compute rounds here, from a state of this party's that is known to be right."""
        assert party.link is not None
        state = await party.link.state(first)
        for done in range(0, len(claimed), _PART):
            ours = await self.recompute(party.first + first + done, state, min(_PART, len(claimed) - done))
            self.computed += len(ours)
            for place, (mine, theirs) in enumerate(zip(ours, claimed[done:], strict=False)):
                if mine.digest != theirs:
                    party.wrong = (first + done + place + 1, ours[place - 1] if place else state)
                    return SampleReport(checked=done + place + 1, mismatched=1)
            state = ours[-1]
        return SampleReport(checked=len(claimed), mismatched=0)
