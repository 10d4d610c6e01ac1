"""The ads that a node knows: verified, bounded, one per peer, the newest wins."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from p2pcompute_protocols.ads import CapabilityAd, Device, PricedOption, open_ad
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Requirement

from ._reasons import Reason

__all__ = ["GOSSIP_SPACING_MS", "MAX_BOARD_ADS", "AdBoard", "BoardEntry", "fits"]

MAX_BOARD_ADS: Final = 4_096
GOSSIP_SPACING_MS: Final = 2_000  # an ad of the same peer that is gossiped sooner goes no further


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardEntry:
    """A verified ad and its envelope."""

    ad: CapabilityAd
    raw: bytes

    @property
    def peer_id(self) -> PeerId:
        """Who sells."""
        return PeerId(self.ad.peer_id)


class AdBoard:
    """Verified ads by peer.

    Args:
        network: ads of other networks are refused.
        now_ms: wall clock in milliseconds since the epoch.
    """

    def __init__(self, *, network: str, now_ms: Callable[[], int]) -> None:
        self._network = network
        self._now_ms = now_ms
        self._entries: dict[PeerId, BoardEntry] = {}
        self._gossiped_ms: dict[PeerId, int] = {}  # of peers in `_entries`
        self._kept: set[PeerId] = set()

    def keep(self, peer: PeerId) -> None:
        """The ad of this peer makes no room for others: the node's own, which it answers queries with."""
        self._kept.add(peer)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, raw: bytes, *, spacing_ms: int = 0) -> BoardEntry | None:
        """Take a signed ad; None when the board has it already.

        Args:
            spacing_ms: how long ago the same peer's last gossiped ad must have come.

        Raises:
            LocalProtocolError: forged, expired, about another peer, or older than the one that is held
                (code REPLAYED), or too soon after it (NO_CAPACITY).
        """
        for entry in self._entries.values():
            if entry.raw == raw:
                return None
        envelope, ad = open_ad(raw, network=self._network, now_ms=self._now_ms())
        held = self._entries.get(envelope.signer)
        if held is not None and ad.sequence <= held.ad.sequence:
            raise LocalProtocolError("an ad that is not newer than the one we hold", code=WireCode.REPLAYED)
        gossiped_ms = self._gossiped_ms.get(envelope.signer)
        # A node that leaves may say so at once: this once, since its next ad keeps the distance again.
        leaves = ad.availability.draining and held is not None and not held.ad.availability.draining
        # A clock that was set back stops nobody's ads.
        if not leaves and gossiped_ms is not None and 0 <= self._now_ms() - gossiped_ms < spacing_ms:
            raise LocalProtocolError("too many ads of this peer; later", code=WireCode.NO_CAPACITY)
        self.prune()
        if held is None and len(self._entries) >= MAX_BOARD_ADS:
            # Any rule on what ads say could be used by a flood of identities to push honest ads out; chance can't be.
            others = [peer for peer in self._entries if peer not in self._kept]
            self.forget(secrets.choice(others))
        entry = BoardEntry(ad=ad, raw=raw)
        self._entries[envelope.signer] = entry
        return entry

    def accepts(self, raw: bytes) -> bool:
        """Whether a gossiped ad is worth passing on: valid, newer than what we hold, and not gossiped in a flood.

        Of ads of one peer within `GOSSIP_SPACING_MS` the first counts, and one that withdraws it; the newest is taken
        when it is sent again.
        """
        try:
            entry = self.put(raw, spacing_ms=GOSSIP_SPACING_MS)
        except LocalProtocolError:
            return False
        if entry is None:
            return False
        self._gossiped_ms[entry.peer_id] = self._now_ms()
        return True

    def prune(self) -> None:
        """Forget ads that have expired."""
        now = self._now_ms()
        for peer in [peer for peer, entry in self._entries.items() if entry.ad.expires_ms <= now]:
            self.forget(peer)

    def forget(self, peer: PeerId) -> None:
        """Drop a peer's ad, for example because it can't be reached."""
        self._entries.pop(peer, None)
        self._gossiped_ms.pop(peer, None)

    def get(self, peer: PeerId) -> BoardEntry | None:
        """The ad of one peer."""
        self.prune()
        return self._entries.get(peer)

    def entries(self) -> Iterator[BoardEntry]:
        """All ads that have not expired."""
        self.prune()
        return iter(list(self._entries.values()))


def fits(
    ad: CapabilityAd, requirement: Requirement, *, fp: str, language: str, chain: ChainTerms, max_price_pusd: int
) -> tuple[Device, PricedOption] | Reason:
    """The best device and the cheapest option of an ad that fit, or why none does."""
    if ad.availability.draining:
        return Reason("it is draining", WireCode.DRAINING)
    if ad.chain != chain:
        return Reason("it settles on another chain, hub or token", WireCode.CHAIN_MISMATCH)
    if language not in ad.language:
        return Reason(f"it does not speak {language}", WireCode.UNSUPPORTED)
    if requirement.region is not None and ad.region != requirement.region:
        return Reason(f"it is not in {requirement.region}", WireCode.UNSUPPORTED)
    if missing := set(requirement.features) - set(ad.features):
        return Reason(_lacks(sorted(missing), ad.features), WireCode.UNSUPPORTED)
    devices = [
        device
        for device in ad.devices
        if device.kind in requirement.kinds
        and device.memory_bytes >= requirement.memory_bytes
        and device.score_milli >= requirement.min_score_milli
    ]
    if not devices:
        return Reason(f"it has no {' or '.join(requirement.kinds)} device of that size")
    options = [option for option in ad.options if option.work == 1 and option.fp == fp]
    if not options:
        return Reason(f"it does not sell {fp} chunks", WireCode.UNSUPPORTED)
    option = min(options, key=lambda o: o.price_pusd)
    if option.price_pusd > max_price_pusd:
        asked, limit = _per_hour(option.price_pusd), _per_hour(max_price_pusd)
        return Reason(f"it asks {asked} USD an hour and the limit is {limit}", WireCode.PRICE_TOO_LOW)
    return max(devices, key=lambda d: d.score_milli), option


def _lacks(missing: list[str], features: tuple[str, ...]) -> str:
    """Why features that are missing are: a program of the same name may be there, with other files."""
    for feature in missing:
        stem, _, pinned = feature.rpartition(":")
        if stem.startswith("program:"):
            name = stem.removeprefix("program:")
            others = [held.rpartition(":")[2] for held in features if held.rpartition(":")[0] == stem]
            if others:
                return f"its program {name} is another one ({', '.join(others)} and not {pinned}), or another version"
            return f"it does not offer the program {name}"
    return f"it lacks {', '.join(missing)}"


def _per_hour(price_pusd: int) -> str:
    """USD for an hour of a reference core, of a price in pico-USD a unit (a microsecond of it)."""
    return f"{price_pusd * 3_600_000_000 / 1e12:.4g}"
