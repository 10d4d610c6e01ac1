"""Our Yamux: against libp2p's own, against broken peers, and where libp2p's own goes wrong."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p.stream_muxer.yamux.yamux import Yamux as TheirYamux

from p2pcompute.overlay import SEND_STALL_TIMEOUT_S
from p2pcompute.overlay._muxed_stream import LINGER_S
from p2pcompute.overlay._muxer import IDLE_TIMEOUT_S, Yamux
from p2pcompute.overlay.yamux import INITIAL_WINDOW, MAX_STREAMS, MAX_WINDOW

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"", version: int = 0) -> bytes:
    return struct.pack("!BBHII", version, kind, flags, stream_id, length) + payload


class PlainConn(ISecureConn):
    """A connection without encryption over one end of a pipe, which can be told to read no further."""

    def __init__(self, pipe: Any, is_initiator: bool) -> None:
        self._pipe = pipe
        self.is_initiator = is_initiator
        self._ahead = bytearray()
        self.writes: list[bytes] = []
        self.packet = 1 << 20  # what leaves whole or not at all
        self.may_read = 1 << 60
        self.released = trio.Event()

    def release(self) -> None:
        self.may_read = 1 << 60
        self.released.set()

    async def _fill(self) -> None:
        while self.may_read <= 0:
            await self.released.wait()
        try:
            data = await self._pipe.receive_some(min(self.may_read, 65536))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError("gone") from exc
        if not data:
            raise ConnectionClosedError("closed")
        self.may_read -= len(data)
        self._ahead += data

    async def read(self, n: int | None = None) -> bytes:
        while len(self._ahead) < (1 if n is None else n):
            await self._fill()
        data = bytes(self._ahead if n is None else self._ahead[:n])
        del self._ahead[: len(data)]
        return data

    async def write(self, data: bytes) -> None:
        self.writes.append(data)
        try:
            for start in range(0, len(data), self.packet):
                await self._pipe.send_all(data[start : start + self.packet])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConnectionClosedError("gone") from exc

    async def close(self) -> None:
        await self._pipe.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        return ("127.0.0.1", 1)

    def get_transport_addresses(self) -> list[Any]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_local_peer(self) -> ID:
        return ID(b"local")

    def get_local_private_key(self) -> Any:
        raise NotImplementedError

    def get_remote_peer(self) -> ID:
        return ID(b"remote")

    def get_remote_public_key(self) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def muxed_pair(left: Callable[..., Any], right: Callable[..., Any]) -> AsyncGenerator[tuple[Any, Any], None]:
    """Two connections over a pipe whose writes block until they are read, so that they can be torn."""
    pipe_a, pipe_b = trio.testing.lockstep_stream_pair()
    a, b = left(PlainConn(pipe_a, True), ID(b"b")), right(PlainConn(pipe_b, False), ID(b"a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        await a.event_started.wait()
        await b.event_started.wait()
        yield a, b
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_peer(mux_class: Callable[..., Any] = Yamux) -> AsyncGenerator[tuple[Any, Any], None]:
    """A connection that a test feeds by hand: (connection, the peer's end of an unbounded pipe)."""
    near, far = trio.testing.memory_stream_pair()
    mux = mux_class(PlainConn(near, False), ID(b"peer"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await mux.event_started.wait()
        yield mux, far
        nursery.cancel_scope.cancel()


def run(main: Callable[[], Any]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def read_exactly(stream: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("size", [1, 65_536, 3_000_000])
def test_speaks_with_libp2ps_own(ours_first: bool, size: int) -> None:
    async def main() -> None:
        order = (Yamux, TheirYamux) if ours_first else (TheirYamux, Yamux)
        async with muxed_pair(*order) as (a, b):
            for opener, acceptor in ((a, b), (b, a)):
                near = await opener.open_stream()
                data = bytes(range(256)) * (size // 256) + bytes(size % 256)

                async def send(stream: Any = near, data: bytes = data) -> None:
                    await stream.write(data)
                    await stream.close()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send)
                    far = await acceptor.accept_stream()
                    assert await read_exactly(far, size) == data
                    with pytest.raises(MuxedStreamEOF):
                        await far.read(1)
                await far.write(b"answer")
                await far.close()
                assert await read_exactly(near, 6) == b"answer"
                with pytest.raises(MuxedStreamEOF):
                    await near.read(1)

    run(main)


@pytest.mark.parametrize("resetter", ["ours", "theirs"])
def test_resets_reach_libp2ps_own_and_back(resetter: str) -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, TheirYamux) as (a, b):
            near = await a.open_stream()
            far = await b.accept_stream()
            first, second = (near, far) if resetter == "ours" else (far, near)
            await first.reset()
            with pytest.raises((MuxedStreamReset, MuxedStreamEOF)):
                await second.read(1)
            with pytest.raises(MuxedStreamError):
                await second.write(b"x")
            assert a.streams == 0

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_a_cancelled_write_leaves_the_connection_whole(mux_class: Any) -> None:
    """The peer has taken 100 bytes of a frame when its writer is cancelled. libp2p's own never sends the rest."""

    async def main() -> None:
        async with muxed_pair(mux_class, mux_class) as (a, b):
            first = await a.open_stream()
            await b.accept_stream()
            await settle()
            a.secured_conn.packet = 100
            b.secured_conn.may_read = 100
            with trio.move_on_after(1) as cancelled:
                await first.write(bytes(200_000))
            assert cancelled.cancelled_caught
            b.secured_conn.release()
            async with trio.open_nursery() as nursery:

                async def second() -> None:
                    stream = await a.open_stream()
                    await stream.write(b"hello")

                nursery.start_soon(second)
                arrived = b""
                with trio.move_on_after(20):
                    stream = await b.accept_stream()
                    arrived = await read_exactly(stream, 5)
                nursery.cancel_scope.cancel()
            assert (arrived == b"hello") is (mux_class is Yamux)

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_messages_of_two_writers_do_not_mix(mux_class: Any) -> None:
    """libp2p's pubsub writes to one stream from several tasks; its own muxer mixes messages over one frame."""

    async def main() -> None:
        async with muxed_pair(mux_class, mux_class) as (a, b):
            stream = await a.open_stream()
            far = await b.accept_stream()
            async with trio.open_nursery() as nursery:
                for letter in (b"a", b"b"):
                    nursery.start_soon(stream.write, letter * 100_000)
                data = await read_exactly(far, 200_000)
            mixed = data not in (b"a" * 100_000 + b"b" * 100_000, b"b" * 100_000 + b"a" * 100_000)
            assert mixed is (mux_class is TheirYamux)

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_a_sender_waits_for_a_slow_reader(mux_class: Any) -> None:
    """libp2p's own gives up after 5 s in which the peer, busy computing, has not read."""

    async def main() -> None:
        async with muxed_pair(mux_class, mux_class) as (a, b):
            stream = await a.open_stream()
            far = await b.accept_stream()
            gave_up = False

            async def send() -> None:
                nonlocal gave_up
                try:
                    await stream.write(bytes(2 * INITIAL_WINDOW))
                except MuxedStreamError:
                    gave_up = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(30)
                if not gave_up:
                    await read_exactly(far, 2 * INITIAL_WINDOW)
            assert gave_up is (mux_class is TheirYamux)

    run(main)


def test_a_sender_gives_up_on_a_reader_that_never_reads() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            stream = await a.open_stream()
            far = await b.accept_stream()
            start = trio.current_time()
            with pytest.raises(MuxedStreamReset, match="read nothing for 60 s"):
                await stream.write(bytes(2 * INITIAL_WINDOW))
            assert trio.current_time() - start == pytest.approx(SEND_STALL_TIMEOUT_S)
            await settle()
            with pytest.raises(MuxedStreamReset):
                await far.read()
            assert a.streams == b.streams == 0
            assert not a.is_closed

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_a_peer_that_does_not_read_is_still_read(mux_class: Any) -> None:
    """libp2p's own answers from its reading loop: a peer that does not take the answer stops the connection,
    and two peers that do so at once wait for each other for ever."""

    async def main() -> None:
        near, far = trio.testing.lockstep_stream_pair()
        mux = mux_class(PlainConn(near, False), ID(b"peer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.start)
            await mux.event_started.wait()
            nursery.start_soon(
                far.send_all,
                frame(WINDOW_UPDATE, SYN, 1, 0) + frame(WINDOW_UPDATE, SYN, 3, 0) + frame(DATA, 0, 3, 2, b"hi"),
            )
            arrived = b""
            with trio.move_on_after(5):
                await mux.accept_stream()
                stream = await mux.accept_stream()
                arrived = await read_exactly(stream, 2)
            assert (arrived == b"hi") is (mux_class is Yamux)
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_a_peer_cannot_send_beyond_its_window(mux_class: Any) -> None:
    """libp2p's own logs the excess and keeps it: memory without bound for whoever cares to send it."""

    async def main() -> None:
        async with raw_peer(mux_class) as (mux, far):
            piece = bytes(65_536)
            await far.send_all(frame(WINDOW_UPDATE, SYN, 1, 0))
            with contextlib.suppress(trio.BrokenResourceError):
                for _ in range(4 * INITIAL_WINDOW // len(piece)):
                    await far.send_all(frame(DATA, 0, 1, len(piece), piece))
                    await settle()
            if mux_class is Yamux:
                assert mux.is_closed
            else:
                assert len(mux.stream_buffers[1]) == 4 * INITIAL_WINDOW

    run(main)


@pytest.mark.parametrize("mux_class", [Yamux, TheirYamux])
def test_reading_single_bytes_costs_no_frame_per_byte(mux_class: Any) -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, mux_class) as (a, b):
            stream = await a.open_stream()
            far = await b.accept_stream()
            await stream.write(bytes(1000))
            await settle()
            before = len(b.secured_conn.writes)
            for _ in range(1000):
                assert len(await far.read(1)) == 1
            await settle()
            frames = len(b.secured_conn.writes) - before
            assert frames == 0 if mux_class is Yamux else frames > 500

    run(main)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(frame(DATA, 0, 1, 0, version=1), id="version"),
        pytest.param(frame(9, 0, 1, 0), id="type"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 2, 0), id="our parity"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 0, 0), id="stream 0"),
        pytest.param(frame(DATA, 0, 0, 1, b"x"), id="data for stream 0"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 1, 0) * 2, id="opened twice"),
        pytest.param(frame(DATA, SYN | FIN, 1, 1, b"x") + frame(DATA, 0, 1, 1, b"x"), id="data after FIN"),
        pytest.param(frame(DATA, 0, 7, MAX_WINDOW + 1), id="a frame beyond any window"),
        pytest.param(frame(DATA, SYN, 1, INITIAL_WINDOW + 1), id="a first frame beyond the window"),
        pytest.param(frame(WINDOW_UPDATE, SYN, 1, 0xFFFFFFFF) + frame(WINDOW_UPDATE, 0, 1, 1), id="window"),
    ],
)
def test_a_peer_that_breaks_the_protocol_loses_the_connection(wrong: bytes) -> None:
    async def main() -> None:
        async with raw_peer() as (mux, far):
            await far.send_all(wrong)
            await settle()
            assert mux.is_closed
            assert mux.streams == 0
            with pytest.raises(MuxedConnUnavailable):
                await mux.open_stream()

    run(main)


def test_frames_of_a_stream_that_is_over_are_ignored() -> None:
    async def main() -> None:
        async with raw_peer() as (mux, far):
            await far.send_all(frame(DATA, SYN, 1, 2, b"hi"))
            stream = await mux.accept_stream()
            await stream.reset()
            await far.send_all(frame(DATA, 0, 1, 3, b"bye") + frame(WINDOW_UPDATE, FIN, 1, 0) + frame(PING, SYN, 0, 7))
            await settle()
            assert not mux.is_closed
            with pytest.raises(MuxedStreamReset):
                await stream.read()

    run(main)


def test_frames_arrive_in_any_pieces() -> None:
    async def main() -> None:
        async with raw_peer() as (mux, far):
            wire = frame(WINDOW_UPDATE, SYN, 1, 0) + frame(DATA, 0, 1, 5, b"hello") + frame(DATA, FIN, 1, 1, b"!")
            for byte in wire:
                await far.send_all(bytes([byte]))
                await settle()
            stream = await mux.accept_stream()
            assert await read_exactly(stream, 6) == b"hello!"
            with pytest.raises(MuxedStreamEOF):
                await stream.read()

    run(main)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda kind, flags, stream, length, payload, version: frame(kind, flags, stream, length, payload, version),
            st.integers(0, 4),
            st.integers(0, 15),
            st.integers(0, 5),
            st.sampled_from([0, 1, 5, 300_000, 0xFFFFFFFF]),
            st.binary(max_size=8),
            st.sampled_from([0, 0, 0, 0, 1]),
        )
        | st.binary(max_size=20),
        max_size=8,
    )
)
def test_nothing_that_a_peer_sends_raises(wire: list[bytes]) -> None:
    async def main() -> None:
        async with raw_peer() as (mux, far):
            with contextlib.suppress(trio.BrokenResourceError):
                for piece in wire:
                    await far.send_all(piece)
                    await settle()
            await far.aclose()
            await settle()
            assert mux.is_closed
            assert mux.streams == 0

    run(main)


