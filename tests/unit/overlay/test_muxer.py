"""Our muxer on a link: what leaves when, whose turn it is, and what cancelling does."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.network.stream.net_stream import NetStream
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

from p2pcompute.overlay import SEND_STALL_TIMEOUT_S
from p2pcompute.overlay._muxed_stream import SMALL_BYTES
from p2pcompute.overlay._muxer import FRAME_BYTES, SEAL_BYTES, SHARED_FRAME_BYTES
from p2pcompute.overlay._streams import Libp2pStream
from p2pcompute.overlay.yamux import ACK_BACKLOG, INITIAL_WINDOW, MAX_WINDOW
from p2pcompute_protocols.ids import PeerId

from ._yamux_parts import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    data,
    frame,
    parse,
    read_exactly,
    run,
    settle,
    stranger,
    two_ends,
)

KIB = 1024


async def stream_pair(a: Any, b: Any) -> tuple[Any, Any]:
    near = await a.open_stream()
    far = await b.accept_stream()
    await settle()
    return near, far


async def drain(stream: Any) -> None:
    try:
        while True:
            await stream.read(1 << 20)
    except (MuxedStreamEOF, MuxedStreamReset):
        return


def test_what_is_written_has_left_when_write_returns() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, left, _right):
            near, far = await stream_pair(a, b)
            left.sends.clear()
            for size in (1, 200, SMALL_BYTES, INITIAL_WINDOW // 2):
                await near.write(bytes(size))
                assert parse(left.sends.pop()) == [(DATA, 0, 1, size, bytes(size))]
                assert left.unsent == 0
            assert not left.sends
            await drain_some(far, 1 + 200 + SMALL_BYTES + INITIAL_WINDOW // 2)

    run(main)


async def drain_some(stream: Any, size: int) -> None:
    while size:
        size -= len(await stream.read(size))


def test_large_payloads_go_to_the_link_as_they_are() -> None:
    """Not one copy of what a caller gives is made before it is sealed."""

    async def main() -> None:
        async with two_ends() as (a, b, left, _right):
            near, _far = await stream_pair(a, b)
            payload = bytearray(INITIAL_WINDOW)
            await near.write(memoryview(payload)[100:])
            assert [part.obj is payload for part in left.parts if isinstance(part, memoryview)] == [True]

    run(main)


def test_frames_without_payload_travel_with_what_is_written() -> None:
    """The opening of a stream, and the answer to it, cost no message of their own in a dialogue."""

    async def main() -> None:
        async with two_ends() as (a, b, left, right):
            await settle()
            left.sends.clear()
            right.sends.clear()

            async def answer() -> None:
                far = await b.accept_stream()
                await far.write(await far.read(10) + b" and back")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                near = await a.open_stream()
                await near.write(b"there")
                assert await read_exactly(near, 14) == b"there and back"
            assert [f[:2] for f in parse(left.sends[0])] == [(WINDOW_UPDATE, SYN), (DATA, 0)]
            assert [f[:2] for f in parse(right.sends[0])] == [(WINDOW_UPDATE, ACK), (DATA, 0)]

    run(main)


def test_frames_without_payload_leave_without_company() -> None:
    async def main() -> None:
        async with stranger() as (_mux, peer):
            peer.say(frame(PING, SYN, 0, 1), frame(WINDOW_UPDATE, SYN, 1, 0))
            await settle()
            assert [f[:4] for f in peer.frames()] == [(PING, ACK, 0, 1), (WINDOW_UPDATE, ACK, 1, 0)]

    run(main)


def test_a_small_message_does_not_wait_behind_bulk() -> None:
    """Beside a stream with much to send, little is sealed ahead of a message on another one."""

    async def main() -> None:
        async with two_ends(capacity=64 * KIB) as (a, b, left, right):
            bulk, bulk_far = await stream_pair(a, b)
            small, small_far = await stream_pair(a, b)
            left.keeps_sends = False
            total = 64 * 1024 * KIB
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bulk.write, bytes(total))
                await drain_some(bulk_far, 24 * 1024 * KIB)  # its window has grown
                assert a.session.send_window(bulk.stream_id) > SEAL_BYTES
                right.allow(0)
                await settle()
                ahead = len(right._inbox) + left.unsent
                await small.write(b"now")
                assert ahead <= SEAL_BYTES + 2 * 64 * KIB
                right.allow(ahead + 15)
                nursery.start_soon(drain, bulk_far)
                assert await small_far.read() == b"now"
                right.allow()
                await small.close()
                await settle()
                await bulk.close()

    run(main)


def test_streams_with_much_to_send_take_turns() -> None:
    async def main() -> None:
        async with two_ends(capacity=64 * KIB) as (a, b, left, _right):
            pairs = [await stream_pair(a, b) for _ in range(3)]
            got = [0, 0, 0]

            async def count(number: int) -> None:
                while True:
                    got[number] += len(await pairs[number][1].read(1 << 20))

            left.keeps_sends = False
            async with trio.open_nursery() as nursery:
                for number, (near, _far) in enumerate(pairs):
                    nursery.start_soon(near.write, bytes(32 * 1024 * KIB))
                    nursery.start_soon(count, number)
                while min(got) < 8 * 1024 * KIB:
                    await trio.lowlevel.checkpoint()
                    # the windows of all grow alike, so nobody is ahead by more than a window's half and a turn
                    assert max(got) - min(got) <= MAX_WINDOW // 2 + SHARED_FRAME_BYTES
                nursery.cancel_scope.cancel()

    run(main)


def test_small_messages_without_end_do_not_starve_bulk() -> None:
    """They fill a slow line alone, just so; but after `SEAL_BYTES` of them the others have their turn."""

    async def main() -> None:
        async with two_ends(capacity=64 * KIB) as (a, b, left, right):
            left.keeps_sends = False
            bulk, bulk_far = await stream_pair(a, b)
            pairs = [await stream_pair(a, b) for _ in range(4)]
            async with trio.open_nursery() as nursery:

                async def chatter(near: Any) -> None:
                    for _ in range(4):  # so something is unsent from now on
                        await near.write(bytes(SMALL_BYTES))
                    while True:
                        await near.write(bytes(SMALL_BYTES))
                        await trio.sleep(0.1)

                async def slow_line() -> None:
                    while True:
                        right.allow(64 * KIB)
                        await trio.sleep(0.1)

                nursery.start_soon(slow_line)
                for near, far in pairs:
                    nursery.start_soon(chatter, near)
                    nursery.start_soon(drain, far)
                await trio.sleep(5)
                nursery.start_soon(bulk.write, bytes(INITIAL_WINDOW))
                with trio.fail_after(30):  # virtual; alone it would take less than a second
                    await drain_some(bulk_far, INITIAL_WINDOW)
                nursery.cancel_scope.cancel()

    run(main)


def test_a_stream_alone_sends_frames_of_whole_records() -> None:
    async def main() -> None:
        async with two_ends(capacity=256 * KIB) as (a, b, left, _right):
            near, far = await stream_pair(a, b)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, bytes(48 * 1024 * KIB))
                await drain_some(far, 48 * 1024 * KIB)
            sizes = [f[3] for f in parse(b"".join(left.sends)) if f[0] == DATA]
            assert max(sizes) == FRAME_BYTES <= 1 << 20

    run(main)


def test_a_write_cancelled_in_its_middle_breaks_its_stream_only() -> None:
    async def main() -> None:
        async with two_ends(capacity=16 * KIB) as (a, b, _left, right):
            near, far = await stream_pair(a, b)
            other, other_far = await stream_pair(a, b)
            right.allow(0)
            with trio.move_on_after(1) as scope:
                await near.write(bytes(INITIAL_WINDOW))
            assert scope.cancelled_caught
            right.allow()
            await other.write(b"whole")
            assert await other_far.read() == b"whole"
            with pytest.raises(MuxedStreamReset):
                await read_exactly(far, INITIAL_WINDOW)
            with pytest.raises(MuxedStreamReset):
                await near.write(b"x")
            assert a.streams == b.streams == 1

    run(main)


def test_a_write_that_waits_for_another_one_can_be_cancelled_without_harm() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, b"1" * 2 * INITIAL_WINDOW)
                await settle()
                with trio.move_on_after(1) as scope:
                    await near.write(b"2")
                assert scope.cancelled_caught
                assert await read_exactly(far, 2 * INITIAL_WINDOW) == b"1" * 2 * INITIAL_WINDOW
            await near.write(b"3")
            assert await far.read() == b"3"

    run(main)


def test_closing_amid_a_write_of_another_task_breaks_the_stream() -> None:
    """What is half sent can't end politely; the reader must not take it for whole."""

    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            async with trio.open_nursery() as nursery:

                async def write() -> None:
                    with pytest.raises(MuxedStreamReset):
                        await near.write(bytes(2 * INITIAL_WINDOW))

                nursery.start_soon(write)
                await settle()
                await near.close()
            with pytest.raises(MuxedStreamReset):
                await read_exactly(far, 2 * INITIAL_WINDOW)

    run(main)


