"""Which providers to ask first: by expected cost and expected time together, and by what we know of them.

An ad is signed and not proven: any score and any price may stand in it, under as many identities as somebody cares to
make. So ads decide only among peers of the same tier, and only within bounds of what is believed:

1. *proven*: it did checked work for this node, and was paid;
2. *new*: nothing is known against it;
3. *failed*: it has failed this node, and was not paid since.

Places go to the proven first, but the second of every four to a newcomer (those of tier 2, then 3): without that no
newcomer would ever be proven, and a dear acquaintance would keep its work for good against all cheaper ones. So that
this holds over time, those that hold places already count. Of a single place there is no second one: there a newcomer
comes first now and then, by a draw of the caller's. A newcomer that works once is proven, and competes by its price
from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from p2pcompute_protocols.ads import Device, PricedOption
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Requirement

from ._board import BoardEntry, fits
from ._standing import UNKNOWN, Standing

__all__ = ["BELIEVED_SCORE_MILLI", "NEWCOMERS_PLACE", "Candidate", "rank"]

BELIEVED_SCORE_MILLI: Final = 1_000_000  # of all slots together: a thousand reference cores
_LEAST_PRICE_PUSD: Final = 1  # a price below counts as this one
_CONNECTED: Final = 4  # a newcomer that is connected already may be so many times worse: its address is no lie
_PER_FAILURE: Final = 2  # each failure since the last payment makes a proven peer look so many times worse,
_MOST_FAILURES: Final = 4  # up to this many
NEWCOMERS_PLACE: Final = 4  # one place of so many is a newcomer's,
_NEWCOMERS: Final = 1  # this one, counted from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A provider that fits. One unit is a microsecond of a reference core, so time follows from the score, as far as
    that is believed."""

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
    standing: Callable[[PeerId], Standing] = lambda _: UNKNOWN,
    connected: Callable[[PeerId], bool] = lambda _: False,
    salt: bytes = b"",
    holders: Iterable[PeerId] = (),
    newcomer_first: bool = False,
) -> tuple[list[Candidate], dict[PeerId, str]]:
    """The candidates, best first, and why the others do not fit.

    Within a tier (see the module) candidates ascend by cost × time: a provider that is twice as fast may cost twice
    as much.

    Args:
        standing: what is known of a peer.
        connected: whether there is a connection to it.
        salt: at most 64 bytes, this node's own and secret: decides between equals, so that nobody can make an
            identity that stands first at every node.
        holders: who holds a place already: newcomers among them have had their share.
        newcomer_first: let the first one be a newcomer, whoever holds places.
    """
    proven: list[tuple[tuple[float, int, bytes], Candidate]] = []
    newcomers: list[tuple[tuple[bool, float, int, bytes], Candidate]] = []
    reasons: dict[PeerId, str] = {}
    for entry in entries:
        peer = entry.peer_id
        if excluded(peer):
            continue
        match = fits(entry.ad, requirement, fp=fp, language=language, chain=chain, max_price_pusd=max_price_pusd)
        if isinstance(match, str):
            reasons[peer] = match
            continue
        device, option = match
        candidate = Candidate(
            peer_id=peer,
            addresses=entry.ad.addresses,
            device=device,
            option=option,
            payee=entry.ad.binding.owner,
            cost_pusd=option.price_pusd * units,
            time_us=units * 1_000 / min(device.score_milli * device.slots, BELIEVED_SCORE_MILLI),
        )
        worth = max(option.price_pusd, _LEAST_PRICE_PUSD) * units * candidate.time_us
        tie = hashlib.blake2b(peer.encode(), digest_size=16, key=salt).digest()
        known = standing(peer)
        if known.paid_uusd:
            worth *= _PER_FAILURE ** min(known.failures, _MOST_FAILURES)
            proven.append(((worth, option.price_pusd, tie), candidate))
        else:
            worth /= _CONNECTED if connected(peer) else 1
            newcomers.append(((known.failures > 0, worth, option.price_pusd, tie), candidate))
    proven.sort(key=lambda pair: pair[0])
    newcomers.sort(key=lambda pair: pair[0])
    held = [standing(peer).paid_uusd > 0 for peer in holders]
    found = _interleaved(
        [candidate for _, candidate in proven],
        [candidate for _, candidate in newcomers],
        proven_hold=sum(held),
        newcomers_hold=len(held) - sum(held),
        newcomer_first=newcomer_first,
    )
    return found, reasons


def _interleaved(
    proven: list[Candidate],
    newcomers: list[Candidate],
    *,
    proven_hold: int,
    newcomers_hold: int,
    newcomer_first: bool,
) -> list[Candidate]:
    """Both in their own order; a newcomer wherever newcomers hold less than their share of the places so far."""
    found: list[Candidate] = []
    ours, theirs = iter(proven), iter(newcomers)
    while len(found) < len(proven) + len(newcomers):
        places = proven_hold + newcomers_hold
        share = (places - _NEWCOMERS) // NEWCOMERS_PLACE + 1  # of the places up to the one that is given away now
        is_theirs = newcomers_hold < share or (newcomer_first and not found)
        candidate = next(theirs, None) if is_theirs else next(ours, None)
        if candidate is None:
            is_theirs = not is_theirs
            candidate = next(theirs, None) if is_theirs else next(ours, None)
        assert candidate is not None
        newcomers_hold += is_theirs
        proven_hold += not is_theirs
        found.append(candidate)
    return found
