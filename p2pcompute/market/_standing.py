"""What this node remembers of providers when it ranks them: who has worked for it, and who has failed since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from p2pcompute_protocols.ids import PeerId

__all__ = ["MAX_STRANGERS", "UNKNOWN", "Standing", "Standings"]

MAX_STRANGERS: Final = 4_096  # that failed and are remembered: identities cost nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How we stand with a provider.

    Attributes:
        paid_uusd: what it has acknowledged of us, ever: work that was checked. Micro-USD.
        failures: how often it has failed us since it was paid last.
    """

    paid_uusd: int = 0
    failures: int = 0


UNKNOWN: Final = Standing()


class _Row(Protocol):
    """The part of the ledger's row of a peer that counts here."""

    @property
    def peer(self) -> PeerId: ...
    @property
    def earned_uusd(self) -> int: ...
    @property
    def failures(self) -> int: ...


class Standings:
    """Standings by peer, in memory; the ledger keeps those of peers that were paid."""

    def __init__(self) -> None:
        self._known: dict[PeerId, Standing] = {}
        self._strangers: dict[PeerId, int] = {}  # failures, in the order of the last one

    def load(self, rows: Iterable[_Row]) -> None:
        """Take what the ledger holds. It counts failures of all time: they weigh until the next payment."""
        for row in rows:
            if row.earned_uusd:
                self._known[row.peer] = Standing(paid_uusd=row.earned_uusd, failures=row.failures)

    def of(self, peer: PeerId) -> Standing:
        """How we stand with `peer`."""
        known = self._known.get(peer)
        if known is not None:
            return known
        failures = self._strangers.get(peer, 0)
        return Standing(failures=failures) if failures else UNKNOWN

    def paid(self, peer: PeerId, uusd: int) -> None:
        """It was paid `uusd` more; what it has failed before is forgotten."""
        self._strangers.pop(peer, None)
        self._known[peer] = Standing(paid_uusd=self.of(peer).paid_uusd + uusd)

    def failed(self, peer: PeerId) -> None:
        """It has failed us once more. Of strangers the latest `MAX_STRANGERS` are remembered."""
        known = self._known.get(peer)
        if known is not None:
            self._known[peer] = Standing(paid_uusd=known.paid_uusd, failures=known.failures + 1)
            return
        self._strangers[peer] = self._strangers.pop(peer, 0) + 1
        if len(self._strangers) > MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
