"""What a hostile peer may do to a connection of ours, and what is left of it afterwards."""

from __future__ import annotations

import contextlib
import gc
import random
from itertools import pairwise
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError

from p2pcompute.overlay import MemoryPool, _muxer
from p2pcompute.overlay._muxed_stream import DISCARD_BYTES, LINGER_S
from p2pcompute.overlay._muxer import FRAMES_PER_BREATH, IDLE_TIMEOUT_S, MAX_ANSWER_BYTES
from p2pcompute.overlay.yamux import (
    GROWTH_BYTES,
    INITIAL_WINDOW,
    MAX_STREAMS,
    MAX_UNREAD_BYTES,
    RESETS_BURST,
    TINY_PAYLOAD,
    _session,
)

from ._yamux_parts import (
    ACK,
    FIN,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    data,
    frame,
    read_exactly,
    run,
    settle,
    stranger,
    two_ends,
)


def clean(mux: Any) -> bool:
    """Whether nothing is held for any stream."""
    session = mux.session
    return (
        mux.streams == session.streams == session.unread_bytes == session.unacknowledged == session.pending_bytes == 0
        and session._growth_left == GROWTH_BYTES
        and not (mux._unaccepted or mux._turns or mux._link.unsent)
    )


async def still_answers(mux: Any, peer: Any) -> None:
    """The connection goes on: a ping is answered, and a stream works both ways."""
    del peer.heard[:]
    peer.say(frame(PING, SYN, 0, 4242), data(999_999, b"still there?", SYN))
    while (stream := await mux.accept_stream()).stream_id != 999_999:
        pass
    assert await read_exactly(stream, 12) == b"still there?"
    await stream.write(b"yes")
    await settle()
    assert (PING, ACK, 0, 4242, b"") in peer.frames()
    assert peer.frames()[-1][4] == b"yes"
    peer.say(frame(WINDOW_UPDATE, RST, 999_999, 0))
    await settle()


def test_ten_thousand_streams_of_one_peer() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(*(frame(WINDOW_UPDATE, SYN, 2 * i + 1, 0) for i in range(10_000)))
            await settle()
            assert mux.streams == MAX_STREAMS
            assert [f[1] for f in peer.frames()] == [ACK] * MAX_STREAMS + [RST] * (10_000 - MAX_STREAMS)
            near = await mux.open_stream()  # ours have their own bound
            peer.say(frame(WINDOW_UPDATE, RST, near.stream_id, 0))
            peer.say(*(frame(WINDOW_UPDATE, RST, 2 * i + 1, 0) for i in range(MAX_STREAMS)))
            await settle()
            await still_answers(mux, peer)
            assert clean(mux)

    run(main)