def test_a_slow_line_is_no_stall() -> None:
    """The socket takes a little every 50 s: that is slow, and not a peer that reads nothing."""

    async def main() -> None:
        async with two_ends(capacity=16 * KIB) as (a, b, _left, right):
            near, far = await stream_pair(a, b)
            right.allow(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, bytes(INITIAL_WINDOW))

                async def trickle() -> None:
                    while True:
                        await trio.sleep(50)
                        right.allow(16 * KIB)

                async def keep_awake() -> None:  # the dialler hears something, or it would give the peer up
                    while True:
                        await trio.sleep(20)
                        b.session.ping(1)
                        b._answer()

                nursery.start_soon(trickle)
                nursery.start_soon(keep_awake)
                start = trio.current_time()
                await drain_some(far, INITIAL_WINDOW)
                assert trio.current_time() - start > 5 * SEND_STALL_TIMEOUT_S
                nursery.cancel_scope.cancel()

    run(main)


def test_a_peer_that_takes_nothing_stalls_whoever_writes() -> None:
    """It reads nothing at all for 60 s: what waits for it is bounded, and writers are told."""

    async def main() -> None:
        async with stranger(listens=False, capacity=16 * KIB) as (mux, peer):
            peer.say(*(frame(WINDOW_UPDATE, SYN, 2 * i + 1, MAX_WINDOW) for i in range(32)))
            streams = [await mux.accept_stream() for _ in range(32)]
            gave_up = []

            async def write(stream: Any) -> None:
                with pytest.raises(MuxedStreamReset, match="read nothing for 60 s"):
                    await stream.write(bytes(4 * 1024 * KIB))
                gave_up.append(trio.current_time())

            async with trio.open_nursery() as nursery:
                for stream in streams:
                    nursery.start_soon(write, stream)
                await trio.sleep(SEND_STALL_TIMEOUT_S / 2)
                held = mux._link.unsent + mux.session.pending_bytes
                assert 0 < held <= 2 * SEAL_BYTES
            assert {round(at) for at in gave_up} == {round(SEND_STALL_TIMEOUT_S)}
            assert mux.streams == 0

    run(main)


