"""Peers that break request streams: what they cost is bounded, and others do not notice them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.errors import StreamError
from p2pcompute.overlay import (
    AskedDialogue,
    OverlayStream,
    RequestError,
    RequestLimits,
    RequestLost,
    RequestRefused,
    RequestTimeout,
    ServedDialogue,
    StreamReset,
)
from p2pcompute.overlay import _request_api as api
from p2pcompute.overlay import _request_asking as asking_module
from p2pcompute.overlay import _request_dialogues as request_dialogues
from p2pcompute.overlay import _request_serving as serving_module
from p2pcompute.overlay._request_outbox import Outbox
from p2pcompute.overlay._request_serving import Handlers, ServingStream
from p2pcompute_protocols import request
from p2pcompute_protocols.connection import NeedData
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError, WireCode
from p2pcompute_protocols.ids import PeerId

from ._request_world import PROTOCOL, World, ask, baseline, play, read_to_end

# Against a provider


def test_more_than_may_be_under_way_ends_the_stream_and_the_handlers() -> None:
    async def scenario(world: World, before: list[float]) -> None:
        begun = world.begun
        stream = await world.raw()
        await stream.send_all(b"".join(ask(number, b"500") for number in range(1, 101)))
        _, reset = await read_to_end(stream)
        assert reset
        assert world.begun - begun == 8
        assert world.at_work[world.rogue.peer_id] == 0
        assert world.streams_of_rogue() == 0
        assert await world.honest_latencies() == before

    baseline(scenario, requests=8)


HEADER = request.HEADER_BYTES
BROKEN: dict[str, bytes] = {
    "noise": bytes(range(0x80, 0x100)),
    "zeros": bytes(64),
    "the longest body": (b"\x01\xff\xff\xff" + (1).to_bytes(4, "big") + (9).to_bytes(4, "big")),
    "no time": b"\x01\0\0\0" + (1).to_bytes(4, "big") + bytes(4),
    "too much time": b"\x01\0\0\0" + (1).to_bytes(4, "big") + b"\xff" * 4,
    "an answer": request.Reply(number=1, body=b"x").encode(),
    "number 2 first": ask(2),
    "a number twice": ask(1) + ask(1),
    "a cancel of nothing": request.Cancel(number=1).encode(),
    "a cancel twice": ask(1) + request.Cancel(number=1).encode() * 2,
    "the end inside of a frame": ask(1, b"0.5")[:-1],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_frames_end_their_stream_and_nothing_else(name: str) -> None:
    async def scenario(world: World, before: list[float]) -> None:
        stream = await world.raw()
        await stream.send_all(BROKEN[name])
        if name == "the end inside of a frame":
            await stream.close_write()
        began = trio.current_time()
        _, reset = await read_to_end(stream)
        assert reset
        assert trio.current_time() - began < 1
        assert world.at_work.get(world.rogue.peer_id, 0) == 0
        assert world.streams_of_rogue() == 0
        assert await world.honest_latencies() == before

    baseline(scenario)


def test_a_storm_of_cancels_begins_no_more_than_the_limit_at_once() -> None:
    async def scenario(world: World, before: list[float]) -> None:
        stream = await world.raw()
        after: list[float] = []

        async def storm() -> None:
            session = request.AskingSession()
            for _ in range(400):
                data = b""
                while session.has_room(3):
                    number, asked = session.ask(b"500", 600_000)
                    data += asked + session.cancel(number)
                await stream.send_all(data)
                while session.under_way >= session.limits.requests:
                    session.receive_data(await stream.receive_some())
                    while not isinstance(event := session.next_event(), NeedData):
                        assert not isinstance(event, request.Fault) or event.code == WireCode.CANCELLED

        async def honest() -> None:
            after.extend(await world.honest_latencies())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm)
            nursery.start_soon(honest)
        assert after == before
        assert world.peak.get(world.rogue.peer_id, 0) <= 16
        (serving,) = (one for one in world.serving._serving if one._stream.peer_id == world.rogue.peer_id)
        await trio.testing.wait_all_tasks_blocked()
        assert (serving._scopes, serving._cancelled, serving._session.under_way) == ({}, set(), 0)
        await stream.reset()

    baseline(scenario, requests=16)


@pytest.mark.parametrize("bounded", [True, False])
def test_one_peer_cannot_take_all_handlers(bounded: bool) -> None:
    async def scenario(world: World) -> None:
        # A quarter of the handlers at most are one peer's, unless its streams are not counted.
        world.serve(requests=64, handlers=1_024, streams=4 if bounded else 64)
        await world.honest_latencies(1)
        before = await world.honest_latencies()
        streams = [await world.raw() for _ in range(16)]
        for stream in streams:
            try:
                await stream.send_all(b"".join(ask(number, b"30", 600_000) for number in range(1, 65)))
            except StreamError:
                assert bounded
        await trio.sleep(1)
        assert world.peak[world.rogue.peer_id] == (256 if bounded else 1_024)
        if bounded:
            assert await world.honest_latencies() == before
        else:
            with pytest.raises(RequestRefused) as refused:
                await world.asking.ask(world.provider.peer_id, PROTOCOL, b"")
            assert refused.value.code is WireCode.NO_CAPACITY
            assert not refused.value.may_have_acted
        await trio.sleep(60)
        assert await world.asking.ask(world.provider.peer_id, PROTOCOL, b"") == b""  # the handlers came to their end

    play(scenario)


def test_a_peer_that_asks_and_does_not_read_is_held_up_by_itself() -> None:
    size = 64 * 1024

    async def scenario(world: World) -> None:
        world.serve()
        made = 0

        def answer(_: PeerId, __: bytes) -> bytes:
            nonlocal made
            made += 1
            return bytes(size)

        world.serving.serve_inline("/p2pcompute-test/large/1", answer)
        await world.honest_latencies(1)
        before = await world.honest_latencies()
        stream = await world.rogue.open_stream(world.provider.peer_id, "/p2pcompute-test/large/1")
        sent = 0

        async def flood() -> None:
            nonlocal sent
            try:
                for number in range(1, 1_000_000):
                    await stream.send_all(ask(number, bytes(4_000), 600_000))
                    sent += 1
            except StreamError:
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.sleep(5)
            assert await world.honest_latencies() == before
            (serving,) = (one for one in world.serving._serving if one._stream.peer_id == world.rogue.peer_id)
            # What the stream has taken fills its window; the rest waits here, and nothing more is begun.
            assert serving._outbox.size <= api.OUTBOX_BYTES + size + HEADER
            assert made <= (256 * 1024 + api.OUTBOX_BYTES) // size + 2
            await trio.sleep(200)  # it takes nothing for a minute
        assert not [one for one in world.serving._serving if one._stream.peer_id == world.rogue.peer_id]
        assert sent < 1_000

    play(scenario)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_body_that_drips_is_given_up(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bounded:
        monkeypatch.setattr(serving_module, "FRAME_S", 1e9)

    async def scenario(world: World) -> None:
        world.serve()
        stream = await world.raw()
        began = trio.current_time()

        async def drip() -> None:
            for byte in ask(1, bytes(100_000)):
                await stream.send_all(bytes((byte,)))
                await trio.sleep(1)

        with trio.move_on_after(3_600):
            with pytest.raises(StreamError):
                await drip()
        assert (trio.current_time() - began < 40) == bounded
        assert world.streams_of_rogue() == (0 if bounded else 1)

    play(scenario)


def test_a_busy_stream_that_is_never_between_two_frames_is_no_drip() -> None:
    async def scenario(world: World) -> None:
        world.serve()
        stream = await world.raw()
        session = request.AskingSession()
        frames = b"".join(session.ask(b"", 1_000)[1] for _ in range(8))
        await stream.send_all(frames[: HEADER - 1])
        for at in range(HEADER - 1, len(frames), HEADER):  # each piece but the last ends inside of a frame
            await trio.sleep(10)
            await stream.send_all(frames[at : at + HEADER])
        answers = 0
        while answers < 8:
            session.receive_data(await stream.receive_some())
            while not isinstance(event := session.next_event(), NeedData):
                answers += isinstance(event, request.Reply)
        await stream.aclose()

    play(scenario)


class _Script:
    """A stream that brings what a test says."""

    peer_id = PeerId("12D3KooWScript")
    protocol = PROTOCOL

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.more = trio.Event()  # the second piece and those behind it wait for this
        self.begun = False
        self.sent = b""
        self.takes = True
        self.blamed: list[ProtocolError] = []

    def send_nowait(self, data: bytes) -> bool:
        self.sent += data if self.takes else b""
        return self.takes

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent += data

    async def receive_some(self, max_bytes: int = 0) -> bytes:
        if self.begun:
            await self.more.wait()
        self.begun = True
        if not self.pieces:
            await trio.sleep_forever()
        return self.pieces.pop(0)

    def blame(self, exc: ProtocolError) -> None:
        self.blamed.append(exc)


def test_a_cancel_that_comes_as_its_handler_breaks_the_stream_is_no_fault_of_ours() -> None:
    async def main() -> None:
        stream: Any = _Script(ask(1), request.Cancel(number=1).encode())

        async def break_it(_: PeerId, __: bytes) -> bytes:
            stream.more.set()  # the cancel has been read, and nobody has looked at it yet
            raise RemoteProtocolError("not as it should be", code=WireCode.MALFORMED)

        serving = ServingStream(stream, Handlers(RequestLimits(), waiting=break_it))
        with pytest.raises(StreamReset):
            await serving.run()
        assert [str(exc) for exc in stream.blamed] == ["not as it should be"]

    trio.run(main)


def test_who_waits_for_an_outbox_is_woken_whoever_empties_it() -> None:
    async def main() -> None:
        stream: Any = _Script()
        outbox = Outbox(stream)
        stream.takes = False
        outbox.add(b"x")
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.sent)
                await trio.testing.wait_all_tasks_blocked()
                stream.takes = True
                outbox.flush()
        assert (stream.sent, outbox.size) == (b"x", 0)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_handler_that_fails_as_it_is_cancelled_harms_only_its_request() -> None:
    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("too late")

    async def handle(_: PeerId, body: bytes) -> bytes:
        if body:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail_late)
        await trio.sleep(2)
        return b"done"

    async def scenario(world: World) -> None:
        world.serving.serve(PROTOCOL, handle)
        answers: list[bytes] = []

        async def other() -> None:
            answers.append(await world.asking.ask(world.provider.peer_id, PROTOCOL, b""))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            with pytest.raises(RequestError):
                await world.asking.ask(world.provider.peer_id, PROTOCOL, b"fail", timeout_s=1)
        assert answers == [b"done"]

    play(scenario)


def test_streams_that_carry_nothing_are_closed() -> None:
    async def scenario(world: World) -> None:
        world.serve()
        stream = await world.raw()
        began = trio.current_time()
        data, reset = await read_to_end(stream)
        assert not reset
        assert 30 <= trio.current_time() - began < 60
        limits = request.Limits(requests=64, request_bytes=1024 * 1024)
        assert data == limits.encode() + request.Drain(number=0).encode()
        used = await world.raw()
        await used.send_all(ask(1))
        _, reset = await read_to_end(used)
        assert not reset
        assert 300 <= trio.current_time() - began < 400

    play(scenario)


def test_a_handler_that_breaks_does_not_break_the_stream() -> None:
    async def scenario(world: World) -> None:
        def broken(_: PeerId, body: bytes) -> Any:
            if body == b"remote":
                raise RemoteProtocolError("garbage inside")
            return {b"text": "text", b"none": None}.get(body, body)

        world.serving.serve_inline(PROTOCOL, broken)
        for body in (b"text", b"none"):
            with pytest.raises(RequestRefused) as refused:
                await world.asking.ask(world.provider.peer_id, PROTOCOL, body)
            assert refused.value.code is WireCode.INTERNAL
        with pytest.raises(RequestLost):  # the peer broke the protocol inside of a body
            await world.asking.ask(world.provider.peer_id, PROTOCOL, b"remote")
        assert await world.asking.ask(world.provider.peer_id, PROTOCOL, b"next") == b"next"

    play(scenario)


# Against dialogues


STEP = request_dialogues.HEAD
DIALOGUES: dict[str, tuple[list[bytes], str]] = {
    "no number": ([b"12345678"], "reset"),
    "begun with nothing": ([STEP.pack(1, 0)], "reset"),
    "a step that was left out": ([STEP.pack(1, 0) + b"a", STEP.pack(1, 2) + b"a"], "reset"),
    "a step twice": ([STEP.pack(1, 0) + b"a", STEP.pack(1, 1) + b"a", STEP.pack(1, 1) + b"a"], "reset"),
    "begun twice": ([STEP.pack(1, 0) + b"a", STEP.pack(1, 0) + b"a"], "reset"),
    "half a message": ([STEP.pack(1, 0) + b"half"], "reset"),
    "a step before the first": ([STEP.pack(1, 1) + b"a"], "EXPIRED"),
    "left and gone on": ([STEP.pack(1, 0) + b"a", STEP.pack(1, 1), STEP.pack(1, 1) + b"a"], "EXPIRED"),
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogues_that_are_broken(name: str) -> None:
    bodies, outcome = DIALOGUES[name]
    left: list[int] = []

    async def handle(dialogue: ServedDialogue) -> None:
        while heard := await dialogue.receive_some():
            if heard != b"half":
                await dialogue.send_all(heard)
        left.append(1)

    async def scenario(world: World) -> None:
        world.serving.serve_dialogues(PROTOCOL, handle)
        stream, session = await world.raw(), request.AskingSession()
        codes: list[str] = []
        for body in bodies:
            await stream.send_all(session.ask(body, 5_000)[1])
            try:
                while session.under_way:
                    session.receive_data(await stream.receive_some())
                    while not isinstance(event := session.next_event(), NeedData):
                        if isinstance(event, request.Fault):
                            codes.append(WireCode(event.code).name)
            except StreamError:
                codes.append("reset")
        assert codes == [outcome]
        assert body is bodies[-1]
        honest = world.asking.dialogue(world.provider.peer_id, PROTOCOL)
        await honest.send_all(b"hello")
        assert await honest.receive_some() == b"hello"

    play(scenario)


def test_a_dialogue_whose_requester_goes_away_is_its_handlers_to_end() -> None:
    states: list[str] = []

    async def handle(dialogue: ServedDialogue) -> None:
        assert await dialogue.receive_some() == b"work"
        with trio.CancelScope(shield=True):
            await trio.sleep(5)  # such as what is stored before it is promised
        states.append("stored")
        with pytest.raises(StreamError):
            await dialogue.send_all(b"done")
        assert await dialogue.receive_some() == b""
        states.append("left")

    async def scenario(world: World) -> None:
        world.serving.serve_dialogues(PROTOCOL, handle)
        dialogue = world.asking.dialogue(world.provider.peer_id, PROTOCOL)
        await dialogue.send_all(b"work")
        with trio.move_on_after(1) as limit:
            await dialogue.receive_some()
        assert limit.cancelled_caught
        dialogue.leave()
        dialogue.leave()
        await trio.sleep(10)
        assert states == ["stored", "left"]

    play(scenario)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_crowd_cannot_have_dialogues_without_end(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the crowd stays below what one peer may have, says one step and goes on with none."""
    most, crowd, begun = 24, 8, 6
    monkeypatch.setattr(request_dialogues, "MAX_DIALOGUES", most if bounded else 1 << 30)
    at_work = 0

    async def handle(dialogue: ServedDialogue) -> None:
        nonlocal at_work
        at_work += 1
        try:
            while heard := await dialogue.receive_some():
                await dialogue.send_all(heard)
        finally:
            at_work -= 1

    async def say(dialogue: AskedDialogue) -> bytes:
        await dialogue.send_all(b"?")
        return await dialogue.receive_some()

    async def scenario(world: World) -> None:
        world.serving.serve_dialogues(PROTOCOL, handle)
        async with AsyncExitStack() as stack:

            async def rogue() -> list[AskedDialogue]:
                asking = await stack.enter_async_context(world.another())
                dialogues = [asking.dialogue(world.provider.peer_id, PROTOCOL) for _ in range(begun)]
                assert await say(dialogues[0]) == b"?"
                for dialogue in dialogues[1:]:
                    with suppress(RequestRefused):  # it may have as many as the others have, and no more
                        await say(dialogue)
                return dialogues

            rogues = [await rogue() for _ in range(crowd)]
            assert at_work == (most if bounded else crowd * begun)
            # Whoever has none finds a place, since one of those that have most gives up its oldest.
            honest = world.asking.dialogue(world.provider.peer_id, PROTOCOL)
            assert [await say(honest) for _ in range(5)] == [b"?"] * 5
            assert at_work == (most if bounded else crowd * begun + 1)
            if not bounded:
                return
            with pytest.raises(RequestRefused) as ended:
                await say(rogues[0][0])
            assert ended.value.code is WireCode.EXPIRED
            # Where each has one, whoever comes may try later, and nobody is put out for it.
            for _ in range(most - crowd - 1):
                await rogue()
            with pytest.raises(RequestRefused) as refused:
                await rogue()
            assert refused.value.code is WireCode.NO_CAPACITY
            assert not refused.value.may_have_acted
            assert await say(honest) == b"?"
            assert at_work == most

    play(scenario)


