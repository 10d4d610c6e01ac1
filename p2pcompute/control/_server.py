"""The control API of a running node: HTTP/1.1 over a Unix socket that only its owner can open."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qsl

import h11
import trio

from p2pcompute.errors import ConfigError, P2PComputeError

from ._money import MONEY_ANSWERS, ON_CHAIN, MoneyOnChain
from ._peers import PeerWatch
from ._report import node_status
from ._socket import socket_address

if TYPE_CHECKING:
    from p2pcompute.node import Node

__all__ = ["Answer", "Fields", "Routes", "node_routes", "serve_control", "serve_routes"]

_log = logging.getLogger("p2pcompute.control")

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
MAX_CLIENTS: Final = 16
REQUEST_S: Final = 5.0
ANSWER_S: Final = 10.0
CHAIN_S: Final = 150.0  # of what waits for a transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a route gives back."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200

    @classmethod
    def of(cls, value: object, *, status: int = 200) -> Answer:
        """`value` as JSON."""
        return cls(body=json.dumps(value, ensure_ascii=False).encode() + b"\n", status=status)


Fields = Mapping[str, Any]
"""What a request says: the fields of its JSON body, and of its query, as text."""
Routes = Mapping[tuple[str, str], Callable[[Fields], Awaitable[Answer]]]


def node_routes(node: Node) -> Routes:
    """GET /status, GET /peers, GET /metrics, POST /drain, and those of `money_routes`."""
    watch = PeerWatch(node)

    async def status(_: Fields) -> Answer:
        return Answer.of(await node_status(node))

    async def peers(fields: Fields) -> Answer:
        return Answer.of(await watch.peers(ping=str(fields.get("ping", "1")) != "0"))

    async def metrics(_: Fields) -> Answer:
        from ._metrics import metrics_text  # prometheus_client comes when somebody asks

        text = metrics_text(await node_status(node), node.services.overlay)
        return Answer(body=text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8")

    async def drain(_: Fields) -> Answer:
        role = node.provider
        if role is None:
            return Answer.of({"error": "this node lends nothing, so there is nothing to drain"}, status=409)
        role.drain(node.services.ad_service.changed)
        return Answer.of({"draining": True, "active_tasks": len(role.tasks.active)})

    return {
        ("GET", "/status"): status,
        ("GET", "/peers"): peers,
        ("GET", "/metrics"): metrics,
        ("POST", "/drain"): drain,
        **{target: _answering(partial(answer, _money(node))) for target, answer in MONEY_ANSWERS.items()},
    }


def _money(node: Node) -> MoneyOnChain:
    services, terms = node.services, node.services.hub.terms
    return MoneyOnChain(
        wallet=node.money,
        account=node.money.address,
        ledger=services.ledger,
        network=node.network,
        chain_url=services.chain_url,
        chain_id=terms.chain_id,
        hub=bytes(terms.hub),
        staking=node.staking,
    )


def _answering(ask: Callable[[Fields], Awaitable[object]]) -> Callable[[Fields], Awaitable[Answer]]:
    """A route of what gives plain values; what the asker can mend is said to it."""

    async def answer(fields: Fields) -> Answer:
        try:
            return Answer.of(await ask(fields))
        except P2PComputeError as exc:
            return Answer.of({"error": str(exc), "kind": type(exc).__name__}, status=409)

    return answer


async def serve_control(
    node: Node, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> NoReturn:
    """Answer `p2pcompute status` and its like until cancelled.

    Args:
        node: whose.
        path: of the socket; its mode is 0600. One that a dead process left behind is replaced: whoever calls this
            holds the profile's ledger, so nobody else serves there.

    Raises:
        ConfigError: the socket can't be made there.
    """
    await serve_routes(node_routes(node), path, task_status=task_status)


async def serve_routes(
    routes: Routes,
    path: Path,
    *,
    max_clients: int = MAX_CLIENTS,
    request_s: float = REQUEST_S,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """As `serve_control`, for any routes. One request a connection; what is over `max_clients` is turned away."""
    listener = _listen(path)
    identity = os.stat(path, follow_symlinks=False)
    clients: set[object] = set()

    async def handle(stream: trio.SocketStream) -> None:
        me = object()
        try:
            if not _is_owner(stream.socket):
                return
            if len(clients) >= max_clients:
                with trio.move_on_after(request_s):
                    await _send(stream, h11.Connection(h11.SERVER), _error(503, "too many clients at once"))
                return
            clients.add(me)
            await _serve_client(stream, routes, request_s)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left
        finally:
            clients.discard(me)
            await trio.aclose_forcefully(stream)

    try:
        await trio.serve_listeners(handle, [listener], task_status=_started(task_status))
    finally:
        _remove(path, identity)
    raise AssertionError("unreachable")


class _started:  # noqa: N801  an adapter that reads as a call
    """Reports None where `trio.serve_listeners` reports its listeners."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, value: object = None) -> None:
        del value
        self._task_status.started()


