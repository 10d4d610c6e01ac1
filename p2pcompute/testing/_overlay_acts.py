"""What the checks of overlays have in common; see `_overlay_checks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from p2pcompute.overlay import Overlay, OverlayStream, RecordValidator

__all__ = ["ECHO", "OpenNode", "PrefixValidator", "ask", "echo", "read_exactly"]

OpenNode: TypeAlias = Callable[[RecordValidator], AbstractAsyncContextManager[Overlay]]

ECHO = "/p2pcompute-check/echo/1"


class PrefixValidator:
    """Accepts records that begin with a prefix, and prefers the greatest."""

    def __init__(self, prefix: bytes = b"ok") -> None:
        self._prefix = prefix

    def validate(self, key: bytes, value: bytes) -> bool:
        return len(key) == 32 and value.startswith(self._prefix)

    def select(self, key: bytes, values: Sequence[bytes]) -> int:  # noqa: ARG002 - the interface has it
        return max(range(len(values)), key=values.__getitem__)


async def echo(stream: OverlayStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def read_exactly(stream: OverlayStream, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = await stream.receive_some(size)
        assert part, "the stream ended early"
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


async def ask(node: Overlay, peer: Overlay, question: bytes) -> bytes:
    stream = await node.open_stream(peer.peer_id, ECHO)
    await stream.send_all(question)
    answer = await read_exactly(stream, len(question))
    await stream.aclose()
    return answer
