"""Frames and transcripts of request streams."""

from __future__ import annotations

import struct
from typing import Any

from ._material import Json

__all__ = ["request_vectors"]

LIMITS = {"requests": 9, "request_bytes": 70_000}


def head(kind: int, size: int, number: int, value: int) -> bytes:
    return struct.pack("!III", kind << 24 | size, number, value)


def ask(number: int, body: bytes = b"?", ms: int = 1_000) -> bytes:
    return head(1, len(body), number, ms) + body


def cancel(number: int) -> bytes:
    return head(2, 0, number, 0)


def limits(requests: int = 9, request_bytes: int = 70_000) -> bytes:
    return head(3, 0, requests, request_bytes)


def reply(number: int, body: bytes = b"!") -> bytes:
    return head(4, len(body), number, 0) + body


def fault(number: int, code: int = 13, text: str = "later") -> bytes:
    return head(5, len(text.encode()), number, code) + text.encode()


def drain(number: int) -> bytes:
    return head(6, 0, number, 0)


def say(who: str, data: bytes, *, forged: bool = False) -> Json:
    return {"say": who, "hex": data.hex(), **({"forged": True} if forged else {})}


def hear(who: str, *events: Json) -> Json:
    return {"hear": who, "events": list(events)}


def refuse(who: str, code: str) -> Json:
    return {"hear": who, "code": code}


def _ask(number: int, body: bytes = b"?", ms: int = 1_000) -> Json:
    return {"frame": "Ask", "number": number, "timeout_ms": ms, "body": body.hex()}


def _reply(number: int, body: bytes = b"!") -> Json:
    return {"frame": "Reply", "number": number, "body": body.hex()}


def _fault(number: int, code: int = 13, text: str = "later") -> Json:
    return {"frame": "Fault", "number": number, "code": code, "detail": text}


_LIMITS: Json = {"frame": "Limits", **LIMITS}
_OVER: Json = {"frame": "StreamOver"}
R, P = "requester", "provider"
BEGUN = [say(P, limits()), hear(R, _LIMITS)]
ASKED = [*BEGUN, say(R, ask(1)), hear(P, _ask(1))]


def _forged(name: str, who: str, data: bytes, code: str, before: list[Json] = BEGUN) -> Json:
    other = P if who == R else R
    return {"name": name, "setup": LIMITS, "steps": [*before, say(who, data, forged=True), refuse(other, code)]}


def _said(name: str, *steps: Json) -> Json:
    return {"name": name, "setup": LIMITS, "steps": list(steps)}


