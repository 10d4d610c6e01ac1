"""A connection on a stream: peers that are silent, drip, or take nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute import _dialogue
from p2pcompute._dialogue import FRAME_TIMEOUT_S, SEND_TIMEOUT_S, Dialogue
from p2pcompute_protocols import task
from p2pcompute_protocols.ads import AdBatch, AdQuery, AdsConnection
from p2pcompute_protocols.connection import Role, StreamEnded
from p2pcompute_protocols.errors import ProtocolError, RemoteProtocolError, WireCode

QUERY = AdsConnection(Role.REQUESTER).send(AdQuery(limit=5))


class HalfStream:
    """Trio's memory stream with the names that a dialogue uses; it holds at most `room` bytes that are not read."""

    def __init__(self, half: Any, room: trio.Semaphore | None = None) -> None:
        self.half = half
        self.room = room
        self.blamed: list[ProtocolError] = []

    async def send_all(self, data: bytes) -> None:
        if self.room is not None:
            await self.room.acquire()
        await self.half.send_all(data)

    async def receive_some(self, max_bytes: int = 65_536) -> bytes:
        return bytes(await self.half.receive_some(max_bytes))

    def blame(self, exc: ProtocolError) -> None:
        self.blamed.append(exc)


def play(body: Callable[[Any, Dialogue], Awaitable[None]]) -> None:
    """Run `body(peer, dialogue)`: `peer` is the bare other end, `dialogue` answers ad queries."""

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        await body(theirs, Dialogue(AdsConnection(Role.PROVIDER), HalfStream(ours)))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def drip(peer: Any, every_s: float) -> None:
    for byte in QUERY:
        await peer.send_all(bytes([byte]))
        await trio.sleep(every_s)


@pytest.mark.parametrize("stall_s", [None, 900.0])
@pytest.mark.parametrize("defended", [True, False])
def test_a_message_that_drips_has_an_end(
    stall_s: float | None, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr(_dialogue, "FRAME_TIMEOUT_S", float("inf"))

    async def body(peer: Any, dialogue: Dialogue) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, peer, 60)
            if defended:
                with pytest.raises(RemoteProtocolError, match="did not end a message") as caught:
                    await dialogue.receive(stall_s=stall_s)
                assert caught.value.code == WireCode.STALLED
                assert trio.current_time() == FRAME_TIMEOUT_S
            else:
                assert isinstance(await dialogue.receive(stall_s=stall_s), AdQuery)
                assert trio.current_time() == 60 * (len(QUERY) - 1)  # and this is a short one
            nursery.cancel_scope.cancel()

    play(body)


def test_a_receive_that_is_cancelled_again_and_again_gives_it_no_more_time() -> None:
    async def impatient(dialogue: Dialogue) -> None:
        while True:
            with trio.move_on_after(3):
                await dialogue.receive()

    async def body(peer: Any, dialogue: Dialogue) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, peer, 4)
            with pytest.raises(RemoteProtocolError) as caught:
                await impatient(dialogue)
            assert caught.value.code == WireCode.STALLED
            assert trio.current_time() <= FRAME_TIMEOUT_S + 3
            nursery.cancel_scope.cancel()

    play(body)


def test_a_receive_that_is_cancelled_loses_nothing() -> None:
    async def body(peer: Any, dialogue: Dialogue) -> None:
        await peer.send_all(QUERY[:2])
        with trio.move_on_after(5):
            await dialogue.receive()
        await peer.send_all(QUERY[2:])
        assert isinstance(await dialogue.receive(stall_s=1), AdQuery)

    play(body)


@pytest.mark.parametrize("together", [True, False])
def test_a_message_that_begins_behind_another_one_has_an_end_too(together: bool) -> None:
    """Its first bytes came with the last ones of the message before."""

    async def body(peer: Any, dialogue: Dialogue) -> None:
        await peer.send_all(QUERY + QUERY[:2] if together else QUERY)
        assert isinstance(await dialogue.receive(), AdQuery)
        dialogue.connection.state = AdsConnection.start  # so that another query may come
        await trio.sleep(500)  # whoever takes its time with the first message takes none of the second one's
        if not together:
            await peer.send_all(QUERY[:2])
        began = trio.current_time()
        with trio.move_on_after(3):
            await dialogue.receive()
        with pytest.raises(RemoteProtocolError, match="did not end a message"), trio.fail_after(1_000):
            await dialogue.receive()
        assert trio.current_time() - began == FRAME_TIMEOUT_S

    play(body)


def test_the_rest_of_a_message_behind_another_one_is_waited_for() -> None:
    async def body(peer: Any, dialogue: Dialogue) -> None:
        await peer.send_all(QUERY + QUERY[:2])
        assert isinstance(await dialogue.receive(), AdQuery)
        dialogue.connection.state = AdsConnection.start
        await trio.sleep(500)
        await peer.send_all(QUERY[2:])
        assert isinstance(await dialogue.receive(stall_s=1), AdQuery)

    play(body)


