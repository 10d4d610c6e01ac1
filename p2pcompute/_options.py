"""Options as users write them: names, ranges, and amounts of money."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from numbers import Real
from typing import Any, Final, TypeVar

from p2pcompute.errors import ConfigError

__all__ = [
    "NODE_OPTIONS",
    "AmountError",
    "OptionError",
    "UnknownOption",
    "callback",
    "chosen",
    "flag",
    "number",
    "one_of",
    "parse_usd",
    "price_per_unit_pusd",
    "said",
    "texts",
    "whole",
]

NODE_OPTIONS: Final = frozenset(
    {"bootstrap", "chain", "hub", "listen", "network", "password", "profile", "registry", "start_chain", "token"}
)
"""What `open_node` takes, and with it `run` and `iterate` of synchronous code."""

_MAX_PRICE_UUSD: Final = 1_000_000 * 1_000_000  # an hour; keeps the price of a chunk within 64 bits
_PRICE_STEP_UUSD: Final = 3_600  # an hour, for one pico-USD a unit
_MOST_SAID: Final = 80
_MOST_UUSD: Final = 2**96  # the hub keeps amounts in 96 bits
_THOUSANDS: Final = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")


class OptionError(ConfigError, ValueError):
    """An option is out of its range; says which range it has."""


class AmountError(OptionError):
    """A text or number is not an amount of money; says how to write one."""


class UnknownOption(ConfigError, TypeError):
    """An option that there is not; names those that there are."""


OptionsT = TypeVar("OptionsT")


def chosen(
    kind: type[OptionsT],
    options: dict[str, Any],
    *,
    besides: Iterable[str] = (),
    params: Sequence[str] = (),
) -> OptionsT:
    """Options of `kind`, a dataclass, from keyword arguments.

    Args:
        kind: the dataclass.
        options: what was written.
        besides: options that the caller takes besides; they are named among those that there are.
        params: of the kernel: whoever writes one by name is told that they go by place.

    Raises:
        UnknownOption: `kind` has no such field.
        OptionError: a value is out of its range.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in options if name not in known]:
        there = [*known, *sorted(besides)]
        advice = ""
        if arguments := [name for name in unknown if name in params]:
            advice = f"; arguments of a kernel go by place: write {', '.join(arguments)} without a name, in order"
        elif misplaced := [name for name in unknown if name in NODE_OPTIONS.difference(besides)]:
            advice = f"; {', '.join(misplaced)} is for open_node: `async with p2p.open_node({misplaced[0]}=…) as node`"
        elif near := difflib.get_close_matches(unknown[0], there, n=1):
            advice = f"; is it {near[0]} that you mean?"
        raise UnknownOption(f"there is no option {', '.join(unknown)}; there are {', '.join(there)}{advice}")
    return kind(**options)


def said(value: object) -> str:
    """A value as errors name it, in a part of a line."""
    shape = getattr(value, "shape", None)
    if shape and isinstance(shape, tuple) and hasattr(value, "dtype"):
        return f"an array of shape {shape} and dtype {getattr(value, 'dtype')}"  # noqa: B009  of no type that is known here
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001  whatever a user's __repr__ raises, and Python itself for very long integers
        return f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SAID else f"{text[: _MOST_SAID - 1]}…"


def one_of(options: object, name: str, *choices: str) -> None:
    """Check that the field `name` is one of several words.

    Raises:
        OptionError: names them.
    """
    given = getattr(options, name)
    if not isinstance(given, str) or given not in choices:
        *first, last = (f'"{choice}"' for choice in choices)
        raise OptionError(f"{name} is {said(given)}; write {', '.join(first)} or {last}")


def number(options: object, name: str, low: float, high: float, *, above: bool = False, write: str) -> None:
    """Check that the field `name` is a number of [low, high], or with `above` of (low, high]; NumPy's become Python's.

    Raises:
        OptionError: with `write`, what to write.
    """
    given: object = getattr(options, name)
    value: Any = given if isinstance(given, Real) and not isinstance(given, bool) else math.nan
    if not (low < value <= high if above else low <= value <= high):
        raise OptionError(f"{name} is {said(given)}; write {write}")
    if not isinstance(value, int | float):
        object.__setattr__(options, name, float(value))


def flag(options: object, name: str) -> None:
    """Check that the field `name` is True or False.

    Raises:
        OptionError: it is something else, such as the text "no", which Python takes for true.
    """
    given = getattr(options, name)
    if not isinstance(given, bool):
        raise OptionError(f"{name} is {said(given)}; write True or False")