def test_a_peer_that_makes_us_answer_but_does_not_read_is_cut_off() -> None:
    async def main() -> None:
        near, far = trio.testing.lockstep_stream_pair()
        mux = Yamux(PlainConn(near, False), ID(b"peer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.start)

            async def flood() -> None:
                while True:
                    await far.send_all(frame(PING, SYN, 0, 1) * 5000)

            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await flood()
            assert mux.is_closed

    run(main)


def test_a_silent_peer_is_given_up() -> None:
    async def main() -> None:
        async with raw_peer() as (mux, _far):
            start = trio.current_time()
            await mux.event_closed.wait()
            assert IDLE_TIMEOUT_S < trio.current_time() - start <= 2 * IDLE_TIMEOUT_S

    run(main)


def test_idle_peers_keep_each_other() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            await trio.sleep(20 * IDLE_TIMEOUT_S)
            assert not a.is_closed
            assert not b.is_closed

    run(main)


def test_streams_over_the_bound_are_refused() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            streams = [await a.open_stream() for _ in range(MAX_STREAMS)]
            with pytest.raises(MuxedConnUnavailable, match="too many"):
                await a.open_stream()
            await settle()
            assert b.streams == MAX_STREAMS
            for stream in streams:
                await stream.reset()
            await settle()
            assert a.streams == b.streams == 0
            await a.open_stream()

    run(main)


def test_a_peer_that_opens_more_streams_than_it_may_is_refused_them() -> None:
    async def main() -> None:
        async with raw_peer() as (mux, far):
            await far.send_all(b"".join(frame(WINDOW_UPDATE, SYN, 2 * i + 1, 0) for i in range(MAX_STREAMS + 10)))
            await settle()
            assert mux.streams == MAX_STREAMS
            assert not mux.is_closed
            answers = b""
            while len(answers) < 12 * (MAX_STREAMS + 10):
                answers += await far.receive_some()
            refused = [answers[i : i + 12] for i in range(0, len(answers), 12)][-10:]
            assert all(struct.unpack("!BBHII", one)[2] == RST for one in refused)

    run(main)


def test_what_was_sent_before_the_connection_closes_arrives() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            stream = await a.open_stream()
            await stream.write(b"last words")
            await stream.close()
            unfinished = await a.open_stream()
            await unfinished.write(b"half")
            await a.close()
            far, cut = await b.accept_stream(), await b.accept_stream()
            await b.event_closed.wait()
            assert await read_exactly(far, 10) == b"last words"
            with pytest.raises(MuxedStreamEOF):
                await far.read()
            with pytest.raises(MuxedStreamReset):
                await cut.read()
            with pytest.raises(MuxedStreamClosed):
                await far.write(b"too late")

    run(main)


def test_closing_does_not_wait_for_a_peer_that_does_not_read() -> None:
    async def main() -> None:
        near, _far = trio.testing.lockstep_stream_pair()
        mux = Yamux(PlainConn(near, True), ID(b"peer"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.start)
            await mux.event_started.wait()
            stream = await mux.open_stream()
            nursery.start_soon(stream.write, b"x")
            await settle()
            with trio.fail_after(60):
                await mux.close()

    run(main)


def test_a_closed_stream_lingers_only_so_long() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            stream = await a.open_stream()
            await b.accept_stream()
            stream.close_nowait()
            assert a.streams == 1
            await trio.sleep(2 * LINGER_S)
            await settle()
            assert a.streams == b.streams == 0

    run(main)


def test_a_peer_that_sends_on_to_a_closed_stream_is_stopped() -> None:
    async def main() -> None:
        async with muxed_pair(Yamux, Yamux) as (a, b):
            stream = await a.open_stream()
            far = await b.accept_stream()
            stream.close_nowait()
            await far.write(bytes(500_000))  # thrown away, but it does no harm
            with pytest.raises(MuxedStreamReset):
                await far.write(bytes(5_000_000))

    run(main)
