"""What a node that runs for long writes about itself: a line an event, never more than a disk can take.

Events have stable names (`p2pcompute._log`, docs/watching.md). Whatever makes a line, a stranger may make happen as
often as it likes; so repeats of one event are rate-limited, and all lines together are.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final, TextIO, TypeVar

import click

__all__ = [
    "BURST",
    "LEVELS",
    "MAX_KEYS",
    "REFILL_S",
    "TOTAL_BURST",
    "TOTAL_REFILL_S",
    "JsonLines",
    "RateLimit",
    "TextLines",
    "log_handler",
    "log_options",
]

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final = ("debug", "info", "warning", "error")
BURST: Final = 30  # lines of one event at once
REFILL_S: Final = 6.0  # and one more each so often
TOTAL_BURST: Final = 200  # lines of all events together
TOTAL_REFILL_S: Final = 1.0
MAX_KEYS: Final = 512  # events that are told apart; the rest share one allowance
_MAX_TEXT: Final = 1_000  # characters of a line or a field; errors repeat what peers say
_OTHER: Final = "log"  # the event of lines that are of none


def log_options(function: F) -> F:
    """--log-format and --log-level."""
    for option in (
        click.option(
            "--log-level",
            type=click.Choice(LEVELS),
            help="the least that is logged [info; with --json, whose events say the same, warning]",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            default="text",
            show_default=True,
            help="lines on stderr for people, or for machines: an object each, with time, level and event",
        ),
    ):
        function = option(function)
    return function


class _Bucket:
    """An allowance of lines that fills up again."""

    __slots__ = ("_at_s", "_burst", "_left", "_refill_s")

    def __init__(self, burst: int, refill_s: float, now_s: float) -> None:
        self._burst, self._refill_s = burst, refill_s
        self._left, self._at_s = float(burst), now_s

    def take(self, now_s: float) -> bool:
        self._left = min(self._burst, self._left + max(0.0, now_s - self._at_s) / self._refill_s)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


class RateLimit(logging.Filter):
    """Lets `BURST` lines of an event through and one more each `REFILL_S`; the next line says how many were left out.

    Lines of no event are told apart by their text before anything is put into it. Of all together `TOTAL_BURST` go
    through, and one more each `TOTAL_REFILL_S`; what is critical always does.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._left_out: dict[str, int] = {}
        self._total = _Bucket(TOTAL_BURST, TOTAL_REFILL_S, clock())

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.CRITICAL:
            return True
        now_s, key = self._clock(), f"{record.name} {getattr(record, 'event', None) or record.msg}"
        if key not in self._buckets and len(self._buckets) >= MAX_KEYS:
            key = _OTHER
        bucket = self._buckets.setdefault(key, _Bucket(BURST, REFILL_S, now_s))
        if not bucket.take(now_s) or not self._total.take(now_s):
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return False
        record.left_out = self._left_out.pop(key, 0)
        return True


class _Wanted(logging.Filter):
    """Events from a level on; of other lines warnings and worse, unless everything is wanted."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        least = self._level if hasattr(record, "event") else max(self._level, logging.WARNING)
        return record.levelno >= (self._level if self._level <= logging.DEBUG else least)


def _plain(text: str) -> str:
    """In one line, and nothing that a terminal would obey: parts of it are what strangers say."""
    cut = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _said(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        text += f" ({type(error).__name__}: {error})" if str(error) else f" ({type(error).__name__})"
    return text


class TextLines(logging.Formatter):
    """``19:03:22  peer …nGC1VJG1 connected``; a traceback below it only where `tracebacks`."""

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        where = f"{record.name} " if self._tracebacks and not hasattr(record, "event") else ""
        left_out = getattr(record, "left_out", 0)
        more = f" (and {left_out} like it before)" if left_out else ""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{at}  {level}{where}{_plain(_said(record))}{more}"
        if self._tracebacks and record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (UTC, RFC 3339), ``level``, ``event``, ``text`` and the event's own fields.

    Lines that are of no event have the event "log" and a ``logger``. ``left_out`` says how many lines of the same
    event were left out before this one.
    """

    def __init__(self, *, tracebacks: bool = False) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", _OTHER),
            "text": _cut(_said(record)),
        }
        if not hasattr(record, "event"):
            line["logger"] = record.name
        for name, value in getattr(record, "fields", {}).items():
            line.setdefault(name, _cut(value) if isinstance(value, str) else value)
        if left_out := getattr(record, "left_out", 0):
            line["left_out"] = left_out
        if self._tracebacks and record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)  # so no line break of Unicode's ends a line


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def log_handler(
    log_format: str,
    log_level: str,
    *,
    debug: bool = False,
    stream: TextIO | None = None,
    limit: RateLimit | None = None,
) -> logging.Handler:
    """A handler that writes lines as `log_options` say; `debug` adds tracebacks."""
    handler = logging.StreamHandler(stream)
    level = logging.DEBUG if debug else getattr(logging, log_level.upper())
    handler.addFilter(_Wanted(level))
    handler.addFilter(limit or RateLimit())
    handler.setFormatter((JsonLines if log_format == "json" else TextLines)(tracebacks=debug))
    return handler
