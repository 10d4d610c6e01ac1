"""When a checkpoint is due, as a pure function: what is unclaimed, who is closing, what gas costs.

Vouchers are worth the same tomorrow as long as their channel is open, so nothing hurries but a payer that asks to
close: from then on there is a day. A fee spike is waited for; as the day runs out it is paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from ._api import MAX_BATCH, GasQuote

__all__ = ["CLOSE_WINDOW_S", "Claimable", "SettlePolicy", "claim_gas", "rows_due", "rows_worth_it"]

CLOSE_WINDOW_S: Final = 86_400
"""Seconds from a payer's request to close to its refund; the hub's own."""

_TX_GAS: Final = 56_000  # of a claim without rows, with a payee that was never credited before: measured, see below
_ROW_GAS: Final = 15_500  # of each row
_WEI_PER_COIN: Final = 10**18


class Claimable(Protocol):
    """As much of a channel as the policy looks at."""

    @property
    def unclaimed_uusd(self) -> int: ...
    @property
    def close_at_s(self) -> int: ...


C = TypeVar("C", bound=Claimable)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlePolicy:
    """When vouchers are claimed.

    Attributes:
        cap_uusd: unclaimed value above which a checkpoint is due, whatever it costs.
        coin_uusd: what one of the chain's own coin is worth, in micro-USD. None where nobody has said: then only the
            cap counts, and gas is paid as it comes.
        gas_multiple: unclaimed value that makes a checkpoint due below the cap, as a multiple of what its gas costs.
        spike_percent: fees above this part of the usual ones are a spike.
        patience_percent: the part of a closing channel's window for which a spike is waited for.
    """

    cap_uusd: int
    coin_uusd: int | None = None
    gas_multiple: int = 100
    spike_percent: int = 300
    patience_percent: int = 75

    def __post_init__(self) -> None:
        if self.cap_uusd < 0 or self.gas_multiple < 1 or (self.coin_uusd is not None and self.coin_uusd < 0):
            raise ValueError("cap_uusd and coin_uusd are not negative, gas_multiple is 1 or more")
        if self.spike_percent < 100 or not 0 <= self.patience_percent <= 100:
            raise ValueError("spike_percent is 100 or more, patience_percent 0 to 100")

    def cost_uusd(self, gas: int, quote: GasQuote | None) -> int:
        """What `gas` units cost, rounded up; 0 where gas is free or its coin's price is not known."""
        if quote is None or self.coin_uusd is None:
            return 0
        return -(-gas * quote.fee_wei * self.coin_uusd // _WEI_PER_COIN)

    def is_spike(self, quote: GasQuote | None) -> bool:
        """Whether gas costs far more than usual."""
        return quote is not None and quote.fee_wei * 100 > quote.usual_wei * self.spike_percent

    def is_urgent(self, close_at_s: int, now_s: int) -> bool:
        """Whether so much of a closing channel's window is gone that a spike is paid."""
        return close_at_s - now_s <= CLOSE_WINDOW_S * (100 - self.patience_percent) // 100


def claim_gas(rows: int) -> int:
    """About what a claim of so many rows uses, over all its batches: no less than what is measured (70,431 for one row
    that credits a payee for the first time, 185,577 for ten, 1,507,989 for a hundred: `benchmarks/hub_gas.py`)."""
    batches = -(-rows // MAX_BATCH)
    return batches * _TX_GAS + rows * _ROW_GAS


def rows_worth_it(rows: Sequence[C], policy: SettlePolicy, quote: GasQuote | None) -> list[C]:
    """Of these rows those that bring more than the gas of a row each, where together they bring more than the gas of
    all; nothing else. Without a price of gas all with anything unclaimed."""
    row_uusd = policy.cost_uusd(_ROW_GAS, quote)
    worth = [row for row in rows if row.unclaimed_uusd > row_uusd]
    if sum(row.unclaimed_uusd for row in worth) <= policy.cost_uusd(claim_gas(len(worth)), quote):
        return []
    return worth


def rows_due(rows: Sequence[C], *, now_s: int, policy: SettlePolicy, quote: GasQuote | None) -> list[C]:
    """The rows to claim now.

    Args:
        rows: incoming channels, as the chain has them.
        now_s: UNIX time.
        policy: see there.
        quote: None where gas is free.
    """
    worth = rows_worth_it(rows, policy, quote)
    closing = [row for row in worth if row.close_at_s]
    if policy.is_spike(quote):
        # In the others nothing runs away, and gas comes down again.
        return rows_worth_it([row for row in closing if policy.is_urgent(row.close_at_s, now_s)], policy, quote)
    total = sum(row.unclaimed_uusd for row in worth)
    cost = policy.cost_uusd(claim_gas(len(worth)), quote)
    if closing or total > policy.cap_uusd or (cost and total >= policy.gas_multiple * cost):
        return worth
    return []
