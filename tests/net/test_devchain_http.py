"""The development chain's sockets under attack, and the client at endpoints that are broken in real ways."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcompute.chain import ChainClient, serve_devchain
from p2pcompute.chain._devchain_http import HttpLimits
from p2pcompute.chain._devchain_reads import Allowance, ClientGone
from p2pcompute.chain._devchain_rpc import DevRpc
from p2pcompute.errors import ChainUnreachable, PortInUse, ProfileInUse, StorageError

pytestmark = pytest.mark.net

QUICK = HttpLimits(body_bytes=20_000, connections=4, receive_s=0.3, idle_s=30)
ASK = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}'


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST / HTTP/1.1", b"Host: chain", b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


def with_chain(tmp_path: Path, use: Callable[[str, int], Awaitable[None]], limits: HttpLimits = QUICK) -> None:
    """Run `use(url, port)` beside a chain; afterwards the chain has to answer still."""

    async def serve(task_status: Any) -> None:
        await serve_devchain(tmp_path / "chain", limits=limits, task_status=task_status)

    async def main() -> None:
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                info = await nursery.start(serve)
                await use(info.url, int(info.url.rsplit(":", 1)[1]))
                async with ChainClient(info.url) as client:
                    assert await client.chain_id() == info.chain_id
                nursery.cancel_scope.cancel()

    trio.run(main)


async def exchange(port: int, data: bytes) -> bytes:
    """Send and read to the end."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    answer = b""
    async with stream:
        try:
            await stream.send_all(data)
            while more := await stream.receive_some(65_536):
                answer += more
        except trio.BrokenResourceError:
            pass  # it has closed on us, as it may
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", b"400"),  # TLS
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n", b"413"),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1000\r\n" + b"x" * 4096 + b"\r\n" + b"8000\r\n" + b"x" * 20_000,
            b"413",
        ),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", b"408"),  # and then nothing
        (b"POST / HTTP/1.1\r\nHost: x\r\n", b"408"),
        (b"GET / HTTP/1.0\r\n\r\n", b"405"),
    ],
    ids=range(12),
)
def test_what_is_no_request_gets_a_status(tmp_path: Path, data: bytes, status: bytes) -> None:
    async def use(url: str, port: int) -> None:
        assert (await exchange(port, data)).split(b" ")[1:2] in ([status], [])

    async def strict(url: str, port: int) -> None:
        answer = await exchange(port, data)
        assert answer.startswith(b"HTTP/1.1 " + status)

    # Where much is left unread, closing resets the connection and may take the answer with it.
    with_chain(tmp_path, use if len(data) > 20_000 else strict)


