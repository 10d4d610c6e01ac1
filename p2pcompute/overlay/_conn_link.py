"""A link over any `ISecureConn`, such as libp2p's TLS: for the muxer, not for speed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._link import LinkBroken
from ._turns import Turns
from .noise import Data

__all__ = ["LinkOverSecureConn"]

WRITE_BYTES = 65519  # a full Noise record


class LinkOverSecureConn:
    """Implements `Link` on `read` and `write`, which can't send without waiting: everything leaves in `flush`."""

    def __init__(self, conn: ISecureConn) -> None:
        self._conn = conn
        self.is_initiator = conn.is_initiator
        self._waiting: deque[bytes] = deque()
        self._unsent = 0
        self.bytes_sent = 0
        self.turn = Turns().turn("")
        self._broken: str | None = None

    @property
    def unsent(self) -> int:
        return self._unsent

    async def receive(self) -> memoryview:
        try:
            data = await self._conn.read()
        except Exception as exc:  # libp2p raises many types here; all mean that the connection is no good any more
            raise LinkBroken(str(exc) or repr(exc)) from exc
        return memoryview(data or b"")

    def send_nowait(self, parts: Sequence[Data]) -> int:
        if self._broken is None:
            data = b"".join(parts)
            for start in range(0, len(data), WRITE_BYTES):
                self._waiting.append(data[start : start + WRITE_BYTES])
            self._unsent += len(data)
        return self._unsent

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._waiting:
            batch = [self._waiting[0]]
            size = len(batch[0])
            while len(batch) < len(self._waiting) and size + len(self._waiting[len(batch)]) <= WRITE_BYTES:
                batch.append(self._waiting[len(batch)])
                size += len(batch[-1])
            try:
                await self._conn.write(batch[0] if len(batch) == 1 else b"".join(batch))
            except Exception as exc:
                self._break(str(exc) or repr(exc))
                raise LinkBroken(str(exc) or repr(exc)) from exc
            except BaseException:
                self._break("a write was cancelled in its middle")  # half a record may have gone
                raise
            for _ in batch:
                self._waiting.popleft()
            self._unsent -= size
            self.bytes_sent += size
        if self._broken is not None:
            raise LinkBroken(self._broken)

    def _break(self, why: str) -> None:
        self._broken = why
        self._waiting.clear()
        self._unsent = 0

    async def aclose(self) -> None:
        self._break("the connection is closed")
        try:
            await self._conn.close()
        except Exception:  # noqa: BLE001 - libp2p raises many types for a socket that is gone already
            return

    def get_remote_peer(self) -> ID:
        return self._conn.get_remote_peer()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self._conn.get_connection_type()
