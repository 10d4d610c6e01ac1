"""Asking a running node."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h11
import trio

from p2pcompute import errors
from p2pcompute.errors import ConfigError

from ._socket import socket_address

__all__ = ["NoNode", "ask"]

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024


class NoNode(ConfigError):
    """No node answers at this socket."""


async def ask(
    path: Path, target: str, *, method: str = "GET", fields: Mapping[str, Any] | None = None, timeout_s: float = 10.0
) -> Any:
    """What the node that serves its control API at `path` answers: parsed JSON, or text for ``/metrics``.

    Args:
        path: of the socket.
        target, method: what is asked; `fields` go with it, as JSON.
        timeout_s: for all of it.

    Raises:
        NoNode: nobody answers there.
        ConfigError: it refuses; the message is its own. Or it answers what no node answers.
        P2PComputeError: of the kind that the node met when it did what was asked.
    """
    content = b"" if fields is None else json.dumps(dict(fields)).encode()
    try:
        with trio.fail_after(timeout_s):
            status, content_type, body = await _exchange(path, target, method, content)
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NoNode(f"no node of this profile is running (nobody serves {path})") from exc
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
        raise NoNode(f"the node at {path} does not answer: {exc or type(exc).__name__}") from exc
    except h11.RemoteProtocolError as exc:
        raise ConfigError(f"{path} is not a node's control socket: {exc}") from exc
    text = body.decode("utf-8", "replace")
    if not content_type.startswith("application/json"):
        return text
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"the node at {path} answered something that is not JSON") from exc
    if status != 200:
        said = value if isinstance(value, dict) else {}
        kind = getattr(errors, str(said.get("kind")), None)
        if isinstance(kind, type) and issubclass(kind, errors.P2PComputeError):
            raise kind(str(said.get("error")))
        raise ConfigError(f"the node refuses {method} {target}: {said.get('error') or status}")
    return value


async def _exchange(path: Path, target: str, method: str, content: bytes) -> tuple[int, str, bytes]:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(path) as address, sock:
        await sock.connect(address)
        stream = trio.SocketStream(sock)
        connection = h11.Connection(h11.CLIENT)
        headers = [("Host", "node"), ("Connection", "close"), ("Content-Length", str(len(content)))]
        request = connection.send(h11.Request(method=method, target=target, headers=headers))
        body = connection.send(h11.Data(data=content)) if content else b""
        await stream.send_all((request or b"") + (body or b"") + (connection.send(h11.EndOfMessage()) or b""))
        status, content_type, said = 0, "", bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                found = [value for name, value in event.headers if name == b"content-type"]
                content_type = found[0].decode("ascii", "replace") if found else ""
            elif isinstance(event, h11.Data):
                said += event.data
                if len(said) > MAX_ANSWER_BYTES:
                    raise h11.RemoteProtocolError("the answer is too long")
            elif isinstance(event, h11.EndOfMessage):
                return status, content_type, bytes(said)
            else:
                raise h11.RemoteProtocolError("no answer")
