"""How many chunks may be unpaid, where they are short."""

from __future__ import annotations

from ..limits import MAX_CREDIT_WINDOW, SHORT_WINDOW_UNITS

__all__ = ["widest_window"]


def widest_window(advertised: int, units_per_chunk: int) -> int:
    """The largest `max_window` of a bid for chunks of so many units, by a provider whose ad says `advertised`.

    What an unpaid window costs is time and money and not a number: an ad's window is for chunks of any length. Of short
    ones there may be more, as many as are `SHORT_WINDOW_UNITS` together.
    """
    return max(advertised, min(MAX_CREDIT_WINDOW, SHORT_WINDOW_UNITS // max(1, units_per_chunk)))
