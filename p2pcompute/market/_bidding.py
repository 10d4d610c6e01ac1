"""How a provider decides on an order: capacity, chain, language, price, credit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

from p2pcompute_protocols.ads import Device
from p2pcompute_protocols.envelope import Envelope
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import Address, PeerId
from p2pcompute_protocols.limits import MAX_CLOCK_SKEW_MS
from p2pcompute_protocols.money import PUSD_PER_UUSD, ChainTerms
from p2pcompute_protocols.negotiation import BidPayload, CheckPolicy, OrderPayload, Tolerance, widest_window
from p2pcompute_protocols.task import standing_work
from p2pcompute_protocols.work import ProgramRef, ProgramWork, RoundWork, Work

__all__ = ["MAX_CEILING_UUSD", "MAX_DEADLINE_MS", "FixedPricePolicy", "check_program"]

MAX_DEADLINE_MS: Final = 7 * 24 * 3_600_000  # from the order; a task is the provider's promise until then
_MAX_LEDGER_INT: Final = 2**63 - 1  # what SQLite can hold
MAX_CEILING_UUSD: Final = _MAX_LEDGER_INT // PUSD_PER_UUSD  # work is added up in pico-USD
_BID_LIFETIME_MS: Final = 30_000
_CHUNK_SLACK: Final = 8  # a chunk may take so many times its estimate
_CHUNK_MIN_MS: Final = 20_000
_CHUNK_MAX_MS: Final = 10 * 60_000
_STATES_BYTES: Final = 256 * 1024 * 1024  # of the states at the ends of chunks that one task may leave unpaid
_SAID: Final = 4  # programs of one name in a refusal
_NEWCOMER_CHUNK_MS: Final = 30_000  # and as long again as what a newcomer has paid for


@dataclass(slots=True, kw_only=True)
class FixedPricePolicy:
    """Bids a fixed price per unit for what the device can do.

    `first_window` gives how many chunks a peer may owe at first (its credit); `has_room` whether another task of
    a peer would be admitted; `proven_ms` how long this device has computed for a peer's money, None for a known peer.
    How long a chunk may hold a slot is the requester's own figure, so a newcomer's holds it for half a minute, and for
    as long again as it has paid for. `programs` are those that the owner of this node allows; each runs on one thread,
    whose part of the device's score is `thread_milli`. Those that are `private` read data of the owner's, so that
    nobody else gets what they give. `arbiters` are the peers that may judge this provider. `modes` are the
    floating-point modes that are sold; `fast_price_pusd` is the price of fast mode, `price_pusd` where None;
    `check_tolerance` refuses work in it whose tolerance is too tight here.
    """

    device: Device
    chain: ChainTerms
    payee: Address
    language: str
    price_pusd: int
    max_window: int
    now_ms: Callable[[], int]
    has_room: Callable[[PeerId], Awaitable[bool]]
    first_window: Callable[[PeerId, int], Awaitable[int]]
    proven_ms: Callable[[PeerId], Awaitable[int | None]] | None = None
    programs: Collection[ProgramRef] = ()
    private: Collection[ProgramRef] = ()
    modes: Collection[str] = ("strict",)
    fast_price_pusd: int | None = None
    check_tolerance: Callable[[Work | None, Tolerance | None], None] | None = None
    thread_milli: int = 1_000
    region: str | None = None
    arbiters: Collection[str] = ()

    async def bid(self, requester: PeerId, order: Envelope, payload: OrderPayload) -> BidPayload:
        """Decide on an order.

        Raises:
            LocalProtocolError: the typed refusal.
        """
        if not await self.has_room(requester):
            raise LocalProtocolError("no place is free; try later", code=WireCode.NO_CAPACITY)
        self._check(payload)
        work = standing_work(payload.work) if payload.standing else payload.work
        assert work is not None  # which orders have where they are not standing
        speed_milli = self.thread_milli if isinstance(work, ProgramWork) else self.device.score_milli
        price_pusd = self._price_of(payload)
        if work.units_per_chunk * price_pusd > _MAX_LEDGER_INT:
            raise LocalProtocolError("a chunk of so many units has no price here", code=WireCode.OVERSIZED)
        window = await self.first_window(requester, work.units_per_chunk * price_pusd)
        estimate_ms = work.units_per_chunk * 1_000 // speed_milli // 1_000
        limit_ms = await self._longest_ms(requester)
        if limit_ms < _CHUNK_MAX_MS and estimate_ms > limit_ms:
            raise LocalProtocolError(
                f"a newcomer's chunk may take {limit_ms} ms here and yours takes {estimate_ms}; use more chunks",
                code=WireCode.OVERSIZED,
            )
        max_window = self.max_window
        if isinstance(work, RoundWork):  # the states of unpaid chunks stay in memory
            max_window = max(1, min(max_window, _STATES_BYTES // work.state_bytes - 1))
        else:
            max_window = widest_window(max_window, work.units_per_chunk)
        now = self.now_ms()
        return BidPayload(
            order_digest=order.digest,
            price_pusd=price_pusd,
            slots=1,
            credit_window=min(window, max_window),
            max_window=max_window,
            payee=bytes(self.payee),
            score_milli=speed_milli,
            valid_until_ms=now + _BID_LIFETIME_MS,
            chunk_timeout_ms=min(limit_ms, max(_CHUNK_MIN_MS, estimate_ms * _CHUNK_SLACK)),
            timeout_payer="provider",
        )

    def _price_of(self, payload: OrderPayload) -> int:
        fast = self.fast_price_pusd if payload.fp == "fast" else None
        return self.price_pusd if fast is None else fast

    async def _longest_ms(self, requester: PeerId) -> int:
        proven_ms = None if self.proven_ms is None else await self.proven_ms(requester)
        return _CHUNK_MAX_MS if proven_ms is None else min(_CHUNK_MAX_MS, _NEWCOMER_CHUNK_MS + proven_ms)

    def _check(self, payload: OrderPayload) -> None:
        requirement = payload.requirement
        if payload.chain != self.chain:
            raise LocalProtocolError("we settle on another chain, hub or token", code=WireCode.CHAIN_MISMATCH)
        if payload.language != self.language:
            raise LocalProtocolError(f"we speak {self.language}", code=WireCode.UNSUPPORTED)
        if payload.fp not in self.modes:
            raise LocalProtocolError(f"we compute in {' and '.join(self.modes)} mode", code=WireCode.UNSUPPORTED)
        if self.check_tolerance is not None:
            self.check_tolerance(payload.work, payload.check.tolerance)
        if isinstance(payload.work, RoundWork) and payload.fp != "strict":
            # Every state has to have one value; so they would be computed strictly, at the price of the other mode.
            raise LocalProtocolError("rounds are computed in strict mode only", code=WireCode.UNSUPPORTED)
        price_pusd = self._price_of(payload)
        if payload.max_price_pusd < price_pusd:
            raise LocalProtocolError(f"our price is {price_pusd} pUSD a unit", code=WireCode.PRICE_TOO_LOW)
        if (
            self.device.kind not in requirement.kinds
            or self.device.memory_bytes < requirement.memory_bytes
            or self.device.score_milli < requirement.min_score_milli
        ):
            raise LocalProtocolError("no device of ours is as required", code=WireCode.UNSUPPORTED)
        if payload.work is not None:
            check_program(payload.work, self.programs)  # first: it says what we have instead
            self._check_private(payload.work, payload.check)
        if missing := set(requirement.features) - {program.feature for program in self.programs}:
            raise LocalProtocolError(f"we lack {', '.join(sorted(missing))}", code=WireCode.UNSUPPORTED)
        if requirement.region not in (None, self.region):
            raise LocalProtocolError("we are not in that region", code=WireCode.UNSUPPORTED)
        if not set(payload.arbiters) <= set(self.arbiters):
            raise LocalProtocolError(
                "we accept none of these arbiters" if self.arbiters else "we accept no arbiters",
                code=WireCode.UNSUPPORTED,
            )
        if payload.ceiling_uusd > MAX_CEILING_UUSD:
            raise LocalProtocolError(f"a ceiling is {MAX_CEILING_UUSD} micro-USD at most", code=WireCode.OVERSIZED)
        if payload.deadline_ms <= self.now_ms():
            raise LocalProtocolError("the deadline has passed", code=WireCode.EXPIRED)
        if payload.deadline_ms > self.now_ms() + MAX_DEADLINE_MS + MAX_CLOCK_SKEW_MS:
            raise LocalProtocolError("the deadline is more than 7 days ahead", code=WireCode.UNSUPPORTED)

    def _check_private(self, work: Work, check: CheckPolicy) -> None:
        """Whoever repeats items of a program without the data that it reads here would take us for a liar."""
        if isinstance(work, ProgramWork) and work.program in self.private and check.kind != "none":
            raise LocalProtocolError(
                f"{work.program.name} reads data that only we have, so its results can't be checked; order it with "
                'check="none"',
                code=WireCode.UNSUPPORTED,
            )


def check_program(work: Work, programs: Collection[ProgramRef]) -> None:
    """Refuse work on a program that is not among `programs`, to the last byte of its files.

    Raises:
        LocalProtocolError: UNSUPPORTED; says what is asked for and what there is.
    """
    if not isinstance(work, ProgramWork) or work.program in programs:
        return
    alike = [program for program in programs if program.name == work.program.name]
    if not alike:
        raise LocalProtocolError(f"we run no program {work.program.name}", code=WireCode.UNSUPPORTED)
    raise LocalProtocolError(
        f"you ask for {_said(work.program)} and we run {' and '.join(map(_said, alike[:_SAID]))}; install the same one",
        code=WireCode.UNSUPPORTED,
    )


def _said(program: ProgramRef) -> str:
    return f"{program.name} of {program.distribution} {program.version} (files {program.digest.hex()[:16]})"
