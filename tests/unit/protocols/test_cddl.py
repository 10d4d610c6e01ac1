"""The schemas against the decoder: what one takes the other takes, and what one refuses the other refuses."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import cbor2
import pycddl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pcompute_protocols import cbor, wire
from p2pcompute_protocols.errors import LocalProtocolError
from p2pcompute_protocols.wire import Record

from ._cddl import Cddl, read_schema
from ._strategies import PAYLOADS, PROTOCOLS, Node, extension_values, nodes, records, rule_of, with_extensions

CASES = [(name, cls) for name in PROTOCOLS for cls in (*PROTOCOLS[name].values(), *PAYLOADS[name])]
IDS = [f"{name}-{rule_of(cls)}" for name, cls in CASES]
every_record = pytest.mark.parametrize(("protocol", "cls"), CASES, ids=IDS)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@functools.cache
def ours(protocol: str) -> Cddl:
    return Cddl(read_schema(protocol))


@functools.cache
def theirs(protocol: str, rule: str) -> pycddl.Schema:
    return pycddl.Schema(f"root = {rule}\n" + read_schema(protocol))


def pycddl_takes(protocol: str, rule: str, value: object) -> bool:
    try:
        theirs(protocol, rule).validate_cbor(cbor2.dumps(value))
    except pycddl.ValidationError:
        return False
    return True


def we_take(cls: type[Record], raw: object) -> bool:
    try:
        cls.decode(cbor2.dumps(raw), max_bytes=1 << 20)
    except LocalProtocolError:
        return False
    return True


def test_pycddl_still_cannot_stand_alone() -> None:
    # When one of these fails, pycddl has been mended and `cddl_takes` can become simpler.
    assert ours("ads").accepts("availability", {1: False, 2: False, 1001: [True]})
    assert not pycddl_takes("ads", "availability", {1: False, 2: False, 1001: [True]})
    pycddl.Schema("a = [ * b ]\nb = { 1 => uint }").validate_cbor(cbor2.dumps([{1: 1, 2: 2}]))
    pycddl.Schema("a = { 1 => 1..5 }").validate_cbor(cbor2.dumps({1: b"\1"}))


@pytest.mark.parametrize("protocol", ["envelope", *PROTOCOLS])
def test_schema_holds_no_hole(protocol: str) -> None:
    text = re.sub(r";[^\n]*", "", read_schema(protocol))
    text = re.sub(r'"[^"]*"', '""', text)
    assert not re.search(r"\b(any|float\d*|nint|int|null|undefined|bytes|text|number)\b", text)
    pycddl.Schema(read_schema(protocol))


def test_rules_of_one_name_are_the_same_everywhere() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for protocol in ("envelope", *PROTOCOLS):
        text = re.sub(r"\s*;[^\n]*", "", read_schema(protocol))
        for rule in re.split(r"\n(?=[a-z])", text):
            name, _, body = rule.strip().partition(" = ")
            body = " ".join(body.split())
            if name and name in seen:
                assert seen[name][1] == body, f"{name} differs between {seen[name][0]} and {protocol}"
            seen[name] = (protocol, body)


@pytest.mark.parametrize("protocol", [name for name, messages in PROTOCOLS.items() if messages])
def test_a_frame_is_one_of_the_messages(protocol: str) -> None:
    rules = {rule_of(cls) for cls in PROTOCOLS[protocol].values()}
    match = re.search(rf"^{protocol}-message = ([^\n]*)", read_schema(protocol), re.MULTILINE)
    assert match is not None
    assert set(match[1].split(" / ")) == rules


@every_record
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
def test_schema_and_decoder_take_what_is_valid(protocol: str, cls: type[Record], data: st.DataObject) -> None:
    record = data.draw(records(cls))
    encoded = record.encode()
    assert cls.decode(encoded, max_bytes=1 << 20) == record
    assert cls.decode(encoded, max_bytes=1 << 20).encode() == encoded
    raw = cbor2.loads(encoded)
    assert ours(protocol).accepts(rule_of(cls), raw)
    assert pycddl_takes(protocol, rule_of(cls), raw)
    extended = data.draw(with_extensions(cls, raw))
    assert ours(protocol).accepts(rule_of(cls), extended)
    # An extension is ignored, not kept: what signs or stores keeps the bytes.
    assert cls.decode(cbor2.dumps(extended), max_bytes=1 << 20) == record


@given(value=extension_values)
def test_extension_values_are_one_closed_type(value: object) -> None:
    assert ours("ads").accepts("ext-value", value)
    assert cbor.decode(cbor.encode(value)) == value  # type: ignore[arg-type]
    for bad in (None, 1.5, -1, cbor2.CBORTag(99, value), {"a": value}, {-1: value}, [value, None], {1: [value, 0.5]}):
        assert not ours("ads").accepts("ext-value", bad)
        with pytest.raises(LocalProtocolError):
            cbor.decode(cbor2.dumps(bad))


WRONG: dict[str, list[Any]] = {
    "uint": ["1", b"\x01", True, -1, 1.0, None, [1], {1: 1}, 2**64, cbor2.CBORTag(99, 1)],
    "bstr": [1, "x", True, [b"x"], None, {}, 0.5, cbor2.CBORTag(24, b"x")],
    "tstr": [1, b"x", True, ["x"], None, {}, 0.5, cbor2.CBORTag(32, "x")],
    "bool": [0, 1, "true", b"\x01", None, [True], 1.0],
    "array": [{}, 1, b"", "", None, True, {0: 1}],
    "map": [[], 1, b"", "", None, False, [1]],
}


def wrong_for(of: Any) -> tuple[list[Any], list[Any]]:
    """Values that a field of this wire type must not have: of other types, and past its bounds."""
    match of:
        case wire.Uint():
            past = ([of.low - 1] if of.low else []) + ([of.high + 1] if of.high < 2**64 - 1 else [])
            return WRONG["uint"], past
        case wire.Bytes():
            high = of.low if of.high < 0 else of.high
            long = [bytes(high + 1)] if high < 1 << 20 else []  # a blob above 64 MiB is refused for the file's size
            return WRONG["bstr"], long + ([bytes(of.low - 1)] if of.low else [])
        case wire.Text():
            return WRONG["tstr"], ["x" * (of.high + 1), "é" * (of.high // 2 + 1)] + ([""] if of.low else [])
        case wire.Choice():
            return WRONG["tstr"], ["", "other", of.values[0].upper(), of.values[0] + " "]
        case wire.Flag():
            return WRONG["bool"], []
        case wire.Peer():
            return WRONG["bstr"], [bytes(37), bytes(39), b""]
        case wire.UintMap():
            bad = [{k: bad} for k in (0, 1) for bad in ("x", None, True, -1, {})]
            return WRONG["map"], [dict.fromkeys(range(of.high + 1), 1), *bad]
        case wire.Nested():
            return WRONG["map"], [{}]
        case wire.Array():
            return WRONG["array"], [[]] if of.low else []
        case wire.OneOf():
            return WRONG["array"], [[], [1], [0, {}], [2**32, {}], [1, {}, 1], [True, {}], ["1", {}]]
        case _:
            raise TypeError(f"{of!r}")


def _open(raw: Any, path: tuple[int, ...]) -> tuple[Any, Any]:
    """A copy of `raw` in which what lies along `path` may be changed, and what lies at its end."""
    whole: Any = raw.copy()
    at = whole
    for step in path:
        at[step] = at[step].copy()
        at = at[step]
    return whole, at


def put(raw: dict[int, Any], path: tuple[int, ...], key: int, value: object) -> dict[int, Any]:
    """A copy of `raw` with `value` under `key` of the record at `path`; sorted, so that only the value is wrong."""
    whole, at = _open(raw, path)
    at[key] = value
    pairs = sorted(at.items())
    at.clear()
    at.update(pairs)
    return whole


def drop(raw: dict[int, Any], path: tuple[int, ...], key: int) -> dict[int, Any]:
    whole, at = _open(raw, path)
    del at[key]
    return whole


def mutants(node: Node, raw: dict[int, Any]) -> Iterator[tuple[str, dict[int, Any]]]:
    """The map `raw` with exactly one thing wrong in the record at `node`, for each of its fields."""
    where = f"{node.cls.__name__} at {node.path}"
    for key in (99, 999) if node.cls.extensible else (99, 999, 1000, 2**40):
        yield f"{where}: unknown key {key}", put(raw, node.path, key, 1)
    if node.cls.TYPE:
        yield f"{where}: no type", drop(raw, node.path, 0)
        for bad in (node.cls.TYPE + 100, "1", True, -1, b"\x01"):
            yield f"{where}: type {bad!r}", put(raw, node.path, 0, bad)
    else:
        yield f"{where}: a type", put(raw, node.path, 0, 1)
    for key, name, of, is_optional in node.cls._plan:
        if key in node.raw and not is_optional:
            yield f"{where}: {name} dropped", drop(raw, node.path, key)
        types, past = wrong_for(of)
        for bad in types + past:
            yield f"{where}: {name} = {str(bad)[:30]!r}", put(raw, node.path, key, bad)
        if isinstance(of, wire.Array) and node.raw.get(key):
            items = node.raw[key]
            yield f"{where}: {name} too long", put(raw, node.path, key, items[:1] * (of.high + 1))
            for bad in (b for group in wrong_for(of.item) for b in group):
                yield f"{where}: {name} with {str(bad)[:30]!r}", put(raw, node.path, key, [*items[:-1], bad])


def coarse_mutants(node: Node) -> Iterator[tuple[str, dict[int, Any]]]:
    """Faults that pycddl sees: fields that are missing, unknown, or of quite another type."""
    yield f"{node.cls.__name__}: unknown key", put(node.raw, (), 99, 1)
    for key, name, of, is_optional in node.cls._plan:
        if key in node.raw:
            if not is_optional:
                yield f"{node.cls.__name__}: {name} dropped", drop(node.raw, (), key)
            wrong: object = "x" if isinstance(of, wire.Flag) else True
            yield f"{node.cls.__name__}: {name} = {wrong!r}", put(node.raw, (), key, wrong)


def richest(cls: type[Record]) -> st.SearchStrategy[Record]:
    """Records that hold most of what they may, so that a mutation finds all fields."""

    def filled(record: Record) -> bool:
        flags = [getattr(record, name) for _, name, _, is_optional in cls._plan if is_optional]
        return sum(v is not None for v in flags) * 2 >= len(flags)

    return records(cls).filter(filled) if cls._plan else records(cls)


@every_record
@given(data=st.data())
@settings(max_examples=2, deadline=None, suppress_health_check=[*SLOW, HealthCheck.filter_too_much])
def test_schema_and_decoder_refuse_every_single_fault(protocol: str, cls: type[Record], data: st.DataObject) -> None:
    raw = cbor2.loads(data.draw(richest(cls)).encode())
    seen: set[type[Record]] = set()
    for node in nodes(cls, raw):
        for what, mutant in mutants(node, raw):
            assert not we_take(cls, mutant), f"the decoder takes {what}"
            assert not ours(protocol).accepts(rule_of(cls), mutant), f"the schema takes {what}"
        # pycddl does not look for unknown keys in maps inside of arrays, so it gets each kind of record on its own.
        if node.cls not in seen:
            seen.add(node.cls)
            for what, mutant in coarse_mutants(node):
                assert not pycddl_takes(protocol, rule_of(node.cls), mutant), f"pycddl takes {what}"


# What CDDL can't say, or says elsewhere: the decoder is stricter than the schema in these, and only these, ways.
STRICTER = [
    ("control characters in text", "ads", "ad-refusal", {0: 3, 1: 1, 2: "a\nb"}),
    ("a peer ID of another kind of key", "ads", "ad-query", {0: 1, 1: 1, 4: bytes(38)}),
    ("fields that must fit each other", "task", "notice", {0: 23, 1: "window"}),
]


@pytest.mark.parametrize(("why", "protocol", "rule", "raw"), STRICTER, ids=[s[0] for s in STRICTER])
def test_where_the_decoder_is_stricter_than_the_schema(why: str, protocol: str, rule: str, raw: dict[int, Any]) -> None:
    cls = next(c for c in PROTOCOLS[protocol].values() if rule_of(c) == rule)
    assert ours(protocol).accepts(rule, raw)
    assert not we_take(cls, raw)
