"""The seam between what seals a connection and what multiplexes it: bytes in, bytes out, no boundaries.

The muxer frames, the link seals. Whoever has a `Link` knows nothing of records, and whoever makes one nothing of
frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._turns import Turn
from .noise import Data

__all__ = ["Link", "LinkBroken"]


class LinkBroken(Exception):
    """The connection under the link is gone, or what came was forged; the message says which."""


class Link(Protocol):
    """An encrypted connection to an authenticated peer.

    One task receives and one flushes. `send_nowait` may be called from any, since it never waits.
    """

    is_initiator: bool
    bytes_sent: int  # that the socket has taken
    turn: Turn  # taken when `receive` returns; whoever has looked at what came says so, and takes another for more

    @property
    def unsent(self) -> int:
        """Sealed bytes that the socket has not taken."""
        ...

    async def receive(self) -> memoryview:
        """What has arrived and was opened: at least one byte, as much as one read of the socket brought.

        The view holds until the next call. It is empty at the end of the connection, where the peer closed it between
        two records. Cancellation: loses nothing.

        Raises:
            LinkBroken: the connection was reset, cut off inside a record, or what came does not authenticate.
        """
        ...

    def send_nowait(self, parts: Sequence[Data]) -> int:
        """Seal `parts`, one behind the other, and hand to the socket what it takes now; returns `unsent`.

        What it does not take is kept, in order, for `flush`. A link that broke drops what it is given, and the next
        `receive` says why.
        """
        ...

    async def flush(self) -> None:
        """Wait until nothing is unsent. Cancellation: loses nothing, and what was handed over stays in order.

        Raises:
            LinkBroken: the connection is gone.
        """
        ...

    async def aclose(self) -> None:
        """Close the socket. Idempotent; does not wait for the peer."""
        ...

    def get_remote_peer(self) -> ID:
        """Who the peer is; it has proved that."""
        ...

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the peer is: host and port."""
        ...

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The same as multiaddrs."""
        ...

    def get_connection_type(self) -> ConnectionType:
        """Whether the connection is direct or goes through a relay."""
        ...
