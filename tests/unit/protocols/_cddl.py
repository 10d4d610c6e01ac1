"""A checker for the part of CDDL (RFC 8610) that the schemas use, small enough to be read in one sitting.

The schemas are checked by pycddl too, but pycddl 0.6.4 can't stand alone: it refuses every key of
``* (uint .ge 1000) => …``, and it accepts unknown keys in maps inside of arrays (`test_cddl.py` shows both).
Supported: rules, ``/`` choices, maps, arrays, occurrences, literals, ranges, .size, .ge, .cbor, .regexp, tags.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import cbor2

__all__ = ["Cddl", "read_schema"]

_TOKEN = re.compile(
    r"""\s*(?:;[^\n]*\n?\s*)*(?:(?P<string>"[^"]*")|(?P<tag>\#6\.\d+)|(?P<occur>\d*\*\d*|\?)|(?P<int>-?\d+)
    |(?P<range>\.\.)|(?P<control>\.[a-z]+)|(?P<name>[a-z][a-z0-9-]*)|(?P<mark>=>|//|[=/{}\[\](),]))""",
    re.VERBOSE,
)
Check = Callable[[object], bool]
_PRELUDE: dict[str, Check] = {
    "uint": lambda v: type(v) is int and 0 <= v < 2**64,  # above that it is a bignum, which is a tag
    "bstr": lambda v: type(v) is bytes,
    "tstr": lambda v: type(v) is str,
    "bool": lambda v: type(v) is bool,
}


@dataclasses.dataclass(frozen=True)
class _Entry:
    low: int
    high: int
    key: Check | None
    value: Check


class Cddl:
    """A schema; `accepts(rule, value)` says whether a decoded value is of that rule."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if re.fullmatch(r"\s*(;[^\n]*\s*)*", text[at:]):
                    break
                raise SyntaxError(f"CDDL: {text[at : at + 40]!r}")
            at = match.end()
            kind = match.lastgroup
            assert kind is not None
            self._tokens.append((kind, match[kind]))
        self._at = 0
        self.rules: dict[str, Check] = {}
        while self._at < len(self._tokens):
            name = self._take("name")
            self._mark("=")
            assert name not in self.rules, f"{name} is defined twice"
            self.rules[name] = self._type()
        unknown = {word for kind, word in self._tokens if kind == "name"} - self.rules.keys() - _PRELUDE.keys()
        assert not unknown, f"no rules for {unknown}"

    def accepts(self, rule: str, value: object) -> bool:
        return self.rules[rule](value)

    def _peek(self, kind: str, word: str | None = None) -> bool:
        if self._at >= len(self._tokens):
            return False
        found, text = self._tokens[self._at]
        return found == kind and (word is None or text == word)

    def _take(self, kind: str) -> str:
        assert self._peek(kind), f"CDDL: expected {kind} at {self._tokens[self._at : self._at + 4]}"
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _mark(self, word: str) -> None:
        assert self._peek("mark", word), f"CDDL: expected {word} at {self._tokens[self._at : self._at + 4]}"
        self._at += 1

    def _type(self) -> Check:
        choices = [self._controlled()]
        while self._peek("mark", "/"):
            self._at += 1
            choices.append(self._controlled())
        return choices[0] if len(choices) == 1 else lambda v: any(c(v) for c in choices)

    def _controlled(self) -> Check:
        base = self._primary()
        if not self._peek("control"):
            return base
        control = self._take("control")
        if control == ".regexp":
            pattern = re.compile(self._take("string")[1:-1].replace("\\\\", "\\"))
            return lambda v: base(v) and isinstance(v, str) and pattern.fullmatch(v) is not None
        if control == ".cbor":
            inner = self._primary()
            return lambda v: base(v) and isinstance(v, bytes) and inner(cbor2.loads(v))
        low, high = self._bounds()
        if control == ".ge":
            return lambda v: base(v) and type(v) is int and v >= low
        assert control == ".size", f"control {control} is not supported"

        def sized(value: object) -> bool:
            if not base(value) or not isinstance(value, bytes | str):
                return False
            return low <= len(value.encode() if isinstance(value, str) else value) <= high

        return sized

    def _bounds(self) -> tuple[int, int]:
        grouped = self._peek("mark", "(")
        if grouped:
            self._at += 1
        low = high = int(self._take("int"))
        if self._peek("range"):
            self._at += 1
            high = int(self._take("int"))
        if grouped:
            self._mark(")")
        return low, high

    def _primary(self) -> Check:
        if self._peek("string"):
            text = self._take("string")[1:-1]
            return lambda v: type(v) is str and v == text
        if self._peek("int"):
            low, high = self._bounds()
            return lambda v: type(v) is int and low <= v <= high
        if self._peek("tag"):
            number = int(self._take("tag").split(".")[1])
            self._mark("(")
            inner = self._type()
            self._mark(")")
            return lambda v: isinstance(v, cbor2.CBORTag) and v.tag == number and inner(v.value)
        if self._peek("mark", "("):
            self._at += 1
            inner = self._type()
            self._mark(")")
            return inner
        if self._peek("mark", "{"):
            return self._map(self._entries("}"))
        if self._peek("mark", "["):
            return self._array(self._entries("]"))
        name = self._take("name")
        return _PRELUDE.get(name) or (lambda v: self.rules[name](v))

    def _entries(self, end: str) -> list[_Entry]:
        self._at += 1
        entries: list[_Entry] = []
        while not self._peek("mark", end):
            low, high = 1, 1
            if self._peek("occur"):
                occur = self._take("occur")
                first, _, last = occur.partition("*")
                low, high = (0, 1) if occur == "?" else (int(first or 0), int(last or 2**62))
            key: Check | None = None
            value = self._type()
            if self._peek("mark", "=>"):
                self._at += 1
                key, value = value, self._type()
            entries.append(_Entry(low, high, key, value))
            if self._peek("mark", ","):
                self._at += 1
        self._mark(end)
        return entries

    @staticmethod
    def _map(entries: list[_Entry]) -> Check:
        def check(value: object) -> bool:
            if not isinstance(value, dict):
                return False
            counts = [0] * len(entries)
            for key, item in value.items():
                # Keys of these schemas are disjoint, so the first entry whose key fits has to fit whole.
                at = next((n for n, e in enumerate(entries) if e.key is not None and e.key(key)), None)
                if at is None or not entries[at].value(item):
                    return False
                counts[at] += 1
            return all(e.low <= n <= e.high for e, n in zip(entries, counts, strict=True))

        return check

    @staticmethod
    def _array(entries: list[_Entry]) -> Check:
        def check(value: object) -> bool:
            if not isinstance(value, list | tuple):
                return False
            at = 0
            for entry in entries:
                count = 0
                while count < entry.high and at < len(value) and entry.value(value[at]):
                    at, count = at + 1, count + 1
                if count < entry.low:
                    return False
            return at == len(value)

        return check


def read_schema(protocol: str) -> str:
    """The text of a protocol's schema."""
    return (Path(__file__).parents[3] / "protocols" / protocol / "schema.cddl").read_text(encoding="utf-8")
