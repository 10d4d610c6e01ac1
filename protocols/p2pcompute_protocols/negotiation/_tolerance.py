"""How far a result of `fp="fast"` may lie from the strict one, as an agreement states it.

Floats don't travel in messages: a tolerance is the bits of a binary64 as an unsigned integer. From zero up those
integers ascend as the numbers do, so that bounds of the integers are bounds of the numbers, and what is negative,
infinite or no number at all lies outside of them.
"""

from __future__ import annotations

import math
import struct
from typing import Final, Self

from ..errors import LocalProtocolError, WireCode
from ..wire import Record, Uint, record, wire

__all__ = ["MAX_RTOL", "MIN_RTOL", "Tolerance", "bits_of", "number_of"]

MIN_RTOL: Final = {"float32": 2.0**-20, "float64": 2.0**-46}  # what arithmetic in another order may need: 8, 64 ulp
MAX_RTOL: Final = 2.0**-4  # far below 1, where zeros would pass for everything


def bits_of(number: float) -> int:
    """The bits of a binary64 that is not negative, as an unsigned integer.

    Raises:
        LocalProtocolError: it is negative, infinite or not a number.
    """
    number = float(number)
    if not (math.isfinite(number) and number >= 0):
        raise LocalProtocolError(f"{number} is no tolerance: it has to be finite and not negative")
    return int.from_bytes(struct.pack(">d", abs(number)), "big")


def number_of(bits: int) -> float:
    """The binary64 that has these bits."""
    return float(struct.unpack(">d", bits.to_bytes(8, "big"))[0])


_MAX_RTOL_BITS: Final = bits_of(MAX_RTOL)
_MAX_ATOL_BITS: Final = bits_of(math.nextafter(math.inf, 0))


@record
class Tolerance(Record):
    """What `fp="fast"` may differ by: an element x is right where |x - s| <= atol + rtol * |s|, with s the strict one.

    For each float type of outputs; elements of all others have to be equal.
    """

    rtol32: int = wire(1, Uint(bits_of(MIN_RTOL["float32"]), _MAX_RTOL_BITS))
    atol32: int = wire(2, Uint(0, _MAX_ATOL_BITS))
    rtol64: int = wire(3, Uint(bits_of(MIN_RTOL["float64"]), _MAX_RTOL_BITS))
    atol64: int = wire(4, Uint(0, _MAX_ATOL_BITS))

    @classmethod
    def of(cls, *, rtol32: float, atol32: float, rtol64: float, atol64: float) -> Self:
        """From numbers.

        Raises:
            LocalProtocolError: one of them is out of its range.
        """
        return cls(rtol32=bits_of(rtol32), atol32=bits_of(atol32), rtol64=bits_of(rtol64), atol64=bits_of(atol64))

    def for_dtype(self, dtype: str) -> tuple[float, float] | None:
        """(rtol, atol) of outputs of a dtype; None where elements have to be equal."""
        match dtype:
            case "float32":
                return number_of(self.rtol32), number_of(self.atol32)
            case "float64":
                return number_of(self.rtol64), number_of(self.atol64)
            case _:
                return None


def check_mode(fp: str, tolerance: Tolerance | None) -> None:
    """Refuse a strict mode with a tolerance, and a fast one without: both sides have to know what is compared.

    Raises:
        LocalProtocolError: MALFORMED.
    """
    if (fp == "fast") != (tolerance is not None):
        raise LocalProtocolError("fast mode states a tolerance, and strict mode has none", code=WireCode.MALFORMED)
