"""Why a provider ends a task, in the form in which it says so."""

from __future__ import annotations

from typing import Final

from p2pcompute_protocols.errors import WireCode
from p2pcompute_protocols.task import Refused

__all__ = ["NotCompiledError", "RefuseError", "WorkerGoneError", "advice", "printable"]

_ADVICE: Final = {
    WireCode.UNDERPRICED: "; units come from a few items that were computed here, and say too little where a few take "
    "far longer than the rest: chunks=… with fewer chunks evens that out, and of a program item_s=… says what one takes"
}


class RefuseError(Exception):
    """Ends a session with a `Refused` message."""

    def __init__(self, code: WireCode, detail: str, line: int | None = None) -> None:
        self.message = Refused(code=code, detail=printable(detail), line=line)
        super().__init__(detail)


class NotCompiledError(RefuseError):
    """The same, since a worker failed at compiling: that leaves a receipt."""


class WorkerGoneError(Exception):
    """The worker was lost with a chunk; the session goes on with a new one."""


def printable(text: str) -> str:
    """What may go into a message for people: short, and nothing that a terminal would act on."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean.encode()[:900].decode(errors="ignore")


def advice(code: int) -> str:
    """What a requester can do about a refusal with this code, to go behind what the provider says."""
    return _ADVICE.get(WireCode(code), "") if code in WireCode._value2member_map_ else ""
