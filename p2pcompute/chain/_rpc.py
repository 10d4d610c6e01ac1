"""JSON-RPC to any EVM endpoint, over httpx on trio. Nothing an endpoint answers is taken on trust.

Sources: the JSON-RPC 2.0 specification; ethereum/execution-apis.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import sys
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from p2pcompute.errors import ChainUnreachable, ConfigError, RpcError, WrongChain

from ._endpoint import shown_endpoint
from ._faults import (
    LIMIT_EXCEEDED,
    AnswerTooLarge,
    AnswerTruncated,
    EndpointStatus,
    EndpointTimeout,
    NotJsonRpc,
    RateLimited,
    of_http,
    of_status,
)

if TYPE_CHECKING:
    import httpx

__all__ = ["ChainClient", "Exchange", "hex_bytes", "hex_int"]

Exchange = Callable[[bytes], Awaitable[bytes]]
"""Takes a request's body to an endpoint and brings the answer's back."""

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
MAX_BATCH_REQUESTS: Final = 100
DEFAULT_TIMEOUT_S: Final = 20.0


def _load_httpx() -> None:
    """httpx without its command: it does without where what that needs is missing, of which rich, click and pygments
    are 5 MB."""
    if "httpx" in sys.modules:
        return
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        importlib.import_module("httpx")
    finally:
        del sys.modules["httpx._main"]


def hex_int(value: Any) -> int:
    """A number in an endpoint's answer.

    Raises:
        ChainUnreachable: it is not one.
    """
    try:
        if isinstance(value, str) and value[:2] == "0x" and len(value) <= 66:
            return int(value, 16)
    except ValueError:
        pass
    raise NotJsonRpc(f"the endpoint gave {_shorten(value)} for a number; is it an Ethereum node?")


def hex_bytes(value: Any) -> bytes:
    """Bytes in an endpoint's answer.

    Raises:
        ChainUnreachable: they are none.
    """
    try:
        if isinstance(value, str) and value[:2] == "0x":
            return bytes.fromhex(value[2:])
    except ValueError:
        pass
    raise NotJsonRpc(f"the endpoint gave {_shorten(value)} for bytes; is it an Ethereum node?")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class ChainClient:
    """One EVM endpoint. An async context manager; safe to share between tasks.

    Opening it sends nothing. The chain ID is asked for with the first request, once.

    Args:
        url: http or https URL of the endpoint. Only its host and port appear in errors: the rest may be secret.
        expected_chain_id: refuse any other chain; None takes the chain that is there.
        timeout_s: the longest that one exchange may take.
        exchange: reaches the endpoint in some other way than HTTP (a chain in this process, say).

    Raises:
        ConfigError: the URL is not one.
    """

    def __init__(
        self,
        url: str,
        *,
        expected_chain_id: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        exchange: Exchange | None = None,
    ) -> None:
        self._url = url
        if exchange is None:
            _parts(url)
        self._host = url if exchange else shown_endpoint(url)
        self._expected_chain_id = expected_chain_id
        self._timeout_s = timeout_s
        self._exchange = exchange
        self._http: httpx.AsyncClient | None = None
        self._chain_id: int | None = None
        self._next_id = 1
        self._takes_batches = True

    async def __aenter__(self) -> Self:
        if self._exchange is None:
            _load_httpx()  # a tenth of a second that only users of a chain should pay
            import httpx

            # A proxy from the environment would send requests for this machine elsewhere.
            self._http = httpx.AsyncClient(
                timeout=self._timeout_s,
                trust_env=not _is_loopback(self._url),
                follow_redirects=False,
                limits=httpx.Limits(max_connections=8, keepalive_expiry=20),
                headers={"content-type": "application/json", "accept-encoding": "identity"},
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    async def chain_id(self) -> int:
        """The endpoint's chain ID.

        Raises:
            WrongChain: it is not the expected one.
            ChainUnreachable, RpcError: see `call`.
        """
        if self._chain_id is None:
            (answer,) = await self._round([("eth_chainId", [])])
            if isinstance(answer, RpcError):
                raise answer
            found = hex_int(answer)
            if self._expected_chain_id not in (None, found):
                raise WrongChain(
                    f"{self._host} serves chain {found}, not {self._expected_chain_id}; set the URL of an "
                    "endpoint of the chain that this profile uses"
                )
            self._chain_id = found
        return self._chain_id

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        """Send one request; its result, as JSON gives it.

        Raises:
            ChainUnreachable: no answer, or none that is JSON-RPC; `_faults` has an error for each way.
            WrongChain: see `chain_id`.
            RpcError: the endpoint answered with an error.
        """
        (answer,) = await self.batch([(method, params)])
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def batch(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Send many requests at once, a hundred to an exchange; one by one to an endpoint that takes no batches.

        Returns:
            For each its result, or the `RpcError` that it met.

        Raises:
            ChainUnreachable: no answer, or none that is JSON-RPC.
            WrongChain: see `chain_id`.
        """
        await self.chain_id()
        answers: list[Any] = []
        for start in range(0, len(requests), MAX_BATCH_REQUESTS):
            answers += await self._round_or_singles(requests[start : start + MAX_BATCH_REQUESTS])
        return answers

    async def _round_or_singles(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        if self._takes_batches or len(requests) == 1:
            answers = await self._round(requests)
            refused_whole = all(isinstance(answer, RpcError) and answer is answers[0] for answer in answers)
            if len(requests) == 1 or not refused_whole:
                return answers
            self._takes_batches = False
        return [(await self._round([request]))[0] for request in requests]

    async def _round(self, requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        first = self._next_id
        self._next_id += len(requests)
        messages = [
            {"jsonrpc": "2.0", "id": first + i, "method": method, "params": list(params)}
            for i, (method, params) in enumerate(requests)
        ]
        # A single request goes alone: some endpoints take no batches.
        content = json.dumps(messages if len(messages) > 1 else messages[0], separators=(",", ":"), allow_nan=False)
        body = await self._send(content.encode())
        try:
            answer = json.loads(body)
        except json.JSONDecodeError as exc:
            if body[:1] in (b"{", b"[") and (exc.pos >= len(exc.doc.rstrip()) or exc.msg.startswith("Unterminated")):
                raise AnswerTruncated(
                    f"{self._host} broke off in the middle of an answer; try again, or use another endpoint"
                ) from exc
            raise self._not_json_rpc(body) from exc
        except (ValueError, RecursionError) as exc:
            raise self._not_json_rpc(body) from exc
        by_id: dict[int, Any] = {}
        for item in answer if isinstance(answer, list) else [answer]:
            if not isinstance(item, dict) or ("result" in item) == ("error" in item and item["error"] is not None):
                raise self._not_json_rpc(body)
            number = item.get("id")
            if number is None and "result" not in item and not isinstance(answer, list):
                # It could not even read the request (a rate limit, a batch too large): that goes for all.
                return [self._refusal(item["error"])] * len(requests)
            if type(number) is not int or not first <= number < first + len(requests) or number in by_id:
                raise ChainUnreachable(
                    f"{self._host} answered a request that was not made (id {_shorten(number)}); something "
                    "between here and the endpoint mixes answers up: use another endpoint"
                )
            by_id[number] = item["result"] if "result" in item else self._refusal(item["error"])
        if len(by_id) != len(requests):
            raise ChainUnreachable(
                f"{self._host} left out {len(requests) - len(by_id)} of {len(requests)} answers; use another endpoint"
            )
        return [by_id[first + i] for i in range(len(requests))]

    async def _send(self, content: bytes) -> bytes:
        if self._exchange is not None:
            return await self._exchange(content)
        if self._http is None:
            raise RuntimeError("open the ChainClient with `async with` before using it")
        import httpx

        headers: Mapping[str, str] = {}
        try:
            # httpx's own limit is for each read: an endpoint that drips would hold us for ever.
            body, status = bytearray(), 0
            with trio.fail_after(self._timeout_s), trio.CancelScope() as enough:
                async with self._http.stream("POST", self._url, content=content) as response:
                    async for piece in response.aiter_raw():
                        body += piece
                        if len(body) > MAX_ANSWER_BYTES:
                            # Leaving the loop would leave httpx's generators behind; cancellation ends them.
                            enough.cancel()
                    status, headers = response.status_code, response.headers
        except (trio.TooSlowError, httpx.TimeoutException) as exc:
            raise EndpointTimeout(
                f"{self._host} did not answer within {self._timeout_s:g} s; check the endpoint, or try again"
            ) from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise of_http(self._host, exc) from exc
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerTooLarge(
                f"{self._host} sent more than {MAX_ANSWER_BYTES} bytes; ask for less at once, or use another endpoint"
            )
        fault = of_status(self._host, status, headers)
        if fault is not None:
            raise fault
        if not bytes(body[:64]).lstrip().startswith((b"{", b"[")):
            if status >= 400:
                raise EndpointStatus(
                    f"{self._host} answers with HTTP {status}; try again, or check that the URL is that of an "
                    "Ethereum endpoint",
                    status=status,
                )
            raise self._not_json_rpc(bytes(body), status)
        return bytes(body)

    def _refusal(self, error: Any) -> RpcError:
        """The node's own error, to be raised by who asked. A rate limit is raised here: it goes for every request."""
        if not isinstance(error, dict):
            return RpcError(f"{self._host} refused: {_shorten(error)}")
        code, message = error.get("code"), error.get("message")
        text = message if isinstance(message, str) else _shorten(error)
        if code == LIMIT_EXCEEDED:
            raise RateLimited(f"{self._host} limits requests ({text[:200]}); wait, or use another endpoint", status=200)
        return RpcError(f"{self._host} refused: {text[:500]}", code=code if type(code) is int else 0)

    def _not_json_rpc(self, body: bytes, status: int = 200) -> NotJsonRpc:
        shown = body[:60].decode("ascii", "replace").strip()
        return NotJsonRpc(
            f"{self._host} does not speak JSON-RPC (HTTP {status}, it said {shown!r}); check that the URL is "
            "that of an Ethereum endpoint"
        )


def _parts(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError("the chain's URL is not an http or https URL; write it like http://127.0.0.1:8545")
    return parts


def _is_loopback(url: str) -> bool:
    host = _parts(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
