"""Tables of the specifications, made from the code, so that a test can compare them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from p2pcompute_protocols import limits, wire, work
from p2pcompute_protocols.connection import Connection, Role
from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.wire import Record

__all__ = ["fields", "readme", "table_after", "transitions"]

ROOT = Path(__file__).parents[3] / "protocols"
Rows = list[list[str]]


def readme(protocol: str) -> str:
    """The text of a specification; "" is the index."""
    return (ROOT / protocol / "README.md").read_text(encoding="utf-8")


def table_after(text: str, heading: str) -> Rows:
    """The rows of the first table after a heading, header and ruler left out."""
    start = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None, f"no heading {heading!r}"
    rows: Rows = []
    for line in text[start.end() :].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    assert len(rows) > 2, f"no table after {heading!r}"
    return rows[2:]


def transitions(cls: type[Connection[Any]]) -> Rows:
    """state, who sends, message, next state."""
    rows: Rows = []
    for state in type(cls.start):
        for role in Role:
            for message, to in cls.table[role].get(state, {}).items():
                rows.append([state.name, role.value, message.__name__, to.name])
    return rows


def _span(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"{low}..{_number(high)}"


def _number(value: int) -> str:
    for bits in (64, 53, 40):
        if value == 2**bits:
            return f"2^{bits}"
        if value == 2**bits - 1:
            return f"2^{bits}-1"
    return str(value)


def _type(of: Any) -> str:
    match of:
        case wire.Uint():
            return "uint" if (of.low, of.high) == (0, limits.UINT64_MAX) else f"uint {_span(of.low, of.high)}"
        case wire.Bytes():
            return f"bytes {_span(of.low, of.low if of.high < 0 else of.high)}"
        case wire.Text():
            return f"text {_span(of.low, of.high)}"
        case wire.Flag():
            return "bool"
        case wire.Peer():
            return "peer ID"
        case wire.Choice():
            return "dtype" if of.values == tuple(work.DTYPES) else " or ".join(f"`{v}`" for v in of.values)
        case wire.Nested():
            return of.cls.__name__
        case wire.Array():
            return f"array {_span(of.low, of.high)} of {_type(of.item)}"
        case wire.UintMap():
            return f"map of 0..{of.high} uint to uint"
        case wire.OneOf():
            if of is work.WORK:
                return "Work"
            kinds = set(of._by_tag.values())
            if kinds == {work.ScalarArg, work.ArrayArg}:
                return "CallArg"
            return "StepArg" if work.NextArg in kinds else "WorkArg"
        case _:
            raise TypeError(f"{of!r}")


def fields(cls: type[Record]) -> Rows:
    """key, name, type, whether it must be there."""
    rows = [["0", "type", str(cls.TYPE), "yes"]] if cls.TYPE else []
    return rows + [[str(key), f"`{name}`", _type(of), "no" if opt else "yes"] for key, name, of, opt in cls._plan]


def limit_rows() -> dict[str, int]:
    return {name: getattr(limits, name) for name in limits.__all__}


def code_rows() -> dict[str, int]:
    return {code.name: code.value for code in WireCode}
