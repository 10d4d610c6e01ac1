"""The ways in which an endpoint fails, as errors of their own: what to do next differs from one to the other.

    ChainUnreachable
    ├── EndpointRefused     nobody listens at that address
    ├── EndpointUnknown     its name does not resolve
    ├── EndpointInsecure    TLS: a certificate that is not its own, expired or of nobody we trust
    ├── EndpointTimeout     no whole answer in time
    ├── EndpointStatus      an HTTP status that is no answer; has `status`
    │   └── RateLimited     too many requests; has `retry_after_s` where the endpoint says
    ├── NotJsonRpc          an answer, and not of an Ethereum node
    ├── AnswerTruncated     it broke off in the middle
    ├── AnswerTooLarge      more than we read
    └── HeadOutOfLine       its newest block is old, or lies behind one that it has shown before

A refusal of the node itself is an `RpcError` with its code; `FeeTooLow` is one that time or a higher fee mends. `NoGas`
is for the account's owner to mend.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from p2pcompute.errors import ChainError, ChainUnreachable, RpcError

if TYPE_CHECKING:
    import httpx

__all__ = [
    "LIMIT_EXCEEDED",
    "AnswerTooLarge",
    "AnswerTruncated",
    "EndpointInsecure",
    "EndpointRefused",
    "EndpointStatus",
    "EndpointTimeout",
    "EndpointUnknown",
    "FeeTooLow",
    "HeadOutOfLine",
    "NoGas",
    "NotJsonRpc",
    "RateLimited",
    "of_http",
    "of_status",
]

LIMIT_EXCEEDED: Final = -32005
"""The code of a rate limit in JSON-RPC errors (EIP-1474)."""

_MOST_RETRY_S: Final = 3_600


class EndpointRefused(ChainUnreachable):
    """Nobody listens at that address."""


class EndpointUnknown(ChainUnreachable):
    """The endpoint's name does not resolve."""


class EndpointInsecure(ChainUnreachable):
    """The endpoint's certificate does not hold, or it speaks no TLS."""


class EndpointTimeout(ChainUnreachable):
    """No whole answer in time."""


class EndpointStatus(ChainUnreachable):
    """An HTTP status that is no answer."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class RateLimited(EndpointStatus):
    """Too many requests. `retry_after_s` is what the endpoint asks for, or None."""

    def __init__(self, message: str, *, status: int = 429, retry_after_s: int | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, status=status)


class NotJsonRpc(ChainUnreachable):
    """An answer, and not of an Ethereum node."""


class AnswerTruncated(ChainUnreachable):
    """The answer broke off in the middle."""


class AnswerTooLarge(ChainUnreachable):
    """The answer is larger than what is read of one."""


class HeadOutOfLine(ChainUnreachable):
    """The endpoint's newest block is old, or far behind one that it has shown before: what it says of channels may
    be long past."""


class FeeTooLow(RpcError):
    """The endpoint does not keep a transaction that pays less than blocks, or another one for its nonce, do now."""


class NoGas(ChainError):
    """An account has too little of the chain's own coin to pay for a transaction. The message has the account."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and what groups among that hold."""
    stack, seen = [error], set[int]()
    while stack:
        inner = stack.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        yield inner
        if isinstance(inner, BaseExceptionGroup):
            stack += inner.exceptions
        stack += [cause for cause in (inner.__cause__, inner.__context__) if cause is not None]


def of_http(host: str, error: httpx.HTTPError | httpx.InvalidURL) -> ChainUnreachable:
    """Our error for one of httpx's. `host` is what may be shown of the URL."""
    import httpx

    if isinstance(error, httpx.ConnectError):
        causes = list(_causes(error))
        if any(isinstance(cause, socket.gaierror) for cause in causes):
            return EndpointUnknown(f"the name in {host} does not resolve; check the URL and this machine's DNS")
        for cause in causes:
            if isinstance(cause, ssl.SSLError):
                why = getattr(cause, "verify_message", "") or cause.reason or "it speaks no TLS"
                return EndpointInsecure(
                    f"{host} can't be trusted ({str(why).lower()}); check the URL, and that this machine's clock and "
                    "certificates are right"
                )
        return EndpointRefused(f"nothing answers at {host}; start the chain, or set the URL of one that runs")
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        return AnswerTruncated(f"{host} broke off in the middle of an answer; try again, or use another endpoint")
    return ChainUnreachable(f"{host} broke off ({type(error).__name__}); check the endpoint, or try again")


def of_status(host: str, status: int, headers: Mapping[str, str]) -> EndpointStatus | None:
    """Our error for an HTTP status; None where the body may be an answer, as some endpoints send with 4xx and 5xx."""
    if status in (401, 403):
        return EndpointStatus(f"{host} wants other credentials (HTTP {status}); check the URL's key", status=status)
    if 300 <= status < 400:
        return EndpointStatus(
            f"{host} sends us elsewhere (HTTP {status}), which is not followed; set the URL that it names",
            status=status,
        )
    if status == 429:
        given = headers.get("retry-after", "")
        retry_after_s = min(int(given), _MOST_RETRY_S) if given.isascii() and given.isdigit() else None
        wait = f"wait {retry_after_s} s" if retry_after_s else "wait"
        return RateLimited(
            f"{host} limits requests (HTTP 429); {wait}, or use another endpoint", retry_after_s=retry_after_s
        )
    return None