def callback(options: object, name: str, *, takes: str = "one argument, the event") -> None:
    """Check that the field `name` is None or can be called; `takes` says with what.

    Raises:
        OptionError: it is neither.
    """
    given = getattr(options, name)
    if given is not None and not callable(given):
        raise OptionError(f"{name} is {said(given)}; write a function of {takes}, or None")


def texts(given: object, name: str, *, what: str) -> tuple[str, ...]:
    """Several texts; one by itself is taken for a list of one.

    Raises:
        OptionError: it is something else; with `what`, what each of them is.
    """
    several = (given,) if isinstance(given, str) else given
    try:
        found: tuple[object, ...] = tuple(several)  # type: ignore[arg-type]
    except TypeError:
        found = (None,)
    made = tuple(item for item in found if isinstance(item, str))
    if len(made) < len(found):
        raise OptionError(f"{name} is {said(given)}; write a list of {what}")
    return made


def whole(options: object, name: str, low: int, high: int, *, otherwise: str = "") -> None:
    """Check that the field `name` is a whole number of [low, high]; NumPy's become Python's.

    Raises:
        OptionError: says the range, and `otherwise` what else may be written.
    """
    given = getattr(options, name)
    try:
        value = operator.index(given)
    except TypeError:
        value = low - 1
    if isinstance(given, bool) or not low <= value <= high:
        raise OptionError(f"{name} is {said(given)}; write a whole number from {low} to {high}{otherwise}")
    object.__setattr__(options, name, value)


def parse_usd(amount: str | float) -> int:
    """Micro-USD of an amount such as "0.01 USD", "$0.01", 0.01 (USD) or "250 uusd".

    Raises:
        AmountError: it is not an amount, is negative, or is finer than a micro-USD. A comma is taken between thousands
            only: "0,01 USD" is refused.
    """
    from decimal import Decimal, InvalidOperation, Overflow

    none = AmountError(f"{said(amount)} is not an amount; write it as '0.01 USD'")
    given: object = amount
    if isinstance(given, bool) or not isinstance(given, str | Real | Decimal):
        raise none
    try:
        text = str(amount).strip().lower().replace("$", "")
    except ValueError:  # an integer of more digits than Python writes
        raise none from None
    scale = 1_000_000
    for unit, value in (("micro-usd", 1), ("uusd", 1), ("usd", 1_000_000)):
        if text.endswith(unit):
            text, scale = text[: -len(unit)].strip(), value
            break
    if "," in text:
        # Thousands, or a decimal comma: a hundred times too much is no guess to make with money.
        if not _THOUSANDS.fullmatch(text):
            raise AmountError(f"{said(amount)} has a comma that parts no thousands; write it as '0.01 USD'")
        text = text.replace(",", "")
    try:
        value_uusd = Decimal(text) * scale
    except (InvalidOperation, Overflow):
        raise none from None
    if not value_uusd.is_finite() or value_uusd < 0:
        raise AmountError(f"{said(amount)} is not a positive number of USD; write it as '0.01 USD'")
    if value_uusd > _MOST_UUSD:
        raise AmountError(f"{said(amount)} is more money than there is; write it as '0.01 USD'")
    if value_uusd != value_uusd.to_integral_value():
        raise AmountError(f"{said(amount)} is finer than the smallest amount, 0.000001 USD; write it as '0.01 USD'")
    return int(value_uusd)


def price_per_unit_pusd(price: str | float, *, at_most: bool = False) -> int:
    """Pico-USD per unit (a microsecond of a reference core) of a price per hour.

    Args:
        price: an amount of money an hour. Prices go in steps of 0.0036 USD, one pico-USD a unit.
        at_most: it is a limit, and is rounded down. Else it is rounded up: a price is never less than what was asked
            for, and only 0 is free.

    Raises:
        AmountError: it is not an amount, is more than a million USD an hour, or is a limit below one step.
    """
    uusd = parse_usd(price)
    if uusd > _MAX_PRICE_UUSD:
        raise AmountError(f"{said(price)} an hour is too much; write at most {_MAX_PRICE_UUSD // 1_000_000} USD")
    if not at_most:
        return -(-uusd // _PRICE_STEP_UUSD)
    if 0 < uusd < _PRICE_STEP_UUSD:
        raise AmountError(f"{said(price)} an hour is less than any price but 0; write at least 0.0036 USD")
    return uusd // _PRICE_STEP_UUSD