def test_pipelined_and_kept_alive(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        data = post(ASK) + post(b'{"jsonrpc":"2.0","method":"eth_chainId"}') + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await exchange(port, data + post(ASK, b"Connection: close"))
        assert [int(part.split(b" ")[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 204, 405, 200]

    with_chain(tmp_path, use)


def test_a_dripping_client_is_cut_off(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await drip(stream)

    async def drip(stream: trio.SocketStream) -> None:
        for byte in post(b" " * 10_000):
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.01)

    with_chain(tmp_path, use)


def test_many_idle_connections_make_room(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
        answer = await exchange(port, post(ASK, b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200")
        # The oldest was let go, long before its idle time was over.
        assert await idle[0].receive_some(1) == b""
        for stream in idle:
            await stream.aclose()

    with_chain(tmp_path, use)


def test_a_client_that_does_not_read_its_answer(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        body = json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "eth_getCode", "params": [HUB]}] * 200).encode()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await send_for_ever(stream, post(body))

    async def send_for_ever(stream: trio.SocketStream, data: bytes) -> None:
        while True:
            await stream.send_all(data)

    async def with_hub(url: str, port: int) -> None:
        nonlocal HUB
        async with ChainClient(url) as client:
            HUB = (await client.call("dev_info"))["hub"]
        await use(url, port)

    HUB = ""
    with_chain(tmp_path, with_hub, HttpLimits(body_bytes=100_000, receive_s=0.3))


def test_a_client_that_goes_away_in_the_middle(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        for cut in range(1, len(post(ASK)), 5):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(post(ASK)[:cut])
            await stream.aclose()

    with_chain(tmp_path, use)


ENDLESS = json.dumps(
    [{"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [{"data": "0x5b5f56"}]}] * 100
).encode()


def test_endless_calls_hold_up_nobody_and_end_with_their_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = threading.Event(), threading.Event()
    outcome: list[object] = []
    answer = DevRpc.answer

    def watched(self: DevRpc, body: bytes, allowance: Allowance | None = None) -> bytes:
        if body != ENDLESS:
            return answer(self, body, allowance)
        began.set()
        try:
            data = answer(self, body, allowance)
        except BaseException as exc:
            outcome.append(exc)
            raise
        else:
            outcome.append(data)
            return data
        finally:
            ended.set()

    monkeypatch.setattr(DevRpc, "answer", watched)

    async def use(url: str, port: int) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(post(ENDLESS) + post(ASK))
            await trio.to_thread.run_sync(began.wait, 30)
            async with ChainClient(url) as client:
                for _ in range(3):
                    assert await client.chain_id() > 0
                    await client.call("dev_faucet", ["0x" + "11" * 20, hex(10**18), 5])
            assert not outcome  # the calls are still under way
        assert await trio.to_thread.run_sync(ended.wait, 30)
        assert [type(item) for item in outcome] == [ClientGone]

    with_chain(tmp_path, use, HttpLimits())


def test_a_journal_that_fails_ends_the_chain_though_its_client_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()

    def failing(self: DevRpc, body: bytes, allowance: Allowance | None = None) -> bytes:
        assert allowance is not None
        began.set()
        assert allowance.gone.wait(30)
        raise StorageError("the journal failed")

    async def main() -> None:
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                monkeypatch.setattr(DevRpc, "answer", failing)
                info = await nursery.start(serve_devchain, tmp_path / "chain")
                stream = await trio.open_tcp_stream("127.0.0.1", int(info.url.rsplit(":", 1)[1]))
                await stream.send_all(post(ASK))
                await trio.to_thread.run_sync(began.wait, 30)
                await stream.aclose()

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    assert caught.value.subgroup(StorageError) is not None


def test_a_taken_port_and_a_taken_directory_say_what_to_do(tmp_path: Path) -> None:
    async def use(url: str, port: int) -> None:
        with pytest.raises(PortInUse, match="give another --port"):
            await serve_devchain(tmp_path / "other", port=port)
        with pytest.raises(ProfileInUse, match="another --data-dir"):
            await serve_devchain(tmp_path / "chain")

    with_chain(tmp_path, use)


def at_endpoint(answer: bytes, *, timeout_s: float = 5, hold: bool = False) -> pytest.ExceptionInfo[ChainUnreachable]:
    """What a client meets at an endpoint that sends `answer`, and then closes or holds the connection."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        try:
            await stream.send_all(answer)
            if hold:
                await trio.sleep_forever()
        except trio.BrokenResourceError:
            pass
        await stream.aclose()

    async def main() -> None:
        with trio.fail_after(300):
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(trio.serve_tcp, handle, 0)
                port = listeners[0].socket.getsockname()[1]
                try:
                    async with ChainClient(f"http://127.0.0.1:{port}", timeout_s=timeout_s) as client:
                        await client.chain_id()
                finally:
                    nursery.cancel_scope.cancel()

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main)
    with pytest.raises(ChainUnreachable) as inner:
        raise caught.value.exceptions[0]
    return inner


HEAD = b"HTTP/1.1 %s\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "hold", "message"),
    [
        (b"", False, "broke off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", False, "broke off"),
        (b"", True, "did not answer within"),
        (HEAD % (b"200 OK", 100), True, "did not answer within"),
        (HEAD % (b"200 OK", 100), False, "broke off"),
        (HEAD % (b"200 OK", 15) + b"<html>hi</html>", False, "does not speak JSON-RPC"),
        (HEAD % (b"502 Bad Gateway", 4) + b"gone", False, "HTTP 502"),
        (HEAD % (b"404 Not Found", 0), False, "HTTP 404"),
        (HEAD % (b"301 Moved", 0), False, "HTTP 301"),
        (HEAD % (b"401 Unauthorized", 0), False, "wants other credentials"),
        (HEAD % (b"429 Too Many Requests", 0), False, "limits requests"),
        (HEAD % (b"200 OK", 20_000_000) + b"[" * 20_000_000, False, "sent more than"),
    ],
    ids=range(12),
)
def test_a_broken_endpoint_is_named_for_what_it_is(answer: bytes, hold: bool, message: str) -> None:
    caught = at_endpoint(answer, timeout_s=0.5 if hold else 5, hold=hold)
    assert message in str(caught.value)
    assert ";" in str(caught.value)  # and what to do


def test_nobody_there() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await listeners[0].aclose()
        async with ChainClient(f"http://127.0.0.1:{port}") as client:
            await client.chain_id()

    with pytest.raises(ChainUnreachable, match="start the chain"):
        trio.run(main)
