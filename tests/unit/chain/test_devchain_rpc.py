"""The development chain's JSON-RPC, bytes in and bytes out, without sockets or files."""

from __future__ import annotations

import json
from typing import Any

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcompute.chain._devchain_evm import BLOCK_GAS_LIMIT, CALL_GAS_LIMIT
from p2pcompute.chain._devchain_node import DEV_CHAIN_ID, DevNode
from p2pcompute.chain._devchain_rpc import MAX_BATCH_REQUESTS, DevRpc
from p2pcompute.chain._hub import encode_balance_of, encode_transfer
from p2pcompute.chain._tx import SignedTx, UnsignedTx, sign_transaction
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

KEY = coincurve.PrivateKey(keccak256(b"somebody"))
ADDRESS = address_of(KEY.public_key)
OTHER = "0x" + "11" * 20


class Rpc:
    """A new chain, and a way to ask it."""

    def __init__(self) -> None:
        self.node = DevNode(None, now_s=lambda: 1_800_000_000)
        self.rpc = DevRpc(self.node)

    def raw(self, body: bytes) -> Any:
        answer = self.rpc.answer(body)
        return json.loads(answer) if answer else None

    def ask(self, method: str, *params: Any) -> Any:
        answer = self.raw(json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).encode())
        assert answer["jsonrpc"] == "2.0"
        assert answer["id"] == 7
        return answer

    def get(self, method: str, *params: Any) -> Any:
        answer = self.ask(method, *params)
        assert "result" in answer, answer
        return answer["result"]

    def fault(self, method: str, *params: Any) -> tuple[int, str]:
        error = self.ask(method, *params)["error"]
        return error["code"], error["message"]

    def sign(self, to: Address | None = None, data: bytes = b"", **changes: Any) -> SignedTx:
        fields: dict[str, Any] = {
            "chain_id": DEV_CHAIN_ID,
            "nonce": int(self.get("eth_getTransactionCount", hexed(ADDRESS)), 16),
            "to": to,
            "data": data,
            "gas": 1_000_000,
            "max_fee_wei": 2 * 10**9,
            "priority_fee_wei": 0,
        }
        return sign_transaction(UnsignedTx(**(fields | changes)), KEY)


def hexed(value: bytes) -> str:
    return "0x" + value.hex()


@pytest.fixture
def rpc() -> Rpc:
    made = Rpc()
    made.get("dev_faucet", hexed(ADDRESS), hex(10**18), hex(1_000_000))
    return made


NOT_JSON = [
    b"",
    b"{",
    b"nonsense",
    b"\xff\xfe",
    b"[" * 8000,  # below the bound on brackets
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json(rpc: Rpc, body: bytes) -> None:
    answer = rpc.raw(body)
    assert answer["id"] is None
    assert answer["error"]["code"] == -32700


NOT_REQUESTS: list[Any] = [
    "\ud800",
    None,
    1,
    "eth_chainId",
    [],
    {},
    {"jsonrpc": "1.0", "id": 1, "method": "eth_chainId"},
    {"jsonrpc": "2.0", "id": 1, "method": 5},
    {"jsonrpc": "2.0", "id": [], "method": "eth_chainId"},
    {"jsonrpc": "2.0", "id": {}, "method": "eth_chainId"},
    {"jsonrpc": "2.0", "id": True, "method": "eth_chainId"},
]


@pytest.mark.parametrize("request_", NOT_REQUESTS, ids=repr)
def test_what_is_no_request(rpc: Rpc, request_: Any) -> None:
    assert rpc.raw(json.dumps(request_).encode())["error"]["code"] == -32600


def test_batches(rpc: Rpc) -> None:
    one = {"jsonrpc": "2.0", "id": "a", "method": "eth_chainId"}
    silent = {"jsonrpc": "2.0", "method": "eth_chainId"}
    answers = rpc.raw(json.dumps([one, silent, 5, {**one, "method": "nonsense"}]).encode())
    assert answers[0] == {"jsonrpc": "2.0", "id": "a", "result": hex(DEV_CHAIN_ID)}
    assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32600, -32601]
    assert rpc.raw(json.dumps([silent, silent]).encode()) is None
    many = json.dumps([one] * (MAX_BATCH_REQUESTS + 1)).encode()
    assert rpc.raw(many)["error"]["code"] == -32600


