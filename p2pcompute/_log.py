"""Events in a node's log: a stable name, fields for machines and a sentence for people.

They are records of `logging` like all others; who formats them finds `event` and `fields` on them. Names are part of
the API and are in docs/watching.md. Never put a key, a password or a signed message into a field.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

__all__ = ["Field", "log_event"]

Field: TypeAlias = "str | int | float | bool | list[str] | None"


def log_event(logger: logging.Logger, event: str, text: str, /, *, level: int = logging.INFO, **fields: Field) -> None:
    """Log that something happened.

    Args:
        event: its name, such as "peer connected".
        text: the same for people, with what it is about; without the time.
        fields: what it is about, for machines.
    """
    if logger.isEnabledFor(level):
        logger.log(level, "%s", text, extra={"event": event, "fields": fields})