# Against a requester


def rogue_provider(world: World, answer: Callable[[OverlayStream], Awaitable[None]]) -> None:
    world.rogue.handle(PROTOCOL, answer)


async def ask_rogue(world: World, **options: Any) -> bytes:
    return await world.asking.ask(world.rogue.peer_id, PROTOCOL, b"q", **options)


LIMITS = request.Limits(requests=8, request_bytes=65_536).encode()
LIES: dict[str, bytes] = {
    "an answer to what was never asked": LIMITS + request.Reply(number=7, body=b"").encode(),
    "an answer before the limits": request.Reply(number=1, body=b"").encode(),
    "noise": bytes(range(0x80, 0x100)),
    "a question": LIMITS + ask(1),
    "the longest answer": LIMITS + b"\x04\xff\xff\xff" + (1).to_bytes(4, "big") + bytes(4),
    "limits that are none": b"\x03" + bytes(11),
    "a drain of the future": LIMITS + request.Drain(number=2).encode(),
    "the end": LIMITS,
}


@pytest.mark.parametrize("name", LIES)
def test_a_provider_that_breaks_the_protocol_loses_the_stream(name: str) -> None:
    async def scenario(world: World) -> None:
        world.serve()
        await world.honest.connect(world.rogue.addresses[0])
        streams = 0

        async def lie(stream: OverlayStream) -> None:
            nonlocal streams
            streams += 1
            await stream.receive_some()
            await stream.send_all(LIES[name])
            if name != "the end":
                await read_to_end(stream)

        rogue_provider(world, lie)
        for _ in range(2):
            with pytest.raises(RequestLost) as lost:
                await ask_rogue(world)
            assert lost.value.may_have_acted
        assert streams == 2
        assert world.asking._asking == {}
        assert await world.asking.ask(world.provider.peer_id, PROTOCOL, b"") == b""

    play(scenario)


