"""The client against endpoints that answer whatever they like, in place of a socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from p2pcompute.chain import ChainClient, HubClient, RateLimited, ReceiptTimeout
from p2pcompute.chain._client import Holdings
from p2pcompute.errors import ChainError, ChainUnreachable, ConfigError, RpcError, TransactionFailed, WrongChain
from p2pcompute_protocols.ids import Address, ChannelId

HUB, TOKEN = Address(b"\x01" * 20), Address(b"\x02" * 20)
RAW = b"\x02raw"


def client_of(respond: Callable[[str, list[Any]], Any], **options: Any) -> ChainClient:
    """A client of an endpoint that answers with `respond(method, params)`; an exception becomes an error."""

    def one(request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        if request["method"] == "eth_chainId":
            return {**answer, "result": "0x5"}
        try:
            return {**answer, "result": respond(request["method"], request["params"])}
        except RpcError as exc:
            return {**answer, "error": {"code": exc.code, "message": str(exc)}}

    async def exchange(body: bytes) -> bytes:
        message = json.loads(body)
        return json.dumps([one(r) for r in message] if isinstance(message, list) else one(message)).encode()

    return ChainClient("test", exchange=exchange, **options)


def refuse(message: str, code: int = -32000) -> Callable[[str, list[Any]], Any]:
    def respond(method: str, params: list[Any]) -> Any:
        raise RpcError(message, code=code)

    return respond


def asked(client: ChainClient, method: str = "eth_blockNumber") -> Any:
    async def main() -> Any:
        async with client:
            return await client.call(method)

    return trio.run(main)


def answers(text: str | bytes) -> ChainClient:
    async def exchange(body: bytes) -> bytes:
        return text.encode() if isinstance(text, str) else text

    return ChainClient("test", exchange=exchange)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ChainUnreachable, "does not speak JSON-RPC"),
        ("<html>hello</html>", ChainUnreachable, "does not speak JSON-RPC"),
        ("5", ChainUnreachable, "does not speak JSON-RPC"),
        ("{}", ChainUnreachable, "does not speak JSON-RPC"),
        ('{"id":1,"result":"0x1","error":{"code":1,"message":"x"}}', ChainUnreachable, "does not speak"),
        (b"[" * 100_000, ChainUnreachable, "does not speak JSON-RPC"),
        (b"\xff", ChainUnreachable, "does not speak JSON-RPC"),
        ("[]", ChainUnreachable, "left out 1 of 1"),
        ('{"jsonrpc":"2.0","id":99,"result":"0x1"}', ChainUnreachable, "was not made"),
        ('{"jsonrpc":"2.0","id":"1","result":"0x1"}', ChainUnreachable, "was not made"),
        ('{"jsonrpc":"2.0","id":true,"result":"0x1"}', ChainUnreachable, "was not made"),
        ('[{"id":1,"result":"0x1"},{"id":1,"result":"0x1"}]', ChainUnreachable, "was not made"),
        ('{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"slow down"}}', RateLimited, "slow down"),
        ('{"jsonrpc":"2.0","id":1,"error":"no"}', RpcError, "refused: 'no'"),
        ('{"jsonrpc":"2.0","id":1,"error":{"code":"x","message":5}}', RpcError, "refused"),
        ('{"jsonrpc":"2.0","id":1,"result":"five"}', ChainUnreachable, "for a number"),
        ('{"jsonrpc":"2.0","id":1,"result":null}', ChainUnreachable, "for a number"),
        ('{"jsonrpc":"2.0","id":1,"result":"0x' + "f" * 100 + '"}', ChainUnreachable, "for a number"),
    ],
)
def test_strange_answers(text: str | bytes, error: type[ChainError], message: str) -> None:
    with pytest.raises(error, match=message):
        asked(answers(text))


def test_another_chain_is_refused_before_anything_is_asked() -> None:
    seen: list[str] = []

    def respond(method: str, params: list[Any]) -> Any:
        seen.append(method)
        return "0x1"

    with pytest.raises(WrongChain, match="serves chain 5, not 1"):
        asked(client_of(respond, expected_chain_id=1))
    assert seen == []
    assert asked(client_of(respond, expected_chain_id=5)) == "0x1"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8545", "ftp://x", "http://", "http://x:99999", "http://[::1", "ws://x"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="write it like"):
        ChainClient(url)


def test_a_secret_in_the_url_is_not_shown() -> None:
    async def main() -> None:
        async with ChainClient("http://user:hunter2@127.0.0.1:9/v3/sesame?key=open", timeout_s=5) as client:
            await client.call("eth_blockNumber")

    with pytest.raises(ChainUnreachable) as caught:
        trio.run(main)
    assert "127.0.0.1:9" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("hunter2", "sesame", "open"))


def with_hub(respond: Callable[[str, list[Any]], Any], use: Callable[[HubClient], Any]) -> Any:
    async def main() -> Any:
        async with client_of(respond) as client:
            return await use(HubClient(client, HUB, TOKEN))

    return trio.run(main)


@pytest.mark.parametrize(
    "message", ["already known", "ALREADYKNOWN", "Known transaction", "transaction already imported"]
)
def test_sending_again_is_harmless(message: str) -> None:
    sent = with_hub(refuse(message), lambda hub: hub.send_raw(RAW))
    assert len(sent) == 32


def test_a_mined_transaction_can_be_sent_again() -> None:
    def respond(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            raise RpcError("nonce too low: next nonce 5, tx nonce 4")
        return {"hash": params[0]}

    assert len(with_hub(respond, lambda hub: hub.send_raw(RAW))) == 32


def test_a_nonce_that_another_transaction_has_used_is_final() -> None:
    def respond(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            raise RpcError("nonce too low")
        return None

    with pytest.raises(TransactionFailed, match="never be mined"):
        with_hub(respond, lambda hub: hub.send_raw(RAW))


def test_other_refusals_stay_what_they_are() -> None:
    with pytest.raises(RpcError, match="insufficient funds") as caught:
        with_hub(refuse("insufficient funds"), lambda hub: hub.send_raw(RAW))
    assert caught.value.code == -32000


@pytest.mark.parametrize("output", ["0x", "0x00", "0x" + "00" * 64, 5, None, "hello"])
def test_an_address_without_a_hub(output: Any) -> None:
    with pytest.raises(ChainUnreachable, match=r"hub|Ethereum node"):
        with_hub(lambda m, p: output, lambda hub: hub.channel_state(ChannelId(bytes(32))))


def test_many_channels_take_few_exchanges() -> None:
    word = "0x" + "".join(n.to_bytes(32, "big").hex() for n in (7, 3, 1))
    states = with_hub(lambda m, p: word, lambda hub: hub.channel_states([ChannelId(bytes(32))] * 250))
    assert len(states) == 250
    assert (states[0].deposit_uusd, states[0].claimed_uusd, states[0].close_at_s) == (7, 3, 1)
    assert states[0].open_uusd == 4


def test_what_an_account_has_is_one_question() -> None:
    def respond(method: str, params: list[Any]) -> str:
        if method == "eth_getBalance":
            return "0x5"
        return "0x" + (6 if params[0]["to"] == "0x" + TOKEN.hex() else 7).to_bytes(32, "big").hex()

    asked: list[int] = []
    client = client_of(respond)
    ask = client.batch

    async def batch(requests: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        asked.append(len(requests))
        return await ask(requests)

    async def main() -> Holdings:
        async with client:
            client.batch = batch  # type: ignore[method-assign]
            return await HubClient(client, HUB, TOKEN).holdings(Address(bytes(20)))

    assert trio.run(main) == Holdings(wei=5, token_uusd=6, free_uusd=7)
    assert asked == [3]


@pytest.mark.parametrize("refused", ["eth_getBalance", "eth_call"])
def test_what_an_account_has_is_not_made_up(refused: str) -> None:
    def respond(method: str, params: list[Any]) -> str:
        if method == refused:
            raise RpcError("not now", code=-32000)
        return "0x" + bytes(32).hex()

    with pytest.raises(ChainError, match="not now"):
        with_hub(respond, lambda hub: hub.holdings(Address(bytes(20))))


def test_waiting_for_a_receipt_takes_virtual_time() -> None:
    receipt = {"logs": [], "gasUsed": "0x1", "blockNumber": "0x3", "status": "0x1", "effectiveGasPrice": "0x2"}
    blocks = iter(range(3, 100))

    def respond(method: str, params: list[Any]) -> Any:
        if method == "eth_blockNumber":
            return hex(next(blocks))
        return receipt if respond.calls.pop() else None  # type: ignore[attr-defined]

    respond.calls = [1, 1, 1, 0, 0]  # type: ignore[attr-defined]

    async def main() -> None:
        async with client_of(respond) as client:
            hub = HubClient(client, HUB, TOKEN)
            found = await hub.wait_receipt(bytes(32), 60, confirmations=3)
            assert (found.block, found.fee_wei) == (3, 2)
            assert next(blocks) == 6

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_receipt_that_does_not_come() -> None:
    async def main() -> None:
        async with client_of(lambda m, p: None) as client:
            await HubClient(client, HUB, TOKEN).wait_receipt(bytes(32), 3600)

    with pytest.raises(ReceiptTimeout, match="send the same bytes again"):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_transaction_that_reverted() -> None:
    receipt = {"logs": [], "gasUsed": "0x1", "blockNumber": "0x3", "status": "0x0", "effectiveGasPrice": "0x2"}
    with pytest.raises(TransactionFailed, match="reverted in block 3"):
        with_hub(lambda m, p: receipt, lambda hub: hub.wait_receipt(bytes(32), 1))


@pytest.mark.parametrize("receipt", [{}, [], "0x", {"logs": []}, {"logs": [{}], "gasUsed": "0x1"}])
def test_a_receipt_that_is_none(receipt: Any) -> None:
    with pytest.raises(ChainUnreachable):
        with_hub(lambda m, p: receipt, lambda hub: hub.receipt(bytes(32)))


def test_fees_leave_room_for_the_base_fee_to_double() -> None:
    def respond(method: str, params: list[Any]) -> Any:
        return {"baseFeePerGas": "0x64"} if method == "eth_getBlockByNumber" else "0x3"

    fees = with_hub(respond, lambda hub: hub.fees())
    assert (fees.max_wei, fees.priority_wei) == (203, 3)
    with pytest.raises(ChainUnreachable, match="EIP-1559"):
        with_hub(lambda m, p: {} if m == "eth_getBlockByNumber" else "0x3", lambda hub: hub.fees())
