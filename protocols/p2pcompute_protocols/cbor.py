"""Deterministic CBOR (RFC 8949 §4.2.1), narrowed to what the protocols use.

Allowed: unsigned integers below 2**64, byte and text strings, arrays, maps with unsigned-integer keys, true and
false. Refused: negative integers, floats, null, tags, indefinite lengths, duplicate or unordered keys, integers
and lengths that are not the shortest, trailing bytes.

General decoders accept all of those and build the value before anyone can count it (256 KiB of empty arrays are
17 MB of lists), so decoding is done here: it stops at the first byte that is not of the subset or is over a
bound, and copies the bytes of a blob once. Encoding is cbor2's, after a walk over types and bounds.
"""

from __future__ import annotations

from typing import Final, TypeAlias, cast

import cbor2

from .errors import LocalProtocolError, WireCode
from .limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS, MAX_FRAME_BYTES, UINT64_MAX

__all__ = ["CborValue", "decode", "decode_up_to_tail", "encode", "encode_checked", "encode_up_to_tail"]

CborValue: TypeAlias = "int | bytes | str | bool | list[CborValue] | dict[int, CborValue]"

_UINT, _BYTES, _TEXT, _ARRAY, _MAP, _SIMPLE = 0, 2, 3, 4, 5, 7
_FALSE, _TRUE = 20, 21
_TAIL_PAIRS: Final = 4  # of a message whose bytes are taken where they are wanted
_SHORTEST: Final = (24, 1 << 8, 1 << 16, 1 << 32)  # the smallest argument that needs 1, 2, 4, 8 bytes


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
    try:
        return cbor2.dumps(value)
    except UnicodeEncodeError:
        raise LocalProtocolError("text is not valid Unicode") from None


def encode_checked(value: dict[int, CborValue]) -> bytes:
    """As `encode`, for a map of which all keys and values are known to be of the subset and within its bounds."""
    return cbor2.dumps(value)


class _Reader:
    """One pass over the bytes; `left` is how many items may still come."""

    __slots__ = ("at", "data", "left")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.left = MAX_CBOR_ITEMS - 1  # the outermost item counts too

    def head(self) -> tuple[int, int]:
        """The next item's major type and argument."""
        data, at = self.data, self.at
        if at >= len(data):
            raise LocalProtocolError("CBOR ends early")
        major, argument = data[at] >> 5, data[at] & 31
        at += 1
        if argument >= 24:
            form = argument - 24
            if form > 3:
                raise LocalProtocolError("an indefinite or reserved CBOR length")
            if major == _SIMPLE:
                raise LocalProtocolError("floats and wide simple values are not used here")
            end = at + (1 << form)
            if end > len(data):
                raise LocalProtocolError("CBOR ends early")
            argument = int.from_bytes(data[at:end], "big")
            if argument < _SHORTEST[form]:
                raise LocalProtocolError("a CBOR integer or length is not in its shortest form")
            at = end
        self.at = at
        return major, argument

    def _take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise LocalProtocolError(f"more than {MAX_CBOR_ITEMS} CBOR items", code=WireCode.OVERSIZED)

    def string(self, size: int) -> bytes:
        """The bytes of a string."""
        begin, end = self.at, self.at + size
        if end > len(self.data):
            raise LocalProtocolError("CBOR ends early")
        self.at = end
        return self.data[begin:end]

    def item(self, depth: int) -> CborValue:
        """The next item whole."""
        if depth > MAX_CBOR_DEPTH:
            raise LocalProtocolError(f"CBOR nested deeper than {MAX_CBOR_DEPTH}", code=WireCode.OVERSIZED)
        data, at = self.data, self.at
        if at < len(data) and data[at] < _SHORTEST[0]:  # a small integer, as most are
            self.at = at + 1
            return data[at]
        major, argument = self.head()
        if major == _UINT:
            return argument
        if major == _BYTES:
            return self.string(argument)
        if major == _TEXT:
            try:
                return self.string(argument).decode("utf-8")
            except UnicodeDecodeError:
                raise LocalProtocolError("CBOR text is not UTF-8") from None
        if major == _ARRAY:
            self._take(argument)
            return [self.item(depth + 1) for _ in range(argument)]
        if major == _MAP:
            self._take(2 * argument)
            return self._map(argument, depth)
        if major == _SIMPLE and argument in (_FALSE, _TRUE):
            return argument == _TRUE
        raise LocalProtocolError(f"CBOR of major type {major} is not used here")

    def _map(self, pairs: int, depth: int) -> CborValue:
        value: dict[int, CborValue] = {}
        last = -1
        data = self.data
        for _ in range(pairs):
            at = self.at
            if at < len(data) and last < data[at] < _SHORTEST[0]:
                key, self.at = data[at], at + 1
            else:
                major, key = self.head()
                if major != _UINT or key <= last:
                    raise LocalProtocolError("map keys must be unsigned integers in ascending order")
            last = key
            value[key] = self.item(depth + 1)
        return value


def decode(data: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> CborValue:
    """Decode exactly one item that is deterministic CBOR of the subset.

    Raises:
        LocalProtocolError: anything else, with code MALFORMED or OVERSIZED.
    """
    if len(data) > max_bytes:
        raise LocalProtocolError(f"{len(data)} bytes where at most {max_bytes} are allowed", code=WireCode.OVERSIZED)
    reader = _Reader(data)
    value = reader.item(0)
    if reader.at != len(data):
        raise LocalProtocolError(f"{len(data) - reader.at} bytes after the CBOR item")
    return value


def encode_up_to_tail(value: dict[int, CborValue], size: int) -> bytes:
    """What `encode` gives for this map, whose last value is a byte string of `size` bytes, but for those bytes. Empty
    ones stand for them in `value`.

    Raises:
        LocalProtocolError: as `encode`.
    """
    head = encode(value)
    assert head[-1] == _BYTES << 5  # the empty one's whole encoding
    if size < _SHORTEST[0]:
        return head[:-1] + bytes([_BYTES << 5 | size])
    form = sum(size >= bound for bound in _SHORTEST[1:])
    return head[:-1] + bytes([_BYTES << 5 | 24 + form]) + size.to_bytes(1 << form, "big")


def decode_up_to_tail(data: bytes) -> tuple[dict[int, CborValue], int, int, int] | None:
    """Read the beginning of a map of integers whose last value is a byte string: the pairs before that, its key, where
    its bytes begin, and how many they are.

    None for everything else, such as for what ends before that or is not of the subset: `decode` says what that is,
    once it is whole.
    """
    reader = _Reader(data)
    try:
        major, pairs = reader.head()
        if major != _MAP or not 0 < pairs <= _TAIL_PAIRS:
            return None
        value: dict[int, CborValue] = {}
        last = -1
        for left in reversed(range(pairs)):
            major, key = reader.head()
            if major != _UINT or key <= last:
                return None
            last = key
            major, argument = reader.head()
            if not left:
                return (value, key, reader.at, argument) if major == _BYTES else None
            if major != _UINT:
                return None
            value[key] = argument
    except LocalProtocolError:
        return None
    return None
