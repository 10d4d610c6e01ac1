"""Which protocol errors count against the peer, wherever one of our protocols meets them.

Whoever speaks a protocol says what went wrong to `OverlayStream.blame`, or raises it out of its handler; here it is
decided whether that is an offence. `docs/limits.md` has the table.
"""

from __future__ import annotations

from typing import Final

from p2pcompute_protocols.errors import EndedEarly, ProtocolError, WireCode

__all__ = ["is_offence"]

# What no honest implementation sends. Other codes come of clocks, settings, lines, memory that errs and news that
# crosses other news as well.
_BLAMED: Final = frozenset({WireCode.MALFORMED, WireCode.OVERSIZED, WireCode.BAD_SIGNATURE, WireCode.OUT_OF_ORDER})


def is_offence(exc: ProtocolError) -> bool:
    """Whether only a peer that breaks the protocol itself can have caused this."""
    return exc.code in _BLAMED and not isinstance(exc, EndedEarly)
