"""The development chain where it makes blocks by the clock: what waits, and what the next block takes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import coincurve
import pytest

from p2pcompute.chain._devchain_evm import TransactionRefused
from p2pcompute.chain._devchain_node import DEV_CHAIN_ID, DevNode
from p2pcompute.chain._devchain_rpc import DevRpc
from p2pcompute.chain._tx import UnsignedTx, sign_transaction
from p2pcompute_protocols.channel._voucher import address_of, keccak256
from p2pcompute_protocols.ids import Address

GWEI = 10**9
TO = Address(b"\x09" * 20)
ALICE, BOB = (coincurve.PrivateKey(keccak256(name)) for name in (b"alice", b"bob"))


def transfer(key: coincurve.PrivateKey, nonce: int, *, value: int = 1, most: int = 100, tip: int = 1) -> bytes:
    tx = UnsignedTx(
        chain_id=DEV_CHAIN_ID,
        nonce=nonce,
        to=TO,
        data=b"",
        gas=21_000,
        max_fee_wei=most * GWEI,
        priority_fee_wei=tip * GWEI,
        value_wei=value,
    )
    return sign_transaction(tx, key).raw


@pytest.fixture
def node() -> DevNode:
    made = DevNode(None, now_s=lambda: 1_000_000, by_interval=True)
    for key in (ALICE, BOB):
        made.faucet(address_of(key.public_key), 10**18, 0)
    return made


def block(node: DevNode) -> list[bytes]:
    """What the next block takes."""
    before = node.chain.head
    node.tick()
    assert node.chain.head == before + 1
    return [mined.hash for mined in node.chain.transactions(node.chain.head)]


def hashes(*raws: bytes) -> list[bytes]:
    return [keccak256(raw) for raw in raws]


def asked(node: DevNode, method: str, *params: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return json.loads(DevRpc(node).answer(json.dumps(request).encode()))["result"]


def test_transactions_wait_for_the_next_block(node: DevNode) -> None:
    raw = transfer(ALICE, 0)
    (tx_hash,) = hashes(raw)
    assert node.send(raw) == tx_hash
    name, owner = "0x" + tx_hash.hex(), "0x" + address_of(ALICE.public_key).hex()
    assert asked(node, "eth_getTransactionReceipt", name) is None
    waiting = asked(node, "eth_getTransactionByHash", name)
    assert (waiting["hash"], waiting["from"], waiting["blockNumber"]) == (name, owner, None)
    assert asked(node, "eth_getTransactionCount", owner, "latest") == "0x0"
    assert asked(node, "eth_getTransactionCount", owner, "pending") == "0x1"
    with pytest.raises(TransactionRefused, match="already known"):
        node.send(raw)
    assert block(node) == [tx_hash]
    assert asked(node, "eth_getTransactionReceipt", name)["status"] == "0x1"
    with pytest.raises(TransactionRefused, match="already known"):
        node.send(raw)
    assert block(node) == []


def test_nonces_go_in_order_and_a_gap_waits(node: DevNode) -> None:
    first, second, third = (transfer(ALICE, nonce, tip=nonce + 1) for nonce in range(3))
    node.send(third)
    node.send(first)
    assert block(node) == hashes(first)
    node.send(second)
    assert block(node) == hashes(second, third)
    with pytest.raises(TransactionRefused, match="nonce too low"):
        node.send(transfer(ALICE, 1, value=5))


def test_the_best_tip_goes_first(node: DevNode) -> None:
    slow, fast = transfer(ALICE, 0, tip=1), transfer(BOB, 0, tip=9)
    node.send(slow)
    node.send(fast)
    assert block(node) == hashes(fast, slow)


def test_a_second_one_for_a_nonce_has_to_pay_a_tenth_more(node: DevNode) -> None:
    old = transfer(ALICE, 0, most=100, tip=10)
    node.send(old)
    for most, tip in ((109, 11), (110, 10), (200, 10), (109, 20)):
        with pytest.raises(TransactionRefused, match="replacement transaction underpriced"):
            node.send(transfer(ALICE, 0, most=most, tip=tip, value=2))
    new = transfer(ALICE, 0, most=110, tip=11, value=2)
    node.send(new)
    assert block(node) == hashes(new)


def test_what_pays_less_than_the_base_fee_waits(node: DevNode) -> None:
    base_wei = node.chain.next_base_fee_wei()
    assert base_wei > 1
    tx = UnsignedTx(
        chain_id=DEV_CHAIN_ID, nonce=0, to=TO, data=b"", gas=21_000, max_fee_wei=base_wei // 2, priority_fee_wei=0
    )
    raw = sign_transaction(tx, ALICE).raw
    node.send(raw)
    assert block(node) == []
    blocks = 1
    while node.chain.next_base_fee_wei() > tx.max_fee_wei:
        assert block(node) == []  # empty blocks bring it down
        blocks += 1
    assert block(node) == hashes(raw)
    assert blocks > 3


def test_what_cannot_be_paid_together_is_mined_apart(node: DevNode) -> None:
    first, second = transfer(ALICE, 0, value=6 * 10**17), transfer(ALICE, 1, value=6 * 10**17)
    node.send(first)
    node.send(second)
    assert block(node) == hashes(first)
    assert block(node) == []  # the second one can't be paid for
    assert node.pool is not None
    assert len(node.pool) == 0


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x02", "malformed"),
        (transfer(ALICE, 0, value=2 * 10**18), "insufficient funds"),
        (transfer(coincurve.PrivateKey(b"x" * 32), 0), "insufficient funds"),
    ],
)
def test_what_is_refused_at_once(node: DevNode, raw: bytes, words: str) -> None:
    with pytest.raises(TransactionRefused, match=words):
        node.send(raw)


def test_one_sender_has_so_many_places(node: DevNode) -> None:
    for nonce in range(64):
        node.send(transfer(ALICE, nonce))
    with pytest.raises(TransactionRefused, match="txpool is full"):
        node.send(transfer(ALICE, 64))
    node.send(transfer(BOB, 0))
    assert len(block(node)) == 65


def test_what_waits_is_forgotten_by_a_crash_and_what_is_mined_is_not(tmp_path: Path) -> None:
    first = DevNode(tmp_path, now_s=lambda: 1_000_000, by_interval=True)
    first.faucet(address_of(ALICE.public_key), 10**18, 0)
    mined, waiting = transfer(ALICE, 0), transfer(ALICE, 1)
    first.send(mined)
    first.tick()
    first.send(waiting)
    head = first.chain.head
    first.close()
    for by_interval in (True, False):  # either kind goes on with the other's journal
        second = DevNode(tmp_path, now_s=lambda: 1_000_000, by_interval=by_interval)
        assert second.chain.head == head
        assert second.chain.mined(keccak256(mined)) is not None
        assert second.chain.mined(keccak256(waiting)) is None
        second.close()
