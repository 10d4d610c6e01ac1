"""Sizes as users write them."""

from __future__ import annotations

import re
from typing import Final

from ._options import OptionError, said

__all__ = ["DEFAULT_CACHE", "parse_size"]

DEFAULT_CACHE: Final = "1 GiB"
_UNITS: Final = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([A-Za-z]{1,3})?")
_LEAST: Final = 16 * 2**20
_MOST: Final = 2**50


def parse_size(value: object) -> int:
    """Bytes of "2 GiB", "500 MB" or a whole number; 0 for nothing at all.

    Raises:
        OptionError: it is none, or below 16 MiB or above 1024 TiB.
    """
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = None if found is None else _UNITS.get((found[2] or "B").upper())
    if found is not None and unit is not None:
        number = int(float(found[1]) * unit)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise OptionError(f'{said(value)} is no size; write it as "2 GiB", or 0 for none')
    if number and not _LEAST <= number <= _MOST:
        bound = "less than 16 MiB" if number < _LEAST else "more than 1024 TiB"
        raise OptionError(f"{said(value)} is {bound}; write a size of 16 MiB to 1024 TiB, or 0 for none")
    return number
