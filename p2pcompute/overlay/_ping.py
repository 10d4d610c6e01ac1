"""A peer's round trip, by libp2p's ping (https://github.com/libp2p/specs/blob/master/ping/ping.md)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio

from p2pcompute.errors import StreamError

if TYPE_CHECKING:
    from p2pcompute_protocols.ids import PeerId

    from ._api import Overlay

__all__ = ["PING_PROTOCOL", "PING_TIMEOUT_S", "ping"]

PING_PROTOCOL: Final = "/ipfs/ping/1.0.0"
PING_TIMEOUT_S: Final = 5.0
_PING_BYTES: Final = 32


async def ping(overlay: Overlay, peer: PeerId) -> float:
    """The time for 32 bytes to go to `peer` and come back on an open stream, in seconds.

    Raises:
        DialError: it can't be reached.
        StreamError: it doesn't answer pings, or not within `PING_TIMEOUT_S`, or with other bytes.
    """
    stream = await overlay.open_stream(peer, PING_PROTOCOL, timeout_s=PING_TIMEOUT_S)
    try:
        said, heard = secrets.token_bytes(_PING_BYTES), b""
        begun_s = trio.current_time()
        with trio.fail_after(PING_TIMEOUT_S):
            await stream.send_all(said)
            while len(heard) < _PING_BYTES:
                part = await stream.receive_some(_PING_BYTES - len(heard))
                if not part:
                    break
                heard += part
        took_s = trio.current_time() - begun_s
    except trio.TooSlowError:
        raise StreamError(f"{peer} did not answer a ping within {PING_TIMEOUT_S:g} s") from None
    finally:
        with trio.CancelScope(shield=True):
            await stream.aclose()
    if heard != said:
        raise StreamError(f"{peer} answered a ping with other bytes")
    return took_s
