"""Messages as frozen dataclasses that cannot exist invalid, and their map form.

A record is written as

    @record
    class Device(Record):
        kind: str = wire(1, Choice("cpu", "cuda"))
        slots: int = wire(2, Uint(1, MAX_SLOTS))
        note: str | None = optional(3, Text(MAX_NAME), default=None)

and becomes a CBOR map with those unsigned keys in ascending order. An optional field that is None is left out.
Unknown keys are refused, except in records marked `extensible`, whose keys from `EXTENSION_KEYS` up are ignored
by this version. A record with a class attribute `TYPE` is a message of its own: key 0 holds that number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast, dataclass_transform

from . import cbor
from .cbor import CborValue
from .errors import LocalProtocolError, WireCode
from .ids import PeerId, peer_id_from_bytes, peer_id_to_bytes
from .limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS, MAX_FRAME_BYTES, UINT64_MAX

__all__ = [
    "EXTENSION_KEYS",
    "Array",
    "Bytes",
    "Choice",
    "Flag",
    "Nested",
    "OneOf",
    "Peer",
    "Record",
    "Text",
    "Uint",
    "UintMap",
    "decode_message",
    "optional",
    "record",
    "wire",
]

EXTENSION_KEYS = 1_000  # keys from here up are free for extensions in extensible records


class FieldType(Protocol):
    """Checks a Python value and converts it to and from its CBOR form."""

    def check(self, value: object) -> None: ...
    def dump(self, value: Any) -> CborValue: ...
    def load(self, raw: CborValue) -> object: ...


def _fail(message: str, code: WireCode = WireCode.MALFORMED) -> LocalProtocolError:
    return LocalProtocolError(message, code=code)


def _is_flat(view: memoryview) -> bool:
    return view.format == "B" and view.ndim == 1 and view.contiguous


@dataclasses.dataclass(frozen=True, slots=True)
class Uint:
    """An unsigned integer from `low` to `high`, inclusive."""

    low: int = 0
    high: int = UINT64_MAX

    def check(self, value: object) -> None:
        if type(value) is int and self.low <= value <= self.high:
            return  # as nearly all are
        if not isinstance(value, int) or isinstance(value, bool):  # an IntEnum such as WireCode is fine
            raise _fail(f"expected an unsigned integer, got {type(value).__name__}")
        if not self.low <= value <= self.high:
            raise _fail(f"{value} is outside of {self.low}..{self.high}", WireCode.OVERSIZED)

    def dump(self, value: Any) -> CborValue:
        return int(value)

    def load(self, raw: CborValue) -> object:
        return raw


@dataclasses.dataclass(frozen=True, slots=True)
class Bytes:
    """A byte string of `low` to `high` bytes; `Bytes(32)` has exactly 32.

    A `bulk` one is the last field of its message. It may be a contiguous view of bytes that lie elsewhere, and is one
    where a message of some size has come (`Connection.room`).
    """

    low: int
    high: int = -1
    bulk: bool = False

    def check(self, value: object) -> None:
        if type(value) is not bytes and not (self.bulk and isinstance(value, memoryview) and _is_flat(value)):
            raise _fail(f"expected bytes, got {type(value).__name__}")
        assert isinstance(value, bytes | memoryview)
        high = self.low if self.high < 0 else self.high
        if not self.low <= len(value) <= high:
            raise _fail(f"{len(value)} bytes where {self.low} to {high} are allowed", WireCode.OVERSIZED)

    def dump(self, value: Any) -> CborValue:
        return bytes(value)

    def load(self, raw: CborValue) -> object:
        return raw


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Text of `low` to `high` UTF-8 bytes, without control characters."""

    high: int
    low: int = 0

    def check(self, value: object) -> None:
        if type(value) is not str:
            raise _fail(f"expected text, got {type(value).__name__}")
        try:
            size = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise _fail("text is not valid Unicode") from None
        if not self.low <= size <= self.high:
            raise _fail(f"{size} bytes of text where {self.low} to {self.high} are allowed", WireCode.OVERSIZED)
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
            raise _fail("control characters in text")

    def dump(self, value: Any) -> CborValue:
        return str(value)

    def load(self, raw: CborValue) -> object:
        return raw


