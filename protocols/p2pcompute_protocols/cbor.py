"""Deterministic CBOR (RFC 8949 §4.2.1), narrowed to what the protocols use.

Allowed: unsigned integers below 2**64, byte and text strings, arrays, maps with unsigned-integer keys, true and
false. Refused: negative integers, floats, null, tags, indefinite lengths, duplicate or unordered keys, integers
and lengths that are not the shortest, trailing bytes. cbor2 accepts all of those, so a decode is followed by a
walk over the types and bounds and by a re-encoding that must give the same bytes.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import cbor2

from .errors import LocalProtocolError, WireCode
from .limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS, MAX_FRAME_BYTES, UINT64_MAX

__all__ = ["CborValue", "decode", "encode"]

CborValue: TypeAlias = "int | bytes | str | bool | list[CborValue] | dict[int, CborValue]"


def _walk(value: object, depth: int, budget: int) -> int:
    if depth > MAX_CBOR_DEPTH:
        raise LocalProtocolError(f"CBOR nested deeper than {MAX_CBOR_DEPTH}", code=WireCode.OVERSIZED)
    budget -= 1
    if budget < 0:
        raise LocalProtocolError(f"more than {MAX_CBOR_ITEMS} CBOR items", code=WireCode.OVERSIZED)
    kind = type(value)
    if kind is bool or kind is bytes or kind is str:
        return budget
    if kind is int:
        if not 0 <= cast("int", value) <= UINT64_MAX:
            raise LocalProtocolError("an integer outside of uint64")
        return budget
    if kind is list:
        for item in cast("list[object]", value):
            budget = _walk(item, depth + 1, budget)
        return budget
    if kind is dict:
        last = -1
        for key, item in cast("dict[object, object]", value).items():
            if type(key) is not int or not last < key <= UINT64_MAX:
                raise LocalProtocolError("map keys must be unsigned integers in ascending order")
            last = key
            budget = _walk(item, depth + 1, budget - 1)
        return budget
    raise LocalProtocolError(f"CBOR type {kind.__name__} is not used here")


def encode(value: CborValue) -> bytes:
    """Encode; maps must already have their keys in ascending order.

    Raises:
        LocalProtocolError: a type or bound outside of the subset.
    """
    _walk(value, 0, MAX_CBOR_ITEMS)
    return cbor2.dumps(value)


def decode(data: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> CborValue:
    """Decode exactly one item that is deterministic CBOR of the subset.

    Raises:
        LocalProtocolError: anything else, with code MALFORMED or OVERSIZED.
    """
    if len(data) > max_bytes:
        raise LocalProtocolError(f"{len(data)} bytes where at most {max_bytes} are allowed", code=WireCode.OVERSIZED)
    try:
        value: object = cbor2.loads(
            data, max_depth=MAX_CBOR_DEPTH + 2, allow_indefinite=False, allow_duplicate_keys=False
        )
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as exc:
        raise LocalProtocolError(f"not CBOR: {type(exc).__name__}") from None
    _walk(value, 0, MAX_CBOR_ITEMS)
    if cbor2.dumps(value) != data:
        raise LocalProtocolError("CBOR is not in its deterministic form")
    return cast("CborValue", value)
