"""Which providers to ask first: by expected cost and expected time together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from p2pcompute_protocols.ads import Device, PricedOption
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Requirement

from ._board import BoardEntry, fits

__all__ = ["Candidate", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A provider that fits. One unit is a microsecond of a reference core, so time follows from the score."""

    peer_id: PeerId
    addresses: tuple[str, ...]
    device: Device
    option: PricedOption
    payee: bytes  # the account that the ad is bound to; a bid may name no other
    cost_pusd: int
    time_us: float


def rank(
    entries: Iterable[BoardEntry],
    requirement: Requirement,
    *,
    units: int,
    fp: str,
    language: str,
    chain: ChainTerms,
    max_price_pusd: int,
    excluded: Callable[[PeerId], bool],
) -> tuple[list[Candidate], dict[PeerId, str]]:
    """The candidates, best first, and why the others do not fit.

    A provider that is twice as fast may cost twice as much: candidates ascend by cost × time.
    """
    found: list[Candidate] = []
    reasons: dict[PeerId, str] = {}
    for entry in entries:
        if excluded(entry.peer_id):
            continue
        match = fits(entry.ad, requirement, fp=fp, language=language, chain=chain, max_price_pusd=max_price_pusd)
        if isinstance(match, str):
            reasons[entry.peer_id] = match
            continue
        device, option = match
        found.append(
            Candidate(
                peer_id=entry.peer_id,
                addresses=entry.ad.addresses,
                device=device,
                option=option,
                payee=entry.ad.binding.owner,
                cost_pusd=option.price_pusd * units,
                time_us=units * 1_000 / device.score_milli / device.slots,
            )
        )
    found.sort(key=lambda c: ((c.cost_pusd + 1) * c.time_us, c.peer_id))
    return found, reasons
