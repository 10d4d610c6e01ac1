"""How much unpaid work a provider does for whom.

Peer IDs cost nothing, so what is given to peers without a history is limited together: per hour over all of them, per
subnet, and per peer. History is money that a peer has paid to this provider; it can't be had for less than itself.
`docs/guarantees.md` has the policy in words.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_CREDIT_WINDOW
from p2pcompute_protocols.money import PUSD_PER_UUSD
from p2pcompute_protocols.negotiation import Terms

from ._api import CreditExhausted, PeerHistory
from ._debts import Debts

__all__ = [
    "CreditBook",
    "CreditLedger",
    "CreditPolicy",
    "CreditWindow",
    "Held",
    "MaxLoss",
    "agreed_loss",
    "max_loss",
    "subnet_of",
]

_HOUR_MS: Final = 3_600_000
_NO_LIMIT: Final = 2**63 - 1
_AHEAD: Final = 64  # chunks whose price a newcomer is charged at once, where that is little beside the least charge


class CreditLedger(Protocol):
    """What the credit book keeps on disk."""

    async def peer(self, peer: PeerId) -> PeerHistory | None: ...
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
    ) -> Literal["granted", "peer", "subnet", "provider"]: ...
    async def release_credit(self, peer: PeerId, *, pusd: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditPolicy:
    """The limits. All are of unpaid work; amounts are micro-USD.

    Attributes:
        provider_uusd: for all newcomers together, per hour.
        subnet_uusd: for the newcomers of one subnet, per hour.
        peer_uusd: for one newcomer, per hour.
        known_uusd: from this much paid on, a peer is no newcomer.
        known_percent: what a known peer may owe, in percent of what it has paid; `peer_uusd` at least.
        max_window: chunks that anybody may owe.
        loopback_is_one_subnet: whether peers on 127.0.0.0/8 and ::1 share a subnet's budget. Off, each of them is a
            subnet of its own: they run on this machine, and a local network of many nodes would starve otherwise.
    """

    provider_uusd: int = 1_000_000
    subnet_uusd: int = 250_000
    peer_uusd: int = 50_000
    known_uusd: int = 100_000
    known_percent: int = 50
    max_window: int = 16
    loopback_is_one_subnet: bool = False

    def __post_init__(self) -> None:
        for name in ("provider_uusd", "subnet_uusd", "peer_uusd", "known_uusd"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is negative")
        if not 0 <= self.known_percent <= 100:
            raise ValueError("known_percent is a percentage: a peer that may owe more than it paid gains by leaving")
        if not 1 <= self.max_window <= MAX_CREDIT_WINDOW:
            raise ValueError(f"max_window is from 1 to {MAX_CREDIT_WINDOW}")


class CreditWindow:
    """How many chunks of one task may be unpaid: starts at `size`, doubles with each fully paid window."""

    __slots__ = ("_paid_since", "maximum", "size", "unpaid")

    def __init__(self, *, size: int, maximum: int) -> None:
        if not 1 <= size <= maximum:
            raise ValueError("a window starts at 1 or more and at most at its maximum")
        self.size = size
        self.maximum = maximum
        self.unpaid = 0
        self._paid_since = 0

    @property
    def room(self) -> int:
        """Chunks that may be started now."""
        return max(0, self.size - self.unpaid)

    def start(self) -> None:
        """A chunk is started, and unpaid from now on. `ValueError` where there is no room."""
        if self.room == 0:
            raise ValueError("the window is full")
        self.unpaid += 1

    def drop(self) -> None:
        """A started chunk came to nothing, and is not owed."""
        self.unpaid = max(0, self.unpaid - 1)

    def paid(self, chunks: int = 1) -> bool:
        """`chunks` of the unpaid ones are paid; gives whether the window grew."""
        chunks = min(chunks, self.unpaid)
        self.unpaid -= chunks
        self._paid_since += chunks
        if self._paid_since < self.size or self.size == self.maximum:
            return False
        self._paid_since = 0
        self.size = min(2 * self.size, self.maximum)
        return True


@dataclass(slots=True)
class Held:
    """What a newcomer was charged for work that is still to begin, or that was too much: what comes next is taken from
    it, which costs no write.

    Attributes:
        pusd: how much, in pico-USD.
        hour: whose budgets it is charged to, as UNIX time in hours; it is of use in this hour only.
    """

    pusd: int = 0
    hour: int = 0


class CreditBook:
    """Grants credit by a policy, and keeps what it granted on disk.

    Args:
        ledger: see `CreditLedger`.
        policy: the limits.
        clock_ms: UNIX time in milliseconds.
    """

    def __init__(
        self,
        *,
        ledger: CreditLedger,
        policy: CreditPolicy,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.policy = policy
        self._ledger = ledger
        self._clock_ms = clock_ms
        self.debts = Debts(clock_ms)
        self._spent: dict[PeerId, int] = {}  # by known peers on work without a result, in `_spent_hour`, in pico-USD
        self._spent_hour = 0

    async def first_window(self, peer: PeerId, *, chunk_pusd: int) -> int:
        """Chunks that `peer` may owe at first: 1 for a newcomer, else what `known_percent` of its payments cover."""
        history = await self._ledger.peer(peer)
        if history is None or not self._is_known(history):
            return 1
        covered = self._known_limit_pusd(history) // max(1, chunk_pusd)
        return max(1, min(self.policy.max_window, covered))

    async def is_known(self, peer: PeerId) -> bool:
        """Whether `peer` has paid enough to be no newcomer, and is not banned."""
        history = await self._ledger.peer(peer)
        return history is not None and self._is_known(history)

    def _is_known(self, history: PeerHistory) -> bool:
        return not history.banned and history.paid_uusd >= self.policy.known_uusd

    def _known_limit_pusd(self, history: PeerHistory, *, old_pusd: int = 0) -> int:
        # What was never paid for takes from what was paid, or waiting a day would be as good as paying.
        proven_pusd = max(0, history.paid_uusd * PUSD_PER_UUSD - old_pusd)
        # Never less than a newcomer may owe.
        return max(proven_pusd * self.policy.known_percent // 100, self.policy.peer_uusd * PUSD_PER_UUSD)

    async def charge(
        self,
        peer: PeerId,
        *,
        subnet: str,
        pusd: int,
        unpaid_pusd: int,
        newcomer_pusd: int | None = None,
        old_pusd: int = 0,
        held: Held | None = None,
        pieces: int = 1,
    ) -> int:
        """Take on `pieces` of unpaid work for `peer`, of `pusd` each; call it before the work starts.

        A newcomer's is charged, durably, to the budgets of this hour; what it pays comes back to them at once. With
        `held`, short pieces are charged for some that come next as well, where the budgets have room for them.

        Args:
            peer: who wants it.
            subnet: see `subnet_of`.
            pusd: what a piece will cost.
            unpaid_pusd: what the peer owes already over all its tasks, work under way included.
            newcomer_pusd: what a newcomer is charged at least for each, up to a quarter of its budget.
            old_pusd: what it has owed for longer than a day (`Debts`), which `unpaid_pusd` leaves out.
            held: of earlier charges, pays for this where it is enough, and not far too much; else it is given back with
                this, refused or not. Has afterwards what is left.
            pieces: all of them are taken on, or none.

        Returns:
            What is charged to the budgets for each piece, for `release`; 0 for a known peer.

        Raises:
            CreditExhausted: not now. Nothing was charged.
        """
        history = await self._ledger.peer(peer)
        if held is not None and history is not None and (history.banned or self._is_known(history)):
            await self.give_back(peer, held)  # nothing is charged that it could go with
        if history is not None and history.banned:
            raise CreditExhausted(f"{peer} is banned: {history.banned}")
        if history is not None and history.paid_uusd >= self.policy.known_uusd:
            spent_pusd = self._spent_by(peer)
            if unpaid_pusd + spent_pusd + pusd * pieces > self._known_limit_pusd(history, old_pusd=old_pusd):
                raise CreditExhausted(
                    f"{peer} owes {unpaid_pusd} pico-USD, and {spent_pusd} were computed for nothing this hour; it may "
                    "not owe more until it pays"
                )
            return 0
        # At most a quarter of what a newcomer may use: a dear node would take none at all otherwise.
        charged = max(pusd, min(newcomer_pusd or 0, self.quarter_pusd))
        hour = self._clock_ms() // _HOUR_MS
        if held is None:
            await self._charge_newcomer(peer, subnet=subnet, hour=hour, pusd=charged * pieces, held=Held())
            return charged
        needed_pusd = charged * pieces
        ahead_pusd = min(_AHEAD * pusd, charged - pusd) * pieces
        # Much more than is needed is not kept from others.
        if held.hour != hour or not needed_pusd <= held.pusd <= 2 * (needed_pusd + ahead_pusd):
            taken_pusd = needed_pusd + ahead_pusd
            try:
                await self._charge_newcomer(peer, subnet=subnet, hour=hour, pusd=taken_pusd, held=held)
            except CreditExhausted:
                if not ahead_pusd:
                    raise
                taken_pusd = needed_pusd
                await self._charge_newcomer(peer, subnet=subnet, hour=hour, pusd=taken_pusd, held=held)
            held.pusd, held.hour = held.pusd + taken_pusd, hour
        held.pusd -= needed_pusd
        return charged

    async def _charge_newcomer(self, peer: PeerId, *, subnet: str, hour: int, pusd: int, held: Held) -> None:
        """Charge `pusd` in place of what is held."""
        released_pusd = held.pusd
        verdict = await self._ledger.charge_credit(
            peer,
            subnet=subnet,
            hour=hour,
            pusd=pusd,
            peer_limit_pusd=self.policy.peer_uusd * PUSD_PER_UUSD,
            subnet_limit_pusd=self.policy.subnet_uusd * PUSD_PER_UUSD,
            provider_limit_pusd=self.policy.provider_uusd * PUSD_PER_UUSD,
            released_pusd=released_pusd,
        )
        held.pusd -= released_pusd  # given back, also where the charge is refused
        if verdict != "granted":
            raise CreditExhausted(f"the free credit per {verdict} for newcomers is used up for this hour")

    async def room_pusd(self, peer: PeerId, *, unpaid_pusd: int, old_pusd: int = 0) -> int | None:
        """How much more a known peer may owe now; None for a newcomer, who has the budgets. Arguments as `charge`."""
        history = await self._ledger.peer(peer)
        if history is None or not self._is_known(history):
            return None
        return max(0, self._known_limit_pusd(history, old_pusd=old_pusd) - unpaid_pusd - self._spent_by(peer))

    async def settle(self, peer: PeerId, *, subnet: str, charged_pusd: int, cost_pusd: int) -> None:
        """Work that was charged is over, and is owed by nobody: its charge becomes what it has cost this provider.

        What was charged too much comes back. What was charged too little is charged, whatever is left of the budgets,
        since it is used; but no more for one piece of work than a newcomer may use in an hour, and of a known peer half
        of what it may owe.

        Args:
            peer: who wanted it.
            subnet: see `subnet_of`.
            charged_pusd: what `charge` gave; 0 for a known peer, of whom this is remembered for the rest of the hour,
                as long as the process runs, and takes from what it may owe.
            cost_pusd: the time that it took, at the price that was agreed.
        """
        if not charged_pusd:
            if cost_pusd:  # else it is perhaps a stranger, of a provider that asks nothing
                history = await self._ledger.peer(peer)
                limit_pusd = 0 if history is None else self._known_limit_pusd(history)
                # One piece of work never shuts it out: what it cost may be this machine's fault.
                self._spent[peer] = self._spent_by(peer) + min(cost_pusd, limit_pusd // 2)
            return
        cost_pusd = min(cost_pusd, self.policy.peer_uusd * PUSD_PER_UUSD)
        if cost_pusd <= charged_pusd:
            await self._ledger.release_credit(peer, pusd=charged_pusd - cost_pusd)
            return
        await self._ledger.charge_credit(
            peer,
            subnet=subnet,
            hour=self._clock_ms() // _HOUR_MS,
            pusd=cost_pusd - charged_pusd,
            peer_limit_pusd=_NO_LIMIT,
            subnet_limit_pusd=_NO_LIMIT,
            provider_limit_pusd=_NO_LIMIT,
        )

    def _spent_by(self, peer: PeerId) -> int:
        hour = self._clock_ms() // _HOUR_MS
        if hour != self._spent_hour:
            self._spent.clear()
            self._spent_hour = hour
        return self._spent.get(peer, 0)

    @property
    def quarter_pusd(self) -> int:
        """A quarter of what a newcomer may use in an hour: what one thing costs it at most before it has anything."""
        return self.policy.peer_uusd * PUSD_PER_UUSD // 4

    async def give_back(self, peer: PeerId, held: Held) -> None:
        """What is held is not needed any more."""
        pusd, held.pusd = held.pusd, 0
        if pusd > 0:
            await self.release(peer, pusd=pusd)

    async def release(self, peer: PeerId, *, pusd: int) -> None:
        """Work that was charged came to nothing and is not owed."""
        await self._ledger.release_credit(peer, pusd=pusd)


def subnet_of(address: str, peer: PeerId, *, loopback_is_one_subnet: bool = False) -> str:
    """The subnet that a peer's use of credit counts for: its /24 (IPv4) or /48 (IPv6).

    Args:
        address: the IP address that the peer connects from, or a multiaddr that begins with one. Anything else
            (a relay, a name, nothing) counts as one subnet, "unknown".
        peer: the peer.
        loopback_is_one_subnet: see `CreditPolicy`.
    """
    parts = address.split("/")
    text = parts[2] if address.startswith(("/ip4/", "/ip6/")) and len(parts) > 2 else address
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback and not loopback_is_one_subnet:
        return f"peer:{peer}"
    prefix = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{ip}/{prefix}", strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxLoss:
    """What one agreement can cost each side at most, beyond work done and paid as agreed, in micro-USD.

    Attributes:
        requester_uusd: paid for a window whose sample matched although other parts of it are wrong.
        provider_uusd: a window of work that is never paid.
        locked_uusd: the requester's money that waits for the channel's closing delay where the provider is gone. It
            is not lost.
    """

    requester_uusd: int
    provider_uusd: int
    locked_uusd: int


def max_loss(*, chunk_pusd: int, window: int, ceiling_uusd: int) -> MaxLoss:
    """The bounds for an agreement: price of a chunk, its largest window in chunks, and its ceiling."""
    window_uusd = min(-(-chunk_pusd * window // PUSD_PER_UUSD), ceiling_uusd)
    return MaxLoss(requester_uusd=window_uusd, provider_uusd=window_uusd, locked_uusd=ceiling_uusd)


def agreed_loss(terms: Terms) -> MaxLoss:
    """As `max_loss`, from what was agreed; a standing agreement that names no work may come to its ceiling."""
    chunk_pusd = terms.ceiling_uusd * PUSD_PER_UUSD
    if terms.work is not None:
        chunk_pusd = terms.work.units_per_chunk * terms.price_pusd
    return max_loss(chunk_pusd=chunk_pusd, window=terms.max_window, ceiling_uusd=terms.ceiling_uusd)
