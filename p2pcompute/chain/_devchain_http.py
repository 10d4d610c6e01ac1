"""HTTP/1.1 for the development chain: h11 over trio's TCP, and every bound that keeps a stranger harmless.

A request is a POST with a JSON-RPC body; anything else is told so. When all places are taken, the connection
that has been idle longest gives way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import h11
import trio

__all__ = ["HttpLimits", "serve_http_connections"]

Answer = Callable[[bytes], Awaitable[bytes]]


class HttpLimits:
    """What one client can take.

    Attributes:
        body_bytes: the longest request body.
        header_bytes: the longest request line and headers.
        connections: the most connections at once.
        receive_s: the time from a request's first byte to its last, and for an answer to be taken.
        idle_s: how long a connection may wait between requests.
    """

    def __init__(
        self,
        *,
        body_bytes: int = 2 * 1024 * 1024,
        header_bytes: int = 16 * 1024,
        connections: int = 64,
        receive_s: float = 10.0,
        idle_s: float = 60.0,
    ) -> None:
        self.body_bytes = body_bytes
        self.header_bytes = header_bytes
        self.connections = connections
        self.receive_s = receive_s
        self.idle_s = idle_s


class _Places:
    """The connections, and which of them are waiting for a request, longest first."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.taken = 0
        self.waiting: dict[trio.SocketStream, trio.CancelScope] = {}

    def make_room(self) -> None:
        if self.taken > self.limits.connections and self.waiting:
            stream, scope = next(iter(self.waiting.items()))
            del self.waiting[stream]
            scope.cancel()


async def serve_http_connections(
    listeners: list[trio.SocketListener],
    answer: Answer,
    *,
    limits: HttpLimits,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled.

    Args:
        listeners: bound sockets; closed at the end.
        answer: makes an answer's body out of a request's. What it raises ends the service. It is cancelled when the
            client closes its side of the connection, as it does when it gives up.
        limits: the bounds.
    """
    places = _Places(limits)

    async def handle(stream: trio.SocketStream) -> None:
        places.taken += 1
        places.make_room()
        try:
            if places.taken > 2 * limits.connections:
                return  # all are busy, and as many again came on top
            await _serve_connection(stream, answer, places)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
            pass  # it has gone away; there is nobody to tell
        finally:
            places.taken -= 1
            places.waiting.pop(stream, None)
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await trio.aclose_forcefully(stream)

    await trio.serve_listeners(handle, listeners, task_status=task_status)


async def _serve_connection(stream: trio.SocketStream, answer: Answer, places: _Places) -> None:
    limits = places.limits
    conn = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
    while True:
        if not await _wait_for_request(stream, conn, places):
            return
        status, body = 408, b"the request took too long"
        with trio.move_on_after(limits.receive_s):
            status, body = await _read_request(stream, conn, limits)
        if status == 200:
            body = await _answer_while_there(stream, conn, answer, body, limits)
            status = 200 if body else 204
        with trio.move_on_after(limits.receive_s) as scope:
            await _respond(stream, conn, status, body)
        if scope.cancelled_caught or conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
            return
        conn.start_next_cycle()


async def _wait_for_request(stream: trio.SocketStream, conn: h11.Connection, places: _Places) -> bool:
    """Wait for the first bytes of a request; False where none will come."""
    if conn.trailing_data[0]:
        return True  # it came on the heels of the last one
    data = b""
    with trio.move_on_after(places.limits.idle_s) as scope:
        places.waiting[stream] = scope
        places.make_room()
        data = await stream.receive_some(16 * 1024)
    places.waiting.pop(stream, None)
    if not data:
        return False
    conn.receive_data(data)
    return True


async def _read_request(stream: trio.SocketStream, conn: h11.Connection, limits: HttpLimits) -> tuple[int, bytes]:
    """A status and, where it is 200, the body; otherwise what to tell the client."""
    body = bytearray()
    method = b""
    while True:
        try:
            event = conn.next_event()
        except h11.RemoteProtocolError as exc:
            return exc.error_status_hint, b"not HTTP/1.1 as this server speaks it"
        if event is h11.NEED_DATA:
            if conn.they_are_waiting_for_100_continue:
                await stream.send_all(conn.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            conn.receive_data(await stream.receive_some(64 * 1024))
        elif isinstance(event, h11.Request):
            method = bytes(event.method)
            length = dict(event.headers).get(b"content-length", b"0")
            if int(length) > limits.body_bytes:
                return 413, b"the request is too long"
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > limits.body_bytes:
                return 413, b"the request is too long"
        elif isinstance(event, h11.EndOfMessage):
            if method != b"POST":
                return 405, b"this is a JSON-RPC endpoint: send a POST"
            return 200, bytes(body)
        else:  # the connection was closed within a request, or before one
            raise trio.BrokenResourceError


async def _answer_while_there(
    stream: trio.SocketStream, conn: h11.Connection, answer: Answer, body: bytes, limits: HttpLimits
) -> bytes:
    """The answer, or BrokenResourceError as soon as the client has left."""
    left = False
    result = b""

    async def watch() -> None:
        nonlocal left
        # Requests may come on the heels of this one; they are kept, up to the length of one, for the next round.
        # Who sends more than that is only found to be gone when the answer is sent.
        kept = len(conn.trailing_data[0])
        while kept < limits.body_bytes + limits.header_bytes:
            try:
                data = await stream.receive_some(64 * 1024)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                left = True
                nursery.cancel_scope.cancel()
                return
            conn.receive_data(data)
            kept += len(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        result = await answer(body)
        nursery.cancel_scope.cancel()
    if left:
        raise trio.BrokenResourceError
    return result


async def _respond(stream: trio.SocketStream, conn: h11.Connection, status: int, body: bytes) -> None:
    if conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        raise trio.BrokenResourceError
    kind = b"application/json" if status == 200 else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if status not in (200, 204, 405):
        headers.append((b"connection", b"close"))
    if status == 405:
        headers.append((b"allow", b"POST"))
    if status == 204:
        headers = []
    head = conn.send(h11.Response(status_code=status, headers=headers)) or b""
    data = b"" if status == 204 else conn.send(h11.Data(data=body)) or b""
    end = conn.send(h11.EndOfMessage()) or b""
    await stream.send_all(head + data + end)
