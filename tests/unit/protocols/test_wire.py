"""Records whose types bound what they hold are encoded without a walk over it, and the same bytes come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcompute_protocols import cbor
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.limits import MAX_CBOR_DEPTH, MAX_CBOR_ITEMS
from p2pcompute_protocols.wire import Array, FieldType, Nested, Record, Uint, record, wire

from ._strategies import PROTOCOLS, records

_ROOM = MAX_CBOR_ITEMS - 3  # in an array behind the only key of a map


@record
class _Full(Record):
    numbers: tuple[int, ...] = wire(1, Array(Uint(), _ROOM))


@record
class _Wide(Record):
    numbers: tuple[int, ...] = wire(1, Array(Uint(), _ROOM + 1))


@record
class _Typed(Record):
    TYPE = 7
    numbers: tuple[int, ...] = wire(1, Array(Uint(), _ROOM))


@record
class _Holder(Record):
    full: _Full = wire(1, Nested(_Full))


def _deep(arrays: int) -> type[Record]:
    of: FieldType = Uint()
    for _ in range(arrays):
        of = Array(of, 1)

    @record
    class Deep(Record):
        value: object = wire(1, of)

    return Deep


def test_as_many_items_as_may_be_need_no_walk() -> None:
    value = _Full(numbers=tuple(range(_ROOM)))
    assert _Full._is_checked_whole
    assert _Full.decode(value.encode()) == value


@pytest.mark.parametrize("cls", [_Wide, _Typed])
def test_one_more_is_refused(cls: type[_Wide | _Typed]) -> None:
    assert not cls._is_checked_whole
    assert cls(numbers=(1, 2)).encode()
    high = _ROOM + 1 if cls is _Wide else _ROOM
    with pytest.raises(LocalProtocolError, match="CBOR items") as refused:
        cls(numbers=tuple(range(high))).encode()
    assert refused.value.code is WireCode.OVERSIZED


def test_records_inside_of_records_count() -> None:
    assert not _Holder._is_checked_whole
    with pytest.raises(LocalProtocolError, match="CBOR items"):
        _Holder(full=_Full(numbers=tuple(range(_ROOM)))).encode()


def test_depth_is_bounded_too() -> None:
    value: object = 3
    for arrays in range(1, MAX_CBOR_DEPTH + 2):
        value = (value,)
        cls = _deep(arrays)
        fits = arrays + 1 <= MAX_CBOR_DEPTH  # the map, and what is innermost
        assert cls._is_checked_whole is fits
        made = cls(value=value)
        if fits:
            assert cls.decode(made.encode()) == made
        else:
            with pytest.raises(LocalProtocolError, match="nested deeper"):
                made.encode()


@given(st.sampled_from([cls for those in PROTOCOLS.values() for cls in those.values()]).flatmap(records))
def test_the_bytes_are_those_of_the_walk(message: Record) -> None:
    assert message.encode() == cbor.encode(message.to_map())