def test_no_more_is_opened_than_the_peer_answers() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            for _ in range(ACK_BACKLOG):
                await mux.open_stream()
            with trio.move_on_after(1) as scope:
                await mux.open_stream()
            assert scope.cancelled_caught
            opened: list[Any] = []

            async def one_more() -> None:
                opened.append(await mux.open_stream())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one_more)
                nursery.start_soon(one_more)
                await settle()
                assert not opened
                peer.say(frame(WINDOW_UPDATE, ACK, 2, 0))
                await settle()
                assert len(opened) == 1
                peer.say(frame(WINDOW_UPDATE, RST, 4, 0))
            assert len(opened) == 2

    run(main)


def test_who_waits_to_open_hears_of_the_end() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            for _ in range(ACK_BACKLOG):
                await mux.open_stream()

            async def one_more() -> None:
                with pytest.raises(MuxedConnUnavailable, match="ended"):
                    await mux.open_stream()

            nursery.start_soon(one_more)
            await settle()
            await peer.link.aclose()

    run(main)


# Receiving into memory of the caller's


def test_what_arrives_goes_into_the_callers_memory() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            payload = bytes(range(256)) * 16 * KIB
            memory = memoryview(bytearray(len(payload)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, payload)
                assert await far.receive_into(memory, len(memory)) == len(memory)
            assert memory == payload
            assert not far._chunks  # and nowhere else
            await near.write(b"abcdef")
            await settle()
            assert await far.receive_into(memory[:4]) == 4
            assert bytes(memory[:4]) == b"abcd"
            assert await far.read() == b"ef"

    run(main)


def test_receiving_into_memory_stops_where_the_peer_does() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            memory = bytearray(10)
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await near.write(b"123")
                    await settle()
                    await near.write(b"45")
                    await near.close()

                nursery.start_soon(end)
                assert await far.receive_into(memory, 10) == 5
            assert memory == b"12345" + bytes(5)
            assert await far.receive_into(memory, 10) == 0
            assert await far.receive_into(memory) == 0

    run(main)


def test_receiving_into_memory_that_is_cancelled_loses_nothing() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            size = 3 * INITIAL_WINDOW
            payload = bytes(range(256)) * (size // 256)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, payload)
                with trio.move_on_after(1) as scope:
                    await far.receive_into(bytearray(size + 1), size + 1)
                assert scope.cancelled_caught
                memory = bytearray(1000)
                assert await far.receive_into(memory, 1000) == 1000
                assert memory == payload[:1000]
                assert await read_exactly(far, size - 1000) == payload[1000:]
            await near.write(b"more")
            assert await far.read() == b"more"
            assert b.session.unread_bytes == 0

    run(main)


def test_receiving_into_memory_tells_of_a_reset() -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    with pytest.raises(MuxedStreamReset):
                        await far.receive_into(bytearray(10), 10)

                nursery.start_soon(receive)
                await near.write(b"123")
                await settle()
                with pytest.raises(trio.BusyResourceError):
                    await far.receive_into(bytearray(1))
                await near.reset()
            with pytest.raises(MuxedStreamReset):
                await far.receive_into(bytearray(1))

    run(main)


@pytest.mark.parametrize(("size", "at_least"), [(0, 1), (5, 0), (5, 6)])
def test_receiving_into_memory_wants_a_sensible_bound(size: int, at_least: int) -> None:
    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, _far = await stream_pair(a, b)
            with pytest.raises(ValueError, match="at_least"):
                await near.receive_into(bytearray(size), at_least)

    run(main)


# Reading


def test_small_pieces_are_kept_together_and_reads_cut_them_anyhow() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            pieces = [bytes([i % 251]) * (i % 40 + 1) for i in range(3000)]
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0), *(data(1, piece) for piece in pieces))
            stream = await mux.accept_stream()
            await settle()
            whole = b"".join(pieces)
            assert len(stream._chunks) <= 2 * len(whole) // 4096
            got = b""
            for size in (1, 7, 4096, 100_000):
                got += await stream.read(size)
            got += await read_exactly(stream, len(whole) - len(got))
            assert got == whole
            assert mux.session.unread_bytes == 0

    run(main)