def request_vectors() -> Json:
    frames: list[tuple[str, bytes, Json]] = [
        ("a request", ask(1, b"abc", 10_000), _ask(1, b"abc", 10_000)),
        (
            "an empty request with the longest time and the last number",
            ask(2**32 - 1, b"", 600_000),
            _ask(2**32 - 1, b"", 600_000),
        ),
        ("a cancel", cancel(7), {"frame": "Cancel", "number": 7}),
        ("the least limits", limits(8, 65_536), {"frame": "Limits", "requests": 8, "request_bytes": 65_536}),
        (
            "the greatest limits",
            limits(4_096, 67_108_864),
            {"frame": "Limits", "requests": 4_096, "request_bytes": 67_108_864},
        ),
        ("an answer", reply(7, b"xyz"), _reply(7, b"xyz")),
        ("an empty answer", reply(1, b""), _reply(1, b"")),
        ("a fault", fault(3, 13, "später"), _fault(3, 13, "später")),
        ("a fault with a code that is not known", fault(3, 255, ""), _fault(3, 255, "")),
        ("a drain before anything was taken", drain(0), {"frame": "Drain", "number": 0}),
        ("a drain", drain(12), {"frame": "Drain", "number": 12}),
    ]
    honest = [
        _said(
            "asked and answered, both ends close",
            *ASKED,
            say(P, reply(1)),
            hear(R, _reply(1)),
            say(R, b""),
            hear(P, _OVER),
            say(P, b""),
            hear(R, _OVER),
        ),
        _said(
            "asked before the limits came",
            say(R, ask(1)),
            say(P, limits()),
            hear(P, _ask(1)),
            hear(R, _LIMITS),
            say(P, fault(1)),
            hear(R, _fault(1)),
        ),
        _said(
            "answers in another order",
            *BEGUN,
            say(R, ask(1) + ask(2, b"second") + ask(3)),
            hear(P, _ask(1), _ask(2, b"second"), _ask(3)),
            say(P, reply(3) + reply(1) + fault(2)),
            hear(R, _reply(3), _reply(1), _fault(2)),
        ),
        _said(
            "a cancelled request is answered with a fault",
            *ASKED,
            say(R, cancel(1)),
            hear(P, {"frame": "Cancel", "number": 1}),
            say(P, fault(1, 23, "")),
            hear(R, _fault(1, 23, "")),
        ),
        _said("a cancel crosses the answer", *ASKED, say(P, reply(1)), say(R, cancel(1)), hear(P), hear(R, _reply(1))),
        _said(
            "the requester closes, what it asked is still answered",
            *ASKED,
            say(R, b""),
            hear(P, _OVER),
            say(P, reply(1)),
            hear(R, _reply(1)),
            say(P, b""),
            hear(R, _OVER),
        ),
        _said(
            "a request crosses a drain",
            *ASKED,
            say(P, drain(1)),
            say(R, ask(2) + cancel(2)),
            hear(P),
            hear(R, {"frame": "Drain", "number": 1}),
            say(P, reply(1)),
            hear(R, _reply(1)),
            say(R, b""),
            hear(P, _OVER),
        ),
        _said(
            "as many as are allowed at once",
            *BEGUN,
            say(R, b"".join(map(ask, range(1, 10)))),
            hear(P, *map(_ask, range(1, 10))),
            say(P, reply(4)),
            hear(R, _reply(4)),
            say(R, ask(10)),
            hear(P, _ask(10)),
        ),
    ]
    broken = [
        _forged("a kind that there is not", R, head(7, 0, 1, 1), "MALFORMED"),
        _forged("kind 0", P, head(0, 0, 1, 1), "MALFORMED"),
        _forged("a requester replies", R, reply(1), "OUT_OF_ORDER"),
        _forged("a provider asks", P, ask(1), "OUT_OF_ORDER"),
        _forged("the first number is not 1", R, ask(2), "OUT_OF_ORDER"),
        _forged("number 0", R, ask(0), "OUT_OF_ORDER"),
        _forged("a number that was used", R, ask(1), "REPLAYED", ASKED),
        _forged("a number is left out", R, ask(3), "OUT_OF_ORDER", ASKED),
        _forged("no time", R, ask(1, ms=0), "OVERSIZED"),
        _forged("too much time", R, ask(1, ms=600_001), "OVERSIZED"),
        _forged("a body above the bound, of which only the header came", R, head(1, 1_048_577, 1, 1), "OVERSIZED"),
        _forged("a body above what is allowed at once", R, head(1, 70_001, 1, 1), "OVERSIZED"),
        _forged(
            "one more than is allowed at once",
            R,
            ask(10),
            "OVERSIZED",
            [*BEGUN, say(R, b"".join(map(ask, range(1, 10)))), hear(P, *map(_ask, range(1, 10)))],
        ),
        _forged("a cancel of what was never asked", R, cancel(1), "OUT_OF_ORDER"),
        _forged("a cancel of 0", R, cancel(0), "OUT_OF_ORDER", ASKED),
        _forged("a cancel twice", R, cancel(1) + cancel(1), "REPLAYED", ASKED),
        _forged(
            "a cancel twice of what is answered",
            R,
            cancel(1) + cancel(1),
            "REPLAYED",
            [*ASKED, say(P, reply(1)), hear(R, _reply(1))],
        ),
        _forged("a cancel with a body", R, head(2, 1, 1, 0) + b"x", "MALFORMED", ASKED),
        _forged("a cancel with a value", R, head(2, 0, 1, 1), "MALFORMED", ASKED),
        _forged("the end inside of a frame", R, ask(1)[:-1] + b"", "OUT_OF_ORDER"),
        _forged("an answer before the limits", P, reply(1), "OUT_OF_ORDER", []),
        _forged("limits twice", P, limits(), "OUT_OF_ORDER"),
        _forged("limits below the least", P, limits(7), "OVERSIZED", []),
        _forged("limits above the most", P, limits(4_097), "OVERSIZED", []),
        _forged("bytes at once below the least", P, limits(8, 65_535), "OVERSIZED", []),
        _forged("limits with a body", P, head(3, 1, 8, 65_536) + b"x", "OVERSIZED", []),
        _forged("an answer that nobody asked for", P, reply(2), "OUT_OF_ORDER", ASKED),
        _forged("an answer twice", P, reply(1) + reply(1), "OUT_OF_ORDER", ASKED),
        _forged(
            "an answer above the bound, of which only the header came", P, head(4, 1_048_577, 1, 0), "OVERSIZED", ASKED
        ),
        _forged("an answer with a value", P, head(4, 0, 1, 1), "MALFORMED", ASKED),
        _forged("a fault without a code", P, fault(1, 0), "OVERSIZED", ASKED),
        _forged("a fault with a code above 255", P, fault(1, 256), "OVERSIZED", ASKED),
        _forged("a fault with too long a text", P, head(5, 1_025, 1, 1), "OVERSIZED", ASKED),
        _forged("a fault whose text is not UTF-8", P, head(5, 1, 1, 1) + b"\xff", "MALFORMED", ASKED),
        _forged("a fault with a control character", P, fault(1, 1, "a\nb"), "MALFORMED", ASKED),
        _forged("a drain after what was not asked", P, drain(2), "OUT_OF_ORDER", ASKED),
        _forged("a drain twice", P, drain(1) + drain(1), "OUT_OF_ORDER", ASKED),
        _forged("an answer to what a drain left out", P, drain(0) + reply(1), "OUT_OF_ORDER", ASKED),
        _forged("the end before all is answered", P, b"", "OUT_OF_ORDER", ASKED),
    ]
    # The end of the stream is said with empty bytes; where it comes inside of a frame both are said.
    for vector in broken:
        if vector["name"] == "the end inside of a frame":
            vector["steps"].insert(-1, say(R, b"", forged=True))
    accept: list[Any] = [{"name": name, "hex": data.hex(), "expect": frame} for name, data, frame in frames]
    return {"accept": accept, "transcripts": honest + broken}