def test_silence_is_bounded_by_what_the_caller_says() -> None:
    async def body(peer: Any, dialogue: Dialogue) -> None:
        with pytest.raises(RemoteProtocolError, match="said nothing for 7 s") as caught:
            await dialogue.receive(stall_s=7)
        assert caught.value.code == WireCode.STALLED
        assert trio.current_time() == 7
        async with trio.open_nursery() as nursery:

            async def late() -> None:
                await trio.sleep(500)
                await peer.send_all(QUERY)

            nursery.start_soon(late)
            assert isinstance(await dialogue.receive(), AdQuery)
        await dialogue.send(AdBatch(ads=(), more=False))
        # Each message has its own time.
        await trio.sleep(500)
        await peer.send_all(QUERY[:3])
        async with trio.open_nursery() as nursery:

            async def rest() -> None:
                await trio.sleep(FRAME_TIMEOUT_S - 1)
                await peer.send_all(QUERY[3:])

            nursery.start_soon(rest)
            assert isinstance(await dialogue.receive(stall_s=500), AdQuery)
        await dialogue.send(AdBatch(ads=(), more=False))
        await peer.aclose()
        assert isinstance(await dialogue.receive(stall_s=1), StreamEnded)

    play(body)


@pytest.mark.parametrize("send_s", [None, 10.0])
def test_a_peer_that_takes_nothing_is_let_go(send_s: float | None) -> None:
    async def main() -> None:
        ours, _ = trio.testing.memory_stream_pair()
        stream = HalfStream(ours, trio.Semaphore(1))
        bound = {} if send_s is None else {"send_s": send_s}
        dialogue = Dialogue(AdsConnection(Role.REQUESTER), stream, **bound)
        await dialogue.send(AdQuery(limit=5))
        # Without the bound this would wait for ever.
        with trio.move_on_after(100_000) as for_ever:
            await stream.send_all(b"")
        assert for_ever.cancelled_caught
        began = trio.current_time()
        dialogue.connection.state = AdsConnection.start  # so that another query may be sent
        with pytest.raises(RemoteProtocolError, match="did not take a message") as caught:
            await dialogue.send(AdQuery(limit=5))
        assert caught.value.code == WireCode.STALLED
        assert trio.current_time() - began == (SEND_TIMEOUT_S if send_s is None else send_s)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class Instant(HalfStream):
    """One that takes what is short at once, where there is room for it."""

    def __init__(self, half: Any, most: int) -> None:
        super().__init__(half)
        self.most = most
        self.at_once = self.waited = 0

    def send_nowait(self, data: bytes) -> bool:
        if self.at_once >= self.most:
            return False
        self.at_once += 1
        return True

    async def send_all(self, data: bytes) -> None:
        self.waited += 1
        await super().send_all(data)


class Steps(trio.abc.Instrument):
    """Counts the turns of the event loop."""

    def __init__(self) -> None:
        self.turns = 0

    def before_io_wait(self, timeout: float) -> None:
        self.turns += 1


MANY = 64


def _cancels() -> tuple[task.TaskConnection, bytes]:
    """A connection on which a chunk may be cancelled any number of times, and the word for it."""
    ends = []
    for role in (Role.PROVIDER, Role.REQUESTER):
        connection = task.TaskConnection(role)
        connection.state = task.TaskState.RUNNING
        connection.chunks = 1
        ends.append(connection)
    return ends[0], ends[1].send(task.Cancel(index=0))


def test_messages_that_came_together_are_few_steps_and_more_than_one() -> None:
    """Whoever sends many at once does not keep the event loop to itself."""

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        connection, cancel = _cancels()
        dialogue = Dialogue(connection, HalfStream(ours))
        await theirs.send_all(cancel * MANY)
        await dialogue.receive()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(MANY - 1):
            await dialogue.receive()
        trio.lowlevel.remove_instrument(steps)
        assert MANY // _dialogue._AT_ONCE - 1 <= steps.turns <= MANY // 2

    trio.run(main)


@pytest.mark.parametrize("most", [0, 5, MANY])
def test_what_is_short_is_sent_at_once_and_others_have_their_turns(most: int) -> None:
    async def main() -> None:
        ours, _theirs = trio.testing.memory_stream_pair()
        stream = Instant(ours, most)
        dialogue = Dialogue(AdsConnection(Role.REQUESTER), stream)
        dialogue.connection.table = {Role.REQUESTER: {dialogue.connection.state: {AdQuery: dialogue.connection.state}}}
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(MANY):
            await dialogue.send(AdQuery(limit=5))
        trio.lowlevel.remove_instrument(steps)
        assert stream.at_once + stream.waited == MANY
        assert stream.at_once == most
        assert steps.turns >= MANY // _dialogue._AT_ONCE - 1
        with trio.CancelScope() as scope:
            scope.cancel()
            await dialogue.send(AdQuery(limit=5))
        assert scope.cancelled_caught
        assert stream.at_once + stream.waited <= MANY + 1

    trio.run(main)
