"""Money on the wire: which chain, hub and token, and what is paid per unit of work.

Amounts are micro-USD (`_uusd`): one base unit of a 6-decimal stable token. Work is priced in pico-USD (`_pusd`)
per unit; only the cumulative amount of a voucher is rounded, up, to micro-USD.
"""

from __future__ import annotations

from typing import Final

from .limits import UINT64_MAX
from .wire import Bytes, Record, Uint, record, wire

__all__ = ["PUSD_PER_UUSD", "ChainTerms", "owed_uusd", "usd"]

PUSD_PER_UUSD: Final = 1_000_000


@record
class ChainTerms(Record):
    """Where money is settled."""

    chain_id: int = wire(1, Uint(1, UINT64_MAX))
    hub: bytes = wire(2, Bytes(20))
    token: bytes = wire(3, Bytes(20))
    decimals: int = wire(4, Uint(0, 36))


def usd(amount_uusd: int) -> str:
    """Micro-USD as people read them, to the last digit: "0.010000 USD"."""
    whole, rest = divmod(abs(amount_uusd), 1_000_000)
    return f"{'-' * (amount_uusd < 0)}{whole}.{rest:06d} USD"


def owed_uusd(units: int, price_pusd: int) -> int:
    """Micro-USD owed for `units` of work at `price_pusd` pico-USD a unit, rounded up once."""
    return -(-units * price_pusd // PUSD_PER_UUSD)
