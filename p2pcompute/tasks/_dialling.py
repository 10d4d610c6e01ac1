"""How the requester comes to an agreement with one provider: dial, order, bid, terms."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.errors import DialError, OverlayError, P2PComputeError
from p2pcompute.market import Candidate, OrderRefused, negotiate
from p2pcompute_protocols._binding import SignerBinding
from p2pcompute_protocols.envelope import Signer
from p2pcompute_protocols.money import ChainTerms
from p2pcompute_protocols.negotiation import Agreement, BidPayload, OrderPayload, widest_window
from p2pcompute_protocols.work import RoundWork, Work

from ._state import TaskRequest

if TYPE_CHECKING:
    from p2pcompute.overlay import Overlay, Requests

__all__ = ["Dialler", "NoPlaceError"]

_ORDER_LIFETIME_MS: Final = 60_000
_DIAL_S: Final = 10.0
_CHUNK_MOST_MS: Final = 30 * 60_000  # that a bid may ask for one chunk


class NoPlaceError(P2PComputeError):
    """Others have taken all places meanwhile. The provider did nothing wrong; the coordinator acts on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialler:
    """Makes agreements for this node."""

    overlay: Overlay
    requests: Requests
    network: str
    signer: Signer
    chain: ChainTerms
    binding: Callable[[], SignerBinding]
    now_ms: Callable[[], int]

    async def agree(
        self, request: TaskRequest, candidate: Candidate, *, is_full: Callable[[], bool]
    ) -> tuple[Agreement, float]:
        """Dial a candidate where there is no connection, order, and agree on its bid.

        Gives the agreement, and the seconds from the order to it.

        Args:
            is_full: whether all places are taken; asked before the order, before the bid is taken and at the end.

        Raises:
            NoPlaceError: they are. What the provider may have signed by then costs nobody anything.
            TaskRefused, ChainError: it has too little at stake, or that can't be told.
            OrderRefused, RemoteProtocolError, OverlayError: as `negotiate`.
        """
        if request.stake is not None:
            await request.stake.admit(candidate.peer_id, candidate.payee)
        if candidate.peer_id not in self.overlay.peers():
            await self._dial(candidate)
        full = is_full()
        if full:
            raise NoPlaceError(f"{candidate.peer_id} was reached when all places were taken")
        now, started = self.now_ms(), trio.current_time()
        order = OrderPayload(
            order_id=secrets.token_bytes(16),
            created_ms=now,
            expires_ms=now + _ORDER_LIFETIME_MS,
            work=request.work,
            requirement=request.requirement,
            max_price_pusd=request.max_price_pusd,
            ceiling_uusd=request.ceiling_uusd,
            chain=self.chain,
            payer=self.binding(),
            check=request.check,
            fp=request.fp,
            language=request.language,
            deadline_ms=request.deadline_ms,
            standing=request.standing,
            arbiters=() if request.stake is None else request.stake.arbiters,
        )

        def accept(bid: BidPayload) -> bool:
            nonlocal full
            full = is_full()
            return not full and _is_bearable(bid, candidate, request.work)

        try:
            agreement = await negotiate(
                self.requests,
                candidate.peer_id,
                order,
                network=self.network,
                signer=self.signer,
                now_ms=self.now_ms,
                accept=accept,
            )
        except OrderRefused:
            if full:
                raise NoPlaceError(f"{candidate.peer_id} has bid when all places were taken") from None
            raise
        if is_full():
            raise NoPlaceError(f"{candidate.peer_id} has signed when all places were taken")
        return agreement, trio.current_time() - started

    async def _dial(self, candidate: Candidate) -> None:
        """Try all addresses of an ad beside each other; the first that is this peer counts."""
        errors: list[OverlayError] = []
        # An ad may not send us to somebody else.
        addresses = [address for address in candidate.addresses if address.endswith(f"/p2p/{candidate.peer_id}")]
        with trio.move_on_after(_DIAL_S):
            async with trio.open_nursery() as nursery:

                async def attempt(address: str) -> None:
                    try:
                        await self.overlay.connect(address)
                    except OverlayError as exc:
                        errors.append(exc)
                    else:
                        nursery.cancel_scope.cancel()

                for address in addresses:
                    nursery.start_soon(attempt, address)
        if candidate.peer_id not in self.overlay.peers():
            raise errors[0] if errors else DialError(f"{candidate.peer_id} is at none of its addresses")


def _is_bearable(bid: BidPayload, candidate: Candidate, work: Work) -> bool:
    """Whether a bid keeps to the ad that it was chosen for, and gives no licence to sit on a chunk for ever."""
    window = candidate.option.max_window
    return (
        bid.payee == candidate.payee
        and any(bid.payee)
        and bid.price_pusd <= candidate.option.price_pusd
        and bid.max_window <= (window if isinstance(work, RoundWork) else widest_window(window, work.units_per_chunk))
        and bid.slots <= candidate.device.slots
        and bid.chunk_timeout_ms <= _CHUNK_MOST_MS
    )
