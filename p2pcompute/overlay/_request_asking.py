"""The asking end of a request stream: one for each peer and protocol, made when the first request needs it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import outcome
import trio

from p2pcompute.errors import OverlayError
from p2pcompute_protocols.connection import NEED_DATA
from p2pcompute_protocols.errors import LocalProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_REQUEST_MS
from p2pcompute_protocols.request import AskingSession, Drain, Fault, Limits, Reply, RequestState, StreamOver

from ._api import Overlay, OverlayStream, StreamReset
from ._request_api import ABANDONED_S, IDLE_ASKING_S, RequestLost, RequestRefused, RequestTimeout
from ._request_outbox import Outbox

__all__ = ["AskingStream", "NotSentError"]


class NotSentError(Exception):
    """A request did not go out on this stream, which takes no more; another stream may carry it.

    `fruitful` says whether the stream has answered anything, so that going on with others leads somewhere.
    """

    def __init__(self, *, fruitful: bool) -> None:
        self.fruitful = fruitful
        super().__init__()


class _Pending:
    """A request that somebody waits for."""

    __slots__ = ("begins", "body", "number", "task", "until")

    def __init__(self, task: trio.lowlevel.Task, body: bytes, until: float) -> None:
        self.task = task
        self.body = body
        self.until = until
        self.number = 0  # 0 while it waits for room
        self.begins = 0  # where its bytes begin among all that were ever sent on the stream


class AskingStream:
    """Requests to one peer under one protocol. `run` holds it; no task is made for a request."""

    def __init__(self, overlay: Overlay, peer: PeerId, protocol: str) -> None:
        self._overlay = overlay
        self._peer = peer
        self._protocol = protocol
        self._session = AskingSession()
        self._outbox: Outbox | None = None  # None until the stream is open
        self._waiting: OrderedDict[_Pending, None] = OrderedDict()  # in the order in which they came
        self._sent: dict[int, _Pending] = {}
        self._abandoned: dict[int, float] = {}  # cancelled, not answered: number -> when the peer has stalled
        self._timer = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._used_at = trio.current_time()
        self._failure: OverlayError | RemoteProtocolError | None = None
        self._over = False
        self._answered = False  # anything

    @property
    def takes_more(self) -> bool:
        """Whether a request may go here; where not, a new stream is needed."""
        return not self._over and self._session.takes_more

    @property
    def under_way(self) -> int:
        """Requests that are not answered, cancelled ones included, and those that wait for room."""
        return self._session.under_way + len(self._waiting)

    async def ask(self, body: bytes, until: float) -> bytes:
        """The answer to `body`, at trio time `until` at the latest.

        Raises:
            NotSentError: this stream takes no more.
            LocalProtocolError: larger than the peer takes.
            RequestError, OverlayError.

        Cancellation: tells the peer, if it was asked.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.takes_more:
            raise NotSentError(fruitful=self._answered)
        pending = _Pending(trio.lowlevel.current_task(), body, until)
        if self._outbox is None or self._waiting or not self._session.has_room(len(body)):
            self._check_size(body)
            self._waiting[pending] = None
        else:
            self._send(pending)
        if until < self._timer.deadline:
            self._timer.deadline = until

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._forget(pending)
            return trio.lowlevel.Abort.SUCCEEDED

        answer: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return answer

    def _check_size(self, body: bytes) -> None:
        limits = self._session.limits
        if self._session.state is not RequestState.NEW and len(body) > limits.request_bytes:
            raise LocalProtocolError(
                f"a request of {len(body)} bytes; this peer takes {limits.request_bytes} at most",
                code=WireCode.OVERSIZED,
            )

    # Sending

    def _send(self, pending: _Pending) -> None:
        outbox = self._outbox
        assert outbox is not None
        now = self._used_at = trio.current_time()
        left_ms = max(1, min(MAX_REQUEST_MS, int((pending.until - now) * 1000)))
        alone = not self._sent
        pending.number, data = self._session.ask(pending.body, left_ms)
        pending.body = b""
        pending.begins = outbox.added
        self._sent[pending.number] = pending
        outbox.add(data)
        self._flush(outbox, alone)

    def _flush(self, outbox: Outbox, at_once: bool) -> None:
        # One request at a time saves the wait for the sending task; of many at once each would be a write of its own.
        try:
            if at_once:
                outbox.flush()
            else:
                outbox.flush_soon()
        except OverlayError as exc:
            self._fail(exc)

    def _send_waiting(self) -> None:
        while self._waiting and self._session.takes_more:
            pending = next(iter(self._waiting))
            try:
                self._check_size(pending.body)
            except LocalProtocolError as exc:
                self._finish(pending, outcome.Error(exc))
                continue
            if not self._session.has_room(len(pending.body)):
                return
            del self._waiting[pending]
            self._send(pending)

    def _forget(self, pending: _Pending) -> None:
        """Nobody waits for `pending` any more."""
        if not pending.number:
            self._waiting.pop(pending, None)
            return
        if self._sent.pop(pending.number, None) is None or self._outbox is None or self._over:
            return
        data = self._session.cancel(pending.number)
        if data:
            stalled_at = trio.current_time() + ABANDONED_S
            self._abandoned[pending.number] = stalled_at
            self._timer.deadline = min(self._timer.deadline, stalled_at)
            self._outbox.add(data)
            self._flush(self._outbox, at_once=False)

    # Answers

    def _not_sent(self) -> NotSentError:
        return NotSentError(fruitful=self._answered)

    def _finish(self, pending: _Pending, result: outcome.Outcome[object]) -> None:
        if pending.number:
            self._sent.pop(pending.number, None)
        else:
            self._waiting.pop(pending, None)
        trio.lowlevel.reschedule(pending.task, result)

    async def _read(self, stream: OverlayStream) -> None:
        session, sent = self._session, self._sent
        while True:
            data = await stream.receive_some()
            self._used_at = trio.current_time()
            session.receive_data(data)
            while (event := session.next_event()) is not NEED_DATA:
                if type(event) is Reply:
                    self._answered = True
                    pending = sent.pop(event.number, None)
                    if pending is not None:
                        trio.lowlevel.reschedule(pending.task, outcome.Value(event.body))
                    else:
                        self._abandoned.pop(event.number, None)
                elif type(event) is Fault:
                    self._answered = True
                    pending = sent.pop(event.number, None)
                    if pending is not None:
                        refused = RequestRefused(event.code, event.detail)
                        trio.lowlevel.reschedule(pending.task, outcome.Error(refused))
                    else:
                        self._abandoned.pop(event.number, None)
                elif type(event) is Drain:
                    self._drop(event.number)
                elif type(event) is Limits:
                    pass  # the session holds to them, and what waits is sent below
                elif isinstance(event, StreamOver):
                    return
            if self._waiting:
                self._send_waiting()
            if not session.takes_more and not session.under_way:
                return

    def _drop(self, last: int) -> None:
        """The peer takes nothing after request `last`: what comes later can go elsewhere."""
        for number in [number for number in self._abandoned if number > last]:
            del self._abandoned[number]
        for pending in [pending for number, pending in self._sent.items() if number > last]:
            self._finish(pending, outcome.Error(self._not_sent()))
        for pending in list(self._waiting):
            self._finish(pending, outcome.Error(self._not_sent()))

    # Time

    def _next_deadline(self) -> float:
        deadline = math.inf
        if self._sent or self._waiting:
            times = [pending.until for pending in self._sent.values()]
            times += [pending.until for pending in self._waiting]
            deadline = min(times)
        elif not self._abandoned:
            deadline = self._used_at + IDLE_ASKING_S
        return min(deadline, min(self._abandoned.values(), default=math.inf))

    async def _keep_time(self) -> None:
        """One timer for all requests: it wakes at the earliest end of any, as that was when it last looked."""
        while True:
            with trio.CancelScope(deadline=self._next_deadline()) as self._timer:
                await trio.sleep_forever()
            now = trio.current_time()
            for pending in [pending for pending in self._sent.values() if pending.until <= now]:
                self._forget(pending)
                late = RequestTimeout("the peer did not answer in time", may_have_acted=True)
                trio.lowlevel.reschedule(pending.task, outcome.Error(late))
            for pending in [pending for pending in self._waiting if pending.until <= now]:
                late = RequestTimeout(
                    "the peer was not asked: there is no stream to it yet, or it has as many requests as it takes",
                    may_have_acted=False,
                )
                self._finish(pending, outcome.Error(late))
            if any(stalled_at <= now for stalled_at in self._abandoned.values()):
                raise StreamReset(f"the peer answers no requests that were cancelled {ABANDONED_S:g} s ago")
            if not self.under_way and now >= self._used_at + IDLE_ASKING_S:
                self._session.close()
                return

    # Life

    async def run(self) -> None:
        """Open the stream, carry requests over it, and return when it is over, for whatever reason."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._part, self._keep_time_until_idle)
                    await self._part(self._carry, nursery)
        finally:
            self._end()

    async def _keep_time_until_idle(self) -> None:
        await self._keep_time()
        self._scope.cancel()

    async def _part(self, part: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await part(*args)
        except (OverlayError, RemoteProtocolError) as exc:
            self._fail(exc)

    def _fail(self, exc: OverlayError | RemoteProtocolError) -> None:
        if self._failure is None:
            self._failure = exc
        self._scope.cancel()

    async def _carry(self, nursery: trio.Nursery) -> None:
        stream = await self._overlay.open_stream(self._peer, self._protocol)
        polite = False
        try:
            self._outbox = Outbox(stream)
            nursery.start_soon(self._part, self._outbox.run)
            self._send_waiting()
            await self._read(stream)
            polite = True
            nursery.cancel_scope.cancel()
        except RemoteProtocolError as exc:
            stream.blame(exc)
            raise
        except trio.Cancelled:
            polite = self._failure is None and not self._session.under_way
            raise
        finally:
            with trio.CancelScope(shield=True):  # neither waits for the peer
                await (stream.aclose() if polite else stream.reset())

    def _end(self) -> None:
        self._over = True
        failure, outbox = self._failure, self._outbox
        text = "the stream was closed" if failure is None else str(failure)
        for pending in list(self._sent.values()):
            handed = outbox is not None and pending.begins < outbox.handed
            lost = RequestLost(f"the peer was asked, and then: {text}", may_have_acted=True)
            self._finish(pending, outcome.Error(lost if handed else self._not_sent()))
        for pending in list(self._waiting):
            if outbox is None and failure is not None:
                self._finish(pending, outcome.Error(type(failure)(*failure.args)))  # it could not be opened
            else:
                self._finish(pending, outcome.Error(self._not_sent()))