def test_streams_reset_before_anybody_took_them_start_nothing() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            for i in range(RESETS_BURST // 2):
                peer.say(data(2 * i + 1, b"x", SYN), frame(WINDOW_UPDATE, RST, 2 * i + 1, 0))
            await settle()
            assert clean(mux)
            with trio.move_on_after(1) as scope:
                await mux.accept_stream()
            assert scope.cancelled_caught

    run(main)


async def rapid_reset(streams: int) -> tuple[int, bool]:
    """Open and reset, one after the other, each taken by a handler: how many were, and whether the peer was cut off."""
    taken = 0
    async with stranger() as (mux, peer):
        for i in range(streams):
            peer.say(frame(WINDOW_UPDATE, SYN, 2 * i + 1, 0))
            try:
                await mux.accept_stream()
            except MuxedConnUnavailable:
                break
            taken += 1
            peer.say(frame(WINDOW_UPDATE, RST, 2 * i + 1, 0))
        await settle()
        return taken, mux.is_closed


def test_rapid_reset_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        assert await rapid_reset(3 * RESETS_BURST) == (RESETS_BURST + 1, True)
        monkeypatch.setattr(_session, "RESETS_BURST", 1e12)
        assert await rapid_reset(3 * RESETS_BURST) == (3 * RESETS_BURST, False)  # handlers without end

    run(main)


async def ping_flood() -> tuple[bool, int]:
    """Pings of a peer that reads nothing: whether it was cut off, and the most that was held for it."""
    async with stranger(listens=False, capacity=4096) as (mux, peer):
        held = 0
        for _ in range(40):
            peer.say(frame(PING, SYN, 0, 1) * 5000)
            await settle()
            held = max(held, mux.session.pending_bytes + mux._link.unsent)
            if mux.is_closed:
                break
        return mux.is_closed, held


def test_answers_to_a_peer_that_does_not_read_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(_session, "CHEAP_FRAMES_BURST", 1e12)  # or that would end it first
        closed, held = await ping_flood()
        assert closed
        assert held <= 3 * MAX_ANSWER_BYTES
        monkeypatch.setattr(_muxer, "MAX_ANSWER_BYTES", 1 << 40)
        assert await ping_flood() == (False, 40 * 5000 * 12 - 4096)  # memory for as long as it likes

    run(main)


def test_a_flood_of_single_bytes_ends_the_connection() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await mux.accept_stream()

            async def read() -> None:
                with contextlib.suppress(MuxedStreamError):
                    while True:
                        await stream.read()

            nursery.start_soon(read)
            for _ in range(100):
                peer.say(data(1, b"x") * 1000)
                await settle()
            assert mux.is_closed
            assert mux.streams == 0

    run(main)


def test_small_messages_of_an_honest_peer_are_no_flood() -> None:
    """200 B a message, 100,000 of them as fast as they can be read."""

    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await mux.accept_stream()
            read = 0

            async def count() -> None:
                nonlocal read
                while True:
                    read += len(await stream.read())

            nursery.start_soon(count)
            for _ in range(1000):
                peer.say(data(1, bytes(200)) * 100)
                await settle()
            assert read == 1000 * 100 * 200
            assert not mux.is_closed
            nursery.cancel_scope.cancel()

    run(main)


def test_windows_filled_and_never_read_hold_so_much() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            streams = MAX_STREAMS
            for i in range(streams):
                peer.say(data(2 * i + 1, bytes(INITIAL_WINDOW), SYN))
                await settle()
            held = sum(len(chunk) for stream in mux._streams.values() for chunk in stream._chunks)
            assert held == mux.session.unread_bytes == MAX_UNREAD_BYTES
            assert mux.streams == MAX_UNREAD_BYTES // INITIAL_WINDOW
            for stream in list(mux._streams.values()):
                await stream.reset()
            await settle()
            await still_answers(mux, peer)
            assert clean(mux)

    run(main)


@pytest.mark.parametrize("defended", [True, False])
def test_what_is_left_unread_of_finished_streams_is_on_their_peers_account(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We have said all that we had to say, and the peer fills the window behind that and finishes too."""
    if not defended:
        monkeypatch.setattr(_muxer.Yamux, "unread_bytes", property(lambda mux: mux.session.unread_bytes))
    room = 4 * INITIAL_WINDOW
    pool = MemoryPool(total=2 * room, per_peer=room, kept=0)

    async def main() -> None:
        async with stranger() as (mux, peer):
            mux.held.charge_to(pool.open("peer"))
            streams = []
            for number in range(16):
                peer.say(frame(WINDOW_UPDATE, SYN, 2 * number + 1, 0))
                streams.append(await mux.accept_stream())
                await streams[-1].close_write()
                peer.say(data(2 * number + 1, bytes(INITIAL_WINDOW), FIN))
                await settle()
            held = sum(len(chunk) for stream in streams for chunk in stream._chunks)
            assert mux.streams == 0
            if not defended:
                assert (held, pool.held) == (16 * INITIAL_WINDOW, 0)
                return
            assert held == pool.held == mux.unread_bytes == room
            left = [stream for stream in streams if not stream.reset_done]
            assert len(left) == 4
            first, second, third, fourth = left
            assert await read_exactly(first, INITIAL_WINDOW) == bytes(INITIAL_WINDOW)
            await second.reset()
            third.close_nowait()
            await fourth.read(1000)
            assert pool.held == mux.unread_bytes == INITIAL_WINDOW - 1000
            del left[:], streams[:], fourth  # nobody can read it any more
            gc.collect()
            await still_answers(mux, peer)
            assert pool.held == mux.unread_bytes == 0

    run(main)


def test_a_peer_that_never_gives_window_back_stops_one_stream() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0), frame(WINDOW_UPDATE, SYN, 3, 0))
            first, second = await mux.accept_stream(), await mux.accept_stream()

            async def stuck() -> None:
                with pytest.raises(MuxedStreamError, match="read nothing"):
                    await first.write(bytes(2 * INITIAL_WINDOW))

            nursery.start_soon(stuck)
            await settle()
            await second.write(b"not stuck")
            await settle()
            assert peer.frames()[-1][2:] == (3, 9, b"not stuck")
            await trio.sleep(61)
            await second.reset()
            await settle()
            assert clean(mux)

    run(main)


@pytest.mark.parametrize("event", range(9))
def test_a_reset_at_each_point_of_a_dialogue(event: int) -> None:
    """Whatever was said before it, a reset ends the stream for both, and nothing else."""

    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            script = [
                frame(WINDOW_UPDATE, SYN, 1, 0),
                data(1, b"hello"),
                data(1, b""),
                frame(WINDOW_UPDATE, 0, 1, 1000),
                data(1, b"0123456789")[:15],  # the middle of a frame
                b"3456789",
                frame(WINDOW_UPDATE, FIN, 1, 0),
                frame(WINDOW_UPDATE, 0, 1, 5),
            ]
            ends: list[str] = []

            async def use(stream: Any) -> None:
                nursery.start_soon(push, stream)
                try:
                    while await stream.read(4):
                        pass
                except MuxedStreamError as exc:
                    ends.append(type(exc).__name__)

            async def push(stream: Any) -> None:
                try:
                    await stream.write(bytes(2 * INITIAL_WINDOW))
                except MuxedStreamError as exc:
                    ends.append(type(exc).__name__)

            for number, wire in enumerate(script[:event]):
                peer.say(wire)
                await settle()
                if number == 0:
                    nursery.start_soon(use, await mux.accept_stream())
                    await settle()
            if event == 5:  # the frame has to end before another one can begin
                peer.say(script[5])
            peer.say(frame(WINDOW_UPDATE, RST, 1, 0))
            await settle()
            assert len(ends) == (2 if event else 0)
            assert "MuxedStreamReset" in ends or not event
            await still_answers(mux, peer)
            assert clean(mux)

    run(main)


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_connection_that_ends_anywhere_leaves_nothing(cut: int) -> None:
    async def main() -> None:
        async with stranger() as (mux, peer), trio.open_nursery() as nursery:
            wire = frame(WINDOW_UPDATE, SYN, 1, 0) + data(1, b"0123456789012345")
            peer.say(wire[:cut])
            ours = await mux.open_stream()

            async def write() -> None:
                with pytest.raises(MuxedStreamError):
                    await ours.write(bytes(2 * INITIAL_WINDOW))

            nursery.start_soon(write)
            await settle()
            await peer.link.aclose()
            await mux.event_closed.wait()
            await settle()
            assert mux.streams == 0
            assert not mux._turns
            with pytest.raises(MuxedStreamError):
                await ours.read()

    run(main)


def test_half_closed_and_lingering_streams_are_bounded_in_time_and_bytes() -> None:
    """We closed them; the peer goes on sending to some, says nothing on others, and finishes none."""

    async def main() -> None:
        async with stranger() as (mux, peer):
            for i in range(10):
                peer.say(frame(WINDOW_UPDATE, SYN, 2 * i + 1, 0))
                (await mux.accept_stream()).close_nowait()
            await settle()
            assert mux.streams == 10
            sent = 0
            while mux.streams == 10 and sent < 10 * DISCARD_BYTES:
                peer.say(data(1, bytes(INITIAL_WINDOW // 4)))
                sent += INITIAL_WINDOW // 4
                await settle()
            assert not mux.is_closed
            assert sent == DISCARD_BYTES + INITIAL_WINDOW // 4
            assert mux.session.unread_bytes == 0
            with trio.move_on_after(2 * LINGER_S):
                while True:
                    await trio.sleep(20)
                    peer.say(frame(PING, ACK, 0, 0))
            await settle()
            await still_answers(mux, peer)
            assert clean(mux)

    run(main)


def test_a_peer_that_is_silent_for_a_minute_comes_back() -> None:
    """It neither reads nor writes for 60 s, beside streams in use; then all goes on where it stopped."""

    async def main() -> None:
        async with two_ends(capacity=16 * 1024) as (a, b, left, right):
            near = await a.open_stream()
            far = await b.accept_stream()
            left.allow(0)
            right.allow(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.write, bytes(15 * 1024))
                nursery.start_soon(far.write, bytes(15 * 1024))
                await trio.sleep(60)
                left.allow()
                right.allow()
                assert await read_exactly(far, 15 * 1024) == await read_exactly(near, 15 * 1024)
            near.close_nowait()
            far.close_nowait()
            await settle()
            assert not a.is_closed
            assert clean(a)
            assert clean(b)

    run(main)


def test_a_peer_that_only_takes_is_given_up() -> None:
    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            await mux.accept_stream()
            await trio.sleep(3 * IDLE_TIMEOUT_S)
            assert mux.is_closed

    run(main)


@pytest.mark.parametrize("seed", range(20))
def test_garbage_ends_the_connection_and_nothing_else(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        async with stranger() as (mux, peer):
            peer.say(data(1, b"first", SYN))
            stream = await mux.accept_stream()
            peer.say(b"\x01" + rng.randbytes(5000))
            await settle()
            assert mux.is_closed
            assert mux.streams == 0
            with pytest.raises(MuxedStreamError):
                await stream.write(b"x")

    run(main)


@pytest.mark.parametrize("defended", [True, False])
def test_a_read_full_of_tiny_frames_leaves_the_thread_to_others(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 MiB of them is 50,000, and a quarter of a second in which nobody else's connection is served."""
    if not defended:
        monkeypatch.setattr(_muxer, "FRAMES_PER_BREATH", 1 << 30)
    frames = INITIAL_WINDOW // TINY_PAYLOAD

    async def main() -> None:
        async with stranger() as (mux, peer):
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            await settle()
            seen = [0]
            peer.say(data(1, bytes(TINY_PAYLOAD)) * frames)
            while seen[-1] < frames:
                await trio.lowlevel.checkpoint()
                seen.append(mux.session.unread_bytes // TINY_PAYLOAD)
            longest = max(after - before for before, after in pairwise(seen))
            if defended:
                assert longest <= 2 * FRAMES_PER_BREATH  # two tasks may take their turns in any order
            else:
                assert longest == frames
            assert await read_exactly(await mux.accept_stream(), INITIAL_WINDOW) == bytes(INITIAL_WINDOW)

    run(main)


@pytest.mark.parametrize("reads", [False, True])
def test_who_talks_and_reads_nothing_does_not_keep_what_waits_for_it(reads: bool) -> None:
    """Its pings would keep the connection, and a MiB sealed for it, for ever. Who reads slowly is let."""

    async def main() -> None:
        async with stranger(listens=False, capacity=64 * 1024) as (mux, peer):
            peer.say(frame(WINDOW_UPDATE, SYN, 1, 0))
            stream = await mux.accept_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.write, bytes(INITIAL_WINDOW))
                await settle()
                assert mux._link.unsent > 0
                nursery.cancel_scope.cancel()
            for _ in range(20):
                if reads:
                    peer.link.may_receive = 4096
                    await peer.link.receive()
                peer.say(frame(PING, SYN, 0, 1))
                await trio.sleep(20)
            assert mux._link.unsent > 0
            assert mux.is_closed is not reads

    run(main)
