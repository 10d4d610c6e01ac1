"""Every way in which an endpoint fails, over real sockets: an error of its own, that says what to do."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from p2pcompute.chain import (
    AnswerTooLarge,
    AnswerTruncated,
    ChainClient,
    EndpointInsecure,
    EndpointRefused,
    EndpointStatus,
    EndpointTimeout,
    EndpointUnknown,
    NotJsonRpc,
    RateLimited,
)
from p2pcompute.errors import ChainUnreachable, RpcError, WrongChain

pytestmark = pytest.mark.net

Handler = Callable[[trio.SocketStream], Awaitable[None]]


def http(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def says(answer: bytes) -> Handler:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(65_536)
        with suppress(trio.BrokenResourceError):  # the client has read enough
            await stream.send_all(answer)
        await stream.aclose()

    return handle


async def says_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def drips(stream: trio.SocketStream) -> None:
    await stream.receive_some(65_536)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        await stream.send_all(b"{")
        await trio.sleep(0.01)


async def hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some(65_536)
    await stream.aclose()


def ask(handler: Handler, *, scheme: str = "http", **options: Any) -> Any:
    """What a client makes of an endpoint."""

    async def main() -> Any:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            port = listeners[0].socket.getsockname()[1]
            async with ChainClient(f"{scheme}://127.0.0.1:{port}", **options) as client:
                try:
                    return await client.call("eth_blockNumber")
                except Exception as exc:  # noqa: BLE001  it is what is looked at
                    return exc
                finally:
                    nursery.cancel_scope.cancel()

    return trio.run(main)


RESULT = b'{"jsonrpc":"2.0","id":1,"result":"0x5"}'


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (http("500 Internal Server Error", b"<html>"), EndpointStatus, "HTTP 500"),
        (http("502 Bad Gateway", b""), EndpointStatus, "HTTP 502"),
        (http("404 Not Found", b"page not found"), EndpointStatus, "HTTP 404"),
        (http("401 Unauthorized", b"{}"), EndpointStatus, "the URL's key"),
        (http("403 Forbidden", b"{}"), EndpointStatus, "the URL's key"),
        (http("302 Found", b"", "Location: http://127.0.0.1:1/"), EndpointStatus, "not followed"),
        (http("429 Too Many Requests", b""), RateLimited, "wait, or use another"),
        (http("429 Too Many Requests", RESULT, "Retry-After: 7"), RateLimited, "wait 7 s"),
        (http("200 OK", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"slow"}}'), RateLimited, "slow"),
        (http("200 OK", b"<html>hello</html>"), NotJsonRpc, "does not speak JSON-RPC"),
        (http("200 OK", b""), NotJsonRpc, "does not speak JSON-RPC"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", AnswerTruncated, "broke off"),
        (http("200 OK", RESULT, length=500), AnswerTruncated, "broke off in the middle"),
        (http("200 OK", RESULT[:-5]), AnswerTruncated, "broke off in the middle"),
        (http("200 OK", RESULT[:20]), AnswerTruncated, "broke off in the middle"),
        (http("200 OK", b"[" + b" " * (17 * 1024 * 1024)), AnswerTooLarge, "sent more than"),
        (http("200 OK", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no"}}'), RpcError, "refused: no"),
        (http("400 Bad Request", b'{"id":1,"error":{"code":-32600,"message":"bad"}}'), RpcError, "refused: bad"),
    ],
)
def test_what_an_endpoint_says(answer: bytes, error: type[Exception], words: str) -> None:
    raised = ask(says(answer))
    assert type(raised) is error, raised
    assert words in str(raised)
    assert "127.0.0.1" in str(raised)


def test_what_a_rate_limit_asks_for_is_kept() -> None:
    assert ask(says(http("429 Too Many Requests", b"", "Retry-After: 7"))).retry_after_s == 7
    assert ask(says(http("429 Too Many Requests", b"", "Retry-After: 99999999"))).retry_after_s == 3_600
    assert ask(says(http("429 Too Many Requests", b"", "Retry-After: tomorrow"))).retry_after_s is None
    assert ask(says(http("503 Service Unavailable", b""))).status == 503


@pytest.mark.parametrize("handler", [says_nothing, drips])
def test_no_whole_answer_in_time(handler: Handler) -> None:
    raised = ask(handler, timeout_s=0.5)
    assert type(raised) is EndpointTimeout
    assert "did not answer within 0.5 s" in str(raised)


def test_one_that_hangs_up() -> None:
    assert type(ask(hangs_up)) is AnswerTruncated


def test_one_that_speaks_no_tls() -> None:
    raised = ask(says(http("200 OK", RESULT)), scheme="https")
    assert type(raised) is EndpointInsecure
    assert "can't be trusted" in str(raised)


def test_nobody_there() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        port = listener.getsockname()[1]

        async def main() -> None:
            async with ChainClient(f"http://127.0.0.1:{port}") as client:
                await client.call("eth_blockNumber")

        with pytest.raises(EndpointRefused, match="nothing answers"):
            trio.run(main)


def test_a_name_that_does_not_resolve() -> None:
    class Nobody(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *args: Any, **options: Any) -> Any:
            raise AssertionError

    async def main() -> None:
        trio.socket.set_custom_hostname_resolver(Nobody())
        async with ChainClient("http://chain.example/v3/secret") as client:
            await client.call("eth_blockNumber")

    with pytest.raises(EndpointUnknown, match="does not resolve") as raised:
        trio.run(main)
    assert "secret" not in str(raised.value)


def test_another_chain() -> None:
    raised = ask(says(http("200 OK", RESULT)), expected_chain_id=6)
    assert type(raised) is WrongChain
    assert "serves chain 5, not 6" in str(raised)


def test_all_that_may_pass_are_one_kind() -> None:
    """Whoever tries again later need know one name only."""
    for error in (
        AnswerTooLarge, AnswerTruncated, EndpointInsecure, EndpointRefused, EndpointStatus, EndpointTimeout,
        EndpointUnknown, NotJsonRpc, RateLimited,
    ):  # fmt: skip
        assert issubclass(error, ChainUnreachable)
        assert not issubclass(error, RpcError)
