"""The ledger's part about peers: their history with us, and how much free credit strangers have used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, TypeVar

from p2pcompute_protocols.ids import PeerId

from ._channels import release_credit
from ._database import Transaction
from ._rows import PeerRow

__all__ = ["CreditVerdict", "PeersMixin"]

CreditVerdict: TypeAlias = Literal["granted", "peer", "subnet", "provider"]
"""Whether credit was granted, or else which budget is used up."""

_PEER = "SELECT peer, first_seen_ms, paid_uusd, earned_uusd, failures, banned FROM peers"
_HOURS_KEPT = 24

T = TypeVar("T")


class PeersMixin:
    """Methods of `Ledger` about peers; see there for what holds for all of them."""

    async def _write(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _read(self, work: Callable[[Transaction], T]) -> T:
        raise NotImplementedError

    async def _look(self, work: Callable[[Transaction], T], key: object = None) -> T:
        raise NotImplementedError

    async def peer(self, peer: PeerId) -> PeerRow | None:
        """What is remembered of a peer; None for a stranger."""

        def work(tx: Transaction) -> PeerRow | None:
            row = tx.one(f"{_PEER} WHERE peer = :peer", peer=peer)
            return None if row is None else PeerRow._make(row)

        return await self._look(work, ("peer", peer))

    async def peers(self) -> list[PeerRow]:
        """All peers that we have dealt with."""
        return await self._read(lambda tx: [PeerRow._make(row) for row in tx.all(f"{_PEER} ORDER BY peer")])

    async def note_failure(self, peer: PeerId) -> None:
        """Count a failure of a peer that we have dealt with. A stranger's is not kept: peer IDs cost nothing, and
        a row for each would let strangers fill the disk."""

        def work(tx: Transaction) -> None:
            if tx.one("SELECT 1 FROM peers WHERE peer = :peer", peer=peer):
                tx.emit("peer_failed", peer=peer)

        await self._write(work)

    async def ban(self, peer: PeerId, *, reason: str) -> None:
        """Deal with this peer no more; the caller looks at `PeerRow.banned`."""
        await self._write(lambda tx: tx.emit("peer_banned", peer=peer, reason=reason))

    async def charge_credit(
        self,
        peer: PeerId,
        *,
        subnet: str,
        hour: int,
        pusd: int,
        peer_limit_pusd: int,
        subnet_limit_pusd: int,
        provider_limit_pusd: int,
        released_pusd: int = 0,
    ) -> CreditVerdict:
        """Use `pusd` of the free credit of this hour (UNIX time // 3600), unless that would pass a limit.

        What is refused writes nothing, so a flood of refused strangers costs no disk.

        Args:
            peer, subnet, hour, pusd: who uses it, and how much of what.
            peer_limit_pusd, subnet_limit_pusd, provider_limit_pusd: what may be used in this hour.
            released_pusd: is given back before, refused or not: `release_credit` without a sync of its own.
        """

        def work(tx: Transaction) -> CreditVerdict:
            if released_pusd:
                release_credit(tx, peer, released_pusd)

            def used(where: str, **params: object) -> int:
                row = tx.one(f"SELECT coalesce(sum(pusd), 0) FROM credit WHERE {where}", **params)
                return 0 if row is None else int(row[0])

            if used("peer = :peer AND hour = :hour", peer=peer, hour=hour) + pusd > peer_limit_pusd:
                return "peer"
            if used("subnet = :subnet AND hour = :hour", subnet=subnet, hour=hour) + pusd > subnet_limit_pusd:
                return "subnet"
            if used("hour = :hour", hour=hour) + pusd > provider_limit_pusd:
                return "provider"
            if tx.one("SELECT 1 FROM credit WHERE hour < :hour LIMIT 1", hour=max(0, hour - _HOURS_KEPT)):
                tx.emit("credit_pruned", hour=max(0, hour - _HOURS_KEPT))
            tx.emit("credit_charged", peer=peer, subnet=subnet, hour=hour, pusd=pusd)
            return "granted"

        return await self._write(work)

    async def release_credit(self, peer: PeerId, *, pusd: int) -> None:
        """Give back credit that was charged for work that came to nothing."""
        await self._write(lambda tx: release_credit(tx, peer, pusd))

    async def credit_used_pusd(self, hour: int) -> int:
        """Free credit in use this hour, over all strangers."""

        def work(tx: Transaction) -> int:
            row = tx.one("SELECT coalesce(sum(pusd), 0) FROM credit WHERE hour = :hour", hour=hour)
            return 0 if row is None else int(row[0])

        return await self._read(work)