class Choice:
    """One of a few texts."""

    __slots__ = ("values",)

    def __init__(self, *values: str) -> None:
        self.values = values

    def check(self, value: object) -> None:
        if type(value) is not str or value not in self.values:
            raise _fail(f"expected one of {', '.join(self.values)}", WireCode.UNSUPPORTED)

    def dump(self, value: Any) -> CborValue:
        return str(value)

    def load(self, raw: CborValue) -> object:
        return raw


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def check(self, value: object) -> None:
        if type(value) is not bool:
            raise _fail(f"expected true or false, got {type(value).__name__}")

    def dump(self, value: Any) -> CborValue:
        return bool(value)

    def load(self, raw: CborValue) -> object:
        return raw


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """A peer ID: 38 bytes on the wire, base58 text in Python."""

    def check(self, value: object) -> None:
        if type(value) is not str:
            raise _fail(f"expected a peer ID, got {type(value).__name__}")
        peer_id_to_bytes(PeerId(value))

    def dump(self, value: Any) -> CborValue:
        return peer_id_to_bytes(value)

    def load(self, raw: CborValue) -> object:
        if type(raw) is not bytes:
            raise _fail("a peer ID is a byte string")
        return peer_id_from_bytes(raw)


@dataclasses.dataclass(frozen=True, slots=True)
class Array:
    """`low` to `high` items of one type; a tuple in Python."""

    item: FieldType
    high: int
    low: int = 0

    def check(self, value: object) -> None:
        if type(value) is not tuple:
            raise _fail(f"expected an array, got {type(value).__name__}")
        items = cast("tuple[object, ...]", value)
        if not self.low <= len(items) <= self.high:
            raise _fail(f"{len(items)} items where {self.low} to {self.high} are allowed", WireCode.OVERSIZED)
        for item in items:
            self.item.check(item)

    def dump(self, value: Any) -> CborValue:
        return [self.item.dump(item) for item in value]

    def load(self, raw: CborValue) -> object:
        if type(raw) is not list:
            raise _fail("expected an array")
        if len(raw) > self.high:
            raise _fail(f"{len(raw)} items where at most {self.high} are allowed", WireCode.OVERSIZED)
        return tuple(self.item.load(item) for item in raw)


@dataclasses.dataclass(frozen=True, slots=True)
class UintMap:
    """A map from unsigned integer to unsigned integer, open to new keys; a sorted tuple of pairs in Python."""

    high: int

    def check(self, value: object) -> None:
        if type(value) is not tuple or len(cast("tuple[object, ...]", value)) > self.high:
            raise _fail(f"expected at most {self.high} pairs", WireCode.OVERSIZED)
        last = -1
        for pair in cast("tuple[object, ...]", value):
            if type(pair) is not tuple or len(cast("tuple[object, ...]", pair)) != 2:
                raise _fail("expected pairs of unsigned integers")
            for number in cast("tuple[object, object]", pair):
                Uint().check(number)
            key = cast("tuple[int, int]", pair)[0]
            if key <= last:
                raise _fail("keys must ascend")
            last = key

    def dump(self, value: Any) -> CborValue:
        return dict(value)

    def load(self, raw: CborValue) -> object:
        if type(raw) is not dict:
            raise _fail("expected a map")
        return tuple(raw.items())


@dataclasses.dataclass(frozen=True, slots=True)
class Nested:
    """A record inside a record."""

    cls: type[Record]

    def check(self, value: object) -> None:
        if type(value) is not self.cls:
            raise _fail(f"expected {self.cls.__name__}, got {type(value).__name__}")

    def dump(self, value: Any) -> CborValue:
        return cast("Record", value).to_map()

    def load(self, raw: CborValue) -> object:
        return self.cls.from_map(raw)


