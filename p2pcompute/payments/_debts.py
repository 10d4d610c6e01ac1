"""How old the debts of known peers are.

A requester owes nothing for a result that it lost with a broken stream, and this node can't tell that from not paying.
Such a debt counts against credit for a day. After that it is written off against what the peer has paid: it may owe
less for good, and is not shut out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from p2pcompute_protocols.ids import PeerId

__all__ = ["OLD_DEBT_MS", "Debts"]

OLD_DEBT_MS: Final = 24 * 3_600_000


class Debts:
    """What each peer has owed at the least since a day ago; in memory, from what it owes whenever that is looked at.

    Who pays pays for its newest work, so what stays unpaid all the time is the oldest.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        self.now_ms = clock_ms
        self._levels: dict[PeerId, deque[tuple[int, int]]] = {}  # since when it has owed so much or more; both rise

    def knows(self, peer: PeerId) -> bool:
        """Whether something of its debts is remembered."""
        return peer in self._levels

    def old_pusd(self, peer: PeerId, *, unpaid_pusd: int, worked_pusd: int) -> int:
        """How much of `unpaid_pusd` has been unpaid for a day.

        Args:
            peer: who owes it.
            unpaid_pusd: what it owes now.
            worked_pusd: where nothing is remembered of the peer, what was computed for it in the last day, at the most:
                what it owes beyond that is older.
        """
        if not unpaid_pusd:
            self._levels.pop(peer, None)
            return 0
        now_ms = self.now_ms()
        day_ago_ms = now_ms - OLD_DEBT_MS
        levels = self._levels.get(peer)
        if levels is None:
            levels = self._levels[peer] = deque([(day_ago_ms, max(0, unpaid_pusd - worked_pusd))])
        since_ms = now_ms
        while levels and levels[-1][1] >= unpaid_pusd:
            since_ms = levels.pop()[0]
        levels.append((since_ms, unpaid_pusd))
        while len(levels) > 1 and levels[1][0] <= day_ago_ms:
            levels.popleft()
        return levels[0][1] if levels[0][0] <= day_ago_ms else 0
