"""What requests must do over every implementation of `Overlay`, as checks that its tests run.

They wait for events only, so they run on real sockets as well as under virtual time; see `_overlay_checks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import trio
import trio.testing

from p2pcompute.overlay import (
    MAX_INBOUND_STREAMS_PER_PEER,
    Overlay,
    RequestError,
    RequestLimits,
    RequestLost,
    RequestRefused,
    Requests,
    RequestTimeout,
    ServedDialogue,
    UnknownProtocol,
    open_requests,
)
from p2pcompute_protocols.errors import LocalProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId
from p2pcompute_protocols.limits import MAX_REQUEST_BODY_BYTES

from ._overlay_checks import OpenNode, PrefixValidator

__all__ = ["REQUEST_CHECKS"]

Check: TypeAlias = Callable[[OpenNode], Awaitable[None]]

_PROTOCOL = "/p2pcompute-check/requests/1"
_LONG_S = 100.0  # what nobody waits for


@dataclass(slots=True, kw_only=True)
class _Pair:
    """Two nodes that are connected; `ours` asks and `theirs` answers."""

    us: Overlay
    them: Overlay
    ours: Requests
    theirs: Requests

    async def ask(self, body: bytes, *, timeout_s: float = _LONG_S) -> bytes:
        return await self.ours.ask(self.them.peer_id, _PROTOCOL, body, timeout_s=timeout_s)


@dataclass(slots=True)
class _Gate:
    """A handler that holds each request until it is let go, and notes what happened to it."""

    begun: Counter[bytes] = field(default_factory=Counter)
    cancelled: Counter[bytes] = field(default_factory=Counter)
    _open: trio.Event = field(default_factory=trio.Event)
    _news: trio.Event = field(default_factory=trio.Event)

    async def handle(self, peer: PeerId, body: bytes) -> bytes:
        assert peer
        self.begun[body] += 1
        self._tell()
        try:
            await self._open.wait()
        except trio.Cancelled:
            self.cancelled[body] += 1
            self._tell()
            raise
        return body + b" done"

    def _tell(self) -> None:
        event, self._news = self._news, trio.Event()
        event.set()

    def let_go(self) -> None:
        self._open.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.wait()


@asynccontextmanager
async def _pair(open_node: OpenNode) -> AsyncGenerator[_Pair]:
    validator = PrefixValidator()
    async with open_node(validator) as us, open_node(validator) as them:
        await us.connect(them.addresses[0])
        async with open_requests(us) as ours, open_requests(them) as theirs:
            yield _Pair(us=us, them=them, ours=ours, theirs=theirs)


async def _raises(kind: type[RequestError], ask: Awaitable[bytes]) -> RequestError:
    try:
        await ask
    except kind as exc:
        return exc
    raise AssertionError(f"no {kind.__name__}")


async def check_questions_are_answered(open_node: OpenNode) -> None:
    async def reverse(_: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return body[::-1]

    for inline in (True, False):
        async with _pair(open_node) as pair:
            if inline:
                pair.theirs.serve_inline(_PROTOCOL, lambda peer, body: body[::-1] if peer else b"")
            else:
                pair.theirs.serve(_PROTOCOL, reverse, limits=RequestLimits(request_bytes=MAX_REQUEST_BODY_BYTES))
            for size in (0, 1, 200, 65_537, MAX_REQUEST_BODY_BYTES):
                body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
                assert await pair.ask(body) == body[::-1]


async def check_many_at_once_over_one_stream(open_node: OpenNode) -> None:
    most = at_once = 0

    async def count(_: PeerId, body: bytes) -> bytes:
        nonlocal most, at_once
        at_once += 1
        most = max(most, at_once)
        for _turn in range(3):
            await trio.lowlevel.checkpoint()
        at_once -= 1
        return body + b"!"

    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, count, limits=RequestLimits(requests=20))
        answers: dict[int, bytes] = {}

        async def one(number: int) -> None:
            answers[number] = await pair.ask(b"%d" % number)

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, number)
        assert answers == {number: b"%d!" % number for number in range(300)}
        assert 1 < most <= 20
        assert len(pair.theirs._serving) == 1


async def check_answers_come_in_any_order(open_node: OpenNode) -> None:
    gate = _Gate()

    async def handle(peer: PeerId, body: bytes) -> bytes:
        return await gate.handle(peer, body) if body == b"slow" else body

    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, handle)
        slow: list[bytes] = []

        async def wait() -> None:
            slow.append(await pair.ask(b"slow"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await gate.until(lambda: gate.begun[b"slow"] == 1)
            for number in range(50):
                assert await pair.ask(b"%d" % number) == b"%d" % number
            assert not slow
            gate.let_go()
        assert slow == [b"slow done"]


async def check_refusals_have_a_code_and_the_stream_goes_on(open_node: OpenNode) -> None:
    async def handle(_: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        if body == b"no":
            raise LocalProtocolError("no room\nat all", code=WireCode.NO_CAPACITY)
        if body == b"bug":
            raise ZeroDivisionError("a secret of ours")
        if body == b"long":
            return bytes(MAX_REQUEST_BODY_BYTES + 1)
        return body

    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, handle)
        for body, code, acted in ((b"no", WireCode.NO_CAPACITY, False), (b"bug", WireCode.INTERNAL, True)):
            refused = await _raises(RequestRefused, pair.ask(body))
            assert isinstance(refused, RequestRefused)
            assert (refused.code, refused.may_have_acted) == (code, acted)
            assert "secret" not in str(refused)
        too_long = await _raises(RequestRefused, pair.ask(b"long"))
        assert isinstance(too_long, RequestRefused)
        assert too_long.code is WireCode.OVERSIZED
        assert await pair.ask(b"yes") == b"yes"
        assert len(pair.theirs._serving) == 1
        try:
            await pair.ours.ask(pair.them.peer_id, "/p2pcompute-check/nobody/1", b"")
        except UnknownProtocol:
            pass
        else:
            raise AssertionError("asked where nobody answers")


async def check_a_cancelled_question_ends_its_handler_and_nothing_else(open_node: OpenNode) -> None:
    gate = _Gate()
    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, gate.handle)
        async with trio.open_nursery() as nursery:
            kept: list[bytes] = []

            async def keep() -> None:
                kept.append(await pair.ask(b"kept"))

            nursery.start_soon(keep)
            async with trio.open_nursery() as doomed:
                for number in range(5):
                    doomed.start_soon(pair.ask, b"%d" % number)
                await gate.until(lambda: gate.begun.total() == 6)
                doomed.cancel_scope.cancel()
            await gate.until(lambda: gate.cancelled.total() == 5)
            assert gate.cancelled[b"kept"] == 0
            gate.let_go()
        assert kept == [b"kept done"]
        assert await pair.ask(b"next") == b"next done"
        (asking,) = pair.ours._asking.values()
        assert (asking.under_way, asking._abandoned) == (0, {})


async def check_a_question_has_an_end_of_time(open_node: OpenNode) -> None:
    gate = _Gate()
    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, gate.handle)
        late = await _raises(RequestTimeout, pair.ask(b"late", timeout_s=0.3))
        assert late.may_have_acted
        await gate.until(lambda: gate.cancelled[b"late"] == 1)
        none = await _raises(RequestTimeout, pair.ask(b"none", timeout_s=0))
        assert not none.may_have_acted
        gate.let_go()
        assert await pair.ask(b"next") == b"next done"
        assert gate.begun[b"none"] == 0


async def check_a_handler_has_an_end_of_time(open_node: OpenNode) -> None:
    gate = _Gate()
    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, gate.handle, limits=RequestLimits(longest_s=0.2))
        refused = await _raises(RequestRefused, pair.ask(b"x"))
        assert isinstance(refused, RequestRefused)
        assert refused.code is WireCode.TIMED_OUT
        assert gate.cancelled[b"x"] == 1


async def check_a_broken_stream_says_what_may_have_been_done(open_node: OpenNode) -> None:
    gate = _Gate()
    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, gate.handle, limits=RequestLimits(requests=8))
        lost: list[RequestError] = []
        answers: list[bytes] = []

        async def under_way(number: int) -> None:
            lost.append(await _raises(RequestLost, pair.ask(b"%d" % number)))

        async def waits() -> None:
            answers.append(await pair.ask(b"waits"))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(under_way, number)
            await gate.until(lambda: gate.begun.total() == 8)
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            await pair.them.disconnect(pair.us.peer_id)
            await gate.until(lambda: gate.cancelled.total() == 8)
            await gate.until(lambda: gate.begun[b"waits"] == 1)  # on another stream, since it was never sent
            gate.let_go()
        assert [exc.may_have_acted for exc in lost] == [True] * 8
        assert answers == [b"waits done"]


async def check_a_drain_loses_no_question_and_repeats_none(open_node: OpenNode) -> None:
    seen: Counter[bytes] = Counter()

    async def handle(_: PeerId, body: bytes) -> bytes:
        seen[body] += 1
        if seen.total() % 40 == 0:
            pair.theirs.drain()
        for _turn in range(int(body) % 7):
            await trio.lowlevel.checkpoint()
        return body

    async with _pair(open_node) as pair:
        pair.theirs.serve(_PROTOCOL, handle, limits=RequestLimits(requests=8))

        async def one(number: int) -> None:
            assert await pair.ask(b"%d" % number) == b"%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
        assert seen == Counter(b"%d" % number for number in range(200))


async def check_a_handler_is_replaced_on_streams_that_are_kept(open_node: OpenNode) -> None:
    async def second(_: PeerId, body: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return body + b" second"

    async with _pair(open_node) as pair:
        pair.theirs.serve_inline(_PROTOCOL, lambda _, body: body + b" first")
        assert await pair.ask(b"the") == b"the first"
        pair.theirs.serve(_PROTOCOL, second)
        assert await pair.ask(b"the") == b"the second"
        assert len(pair.theirs._serving) == 1


async def check_what_is_too_large_is_not_sent(open_node: OpenNode) -> None:
    async with _pair(open_node) as pair:
        pair.theirs.serve_inline(_PROTOCOL, lambda _, body: body, limits=RequestLimits(request_bytes=65_536))
        for size in (65_537, MAX_REQUEST_BODY_BYTES + 1):
            for known in (False, True):  # whether the peer has told its limits yet
                code: WireCode | None = None
                try:
                    await pair.ask(bytes(size))
                except LocalProtocolError as exc:
                    code = exc.code
                assert code is WireCode.OVERSIZED, f"{size} bytes, known={known}"
                assert await pair.ask(b"x") == b"x"


async def check_leaving_ends_what_is_asked_and_answered(open_node: OpenNode) -> None:
    gate = _Gate()
    validator = PrefixValidator()
    async with open_node(validator) as us, open_node(validator) as them:
        await us.connect(them.addresses[0])
        async with open_requests(them) as theirs, trio.open_nursery() as nursery:
            theirs.serve(_PROTOCOL, gate.handle)
            lost: list[RequestError] = []
            async with open_requests(us) as ours:

                async def one() -> None:
                    lost.append(await _raises(RequestLost, ours.ask(them.peer_id, _PROTOCOL, b"x", timeout_s=_LONG_S)))

                nursery.start_soon(one)
                await gate.until(lambda: gate.begun.total() == 1)
            await gate.until(lambda: gate.cancelled.total() == 1)
            later = await _raises(RequestLost, ours.ask(them.peer_id, _PROTOCOL, b"y"))
            assert not later.may_have_acted
        assert [exc.may_have_acted for exc in lost] == [True]


async def check_a_dialogue_runs_as_on_a_stream(open_node: OpenNode) -> None:
    ends: Counter[str] = Counter()
    all_ended = trio.Event()

    def ended_by(how: str) -> None:
        ends[how] += 1
        if ends.total() == 10:
            all_ended.set()

    async def count(dialogue: ServedDialogue) -> None:
        total = 0
        while heard := await dialogue.receive_some():
            total += len(heard)
            await dialogue.send_all(b"%d " % total)
            await dialogue.send_all(b"bytes")  # one answer
            if heard == b"last":
                ended_by("said")
                return
        ended_by("left")

    async with _pair(open_node) as pair:
        pair.theirs.serve_dialogues(_PROTOCOL, count)

        async def one(number: int) -> None:
            dialogue = pair.ours.dialogue(pair.them.peer_id, _PROTOCOL)
            total = 0
            for step in range(number % 5 + 1):
                said = b"x" * (number + step)
                await dialogue.send_all(said)
                total += len(said)
                assert await dialogue.receive_some() == b"%d bytes" % total
                if step == 1:
                    await pair.them.disconnect(pair.us.peer_id)  # it is the peers' and no stream's
                    await pair.us.connect(pair.them.addresses[0])
            if number % 2:
                dialogue.leave()
                return
            await dialogue.send_all(b"last")
            assert await dialogue.receive_some() == b"%d bytes" % (total + 4)
            await dialogue.send_all(b"more")
            ended = await _raises(RequestRefused, dialogue.receive_some())
            assert isinstance(ended, RequestRefused)
            assert ended.code is WireCode.EXPIRED

        for number in range(1, 11):
            await one(number)
        await all_ended.wait()
        assert ends == Counter(said=5, left=5)


async def check_too_many_dialogues_are_refused(open_node: OpenNode) -> None:
    left = 0
    all_left = trio.Event()

    async def answer(dialogue: ServedDialogue) -> None:
        nonlocal left
        while await dialogue.receive_some():
            await dialogue.send_all(b"yes")
        left += 1
        if left == MAX_INBOUND_STREAMS_PER_PEER:
            all_left.set()

    async with _pair(open_node) as pair:
        pair.theirs.serve_dialogues(_PROTOCOL, answer)
        dialogues = [pair.ours.dialogue(pair.them.peer_id, _PROTOCOL) for _ in range(MAX_INBOUND_STREAMS_PER_PEER + 1)]
        for dialogue in dialogues[:-1]:
            await dialogue.send_all(b"?")
            assert await dialogue.receive_some() == b"yes"
        await dialogues[-1].send_all(b"?")
        refused = await _raises(RequestRefused, dialogues[-1].receive_some())
        assert isinstance(refused, RequestRefused)
        assert refused.code is WireCode.NO_CAPACITY
        for dialogue in dialogues:
            dialogue.leave()
        await all_left.wait()
        again = pair.ours.dialogue(pair.them.peer_id, _PROTOCOL)
        await again.send_all(b"?")
        assert await again.receive_some() == b"yes"


REQUEST_CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