def test_reading_all_that_is_there() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(data(1, b"a" * 5000, SYN), data(1, b"b" * 100_000), data(1, b"c"))
            stream = await mux.accept_stream()
            await settle()
            assert await stream.read(10) == b"a" * 10
            assert await stream.read() == b"a" * 4990 + b"b" * 100_000 + b"c"
            assert mux.session.unread_bytes == 0

    run(main)


def test_reading_and_writing_let_others_run() -> None:
    """Calls that need not wait are checkpoints all the same, if not each of them."""

    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            ran = 0

            async def other() -> None:
                nonlocal ran
                while True:
                    await trio.lowlevel.checkpoint()
                    ran += 1

            async with trio.open_nursery() as nursery:
                nursery.start_soon(other)
                for _ in range(100):
                    await near.write(b"x")
                assert ran >= 10
                ran = 0
                for _ in range(100):
                    await far.read(1)
                assert ran >= 10
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await near.write(b"not sent")
                assert scope.cancelled_caught
                await near.write(b"y")
                assert await far.read() == b"y"
                nursery.cancel_scope.cancel()

    run(main)


# Ends


def test_a_violation_is_said_to_whoever_did_it() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(data(1, b"before", SYN), data(0, b"x"))
            await settle()
            assert mux.is_closed
            assert peer.frames()[-1][:4] == (GO_AWAY, 0, 0, 1)

    run(main)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_peer_that_goes_away_ends_the_connection(code: int) -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(data(1, b"last", SYN | FIN), data(3, b"cut", SYN), frame(GO_AWAY, 0, 0, code))
            whole, cut = await mux.accept_stream(), await mux.accept_stream()
            await mux.event_closed.wait()
            assert await whole.read() == b"last"
            with pytest.raises(MuxedStreamEOF):
                await whole.read()
            with pytest.raises(MuxedStreamReset):
                await cut.read()
            with pytest.raises(MuxedStreamClosed):
                await whole.write(b"x")

    run(main)