def _listen(path: Path) -> trio.SocketListener:
    """A listening socket at `path`, in one step for whoever looks: it appears with its mode set."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.sock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(temporary) as address:
                sock.bind(address)
            temporary.chmod(0o600)
            sock.listen(64)
            temporary.replace(path)
        except BaseException:
            sock.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as exc:
        raise ConfigError(
            f"the control socket {path} can't be made ({exc.strerror}); put P2PCOMPUTE_HOME on a file system that "
            "takes sockets, in a directory of yours"
        ) from exc
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _remove(path: Path, identity: os.stat_result) -> None:
    """Take our own socket away, not one that somebody has put in its place."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (identity.st_dev, identity.st_ino):
            path.unlink()


def _is_owner(sock: trio.socket.SocketType) -> bool:
    """Whether the client runs as our user, or as root: a mode can be changed, what the kernel says can't."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (os.geteuid(), 0)


def _error(status: int, message: str) -> Answer:
    return Answer.of({"error": message}, status=status)


async def _serve_client(stream: trio.SocketStream, routes: Routes, request_s: float) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    answer: Answer | None = None
    try:
        with trio.fail_after(request_s):
            asked = await _read_request(stream, connection)
    except h11.RemoteProtocolError as exc:
        answer = _error(exc.error_status_hint, f"not a request: {exc}")
    except trio.TooSlowError:
        answer = _error(408, f"no whole request within {request_s:g} s")
    else:
        if asked is None:
            return
        answer = await _route(*asked, routes)
    with trio.move_on_after(request_s):
        await _send(stream, connection, answer)


async def _read_request(stream: trio.SocketStream, connection: h11.Connection) -> tuple[h11.Request, bytes] | None:
    """The head of a request and its body; None where the client has left."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(4096))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            return None if request is None else (request, bytes(body))
        else:
            return None


def _fields(query: str, body: bytes) -> dict[str, Any] | None:
    """What a request says; None where its body is no JSON object."""
    fields: dict[str, Any] = dict(parse_qsl(query))
    if body:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(said, dict):
            return None
        fields.update(said)
    return fields


async def _route(request: h11.Request, body: bytes, routes: Routes) -> Answer:
    method = request.method.decode("ascii", "replace")
    target, _, query = request.target.decode("ascii", "replace").partition("?")
    route = routes.get((method, target))
    if route is None:
        methods = sorted(other for other, path in routes if path == target)
        if methods:
            return _error(405, f"{target} takes {', '.join(methods)}")
        known = ", ".join(f"{other} {path}" for other, path in sorted(routes))
        return _error(404, f"there is {known}")
    fields = _fields(query, body)
    if fields is None:
        return _error(400, "the body is not a JSON object")
    answer_s = CHAIN_S if target in ON_CHAIN else ANSWER_S
    try:
        with trio.fail_after(answer_s):
            return await route(fields)
    except trio.TooSlowError:
        return _error(503, f"no answer within {answer_s:g} s; the node is busy")
    except Exception:  # noqa: BLE001  a fault of one answer is not the node's end
        _log.warning("the control API failed at %s %s", method, target, exc_info=True)
        return _error(500, "the node failed at this request; its log says more")


async def _send(stream: trio.SocketStream, connection: h11.Connection, answer: Answer) -> None:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Connection", "close"),
    ]
    pieces = (
        h11.Response(status_code=answer.status, headers=headers),
        h11.Data(data=answer.body),
        h11.EndOfMessage(),
    )
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    await stream.send_all(b"".join(connection.send(piece) or b"" for piece in pieces))
