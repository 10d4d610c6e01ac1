"""Requests: a question of bytes, an answer of bytes, over one kept stream for each peer and protocol.

`protocols/request/README.md` says what goes over the wire. What a question means is the business of whoever asks it.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import trio

from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_REQUEST_BODY_BYTES

from ._api import Overlay, OverlayStream
from ._request_api import (
    REQUEST_TIMEOUT_S,
    InlineRequestHandler,
    RequestHandler,
    RequestLimits,
    RequestLost,
    RequestTimeout,
)
from ._request_asking import AskingStream, NotSentError
from ._request_dialogues import AskedDialogue, DialogueHandler, Dialogues
from ._request_serving import Handlers, ServingStream

__all__ = ["Requests", "open_requests"]

_log = logging.getLogger(__name__)

_TRIES: Final = 3  # streams that end without an answer to anything, before a request that was not sent fails


class Requests:
    """Asks and answers on one overlay. `open_requests` makes one that runs; whoever makes its own starts `run`."""

    def __init__(self, overlay: Overlay) -> None:
        self.overlay = overlay
        self._nursery: trio.Nursery | None = None
        self._asking: dict[tuple[PeerId, str], AskingStream] = {}
        self._serving: dict[ServingStream, None] = {}
        self._handlers: dict[str, Handlers] = {}
        self._streams: Counter[tuple[PeerId, str]] = Counter()
        self._closed = False
        self._dialogues = secrets.randbits(63)  # so that a process that follows this one begins other ones

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Hold the streams over which is asked, until cancelled; then `close`."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.close()
        raise AssertionError("unreachable")

    async def ask(self, peer: PeerId, protocol: str, body: bytes, *, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        """Ask `peer`, over the stream that is kept for it and `protocol`, and which is opened where there is none.

        Args:
            body: up to `MAX_REQUEST_BODY_BYTES`, and up to what the peer says that it takes.
            timeout_s: for everything: dialling, waiting for room among the requests that the peer takes at once, and
                the answer. The peer is told how much is left.

        Raises:
            DialError, UnknownProtocol, StreamError: there is no stream; the peer was not asked.
            RequestRefused: the peer's typed answer.
            RequestTimeout, RequestLost: no answer came; `may_have_acted` says whether the peer may have acted.
            LocalProtocolError: larger than is allowed, or than this peer takes (OVERSIZED).

        Cancellation: the peer is told, and cancels what it does for this request.
        """
        if len(body) > MAX_REQUEST_BODY_BYTES:
            raise LocalProtocolError(
                f"a request of {len(body)} bytes; at most {MAX_REQUEST_BODY_BYTES}", code=WireCode.OVERSIZED
            )
        if not timeout_s > 0:
            await trio.lowlevel.checkpoint()
            raise RequestTimeout(f"a request in {timeout_s:g} s; give it some time", may_have_acted=False)
        until = trio.current_time() + timeout_s
        tries = 0
        while tries < _TRIES:
            stream = self._asking.get((peer, protocol))
            if stream is None or not stream.takes_more:
                stream = self._open(peer, protocol)
            try:
                return await stream.ask(body, until)
            except NotSentError as exc:
                tries += not exc.fruitful
        raise RequestLost(f"{peer} ended {_TRIES} streams of {protocol} without an answer", may_have_acted=False)

    def _open(self, peer: PeerId, protocol: str) -> AskingStream:
        nursery = self._nursery
        if self._closed or nursery is None:
            state = "over" if self._closed else "not begun"
            raise RequestLost(f"requests are {state} on this node", may_have_acted=False)
        stream = self._asking[peer, protocol] = AskingStream(self.overlay, peer, protocol)

        async def run() -> None:
            try:
                await stream.run()
            except Exception:  # noqa: BLE001 - whatever it is, only this stream comes to harm
                _log.warning("a stream of requests of %s failed", protocol, exc_info=True)
            finally:
                if self._asking.get((peer, protocol)) is stream:
                    del self._asking[peer, protocol]

        nursery.start_soon(run)
        return stream

    def serve(self, protocol: str, handler: RequestHandler, *, limits: RequestLimits | None = None) -> None:
        """Answer requests of `protocol` with what `handler` (peer, body) returns; replaces an earlier one, on the
        streams that there are too, which keep the limits that their peers were told.

        Each request has a task, cancelled when the peer cancels it, when its time is over, and when its stream is. What
        `handler` raises goes to the peer: a `LocalProtocolError` as a fault with its code and text, anything else is
        logged and a fault INTERNAL; a `RemoteProtocolError` ends the stream.
        """
        self._serve(protocol, Handlers(limits or RequestLimits(), waiting=handler))

    def serve_inline(
        self, protocol: str, handler: InlineRequestHandler, *, limits: RequestLimits | None = None
    ) -> None:
        """As `serve`, for a handler that waits for nothing and is quick: it is called where the request is read."""
        self._serve(protocol, Handlers(limits or RequestLimits(), inline=handler))

    def _serve(self, protocol: str, handlers: Handlers) -> None:
        self._handlers[protocol] = handlers
        for kept in self._serving:
            if kept.protocol == protocol:
                kept.handlers = handlers
        self.overlay.handle(protocol, self._serve_stream)

    async def _serve_stream(self, stream: OverlayStream) -> None:
        handlers = self._handlers[stream.protocol]
        slot = (stream.peer_id, stream.protocol)
        if self._closed or self._streams[slot] >= handlers.limits.streams:
            await stream.reset()
            return
        self._streams[slot] += 1
        serving = ServingStream(stream, handlers)
        self._serving[serving] = None
        try:
            await serving.run()
        finally:
            del self._serving[serving]
            self._streams[slot] -= 1
            if not self._streams[slot]:
                del self._streams[slot]

    def dialogue(self, peer: PeerId, protocol: str) -> AskedDialogue:
        """A dialogue with `peer`, as the byte stream that it would have. Nothing is sent before its first step."""
        self._dialogues += 1
        return AskedDialogue(self, peer, protocol, self._dialogues)

    def serve_dialogues(self, protocol: str, handler: DialogueHandler, *, limits: RequestLimits | None = None) -> None:
        """Run `handler` for each dialogue that a peer begins under `protocol`; it ends each wait itself."""
        self.serve(protocol, Dialogues(protocol, handler, self.start, self.overlay.blame).answer, limits=limits)

    def start(self, run: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that lives as long as `run`; nothing where that has not begun or is over."""
        if self._nursery is not None and not self._closed:
            self._nursery.start_soon(run, *args)

    def drain(self) -> None:
        """Take no more requests on the streams that there are: what was taken is answered, and peers open new ones."""
        for serving in self._serving:
            serving.drain()

    def close(self) -> None:
        """Take nothing more, on no stream."""
        self._closed = True
        self.drain()


@asynccontextmanager
async def open_requests(overlay: Overlay) -> AsyncGenerator[Requests, None]:
    """Ask and answer on `overlay` while the context is open.

    On leaving, streams that others ask on are told to drain, what is asked here fails with `RequestLost`, and what is
    answered here ends when the overlay closes.
    """
    body_error: Exception | None = None
    async with trio.open_nursery() as nursery:
        requests = Requests(overlay)
        await nursery.start(requests.run)
        try:
            yield requests
        except Exception as exc:  # noqa: BLE001 - it is the body's own and raised again, unwrapped, below
            body_error = exc
        finally:
            nursery.cancel_scope.cancel()
    if body_error is not None:
        raise body_error
