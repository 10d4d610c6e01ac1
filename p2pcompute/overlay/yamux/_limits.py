"""Every bound of a session by name, with its reason."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACK_BACKLOG",
    "CHEAP_FRAMES_BURST",
    "CHEAP_FRAMES_PER_S",
    "GROWTH_BYTES",
    "GROW_WITHIN_S",
    "INITIAL_WINDOW",
    "MAX_STREAMS",
    "MAX_STREAM_ID",
    "MAX_UNREAD_BYTES",
    "MAX_WINDOW",
    "PAID_PER_BYTE",
    "RESETS_BURST",
    "RESETS_PER_S",
    "TINY_PAYLOAD",
]

INITIAL_WINDOW: Final = 256 * 1024  # by the specification, in both directions
MAX_WINDOW: Final = 16 * 1024 * 1024  # of one stream: 100 MB/s over 160 ms
GROWTH_BYTES: Final = 16 * 1024 * 1024  # by which the windows of all streams together exceed the initial ones
GROW_WITHIN_S: Final = 2.0  # a window grows where half of it was read so soon; a slow stream has no use for more
MAX_UNREAD_BYTES: Final = 32 * 1024 * 1024  # of all streams together; the stream that brings more is reset
MAX_STREAMS: Final = 512  # a side may open on one connection; one more is refused
ACK_BACKLOG: Final = 256  # streams that we open before the peer has answered one (libp2p/specs, yamux)
MAX_STREAM_ID: Final = 0xFFFF_FFF0

# Frames that carry next to nothing cost us what others cost. An honest peer sends a few for each stream, and one
# window update for a good piece of what we send; py-libp2p's own sends one for every read.
CHEAP_FRAMES_BURST: Final = 20_000
CHEAP_FRAMES_PER_S: Final = 10_000
TINY_PAYLOAD: Final = 8  # a data frame with less than so many bytes counts as cheap
PAID_PER_BYTE: Final = 1 / 1024  # cheap frames that each byte pays for that we send or receive

# Streams that the peer resets: each may have started a handler that has done its work for nothing
# (CVE-2023-44487, "rapid reset").
RESETS_BURST: Final = 1_000
RESETS_PER_S: Final = 100
