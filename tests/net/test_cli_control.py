"""The control API on a real socket: what it answers, and what clients can't do to it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.control import Answer, Fields, NoNode, Routes, ask, serve_routes
from p2pcompute.control._server import MAX_BODY_BYTES, MAX_HEAD_BYTES
from p2pcompute.control._socket import socket_address
from p2pcompute.errors import ConfigError

pytestmark = pytest.mark.net


async def _hello(_: Fields) -> Answer:
    return Answer.of({"hello": "world"})


async def _broken(_: Fields) -> Answer:
    raise ZeroDivisionError


ROUTES: Routes = {("GET", "/hello"): _hello, ("POST", "/drain"): _hello, ("GET", "/broken"): _broken}


@asynccontextmanager
async def served(path: Path, **options: Any) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_routes, ROUTES, path, **options))
        yield
        nursery.cancel_scope.cancel()


async def connect(path: Path) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(path) as address:
        await sock.connect(address)
    return trio.SocketStream(sock)


async def say(path: Path, data: bytes) -> bytes:
    """Send bytes, and read what comes until the server closes."""
    stream = await connect(path)
    answer = b""
    try:
        await stream.send_all(data)
        while more := await stream.receive_some(65536):
            answer += more
    except trio.BrokenResourceError:
        pass  # it hung up on us with our bytes unread
    finally:
        await stream.aclose()
    return answer


def run(main: Any) -> None:
    async def bounded() -> None:
        with trio.fail_after(300):
            await main()

    trio.run(bounded)


def test_answers_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with served(path):
            assert await ask(path, "/hello") == {"hello": "world"}
            assert await ask(path, "/hello?a=b") == {"hello": "world"}
            with pytest.raises(ConfigError, match="there is GET /broken, GET /hello, POST /drain"):
                await ask(path, "/nothing")
            with pytest.raises(ConfigError, match="/drain takes POST"):
                await ask(path, "/drain")
            assert await ask(path, "/drain", method="POST") == {"hello": "world"}
            with pytest.raises(ConfigError, match="its log says more"):
                await ask(path, "/broken")
            assert await ask(path, "/hello") == {"hello": "world"}
        with pytest.raises(NoNode):
            await ask(path, "/hello")

    run(main)
    assert not path.exists()


def test_only_the_owner_can_open_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "control.sock"

    async def main() -> None:
        async with served(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert [other.name for other in path.parent.iterdir()] == ["control.sock"]

    run(main)


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))

    async def main() -> None:
        with pytest.raises(NoNode, match="no node of this profile is running"):
            await ask(path, "/hello")
        async with served(path):
            assert await ask(path, "/hello") == {"hello": "world"}

    run(main)


def test_a_path_that_is_too_long_for_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 120) / ("b" * 120) / "control.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(os.fspath(path))  # the fault that is gone round

    async def main() -> None:
        async with served(path):
            assert await ask(path, "/hello") == {"hello": "world"}

    run(main)
    assert not path.exists()


def test_where_no_socket_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        with pytest.raises(ConfigError, match="P2PCOMPUTE_HOME"):
            await serve_routes(ROUTES, tmp_path / "file" / "control.sock")

    run(main)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff\x16\x03\x01" * 50 + b"\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nX: " + b"a" * (MAX_HEAD_BYTES + 1), b"431"),
        (b"GET /hello HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n[]", b"400"),
        (b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n{\xff}x", b"400"),
        (b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000, b"400"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (
            b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 8192),
            b"413",
        ),
        (b"POST /hello HTTP/1.1\r\nHost: a\r\n\r\n", b"405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", b"404"),
        (b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET /hello HTTP/1.1\r\nHost: a\r\n\r\n", b"200"),  # one answer only
    ],
)
def test_garbage_gets_an_answer_and_harms_nobody(data: bytes, status: bytes, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with served(path):
            answer = await say(path, data)
            # Where the server hangs up on unread bytes the kernel may drop its answer; a wrong one never comes.
            assert answer == b"" or answer.startswith(b"HTTP/1.1 " + status)
            assert answer.count(b"HTTP/1.1") <= 1
            assert await ask(path, "/hello") == {"hello": "world"}

    run(main)


def test_more_clients_than_there_are_places(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with served(path, max_clients=3, request_s=25):
            idle = [await connect(path) for _ in range(3)]
            for stream in idle:
                await stream.send_all(b"GET /hello HTTP/1.1\r\n")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConfigError, match="too many clients"):
                await ask(path, "/hello")
            for stream in idle:
                await stream.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert await ask(path, "/hello") == {"hello": "world"}

    run(main)


def test_a_client_that_says_nothing_is_sent_away(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with served(path, max_clients=1, request_s=0.1):
            stream = await connect(path)
            await stream.send_all(b"GET /hello HTTP/1.1\r\n")
            assert b" 408 " in await stream.receive_some(65536)
            assert await stream.receive_some(65536) == b""
            await stream.aclose()

    run(main)


def test_a_client_that_leaves_early(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async with served(path):
            for data in (b"", b"GET", b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n"):
                stream = await connect(path)
                await stream.send_all(data)
                await stream.aclose()
            assert await ask(path, "/hello") == {"hello": "world"}

    run(main)


def test_somebody_else_at_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def main() -> None:
        async def talk(stream: trio.SocketStream, answer: bytes) -> None:
            await stream.receive_some(65536)
            await stream.send_all(answer)
            await stream.aclose()

        for answer, error in (
            (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", ConfigError),
            (b"", ConfigError),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{", ConfigError),
            (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{", ConfigError),
        ):
            sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            await sock.bind(os.fspath(path))
            sock.listen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, partial(talk, answer=answer), [trio.SocketListener(sock)])
                with pytest.raises(error):
                    await ask(path, "/status")
                nursery.cancel_scope.cancel()
            path.unlink()

    run(main)