def test_an_answer_twice_harms_only_who_sends_it() -> None:
    async def scenario(world: World) -> None:
        await world.honest.connect(world.rogue.addresses[0])

        async def twice(stream: OverlayStream) -> None:
            await stream.receive_some()
            await stream.send_all(LIMITS + request.Reply(number=1, body=b"a").encode() * 2)
            await read_to_end(stream)

        rogue_provider(world, twice)
        assert await ask_rogue(world) == b"a"
        assert await ask_rogue(world) == b"a"  # over another stream

    play(scenario)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_provider_that_never_answers_keeps_nothing_of_ours(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bounded:
        monkeypatch.setattr(asking_module, "ABANDONED_S", 1e9)

    async def scenario(world: World) -> None:
        await world.honest.connect(world.rogue.addresses[0])
        streams = 0

        async def silent(stream: OverlayStream) -> None:
            nonlocal streams
            streams += 1
            await stream.send_all(LIMITS)
            await read_to_end(stream)

        rogue_provider(world, silent)
        acted: list[bool] = []

        async def one(after_s: float) -> None:
            await trio.sleep(after_s)
            with pytest.raises(RequestTimeout) as late:
                await ask_rogue(world, timeout_s=5)
            acted.append(late.value.may_have_acted)

        async with trio.open_nursery() as nursery:
            for number in range(400):
                nursery.start_soon(one, number * 0.01)
        assert acted.count(True) == 8  # as many as it said that it takes
        (stream,) = world.asking._asking.values()
        assert (len(stream._sent), len(stream._waiting), len(stream._abandoned)) == (0, 0, 8)
        assert stream._outbox is not None
        assert stream._outbox.size == 0
        await trio.sleep(100)
        # Places that are never given back would hold up everything that is asked later.
        assert (world.asking._asking == {}) == bounded
        assert streams == 1
        with pytest.raises(RequestTimeout) as late:
            await ask_rogue(world, timeout_s=5)
        assert (late.value.may_have_acted, streams) == ((True, 2) if bounded else (False, 1))

    play(scenario)


def test_a_provider_that_reads_nothing_costs_a_window() -> None:
    async def scenario(world: World) -> None:
        await world.honest.connect(world.rogue.addresses[0])

        async def deaf(stream: OverlayStream) -> None:
            await stream.send_all(request.Limits(requests=4_096, request_bytes=64 * 1024 * 1024).encode())
            await trio.sleep_forever()

        rogue_provider(world, deaf)

        async def one() -> None:
            with pytest.raises(RequestError):
                await world.asking.ask(world.rogue.peer_id, PROTOCOL, bytes(100_000), timeout_s=5)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        await trio.sleep(120)
        assert world.asking._asking == {}

    play(scenario)


def test_a_provider_that_drains_at_once_is_tried_a_few_times() -> None:
    async def scenario(world: World) -> None:
        await world.honest.connect(world.rogue.addresses[0])
        streams = 0

        async def drain(stream: OverlayStream) -> None:
            nonlocal streams
            streams += 1
            await stream.send_all(LIMITS + request.Drain(number=0).encode())
            await read_to_end(stream)

        rogue_provider(world, drain)
        with pytest.raises(RequestLost) as lost:
            await ask_rogue(world)
        assert not lost.value.may_have_acted
        assert streams == 3
        await trio.sleep(1)
        assert world.asking._asking == {}

    play(scenario)


def test_what_is_left_after_a_storm_of_everything_is_nothing() -> None:
    async def scenario(world: World, before: list[float]) -> None:
        tasks = trio.lowlevel.current_statistics().tasks_living
        for name in BROKEN:
            for _ in range(5):
                stream = await world.raw()
                try:
                    await stream.send_all(BROKEN[name])
                    await stream.close_write()
                    await read_to_end(stream)
                except StreamError:
                    pass
        await trio.sleep(1)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert len(world.serving._serving) == 1  # the honest peer's
        assert len(world.provider.streams) == 1
        assert await world.honest_latencies() == before

    baseline(scenario)
