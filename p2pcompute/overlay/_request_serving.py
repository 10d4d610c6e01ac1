"""The answering end of a request stream."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from p2pcompute.errors import StreamError
from p2pcompute_protocols.connection import NEED_DATA
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.request import Ask, Cancel, ServingSession

from ._api import OverlayStream, StreamReset
from ._request_api import (
    DRAIN_S,
    FIRST_S,
    FRAME_S,
    IDLE_SERVING_S,
    OUTBOX_BYTES,
    InlineRequestHandler,
    RequestHandler,
    RequestLimits,
    as_detail,
)
from ._request_outbox import Outbox

__all__ = ["Handlers", "ServingStream"]

_log = logging.getLogger(__name__)


class Handlers:
    """How one protocol's requests are answered, and how many are at work for all peers together."""

    def __init__(
        self, limits: RequestLimits, waiting: RequestHandler | None = None, inline: InlineRequestHandler | None = None
    ) -> None:
        self.limits = limits
        self.waiting = waiting
        self.inline = inline
        self.at_work = 0


class ServingStream:
    """One stream of requests from one peer. `run` holds all that is done for it."""

    def __init__(self, stream: OverlayStream, handlers: Handlers) -> None:
        self._stream = stream
        self.protocol = stream.protocol
        self.handlers = handlers  # the newest; a stream outlives a service that ends and begins again
        self._session = ServingSession(handlers.limits.on_wire())
        self._outbox = Outbox(stream)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._cancelled: set[int] = set()
        self._scope = trio.CancelScope()
        self._failure: StreamError | None = None
        self._draining = False
        self._reading: trio.CancelScope | None = None

    async def run(self) -> None:
        """Answer until the peer has left, or broke the protocol or the stream (then it raises `StreamError`)."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                async with trio.open_nursery() as at_work:
                    try:
                        self._outbox.add(self._session.begin())
                        self._outbox.flush()
                        await self._read(at_work)
                    except StreamError as exc:
                        self._fail(exc)
                await self._finish()
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except StreamError as exc:
            self._fail(exc)

    async def _finish(self) -> None:
        try:
            await self._outbox.sent()
        except StreamError as exc:
            self._fail(exc)

    def _fail(self, exc: StreamError) -> None:
        if self._failure is None:
            self._failure = exc
        self._scope.cancel()

    def drain(self) -> None:
        """Take no more: the peer is told, what it has asked by now is answered, and it may go."""
        if not self._draining:
            self._draining = True
            self._outbox.add(self._session.drain())
            try:
                self._outbox.flush()
            except StreamError as exc:
                self._fail(exc)
            if self._reading is not None:
                self._reading.deadline = min(self._reading.deadline, trio.current_time() + DRAIN_S)

    # Reading

    async def _read(self, at_work: trio.Nursery) -> None:
        session = self._session
        begun_at: float | None = None  # when the first bytes came of a frame that is not whole
        while True:
            data = await self._receive(begun_at)
            if data is None:
                return
            had = session.buffered + len(data)
            session.receive_data(data)
            try:
                while (event := session.next_event()) is not NEED_DATA:
                    if type(event) is Ask:
                        if self._outbox.size > OUTBOX_BYTES:
                            await self._outbox.room()  # it asks, but does not take its answers
                        self._begin(event, at_work)
                        if self._failure is not None:
                            return
                    elif type(event) is Cancel:
                        self._cancelled.add(event.number)
                        if (scope := self._scopes.get(event.number)) is not None:  # none: its handler broke it all
                            scope.cancel()
                    else:
                        self._outbox.flush()
                        return  # it asks no more
            except RemoteProtocolError as exc:
                self._stream.blame(exc)
                _log.info("no more requests of %s from %s: %s", self._stream.protocol, self._stream.peer_id, exc)
                raise StreamReset(f"requests of {self._stream.protocol}: {exc}") from exc
            if not session.buffered:
                begun_at = None
            elif begun_at is None or session.buffered < had:  # a busy stream may never be between two frames
                begun_at = trio.current_time()
            self._outbox.flush()

    async def _receive(self, begun_at: float | None) -> bytes | None:
        """What comes next; None where nothing came for so long that the stream ends."""
        while True:
            now = trio.current_time()
            wait_s = DRAIN_S if self._draining else IDLE_SERVING_S if self._session.last else FIRST_S
            until = now + wait_s if begun_at is None else begun_at + FRAME_S
            with trio.CancelScope(deadline=until) as self._reading:
                return await self._stream.receive_some()
            if begun_at is not None:
                raise StreamReset(f"the peer did not end a frame in {FRAME_S:g} s")
            if self._session.under_way:
                continue
            if self._draining:
                return None
            self.drain()

    # Answering

    def _begin(self, ask: Ask, at_work: trio.Nursery) -> None:
        handlers = self.handlers
        if handlers.inline is not None:
            inline = handlers.inline
            self._answer(ask.number, lambda: inline(self._stream.peer_id, ask.body))
            return
        if handlers.at_work >= handlers.limits.handlers:
            self._refuse(ask.number, WireCode.NO_CAPACITY, "too many requests at once; try later")
            return
        handlers.at_work += 1
        seconds = min(ask.timeout_ms / 1000, handlers.limits.longest_s)
        scope = self._scopes[ask.number] = trio.CancelScope(deadline=trio.current_time() + seconds)
        at_work.start_soon(self._work, handlers, ask, scope)

    async def _work(self, handlers: Handlers, ask: Ask, scope: trio.CancelScope) -> None:
        number = ask.number
        assert handlers.waiting is not None
        body: bytes | None = None
        failure: Exception | None = None
        try:
            with scope:  # inside, since it takes a cancellation out of a group with what a handler raised over it
                if not scope.cancel_called:
                    body = await handlers.waiting(self._stream.peer_id, ask.body)
        except Exception as exc:  # noqa: BLE001 - whatever it is, only this request comes to harm
            failure = exc
        finally:
            handlers.at_work -= 1
            del self._scopes[number]
        if failure is not None:
            self._failed(number, failure)
        elif body is not None:
            made = body
            self._answer(number, lambda: made)
        elif number in self._cancelled:
            self._refuse(number, WireCode.CANCELLED, "")
        else:
            self._refuse(number, WireCode.TIMED_OUT, "it took longer than the request gives, or than we do")
        self._cancelled.discard(number)
        try:
            if self._session.under_way:
                self._outbox.flush_soon()
            else:
                self._outbox.flush()
        except StreamError as exc:
            self._fail(exc)

    def _answer(self, number: int, make: Callable[[], bytes]) -> None:
        try:
            self._outbox.add(self._session.reply(number, make()))
        except Exception as exc:  # noqa: BLE001 - whatever it is, only this request comes to harm
            self._failed(number, exc)

    def _failed(self, number: int, exc: Exception) -> None:
        if isinstance(exc, LocalProtocolError):
            self._refuse(number, exc.code or WireCode.MALFORMED, as_detail(exc))
        elif isinstance(exc, RemoteProtocolError):
            self._stream.blame(exc)
            _log.info("no more requests of %s from %s: %s", self._stream.protocol, self._stream.peer_id, exc)
            self._fail(StreamReset(f"requests of {self._stream.protocol}: {exc}"))
        else:
            _log.warning("a request of %s failed", self._stream.protocol, exc_info=exc)
            self._refuse(number, WireCode.INTERNAL, "a fault of this node")

    def _refuse(self, number: int, code: WireCode, detail: str) -> None:
        self._outbox.add(self._session.fault(number, code, detail))
