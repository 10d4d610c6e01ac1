"""Options as users write them: names, ranges, and amounts of money."""

from __future__ import annotations

import operator
from dataclasses import fields
from typing import Any, Final, TypeVar

from p2pcompute.errors import ConfigError

__all__ = ["AmountError", "OptionError", "UnknownOption", "chosen", "parse_usd", "price_per_unit_pusd", "whole"]

_MAX_PRICE_UUSD: Final = 1_000_000 * 1_000_000  # an hour; keeps the price of a chunk within 64 bits
_PRICE_STEP_UUSD: Final = 3_600  # an hour, for one pico-USD a unit


class OptionError(ConfigError, ValueError):
    """An option is out of its range; says which range it has."""


class AmountError(OptionError):
    """A text or number is not an amount of money; says how to write one."""


class UnknownOption(ConfigError, TypeError):
    """An option that there is not; names those that there are."""


OptionsT = TypeVar("OptionsT")


def chosen(kind: type[OptionsT], options: dict[str, Any]) -> OptionsT:
    """Options of `kind`, a dataclass, from keyword arguments.

    Raises:
        UnknownOption: `kind` has no such field.
        OptionError: a value is out of its range.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in options if name not in known]:
        raise UnknownOption(f"there is no option {', '.join(unknown)}; there are {', '.join(known)}")
    return kind(**options)


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
        raise OptionError(f"{name} is {given!r}; write a whole number from {low} to {high}{otherwise}")
    object.__setattr__(options, name, value)


def parse_usd(amount: str | float) -> int:
    """Micro-USD of an amount such as "0.01 USD", "$0.01", 0.01 (USD) or "250 uusd".

    Raises:
        AmountError: it is not an amount, is negative, or is finer than a micro-USD.
    """
    from decimal import Decimal, InvalidOperation

    text = str(amount).strip().lower().replace("$", "").replace(",", "")
    scale = 1_000_000
    for unit, value in (("micro-usd", 1), ("uusd", 1), ("usd", 1_000_000)):
        if text.endswith(unit):
            text, scale = text[: -len(unit)].strip(), value
            break
    try:
        value_uusd = Decimal(text) * scale
    except InvalidOperation:
        raise AmountError(f"{amount!r} is not an amount; write it as '0.01 USD'") from None
    if not value_uusd.is_finite() or value_uusd < 0 or value_uusd != value_uusd.to_integral_value():
        raise AmountError(f"{amount!r} is not a positive number of micro-USD; write it as '0.01 USD'")
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
        raise AmountError(f"{price!r} an hour is too much; write at most {_MAX_PRICE_UUSD // 1_000_000} USD")
    if not at_most:
        return -(-uusd // _PRICE_STEP_UUSD)
    if 0 < uusd < _PRICE_STEP_UUSD:
        raise AmountError(f"{price!r} an hour is less than any price but 0; write at least 0.0036 USD")
    return uusd // _PRICE_STEP_UUSD