class OneOf:
    """A tagged union of records: ``[tag, map]``. Tags that are reserved are refused as unsupported."""

    __slots__ = ("_by_class", "_by_tag", "_reserved")

    def __init__(self, variants: Mapping[int, type[Record]], reserved: tuple[int, ...] = ()) -> None:
        self._by_tag = dict(variants)
        self._by_class = {cls: tag for tag, cls in variants.items()}
        self._reserved = reserved

    def check(self, value: object) -> None:
        if type(value) not in self._by_class:
            raise _fail(f"expected one of {', '.join(c.__name__ for c in self._by_class)}")

    def dump(self, value: Any) -> CborValue:
        return [self._by_class[type(value)], cast("Record", value).to_map()]

    def load(self, raw: CborValue) -> object:
        if type(raw) is not list or len(raw) != 2 or type(raw[0]) is not int:
            raise _fail("expected [tag, map]")
        cls = self._by_tag.get(raw[0])
        if cls is None:
            known = "is reserved" if raw[0] in self._reserved else "is unknown"
            raise _fail(f"variant {raw[0]} {known}", WireCode.UNSUPPORTED)
        return cls.from_map(raw[1])


def wire(key: int, of: FieldType) -> Any:
    """A required field with its map key and type."""
    return dataclasses.field(metadata={"key": key, "type": of, "optional": False})


def optional(key: int, of: FieldType, *, default: None) -> Any:
    """A field that may be left out; None in Python. `default=None` is spelt out for type checkers (PEP 681)."""
    return dataclasses.field(default=default, metadata={"key": key, "type": of, "optional": True})


_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(wire, optional))
def record(cls: type[_T]) -> type[_T]:
    """Make a `Record` class a frozen, keyword-only, slotted dataclass."""
    made = dataclasses.dataclass(frozen=True, kw_only=True, slots=True)(cls)
    plan = sorted(
        (f.metadata["key"], f.name, f.metadata["type"], f.metadata["optional"])
        for f in dataclasses.fields(cast("Any", made))
    )
    keys = [key for key, *_ in plan]
    if any(isinstance(of, Bytes) and of.bulk for *_, of, _ in plan[:-1]):
        raise TypeError(f"{cls.__name__}: what comes in bulk is the last field")
    if len(set(keys)) != len(keys) or (keys and keys[0] < 1):
        raise TypeError(f"{cls.__name__}: field keys must be unique and positive")
    cast("Any", made)._plan = tuple(plan)
    cast("Any", made)._checks = tuple((name, of.check, is_optional) for _, name, of, is_optional in plan)
    cast("Any", made)._keys = frozenset(keys) | ({0} if cast("Any", made).TYPE else set())
    items, depth = _most(plan, 1 + 2 * bool(cast("Any", made).TYPE))
    cast("Any", made)._most = (items, depth)
    cast("Any", made)._is_checked_whole = items <= MAX_CBOR_ITEMS and depth <= MAX_CBOR_DEPTH
    return made


def _most(plan: Sequence[tuple[int, str, FieldType, bool]], items: float) -> tuple[float, int]:
    """How many CBOR items a map of such fields has at most, and how deep they lie; infinitely many where what the
    fields have checked is not known to be of the subset."""
    bounds = [_most_of(of) for *_, of, _ in plan]
    return items + sum(1 + most for most, _ in bounds), 1 + max((deep for _, deep in bounds), default=-1)


def _most_of(of: FieldType) -> tuple[float, int]:
    match of:
        case Uint(high=high) if high <= UINT64_MAX:
            return 1, 0
        case Bytes() | Text() | Choice() | Flag() | Peer():
            return 1, 0
        case Array(item=item, high=high):
            items, depth = _most_of(item)
            return 1 + high * items, 1 + depth
        case Nested(cls=cls):
            return cls._most
        case _:
            return float("inf"), 0


