"""Lines of what is shown again and again: as many and as long as the terminal has room for."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from typing import Final

import click

__all__ = ["fitted", "show"]

_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m")


def show(lines: Sequence[str], *, watching: bool, keep: int = 0) -> None:
    """Write lines; where they are watched in a terminal, in place of what is there and cut to its size.

    Args:
        lines: without line breaks, styled or not.
        watching: whether the next ones take their place.
        keep: how many of the last ones stay where not all have room.
    """
    if watching and sys.stdout.isatty():
        click.clear()
        columns, rows = shutil.get_terminal_size()
        # One row less: the line break after the last one would push the first one out.
        lines = fitted(lines, columns, rows - 1, keep=keep)
    click.echo("\n".join(lines))


def fitted(lines: Sequence[str], columns: int, rows: int, *, keep: int = 0) -> list[str]:
    """At most `rows` lines of at most `columns` characters: the first ones, a line that says how many are left out, and
    the last `keep` ones; the first ones alone where there is no room for that."""
    shown = list(lines)
    if len(shown) > rows:
        first = max(1, rows - 1 - keep)
        left_out = len(shown) - first - keep
        last = shown[len(shown) - keep :]
        shown = [*shown[:first], f"… {left_out} more: the terminal is too low", *last][: max(1, rows)]
    return [_cut(line, columns) for line in shown]


def _cut(line: str, columns: int) -> str:
    """The beginning of a line, whose styles end where they did."""
    if len(click.unstyle(line)) <= columns:
        return line
    room, place, parts = max(0, columns - 1), 0, list[str]()
    for style in [*_STYLE.finditer(line), None]:
        text = line[place:] if style is None else line[place : style.start()]
        if len(text) > room >= 0:
            text, room = text[:room] + "…", -1
        elif room >= 0:
            room -= len(text)
        else:
            text = ""
        parts += [text] if style is None else [text, style[0]]
        place = len(line) if style is None else style.end()
    return "".join(parts)
