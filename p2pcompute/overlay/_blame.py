"""Which protocol errors count against the peer, wherever one of our protocols meets them.

Whoever speaks a protocol says what went wrong to `OverlayStream.blame`, or raises it out of its handler; here it is
decided whether that is an offence. `docs/limits.md` has the table.
"""

from __future__ import annotations

from typing import Final

from p2pcompute_protocols.errors import EndedEarly, ProtocolError, WireCode

from ._bans import Offence

__all__ = ["is_offence", "offence_of"]

# What no honest implementation sends. Other codes come of clocks, settings, lines, memory that errs and news that
# crosses other news as well, unless whoever met the error is certain that it was none of these.
_BLAMED: Final = frozenset({WireCode.MALFORMED, WireCode.OVERSIZED, WireCode.BAD_SIGNATURE, WireCode.OUT_OF_ORDER})


def offence_of(exc: ProtocolError) -> Offence | None:
    """What the peer has done that only a peer can have done which breaks the protocol itself; None where it may be
    somebody or something else."""
    if isinstance(exc, EndedEarly):
        return None
    if exc.code == WireCode.KERNEL_REFUSED:
        return Offence.UNFIT if exc.certain else None
    return Offence.VIOLATION if exc.certain or exc.code in _BLAMED else None


def is_offence(exc: ProtocolError) -> bool:
    """Whether this counts at all."""
    return offence_of(exc) is not None
