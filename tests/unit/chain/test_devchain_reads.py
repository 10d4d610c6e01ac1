"""What a stranger's reads may cost the development chain, and what they cost without the bounds."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from p2pcompute.chain._devchain_node import DevNode
from p2pcompute.chain._devchain_reads import BODY_GAS, CALL_GAS, Allowance, ClientGone, Turns
from p2pcompute.chain._devchain_rpc import MAX_ANSWER_BYTES, MAX_BATCH_REQUESTS, DevRpc
from p2pcompute_protocols.ids import Address

FOR_EVER = "0x5b5f56"  # JUMPDEST PUSH0 JUMP
NODE = DevNode(None, now_s=lambda: 1_800_000_000)
RPC = DevRpc(NODE)


def batch(count: int, method: str = "eth_call", *params: Any) -> bytes:
    asked = params or ({"data": FOR_EVER},)
    one = {"jsonrpc": "2.0", "method": method, "params": list(asked)}
    return json.dumps([{**one, "id": i} for i in range(count)]).encode()


def answers(body: bytes, allowance: Allowance) -> list[Any]:
    found = json.loads(RPC.answer(body, allowance))
    assert isinstance(found, list)
    return found


def test_a_batch_of_endless_calls_has_one_allowance_of_gas() -> None:
    without = Allowance(gas=10**12, call_gas=60_000)
    found = answers(batch(MAX_BATCH_REQUESTS), without)
    assert {item["error"]["code"] for item in found} == {-32000}  # every one of them ran out
    assert without.gas - without.gas_left == MAX_BATCH_REQUESTS * 60_000

    bounded = Allowance(gas=250_000, call_gas=60_000)
    found = answers(batch(MAX_BATCH_REQUESTS), bounded)
    assert [item["error"]["code"] for item in found] == [-32000] * 4 + [-32005] * (MAX_BATCH_REQUESTS - 4)
    assert "in a body of its own" in found[-1]["error"]["message"]
    assert bounded.gas_left == 10_000


def test_what_is_cheap_is_charged_as_such() -> None:
    token = "0x" + NODE.token.hex()
    read = {"to": token, "data": "0x18160ddd"}  # totalSupply()
    allowance = Allowance()
    found = answers(batch(MAX_BATCH_REQUESTS, "eth_call", read), allowance)
    assert all("result" in item for item in found)
    assert allowance.gas_left > BODY_GAS - CALL_GAS


def test_estimates_and_transactions_are_charged_too() -> None:
    # It needs four times the gas that it uses, so the estimate tries again and again: GAS PUSH3 GT PUSH1 JUMPI STOP,
    # and where there is too little of it, INVALID.
    picky = {"data": "0x5a6203d09011600a57005bfe", "gas": hex(1_000_000)}
    without, bounded = Allowance(gas=10**12), Allowance(gas=3_000_000)
    estimated = json.loads(RPC.answer(batch(1, "eth_estimateGas", picky), without))[0]
    assert "result" in estimated
    assert without.gas - without.gas_left > 3_000_000
    assert answers(batch(1, "eth_estimateGas", picky), bounded)[0]["error"]["code"] == -32005

    spent = Allowance(gas=0)
    assert answers(batch(1, "eth_sendRawTransaction", "0x00"), spent)[0]["error"]["code"] == -32005


def test_a_call_names_its_gas_and_gets_no_more_than_there_is() -> None:
    allowance = Allowance(gas=10**12)
    answers(batch(1, "eth_call", {"data": FOR_EVER, "gas": hex(2**255)}), allowance)
    assert allowance.gas - allowance.gas_left == CALL_GAS


def test_it_ends_when_the_client_has_left() -> None:
    class Leaving(Allowance):
        looks = 0

        def look_up(self) -> None:
            self.looks += 1
            if self.looks == 20:
                self.gone.set()
            super().look_up()

    staying, leaving = Allowance(), Leaving()
    body = batch(3, "eth_call", {"data": FOR_EVER, "gas": hex(500_000)})
    assert len(answers(body, staying)) == 3  # what it would take
    with pytest.raises(ClientGone):
        RPC.answer(body, leaving)
    assert leaving.looks == 20
    assert leaving.gas_left == BODY_GAS  # within the first of them


@pytest.mark.parametrize("number", [6, 7, 8, 9, *range(0x0B, 0x12)])
def test_precompiles_that_take_python_minutes_are_not_there(number: int) -> None:
    rounds = (2**24 - 1).to_bytes(4, "big") + bytes(209)  # BLAKE2F: a unit of gas a round, 80 s in all
    message = {"to": f"0x{number:040x}", "data": "0x" + rounds.hex()}
    error = answers(batch(1, "eth_call", message), Allowance())[0]["error"]
    assert error["code"] == -32000
    assert f"0x{number:02x} is not on this chain" in error["message"]


def test_the_other_precompiles_are() -> None:
    message = {"to": f"0x{2:040x}", "data": "0x"}  # SHA-256
    assert answers(batch(1, "eth_call", message), Allowance())[0]["result"].startswith("0xe3b0c442")


def test_answers_have_a_length() -> None:
    code = len(json.loads(RPC.answer(batch(1, "eth_getCode", "0x" + NODE.hub.hex())))[0]["result"])
    assert code * MAX_BATCH_REQUESTS < MAX_ANSWER_BYTES
    node = DevNode(None, now_s=lambda: 1_800_000_000)
    for _ in range(30):
        node.advance(0)
    rpc = DevRpc(node)
    wide = batch(MAX_BATCH_REQUESTS, "eth_feeHistory", "0x400", "latest", [50] * 100)
    assert len(rpc.answer(wide)) < MAX_ANSWER_BYTES + len(rpc.answer(batch(1, "eth_feeHistory", "0x400", "latest")))
    long = "i" * (MAX_ANSWER_BYTES // 4)
    one = {"jsonrpc": "2.0", "id": long, "method": "evm_increaseTime", "params": [0]}
    before = node.chain.head
    found = json.loads(rpc.answer(json.dumps([one] * 6).encode()))
    assert [item.get("error", {}).get("code") for item in found] == [None] * 4 + [-32005] * 2
    assert node.chain.head == before + 4  # what is not answered is not done


@pytest.mark.parametrize("bad", ["1e400", "-1e400"])
def test_an_id_that_json_cannot_say_is_refused(bad: str) -> None:
    assert json.dumps(float(bad)) in ("Infinity", "-Infinity")  # which is what would be sent back
    answer = RPC.answer(b'{"jsonrpc":"2.0","id":%b,"method":"eth_chainId"}' % bad.encode())
    assert b"Infinity" not in answer
    assert json.loads(answer)["error"]["code"] == -32600
    assert json.loads(answer)["id"] is None


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_words_that_only_python_takes_for_json(word: str) -> None:
    answer = RPC.answer(b'{"jsonrpc":"2.0","id":%b,"method":"eth_chainId"}' % word.encode())
    assert json.loads(answer)["error"]["code"] == -32700


def test_a_read_makes_way_for_others_and_goes_on_on_its_own_block() -> None:
    node = DevNode(None, now_s=lambda: 1_800_000_000)
    rpc = DevRpc(node)
    turns = Turns()
    head = node.chain.head
    reading, done = threading.Event(), threading.Event()
    order: list[str] = []

    class Reader(Allowance):
        looks = 0

        def look_up(self) -> None:
            self.looks += 1
            if self.looks == 5:  # in the middle of the call
                reading.set()
                while not order:
                    turns.pass_on()
            super().look_up()

    def read() -> None:
        with turns.turn():
            # Counts down from 2^16, and returns the block's number.
            message = {"data": "0x62010000" + "5b" + "6001" + "90" + "03" + "80" + "6004" + "57" + "435f5260205ff3"}
            answer = json.loads(rpc.answer(batch(1, "eth_call", message), Reader(turns=turns)))
            order.append(f"read {int(answer[0]['result'], 16)}")
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(60)
    with turns.turn():
        order.append("mined")
        node.faucet(Address(b"\x01" * 20), 10**18, 5)
    assert done.wait(60)
    thread.join()
    assert node.chain.head == head + 1
    assert order == ["mined", f"read {head}"]
