"""Who comes by TCP: a listener that owns its port, and sends away at the door whoever may not come in.

Somebody who is refused costs a system call or three, and no task: a few hundred of them a second are noticed by nobody.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IListener
from libp2p.io.trio import TrioTCPStream
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from ._defence import Visit

__all__ = ["Listener", "LocatedStream", "located"]

_log = logging.getLogger(__name__)

# What accept(2) says of a connection that has gone meanwhile, or of the way to it, and not of the listener.
_OF_THE_OTHER: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: a reset, and nothing of the connection stays


def located(address: object) -> tuple[str, int] | None:
    """IP and port of an address as a socket gives it; None where it has none."""
    if not isinstance(address, tuple) or len(address) < 2:
        return None
    return str(address[0]).partition("%")[0], int(address[1])  # without the zone of a link-local address


class LocatedStream(TrioTCPStream):
    """Knows where an IPv6 peer is, for which libp2p's gives None.

    Args:
        stream: the connection.
        remote: where the peer is, where that is known already.
    """

    def __init__(self, stream: trio.SocketStream, remote: tuple[str, int] | None = None) -> None:
        super().__init__(stream)
        self._remote = remote
        if remote is None:
            try:
                self._remote = located(stream.socket.getpeername())
            except OSError:
                return  # it has gone already

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._remote


class _Guest(trio.abc.AsyncResource):
    """A connection that may come in."""

    def __init__(self, stream: trio.SocketStream, remote: tuple[str, int] | None, visit: Visit) -> None:
        self.stream = stream
        self.remote = remote
        self.visit = visit

    async def aclose(self) -> None:
        await self.stream.aclose()


class _Door(trio.abc.Listener[_Guest]):
    """Accepts one connection in each round of the event loop, and refuses those that `admit` does not let in. Behind
    one that came in a `step` is waited for: nobody who may come in waits for those who may not."""

    def __init__(
        self,
        listener: trio.SocketListener,
        admit: Callable[[str | None], Visit | None],
        step: Callable[[], Awaitable[None]],
    ) -> None:
        self._listener = listener
        self._admit = admit
        self._step = step
        self._came = False  # the last one came in

    async def accept(self) -> _Guest:
        """The next one that may come in. Raises OSError where no file or memory is left, and ClosedResourceError."""
        listening = self._listener.socket
        while True:
            if listening.fileno() < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(listening)
            if self._came:
                await self._step()
                self._came = False
            if listening.fileno() < 0:  # closed in the turn in which somebody came, or while it was waited for
                raise trio.ClosedResourceError
            try:
                sock, address = listening._sock.accept()  # type: ignore[attr-defined] # trio's takes two rounds more
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as exc:
                if exc.errno in _OF_THE_OTHER:
                    continue
                raise
            remote = located(address)
            visit = self._admit(None if remote is None else remote[0])
            if visit is None:
                _send_away(sock)
                continue
            self._came = True
            sock.setblocking(False)
            return _Guest(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), remote, visit)

    async def aclose(self) -> None:
        await self._listener.aclose()


def _send_away(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    except OSError as exc:
        _log.debug("a connection that was refused has gone: %s", exc)
    sock.close()


class Listener(IListener):
    """A TCP listener that owns its port.

    libp2p's sets SO_REUSEPORT, so that a second node on the port starts without a word and takes half of the
    connections; and it runs as a system task, which outlives a cancelled host with its port still open.
    """

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        host, port = listener.socket.getsockname()[:2]
        self._address = Multiaddr(f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}")

    async def serve(
        self,
        admit: Callable[[str | None], Visit | None],
        handler: Callable[[LocatedStream, Visit, Multiaddr], Awaitable[None]],
        step: Callable[[], Awaitable[None]],
    ) -> None:
        """Accept until closed.

        Args:
            admit: whether somebody from an IP address may come in; None where not. Asked before a byte is read and
                anything is made for the connection. Must not wait.
            handler: called in a task of its own for each that may; must not raise, and ends the visit.
            step: waited for behind each that came in, so that a crowd comes one by one.
        """

        async def accept(guest: _Guest) -> None:
            await handler(LocatedStream(guest.stream, guest.remote), guest.visit, self._address)

        try:
            await trio.serve_listeners(accept, [_Door(self._listener, admit, step)])
        except* trio.ClosedResourceError:
            pass  # closed under its feet, as `close` does

    async def listen(self, maddr: Multiaddr) -> None:
        raise NotImplementedError("a Listener is made from a bound socket")

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return (self._address,)

    async def close(self) -> None:
        self.close_socket()
        await trio.lowlevel.checkpoint()

    def close_socket(self) -> None:
        """Free the port. Idempotent."""
        self._listener.socket.close()
