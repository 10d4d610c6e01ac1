"""Providers that lie: alter outputs before they are signed, to show what checking catches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from p2pcompute.errors import ConfigError

__all__ = ["lie", "parse_fault"]

_HOW: Final = "write lie:FRACTION or lie:FRACTION:ROWBYTES, such as lie:0.02:3 (2 % of the rows of 3 bytes)"
_MAX_ROW_BYTES: Final = 1 << 20


def lie(fraction: float, row_bytes: int = 1) -> Callable[[bytes, int], bytes]:
    """A fault that changes `fraction` of the rows of each output by one unit; at least one row of each.

    Rows of 1, 2, 4 or 8 bytes are taken as little-endian integers and incremented, with wrap-around: for integers
    that is one unit, for floats the next value away from zero. In rows of other sizes the first byte is
    incremented, which is one channel of an RGB pixel. Which rows depends only on the chunk's index, so that runs
    can be repeated. Bytes after the last whole row stay as they are.

    Args:
        fraction: above 0, at most 1.
        row_bytes: size of a row in bytes.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        raise ConfigError(f"a fault's fraction is above 0 and at most 1, not {fraction}; {_HOW}")
    if not 1 <= row_bytes <= _MAX_ROW_BYTES:
        raise ConfigError(f"a fault's rows are of 1 to {_MAX_ROW_BYTES} bytes, not {row_bytes}; {_HOW}")

    def alter(output: bytes, index: int) -> bytes:
        rows = len(output) // row_bytes
        if not rows:
            return output
        changed = np.frombuffer(output, dtype=np.uint8).copy()
        picked = np.random.default_rng(index).choice(rows, size=max(1, round(fraction * rows)), replace=False)
        body = changed[: rows * row_bytes]
        if row_bytes in (1, 2, 4, 8):
            body.view(f"<u{row_bytes}")[picked] += 1
        else:
            body.reshape(rows, row_bytes)[picked, 0] += 1
        return changed.tobytes()

    return alter


def parse_fault(text: str) -> Callable[[bytes, int], bytes]:
    """The fault that ``lie:FRACTION[:ROWBYTES]`` names.

    Raises:
        ConfigError: it is not of that form.
    """
    kind, *numbers = text.split(":")
    if kind != "lie" or not 1 <= len(numbers) <= 2:
        raise ConfigError(f"{text!r} is not a fault; {_HOW}")
    try:
        fraction = float(numbers[0])
        row_bytes = int(numbers[1]) if len(numbers) == 2 else 1
    except ValueError:
        raise ConfigError(f"{text!r} is not a fault; {_HOW}") from None
    return lie(fraction, row_bytes)