class Record:
    """The base of all records; see the module's text."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0
    extensible: ClassVar[bool] = False
    _plan: ClassVar[tuple[tuple[int, str, FieldType, bool], ...]] = ()
    _checks: ClassVar[tuple[tuple[str, Callable[[object], None], bool], ...]] = ()
    _keys: ClassVar[frozenset[int]] = frozenset()
    _most: ClassVar[tuple[float, int]] = (float("inf"), 0)
    _is_checked_whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name = ""
        try:
            for name, check, is_optional in self._checks:
                value = getattr(self, name)
                if value is not None or not is_optional:
                    check(value)
        except LocalProtocolError as exc:
            raise LocalProtocolError(f"{type(self).__name__}.{name}: {exc}", code=exc.code) from None
        self.validate()

    def validate(self) -> None:
        """Checks across fields; raises `LocalProtocolError`."""

    def to_map(self) -> dict[int, CborValue]:
        """The CBOR map, keys ascending."""
        out: dict[int, CborValue] = {0: self.TYPE} if self.TYPE else {}
        for key, name, of, _ in self._plan:
            value = getattr(self, name)
            if value is not None:
                out[key] = of.dump(value)
        return out

    @classmethod
    def from_map(cls, raw: CborValue) -> Self:
        """Build from a decoded map; refuses missing, unknown and mistyped fields."""
        if type(raw) is not dict:
            raise _fail(f"{cls.__name__}: expected a map")
        if cls.TYPE and (type(raw.get(0)) is not int or raw[0] != cls.TYPE):
            raise _fail(f"{cls.__name__}: not a message of this type")
        if not raw.keys() <= cls._keys:
            for key in raw:
                if key not in cls._keys and not (cls.extensible and key >= EXTENSION_KEYS):
                    raise _fail(f"{cls.__name__}: unknown key {key}")
        values: dict[str, object] = {}
        for key, name, of, is_optional in cls._plan:
            if key not in raw:
                if not is_optional:
                    raise _fail(f"{cls.__name__}: {name} is missing")
                continue
            try:
                values[name] = of.load(raw[key])
            except LocalProtocolError as exc:
                raise LocalProtocolError(f"{cls.__name__}.{name}: {exc}", code=exc.code) from None
        return cls(**values)

    def encode(self) -> bytes:
        """Deterministic CBOR of this record."""
        return cbor.encode_checked(self.to_map()) if self._is_checked_whole else cbor.encode(self.to_map())

    @classmethod
    def bulk_key(cls) -> int | None:
        """The key of the last field, where that is `Bytes` in bulk."""
        if not cls._plan:
            return None
        key, _, of, _ = cls._plan[-1]
        return key if isinstance(of, Bytes) and of.bulk else None

    @property
    def bulk(self) -> bytes | memoryview:
        """The last field, where that is `Bytes` in bulk; else b""."""
        if self.bulk_key() is None:
            return b""
        return cast("bytes | memoryview", getattr(self, self._plan[-1][1]))

    def encode_parts(self) -> tuple[bytes, bytes | memoryview]:
        """The same as `encode`, in two parts: the second is the bulk of it, not copied, and b"" where there is none."""
        key, bulk = self.bulk_key(), self.bulk
        if key is None:
            return self.encode(), b""
        out: dict[int, CborValue] = {0: self.TYPE} if self.TYPE else {}
        for other, field, of, _ in self._plan[:-1]:
            value = getattr(self, field)
            if value is not None:
                out[other] = of.dump(value)
        out[key] = b""
        return cbor.encode_up_to_tail(out, len(bulk)), bulk

    @classmethod
    def decode(cls, data: bytes, *, max_bytes: int = MAX_FRAME_BYTES) -> Self:
        """Read one record; raises `LocalProtocolError` for anything else."""
        return cls.from_map(cbor.decode(data, max_bytes=max_bytes))


def decode_message(
    data: bytes,
    types: Mapping[int, type[Record]],
    *,
    max_bytes: int,
    check: Callable[[int], None] | None = None,
) -> Record:
    """Read one message of a protocol: key 0 says which of `types` it is."""
    raw = cbor.decode(data, max_bytes=max_bytes)
    if type(raw) is not dict or type(raw.get(0)) is not int:
        raise _fail("a message is a map with its type under key 0")
    number = cast("int", raw[0])
    if check is not None:
        check(number)
    cls = types.get(number)
    if cls is None:
        raise _fail(f"unknown message type {number}", WireCode.UNSUPPORTED)
    return cls.from_map(raw)