BAD_PARAMS: list[tuple[str, list[Any]]] = [
    ("eth_getBalance", []),
    ("eth_getBalance", ["0x12"]),
    ("eth_getBalance", ["11" * 21]),
    ("eth_getBalance", ["0x" + "zz" * 20]),
    ("eth_getBalance", ["0x" + "11 " * 20]),
    ("eth_getBalance", [None]),
    ("eth_getBalance", [OTHER, "yesterday"]),
    ("eth_getBalance", [OTHER, "0x" + "f" * 65]),
    ("eth_getBalance", [OTHER, -1]),
    ("eth_getBalance", [OTHER, [{}]]),
    ("eth_getBalance", [OTHER, "latest", 1]),
    ("eth_call", ["0x"]),
    ("eth_call", [{"to": OTHER, "data": "0x1"}]),
    ("eth_call", [{"to": OTHER, "gas": "0x-1"}]),
    ("eth_call", [{"to": OTHER, "value": 1.5}]),
    ("eth_sendRawTransaction", [5]),
    ("eth_getTransactionReceipt", ["0x11"]),
    ("eth_getBlockByNumber", ["latest", "yes"]),
    ("eth_getLogs", [[]]),
    ("eth_getLogs", [{"address": "0x1"}]),
    ("eth_getLogs", [{"address": [OTHER] * 1001}]),
    ("eth_getLogs", [{"topics": [None] * 5}]),
    ("eth_getLogs", [{"topics": "0x"}]),
    ("eth_getLogs", [{"topics": [["0x11"]]}]),
    ("eth_feeHistory", ["many", "latest"]),
    ("eth_feeHistory", [1, "latest", 5]),
    ("dev_faucet", [OTHER, -1]),
    ("dev_faucet", [OTHER, hex(10**25)]),
    ("dev_faucet", [OTHER, 0, hex(10**16)]),
    ("evm_increaseTime", [-1]),
    ("evm_increaseTime", [10**12]),
]


