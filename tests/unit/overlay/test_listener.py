"""The door: who is refused waits for nobody and is waited for by nobody, and it may be closed at any time."""

from __future__ import annotations

import socket
from typing import cast

import trio
import trio.testing

from p2pcompute.overlay._defence import Visit
from p2pcompute.overlay._listener import Listener, LocatedStream


def test_those_who_are_refused_take_no_step() -> None:
    async def main() -> None:
        (bound,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener, welcome = Listener(bound), set[int]()
        asked, steps, came = list[str | None](), list[int](), list[LocatedStream]()

        def admit(ip: str | None) -> Visit | None:
            asked.append(ip)
            return cast("Visit", object()) if len(asked) in welcome else None

        async def handler(stream: LocatedStream, visit: Visit, address: object) -> None:
            came.append(stream)

        async def step() -> None:
            steps.append(len(asked))
            await trio.lowlevel.checkpoint()

        welcome |= {11, 12, 23}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, admit, handler, step)
            for number in range(24):
                socket.create_connection(bound.socket.getsockname()[:2], timeout=5).close()  # the kernel answers
                with trio.fail_after(5):
                    while len(asked) <= number:
                        await trio.testing.wait_all_tasks_blocked()
            await listener.close()
        assert steps == [11, 12, 23]  # behind each that came in
        assert len(came) == 3

    trio.run(main)


def test_it_is_closed_while_somebody_waits_for_a_step() -> None:
    async def main() -> None:
        (bound,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener, stepping, go_on = Listener(bound), trio.Event(), trio.Event()

        async def handler(stream: LocatedStream, visit: Visit, address: object) -> None:
            pass

        async def step() -> None:
            stepping.set()
            await go_on.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.serve, lambda _: cast("Visit", object()), handler, step)
            address = bound.socket.getsockname()[:2]
            first, second = await trio.open_tcp_stream(*address), await trio.open_tcp_stream(*address)
            with trio.fail_after(5):
                await stepping.wait()
            listener.close_socket()
            go_on.set()
            await first.aclose()
            await second.aclose()

    trio.run(main)