def test_leaving_says_so() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            stream = await mux.open_stream()
            await stream.write(b"bye")
            await mux.close()
            await settle()
            assert [f[:2] for f in peer.frames()] == [(WINDOW_UPDATE, SYN), (DATA, 0), (GO_AWAY, 0)]

    run(main)


def test_half_a_connection_is_left_for_reading() -> None:
    """A peer that has finished a stream may wait for the answer as long as it likes, and the other way round."""

    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            near, far = await stream_pair(a, b)
            await near.write(b"question")
            await near.close_write()
            assert await far.read() == b"question"
            with pytest.raises(MuxedStreamEOF):
                await far.read()
            await trio.sleep(3600)
            await far.write(b"answer")
            await far.close_write()
            assert await near.read() == b"answer"
            with pytest.raises(MuxedStreamEOF):
                await near.read()
            with pytest.raises(MuxedStreamClosed):
                await near.write(b"x")
            assert a.streams == b.streams == 0
            assert a.session.streams == b.session.streams == 0

    run(main)


def test_resets_are_said_once_and_leave_nothing() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await mux.accept_stream()
            await stream.reset()
            await stream.reset()
            stream.close_nowait()
            await settle()
            assert [f[1] for f in peer.frames()] == [ACK, RST]
            assert mux.streams == mux.session.streams == 0

    run(main)


def test_each_way_to_move_a_byte_is_progress_and_an_end_is_none() -> None:
    """What ends idle streams looks at it, so a busy one that it does not see would be cut off."""

    async def main() -> None:
        async with two_ends() as (a, b, _left, _right):
            ends = await stream_pair(a, b)
            near, far = (Libp2pStream(NetStream(end, None, None), PeerId("peer"), "/x/1") for end in ends)
            long_ago = trio.current_time() - 1_000
            assert near.send_nowait(b"abcd")
            await near.send_all(b"efgh")
            buffer = bytearray(4)
            for moves in (
                lambda: far.receive_some(4),
                lambda: far.receive_into(buffer, 4),
            ):
                far.progress_at = long_ago
                assert await moves() in (b"abcd", 4)
                assert far.progress_at > long_ago
            assert buffer == b"efgh"
            near.progress_at = far.progress_at = long_ago
            assert near.send_nowait(b"i")
            assert near.progress_at > long_ago
            assert await far.receive_some() == b"i"
            far.progress_at = long_ago
            await near.close_write()
            assert await far.receive_into(buffer) == 0
            assert far.progress_at == long_ago

    run(main)