@pytest.mark.parametrize(("method", "params"), BAD_PARAMS, ids=[f"{m}-{i}" for i, (m, _) in enumerate(BAD_PARAMS)])
def test_bad_parameters(rpc: Rpc, method: str, params: list[Any]) -> None:
    before = rpc.get("eth_blockNumber")
    assert rpc.fault(method, *params)[0] == -32602
    assert rpc.get("eth_blockNumber") == before


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from(["0x", "0x0", OTHER, "latest"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["to", "from", "data", "gas", "topics", "address", "blockHash"]) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_no_parameters_break_it() -> None:
    rpc = Rpc()
    methods = sorted(rpc.rpc._methods)

    @settings(max_examples=400, deadline=None)
    @given(st.sampled_from(methods), st.lists(json_values, max_size=3))
    def fuzz(method: str, params: list[Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        answer = rpc.raw(body)
        assert ("result" in answer) != ("error" in answer)

    fuzz()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_it(body: bytes) -> None:
    rpc = ONE
    answer = rpc.raw(body)
    assert answer is None or "error" in answer or isinstance(answer, list)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_transaction_breaks_it(data: st.DataObject) -> None:
    rpc = ONE
    good = bytearray(rpc.sign(Address(bytes(20)), b"x" * 40).raw)
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(good[: data.draw(st.integers(0, len(good)))])
    assert "error" in rpc.ask("eth_sendRawTransaction", hexed(bad))  # nobody else has any money


ONE = Rpc()


def test_state_now_and_then(rpc: Rpc) -> None:
    assert int(rpc.get("eth_getBalance", hexed(ADDRESS)), 16) == 10**18
    assert int(rpc.get("eth_getBalance", hexed(ADDRESS), "earliest"), 16) == 0
    assert int(rpc.get("eth_getBalance", hexed(ADDRESS), "0x1"), 16) == 0
    head = rpc.get("eth_getBlockByNumber", "latest")
    assert int(rpc.get("eth_getBalance", hexed(ADDRESS), {"blockHash": head["hash"]}), 16) == 10**18
    assert rpc.fault("eth_getBalance", hexed(ADDRESS), "0x99") == (-32000, "header not found")
    info = rpc.get("dev_info")
    assert rpc.get("eth_getCode", info["hub"]) != "0x"
    assert rpc.get("eth_getCode", hexed(ADDRESS)) == "0x"
    assert len(rpc.get("eth_getStorageAt", info["token"], "0x0")) == 66


def test_blocks_lead_to_their_parents(rpc: Rpc) -> None:
    number = int(rpc.get("eth_blockNumber"), 16)
    block = rpc.get("eth_getBlockByNumber", hex(number), True)
    while number:
        assert int(block["number"], 16) == number
        assert rpc.get("eth_getBlockByHash", block["hash"], True) == block
        number -= 1
        parent = rpc.get("eth_getBlockByNumber", hex(number), True)
        assert block["parentHash"] == parent["hash"]
        assert int(block["timestamp"], 16) >= int(parent["timestamp"], 16)
        assert int(block["gasLimit"], 16) == BLOCK_GAS_LIMIT
        block = parent
    assert rpc.get("eth_getBlockByNumber", "0x99") is None
    assert rpc.get("eth_getBlockByHash", "0x" + "99" * 32) is None


def test_a_transaction_from_sending_to_receipt(rpc: Rpc) -> None:
    token = Address(bytes.fromhex(rpc.get("dev_info")["token"][2:]))
    signed = rpc.sign(token, encode_transfer(Address(b"\x11" * 20), 5))
    assert rpc.get("eth_getTransactionReceipt", hexed(signed.hash)) is None
    assert rpc.get("eth_sendRawTransaction", hexed(signed.raw)) == hexed(signed.hash)
    receipt = rpc.get("eth_getTransactionReceipt", hexed(signed.hash))
    assert receipt["status"] == "0x1"
    assert receipt["from"] == hexed(ADDRESS)
    found = rpc.get("eth_getTransactionByHash", hexed(signed.hash))
    assert found["blockHash"] == receipt["blockHash"]
    assert found["input"] == hexed(encode_transfer(Address(b"\x11" * 20), 5))
    paid = 10**18 - int(rpc.get("eth_getBalance", hexed(ADDRESS)), 16)
    assert paid == int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
    balance = rpc.get("eth_call", {"to": hexed(token), "data": hexed(encode_balance_of(Address(b"\x11" * 20)))})
    assert int(balance, 16) == 5
    assert rpc.fault("eth_sendRawTransaction", hexed(signed.raw)) == (-32000, "already known")


def test_logs_by_place_address_and_topic(rpc: Rpc) -> None:
    token = Address(bytes.fromhex(rpc.get("dev_info")["token"][2:]))
    for i in range(3):
        rpc.get(
            "eth_sendRawTransaction",
            hexed(rpc.sign(token, encode_transfer(Address(bytes([i]) * 20 if i else b"\x09" * 20), 1)).raw),
        )
    head = int(rpc.get("eth_blockNumber"), 16)
    transfer = hexed(keccak256(b"Transfer(address,address,uint256)"))
    mine = hexed(ADDRESS.rjust(32, b"\0"))
    whole = {"fromBlock": "earliest", "toBlock": "latest"}
    sent = rpc.get("eth_getLogs", {**whole, "topics": [transfer, mine]})
    assert [int(log["blockNumber"], 16) for log in sent] == [head - 2, head - 1, head]
    assert rpc.get("eth_getLogs", {**whole, "topics": [transfer, [mine, transfer]]}) == sent
    assert rpc.get("eth_getLogs", {**whole, "topics": [None, mine], "address": [hexed(token), OTHER]}) == sent
    assert rpc.get("eth_getLogs", {**whole, "topics": [mine]}) == []
    assert rpc.get("eth_getLogs", {**whole, "address": OTHER}) == []
    assert rpc.get("eth_getLogs", {**whole, "topics": [transfer, mine, None, None]}) == []
    assert rpc.get("eth_getLogs", {}) == sent[2:]
    assert rpc.get("eth_getLogs", {"blockHash": sent[1]["blockHash"]}) == sent[1:2]
    assert rpc.get("eth_getLogs", {"fromBlock": hex(head), "toBlock": hex(head + 50)}) == sent[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonce": 1}, "nonce too high"),
        ({"chain_id": 1}, "invalid chain id"),
        ({"gas": 20_000}, "intrinsic gas too low"),
        ({"gas": CALL_GAS_LIMIT + 1}, "gas limit too high"),
        ({"max_fee_wei": 1}, "max fee per gas less than block base fee"),
        ({"value_wei": 10**18}, "insufficient funds"),
    ],
)
def test_refused_transactions(rpc: Rpc, changes: dict[str, Any], message: str) -> None:
    before = rpc.get("eth_blockNumber")
    code, text = rpc.fault("eth_sendRawTransaction", hexed(rpc.sign(Address(bytes(20)), **changes).raw))
    assert code == -32000
    assert message in text
    assert rpc.get("eth_blockNumber") == before


def test_a_used_nonce_is_too_low(rpc: Rpc) -> None:
    rpc.get("eth_sendRawTransaction", hexed(rpc.sign(Address(bytes(20))).raw))
    again = rpc.sign(Address(b"\x01" * 20), nonce=0)
    assert "nonce too low" in rpc.fault("eth_sendRawTransaction", hexed(again.raw))[1]


def test_a_call_that_reverts_says_why(rpc: Rpc) -> None:
    info = rpc.get("dev_info")
    message = {
        "from": hexed(ADDRESS),
        "to": info["token"],
        "data": hexed(encode_transfer(Address(b"\x01" * 20), 10**9)),
    }
    for method in ("eth_call", "eth_estimateGas"):
        error = rpc.ask(method, message)["error"]
        assert error["code"] == 3
        assert error["message"] == "execution reverted: balance too low"
        assert error["data"].startswith("0x08c379a0")


def test_an_estimate_is_enough_and_little_more(rpc: Rpc) -> None:
    info = rpc.get("dev_info")
    data = encode_transfer(Address(b"\x01" * 20), 10)
    gas = int(rpc.get("eth_estimateGas", {"from": hexed(ADDRESS), "to": info["token"], "data": hexed(data)}), 16)
    signed = rpc.sign(Address(bytes.fromhex(info["token"][2:])), data, gas=gas)
    rpc.get("eth_sendRawTransaction", hexed(signed.raw))
    receipt = rpc.get("eth_getTransactionReceipt", hexed(signed.hash))
    assert receipt["status"] == "0x1"
    assert int(receipt["gasUsed"], 16) <= gas <= int(receipt["gasUsed"], 16) * 1.03
    assert int(rpc.get("eth_estimateGas", {"from": hexed(ADDRESS), "to": OTHER}), 16) == 21_000


def test_code_that_runs_for_ever_or_calls_itself_ends(rpc: Rpc) -> None:
    # JUMPDEST PUSH0 JUMP; and: a contract that calls itself with all its gas
    for_ever = {"data": "0x5b5f56", "gas": hex(200_000)}
    assert rpc.fault("eth_call", for_ever)[0] == -32000
    # PUSH0 x5, ADDRESS, GAS, CALL, STOP
    runtime = "5f5f5f5f5f305af100"
    loader = "68" + runtime + "5f5260096017f3"
    signed = rpc.sign(None, bytes.fromhex(loader))
    rpc.get("eth_sendRawTransaction", hexed(signed.raw))
    created = rpc.get("eth_getTransactionReceipt", hexed(signed.hash))["contractAddress"]
    assert rpc.get("eth_getCode", created) == "0x" + runtime
    # A thousand calls inside each other need a recursion limit with which other attacks end the process.
    deep = rpc.sign(Address(bytes.fromhex(created[2:])), gas=CALL_GAS_LIMIT, max_fee_wei=10**9)
    before = rpc.get("eth_blockNumber")
    assert "too deep" in rpc.fault("eth_call", {"to": created})[1]
    assert "too deep" in rpc.fault("eth_sendRawTransaction", hexed(deep.raw))[1]
    assert rpc.get("eth_blockNumber") == before
    assert "result" in rpc.ask("eth_call", {"to": created, "gas": hex(40_000)})
    assert rpc.get("eth_sendRawTransaction", hexed(rpc.sign(Address(bytes(20))).raw))


def test_fee_history(rpc: Rpc) -> None:
    head = int(rpc.get("eth_blockNumber"), 16)
    history = rpc.get("eth_feeHistory", "0x2", "latest", [10, 90])
    assert int(history["oldestBlock"], 16) == head - 1
    assert len(history["baseFeePerGas"]) == 3
    assert len(history["gasUsedRatio"]) == len(history["reward"]) == 2
    assert history["baseFeePerGas"][1] == rpc.get("eth_getBlockByNumber", "latest")["baseFeePerGas"]
    assert len(rpc.get("eth_feeHistory", hex(10**9), "latest")["gasUsedRatio"]) == head + 1


def test_time_is_the_clocks_and_can_be_set_forward(rpc: Rpc) -> None:
    assert rpc.get("eth_getBlockByNumber", "latest")["timestamp"] == hex(1_800_000_000)
    assert rpc.get("evm_increaseTime", 100) == hex(100)
    assert rpc.get("eth_getBlockByNumber", "latest")["timestamp"] == hex(1_800_000_100)
